"""Opening the brain and its memory, seen from inside a fresh process.

Nothing but the standard library's json is imported beside the brain, because both figures count imports.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from bench.machine import resident_memory

RECOMMENDS_BEFORE_MEMORY = 50
UNKNOWN_TITLE = "The Lighthouse Keeper's Last Winter (1931): Drama, Mystery"
"""A title that no catalogue holds: watching it makes the brain embed text."""


def probe_open(settings: dict, options: dict, first_line_ns: int, started_ns: int) -> dict:
    """Times of importing and opening; fault: why the list differs from the one before the store was closed."""
    facts = read_facts(settings)
    import_started_ns = time.perf_counter_ns()
    from omega_edge.brain import OmegaBrain
    from omega_edge.config import BrainConfig

    imported_ns = time.perf_counter_ns()
    config = BrainConfig(options["storage"], settings["catalog"], options["model"])
    brain = OmegaBrain.open(config, lambda: facts["clock_ms"])
    opened_ns = time.perf_counter_ns()
    with brain:
        fault = _fault_in(brain, facts, options)
    return {
        "open_ms": (opened_ns - imported_ns) / 1e6,
        "import_and_open_ms": (opened_ns - import_started_ns) / 1e6,
        "from_process_start_ms": (opened_ns - started_ns) / 1e6,
        "interpreter_start_ms": (first_line_ns - started_ns) / 1e6,
        "fault": fault,
    }


def probe_memory(settings: dict, options: dict) -> dict:
    """Memory of this process after RECOMMENDS_BEFORE_MEMORY lists and, where there is a model, an embedding."""
    facts = read_facts(settings)
    from omega_edge.brain import OmegaBrain
    from omega_edge.config import BrainConfig

    clock_ms = facts["clock_ms"]
    with OmegaBrain.open(BrainConfig(options["storage"], settings["catalog"], options["model"]), lambda: clock_ms) as brain:
        genres = facts["genres"]
        lengths = {
            len(brain.recommend(brain.now_context(mood_hint=genres[call % len(genres)]), k=20))
            for call in range(RECOMMENDS_BEFORE_MEMORY)
        }
        if options["model"]:
            _watch_unknown_title(brain, clock_ms)
        memory = resident_memory()
        fault = None if lengths == {20} else f"expected lists of 20, got lengths {sorted(lengths)}"
        # The list compared with was made before the unknown title was watched, so it stands only without one.
        if fault is None:
            fault = _fault_in_model(brain, clock_ms) if options["model"] else _fault_in(brain, facts, options)
    return {"memory": memory, "fault": fault}


def read_facts(settings: dict) -> dict:
    """What bench.full_store noted of the store when it made it."""
    return json.loads((Path(settings["work"]) / "facts.json").read_text(encoding="utf-8"))


def _fault_in(brain: object, facts: dict, options: dict) -> str | None:
    """Why the brain is not the one that was closed: the same clock must give the same list."""
    listed = [item.content_id for item in brain.recommend(k=20)]
    if listed != facts["recommended"]:
        return f"expected the list from before the store was closed, {facts['recommended']}, got {listed}"
    stats = brain.stats()
    if stats["degraded"] and options["model"]:
        return f"degraded: {'; '.join(stats['degraded'])}"
    return None


def _watch_unknown_title(brain: object, clock_ms: int) -> None:
    from omega_edge.protocol import ViewingEvent

    brain.observe(ViewingEvent("bench-unknown-title", UNKNOWN_TITLE, 1.0, 60, clock_ms, brain.now_context()))
    brain.maintain()
    brain.recommend(k=20)


def _fault_in_model(brain: object, clock_ms: int) -> str | None:
    return "the text was not embedded"
