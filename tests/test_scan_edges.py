"""Halves, signs and ranks where they break: list edges, ties, bounds that are met, odd addresses, floats at their ends."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge._simd import Kernels, isa_names
from tests import reference
from tests.test_kernels import bitmap, bits, expected, random_codes, run_search
from tests.test_scan import halved, run, signs_of

COSINE_ALONE = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def run_batch(isa: Kernels, table, queries, query_scale, filter, k: int) -> list[tuple[list[int], list[int]]]:
    q = len(queries)
    found, rows = np.zeros(q, np.uintp), np.full((q, k), 7777777, np.uint32)
    scores = np.full((q, k), np.nan, np.float32)
    isa.search_batch(*table, queries, query_scale, filter, k, found, rows, scores)
    for j, count in enumerate(found.tolist()):
        assert (rows[j, count:] == 7777777).all() and np.isnan(scores[j, count:]).all()
    return [(rows[j, :count].tolist(), bits(scores[j, :count])) for j, count in enumerate(found.tolist())]


def check_searches(isa: Kernels, codes, scale, query, query_scale, filter, k: int) -> None:
    """search, search_halves, search_batch and a rank by nothing but the cosine return what the reference does."""
    n = len(codes)
    high, low, spread = halved(isa, codes)
    table = (high, low, scale, spread)
    with np.errstate(invalid="ignore", over="ignore"):
        want = expected(reference.search(codes, scale, query, query_scale, filter, k))
    assert run_search(isa, codes, scale, query, query_scale, filter, k) == want
    assert run(isa.search_halves, *table, query, query_scale, filter, k=k) == want
    scales = np.array([query_scale, query_scale], np.float32)
    assert run_batch(isa, table, np.stack([query, query]), scales, filter, k) == [want, want]
    columns = np.zeros(n, np.float32), np.zeros(n, np.uint32), np.zeros(n, np.float32)
    limits = (1, 1.0, float(-np.finfo(np.float32).max))
    if np.isfinite(scale).all():
        assert run(isa.rank, *table, query, query_scale, *columns, COSINE_ALONE, limits, filter, k=k) == want


# 16: rows of a block; 64: rows listed for a sparse filter; 384, 512: rows that may go on waiting, and that wait at all.
@pytest.mark.parametrize(
    "n",
    [63, 64, 65, 79, 80, 81, 255, 383, 384, 511, 512, 513, 527, 528, 529, 1025, 2048, 2049, 2600],
)
def test_every_search_at_the_edges_of_its_lists(isa, n):
    rng = np.random.default_rng(n)
    codes, scale = random_codes(rng, n, 32)
    query = rng.integers(-127, 128, 32).astype(np.int8)
    for k in (1, 15, 16, 17, 50, 300, n - 1, n, n + 1):
        check_searches(isa, codes, scale, query, 0.01, None, k)


@pytest.mark.parametrize("order", [1, -1])
def test_rows_that_come_from_the_worst_to_the_best_and_back(isa, order):
    """Ascending, every row beats the threshold and every list runs full; descending, none does after the first k."""
    rng = np.random.default_rng(3)
    codes, _ = random_codes(rng, 1500, 64)
    query = rng.integers(-127, 128, 64).astype(np.int8)
    codes = codes[np.argsort(order * reference.cosines(codes, np.ones(1500, np.float32), query, 1))]
    for k in (1, 50, 1499):
        check_searches(isa, codes, np.full(1500, 0.01, np.float32), query, 0.01, None, k)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.375, 0.45, 0.9, 1.0])
@pytest.mark.parametrize("n", [100, 1999])
def test_filters_of_every_density_with_the_spare_bits_set(isa, n, share):
    rng = np.random.default_rng(int(share * 100))
    codes, scale = random_codes(rng, n, 32)
    query = rng.integers(-127, 128, 32).astype(np.int8)
    for k in (1, 20, n):
        check_searches(isa, codes, scale, query, 0.01, bitmap(rng.random(n) < share, 1), k)


def test_a_filter_whose_blocks_take_turns_between_dense_and_sparse(isa):
    """Listed rows are read later than the dense blocks after them, which must not lose them a tie."""
    rng = np.random.default_rng(4)
    codes = rng.integers(-1, 2, (800, 32)).astype(np.int8)
    mask = rng.random(800) < np.where(np.arange(800) // 16 % 2, 0.2, 0.95)
    for k in (1, 10, 100, 400):
        check_searches(isa, codes, np.full(800, 0.1, np.float32), codes[0], 0.1, bitmap(mask, 1), k)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_ties_go_to_the_lower_row(isa, distinct):
    rng = np.random.default_rng(distinct)
    kinds, _ = random_codes(rng, distinct, 64)
    codes = kinds[rng.integers(0, distinct, 1300)]
    for k in (1, 7, 50, 600, 1300):
        for filter in (None, bitmap(rng.random(1300) < 0.2), bitmap(rng.random(1300) < 0.8)):
            check_searches(isa, codes, np.full(1300, 0.01, np.float32), kinds[0], 0.02, filter, k)


def with_bound_met(rng: np.random.Generator, n: int, query: np.ndarray) -> np.ndarray:
    """Codes whose lower half is 15 where the query is positive and 0 where it is negative: for a query of 1 and -1 in a
    square number of dimensions, whose sum is even, their bound equals their dot product."""
    raised = rng.integers(6, 10, (n, len(query))) * 16 + np.where(query > 0, 15, 0)
    return (np.clip(raised, 1, 255) - 128).astype(np.int8)


@pytest.mark.parametrize("margin", [-1, 0, 1])
@pytest.mark.parametrize("last", [False, True])
def test_no_row_is_passed_over_whose_bound_just_reaches(isa, margin, last):
    """Rows whose bound equals their score, before or after k rows that score one less, as much, or one more."""
    rng = np.random.default_rng(5)
    query = np.repeat([1, -1], 32).astype(np.int8)
    met = with_bound_met(rng, 600, query)
    goal = np.sort(met.astype(int) @ query)[-20] - margin
    others = rng.integers(-20, 21, (700, 64)) + goal // 64 * query
    for row in others:  # to the goal exactly, one code after another by one
        missing = int(goal - row @ query)
        steps = np.bincount(rng.integers(0, 64, abs(missing)), minlength=64)
        row += np.sign(missing) * steps * query
    assert (others @ query == goal).all() and np.abs(others).max() <= 127
    others = others.astype(np.int8)
    codes = np.concatenate([others, met] if last else [met, others])
    scale = np.full(len(codes), 0.01, np.float32)
    for k in (1, 10, 19, 20, 21, 50, 700):
        check_searches(isa, codes, scale, query, 0.125, None, k)


@pytest.mark.parametrize("d", [32, 96, 384, 1024])
def test_codes_and_queries_at_their_ends(isa, d):
    """Every sum at its greatest: the products of half bytes fill int16, the dot products come near 2^24."""
    ends = np.array([-127, -113, -112, 112, 127, 0, -1, 1], np.int8)
    rng = np.random.default_rng(d)
    codes = np.concatenate([np.repeat(ends, d).reshape(-1, d), rng.choice(ends, (600, d))])
    scale = np.full(len(codes), 0.001, np.float32)
    queries = [np.full(d, 127), np.full(d, -127), np.tile([127, -127], d // 2), np.zeros(d), rng.choice(ends, d)]
    for query in queries:
        for k in (1, 9, 608):
            check_searches(isa, codes, scale, query.astype(np.int8), 0.001, None, k)


def test_halves_at_their_ends(isa):
    codes = np.repeat(np.array([-127, -113, -112, -97, 112, 127, 0, 8], np.int8), 1024).reshape(-1, 1024)
    for got, want in zip(halved(isa, codes), reference.halve(codes), strict=True):
        assert got.tolist() == want.tolist()
    assert halved(isa, codes)[2].tolist() == [208, 240, 240, 240, 240, 240, 240, 16]  # 32 times 6.5, 7.5, and 0.5


def test_scales_that_are_no_numbers_or_none_at_all(isa):
    rng = np.random.default_rng(6)
    codes, scale = random_codes(rng, 700, 32)
    query = rng.integers(-127, 128, 32).astype(np.int8)
    for odd in ([np.nan], [0.0], [np.inf], [np.nan, 0.0, np.inf, 1e-45, 3e38]):
        odd_scale = scale.copy()
        odd_scale[rng.permutation(700)[:400]] = rng.choice(np.array(odd, np.float32), 400)
        for k in (1, 50, 700):
            for query_scale in (0.01, 0.0, 1e-30):
                check_searches(isa, codes, odd_scale, query, query_scale, None, k)


def test_scores_below_the_least_normal_float(isa):
    rng = np.random.default_rng(7)
    codes, _ = random_codes(rng, 700, 32)
    query = rng.integers(-127, 128, 32).astype(np.int8)
    scale = np.full(700, 1e-24, np.float32)
    scores = reference.cosines(codes, scale, query, 1e-20)
    assert 0 < np.abs(scores).max() < np.finfo(np.float32).tiny and len(np.unique(scores)) > 100
    for k in (1, 50, 700):
        check_searches(isa, codes, scale, query, 1e-20, None, k)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_small_table(data):
    """Few distinct codes, so that ties and met bounds abound."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, d = data.draw(st.integers(0, 300)), data.draw(st.sampled_from([32, 64, 160]))
    most = data.draw(st.sampled_from([1, 2, 16, 127]))
    codes = rng.integers(-most, most + 1, (n, d)).astype(np.int8)
    query = rng.integers(-most, most + 1, d).astype(np.int8)
    scale = rng.choice(np.array([0.0, 0.01, 0.011], np.float32), n)
    filter = data.draw(st.sampled_from([None, 0.1, 0.5, 0.95]))
    filter = filter and bitmap(rng.random(n) < filter, data.draw(st.integers(0, 1)))
    k = data.draw(st.integers(1, 320))
    candidates = data.draw(st.integers(1, 320))
    for name in isa_names():
        isa = Kernels(name)
        check_searches(isa, codes, scale, query, 0.01, filter, k)
        high, low, spread = halved(isa, codes)
        want = expected(reference.search_two_stage(codes, scale, query, 0.01, filter, candidates, k))
        table = (signs_of(isa, codes), high, low, scale, spread, query, 0.01, filter)
        assert run(isa.search_two_stage, *table, candidates, k=k) == want


