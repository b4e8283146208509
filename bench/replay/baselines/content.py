"""Content kNN: the titles whose text is nearest to that of the titles watched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from bench.replay.baselines.evidence import check_weighting, weights_of_past
from bench.replay.method import Past, TrendEvents
from omega_edge.datasets import Events

LIFETIMES_EVENTS = (math.inf, 30.0, 10.0, 3.0, 1.0)
FAILURE_WEIGHTS = (1.0, 0.0)


@dataclass(slots=True)
class ContentNeighbours:
    """score(i) = sum over the past's titles j of weight(j) * cosine(j, i).

    vectors: float32[n, d], one a title; a vector of zeros is like nothing.
    """

    vectors: np.ndarray
    lifetime_events: float
    failure_weight: float
    name: str = field(init=False)
    _unit: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        check_weighting(self.lifetime_events, self.failure_weight)
        self.name = f"content lifetime={self.lifetime_events:g} failure={self.failure_weight:g}"
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self._unit = (self.vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Nothing is learnt from events. Raises ValueError unless there is one vector a title."""
        if len(self._unit) != title_count:
            raise ValueError(f"vectors: expected {title_count} rows, one a title, got {len(self._unit)}")

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        titles, weights = weights_of_past(past, self.lifetime_events, self.failure_weight)
        return self._unit @ (weights.astype(np.float32) @ self._unit[titles])


def candidates(vectors: np.ndarray) -> list[ContentNeighbours]:
    """The grid. vectors: float32[n, d], the text model's for each title (see toolchain.build_bundle.embed_titles)."""
    return [ContentNeighbours(vectors, lifetime, failure) for lifetime in LIFETIMES_EVENTS for failure in FAILURE_WEIGHTS]
