"""Measures the vector search beside its peers: `python -m bench.search [--json] [--size 1k|10k|100k|all|huge] [--quick]`.

One JSON line a metric goes to standard output (a table without --json), progress to standard error, the plots of
recall against time to build/bench-search. Peers are installed into build/peers-venv when they are first needed.
Ratios are of what took turns in the same run; timings alone depend on the machine. A line's `correct` says whether
what was timed gave the right answer; a method that fails is named in a line that is not correct, and the exit code
is 1. Lines are appended to bench/results.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from bench.brain import RESULTS, append_result, say, table_row
from bench.machine import ROOT, commit_facts, machine_facts
from bench.search.environment import PLACE, SOURCES, WHEELS, EnvironmentFailed, prepare
from bench.search.lines import (
    Case,
    comparison_lines,
    crossover_line,
    inside_lines,
    method_lines,
    noise_line,
    recall_lines,
)
from bench.search.plot import write_plot
from bench.search.run import Plan, one_processor, run_case

SIZES = {"1k": (1_000,), "10k": (10_000,), "100k": (100_000,), "all": (1_000, 10_000, 100_000), "huge": (300_000,)}
QUERIES = 200
QUICK_ROWS, QUICK_TITLES, QUICK_QUERIES = 300, 200, 20


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.search", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line a metric")
    parser.add_argument("--size", choices=sorted(SIZES), default="10k", help="how many vectors (10k)")
    parser.add_argument("--data", choices=("real", "uniform", "both"), default="both", help="which vectors (both)")
    parser.add_argument("--only", metavar="NAME", help="measure the methods whose names hold this")
    parser.add_argument("--quick", action="store_true", help="few vectors, ours and numpy only; no figure to quote")
    parser.add_argument(
        "--titles", type=Path, default=ROOT / "bench/data/movietweetings-70k", help="data set of titles"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "build/model")
    parser.add_argument("--work", type=Path, help="folder for data, indexes and plots (build/bench-search)")
    parser.add_argument("--results", type=Path, help="record to append to (bench/results.jsonl; none if --quick)")
    parser.add_argument("--no-append", action="store_true", help="do not append to the record")
    return parser.parse_args(arguments)


def title_vectors(options: argparse.Namespace, cache_folder: Path) -> Callable:
    """A call that embeds the titles' texts by the product's engine, once."""

    @cache
    def vectors():
        from omega_edge.datasets import read_dataset
        from toolchain.build_bundle import embed_titles

        titles = read_dataset(options.titles).titles
        wanted = titles[:QUICK_TITLES] if options.quick else titles
        return embed_titles(wanted, options.model, cache_folder, say)[0]

    return vectors


def case_lines(case: Case, with_peers: bool) -> list[dict]:
    """Everything that one table gives."""
    lines = method_lines(case) + comparison_lines(case, with_peers) + recall_lines(case) + inside_lines(case)
    drawn = {name: case.facts[name] for name in ("real_rows", "jittered_rows")}
    return [line | drawn for line in [*lines, noise_line(case)]]


def measure(options: argparse.Namespace, plan: Plan, report: Callable[[dict], None]) -> bool:
    """Measures every size and kind of data that the options name; returns whether all lines are correct."""
    from bench.search.data import make

    machine = machine_facts()
    kinds = ("real", "uniform") if options.data == "both" else (options.data,)
    sizes = (QUICK_ROWS,) if options.quick else SIZES[options.size]
    queries = QUICK_QUERIES if options.quick else QUERIES
    titles = title_vectors(options, plan.work if options.quick else ROOT / "build")
    key = (options.model / "manifest.json").read_text(encoding="utf-8") + str(options.titles)
    version = hashlib.sha256(WHEELS.read_bytes() + SOURCES.read_bytes()).hexdigest()
    cases, all_correct = [], True
    for kind in kinds:
        for rows in sizes:
            say(f"{rows} {kind} vectors")
            folder = make(plan.work, kind, rows, titles, queries, key)
            case = run_case(kind, folder, plan, version, say)
            cases.append(case)
            if plan.only is not None:
                lines = method_lines(case)  # what it would be compared with is not there
            else:
                lines = case_lines(case, plan.peers_python is not None)
                if kind == "real" and rows == sizes[-1] and plan.peers_python is not None:
                    lines.append(crossover_line(cases))
            for line in lines:
                all_correct &= line["correct"]
                report(line | {"machine": machine, "load_average": round(os.getloadavg()[0], 2)})
            plot = plan.work / f"recall-{case.where['size']}-{kind}.svg"
            write_plot(case, machine, plot)
            say(f"  plot: {plot}")
    return all_correct


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: a result was not correct or is missing; 2: it could not be measured."""
    options = parse_arguments(arguments)
    for name, path in {"titles": options.titles, "model": options.model / "manifest.json"}.items():
        if not path.exists():
            say(f"--{name}: expected {path} to exist; ./run builds what is missing")
            return 2
    options.model = options.model.resolve()
    work = (options.work or ROOT / ("build/bench-search-quick" if options.quick else "build/bench-search")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    results = options.results or (None if options.quick else RESULTS)
    commit = commit_facts()

    def report(made: dict) -> None:
        made = made | ({"quick": True} if options.quick else {})
        print(json.dumps(made, ensure_ascii=False) if options.json else table_row(made), flush=True)
        if results is not None and not options.no_append:
            append_result(results, made, commit)

    try:
        python = None if options.quick else prepare(PLACE, say)
    except EnvironmentFailed as fault:
        say(f"not measured: the peers could not be installed: {fault}")
        return 2
    much = (2, 0.01, 0.03) if options.quick else (7, 0.4, 3.0)
    return 0 if measure(options, Plan(work, python, *much, one_processor(), options.only), report) else 1


if __name__ == "__main__":
    sys.exit(main())