# --- two stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [32, 64, 384, 1024])
@pytest.mark.parametrize("kind", ["random", "ends", "zero", "few"])
def test_two_stage_over_many_rows(isa, d, kind):
    rng = np.random.default_rng(d)
    codes, scale = random_codes(rng, 1777, d)
    query = {"zero": np.zeros(d), "ends": rng.choice([-127, 127], d)}.get(kind, rng.integers(-127, 128, d))
    query = query.astype(np.int8)
    if kind == "few":  # first-stage scores that tie at every threshold
        codes = codes[rng.integers(0, 9, 1777)]
    codes[1700] = np.where(query < 0, -127, 127)  # the greatest first-stage score
    codes[3] = np.where(query < 0, 127, -127)  # the least
    planes, blocks = halved(isa, codes), signs_of(isa, codes)
    for candidates, k in ((1, 1), (20, 50), (60, 20), (400, 50), (1776, 9), (5000, 5000)):
        for filter in (None, bitmap(rng.random(1777) < 0.05, 1), bitmap(rng.random(1777) < 0.9, 1)):
            want = reference.search_two_stage(codes, scale, query, 0.01, filter, candidates, k)
            table = (blocks, planes[0], planes[1], scale, planes[2], query, 0.01, filter, candidates)
            assert run(isa.search_two_stage, *table, k=k) == expected(want)


