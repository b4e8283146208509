"""Learns the fusion: how much each feature of ranking.py counts, by length of history, from what was watched next.

The weights directly raise the quality of the ranked list, by coordinate ascent (Metzler and Croft, "Linear
feature-based models for information retrieval", 2007) from the best single feature. Maximum likelihood of a softmax
over the whole catalogue was tried first: with so few weights it spends them on the long tail, and on MovieTweetings its
lists fell below the plain trend list (NDCG@10 .180 against .202), while the ascent's do not (.204).

No weight is negative, so that no title is ever held against a household for being like what it finished.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import product

import numpy as np

from cloud.replay import Query
from omega_edge.catalog_checks import BUCKETS
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.ranking import FEATURES, PATTERNS, History

FITTED = tuple(index for index in range(len(FEATURES)) if index != PATTERNS)
"""What viewings can teach. Global patterns are not in a data set of viewings, so their weight is set, not fitted."""
PATTERN_WEIGHTS = (0.5, 0.5, 0.2, 0.0)
"""By history bucket, on the scale of MEAN_BEST_RAW_SCORE. Patterns of other homes were worth .018 of Recall@10 to a home
with one known event and nothing to an old one in a replay of ML-100k: young profiles only."""

CANDIDATES_PER_FEATURE = 60
"""A title that is not among so many by any feature, nor by their sum, is taken not to reach the top ten."""
LIST_LENGTH = 10
TAIL_SHARE = 0.2
"""Weight of the uncut discounted gain beside NDCG@10, which alone is flat between changes of the ten."""
NO_CODES = np.empty((0, EMBEDDING_DIMENSIONS), np.int8)
PRIOR_QUERIES = 300
"""How many queries of all buckets, evenly drawn, are mixed with a bucket's own."""
STEPS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Changes tried on a weight, up and down, in units of the largest weight; the last one down drops a feature."""
ROUNDS = 4
LOGISTIC_STEPS = 200
MEAN_BEST_RAW_SCORE = 3.0
"""Ranking does not fix the scale of the weights: it is set so that the best title's mean raw score is this, of which
the logistic is .95, leaving room for scores to differ."""


class FitSet:
    """Viewings kept for fitting: of a successful one the features of the titles that could lead the list, of each
    one those of the title that was watched."""

    def __init__(self) -> None:
        self.buckets: list[int] = []
        self.success: list[bool] = []
        self.watched: list[np.ndarray] = []
        """float32[11] each."""
        self.candidates: list[np.ndarray] = []
        """float32[10, c] each, of the successful ones in order; the title that was watched is the first."""
        self.rows: list[np.ndarray] = []
        """uint32[c] each, beside the candidates: which titles they are."""
        self.households: list[int] = []
        """Beside the candidates: whose viewing it was."""
        self.histories: list[History] = []
        """Beside the candidates: what was known, but for the vectors."""

    def __len__(self) -> int:
        return len(self.buckets)

    def add(self, query: Query) -> None:
        """Keep a query; its matrix may change afterwards."""
        self.buckets.append(query.bucket)
        self.success.append(query.success)
        self.watched.append(query.matrix[:, query.title].copy())
        if query.success:
            leading = _leading_titles(query)
            self.candidates.append(query.matrix[:, leading][list(FITTED)])
            self.rows.append(leading.astype(np.uint32))
            self.households.append(query.household)
            # Vectors of 65 events a query would be most of what is held, and no weight is learned from them again.
            self.histories.append(replace(query.history, codes=NO_CODES))

    def extend(self, other: FitSet) -> None:
        """Take over all of another set."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)

    @staticmethod
    def of(parts: Iterable[FitSet]) -> FitSet:
        """One set of several."""
        whole = FitSet()
        for part in parts:
            whole.extend(part)
        return whole

    def list_buckets(self) -> np.ndarray:
        """int64[q]: history bucket of each successful viewing."""
        return np.array(self.buckets, np.int64)[np.array(self.success, bool)]


def _leading_titles(query: Query) -> np.ndarray:
    """int64[c]: the watched title, then unseen ones that lead by a feature or by the sum of all."""
    unseen = np.ones(query.matrix.shape[1], bool)
    unseen[query.seen] = False
    fitted = query.matrix[list(FITTED)]
    chosen = np.zeros(len(unseen), bool)
    for values in (*fitted, fitted.sum(axis=0)):
        # Of most features 0 says nothing; what the encoder says of its best titles may lie below.
        told = unseen & (values != 0)
        if len(values) > CANDIDATES_PER_FEATURE:
            best = np.where(unseen, values, -np.inf)
            leading = np.argpartition(-best, CANDIDATES_PER_FEATURE)[:CANDIDATES_PER_FEATURE]
            chosen[leading[told[leading]]] = True
        else:
            chosen |= told
    chosen[query.title] = False
    return np.concatenate(([query.title], np.flatnonzero(chosen)))


def rank_of_first(scores: np.ndarray) -> np.ndarray:
    """float64[q]: rank (from 1) of line 0 in each column of scores [c, q]; ties stand at their mean rank."""
    first, others = scores[0], scores[1:]
    ahead = (others > first).sum(axis=0, dtype=np.uint16)
    beside = (others == first).sum(axis=0, dtype=np.uint16)
    return 1.0 + ahead + 0.5 * beside


def discounted_gain(rank: np.ndarray) -> np.ndarray:
    """Gain of the one relevant title at a rank: 1 / log2(1 + rank); the ideal list's is 1, so this is its NDCG."""
    return 1.0 / np.log2(1.0 + rank)


