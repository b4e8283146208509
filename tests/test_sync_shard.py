"""Real televisions against a real shard process: what is told is stored, once, and is erased when sharing ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.config import BrainConfig
from omega_edge.protocol import DAY_MS, ViewingEvent
from omega_edge.sync import SyncClient, SyncConfig, SyncReport
from tests.brains import EVENING, viewing
from tests.model_shard import lose_tokens
from tests.shard_processes import Shard, launch, running


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    with running(tmp_path / "shard") as running_shard:
        yield running_shard


@pytest.fixture
def television(tmp_path: Path, shard: Shard):
    """Opens brains over the shard's bundle; closes them at the end."""
    brains = []
    bundle = next((tmp_path / "shard" / "bundles").rglob("bundle-1.omega"))

    def open_brain(folder: str = "home", **options: object) -> OmegaBrain:
        config = BrainConfig(storage_path=tmp_path / folder, catalog_path=bundle, background_maintenance=False, **options)
        brains.append(OmegaBrain.open(config, now_ms))
        return brains[-1]

    yield open_brain
    for brain in brains:
        brain.close()


def url_of(shard: Shard) -> str:
    return f"http://127.0.0.1:{shard.port}"


def sync(brain: OmegaBrain, shard: Shard, times: int = 1) -> list[SyncReport]:
    async def each() -> list[SyncReport]:
        client = SyncClient(brain, SyncConfig(url_of(shard)), randomness=Random(1))
        return [await client.sync_once() for _ in range(times)]

    return asyncio.run(each())


def watch(brain: OmegaBrain, rows: list[int], repeat: int = 1) -> list[str]:
    """Watch rows to the end, an hour ago; the ids."""
    at = now_ms() - 3_600_000
    for number, row in enumerate(rows * repeat):
        brain.observe(replace(viewing(row), timestamp=at + number))
    return [f"t{row:03d}" for row in rows] * repeat


def stored_titles(shard: Shard) -> dict[bytes, list[str]]:
    """What the shard's store holds of each device, once it has ended."""
    found: dict[bytes, list[str]] = {}
    storage = shard.storage()
    try:
        for page in storage.pages_after(0, 1_000):
            found.setdefault(page.device_id, []).extend(shard.catalog.content_id(int(row)) for row in page.rows)
    finally:
        storage.close()
    return found


def test_titles_are_told_once_in_order_and_outlive_the_shard(television, shard) -> None:
    brain = television(sharing="titles")
    told = watch(brain, [1, 2, 5])
    first, idle = sync(brain, shard, 2)
    assert (first.outcome, first.titles, idle.outcome, idle.titles) == ("done", 3, "done", 0)
    assert first.requests == 2 and idle.requests == 1, "the token was not asked for once"
    told += watch(brain, [6, 9])
    assert [report.titles for report in sync(brain, shard, 1)] == [2]
    assert shard.stop() == 0
    assert list(stored_titles(shard).values()) == [told]


def test_a_killed_shard_forgets_nothing_that_it_acknowledged(television, shard) -> None:
    brain = television(sharing="titles")
    told = watch(brain, [1, 2, 5])
    assert sync(brain, shard)[0].outcome == "done"
    shard.kill()
    told += watch(brain, [6])
    lost = sync(brain, shard)[0]
    assert not lost.connected and lost.outcome.startswith(("no connection", "connection lost"))
    again = launch(shard.folder, shard.catalog)
    try:
        assert sync(brain, again)[0].titles == 1
    finally:
        assert again.stop() == 0
        again.process.stdout.close()
    assert list(stored_titles(again).values()) == [told]


def test_a_shard_that_lost_its_store_is_told_everything_again(television, shard, tmp_path: Path) -> None:
    brain = television(sharing="titles")
    told = watch(brain, [1, 2, 5])
    sync(brain, shard)
    with running(tmp_path / "other") as other:
        told += watch(brain, [6])
        report = sync(brain, other)[0]
        assert report.outcome == "done" and report.titles == 4
        other.stop()
        assert list(stored_titles(other).values()) == [told]


