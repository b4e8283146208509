"""Directed item-item weights: what is finished in the events after a title, for all titles at once.

Choi et al., "Session-aware Linear Item-Item Models" (WWW 2021), their transition part: for every place in every
household's sequence, s holds the titles of the last PAST_EVENTS events with weights that fall by a factor an event, t
those finished in the next FUTURE_EVENTS likewise; with S and T all of them, B = (S' S + ridge * I)^-1 S' T. Unlike a
co-watching weight, B[j, i] is not B[i, j]: it knows which of two titles comes first.
"""

from __future__ import annotations

import numpy as np

PAST_EVENTS, FUTURE_EVENTS = 10, 5
FALL = 0.8
"""Of the weight of an event, for each event that lies between it and the place."""


def directed_weights(
    household: np.ndarray, title: np.ndarray, evidence: np.ndarray, weight: np.ndarray, chosen: np.ndarray,
    title_count: int, ridge: float,
) -> np.ndarray:
    """B, float64[t, t], between the chosen titles (ascending), 0 on the diagonal.

    household, title: integer[e] in time order; evidence: float64[e], 1 for a title finished, less for one that was not;
    weight: float64[e], of the place after each event. Only titles finished (evidence 1) are predicted. ridge > 0.
    """
    from scipy import sparse

    place = np.full(title_count, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    known = np.flatnonzero(place[title] >= 0)
    order = known[np.argsort(household[known], kind="stable")]
    column, owner, shown = place[title[order]], household[order], evidence[order]
    shape = (len(order), len(chosen))
    past = _shifted(sparse, owner, column, shown, range(PAST_EVENTS), shape)
    future = _shifted(sparse, owner, column, (shown >= 1.0).astype(np.float64), range(-1, -1 - FUTURE_EVENTS, -1), shape)
    weighed = past.T @ sparse.diags(weight[order])
    together = (weighed @ past).toarray()
    together[np.diag_indices(len(chosen))] += ridge
    found = np.linalg.solve(together, (weighed @ future).toarray())
    np.fill_diagonal(found, 0.0)
    return found


def _shifted(sparse, owner: np.ndarray, column: np.ndarray, value: np.ndarray, back: range, shape: tuple[int, int]):
    """Sparse [e, t]: row p holds FALL^i * value of the event back[i] places before p, of the same household."""
    places = np.arange(len(owner))
    rows, columns, values = [], [], []
    for distance, events in enumerate(back):
        other = places - events
        inside = np.flatnonzero((other >= 0) & (other < len(owner)))
        inside = inside[owner[other[inside]] == owner[inside]]
        rows.append(inside)
        columns.append(column[other[inside]])
        values.append(FALL**distance * value[other[inside]])
    stacked = [np.concatenate(parts or [np.empty(0)]) for parts in (values, rows, columns)]
    return sparse.csr_matrix((stacked[0], (stacked[1].astype(np.int64), stacked[2].astype(np.int64))), shape=shape)
