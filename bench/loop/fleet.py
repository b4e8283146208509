"""The homes' side of the loop: processes that each hold some homes open and move them through time together.

A process is started afresh (spawn) and told what to do over a pipe: begin a level, sync, take a bundle, live a day, end.
All its homes do a step before the next begins, so that no home is ever ahead of another in time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.loop.homes import Answer, Home, make_seed_store
from bench.loop.meter import Passed, Relay
from bench.loop.population import Population
from omega_edge.datasets import read_dataset
from omega_edge.sync import DONE, SyncClient, SyncConfig
from omega_edge.updates import Outcome, UpdateClient

SYNCS_AT_ONCE = 8
"""Of one process, so that the time a shard takes to write is not lost."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a process holds: places of homes in the population, and folders. stores: of the homes at the cut, made once."""

    data: Path
    homes: int
    evaluated_days: int
    members: tuple[int, ...]
    stores: Path


@dataclass(frozen=True, slots=True)
class Level:
    """One run through time. modes: of each home of the population. ports: of the shards. updating: places of homes that keep
    a bundle of their own up to date over HTTP; the other homes of a process take the file of its first such home."""

    modes: tuple[str, ...]
    ports: tuple[int, ...]
    trusted: tuple[bytes, ...]
    seed_bundle: Path
    updating: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Synced:
    """One sync of one home. socket: bytes that passed its socket; body: of the messages alone; titles, patterns, reports:
    acknowledged. outcome: as SyncClient says."""

    home: int
    mode: str
    socket: Passed
    body: Passed
    titles: int
    patterns: int
    reports: int
    outcome: str


@dataclass(frozen=True, slots=True)
class UpdateTaken:
    """How one home came to a bundle."""

    home: int
    outcome: str
    detail: str
    downloaded_bytes: int
    by_delta: bool


class _Member:
    """A home, its relay and where its bundle lies."""

    def __init__(self, home: Home, place: int, relay: Relay) -> None:
        self.home, self.place, self.relay = home, place, relay
        self.bundle: Path | None = None


class Worker:
    """What runs in a process. Its methods are the commands."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self.population = Population.of(read_dataset(part.data), part.homes, part.evaluated_days)
        self._level: Level | None = None
        self._members: list[_Member] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    async def make_stores(self, bundle: Path) -> None:
        """Make the stores of this process's homes at the cut."""
        for place in self._part.members:
            household = int(self.population.homes[place])
            make_seed_store(self.population, household, bundle, self._part.stores / "empty", self._part.stores / str(place))

    async def begin(self, level: Level) -> None:
        """Begin a level: every home at the cut, in its mode, with the seed's bundle."""
        self._level = level
        self._folder = tempfile.TemporaryDirectory(prefix="omega-loop-homes-", dir=_fast_folder())
        folder = Path(self._folder.name)
        for place in self._part.members:
            storage = folder / str(place)
            shutil.copytree(self._part.stores / str(place), storage)
            relay = await Relay(level.ports[place % len(level.ports)]).start()
            home = Home(self.population, int(self.population.homes[place]), storage, level.modes[place])
            member = _Member(home, place, relay)
            member.bundle = level.seed_bundle
            if place in level.updating:
                member.bundle = folder / f"bundle-{place}" / "catalog.bundle"
                member.bundle.parent.mkdir()
                shutil.copyfile(level.seed_bundle, member.bundle)
            self._members.append(member)
            home.open(member.bundle, self.population.begin_ms, Random(f"secrecy {place}"))

    async def sync(self, now_ms: int, watching_on: int | None = None) -> list[Synced]:
        """Let homes sync once at a moment: all, or those that watch on a day."""
        chosen = [each for each in self._members if watching_on is None or each.home.watches_on(watching_on)]
        free = asyncio.Semaphore(SYNCS_AT_ONCE)

        async def one(member: _Member) -> Synced:
            async with free:
                return await self._synced(member, now_ms)

        return list(await asyncio.gather(*map(one, chosen)))

    async def _synced(self, member: _Member, now_ms: int) -> Synced:
        home, before = member.home, member.relay.passed
        home.clock.now_ms = now_ms
        home.brain.maintain()
        config = SyncConfig(f"http://127.0.0.1:{member.relay.port}")
        report = await SyncClient(home.brain, config, randomness=Random(0), clock=home.clock).sync_once()
        return Synced(
            member.place, home.sharing, member.relay.passed - before, Passed(report.bytes_up, report.bytes_down),
            report.titles, report.patterns, report.reports, report.outcome,
        )  # fmt: skip

    async def take_bundle(self, now_ms: int) -> list[UpdateTaken]:
        """Let the updating homes fetch the newest bundle, and open all homes with what is newest then."""
        taken, newest = [], None
        for member in self._members:
            if member.place in self._level.updating:
                url = f"http://127.0.0.1:{member.relay.port}"
                updated = await UpdateClient(url, self._level.trusted, member.bundle).update()
                taken.append(
                    UpdateTaken(
                        member.place, updated.outcome.value, updated.detail, updated.downloaded_bytes, updated.by_delta
                    )
                )
                if updated.outcome is Outcome.INSTALLED and newest is None:
                    newest = member.bundle
        if newest is None:
            return taken
        shared = newest.with_name(f"{now_ms}.bundle")
        shutil.copyfile(newest, shared)
        for member in self._members:
            if member.place not in self._level.updating:
                member.bundle = shared
            member.home.open(member.bundle, now_ms, Random(f"secrecy {member.place} {now_ms}"))
        return taken

    async def live(self, day: int) -> dict[int, Answer]:
        """Live through a day. Answers by event."""
        answers: dict[int, Answer] = {}
        for member in self._members:
            answers |= member.home.live(day)
        return answers

    async def end(self) -> None:
        """End the level: close every brain, and remove the stores."""
        for member in self._members:
            member.home.close()
            await member.relay.stop()
        self._members = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _fast_folder() -> str | None:
    """A folder in memory where there is one: what a television writes is measured elsewhere, and here would only be waited
    for."""
    shared = "/dev/shm"
    return shared if os.access(shared, os.W_OK) else None


def failed(synced: Sequence[Synced]) -> list[str]:
    """What went wrong in some syncs, in words."""
    return [f"home {each.home}: {each.outcome}" for each in synced if each.outcome != DONE]
