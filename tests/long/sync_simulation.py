"""A million syncs under every fault, against a plain account: `python -m tests.long.sync_simulation --syncs 1000000`.

Each seed is a simulation of its own (see tests/sync_simulator.py). A divergence ends it and names the seed, which repeats it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.sync_simulator import simulated

SYNCS_A_SEED = 5_000


def main() -> int:
    """Run the seeds; 1 at the first divergence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syncs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    done, seed, began = 0, options.seed, time.monotonic()
    while done < options.syncs:
        with tempfile.TemporaryDirectory() as folder, simulated(Path(folder), seed) as simulation:
            try:
                simulation.run(min(SYNCS_A_SEED, options.syncs - done))
            except AssertionError as divergence:
                print(f"seed {seed}, after {simulation.syncs} syncs: {divergence}", file=sys.stderr)
                return 1
        done, seed = done + simulation.syncs, seed + 1
        counts += simulation.counts
        print(f"{done:,} syncs in {time.monotonic() - began:,.0f} s, 0 divergences", file=sys.stderr)
    print(f"{done:,} syncs, {counts['compared']:,} comparisons, 0 divergences; of them and beside them:")
    for what, count in sorted(counts.items()):
        print(f"  {what:<24} {count:>10,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
