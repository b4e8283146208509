"""The fit of the fusion: ranks, gains, the ascent, and the calibration at its optimum."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.fusion_fit import (
    FITTED,
    MEAN_BEST_RAW_SCORE,
    FitSet,
    _fit_logistic,
    discounted_gain,
    fit_calibration,
    fit_weights,
    rank_of_first,
)
from cloud.replay import Query
from omega_edge.ranking import CONTENT_RECENT, CONTEXT, FEATURES, PATTERNS, ROWS, SEQUENCE, TREND_SHORT


def query_of(matrix: np.ndarray, title: int, success: bool = True, bucket: int = 3, seen: tuple[int, ...] = ()) -> Query:
    return Query(0, title, success, bucket, np.array(seen, np.int64), matrix, 0, 0)


def test_rank_with_ties_at_their_mean():
    scores = np.array([[5, 5, 5, 5], [4, 6, 5, 5], [3, 7, 5, 6], [-np.inf, 4, 4, -np.inf]], np.float32)
    assert rank_of_first(scores).tolist() == [1.0, 3.0, 2.0, 2.5]


def test_discounted_gain():
    np.testing.assert_allclose(discounted_gain(np.array([1.0, 3.0, 7.0])), [1, 1 / 2, 1 / 3])


def planted(deciding: dict[int, float], queries: int, seed: int, bucket: int = 3, titles: int = 200) -> FitSet:
    """Queries whose watched title is the best by the deciding features; the others are noise."""
    rng = np.random.default_rng(seed)
    found = FitSet()
    for _ in range(queries):
        matrix = rng.random((len(FEATURES), titles), np.float32)
        matrix[PATTERNS] = 0
        truth = sum(weight * matrix[feature] for feature, weight in deciding.items())
        found.add(query_of(matrix, int(np.argmax(truth)), bucket=bucket))
    return found


def test_titles_that_lead_below_zero_are_candidates_and_seen_or_silent_ones_are_not():
    """An encoder's values can all be below 0; without its best titles the watched one would stand alone at the top."""
    matrix = np.zeros((len(FEATURES), 200), np.float32)
    matrix[SEQUENCE] = -np.linspace(1, 5, 200)
    found = FitSet()
    found.add(query_of(matrix, 120, seen=(0, 3)))
    assert found.rows[0].tolist() == [120, 1, 2, *range(4, 62)]
    matrix[SEQUENCE, 20:] = 0
    few = FitSet()
    few.add(query_of(matrix[:, :40], 5, seen=(0, 3)))
    assert few.rows[0].tolist() == [5, 1, 2, 4, *range(6, 20)]


def test_the_ascent_finds_what_decides():
    weights = fit_weights(planted({ROWS: 1.0, CONTEXT: 0.5}, 400, seed=1))[3]
    assert weights[ROWS] / weights[CONTEXT] == pytest.approx(2.0, rel=0.25)
    others = [feature for feature in FITTED if feature not in (ROWS, CONTEXT)]
    assert weights[others].max() < 0.15 * weights[ROWS]


def test_a_feature_that_speaks_against_gets_no_weight():
    weights = fit_weights(planted({TREND_SHORT: 1.0, CONTENT_RECENT: -1.0}, 400, seed=2))[3]
    assert weights[CONTENT_RECENT] == 0 and weights[TREND_SHORT] > 0


def test_each_bucket_learns_its_own_and_an_empty_one_takes_the_rest_s():
    queries = planted({ROWS: 1.0}, 600, seed=3, bucket=3)
    queries.extend(planted({TREND_SHORT: 1.0}, 600, seed=4, bucket=1))
    weights = fit_weights(queries)
    assert weights[3, ROWS] > weights[3, TREND_SHORT] and weights[1, TREND_SHORT] > weights[1, ROWS]
    np.testing.assert_array_equal(weights[0, list(FITTED)], weights[2, list(FITTED)])
    assert weights[0, ROWS] + weights[0, TREND_SHORT] > 0
    # Global patterns speak to young profiles only.
    assert weights[0, PATTERNS] > weights[2, PATTERNS] > weights[3, PATTERNS] == 0


def test_the_scale_gives_the_best_titles_the_stated_mean_score():
    queries = planted({ROWS: 1.0}, 300, seed=5)
    weights = fit_weights(queries)[3]
    best = [float((weights[list(FITTED)] @ matrix).max()) for matrix in queries.candidates]
    assert np.mean(best) == pytest.approx(MEAN_BEST_RAW_SCORE, rel=1e-3)


def test_seen_titles_are_no_candidates():
    matrix = np.random.default_rng(6).random((len(FEATURES), 500), np.float32)
    seen = tuple(np.argsort(-matrix[ROWS])[:50].tolist())
    queries = FitSet()
    queries.add(query_of(matrix, 400 if 400 not in seen else 401, seen=seen))
    held = {tuple(column) for column in queries.candidates[0].T.tolist()}
    assert not held & {tuple(matrix[list(FITTED), row].tolist()) for row in seen}


def test_failed_viewings_teach_the_calibration_but_not_the_ranking():
    matrix = np.random.default_rng(7).random((len(FEATURES), 50), np.float32)
    queries = FitSet()
    queries.add(query_of(matrix, 3, success=False))
    assert queries.candidates == [] and len(queries) == 1
    assert not fit_weights(queries).any()
    np.testing.assert_array_equal(queries.watched[0], matrix[:, 3])


def test_the_logistic_fit_is_at_the_optimum_of_its_penalised_likelihood():
    """At the maximum the gradient is zero: sum of (success - p) * input = pull * parameter."""
    rng = np.random.default_rng(8)
    score = rng.normal(3.0, 2.0, 800)
    success = (rng.random(800) < 1 / (1 + np.exp(-(0.8 * score - 1.5)))).astype(np.float64)
    slope, intercept = _fit_logistic(score, success)
    residual = success - 1 / (1 + np.exp(-(slope * score + intercept)))
    assert (residual * score).sum() == pytest.approx(slope, abs=1e-2)
    assert residual.sum() == pytest.approx(1e-3 * intercept, abs=1e-2)
    assert slope == pytest.approx(0.8, abs=0.25)


def test_calibration_of_buckets_without_data_and_with_one_outcome():
    matrix = np.full((len(FEATURES), 5), 0.5, np.float32)
    queries = FitSet()
    for _ in range(40):
        queries.add(query_of(matrix, 1, success=True, bucket=2))
    calibration = fit_calibration(queries, np.ones((4, len(FEATURES)), np.float32))
    assert calibration[0].tolist() == [0, 0]
    slope, intercept = calibration[2]
    assert 0.9 < 1 / (1 + np.exp(-(slope * 4.0 + intercept))) < 1
    assert np.isfinite(calibration).all()
