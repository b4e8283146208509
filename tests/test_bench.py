"""The measurements: every line carries a check that can fail, and the record of results grows."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.brain import append_result, main, table_row
from bench.machine import cached_share, drop_from_page_cache, file_system_of, process_io
from bench.metrics import EVENT_SPACING_SECONDS, UNITS, line
from bench.timing import percentile
from bench.truth import Truth
from bench.viewing import Watched, context_at, respaced
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.config import BrainConfig
from omega_edge.protocol import Recommendation
from tests.synthetic import NOW_MS, catalog_of, sections_of

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "bench/data/movietweetings-70k"
LISTED = 5
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[list[dict], list[dict]]:
    """Lines printed and lines recorded by one quick run of every metric, over a small catalogue of the real data."""
    folder = tmp_path_factory.mktemp("bench")
    bundle = PROJECT / "build/movietweetings-70k.bundle"
    results = folder / "results.jsonl"
    arguments = ["--json", "--quick", "--work", str(folder / "work"), "--results", str(results)]
    arguments += ["--catalog", str(bundle), "--model", str(model_dir)]
    run = subprocess.run(
        [sys.executable, "-m", "bench.brain", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return ([json.loads(text) for text in output.splitlines()] for output in (run.stdout, results.read_text()))
