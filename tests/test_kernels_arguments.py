"""What the kernels refuse: every argument of every method, wrong in every way."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names

N, D, K = 16, 32, 4
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
}
ARRAYS = [(method, name) for method, names in METHODS.items() for name in names]
OUTPUTS = [(method, name) for method, name in ARRAYS if name == "out" or name.endswith("_out")]
WIDE = ("vectors", "scale", "query_scale", "row_scale", "offsets", "columns", "rows", "weights", "targets", "masks")
WIDE += ("per_genre", "features", "out", "rows_out", "scores_out", "scale_out", "order_out")
WIDE_ARRAYS = [(method, name) for method, name in ARRAYS if name in WIDE or (method, name) == ("diversify", "values")]


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
    return arguments[method]


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
    for dtype in {"f8", "i8", "u1", "i1", "f4", "u4"} - {array.dtype.str[1:]}:
        with pytest.raises(TypeError, match=rf"^{name}: expected {array.dtype.name} in native byte order"):
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
    if name != "order_out" and method != "left_out_sums":  # the length of these outputs is the caller's wish
        with pytest.raises(ValueError, match="expected"):
            call(isa, method, **{name: np.ascontiguousarray(array[:-1])})


@pytest.mark.parametrize(("method", "name"), ARRAYS)
def test_strided_arrays_are_value_errors(isa, method, name):
    array = valid(method)[name]
    for strided in (np.repeat(array, 2, axis=-1)[..., ::2], array[::-1]):
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
    ):
        with pytest.raises(ValueError, match="expected a multiple of 32 dimensions"):
            call(isa, method, **changes)


@pytest.mark.parametrize("method", ["search", "fuse_top_k"])
@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (None, TypeError)])
def test_k_is_an_integer_above_zero(isa, method, k, error):
    with pytest.raises(error):
        call(isa, method, k=k)


@pytest.mark.parametrize("method", ["search", "fuse_top_k"])
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
