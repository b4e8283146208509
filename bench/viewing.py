"""Real viewing for the measurements: households of a data set joined into one, in time order.

One household of the data set has at most a few hundred viewings. A memory that is full is made of the busiest
households, joined by time; what they watch beyond the stored episodes is the stream that the timed calls take.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.metrics import EVENT_SPACING_SECONDS
from omega_edge.datasets import read_dataset
from omega_edge.protocol import TimeOfDay, ViewContext, ViewingEvent, time_of_day

SPACING_JITTER = 0.5
DURATION_SECONDS = 5_400


@dataclass(frozen=True, slots=True)
class Watched:
    """One viewing of the data set. at_ms: when it ended."""

    content_id: str
    title: str
    watch_percentage: float
    at_ms: int

    def event(self, at_ms: int | None = None) -> ViewingEvent:
        """The viewing as the brain observes it, at its own time or another."""
        at_ms = self.at_ms if at_ms is None else at_ms
        context = context_at(at_ms)
        return ViewingEvent(
            self.content_id, self.title, self.watch_percentage, DURATION_SECONDS, at_ms, context
        )


@dataclass(frozen=True, slots=True)
class Viewing:
    """Viewings of `households` households, joined: stored, then the stream that follows, both in time order.

    groups: content ids that one household each of the whole data set finished, for patterns and skills.
    """

    households: int
    stored: tuple[Watched, ...]
    stream: tuple[Watched, ...]
    groups: tuple[tuple[str, ...], ...]


def context_at(at_ms: int, mood_hint: str | None = None, recent_watches: tuple[str, ...] = ()) -> ViewContext:
    """The context of a moment, read in UTC."""
    moment = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return ViewContext(time_of_day(moment.hour), moment.weekday(), recent_watches, mood_hint)


def read_viewing(data: Path, stored: int, stream: int) -> Viewing:
    """The busiest households of the data set, as many as give `stored` + `stream` viewings together."""
    dataset = read_dataset(data)
    events = dataset.events
    counts = np.bincount(events.household, minlength=len(dataset.households))
    busiest = np.argsort(-counts, kind="stable")
    households = int(np.searchsorted(np.cumsum(counts[busiest]), stored + stream)) + 1
    if households > len(busiest):
        raise ValueError(f"{data}: expected at least {stored + stream} viewings, got {len(events)}")
    chosen = np.flatnonzero(np.isin(events.household, busiest[:households]))[: stored + stream]
    joined = tuple(
        Watched(
            dataset.titles[events.title[index]].content_id,
            dataset.titles[events.title[index]].name,
            float(events.watch_percentage[index]),
            int(events.timestamp[index]),
        )
        for index in chosen
    )
    return Viewing(households, joined[:stored], joined[stored:], _groups(dataset, busiest))


def _groups(dataset: object, busiest: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """What each household finished, the busiest first, in order of watching and each title once."""
    events = dataset.events
    finished: dict[int, dict[str, None]] = {}
    for household, title, share in zip(
        events.household.tolist(), events.title.tolist(), events.watch_percentage.tolist(), strict=True
    ):
        if share >= 0.7:
            finished.setdefault(household, {})[dataset.titles[title].content_id] = None
    return tuple(tuple(finished[household]) for household in busiest.tolist() if household in finished)


def respaced(watched: Sequence[Watched], start_ms: int, seed: int) -> list[Watched]:
    """The same viewings EVENT_SPACING_SECONDS apart on average, with uniform jitter, from start_ms on."""
    jitter = np.random.default_rng(seed).uniform(1 - SPACING_JITTER, 1 + SPACING_JITTER, len(watched))
    gaps = jitter * EVENT_SPACING_SECONDS * 1000 * len(watched) / jitter.sum()
    times = start_ms + np.cumsum(gaps).astype(np.int64)
    return [
        Watched(item.content_id, item.title, item.watch_percentage, int(at_ms))
        for item, at_ms in zip(watched, times.tolist(), strict=True)
    ]


def changed_contexts(genres: Sequence[str], seed: int) -> list[ViewContext]:
    """Contexts of every part of the day and every day, each with a mood asked for, in random order."""
    contexts = [
        ViewContext(part, day, (), genre) for part in TimeOfDay for day in range(7) for genre in genres
    ]
    order = np.random.default_rng(seed).permutation(len(contexts))
    return [contexts[index] for index in order]
