"""What a vector store is given from outside: every mistake a ConfigError, and no answer that only looks like one."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge.errors import ConfigError
from omega_edge.vectors import VectorStore

D = 32
DIRECTIONS = np.random.default_rng(7).standard_normal((6, D)).astype(np.float32)
CODE = np.full(D, 5, np.int8)


@pytest.fixture(params=[False, True], ids=["codes", "kept"])
def store(request) -> VectorStore:
    store = VectorStore(D, keep_vectors=request.param)
    for id, vector in enumerate(DIRECTIONS):
        store.upsert(id, vector)
    return store


@pytest.mark.parametrize("length", [1e-40, 1e-30, 1e-19, 1e15, 1e25, 3e38])
def test_a_query_of_any_length_is_a_direction(store, length):
    """Kept vectors are compared in floats, where squares below 1e-38 vanish and above 3e38 overflow."""
    query = DIRECTIONS[0] / np.abs(DIRECTIONS[0]).max()
    usual = store.search(query, 6)
    found = store.search((query * np.float64(length)).astype(np.float32), 6)
    assert [id for id, _ in found] == [id for id, _ in usual]
    assert [score for _, score in found] == pytest.approx([score for _, score in usual], abs=1e-5)


def test_a_code_without_direction_is_refused(store):
    """Kept, its vector would be zero too, and no search would return it."""
    zero = np.zeros(D, np.int8)
    for use in (
        lambda: store.upsert_code(9, zero, 0.5),
        lambda: store.upsert_codes([9, 10], np.stack([CODE, zero]), np.full(2, 0.5, np.float32)),
        lambda: store.search_code(zero, 0.5),
    ):
        with pytest.raises(ConfigError, match="a vector needs a direction"):
            use()
    assert store.ids() == list(range(6)) and len(store.search(DIRECTIONS[0])) == 6


@pytest.mark.parametrize("scale", [1e-60, 1e-45, 1e-12, 1 / 4097, 1 + 1e-9, "0.5", None, 2])
def test_a_scale_that_no_code_has_is_refused(store, tmp_path, scale):
    """1e-60 becomes 0 as a float32: it was stored, and the file then said no store."""
    for use in (lambda: store.upsert_code(9, CODE, scale), lambda: store.search_code(CODE, scale)):
        with pytest.raises(ConfigError, match="^scale: expected 1 / .* from 1 / 4064 to 1"):
            use()
    store.save(tmp_path / "vectors", 1)
    assert VectorStore.load(tmp_path / "vectors", 1, D).count == 6


@pytest.mark.parametrize(
    "filter", [5, 1.5, np.array([True, False]), np.array([1.0]), np.array([[1, 2]]), np.array(3)]
)
def test_a_filter_that_cannot_name_ids_is_refused(store, filter):
    with pytest.raises(ConfigError, match="^filter: expected ids"):
        store.search(DIRECTIONS[0], 3, filter)


@pytest.mark.parametrize("kind", [iter, list, tuple, set, np.array, dict.fromkeys])
def test_a_filter_is_any_iterable_each_id_once(store, kind):
    assert sorted(id for id, _ in store.search(DIRECTIONS[0], 50, kind([2, 1, 2]))) == [1, 2]


@pytest.mark.parametrize("ids", [[], (), np.array([]), np.array([], bool), iter(())])
def test_an_empty_filter_lets_nothing_pass(store, ids):
    assert store.search(DIRECTIONS[0], 3, ids) == []


def test_an_array_of_numbers_is_neither_id_nor_k(store):
    several = np.array([1, 2])
    assert several not in store
    with pytest.raises(ConfigError, match="^id: expected an integer"):
        store.upsert(several, DIRECTIONS[0])
    with pytest.raises(ConfigError, match="^k: expected an integer"):
        store.search(DIRECTIONS[0], several)
    with pytest.raises(KeyError):
        store.get(several)


def test_a_vector_off_its_alignment_is_taken(store):
    memory = b"\0" + DIRECTIONS[0].tobytes()
    shifted = np.frombuffer(memory, np.uint8)[1:].view(np.float32)
    assert not shifted.flags.aligned
    assert store.search(shifted, 2) == store.search(DIRECTIONS[0], 2)
