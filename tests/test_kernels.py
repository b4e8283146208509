"""Every instruction set's kernels against the numpy specification, bit for bit."""

from __future__ import annotations

import ctypes
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import _simd
from omega_edge._simd import Kernels, _kernels, isa_names
from tests import reference

# 4: the rows that AVX2 takes at a time; 8: rows of a filter's byte, floats of a register; 256: rows listed at a time.
ROW_COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 263, 265, 300)
DIMENSIONS = (32, 64, 96, 384, 1024)


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def bits(array) -> list[int]:
    """The array's floats as integers: equality that tells -0 from 0 and knows no tolerance."""
    return np.ascontiguousarray(array, np.float32).view(np.uint32).tolist()


def random_codes(rng: np.random.Generator, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(-127, 128, (n, d)).astype(np.int8), rng.uniform(0.001, 0.2, n).astype(np.float32)


def bitmap(mask: np.ndarray, spare_bits: int = 0) -> np.ndarray:
    """The mask as a filter; the bits past its end set or clear."""
    padded = np.concatenate([mask, np.full(-len(mask) % 8, bool(spare_bits))])
    return np.packbits(padded.astype(np.uint8), bitorder="little")


def run_search(isa: Kernels, codes, scale, query, query_scale, filter, k) -> tuple[list[int], list[int]]:
    rows, scores = np.full(k, 7777777, np.uint32), np.full(k, np.nan, np.float32)
    found = isa.search(codes, scale, query, query_scale, filter, k, rows, scores)
    assert (rows[found:] == 7777777).all() and np.isnan(scores[found:]).all()  # nothing is written past the found ones
    return rows[:found].tolist(), bits(scores[:found])


def run_fuse_top_k(isa: Kernels, features, weights, filter, k) -> tuple[list[int], list[int]]:
    rows, scores = np.zeros(k, np.uint32), np.zeros(k, np.float32)
    found = isa.fuse_top_k(features, weights, filter, k, rows, scores)
    return rows[:found].tolist(), bits(scores[:found])


def expected(result: tuple[np.ndarray, np.ndarray]) -> tuple[list[int], list[int]]:
    return result[0].tolist(), bits(result[1])


# --- quantise -------------------------------------------------------------------------------------------------------


def run_quantise(isa: Kernels, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = np.zeros(vectors.shape, np.int8), np.zeros(len(vectors), np.float32)
    isa.quantise(vectors, codes, scale)
    return codes, scale


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-20, 1.0, 1e20, 3e38])
def test_quantise_equals_the_reference(isa, d, magnitude):
    vectors = (np.random.default_rng(d).uniform(-1, 1, (9, d)) * magnitude).astype(np.float32)
    vectors[:, 0] = magnitude  # so that no row is zero even where the magnitude is the least subnormal
    codes, scale = run_quantise(isa, vectors)
    codes_expected, scale_expected = reference.quantise(vectors)
    assert codes.tolist() == codes_expected.tolist()
    assert bits(scale) == bits(scale_expected)


def test_quantise_rounds_half_to_even(isa):
    vector = np.zeros((1, 32), np.float32)
    vector[0, :10] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5, 126.5, -126.5]
    codes, scale = run_quantise(isa, vector)
    assert codes[0, :10].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, 126, -126]
    squares = 127**2 + 2 * 2**2 + 2 * 2**2 + 3 * 126**2
    assert scale[0] == np.float32(1 / np.sqrt(squares))


def test_quantised_vectors_are_unit_and_keep_their_direction(isa):
    vectors = np.random.default_rng(1).standard_normal((50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes, scale = run_quantise(isa, vectors)
    restored = codes * scale[:, None]
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1, atol=1e-6)
    # Rounding errs by 1/sqrt(12) of a step of max|x|/127; here max|x| is about 3/sqrt(384): 1 - cosine is near 1e-5.
    assert (restored * vectors).sum(axis=1).min() > 1 - 1e-4


@pytest.mark.parametrize("column", [0, 7, 8, 31])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantise_refuses_what_is_not_finite_and_names_the_row(isa, column, value):
    vectors = np.ones((3, 32), np.float32)
    vectors[2, column] = value
    with pytest.raises(ValueError, match="row 2 is zero or has a NaN"):
        run_quantise(isa, vectors)


def test_quantise_refuses_a_zero_vector_after_writing_the_rows_before_it(isa):
    vectors = np.ones((3, 32), np.float32)
    vectors[1] = [0.0, -0.0] * 16
    codes, scale = np.zeros((3, 32), np.int8), np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="row 1 is zero"):
        isa.quantise(vectors, codes, scale)
    assert (codes[0] == 127).all() and scale[0] > 0
    assert not codes[1:].any() and not scale[1:].any()


