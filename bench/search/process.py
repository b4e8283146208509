"""One method in a process of its own: `python -m bench.search.process REQUEST`, started by bench.search.

REQUEST is JSON: method, configuration, the data's folder, a folder for files, the processor to stay on, seconds to
try an effort. The first
answer says what was built and how each effort did; then every line on standard input asks for a round of timings. The
answers go to what was standard output; whatever a library prints there goes to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from bench.machine import resident_memory
from bench.search.data import SearchData, load
from bench.search.graphs import Hnswlib, RuvectorGraph, UsearchGraph
from bench.search.method import Method, Search
from bench.search.ours import Exact, ExactRescored, Halves, Store, TwoStage, TwoStageRescored
from bench.search.peers import (
    FaissRefined,
    FaissScalar,
    NumKongDistances,
    NumKongPacked,
    Numpy,
    RuvectorRefined,
    SimSimd,
    SqliteVec,
    UsearchExact,
    UsearchIndexExact,
)

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Exact, Halves, TwoStage, ExactRescored, TwoStageRescored, Store, Numpy, NumKongPacked, NumKongDistances, SimSimd, UsearchExact, UsearchIndexExact, FaissScalar,
        SqliteVec, FaissRefined, RuvectorRefined, UsearchGraph, Hnswlib, RuvectorGraph,
    )
}  # fmt: skip
LOADS = 5
INSERTS = 200
LEAST_QUERIES = 5


def recall(found: Iterable[np.ndarray], truth: np.ndarray) -> float:
    """Mean share of the true rows, uint32[q, k], among those found."""
    shares = [len(np.intersect1d(rows, best)) / len(best) for rows, best in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def timed(search: Search, queries: int, seconds: float, first: int = 0) -> list[int]:
    """Nanoseconds of each call, over the queries in order from the first, until the time is over."""
    spent = []
    search(first % queries)  # what another process left in the caches is not ours to pay for
    until = time.perf_counter_ns() + int(seconds * 1e9)
    number = first
    while len(spent) < LEAST_QUERIES or (time.perf_counter_ns() < until and len(spent) < queries):
        started = time.perf_counter_ns()
        search(number % queries)
        spent.append(time.perf_counter_ns() - started)
        number += 1
    return spent


def median_ms(call: Callable[[], object], times: int) -> float:
    """Median milliseconds of a call whose result is dropped each time, outside the timing."""
    spent = []
    for _ in range(times):
        started = time.perf_counter_ns()
        result = call()
        spent.append((time.perf_counter_ns() - started) / 1e6)
        del result
    return statistics.median(spent)


def settled_memory() -> float:
    """Bytes that this process alone holds, after a collection and with what malloc keeps free given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_memory()["anonymous"] * 1e6


def built(method: Method, kept: Path) -> dict:
    """Builds the index, or takes one that an earlier run built and kept; what it took."""
    sidecar = kept.with_suffix(".json")
    if method.slow_build and hasattr(method, "adopt") and sidecar.exists():
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        before = settled_memory()
        method.adopt(method.load(kept))
        return facts | {"built_now": False, "memory_bytes": settled_memory() - before}
    if method.module:
        importlib.import_module(method.module)  # its own pages are not the index's
    before = settled_memory()
    started = time.perf_counter()
    method.build()
    facts = {"build_seconds": round(time.perf_counter() - started, 4)}
    memory = settled_memory() - before
    if method.slow_build and hasattr(method, "adopt"):
        method.save(kept)
        sidecar.write_text(json.dumps(facts), encoding="utf-8")
    return facts | {"built_now": True, "memory_bytes": memory}


def file_facts(method: Method, path: Path) -> dict:
    """Bytes of the index's file, and milliseconds until what it holds can be searched, with the file in the cache."""
    if not hasattr(method, "save"):
        return {"file_bytes": None, "load_ms": None}
    method.save(path)
    facts = {"file_bytes": path.stat().st_size, "load_ms": round(median_ms(lambda: method.load(path), LOADS), 4)}
    if hasattr(method, "view"):
        facts["view_ms"] = round(median_ms(lambda: method.view(path), LOADS), 4)
    return facts


def effort_facts(method: Method, data: SearchData, seconds: float) -> Iterator[dict]:
    """Recall over all queries and the time of each effort, to find the best; the rounds reported come later."""
    queries = len(data.queries)
    for effort in method.efforts:
        search = method.searcher(effort)
        found = [np.array(search(number)) for number in range(queries)]
        spent = timed(search, queries, seconds)
        yield {
            "effort": effort,
            "recall_at_50": round(recall(found, data.truth), 4),
            "median_us": statistics.median(spent) / 1e3,
            "equals_codes": all(np.array_equal(rows, best) for rows, best in zip(found, data.code_truth, strict=True)),
        }


def insert_us(method: Method, queries: int) -> float | None:
    """Median microseconds to add one row to the index."""
    if not hasattr(method, "insert"):
        return None
    spent = []
    for count in range(min(INSERTS, queries)):
        started = time.perf_counter_ns()
        method.insert(count, count)
        spent.append((time.perf_counter_ns() - started) / 1e3)
    return statistics.median(spent)


def serve(request: dict, answer: Callable[[dict], None]) -> None:
    """Builds, reports, and times rounds until standard input ends."""
    if request["processor"] is not None:
        os.sched_setaffinity(0, {request["processor"]})
    data = load(Path(request["data"]))
    method = METHODS[request["method"]](data, request["configuration"])
    files = Path(request["files"])
    with tempfile.TemporaryDirectory(dir=files, prefix=".saved-") as folder:
        saved = Path(folder) / "index"
        facts = built(method, files / f"{request['key']}.index")
        own_count = method.memory_bytes()
        if own_count is not None:
            facts["memory_bytes"] = own_count
        facts |= file_facts(method, saved)
        facts["points"] = list(effort_facts(method, data, request["trial_seconds"]))
        facts["described"] = method.described()
        facts["instruction_set"] = method.instruction_set()
        facts["version"] = importlib.metadata.version(method.package) if method.package else None
        answer(facts)
        for asked in sys.stdin:
            answer(obey(json.loads(asked), method, data, saved))


def obey(command: dict, method: Method, data: SearchData, saved: Path) -> dict:
    """The answer to one command: a round of searches, some loads, or inserts."""
    if command["do"] == "insert":
        return {"insert_us": insert_us(method, len(data.queries))}
    if command["do"] == "load":
        return {"load_ms": median_ms(lambda: method.load(saved), LOADS)}
    search = method.searcher(method.efforts[command["effort"]])
    return {"nanoseconds": timed(search, len(data.queries), command["seconds"], command["first"])}


def main() -> int:
    """Serves the request of the command line."""
    request = json.loads(sys.argv[1])
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(facts: dict) -> None:
        channel.write(json.dumps(facts) + "\n")
        channel.flush()

    serve(request, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
