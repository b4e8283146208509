"""Household-bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud.bootstrap import paired_interval
from omega_edge.errors import ConfigError


def test_interval_of_single_queries_is_that_of_the_mean_of_a_normal_sample() -> None:
    # With one query a household the standard error of the mean is s / sqrt(q), the interval 1.96 of it either side.
    generator = np.random.default_rng(3)
    values = generator.normal(0.3, 2.0, 4_000)
    mean, low, high = paired_interval(values, np.arange(4_000))
    half = 1.96 * values.std() / math.sqrt(4_000)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.08)


def test_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        household = np.repeat(np.arange(80), generator.integers(1, 9, 80))
        values = generator.normal(0.0, 1.0, 80)[household] + generator.normal(0.0, 0.5, len(household))
        _, low, high = paired_interval(values, household, resamples=400)
        covered += low <= 0.0 <= high
    # 400 * .95 = 380, standard deviation 4.4; the percentile interval of 80 homes is slightly short (about .94).
    assert 360 <= covered <= 396


def test_queries_of_one_household_do_not_count_as_many() -> None:
    generator = np.random.default_rng(7)
    by_home = generator.normal(0.0, 1.0, 40)
    household = np.repeat(np.arange(40), 25)
    _, low, high = paired_interval(by_home[household], household)
    _, narrow_low, narrow_high = paired_interval(by_home[household], np.arange(1_000))
    assert (high - low) > 3.5 * (narrow_high - narrow_low)


def test_same_seed_same_interval_and_names_of_households_do_not_matter() -> None:
    values, household = np.random.default_rng(9).normal(size=60), np.repeat(np.arange(20), 3)
    assert paired_interval(values, household, seed=4) == paired_interval(values, household * 1_000 + 17, seed=4)
    assert paired_interval(values, household, seed=4)[1:] != paired_interval(values, household, seed=5)[1:]


def test_one_household_tells_nothing_of_others() -> None:
    assert paired_interval(np.array([1.0, 3.0]), np.array([8, 8])) == (2.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("differences", "household", "resamples"),
    [([], [], 10), ([1.0], [1, 2], 10), ([math.nan, 1.0], [1, 2], 10), ([1.0, 2.0], [1, 2], 0)],
)
def test_what_has_no_interval_is_refused(differences: list, household: list, resamples: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        paired_interval(np.array(differences), np.array(household), resamples=resamples)
