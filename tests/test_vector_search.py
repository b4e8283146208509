"""Searches in two stages and by kept vectors: what recall they keep, on vectors of the text model and on uniform ones."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from omega_edge import vector_calibration
from omega_edge.errors import StoreDamagedError, StoreFullError
from omega_edge.vector_calibration import Plan
from omega_edge.vectors import VectorStore
from tests import reference
from tests.reference_embeddings import reference_embeddings

STAMP, K = 5, 50
TITLES = 6000


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def titles() -> tuple[np.ndarray, np.ndarray]:
    """Mixtures a + (b - c) / 2 of the text model's vectors of 322 titles, and 60 of them held out."""
    real = reference_embeddings()[1]
    a, b, c = real[np.random.default_rng(1).integers(0, len(real), (3, TITLES + 60))]
    mixtures = unit(a + (b - c) / 2)
    return mixtures[:TITLES], mixtures[TITLES:]


@pytest.fixture(scope="module")
def uniform() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return unit(rng.standard_normal((5000, 384))), unit(rng.standard_normal((40, 384)))


def store_of(vectors: np.ndarray, **options) -> VectorStore:
    store = VectorStore(vectors.shape[1], **options)
    for id, vector in enumerate(vectors):
        store.upsert(id, vector)
    return store


def recall(store: VectorStore, vectors: np.ndarray, queries: np.ndarray, k: int = K, filter=None) -> float:
    """The share of the k nearest by float32 that the store returns."""
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if filter is not None:
        scores[:, np.setdiff1d(np.arange(len(vectors)), filter)] = -2
    true = np.argsort(-scores, axis=1)[:, :k]
    found = [store.search_arrays(query, k, filter)[0] for query in queries]
    return float(np.mean([len(np.intersect1d(ids, rows)) / k for ids, rows in zip(found, true, strict=True)]))


def recall_of_exact(store: VectorStore, exact: VectorStore, queries: np.ndarray, k: int = K) -> float:
    found = [len(np.intersect1d(store.search_arrays(q, k)[0], exact.search_arrays(q, k)[0])) / k for q in queries]
    return float(np.mean(found))


# --- calibration ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(titles) -> VectorStore:
    return store_of(titles[0], recall=1.0)


def test_calibration_keeps_the_stated_recall_for_titles_held_out(titles, exact):
    vectors, held_out = titles
    candidates = []
    for stated in (0.9, 0.99):
        store = store_of(vectors, recall=stated)
        stats = store.stats()
        assert (stats.search, stats.reason) == ("two-stage", "")
        assert stats.recall >= stated
        assert stats.candidates * 10 <= TITLES
        for k in (10, K, 70):
            assert recall_of_exact(store, exact, held_out, k) >= stated - 0.005  # 60 queries: a standard error is .003
        candidates.append(stats.candidates)
    assert candidates[0] < candidates[1]
    few = recall_of_exact(planned(store, Plan(64, 0.5, "", TITLES)), exact, held_out)
    assert few < 0.95  # so the number of candidates is what kept the recall


def planned(store: VectorStore, plan: Plan) -> VectorStore:
    store._calibration.plan = plan
    return store


def test_searches_that_calibration_did_not_foresee_get_more_candidates(titles, exact):
    """Sums of eight random titles lie in the middle of all, where neighbours differ least."""
    vectors = titles[0]
    rows = np.random.default_rng(5).integers(0, TITLES, (400, 8))
    broad = unit(vectors[rows].sum(1))
    store = store_of(vectors, recall=0.95)
    before = store.stats()
    for query in broad:
        store.search_arrays(query)
    after = store.stats()
    assert after.search == "exact" or after.candidates > before.candidates
    assert recall_of_exact(store, exact, broad[:100]) >= 0.95
    store.calibrate()
    assert store.stats().candidates == before.candidates
    assert recall_of_exact(store, exact, broad[:14]) < 0.95


def test_uniform_vectors_are_searched_exactly(uniform):
    vectors, queries = uniform
    store, exact = store_of(vectors), store_of(vectors, recall=1.0)
    stats = store.stats()
    assert (stats.search, stats.candidates, stats.recall) == ("exact", 0, 1.0)
    assert "no number of candidates up to a tenth of the vectors reaches the recall" in stats.reason
    assert recall(store, vectors, queries) >= 0.985
    for query in queries:
        assert store.search(query, K) == exact.search(query, K)


def test_filters_and_wide_searches_keep_the_recall(titles, exact):
    vectors, held_out = titles
    store = store_of(vectors)
    for filter in (np.arange(0, TITLES, 40), np.arange(0, TITLES, 2), np.arange(5)):
        shares = []
        for query in held_out:
            found, true = store.search(query, K, filter), exact.search(query, K, filter)
            assert len(found) == len(true) == min(K, len(filter))
            shares.append(len({id for id, _ in found} & {id for id, _ in true}) / len(true))
            assert {id for id, _ in found} <= set(filter.tolist())
            if len(filter) * 10 <= TITLES:  # fewer allowed than candidates are worth: searched exactly
                assert found == true
        assert np.mean(shares) >= 0.985
    assert store.search(held_out[0], TITLES) == exact.search(held_out[0], TITLES)


