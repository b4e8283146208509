"""The demonstration's measurements: what the brain takes on this machine, beside the limits of a release.

Timed calls each follow a new event, so that nothing is answered from a cache. Opening and memory are measured in
fresh processes: `python -m omega_edge.demo_measure` opens a store, recommends once and prints what it took.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

TRACE_EVENTS = 300
TRACE_SECONDS = 6 * 3600
FRESH_PROCESSES = 3
PROBE_TEXT = "A text that no catalogue holds (1931): Adventure, Comedy"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a release may take at most, and what it aims for, in the metric's unit; None where none is set."""

    metric: str
    words: str
    unit: str
    limit: float | None
    aim: float | None
    basis: str


LIMITS = (
    Limit("open_ms", "open the brain", "ms", 1_000, 300, "a fresh process, imports not counted"),
    Limit(
        "open_with_model_ms", "open it with the text model", "ms", 1_000, 300, "a fresh process, imports not counted"
    ),
    Limit("recommend_ms_p50", "recommend 20 titles, p50", "ms", None, None, "after each event of the trace"),
    Limit("recommend_ms_p99", "recommend 20 titles, p99", "ms", 5, 2, "after each event of the trace"),
    Limit("observe_ms_p99", "observe one viewing, p99", "ms", 5, 2, "each event of the trace"),
    Limit("resident_mb", "memory, without the text model", "MB", 80, 50, "a fresh process, after one recommend"),
    Limit(
        "resident_with_model_mb", "memory, with the text model", "MB", 200, 120, "a fresh process, after one embedding"
    ),
    Limit(
        "submitted_bytes_per_event",
        "written to flash per event",
        "B",
        4_000,
        1_000,
        "the trace, over six hours, a checkpoint included",
    ),
    Limit("bundle_mb", "catalogue bundle", "MB", None, None, "the file"),
)
"""Limits and aims hold for a television with Cortex-A73 class cores."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure: value is None where it could not be measured; verdict: met, missed, no limit or not measured."""

    metric: str
    words: str
    value: float | None
    unit: str
    limit: float | None
    aim: float | None
    verdict: str
    basis: str


def judged(values: dict[str, float | None]) -> tuple[Measured, ...]:
    """Every line of LIMITS with its value and verdict."""
    return tuple(
        Measured(
            each.metric,
            each.words,
            values[each.metric],
            each.unit,
            each.limit,
            each.aim,
            _verdict(values[each.metric], each.limit),
            each.basis,
        )
        for each in LIMITS
    )


def _verdict(value: float | None, limit: float | None) -> str:
    if value is None:
        return "not measured"
    if limit is None:
        return "no limit"
    return "met" if value <= limit else "missed"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed: nearest rank, so always one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def submitted_bytes() -> int | None:
    """Bytes that this process has handed to write calls so far, or None where the system does not count them."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("wchar:")))


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:")))


def measure(
    config: object, trace: Sequence[tuple[str, str, float]], start_ms: int, say: Callable[[str], None]
) -> tuple[Measured, ...]:
    """Replay the trace into a store of its own, then look at that store from fresh processes.

    config: BrainConfig whose catalogue and model are used. trace: (content_id, title, watch_percentage) of up to
    TRACE_EVENTS viewings, spread evenly over TRACE_SECONDS of a virtual clock from start_ms on.
    """
    with tempfile.TemporaryDirectory(prefix="omega-edge-measure-") as folder:
        say(f"measuring: a trace of {len(trace)} viewings over six hours")
        values = _replay_trace(config, Path(folder), trace, start_ms)
        say("measuring: fresh processes")
        probes = [_fresh_process(config, folder, None) for _ in range(FRESH_PROCESSES)]
        values["open_ms"] = statistics.median(probe["open_ms"] for probe in probes)
        values["resident_mb"] = statistics.median(probe["resident_mb"] for probe in probes)
        loaded = _fresh_process(config, folder, config.model_path) if config.model_path is not None else None
        with_model = loaded if loaded is not None and loaded["model_version"] is not None else {}
        values["open_with_model_ms"] = with_model.get("open_ms")
        values["resident_with_model_mb"] = with_model.get("resident_mb")
    values["bundle_mb"] = config.catalog_path.stat().st_size / 1e6
    return judged(values)


def _replay_trace(
    config: object, folder: Path, trace: Sequence[tuple[str, str, float]], start_ms: int
) -> dict[str, float | None]:
    from omega_edge.brain import OmegaBrain
    from omega_edge.protocol import ViewingEvent

    now_ms = start_ms
    config = replace(config, storage_path=folder, model_path=None, background_maintenance=False)
    observe_ms, recommend_ms = [], []
    step_ms = TRACE_SECONDS * 1000 // len(trace)
    with OmegaBrain.open(config, lambda: now_ms) as brain:
        before = submitted_bytes()
        for content_id, title, watched in trace:
            now_ms += step_ms
            event = ViewingEvent(content_id, title, watched, 0, now_ms, brain.now_context())
            started = time.perf_counter()
            brain.observe(event)
            observed = time.perf_counter()
            rows = brain.recommend(k=20)
            done = time.perf_counter()
            if any(row.content_id == content_id for row in rows):
                raise AssertionError(f"{title} was offered right after it was watched")
            observe_ms.append((observed - started) * 1000)
            recommend_ms.append((done - observed) * 1000)
            brain.maintain()
        # The journal holds more events than this trace has: the database's share is made to count.
        brain.checkpoint()
    after = submitted_bytes()
    return {
        "recommend_ms_p50": percentile(recommend_ms, 0.5),
        "recommend_ms_p99": percentile(recommend_ms, 0.99),
        "observe_ms_p99": percentile(observe_ms, 0.99),
        "submitted_bytes_per_event": None if before is None or after is None else (after - before) / len(trace),
    }


def _fresh_process(config: object, storage: str, model: Path | None) -> dict[str, float]:
    command = [sys.executable, "-m", "omega_edge.demo_measure"]
    command += ["--storage", storage, "--catalog", str(config.catalog_path)]
    if model is not None:
        command += ["--model", str(model)]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=120)
    return json.loads(finished.stdout)


def _watch_unknown_title(brain: object) -> None:
    """Observe a title outside the catalogue: the one thing that makes the brain embed text."""
    from omega_edge.brain import wall_clock_ms
    from omega_edge.protocol import ViewingEvent

    brain.observe(ViewingEvent("omega-edge-probe", PROBE_TEXT, 1.0, 60, wall_clock_ms(), brain.now_context()))
    brain.maintain()


def probe(arguments: Sequence[str] | None = None) -> int:
    """Open the store, recommend, with a model watch an unknown title too, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m omega_edge.demo_measure", description=probe.__doc__)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    from omega_edge.brain import OmegaBrain
    from omega_edge.config import BrainConfig

    imported = time.perf_counter()
    config = BrainConfig(options.storage, options.catalog, options.model, background_maintenance=False)
    with OmegaBrain.open(config) as brain:
        opened = time.perf_counter()
        brain.recommend()
        if options.model is not None:
            _watch_unknown_title(brain)
        result = {
            "import_ms": (imported - started) * 1000,
            "open_ms": (opened - imported) * 1000,
            "resident_mb": resident_bytes() / 1e6,
            "model_version": brain.stats()["model_version"],
        }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(probe())
