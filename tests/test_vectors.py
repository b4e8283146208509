"""The vector store against a dictionary and plain numpy, under any sequence of calls, and with readers in the way."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import vector_calibration, vectors
from omega_edge.errors import ConfigError, StoreError, StoreReadOnlyError
from omega_edge.vectors import VectorStore
from tests import reference

D = 32
# Few directions, so that ties are common; two of them differ in length alone, which a cosine does not see.
DIRECTIONS = np.random.default_rng(0).standard_normal((6, D)).astype(np.float32)
DIRECTIONS[5] = DIRECTIONS[4] * 2
IDS = st.integers(0, 40) | st.sampled_from([2**32, 2**63, 2**64 - 1])


def expected_search(model: dict[int, int], query: np.ndarray, k: int, filter=None) -> list[tuple[int, float]]:
    """The store's answer by definition: cosines of codes, score descending, then id ascending."""
    ids = [id for id in sorted(model) if filter is None or id in filter]
    if not ids:
        return []
    codes, scale = reference.quantise(DIRECTIONS[[model[id] for id in ids]])
    query_code, query_scale = reference.quantise(query[None])
    rows, scores = reference.search(codes, scale, query_code[0], query_scale[0], None, k)
    return [(ids[row], float(score)) for row, score in zip(rows, scores, strict=True)]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), IDS, st.integers(0, 5)),
        st.tuples(st.just("upsert many"), st.lists(IDS, max_size=12), st.integers(0, 5)),
        st.tuples(st.just("delete"), IDS, st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.integers(0, 5), st.integers(1, 60), st.none() | st.lists(IDS))
def test_any_sequence_of_calls_leaves_what_a_dictionary_would_hold(operations, direction, k, filter):
    store, model = VectorStore(D), {}
    for kind, subject, vector in operations:
        if kind == "upsert":
            store.upsert(subject, DIRECTIONS[vector])
            model[subject] = vector
        elif kind == "upsert many":
            vectors = [(vector + i) % 6 for i in range(len(subject))]  # of an id given twice the last one holds
            codes, scale = reference.quantise(DIRECTIONS[vectors].reshape(-1, D))
            store.upsert_codes(subject, codes, scale)
            model.update(zip(subject, vectors, strict=True))
        else:
            assert store.delete(subject) is (subject in model)
            model.pop(subject, None)
    assert store.count == len(store) == len(model)
    assert store.ids() == sorted(model)
    for id in [*model, 39, 2**64 - 1]:
        assert (id in store) is (id in model)
    for id, vector in model.items():
        code, scale = store.get(id)
        want_code, want_scale = reference.quantise(DIRECTIONS[vector : vector + 1])
        assert (code.tolist(), scale) == (want_code[0].tolist(), float(want_scale[0]))
    query = DIRECTIONS[direction]
    assert store.search(query, k, filter) == expected_search(model, query, k, filter)


def filled(ids, dimensions: int = D) -> VectorStore:
    store = VectorStore(dimensions)
    for id in ids:
        store.upsert(id, np.random.default_rng(id).standard_normal(dimensions).astype(np.float32))
    return store


def test_a_vector_finds_itself_first_with_cosine_one():
    store = filled(range(300), 384)
    for id in (0, 7, 299):
        (found, score), *_ = store.search(store.vector(id), 3)
        assert found == id
        assert score == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(store.vector(id)) == pytest.approx(1, abs=1e-6)


def test_ties_are_ordered_by_id_whatever_the_order_of_arrival():
    for order in ([5, 1, 9, 3, 7], [9, 7, 5, 3, 1], [1, 3, 5, 7, 9]):
        store = VectorStore(D)
        for id in order:
            store.upsert(id, DIRECTIONS[0])
        assert [id for id, _ in store.search(DIRECTIONS[0], 3)] == [1, 3, 5]
        store.delete(3)
        store.upsert(2, DIRECTIONS[0])  # takes the row that 3 gave up
        assert [id for id, _ in store.search(DIRECTIONS[0], 3)] == [1, 2, 5]


