"""The look-up table of rows by id against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge.vector_ids import _FACTOR, IdTable, _start

CAPACITY = 400
# Ids that the table's factor makes small numbers of all start in one slot, so they probe over each other.
COLLIDING = [number * pow(_FACTOR, -1, 1 << 64) % (1 << 64) for number in range(40)]
IDS = st.integers(0, 50) | st.sampled_from(COLLIDING) | st.sampled_from([2**32, 2**63, 2**64 - 1])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(IDS, min_size=1, max_size=1)),
        st.tuples(st.just("put"), st.lists(IDS, min_size=8, max_size=60, unique=True)),
        st.tuples(st.just("remove"), st.lists(IDS, min_size=1, max_size=5)),
        st.tuples(st.just("move"), st.just([])),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_any_sequence_of_calls_leaves_what_a_dictionary_would_hold(operations):
    ids, free, model = np.zeros(CAPACITY, np.uint64), list(range(CAPACITY)), {}
    table = IdTable(ids, np.zeros(0, np.uint32))
    for kind, subjects in operations:
        if kind == "put":
            rows = [free.pop() for _ in subjects]
            ids[rows] = subjects
            before = sorted(model[id] for id in subjects if id in model)
            assert sorted(table.put_many(subjects, rows)) == before
            free.extend(before)
            model.update(zip(subjects, rows, strict=True))
        elif kind == "remove":
            for id in subjects:
                assert table.remove(id) == model.get(id, -1)
                if id in model:
                    free.append(model.pop(id))
        else:
            ids = ids.copy()  # the old array is changed after it, which must not matter
            table.move_to(ids)
    asked = [*model, *COLLIDING, 51, 2**64 - 2]
    expected = [model.get(id, -1) for id in asked]
    assert [table.find(id) for id in asked] == expected
    assert table.find_many(np.array(asked, np.uint64)).tolist() == expected


@pytest.mark.parametrize("spread", [1, 977, 2**40])
def test_an_id_takes_at_most_eight_bytes(spread):
    ids = np.arange(20_000, dtype=np.uint64) * np.uint64(spread)
    table = IdTable(ids, np.zeros(0, np.uint32))
    table.put_many(ids[:10_000].tolist(), range(10_000))
    for row in range(10_000, 20_000):
        table.put(int(ids[row]), row)
    assert table.nbytes <= 8 * 20_000
    assert IdTable(ids, np.arange(20_000, dtype=np.uint32)).nbytes <= 5.1 * 20_000
    assert table.find_many(ids).tolist() == list(range(20_000))


def test_ids_of_two_numbers_are_found_as_fast_as_others():
    """One number in each half, as a household's and a title's: where the halves cancel, 200 ids share each slot."""
    halves = np.arange(200, dtype=np.uint64)
    ids = (halves[:, None] << np.uint64(32) | halves).ravel()
    table = IdTable(ids, np.arange(len(ids), dtype=np.uint32))
    probes = [int(np.flatnonzero(table._table == row)[0]) - _start(int(ids[row]), table._slots) for row in range(0, 40_000, 97)]
    assert min(probes) >= 0 and np.mean(probes) < 8  # at a load of .8 linear probing takes 2 beyond the first slot
