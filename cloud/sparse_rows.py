"""Item-item rows of a catalogue with more titles than the dense block of ease.py holds, by sparse co-watching.

The titles of the dense block keep their weights of EASE for each other. All other pairs of titles with enough events
have the shrunk cosine of their co-watching, the usual weight of item-based neighbours (Sarwar et al., "Item-based
Collaborative Filtering", WWW 2001; shrunk by support as in Bell and Koren, "Scalable Collaborative Filtering", ICDM 2007):

    weight(j, i) = G[j, i] / sqrt(G[j, j] * G[i, i]) * G[j, i] / (G[j, i] + SHRINKAGE_HOMES)

times one factor that brings cosines to the size of EASE's weights: the median over the block's rows of the largest weight
of EASE, over the median of the largest cosine inside the block. So both stand in one row and in one sum.

Memory: beside the block, the newest NEWEST_TITLES titles of each home (12 bytes each, twice) and at most CHUNK_PAIRS
pairs of titles at a time (24 bytes each at their peak: 480 MB). Time grows with the sum over homes of the square of their titles, at most
NEWEST_TITLES each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cloud import ease
from cloud.replay import earlier_alike
from omega_edge.catalog import RowSet

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SHRINKAGE_HOMES = 10.0
"""Homes in common at which half of a cosine is believed."""
NEWEST_TITLES = 200
"""Of a home: one that watched thousands would alone make millions of pairs."""
LEAST_PER_ROW = 12
"""Entries that the budget leaves each row before further titles get one; the least watched go without."""
CHUNK_PAIRS = 20_000_000


@dataclass(frozen=True, slots=True)
class Finished:
    """What homes finished, in time order: household, title, integer[e]; weight float64[e]. See ease.co_watching."""

    household: np.ndarray
    title: np.ndarray
    weight: np.ndarray


def rows_beyond(
    finished: Finished, weights: np.ndarray, chosen: np.ndarray, beyond: np.ndarray, title_count: int, budget_bytes: int
) -> RowSet:
    """Rows of the chosen titles and of as many of those beyond them as the budget holds.

    weights: float64[t, t], EASE's, between the chosen titles int64[t], ascending; beyond: int64[m], the others with
    enough events, the most watched first (see ease.eligible_beyond).
    """
    dense = ease.entries_a_row(len(chosen), budget_bytes)
    per_row = min(dense, max(LEAST_PER_ROW, ease.entries_a_row(len(chosen) + len(beyond), budget_bytes)))
    room = budget_bytes // (ease.BYTES_PER_ENTRY * per_row) - len(chosen) if per_row else 0
    columns = np.sort(np.concatenate((chosen, beyond)))
    inside, listed = np.isin(columns, chosen), np.flatnonzero(np.isin(columns, np.append(chosen, beyond[: max(room, 0)])))
    cosines = _Cosines.of(finished, columns, title_count)
    # The cosines inside the block only tell how large they are; the others are kept until that is known.
    largest, strongest = [], []
    for place, others, line in cosines.rows(listed):
        if inside[place]:
            largest.append(line[inside[others]].max(initial=0.0))
            others, line = others[~inside[others]], line[~inside[others]]
        kept = np.sort(np.argsort(-line, kind="stable")[:per_row])
        strongest.append((place, columns[others[kept]], line[kept]))
    factor = _ratio(np.maximum(weights.max(axis=1, initial=0.0), 0.0), np.array(largest))
    return ease.encoded_rows(_joined(strongest, columns, chosen, weights, factor), title_count, per_row)


def _joined(
    strongest: list[tuple[int, np.ndarray, np.ndarray]], columns: np.ndarray, chosen: np.ndarray, weights: np.ndarray,
    factor: float,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(title, columns ascending, weights) of each row, those of EASE and the cosines together."""
    place_in_block = {title: place for place, title in enumerate(chosen.tolist())}
    for place, others, line in strongest:
        title, line = int(columns[place]), line * factor
        if title in place_in_block:
            others = np.concatenate((chosen, others))
            line = np.concatenate((weights[place_in_block[title]], line))
            order = np.argsort(others)
            others, line = others[order], line[order]
        yield title, others, line


def _ratio(ours: np.ndarray, cosines: np.ndarray) -> float:
    """Median of the positive ones of either; 1 where one has none, as there is nothing to compare."""
    ours, cosines = ours[ours > 0], cosines[cosines > 0]
    return float(np.median(ours) / np.median(cosines)) if len(ours) and len(cosines) else 1.0


@dataclass(frozen=True, slots=True)
class _Cosines:
    """Of t titles. watched: sparse float64[homes, t], by title: sparse float64[t, homes]; norms: float64[t], roots of the
    diagonal of G."""

    watched: csr_matrix
    by_title: csr_matrix
    norms: np.ndarray

    @staticmethod
    def of(finished: Finished, columns: np.ndarray, title_count: int) -> _Cosines:
        """Of the titles columns int64[t], ascending."""
        from scipy import sparse

        place = np.full(title_count, -1, np.int64)
        place[columns] = np.arange(len(columns))
        known = np.flatnonzero(place[finished.title] >= 0)[::-1]
        pair = finished.household[known].astype(np.int64) * title_count + finished.title[known]
        newest = known[np.sort(np.unique(pair, return_index=True)[1])]
        newest = newest[earlier_alike(finished.household[newest]) < NEWEST_TITLES]
        homes = int(finished.household.max(initial=-1)) + 1
        where = finished.household[newest].astype(np.int64), place[finished.title[newest]]
        watched = sparse.csr_matrix((finished.weight[newest], where), shape=(homes, len(columns)))
        by_title = watched.T.tocsr()
        return _Cosines(watched, by_title, np.sqrt(by_title.multiply(by_title).sum(axis=1)).A1)

    def rows(self, listed: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(place, places of others int64[c] ascending, shrunk cosines float64[c] above 0) of the listed titles (places)."""
        step = max(CHUNK_PAIRS // max(len(self.norms), 1), 1)
        for begin in range(0, len(listed), step):
            some = listed[begin : begin + step]
            together = (self.by_title[some] @ self.watched).tocsr()
            together.sort_indices()
            for line, place in enumerate(some.tolist()):
                span = slice(together.indptr[line], together.indptr[line + 1])
                others, shared = together.indices[span].astype(np.int64), together.data[span]
                norms = self.norms[place] * self.norms[others]
                # The product of two weights of decades ago may be 0 where neither weight is.
                told = (others != place) & (shared > 0) & (norms > 0)
                others, shared = others[told], shared[told]
                cosine = shared / norms[told]
                yield place, others, cosine * shared / (shared + SHRINKAGE_HOMES)