# --- search ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ROW_COUNTS)
def test_search_equals_the_reference_at_every_count_and_k(isa, n):
    rng = np.random.default_rng(n)
    codes, scale = random_codes(rng, n, 96)
    query, query_scale = codes[0] if n else np.ones(96, np.int8), 0.0123
    for filter in (None, bitmap(np.ones(n, bool)), bitmap(rng.random(n) < 0.3, 1), bitmap(np.zeros(n, bool), 1)):
        for k in {1, 2, max(n - 1, 1), max(n, 1), n + 5, 50}:
            result = run_search(isa, codes, scale, query, query_scale, filter, k)
            assert result == expected(reference.search(codes, scale, query, query_scale, filter, k))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 0.99])
def test_a_filter_that_lists_rows_many_times_over(isa, share):
    """Passing rows are listed 256 at a time from bytes of 8: what is left over of a byte goes into the next list."""
    rng = np.random.default_rng(12)
    codes, scale = random_codes(rng, 2999, 32)
    filter = bitmap(rng.random(2999) < share, 1)
    for k in (20, 3000):
        result = run_search(isa, codes, scale, codes[0], 0.1, filter, k)
        assert result == expected(reference.search(codes, scale, codes[0], 0.1, filter, k))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 257])
def test_search_finds_the_only_row_allowed(isa, n):
    codes, scale = random_codes(np.random.default_rng(2), n, 32)
    for row in range(n):
        rows, _ = run_search(isa, codes, scale, codes[0], 0.1, bitmap(np.arange(n) == row), 3)
        assert rows == [row]


@pytest.mark.parametrize("d", DIMENSIONS)
def test_search_equals_the_reference_at_every_dimension(isa, d):
    codes, scale = random_codes(np.random.default_rng(d), 37, d)
    result = run_search(isa, codes, scale, codes[3], float(scale[3]), None, 10)
    assert result == expected(reference.search(codes, scale, codes[3], scale[3], None, 10))


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(("code", "query"), [(127, 127), (-127, 127), (127, -127), (-127, -127)])
def test_extreme_codes_do_not_overflow(isa, d, code, query):
    codes, scale = np.full((5, d), code, np.int8), np.ones(5, np.float32)
    rows, scores = run_search(isa, codes, scale, np.full(d, query, np.int8), 1.0, None, 5)
    assert rows == [0, 1, 2, 3, 4]
    assert scores == bits(np.full(5, code * query * d))  # below 2^24: exact in float32


def test_search_breaks_ties_by_row(isa):
    rng = np.random.default_rng(3)
    distinct, _ = random_codes(rng, 3, 32)
    codes, scale = distinct[rng.integers(0, 3, 2000)], np.full(2000, 0.01, np.float32)
    for k in (1, 50, 700, 2000):
        rows, scores = run_search(isa, codes, scale, distinct[0], 0.01, None, k)
        assert (rows, scores) == expected(reference.search(codes, scale, distinct[0], 0.01, None, k))
    rows, _ = run_search(isa, np.zeros((2000, 32), np.int8), scale, distinct[0], 0.01, None, 60)
    assert rows == list(range(60))


def test_rows_with_a_zero_product_score_positive_zero(isa):
    codes, scale = np.zeros((9, 32), np.int8), np.full(9, -1, np.float32)
    _, scores = run_search(isa, codes, scale, np.ones(32, np.int8), 1.0, None, 9)
    assert scores == [0] * 9  # a bit pattern of 0 is +0


def test_rows_whose_score_is_not_a_number_are_not_returned(isa):
    codes, scale = np.ones((20, 32), np.int8), np.ones(20, np.float32)
    scale[[2, 9]], scale[5], scale[11] = np.nan, -np.inf, np.inf
    rows, _ = run_search(isa, codes, scale, np.ones(32, np.int8), 1.0, None, 20)
    assert rows == [11] + [row for row in range(20) if row not in (2, 5, 9, 11)]


def test_search_is_the_same_on_rows_at_any_address(isa):
    codes, scale = random_codes(np.random.default_rng(4), 33, 64)
    want = run_search(isa, codes, scale, codes[1], 0.1, None, 9)
    for shift in (1, 3, 16, 31):
        memory = np.empty(codes.size + 64, np.int8)
        shifted = memory[shift : shift + codes.size].reshape(codes.shape)
        shifted[:] = codes
        assert run_search(isa, shifted, scale, shifted[1], 0.1, None, 9) == want


