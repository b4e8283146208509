"""Measures a real shard under load: `python -m bench.shard_load [--json] [--quick] [--only METRIC]`.

One JSON line a metric goes to standard output (a table without --json), progress to standard error. Shards are processes
started as an operator starts them, on loopback; televisions are simulated (fleet.py), every reply is checked (checks.py), and
after each run the ended shard's store is compared with all that was acknowledged (ledger.py). Latency counts from the moment
a sync was due. A line's `correct` says whether all that held; the exit code is 1 if any line is not correct. Lines are
appended to bench/results.jsonl, the plot of rising load goes to build/shard-load.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from bench.brain import RESULTS, append_result, say, table_row
from bench.machine import ROOT, commit_facts, machine_facts
from bench.shard_load.kills import measure_kills
from bench.shard_load.measure import Settings, measure_herd, measure_overload, measure_saturated, measure_steady
from bench.shard_load.metrics import FULL, QUICK, UNITS
from bench.shard_load.shard import Served, ShardFailed

GROUPS: dict[str, tuple[Callable[[Settings], list[dict]], tuple[str, ...]]] = {
    "as fast as replies come": (measure_saturated, ("durable_syncs_per_second", "cpu_us_per_sync")),
    "at given rates": (measure_steady, ("sync_ms_p99", "resident_mb")),
    "overload": (measure_overload, ("goodput_share_at_5x",)),
    "outage and return of power": (
        measure_herd,
        ("outage_load_ratio", "load_after_outage_ratio", "power_return_peak_ratio"),
    ),
    "kills under load": (measure_kills, ("acknowledged_lost",)),
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m bench.shard_load", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON line a metric")
    parser.add_argument("--quick", action="store_true", help="few devices, seconds and kills; no figure to quote")
    parser.add_argument("--only", choices=sorted(UNITS), action="append", help="measure this metric; may be repeated")
    parser.add_argument("--seed", type=int, default=1, help="of devices, titles and moments (1)")
    parser.add_argument(
        "--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle", help="bundle to serve"
    )
    parser.add_argument("--work", type=Path, help="folder for stores, on the disk to measure (build)")
    parser.add_argument("--plot", type=Path, help="where the plot of rising load goes (build/shard-load.svg)")
    parser.add_argument("--results", type=Path, help="record to append to (bench/results.jsonl; none if --quick)")
    parser.add_argument("--no-append", action="store_true", help="do not append to the record")
    return parser.parse_args(arguments)


def measure(settings: Settings, only: Collection[str], report: Callable[[dict], None]) -> bool:
    """Run every group that has one of these metrics; report their lines. Returns whether all are correct."""
    facts = machine_facts()
    all_correct = True
    for name, (measure_group, metrics) in GROUPS.items():
        if not set(only) & set(metrics):
            continue
        say(f"measuring: {name}")
        for made in measure_group(settings):
            if made["metric"] not in only:
                continue
            all_correct &= made["correct"]
            report(made | {"machine": facts, "load_average": round(os.getloadavg()[0], 2)})
    return all_correct


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: a result was not correct; 2: it could not be measured."""
    options = parse_arguments(arguments)
    if not options.catalog.exists():
        say(f"--catalog: expected {options.catalog} to exist; ./run builds it")
        return 2
    work = options.work or ROOT / "build"
    work.mkdir(parents=True, exist_ok=True)
    results = options.results or (None if options.quick else RESULTS)
    facts = machine_facts()
    settings = Settings(
        scale=QUICK if options.quick else FULL,
        served=Served.from_bundle(options.catalog, options.seed),
        work=work,
        plot=options.plot or work / "shard-load.svg",
        machine=f"{facts['cpu']}, {facts['cores']} cores",
        seed=options.seed,
        say=say,
    )
    commit = commit_facts()

    def report(made: dict) -> None:
        made = made | ({"quick": True} if options.quick else {})
        print(json.dumps(made, ensure_ascii=False) if options.json else table_row(made), flush=True)
        if results is not None and not options.no_append:
            append_result(results, made, commit)

    # Shards are ended by what ends this process in the ordinary way too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return 0 if measure(settings, options.only or UNITS.keys(), report) else 1
    except ShardFailed as fault:
        say(f"not measured: {fault}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
