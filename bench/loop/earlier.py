"""A catalogue as a television had it some days ago: trained on what came before a moment, and on nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.loop.population import chosen_events
from bench.loop.seed import SEED_SETTINGS
from bench.replay.bundles import title_facts
from omega_edge.datasets import Dataset
from toolchain.build_bundle import write_trained

QUERIES_PER_BUCKET = 100
"""Of each block: enough for a demonstration, in half a minute."""


def earlier_bundle(
    bundle: Path, dataset: Dataset, at_ms: int, model: Path, cache: Path, say: Callable[[str], None]
) -> Path:
    """The file of the catalogue at a moment, made once. bundle: today's, of which it is the past. Older ones are removed.

    Raises ModelUnavailable without a text model, OSError if the disk refuses.
    """
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()[:12]
    path = cache / f"{bundle.stem}-earlier-{digest}-{at_ms}.bundle"
    if path.exists():
        return path
    for older in cache.glob(f"{bundle.stem}-earlier-*.bundle"):
        older.unlink()
    say("training the catalogue of that time, once")
    past = replace(dataset, events=chosen_events(dataset.events, np.flatnonzero(dataset.events.timestamp < at_ms)))
    facts = title_facts(dataset, model, cache, say)
    settings = replace(SEED_SETTINGS, queries_per_bucket=QUERIES_PER_BUCKET)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write_trained(beside, past, facts.titles, facts.model_version, settings, 1, say)
    os.replace(beside, path)
    return path
