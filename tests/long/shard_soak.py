"""A full shard at its steady rate for an hour: `python -m tests.long.shard_soak --minutes 60`.

100,000 devices sync 333 times a second with a real shard process; every reply is checked, memory and latency are told every
minute, and at the end the store is compared with all that was acknowledged. The exit code is 1 if a reply was wrong, a sync
was lost, or memory grew on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.machine import ROOT
from bench.shard_load.load import Load, percentile, run
from bench.shard_load.measure import MAX_CONNECTIONS, Settings, audit, closing, register
from bench.shard_load.metrics import FULL, STEADY_RATE
from bench.shard_load.shard import Served, Shard

GROWTH_MB_PER_HOUR = 20.0
"""More than this, by a line through the second half of the minutes, is taken for a leak."""


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")


def soak(store: Path, settings: Settings, devices: int, minutes: int) -> list[str]:
    """So many minutes under load; returns the faults found."""
    faults: list[str] = []
    resident: list[float] = []
    with Shard(store, settings.served) as shard:
        fleet, check = settings.fleet(devices)
        load = Load(fleet, shard.port, check, MAX_CONNECTIONS)
        first = run(closing(register(load, fleet), load))
        faults += [first] if first else []
        for minute in range(minutes):
            load = Load(fleet, shard.port, check, MAX_CONNECTIONS)
            outcome = run(closing(load.open_loop(STEADY_RATE, 60.0, 0.0, seed=minute), load))
            held = shard.memory()
            resident.append(held.anonymous)
            fault = outcome.fault()
            faults += [f"minute {minute}: {fault}"] if fault else []
            say(
                f"minute {minute}: {outcome.all_accepted} syncs, p99 {percentile(outcome.accepted, 0.99):.1f} ms, "
                f"resident {held.resident:.0f} MB, anonymous {held.anonymous:.1f} MB, {len(faults)} faults"
            )
        stopped = shard.stop()
        faults += [stopped] if stopped else []
    lost = audit(store, fleet)
    faults += [lost] if lost else []
    settled = resident[len(resident) // 2 :]
    if len(settled) >= 5:
        growth = 60 * float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
        say(f"growth {growth:.1f} MB an hour")
        faults += [f"memory grows by {growth:.1f} MB an hour"] if growth > GROWTH_MB_PER_HOUR else []
    return faults


def main() -> int:
    """Soak as long as asked; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--devices", type=int, default=FULL.devices)
    parser.add_argument(
        "--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle", help="bundle to serve"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build", help="folder for the store, on the disk to measure"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        FULL,
        Served.from_bundle(options.catalog, options.seed),
        options.work,
        options.work / "ramp.svg",
        "",
        options.seed,
        say,
    )
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.work) as folder:
        faults = soak(Path(folder), settings, options.devices, options.minutes)
    for fault in faults[:20]:
        say(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
