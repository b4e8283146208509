"""Any order of passes, ends, outages and replays: once all is up again, the hub says what the shards said last."""

from __future__ import annotations

import random
import shutil

import pytest

from cloud.federation import FederationCoordinator
from cloud.publication import read_lists
from tests.shards import NOON_MS, SECRET, TRUSTED, Clock
from tests.test_federation import Source, config_of, told

SHARDS = ("shard-1", "shard-2", "shard-3")
REGIONS = {"region-1": ("shard-1", "shard-2"), "region-2": ("shard-3",)}


class World:
    """Three shards, two regions, a hub, what the shards said last, and what an adversary without a key can do to files."""

    def __init__(self, folder, seed: int) -> None:
        self.folder, self.random, self.clock = folder, random.Random(seed), Clock()
        self.sources = {name: Source(folder / name, name) for name in SHARDS}
        self.said = {name: ({}, []) for name in SHARDS}
        self.levels = {name: self.start(name) for name in ("region-1", "region-2", "hub")}
        self.copies: dict[str, list] = {name: [] for name in (*SHARDS, *REGIONS)}

    def start(self, name: str) -> FederationCoordinator:
        sources = [self.folder / one for one in REGIONS.get(name, REGIONS)]
        return FederationCoordinator(config_of(self.folder, *sources, name=name, role="region"), self.clock)

    def say(self) -> None:
        name = self.random.choice(SHARDS)
        votes = {row: self.random.randrange(1, 9) for row in self.random.sample(range(60), self.random.randrange(1, 5))}
        homes = self.random.sample(range(1, 40), self.random.randrange(3))
        homes = [home + 100 * SHARDS.index(name) for home in homes]
        self.clock.now_ms += 1_000
        self.sources[name].say(votes, homes, moment=self.clock.now_ms)
        self.said[name] = votes, homes

    def pass_one(self) -> None:
        self.levels[self.random.choice(list(self.levels))].run_once()

    def end_one(self) -> None:
        name = self.random.choice(list(self.levels))
        self.levels[name] = self.start(name)

    def keep_a_copy(self) -> None:
        name = self.random.choice(list(self.copies))
        if (self.folder / name).exists():
            target = self.folder / f"copy-{name}-{len(self.copies[name])}"
            shutil.copytree(self.folder / name, target)
            self.copies[name].append(target)

    def replay(self) -> None:
        """Whoever reads a source sees an old copy, whole or mixed with the new files, for one pass."""
        name = self.random.choice([name for name, copies in self.copies.items() if copies] or [None])
        if name is None:
            return
        shutil.move(self.folder / name, self.folder / "aside")
        shutil.copytree(self.random.choice(self.copies[name]), self.folder / name)
        if self.random.random() < 0.5:
            for path in (self.folder / "aside").iterdir():
                if path.is_file() and self.random.random() < 0.5:
                    shutil.copyfile(path, self.folder / name / path.name)
        self.pass_reader_of(name)
        shutil.rmtree(self.folder / name)
        shutil.move(self.folder / "aside", self.folder / name)

    def outage(self) -> None:
        name = self.random.choice((*SHARDS, *REGIONS))
        shutil.move(self.folder / name, self.folder / "aside")
        self.pass_reader_of(name)
        shutil.move(self.folder / "aside", self.folder / name)

    def pass_reader_of(self, name: str) -> None:
        self.levels["hub" if name in REGIONS else next(region for region in REGIONS if name in REGIONS[region])].run_once()

    def check(self) -> None:
        for name in (*REGIONS, "hub"):
            self.levels[name].run_once()
        expected: dict[int, int] = {}
        for votes, _ in self.said.values():
            for row, devices in votes.items():
                expected[row] = expected.get(row, 0) + devices
        assert told(self.folder / "hub") == expected
        homes = sorted(home for _, homes in self.said.values() for home in homes)
        assert read_lists(self.folder / "hub", TRUSTED, SECRET).pseudonyms.tolist() == homes
        assert not any(source["faults"] for level in self.levels.values() for source in level.stats()["sources"])


@pytest.mark.parametrize("seed", range(6))
def test_the_hub_says_what_the_shards_said_last(tmp_path, seed):
    world = World(tmp_path, seed)
    for name in SHARDS:
        world.sources[name].say({1: 1}, moment=NOON_MS)
        world.said[name] = {1: 1}, []
    steps = [world.say, world.say, world.pass_one, world.pass_one, world.end_one, world.keep_a_copy, world.replay, world.outage]
    for _ in range(40):
        world.random.choice(steps)()
    world.check()
