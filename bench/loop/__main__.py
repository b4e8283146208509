"""The closed loop, measured: `python -m bench.loop [--json] [--quick] [--report loop.html]`.

Homes of MovieTweetings live through the second half of its time with real brains that sync, over HTTP on loopback, with real
shard processes; what the shards receive, and nothing else, makes the weekly bundle and the daily trends that come back.
One level for each participation (0, 10, 30, 50, 100 % of the homes in `titles`, the others in `receive`), one with
everybody in `counts`, and one whose bundles are trained on the full log of the same homes. One JSON line a measure goes to
standard output, progress to standard error, a page with the plot to --report. A line's `correct` says whether every sync,
update and list was sound; the exit code is 1 if one was not. Finished levels are kept in build/loop: a run that was cut
goes on after them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.brain import RESULTS, append_result, table_row
from bench.loop.cloud_side import CloudSide, Keys
from bench.loop.confined import kernel_confines
from bench.loop.falsified import DEVICES, QUICK_DEVICES, SOURCE, SimulatedShard, all_reports
from bench.loop.full_log import FullLogJob
from bench.loop.lines import COUNTS, FULL_LOG, SHARINGS, Judge, level_name
from bench.loop.outcome import Kept, Outcome, fingerprint
from bench.loop.population import EVALUATED_DAYS, Population
from bench.loop.processes import ProcessFailed, Told
from bench.loop.run import MODEL_NAMES, LevelRun, Plan, Site, make_stores
from bench.loop.seed import SEED_SETTINGS, Seed, make_seed
from bench.machine import ROOT, commit_facts, machine_facts
from bench.replay.work import single_threaded, workers
from omega_edge import signing
from omega_edge.datasets import read_dataset
from omega_edge.errors import OmegaError
from omega_edge.protocol import COUNT_EPSILON

HOMES, QUICK_HOMES = 300, 30
QUICK_EVALUATED_DAYS, QUICK_QUERIES = 7, 50
QUICK_SHARINGS = (0.0, 1.0)
LEVELS_AT_ONCE = 2


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.loop", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line a measure")
    parser.add_argument("--quick", action="store_true", help="few homes and levels; no figure to quote")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with the plot")
    parser.add_argument("--homes", type=int, help=f"simulated households ({HOMES})")
    parser.add_argument("--devices", type=int, help=f"simulated devices of the level in `counts` ({DEVICES:,})")
    parser.add_argument("--levels", help="only these, with commas: " + ", ".join((*map(level_name, SHARINGS), COUNTS, FULL_LOG)))
    parser.add_argument("--seed", type=int, default=0, help="of the resampled households and of falsified reports (0)")
    parser.add_argument("--data", type=Path, default=ROOT / "bench/data/movietweetings-70k", help="data set")
    parser.add_argument("--model", type=Path, default=ROOT / "build/model", help="folder of the text model")
    parser.add_argument("--work", type=Path, default=ROOT / "build/loop", help="folder of finished levels (build/loop)")
    parser.add_argument("--record", action="store_true", help="append the lines to bench/results.jsonl")
    options = parser.parse_args(arguments)
    options.homes = options.homes or (QUICK_HOMES if options.quick else HOMES)
    options.devices = options.devices or (QUICK_DEVICES if options.quick else DEVICES)
    for name in ("homes", "devices"):
        if getattr(options, name) < 2:
            parser.error(f"--{name}: expected 2 or more, got {getattr(options, name)}")
    known = (*map(level_name, SHARINGS), COUNTS, FULL_LOG)
    usual = (*map(level_name, QUICK_SHARINGS), COUNTS) if options.quick else known
    options.chosen = usual if options.levels is None else tuple(options.levels.split(","))
    for name in options.chosen:
        if name not in known:
            parser.error(f"--levels: expected some of {', '.join(known)}, got {name!r}")
    if level_name(0.0) not in options.chosen:
        options.chosen = (level_name(0.0), *options.chosen)
    return options


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Progress:
    """How far all levels together have come, and when they will be done."""

    levels: int
    began: float = field(default_factory=time.monotonic)
    _shares: dict[str, float] = field(default_factory=dict)
    _told: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, name: str) -> Callable[[float], None]:
        """What a level reports its share to."""

        def report(share: float) -> None:
            with self._lock:
                self._shares[name] = share
                done, now = sum(self._shares.values()) / self.levels, time.monotonic()
                if now - self._told >= 10.0 or done >= 1.0:
                    self._told = now
                    left = (now - self.began) * (1.0 - done) / max(done, 1e-6)
                    say(f"{done:4.0%} of {self.levels} levels; about {left:.0f} s left")

        return report


@dataclass(frozen=True, slots=True)
class Loop:
    """What all levels of a run share. folder: of this run, removed after it."""

    options: argparse.Namespace
    population: Population
    site: Site
    folder: Path

    def plan(self, name: str, pool: Executor) -> Plan:
        """What a level is."""
        homes = len(self.population.homes)
        if name == COUNTS:
            return self._counts_plan(pool)
        if name == FULL_LOG:
            return Plan(name, ("titles",) * homes, trained_by=self._train_on_full_log)
        sharing = next(each for each in SHARINGS if level_name(each) == name)
        modes = ("titles" if shares else "receive" for shares in self.population.sharers(sharing))
        return Plan(name, tuple(modes), train=sharing > 0)

    def _counts_plan(self, pool: Executor) -> Plan:
        options = self.options
        say(f"{COUNTS}: {options.devices:,} devices draw their reports")
        simulated = options.devices - len(self.population.homes)
        bundle = self.site.seed.bundle
        reports = all_reports(self.population, bundle, simulated, options.seed, pool, LEVELS_AT_ONCE)
        keys = Keys.make(self.folder / "counts-keys", MODEL_NAMES)
        source = self.folder / "counts-source"
        key = signing.read_signing_key(keys.folder / SOURCE)
        shard = SimulatedShard(source, key, bytes.fromhex(keys.federation_secret), bundle, reports)
        shard.publish(self.population.begin_ms)
        modes = ("counts",) * len(self.population.homes)
        return Plan(
            COUNTS, modes, train=False, keys=keys, more_sources=(source,), each_midnight=shard.publish,
            facts={"devices": options.devices, "epsilon_per_year": COUNT_EPSILON * 365.25},
        )  # fmt: skip

    def _train_on_full_log(self, cloud: CloudSide) -> bool:
        began, before, options = time.monotonic(), cloud.bundle_version(), self.options
        job = Told(FullLogJob, options.data, options.homes, self.site.evaluated_days, self.site.seed.data)
        try:
            words = job.tell("train", cloud.bundles, cloud.keys.folder / "model", cloud.clock())
        finally:
            job.stop()
        return cloud.trained(before, began, words)


def measure(options: argparse.Namespace, folder: Path) -> tuple[Population, dict[str, Outcome]]:
    """Run the levels that are not kept from before."""
    evaluated = QUICK_EVALUATED_DAYS if options.quick else EVALUATED_DAYS
    population = Population.of(read_dataset(options.data), options.homes, evaluated)
    settings = {name: getattr(options, name) for name in ("homes", "devices", "quick", "seed")}
    of_run = fingerprint(options.data, settings)
    kept = Kept(options.work, of_run)
    found = {name: kept.read(name) for name in options.chosen}
    waiting = [name for name, outcome in found.items() if outcome is None]
    say(f"{len(population.homes)} homes, {len(population.queries)} questions; levels to run: {', '.join(waiting) or 'none'}")
    if waiting:
        seed = Seed(options.work / f"seed-{of_run}")
        site = Site(options.data, seed, folder, evaluated, LEVELS_AT_ONCE)
        trained = replace(SEED_SETTINGS, queries_per_bucket=QUICK_QUERIES) if options.quick else SEED_SETTINGS
        make_seed(population, options.model.resolve(), options.work.parent, seed, say, trained)
        make_stores(population, site)
        loop = Loop(options, population, Site(options.data, seed, folder, evaluated, 1), folder)
        progress = Progress(len(waiting))

        def run(name: str, plan: Plan) -> None:
            level = LevelRun(population, loop.site, plan, lambda text: say(f"{name}: {text}"))
            found[name] = level.run(progress.of(name))
            kept.write(name, found[name])

        with workers(LEVELS_AT_ONCE) as pool:
            plans = {name: loop.plan(name, pool) for name in waiting}
        with ThreadPoolExecutor(LEVELS_AT_ONCE) as threads:
            for running in [threads.submit(run, name, plan) for name, plan in plans.items()]:
                running.result()
    return population, {name: outcome for name, outcome in found.items() if outcome is not None}


def report_lines(options: argparse.Namespace, made: Sequence[dict], facts: dict) -> None:
    """Print the lines, and record them if asked."""
    commit = commit_facts() if options.record else {}
    for line in made:
        print(json.dumps(line | facts, ensure_ascii=False) if options.json else table_row(line), flush=True)
        if options.record:
            append_result(RESULTS, line | facts | {"machine": machine_facts()}, commit)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: something was not sound; 2: nothing was measured."""
    options = parse_arguments(arguments)
    began = time.monotonic()
    if not (options.model / "manifest.json").exists():
        say(f"--model: expected {options.model} to hold the text model, without which titles have no content; ./run builds it")
        return 2
    if not kernel_confines():
        say("expected a kernel with Landlock (Linux 5.13), without which the model job could read the data set")
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="run-", dir=options.work) as name, single_threaded():
            population, levels = measure(options, Path(name))
    except (OmegaError, ProcessFailed, OSError) as fault:
        say(f"not measured: {fault}")
        return 2
    made = Judge(population, levels, options.seed).lines()
    facts = {"dataset": population.dataset.name, "homes": len(population.homes), "days": population.days}
    facts |= {"seed": options.seed} | ({"quick": True} if options.quick else {})
    report_lines(options, made, facts)
    if options.report is not None:
        from bench.loop.report import page

        options.report.write_text(page(made, facts | {"queries": len(population.queries)}), encoding="utf-8")
        say(f"report: {options.report}")
    say(f"{time.monotonic() - began:.0f} s")
    return 0 if all(line["correct"] for line in made) else 1


if __name__ == "__main__":
    sys.exit(main())
