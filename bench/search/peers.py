"""The peers that scan: numpy, NumKong, SimSIMD, usearch's exact search, faiss, sqlite-vec. Graphs are in graphs.py.

Every import is inside its class: two of these libraries in one process disturb each other (usearch and SimSIMD share
symbols, and NumKong then falls back to scalar code), so each method runs in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.search.data import DIMENSIONS, K, aligned
from bench.search.method import Method, Search, best_of, lowest_of


def enabled(capabilities: dict[str, bool]) -> str:
    """The names of the capabilities that are on."""
    return " ".join(name for name, on in capabilities.items() if on)


class Numpy(Method):
    """float32 matrix times vector."""

    name = "numpy float32"
    family = "exact float32"
    package = "numpy"

    def build(self) -> None:
        """Builds the index, by one thread."""
        self.adopt(np.array(self.data.base))

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        table, queries, scores = self._table, np.array(self.data.queries), np.empty(self.data.rows, np.float32)

        def search(number: int) -> np.ndarray:
            return best_of(np.matmul(table, queries[number], out=scores))

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        with path.open("wb") as file:
            np.save(file, self._table)

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        return np.load(path)

    def adopt(self, loaded: object) -> None:
        """Takes an opened index as its own."""
        self._table = aligned(loaded)

    def instruction_set(self) -> str:
        """What the library says of itself."""
        from numpy._core._multiarray_umath import __cpu_features__

        return enabled({name: on for name, on in __cpu_features__.items() if name.startswith(("AVX512", "ASIMD"))})


class Codes(Method):
    """Base of what searches the product's codes: int8 rows and their scales, in one file of both."""

    family = "exact int8"

    def build(self) -> None:
        """Builds the index, by one thread."""
        self.adopt((self.data.codes, self.data.scale))

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        with path.open("wb") as file:
            np.save(file, self._codes)
            np.save(file, self._scale)

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        with path.open("rb") as file:
            return np.load(file), np.load(file)

    def adopt(self, loaded: object) -> None:
        """Takes an opened index as its own."""
        self._codes, self._scale = aligned(loaded[0]), aligned(loaded[1])


class NumKongPacked(Codes):
    """dots_packed and angulars_packed over rows packed once, then numpy's partition."""

    name = "NumKong packed"
    package = "numkong"
    module = "numkong"
    efforts = (
        {"call": "dots_packed", "tail": "astype"},
        {"call": "dots_packed", "tail": "multiply"},
        {"call": "angulars_packed", "tail": "partition"},
    )

    def adopt(self, loaded: object) -> None:
        """Packs the codes; only the packed rows are kept."""
        import numkong

        super().adopt(loaded)
        self._packed = numkong.dots_pack(self._codes)
        self._codes = self.data.codes

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        import numkong

        codes, scale = super().load(path)
        numkong.dots_pack(codes)
        return codes, scale

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        import numkong

        packed, scale, queries = self._packed, self._scale, np.array(self.data.query_codes)
        scores = np.empty(len(scale), np.float32)
        call = getattr(numkong, effort["call"])
        room = call(queries[:1], packed)
        found = np.asarray(room).reshape(-1)

        def by_astype(number: int) -> np.ndarray:
            call(queries[number : number + 1], packed, out=room)
            return best_of(found.astype(np.float32) * scale)

        def by_multiply(number: int) -> np.ndarray:
            call(queries[number : number + 1], packed, out=room)
            return best_of(np.multiply(found, scale, out=scores, casting="unsafe"))

        def by_partition(number: int) -> np.ndarray:
            call(queries[number : number + 1], packed, out=room)
            return lowest_of(found)

        return {"astype": by_astype, "multiply": by_multiply, "partition": by_partition}[effort["tail"]]

    def instruction_set(self) -> str:
        """What the library says of itself."""
        import numkong

        return enabled(numkong.get_capabilities())


class NumKongDistances(Codes):
    """cdist of angular distances, then numpy's partition."""

    name = "NumKong cdist"
    package = "numkong"
    module = "numkong"
    efforts = ({"out_dtype": None}, {"out_dtype": "f32"})

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        import numkong

        codes, queries, options = self._codes, np.array(self.data.query_codes), {}
        if effort["out_dtype"]:
            options["out_dtype"] = effort["out_dtype"]

        def search(number: int) -> np.ndarray:
            found = numkong.cdist(queries[number : number + 1], codes, "angular", **options)
            return lowest_of(np.asarray(found).reshape(-1))

        return search

    def instruction_set(self) -> str:
        """What the library says of itself."""
        import numkong

        return enabled(numkong.get_capabilities())


