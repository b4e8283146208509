"""Learns the fusion: how much each feature of ranking.py counts, by length of history, from what was watched next.

The weights maximise the probability of the watched title under a softmax over every title that the household had not
seen (no sampled negatives), by Newton's method. Each history bucket is fitted on its own queries, held to the weights
that fit the queries of all buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cloud.replay import Query
from omega_edge.catalog import BUCKETS
from omega_edge.ranking import (
    CONTENT_PROFILE,
    CONTENT_RECENT,
    CONTEXT,
    FEATURES,
    POPULARITY,
    ROWS,
    TREND_LONG,
    TREND_SHORT,
)

PERSONAL = (ROWS, CONTENT_PROFILE, CONTENT_RECENT, CONTEXT)
SHARED = (POPULARITY, TREND_SHORT, TREND_LONG)
FITTED = (*PERSONAL, *SHARED)
"""What viewings can teach. Global patterns are not in a data set of viewings: their weight stays 0."""

QUERY_BYTES_PER_TITLE = 2 * len(PERSONAL)
PRIOR_QUERIES = 50.0
"""How many queries' worth of pull a bucket feels towards the weights of all buckets."""
RIDGE = 1e-2
"""On the squared weights, beside a loss summed over queries: only features that never vary feel it."""
NEWTON_STEPS = 20
TOLERANCE = 1e-4
"""A step that promises less than this gain in summed log-likelihood ends the fit."""


