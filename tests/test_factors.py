"""Item factors against numpy's eigenvectors of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.factors import SCALING, factor_sections


def scores_by_definition(together: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V diag(fold) V' float64[t, t], V [t, d] and fold [d]: of D^(s-1) G D^(s-1), D the root of the diagonal."""
    root = np.sqrt(np.diag(together)) ** (SCALING - 1.0)
    values, vectors = np.linalg.eigh(root[:, None] * together * root)
    values, vectors = values[::-1][:kept], vectors[:, ::-1][:, :kept]
    vectors, values = vectors[:, values > 0], values[values > 0]
    fold = values / (values + np.median(values))
    return vectors * fold @ vectors.T, vectors, fold


def co_watched(count: int, seed: int) -> np.ndarray:
    """G of homes that watch titles of unequal popularity."""
    rng = np.random.default_rng(seed)
    watched = (rng.random((300, count)) < np.linspace(0.5, 0.05, count)).astype(np.float64)
    return watched.T @ watched


def falling_spectrum(count: int, seed: int) -> np.ndarray:
    """G whose normalised matrix has the eigenvalues .9^k: the 64th and what follows it are apart."""
    directions = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, count)))[0]
    normalised = directions * 0.9 ** np.arange(count) @ directions.T
    # With G = d^(1-s) N d^(1-s) and d^2 its diagonal, d^(2s) is the diagonal of N.
    root = np.diag(normalised) ** (0.5 / SCALING * (1.0 - SCALING))
    return root[:, None] * normalised * root


@pytest.mark.parametrize(("together", "titles"), [(co_watched(40, 1), 50), (falling_spectrum(120, 2), 130)])
def test_a_fold_in_scores_as_the_eigenvectors_do(together, titles):
    chosen = np.sort(np.random.default_rng(3).permutation(titles)[: len(together)])
    expected, vectors, fold = scores_by_definition(together, kept=64)
    found = factor_sections(together.copy(), chosen, titles)
    held = found["factor_codes"].astype(np.float64) * found["factor_scale"][:, None]
    scores = (held @ found["factor_fold"].astype(np.float64) @ held.T)[np.ix_(chosen, chosen)]
    half_step = 0.5001 * found["factor_scale"][chosen].astype(np.float64)
    one = np.abs(vectors) @ fold
    bound = np.outer(one, half_step) + np.outer(half_step, one) + np.outer(half_step, half_step) * fold.sum()
    assert (np.abs(scores - expected) <= bound + 1e-5).all()
    np.testing.assert_allclose(np.diag(found["factor_fold"])[: len(fold)], fold, rtol=1e-3)
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.999


def test_titles_that_are_not_chosen_have_no_factors():
    chosen = np.arange(0, 60, 2)
    found = factor_sections(co_watched(30, 4), chosen, 61)
    assert np.flatnonzero(found["factor_scale"]).tolist() == chosen.tolist()
    assert not np.delete(found["factor_codes"], chosen, axis=0).any()


def test_without_a_chosen_title_everything_is_zero():
    found = factor_sections(np.empty((0, 0)), np.empty(0, np.int64), 7)
    assert found["factor_codes"].shape == (7, 64) and not any(array.any() for array in found.values())


def test_titles_that_nobody_finished_have_no_factors():
    found = factor_sections(np.zeros((5, 5)), np.arange(5), 6)
    assert not any(array.any() for array in found.values())


def test_factors_are_the_same_again():
    first, again = (factor_sections(co_watched(90, 5), np.arange(90), 90) for _ in range(2))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