class SimSimd(Codes):
    """cdist of cosine distances, then numpy's partition."""

    name = "SimSIMD cdist"
    package = "simsimd"
    module = "simsimd"
    efforts = ({"out_dtype": "f64"}, {"out_dtype": "f32"})

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        import simsimd

        codes, queries, out_dtype = self._codes, np.array(self.data.query_codes), effort["out_dtype"]

        def search(number: int) -> np.ndarray:
            found = simsimd.cdist(queries[number : number + 1], codes, "cosine", out_dtype=out_dtype, threads=1)
            return lowest_of(np.asarray(found).reshape(-1))

        return search

    def instruction_set(self) -> str:
        """What the library says of itself."""
        import simsimd

        return enabled(simsimd.get_capabilities())


class UsearchExact(Codes):
    """usearch's exact search over the product's codes."""

    name = "usearch exact"
    package = "usearch"
    module = "usearch.index"

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        from usearch.index import MetricKind, search

        codes, queries = self._codes, np.array(self.data.query_codes)

        def exact(number: int) -> np.ndarray:
            return search(codes, queries[number], K, MetricKind.Cos, exact=True, threads=1).keys

        return exact

    def instruction_set(self) -> str:
        """What the library says of itself."""
        from usearch.index import Index

        return Index(ndim=DIMENSIONS, metric="cos", dtype="i8").hardware_acceleration


class UsearchIndexExact(Method):
    """usearch's index, searched exactly: its own cast to int8 (x 127) or the product's codes.

    The graph is as thin as it may be, for it is built but not used.
    """

    name = "usearch Index exact"
    family = "exact int8"
    package = "usearch"
    module = "usearch.index"
    configurations = ({"codes": "own"}, {"codes": "ours"})

    def build(self) -> None:
        """Builds the index, by one thread."""
        from usearch.index import Index

        self._index = Index(ndim=DIMENSIONS, metric="cos", dtype="i8", connectivity=4, expansion_add=4)
        rows = self.data.base if self.configuration["codes"] == "own" else self.data.codes
        self._index.add(np.arange(self.data.rows), np.array(rows), threads=1)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index = self._index
        queries = np.array(self.data.queries if self.configuration["codes"] == "own" else self.data.query_codes)

        def search(number: int) -> np.ndarray:
            return index.search(queries[number], K, exact=True, threads=1).keys

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        self._index.save(str(path))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        from usearch.index import Index

        return Index.restore(str(path))

    def instruction_set(self) -> str:
        """What the library says of itself."""
        return self._index.hardware_acceleration

    def memory_bytes(self) -> int | None:
        """The library's own count."""
        return self._index.memory_usage


class FaissMethod(Method):
    """Base of the faiss indexes: one thread, results into arrays made before."""

    package = "faiss-cpu"
    module = "faiss"

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index, queries = self._index, self.asked()
        for name, value in effort.items():
            setattr(index, name, value)
        distances, rows = np.empty((1, K), np.float32), np.empty((1, K), np.int64)

        def search(number: int) -> np.ndarray:
            index.search(queries[number : number + 1], K, D=distances, I=rows)
            return rows[0]

        return search

    def asked(self) -> np.ndarray:
        """The queries as float32[q, 384]."""
        return np.array(self.data.queries)

    def fill(self, index: object, rows: np.ndarray) -> None:
        """Trains an index on the rows and adds them."""
        import faiss

        faiss.omp_set_num_threads(1)
        index.train(rows)
        index.add(rows)
        self._index = index

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        import faiss

        faiss.write_index(self._index, str(path))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        import faiss

        return faiss.read_index(str(path))

    def instruction_set(self) -> str:
        """What the library says of itself."""
        import faiss

        return f"{faiss.SIMDConfig.get_level_name()} of {faiss.get_compile_options().strip()}"


