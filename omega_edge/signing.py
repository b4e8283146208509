"""Signed objects: bytes that whoever holds one of a few pinned public keys can tell to be the operator's.

    bytes 0–3     "OMSO"
    byte  4       format version, 1
    bytes 5–7     0
    bytes 8–23    kind, ASCII, filled up with zeros: what the payload is, so that no object passes for one of another kind
    bytes 24–31   length of the payload, u64 big-endian
    bytes 32–63   Ed25519 public key of the signer
    bytes 64–127  Ed25519 signature of bytes 0–63 and the payload
    bytes 128…    payload

The header is of fixed size, so a reader needs to parse nothing before it has verified. A signature says who wrote an
object and what it is for, not that it is the newest: payloads carry a version or sequence, and their readers refuse to
go back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from omega_edge.errors import ConfigError, SignatureError

__all__ = [
    "HEADER_BYTES",
    "KINDS",
    "SigningKey",
    "create_signing_key",
    "public_key",
    "read_public_keys",
    "read_signing_key",
    "seal",
    "unseal",
]

KINDS = ("counts", "lists", "index", "collective", "patterns", "manifest")
"""What a payload can be."""
HEADER_BYTES = 128
PUBLIC_KEY_BYTES = 32

_MAGIC = b"OMSO"
_FORMAT_VERSION = 1
_KIND_BYTES = 16
_SIGNED_HEADER_BYTES = 64
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")


def seal(kind: str, payload: bytes, key: SigningKey) -> bytes:
    """The payload as a signed object of this kind. Raises SignatureError for a kind that is not in KINDS."""
    head = _head(kind, len(payload), bytes(key.verify_key))
    return head + key.sign(head + payload).signature + payload


def unseal(data: bytes, kind: str, trusted: Collection[bytes], max_bytes: int) -> bytes:
    """The payload of a signed object of this kind.

    trusted: public keys of 32 bytes, of which one must be the signer's. max_bytes: of the whole object. Raises
    SignatureError, and nothing else, for any other bytes; the message names what is wrong with them.
    """
    if not HEADER_BYTES <= len(data) <= max_bytes:
        raise SignatureError(f"{kind}: expected a signed object of {HEADER_BYTES} to {max_bytes} bytes, got {len(data)}")
    head, signature, payload = data[:_SIGNED_HEADER_BYTES], data[_SIGNED_HEADER_BYTES:HEADER_BYTES], data[HEADER_BYTES:]
    if data[:5] != _MAGIC + bytes((_FORMAT_VERSION,)):
        raise SignatureError(f"{kind}: expected a signed object of format {_FORMAT_VERSION}, got other bytes")
    signer = head[32:]
    if head != _head(kind, len(payload), signer):
        found = next((other for other in KINDS if head[8:24] == _padded(other)), None)
        if found not in (None, kind):
            raise SignatureError(f"{kind}: expected a signed object of this kind, got one of kind {found}")
        raise SignatureError(f"{kind}: expected a payload of the length that the header states, got another")
    if signer not in trusted:
        raise SignatureError(
            f"{kind}: expected a signature by one of {len(trusted)} trusted keys, got one by {signer.hex()}; "
            "add that key if it is the operator's"
        )
    try:
        VerifyKey(signer).verify(head + payload, signature)
    except BadSignatureError:
        raise SignatureError(f"{kind}: expected the signature of these bytes, got another; they were changed") from None
    return payload


def public_key(key: SigningKey) -> bytes:
    """The 32 bytes that others need to trust what the key signs."""
    return bytes(key.verify_key)


def create_signing_key(path: Path) -> SigningKey:
    """A new random key, written to a file that only its owner can read. Raises FileExistsError where there is a file."""
    key = SigningKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(bytes(key).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def read_signing_key(path: Path) -> SigningKey:
    """The key in a file of 64 hexadecimal digits. Raises ConfigError for another content, OSError for no such file."""
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read(256).strip()
    if not _HEX_KEY.fullmatch(text):
        raise ConfigError(f"{path}: expected a signing key of 64 hexadecimal digits, got something else")
    return SigningKey(bytes.fromhex(text))


def read_public_keys(text: str) -> tuple[bytes, ...]:
    """Public keys of 64 hexadecimal digits each, separated by commas or white space. Raises ConfigError for others."""
    words = text.replace(",", " ").split()
    for word in words:
        if not _HEX_KEY.fullmatch(word):
            raise ConfigError(f"trusted keys: expected 64 hexadecimal digits a key, separated by commas, got {word!r}")
    return tuple(bytes.fromhex(word) for word in words)


def _padded(kind: str) -> bytes:
    return kind.encode("ascii", "replace").ljust(_KIND_BYTES, b"\0")


def _head(kind: str, payload_bytes: int, signer: bytes) -> bytes:
    """Bytes 0–63 of an object."""
    if kind not in KINDS:
        raise SignatureError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return _MAGIC + bytes((_FORMAT_VERSION, 0, 0, 0)) + _padded(kind) + payload_bytes.to_bytes(8, "big") + signer
