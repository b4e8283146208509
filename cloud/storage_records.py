"""Records of the LMDB engine ⇄ bytes. A record is

    CRC32 u32 (of table, key and all that follows), schema u8, fields

big-endian, fixed where it can be, so that 100,000 devices stay small and a sync costs microseconds. The tables:

    meta             name → value, see lmdb_storage.py
    devices          device id → epoch u64, local_version u64, time_issued u64, time_base u64, snapshot_day u16, report_day u16,
                     report_days u8, region u8, pattern_sequence u64 (of its entry in pattern_changes, 0: none),
                     last_page u64, last_report u64 (sequences, 0: none), shared_set_hash u64, CRC32 u32 of each past epoch
    pages            sequence u64 → device id 16 B, previous u64 (page of the same device, 0: none), received u64, region u8,
                     count u16, rows u32[count], finished u32[count] (Unix seconds)
    reports          sequence u64 → device id 16 B, previous u64, received u64, day u16, seed u32, value u8
    patterns         device id → for each: id u32, success rate u8 (1/250), sample_count u32, created u32, updated u32
                     (quarter-hours), mark u64, kind u8: 1 to 8 references, each row u24, weight u8 (1/255); or 9: codebook
                     u32, code 48 B
    pattern_changes  sequence u64 → device id 16 B: whose patterns changed last, one entry a device
    erasures         sequence u64 → device id 16 B, erased u64
    erased           SHA-256 of the device id, 16 B → erased u64, CRC32 u32 of each of its epochs

A device's pages and reports are chained backwards from its record, so erasing needs no index that every sync would pay for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud.storage import DeviceState, Erasure, StoredPattern, StoredReport, TitlePage
from omega_edge.columns import STEP_MS
from omega_edge.protocol import DEVICE_ID_BYTES, MAX_REFERENCES_PER_PATTERN, PATTERN_CODE_BYTES

STORE_SCHEMA = 2
"""Of the tables and their fields; storage_migration.py reads older ones. Written into every record too."""
TABLES = ("meta", "devices", "pages", "reports", "patterns", "pattern_changes", "erasures", "erased")
"""A table's place in this tuple is in its records' checksums: append only."""

RATE_STEPS, WEIGHT_STEPS = 250, 255
_CODED = MAX_REFERENCES_PER_PATTERN + 1
_HEADER = struct.Struct(">IB")
_U64 = struct.Struct(">Q")
_DEVICE = struct.Struct(">QQQQHHBBQQQQ")
_PAGE = struct.Struct(f">{DEVICE_ID_BYTES}sQQBH")
_REPORT = struct.Struct(f">{DEVICE_ID_BYTES}sQQHIB")
_PATTERN = struct.Struct(">IBIIIQB")
_CODE = struct.Struct(f">I{PATTERN_CODE_BYTES}s")
_ERASURE = struct.Struct(f">{DEVICE_ID_BYTES}sQ")
_SEEDS = {table: zlib.crc32(bytes((number,))) for number, table in enumerate(TABLES)}


def sealed(table: str, key: bytes, fields: bytes) -> bytes:
    """A record: checksum, schema, fields."""
    body = bytes((STORE_SCHEMA,)) + fields
    return zlib.crc32(body, zlib.crc32(key, _SEEDS[table])).to_bytes(4, "big") + body


def opened(table: str, key: bytes, record: bytes) -> bytes | None:
    """A record's fields; None if it is damaged, or foreign to this table and key."""
    if len(record) < _HEADER.size or zlib.crc32(record[4:], zlib.crc32(key, _SEEDS[table])) != int.from_bytes(record[:4], "big"):
        return None
    return record[_HEADER.size :]


def sequence_key(sequence: int) -> bytes:
    """A sequence as a key: 8 bytes, big-endian, so that keys lie in order."""
    return _U64.pack(sequence)


@dataclass(slots=True)
class DeviceRecord:
    """A device's state and where its other records are. region: its number in the store's list of regions."""

    state: DeviceState
    region: int = 0
    pattern_sequence: int = 0
    last_page: int = 0
    last_report: int = 0


def pack_device(record: DeviceRecord) -> bytes:
    """The fields of a device."""
    state = record.state
    return _DEVICE.pack(
        state.epoch, state.local_version, state.time_issued, state.time_base, state.snapshot_day, state.report_day,
        state.report_days, record.region, record.pattern_sequence, record.last_page, record.last_report,
        state.shared_set_hash,
    ) + b"".join(mark.to_bytes(4, "big") for mark in state.past_epochs)  # fmt: skip