def test_a_recall_of_one_is_exact_and_takes_no_signs(exact):
    stats = exact.stats()
    assert (stats.search, stats.reason) == ("exact", "a recall of 1 was asked for")
    assert exact._snapshot.signed is False


def test_calibration_follows_the_data(titles, uniform):
    """Titles are replaced by uniform vectors and then by titles again: the plan changes within a quarter of changes."""
    store = VectorStore()
    assert store.stats().reason == "fewer than 4,096 vectors"
    for id, vector in enumerate(titles[0][:4096]):
        store.upsert(id, vector)
    assert store.stats().reason == "not calibrated yet"
    for id, vector in enumerate(titles[0][4096:4300]):
        store.upsert(4096 + id, vector)
    assert store.stats().search == "two-stage"
    for id, vector in enumerate(uniform[0][:4300]):
        store.upsert(id, vector)
    assert store.stats().search == "exact"
    for _ in range(2):  # a measurement may fall into the middle of the first round
        for id, vector in enumerate(titles[0][:4300]):
            store.upsert(id, vector)
    assert store.stats().search == "two-stage"
    for id in range(300):
        store.delete(id)
    assert store.stats().reason == "fewer than 4,096 vectors"


def test_a_batch_is_calibrated_with_its_write_and_a_file_keeps_the_plan(titles, tmp_path):
    codes, scale = reference.quantise(titles[0])
    store = VectorStore()
    store.upsert_codes(range(len(codes)), codes, scale)
    stats = store.stats()
    assert stats.search == "two-stage"
    store.save(tmp_path / "vectors", STAMP)
    loaded = VectorStore.load(tmp_path / "vectors", STAMP)
    kept = loaded.stats()
    assert (kept.search, kept.candidates, kept.recall) == ("two-stage", stats.candidates, pytest.approx(stats.recall))
    for query in titles[1]:
        assert loaded.search(query) == store.search(query)
    other = VectorStore.load(tmp_path / "vectors", STAMP, recall=0.5)  # a plan for another recall is none
    assert other.stats().search == "exact"
    other.calibrate()
    assert other.stats().search == "two-stage" and other.stats().candidates < stats.candidates


def test_opposite_and_equal_vectors_are_calibrated_too():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(32).astype(np.float32)
    codes, scale = reference.quantise(np.stack([one, -one]))
    store = VectorStore(32)
    store.upsert_codes(range(5000), np.tile(codes, (2500, 1)), np.tile(scale, 2500))
    assert [id for id, _ in store.search(one, 5, range(0, 5000, 100))] == [0, 100, 200, 300, 400]
    assert store.count == 5000


# --- kept vectors ---------------------------------------------------------------------------------------------------


def test_kept_vectors_bring_the_recall_to_999(titles, exact, tmp_path):
    vectors, held_out = titles
    assert recall(exact, vectors, held_out) < 0.9985  # what codes of 8 bits leave to gain
    store = store_of(vectors, keep_vectors=True, recall=1.0)
    assert recall(store, vectors, held_out) >= 0.999
    store.save(tmp_path / "vectors", STAMP)
    loaded = VectorStore.load(tmp_path / "vectors", STAMP, keep_vectors=True, recall=1.0)
    for query in held_out:
        assert loaded.search(query) == store.search(query)
    scores = dict(loaded.search(held_out[0], 10))
    for id, score in scores.items():
        assert score == pytest.approx(float(vectors[id] @ held_out[0]), abs=2e-4)
        assert np.abs(loaded.vector(id) - vectors[id]).max() < 2e-4


def kept(path: Path, n: int = 5, dimensions: int = 32) -> tuple[np.ndarray, Path]:
    vectors = np.random.default_rng(3).standard_normal((n, dimensions)).astype(np.float32)
    store_of(vectors, keep_vectors=True).save(path, STAMP)
    return vectors, path.with_name(path.name + ".float16")


def test_kept_vectors_of_any_length_are_directions():
    store = VectorStore(32, keep_vectors=True)
    vector = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    for id, length in enumerate((1e-30, 1, 1e30)):
        store.upsert(id, vector * np.float32(length))
    ids, scores = store.search_arrays(vector * np.float32(1e-20))
    assert ids.tolist() == [0, 1, 2] and scores == pytest.approx([1, 1, 1], abs=1e-5)


