"""The seam between the shard and what keeps its data: PatternStorage, and the records that pass through it.

An engine stores what sync_rules.py decides and decides nothing itself, so that every engine follows the same rules.
Titles are rows, numbers of the bundle's lineage (u32). Times are Unix milliseconds, UTC. A sequence is an engine-wide
counter that only rises: page, report and erasure each take the next one when they become durable, so a reader that keeps
the last sequence it saw misses nothing. Deleted ones leave gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class TitlePage:
    """Titles that a device finished, as they arrived in one sync. rows uint32[m], finished_ms int64[m], in the device's order.

    A device may name a title again in a later page, so a reader takes the union per device and title.
    """

    sequence: int
    device_id: bytes
    rows: np.ndarray
    finished_ms: np.ndarray
    received_ms: int


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One device's falsified title of one day (see CountReport): at most one a device and day."""

    sequence: int
    device_id: bytes
    day: int
    seed: int
    value: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """A device whose pages, reports and patterns are gone. The last days' are kept, for whoever reads pages by sequence."""

    sequence: int
    device_id: bytes


@dataclass(frozen=True, slots=True)
class StoredPattern:
    """A device's pattern. references: (row, weight in 1/255) pairs, up to 8; code: 48 bytes by the codebook of this version.

    Of references and code one is given, or neither where the catalogue cannot tell what came. success_rate 0 to 1. mark: u64, its part in the shared set's hash.
    """

    id: int
    success_rate: float
    sample_count: int
    created_at: int
    updated_at: int
    references: tuple[tuple[int, int], ...] = ()
    code: bytes | None = None
    codebook: int | None = None
    mark: int = 0


@dataclass(frozen=True, slots=True)
class SimilarPattern:
    """A pattern near to what was asked for. similarity: cosine, -1 to 1."""

    device_id: bytes
    pattern: StoredPattern
    similarity: float


@dataclass(frozen=True, slots=True)
class TrendingTitle:
    """How many distinct devices finished a title within the trend's window. Unpublished: no threshold was applied."""

    row: int
    devices: int


@dataclass(slots=True)
class DeviceState:
    """What the shard knows of a device, a copy of what is stored. local_version: the highest that is durable, 0 for none.

    time_issued: the server time of the last reply that changed something; time_base: the one that the device showed when it got
    that (0: none). snapshot_day: the last day on which a snapshot was asked for. report_day: the newest day reported, 0 for
    none; report_days: bit i says that report_day - i is reported. shared_set_hash: of its patterns as stored.
    past_epochs: CRC32 of earlier epochs, so that what was sent in one of them cannot be played again.
    """

    epoch: int
    local_version: int
    time_issued: int
    time_base: int
    snapshot_day: int = 0
    report_day: int = 0
    report_days: int = 0
    shared_set_hash: int = 0
    past_epochs: tuple[int, ...] = ()


@dataclass(slots=True)
class SyncChange:
    """What one request of a device asks to be stored. Untrusted, but within the protocol's limits.

    local_version: None for a request without a delta. rows and finished_ms: titles finished, in order, equally many.
    """

    device_id: bytes
    epoch: int
    received_ms: int
    server_time_seen: int | None = None
    local_version: int | None = None
    rows: Sequence[int] = ()
    finished_ms: Sequence[int] = ()
    patterns: Sequence[StoredPattern] = ()
    patterns_removed: Sequence[int] = ()
    snapshot: bool = False
    shared_set_hash: int | None = None
    report: tuple[int, int, int] | None = None
    """Day, seed, value."""
    erase: bool = False


@dataclass(slots=True)
class SyncOutcome:
    """What became of a change. server_time: for the reply. reset: nothing was taken. device_limit: the device is new, and the
    shard holds as many as it may. changed: something was written (and is durable)."""

    server_time: int
    acknowledged_local_version: int | None = None
    reset: bool = False
    snapshot_wanted: bool = False
    erased: bool = False
    counted: bool = False
    device_limit: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """Sizes of the store. damaged_records: found by their checksums since the store was opened."""

    devices: int
    pages: int
    reports: int
    erasures: int
    bytes_used: int
    damaged_records: int = 0


class PatternStorage(Protocol):
    """What a shard's data is kept in. All methods block; apply() is called from one thread a process.

    Several processes may have one store open. Errors: StoreFullError where there is no room (deletes still work),
    StoreDamagedError, StoreError.
    """

    def apply(self, batch: Sequence[SyncChange]) -> list[SyncOutcome]:
        """Do what these changes ask, in order, in one transaction that is durable when this returns."""

    def unchanged(self, change: SyncChange) -> SyncOutcome | None:
        """The outcome of a request that brings nothing new and so needs no write; None where apply() has to judge it."""

    def claim_lineage(self, lineage: str) -> None:
        """Say, durably, whose title numbers are stored from now on; ConfigError where others are."""

    def store_patterns(self, device: bytes, patterns: Sequence[StoredPattern]) -> None:
        """Replace a device's patterns, durably. KeyError for an unknown device."""

    def patterns_of(self, device: bytes) -> list[StoredPattern]:
        """A device's patterns by id, empty for an unknown one."""

    def find_similar(self, embedding: np.ndarray, k: int, region: str) -> list[SimilarPattern]:
        """The k patterns of a region nearest to a unit vector float32[384], nearest first; k, if the region has as many.

        Searched are the region's MAX_PATTERNS_PER_REGION changed last.
        """

    def get_trending(self, region: str, limit: int) -> list[TrendingTitle]:
        """The titles that most distinct devices of a region finished of late, most first, ties by row."""

    def device(self, device_id: bytes) -> DeviceState | None:
        """What is known of a device."""

    def erase(self, device_id: bytes) -> bool:
        """Delete everything of a device, durably. Whether there was anything."""

    def pages_after(self, sequence: int, limit: int) -> list[TitlePage]:
        """Up to limit pages of higher sequence, in order of arrival."""

    def reports_after(self, sequence: int, limit: int) -> list[StoredReport]:
        """Up to limit count reports of higher sequence, in order of arrival."""

    def erasures_after(self, sequence: int, limit: int) -> list[Erasure]:
        """Up to limit erasures of higher sequence, in order."""

    def purge(self, now_ms: int, limit: int = 1_000) -> int:
        """Delete up to limit records that are past their age. How many were; 0 when nothing is left to delete."""

    def facts(self) -> StorageFacts:
        """Sizes, for stats and metrics."""

    def close(self) -> None:
        """Let go of the store. Closing twice is harmless."""
