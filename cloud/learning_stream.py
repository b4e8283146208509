"""One stream of viewings to learn from: the operator's seed data, and what sharing homes finished, each title of a home once.

Sharing homes are households of their own after those of the seed. A title that fewer than the threshold of distinct homes
watched (homes of the seed count, they are the operator's) is left out of what the sharers add, so nothing that is trained
can speak of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cloud.lists import Lists
from cloud.replay import Timeline, earlier_alike
from cloud.signals import DAY_MS, slots_of
from omega_edge.catalog import RowSet
from omega_edge.datasets import Events
from omega_edge.errors import ConfigError

NEWEST_TITLES = 1_000
"""Of a sharing home: one that claims to have finished everything is no witness to what goes together, and costs the square."""
CHUNK_PAIRS = 20_000_000
"""Pairs of titles counted at a time: 240 MB."""


@dataclass(frozen=True, slots=True)
class Stream:
    """events in the order of their times; households from first_sharer on are sharers, in the order of their pseudonyms."""

    events: Events
    first_sharer: int

    @property
    def shared(self) -> np.ndarray:
        """bool[e]: which events sharers brought."""
        return self.events.household >= self.first_sharer

    def timeline(self) -> Timeline:
        """The stream as the replay walks through it."""
        return Timeline.of(self.events, slots_of(self.events.timestamp))

    def until(self, moment_ms: int) -> Stream:
        """What came before a moment."""
        end = int(np.searchsorted(self.events.timestamp, moment_ms))
        return Stream(chosen(self.events, np.arange(end)), self.first_sharer)


def chosen(events: Events, which: np.ndarray) -> Events:
    """Some events: int64[] indices in the order wanted, or bool[e]."""
    return Events(events.household[which], events.title[which], events.watch_percentage[which], events.timestamp[which])


NO_EVENTS = Events(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0), np.empty(0, np.int64))


def usable(lists: Lists, day: int, days: int, held_back: np.ndarray) -> Lists:
    """What was finished before a UTC day begins, but for titles, by their rows int64[k], of the last `days` days that are held back."""
    lately = lists.finished_ms >= (day - days) * DAY_MS
    kept = (lists.finished_ms < day * DAY_MS) & ~(lately & np.isin(lists.row, held_back))
    return replace(lists, home=lists.home[kept], row=lists.row[kept], finished_ms=lists.finished_ms[kept])


def stream_of(seed: Events | None, lists: Lists, title_count: int, min_devices: int, lineage: str) -> Stream:
    """The stream of the seed's events and the sharers' lists. Titles that the bundle does not number are left out.

    Raises ConfigError where the lists number titles of another lineage.
    """
    if len(lists.row) and lists.lineage != lineage:
        raise ConfigError(f"lists: expected titles of lineage {lineage}, as the bundle's, got those of {lists.lineage}")
    seed = NO_EVENTS if seed is None else seed
    first_sharer = int(seed.household.max(initial=-1)) + 1
    known = np.flatnonzero(lists.row < title_count)
    newest_first = known[np.argsort(-lists.finished_ms[known], kind="stable")]
    known = np.sort(newest_first[earlier_alike(lists.home[newest_first]) < NEWEST_TITLES])
    known = known[backed_titles(seed, lists.row[known], title_count, min_devices)[lists.row[known]]]
    household = np.concatenate((seed.household.astype(np.int64), lists.home[known] + first_sharer))
    title = np.concatenate((seed.title.astype(np.int64), lists.row[known]))
    watched = np.concatenate((seed.watch_percentage, np.ones(len(known))))
    timestamp = np.concatenate((seed.timestamp, lists.finished_ms[known]))
    order = np.argsort(timestamp, kind="stable")
    joined = Events(household.astype(np.int32), title.astype(np.int32), watched, timestamp)
    return Stream(chosen(joined, order), first_sharer)


def backed_titles(seed: Events, shared_rows: np.ndarray, title_count: int, min_devices: int) -> np.ndarray:
    """bool[n]: titles that enough distinct homes watched. shared_rows: integer[e], each home and title once."""
    pairs = np.unique(seed.household.astype(np.int64) * title_count + seed.title)
    homes = np.bincount(pairs % title_count, minlength=title_count) + np.bincount(shared_rows, minlength=title_count)
    return homes >= min_devices


class PairSupport:
    """How many distinct homes watched two titles both: in all, and sharers among them."""

    def __init__(self, stream: Stream, title_count: int) -> None:
        from scipy import sparse

        events = stream.events
        pairs = np.unique(events.household.astype(np.int64) * title_count + events.title)
        homes, titles = pairs // title_count, pairs % title_count
        shape = (int(homes.max(initial=-1)) + 1, title_count)
        every = sparse.csr_matrix((np.ones(len(pairs), np.int32), (homes, titles)), shape=shape)
        self._all = every, every.T.tocsr()
        self._sharers = every[stream.first_sharer :], every[stream.first_sharer :].T.tocsr()

    def unbacked(self, rows: RowSet, min_devices: int) -> np.ndarray:
        """bool[m]: entries of item-item rows that sharers lend to and that fewer than min_devices homes stand for."""
        found = np.zeros(len(rows.columns), bool)
        step = max(CHUNK_PAIRS // max(len(rows.offsets) - 1, 1), 1)
        for begin in range(0, len(rows.offsets) - 1, step):
            end = min(begin + step, len(rows.offsets) - 1)
            span = slice(int(rows.offsets[begin]), int(rows.offsets[end]))
            line = np.repeat(np.arange(end - begin), np.diff(rows.offsets[begin : end + 1].astype(np.int64)))
            if not len(line):
                continue
            column = rows.columns[span].astype(np.int64)
            in_all, by_sharers = (
                np.asarray((by_title[begin:end] @ watched)[line, column]).reshape(-1)
                for watched, by_title in (self._all, self._sharers)
            )
            found[span] = (by_sharers > 0) & (in_all < min_devices)
        return found


def without_entries(rows: RowSet, gone: np.ndarray) -> RowSet:
    """Item-item rows without some entries, bool[m]."""
    lost = np.concatenate(([0], np.cumsum(gone)))[rows.offsets.astype(np.int64)]
    offsets = (rows.offsets.astype(np.int64) - lost).astype(np.uint32)
    return RowSet(offsets, rows.columns[~gone], rows.values[~gone], rows.scale)