def test_every_damaged_byte_of_kept_vectors_is_noticed(tmp_path):
    path = tmp_path / "vectors"
    vectors, side = kept(path)
    whole = side.read_bytes()
    assert len(whole) == 64 + 64 + 5 * 32 * 2
    exact, codes = dict(store_of(vectors, keep_vectors=True).search(vectors[0])), store_of(vectors)
    by_code = {id: float(codes.vector(id) @ unit(vectors)[0]) for id in range(5)}
    for offset in range(len(whole)):
        side.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x40]) + whole[offset + 1 :])
        if offset < 128:
            with pytest.raises(StoreDamagedError, match="delete the file"):
                VectorStore.load(path, STAMP, 32, keep_vectors=True)
            continue
        store = VectorStore.load(path, STAMP, 32, keep_vectors=True)
        damaged = (offset - 128) // 64
        for _ in range(2):
            for id, score in store.search(vectors[0]):
                expected = by_code if id == damaged else exact
                assert score == pytest.approx(expected[id], abs=1e-3 if id == damaged else 0)
        assert store.stats().damaged_vectors == 1


@pytest.mark.parametrize("length", [0, 10, 63, 64, 128, 447])
def test_a_truncated_file_of_kept_vectors_is_refused(tmp_path, length):
    path = tmp_path / "vectors"
    _, side = kept(path)
    os.truncate(side, length)
    with pytest.raises(StoreDamagedError, match="delete the file"):
        VectorStore.load(path, STAMP, 32, keep_vectors=True)
    assert VectorStore.load(path, STAMP, 32).count == 5  # the codes alone are whole


def test_kept_vectors_of_another_save_are_refused(tmp_path):
    path = tmp_path / "vectors"
    kept(path)
    _, other = kept(tmp_path / "other", n=6)
    os.replace(other, path.with_name("vectors.float16"))
    with pytest.raises(StoreDamagedError, match="not the one that the vectors were saved with"):
        VectorStore.load(path, STAMP, 32, keep_vectors=True)
    path.with_name("vectors.float16").unlink()
    with pytest.raises(StoreDamagedError, match="expected the half floats that belong to the vectors, got no file"):
        VectorStore.load(path, STAMP, 32, keep_vectors=True)


def test_a_count_that_a_file_of_kept_vectors_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "vectors"
    _, side = kept(path)
    content = bytearray(side.read_bytes())
    struct.pack_into("<Q", content, 16, 1 << 60)
    side.write_bytes(content)
    vectors = bytearray(path.read_bytes())
    struct.pack_into("<I", vectors, 44, zlib.crc32(content[:64]))
    struct.pack_into("<I", vectors, 92, zlib.crc32(vectors[:92]))
    path.write_bytes(vectors)
    with pytest.raises(StoreDamagedError, match="with 5 rows of 32"):
        VectorStore.load(path, STAMP, 32, keep_vectors=True)


def test_a_file_without_kept_vectors_is_none_where_they_are_asked_for(tmp_path):
    path = tmp_path / "vectors"
    vectors, side = kept(path)
    store_of(vectors).save(path, STAMP)
    assert not side.exists()  # what an earlier save left would belong to nothing
    assert VectorStore.load(path, STAMP, 32, keep_vectors=True) is None
    assert VectorStore.load(path, STAMP, 32).count == 5


def test_a_full_disk_leaves_the_files_of_before(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    path = tmp_path / "vectors"
    vectors, side = kept(path)
    before = path.read_bytes(), side.read_bytes()
    (tmp_path / "vectors.float16.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreFullError, match="could not be written"):
        store_of(vectors[:3], keep_vectors=True).save(path, STAMP)
    assert (path.read_bytes(), side.read_bytes()) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["vectors", "vectors.float16"]


def test_a_change_of_what_is_asked_for_shows_soon(titles, monkeypatch):
    """A long time of searches that keep their recall does not hide those that do not."""
    monkeypatch.setattr(vector_calibration, "_AUDITED", 2)
    vectors, held_out = titles
    store = store_of(vectors, recall=0.95)
    for _ in range(4):
        for query in held_out:
            store.search_arrays(query)
    before = store.stats().candidates
    broad = unit(vectors[np.random.default_rng(5).integers(0, TITLES, (48, 8))].sum(1))
    for query in broad:
        store.search_arrays(query)
    assert store.stats().search == "exact" or store.stats().candidates > before


@pytest.mark.parametrize("k", [1, 49, K])
def test_an_audited_search_answers_as_another_does(titles, monkeypatch, k):
    vectors, held_out = titles
    store = store_of(vectors)
    monkeypatch.setattr(store._calibration, "audits_next", lambda: False)
    unaudited = [store.search(query, k) for query in held_out[:7]]
    monkeypatch.setattr(store._calibration, "audits_next", lambda: True)
    assert [store.search(query, k) for query in held_out[:7]] == unaudited
    assert len(store._calibration._audits) == 7  # or nothing was looked at