def test_patterns_are_told_and_both_sides_agree_on_the_set(television, shard) -> None:
    brain = television(sharing="titles")
    watch(brain, [1, 2, 5, 6, 9], repeat=6)
    report = sync(brain, shard)[0]
    assert report.patterns > 0 and report.bytes_up <= 2048
    identity = brain._memory.get_state("sync")
    assert not identity["snapshot_wanted"], "the hashes of the shared set agree"
    watch(brain, [1, 2, 5], repeat=3)
    assert sync(brain, shard)[0].outcome == "done"
    assert not brain._memory.get_state("sync")["snapshot_wanted"]


def test_leaving_erases_and_then_nothing_is_said(television, shard) -> None:
    brain = television(sharing="titles")
    watch(brain, [1, 2, 5])
    sync(brain, shard)
    brain.close()
    brain = television()
    first, second = sync(brain, shard, 2)
    assert first.outcome == second.outcome == "done" and first.bytes_up > second.bytes_up
    assert brain.stats()["sync"]["numbers_to_erase"] == 0
    shard.stop()
    assert stored_titles(shard) == {}


def test_forgetting_everything_erases_there_too(television, shard) -> None:
    brain = television(sharing="titles")
    watch(brain, [1, 2, 5])
    sync(brain, shard)
    brain.forget(everything=True)
    told = watch(brain, [6])
    assert sync(brain, shard)[0].outcome == "done"
    shard.stop()
    assert list(stored_titles(shard).values()) == [told]


def test_a_count_report_is_stored_once(television, shard) -> None:
    brain = television(sharing="counts")
    day = now_ms() // DAY_MS
    brain.observe(ViewingEvent("t001", "x", 0.9, 60, now_ms(), EVENING))
    brain.collective._composer._moment_of = lambda day: 0  # due now, whatever the hour
    reports = sync(brain, shard, 3)
    assert [report.outcome for report in reports] == ["done"] * 3
    assert [report.reports for report in reports] == [1, 0, 0]
    shard.stop()
    storage = shard.storage()
    try:
        stored = list(storage.reports_after(0, 10))
        assert len(stored) == 1 and stored[0].day in (day, day + 1)
        assert not list(storage.pages_after(0, 10))
    finally:
        storage.close()


def test_a_first_list_of_a_thousand_titles_goes_in_pages(television, shard) -> None:
    brain = television(sharing="titles")
    rows = [row for row in range(60) if row % 4 != 3]
    told = watch(brain, rows, repeat=23)
    report = sync(brain, shard)[0]
    assert report.outcome == "done" and report.titles == len(told) == 1035 and report.requests > 1
    shard.stop()
    assert list(stored_titles(shard).values()) == [told]


def test_a_home_whose_token_is_lost_goes_on_under_another_number(television, shard) -> None:
    brain = television(sharing="titles")
    told = watch(brain, [1, 2])
    sync(brain, shard)
    told += watch(brain, [5])
    lose_tokens(brain)
    refused, again = sync(brain, shard, 2)
    assert refused.status == 409 and (again.outcome, again.titles) == ("done", 3)
    shard.stop()
    assert list(stored_titles(shard).values()) == [told[:2], told]


def test_a_wrong_token_is_refused_and_named(television, shard) -> None:
    brain = television(sharing="titles")
    watch(brain, [1])
    sync(brain, shard)
    number = brain.collective._composer._identity.device_id
    right = brain.collective.token_of(number)
    watch(brain, [2])
    brain.collective.keep_token(number, bytes(32))
    report = sync(brain, shard)[0]
    assert report.status == 401 and report.outcome.startswith("refused with 401")
    assert any("401" in fault for fault in brain.stats()["degraded"])
    brain.collective.keep_token(number, right)
    assert sync(brain, shard)[0].titles == 1


def test_a_stopping_shard_sends_televisions_home(television, shard) -> None:
    brain = television()
    shard.stop()
    report = sync(brain, shard)[0]
    assert not report.connected and report.outcome.startswith("no connection") and report.bytes_up == 0
