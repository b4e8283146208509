"""Values from environment variables. A wrong one is a ConfigError that names its variable; a secret's value is in no message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from omega_edge.errors import ConfigError
from omega_edge.signing import SigningKey, read_signing_key

MIN_SECRET_BYTES, MAX_SECRET_BYTES = 16, 64


def integer(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A whole number from least to most; the default where the variable is empty."""
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{name}: expected a whole number from {least} to {most}, got {text[:40]!r}")
    return int(text)


def folder(environment: Mapping[str, str], name: str) -> Path | None:
    """A path, None where the variable is empty."""
    text = environment.get(name, "").strip()
    return Path(text) if text else None


def named(environment: Mapping[str, str], name: str, form: re.Pattern[str], expected: str) -> str | None:
    """A word of this form, None where the variable is empty. expected: the form in words."""
    text = environment.get(name, "").strip()
    if text and not form.fullmatch(text):
        raise ConfigError(f"{name}: expected {expected}, got {text[:40]!r}")
    return text or None


def listed(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The words between commas, of which none is empty."""
    return tuple(word for part in environment.get(name, "").split(",") if (word := part.strip()))


def secret(environment: Mapping[str, str], name: str) -> bytes | None:
    """The key in the variable, or in the file that the variable with _FILE names."""
    text = environment.get(name, "")
    file = environment.get(f"{name}_FILE", "").strip()
    if text and file:
        raise ConfigError(f"{name}: expected it here or in {name}_FILE, got both")
    if file:
        name = f"{name}_FILE"
        try:
            with open(file, encoding="ascii", errors="replace") as opened:
                text = opened.read(1_024)
        except OSError as fault:
            raise ConfigError(f"{name}: expected a file that can be read, got {fault.strerror}: {file}") from None
    if not text.strip():
        return None
    try:
        value = bytes.fromhex(text.strip())
    except ValueError:
        value = b""
    if not MIN_SECRET_BYTES <= len(value) <= MAX_SECRET_BYTES:
        raise ConfigError(
            f"{name}: expected {2 * MIN_SECRET_BYTES} to {2 * MAX_SECRET_BYTES} hexadecimal digits, got other text; "
            "`openssl rand -hex 32` makes one"
        )
    return value


def signing_key(environment: Mapping[str, str]) -> SigningKey | None:
    """The key in the file that SIGNING_KEY_FILE names, None where it is empty."""
    path = folder(environment, "SIGNING_KEY_FILE")
    if path is None:
        return None
    try:
        return read_signing_key(path)
    except OSError as fault:
        raise ConfigError(f"SIGNING_KEY_FILE: expected a file that can be read, got {fault.strerror}: {path}") from None
    except ConfigError as fault:
        raise ConfigError(f"SIGNING_KEY_FILE: {fault}") from None