def test_a_tie_far_wider_than_k_is_still_ordered_by_id():
    store = VectorStore(D)
    codes, scale = reference.quantise(np.repeat(DIRECTIONS[:1], 500, axis=0))
    store.upsert_codes(range(500, 0, -1), codes, scale)
    assert [id for id, _ in store.search(DIRECTIONS[0], 2)] == [1, 2]


def test_every_row_that_passes_the_filter_is_returned():
    store = filled(range(100))
    for id in range(0, 100, 3):
        store.delete(id)
    found = store.search(DIRECTIONS[0], 1000)
    assert sorted(id for id, _ in found) == store.ids() == [id for id in range(100) if id % 3]
    wanted = [1, 2, 3, 4, 4, 5, 777, 2**64 - 1]  # 3 was deleted, 777 never came, 4 is named twice
    for filter in (wanted, iter(wanted), set(wanted), np.array(wanted, np.uint64)):
        assert sorted(id for id, _ in store.search(DIRECTIONS[0], 1000, filter)) == [1, 2, 4, 5]
    assert store.search(DIRECTIONS[0], 5, []) == []


def test_search_by_code_equals_search_by_vector():
    store = filled(range(50))
    code, scale = store.get(17)
    assert store.search_code(code, scale, 9) == store.search(store.vector(17), 9)


def test_what_get_returns_is_the_callers_own():
    store = filled([1])
    code, _ = store.get(1)
    before = code.copy()
    code[:] = 0
    assert store.get(1)[0].tolist() == before.tolist()


def test_an_empty_store_answers():
    store = VectorStore(D)
    assert (store.count, store.ids(), store.search(DIRECTIONS[0], 5), store.delete(1)) == (0, [], [], False)
    store.upsert(1, DIRECTIONS[0])
    store.delete(1)
    assert (store.count, store.ids(), store.search(DIRECTIONS[0], 5, [1])) == (0, [], [])


def test_rows_given_up_are_used_again():
    store = filled(range(10))
    before = store.nbytes
    for round in range(1000):
        store.upsert(round % 10, DIRECTIONS[round % 6])
        store.delete((round + 5) % 10)
    assert store.nbytes == before


def test_a_change_allocates_the_same_however_many_vectors_there_are():
    """A copy of anything that has an entry for each vector would show: a bit for each takes 12,500 bytes here."""
    n = 100_000
    codes, scale = reference.quantise(DIRECTIONS[:1])
    store = VectorStore(D, recall=1.0)
    store.upsert_codes(range(n), np.repeat(codes, n, axis=0), np.repeat(scale, n))
    for id in range(8):  # brings the bitmaps up to date and the table of ids to its size
        store.upsert(id, DIRECTIONS[1])
    tracemalloc.start()
    try:
        for id in range(1000):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            if id % 3:
                store.upsert(id, DIRECTIONS[id % 5])
            else:
                store.delete(id)
            assert tracemalloc.get_traced_memory()[1] - before < 4000
    finally:
        tracemalloc.stop()
    assert store.count == n - 334


def test_room_grows_by_a_bounded_share():
    store = VectorStore(D)
    for id in range(9000):
        store.upsert(id, DIRECTIONS[id % 6])
        stats = store.stats()
        assert stats.count <= stats.capacity <= max(32, 1.5 * stats.count + 32)
    assert stats.capacity <= 1.25 * stats.count + 32


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.search(DIRECTIONS[0]),
        lambda store: store.search(DIRECTIONS[0], 5, [1]),
        lambda store: store.get(1),
        lambda store: 1 in store,
        lambda store: store.count,
        lambda store: store.upsert(1, DIRECTIONS[0]),
        lambda store: store.delete(1),
        lambda store: store.save("/dev/null/never", 1),
        lambda store: store.stats(),
    ],
)
def test_a_closed_store_says_so(use):
    for store in (filled(range(3)), VectorStore.over(*catalogue(3))):
        store.close()
        store.close()
        with pytest.raises(StoreError, match="this vector store was closed; make or load another"):
            use(store)


