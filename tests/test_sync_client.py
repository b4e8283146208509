"""A television and its shard over real HTTP: what is sent in each mode, when, and what becomes of the answers."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.protocol import GlobalPatterns, SyncRequest, TrendSignal
from omega_edge.sync import SyncClient, SyncConfig, SyncReport
from tests.brains import listed, watch
from tests.model_shard import KEY, ModelShard, Traffic, handler_of, served
from tests.test_brain_collective import pattern


def config_of(traffic: Traffic, **options: object) -> SyncConfig:
    return SyncConfig(traffic.url, **{"device_key": KEY, "timeout_secs": 20.0, **options})


def synced(brain: OmegaBrain, shard: ModelShard, times: int = 1) -> tuple[list[SyncReport], Traffic]:
    """So many syncs of a brain with a shard; their reports, and what went over the socket."""

    async def sync() -> tuple[list[SyncReport], Traffic]:
        async with served(handler_of(shard, brain.collective.titles)) as traffic:
            client = SyncClient(brain, config_of(traffic), randomness=Random(1))
            return [await client.sync_once() for _ in range(times)], traffic

    return asyncio.run(sync())


def test_titles_reach_the_shard_once_and_in_order(opened) -> None:
    brain, shard = opened(sharing="titles"), ModelShard()
    watch(brain, [1, 2, 3, 5])
    reports, _traffic = synced(brain, shard, 2)
    assert [report.outcome for report in reports] == ["done", "done"]
    assert shard.titles_of_all() == ["t001", "t002", "t005"]
    assert [request.delta is None for request in shard.requests] == [False, True]
    assert shard.requests[1] == SyncRequest(global_version_seen=0), "with nothing new, nobody says who is there"
    watch(brain, [6])
    synced(brain, shard)
    assert shard.titles_of_all() == ["t001", "t002", "t005", "t006"] and len(shard.devices) == 1
    sync = brain.stats()["sync"]
    assert sync["totals"]["titles"] == 4 and sync["totals"]["syncs"] == 3 and sync["log"][0]["titles"] == 1
    assert "t001" not in str(sync)


def test_what_the_cloud_learned_reaches_the_list(opened) -> None:
    brain = opened()
    sent = GlobalPatterns(7, (pattern(1, [30, 31]),), (TrendSignal("t044", 1.0, 48),))
    shard = ModelShard(patterns=sent, global_version=7)
    reports, _traffic = synced(brain, shard, 2)
    assert reports[0].changed > 0 and reports[1].changed == 0
    assert brain.stats()["global_version"] == 7
    assert [request.global_version_seen for request in shard.requests] == [0, 7]
    assert reports[1].bytes_down < 40
    assert "t030" in listed(brain, 200)


@pytest.mark.parametrize("mode", ["receive", "titles"])
def test_an_idle_sync_stays_under_350_bytes_both_ways(opened, mode) -> None:
    brain, shard = opened(sharing=mode), ModelShard(global_version=(1 << 64) - 1, catalog_version=(1 << 32) - 1)
    _reports, traffic = synced(brain, shard)
    assert len(traffic.raw[0]) + traffic.answered <= 350
    assert len(traffic.raw[0]) < 140