# --- cosines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 19, 20, 21, 40])
@pytest.mark.parametrize("q", [0, 1, 2, 3, 7, 8, 9, 17])  # 8: the queries that one pass takes
def test_cosines_equal_the_reference(isa, n, q):
    rng = np.random.default_rng(n * 100 + q)
    codes, scale = random_codes(rng, n, 64)
    queries, query_scale = random_codes(rng, q, 64)
    out = np.full((q, n), np.nan, np.float32)
    isa.cosines(codes, scale, queries, query_scale, out)
    for j in range(q):
        assert bits(out[j]) == bits(reference.cosines(codes, scale, queries[j], query_scale[j]))


# --- rows -----------------------------------------------------------------------------------------------------------


def random_table(rng: np.random.Generator, lengths: list[int], targets: int) -> tuple[np.ndarray, ...]:
    """offsets, columns (ascending in a row), values, scale."""
    columns = [np.sort(rng.choice(targets, length, replace=False)) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    values = rng.integers(-127, 128, sum(lengths)).astype(np.int8)
    return offsets, np.concatenate(columns).astype(np.uint32), values, rng.random(len(lengths)).astype(np.float32)


ROW_LENGTHS = [0, 1, 2, 3, 7, 8, 9, 64, 100, 0]


def test_row_scatter_add_equals_the_reference(isa):
    rng = np.random.default_rng(5)
    table = random_table(rng, ROW_LENGTHS, 120)
    rows = rng.integers(0, len(ROW_LENGTHS), 200).astype(np.uint32)
    weights = rng.standard_normal(200).astype(np.float32)
    out = rng.standard_normal(120).astype(np.float32)
    want = reference.row_scatter_add(*table, rows, weights, out)
    isa.row_scatter_add(*table, rows, weights, out)
    assert bits(out) == bits(want)


def test_row_scatter_add_adds_in_event_order(isa):
    offsets, columns, values = np.array([0, 1], np.uint32), np.zeros(1, np.uint32), np.ones(1, np.int8)
    out, rows = np.zeros(1, np.float32), np.zeros(3, np.uint32)
    weights = np.array([1, 2**24, -(2**24)], np.float32)  # 1 + 2^24 rounds to 2^24: only this order gives 0
    isa.row_scatter_add(offsets, columns, values, np.ones(1, np.float32), rows, weights, out)
    assert out.tolist() == [0.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("row", r"rows\[1\]: expected a row of the table"),
        ("falling", r"offsets of rows\[1\]"),
        ("past the end", r"offsets of rows\[1\]"),
        ("column", r"columns of rows\[1\]"),
    ],
)
def test_damaged_rows_are_refused(isa, fault, message):
    offsets = np.array([0, 2, 4], np.uint32)
    columns, values = np.array([0, 1, 0, 1], np.uint32), np.ones(4, np.int8)
    rows, out = np.array([0, 1], np.uint32), np.zeros(2, np.float32)
    if fault == "row":
        rows[1] = 2
    elif fault == "falling":
        offsets[2] = 1
    elif fault == "past the end":
        offsets[2] = 5
    else:
        columns[3] = 2
    scale = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=message):
        isa.row_scatter_add(offsets, columns, values, scale, rows, np.ones(2, np.float32), out)
    assert out[0] >= 1  # the event before the fault was added, as documented
    if fault != "column":
        with pytest.raises(ValueError, match=message):
            isa.row_lookup(offsets, columns, values, scale, rows, rows, np.zeros((2, 2), np.float32))


def test_row_lookup_equals_the_reference(isa):
    rng = np.random.default_rng(6)
    table = random_table(rng, ROW_LENGTHS, 110)
    rows = np.arange(len(ROW_LENGTHS), dtype=np.uint32)
    targets = np.arange(112, dtype=np.uint32)  # every column, and two past the last
    out = np.full((len(rows), len(targets)), np.nan, np.float32)
    isa.row_lookup(*table, rows, targets, out)
    want = reference.row_lookup(*table, rows, targets)
    assert bits(out) == bits(want)
    assert np.count_nonzero(out[7]) >= 60  # the rows do hold entries


# --- genre means ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("genres", [0, 1, 7, 8, 9, 28, 63, 64])
def test_genre_means_equal_the_reference(isa, genres):
    rng = np.random.default_rng(genres)
    per_genre = rng.standard_normal(genres).astype(np.float32)
    masks = rng.integers(0, 1 << genres, 100, np.uint64, endpoint=False) if genres < 64 else rng.bytes(800)
    masks = np.frombuffer(masks, np.uint64).copy() if genres == 64 else masks
    masks[:2] = [0, (1 << genres) - 1]
    out = np.full(100, np.nan, np.float32)
    isa.genre_means(masks, per_genre, out)
    assert bits(out) == bits(reference.genre_means(masks, per_genre))
    assert out[0] == 0