def test_signs_are_put_row_by_row_and_leave_the_others_alone(isa):
    rng = np.random.default_rng(8)
    codes, _ = random_codes(rng, 100, 96)
    blocks = np.full((4, 4 * 96), 255, np.uint8)
    for row in rng.permutation(100).tolist():
        isa.put_signs(codes[row : row + 1], row, 100, blocks)
    isa.put_signs(codes[30:40], 30, 100, blocks)
    want = reference.sign_blocks(np.concatenate([codes, np.zeros((28, 96), np.int8)]))  # zero has its bit set
    assert blocks.tolist() == want.tolist()


# --- rescoring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", range(1, 14))
def test_rescore_at_every_count(isa, m):
    rng = np.random.default_rng(m)
    vectors = rng.standard_normal((50, 96)).astype(np.float16)
    query = rng.standard_normal(96).astype(np.float32)
    rows = rng.permutation(50)[:m].astype(np.uint32)
    for k in (1, m, m + 1):
        assert run(isa.rescore, vectors, query, rows, k=k) == expected(reference.rescore(vectors, query, rows, k))


def test_rescore_of_all_kinds_of_half_floats(isa):
    """One in 31 of them, so of every exponent, NaN and infinities included, among ordinary ones."""
    vectors = np.ones((65536, 32), np.float16)
    vectors[:, 5] = np.arange(65536, dtype=np.uint16).view(np.float16)
    vectors[:, 6] = -0.0
    query = np.linspace(-1, 1, 32).astype(np.float32)
    for rows in np.array_split(np.arange(0, 65536, 31, dtype=np.uint32), 20):
        with np.errstate(invalid="ignore"):
            want = expected(reference.rescore(vectors, query, rows, 300))
        assert run(isa.rescore, vectors, query, rows, k=300) == want


