"""The collective: what the hub tells every television, trends of its own and the model job's global patterns.

Its payload's keys: 1 global version, 2 lineage (8 bytes), 3 catalogue version, 4 a KIND_GLOBAL_PATTERNS frame (see
wire.py), which shards put into responses as it is, 5 made at (Unix ms), 6 the UTC day before which the trends end, 7 how
many trends there are, 8 a hash of what else it was made from. The model job's object `patterns` has the same form: its
version is the job's own, its frame holds patterns and no trends.

Trends are told by the day: they rest on whole UTC days up to the last midnight, and change once a day or when the bundle
or the patterns do, so that no television downloads them each quarter-hour for a few late votes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud import objects
from cloud.names import check_lineage
from cloud.signals import log_share
from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    MAX_DOWNLOAD_BYTES,
    MAX_TIMESTAMP_MS,
    MAX_TREND_SIGNALS,
    U32_MAX,
    U64_MAX,
    GlobalPatterns,
    TrendSignal,
    ViewingPattern,
)

COLLECTIVE_BYTES = 5_340
"""The most that the hub lets a frame have, so that a response around it stays below 5,400."""
LEAST_TRENDS = 50
"""Of each window, kept before any pattern is left out."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective or patterns object. frame: of wire.encode_global_patterns, numbered by the lineage."""

    version: int
    lineage: str
    catalog_version: int
    frame: bytes
    made_ms: int
    day: int = 0
    trends: int = 0
    basis: bytes = b""


@dataclass(frozen=True, slots=True)
class Trending:
    """Distinct devices, or their estimate, of each title in one window, float64[titles]; 0 where it may not be published."""

    window_hours: int
    devices: np.ndarray


def encode(collective: Collective) -> bytes:
    """The payload of an object."""
    return objects.pack(
        {
            1: collective.version,
            2: bytes.fromhex(collective.lineage),
            3: collective.catalog_version,
            4: collective.frame,
            5: collective.made_ms,
            6: collective.day,
            7: collective.trends,
            8: collective.basis,
        }
    )


def decode(payload: bytes) -> Collective:
    """The object of a payload; its frame is unread. Raises ProtocolError for any other bytes."""
    fields = objects.unpack("collective", payload, 2 * MAX_DOWNLOAD_BYTES)
    frame = fields.take(4, "frame", bytes)
    if len(frame) > MAX_DOWNLOAD_BYTES:
        raise ProtocolError(f"collective.frame: expected at most {MAX_DOWNLOAD_BYTES} bytes, got {len(frame)}")
    return Collective(
        objects.take_integer(fields, 1, "version", 0, U64_MAX),
        check_lineage(fields.take(2, "lineage", bytes)),
        objects.take_integer(fields, 3, "catalog_version", 0, U32_MAX),
        frame,
        objects.take_integer(fields, 5, "made_ms", 0, MAX_TIMESTAMP_MS),
        objects.take_integer(fields, 6, "day", 0, MAX_TIMESTAMP_MS),
        objects.take_integer(fields, 7, "trends", 0, MAX_TREND_SIGNALS),
        fields.take(8, "basis", bytes),
    )


def next_version(last: int, now_ms: int) -> int:
    """A global version above the last, and above all that a hub which lost its folder can have given: it made at most one
    a minute, so the minutes since 1970 will do."""
    return max(last + 1, now_ms // 60_000)


def compose(
    version: int, catalog: Catalog, trending: Sequence[Trending], patterns: tuple[ViewingPattern, ...] = ()
) -> tuple[bytes, int]:
    """(the frame of these trends and patterns, the best first, how many trends it has). At most COLLECTIVE_BYTES: trends
    beyond LEAST_TRENDS a window are left out first, then patterns.

    A score is signals.log_share of the devices, so on the scale of the bundle's own trends.
    """
    ranked = [_ranked(catalog, window, MAX_TREND_SIGNALS // max(len(trending), 1)) for window in trending]

    def frame_of(trends: int, similar: int) -> bytes | None:
        signals = tuple(signal for window in ranked for signal in window[:trends])
        try:
            frame = wire.encode_global_patterns(GlobalPatterns(version, patterns[:similar], signals), catalog)
        except ProtocolError:  # longer than a download may be at all
            return None
        return frame if len(frame) <= COLLECTIVE_BYTES else None

    most = max((len(window) for window in ranked), default=0)
    kept = _largest(most, lambda count: frame_of(count, len(patterns)))
    trends = kept[0] if kept is not None else 0
    if kept is None or trends < min(LEAST_TRENDS, most):
        trends = min(LEAST_TRENDS, most)
        kept = _largest(len(patterns), lambda count: frame_of(trends, count))
    assert kept is not None, "a hundred trends without patterns take under 2,000 bytes"
    return kept[1], sum(min(trends, len(window)) for window in ranked)


def _ranked(catalog: Catalog, window: Trending, limit: int) -> list[TrendSignal]:
    scores = log_share(window.devices)
    order = np.lexsort((np.arange(len(scores)), -scores.astype(np.float64)))[:limit]
    order = order[scores[order] > 0]
    return [
        TrendSignal(content_id, float(score), window.window_hours)
        for content_id, score in zip(catalog.content_ids(order.tolist()), scores[order], strict=True)
    ]


def _largest(count: int, frame_of: Callable[[int], bytes | None]) -> tuple[int, bytes] | None:
    """The largest number from 0 to count that a frame can hold, and the frame; None where not even 0 fits."""
    best, low, high = None, 0, count
    while low <= high:
        middle = (low + high + 1) // 2
        frame = frame_of(middle)
        if frame is None:
            high = middle - 1
        else:
            best, low = (middle, frame), middle + 1
    return best