# --- arguments ------------------------------------------------------------------------------------------------------

BAD_VECTORS = {
    "NaN": np.full(D, np.nan, np.float32),
    "one infinite element": np.r_[np.inf, np.ones(D - 1)].astype(np.float32),
    "zero": np.zeros(D, np.float32),
    "float64": np.ones(D),
    "too long": np.ones(D + 32, np.float32),
    "two-dimensional": np.ones((1, D), np.float32),
    "a list": [1.0] * D,
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_vector_without_direction_or_of_a_wrong_shape_is_refused(name):
    store = filled([1])
    with pytest.raises(ConfigError, match="^query: expected"):
        store.search(BAD_VECTORS[name])
    with pytest.raises(ConfigError, match="^vector: expected"):
        store.upsert(2, BAD_VECTORS[name])
    assert store.ids() == [1]


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None, "5"])
def test_k_is_an_integer_above_zero(k):
    with pytest.raises(ConfigError, match="^k: expected an integer of 1 or more"):
        filled([1]).search(DIRECTIONS[0], k)


@pytest.mark.parametrize("id", [-1, 2**64, 1.0, True, None, "1"])
def test_ids_are_integers_of_64_bits(id):
    store = filled([1])
    with pytest.raises(ConfigError, match="^id: expected an integer from 0 to 2\\^64 - 1"):
        store.upsert(id, DIRECTIONS[0])
    with pytest.raises(ConfigError, match="^id: expected"):
        store.delete(id)
    assert store.ids() == [1]


def test_numpy_integers_are_ids():
    store = filled([])
    store.upsert(np.uint64(2**64 - 1), DIRECTIONS[0])
    assert store.search(DIRECTIONS[0], np.int32(3))[0][0] == 2**64 - 1
    assert store.delete(np.uint64(2**64 - 1))


@pytest.mark.parametrize(
    ("codes", "scale", "message"),
    [
        (np.full((1, D), -128, np.int8), np.ones(1, np.float32), "from -127 to 127"),
        (np.ones((1, D), np.uint8), np.ones(1, np.float32), "codes: expected int8"),
        (np.ones((1, D + 1), np.int8), np.ones(1, np.float32), "codes: expected int8"),
        (np.ones((1, D), np.int8), np.ones(2, np.float32), "scale: expected float32"),
        (np.ones((1, D), np.int8), np.ones(1), "scale: expected float32"),
        (np.ones((1, D), np.int8), np.zeros(1, np.float32), "scale: expected 1 /"),
        (np.ones((1, D), np.int8), np.full(1, np.nan, np.float32), "scale: expected 1 /"),
    ],
)
def test_codes_that_are_none_are_refused(codes, scale, message):
    store = filled([1])
    with pytest.raises(ConfigError, match=message):
        store.upsert_codes([2], codes, scale)
    assert store.ids() == [1]
    if codes.shape[1] == D:  # over takes its dimensions from the codes
        with pytest.raises(ConfigError, match=message):
            VectorStore.over(codes, scale)


@pytest.mark.parametrize(
    ("code", "scale"),
    [
        (np.full(D, -128, np.int8), 0.1),
        (np.ones(D, np.uint8), 0.1),
        (np.ones(D + 32, np.int8), 0.1),
        (np.ones((1, D), np.int8), 0.1),
        (np.ones(D, np.int8), 0.0),
        (np.ones(D, np.int8), np.nan),
        (np.ones(D, np.int8), 1.5),
    ],
)
def test_a_single_code_that_is_none_is_refused(code, scale):
    store = filled([1])
    with pytest.raises(ConfigError, match="^(codes|scale): expected"):
        store.upsert_code(2, code, scale)
    with pytest.raises(ConfigError, match="^(codes|scale): expected"):
        store.search_code(code, scale)
    assert store.ids() == [1]


