"""The second stage: learned trees put the fusion's best candidates into their final order.

What the trees ask of a candidate is named in the bundle, from these inputs:

    value:<feature>   the feature's value
    rank:<feature>    log(1 + how many of the candidates have a greater value), natural, of a feature or of the fused score
    rank:score        (what stands first among the candidates matters more than by how much)
    age_years         newest year of the catalogue minus the title's, 0 to 60; -1 where the title's is unknown
    log_history       log(1 + events of the profile)
    success_rate      share of successes among the events of the window; .5 without events

The sum of the trees' leaves (gradient-boosted by LambdaMART: Burges, "From RankNet to LambdaRank to LambdaMART", 2010)
orders the candidates and says nothing else: score, confidence and reasons stay the fusion's. Where a genre is wished for
the fusion's order stands: no list that the trees learned from knew of a wish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, TreeSet
from omega_edge.ranking import FEATURES, HISTORY_WINDOW, History

CANDIDATES = 100
"""Titles of the fusion that the second stage and the diversity choose from."""
UNKNOWN_AGE_YEARS = -1.0
MAX_AGE_YEARS = 60
_LOG_OF_COUNT = np.log1p(np.arange(CANDIDATES)).astype(np.float32)


SCORE = len(FEATURES)
"""Row of the fused score in a stage table: the features' values stand before it, the ranks of all of them after it."""
_RANKS = SCORE + 1
_AGE, _LOG_HISTORY, _SUCCESS_RATE = range(2 * _RANKS, 2 * _RANKS + 3)
STAGE_ROWS = _SUCCESS_RATE + 1


def _row_of(name: str) -> int:
    """Row of a stage table that holds an input."""
    kind, _, of = name.partition(":")
    if not of:
        return {"age_years": _AGE, "log_history": _LOG_HISTORY, "success_rate": _SUCCESS_RATE}[kind]
    return {"value": 0, "rank": _RANKS}[kind] + (*FEATURES, "score").index(of)


class StageTable:
    """All inputs of candidates, as the television computes them and the model job learns from them. Immutable."""

    def __init__(self, catalog: Catalog) -> None:
        years = catalog.years.astype(np.int32)
        ages = np.minimum(years.max() - years, MAX_AGE_YEARS)
        self._ages = np.where(years > 0, ages, UNKNOWN_AGE_YEARS).astype(np.int8)

    def fill(self, table: np.ndarray, rows: np.ndarray, history: History) -> np.ndarray:
        """Complete a table float32[STAGE_ROWS, m] of the candidates rows uint32[m], m at most CANDIDATES, whose first
        12 rows hold the values of the features and the fused score; returns it."""
        kernels.count_greater(table[:_RANKS], _LOG_OF_COUNT[: len(rows)], table[_RANKS:_AGE])
        table[_AGE] = self._ages[rows]
        table[_LOG_HISTORY] = math.log1p(history.count)
        window = history.success[:HISTORY_WINDOW]
        table[_SUCCESS_RATE] = np.count_nonzero(window) / len(window) if len(window) else 0.5
        return table

    def inputs(
        self, names: Sequence[str], values: np.ndarray, raw: np.ndarray, rows: np.ndarray, history: History
    ) -> np.ndarray:
        """The named inputs, float32[inputs, m], of m candidates, at most CANDIDATES.

        names: from catalog_checks.stage_input_names. values: float32[f, m], f at least 11, their features. raw:
        float32[m], their fused scores. rows: uint32[m].
        """
        table = np.empty((STAGE_ROWS, len(rows)), np.float32)
        table[:SCORE], table[SCORE] = values[:SCORE], raw
        return self.fill(table, rows, history)[[_row_of(name) for name in names]]


class SecondStage:
    """The trees of a catalogue. Immutable."""

    def __init__(self, catalog: Catalog, trees: TreeSet) -> None:
        self._table = StageTable(catalog)
        self._serves = trees.buckets.tolist()
        asked = np.array([_row_of(name) for name in trees.inputs], np.uint8)
        # The trees read the table itself: their inputs are renumbered once instead of being copied for each list.
        self._trees = (trees.roots, asked[trees.feature], trees.threshold, trees.children, trees.leaves)
        self.reads = np.zeros(len(FEATURES), bool)
        """bool[11]: the features that some node asks for; an input that is only named need not be computed."""
        rows = np.unique(asked[trees.feature]).tolist()
        self.reads[[row % _RANKS for row in rows if row < _AGE and row % _RANKS != SCORE]] = True

    def serves(self, bucket: int) -> bool:
        """Whether it beat the fusion for profiles of this history bucket, and so orders their lists."""
        return self._serves[bucket]

    def scores(self, table: np.ndarray, rows: np.ndarray, history: History) -> np.ndarray:
        """float32[m]: what the candidates are ordered by, the greatest first; arguments as in StageTable.fill."""
        out = np.empty(len(rows), np.float32)
        kernels.sum_trees(*self._trees, self._table.fill(table, rows, history), out)
        return out
