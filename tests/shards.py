"""A shard's storage filled directly, with the truth beside it, for tests of what counts and federates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cloud.lmdb_storage import LmdbStorage
from cloud.storage import SyncChange
from omega_edge.columns import STEP_MS
from omega_edge.protocol import DAY_MS
from omega_edge.signing import SigningKey, public_key

SECRET = b"a federation secret"
KEY, OTHER_KEY = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
TRUSTED = (public_key(KEY),)
TODAY = 20_000
NOON_MS = TODAY * DAY_MS + DAY_MS // 2


class Clock:
    """Unix milliseconds that stand still until they are moved."""

    def __init__(self, now_ms: int = NOON_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def device_id(number: int) -> bytes:
    """16 bytes for a device."""
    return number.to_bytes(16, "big")


class FilledStorage:
    """A storage and what was put into it: votes as a set of (device, row, day), lists as {device: {row: first step}}."""

    def __init__(self, folder: Path, clock: Clock, lineage: str = "") -> None:
        self.storage = LmdbStorage(folder, clock=clock, lineage=lineage, map_bytes=1 << 28, reserve_bytes=1 << 16)
        self.clock = clock
        self.votes: set[tuple[int, int, int]] = set()
        self.lists: dict[int, dict[int, int]] = {}
        self.reports: dict[tuple[int, int], tuple[int, int]] = {}
        self._versions: dict[int, int] = {}
        self._issued: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._waiting: list[dict[str, object]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What devices do meanwhile is stored in one transaction, each device once."""
        self._waiting = []
        yield
        waiting, self._waiting = self._waiting, None
        self._store([SyncChange(**change) for change in waiting])

    def finish(self, device: int, rows: list[int], days_ago: list[float]) -> None:
        """A device finishes titles so many days before now."""
        finished_ms = [int(self.clock() - ago * DAY_MS) for ago in days_ago]
        self._versions[device] = self._versions.get(device, 0) + 1
        self._apply(device, local_version=self._versions[device], rows=rows, finished_ms=finished_ms)
        for row, moment in zip(rows, finished_ms, strict=True):
            self.votes.add((device, row, moment // DAY_MS))
            listed = self.lists.setdefault(device, {})
            listed[row] = min(listed.get(row, moment // STEP_MS), moment // STEP_MS)

    def report(self, device: int, day: int, seed: int, value: int) -> None:
        """A device reports one falsified title of a day."""
        self._apply(device, report=(day, seed, value))
        self.reports.setdefault((device, day), (seed, value))

    def erase(self, device: int) -> None:
        """A device takes everything back."""
        self.storage.erase(device_id(device))
        self.votes = {vote for vote in self.votes if vote[0] != device}
        self.reports = {key: report for key, report in self.reports.items() if key[0] != device}
        self.lists.pop(device, None)
        self._versions.pop(device, None)
        self._issued.pop(device, None)
        self._epochs[device] = self._epochs.get(device, 1) + 1

    def _apply(self, device: int, **change: object) -> None:
        change |= {
            "device_id": device_id(device),
            "epoch": self._epochs.get(device, 1),
            "received_ms": self.clock(),
            "server_time_seen": None if "report" in change else self._issued.get(device),
        }
        if self._waiting is not None:
            self._waiting.append(change)
        else:
            self._store([SyncChange(**change)])

    def _store(self, changes: list[SyncChange]) -> None:
        for change, outcome in zip(changes, self.storage.apply(changes), strict=True):
            assert not outcome.reset, "the storage refused what a test put into it"
            if change.report is None:
                self._issued[int.from_bytes(change.device_id, "big")] = outcome.server_time


def votes_of(stores: list[FilledStorage], day: int, title_count: int) -> np.ndarray:
    """uint32[titles]: the truth of how many devices finished each title on a day; devices differ between stores."""
    rows = [row for store in stores for _, row, voted in store.votes if voted == day]
    return np.bincount(np.array(rows, np.int64), minlength=title_count).astype(np.uint32)


def window_of(stores: list[FilledStorage], end_day: int, days: int, title_count: int) -> np.ndarray:
    """uint32[titles]: the truth of how many devices finished each title in the days before end_day."""
    counts = np.zeros(title_count, np.uint32)
    for store in stores:
        for _, row in {(device, row) for device, row, day in store.votes if end_day - days <= day < end_day}:
            counts[row] += 1
    return counts