def test_vectors_and_codes_of_any_stride_are_taken():
    store, vector = VectorStore(D), np.repeat(DIRECTIONS[0], 2)[::2]
    codes, scale = reference.quantise(DIRECTIONS[:2])
    store.upsert(1, vector)
    store.upsert_code(2, np.asfortranarray(codes)[0], float(scale[0]))
    store.upsert_codes([3, 4], np.asfortranarray(codes), scale)
    expected = [(id, store.search(DIRECTIONS[0], 1)[0][1]) for id in (1, 2, 3)]
    assert store.search(vector, 3) == store.search_code(np.repeat(codes[0], 2)[::2], float(scale[0]), 3) == expected


@pytest.mark.parametrize("recall", [0, -1, 1.01, float("nan"), True, "1"])
def test_recall_is_a_share(recall):
    with pytest.raises(ConfigError, match="^recall: expected a number above 0, at most 1"):
        VectorStore(D, recall=recall)


def test_a_filter_may_name_what_is_no_id():
    store = filled(range(20))
    for filter in ([1, -1, 2, 2**64], [1.5, "2", None, True, 1, np.uint8(2)], np.array([-1, 1, 2])):
        assert sorted(id for id, _ in store.search(DIRECTIONS[0], 50, filter)) == [1, 2]


def test_as_many_ids_as_codes():
    with pytest.raises(ConfigError, match="ids: expected one for each of 2 codes, got 1"):
        filled([]).upsert_codes([1], np.ones((2, D), np.int8), np.ones(2, np.float32))


@pytest.mark.parametrize("dimensions", [0, 31, 100, 2048, 32.0])
def test_dimensions_are_a_multiple_of_32(dimensions):
    with pytest.raises(ConfigError, match="dimensions: expected a multiple of 32"):
        VectorStore(dimensions)


def test_an_absent_id_is_a_key_error():
    with pytest.raises(KeyError, match="no vector of id 2"):
        filled([1]).get(2)
    with pytest.raises(KeyError, match="no vector of id 2"):
        filled([1]).vector(2)


# --- a store over a catalogue's codes ---------------------------------------------------------------------------------


def catalogue(n: int) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = reference.quantise(np.random.default_rng(1).standard_normal((n, D)).astype(np.float32))
    codes.flags.writeable = scale.flags.writeable = False  # as a mapped bundle's sections are
    return codes, scale


def test_a_store_over_codes_searches_rows():
    codes, scale = catalogue(37)
    store = VectorStore.over(codes, scale)
    assert (store.count, store.ids(), store.dimensions) == (37, list(range(37)), D)
    rows, scores = reference.search(codes, scale, codes[9], scale[9], None, 5)
    assert store.search_code(codes[9], float(scale[9]), 5) == list(zip(rows.tolist(), scores.tolist(), strict=True))
    assert sorted(id for id, _ in store.search(DIRECTIONS[0], 50, [3, 36, 37, 99])) == [3, 36]
    assert 36 in store and 37 not in store and -1 not in store
    assert store.get(36)[0].tolist() == codes[36].tolist()
    with pytest.raises(KeyError):
        store.get(37)


def test_a_store_over_codes_is_read_only():
    store = VectorStore.over(*catalogue(3))
    for write in (
        lambda: store.upsert(1, DIRECTIONS[0]),
        lambda: store.upsert_code(1, np.ones(D, np.int8), 0.1),
        lambda: store.delete(1),
    ):
        with pytest.raises(StoreReadOnlyError, match="catalogue's codes"):
            write()
    assert store.count == 3


# --- readers and a writer -------------------------------------------------------------------------------------------