@pytest.mark.parametrize("genres", [0, 1, 8, 63])
def test_a_genre_past_the_last_is_refused(isa, genres):
    masks = np.array([0, 1 << genres], np.uint64)
    with pytest.raises(ValueError, match=r"masks\[1\]: expected only bits below"):
        isa.genre_means(masks, np.ones(genres, np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize(("parts", "left"), [(0, 0), (1, 0), (1, 1), (2, 2), (3, 2), (64, 64), (65, 64)])
@pytest.mark.parametrize("d", [32, 384])
def test_left_out_sums_equal_the_reference(isa, parts, left, d):
    rng = np.random.default_rng(parts * 100 + left)
    codes = rng.integers(-127, 128, (parts, d)).astype(np.int8)
    scale, weights = rng.random(parts, np.float32), rng.standard_normal(parts).astype(np.float32)
    out = np.full((left, d), np.nan, np.float32)
    isa.left_out_sums(codes, scale, weights, 1.25, out)
    assert bits(out) == bits(reference.left_out_sums(codes, scale, weights, 1.25, left))


# --- fusion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", ROW_COUNTS)
@pytest.mark.parametrize("f", [0, 1, 2, 8])
def test_fuse_and_fuse_top_k_equal_the_reference(isa, n, f):
    rng = np.random.default_rng(n * 10 + f)
    features, weights = rng.standard_normal((f, n)).astype(np.float32), rng.standard_normal(f).astype(np.float32)
    out = np.full(n, np.nan, np.float32)
    isa.fuse(features, weights, out)
    assert bits(out) == bits(reference.fuse(features, weights))
    for filter in (None, bitmap(rng.random(n) < 0.4, 1), bitmap(np.zeros(n, bool), 1)):
        for k in {1, max(n, 1), n + 3, 20}:
            result = run_fuse_top_k(isa, features, weights, filter, k)
            assert result == expected(reference.fuse_top_k(features, weights, filter, k))


def test_each_operation_rounds_by_itself(isa):
    # 1 - (1 + 2^-13)(1 - 2^-13) is 2^-26, but the product rounds to 1 first. A fused multiply-add would keep 2^-26.
    features = np.array([[1.0] * 9, [1 + 2**-13] * 9], np.float32)
    out = np.ones(9, np.float32)
    isa.fuse(features, np.array([1, -(1 - 2**-13)], np.float32), out)
    assert out.tolist() == [0.0] * 9


SCORE_ORDERS = {
    "ascending": lambda n: np.arange(n),  # every row beats all before it: the buffer fills as fast as it can
    "descending": lambda n: -np.arange(n),
    "equal": lambda n: np.zeros(n),
    "sawtooth": lambda n: np.arange(n) % 17,
    "organ pipe": lambda n: np.minimum(np.arange(n), n - np.arange(n)),
    "random": lambda n: np.random.default_rng(7).standard_normal(n),
}


@pytest.mark.parametrize("order", SCORE_ORDERS)
@pytest.mark.parametrize("k", [1, 2, 50, 97, 300, 3000])  # 96: the longest list sorted by insertion
def test_top_k_in_every_order_of_scores(isa, order, k):
    features = SCORE_ORDERS[order](3000).astype(np.float32)[None]
    weights = np.ones(1, np.float32)
    result = run_fuse_top_k(isa, features, weights, None, k)
    assert result == expected(reference.fuse_top_k(features, weights, None, k))


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1e-45, -1e-45, 3e38]) | st.floats(width=32), max_size=200),
    k=st.integers(1, 210),
    data=st.data(),
)
def test_top_k_of_any_scores(scores, k, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    features, filter = np.array([scores], np.float32).reshape(1, -1), bitmap(np.array(mask, bool), 1)
    weights = np.ones(1, np.float32)
    want = expected(reference.fuse_top_k(features, weights, filter, k))
    assert all(not np.isnan(score) for score in np.array(want[1], np.uint32).view(np.float32))
    for name in isa_names():
        assert run_fuse_top_k(Kernels(name), features, weights, filter, k) == want


# --- diversity ------------------------------------------------------------------------------------------------------


def run_diversify(isa: Kernels, codes, scale, rows, values, trade_off, k) -> list[int]:
    order = np.full(k, 7777777, np.uint32)
    found = isa.diversify(codes, scale, rows, values, trade_off, order)
    assert (order[found:] == 7777777).all()
    return order[:found].tolist()


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 5, 9, 40])
@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 1.0])
def test_diversify_equals_the_reference(isa, m, trade_off):
    rng = np.random.default_rng(m)
    centres = rng.integers(-127, 128, (4, 64))
    codes = np.clip(centres[rng.integers(0, 4, 60)] + rng.integers(-40, 41, (60, 64)), -127, 127).astype(np.int8)
    scale = (1 / np.sqrt((codes.astype(np.int64) ** 2).sum(axis=1))).astype(np.float32)
    rows, values = rng.integers(0, 60, m).astype(np.uint32), rng.random(m).astype(np.float32)
    for k in (1, 3, 20, 60):
        want = reference.diversify(codes, scale, rows, values, trade_off, k)
        assert run_diversify(isa, codes, scale, rows, values, trade_off, k) == want


