"""Replays a data set as viewing and judges every list: `python -m bench.replay --dataset NAME --path DIR [--json]`.

The product is driven as a television is: real bundles trained on the past, real stores, viewings one by one. Beside it
the baselines of bench/replay/baselines, each with settings chosen before the test. One JSON line a measure goes to
standard output (a table without --json), progress to standard error, a page with plots to --report. A line's `correct`
says whether the lists passed their checks; a method that fails is named in a line that is not correct, and the exit
code is 1. With --record lines are appended to bench/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from bench.brain import RESULTS, append_result, table_row
from bench.machine import ROOT, commit_facts, machine_facts
from bench.replay.bundles import title_facts
from bench.replay.lines import OURS, SWEPT, Judge, Results
from bench.replay.scored import MethodFailed
from bench.replay.slice import busiest
from bench.replay.split import BLOCKS, FULL, RESTRICTED, Split
from bench.replay.work import (
    Pass,
    Shared,
    families,
    passes_lists,
    say,
    submit_families,
    trained_broadcast,
    workers,
)
from cloud.model import ModelSettings
from omega_edge.config import BrainConfig
from omega_edge.datasets import FORMAT_NAMES, Dataset, read_dataset
from omega_edge.errors import DatasetError, OmegaError

OURS_DIVERSE = "omega_diverse"
SHIPPED_DIVERSITY = BrainConfig.__dataclass_fields__["diversity"].default
SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
QUICK_HOUSEHOLDS, QUICK_TITLES, QUICK_EVENTS, QUICK_BLOCKS = 100, 200, 4_000, 2
QUICK_BASELINES = ("popularity", "item_knn")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options. An unknown one, or an unknown method, ends the program with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.replay", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--dataset", choices=sorted(FORMAT_NAMES), required=True, help="what is expected in the folder")
    parser.add_argument("--path", type=Path, required=True, help="folder of the data set's files")
    parser.add_argument("--json", action="store_true", help="print one JSON line a measure")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--methods", help=f"only these, with commas: {OURS}, {OURS_DIVERSE}, {', '.join(families())}")
    parser.add_argument("--diversity-sweep", action="store_true", help="also replay ours with diversity 0 to 0.5")
    parser.add_argument("--quick", action="store_true", help="a slice of the data, few methods; no figure to quote")
    parser.add_argument("--seed", type=int, default=0, help="of the resampled households (0)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="%(default)s")
    parser.add_argument("--model", type=Path, default=ROOT / "build/model", help="folder of the text model")
    parser.add_argument("--cache", type=Path, default=ROOT / "build", help="folder of the titles' vectors (build)")
    parser.add_argument("--record", action="store_true", help="append the lines to bench/results.jsonl")
    options = parser.parse_args(arguments)
    known = (OURS, OURS_DIVERSE, *families())
    chosen = known if options.methods is None else tuple(options.methods.split(","))
    if options.methods is None and options.quick:
        chosen = (OURS, OURS_DIVERSE, *(name for name in QUICK_BASELINES if name in known))
    for name in chosen:
        if name not in known:
            parser.error(f"--methods: expected some of {', '.join(known)}, got {name!r}")
    if options.processes < 1:
        parser.error(f"--processes: expected 1 or more, got {options.processes}")
    if options.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {options.seed}")
    if options.report is not None and not options.report.absolute().parent.is_dir():
        parser.error(f"--report: expected a file in a folder that exists, got {options.report}")
    options.chosen = chosen
    return options


def product_passes(options: argparse.Namespace, split: Split, results: Results) -> dict[Pass, np.ndarray]:
    """Which walks of the product are wanted, and over which queries."""
    every, restricted = np.arange(len(split.queries)), split.queries.restricted()
    passes = {}
    if OURS in options.chosen:
        passes[Pass(f"{OURS} {FULL}", FULL, 0.0)] = every
        passes |= {Pass(f"{OURS} {name}", name, 0.0): restricted for name in RESTRICTED}
    if OURS_DIVERSE in options.chosen:
        passes[Pass(f"{OURS_DIVERSE} {FULL}", FULL, SHIPPED_DIVERSITY)] = every
    if options.diversity_sweep:
        asked_already = {0.0: OURS, SHIPPED_DIVERSITY: OURS_DIVERSE}
        for value in SWEEP:
            label = asked_already.get(value)
            results.sweep[value] = label if label in options.chosen else f"{SWEPT}{value:g}"
            if label not in options.chosen:
                passes[Pass(f"{results.sweep[value]} {FULL}", FULL, value)] = every
    return passes


def replay(options: argparse.Namespace, dataset: Dataset, folder: Path, pool: Executor) -> tuple[Judge, Results]:
    """Do all of the work: train, replay, judge."""
    blocks = QUICK_BLOCKS if options.quick else BLOCKS
    split, results = Split(dataset.events, len(dataset.titles), blocks), Results()
    if not split.starts[0] or not len(split.queries):
        raise DatasetError(
            f"{dataset.name}: expected a past to learn from and, in the newest fifth of the viewings, a first viewing that "
            f"was a success; found none among {len(dataset.events)} viewings"
        )
    facts = title_facts(dataset, options.model.resolve(), options.cache, say)
    shared = Shared(dataset, facts, blocks, folder)
    say(f"{len(split.queries)} queries of {len(np.unique(split.queries.household))} households")
    file = folder / "shared.pickle"
    file.write_bytes(pickle.dumps(shared))
    passes = product_passes(options, split, results)
    training = pool.submit(trained_broadcast, file, ModelSettings()) if passes else None
    begun = submit_families(pool, file, [name for name in options.chosen if not name.startswith(OURS)])
    if training is not None:
        training.result()
        for label, lists in passes_lists(pool, file, split, passes, say).items():
            method, name = label.split(" ")
            results.answers.setdefault(method, {})[name] = lists
    for family, future in begun.items():
        try:
            found = future.result()
        except (MethodFailed, ImportError) as fault:
            results.faults[family] = f"{type(fault).__name__}: {fault}"
            continue
        results.answers[family] = dict(found.lists)
        results.configurations[family], results.tuning[family] = found.configuration, found.tuning
    return Judge(split, facts.vectors(), results, options.seed), results


def report_lines(options: argparse.Namespace, made: list[dict], facts: dict, say_line: Callable[[str], None]) -> None:
    """Print the lines, and record them if asked."""
    commit = commit_facts() if options.record else {}
    for line in made:
        say_line(json.dumps(line | facts, ensure_ascii=False) if options.json else table_row(line))
        if options.record:
            append_result(RESULTS, line | facts | {"machine": machine_facts()}, commit)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: a method failed or a list did not pass its checks; 2: nothing was measured."""
    options = parse_arguments(arguments)
    started = time.monotonic()
    if not (options.model / "manifest.json").exists():
        say(f"--model: expected {options.model} to hold the text model, without which titles have no content; ./run builds it")
        return 2
    try:
        dataset = read_dataset(options.path, expected=FORMAT_NAMES[options.dataset])
        for fault in dataset.malformed:
            say(f"left out {fault.file} line {fault.line}: {fault.why}")
        if options.quick:
            dataset = busiest(dataset, QUICK_HOUSEHOLDS, QUICK_TITLES, QUICK_EVENTS)
        with tempfile.TemporaryDirectory(prefix="omega-replay-") as name, workers(options.processes) as pool:
            folder = Path(name)
            options.cache.mkdir(parents=True, exist_ok=True)
            judge, results = replay(options, dataset, folder, pool)
    except (OmegaError, OSError) as fault:
        say(f"not measured: {fault}")
        return 2
    made = judge.lines()
    seconds = round(time.monotonic() - started, 1)
    facts = {"dataset": dataset.name, "events": len(dataset.events), "titles": len(dataset.titles)}
    facts |= {"malformed_lines": len(dataset.malformed), "seed": options.seed} | ({"quick": True} if options.quick else {})
    report_lines(options, made, facts, lambda text: print(text, flush=True))
    if options.report is not None:
        from bench.replay.report import page

        options.report.write_text(page(made, results, facts | {"seconds": seconds}), encoding="utf-8")
        say(f"report: {options.report}")
    say(f"{seconds} s")
    return 0 if all(line["correct"] for line in made) else 1


if __name__ == "__main__":
    sys.exit(main())