def unpack_device(fields: bytes) -> DeviceRecord:
    """The device of these fields."""
    (
        epoch, version, issued, base, snapshot_day, report_day, report_days, region, pattern_sequence, last_page, last_report,
        set_hash,
    ) = _DEVICE.unpack_from(fields)  # fmt: skip
    past = ()
    if len(fields) > _DEVICE.size:
        past = struct.unpack_from(f">{(len(fields) - _DEVICE.size) // 4}I", fields, _DEVICE.size)
    state = DeviceState(epoch, version, issued, base, snapshot_day, report_day, report_days, set_hash, past)
    return DeviceRecord(state, region, pattern_sequence, last_page, last_report)


def pack_page(
    device_id: bytes, previous: int, received_ms: int, region: int, rows: Sequence[int], finished_ms: Sequence[int]
) -> bytes:
    """The fields of a page. finished_ms: up to the year 2106."""
    count = len(rows)
    head = _PAGE.pack(device_id, previous, received_ms, region, count)
    return head + struct.pack(f">{count}I{count}I", *rows, *[moment // 1000 for moment in finished_ms])


def unpack_page(sequence: int, fields: bytes) -> TitlePage:
    """The page of these fields."""
    device_id, _previous, received_ms, _region, count = _PAGE.unpack_from(fields)
    rows = np.frombuffer(fields, ">u4", count, _PAGE.size).astype(np.uint32)
    finished = np.frombuffer(fields, ">u4", count, _PAGE.size + 4 * count).astype(np.int64) * 1000
    return TitlePage(sequence, device_id, rows, finished, received_ms)


def page_links(fields: bytes) -> tuple[bytes, int, int, int]:
    """Of a page: device id, previous page of the device, when it was received, region."""
    return _PAGE.unpack_from(fields)[:4]


def pack_report(device_id: bytes, previous: int, received_ms: int, report: tuple[int, int, int]) -> bytes:
    """The fields of a count report (day, seed, value)."""
    return _REPORT.pack(device_id, previous, received_ms, *report)


def unpack_report(sequence: int, fields: bytes) -> StoredReport:
    """The report of these fields."""
    device_id, _previous, _received, day, seed, value = _REPORT.unpack(fields)
    return StoredReport(sequence, device_id, day, seed, value)


def report_links(fields: bytes) -> tuple[bytes, int, int]:
    """Of a report: device id, previous report of the device, when it was received."""
    return _REPORT.unpack(fields)[:3]


def pack_erasure(device_id: bytes, erased_ms: int) -> bytes:
    """The fields of an erasure."""
    return _ERASURE.pack(device_id, erased_ms)


def unpack_erasure(sequence: int, fields: bytes) -> tuple[Erasure, int]:
    """The erasure of these fields, and when it was."""
    device_id, erased_ms = _ERASURE.unpack(fields)
    return Erasure(sequence, device_id), erased_ms


def pack_erased(erased_ms: int, past_epochs: Sequence[int]) -> bytes:
    """The fields of what remains of an erased device."""
    return struct.pack(f">Q{len(past_epochs)}I", erased_ms, *past_epochs)


def unpack_erased(fields: bytes) -> tuple[int, tuple[int, ...]]:
    """When it was erased, and the marks of its epochs."""
    erased_ms, *past_epochs = struct.unpack(f">Q{(len(fields) - 8) // 4}I", fields)
    return erased_ms, tuple(past_epochs)


def pack_patterns(patterns: Sequence[StoredPattern]) -> bytes:
    """The fields of a device's patterns. Success rates are kept in 1/250, times in quarter-hours, as they travel."""
    parts = []
    for pattern in patterns:
        kind = len(pattern.references) if pattern.code is None else _CODED
        parts.append(
            _PATTERN.pack(
                pattern.id, round(pattern.success_rate * RATE_STEPS), pattern.sample_count,
                pattern.created_at // STEP_MS, pattern.updated_at // STEP_MS, pattern.mark, kind,
            )
        )
        if pattern.code is None:
            parts.append(struct.pack(f">{kind}I", *(row << 8 | weight for row, weight in pattern.references)))
        else:
            parts.append(_CODE.pack(pattern.codebook, pattern.code))
    return b"".join(parts)


def unpack_patterns(fields: bytes) -> list[StoredPattern]:
    """The patterns of these fields."""
    patterns, position = [], 0
    while position < len(fields):
        number, rate, samples, created, updated, mark, kind = _PATTERN.unpack_from(fields, position)
        position += _PATTERN.size
        references, code, codebook = (), None, None
        if kind == _CODED:
            codebook, code = _CODE.unpack_from(fields, position)
            position += _CODE.size
        else:
            cited = struct.unpack_from(f">{kind}I", fields, position)
            references = tuple((value >> 8, value & 255) for value in cited)
            position += 4 * kind
        patterns.append(
            StoredPattern(
                number, rate / RATE_STEPS, samples, created * STEP_MS, updated * STEP_MS, references, code, codebook, mark
            )
        )
    return patterns
