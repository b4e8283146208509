"""Power cuts and kills, the short forms; tests/long has the programs that run them for hours."""

from __future__ import annotations

import pytest

from tests.long import kill_loop, power_cut


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    try:
        return power_cut.build_recorder(tmp_path_factory.mktemp("recorder"))
    except FileNotFoundError:
        pytest.skip("recording what is written takes a C compiler")


@pytest.mark.parametrize("seed", [3, 4])  # with and without a sync of each event
def test_a_power_cut_loses_nothing_that_was_acknowledged_as_durable(tmp_path, recorder, seed):
    verdict = power_cut.check_images(tmp_path, recorder, seed, images=120, steps=60)
    assert verdict.images == 120 and verdict.faults == []


def test_images_of_a_store_that_does_not_sync_are_found_out(tmp_path, recorder):
    """The check itself is checked: where syncs are ignored, most images lack something acknowledged."""
    verdict = power_cut.check_images(tmp_path, recorder, seed=3, images=50, steps=60, ignore_syncs=True)
    assert verdict.after_acknowledgement > 30
    assert len(verdict.faults) >= 0.9 * verdict.after_acknowledgement


def test_a_killed_process_loses_nothing(tmp_path):
    assert kill_loop.run(tmp_path, kills=25, seed=1) == []
