"""The peers' graphs: usearch, hnswlib and ruvector HNSW. Built once by one thread, kept with the seconds it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.search.data import DIMENSIONS, K
from bench.search.method import Method, Search

EFFORTS = (64, 128, 256, 512, 1024, 2048)
"""Widths of the candidate list of a search."""
BUILD_EFFORT = 128
"""Width of the candidate list of an insert: usearch's default, used for all."""


class UsearchGraph(Method):
    """usearch HNSW over the product's codes (its own cast to int8 loses recall that no effort brings back) or float16."""

    name = "usearch HNSW"
    family = "graph"
    package = "usearch"
    module = "usearch.index"
    configurations = (
        {"dtype": "i8", "connectivity": 16},
        {"dtype": "f16", "connectivity": 16},
        {"dtype": "f16", "connectivity": 32},
    )
    efforts = tuple({"expansion_search": width} for width in EFFORTS)
    slow_build = True

    def build(self) -> None:
        """Builds the index, by one thread."""
        from usearch.index import Index

        self._index = Index(ndim=DIMENSIONS, metric="cos", expansion_add=BUILD_EFFORT, **self.configuration)
        self._index.add(np.arange(self.data.rows), np.array(self._of("base", "codes")), threads=1)

    def _of(self, floats: str, codes: str) -> np.ndarray:
        return getattr(self.data, codes if self.configuration["dtype"] == "i8" else floats)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index, queries, width = self._index, np.array(self._of("queries", "query_codes")), effort["expansion_search"]

        def search(number: int) -> np.ndarray:
            if index.expansion_search != width:
                index.expansion_search = width
            return index.search(queries[number], K, threads=1).keys

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        self._index.save(str(path))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        from usearch.index import Index

        return Index.restore(str(path))

    def view(self, path: Path) -> object:
        """Opens the file as a map, read only."""
        from usearch.index import Index

        return Index.restore(str(path), view=True)

    def adopt(self, loaded: object) -> None:
        """Takes an opened index as its own."""
        self._index = loaded

    def insert(self, number: int, count: int) -> None:
        """Adds a query as one more row."""
        self._index.add(self.data.rows + count, self._of("queries", "query_codes")[number], threads=1)

    def instruction_set(self) -> str:
        """What the library says of itself."""
        return self._index.hardware_acceleration

    def memory_bytes(self) -> int | None:
        """The library's own count."""
        return self._index.memory_usage


class Hnswlib(Method):
    """hnswlib, float32, inner product of unit vectors."""

    name = "hnswlib HNSW"
    family = "graph"
    package = "hnswlib"
    module = "hnswlib"
    configurations = ({"M": 16},)
    efforts = tuple({"ef": width} for width in EFFORTS)
    slow_build = True

    def build(self) -> None:
        """Builds the index, by one thread."""
        index = self._empty()
        index.init_index(self.data.rows, ef_construction=BUILD_EFFORT, random_seed=1, **self.configuration)
        index.add_items(np.array(self.data.base), np.arange(self.data.rows), num_threads=1)
        self._index = index

    @staticmethod
    def _empty():
        import hnswlib

        return hnswlib.Index("ip", DIMENSIONS)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index, queries, width = self._index, np.array(self.data.queries), effort["ef"]
        index.set_num_threads(1)

        def search(number: int) -> np.ndarray:
            index.set_ef(width)
            return index.knn_query(queries[number], K, num_threads=1)[0][0]

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        self._index.save_index(str(path))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        index = self._empty()
        index.load_index(str(path))
        return index

    def adopt(self, loaded: object) -> None:
        """Takes an opened index as its own."""
        self._index = loaded

    def instruction_set(self) -> str:
        """What the library says of itself."""
        return "compiled here with -march=native"


class RuvectorGraph(Method):
    """ruvector HNSW. It has no file of its own, so it is built in every run, and only where that is bearable."""

    name = "ruvector HNSW"
    family = "graph"
    package = "ruvector"
    module = "ruvector._native"
    configurations = ({"m": 16},)
    efforts = tuple({"ef_search": width} for width in EFFORTS)
    most_rows = 10_000

    def build(self) -> None:
        """Builds the index, by one thread."""
        from ruvector import HnswIndex

        index = HnswIndex.create(DIMENSIONS, metric="cosine", ef_construction=BUILD_EFFORT, **self.configuration)
        index.insert_batch([str(row) for row in range(self.data.rows)], np.array(self.data.base))
        self._index = index

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index, queries, width = self._index, np.array(self.data.queries), effort["ef_search"]

        def search(number: int) -> np.ndarray:
            return np.array([int(found[0]) for found in index.search(queries[number], K, ef_search=width)])

        return search

    def instruction_set(self) -> str:
        """What the library says of itself."""
        return "none reported; its wheel is built for x86-64 or AArch64 baseline"