def _objective(scores: np.ndarray) -> float:
    """What the ascent raises: NDCG@10 plus TAIL_SHARE of the uncut gain, the mean over queries. scores: [c, q]."""
    rank = rank_of_first(scores)
    gain = discounted_gain(rank)
    return float(np.mean(np.where(rank <= LIST_LENGTH, gain, 0.0) + TAIL_SHARE * gain))


class _Lists:
    """Candidates of some queries as one array float32[10, c, q], short lists padded with titles of score -inf."""

    def __init__(self, candidates: list[np.ndarray], left_out: Collection[int] = ()) -> None:
        self._free = [place for place, feature in enumerate(FITTED) if feature not in left_out]
        longest = max(matrix.shape[1] for matrix in candidates)
        self.features = np.zeros((len(FITTED), longest, len(candidates)), np.float32)
        self._base = np.full((longest, len(candidates)), -np.inf, np.float32)
        for index, matrix in enumerate(candidates):
            self.features[:, : matrix.shape[1], index] = matrix
            self._base[: matrix.shape[1], index] = 0.0

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """float32[c, q]: raw scores under weights [10]."""
        scores = self._base.copy()
        for feature, weight in zip(self.features, weights):
            if weight:
                scores += np.float32(weight) * feature
        return scores

    def best_single(self) -> np.ndarray:
        """float64[10]: weight 1 for the feature that ranks best alone, 0 for the others."""
        single = np.eye(len(FITTED))[self._free]
        return single[int(np.argmax([_objective(self.scores(weights)) for weights in single]))]

    def ascended_from(self, other: np.ndarray) -> np.ndarray:
        """float64[10]: the ascent from the better of other lists' weights and the best feature alone: where the others'
        say nothing here, no single change leads away from them."""
        return self.ascend(max(other, self.best_single(), key=lambda weights: _objective(self.scores(weights))))

    def ascend(self, start: np.ndarray) -> np.ndarray:
        """float64[10]: weights of at least 0, changed one at a time wherever that helps, ROUNDS times over."""
        weights = start.copy()
        scores = self.scores(weights)
        moved = np.empty_like(scores)
        best = _objective(scores)
        for _ in range(ROUNDS):
            before = best
            for feature, step in product(self._free, (*STEPS, *(-step for step in STEPS))):
                changed = max(weights[feature] + step * float(weights.max()), 0.0)
                np.multiply(self.features[feature], np.float32(changed - weights[feature]), out=moved)
                moved += scores
                value = _objective(moved)
                if value > best:
                    best, weights[feature] = value, changed
                    scores, moved = moved, scores
            if best == before:
                break
        return weights

    def mean_best_score(self, weights: np.ndarray) -> float:
        """Raw score of the best candidate, the mean over queries."""
        return float(self.scores(weights).max(axis=0).mean(dtype=np.float64))


def fit_weights(queries: FitSet, left_out: Collection[int] = ()) -> np.ndarray:
    """float32[4, 11]: weights by history bucket, in the order of ranking.FEATURES; without a success, all 0.

    left_out: features that get no weight.
    """
    weights = np.zeros((BUCKETS, len(FEATURES)), np.float32)
    every = queries.candidates
    if not every:
        return weights
    lists = _Lists(every, left_out)
    overall = lists.ascend(lists.best_single())
    prior = [every[index] for index in np.unique(np.arange(PRIOR_QUERIES) * len(every) // PRIOR_QUERIES)]
    bucket_of_list = queries.list_buckets()
    for bucket in range(BUCKETS):
        own = [matrix for matrix, of in zip(every, bucket_of_list) if of == bucket]
        fitted = _Lists(own + prior, left_out).ascended_from(overall) if own else overall
        best = _Lists(own or every).mean_best_score(fitted)
        weights[bucket, list(FITTED)] = fitted * (MEAN_BEST_RAW_SCORE / best if best > 0 else 1.0)
        weights[bucket, PATTERNS] = PATTERN_WEIGHTS[bucket]
    return weights


def fit_calibration(queries: FitSet, weights: np.ndarray) -> np.ndarray:
    """float32[4, 2]: by bucket, slope and intercept of P(success) = logistic(slope * raw score + intercept).

    Platt, "Probabilistic outputs for support vector machines" (1999), by maximum likelihood over all first viewings,
    failed ones too. The slope is pulled weakly to 0: a bucket without evidence answers its rate of success.
    """
    buckets = np.array(queries.buckets, np.int64)
    success = np.array(queries.success, np.float64)
    watched = np.array(queries.watched, np.float64).reshape(len(queries), len(FEATURES))
    raw = np.einsum("qf,qf->q", watched, weights[buckets].astype(np.float64))
    calibration = np.zeros((BUCKETS, 2), np.float32)
    for bucket in range(BUCKETS):
        calibration[bucket] = _fit_logistic(raw[buckets == bucket], success[buckets == bucket])
    return calibration


def _fit_logistic(score: np.ndarray, success: np.ndarray) -> np.ndarray:
    """float64[2], slope and intercept, by Newton's method; (0, 0) without data.

    The loss is convex, its curvature at most 1/4 of the inputs' second moments: steps by that bound never overshoot
    (Böhning and Lindsay, 1988), so nothing need be tried and halved.
    """
    inputs = np.stack((score, np.ones_like(score)))
    pull = np.diag([1.0, 1e-3])
    bound = np.linalg.inv(0.25 * inputs @ inputs.T + pull)
    point = np.zeros(2)
    for _ in range(LOGISTIC_STEPS):
        predicted = 1.0 / (1.0 + np.exp(-(point @ inputs)))
        point = point + bound @ (inputs @ (success - predicted) - pull @ point)
    return point
