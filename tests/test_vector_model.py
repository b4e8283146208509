"""The vector store under any sequence of calls, saved and loaded in between, against a dictionary and plain numpy: with
exact search, with candidates chosen by signs, and with the vectors kept.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from omega_edge import vector_calibration, vector_saving, vectors
from omega_edge.vector_calibration import Plan
from omega_edge.vectors import VectorStore
from tests import reference

D = 32
# Few directions, so that ties are common; two of them differ in length alone, which a cosine does not see.
DIRECTIONS = np.random.default_rng(0).standard_normal((6, D)).astype(np.float32)
DIRECTIONS[5] = DIRECTIONS[4] * 2
CODES, SCALES = reference.quantise(DIRECTIONS)
UNIT = (DIRECTIONS / np.abs(DIRECTIONS).max(1, keepdims=True)).astype(np.float32)
HALF_FLOATS = (UNIT / np.linalg.norm(UNIT, axis=1, keepdims=True)).astype(np.float16)
DECODED = (CODES * SCALES[:, None]).astype(np.float16)
# By query and direction: the cosine of the codes, and those of the half floats of a vector and of a code.
BY_CODE = np.stack([reference.cosines(CODES, SCALES, *query) for query in zip(CODES, SCALES, strict=True)])


def rescored(vectors: np.ndarray) -> np.ndarray:
    scores = np.empty((6, 6), np.float32)
    for query in range(6):
        rows, found = reference.rescore(vectors, DIRECTIONS[query], np.arange(6), 6)
        scores[query, rows] = found
    return scores


BY_HALF_FLOATS = np.stack([rescored(HALF_FLOATS), rescored(DECODED)], axis=2)
IDS = st.integers(0, 40) | st.sampled_from([2**32, 2**63, 2**64 - 1])
DIRECTION = st.integers(0, 5)


class StoreMachine(RuleBasedStateMachine):
    """A store, and what it should hold: by id the direction, and 1 if it came as a code, else 0."""

    options: ClassVar[dict] = {}

    def __init__(self) -> None:
        super().__init__()
        self.store = self.planned(VectorStore(D, **self.options))
        self.model: dict[int, tuple[int, int]] = {}
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @staticmethod
    def planned(store: VectorStore) -> VectorStore:
        return store

    @rule(id=IDS, direction=DIRECTION)
    def upsert(self, id, direction):
        self.store.upsert(id, DIRECTIONS[direction])
        self.model[id] = direction, 0

    @rule(ids=st.lists(IDS, max_size=40), direction=DIRECTION)
    def upsert_codes(self, ids, direction):
        directions = [(direction + i) % 6 for i in range(len(ids))]  # of an id given twice the last one holds
        self.store.upsert_codes(ids, CODES[directions].reshape(-1, D), SCALES[directions])
        self.model.update({id: (of, 1) for id, of in zip(ids, directions, strict=True)})

    @rule(id=IDS)
    def delete(self, id):
        assert self.store.delete(id) is (id in self.model)
        self.model.pop(id, None)

    @rule(direction=DIRECTION, k=st.integers(1, 60), filter=st.none() | st.lists(IDS), as_array=st.booleans())
    def search(self, direction, k, filter, as_array):
        allowed = self.model.keys() if filter is None else self.model.keys() & set(filter)
        if filter is not None and as_array:
            filter = np.array(filter, np.uint64)
        assert self.store.search(DIRECTIONS[direction], k, filter) == self.expected(direction, k, allowed)

    @rule()
    def save_and_load(self):
        path = Path(self.folder.name) / "vectors"
        self.store.save(path, 7)
        self.store.close()
        self.store = self.planned(VectorStore.load(path, 7, D, **self.options))

    @rule(id=IDS)
    def get(self, id):
        assert (id in self.store) is (id in self.model)
        if id in self.model:
            code, scale = self.store.get(id)
            direction, _ = self.model[id]
            assert (code.tolist(), scale) == (CODES[direction].tolist(), float(SCALES[direction]))

    @invariant()
    def holds_the_same_ids(self):
        assert self.store.count == len(self.store) == len(self.model)
        assert self.store.ids() == sorted(self.model)

    def expected(self, query: int, k: int, allowed) -> list[tuple[int, float]]:
        """The answer by definition: cosines, score descending, then id ascending."""
        scores = {id: float(BY_CODE[query, self.model[id][0]]) for id in allowed}
        return best(scores, k)


def best(scores: dict[int, float], k: int) -> list[tuple[int, float]]:
    return sorted(scores.items(), key=lambda found: (-found[1], found[0]))[:k]


class TwoStageMachine(StoreMachine):
    """With more candidates than rows, so that the answer is the exact one."""

    @staticmethod
    def planned(store: VectorStore) -> VectorStore:
        store.verify()
        store._calibration.plan = Plan(candidates=1000, recall=1.0, reason="", vectors=10**9)
        return store


class KeptVectorsMachine(StoreMachine):
    """The best by the codes, ordered by the vectors as half floats."""

    options: ClassVar[dict] = {"keep_vectors": True}

    def expected(self, query, k, allowed):
        near = [id for id, _ in super().expected(query, k + 8, allowed)]
        return best({id: float(BY_HALF_FLOATS[(query, *self.model[id])]) for id in near}, k)


@pytest.mark.parametrize("machine", [StoreMachine, TwoStageMachine, KeptVectorsMachine])
def test_any_sequence_of_calls_answers_as_plain_numpy_does(machine, monkeypatch):
    if machine is TwoStageMachine:
        for module in (vector_calibration, vector_saving, vectors):
            monkeypatch.setattr(module, "TWO_STAGE_MIN_VECTORS", 1)
        monkeypatch.setattr(vector_calibration, "_GREATEST_SHARE", 0)
        monkeypatch.setattr(vector_calibration.Calibration, "note", lambda *_: None)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
