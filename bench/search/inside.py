"""What is measured inside one process of ours: `python -m bench.search.inside REQUEST`, started by bench.search.

REQUEST is JSON: the data's folder, the folder for the compiled read loop, the processor to stay on, seconds for each
measurement. The one answer is JSON on standard output. What is compared takes turns, pass by pass.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.search.data import DIMENSIONS, K, SearchData, aligned, load
from bench.search.method import best_of
from bench.search.ours import Planes, kernel

READ_LOOP = Path(__file__).resolve().parent / "read_loop.c"
UNROLLS = (2, 4, 8, 16)
AHEAD = (0, 512, 1_024, 2_048, 4_096)
"""Prefetch distances in bytes."""
PASSES = 20
BATCH = 64
SELECTIVITIES = (1.0, 0.35, 0.10)
WEIGHTS = np.array([0.5, 0.2, 0.2, 0.1], np.float32)
"""Of similarity, success, recency, trend."""
HALF_LIFE_SECONDS = 14 * 86_400.0
LEAST_SIMILARITY = 0.0
CHECKED = 10
"""Queries whose whole answer is compared with the specification."""


def median_us_in_turns(calls: dict[str, Callable[[int], object]], seconds: float) -> dict[str, float]:
    """Median microseconds of each call; they take turns with one query after another until the time is over."""
    spent: dict[str, list[int]] = {name: [] for name in calls}
    until = time.perf_counter_ns() + int(seconds * 1e9)
    number = 0
    while time.perf_counter_ns() < until or number < 3:
        for name, call in calls.items():
            started = time.perf_counter_ns()
            call(number)
            spent[name].append(time.perf_counter_ns() - started)
        number += 1
    return {name: statistics.median(values) / 1e3 for name, values in spent.items()}


class ReadLoop:
    """The compiled loop of read_loop.c."""

    def __init__(self, folder: Path) -> None:
        library = folder / f"read_loop.{os.getpid()}.so"
        compiler = os.environ.get("CC", "gcc")
        flags = ["-std=c11", "-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(READ_LOOP)], check=True)
        self._call = ctypes.CDLL(str(library)).omega_read_loop
        library.unlink()
        self._call.restype = ctypes.c_int64
        size = ctypes.c_size_t
        self._call.argtypes = (ctypes.c_void_p, size, ctypes.c_int, size, size, ctypes.POINTER(ctypes.c_int64))

    def passes_us(self, table: np.ndarray, unroll: int, ahead: int, times: int) -> list[float]:
        """Microseconds of each pass over an array's bytes."""
        spent = (ctypes.c_int64 * times)()
        self._call(table.ctypes.data, table.nbytes, unroll, ahead, times, spent)
        return [nanoseconds / 1e3 for nanoseconds in spent]

    def best_variant(self, table: np.ndarray) -> tuple[int, int]:
        """The unroll and the prefetch distance that read the array fastest."""
        variants = [(unroll, ahead) for unroll in UNROLLS for ahead in AHEAD]
        times = {variant: min(self.passes_us(table, *variant, PASSES)) for variant in variants}
        return min(times, key=times.get)


