"""A shard's configuration from environment variables. A wrong value is a ConfigError that names its variable; a secret's value
is in no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloud.environment import folder, integer, named, secret, signing_key
from cloud.shard import ShardConfig
from omega_edge.errors import ConfigError
from omega_edge.signing import SigningKey, public_key, read_public_keys

VARIABLES = {
    "DATABASE_URL": "lmdb:///folder: where the shard keeps its data (required)",
    "DEVICE_KEY": "32 to 128 hexadecimal digits, from which every device's token follows (required, or DEVICE_KEY_FILE)",
    "DEVICE_KEY_FILE": "a file that holds it",
    "ENROLMENT": "open: a new device is given its token when it asks; closed: only `token` gives them out (open)",
    "SHARD_ID": "1 to 100 (1)",
    "REGION": "lower-case letters, digits and hyphens, up to 24 (default)",
    "MAX_DEVICES": "devices that the shard takes (100000)",
    "HOST": "address to listen on (127.0.0.1)",
    "PORT": "port to listen on, 0 for a free one (8080)",
    "WORKERS": "processes that answer requests (1)",
    "MAX_SYNCS_PER_SECOND": "syncs that each of them lets in, so that time is left to refuse a flood (5000)",
    "SYNC_INTERVAL_SECONDS": "what televisions are told to wait between syncs, 60 to 86400 (300)",
    "RETENTION_DAYS": "how long finished titles are kept (400)",
    "BUNDLE_DIR": "folder LINEAGE/manifest and bundles; without it only titles as text are read, and none is stored",
    "LINEAGE": "16 hexadecimal digits: which one, where BUNDLE_DIR holds several",
    "PUBLICATION_DIR": "folder of signed objects: the shard's own, and the collective that it pulls",
    "SIGNING_KEY_FILE": "the shard's key for what it publishes (see `keygen`)",
    "TRUSTED_KEYS": "public keys whose bundles and objects are believed, 64 hexadecimal digits each, by commas",
    "FEDERATION_URL": "where the collective and bundles are pulled: the hub's or region's …/api/v1/federation/, or a folder",
    "FEDERATION_SECRET_FILE": "32 to 128 hexadecimal digits that all shards share: pseudonyms in published lists",
    "COUNTING_INTERVAL_SECONDS": "between what is counted, published and pulled (60)",
    "LOG_LEVEL": "DEBUG, INFO, WARNING or ERROR (INFO)",
}
"""Every variable, in the words of the command's help."""

_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")
_LINEAGE = re.compile(r"[0-9a-f]{16}")
_ENROLMENT = re.compile("open|closed")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """All that a shard's processes need. trusted_keys: the shard's own public key is among them."""

    shard: ShardConfig
    device_key: bytes = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    bundle_dir: Path | None = None
    lineage: str | None = None
    publication_dir: Path | None = None
    signing_key: SigningKey | None = field(default=None, repr=False)
    trusted_keys: tuple[bytes, ...] = ()
    federation_url: str | None = None
    federation_secret: bytes | None = field(default=None, repr=False)
    counting_interval_seconds: int = 60
    log_level: str = "INFO"
    enrolment_open: bool = True
    max_syncs_per_second: int = 5_000


def device_key(environment: Mapping[str, str]) -> bytes:
    """The key of all devices; ConfigError where there is none."""
    key = secret(environment, "DEVICE_KEY")
    if key is None:
        raise ConfigError("DEVICE_KEY: expected 32 to 128 hexadecimal digits, here or in DEVICE_KEY_FILE, got nothing")
    return key


def _database_url(environment: Mapping[str, str]) -> str:
    alias = "POSTGRES_URL" if environment.get("POSTGRES_URL", "").strip() else "DATABASE_URL"
    url = environment.get(alias, "").strip()
    if url.startswith(("postgres:", "postgresql:")) or (url and alias == "POSTGRES_URL"):
        raise ConfigError(f"{alias}: expected lmdb:///folder, got PostgreSQL, which this version has no engine for yet")
    if not url:
        raise ConfigError("DATABASE_URL: expected lmdb:///folder, got nothing")
    return url


def from_environment(environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """The configuration; ConfigError naming the first variable that is wrong."""
    try:
        shard = ShardConfig(
            shard_id=integer(environment, "SHARD_ID", 1, 1, 100),
            region=named(environment, "REGION", _REGION, "1 to 24 lower-case letters, digits or hyphens") or "default",
            database_url=_database_url(environment),
            max_devices=integer(environment, "MAX_DEVICES", 100_000, 1, 10_000_000),
            sync_interval_seconds=integer(environment, "SYNC_INTERVAL_SECONDS", 300, 60, 86_400),
            retention_days=integer(environment, "RETENTION_DAYS", 400, 1, 3_650),
        )
    except ConfigError as fault:
        text = str(fault)
        raise ConfigError(text.replace("database_url:", "DATABASE_URL:", 1)) from None
    key = signing_key(environment)
    try:
        trusted = read_public_keys(environment.get("TRUSTED_KEYS", ""))
    except ConfigError as fault:
        raise ConfigError(f"TRUSTED_KEYS: {fault}") from None
    return ServerConfig(
        shard=shard,
        device_key=device_key(environment),
        enrolment_open=named(environment, "ENROLMENT", _ENROLMENT, "open or closed") != "closed",
        host=environment.get("HOST", "").strip() or "127.0.0.1",
        port=integer(environment, "PORT", 8080, 0, 65_535),
        workers=integer(environment, "WORKERS", 1, 1, 64),
        max_syncs_per_second=integer(environment, "MAX_SYNCS_PER_SECOND", 5_000, 1, 1_000_000),
        bundle_dir=folder(environment, "BUNDLE_DIR"),
        lineage=named(environment, "LINEAGE", _LINEAGE, "16 lower-case hexadecimal digits"),
        publication_dir=folder(environment, "PUBLICATION_DIR"),
        signing_key=key,
        trusted_keys=trusted if key is None else (*trusted, public_key(key)),
        federation_url=environment.get("FEDERATION_URL", "").strip() or None,
        federation_secret=secret(environment, "FEDERATION_SECRET"),
        counting_interval_seconds=integer(environment, "COUNTING_INTERVAL_SECONDS", 60, 1, 3_600),
        log_level=named(environment, "LOG_LEVEL", re.compile("|".join(_LEVELS)), f"one of {', '.join(_LEVELS)}") or "INFO",
    )
