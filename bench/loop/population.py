"""Who takes part: the homes of the loop, what they watch in the second half of time, and what they are asked.

The data's time is cut at the first midnight (UTC) after its middle. What all homes watched before is the seed, which
the operator holds. The homes of the loop are the busiest after the cut; equally busy ones in the order in which they
were first seen. A query is a home's first viewing of a title in the last EVALUATED_DAYS that was a success, at most
MAX_QUERIES_PER_HOUSEHOLD of a home, drawn as the replay draws them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.replay.split import drawn
from cloud.replay import Timeline
from cloud.signals import DAY_MS, slots_of
from omega_edge.datasets import Dataset, Events
from omega_edge.errors import DatasetError

EVALUATED_DAYS = 28
SHARING_SEED = 2026
"""Which homes share is drawn once; those of a lower participation are among those of every higher one."""


def chosen_events(events: Events, chosen: np.ndarray) -> Events:
    """Some of a stream's events: int64[] indices, ascending, or bool[e]."""
    return Events(
        events.household[chosen], events.title[chosen], events.watch_percentage[chosen], events.timestamp[chosen]
    )


@dataclass(frozen=True, slots=True)
class Population:
    """The homes and their time.

    cut: index of the first event after the seed. begin_ms: the midnight that it follows. days: how many days follow, the
    last one the data's. homes: int64[h], households of the data set, the busiest first. queries: int64[q], ascending,
    indices of the viewings that are asked for.
    """

    dataset: Dataset
    cut: int
    begin_ms: int
    days: int
    homes: np.ndarray
    queries: np.ndarray

    @staticmethod
    def of(dataset: Dataset, homes: int, evaluated_days: int = EVALUATED_DAYS) -> Population:
        """The population of a data set. Raises DatasetError where nobody is left to ask."""
        events = dataset.events
        middle = (int(events.timestamp[0]) + int(events.timestamp[-1])) // 2
        begin_ms = -(-middle // DAY_MS) * DAY_MS
        cut = int(np.searchsorted(events.timestamp, begin_ms))
        days = (int(events.timestamp[-1]) - begin_ms) // DAY_MS + 1
        later = np.bincount(events.household[cut:], minlength=len(dataset.households))
        first_seen = np.full(len(later), len(events))
        households, place = np.unique(events.household, return_index=True)
        first_seen[households] = place
        busiest = np.lexsort((first_seen, -later))[: min(homes, np.count_nonzero(later))]
        timeline = Timeline.of(events, slots_of(events.timestamp))
        asked = timeline.first & timeline.success & np.isin(events.household, busiest)
        asked &= events.timestamp >= begin_ms + (days - evaluated_days) * DAY_MS
        found = np.flatnonzero(asked)
        if not len(found):
            raise DatasetError(
                f"{dataset.name}: expected first viewings that were successes in its last {evaluated_days} days, found none "
                f"of {len(busiest)} homes"
            )
        queries = found[drawn(events.household[found], found)]
        return Population(dataset, cut, begin_ms, days, busiest.astype(np.int64), queries)

    @property
    def seed(self) -> Events:
        """What the operator holds: everything that all homes watched before the cut."""
        return chosen_events(self.dataset.events, np.arange(self.cut))

    @property
    def first_asked_day(self) -> int:
        """The day, from 0, of the first query."""
        return self.day_of(int(self.queries[0]))

    def midnight(self, day: int) -> int:
        """Unix ms at which a day begins; day 0 begins at the cut."""
        return self.begin_ms + day * DAY_MS

    def day_of(self, event: int) -> int:
        """The day of an event after the cut."""
        return (int(self.dataset.events.timestamp[event]) - self.begin_ms) // DAY_MS

    def sharers(self, sharing: float) -> np.ndarray:
        """bool[h]: which homes are in `titles` at a participation of 0 to 1."""
        order = np.random.default_rng(SHARING_SEED).permutation(len(self.homes))
        sharing_homes = np.zeros(len(self.homes), bool)
        sharing_homes[order[: round(sharing * len(self.homes))]] = True
        return sharing_homes

    def events_of(self, homes: np.ndarray, before_ms: int | None = None) -> np.ndarray:
        """int64[], ascending: indices of the events after the cut of some homes (households), before a moment."""
        events = self.dataset.events
        end = len(events) if before_ms is None else int(np.searchsorted(events.timestamp, before_ms))
        return self.cut + np.flatnonzero(np.isin(events.household[self.cut : end], homes))

    def by_day(self, household: int) -> Iterator[tuple[int, np.ndarray]]:
        """(day, int64[] indices in order) of each day after the cut on which a household watched."""
        mine = self.events_of(np.array([household]))
        days = (self.dataset.events.timestamp[mine] - self.begin_ms) // DAY_MS
        for day in np.unique(days).tolist():
            yield day, mine[days == day]
