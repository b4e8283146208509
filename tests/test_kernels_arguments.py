"""What the kernels refuse: every argument of every method, wrong in every way."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names

N, D, K = 16, 32, 4
HALVES = ("high", "low", "scale", "spread")
METHODS = {
    "quantise": ("vectors", "codes_out", "scale_out"),
    "search": ("codes", "scale", "query", "filter", "rows_out", "scores_out"),
    "cosines": ("codes", "scale", "queries", "query_scale", "out"),
    "row_scatter_add": ("offsets", "columns", "values", "row_scale", "rows", "weights", "out"),
    "row_lookup": ("offsets", "columns", "values", "row_scale", "rows", "targets", "out"),
    "genre_means": ("masks", "per_genre", "out"),
    "left_out_sums": ("codes", "scale", "weights", "out"),
    "fuse": ("features", "weights", "out"),
    "fuse_top_k": ("features", "weights", "filter", "rows_out", "scores_out"),
    "diversify": ("codes", "scale", "rows", "values", "order_out"),
    "count_greater": ("values", "of_count", "out"),
    "sum_trees": ("roots", "feature", "threshold", "children", "leaves", "values", "out"),
    "halve": ("codes", "high_out", "low_out", "spread_out"),
    "join": (*HALVES, "rows", "codes_out"),
    "search_halves": (*HALVES, "query", "filter", "rows_out", "scores_out"),
    "search_batch": (*HALVES, "queries", "query_scale", "filter", "found_out", "rows_out", "scores_out"),
    "put_signs": ("codes", "blocks"),
    "search_two_stage": ("blocks", *HALVES, "query", "filter", "rows_out", "scores_out"),
    "rescore": ("vectors", "query", "rows", "rows_out", "scores_out"),
    "rank": (*HALVES, "query", "success", "time", "trend", "weights", "filter", "rows_out", "scores_out"),
}
ARRAYS = [(method, name) for method, names in METHODS.items() for name in names]
TOP_K = ("search", "fuse_top_k", "search_halves", "search_batch", "search_two_stage", "rescore", "rank")
OUTPUTS = [(method, name) for method, name in ARRAYS if name == "out" or name.endswith("_out")]
OUTPUTS.append(("put_signs", "blocks"))
# Arrays whose length no other argument fixes.
FREE_LENGTHS = {("diversify", "order_out"), ("put_signs", "codes"), ("rescore", "rows"), ("sum_trees", "roots")}
FREE_LENGTHS |= {("left_out_sums", name) for name in METHODS["left_out_sums"]}


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def valid(method: str) -> dict:
    """Arguments that the method accepts."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (N, D)).astype(np.int8)
    scale = np.full(N, 0.01, np.float32)
    table = {
        "offsets": np.arange(0, 2 * N + 1, 2, dtype=np.uint32),
        "columns": np.tile(np.array([0, N - 1], np.uint32), N),
        "values": np.ones(2 * N, np.int8),
        "row_scale": scale,
        "rows": np.array([0, N - 1], np.uint32),
    }
    best = {"filter": np.full(2, 255, np.uint8), "k": K}
    best |= {"rows_out": np.zeros(K, np.uint32), "scores_out": np.zeros(K, np.float32)}
    fusion = {"features": np.ones((3, N), np.float32), "weights": np.ones(3, np.float32)}
    out = np.zeros(N, np.float32)
    arguments = {
        "quantise": {"vectors": np.ones((N, D), np.float32), "codes_out": codes, "scale_out": scale},
        "search": {"codes": codes, "scale": scale, "query": np.ones(D, np.int8), "query_scale": 0.1} | best,
        "cosines": {"codes": codes, "scale": scale, "queries": np.ones((2, D), np.int8)}
        | {"query_scale": np.ones(2, np.float32), "out": np.zeros((2, N), np.float32)},
        "row_scatter_add": table | {"weights": np.ones(2, np.float32), "out": out},
        "row_lookup": table | {"targets": np.zeros(3, np.uint32), "out": np.zeros((2, 3), np.float32)},
        "genre_means": {"masks": np.full(N, 0b111, np.uint64), "per_genre": np.ones(3, np.float32), "out": out},
        "left_out_sums": {"codes": codes, "scale": scale, "weights": np.ones(N, np.float32), "growth": 1.5}
        | {"out": np.zeros((N - 1, D), np.float32)},
        "fuse": fusion | {"out": out},
        "fuse_top_k": fusion | best,
        "diversify": {"codes": codes, "scale": scale, "rows": np.arange(K, dtype=np.uint32)}
        | {"values": np.ones(K, np.float32), "trade_off": 0.5, "order_out": np.zeros(K, np.uint32)},
    }
    trees = {"roots": np.array([0, 1], np.uint32), "feature": np.array([0, 2], np.uint8)}
    trees |= {"threshold": np.zeros(2, np.float32), "children": np.array([[1, ~0], [~1, ~2]], np.int32)}
    trees |= {"leaves": np.ones(3, np.float32), "values": np.ones((3, K), np.float32), "out": np.zeros(K, np.float32)}
    lists = {"values": np.ones((3, K), np.float32), "out": np.zeros((3, K), np.float32)}
    arguments |= {"sum_trees": trees, "count_greater": lists | {"of_count": np.arange(K, dtype=np.float32)}}
    halves = {"high": np.zeros((N, D // 2), np.uint8), "low": np.ones((N, D // 2), np.uint8), "scale": scale}
    halves |= {"spread": np.full(N, 40, np.uint8)}
    query = {"query": np.ones(D, np.int8), "query_scale": 0.1}
    blocks = np.zeros((1, 4 * D), np.uint8)
    half_floats = np.ones((N, D), np.float16)
    batch = {"found_out": np.zeros(2, np.uintp), "rows_out": np.zeros((2, K), np.uint32)}
    batch |= {"scores_out": np.zeros((2, K), np.float32), "query_scale": np.ones(2, np.float32)}
    arguments |= {
        "halve": {"codes": codes, "high_out": np.zeros((N, D // 2), np.uint8), "spread_out": np.zeros(N, np.uint8)}
        | {"low_out": np.zeros((N, D // 2), np.uint8)},
        "join": halves | {"rows": table["rows"], "codes_out": np.zeros((2, D), np.int8)},
        "search_halves": halves | query | best,
        "search_batch": halves | best | {"queries": np.ones((2, D), np.int8)} | batch,
        "put_signs": {"codes": codes, "first": 0, "rows": N, "blocks": blocks},
        "search_two_stage": {"blocks": blocks, "candidates": 5} | halves | query | best,
        "rescore": {"vectors": half_floats, "query": np.ones(D, np.float32), "rows": table["rows"]}
        | {name: best[name] for name in ("k", "rows_out", "scores_out")},
        "rank": halves | query | {"success": scale, "time": np.zeros(N, np.uint32), "trend": scale}
        | {"weights": np.ones(4, np.float32), "limits": (7, 3.5, 0.1)} | best,
    }
    return arguments[method]


WIDE_ARRAYS = [(method, name) for method, name in ARRAYS if valid(method)[name].itemsize > 1]


def call(isa: Kernels, method: str, **changes):
    return getattr(isa, method)(**valid(method) | changes)


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + array.itemsize, np.uint8)
    return memory[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize("method", METHODS)
def test_valid_arguments_are_accepted(isa, method):
    call(isa, method)


@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_a_wrong_dtype_is_a_type_error_that_names_the_argument(isa, method, name):
    array = valid(method)[name]
    kind = "uintp" if name == "found_out" else array.dtype.name
    for dtype in {"f8", "i8", "u1", "i1", "f4", "u4", "f2", "u2"} - {array.dtype.str[1:]}:
        with pytest.raises(TypeError, match=rf"^{name}: expected {kind} in native byte order"):
            call(isa, method, **{name: array.astype(dtype)})


@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_what_is_no_array_is_a_type_error(isa, method, name):
    for value in ([1.0, 2.0], 5, "text", object()) + (() if name == "filter" else (None,)):
        with pytest.raises(TypeError, match=f"^{name}: expected an array of"):
            call(isa, method, **{name: value})


@pytest.mark.parametrize(("method", "name"), WIDE_ARRAYS)
def test_foreign_byte_order_and_misaligned_memory_are_type_errors(isa, method, name):
    array = valid(method)[name]
    for wrong in (array.astype(array.dtype.newbyteorder()), misaligned(array)):
        with pytest.raises(TypeError, match=f"^{name}: expected .* in native byte order and aligned"):
            call(isa, method, **{name: wrong})


@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_a_wrong_shape_is_a_value_error(isa, method, name):
    array = valid(method)[name]
    with pytest.raises(ValueError, match=f"^{name}: expected {array.ndim} dimension"):
        call(isa, method, **{name: array[None]})
    with pytest.raises(ValueError, match=f"^{name}: expected {array.ndim} dimension"):
        call(isa, method, **{name: array.reshape(()) if array.size == 1 else np.zeros((), array.dtype)})
    if (method, name) not in FREE_LENGTHS:
        with pytest.raises(ValueError, match="expected"):
            call(isa, method, **{name: np.ascontiguousarray(array[:-1])})


@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_strided_arrays_are_value_errors(isa, method, name):
    array = valid(method)[name]
    for strided in (np.repeat(array, 2, axis=-1)[..., ::2], *([array[::-1]] if len(array) > 1 else [])):
        with pytest.raises(ValueError, match=f"^{name}: expected a C-contiguous array"):
            call(isa, method, **{name: strided})


@pytest.mark.parametrize(("method", "name"), OUTPUTS)
def test_a_read_only_output_is_a_value_error(isa, method, name):
    array = valid(method)[name]
    array.flags.writeable = False
    with pytest.raises(ValueError, match=f"^{name}: expected a writable array"):
        call(isa, method, **{name: array})


@pytest.mark.parametrize(("method", "name"), sorted(set(ARRAYS) - set(OUTPUTS)))
def test_read_only_inputs_are_accepted(isa, method, name):
    array = valid(method)[name]
    array.flags.writeable = False
    call(isa, method, **{name: array})


def test_an_output_inside_an_input_is_a_value_error(isa):
    features = np.ones((3, N), np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        call(isa, "fuse", features=features, out=features[1])
    both = np.zeros(2 * K, np.uint32)
    with pytest.raises(ValueError, match="shares memory"):
        call(isa, "search", rows_out=both[:K], scores_out=both[K - 1 : -1].view(np.float32))
    call(isa, "search", rows_out=both[:K], scores_out=both[K:].view(np.float32))  # side by side is well


@pytest.mark.parametrize("d", [0, 8, 31, 33, 48, 1056, 2048])
def test_dimensions_that_are_no_multiple_of_32_up_to_1024_are_refused(isa, d):
    codes = np.zeros((N, d), np.int8)
    for method, changes in (
        ("quantise", {"vectors": np.ones((N, d), np.float32), "codes_out": codes}),
        ("search", {"codes": codes, "query": np.zeros(d, np.int8)}),
        ("cosines", {"codes": codes, "queries": np.zeros((2, d), np.int8)}),
        ("diversify", {"codes": codes}),
        ("halve", {"codes": codes}),
        ("put_signs", {"codes": codes}),
        ("rescore", {"vectors": np.ones((N, d), np.float16)}),
    ):
        with pytest.raises(ValueError, match="expected a multiple of 32 dimensions"):
            call(isa, method, **changes)


@pytest.mark.parametrize("width", [0, 8, 24, 520, 1024])
def test_halves_of_dimensions_out_of_range_are_refused(isa, width):
    plane = np.zeros((N, width), np.uint8)
    for method in ("join", "search_halves", "search_batch", "search_two_stage", "rank"):
        with pytest.raises(ValueError, match="high, two codes a byte,: expected a multiple of 32 dimensions"):
            call(isa, method, high=plane, low=plane)


@pytest.mark.parametrize("method", TOP_K)
@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (None, TypeError)])
def test_k_is_an_integer_above_zero(isa, method, k, error):
    with pytest.raises(error):
        call(isa, method, k=k)


@pytest.mark.parametrize("method", [method for method in TOP_K if method != "search_batch"])
@pytest.mark.parametrize("name", ["rows_out", "scores_out"])
def test_outputs_hold_exactly_k(isa, method, name):
    array = valid(method)[name]
    with pytest.raises(ValueError, match=rf"^{name}: expected length 4 on axis 0 \(k\), got 5"):
        call(isa, method, **{name: np.zeros(5, array.dtype)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_scale_that_is_not_finite_is_refused(isa, value):
    with pytest.raises(ValueError, match="query_scale: expected a finite number"):
        call(isa, "search", query_scale=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_a_trade_off_outside_zero_to_one_is_refused(isa, value):
    with pytest.raises(ValueError, match="trade_off: expected a number from 0 to 1"):
        call(isa, "diversify", trade_off=value)


def test_an_empty_order_is_refused(isa):
    with pytest.raises(ValueError, match="length of order_out: expected 1 or more"):
        call(isa, "diversify", order_out=np.zeros(0, np.uint32))


def test_more_than_64_genres_are_refused(isa):
    with pytest.raises(ValueError, match="expected at most 64 genres, got 65"):
        call(isa, "genre_means", per_genre=np.ones(65, np.float32))


def test_a_refused_call_leaves_the_outputs_alone(isa):
    arguments = valid("search")
    rows, scores = np.full(K, 9, np.uint32), np.full(K, 9, np.float32)
    with pytest.raises(ValueError):
        call(isa, "search", rows_out=rows, scores_out=scores, filter=arguments["filter"][:1])
    assert (rows == 9).all() and (scores == 9).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_buffer_is_given_back(isa, method):
    """A buffer that a call kept would hold a reference to its array, after success and after refusal alike."""
    arguments = valid(method)
    refused = arguments | {METHODS[method][-1]: None}
    arrays = [arguments[name] for name in METHODS[method]]
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(3):
        getattr(isa, method)(**arguments)
        with pytest.raises(TypeError):
            getattr(isa, method)(**refused)
    assert [sys.getrefcount(array) for array in arrays] == before


def test_more_left_out_sums_than_vectors_are_refused(isa):
    with pytest.raises(ValueError, match=r"^out: expected at most 16 rows, one for each vector, got 17"):
        call(isa, "left_out_sums", out=np.zeros((N + 1, D), np.float32))


# --- halves, signs, half floats and ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01])
def test_a_query_scale_of_halves_is_finite_and_not_negative(isa, value):
    for method in ("search_halves", "search_two_stage", "rank"):
        with pytest.raises(ValueError, match="query_scale: expected a finite number that is not negative"):
            call(isa, method, query_scale=value)
    with pytest.raises(ValueError, match=r"query_scale\[1\]: expected a finite number that is not negative"):
        call(isa, "search_batch", query_scale=np.array([0.1, value], np.float32))


@pytest.mark.parametrize(("candidates", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_candidates_are_an_integer_above_zero(isa, candidates, error):
    with pytest.raises(error):
        call(isa, "search_two_stage", candidates=candidates)


@pytest.mark.parametrize("row", [N, 2**32 - 1])
def test_a_listed_row_past_the_table_is_refused(isa, row):
    for method in ("join", "rescore"):
        with pytest.raises(ValueError, match=rf"^rows\[1\]: expected a row below {N}, got {row}"):
            call(isa, method, rows=np.array([0, row], np.uint32))


@pytest.mark.parametrize(
    ("first", "rows"),
    [(-1, N), (1, N), (0, N - 1), (0, -1), (2**63 - 1, N), (2**63 - 1, 2**63 - 1), (-(2**63), N), (0, -(2**63))],
)
def test_signs_are_put_inside_their_table(isa, first, rows):
    with pytest.raises(ValueError, match="^(first: expected room for 16 rows|rows: expected fewer than)"):
        call(isa, "put_signs", first=first, rows=rows)


@pytest.mark.parametrize("rows", [N + 32, 2**32, 2**63 - 1])
def test_signs_have_a_block_for_each_32_rows(isa, rows):
    with pytest.raises(ValueError, match="^(blocks: expected length|rows: expected fewer than)"):
        call(isa, "put_signs", rows=rows)


@pytest.mark.parametrize(("at", "value"), [(0, -0.1), (0, np.nan), (1, np.inf), (2, np.nan), (3, -np.inf)])
def test_weights_of_a_rank_are_finite_and_that_of_similarity_not_negative(isa, at, value):
    weights = np.ones(4, np.float32)
    weights[at] = value
    with pytest.raises(ValueError, match=rf"^weights\[{at}\]: expected a finite number"):
        call(isa, "rank", weights=weights)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ((0, 0.0, 0.1), "half_life: expected a finite number above 0"),
        ((0, -1.0, 0.1), "half_life: expected a finite number above 0"),
        ((0, np.nan, 0.1), "half_life: expected a finite number above 0"),
        ((0, np.inf, 0.1), "half_life: expected a finite number above 0"),
        ((0, 1e-300, 0.1), "half_life: expected a finite number above 0"),
        ((0, 1.0, np.nan), "least_similarity: expected a finite number"),
        ((0, 1.0, np.inf), "least_similarity: expected a finite number"),
        ((0, 1.0, 1e300), "least_similarity: expected a finite number"),
    ],
)
def test_limits_of_a_rank_are_numbers_in_range(isa, limits, error):
    with pytest.raises(ValueError, match=error):
        call(isa, "rank", limits=limits)


@pytest.mark.parametrize("limits", [(-1, 1.0, 0.1), (2**32, 1.0, 0.1), (0.5, 1.0, 0.1), (0, 1.0), None, (0, None, 0.1)])
def test_limits_of_a_rank_are_an_unsigned_time_and_two_numbers(isa, limits):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        call(isa, "rank", limits=limits)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_a_query_to_rescore_has_a_direction(isa, value):
    with pytest.raises(ValueError, match="query: expected finite numbers that are not all zero"):
        call(isa, "rescore", query=np.full(D, value, np.float32))


def test_an_array_off_its_elements_alignment_is_refused(isa):
    """Numpy names it in the format of its elements; a view of another kind says nothing of it."""
    memory = memoryview(bytearray(4 * D + 4))
    with pytest.raises(TypeError, match="query: expected an array aligned to 4 bytes"):
        call(isa, "rescore", query=memory[1 : 4 * D + 1].cast("f"))


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("halve", "high_out", "low_out"),
        ("search_batch", "rows_out", "found_out"),
        ("put_signs", "codes", "blocks"),
        ("rank", "rows_out", "time"),
        ("join", "codes_out", "low"),
    ],
)
def test_an_output_that_is_another_argument_too_is_a_value_error(isa, method, first, second):
    memory = np.zeros(4096, np.uint8)
    arguments = valid(method)
    views = {}
    for name in (first, second):
        array = arguments[name]
        views[name] = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    with pytest.raises(ValueError, match="shares memory"):
        call(isa, method, **views)
