"""Bodies of replies. A response frame is a few integers, the fields of wire.cddl's response, and at most one frame that is
there already, so it is put together here, byte by byte what wire.encode_response_with makes in ten times the time.
"""

from __future__ import annotations

import json
from functools import lru_cache

from cloud.storage import SyncOutcome
from omega_edge import frame, wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import MAX_DOWNLOAD_BYTES

_HEADER = bytes((frame.FORMAT_VERSION, wire.KIND_RESPONSE, frame.BODY_RAW, frame.DICTIONARY_NONE))
_BYTES, _MAP = 0x40, 0xA0
_RESET, _SNAPSHOT_WANTED, _ERASED, _COUNTED = b"\x09\xf5", b"\x0a\xf5", b"\x0b\xf5", b"\x0c\xf5"
"""Key and true."""


def response_frame(
    outcome: SyncOutcome,
    version: int,
    global_version: int,
    next_sync_secs: int,
    catalog_version: int | None = None,
    patterns_frame: bytes | None = None,
) -> bytes:
    """The body of a reply. patterns_frame: of this global version, where the television has another.

    Raises ProtocolError where both together exceed MAX_DOWNLOAD_BYTES.
    """
    acknowledged = outcome.acknowledged_local_version
    parts = [_usual(version, global_version, next_sync_secs), _integer(outcome.server_time)]
    if acknowledged is not None:
        parts += (b"\x05", _integer(acknowledged))
    if patterns_frame is not None:
        parts += (b"\x07", _integer(len(patterns_frame), _BYTES), patterns_frame)
    if catalog_version is not None:
        parts += (b"\x08", _integer(catalog_version))
    count = (len(parts) - (patterns_frame is not None)) // 2 + 3
    for told, field in (
        (outcome.reset, _RESET),
        (outcome.snapshot_wanted, _SNAPSHOT_WANTED),
        (outcome.erased, _ERASED),
        (outcome.counted, _COUNTED),
    ):
        if told:
            parts.append(field)
            count += 1
    packed = b"".join((_HEADER, bytes((_MAP + count,)), *parts))
    if len(packed) > MAX_DOWNLOAD_BYTES:
        raise ProtocolError(f"response: expected at most {MAX_DOWNLOAD_BYTES} bytes, got {len(packed)} with its patterns")
    return packed


@lru_cache(256)
def _usual(version: int, global_version: int, next_sync_secs: int) -> bytes:
    """Keys 1 to 3, and the key of the server time: the same in most replies."""
    return b"".join((b"\x01", _integer(version), b"\x02", _integer(global_version), b"\x03", _integer(next_sync_secs), b"\x04"))


def _integer(value: int, kind: int = 0) -> bytes:
    """A CBOR integer of 0 to 2^64 - 1 in its shortest form, or the length before so many bytes (kind _BYTES)."""
    if value < 24:
        return bytes((kind + value,))
    if value < 1 << 8:
        return bytes((kind + 24, value))
    if value < 1 << 16:
        return bytes((kind + 25,)) + value.to_bytes(2, "big")
    if value < 1 << 32:
        return bytes((kind + 26,)) + value.to_bytes(4, "big")
    return bytes((kind + 27,)) + value.to_bytes(8, "big")


def error_body(words: str, retry_after: int | None = None) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Headers and body of an error: JSON with the first line of its words."""
    headers = [("Content-Type", "application/json")]
    if retry_after is not None:
        headers.append(("Retry-After", str(retry_after)))
    return tuple(headers), json.dumps({"error": words.splitlines()[0] if words else ""}, ensure_ascii=False).encode()
