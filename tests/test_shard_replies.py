"""What a shard answers, byte by byte: the same as the wire's own encoder."""

from __future__ import annotations

import random

import pytest

from cloud.replies import response_frame
from cloud.storage import SyncOutcome
from omega_edge import wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, MAX_TIMESTAMP_MS, U32_MAX, U64_MAX, SyncResponse

EDGES = (0, 1, 23, 24, 255, 256, 65_535, 65_536, U32_MAX, U32_MAX + 1, U64_MAX)
PATTERNS = (b"", b"p" * 23, b"p" * 24, b"p" * 255, b"p" * 256, b"p" * 5_340)


def expected(outcome: SyncOutcome, global_version: int, interval: int, catalog_version: int | None, patterns: bytes | None):
    """The bytes that the wire's encoder makes."""
    response = SyncResponse(
        global_version, interval, outcome.server_time, acknowledged_local_version=outcome.acknowledged_local_version,
        catalog_version=catalog_version, reset=outcome.reset, snapshot_wanted=outcome.snapshot_wanted, erased=outcome.erased,
        counted=outcome.counted,
    )  # fmt: skip
    return wire.encode_response(response) if patterns is None else wire.encode_response_with(response, patterns)


def test_equals_the_wires_encoder():
    chosen = random.Random(1)
    for _ in range(3_000):
        flags = {name: chosen.random() < 0.3 for name in ("snapshot_wanted", "erased", "counted")}
        acknowledged = chosen.choice((None, *EDGES))
        if chosen.random() < 0.2:
            flags, acknowledged = {"reset": True}, None
        server_time = min(chosen.choice((*EDGES, 1_790_000_000_000)), MAX_TIMESTAMP_MS)
        outcome = SyncOutcome(server_time, acknowledged, **flags)
        told = (
            chosen.choice(EDGES), chosen.randrange(60, 86_401), chosen.choice((None, 0, 7, U32_MAX)),
            chosen.choice((None, *PATTERNS)),
        )  # fmt: skip
        global_version, interval, catalog_version, patterns = told
        made = response_frame(outcome, 1, global_version, interval, catalog_version, patterns)
        assert made == expected(outcome, *told)


def test_patterns_beyond_the_cap_are_refused():
    outcome = SyncOutcome(5, 6)
    fits = MAX_DOWNLOAD_BYTES - len(response_frame(outcome, 1, 7, 300, 1, b"p" * 5_000)) + 5_000
    assert len(response_frame(outcome, 1, 7, 300, 1, b"p" * fits)) == MAX_DOWNLOAD_BYTES
    with pytest.raises(ProtocolError, match="at most 6144 bytes, got 6145"):
        response_frame(outcome, 1, 7, 300, 1, b"p" * (fits + 1))
