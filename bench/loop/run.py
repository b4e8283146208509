"""One level of the loop, day by day: homes live a day, sync, the federation passes, once a week the model job runs.

In the last second of each day every home syncs: what was finished on the day goes up. Then shards count, the hub sums and tells the
trends, shards pull. On days on which something is asked, homes that watch sync once more before it, as televisions with
their interval of minutes do long before; so the lists of a day rest on all that was shared up to its midnight.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench.loop.cloud_side import MIN_DEVICES, CloudSide, Keys
from bench.loop.fleet import Level, Part, Synced, UpdateTaken, Worker, failed
from bench.loop.homes import Answer
from bench.loop.outcome import Outcome
from bench.loop.population import Population
from bench.loop.processes import Told, tell_all
from bench.loop.seed import Seed

DAYS_PER_BUNDLE = 7
UPDATING_HOMES = 4
"""Homes of each process that fetch every bundle over HTTP; the others open the file of the first of them."""
SECOND_MS = 1_000
MODEL_NAMES = ("shard-1", "shard-2", "hub", "model", "simulated")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a level is. modes: of each home. trained_by: a function that trains and publishes at a moment in the place of the
    model job, for the baseline; more_sources: folders that the hub sums too; each_midnight: called before the hub's pass;
    facts: told with the level's figures."""

    name: str
    modes: tuple[str, ...]
    train: bool = True
    trained_by: Callable[[CloudSide], bool] | None = None
    keys: Keys | None = None
    more_sources: tuple[Path, ...] = ()
    each_midnight: Callable[[int], None] = lambda now_ms: None
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """Where and of what: the data set's folder, the seed, a working folder, and how many processes hold the homes."""

    data: Path
    seed: Seed
    work: Path
    evaluated_days: int
    processes: int


def parts_of(population: Population, site: Site) -> list[Part]:
    """The homes, divided among processes."""
    places = np.arange(len(population.homes))
    return [
        Part(site.data, len(places), site.evaluated_days, tuple(mine.tolist()), site.seed.stores)
        for mine in np.array_split(places, site.processes)
    ]


def make_stores(population: Population, site: Site) -> None:
    """Make the stores of all homes at the cut, where they are not there."""
    last = site.seed.stores / "complete"
    if last.exists():
        return
    workers = [Told(Worker, part) for part in parts_of(population, site)]
    try:
        tell_all(workers, "make_stores", site.seed.bundle)
    finally:
        for worker in workers:
            worker.stop()
    last.touch()


class LevelRun:
    """One level, from the cut to the data's last day."""

    def __init__(self, population: Population, site: Site, plan: Plan, say: Callable[[str], None]) -> None:
        self._population, self._site, self._plan, self._say = population, site, plan, say
        self._answers: dict[int, Answer] = {}
        self._syncs: list[Synced] = []
        self._updates: list[UpdateTaken] = []
        self._seconds: dict[str, float] = {}

    def run(self, progress: Callable[[float], None]) -> Outcome:
        """All of it. progress: called with the share that is done."""
        began, plan, site, population = time.monotonic(), self._plan, self._site, self._population
        folder = site.work / plan.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        keys = plan.keys or Keys.make(folder / "keys", MODEL_NAMES)
        cloud = CloudSide.start(
            folder, site.seed.bundle, site.seed.data, population.begin_ms, keys, self._say, plan.more_sources
        )
        workers = [Told(Worker, part) for part in parts_of(population, site)]
        try:
            level = Level(
                plan.modes, cloud.ports, keys.trusted, site.seed.bundle,
                tuple(place for part in parts_of(population, site) for place in part.members[:UPDATING_HOMES]),
            )  # fmt: skip
            self._timed("opening", lambda: tell_all(workers, "begin", level))
            for day in range(population.days):
                self._day(day, cloud, workers)
                progress((day + 1) / population.days)
            tell_all(workers, "end")
        finally:
            for worker in workers:
                worker.stop()
            cloud.stop()
        return self._outcome(cloud, time.monotonic() - began)

    def _timed(self, name: str, act: Callable[[], object]) -> object:
        began = time.monotonic()
        try:
            return act()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began

    def _day(self, day: int, cloud: CloudSide, workers: Sequence[Told]) -> None:
        """A day, and what happens at the midnight after it."""
        population, plan = self._population, self._plan
        for answers in self._timed("viewing", lambda: tell_all(workers, "live", day)):
            self._answers |= answers
        if day + 1 == population.days:
            return
        midnight_ms = population.midnight(day + 1)
        cloud.clock.move_to(midnight_ms - SECOND_MS)
        self._sync(workers, midnight_ms - SECOND_MS, None)
        cloud.clock.move_to(midnight_ms)
        plan.each_midnight(midnight_ms)
        self._timed("federation", cloud.federate)
        if plan.train and (day + 1) % DAYS_PER_BUNDLE == 0:
            train = plan.trained_by or (lambda cloud: cloud.train())
            if self._timed("model", lambda: train(cloud)):
                self._timed("federation", cloud.federate)
                for taken in self._timed("bundles", lambda: tell_all(workers, "take_bundle", midnight_ms)):
                    self._updates += taken
        if day + 1 >= population.first_asked_day:
            cloud.clock.move_to(midnight_ms + SECOND_MS)
            self._sync(workers, midnight_ms + SECOND_MS, day + 1)

    def _sync(self, workers: Sequence[Told], now_ms: int, watching_on: int | None) -> None:
        for synced in self._timed("syncs", lambda: tell_all(workers, "sync", now_ms, watching_on)):
            self._syncs += synced

    def _outcome(self, cloud: CloudSide, seconds: float) -> Outcome:
        faults = failed(self._syncs) + cloud.faults + [each.fault for each in self._answers.values() if each.fault]
        faults += [f"home {each.home}: bundle: {each.outcome} {each.detail}" for each in self._updates if each.outcome != "installed"]
        ranks = [self._answers[int(query)].rank for query in self._population.queries]
        told = [asdict(each) for each in self._syncs]
        syncs = {name: np.array([each[name] for each in told], np.int64) for name in ("home", "titles", "patterns", "reports")}
        for name in ("socket", "body"):
            for direction in ("up", "down"):
                key = direction if name == "socket" else f"body_{direction}"
                syncs[key] = np.array([each[name][direction] for each in told], np.int64)
        sharing = [place for place, mode in enumerate(self._plan.modes) if mode != "receive"]
        syncs["sharing"] = np.isin(syncs["home"], sharing).astype(np.int64)
        by_delta = [each.downloaded_bytes for each in self._updates if each.by_delta]
        facts = self._plan.facts | {
            "homes_sharing": len(sharing),
            "syncs_done": len(told),
            "titles_shared": int(syncs["titles"].sum()),
            "bundles_published": cloud.published,
            "bundle_updates": len(self._updates),
            "bundle_updates_by_delta": len(by_delta),
            "delta_bytes_p50": int(np.median(by_delta)) if by_delta else None,
            "min_devices": MIN_DEVICES,
            "seconds": round(seconds, 1),
            "model_job_seconds_p50": round(float(np.median(cloud.model_seconds)), 1) if cloud.model_seconds else None,
            "seconds_by_part": {name: round(value, 1) for name, value in self._seconds.items()},
        }
        return Outcome(np.array(ranks), syncs, facts, faults[:20])
