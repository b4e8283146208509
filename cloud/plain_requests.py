"""The short way for a request's frame: the form that nearly all have is cut by one expression, straight to rows and times.

A television's usual request is an undeflated frame with device, epoch and a list of finished titles as numbers.
wire.decode_request makes objects of it and checks each; here the same checks are a few comparisons, in a quarter of the
time. Whatever is not of that form, or fails a check, is left to wire.decode_request: errors are told there alone, and what
is read here is what is read there.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import NamedTuple

from cloud.shard_titles import ShardTitles
from omega_edge import frame, wire
from omega_edge.columns import STEP_MS
from omega_edge.protocol import DEVICE_ID_BYTES, MAX_TIMESTAMP_MS, MAX_TITLES_FINISHED_PER_PAGE, MAX_UPLOAD_BYTES

_INTEGER = rb"([\x00-\x17]|\x18.|\x19..|\x1a.{4}|\x1b.{8})"
_BYTES = rb"([\x40-\x57]|\x58.|\x59..)"
_HEADER = bytes((frame.FORMAT_VERSION, wire.KIND_REQUEST, frame.BODY_RAW, frame.DICTIONARY_NONE))
_HEAD = re.compile(
    re.escape(_HEADER) + rb"([\xa5\xa6])\x01" + _INTEGER + rb"\x02" + _INTEGER + rb"\x03\x50(.{%d})\x04" % DEVICE_ID_BYTES
    + _INTEGER + rb"(?:\x05" + _INTEGER + rb")?\x06([\xa4-\xa6])\x01" + _INTEGER + rb"\x02\x81" + _BYTES,
    re.DOTALL,
)  # fmt: skip
"""Up to the length of the titles' numbers. Keys of the request: 1 version, 2 global version, 3 device, 4 epoch, 5 server time,
6 delta; of the delta: 1 local version, 2 titles."""
_TAIL = re.compile(rb"(\x07\xf5)?\x08\x48(.{8})(?:\x0a\x48(.{8}))?", re.DOTALL)
"""After the times: 7 more pages, 8 lineage, 10 the shared set's hash."""
_FEW_KEYS = 4
"""Of a delta without what is optional here; five of a request."""
_MOST_STEPS = MAX_TIMESTAMP_MS // STEP_MS


class PlainRequest(NamedTuple):
    """What a usual request says; the fields are those of SyncRequest and PatternDelta. finished_ms: as many as rows."""

    version: int
    global_version_seen: int
    device_id: bytes
    epoch: int
    server_time_seen: int | None
    local_version: int
    rows: list[int]
    finished_ms: list[int]
    shared_set_hash: int | None


def read_plain_request(data: bytes, titles: ShardTitles | None) -> PlainRequest | None:
    """The request of these bytes, or None where wire.decode_request has to read them."""
    head = _HEAD.match(data)
    if head is None or titles is None or len(data) > MAX_UPLOAD_BYTES:
        return None
    keys, version, global_version, device_id, epoch, server_time, delta_keys, local_version, length = head.groups()
    position = head.end()
    after = position + (length[0] - 0x40 if len(length) == 1 else int.from_bytes(length[1:], "big"))
    rows = _rows(data[position:after])
    if rows is None or data[after : after + 1] != b"\x03":
        return None
    size = data[after + 1] if after + 1 < len(data) else 0
    if 0x40 < size < 0x58:
        position, after = after + 2, after + 2 + size - 0x40
    elif size == 0x58 and after + 2 < len(data):
        position, after = after + 3, after + 3 + data[after + 2]
    else:
        return None
    finished_ms = _times(data[position:after], len(rows))
    tail = _TAIL.fullmatch(data, after)
    if finished_ms is None or tail is None:
        return None
    more, lineage, shared_hash = tail.groups()
    if keys[0] != (0xA5 if server_time is None else 0xA6):
        return None
    if delta_keys[0] != 0xA0 + _FEW_KEYS + (more is not None) + (shared_hash is not None):
        return None
    version, server_time = _value(version), None if server_time is None else _value(server_time)
    if not 1 <= version <= 255 or (server_time or 0) > MAX_TIMESTAMP_MS:
        return None
    if lineage != titles.lineage_bytes or not titles.has_all(rows):
        return None
    return PlainRequest(
        version, _value(global_version), device_id, _value(epoch), server_time, _value(local_version), rows, finished_ms,
        None if shared_hash is None else int.from_bytes(shared_hash, "little"),
    )  # fmt: skip


def _value(integer: bytes) -> int:
    """The integer of a CBOR item."""
    return int.from_bytes(integer[1:] or integer, "big")


@cache
def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}H")


def _rows(column: bytes) -> list[int] | None:
    """The numbers of a column of titles; None for one that is malformed, or holds a title in text."""
    width = column[0] if column else 0
    count, rest = divmod(len(column) - 1, width or 1)
    if rest or not 0 < count <= MAX_TITLES_FINISHED_PER_PAGE:
        return None
    if width == 2:
        rows = list(_numbers(count).unpack_from(column, 1))
        return None if 0xFFFF in rows else rows
    if width == 3:
        low, middle, high = column[1::3], column[2::3], column[3::3]
        rows = [first | second << 8 | third << 16 for first, second, third in zip(low, middle, high, strict=True)]
        return None if 0xFFFFFF in rows else rows
    return None


def _times(column: bytes, count: int) -> list[int] | None:
    """The moments of a column of so many, Unix ms; None where a step takes two bytes, or a moment is out of range."""
    step = shift = position = 0
    for byte in column[:5]:
        step |= (byte & 127) << shift
        shift += 7
        position += 1
        if byte < 128:
            break
    else:
        return None
    gaps = column[position:]
    if (byte == 0 and position > 1) or step & 1 or len(gaps) != count - 1 or not gaps.isascii():
        return None
    step >>= 1
    if step > _MOST_STEPS:
        return None
    if not gaps:
        return [step * STEP_MS]
    moments = [step * STEP_MS]
    for gap in gaps:
        step += (gap >> 1 if not gap & 1 else -(gap + 1 >> 1)) + wire.USUAL_TITLE_GAP_STEPS
        moments.append(step * STEP_MS)
    return moments if 0 <= min(moments) and max(moments) <= MAX_TIMESTAMP_MS else None
