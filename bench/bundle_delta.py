"""How large a delta between weekly bundles is: `python -m bench.bundle_delta [--json]`.

Bundles of the data set's last weeks, each trained on what was watched up to then: rows, factors, popularity and trends, which
make up all but some kilobytes of what changes. Each delta is applied, and the result compared with the bundle byte for byte.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.machine import ROOT, machine_facts
from cloud.knowledge import fusion_meta, knowledge_before
from cloud.next_bundle import CARRIED, TITLE_SECTIONS, Present
from cloud.replay import Timeline
from cloud.signals import DAY_MS, slots_of
from omega_edge.bundle_delta import apply_delta, make_delta
from omega_edge.catalog import write_bundle
from omega_edge.datasets import read_dataset

WEEKS = 4


def weekly_bundles(present: Present, data: Path, folder: Path) -> Iterator[Path]:
    """Bundles of the last weeks, oldest first."""
    events = read_dataset(data).events
    timeline, settings = Timeline.of(events, slots_of(events.timestamp)), present.model_settings()
    kept = {name: present.sections[name] for name in (*TITLE_SECTIONS, *CARRIED) if name in present.sections}
    weights = {name: present.sections[name] for name in ("fusion_weights", "fusion_calibration")}
    told = {name: present.catalog.meta[name] for name in ("name", "lineage", "genres")}
    for week in range(WEEKS, -1, -1):
        end = int(np.searchsorted(events.timestamp, int(events.timestamp[-1]) + 1 - 7 * week * DAY_MS))
        learned = knowledge_before(present.titles, timeline, end, settings)
        meta = fusion_meta(settings) | told | {"version": WEEKS - week + 1, "built_at": int(events.timestamp[end - 1])}
        path = folder / f"v{meta['version']}.bundle"
        write_bundle(path, kept | weights | learned, meta)
        yield path


def measured(base: Path, target: Path) -> dict:
    """One line: sizes, and the time of making and applying."""
    began = time.perf_counter()
    delta = make_delta(base, target)
    made = time.perf_counter()
    out = target.with_suffix(".made")
    apply_delta(base, delta, out)
    applied = time.perf_counter()
    return {
        "metric": "bundle_delta_bytes",
        "value": len(delta),
        "unit": "B",
        "correct": out.read_bytes() == target.read_bytes(),
        "bundle_bytes": target.stat().st_size,
        "share": round(len(delta) / target.stat().st_size, 4),
        "make_ms": round(1000 * (made - began), 1),
        "apply_ms": round(1000 * (applied - made), 1),
    }


def main() -> None:
    """Measure and print; nothing is appended to the results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.bundle_delta", description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle", help="bundle of the titles")
    parser.add_argument("--data", type=Path, default=ROOT / "bench/data/movietweetings-70k", help="data set")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options, machine = parser.parse_args(), machine_facts()
    with tempfile.TemporaryDirectory() as folder:
        bundles = list(weekly_bundles(Present.open(options.catalog), options.data, Path(folder)))
        for base, target in itertools.pairwise(bundles):
            line = measured(base, target)
            print(
                json.dumps(line | {"machine": machine})
                if options.json
                else f"{line['value']:,} bytes of {line['bundle_bytes']:,} ({100 * line['share']:.1f} %), exact: {line['correct']}"
            )


if __name__ == "__main__":
    main()
