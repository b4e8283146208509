"""Intervals by resampling households: what a mean over queries would have been in other homes of the same kind.

Queries of one household are alike, so whole households are drawn, with replacement, as many as there are; the mean is
that over all queries drawn. The interval runs from the 2.5th to the 97.5th percentile of the resampled means (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 23). Deterministic for a seed.
"""

from __future__ import annotations

import math

import numpy as np

from omega_edge.errors import ConfigError

TAIL_PERCENT = 2.5
_DRAWS_PER_STEP = 4_000_000
"""Households drawn at once: 32 MB of draws."""


def paired_interval(
    differences: np.ndarray, household: np.ndarray, seed: int = 0, resamples: int = 2_000
) -> tuple[float, float, float]:
    """(mean, low, high) of the mean difference over queries, with a 95 % household-bootstrap interval.

    differences: float64[q], one value a query, as ours minus theirs on the same query; plain values serve too.
    household: int64[q], whose query it is. From one household nothing can be said of others: low and high are
    infinite. Raises ConfigError for no query, lengths that differ, a value that is not finite, resamples below 1.
    """
    values = np.asarray(differences, np.float64)
    owners = np.asarray(household)
    if values.ndim != 1 or owners.shape != values.shape or not len(values):
        raise ConfigError(
            f"paired_interval: expected differences[q] and household[q] with q of at least 1, "
            f"got shapes {values.shape} and {owners.shape}"
        )
    if not np.isfinite(values).all():
        raise ConfigError("paired_interval: expected finite differences, got NaN or infinity among them")
    if resamples < 1:
        raise ConfigError(f"resamples: expected 1 or more, got {resamples!r}")
    _, owner = np.unique(owners, return_inverse=True)
    queries = np.bincount(owner).astype(np.float64)
    sums = np.bincount(owner, values)
    mean = float(values.mean())
    if len(queries) == 1:
        return mean, -math.inf, math.inf
    means = _resampled_means(sums, queries, seed, resamples)
    low, high = np.percentile(means, (TAIL_PERCENT, 100.0 - TAIL_PERCENT))
    return mean, float(low), float(high)


def _resampled_means(sums: np.ndarray, queries: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """float64[resamples]: sum of the drawn households' sums over that of their queries. sums, queries: float64[h]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    households = len(sums)
    step = max(_DRAWS_PER_STEP // households, 1)
    means = np.empty(resamples)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(households, size=(count, households))
        means[start : start + count] = sums[drawn].sum(axis=1) / queries[drawn].sum(axis=1)
    return means
