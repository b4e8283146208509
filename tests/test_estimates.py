"""Falsified reports: the cloud counts them as televisions make them, its estimate is unbiased with the stated variance, its
lower bound is one, and no report tells more than its epsilon.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud import estimates
from cloud.counts import DayReports
from cloud.estimates import CHANCE, KEEP, ReportTable, estimate, lower_bound, support, title_hashes, variance_of
from omega_edge import randomised
from omega_edge.protocol import COUNT_CATEGORIES, COUNT_EPSILON

TITLES = [f"t{row}" for row in range(40)]
HASHES = title_hashes(TITLES)
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def simulated(finished: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reports (seeds, values) of homes that finished these titles (rows, -1 for nothing), as televisions make them."""
    keyed = random.Random(int(rng.integers(1 << 62)))
    hashes = [randomised.NOTHING_FINISHED if row < 0 else int(HASHES[row]) for row in finished]
    reports = [randomised.falsified(hashed, keyed) for hashed in hashes]
    seeds, values = zip(*reports, strict=True)
    return np.array(seeds, np.uint32), np.array(values, np.uint8)


@given(st.lists(st.tuples(st.integers(0, U32), st.integers(0, COUNT_CATEGORIES - 1)), min_size=1, max_size=20),
       st.lists(st.integers(0, U64), min_size=1, max_size=20))  # fmt: skip
def test_support_is_what_the_televisions_hash_says(reports, hashes):
    seeds, values = np.array([seed for seed, _ in reports], np.uint32), np.array([value for _, value in reports], np.uint8)
    expected = [sum(randomised.category(seed, hashed) == value for seed, value in reports) for hashed in hashes]
    assert support(np.array(hashes, np.uint64), seeds, values).tolist() == expected


def test_every_category_at_its_edges():
    # The multiplication by 56 is undone by bounds: a wrong bound shows at hashes next to it, which random ones seldom are.
    seed, hashed = 7, int(HASHES[0])
    value = randomised.category(seed, hashed)
    every = np.arange(COUNT_CATEGORIES, dtype=np.uint8)
    counts = [int(support(HASHES[:1], np.array([seed], np.uint32), every[v : v + 1])[0]) for v in range(COUNT_CATEGORIES)]
    assert counts == [int(v == value) for v in range(COUNT_CATEGORIES)]


def test_hashes_are_those_of_televisions():
    assert title_hashes(["a", "ü"]).tolist() == [randomised.title_hash("a"), randomised.title_hash("ü")]


def test_the_estimate_is_unbiased_and_its_variance_is_the_stated_one():
    rng = np.random.default_rng(5)
    homes, rounds, told = 1_000, 60, 150
    finished = np.full(homes, -1)
    finished[:told] = 3
    found = []
    for _ in range(rounds):
        seeds, values = simulated(finished, rng)
        found.append(estimate([DayReports(homes, support(HASHES, seeds, values))], len(TITLES)).homes)
    found = np.array(found)
    truth = np.zeros(len(TITLES))
    truth[3] = told
    deviation = np.sqrt(variance_of(truth, homes))
    # 40 means of 60 rounds: 4.5 standard errors are exceeded by one of them with a chance of 0.03 %.
    assert (np.abs(found.mean(axis=0) - truth) < 4.5 * deviation / math.sqrt(rounds)).all()
    # 39 titles nobody finished, 60 rounds: their mean variance is known to about 3 %.
    others = np.delete(np.arange(len(TITLES)), 3)
    assert found[:, others].var() == pytest.approx(float(variance_of(np.zeros(1), homes)[0]), rel=0.15)
    assert found[:, 3].var(ddof=1) == pytest.approx(float(deviation[3]) ** 2, rel=0.6)


@pytest.mark.parametrize(("homes", "told"), [(20, 0), (20, 10), (300, 0), (300, 60), (5_000, 40), (5_000, 2_000)])
def test_the_lower_bound_is_hardly_ever_above_the_truth(homes, told):
    rng = np.random.default_rng(homes + told)
    draws = 200_000
    supported = rng.binomial(told, KEEP, draws) + rng.binomial(homes - told, CHANCE, draws)
    looks = 100
    bounds = lower_bound(supported.astype(float), homes, looks)
    assert (bounds > told).mean() <= estimates.FAILURE / looks
    assert (bounds >= 0).all() and (bounds <= homes).all()


