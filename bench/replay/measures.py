"""What a ranked list is worth: the measures of one list, and means over lists with intervals by household.

One title is relevant to a query, the one that was watched. Recall@10 is 1 if it is among the first ten; NDCG@10 is
1 / log2(1 + rank) there and 0 beyond (Järvelin and Kekäläinen, 2002; the ideal list's gain is 1). The reciprocal
rank counts ranks up to 100. Titles that the household has seen are not in the list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cloud.bootstrap import paired_interval
from cloud.fusion_fit import LIST_LENGTH, discounted_gain

RANK_CUT = 100
RESAMPLES = 1_000
NORMAL_QUANTILE = 1.959964
"""The 97.5th percentile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Lists:
    """A method's answers to q queries. rank: float64[q], of the watched title, infinite where it is not in the list.
    top: int32[q, 10], rows of the first ten titles, -1 where there are fewer."""

    rank: np.ndarray
    top: np.ndarray

    @staticmethod
    def empty(count: int) -> Lists:
        """Answers to be filled in: nothing found, nothing shown."""
        return Lists(np.full(count, np.inf), np.full((count, LIST_LENGTH), -1, np.int32))

    def take(self, chosen: np.ndarray) -> Lists:
        """Those of some queries."""
        return Lists(self.rank[chosen], self.top[chosen])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval over households."""

    value: float
    low: float
    high: float


def rank_of(scores: np.ndarray, title: int, seen: np.ndarray) -> float:
    """Rank from 1 of a title among those not seen; ties stand at their mean rank. scores: float32[n]."""
    unseen = np.ones(len(scores), bool)
    unseen[seen] = False
    unseen[title] = False
    others = scores[unseen]
    return 1.0 + np.count_nonzero(others > scores[title]) + 0.5 * np.count_nonzero(others == scores[title])


def first_titles(scores: np.ndarray, seen: np.ndarray, place: np.ndarray) -> np.ndarray:
    """int32[10]: the best unseen titles, best first, equal scores in the order of place (int64[n]); -1 at the end if
    there are fewer."""
    masked = scores.astype(np.float32)
    masked[seen] = -np.inf
    wanted = min(LIST_LENGTH, len(masked))
    least = np.partition(masked, -wanted)[-wanted]
    chosen = np.flatnonzero((masked >= least) & np.isfinite(masked))
    chosen = chosen[np.lexsort((place[chosen], -masked[chosen]))][:LIST_LENGTH]
    top = np.full(LIST_LENGTH, -1, np.int32)
    top[: len(chosen)] = chosen
    return top


def rank_in_list(rows: np.ndarray, scores: np.ndarray, title: int) -> float:
    """Rank from 1 of a title in a shown list, infinite if it is not there. rows: int[m], scores: float64[m].

    Neighbours that the list shows with equal scores share their mean rank: their order says nothing.
    """
    found = np.flatnonzero(rows == title)
    if not len(found):
        return math.inf
    first = last = int(found[0])
    while first > 0 and scores[first - 1] == scores[first]:
        first -= 1
    while last + 1 < len(scores) and scores[last + 1] == scores[last]:
        last += 1
    return 1.0 + (first + last) / 2.0


def ndcg_at_10(rank: np.ndarray) -> np.ndarray:
    """float64[q]."""
    return np.where(rank <= LIST_LENGTH, discounted_gain(rank), 0.0)


def recall_at_10(rank: np.ndarray) -> np.ndarray:
    """float64[q]: 1 or 0."""
    return (rank <= LIST_LENGTH).astype(np.float64)


def reciprocal_rank(rank: np.ndarray) -> np.ndarray:
    """float64[q], 0 beyond rank 100."""
    return np.where(rank <= RANK_CUT, 1.0 / rank, 0.0)


def surprise_bits(title: np.ndarray, title_count: int) -> np.ndarray:
    """float64[n]: -log2 of each title's share of the viewings; title: int[e], the viewings' titles.

    Each title counts one viewing more than it has, so that one never watched is finite.
    """
    counts = np.bincount(title, minlength=title_count) + 1.0
    return -np.log2(counts / counts.sum())


def novelty(top: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """float64[q]: mean surprise of the titles of each list. bits: float64[q or 1, n]; 0 for an empty list."""
    shown = top >= 0
    values = np.take_along_axis(np.broadcast_to(bits, (len(top), bits.shape[-1])), np.maximum(top, 0), axis=1)
    return (values * shown).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)


def intra_list_diversity(top: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """float64[q]: mean of 1 - cosine over the pairs of titles in each list (Ziegler et al., 2005). vectors: float32[n, d],
    unit; 0 for a list of fewer than two."""
    shown = (top >= 0).astype(np.float64)
    found = vectors[np.maximum(top, 0)].astype(np.float64) * shown[:, :, None]
    count = shown.sum(axis=1)
    together = (np.square(found.sum(axis=1)).sum(axis=1) - np.square(found).sum(axis=(1, 2))) / 2.0
    pairs = count * (count - 1) / 2.0
    return np.where(pairs > 0, 1.0 - together / np.maximum(pairs, 1.0), 0.0)


def mean_by_household(values: np.ndarray, household: np.ndarray, seed: int) -> Estimate:
    """Mean over queries with the household-bootstrap interval; values may be differences of two methods."""
    return Estimate(*paired_interval(values, household, seed, RESAMPLES))


def coverage(top: np.ndarray, household: np.ndarray, title_count: int) -> Estimate:
    """Share of the catalogue's titles that are in any list, with an interval from leaving out one household at a time.

    A household drawn twice shows no new title, so resampling would understate every value; the jackknife's standard
    error (Efron and Tibshirani, 1993, chapter 11) does not.
    """
    _, owner = np.unique(household, return_inverse=True)
    shown = top >= 0
    pairs = np.unique(np.stack((top[shown], np.repeat(owner, shown.sum(axis=1))), axis=1), axis=0)
    titles, homes = np.unique(pairs[:, 0], return_counts=True)
    alone = np.isin(pairs[:, 0], titles[homes == 1])
    count = int(owner.max(initial=-1)) + 1
    value = len(titles) / title_count
    lost = np.bincount(pairs[alone, 1], minlength=count) / title_count
    spread = math.sqrt((count - 1) / count * float(np.square(lost - lost.mean()).sum())) if count else 0.0
    return Estimate(value, max(value - NORMAL_QUANTILE * spread, 0.0), min(value + NORMAL_QUANTILE * spread, 1.0))
