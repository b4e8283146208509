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
    return ratio_interval(values, np.ones_like(values), household, seed, resamples)


def ratio_interval(
    values: np.ndarray, sizes: np.ndarray, household: np.ndarray, seed: int = 0, resamples: int = 2_000
) -> tuple[float, float, float]:
    """(ratio, low, high) of sum(values) / sum(sizes), float64[q] each, as paired_interval() otherwise.

    sizes: at least 0, some above 0. Resamples whose sizes add up to 0 say nothing and are left out.
    """
    values, sizes, owners = np.asarray(values, np.float64), np.asarray(sizes, np.float64), np.asarray(household)
    if values.ndim != 1 or not owners.shape == values.shape == sizes.shape or not len(values):
        raise ConfigError(
            f"interval: expected values[q] and household[q] with q of at least 1, got shapes {values.shape} and "
            f"{owners.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(sizes).all()):
        raise ConfigError("interval: expected finite values, got NaN or infinity among them")
    if np.any(sizes < 0) or not np.any(sizes):
        raise ConfigError("interval: expected sizes of at least 0, some above")
    if resamples < 1:
        raise ConfigError(f"resamples: expected 1 or more, got {resamples!r}")
    _, owner = np.unique(owners, return_inverse=True)
    by_home, size_of_home = np.bincount(owner, values), np.bincount(owner, sizes)
    ratio = float(values.sum() / sizes.sum())
    if len(by_home) == 1:
        return ratio, -math.inf, math.inf
    low, high = np.percentile(
        _resampled_ratios(by_home, size_of_home, seed, resamples), (TAIL_PERCENT, 100.0 - TAIL_PERCENT)
    )
    return ratio, float(low), float(high)


def _resampled_ratios(values: np.ndarray, sizes: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """float64[r], r at most resamples: ratios of the drawn households. values, sizes: float64[h], sums of each."""
    generator = np.random.Generator(np.random.PCG64(seed))
    households = len(values)
    step = max(_DRAWS_PER_STEP // households, 1)
    ratios = []
    for start in range(0, resamples, step):
        drawn = generator.integers(households, size=(min(step, resamples - start), households))
        total, size = values[drawn].sum(axis=1), sizes[drawn].sum(axis=1)
        ratios.append(total[size > 0] / size[size > 0])
    return np.concatenate(ratios)
