"""Micro-benchmarks of the C core and the vector store: ``python -m pytest bench/test_kernels_benchmark.py``.

Every timed call's answer is compared with the numpy specification first. numpy's own way to the same answer is timed in
the same run, so that a ratio survives a change of machine. One thread: set OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names
from omega_edge.vectors import VectorStore
from tests import reference

D = 384
CATALOGUE = 8_795
K = 50


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((100_000, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def coded(vectors) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = np.empty(vectors.shape, np.int8), np.empty(len(vectors), np.float32)
    Kernels().quantise(vectors, codes, scale)
    return codes, scale


def drawn_filter(n: int, share: float) -> np.ndarray | None:
    if share == 1:
        return None
    return np.packbits(np.random.default_rng(1).random(n) < share, bitorder="little")


@pytest.mark.parametrize("n", [1, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("share", [1, 0.1])
def test_search(benchmark, isa, coded, n, share):
    benchmark.group = f"search {n} x {D}, k = {K}, {share:.0%} pass"
    codes, scale = coded[0][:n], coded[1][:n]
    query, query_scale, filter = coded[0][-1], float(coded[1][-1]), drawn_filter(n, share)
    rows, scores = np.zeros(K, np.uint32), np.zeros(K, np.float32)
    found = benchmark(isa.search, codes, scale, query, query_scale, filter, K, rows, scores)
    want_rows, want_scores = reference.search(codes, scale, query, query_scale, filter, K)
    assert rows[:found].tolist() == want_rows.tolist()
    assert scores[:found].tolist() == want_scores.tolist()


@pytest.mark.parametrize("n", [1_000, 10_000, 100_000])
def test_search_by_numpy(benchmark, vectors, n):
    benchmark.group = f"search {n} x {D}, k = {K}, 100% pass"
    table, query = vectors[:n], vectors[-1]

    def search() -> np.ndarray:
        scores = table @ query
        best = np.argpartition(scores, n - K)[n - K :]
        return best[np.argsort(-scores[best])]

    found = benchmark(search)
    assert found[0] == np.argmax(table.astype(np.float64) @ query)


@pytest.mark.parametrize("q", [1, 3, 8])
def test_cosines(benchmark, isa, coded, q):
    benchmark.group = f"cosines {CATALOGUE} x {D}, {q} queries"
    codes, scale = coded[0][:CATALOGUE], coded[1][:CATALOGUE]
    queries, query_scale = coded[0][-q:].copy(), coded[1][-q:].copy()
    out = np.zeros((q, CATALOGUE), np.float32)
    benchmark(isa.cosines, codes, scale, queries, query_scale, out)
    for j in range(q):
        assert np.array_equal(out[j], reference.cosines(codes, scale, queries[j], query_scale[j]))


@pytest.mark.parametrize("q", [1, 3, 8])
def test_cosines_by_numpy(benchmark, vectors, q):
    benchmark.group = f"cosines {CATALOGUE} x {D}, {q} queries"
    table, queries = vectors[:CATALOGUE], vectors[-q:]
    out = benchmark(lambda: queries @ table.T)
    np.testing.assert_allclose(out, queries.astype(np.float64) @ table.T.astype(np.float64), atol=1e-5)


@pytest.mark.parametrize("share", [1, 0.1])
def test_fuse_top_k(benchmark, isa, share):
    benchmark.group = f"fuse_top_k 8 x {CATALOGUE}, {share:.0%} pass"
    rng = np.random.default_rng(2)
    features = rng.standard_normal((8, CATALOGUE)).astype(np.float32)
    weights, filter = rng.standard_normal(8).astype(np.float32), drawn_filter(CATALOGUE, share)
    rows, scores = np.zeros(K, np.uint32), np.zeros(K, np.float32)
    found = benchmark(isa.fuse_top_k, features, weights, filter, K, rows, scores)
    want_rows, want_scores = reference.fuse_top_k(features, weights, filter, K)
    assert (rows[:found].tolist(), scores[:found].tolist()) == (want_rows.tolist(), want_scores.tolist())


def test_genre_means(benchmark, isa):
    rng = np.random.default_rng(3)
    masks = (np.uint64(1) << rng.integers(0, 28, CATALOGUE, np.uint64)) | rng.integers(0, 2, CATALOGUE, np.uint64)
    per_genre, out = rng.random(28).astype(np.float32), np.zeros(CATALOGUE, np.float32)
    benchmark(isa.genre_means, masks, per_genre, out)
    assert np.array_equal(out, reference.genre_means(masks, per_genre))


def test_row_scatter_add(benchmark, isa):
    """64 events of 200 entries each: a full history."""
    rng = np.random.default_rng(4)
    columns = np.sort(rng.integers(0, CATALOGUE, (2_000, 200)).astype(np.uint32), axis=1).ravel()
    offsets, values = np.arange(0, 400_001, 200, dtype=np.uint32), rng.integers(-127, 128, 400_000).astype(np.int8)
    scale, rows = rng.random(2_000).astype(np.float32), rng.integers(0, 2_000, 64).astype(np.uint32)
    weights, out = rng.random(64).astype(np.float32), np.zeros(CATALOGUE, np.float32)
    benchmark(isa.row_scatter_add, offsets, columns, values, scale, rows, weights, out)
    out[:] = 0
    isa.row_scatter_add(offsets, columns, values, scale, rows, weights, out)
    zero = np.zeros(CATALOGUE, np.float32)
    assert np.array_equal(out, reference.row_scatter_add(offsets, columns, values, scale, rows, weights, zero))


def test_row_lookup(benchmark, isa):
    """20 recommended titles in the rows of 64 events."""
    rng = np.random.default_rng(5)
    columns = np.sort(
        np.stack([rng.choice(CATALOGUE, 200, replace=False) for _ in range(64)]).astype(np.uint32), axis=1
    )
    offsets, values = np.arange(0, 12_801, 200, dtype=np.uint32), rng.integers(-127, 128, 12_800).astype(np.int8)
    table = (offsets, columns.ravel(), values, rng.random(64).astype(np.float32))
    rows, targets = np.arange(64, dtype=np.uint32), columns[:20, 7].copy()
    out = np.zeros((64, 20), np.float32)
    benchmark(isa.row_lookup, *table, rows, targets, out)
    assert np.array_equal(out, reference.row_lookup(*table, rows, targets))


def test_diversify(benchmark, isa, coded):
    codes, scale = coded[0][:CATALOGUE], coded[1][:CATALOGUE]
    rng = np.random.default_rng(6)
    rows = rng.choice(CATALOGUE, 100, replace=False).astype(np.uint32)
    values, order = rng.random(100).astype(np.float32), np.zeros(20, np.uint32)
    assert benchmark(isa.diversify, codes, scale, rows, values, 0.8, order) == 20
    assert order.tolist() == reference.diversify(codes, scale, rows, values, 0.8, 20)


def test_quantise_one(benchmark, isa, vectors):
    codes, scale = np.zeros((1, D), np.int8), np.zeros(1, np.float32)
    benchmark(isa.quantise, vectors[:1], codes, scale)
    want_codes, want_scale = reference.quantise(vectors[:1])
    assert np.array_equal(codes, want_codes) and scale[0] == want_scale[0]


@pytest.fixture(scope="module")
def store(coded) -> VectorStore:
    store = VectorStore()
    store.upsert_codes(range(10_000), coded[0][:10_000], coded[1][:10_000])
    return store


def test_store_search(benchmark, store, coded, vectors):
    found = benchmark(store.search, vectors[-1], K)
    query, query_scale = reference.quantise(vectors[-1:])
    rows, scores = reference.search(coded[0][:10_000], coded[1][:10_000], query[0], query_scale[0], None, K)
    assert found == list(zip(rows.tolist(), scores.tolist(), strict=True))


def test_store_upsert(benchmark, store, vectors):
    benchmark(store.upsert, 5_000, vectors[5_000])
    assert store.count == 10_000
    assert store.search(vectors[5_000], 1)[0][0] == 5_000


def test_store_save_and_load(benchmark, store, tmp_path):
    path = tmp_path / "vectors"
    store.save(path, 1)
    loaded = benchmark(VectorStore.load, path, 1)
    assert loaded.ids() == store.ids()
