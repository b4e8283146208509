"""The ranker: one catalogue's titles in the order of their scores, filtered, spread, and each score attributed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError
from omega_edge.left_out import LeftOut, prepared_scores_without_each
from omega_edge.ranking import (
    DECAYS,
    FEATURES,
    MOOD_WEIGHT,
    PERSONAL,
    POPULARITY,
    TREND_LONG,
    TREND_SHORT,
    History,
    Moment,
    Prepared,
    bucket_of,
    feature_count,
    fill_personal,
    momentary,
    trends_of,
)
from omega_edge.second_stage import CANDIDATES, SCORE, STAGE_ROWS, SecondStage
from omega_edge.sequence import SequenceEncoder

WISHED = len(FEATURES)
MOST_MOMENTARY = 4
"""Rows that depend on the moment: titles just watched, context, patterns, the wish."""


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
    """What one history says of every title: the personal feature rows, float32[6, n], what they came from, and what the
    absence of events is told by."""

    prepared: Prepared
    rows: np.ndarray
    left_out: LeftOut


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The fusion's best titles, best first: rows uint32[m], raw scores float32[m], features float32[f, m]; and, where the
    second stage serves, its scores float32[s] of the first s of them."""

    rows: np.ndarray
    raw: np.ndarray
    features: np.ndarray
    staged: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a list reads. given: features, ascending; weighing: those of them with a weight, and weights float32 of these;
    staged: whether the second stage orders it if no genre is wished for."""

    given: tuple[int, ...]
    weighing: tuple[int, ...]
    weights: np.ndarray
    staged: bool


class Ranker:
    """Ranks one catalogue. Thread-safe: every thread has its own scratch rows, 16 bytes a title.

    What the newest few histories say of every title is kept, 24 bytes a title each: it changes with an event, not with
    the hour, the trends or the wishes.
    """

    HISTORIES_KEPT = 2

    def __init__(self, catalog: Catalog) -> None:
        _check_rankable(catalog)
        self.catalog = catalog
        self._stage = SecondStage(catalog, catalog.second_stage) if catalog.second_stage is not None else None
        self._encoder = SequenceEncoder(catalog.sequence) if catalog.sequence is not None else None
        self._plans: dict[tuple[int, int], _Plan] = {}
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
        parameters = self.catalog.fusion.parameters
        prepared = Prepared.of(self.catalog, history, parameters, self._encoder)
        rows = np.empty((PERSONAL.stop, self.catalog.count), np.float32)
        fill_personal(self.catalog, prepared, rows)
        personal = _Personal(prepared, rows, LeftOut.of(self.catalog, prepared, parameters))
        # Replaced whole: of two threads at once one may lose its entry, which costs it the work again.
        self._kept = (personal, *kept[: self.HISTORIES_KEPT - 1])
        return personal

    def features(self, history: History, moment: Moment) -> np.ndarray:
        """Feature matrix of the whole catalogue, see ranking.features()."""
        return np.stack(list(self._rows(history, moment, None).values()))

    def _rows(self, history: History, moment: Moment, wanted: tuple[int, ...] | None) -> dict[int, np.ndarray]:
        """Rows float32[n] by feature, in the order of FEATURES and the wish last: as they lie, since copying them would
        cost a tenth of the call. Some are valid until this thread's next call.

        wanted: the features that are given beside the wish, ascending; None for all.
        """
        personal = self._personal(history)
        rows: dict[int, np.ndarray] = dict(enumerate(personal.rows))
        rows[POPULARITY] = self.catalog.popularity
        rows[TREND_SHORT], rows[TREND_LONG] = trends_of(self.catalog, moment)
        fills = momentary(self.catalog, moment, lambda: personal.left_out.lifts[moment.slot, 0])
        given = range(feature_count(moment)) if wanted is None else (*wanted, WISHED)[: len(wanted) + (WISHED in fills)]
        if getattr(self._scratch, "rows", None) is None:
            self._scratch.rows = np.empty((MOST_MOMENTARY, self.catalog.count), np.float32)
        room = iter(self._scratch.rows)
        for feature in given:
            if feature in fills:
                rows[feature] = next(room)
                fills[feature](rows[feature])
        return {feature: rows[feature] for feature in given}

    def _candidates(self, history: History, moment: Moment, allowed: np.ndarray, wanted: int) -> _Candidates:
        """The best `wanted` titles by the fused score, more if the second stage reads more."""
        plan = self._plan(bucket_of(history.count), bucket_of(history.count - 1))
        present = self._rows(history, moment, plan.given)
        fused, weights = tuple(present[feature] for feature in plan.weighing), plan.weights
        if moment.mood_genre >= 0:
            fused, weights = (*fused, present[WISHED]), np.append(weights, np.float32(MOOD_WEIGHT))
        # The trees learned from lists without a wish and would order most of it away: a wish is granted as it was asked.
        serves = plan.staged and moment.mood_genre < 0
        wanted = max(wanted, CANDIDATES) if serves else wanted
        rows, raw = np.empty(wanted, np.uint32), np.empty(wanted, np.float32)
        found = kernels.fuse_top_k(fused, weights, allowed, wanted, rows, raw)
        rows, raw = rows[:found], raw[:found]
        values = np.zeros((feature_count(moment), found), np.float32)
        for feature, row in present.items():
            row.take(rows, out=values[feature], mode="clip")
        staged = None
        if serves and found > 1:
            table = np.empty((STAGE_ROWS, min(found, CANDIDATES)), np.float32)
            table[:SCORE], table[SCORE] = values[:SCORE, :CANDIDATES], raw[:CANDIDATES]
            staged = self._stage.scores(table, rows[:CANDIDATES], history)
        return _Candidates(rows, raw, values, staged)

    def _plan(self, bucket: int, shorter: int) -> _Plan:
        """What a list of a history bucket reads, `shorter` being the bucket without one event."""
        plan = self._plans.get((bucket, shorter))
        if plan is None:
            weights = self.catalog.fusion.weights
            # What has no weight, the time of day where the model job found no use for it, neither this score nor one
            # without an event reads.
            given = (weights[bucket] != 0) | (weights[shorter] != 0)
            staged = self._stage is not None and self._stage.serves(bucket)
            given |= self._stage.reads if staged else False
            weighing = np.flatnonzero(weights[bucket]).tolist() or [POPULARITY]  # there must be a row to add up
            given[weighing] = True
            plan = _Plan(tuple(np.flatnonzero(given).tolist()), tuple(weighing), weights[bucket][weighing], staged)
            self._plans[bucket, shorter] = plan
        return plan

    def rank(
        self, history: History, moment: Moment, allowed: np.ndarray, k: int, diversity: float, novelty: float = 0.0
    ) -> Ranked:
        """The best k titles among those allowed, in the order of the second stage where it serves, spread by maximal
        marginal relevance.

        allowed: filter bitmap uint8[ceil(n/8)], bit row & 7 of byte row >> 3. diversity: 0 keeps the order of
        the scores, 1 ignores them (Carbonell and Goldstein, 1998: lambda is 1 - diversity, over scores
        scaled to 0–1 among the candidates). novelty: that scaled score less novelty times the title's log-popularity
        (0–1) is what a candidate is judged by.
        """
        rearranged = diversity > 0 or novelty > 0
        best = self._candidates(history, moment, allowed, max(k, CANDIDATES) if rearranged else k)
        order = _order(best)
        if rearranged and len(order) > 1:
            relevance = _relevance(best) - np.float32(novelty) * self.catalog.popularity[best.rows]
            picks = np.empty(min(k, len(order)), np.uint32)
            picked = kernels.diversify(
                self.catalog.codes, self.catalog.scale, best.rows[order], relevance[order], 1.0 - diversity, picks
            )
            order = order[picks[:picked]]
        order = order[:k]
        return Ranked(best.rows[order], best.raw[order], best.features[:, order])

    def places(self, history: History, moment: Moment, allowed: np.ndarray, row: int) -> tuple[int, int] | None:
        """Places of a title, from 1, in the order of the fused scores and in that of the second stage; None where the
        second stage does not order it."""
        best = self._candidates(history, moment, allowed, CANDIDATES)
        place = np.flatnonzero(best.rows == row)
        if best.staged is None or not len(place) or place[0] >= len(best.staged):
            return None
        return int(place[0]) + 1, int(np.flatnonzero(_order(best) == place[0])[0]) + 1

    def contributing(self, history: History, events: int) -> np.ndarray:
        """bool[e]: which of the newest events lend their own content or rows to scores.

        Leaving out one that does not still moves the others' positions; that is no reason to name it.
        """
        prepared = self._personal(history).prepared
        # Evidence and a decay above 0 make all weights 0 together, or none; the encoder hears every event of the catalogue.
        known = history.rows >= 0
        told = (prepared.content_weights != 0) & ((history.scale > 0) | known)
        return (told | (known & (self._encoder is not None)))[:events]

    def drops(self, history: History, moment: Moment, ranked: Ranked) -> np.ndarray:
        """float32[e, k]: how much each event of the window lifts each ranked title's raw score."""
        if not len(history.rows) or not len(ranked.rows):
            return np.zeros((0, len(ranked.rows)), np.float32)
        personal = self._personal(history)
        without = prepared_scores_without_each(
            self.catalog, personal.prepared, personal.left_out, moment, self.catalog.fusion, ranked.rows, ranked.features
        )
        return ranked.raw[None, :] - without


def _order(best: _Candidates) -> np.ndarray:
    """int64[m]: the candidates by the second stage's scores, ties and those that it did not score as the fusion has them."""
    order = np.arange(len(best.rows))
    if best.staged is not None:
        order[: len(best.staged)] = np.argsort(-best.staged, kind="stable")
    return order


def _relevance(best: _Candidates) -> np.ndarray:
    """float32[m]: scores scaled to 0 to 1; those past the ones that the second stage scored go on below 0."""
    if best.staged is None:
        return _scaled(best.raw)
    relevance = np.empty_like(best.raw)
    count = len(best.staged)
    relevance[:count] = _scaled(best.staged)
    spread = best.raw[0] - best.raw[count - 1]
    relevance[count:] = (best.raw[count:] - best.raw[count - 1]) / spread if spread > 0 else 0.0
    return relevance


def _scaled(scores: np.ndarray) -> np.ndarray:
    lowest = scores.min(initial=np.inf)
    spread = scores.max(initial=-np.inf) - lowest
    return (scores - lowest) / spread if spread > 0 else np.zeros_like(scores)
