"""A home and a shard under everything that may go wrong between them, by a seed: lost, doubled and late messages, crashes at
each step, shards that lose their store, clocks that jump, forgets, changed minds. Between faults the network heals, and
both sides are compared with a plain account of what should have been told.

The home's side is real (memory and composer); the shard is tests/model_shard.py. Only sending is left out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from omega_edge.catalog import Catalog, write_bundle
from omega_edge.codes import set_hash
from omega_edge.memory import AgentMemory
from omega_edge.protocol import DAY_MS, PatternDelta, SyncRequest, ViewContext, ViewingEvent
from omega_edge.sharing import DeltaComposer
from omega_edge.sharing_patterns import pattern_of
from tests.model_shard import SERVER_NOW_MS, ModelShard
from tests.synthetic import sections_of

EVENTS_A_HOME = 600
"""After so many a new home begins: a home may share again only what it keeps, and it keeps 1,000 episodes."""
PAGE_TITLES = 7
YEAR_MS = 365 * DAY_MS
CONTEXT = ViewContext("evening", 2)


class Clock:
    """Unix milliseconds that only the simulation moves."""

    def __init__(self) -> None:
        self.now_ms = SERVER_NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@contextmanager
def simulated(catalog_folder: Path, seed: int) -> Iterator[Simulation]:
    """A simulation whose homes lie in memory where the system has such a folder: their disks are not what is tried."""
    memory = Path("/dev/shm")
    write_bundle(catalog_folder / "bundle", *sections_of(60))
    with (
        Catalog.open(catalog_folder / "bundle") as catalog,
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder,
    ):
        simulation = Simulation(Path(folder), catalog, seed)
        try:
            yield simulation
        finally:
            simulation.home.close()


def few_fit(delta: PatternDelta) -> int:
    """Small pages, so that there are many."""
    return min(len(delta.titles_finished), PAGE_TITLES)


class Home:
    """One home in a folder, and what it should have told: expected, the titles in order."""

    def __init__(self, folder: Path, catalog: Catalog, random: Random) -> None:
        self.folder, self.catalog, self.random = folder, catalog, random
        self.clock, self.life, self.mode = Clock(), 0, "titles"
        self.expected: list[tuple[str, int]] = []
        self.events = 0
        self._open()

    def _path(self) -> Path:
        return self.folder / f"life-{self.life}"

    def _open(self) -> None:
        def vector(content_id: str, *_title: str) -> tuple[np.ndarray, float] | None:
            row = self.catalog.row_of(content_id)
            return None if row < 0 else (self.catalog.codes[row], float(self.catalog.scale[row]))

        self.memory = AgentMemory(self._path(), self.clock, vector_lookup=vector, catalogue_lookup=vector)
        self.composer = DeltaComposer(self.catalog, self.memory, self.mode, self.clock, self.random)

    def crash(self) -> None:
        """End without a word: what the files hold at this moment is what the next life begins with."""
        before = self._path()
        self.life += 1
        shutil.copytree(before, self._path())
        self.memory.close()
        shutil.rmtree(before)
        self._open()

    def close(self) -> None:
        """End for good."""
        self.memory.close()
        shutil.rmtree(self._path())

    def watch(self) -> None:
        """Watch something, mostly to the end."""
        self.clock.now_ms += self.random.randrange(3 * 3_600_000)
        row, watched = self.random.randrange(12), self.random.choice((0.2, 0.8, 0.9, 1.0))
        content_id = f"t{row:03d}"
        self.memory.record(ViewingEvent(content_id, content_id, watched, 60, self.clock.now_ms, CONTEXT))
        self.events += 1
        if watched >= 0.7 and self.mode == "titles":
            self.expected.append((content_id, self.clock.now_ms))

    def forget(self, content_id: str | None) -> None:
        """Forget a title, or everything."""
        self.composer.before_rewrite(False)
        self.memory.forget(content_id=content_id, everything=content_id is None)
        self.composer.restart()
        self.expected = [told for told in self.expected if content_id is not None and told[0] != content_id]

    def change_mode(self, mode: str) -> None:
        """Share otherwise from the next start on."""
        if self.mode == "titles" != mode:
            self.expected = []
        self.mode = mode
        self.memory.close()
        self._open()


class Simulation:
    """Homes, one after the other, with one shard. counts: how often each thing happened; syncs: requests composed."""

    def __init__(self, folder: Path, catalog: Catalog, seed: int) -> None:
        self.random = Random(seed)
        self._folder, self._catalog = folder, catalog
        self.shard, self.counts, self.syncs = ModelShard(), Counter(), 0
        self._late: list[SyncRequest] = []
        self._homes = 0
        self._reports: dict[int, set[tuple[int, int]]] = {}
        self.home = self._new_home()

    def _new_home(self) -> Home:
        self._homes += 1
        self.shard, self._late, self._reports = ModelShard(), [], {}
        return Home(self._folder / f"home-{self._homes}", self._catalog, self.random)

    def run(self, syncs: int) -> None:
        """Until so many requests were composed; AssertionError at the first divergence."""
        while self.syncs < syncs:
            for _ in range(self.random.randrange(20, 200)):
                self._step()
            self._heal_and_compare()
            if self.home.events > EVENTS_A_HOME:
                self.home.close()
                self.home = self._new_home()

    def _step(self) -> None:
        chance = self.random.random()
        if chance < 0.35:
            self.home.watch()
        elif chance < 0.94:
            self._sync(self.random.choice(FAULTS))
        else:
            self._happen(self.random.choice(MISFORTUNES))

    def _sync(self, fault: str) -> None:
        """One request, and what a fault makes of it."""
        self.counts[fault] += 1
        self.shard.global_version += self.random.randrange(3)
        request = self._request()
        if fault == "crash before sending":
            return self.home.crash()
        if fault == "request lost":
            return None
        if fault == "late":
            self._late.append(request)
            return None
        response = self._arrives(request)
        if fault == "doubled":
            response = self._arrives(request)
        if fault == "crash before the answer":
            return self.home.crash()
        if fault != "answer lost":
            self.home.composer.take(request, response)
        if fault == "crash after the answer":
            self.home.crash()
        return None

    def _request(self) -> SyncRequest:
        self.syncs += 1
        return self.home.composer.request(self.shard.global_version, few_fit)

    def _arrives(self, request: SyncRequest) -> object:
        report = request.count_report
        if report is not None:
            drawn = self._reports.setdefault(report.day, set())
            drawn.add((report.seed, report.value))
            assert len(drawn) == 1, f"two draws for day {report.day}"
        return self.shard.answer(request)

    def _happen(self, what: str) -> None:
        self.counts[what] += 1
        home, random = self.home, self.random
        if what == "late arrives" and self._late:
            self._arrives(self._late.pop(random.randrange(len(self._late))))
        elif what == "shard loses its store" and random.random() < 0.2:
            # Nobody holds back an old request for a shard that does not know any more what was erased.
            self._late.clear()
            self.shard.devices.clear()
        elif what == "shard's clock jumps":
            self.shard.now_ms = SERVER_NOW_MS + random.randrange(-10, 11) * YEAR_MS
        elif what == "home's clock jumps":
            home.clock.now_ms = SERVER_NOW_MS + random.randrange(-10, 11) * YEAR_MS
        elif what == "set hashes differ":
            self.shard.snapshot_wanted = True
        elif what == "a title is forgotten" and random.random() < 0.3:
            home.forget(f"t{random.randrange(12):03d}")
        elif what == "everything is forgotten" and random.random() < 0.1:
            home.forget(None)
        elif what == "a changed mind" and random.random() < 0.3:
            home.change_mode(random.choice(("titles", "titles", "counts", "receive")))
        elif what == "checkpoint":
            home.memory.checkpoint()

    def _heal_and_compare(self) -> None:
        """Let what is outstanding arrive, then see that nothing is missing, doubled, left behind or told too much."""
        self.counts["compared"] += 1
        home, shard = self.home, self.shard
        self._late.clear()
        for _ in range(400):
            request = self._request()
            if request.device_id is None:
                if request == replace(request, delta=None) and not self._waits():
                    break
                home.clock.now_ms += DAY_MS + 1
                continue
            taken = home.composer.take(request, self._arrives(request))
            if taken.fault is not None:
                home.clock.now_ms += DAY_MS + 1  # a second reset, or a second snapshot, within a day
        else:
            raise AssertionError("it does not come to rest")
        held = [told for device in shard.devices.values() for told in device.titles]
        assert held == home.expected, f"{len(held)} titles held, {len(home.expected)} expected"
        assert len(shard.devices) <= 1, "an old number is left behind"
        for device in shard.devices.values():
            assert home.mode == "titles", "a device is left behind"
            assert set_hash(device.patterns.values()) == set_hash(self._shared()), "the shared sets differ"

    def _shared(self) -> list:
        if self.home.mode != "titles":
            return []
        return [pattern_of(skill, self._catalog) for skill in self.home.memory.shared_skills()]

    def _waits(self) -> bool:
        """Whether a snapshot is wanted for which the day has to be over first."""
        state = self.home.memory.get_state("sync")
        return bool(state and state["snapshot_wanted"])


FAULTS = (
    "none", "none", "none", "none", "request lost", "answer lost", "doubled", "late", "crash before sending",
    "crash before the answer", "crash after the answer",
)  # fmt: skip
MISFORTUNES = (
    "late arrives", "late arrives", "shard loses its store", "shard's clock jumps", "home's clock jumps", "set hashes differ",
    "a title is forgotten", "everything is forgotten", "a changed mind", "checkpoint",
)  # fmt: skip