def test_the_lower_bound_comes_close_where_there_is_much_to_see():
    homes, told = 1_000_000, 20_000
    supported = np.array([told * KEEP + (homes - told) * CHANCE])
    bound = float(lower_bound(supported, homes, 9_000)[0])
    assert 0.9 * told < bound < told


def test_nothing_is_known_without_reports():
    found = estimate([], 5)
    assert found.homes.tolist() == found.lower.tolist() == found.above_noise.tolist() == [0.0] * 5


def test_noise_counts_as_nothing():
    rng = np.random.default_rng(2)
    seeds, values = simulated(np.full(2_000, -1), rng)
    found = estimate([DayReports(2_000, support(HASHES, seeds, values))], len(TITLES))
    assert (found.homes < 0).any() and (found.homes > 0).any()
    assert (found.above_noise >= 0).all() and (found.above_noise > 0).mean() < 0.15
    assert (found.lower == 0).all()


def test_no_report_is_more_than_its_epsilon_likelier_for_one_title_than_for_another():
    """The likelihood of every report (a value, given the seed, whose drawing depends on nothing) for every true title."""
    keep, lie = KEEP, (1 - KEEP) / (COUNT_CATEGORIES - 1)
    worst = 0.0
    for seed in range(50):
        truths = [randomised.category(seed, int(hashed)) for hashed in HASHES] + [
            randomised.category(seed, randomised.NOTHING_FINISHED)
        ]
        for value in range(COUNT_CATEGORIES):
            likelihoods = [keep if truth == value else lie for truth in truths]
            worst = max(worst, max(likelihoods) / min(likelihoods))
    assert worst <= math.exp(COUNT_EPSILON) * (1 + 1e-12)


def test_televisions_do_falsify_that_often():
    """The same ratio from what televisions really draw, with its sampling error."""
    drawn, count = random.Random(11), 40_000
    first, second = int(HASHES[0]), int(HASHES[1])
    hits = {}
    for told, hashed in (("first", first), ("second", second)):
        seeds, values = zip(*(randomised.falsified(hashed, drawn) for _ in range(count)), strict=True)
        hits[told] = int(support(HASHES[:1], np.array(seeds, np.uint32), np.array(values, np.uint8))[0]) / count
    error = 4 * math.sqrt(KEEP * (1 - KEEP) / count)
    assert hits["first"] == pytest.approx(KEEP, abs=error)
    assert hits["second"] == pytest.approx(CHANCE, abs=error)
    # Which is how far one may tell them apart: support is likelier by KEEP / CHANCE, below e^epsilon.
    assert KEEP / CHANCE <= math.exp(COUNT_EPSILON)


class TestReportTable:
    def test_days_add_up_and_devices_are_taken_out(self):
        rng = np.random.default_rng(1)
        table, truth = ReportTable(HASHES), {}
        for day in (5, 6, 5, 7):
            devices = rng.integers(0, 30, 40).astype(np.uint32)
            seeds, values = simulated(rng.integers(-1, 40, 40), rng)
            table.add(day, devices, seeds, values)
            truth.setdefault(day, []).extend(zip(devices.tolist(), seeds.tolist(), values.tolist(), strict=True))
        gone = np.array([3, 4, 5], np.uint32)
        erased = table.erase(gone)
        assert erased == sum(device in (3, 4, 5) for day in truth.values() for device, _, _ in day)
        table.forget_before(6)
        assert set(table.days()) == {6, 7}
        for day, told in table.days().items():
            kept = [(seed, value) for device, seed, value in truth[day] if device not in (3, 4, 5)]
            seeds, values = np.array(kept, np.uint32).T
            assert told.reports == len(kept)
            assert told.support.tolist() == support(HASHES, seeds, values).tolist()

    def test_new_titles_are_supported_by_old_reports(self):
        rng = np.random.default_rng(1)
        seeds, values = simulated(rng.integers(-1, 40, 40), rng)
        table = ReportTable(HASHES[:30])
        table.add(5, np.arange(40, dtype=np.uint32), seeds, values)
        table.take_titles(HASHES)
        assert table.days()[5].support.tolist() == support(HASHES, seeds, values).tolist()

    def test_what_is_known_already_is_not_counted_again(self):
        rng = np.random.default_rng(1)
        seeds, values = simulated(rng.integers(-1, 40, 40), rng)
        table = ReportTable(HASHES)
        table.preset(5, support(HASHES, seeds[:30], values[:30]))
        table.add(5, np.arange(40, dtype=np.uint32), seeds, values, counted=30)
        assert table.days()[5].support.tolist() == support(HASHES, seeds, values).tolist()
