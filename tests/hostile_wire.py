"""Bytes for the tests of hostile messages: golden frames, decoders by kind, and ways to change what is inside."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator

from omega_edge import frame, wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, MAX_UPLOAD_BYTES
from tests.wire_messages import GOLDEN, NUMBERING, VECTORS, Numbering

DECODERS: dict[int, tuple[Callable, int]] = {
    wire.KIND_REQUEST: (wire.decode_request, MAX_UPLOAD_BYTES),
    wire.KIND_RESPONSE: (wire.decode_response, MAX_DOWNLOAD_BYTES),
    wire.KIND_DELTA: (wire.decompress_delta, MAX_UPLOAD_BYTES),
    wire.KIND_GLOBAL_PATTERNS: (wire.decode_global_patterns, MAX_DOWNLOAD_BYTES),
    wire.KIND_EVENT: (wire.decode_event, MAX_UPLOAD_BYTES),
}
VECTOR_BYTES = {name: (VECTORS / f"{name}.bin").read_bytes() for name in sorted(GOLDEN)}
CPU_SECONDS = 0.1
"""Far above what any decoding takes, so that only a decoder whose time runs away fails on a busy machine."""


def decode(data: bytes, titles: Numbering | None = NUMBERING) -> object | None:
    """What the decoder of the frame's kind makes of it, None where it refuses; any other exception comes through."""
    decoder, _ = DECODERS.get(data[1] if len(data) > 1 else 0, DECODERS[wire.KIND_REQUEST])
    started = time.thread_time()
    try:
        return decoder(data, titles)
    except ProtocolError as error:
        assert len(str(error)) < 400
        return None
    finally:
        assert time.thread_time() - started < CPU_SECONDS


def raw_frame(kind: int, body: bytes) -> bytes:
    return bytes((frame.FORMAT_VERSION, kind, frame.BODY_RAW, frame.DICTIONARY_NONE)) + body


def zstd_frame(kind: int, body: bytes) -> bytes:
    return bytes((frame.FORMAT_VERSION, kind, frame.BODY_ZSTD, frame.DICTIONARY_NONE)) + body


def inflated(data: bytes) -> bytes:
    """The CBOR of a golden frame."""
    return frame.content(data, data[1], MAX_DOWNLOAD_BYTES)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four of: a byte replaced, inserted or removed, a run repeated, moved or replaced."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(changed) + 1), rng.randint(1, 8)
        run = bytes(changed[place : place + length])
        action = rng.randrange(5)
        if action == 0 and place < len(changed):
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif action == 1:
            changed[place:place] = rng.randbytes(length)
        elif action == 2:
            del changed[place : place + length]
        elif action == 3:
            changed[place:place] = run * rng.randint(1, 50)
        else:
            changed[place : place + length] = rng.randbytes(len(run))
    return bytes(changed)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values inside a structure of maps and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(fields: dict, path: tuple, value: object) -> dict:
    """A copy of the fields with another value at a path."""
    fields = copy.deepcopy(fields)
    container = fields
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
    return fields


def removed(fields: dict, path: tuple) -> dict:
    """A copy of the fields without the value at a path."""
    fields = replaced(fields, path, None)
    container = fields
    for key in path[:-1]:
        container = container[key]
    del container[path[-1]]
    return fields
