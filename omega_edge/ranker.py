"""The ranker: one catalogue's titles in the order of their scores, filtered, spread, and each score attributed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError
from omega_edge.left_out import prepared_scores_without_each
from omega_edge.ranking import (
    DECAYS,
    FEATURES,
    PERSONAL,
    History,
    Moment,
    Prepared,
    bucket_of,
    feature_count,
    fill_momentary,
    fill_personal,
    fill_shared,
    trends_of,
    weights_of,
)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Titles chosen, best first: rows uint32[k], raw scores float32[k], features float32[f, k]."""

    rows: np.ndarray
    raw: np.ndarray
    features: np.ndarray


def _check_rankable(catalog: Catalog) -> None:
    """CatalogError where a sound bundle is not one that this version can rank by."""
    if catalog.fusion.features != FEATURES:
        found, expected = f"weights for {', '.join(catalog.fusion.features)}", f"for {', '.join(FEATURES)}"
    elif len(catalog.trends) != 2:
        found, expected = f"{len(catalog.trends)} trend windows", "2"
    else:
        parameters = catalog.fusion.parameters
        wrong = [name for name in DECAYS if not 0 < parameters.get(name, 0) <= 1]
        if not -1 <= parameters.get("failure_weight", 2) <= 1:
            wrong.append("failure_weight")
        if not wrong:
            return
        found = f"{wrong[0]} {parameters.get(wrong[0], 'missing')}"
        expected = "a decay above 0, at most 1" if wrong[0] in DECAYS else "-1 to 1"
    raise CatalogError(f"the bundle has {found}, this version expects {expected}: build or fetch a bundle for it")


@dataclass(frozen=True, slots=True)
class _Personal:
    """What one history says of every title: the personal feature rows, float32[6, n], and what they came from."""

    prepared: Prepared
    rows: np.ndarray


class Ranker:
    """Ranks one catalogue. Thread-safe: every thread has its own scratch matrix, 48 bytes a title.

    What the newest few histories say of every title is kept, 24 bytes a title each: it changes with an event, not with
    the hour, the trends or the wishes.
    """

    CANDIDATES = 100
    """Titles that the fusion hands to the diversity stage."""
    HISTORIES_KEPT = 2

    def __init__(self, catalog: Catalog) -> None:
        _check_rankable(catalog)
        self.catalog = catalog
        self._scratch = threading.local()
        self._kept: tuple[_Personal, ...] = ()

    def prepare(self, history: History) -> None:
        """Do the part of the work that depends on the history alone, so that the next list need not."""
        self._personal(history)

    def _personal(self, history: History) -> _Personal:
        kept = self._kept
        for one in kept:
            if one.prepared.history is history:
                return one
        prepared = Prepared.of(self.catalog, history, self.catalog.fusion.parameters)
        personal = _Personal(prepared, np.empty((PERSONAL.stop, self.catalog.count), np.float32))
        fill_personal(self.catalog, prepared, personal.rows)
        # Replaced whole: of two threads at once one may lose its entry, which costs it the work again.
        self._kept = (personal, *kept[: self.HISTORIES_KEPT - 1])
        return personal

    def features(self, history: History, moment: Moment) -> np.ndarray:
        """Feature matrix of the whole catalogue, see features(); valid until this thread's next call."""
        return self._filled(history, moment, None)

    def _filled(self, history: History, moment: Moment, wanted: np.ndarray | None) -> np.ndarray:
        scratch = self._scratch
        if getattr(scratch, "matrix", None) is None:
            scratch.matrix, scratch.trends = np.empty((len(FEATURES) + 1, self.catalog.count), np.float32), None
        # Copying the shared rows again would cost a tenth of the call; they change only with the trends.
        trends = trends_of(self.catalog, moment)
        if scratch.trends is None or any(new is not old for new, old in zip(trends, scratch.trends, strict=True)):
            fill_shared(self.catalog, moment, scratch.matrix)
            scratch.trends = trends
        matrix = scratch.matrix[: feature_count(moment)]
        personal = self._personal(history)
        matrix[PERSONAL] = personal.rows
        fill_momentary(self.catalog, personal.prepared, moment, matrix, wanted)
        return matrix

    def rank(self, history: History, moment: Moment, allowed: np.ndarray, k: int, diversity: float) -> Ranked:
        """The best k titles among those allowed, spread by maximal marginal relevance.

        allowed: filter bitmap uint8[ceil(n/8)], bit row & 7 of byte row >> 3. diversity: 0 keeps the order of
        the scores, 1 ignores them (Carbonell and Goldstein, 1998: lambda is 1 - diversity, over scores
        scaled to 0–1 among the candidates).
        """
        # What has no weight, the time of day where the model job found no use for it, neither this score nor one
        # without an event reads.
        buckets = [bucket_of(history.count), bucket_of(history.count - 1)]
        matrix = self._filled(history, moment, self.catalog.fusion.weights[buckets].any(axis=0))
        wanted = max(k, self.CANDIDATES) if diversity > 0 else k
        rows, raw = np.empty(wanted, np.uint32), np.empty(wanted, np.float32)
        weights = weights_of(self.catalog.fusion, history.count, moment)
        found = kernels.fuse_top_k(matrix, weights, allowed, wanted, rows, raw)
        rows, raw = rows[:found], raw[:found]
        if diversity > 0 and found > 1:
            order = np.empty(min(k, found), np.uint32)
            spread = raw[0] - raw[-1]
            values = (raw - raw[-1]) / spread if spread > 0 else np.zeros_like(raw)
            picked = kernels.diversify(self.catalog.codes, self.catalog.scale, rows, values, 1.0 - diversity, order)
            rows, raw = rows[order[:picked]], raw[order[:picked]]
        rows, raw = rows[:k], raw[:k]
        return Ranked(rows, raw, np.ascontiguousarray(matrix[:, rows]))

    def contributing(self, history: History, events: int) -> np.ndarray:
        """bool[e]: which of the newest events lend their own content or rows to scores.

        Leaving out one that does not still moves the others' positions; that is no reason to name it.
        """
        prepared = self._personal(history).prepared
        # Evidence and a decay above 0 make all weights 0 together, or none.
        return ((prepared.content_weights != 0) & ((history.scale > 0) | (history.rows >= 0)))[:events]

    def drops(self, history: History, moment: Moment, ranked: Ranked) -> np.ndarray:
        """float32[e, k]: how much each event of the window lifts each ranked title's raw score."""
        if not len(history.rows) or not len(ranked.rows):
            return np.zeros((0, len(ranked.rows)), np.float32)
        without = prepared_scores_without_each(
            self.catalog, self._personal(history).prepared, moment, self.catalog.fusion, ranked.rows, ranked.features
        )
        return ranked.raw[None, :] - without
