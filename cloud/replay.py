"""A data set walked through in time order: at each viewing worth learning from, what the television would have known.

The catalogue's knowledge comes from events before the block that the viewing lies in, trends from before the last
midnight (UTC), the history from the household's own events before it. The features come from ranking.py, the code
that the television runs, so that what is fitted is what will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cloud.signals import DAY_MS, trend
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import BUCKETS
from omega_edge.datasets import Events
from omega_edge.protocol import SUCCESS_THRESHOLD
from omega_edge.ranking import History, Moment, bucket_of, features

MAX_QUERIES_PER_HOUSEHOLD = 20
"""So that a few busy households do not decide for all."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Events in time order, with what the past of each says. Arrays of one length e.

    before: int64, how many events the household had before. first: bool, the household had not watched the title yet.
    success: bool. slots: uint8, slot of the week.
    """

    events: Events
    before: np.ndarray
    first: np.ndarray
    success: np.ndarray
    slots: np.ndarray

    @staticmethod
    def of(events: Events, slots: np.ndarray) -> Timeline:
        """The timeline of a data set's events, in time order. slots: see signals.slots_of."""
        assert np.all(events.timestamp[1:] >= events.timestamp[:-1]), "events out of order would train on their future"
        pair = events.household.astype(np.int64) * (int(events.title.max(initial=0)) + 1) + events.title
        first = np.zeros(len(events), bool)
        first[np.unique(pair, return_index=True)[1]] = True
        return Timeline(
            events, earlier_alike(events.household), first, events.watch_percentage >= SUCCESS_THRESHOLD, slots
        )

    def queries(
        self, start: int, end: int, per_bucket: int | None = None, per_household: int = MAX_QUERIES_PER_HOUSEHOLD
    ) -> np.ndarray:
        """Indices, ascending, of first viewings in [start, end), successful or not, some of each household, evenly spread
        over what it watched: its earliest ones would ask mostly of the hour in which it was new.

        per_bucket: keep so many of each history bucket, evenly spread over the time; None for all.
        """
        found = start + np.flatnonzero(self.first[start:end])
        found = found[_evenly_spread(self.events.household[found], per_household)]
        if per_bucket is None:
            return found
        buckets = np.array([bucket_of(count) for count in self.before[found].tolist()], np.int64)
        kept = []
        for bucket in range(BUCKETS):
            mine = found[buckets == bucket]
            if len(mine) > per_bucket:
                mine = mine[np.arange(per_bucket) * len(mine) // per_bucket]
            kept.append(mine)
        return np.sort(np.concatenate(kept))


def earlier_alike(values: np.ndarray) -> np.ndarray:
    """int64[e]: how many earlier elements equal each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))[: len(values)])
    lengths = np.diff(np.append(starts, len(values)))
    out = np.empty(len(values), np.int64)
    out[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return out


def _evenly_spread(owner: np.ndarray, most: int) -> np.ndarray:
    """bool[e]: at most so many elements of each owner, evenly spread over its elements."""
    place, counts = earlier_alike(owner), np.bincount(owner, minlength=1)[owner]
    # The j-th kept of c elements is the one at floor(j * c / most).
    nearest = -(-place * most // np.maximum(counts, 1))
    return (counts <= most) | ((nearest < most) & (nearest * counts // most == place))


@dataclass(frozen=True, slots=True)
class Query:
    """One viewing to predict. event: its index; title: the row that was watched; bucket: of the history's length.

    seen: int64[s], rows that the household had watched. matrix: float32[11, n], valid until the next query.
    block: index of the block that it lies in. midnight: Unix ms up to which the trends count. household: its number.
    history: what the television holds of the past. moment: what it knows of the hour.
    """

    event: int
    title: int
    success: bool
    bucket: int
    seen: np.ndarray
    matrix: np.ndarray
    block: int
    midnight: int
    household: int = 0
    history: History = field(default_factory=History.empty)
    moment: Moment = field(default_factory=lambda: Moment(slot=0))


@dataclass(frozen=True, slots=True)
class Blocks:
    """Stretches of time, each with the catalogue trained on the events before it.

    starts: ascending event indices. catalog_before: from a start to that catalogue.
    """

    starts: tuple[int, ...]
    catalog_before: Callable[[int], Catalog]

    def of(self, event: int) -> int:
        """Index of the block that an event lies in."""
        return int(np.searchsorted(self.starts, event, side="right")) - 1


def replay(
    timeline: Timeline,
    wanted: np.ndarray,
    blocks: Blocks,
    window_hours: tuple[int, int],
    parameters: dict[str, float],
) -> Iterator[Query]:
    """Give the wanted events (ascending indices, none before the first block) as queries, in order."""
    events = timeline.events
    past = _Past(timeline, wanted)
    finished, finished_at = events.title[timeline.success], events.timestamp[timeline.success]
    block, catalog, matrix, trends, midnight = -1, None, None, None, -1
    for index in wanted.tolist():
        if blocks.of(index) != block:
            block, midnight = blocks.of(index), -1
            catalog = blocks.catalog_before(blocks.starts[block])
        history, seen = past.before(index, catalog)
        today = int(events.timestamp[index]) // DAY_MS * DAY_MS
        if today != midnight:
            midnight = today
            trends = tuple(trend(finished, finished_at, midnight, hours, catalog.count) for hours in window_hours)
        moment = Moment(slot=int(timeline.slots[index]), trends=trends)
        matrix = features(catalog, history, moment, parameters, matrix)
        yield Query(
            event=index,
            title=int(events.title[index]),
            success=bool(timeline.success[index]),
            bucket=bucket_of(history.count),
            seen=seen,
            matrix=matrix,
            block=block,
            midnight=midnight,
            household=int(events.household[index]),
            history=history,
            moment=moment,
        )


class _Past:
    """The histories of the wanted events' households, up to a moment that only moves forward."""

    def __init__(self, timeline: Timeline, wanted: np.ndarray) -> None:
        self._timeline = timeline
        household, title = timeline.events.household, timeline.events.title
        concerned = np.flatnonzero(np.isin(household, household[wanted]))
        self._events = zip(
            concerned.tolist(),
            household[concerned].tolist(),
            title[concerned].tolist(),
            timeline.success[concerned].tolist(),
            timeline.slots[concerned].tolist(),
        )
        self._upcoming = next(self._events, None)
        self._histories: dict[int, History] = {}
        self._seen: dict[int, set[int]] = {}

    def before(self, index: int, catalog: Catalog) -> tuple[History, np.ndarray]:
        """The history and the rows seen (int64[s]) of the household of an event, just before it."""
        while self._upcoming is not None and self._upcoming[0] < index:
            _, household, row, success, slot = self._upcoming
            history = self._histories.get(household) or History.empty()
            self._histories[household] = history.push(row, catalog.codes[row], catalog.scale[row], success, slot)
            self._seen.setdefault(household, set()).add(row)
            self._upcoming = next(self._events, None)
        household = int(self._timeline.events.household[index])
        seen = np.array(sorted(self._seen.get(household, ())), np.int64)
        return self._histories.get(household) or History.empty(), seen