class FaissScalar(FaissMethod):
    """8-bit scalar quantiser, scanned.

    QT_8bit_direct_signed takes whole numbers from -128 to 127 as they are, of rows and of queries. Its rows share one
    scale, because the product's codes have a scale each, which faiss cannot apply: 127 for the largest number, or for
    a smaller one beyond which numbers are cut off (`reach`).
    """

    name = "faiss SQ8"
    family = "exact int8"
    configurations = (
        {"type": "QT_8bit_uniform"},
        {"type": "QT_8bit"},
        {"type": "QT_8bit_direct_signed", "reach": 1.0},
        {"type": "QT_8bit_direct_signed", "reach": 0.8},
    )

    def build(self) -> None:
        """Builds the index, by one thread."""
        import faiss

        kind = getattr(faiss.ScalarQuantizer, self.configuration["type"])
        rows = np.array(self.data.base)
        reach = self.configuration.get("reach")
        if reach:
            rows = np.clip(np.rint(rows * (127 / (reach * np.abs(rows).max()))), -127, 127)
        self.fill(faiss.IndexScalarQuantizer(DIMENSIONS, kind, faiss.METRIC_INNER_PRODUCT), rows)

    def asked(self) -> np.ndarray:
        """The queries as the index takes them."""
        return np.array(self.data.query_codes if "reach" in self.configuration else self.data.queries, np.float32)


class FaissRefined(FaissMethod):
    """1-bit RaBitQ by table look-ups, then the best k x k_factor by 8-bit codes."""

    name = "faiss RaBitQ + SQ8"
    family = "refined"
    configurations = ({"factory": "RaBitQfs,Refine(SQ8)"}, {"factory": "RaBitQ,Refine(SQ8)"})
    efforts = tuple({"k_factor": factor} for factor in (2, 4, 6, 8, 10, 15, 20, 30, 40, 80))

    def build(self) -> None:
        """Builds the index, by one thread."""
        import faiss

        index = faiss.index_factory(DIMENSIONS, self.configuration["factory"], faiss.METRIC_INNER_PRODUCT)
        self.fill(index, np.array(self.data.base))


class SqliteVec(Method):
    """A vec0 table of int8 vectors, in memory, by cosine distance."""

    name = "sqlite-vec int8"
    family = "exact int8"
    package = "sqlite-vec"
    module = "apsw"

    def build(self) -> None:
        """Builds the index, by one thread."""
        self._database = self._opened(":memory:")
        table = f"create virtual table vectors using vec0(code int8[{DIMENSIONS}] distance_metric=cosine)"
        self._database.execute(table)
        with self._database:
            rows = ((number, code.tobytes()) for number, code in enumerate(self.data.codes))
            self._database.executemany("insert into vectors(rowid, code) values (?, vec_int8(?))", rows)

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        execute, queries = self._database.execute, [code.tobytes() for code in self.data.query_codes]
        statement = f"select rowid from vectors where code match vec_int8(?) and k = {K} order by distance"

        def search(number: int) -> np.ndarray:
            return np.array([row for (row,) in execute(statement, (queries[number],))])

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        path.unlink(missing_ok=True)
        self._database.execute("vacuum into ?", (str(path),))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        database = self._opened(str(path))
        database.execute("select count(*) from vectors").fetchall()
        return database

    @staticmethod
    def _opened(path: str):
        import apsw
        import sqlite_vec

        database = apsw.Connection(path)
        database.enable_load_extension(True)
        database.load_extension(sqlite_vec.loadable_path())
        return database

    def instruction_set(self) -> str:
        """What the library says of itself."""
        flags = self._database.execute("select vec_debug()").fetchall()[0][0].split("Build flags:")[1].strip()
        return flags or "none reported: built without its avx and neon flags"


class RuvectorRefined(Method):
    """1-bit RaBitQ, then float32 for the best k x rerank_factor."""

    name = "ruvector RaBitQ"
    family = "refined"
    package = "ruvector"
    module = "ruvector._native"
    efforts = tuple({"rerank_factor": factor} for factor in (5, 10, 20, 40, 80, 160))

    def build(self) -> None:
        """Builds the index, by one thread."""
        from ruvector import RabitqIndex

        self._index = RabitqIndex.build(np.array(self.data.base))

    def searcher(self, effort: dict) -> Search:
        """The call that is timed, at one effort."""
        index, queries, factor = self._index, np.array(self.data.queries), effort["rerank_factor"]

        def search(number: int) -> np.ndarray:
            return np.array([row for row, _ in index.search(queries[number], K, rerank_factor=factor)])

        return search

    def save(self, path: Path) -> None:
        """Writes the index to its file."""
        self._index.save(str(path))

    def load(self, path: Path) -> object:
        """Opens the file, ready to search."""
        from ruvector import RabitqIndex

        return RabitqIndex.load(str(path))

    def instruction_set(self) -> str:
        """What the library says of itself."""
        return "none reported; its wheel is built for x86-64 or AArch64 baseline"

    def memory_bytes(self) -> int | None:
        """The library's own count."""
        return self._index.memory_bytes
