"""Which viewings are asked for, and what was known before each: the past, divided from the future once for all methods.

The last fifth of the viewings in time order is the test, in BLOCKS rolling blocks of equal length; what a cloud would
have trained for a block comes from the viewings before it. A query is the first viewing of a title by a household
that was a success, at most MAX_QUERIES_PER_HOUSEHOLD of a household, drawn from all that it has in the test: the
earliest ones would ask mostly of the hour in which a household was new. Methods choose their settings on the queries
of the 8 % before the test, knowing what precedes those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.replay.method import Past, TrendEvents
from cloud.replay import MAX_QUERIES_PER_HOUSEHOLD, Timeline
from cloud.signals import DAY_MS, slots_of
from omega_edge.datasets import Events

TUNING_START, TEST_START = 0.72, 0.8
BLOCKS = 4
KNOWN_EVENTS = (0, 1, 5, 20)
"""How many of its newest viewings a television knows of a household that has at least as many as the last of these."""
MISSING_EVENTS = 10
RESTRICTED_QUERIES_PER_HOUSEHOLD = 5
"""Queries that are asked again with less known, at most so many of a household, evenly spread over its queries."""

DRAW_SEED = 2013
"""Which queries of a busy household are asked is the same in every run, whatever the seed of its intervals."""

FULL = "full"
MISSING = f"missing_{MISSING_EVENTS}"
RESTRICTED = (MISSING, *(f"known_{count}" for count in KNOWN_EVENTS))
"""Names of what is known: everything, all but the newest events, or only the newest ones."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Viewings to predict, in time order. Arrays of one length q.

    event: int64, index of the viewing. household, title: int64. known: int64, viewings of the household before it.
    block: int64. midnight_ms, now_ms: int64, Unix ms.
    """

    event: np.ndarray
    household: np.ndarray
    title: np.ndarray
    known: np.ndarray
    block: np.ndarray
    midnight_ms: np.ndarray
    now_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.event)

    def restricted(self) -> np.ndarray:
        """int64[r], ascending: which queries are asked again with less known."""
        eligible = np.flatnonzero(self.known >= KNOWN_EVENTS[-1])
        kept = []
        for household in np.unique(self.household[eligible]):
            mine = eligible[self.household[eligible] == household]
            if len(mine) > RESTRICTED_QUERIES_PER_HOUSEHOLD:
                places = np.arange(RESTRICTED_QUERIES_PER_HOUSEHOLD) * len(mine) // RESTRICTED_QUERIES_PER_HOUSEHOLD
                mine = mine[places]
            kept.append(mine)
        return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def drawn(household: np.ndarray, event: np.ndarray) -> np.ndarray:
    """int64[m], ascending: which of some viewings (their households int[q] and indices int64[q]) are asked for."""
    kept = np.ones(len(event), bool)
    order = np.argsort(household, kind="stable")
    starts = np.flatnonzero(np.diff(household[order], prepend=-1))
    for mine in np.split(order, starts[1:]):
        if len(mine) > MAX_QUERIES_PER_HOUSEHOLD:
            # By the first viewing, not by the household's number, so that numbers decide nothing.
            draw = np.random.default_rng([DRAW_SEED, int(event[mine[0]])])
            kept[mine] = False
            kept[mine[draw.permutation(len(mine))[:MAX_QUERIES_PER_HOUSEHOLD]]] = True
    return np.flatnonzero(kept)


def known_range(name: str, before: int) -> tuple[int, int]:
    """Of a household's `before` viewings, oldest first, the range [first, last) that is known under a name."""
    if name == FULL:
        return 0, before
    if name == MISSING:
        return 0, max(before - MISSING_EVENTS, 0)
    return max(before - int(name.removeprefix("known_")), 0), before


class Split:
    """A data set's viewings divided for a replay.

    events: all of them, in time order. title_count: n. blocks: of the test.
    """

    def __init__(self, events: Events, title_count: int, blocks: int = BLOCKS) -> None:
        total = len(events)
        self.events, self.title_count = events, title_count
        self._timeline = Timeline.of(events, slots_of(events.timestamp))
        start = int(total * TEST_START)
        self.starts = tuple(start + (total - start) * block // blocks for block in range(blocks))
        self.tuning_start = int(total * TUNING_START)

    def before(self, start: int) -> Events:
        """The events before an index: views, not copies."""
        events = self.events
        return Events(
            events.household[:start], events.title[:start], events.watch_percentage[:start], events.timestamp[:start]
        )

    @cached_property
    def queries(self) -> Queries:
        """Those of the test."""
        return self._queries(self.starts, len(self.events))

    @cached_property
    def tuning_queries(self) -> Queries:
        """Those that methods choose their settings on; one block."""
        return self._queries((self.tuning_start,), self.starts[0])

    def _queries(self, starts: tuple[int, ...], end: int) -> Queries:
        timeline, events = self._timeline, self.events
        found = np.flatnonzero(timeline.first & timeline.success)
        found = found[(found >= starts[0]) & (found < end)]
        found = found[drawn(events.household[found], found)]
        now_ms = events.timestamp[found]
        return Queries(
            event=found,
            household=events.household[found].astype(np.int64),
            title=events.title[found].astype(np.int64),
            known=timeline.before[found],
            block=np.searchsorted(starts, found, side="right") - 1,
            midnight_ms=now_ms // DAY_MS * DAY_MS,
            now_ms=now_ms,
        )

    @cached_property
    def _events_by_household(self) -> dict[int, np.ndarray]:
        order = np.argsort(self.events.household, kind="stable")
        households, first = np.unique(self.events.household[order], return_index=True)
        return dict(zip(households.tolist(), np.split(order, first[1:]), strict=True))

    def events_of(self, household: int) -> np.ndarray:
        """int64[e], ascending: indices of all events of a household."""
        return self._events_by_household[household]

    def events_before(self, queries: Queries, query: int) -> np.ndarray:
        """int64[e], ascending: indices of the household's events before one of some queries."""
        return self.events_of(int(queries.household[query]))[: queries.known[query]]

    def past(self, queries: Queries, query: int, name: str = FULL) -> Past:
        """What is known of the household before a query, under a name."""
        mine = self.events_before(queries, query)
        first, last = known_range(name, len(mine))
        mine = mine[first:last]
        return Past(
            titles=self.events.title[mine].astype(np.int64),
            success=self._timeline.success[mine],
            timestamp=self.events.timestamp[mine],
            now_ms=int(queries.now_ms[query]),
            midnight_ms=int(queries.midnight_ms[query]),
        )

    def trend_events(self) -> TrendEvents:
        """All successful viewings, to be counted up to a midnight that until() sets; before that, none."""
        success = self._timeline.success
        return TrendEvents(
            self.events.title[success].astype(np.int64), self.events.timestamp[success], self.title_count, 0
        )
