"""What the counted kernels and calls work on: `python -m bench.counted_inputs FOLDER kernels|calls`, as
toolchain/count_instructions starts it, on the machine that counts and without the emulator.

For the kernels FOLDER gets codes.int8: the catalogue's codes, filled up to ROWS with mixtures of two titles, which lie
where titles lie, then the queries, mixtures too, as a household's taste is. For the calls it gets the full store of the
other measurements, a bundle with every feature and both stages (complete_bundle.py) and request.json, with the viewings
that follow and texts of 16 tokens.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.complete_bundle import write_complete_bundle
from bench.full_store import build
from bench.machine import ROOT
from bench.metrics import FULL, Settings
from bench.timing import texts_of_length
from bench.viewing import Watched, context_at, read_viewing
from omega_edge.catalog import Catalog
from omega_edge.vectors import quantised

CATALOG = ROOT / "build/movietweetings-70k.bundle"
MODEL = ROOT / "build/model"
DATA = ROOT / "bench/data/movietweetings-70k"
ROWS, QUERIES = 10_000, 8
COUNTED_STORE = "storage"
"""Folder of the copy of the full store that the counted calls open, and write into."""
SAMPLES = 20
"""Viewings and texts that the counted calls may take."""
TOKENS = 16
SHARES = np.array([0.7, 0.5], np.float32)
"""Of the two titles of a mixture."""


def filled_codes(catalog: Catalog, rows: int, seed: int) -> np.ndarray:
    """int8[rows, 384]: the catalogue's codes and, after them, mixtures of two."""
    drawn = np.random.default_rng(seed).integers(0, catalog.count, (max(0, rows - catalog.count), 2))
    unit = catalog.codes[drawn] * catalog.scale[drawn][..., None]
    mixtures = [quantised(SHARES @ pair)[0] for pair in unit]
    return np.concatenate([catalog.codes[:rows], np.array(mixtures, np.int8).reshape(-1, catalog.codes.shape[1])])


def _viewing(watched: Watched, mood: str) -> dict:
    context = context_at(watched.at_ms)
    return {
        "content_id": watched.content_id,
        "content_title": watched.title,
        "watch_percentage": watched.watch_percentage,
        "timestamp": watched.at_ms,
        "time_of_day": context.time_of_day.value,
        "day_of_week": context.day_of_week,
        "mood": mood,
    }


def make_kernel_inputs(folder: Path) -> None:
    """Write codes.int8 into an existing folder."""
    with Catalog.open(CATALOG) as catalog:
        codes = filled_codes(catalog, ROWS + QUERIES, seed=1)
    (folder / "codes.int8").write_bytes(codes.tobytes())


def make_call_inputs(folder: Path) -> None:
    """Build the store in an existing folder, and write request.json."""
    settings = asdict(Settings(str(CATALOG), str(MODEL), str(DATA), str(folder), FULL))
    build(settings)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    genres = facts["genres"]
    complete = folder / "complete.bundle"
    write_complete_bundle(CATALOG, complete)
    stream = read_viewing(DATA, FULL.episodes, FULL.observes).stream[:SAMPLES]
    request = {
        "storage": str(folder / COUNTED_STORE),
        "catalog": str(complete),
        "model": str(MODEL),
        "clock_ms": facts["clock_ms"],
        "viewings": [_viewing(watched, genres[index % len(genres)]) for index, watched in enumerate(stream)],
        "texts": texts_of_length(settings, SAMPLES, {TOKENS}),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


if __name__ == "__main__":
    {"kernels": make_kernel_inputs, "calls": make_call_inputs}[sys.argv[2]](Path(sys.argv[1]))
