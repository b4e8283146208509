"""Runs one case: every method in a process of its own on one processor, in turns, round by round."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.search.data import load
from bench.search.lines import LOADED, Case, Measured, choose, least_recall
from bench.search.method import Method
from bench.search.process import METHODS
from bench.search.worker import SETUP_SECONDS, Worker, WorkerFailed

SPIN = 200_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and where."""

    work: Path
    peers_python: Path | None
    """None: only numpy and ours, in this Python."""
    rounds: int
    round_seconds: float
    inside_seconds: float
    processor: int | None
    only: str | None = None
    """Part of the names of the methods to measure."""

    def methods(self) -> list[type[Method]]:
        """The methods of this plan."""
        known = [method for method in METHODS.values() if self.peers_python or method.package in (None, "numpy")]
        return [method for method in known if self.only is None or self.only in method.name]

    def python_of(self, method: type[Method]) -> Path:
        """Ours run on the product's environment, peers on their own."""
        return Path(sys.executable) if method.family == "ours" or self.peers_python is None else self.peers_python


def one_processor() -> int | None:
    """The last processor that this process may use, where the system lets processes be pinned."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else None


def left_out(method: type[Method], kind: str, rows: int) -> str | None:
    """Why a method is not measured on a table."""
    if method.most_rows is not None and rows > method.most_rows:
        return f"above {method.most_rows} rows it is built anew in every run, by one thread: too slow"
    if method.family == "graph" and kind == "uniform" and rows > 10_000:
        return "uniform directions above 10,000 rows: no graph reaches the recall there"
    return None


def started(method: type[Method], configuration: dict, folder: Path, plan: Plan, version: str) -> Worker:
    """A process that builds the method's index."""
    facts = load(folder).facts
    built_from = json.dumps([method.name, configuration, facts["digest"], version])
    request = {
        "method": method.name,
        "configuration": configuration,
        "data": str(folder),
        "files": str(plan.work),
        "key": f"index-{hashlib.sha256(built_from.encode()).hexdigest()[:16]}",
        "processor": plan.processor,
        "trial_seconds": plan.round_seconds,
    }
    return Worker(plan.python_of(method), "bench.search.process", request)


def best_configuration(
    method: type[Method], kind: str, folder: Path, plan: Plan, version: str
) -> tuple[Worker, Measured]:
    """The process of the configuration that does best, still running, and what it built; the others are ended.

    Raises WorkerFailed if any configuration fails: a peer is compared in its best form or named as failed.
    """
    least = least_recall(method.name, method.family, kind)
    tried: list[tuple[Worker, Measured]] = []
    try:
        for configuration in method.configurations:
            worker = started(method, configuration, folder, plan, version)
            try:
                facts = worker.answer(SETUP_SECONDS)
            except BaseException:
                worker.close()
                raise
            chosen = choose(facts["points"], least)
            tried.append((worker, Measured(method.name, method.family, configuration, facts, chosen)))
        best = choose([measured.point for _, measured in tried], least)
    except BaseException:
        for worker, _ in tried:
            worker.close()
        raise
    for index, (worker, _) in enumerate(tried):
        if index != best:
            worker.close()
    worker, measured = tried[best]
    measured.others = [
        point | {"configuration": other.configuration}
        for index, (_, other) in enumerate(tried)
        for point in other.facts["points"]
        if index != best
    ]
    return worker, measured


def spin_ms() -> float:
    """Milliseconds of a fixed piece of work: what differs between rounds is the machine."""
    started_ns = time.perf_counter_ns()
    total = 0
    for number in range(SPIN):
        total += number
    return (time.perf_counter_ns() - started_ns) / 1e6


def run_case(kind: str, folder: Path, plan: Plan, version: str, say: Callable[[str], None]) -> Case:
    """Measures every method of the plan on one table."""
    facts = load(folder).facts
    case = Case(kind, facts["rows"], facts, {}, {}, {}, [])
    workers: dict[str, Worker] = {}
    try:
        for method in plan.methods():
            why = left_out(method, kind, case.rows)
            if why:
                case.left_out[method.name] = why
                say(f"  {method.name}: left out: {why}")
                continue
            begun = time.monotonic()
            try:
                workers[method.name], case.methods[method.name] = best_configuration(
                    method, kind, folder, plan, version
                )
            except WorkerFailed as fault:
                case.faults[method.name] = str(fault)
                say(f"  {method.name}: FAILED: {fault}")
                continue
            point = case.methods[method.name].point
            say(
                f"  {method.name}: {point['median_us']:.1f} us at recall {point['recall_at_50']} with "
                f"{case.methods[method.name].configuration | point['effort']} ({time.monotonic() - begun:.1f} s)"
            )
        for turn in range(plan.rounds):
            case.spin.append(spin_ms())
            one_round(case, workers, turn, plan, say)
        for name, worker in workers.items():
            if name in case.methods:
                case.methods[name].insert_us = worker.ask({"do": "insert"})["insert_us"]
    finally:
        for worker in workers.values():
            worker.close()
    measure_inside(case, folder, plan, say)
    return case


def one_round(case: Case, workers: dict[str, Worker], turn: int, plan: Plan, say: Callable[[str], None]) -> None:
    """Every method once; each round begins with another, so that none always follows the same."""
    names = list(case.methods)
    shift = turn % max(1, len(names))
    for name in names[shift:] + names[:shift]:
        measured = case.methods[name]
        try:
            first = sum(map(len, measured.rounds))
            command = {"do": "round", "effort": measured.chosen, "seconds": plan.round_seconds, "first": first}
            measured.rounds.append(workers[name].ask(command)["nanoseconds"])
            if name in LOADED:
                measured.loads.append(workers[name].ask({"do": "load"})["load_ms"])
        except WorkerFailed as fault:
            case.faults[name] = str(fault)
            del case.methods[name]
            say(f"  {name}: FAILED: {fault}")


def measure_inside(case: Case, folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Reading, calling, batches and ranking, in one more process of ours."""
    request = {
        "data": str(folder), "files": str(plan.work), "processor": plan.processor, "seconds": plan.inside_seconds,
    }  # fmt: skip
    worker = Worker(Path(sys.executable), "bench.search.inside", request)
    try:
        case.inside = worker.answer(SETUP_SECONDS)
    except WorkerFailed as fault:
        case.inside_fault = str(fault)
        say(f"  inside: FAILED: {fault}")
    finally:
        worker.close()
