"""The simulation of sync_simulator.py for a few thousand syncs; tests/long/sync_simulation.py runs a million."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sync_simulator import FAULTS, MISFORTUNES, simulated


@pytest.mark.parametrize("seed", range(3))
def test_home_and_shard_agree_whatever_happens_between_them(tmp_path: Path, seed: int) -> None:
    with simulated(tmp_path, seed) as simulation:
        simulation.run(1_200)
    assert set(FAULTS) <= set(simulation.counts) and set(MISFORTUNES) <= set(simulation.counts)
    assert simulation.counts["compared"] > 5