# --- ranks ----------------------------------------------------------------------------------------------------------


def rank_table(rng: np.random.Generator, n: int):
    codes, scale = random_codes(rng, n, 64)
    return codes, (scale / 20).astype(np.float32), rng.integers(-127, 128, 64).astype(np.int8)


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.15, 0.05), (0, 1, 1, 1), (1, 0, 1e-38, 0), (2, -1, -3, -0.5)])
def test_rank_at_the_edges_of_age(isa, weights):
    """Ages of 0, below 1, 1, just below 126, 126, above, and times after now; 2^-125 times 1e-38 is no normal float."""
    rng = np.random.default_rng(9)
    codes, scale, query = rank_table(rng, 1200)
    high, low, spread = halved(isa, codes)
    now, half_life = 2**32 - 1, 128.0
    ages = np.array([0, 1, 127, 128, 129, 16127, 16128, 16129, 2**31, 2**32 - 1, 20 * 128])
    time = (now - rng.choice(ages, 1200)).astype(np.uint32)
    success, trend = rng.random((2, 1200)).astype(np.float32)
    weights = np.array(weights, np.float32)
    for now in (2**32 - 1, 2**31, 0):
        for least in (-2.0, 0.0, 0.1, 5.0):
            for k in (1, 50, 1200):
                columns = (success, time, trend, weights, (now, half_life, least), None)
                want = expected(reference.rank(codes, scale, query, 0.01, *columns, k))
                assert run(isa.rank, high, low, scale, spread, query, 0.01, *columns, k=k) == want


@pytest.mark.parametrize("share", [0.05, 0.4, 0.97])
def test_rank_with_a_filter_over_many_rows(isa, share):
    rng = np.random.default_rng(10)
    codes, scale, query = rank_table(rng, 3001)
    high, low, spread = halved(isa, codes)
    success, trend = rng.choice(np.array([0, 0.25], np.float32), (2, 3001))
    time = rng.integers(0, 1000, 3001).astype(np.uint32)
    filter = bitmap(rng.random(3001) < share, 1)
    weights = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    for k in (1, 50, 700):
        for limits in ((900, 33.3, -2.0), (900, 1e-30, 0.05), (900, 1e30, 0.3)):
            columns = (success, time, trend, weights, limits, filter)
            with np.errstate(over="ignore", invalid="ignore"):  # ages past 126, which are not used
                want = expected(reference.rank(codes, scale, query, 0.01, *columns, k))
            assert run(isa.rank, high, low, scale, spread, query, 0.01, *columns, k=k) == want


def test_a_row_whose_cosine_is_the_least_allowed_is_returned(isa):
    rng = np.random.default_rng(11)
    codes, scale, query = rank_table(rng, 900)
    high, low, spread = halved(isa, codes)
    cosines = reference.cosines(codes, scale, query, 0.01)
    zeros, time = np.zeros(900, np.float32), np.zeros(900, np.uint32)
    for row in (0, 450, 899):
        limits = (0, 1.0, float(cosines[row]))
        columns = (zeros, time, zeros, COSINE_ALONE, limits, None)
        rows, _ = run(isa.rank, high, low, scale, spread, query, 0.01, *columns, k=900)
        assert rows[-1] == row and len(rows) == (cosines >= cosines[row]).sum()


# --- memory ---------------------------------------------------------------------------------------------------------


