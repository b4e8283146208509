"""Measures the brain of the television: `python -m bench.brain [--json] [--quick] [--only METRIC]`.

One JSON line a metric goes to standard output (a table without --json), progress to standard error. Every group of
metrics runs in a fresh process of its own (bench/probe.py) with one thread, on its own copy of a store with 1,000
episodes, 10,000 skills and 500 reasoning records, which is built once and kept. A line's `correct` says whether what
was timed also did its work; the exit code is 1 if any line is not correct. Lines are appended to bench/results.jsonl.

With --complete the bundle measured is the given one with every feature and both stages made up where it lacks them
(bench/complete_bundle.py): what a list costs at most. Those lines say "complete": true.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bench.complete_bundle import write_complete_bundle
from bench.machine import (
    IN_MEMORY_FILE_SYSTEMS,
    ROOT,
    cached_share,
    commit_facts,
    drop_from_page_cache,
    file_system_of,
    files_under,
    machine_facts,
)
from bench.metrics import EVENT_SPACING_SECONDS, FULL, QUICK, UNITS, Settings, line

RESULTS = ROOT / "bench/results.jsonl"
PACKAGES = ("numpy", "numpy.libs", "lmdb", "cbor2", "zstandard", "onnxruntime")
"""Installed packages whose files are dropped from the page cache before a cold start."""


class ProbeFailed(Exception):
    """A fresh process ended with an error; its own message went to standard error."""


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def run_probe(task: str, settings: Settings, **options: object) -> dict:
    """What a fresh process found: the JSON object that bench.probe prints."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    request = {"settings": asdict(settings), "options": options, "started_ns": time.perf_counter_ns()}
    finished = subprocess.run(
        [sys.executable, "-m", "bench.probe", task, json.dumps(request)],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    if finished.returncode != 0:
        raise ProbeFailed(f"{task}: the fresh process ended with code {finished.returncode}")
    return json.loads(finished.stdout)


@contextlib.contextmanager
def store_copy(settings: Settings, store: str = "full") -> Iterator[Path]:
    """A copy of the full or the gathered store (see bench/full_store.py), or a new one's place; removed afterwards.

    It is written through to the disk and dropped from the page cache, so that nothing of it is counted with what is
    measured: a copy leaves large folios, of which the kernel counts the whole for each byte written.
    """
    work = Path(settings.work)
    with tempfile.TemporaryDirectory(prefix="run-", dir=work) as folder:
        copied = Path(folder) / "storage"
        if store == "new":
            copied.mkdir()
        else:
            shutil.copytree(work / store, copied)
        drop_from_page_cache(files_under([copied]))
        yield copied


def build_store(settings: Settings) -> None:
    """Make sure that the full store of the settings' size stands in the work folder."""
    Path(settings.work).mkdir(parents=True, exist_ok=True)
    run_probe("store", settings)


def measure_recommend(settings: Settings) -> list[dict]:
    """recommend_ms_p50 and _p99 of calls that each follow a new viewing or a changed context."""
    with store_copy(settings) as storage:
        return run_probe("recommend", settings, storage=str(storage))["lines"]


def measure_observe(settings: Settings) -> list[dict]:
    """observe_ms_p50 and _p99 in the default configuration."""
    with store_copy(settings) as storage:
        return run_probe("observe", settings, storage=str(storage))["lines"]


def measure_embed(settings: Settings) -> list[dict]:
    """embed_ms_p50 of texts that were never embedded before."""
    return run_probe("embed", settings)["lines"]


def measure_open(settings: Settings) -> list[dict]:
    """open_ms and import_and_open_ms, with a cold and a warm page cache, without and with the text model."""
    lines = []
    with store_copy(settings) as storage:
        for model in (None, settings.model):
            for page_cache in ("cold", "warm"):
                lines += _opened(settings, storage, model, page_cache)
    return lines


def _opened(settings: Settings, storage: Path, model: str | None, page_cache: str) -> list[dict]:
    libraries = Path(sysconfig.get_path("platlib"))
    data = files_under([storage, Path(settings.catalog), *([Path(model)] if model else [])])
    programs = files_under([ROOT / "omega_edge", *(libraries / name for name in PACKAGES)])
    found, shares = [], []
    if page_cache == "warm":
        run_probe("open", settings, storage=str(storage), model=model)
    for _ in range(settings.scale.fresh_processes):
        if page_cache == "cold":
            drop_from_page_cache([*data, *programs])
        shares.append(cached_share(data))
        found.append(run_probe("open", settings, storage=str(storage), model=model))
    faults = [probe["fault"] for probe in found if probe["fault"]]
    common = {
        "page_cache": page_cache,
        "model": model is not None,
        "processes": len(found),
        "cached_share_before": round(max(shares), 3),
    }
    lines = []
    for metric in ("open_ms", "import_and_open_ms"):
        values = [probe[metric] for probe in found]
        lines.append(
            line(metric, statistics.median(values), faults[0] if faults else None)
            | common
            | {"lowest": round(min(values), 3), "highest": round(max(values), 3)}
        )
    starts = [probe["interpreter_start_ms"] for probe in found]
    lines[-1]["interpreter_start_ms"] = round(statistics.median(starts), 3)
    return lines


def measure_memory(settings: Settings) -> list[dict]:
    """resident_mb and resident_with_model_mb of a fresh process after 50 recommends."""
    lines = []
    for metric, model in (("resident_mb", None), ("resident_with_model_mb", settings.model)):
        with store_copy(settings) as storage:
            probe = run_probe("memory", settings, storage=str(storage), model=model)
        memory = {name: round(value, 2) for name, value in probe["memory"].items() if name != "resident"}
        memory["before_a_viewing"] = round(probe["before_a_viewing"], 2)
        lines.append(line(metric, probe["memory"]["resident"], probe["fault"]) | memory | probe["held"])
    return lines


def measure_trace(settings: Settings) -> list[dict]:
    """submitted_bytes_per_event of the six-hour trace in the default configuration, and beside it what changes it.

    The store is `gathered`: 1,000 episodes, the skills that come of them, and 500 patterns. Beside it: durable_per_event,
    each event synced before observe returns; new_store, empty before; full_store, with 10,000 skills besides, spread so
    that nearly every viewing touches another.
    """
    file_system = file_system_of(Path(settings.work))
    if file_system in IN_MEMORY_FILE_SYSTEMS:
        say(f"{settings.work} lies on {file_system}: what reaches a device cannot be counted there")
    default = _traced(settings, None, "gathered")
    beside = {
        "durable_per_event": _traced(settings, 0, "gathered"),
        "new_store": _traced(settings, None, "new"),
        "full_store": _traced(settings, None, "full"),
    }
    faults = [found.pop("fault") for found in (default, *beside.values())]
    made = line("submitted_bytes_per_event", default.pop("value"), next((fault for fault in faults if fault), None))
    events = settings.scale.trace_events
    trace = {"events": events, "hours": events * EVENT_SPACING_SECONDS / 3600, "file_system": file_system}
    return [made | default | beside | trace]


def _traced(settings: Settings, window: int | None, store: str) -> dict:
    options = {"durability_window_secs": window, "events_before": 0 if store == "new" else settings.scale.episodes}
    with store_copy(settings, store) as storage:
        plain = run_probe("trace", settings, storage=str(storage), written_back=False, **options)
    with store_copy(settings, store) as storage:
        written_back = run_probe("trace", settings, storage=str(storage), written_back=True, **options)
    return {
        "value": round(plain["submitted"], 2),
        "loss_window_secs": plain["loss_window_secs"],
        "before_the_checkpoint": round(plain["submitted_before_checkpoint"], 2),
        "device_bytes_per_event": plain["device"],
        "device_bytes_with_writeback_per_event": written_back["device"],
        "fault": plain["fault"] or written_back["fault"],
    }


def measure_bundle(settings: Settings) -> list[dict]:
    """bundle_mb: the catalogue's file."""
    return run_probe("bundle", settings)["lines"]


GROUPS: dict[str, tuple[Callable[[Settings], list[dict]], tuple[str, ...]]] = {
    "opening": (measure_open, ("open_ms", "import_and_open_ms")),
    "recommending": (measure_recommend, ("recommend_ms_p50", "recommend_ms_p99")),
    "observing": (measure_observe, ("observe_ms_p50", "observe_ms_p99")),
    "embedding": (measure_embed, ("embed_ms_p50",)),
    "memory": (measure_memory, ("resident_mb", "resident_with_model_mb")),
    "flash": (measure_trace, ("submitted_bytes_per_event",)),
    "bundle": (measure_bundle, ("bundle_mb",)),
}


def measure(settings: Settings, only: str | None, report: Callable[[dict], None]) -> bool:
    """Run every group, or the one that has the metric `only`; report each line. Returns whether all are correct."""
    facts = machine_facts()
    build_store(settings)
    all_correct = True
    for name, (measure_group, metrics) in GROUPS.items():
        if only is not None and only not in metrics:
            continue
        say(f"measuring: {name}")
        for made in measure_group(settings):
            if only not in (None, made["metric"]):
                continue
            all_correct &= made["correct"]
            report(made | {"machine": facts, "load_average": round(os.getloadavg()[0], 2)})
    return all_correct


def append_result(results: Path, made: dict, commit: dict[str, object]) -> None:
    """Add a line to the record of results, with commit and date."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"date": date, **commit, **made}, ensure_ascii=False) + "\n")


def table_row(made: dict) -> str:
    """A line for people."""
    bound = ">=" if made.get("at_least") else "<="
    verdict = "" if "limit" not in made else f"{'met' if made['met'] else 'MISSED'} ({bound} {made['limit']:g})"
    known = {"metric", "value", "unit", "correct", "machine", "load_average", "limit", "met", "fault", "quick"}
    known |= {"at_least"}
    notes = ", ".join(f"{name} {_in_words(value)}" for name, value in made.items() if name not in known)
    checked = "correct" if made["correct"] else f"NOT CORRECT: {made['fault']}"
    value = "none" if made["value"] is None else f"{made['value']:.4g}"
    return f"{made['metric']:<26}{value:>12} {made['unit']:<4}{verdict:<20}{checked:<10} {notes}"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_in_words(inner)}" for name, inner in value.items()) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m bench.brain", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON line a metric")
    parser.add_argument("--quick", action="store_true", help="a small store and few calls; no figure to quote")
    parser.add_argument("--only", choices=sorted(UNITS), help="measure one metric")
    parser.add_argument("--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle")
    parser.add_argument("--model", type=Path, default=ROOT / "build/model")
    parser.add_argument("--complete", action="store_true", help="with every feature and both stages, made up if need be")
    parser.add_argument("--data", type=Path, default=ROOT / "bench/data/movietweetings-70k")
    parser.add_argument("--work", type=Path, help="folder for stores (default: build/bench-store)")
    parser.add_argument("--results", type=Path, help="record to append to (bench/results.jsonl; none if --quick)")
    parser.add_argument("--no-append", action="store_true", help="do not append to the record")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: a result was not correct; 2: it could not be measured."""
    options = parse_arguments(arguments)
    folder = "bench-store" + "-complete" * options.complete + "-quick" * options.quick
    work = options.work or ROOT / "build" / folder
    results = options.results or (None if options.quick else RESULTS)
    paths = {"catalog": options.catalog, "model": options.model, "data": options.data}
    for name, path in paths.items():
        if not path.exists():
            say(f"--{name}: expected {path} to exist; ./run builds what is missing")
            return 2
    if options.complete:
        work.mkdir(parents=True, exist_ok=True)
        paths["catalog"] = work / "complete.bundle"
        write_complete_bundle(options.catalog, paths["catalog"])
    settings = Settings(
        **{name: str(path.resolve()) for name, path in paths.items()},
        work=str(work.resolve()),
        scale=QUICK if options.quick else FULL,
    )
    commit = commit_facts()

    def report(made: dict) -> None:
        made = made | {name: True for name in ("complete", "quick") if getattr(options, name)}
        print(json.dumps(made, ensure_ascii=False) if options.json else table_row(made), flush=True)
        if results is not None and not options.no_append:
            append_result(results, made, commit)

    try:
        return 0 if measure(settings, options.only, report) else 1
    except ProbeFailed as fault:
        say(f"not measured: {fault}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