def read_share(data: SearchData, planes: Planes, folder: Path, seconds: float) -> dict:
    """Microseconds to read the codes, and the upper plane alone, beside the exact scans of the same rows."""
    loop = ReadLoop(folder)
    codes, scale = aligned(data.codes), aligned(data.scale)
    rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)
    queries, query_scale = np.array(data.query_codes), data.query_scale.tolist()
    search, search_halves = kernel("search"), kernel("search_halves")
    variants = {"codes": loop.best_variant(codes), "high": loop.best_variant(planes.high)}
    spent: dict[str, list[float]] = {"read_codes": [], "read_high": [], "search": [], "search_halves": []}
    until = time.perf_counter() + seconds
    turn = 0
    while time.perf_counter() < until or turn < 3:
        number = turn % len(queries)
        spent["read_codes"].append(min_of_two(loop, codes, variants["codes"]))
        for name, call, table in (
            ("search", search, (codes, scale)),
            ("search_halves", search_halves, planes.arguments),
        ):
            for _ in range(2):  # as for the loop: the second of two passes finds the table in the cache
                started = time.perf_counter_ns()
                call(*table, queries[number], query_scale[number], None, K, rows, scores)
                took = (time.perf_counter_ns() - started) / 1e3
            spent[name].append(took)
        spent["read_high"].append(min_of_two(loop, planes.high, variants["high"]))
        turn += 1
    found = {f"{name}_us": statistics.median(values) for name, values in spent.items()}
    # The share is taken of these: other work on the machine slows the readers of memory unevenly.
    found |= {f"{name}_p5_us": sorted(values)[len(values) // 20] for name, values in spent.items()}
    found["bytes_codes"], found["bytes_high"] = codes.nbytes, planes.high.nbytes
    found["unroll_and_prefetch"] = {name: list(variant) for name, variant in variants.items()}
    return found


def min_of_two(loop: ReadLoop, table: np.ndarray, variant: tuple[int, int]) -> float:
    """Microseconds of the second of two passes: the first brings the table into the cache."""
    return loop.passes_us(table, *variant, 2)[1]


def call_overhead(data: SearchData, seconds: float) -> dict:
    """Microseconds of a kernel's call from Python over one row, where there is next to nothing to compute."""
    one = Planes(data.codes[:1], data.scale[:1])
    codes, scale = aligned(data.codes[:1]), aligned(data.scale[:1])
    query, query_scale = np.array(data.query_codes[0]), float(data.query_scale[0])
    rows, scores = np.empty(1, np.uint32), np.empty(1, np.float32)
    tables = {
        "search": (codes, scale),
        "search_halves": one.arguments,
        "search_two_stage": (one.blocks, *one.arguments),
    }
    found = {}
    for name, table in tables.items():
        call, before_k = kernel(name), (1,) if name == "search_two_stage" else ()
        times = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter_ns()
            for _ in range(1_000):
                call(*table, query, query_scale, None, *before_k, 1, rows, scores)
            times.append((time.perf_counter_ns() - started) / 1e6)
        found[name] = statistics.median(times)
    started = time.perf_counter_ns()
    for _ in range(10_000):
        pass
    found["empty_loop"] = (time.perf_counter_ns() - started) / 1e7
    return found


def batched(data: SearchData, planes: Planes, seconds: float) -> dict:
    """Microseconds a query of 64 queries at once, and of the same queries one by one; whether the answers are equal."""
    queries = np.array(data.query_codes[:BATCH])
    count = len(queries)
    query_scale = np.array(data.query_scale[:count])
    together, one_by_one = kernel("search_batch"), kernel("search_halves")
    found = np.empty(count, np.uintp)
    rows, scores = np.empty((count, K), np.uint32), np.empty((count, K), np.float32)
    row, score = np.empty(K, np.uint32), np.empty(K, np.float32)
    scales = query_scale.tolist()

    def singly(_turn: int) -> None:
        for number in range(count):
            one_by_one(*planes.arguments, queries[number], scales[number], None, K, row, score)

    def batch(_turn: int) -> None:
        together(*planes.arguments, queries, query_scale, None, K, found, rows, scores)

    times = median_us_in_turns({"batch": batch, "singly": singly}, seconds)
    fault = None if np.array_equal(rows, data.code_truth[:count]) else "rows of the batch differ from numpy's"
    return {"queries": count, "batch_us": times["batch"] / count, "singly_us": times["singly"] / count, "fault": fault}


def ranking(data: SearchData, planes: Planes, selectivity: float, seconds: float) -> dict:
    """Microseconds of rank, of the bare search under the same filter, and of numpy's two ways to the same ranking."""
    n, drawn = data.rows, np.random.default_rng(3)
    success, trend = drawn.random(n, np.float32), drawn.random(n, np.float32)
    now = 1_000_000_000
    when = (now - drawn.integers(0, 120 * 86_400, n)).astype(np.uint32)
    allowed = drawn.random(n) < selectivity
    bits = None if selectivity == 1 else np.packbits(allowed, bitorder="little")
    base, queries = aligned(data.base), np.array(data.queries)
    half_lives = ((when.astype(np.int64) - now) / HALF_LIFE_SECONDS).astype(np.float32)  # numpy gets them ready made
    codes, scale = np.array(data.query_codes), data.query_scale.tolist()
    rows, scores = np.empty(K, np.uint32), np.empty(K, np.float32)
    rank, search = kernel("rank"), kernel("search_halves")
    limits = (now, HALF_LIFE_SECONDS, LEAST_SIMILARITY)
    count = len(queries)

    def ours(number: int) -> int:
        asked = codes[number % count], scale[number % count]
        return rank(*planes.arguments, *asked, success, when, trend, WEIGHTS, limits, bits, K, rows, scores)

    def bare(number: int) -> int:
        return search(*planes.arguments, codes[number % count], scale[number % count], bits, K, rows, scores)

    def scored(similarity: np.ndarray, at: np.ndarray | slice) -> np.ndarray:
        beside = WEIGHTS[1] * success[at] + WEIGHTS[2] * np.exp2(half_lives[at]) + WEIGHTS[3] * trend[at]
        return WEIGHTS[0] * similarity + beside

    def numpy_whole(number: int) -> np.ndarray:
        similarity = base @ queries[number % count]
        ranked = scored(similarity, slice(None))
        ranked[~(allowed & (similarity >= LEAST_SIMILARITY))] = -np.inf
        return best_of(ranked)

    def numpy_gathered(number: int) -> np.ndarray:
        kept = np.flatnonzero(allowed)
        similarity = base[kept] @ queries[number % count]
        near = similarity >= LEAST_SIMILARITY
        kept = kept[near]
        return kept[best_of(scored(similarity[near], kept))]

    calls = {"rank": ours, "search": bare, "numpy_whole": numpy_whole}
    if selectivity < 1:
        calls["numpy_gathered"] = numpy_gathered
    times = median_us_in_turns(calls, seconds)
    columns = (success, when, trend, WEIGHTS, limits)
    return {f"{name}_us": value for name, value in times.items()} | {
        "selectivity": selectivity,
        "fault": ranking_fault(data, columns, bits, lambda number: rows[: ours(number)]),
    }


def ranking_fault(data: SearchData, columns: tuple, bits: np.ndarray | None, ours: Callable) -> str | None:
    """What differs between rank and the specification in numpy."""
    from tests import reference

    codes, scale = np.array(data.codes), np.array(data.scale)
    for number in range(min(CHECKED, len(data.queries))):
        query, query_scale = data.query_codes[number], float(data.query_scale[number])
        expected, _ = reference.rank(codes, scale, query, query_scale, *columns, bits, K)
        found = ours(number)
        if not np.array_equal(found, expected):
            return f"query {number}: expected rows {expected[:5].tolist()} ..., got {found[:5].tolist()} ..."
    return None


def main() -> int:
    """Measures what the command line asks for."""
    request = json.loads(sys.argv[1])
    if request["processor"] is not None:
        os.sched_setaffinity(0, {request["processor"]})
    data, seconds = load(Path(request["data"])), request["seconds"]
    assert data.base.shape[1] == DIMENSIONS
    planes = Planes(data.codes, data.scale)
    answer = {
        "read": read_share(data, planes, Path(request["files"]), seconds),
        "overhead": call_overhead(data, seconds / 3),
        "batch": batched(data, planes, seconds),
        "ranking": [ranking(data, planes, selectivity, seconds) for selectivity in SELECTIVITIES],
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
