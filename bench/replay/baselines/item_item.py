"""Methods that are a matrix: what having watched one title says for another, summed over a household's past."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bench.replay.baselines.evidence import LastSolution, check_weighting, weights_of_past
from bench.replay.method import Past, TrendEvents
from omega_edge.datasets import Events


@dataclass(frozen=True, slots=True)
class TitleWeights:
    """chosen: int64[t], ascending titles that the matrix knows. matrix: float32[t, t], row: watched, column: scored."""

    chosen: np.ndarray
    matrix: np.ndarray


Solve = Callable[[Events, int, int], TitleWeights]
"""(events, title_count, cut_ms) -> the matrix."""


@dataclass(slots=True)
class ItemItem:
    """score(i) = sum over the past's titles j of weight(j) * matrix[j, i]; titles outside the matrix get 0.

    label: names the solver and its settings. lifetime_events, failure_weight: see weights_of_past.
    """

    label: str
    solve: Solve
    lifetime_events: float
    failure_weight: float = 1.0
    shared: LastSolution[TitleWeights] = field(default_factory=LastSolution)
    name: str = field(init=False)
    _weights: TitleWeights | None = field(init=False, default=None)
    _place: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_weighting(self.lifetime_events, self.failure_weight)
        self.name = f"{self.label} lifetime={self.lifetime_events:g} failure={self.failure_weight:g}"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Solve for the matrix."""
        self._weights = self.shared.of(self.solve, self.label, events, title_count, cut_ms)
        self._place = np.full(title_count, -1, np.int64)
        self._place[self._weights.chosen] = np.arange(len(self._weights.chosen))

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._weights is not None and self._place is not None, "fit comes first"
        titles, weights = weights_of_past(past, self.lifetime_events, self.failure_weight)
        places = self._place[titles]
        known = places >= 0
        out = np.zeros(len(self._place), np.float32)
        out[self._weights.chosen] = weights[known].astype(np.float32) @ self._weights.matrix[places[known]]
        return out
