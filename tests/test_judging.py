"""What the gates decide by, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud.fusion_fit import FITTED, FitSet
from cloud.judging import Gate, alone, calibration_report, fused, gains_of, rank_of_watched, summary
from omega_edge.ranking import FEATURES, POPULARITY, SLIST


def test_the_rank_of_the_watched_title_is_the_mean_of_its_ties():
    assert rank_of_watched(np.array([3.0])) == 1.0
    assert rank_of_watched(np.array([3.0, 5.0, 1.0, 4.0])) == 3.0
    assert rank_of_watched(np.array([3.0, 3.0, 3.0, 9.0])) == 3.0  # second, third or fourth


def test_gains_are_ndcg_at_ten():
    tenth, eleventh = np.array([0.0, *range(1, 10)]), np.array([0.0, *range(1, 11)])
    expected = [1.0, 1 / math.log2(3), 1 / math.log2(11), 0.0]
    np.testing.assert_allclose(gains_of([np.array([1.0]), np.array([1.0, 2.0]), tenth, eleventh]), expected)
    assert gains_of([]).shape == (0,)
    assert summary(np.array(expected)) == {"recall_at_10": 0.75, "ndcg_at_10": round(sum(expected) / 4, 4)}
    assert summary(np.empty(0)) == {"recall_at_10": 0.0, "ndcg_at_10": 0.0}


def test_a_gate_opens_where_every_home_gains():
    gate = Gate.of(np.full(16, 0.5), np.full(16, 0.25), np.repeat(np.arange(8), 2))
    assert gate == Gate(True, 0.25, 0.25, 0.25, 16)
    assert gate.report() == {"ships": True, "ndcg_at_10_gain": [0.25, 0.25, 0.25], "queries": 16}


def test_a_gain_of_one_home_does_not_open_the_gate():
    """Of eight homes one gains: a third of the resamples are without it, (7/8)^8."""
    gate = Gate.of(np.eye(8)[0], np.zeros(8), np.arange(8) * 3)
    assert not gate.ships and (gate.gain, gate.low) == (0.125, 0.0) and gate.high > gate.gain


@pytest.mark.parametrize("homes", [1, 2, 7])
def test_few_homes_say_nothing_of_others_however_they_agree(homes):
    """A fair coin tossed twice falls the same way up half of the time."""
    gate = Gate.of(np.ones(140), np.zeros(140), np.arange(140) % homes)
    assert not gate.ships and f"expected 8 or more, got {homes}" in gate.why
    assert gate.report()["why"] == gate.why


def test_a_gain_in_most_homes_opens_the_gate_and_noise_a_loss_and_one_busy_home_do_not():
    random = np.random.default_rng(2)
    homes, before = np.repeat(np.arange(50), 6), random.random(300)
    noise = random.normal(0.0, 0.1, 300)
    gate = Gate.of(before + 0.05 + noise, before, homes)
    assert gate.ships and 0 < gate.low < gate.gain < gate.high
    for changed in (before + noise, before - 0.1, before, before + np.where(homes == 7, 1.0, 0.0)):
        assert not Gate.of(changed, before, homes).ships


def test_without_a_viewing_the_gate_is_closed():
    gate = Gate.of(np.empty(0), np.empty(0), np.empty(0, np.int64))
    assert not gate.ships and "no held-out viewing" in gate.why and gate.queries == 0


def queries_of() -> FitSet:
    """One success of bucket 0 and one of bucket 3 with three candidates each, and a failure between them."""
    found = FitSet()
    found.buckets, found.success = [0, 1, 3], [True, False, True]
    found.candidates = [np.arange(30, dtype=np.float32).reshape(10, 3), np.ones((10, 3), np.float32)]
    found.watched = [np.full(len(FEATURES), value, np.float32) for value in (1.0, 2.0, 3.0)]
    return found


def test_lists_use_the_weights_of_their_own_bucket():
    weights = np.zeros((4, len(FEATURES)), np.float32)
    weights[0, SLIST], weights[1], weights[3, POPULARITY] = 2.0, 99.0, 5.0
    first, second = fused(queries_of(), weights)
    assert first.tolist() == [6.0, 8.0, 10.0] and second.tolist() == [5.0, 5.0, 5.0]
    assert [line.tolist() for line in alone(queries_of(), POPULARITY)] == [
        (3.0 * FITTED.index(POPULARITY) + np.arange(3)).tolist(), [1.0, 1.0, 1.0]
    ]


def test_calibration_is_judged_by_the_square_of_its_error():
    weights = np.zeros((4, len(FEATURES)), np.float32)
    weights[:, SLIST] = 1.0
    calibration = np.array([[0.0, 0.0], [0.0, -50.0], [0.0, 0.0], [0.0, 50.0]], np.float32)
    report = calibration_report(queries_of(), weights, calibration)
    assert report["viewings"] == 3
    assert report["brier"] == pytest.approx(0.25 / 3, abs=1e-4)  # half sure of a success; right of the others
    assert report["brier_of_rate"] == pytest.approx((1 / 9 + 4 / 9 + 1 / 9) / 3, abs=1e-4)
    assert report["reliability"] == [[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]]
