"""Older stores are brought up to date when they are opened, in one transaction: all of it or nothing.

    schema 2   devices also have past epochs and the hash of their shared set; patterns have their mark in that hash
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cloud import storage_records as records
from cloud.storage import DeviceState, StoredPattern
from cloud.storage_changes import ChangeWriter
from cloud.storage_records import DeviceRecord
from omega_edge.columns import STEP_MS
from omega_edge.protocol import MAX_REFERENCES_PER_PATTERN, PATTERN_CODE_BYTES

_DEVICE_1 = struct.Struct(">QQQQHHBBQQQ")
_PATTERN_1 = struct.Struct(">IBIIIB")
_CODE_1 = struct.Struct(f">I{PATTERN_CODE_BYTES}s")


def migrate(writer: ChangeWriter, found: int) -> None:
    """Bring a store of schema `found` up to date. Damaged records are dropped: their devices send everything again."""
    for schema in range(found, records.STORE_SCHEMA):
        _STEPS[schema](writer)


def _one_to_two(writer: ChangeWriter) -> None:
    for key, fields in writer.all_of("devices"):
        writer.put("devices", key, records.pack_device(_device_1(fields)))
    for key, fields in writer.all_of("patterns"):
        writer.put("patterns", key, records.pack_patterns(_patterns_1(fields)))


def _device_1(fields: bytes) -> DeviceRecord:
    (
        epoch, version, issued, base, snapshot_day, report_day, report_days, region, pattern_sequence, last_page, last_report,
    ) = _DEVICE_1.unpack(fields)  # fmt: skip
    state = DeviceState(epoch, version, issued, base, snapshot_day, report_day, report_days)
    return DeviceRecord(state, region, pattern_sequence, last_page, last_report)


def _patterns_1(fields: bytes) -> list[StoredPattern]:
    """Their marks are not known, so the set's hash differs and the device is asked for a snapshot."""
    patterns, position = [], 0
    while position < len(fields):
        number, rate, samples, created, updated, kind = _PATTERN_1.unpack_from(fields, position)
        position += _PATTERN_1.size
        references, code, codebook = (), None, None
        if kind > MAX_REFERENCES_PER_PATTERN:
            codebook, code = _CODE_1.unpack_from(fields, position)
            position += _CODE_1.size
        else:
            cited = struct.unpack_from(f">{kind}I", fields, position)
            references = tuple((value >> 8, value & 255) for value in cited)
            position += 4 * kind
        patterns.append(
            StoredPattern(
                number, rate / records.RATE_STEPS, samples, created * STEP_MS, updated * STEP_MS, references, code, codebook
            )
        )
    return patterns


_STEPS: dict[int, Callable[[ChangeWriter], None]] = {1: _one_to_two}
