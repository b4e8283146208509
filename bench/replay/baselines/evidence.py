"""What a household's past says, as weights of titles, and what a grid's candidates learn from the same events at once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from bench.replay.method import Past
from omega_edge.datasets import Events

Learnt = TypeVar("Learnt")


def weights_of_past(past: Past, lifetime_events: float, failure_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """(titles int64[k], each once, weights float64[k]): exp(-events since / lifetime), times failure_weight if it failed.

    Of several viewings of one title the last one counts. lifetime_events: infinite weighs all events alike.
    """
    titles, newest_first = np.unique(past.titles[::-1], return_index=True)
    weights = np.exp(-newest_first / lifetime_events)
    weights[~past.success[::-1][newest_first]] *= failure_weight
    return titles, weights


def check_weighting(lifetime_events: float, failure_weight: float) -> None:
    """Raises ValueError unless lifetime_events > 0 and failure_weight is from -1 to 1."""
    if not lifetime_events > 0:
        raise ValueError(f"lifetime_events: expected above 0 (infinite: no decay), got {lifetime_events!r}")
    if not -1 <= failure_weight <= 1:
        raise ValueError(f"failure_weight: expected from -1 to 1, got {failure_weight!r}")


def check_positive(**settings: float) -> None:
    """Raises ValueError naming the first setting that is not a number above 0, infinity included."""
    for name, value in settings.items():
        if math.isnan(value) or not value > 0:
            raise ValueError(f"{name}: expected above 0, got {value!r}")


@dataclass(slots=True)
class LastSolution(Generic[Learnt]):
    """The last thing that a grid learnt, so that candidates that differ only in how they read it share it."""

    _key: tuple = ()
    _learnt: Learnt | None = None

    def of(
        self, solve: Callable[[Events, int, int], Learnt], label: str, events: Events, title_count: int, cut_ms: int
    ) -> Learnt:
        """What solve(events, title_count, cut_ms) gives. label: names the solver and all its settings."""
        digest = hashlib.sha256()
        for values in (events.household, events.title, events.watch_percentage, events.timestamp):
            digest.update(np.ascontiguousarray(values).view(np.uint8))
        key = (label, digest.digest(), title_count, cut_ms)
        if key != self._key:
            self._key, self._learnt = (), None  # first, so that there are never two of them in memory
            self._key, self._learnt = key, solve(events, title_count, cut_ms)
        assert self._learnt is not None
        return self._learnt
