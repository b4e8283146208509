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
        self._codes, self._scale = aligned(self.data.codes), aligned(self.data.scale)

    def instruction_set(self) -> str:
        from omega_edge._simd import kernels

        return kernels.isa


class Exact(Ours):
    """search: every row by its 8-bit code."""

    name = "omega exact"

    def searcher(self, effort: dict) -> Search:
        search, codes, scale = kernel("search"), self._codes, self._scale
        queries, query_scale = np.array(self.data.query_codes), self.data.query_scale.tolist()
        rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)

        def exact(number: int) -> np.ndarray:
            search(codes, scale, queries[number], query_scale[number], None, K, rows, scores)
            return rows

        return exact


class Store(Ours):
    """VectorStore.search: what a program calls. Its file is what is opened, its upsert what is inserted."""

    name = "omega store"

    def build(self) -> None:
        from omega_edge.vectors import VectorStore

        self._store = VectorStore()
        self._store.upsert_codes(range(self.data.rows), np.array(self.data.codes), np.array(self.data.scale))

    def searcher(self, effort: dict) -> Search:
        store, queries = self._store, np.array(self.data.queries)

        def search(number: int) -> np.ndarray:
            return np.array([row for row, _ in store.search(queries[number], K)])

        return search

    def save(self, path: Path) -> None:
        self._store.save(path, STAMP)

    def load(self, path: Path) -> object:
        from omega_edge.vectors import VectorStore

        return VectorStore.load(path, STAMP)

    def adopt(self, loaded: object) -> None:
        self._store = loaded

    def insert(self, number: int, count: int) -> None:
        self._store.upsert(self.data.rows + count, self.data.queries[number])

    def memory_bytes(self) -> int | None:
        return self._store.nbytes
