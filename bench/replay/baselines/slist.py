"""SLIST (Choi et al., "Session-aware Linear Item-Item Models for Session-based Recommendation", WWW 2021).

A directed ridge regression: from what a household had watched before a moment, the older the weaker, to what it watched
after it. The undirected half of the published method, which is EASE without a zero diagonal, is mixed in by a share.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from scipy import sparse
from scipy.linalg import solve as solve_linear

from bench.replay.baselines.evidence import LastSolution, check_positive
from bench.replay.baselines.item_item import ItemItem, TitleWeights
from cloud.ease import co_watching, eligible_titles
from omega_edge.datasets import Events

RIDGES = (50.0, 200.0)
SESSION_LIFETIMES_EVENTS = (1.0, 3.0, 6.0)
UNDIRECTED_SHARES = (0.1, 0.5)
LIFETIMES_EVENTS = (30.0, 10.0, 5.0)
FAILURE_WEIGHTS = (1.0, 0.5)
LEAST_WEIGHT = 0.05
"""What is weaker inside a session is left out: the sum over pairs stays linear in the events."""


def neighbourhoods(household: np.ndarray, place: np.ndarray, count: int, lifetime_events: float, ahead: bool):
    """csr[e, count]: row k holds the places of event k's household before and at k, or after it if ahead.

    An event d steps away weighs exp(-d / lifetime), the next one after k counting as d = 0; places below 0 are left out.
    """
    order = np.argsort(household, kind="stable")
    owner, places = household[order], place[order]
    reach = int(lifetime_events * math.log(1 / LEAST_WEIGHT)) + 1
    rows, columns, weights = [], [], []
    for distance in range(reach):
        shift = distance + 1 if ahead else distance
        row = np.arange(len(order) - shift)
        source = row + shift
        kept = owner[row] == owner[source]
        row, source = row[kept], source[kept]
        if not ahead:
            row, source = source, row
        kept = places[source] >= 0
        rows.append(order[row[kept]])
        columns.append(places[source[kept]])
        weights.append(np.full(int(kept.sum()), math.exp(-distance / lifetime_events)))
    data = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix(data, shape=(len(household), count))


def solve(
    events: Events, title_count: int, cut_ms: int, ridge: float, session_lifetime_events: float, undirected_share: float
) -> TitleWeights:
    """(mixed covariance + ridge)^-1 times the mixed covariance of before with after."""
    check_positive(ridge=ridge, session_lifetime_events=session_lifetime_events)
    if not 0 <= undirected_share <= 1:
        raise ValueError(f"undirected_share: expected from 0 to 1, got {undirected_share!r}")
    chosen = eligible_titles(events.title, title_count, 2)
    place = np.full(title_count, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    places = place[events.title]
    before = neighbourhoods(events.household, places, len(chosen), session_lifetime_events, ahead=False)
    after = neighbourhoods(events.household, places, len(chosen), session_lifetime_events, ahead=True)
    share = undirected_share
    covariance = (1 - share) * (before.T @ before).toarray()
    target = (1 - share) * (before.T @ after).toarray()
    if share > 0:
        together = share * co_watching(events.household, events.title, np.ones(len(events)), chosen, title_count)
        covariance += together
        target += together
    covariance[np.diag_indices(len(chosen))] += ridge
    weights = solve_linear(covariance, target, assume_a="pos", overwrite_a=True, overwrite_b=True)
    return TitleWeights(chosen, weights.astype(np.float32))


def candidates() -> list[ItemItem]:
    """The grid."""
    shared: LastSolution[TitleWeights] = LastSolution()
    return [
        ItemItem(
            f"slist ridge={ridge:g} session={session:g} undirected={share:g}",
            partial(solve, ridge=ridge, session_lifetime_events=session, undirected_share=share),
            lifetime,
            failure,
            shared,
        )
        for ridge in RIDGES
        for session in SESSION_LIFETIMES_EVENTS
        for share in UNDIRECTED_SHARES
        for lifetime in LIFETIMES_EVENTS
        for failure in FAILURE_WEIGHTS
    ]
