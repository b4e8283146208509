"""EASE: item-item weights in closed form, cut to the strongest few a title and stored in 8 bits.

Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019): with G the matrix of how many households watched
both of two titles and P = (G + ridge * I)^-1, the weight from title j to title i is B[j, i] = -P[j, i] / P[i, i], 0 on
the diagonal. Row j of B is what having watched j says for every other title.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from omega_edge.catalog import RowSet

MIRRORED_AT_ONCE = 256
MAX_MODEL_TITLES = 4_800
"""Four float64 matrices of this side are held at the peak, 740 MB; what is watched less has sparse_rows.py."""
BYTES_PER_ENTRY = 5
"""Of a row in the bundle: a u32 column and an i8 value."""
LEAST_SCALE = float(np.finfo(np.float32).tiny)
"""Rows of titles watched decades ago can be weaker than a float32 tells; they have no entries."""


def eligible_titles(title: np.ndarray, title_count: int, min_events: int) -> np.ndarray:
    """Titles with at least min_events events, ascending, int64[t]; at most MAX_MODEL_TITLES, the most watched.

    title: integer[e], the title of each event. Between equally watched titles the lower number goes first.
    """
    return np.sort(_by_events(title, title_count, min_events)[:MAX_MODEL_TITLES])


def eligible_beyond(title: np.ndarray, title_count: int, min_events: int) -> np.ndarray:
    """int64[m]: the other titles with enough events, which eligible_titles has no room for, the most watched first."""
    return _by_events(title, title_count, min_events)[MAX_MODEL_TITLES:]


def _by_events(title: np.ndarray, title_count: int, min_events: int) -> np.ndarray:
    counts = np.bincount(title, minlength=title_count)
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] >= min_events]


def co_watching(
    household: np.ndarray, title: np.ndarray, weight: np.ndarray, chosen: np.ndarray, title_count: int
) -> np.ndarray:
    """G, float64[t, t]: sum over households of weight(j) * weight(i), for every two chosen titles j and i.

    household, title: integer[e], weight: float64[e], one event each; of several events of one household and
    title the last one counts. chosen: ascending titles. With all weights 1, G counts households.
    """
    place = np.full(title_count, -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    watched = place[title]
    known = np.flatnonzero(watched >= 0)
    pairs = household[known].astype(np.int64) * len(chosen) + watched[known]
    pairs, last_from_end = np.unique(pairs[::-1], return_index=True)
    owner, watched = pairs // max(len(chosen), 1), pairs % max(len(chosen), 1)
    weight = weight[known][::-1][last_from_end]
    together = np.zeros((len(chosen), len(chosen)))
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(owner)]):
        mine = watched[start:end]
        together[mine[:, None], mine] += np.outer(weight[start:end], weight[start:end])
    return together


def item_weights(together: np.ndarray, ridge: float) -> np.ndarray:
    """B, float64[t, t], from G (see co_watching), which is overwritten. ridge > 0, in households."""
    together[np.diag_indices(len(together))] += ridge
    inverse = _inverse(together)
    inverse /= -np.diag(inverse)[None, :]
    np.fill_diagonal(inverse, 0.0)
    return inverse


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix, which is overwritten: by Cholesky, half the work of the general one."""
    from scipy.linalg import lapack

    if not len(matrix):
        return matrix
    # LAPACK counts by columns; of a symmetric matrix the transpose is the same and needs no copy.
    factor, fault = lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)
    if not fault:
        factor, fault = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if fault:
        raise np.linalg.LinAlgError(f"expected a positive definite matrix, got one that fails at {fault}")
    inverse = factor.T
    for begin in range(0, len(inverse), MIRRORED_AT_ONCE):
        end = begin + MIRRORED_AT_ONCE
        corner = np.triu(inverse[begin:end, begin:end])
        inverse[begin:end, begin:end] = corner + np.triu(corner, 1).T
        inverse[end:, begin:end] = inverse[begin:end, end:].T
    return inverse


def strongest_rows(weights: np.ndarray, chosen: np.ndarray, title_count: int, budget_bytes: int) -> RowSet:
    """The K largest positive weights of each row in int8, K being the most that budget_bytes holds.

    weights: float64[t, t] between the chosen titles (ascending row numbers of the catalogue). A value is
    round(127 * weight / largest of its row); zeros are left out. Ties go to the lower column.
    """
    per_row = min(entries_a_row(len(chosen), budget_bytes), len(chosen))
    return encoded_rows(((row, chosen, line) for row, line in zip(chosen, weights)), title_count, per_row)


def entries_a_row(rows: int, budget_bytes: int) -> int:
    """How many entries of each of so many rows a budget holds."""
    return budget_bytes // (BYTES_PER_ENTRY * max(rows, 1))


def encoded_rows(rows: Iterable[tuple[int, np.ndarray, np.ndarray]], title_count: int, per_row: int) -> RowSet:
    """Rows, ascending, as (title, columns int64[c] ascending, weights float64[c]), each cut to its per_row largest
    positive weights, in int8; see strongest_rows."""
    lengths = np.zeros(title_count, np.int64)
    scale = np.zeros(title_count, np.float32)
    columns, values = [], []
    for row, titles, line in rows:
        strongest = _largest(line, min(per_row, len(line)))
        largest = line[strongest].max(initial=0.0)
        if largest < 127.0 * LEAST_SCALE:
            continue
        coded = np.rint(line[strongest] * (127.0 / largest)).astype(np.int64)
        kept = coded > 0
        columns.append(titles[strongest[kept]])
        values.append(coded[kept])
        lengths[row] = np.count_nonzero(kept)
        scale[row] = largest / 127.0
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.uint32)
    return RowSet(
        offsets,
        np.concatenate(columns or [np.empty(0)]).astype(np.uint32),
        np.concatenate(values or [np.empty(0)]).astype(np.int8),
        scale,
    )


def _largest(line: np.ndarray, count: int) -> np.ndarray:
    """int64[count]: places of the largest values of a line, ascending; of equal ones the lower places."""
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(line, -count)[-count]
    above, equal = np.flatnonzero(line > least), np.flatnonzero(line == least)
    return np.sort(np.concatenate((above, equal[: count - len(above)])))