def at_the_end_of_a_mapping(array: np.ndarray, skip: int = 0) -> np.ndarray:
    """A copy that ends skip bytes before a page that no one may read."""
    page = mmap.PAGESIZE
    length = -(-(array.nbytes + skip) // page) * page
    memory = mmap.mmap(-1, length + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(start + length), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    offset = length - array.nbytes - skip
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[:] = array
    return copy


@pytest.mark.parametrize("d", [32, 64, 96, 384, 416])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 47, 1100])
@pytest.mark.parametrize("skip", [0, 1])
def test_nothing_is_read_past_an_array_wherever_it_starts(isa, d, n, skip):
    """Every input ends where reading on would end the process; byte arrays also start on odd addresses."""
    rng = np.random.default_rng(d * n)
    codes, scale = random_codes(rng, n, d)
    query = at_the_end_of_a_mapping(rng.integers(-127, 128, d).astype(np.int8), skip)
    filter = at_the_end_of_a_mapping(bitmap(rng.random(n) < 0.5, 1), skip)
    planes = [at_the_end_of_a_mapping(plane, skip) for plane in halved(isa, codes)]
    blocks = at_the_end_of_a_mapping(signs_of(isa, codes), skip)
    codes, scale = at_the_end_of_a_mapping(codes, skip), at_the_end_of_a_mapping(scale)
    table = (planes[0], planes[1], scale, planes[2])
    success, trend = (at_the_end_of_a_mapping(rng.random(n).astype(np.float32)) for _ in range(2))
    time = at_the_end_of_a_mapping(rng.integers(0, 99, n).astype(np.uint32))
    for mask in (None, filter):
        want = expected(reference.search(codes, scale, query, 0.01, mask, 20))
        assert run_search(isa, codes, scale, query, 0.01, mask, 20) == want
        assert run(isa.search_halves, *table, query, 0.01, mask, k=20) == want
        want = expected(reference.search_two_stage(codes, scale, query, 0.01, mask, 30, 20))
        assert run(isa.search_two_stage, blocks, *table, query, 0.01, mask, 30, k=20) == want
        columns = (success, time, trend, np.array([0.5, 0.2, 0.2, 0.1], np.float32), (50, 9.0, -2.0), mask)
        want = expected(reference.rank(codes, scale, query, 0.01, *columns, 20))
        assert run(isa.rank, *table, query, 0.01, *columns, k=20) == want
    vectors = at_the_end_of_a_mapping(rng.standard_normal((n, d)).astype(np.float16))
    target, rows = rng.standard_normal(d).astype(np.float32), np.arange(n, dtype=np.uint32)
    want = expected(reference.rescore(vectors, target, rows, 20))
    assert run(isa.rescore, vectors, target, rows, k=20) == want


# --- agreement at the size in use -----------------------------------------------------------------------------------


def test_instruction_sets_agree_on_nine_thousand_rows():
    """Rows in clusters, as embeddings are: thresholds rise, most bounds fall short, and lists are passed on half full."""
    rng = np.random.default_rng(12)
    centres = rng.standard_normal((40, 384))
    vectors = (centres[rng.integers(0, 40, 9001)] + rng.standard_normal((9001, 384))).astype(np.float32)
    codes, scale = reference.quantise(vectors)
    queries, query_scale = codes[:11].copy(), scale[:11].copy()
    success, trend = rng.random((2, 9001)).astype(np.float32)
    time = rng.integers(0, 10**6, 9001).astype(np.uint32)
    weights, limits = np.array([0.5, 0.2, 0.2, 0.1], np.float32), (10**6, 2e5, 0.0)
    for filter in (None, bitmap(rng.random(9001) < 0.1), bitmap(rng.random(9001) < 0.97)):
        results = []
        for isa in map(Kernels, isa_names()):
            high, low, spread = halved(isa, codes)
            blocks = signs_of(isa, codes)
            table = (high, low, scale, spread)
            found = [run_batch(isa, table, queries, query_scale, filter, 50)]
            for query, factor in zip(queries, query_scale, strict=True):
                found.append(run(isa.search_halves, *table, query, factor, filter, k=50))
                found.append(run(isa.search_two_stage, blocks, *table, query, factor, filter, 400, k=50))
                columns = (success, time, trend, weights, limits, filter)
                found.append(run(isa.rank, *table, query, factor, *columns, k=50))
            results.append(found)
        assert all(found == results[0] for found in results)
        want = expected(reference.search(codes, scale, queries[5], query_scale[5], filter, 50))
        assert results[0][1 + 3 * 5] == want == results[0][0][5]
