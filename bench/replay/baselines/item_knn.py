"""ItemKNN: the nearest titles by the cosine of who watched them (Sarwar et al., WWW 2001), with shrinkage."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from bench.replay.baselines.evidence import LastSolution, check_positive
from bench.replay.baselines.item_item import ItemItem, TitleWeights
from cloud.ease import co_watching, eligible_titles
from omega_edge.datasets import Events

NEIGHBOURS = (20, 50, 100)
SHRINKAGES_HOUSEHOLDS = (1e-9, 10.0, 50.0)
LIFETIMES_EVENTS = (math.inf, 10.0, 5.0, 3.0)
FAILURE_WEIGHTS = (1.0, 0.5)


def solve(events: Events, title_count: int, cut_ms: int, neighbours: int, shrinkage_households: float) -> TitleWeights:
    """together(j, i) / (sqrt(watched(j) * watched(i)) + shrinkage), kept where j is among the nearest of i."""
    check_positive(neighbours=neighbours, shrinkage_households=shrinkage_households)
    chosen = eligible_titles(events.title, title_count, 2)
    together = co_watching(events.household, events.title, np.ones(len(events)), chosen, title_count)
    watched = np.sqrt(np.diag(together))
    cosine = together / (np.outer(watched, watched) + shrinkage_households)
    np.fill_diagonal(cosine, 0.0)
    if neighbours < len(chosen):
        least = np.partition(cosine, -neighbours, axis=0)[-neighbours]
        cosine[cosine < least] = 0.0
    return TitleWeights(chosen, cosine.astype(np.float32))


def candidates() -> list[ItemItem]:
    """The grid."""
    shared: LastSolution[TitleWeights] = LastSolution()
    return [
        ItemItem(
            f"item-knn neighbours={neighbours} shrinkage={shrinkage:g}",
            partial(solve, neighbours=neighbours, shrinkage_households=shrinkage),
            lifetime,
            failure,
            shared,
        )
        for neighbours in NEIGHBOURS
        for shrinkage in SHRINKAGES_HOUSEHOLDS
        for lifetime in LIFETIMES_EVENTS
        for failure in FAILURE_WEIGHTS
    ]