def test_readers_see_each_batch_whole_or_not_at_all():
    """The writer gives all ids one direction, then all of them another; a torn result would mix two scores."""
    n, rounds = 64, 300
    codes, scale = reference.quantise(DIRECTIONS[:4])
    valid = {float(reference.cosines(codes, scale, codes[0], scale[0])[i]) for i in range(4)}
    store = VectorStore(D)
    store.upsert_codes(range(n), np.repeat(codes[:1], n, axis=0), np.repeat(scale[:1], n))
    done, faults, reads = threading.Event(), [], [0, 0, 0]

    def read(reader: int) -> None:
        filter = None if reader else range(n)
        while not done.is_set():
            found = store.search_code(codes[0], float(scale[0]), n + 5, filter)
            scores = {score for _, score in found}
            if [id for id, _ in found] != list(range(n)) or len(scores) != 1 or not scores <= valid:
                faults.append(found)
            reads[reader] += 1

    readers = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in readers:
        thread.start()
    for round in range(rounds):
        store.upsert_codes(range(n), np.repeat(codes[round % 4][None], n, axis=0), np.repeat(scale[round % 4], n))
    done.set()
    for thread in readers:
        thread.join()
    assert not faults
    assert min(reads) > 0


def content_of(snapshot) -> list[bytes]:
    arrays = snapshot.arrays
    return [array.tobytes() for array in (arrays.high, arrays.low, arrays.scale, arrays.ids, snapshot.live)]


def test_a_row_is_not_used_again_while_a_reader_may_still_see_it():
    """A reader is stopped between its search and the look-up of the ids; meanwhile everything it saw is replaced."""
    codes, scale = reference.quantise(DIRECTIONS[:2])
    store = VectorStore(D)
    store.upsert_codes(range(8), np.repeat(codes[:1], 8, axis=0), np.repeat(scale[:1], 8))
    seen = store._snapshot
    before = content_of(seen)
    for round in range(50):
        store.delete(round % 8)
        store.upsert_code(100 + round, codes[1], float(scale[1]))
    assert content_of(seen) == before
    del seen
    size = store.nbytes
    for round in range(500):
        store.upsert_code(100 + round % 50, codes[0], float(scale[0]))
    assert store.nbytes == size  # the rows that the reader kept are free again


def test_readers_see_whole_vectors_while_the_store_grows_and_shrinks(monkeypatch):
    """Every id has one vector for ever, so an answer whose cosine is not that of its id was put together of two rows.

    The store grows from nothing past the size from which signs are kept and candidates chosen by them.
    """
    monkeypatch.setattr(vectors, "TWO_STAGE_MIN_VECTORS", 1500)
    monkeypatch.setattr(vector_calibration, "TWO_STAGE_MIN_VECTORS", 1500)
    n, lasting = 4000, 8
    codes, scale = reference.quantise(np.random.default_rng(3).standard_normal((n, D)).astype(np.float32))
    store = VectorStore(D, recall=0.5)
    store.upsert_codes(range(lasting), codes[:lasting], scale[:lasting])  # these are replaced, but always present
    cosines = [reference.cosines(codes, scale, codes[id], scale[id]).tolist() for id in range(lasting)]
    done, faults, reads = threading.Event(), [], [0] * 3

    def read(reader: int) -> None:
        while not done.is_set():
            target = reads[reader] % lasting
            filter = None if reader else range(0, n, 2)
            found = store.search_code(codes[target], float(scale[target]), 20, filter)
            expected = sorted(found, key=lambda answer: (-answer[1], answer[0]))
            wrong = [(id, score) for id, score in found if score != cosines[target][id]]
            if wrong or found != expected or len({id for id, _ in found}) != len(found):
                faults.append((target, wrong))
            if (filter is None or target % 2 == 0) and found[0][0] != target:
                faults.append((target, found[0]))
            code, _ = store.get(target)
            if not np.array_equal(code, codes[target]):
                faults.append((target, "get"))
            reads[reader] += 1

    readers = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in readers:
        thread.start()
    rng, searches = np.random.default_rng(4), set()
    for round in range(6000):
        id = int(rng.integers(0, n))
        if id >= lasting and rng.random() < 0.3:
            store.delete(id)
        else:
            store.upsert_code(id, codes[id], float(scale[id]))
        if round % 100 == 0:
            some = np.unique(rng.integers(0, n, 50))
            store.upsert_codes(some.tolist(), codes[some], scale[some])
            searches.add(store.stats().search)
    done.set()
    for thread in readers:
        thread.join()
    assert not faults
    assert min(reads) > 0
    assert searches == {"exact", "two-stage"}
