"""Whether a reply is what the shard owes: status, headers, and in the body exactly what was sent, acknowledged."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import cbor2

from bench.shard_load.client import Reply
from bench.shard_load.fleet import Fleet
from omega_edge import frame, wire
from omega_edge.columns import TitleNumbering
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    MAX_DOWNLOAD_BYTES,
    MAX_SYNC_INTERVAL_SECONDS,
    MIN_SYNC_INTERVAL_SECONDS,
    PROTOCOL_VERSION,
)

WHOLLY_DECODED = 64
"""One reply in so many is decoded by the product's decoder too, which costs as much as the shard's whole work on it."""
_RAW_RESPONSE = bytes((frame.FORMAT_VERSION, wire.KIND_RESPONSE, frame.BODY_RAW, frame.DICTIONARY_NONE))
_VERSION, _GLOBAL_VERSION, _NEXT_SYNC, _SERVER_TIME, _ACKNOWLEDGED, _PATTERNS, _RESET, _SNAPSHOT_WANTED = (
    1,
    2,
    3,
    4,
    5,
    7,
    9,
    10,
)


class Checked(Enum):
    """What a reply amounts to."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    LOST = "lost"
    WRONG = "wrong"


class Faults(Protocol):
    """Where faults are counted."""

    def add_fault(self, text: str) -> None:
        """Count one."""


class ReplyCheck:
    """Judges replies to a fleet, and lets the fleet go on where its request was acknowledged."""

    def __init__(self, fleet: Fleet, titles: TitleNumbering | None, patterns_frame: bytes | None = None) -> None:
        """patterns_frame: of the shard's collective, which whoever shows an older global version is sent."""
        self._fleet, self._titles, self._patterns_frame = fleet, titles, patterns_frame
        self._replies = 0

    def judge(self, device: int, reply: Reply, faults: Faults) -> Checked:
        """200 acknowledges; 503 refuses, with Retry-After; all else is a fault."""
        if reply.status == 200:
            try:
                fault = self._fault_in(device, reply.body)
            except (ProtocolError, cbor2.CBORDecodeError, KeyError, TypeError) as error:
                fault = f"a body that is no response: {error}"
            if fault is None:
                return Checked.ACCEPTED
        elif reply.status == 503 and (reply.header("Retry-After") or "").isdigit():
            return Checked.REFUSED
        else:
            fault = f"status {reply.status}: {reply.head[:80]!r} {reply.body[:200]!r}"
        faults.add_fault(fault)
        return Checked.WRONG

    def _fault_in(self, device: int, body: bytes) -> str | None:
        """What is wrong with the body of a 200, None where it acknowledges the device's request; then that is noted."""
        if len(body) > MAX_DOWNLOAD_BYTES:
            return f"a response of {len(body)} bytes"
        if body.startswith(_RAW_RESPONSE):
            fields = cbor2.loads(body[frame.HEADER_BYTES :])
        else:
            fields = frame.unpack(body, wire.KIND_RESPONSE, MAX_DOWNLOAD_BYTES)
        expected, server_time = self._fleet.next_version(device), fields[_SERVER_TIME]
        if _RESET in fields or fields.get(_ACKNOWLEDGED) != expected:
            return (
                f"expected version {expected} acknowledged, got {fields.get(_ACKNOWLEDGED)}, reset {fields.get(_RESET)}"
            )
        if fields[_VERSION] != PROTOCOL_VERSION or _SNAPSHOT_WANTED in fields:
            return f"version {fields[_VERSION]}, snapshot wanted: {_SNAPSHOT_WANTED in fields}"
        if not MIN_SYNC_INTERVAL_SECONDS <= fields[_NEXT_SYNC] <= MAX_SYNC_INTERVAL_SECONDS:
            return f"next sync in {fields[_NEXT_SYNC]} s"
        patterns = self._patterns_frame if self._fleet.shows_old_version(device) else None
        if fields[_GLOBAL_VERSION] != self._fleet.global_version or fields.get(_PATTERNS) != patterns:
            return f"global version {fields[_GLOBAL_VERSION]}, patterns that are not those of the shard's collective"
        if server_time <= self._fleet.server_times[device]:
            return f"server time {server_time} after {self._fleet.server_times[device]}"
        self._replies += 1
        if self._replies % WHOLLY_DECODED == 0:
            whole = wire.decode_response(body, self._titles)
            if (whole.acknowledged_local_version, whole.server_time, whole.reset) != (expected, server_time, False):
                return "the product's decoder reads the response otherwise"
        self._fleet.acknowledge(device, server_time)
        return None
