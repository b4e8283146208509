"""The second stage: learned trees put the fusion's best candidates into their final order.

What the trees ask of a candidate is named in the bundle, from these inputs:

    value:<feature>   the feature's value
    rank:<feature>    log(1 + how many of the candidates have a greater value), natural, of a feature or of the fused score
    rank:score        (what stands first among the candidates matters more than by how much)
    age_years         newest year of the catalogue minus the title's, 0 to 60; -1 where the title's is unknown
    log_history       log(1 + events of the profile)
    success_rate      share of successes among the events of the window; .5 without events

The sum of the trees' leaves (gradient-boosted by LambdaMART: Burges, "From RankNet to LambdaRank to LambdaMART", 2010)
orders the candidates and says nothing else: score, confidence and reasons stay the fusion's.
"""

from __future__ import annotations

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


class StageInputs:
    """The named inputs of candidates, as the television computes them and the model job learns from them."""

    def __init__(self, names: Sequence[str], catalog: Catalog) -> None:
        """names: from catalog_checks.stage_input_names."""
        self.names = tuple(names)
        self._catalog = catalog
        self._newest_year = int(catalog.years.max())
        kinds = [name.partition(":")[::2] for name in self.names]
        listed = (*FEATURES, "score")
        self._value_places = np.array([place for place, (kind, _) in enumerate(kinds) if kind == "value"], np.int64)
        self._value_features = np.array([FEATURES.index(name) for kind, name in kinds if kind == "value"], np.int64)
        self._rank_places = np.array([place for place, (kind, _) in enumerate(kinds) if kind == "rank"], np.int64)
        self._rank_lists = np.array([listed.index(name) for kind, name in kinds if kind == "rank"], np.int64)
        self._alone = {kind: place for place, (kind, name) in enumerate(kinds) if not name}
        self.reads = np.zeros(len(FEATURES), bool)
        """bool[11]: the features that some input is made from."""
        self.reads[self._value_features] = True
        self.reads[self._rank_lists[self._rank_lists < len(FEATURES)]] = True

    def of(self, values: np.ndarray, raw: np.ndarray, rows: np.ndarray, history: History) -> np.ndarray:
        """float32[inputs, m] of m candidates, at most CANDIDATES.

        values: float32[f, m], f at least 11, their features. raw: float32[m], their fused scores. rows: uint32[m].
        """
        count = len(rows)
        inputs = np.empty((len(self.names), count), np.float32)
        inputs[self._value_places] = values[self._value_features]
        if len(self._rank_places):
            lists = np.concatenate((values[: len(FEATURES)], raw[None]))[self._rank_lists]
            ranks = np.empty_like(lists)
            kernels.count_greater(lists, _LOG_OF_COUNT[:count], ranks)
            inputs[self._rank_places] = ranks
        if "age_years" in self._alone:
            years = self._catalog.years[rows].astype(np.int32)
            ages = np.minimum(self._newest_year - years, MAX_AGE_YEARS)
            inputs[self._alone["age_years"]] = np.where(years > 0, ages, UNKNOWN_AGE_YEARS)
        if "log_history" in self._alone:
            inputs[self._alone["log_history"]] = np.log1p(history.count)
        if "success_rate" in self._alone:
            window = history.success[:HISTORY_WINDOW]
            inputs[self._alone["success_rate"]] = window.mean() if len(window) else 0.5
        return inputs


class SecondStage:
    """The trees of a catalogue. Immutable."""

    def __init__(self, catalog: Catalog, trees: TreeSet) -> None:
        self._inputs = StageInputs(trees.inputs, catalog)
        self._serves = trees.buckets.tolist()
        self._trees = (trees.roots, trees.feature, trees.threshold, trees.children, trees.leaves)
        self.reads = self._inputs.reads

    def serves(self, bucket: int) -> bool:
        """Whether it beat the fusion for profiles of this history bucket, and so orders their lists."""
        return self._serves[bucket]

    def scores(self, values: np.ndarray, raw: np.ndarray, rows: np.ndarray, history: History) -> np.ndarray:
        """float32[m]: what the candidates are ordered by, the greatest first; arguments as in StageInputs.of."""
        out = np.empty(len(rows), np.float32)
        kernels.sum_trees(*self._trees, self._inputs.of(values, raw, rows, history), out)
        return out