class QuerySet:
    """Queries kept for fitting: personal features in float16, the shared ones once a day and block."""

    def __init__(self, title_count: int) -> None:
        self.buckets: list[int] = []
        self.success: list[bool] = []
        self.watched: list[np.ndarray] = []
        """float32[8] each: the features of the title that was watched."""
        self._titles: list[int] = []
        self._seen: list[np.ndarray] = []
        self._personal: list[np.ndarray | None] = []
        self._shared_of: list[tuple[int, int]] = []
        self._shared: dict[tuple[int, int], np.ndarray] = {}
        self._scratch = np.empty((len(FITTED), title_count), np.float32)

    def __len__(self) -> int:
        return len(self.buckets)

    def add(self, query: Query) -> None:
        """Keep a query. Of one that failed only the watched title's features are kept, for the calibration."""
        self.buckets.append(query.bucket)
        self.success.append(query.success)
        self.watched.append(query.matrix[:, query.title].copy())
        self._titles.append(query.title)
        self._seen.append(query.seen)
        self._personal.append(query.matrix[list(PERSONAL)].astype(np.float16) if query.success else None)
        key = (query.block, query.midnight)
        self._shared_of.append(key)
        if key not in self._shared:
            self._shared[key] = query.matrix[list(SHARED)]

    def extend(self, other: QuerySet, every: int) -> None:
        """Take over each every-th query of another set."""
        for name in ("buckets", "success", "watched", "_titles", "_seen", "_personal", "_shared_of"):
            getattr(self, name).extend(getattr(other, name)[::every])
        self._shared |= other._shared

    def successes(self, bucket: int | None = None) -> list[int]:
        """Indices of the successful queries, of one bucket or of all."""
        return [
            index
            for index, success in enumerate(self.success)
            if success and bucket in (None, self.buckets[index])
        ]

    def matrix(self, index: int) -> np.ndarray:
        """float32[7, n], features in the order of FITTED; valid until the next call."""
        self._scratch[: len(PERSONAL)] = self._personal[index]
        self._scratch[len(PERSONAL) :] = self._shared[self._shared_of[index]]
        return self._scratch

    def derivatives(self, indices: list[int], weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Negative log-likelihood of the queries, its gradient float64[7] and Hessian float64[7, 7]."""
        loss, gradient = 0.0, np.zeros(len(FITTED))
        hessian = np.zeros((len(FITTED), len(FITTED)))
        weights = weights.astype(np.float32)
        for index in indices:
            matrix = self.matrix(index)
            logits = weights @ matrix
            target = self._titles[index]
            logits[self._seen[index]] = -np.inf
            logits -= logits.max()
            target_logit = float(logits[target])
            share = np.exp(logits, out=logits)
            total = float(share.sum())
            share /= np.float32(total)
            weighted = matrix * share
            mean = weighted.sum(axis=1, dtype=np.float64)
            loss += np.log(total) - target_logit
            gradient += mean - matrix[:, target]
            hessian += (weighted @ matrix.T).astype(np.float64) - np.outer(mean, mean)
        return loss, gradient, hessian


Derivatives = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]


def newton(derivatives: Derivatives, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum of a convex function and its Hessian there, by Newton's method with halved steps.

    derivatives: from a point float64[d] to (value, gradient float64[d], Hessian float64[d, d], positive definite).
    """
    point = start.astype(np.float64)
    value, gradient, hessian = derivatives(point)
    for _ in range(NEWTON_STEPS):
        step = np.linalg.solve(hessian, gradient)
        promised = 0.5 * float(gradient @ step)
        if promised < TOLERANCE:
            break
        length = 1.0
        new_value, new_gradient, new_hessian = derivatives(point - step)
        while new_value > value and length > 1e-3:
            length /= 2
            new_value, new_gradient, new_hessian = derivatives(point - length * step)
        if new_value >= value:
            break
        point = point - length * step
        value, gradient, hessian = new_value, new_gradient, new_hessian
    return point, hessian


def _penalised(derivatives: Derivatives, centre: np.ndarray, precision: np.ndarray) -> Derivatives:
    """The function plus 0.5 * (w - centre)' precision (w - centre)."""

    def total(weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, gradient, hessian = derivatives(weights)
        pull = precision @ (weights - centre)
        return value + 0.5 * float((weights - centre) @ pull), gradient + pull, hessian + precision

    return total


def fit_weights(queries: QuerySet) -> np.ndarray:
    """float32[4, 8]: weights by history bucket, in the order of ranking.FEATURES; without queries, all 0."""
    count = len(FITTED)
    weights = np.zeros((BUCKETS, len(FEATURES)), np.float32)
    everything = queries.successes()
    if not everything:
        return weights
    ridge = RIDGE * np.eye(count)
    likelihood = partial(queries.derivatives, everything)
    overall, hessian = newton(_penalised(likelihood, np.zeros(count), ridge), np.zeros(count))
    # The curvature of PRIOR_QUERIES average queries: strong where the data of all buckets knows a weight well.
    prior = hessian * (PRIOR_QUERIES / len(everything)) + ridge
    for bucket in range(BUCKETS):
        likelihood = partial(queries.derivatives, queries.successes(bucket))
        fitted, _ = newton(_penalised(likelihood, overall, prior), overall)
        weights[bucket, list(FITTED)] = fitted
    return weights


def fit_calibration(queries: QuerySet, weights: np.ndarray) -> np.ndarray:
    """float32[4, 2]: by bucket, slope and intercept of P(success) = logistic(slope * raw score + intercept).

    Platt, "Probabilistic Outputs for Support Vector Machines" (1999), by maximum likelihood over all first viewings,
    failed ones too, with a weak pull of the slope to 0: a bucket without evidence answers its rate of success.
    """
    buckets = np.array(queries.buckets)
    success = np.array(queries.success, np.float64)
    raw = raw_scores_of_watched(queries, weights)
    calibration = np.zeros((BUCKETS, 2), np.float32)
    for bucket in range(BUCKETS):
        mine = buckets == bucket
        calibration[bucket] = _fit_logistic(raw[mine], success[mine])
    return calibration


def raw_scores_of_watched(queries: QuerySet, weights: np.ndarray) -> np.ndarray:
    """float64[q]: the raw fused score that each watched title had."""
    watched = np.array(queries.watched, np.float64).reshape(len(queries), len(FEATURES))
    return np.einsum("qf,qf->q", watched, weights[np.array(queries.buckets, np.int64)].astype(np.float64))


def _fit_logistic(score: np.ndarray, success: np.ndarray) -> np.ndarray:
    """float64[2]: slope and intercept."""
    inputs = np.stack((score, np.ones_like(score)))
    signs = 2.0 * success - 1.0

    def derivatives(point: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        logits = point @ inputs
        failing = 1.0 / (1.0 + np.exp(np.clip(signs * logits, -50.0, 50.0)))
        curvature = failing * (1.0 - failing)
        value = float(np.logaddexp(0.0, -signs * logits).sum())
        return value, -(inputs @ (signs * failing)), (inputs * curvature) @ inputs.T

    return newton(_penalised(derivatives, np.zeros(2), np.diag([1.0, 1e-3])), np.zeros(2))[0]


@dataclass(slots=True)
class ListQuality:
    """Recall@10 and NDCG@10 of one ranked list, gathered over queries; the whole unseen catalogue is ranked."""

    hits: list[float]
    gains: list[float]

    @staticmethod
    def empty() -> ListQuality:
        """Nothing gathered yet."""
        return ListQuality([], [])

    def add(self, scores: np.ndarray, query: Query) -> None:
        """Count one query. scores: float32[n], overwritten at seen titles. Ties stand at their mean rank."""
        target = scores[query.title]
        scores[query.seen] = -np.inf
        rank = 1.0 + np.count_nonzero(scores > target) + 0.5 * (np.count_nonzero(scores == target) - 1)
        self.hits.append(float(rank <= 10))
        self.gains.append(1.0 / np.log2(1.0 + rank) if rank <= 10 else 0.0)

    def take(self, other: ListQuality) -> None:
        """Count the newest query of another list here too."""
        self.hits.append(other.hits[-1])
        self.gains.append(other.gains[-1])

    def summary(self) -> dict[str, float]:
        """{"recall_at_10", "ndcg_at_10"}, rounded to 4 digits; 0 without queries."""
        count = max(len(self.hits), 1)
        return {
            "recall_at_10": round(sum(self.hits) / count, 4),
            "ndcg_at_10": round(sum(self.gains) / count, 4),
        }
