"""The product's ways to search, each named as the kernel that it calls.

What is timed is the Python call of the kernel with a quantised query and the caller's arrays, which is what the peers
that return arrays are compared with; `store` times VectorStore.search, from a float32 query to a list.
A mode that this build lacks ends its process with ModeMissing, so that the report names it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.search.data import K, aligned
from bench.search.method import Method, Search

STAMP = 1
SIGN_ROWS = 32
"""Rows of a block of signs, as kernels.h states."""
CANDIDATES = (100, 150, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 4_000, 8_000)
RESCORED = 64
"""Rows that the side file decides among."""


class ModeMissing(Exception):
    """The C core that was built has no such kernel."""


def kernel(name: str):
    """A kernel of the built core by its name."""
    from omega_edge._simd import kernels

    found = getattr(kernels, name, None)
    if found is None:
        raise ModeMissing(f"expected the built core to have {name}; it has not. Build it, or leave the mode out")
    return found


class Ours(Method):
    """Base: the codes on cache lines, and arrays for the answer."""

    family = "ours"

    def build(self) -> None:
        """Builds the index, by one thread."""
        self._codes, self._scale = aligned(self.data.codes), aligned(self.data.scale)

    def instruction_set(self) -> str:
        """What the library says of itself."""
        from omega_edge._simd import kernels

        return kernels.isa


class Exact(Ours):
    """search: every row by its 8-bit code."""

    name = "omega exact"

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        search, codes, scale = kernel("search"), self._codes, self._scale
        queries, query_scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)

        def exact(number: int) -> np.ndarray:
            search(codes, scale, queries[number], query_scale[number], None, K, rows, scores)
            return rows

        return exact


class Planes:
    """The codes as two planes of half bytes, and their signs, in arrays that start on cache lines."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray) -> None:
        rows, dimensions = codes.shape
        halves = kernel("halve"), kernel("put_signs")
        self.high = aligned(np.zeros((rows, dimensions // 2), np.uint8))
        self.low = aligned(self.high)
        self.scale, self.spread = aligned(scale), aligned(np.zeros(rows, np.uint8))
        self.blocks = aligned(np.zeros((-(-rows // SIGN_ROWS), dimensions * 4), np.uint8))
        whole = np.ascontiguousarray(codes)
        halves[0](whole, self.high, self.low, self.spread)
        halves[1](whole, 0, rows, self.blocks)

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        """What every kernel over halves takes first."""
        return self.high, self.low, self.scale, self.spread


class Halves(Ours):
    """search_halves: the same answer, the lower half of a code read only where the upper leaves it open."""

    name = "omega halves"

    def build(self) -> None:
        """Builds the index, by one thread."""
        self._planes = Planes(self.data.codes, self.data.scale)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        search, planes = kernel("search_halves"), self._planes.arguments
        queries, query_scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)

        def exact(number: int) -> np.ndarray:
            search(*planes, queries[number], query_scale[number], None, K, rows, scores)
            return rows

        return exact


class TwoStage(Halves):
    """search_two_stage: candidates by one bit a dimension, the best of them by the codes."""

    name = "omega two-stage"
    efforts = tuple({"candidates": count} for count in CANDIDATES)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        search, blocks, planes = kernel("search_two_stage"), self._planes.blocks, self._planes.arguments
        queries, query_scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)
        candidates = min(effort["candidates"], self.data.rows)

        def coarse(number: int) -> np.ndarray:
            search(blocks, *planes, queries[number], query_scale[number], None, candidates, K, rows, scores)
            return rows

        return coarse


class ExactRescored(Halves):
    """search_halves, and its best 64 again by the float16 side file."""

    name = "omega exact + side file"

    def build(self) -> None:
        """Builds the index, by one thread."""
        super().build()
        self._side = aligned(self.data.base.astype(np.float16))

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        search, rescore, side, planes = kernel("search_halves"), kernel("rescore"), self._side, self._planes.arguments
        codes, scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        queries = np.array(self.data.queries)
        near, near_scores = np.empty(RESCORED, np.uint32), np.empty(RESCORED, np.float32)
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)

        def rescored(number: int) -> np.ndarray:
            search(*planes, codes[number], scale[number], None, RESCORED, near, near_scores)
            rescore(side, queries[number], near, K, rows, scores)
            return rows

        return rescored


class TwoStageRescored(ExactRescored):
    """search_two_stage, and its best 64 again by the float16 side file."""

    name = "omega two-stage + side file"
    efforts = TwoStage.efforts

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        search, rescore, side = kernel("search_two_stage"), kernel("rescore"), self._side
        blocks, planes = self._planes.blocks, self._planes.arguments
        codes, scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        queries = np.array(self.data.queries)
        near, near_scores = np.empty(RESCORED, np.uint32), np.empty(RESCORED, np.float32)
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)
        candidates = min(effort["candidates"], self.data.rows)

        def rescored(number: int) -> np.ndarray:
            search(blocks, *planes, codes[number], scale[number], None, candidates, RESCORED, near, near_scores)
            rescore(side, queries[number], near, K, rows, scores)
            return rows

        return rescored


class Store(Ours):
    """VectorStore.search: what a program calls. Its file is what is opened, its upsert what is inserted."""

    name = "omega store"

    def build(self) -> None:
        """Builds the index, by one thread."""
        from omega_edge.vectors import VectorStore

        self._store = VectorStore()
        self._store.upsert_codes(range(self.data.rows), np.array(self.data.codes), np.array(self.data.scale))

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        store, queries = self._store, np.array(self.data.queries)

        def search(number: int) -> np.ndarray:
            return np.array([row for row, _ in store.search(queries[number], K)])

        return search

    def described(self) -> dict:
        """How the store searches at this size, by its own measurement, and what it takes to check its file's bytes."""
        stats = self._store.stats()
        return {"search": stats.search, "candidates": stats.candidates, "calibrated_recall": stats.recall}

    def view(self, path: Path) -> object:
        """Opens the file and checks every byte of it, as the first search does."""
        from omega_edge.vectors import VectorStore

        store = VectorStore.load(path, STAMP)
        store.verify()
        return store

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        self._store.save(path, STAMP)

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        from omega_edge.vectors import VectorStore

        return VectorStore.load(path, STAMP)

    def adopt(self, loaded: object) -> None:
        """Takes an opened index as its own."""
        self._store = loaded

    def insert(self, number: int, count: int) -> None:
        """Adds a query as one more row."""
        self._store.upsert(self.data.rows + count, self.data.queries[number])

    def memory_bytes(self) -> int | None:
        """The library's own count."""
        return self._store.nbytes