def test_diversify_passes_over_the_copy_of_what_it_picked(isa):
    codes = np.zeros((3, 32), np.int8)
    codes[:2, 0], codes[2, 1] = 127, 127  # rows 0 and 1 are the same title twice, row 2 has nothing in common
    scale, values = np.full(3, 1 / 127, np.float32), np.array([1.0, 0.9, 0.5], np.float32)
    rows = np.arange(3, dtype=np.uint32)
    assert run_diversify(isa, codes, scale, rows, values, 1.0, 3) == [0, 1, 2]
    assert run_diversify(isa, codes, scale, rows, values, 0.5, 3) == [0, 2, 1]  # .5 * .9 - .5 < .5 * .5 - 0


def test_diversify_refuses_a_row_outside_the_table(isa):
    codes, scale = random_codes(np.random.default_rng(8), 3, 32)
    with pytest.raises(ValueError, match=r"rows\[1\]"):
        run_diversify(isa, codes, scale, np.array([0, 3], np.uint32), np.ones(2, np.float32), 0.5, 2)


# --- the core as a whole --------------------------------------------------------------------------------------------


def test_instruction_sets_agree_on_a_catalogue_of_real_size():
    rng = np.random.default_rng(9)
    vectors = rng.standard_normal((9001, 384)).astype(np.float32)
    results = []
    for name in isa_names():
        codes, scale = run_quantise(Kernels(name), vectors)
        filter = bitmap(rng.random(9001) < 2)
        found = run_search(Kernels(name), codes, scale, codes[5], float(scale[5]), filter, 50)
        results.append((codes.tobytes(), scale.tobytes(), found))
    assert all(result == results[0] for result in results)


def test_the_default_is_the_best_instruction_set_and_scalar_is_always_there():
    assert _simd.kernels.isa == Kernels().isa == isa_names()[0]
    assert isa_names()[-1] == "scalar"
    assert [Kernels(name).isa for name in isa_names()] == list(isa_names())


@pytest.mark.parametrize("name", ["", "AVX2", "sse9", "scalar "])
def test_an_unknown_instruction_set_is_refused(name):
    with pytest.raises(ValueError, match="isa: expected one of .*scalar"):
        Kernels(name)


def test_the_extension_is_abi3_and_exports_nothing_but_its_entry():
    assert _kernels.__file__.endswith(".abi3.so")
    library = ctypes.CDLL(_kernels.__file__)
    assert library.PyInit__kernels
    for symbol in ("omega_kernels_at", "omega_kernels_scalar", "omega_kernels_avx2", "omega_scalar_diversify"):
        with pytest.raises(AttributeError):
            getattr(library, symbol)


def test_threads_share_one_kernels_object(isa):
    codes, scale = random_codes(np.random.default_rng(10), 500, 384)
    want = [run_search(isa, codes, scale, codes[i], 0.1, None, 20) for i in range(8)]
    got: list = [None] * 8

    def work(i: int) -> None:
        got[i] = [run_search(isa, codes, scale, codes[i], 0.1, None, 20) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == want[i] for i in range(8) for result in got[i])


def test_the_gil_is_released_while_a_kernel_runs(isa):
    codes, scale = random_codes(np.random.default_rng(11), 4000, 384)
    out = np.empty((512, 4000), np.float32)
    started, finished = threading.Event(), []

    def work() -> None:
        started.set()
        isa.cosines(codes, scale, codes[:512], scale[:512], out)
        finished.append(True)

    def seen_running() -> bool:
        started.clear()
        finished.clear()
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        running = not finished
        thread.join()
        return running

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # no thread is asked to yield: only a release lets this one run before the kernel is done
    try:
        assert any(seen_running() for _ in range(20))
    finally:
        sys.setswitchinterval(interval)
