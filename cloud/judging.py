"""How good lists are on held-out viewings, and whether one stage beats another: what the gates decide by.

Ranks are among the candidates of a FitSet, which hold every title that leads by any feature; ties stand at their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud.bootstrap import paired_interval
from cloud.fusion_fit import FITTED, LIST_LENGTH, FitSet, discounted_gain

RELIABILITY_BINS = 5
LEAST_HOUSEHOLDS = 8
"""Few homes that agree by chance leave no resample that does not: gains of pure noise opened the gate in 24, 17, 11 and 8
of a hundred trials with 2, 3, 4 and 6 homes, in 4 with 8 and in as many with 40."""


def gains_of(scores: Sequence[np.ndarray]) -> np.ndarray:
    """float64[q]: NDCG@10 of each list, the watched title's score being the first. 0 where it is not among the ten."""
    ranks = np.array([rank_of_watched(line) for line in scores])
    return np.where(ranks <= LIST_LENGTH, discounted_gain(ranks), 0.0) if len(ranks) else np.empty(0)


def rank_of_watched(scores: np.ndarray) -> float:
    """Rank, from 1, of the first of the scores."""
    others = scores[1:]
    return 1.0 + float(np.count_nonzero(others > scores[0])) + 0.5 * float(np.count_nonzero(others == scores[0]))


def fused(queries: FitSet, weights: np.ndarray) -> list[np.ndarray]:
    """float32[c] each: raw scores of the candidates under weights [4, 11]."""
    columns = weights[:, list(FITTED)]
    return [columns[bucket] @ matrix for bucket, matrix in zip(queries.list_buckets(), queries.candidates, strict=True)]


def alone(queries: FitSet, feature: int) -> list[np.ndarray]:
    """float32[c] each: the candidates' values of one feature."""
    place = FITTED.index(feature)
    return [matrix[place] for matrix in queries.candidates]


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a stage ships: only if its gain in NDCG@10 over what it replaces, on viewings that taught neither, is above 0
    in other homes too. gain, low, high: mean and 95 % household-bootstrap interval. why: what else kept it out."""

    ships: bool
    gain: float
    low: float
    high: float
    queries: int
    why: str = ""

    @staticmethod
    def of(ours: np.ndarray, theirs: np.ndarray, households: np.ndarray) -> Gate:
        """From NDCG@10 of the same queries, float64[q] each."""
        if not len(ours):
            return Gate.closed("no held-out viewing to judge by")
        homes = len(np.unique(households))
        if homes < LEAST_HOUSEHOLDS:
            return Gate.closed(f"too few households to judge by: expected {LEAST_HOUSEHOLDS} or more, got {homes}")
        mean, low, high = paired_interval(ours - theirs, households)
        return Gate(low > 0.0, mean, low, high, len(ours))

    @staticmethod
    def closed(why: str) -> Gate:
        """A stage that is not tried, and why."""
        return Gate(False, 0.0, 0.0, 0.0, 0, why)

    def report(self) -> dict:
        """For the bundle's meta."""
        told = {"ships": self.ships, "ndcg_at_10_gain": [round(float(x), 4) for x in (self.gain, self.low, self.high)]}
        return told | {"queries": self.queries} | ({"why": self.why} if self.why else {})


def summary(gains: np.ndarray) -> dict[str, float]:
    """recall_at_10 and ndcg_at_10 of float64[q], rounded to 4 digits; 0 without queries."""
    count = max(len(gains), 1)
    return {
        "recall_at_10": round(float(np.count_nonzero(gains)) / count, 4),
        "ndcg_at_10": round(float(gains.sum()) / count, 4),
    }


def calibration_report(queries: FitSet, weights: np.ndarray, calibration: np.ndarray) -> dict:
    """Brier score of the confidence beside that of the plain rate of success, and the reliability curve: by fifths of the
    confidence, its mean and the rate of success."""
    buckets, success = np.array(queries.buckets, np.int64), np.array(queries.success, np.float64)
    watched = np.array(queries.watched, np.float64).reshape(len(queries), weights.shape[1])
    raw = np.einsum("qf,qf->q", watched, weights[buckets].astype(np.float64))
    slope, intercept = calibration[buckets].T.astype(np.float64)
    confidence = 1.0 / (1.0 + np.exp(-(slope * raw + intercept)))
    fifths = np.array_split(np.argsort(confidence, kind="stable"), RELIABILITY_BINS)
    return {
        "viewings": len(success),
        "brier": round(float(np.mean((confidence - success) ** 2)), 4) if len(success) else 0.0,
        "brier_of_rate": round(float(np.mean((success.mean() - success) ** 2)), 4) if len(success) else 0.0,
        "reliability": [
            [round(float(confidence[part].mean()), 3), round(float(success[part].mean()), 3)] for part in fifths if len(part)
        ],
    }
