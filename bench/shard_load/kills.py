"""Kill a shard under load, again and again, and look each time whether its store holds what it had acknowledged."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.shard_load.checks import ReplyCheck
from bench.shard_load.disk import disk_facts
from bench.shard_load.fleet import Fleet
from bench.shard_load.ledger import Ledger
from bench.shard_load.load import MAX_FAULTS_TOLD, Load, run
from bench.shard_load.measure import Settings
from bench.shard_load.metrics import line
from bench.shard_load.nursery import Nursery
from bench.shard_load.shard import Served, Shard, open_store

CONNECTIONS = 16
DEVICES = 500
LONGEST_LIFE_SECONDS = 0.3
"""A shard is killed at a random moment of so long a time under load."""
TOLD_EVERY = 50
STORE_LIFE = 100
"""A store is used for so many kills, then a new one is begun."""


@dataclass(slots=True)
class Kills:
    """What came of it. unheard: syncs that were durable when the kill kept their acknowledgement from being heard."""

    kills: int = 0
    acknowledged: int = 0
    checked: int = 0
    lost: int = 0
    unheard: int = 0
    reopened_ms_max: float = 0.0
    faults: list[str] = field(default_factory=list)


async def _load_and_kill(shard: Shard, fleet: Fleet, check: ReplyCheck, after: float, made: Kills) -> None:
    load = Load(fleet, shard.port, check, CONNECTIONS)
    killer = asyncio.get_running_loop().call_later(after, shard.kill)
    try:
        outcome = await load.closed_loop(CONNECTIONS, 2 * LONGEST_LIFE_SECONDS, 0.0)
    finally:
        killer.cancel()
        load.close()
    made.acknowledged += outcome.all_accepted
    if outcome.faults:
        made.faults.append(f"wrong replies before the kill: {'; '.join(outcome.told)}")


def measure_kills(settings: Settings) -> list[dict]:
    """acknowledged_lost over so many kills."""
    started = time.perf_counter()

    def say(made: Kills) -> None:
        if made.kills % TOLD_EVERY == 0:
            settings.say(f"  {made.kills} kills, {made.acknowledged:,} acknowledged, {made.lost} lost")

    with settings.folder() as folder:
        disk = disk_facts(folder, settings.scale.syncs_to_disk)
        made = kill_again_and_again(folder, settings.served, settings.scale.kills, settings.seed, settings.fleet, say)
    fault = made.faults[0] if made.faults else None
    if fault is None and made.checked != made.acknowledged:
        fault = f"{made.acknowledged} syncs were acknowledged, {made.checked} looked for"
    facts = {"kills": made.kills, "acknowledged": made.acknowledged, "durable_but_unheard": made.unheard}
    facts |= {"reopened_ms_max": round(made.reopened_ms_max, 1), "seconds": round(time.perf_counter() - started, 1)}
    return [line("acknowledged_lost", made.lost, fault) | facts | disk]


def kill_again_and_again(
    folder: Path,
    served: Served,
    kills: int,
    seed: int,
    new_fleet: Callable[[int], tuple[Fleet, ReplyCheck]],
    say: Callable[[Kills], None] = lambda made: None,
) -> Kills:
    """So many kills of shards under load, each shard on the store that the one before left, STORE_LIFE on one store.

    new_fleet: a fleet of so many devices, and what judges its replies.
    """
    chosen, made = random.Random(seed), Kills()
    with Nursery() as nursery:
        for number in range(kills):
            store = folder / f"store-{number // STORE_LIFE}"
            if number % STORE_LIFE == 0:
                fleet, check = new_fleet(DEVICES)
                ledger = Ledger(fleet)
            with Shard(store, served, nursery=nursery) as shard:
                run(_load_and_kill(shard, fleet, check, chosen.uniform(0.0, LONGEST_LIFE_SECONDS), made))
                shard.kill()
            made.kills += 1
            before = (ledger.lost, ledger.checked, ledger.unheard)
            started = time.perf_counter()
            storage = open_store(store)
            made.reopened_ms_max = max(made.reopened_ms_max, (time.perf_counter() - started) * 1e3)
            try:
                found = ledger.check(storage)
            finally:
                storage.close()
            made.lost += ledger.lost - before[0]
            made.checked += ledger.checked - before[1]
            made.unheard += ledger.unheard - before[2]
            if len(made.faults) < MAX_FAULTS_TOLD:
                made.faults += [f"kill {number}: {fault}" for fault in found[:MAX_FAULTS_TOLD]]
            say(made)
    return made
