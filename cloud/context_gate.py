"""Whether the time of day and the day of the week are worth their weight in the fusion.

A data set without local time, or one whose homes watch the same at every hour, teaches a context weight that is noise.
The weight is shipped only if lists with it are better than lists without it on queries that fitted neither, in other
homes too: the lower bound of the household-bootstrap interval of the gain has to be above 0.
"""

from __future__ import annotations

import numpy as np

from cloud.bootstrap import paired_interval


def context_pays(
    gain_with: np.ndarray, gain_without: np.ndarray, household: np.ndarray, seed: int = 0, resamples: int = 2_000
) -> tuple[bool, tuple[float, float, float]]:
    """(whether the context weight is kept, (mean, low, high) of its gain in NDCG@10).

    gain_with, gain_without: float64[q], NDCG@10 of the same held-out queries under the fusion fitted with the context
    feature and under the one fitted without it. household: int64[q]. Without queries it does not pay: (0, 0, 0).
    """
    if not len(household):
        return False, (0.0, 0.0, 0.0)
    interval = paired_interval(np.subtract(gain_with, gain_without), household, seed, resamples)
    return interval[1] > 0.0, interval
