"""EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019), plain and with decay."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from bench.replay.baselines.evidence import LastSolution, check_positive
from bench.replay.baselines.item_item import ItemItem, TitleWeights
from cloud.ease import co_watching, eligible_titles, item_weights
from cloud.signals import DAY_MS
from omega_edge.datasets import Events

RIDGES = (50.0, 200.0, 500.0)
AGE_LIFETIMES_DAYS = (math.inf, 90.0, 30.0)
LIFETIMES_EVENTS = (math.inf, 10.0, 5.0, 3.0)
FAILURE_WEIGHTS = (1.0, 0.5, 0.2)
MIN_EVENTS = 2
"""A title that one household watched says nothing of others."""


def solve(events: Events, title_count: int, cut_ms: int, ridge: float, age_lifetime_days: float) -> TitleWeights:
    """The item-item weights, where an event counts exp(-age at the cut / lifetime). ridge: in households."""
    check_positive(ridge=ridge, age_lifetime_days=age_lifetime_days)
    weight = np.exp(-(cut_ms - events.timestamp) / (age_lifetime_days * DAY_MS))
    chosen = eligible_titles(events.title, title_count, MIN_EVENTS)
    together = co_watching(events.household, events.title, weight, chosen, title_count)
    return TitleWeights(chosen, item_weights(together, ridge).astype(np.float32))


def candidates() -> list[ItemItem]:
    """The grid; with every lifetime infinite, and all failures counted, the method is as it was published."""
    shared: LastSolution[TitleWeights] = LastSolution()
    return [
        ItemItem(
            f"ease ridge={ridge:g} age={age:g}",
            partial(solve, ridge=ridge, age_lifetime_days=age),
            lifetime,
            failure,
            shared,
        )
        for ridge in RIDGES
        for age in AGE_LIFETIMES_DAYS
        for lifetime in LIFETIMES_EVENTS
        for failure in FAILURE_WEIGHTS
    ]
