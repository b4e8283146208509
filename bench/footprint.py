"""Opening the brain and its memory, seen from inside a fresh process.

Nothing is imported that the brain would not import itself, because memory counts it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from bench.machine import resident_memory

RECOMMENDS_BEFORE_MEMORY = 50
UNKNOWN_TITLE = ("bench-unknown-title", "The Lighthouse Keeper's Last Winter (1931): Drama, Mystery")
"""Id and name of a title that no catalogue holds."""


def probe_open(settings: dict, options: dict) -> dict:
    """Time of opening; fault: why the list differs from the one before the store was closed."""
    facts = read_facts(settings)
    from omega_edge.brain import OmegaBrain
    from omega_edge.config import BrainConfig

    config = BrainConfig(options["storage"], settings["catalog"], options["model"])
    started_ns = time.perf_counter_ns()
    brain = OmegaBrain.open(config, lambda: facts["clock_ms"])
    opened_ns = time.perf_counter_ns()
    with brain:
        fault = _fault_in(brain, facts, options)
    return {"open_ms": (opened_ns - started_ns) / 1e6, "fault": fault}


def probe_memory(settings: dict, options: dict) -> dict:
    """Memory of this process after RECOMMENDS_BEFORE_MEMORY lists and one viewing, so that the tiers that are read at
    first use count too; where there is a model, of a title outside the catalogue, which makes the brain embed text."""
    facts = read_facts(settings)
    from omega_edge.brain import OmegaBrain
    from omega_edge.config import BrainConfig
    from omega_edge.protocol import ViewingEvent

    clock_ms = facts["clock_ms"]
    config = BrainConfig(options["storage"], settings["catalog"], options["model"])
    with OmegaBrain.open(config, lambda: clock_ms) as brain:
        fault = _fault_in(brain, facts, options)
        genres = facts["genres"]
        for call in range(RECOMMENDS_BEFORE_MEMORY):
            shown = brain.recommend(brain.now_context(mood_hint=genres[call % len(genres)]), k=20)
        before_a_viewing = resident_memory()["resident"]
        title = UNKNOWN_TITLE if options["model"] else (shown[0].content_id, shown[0].content_title)
        brain.observe(ViewingEvent(*title, 1.0, 60, clock_ms, brain.now_context()))
        brain.stats()  # makes all three tiers take the viewing in
        brain.maintain()  # embeds the title that the catalogue does not hold
        memory_stats = brain.stats()["memory"]
        memory = resident_memory()
    if fault is None and len(shown) != 20:
        fault = f"expected a list of 20, got {len(shown)}"
    if fault is None and memory_stats["episodes_without_vector"]:
        fault = f"{memory_stats['episodes_without_vector']} episodes have no vector"
    held = {name: memory_stats[name] for name in ("episodes", "skills", "patterns")}
    return {"memory": memory, "before_a_viewing": before_a_viewing, "held": held, "fault": fault}


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
