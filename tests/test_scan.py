"""Halves, signs, rescoring and ranking: every instruction set against the numpy specification, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names
from tests import reference
from tests.test_kernels import bitmap, bits, expected, random_codes

ROW_COUNTS = (0, 1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 300)
DIMENSIONS = (32, 64, 96, 384, 1024)


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def halved(isa: Kernels, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d = codes.shape
    planes = np.empty((n, d // 2), np.uint8), np.empty((n, d // 2), np.uint8), np.empty(n, np.uint8)
    isa.halve(codes, *planes)
    return planes


def signs_of(isa: Kernels, codes: np.ndarray) -> np.ndarray:
    n, d = codes.shape
    blocks = np.zeros((-(-n // 32), 4 * d), np.uint8)
    isa.put_signs(codes, 0, n, blocks)
    return blocks


def run(method, *arguments, k: int) -> tuple[list[int], list[int]]:
    rows, scores = np.full(k, 7777777, np.uint32), np.full(k, np.nan, np.float32)
    found = method(*arguments, k, rows, scores)
    assert (rows[found:] == 7777777).all() and np.isnan(scores[found:]).all()
    return rows[:found].tolist(), bits(scores[:found])


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("n", ROW_COUNTS)
def test_halves_equal_the_reference_and_join_again(isa, n, d):
    rng = np.random.default_rng(n * 7 + d)
    codes, scale = random_codes(rng, n, d)
    high, low, spread = halved(isa, codes)
    for got, want in zip((high, low, spread), reference.halve(codes), strict=True):
        assert got.tolist() == want.tolist()
    rows = rng.permutation(n).astype(np.uint32)
    joined = np.empty((n, d), np.int8)
    isa.join(high, low, scale, spread, rows, joined)
    assert (joined == codes[rows]).all()


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("n", ROW_COUNTS)
def test_search_halves_equals_search(isa, n, d):
    rng = np.random.default_rng(n * 11 + d)
    codes, scale = random_codes(rng, n, d)
    query, query_scale = random_codes(rng, 1, d)
    planes = halved(isa, codes)
    for k in (1, 2, 7, 50, n + 1):
        for filter in (None, bitmap(rng.random(n) < 0.3), bitmap(np.zeros(n, bool), 1)):
            want = expected(reference.search(codes, scale, query[0], query_scale[0], filter, k))
            arguments = (planes[0], planes[1], scale, planes[2], query[0], query_scale[0], filter)
            assert run(isa.search_halves, *arguments, k=k) == want


@pytest.mark.parametrize("n", ROW_COUNTS)
def test_two_stage_equals_the_reference(isa, n):
    rng = np.random.default_rng(n)
    codes, scale = random_codes(rng, n, 96)
    query, query_scale = random_codes(rng, 1, 96)
    planes, blocks = halved(isa, codes), signs_of(isa, codes)
    assert blocks.tolist() == reference.sign_blocks(codes).tolist()
    for candidates, k in ((1, 1), (5, 3), (3, 5), (50, 50), (n + 1, n + 2)):
        for filter in (None, bitmap(rng.random(n) < 0.4)):
            want = reference.search_two_stage(codes, scale, query[0], query_scale[0], filter, candidates, k)
            arguments = (blocks, planes[0], planes[1], scale, planes[2], query[0], query_scale[0], filter, candidates)
            assert run(isa.search_two_stage, *arguments, k=k) == expected(want)


@pytest.mark.parametrize("d", DIMENSIONS)
def test_rescore_equals_the_reference(isa, d):
    rng = np.random.default_rng(d)
    vectors = (rng.standard_normal((40, d)) * 10.0 ** rng.integers(-7, 4, (40, 1))).astype(np.float16)
    vectors[3] = 0
    vectors[5, 1] = np.inf
    query = rng.standard_normal(d).astype(np.float32)
    rows = rng.permutation(40).astype(np.uint32)
    for m, k in ((0, 1), (1, 1), (7, 3), (40, 40), (40, 50)):
        want = expected(reference.rescore(vectors, query, rows[:m], k))
        assert run(isa.rescore, vectors, query, rows[:m], k=k) == want


@pytest.mark.parametrize("n", ROW_COUNTS)
def test_rank_equals_the_reference(isa, n):
    rng = np.random.default_rng(n)
    codes, scale = random_codes(rng, n, 64)
    scale /= 10
    query, query_scale = random_codes(rng, 1, 64)
    high, low, spread = halved(isa, codes)
    success, trend = rng.random(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    time = rng.integers(0, 2**32, n).astype(np.uint32)
    weights = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    for k in (1, 5, 50):
        for limits in ((2**31, 1e6, -2.0), (2**32 - 1, 2.0**31, 0.0), (5, 1e9, 0.2)):
            for filter in (None, bitmap(rng.random(n) < 0.4)):
                query_part = (query[0], query_scale[0])
                columns = (success, time, trend, weights, limits, filter)
                want = expected(reference.rank(codes, scale, *query_part, *columns, k))
                assert run(isa.rank, high, low, scale, spread, *query_part, *columns, k=k) == want
