"""The metrics of the brain: names, units, limits, how much is measured, and the form of a result."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {
    "recommend_ms_p99": 1.0,
    "open_ms": 300.0,
    "resident_mb": 60.0,
    "resident_with_model_mb": 110.0,
    "submitted_bytes_per_event": 2_048.0,
}
"""What this project set itself on an x86-64 machine with one thread."""
UNITS = {
    "open_ms": "ms",
    "import_and_open_ms": "ms",
    "recommend_ms_p50": "ms",
    "recommend_ms_p99": "ms",
    "observe_ms_p50": "ms",
    "observe_ms_p99": "ms",
    "embed_ms_p50": "ms",
    "resident_mb": "MB",
    "resident_with_model_mb": "MB",
    "submitted_bytes_per_event": "B",
    "bundle_mb": "MB",
}

EVENT_SPACING_SECONDS = 72
"""Mean time between the viewings of the trace: 300 in six hours."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is stored and how often is measured."""

    episodes: int
    skills: int
    reasoning: int
    recommends: int
    observes: int
    texts: int
    fresh_processes: int
    trace_events: int


FULL = Scale(1_000, 10_000, 500, recommends=1_000, observes=1_000, texts=200, fresh_processes=7, trace_events=300)
QUICK = Scale(100, 100, 20, recommends=40, observes=40, texts=5, fresh_processes=1, trace_events=30)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run measures. All paths are absolute text, so that probes can be told of them."""

    catalog: str
    model: str
    data: str
    work: str
    scale: Scale


def line(metric: str, value: float, fault: str | None) -> dict:
    """One metric's line, with the unit and the limit that it has here."""
    return judged(metric, value, UNITS[metric], fault, LIMITS.get(metric))


def judged(
    metric: str, value: float | None, unit: str, fault: str | None, limit: float | None = None, at_least: bool = False
) -> dict:
    """A line: value rounded to a ten-thousandth, correct if there is no fault, and whether the limit is met.

    A limit is the highest value allowed, or with at_least the lowest. What has no value does not meet it.
    """
    rounded = None if value is None else round(value, 4)
    made = {"metric": metric, "value": rounded, "unit": unit, "correct": fault is None}
    if fault is not None:
        made["fault"] = fault
    if limit is not None:
        made |= {"limit": limit, "met": value is not None and (value >= limit if at_least else value <= limit)}
        if at_least:
            made["at_least"] = True
    return made
