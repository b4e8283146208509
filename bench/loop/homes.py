"""A home of the loop: a real brain on its own store, living through its viewings under a clock that the loop moves.

Every home begins with a store that has observed all that it watched before the cut, sharing nothing; at the cut it opens
that store anew in the mode that it agreed to. So nothing that the seed holds already is sent a second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from bench.loop.population import Population
from bench.replay.measures import LIST_LENGTH, rank_in_list
from bench.viewing import Watched
from omega_edge.brain import OmegaBrain
from omega_edge.config import BrainConfig

ASKED_TITLES = 20
"""Titles asked for: twice what is judged, so that equal scores around the tenth place share their mean rank."""


class Clock:
    """The time of a home, set by whoever replays."""

    def __init__(self, now_ms: int = 0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True, slots=True)
class Answer:
    """A list shown before a viewing. rank: of what was watched then, from 1, infinite where it is not among the first.
    fault: what is wrong with the list, or None."""

    rank: float
    fault: str | None


class Home:
    """One household. household: its number in the data set."""

    def __init__(self, population: Population, household: int, storage: Path, sharing: str = "receive") -> None:
        self.household, self.sharing = household, sharing
        self.clock = Clock()
        self._population, self._storage = population, storage
        self._row_of = {title.content_id: row for row, title in enumerate(population.dataset.titles)}
        events = population.dataset.events
        self._seen = set(events.title[: population.cut][events.household[: population.cut] == household].tolist())
        self._days: Mapping[int, np.ndarray] = dict(population.by_day(household))
        self._asked = frozenset(population.queries[events.household[population.queries] == household].tolist())
        self.brain: OmegaBrain | None = None

    def open(self, bundle: Path, now_ms: int, secrecy: Random | None = None) -> OmegaBrain:
        """Open the brain on its store with a bundle; one that is open is closed first. secrecy: see OmegaBrain.open."""
        self.close()
        self.clock.now_ms = now_ms
        config = BrainConfig(
            storage_path=self._storage,
            catalog_path=bundle,
            sharing=self.sharing,
            diversity=0.0,
            background_maintenance=False,
        )
        self.brain = OmegaBrain.open(config, self.clock, secrecy=secrecy)
        return self.brain

    def close(self) -> None:
        """Close the brain, if it is open."""
        if self.brain is not None:
            self.brain.close()
            self.brain = None

    def watches_on(self, day: int) -> bool:
        """Whether anything is watched on a day."""
        return day in self._days

    def live(self, day: int) -> dict[int, Answer]:
        """Live through a day: each viewing observed in order; before one that is asked for, a list. By event."""
        answers = {}
        for event in self._days.get(day, np.empty(0, np.int64)).tolist():
            watched = watched_at(self._population, event)
            self.clock.now_ms = watched.at_ms
            if event in self._asked:
                answers[event] = self._answer(event)
            self.brain.observe(watched.event())
            self._seen.add(int(self._population.dataset.events.title[event]))
        return answers

    def _answer(self, event: int) -> Answer:
        shown = self.brain.recommend(k=ASKED_TITLES)
        rows = np.array([self._row_of[title.content_id] for title in shown], np.int64)
        scores = np.array([title.score for title in shown], np.float64)
        fault = None
        if len(set(rows.tolist())) != len(rows) or self._seen & set(rows.tolist()):
            fault = f"event {event}: the list shows a title twice, or one that was seen"
        elif len(rows) < min(LIST_LENGTH, len(self._row_of) - len(self._seen)):
            fault = f"event {event}: expected {ASKED_TITLES} titles, got {len(rows)}"
        return Answer(rank_in_list(rows, scores, int(self._population.dataset.events.title[event])), fault)


def watched_at(population: Population, event: int) -> Watched:
    """A viewing of the data set."""
    events = population.dataset.events
    title = population.dataset.titles[int(events.title[event])]
    return Watched(title.content_id, title.name, float(events.watch_percentage[event]), int(events.timestamp[event]))


def make_seed_store(population: Population, household: int, bundle: Path, empty: Path, place: Path) -> None:
    """The store of a home at the cut: all that it watched before, observed one by one. empty: a store to begin with."""
    shutil.copytree(empty, place)
    events = population.dataset.events
    before = np.flatnonzero(events.household[: population.cut] == household)
    clock = Clock(int(events.timestamp[0]))
    config = BrainConfig(storage_path=place, catalog_path=bundle, background_maintenance=False)
    with OmegaBrain.open(config, clock) as brain:
        for event in before.tolist():
            watched = watched_at(population, event)
            clock.now_ms = watched.at_ms
            brain.observe(watched.event())
        clock.now_ms = population.begin_ms
        brain.checkpoint()
