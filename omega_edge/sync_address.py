"""Where a shard is: the base URL that a television is given."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from omega_edge.errors import ConfigError

SYNC_PATH, DEVICES_PATH = "api/v1/sync", "api/v1/devices"
_LOCAL_NAMES = ("localhost",)


def shard_url(text: str) -> str:
    """The base URL of a shard without a slash at its end. ConfigError for others than https, or http to this machine or a
    private address."""
    text = text if isinstance(text, str) else repr(text)
    try:
        parts = urlsplit(text)
        host, valid = parts.hostname, parts.port != 0
    except ValueError:
        parts, host, valid = urlsplit(""), None, False
    plain = text.isascii() and text.isprintable() and not any(mark in text for mark in " @?#\\")
    if parts.scheme not in ("http", "https") or not host or not valid or not plain:
        raise ConfigError(f"constellation_url: expected https://host/ or http://127.0.0.1:port/, got {text!r}")
    if parts.scheme == "http" and not _is_near(host):
        raise ConfigError(
            f"constellation_url: expected https, because what is shared is viewing history, got {text!r}; http is for this "
            "machine and private addresses"
        )
    return text.rstrip("/")


def _is_near(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in _LOCAL_NAMES
    return address.is_private or address.is_loopback
