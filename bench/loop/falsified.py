"""A large fleet in `counts`: each simulated device draws its daily report as a television does, the hub estimates from them.

A device is a home of the data set, drawn with replacement from all of them: a hundred thousand devices repeat the viewing
of some thousands, so the fleet has the noise of its size but no more variety than the data. Every day a device's moment is
drawn uniformly; one of the titles that its home finished within the day before it, any with the same chance, or nothing,
goes through omega_edge.randomised. The reports' support is computed by the cloud's code and published as one source that
the hub sums beside the real shards.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from bench.loop.population import Population
from cloud import counts as counts_
from cloud.counts import Counts, DayReports
from cloud.estimates import support, title_hashes
from cloud.publication import Publication
from omega_edge.catalog import Catalog
from omega_edge.datasets import Dataset
from omega_edge.protocol import DAY_MS, SUCCESS_THRESHOLD
from omega_edge.randomised import NOTHING_FINISHED, falsified, title_hash
from omega_edge.signing import SigningKey

SOURCE = "simulated"
DEVICES, QUICK_DEVICES = 100_000, 5_000
DAYS_BEFORE = 8
"""Of reports before the first day on which something is asked: the longest trend window and a day."""


@dataclass(frozen=True, slots=True)
class FinishedTitles:
    """What the data set's homes finished, by home and time. key: int64[e], ascending: home and moment in one number."""

    key: np.ndarray
    hashes: np.ndarray
    homes: int

    @staticmethod
    def of(dataset: Dataset) -> FinishedTitles:
        """Those of a data set. hashes: uint64[e], of the titles."""
        events = dataset.events
        finished = events.watch_percentage >= SUCCESS_THRESHOLD
        key = _keys(events.household[finished].astype(np.int64), events.timestamp[finished])
        order = np.argsort(key, kind="stable")
        by_title = np.array([title_hash(title.content_id) for title in dataset.titles], np.uint64)
        return FinishedTitles(key[order], by_title[events.title[finished]][order], len(dataset.households))

    def reports(self, day: int, devices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(seeds uint32[devices], values uint8[devices]) of a UTC day since 1970."""
        home = np.random.default_rng([seed, devices]).integers(self.homes, size=devices)
        moment = day * DAY_MS + np.random.default_rng([seed, day]).integers(DAY_MS, size=devices)
        first = np.searchsorted(self.key, _keys(home, moment - DAY_MS), side="right")
        count = np.searchsorted(self.key, _keys(home, moment), side="right") - first
        draw = Random(f"{seed} {day}")
        seeds, values = np.empty(devices, np.uint32), np.empty(devices, np.uint8)
        for device, (place, finished) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
            hashed = int(self.hashes[place + int(draw.random() * finished)]) if finished else NOTHING_FINISHED
            seeds[device], values[device] = falsified(hashed, draw)
        return seeds, values


def _keys(home: np.ndarray, moment: np.ndarray) -> np.ndarray:
    return (home << 42) + moment


def day_reports(dataset: Dataset, bundle: Path, days: list[int], devices: int, seed: int) -> dict[int, DayReports]:
    """The reports of some UTC days and how many support each title of the bundle."""
    finished = FinishedTitles.of(dataset)
    with Catalog.open(bundle) as catalog:
        hashes = title_hashes(catalog.content_ids(range(catalog.count)))
    return {day: DayReports(devices, support(hashes, *finished.reports(day, devices, seed))) for day in days}


def all_reports(
    population: Population, bundle: Path, devices: int, seed: int, pool: Executor, processes: int
) -> dict[int, DayReports]:
    """The reports of every day that a list of the loop can rest on."""
    begin = population.begin_ms // DAY_MS
    days = list(range(begin + max(population.first_asked_day - DAYS_BEFORE, 0), begin + population.days))
    parts = [days[number::processes] for number in range(processes)]
    running = [pool.submit(day_reports, population.dataset, bundle, part, devices, seed) for part in parts]
    return {day: found for part in running for day, found in part.result().items()}


class SimulatedShard:
    """A source of the federation in a folder: the whole fleet's reports up to a moment."""

    def __init__(self, folder: Path, key: SigningKey, secret: bytes, bundle: Path, reports: dict[int, DayReports]) -> None:
        self._publication = Publication(folder, SOURCE, key, secret)
        self._reports = reports
        with Catalog.open(bundle) as catalog:
            self._lineage, self._title_count = catalog.lineage, catalog.count

    def publish(self, now_ms: int) -> None:
        """Publish the days that are over."""
        today = now_ms // DAY_MS
        past = {day: found for day, found in self._reports.items() if day < today}
        sequence = self._publication.next_sequence(now_ms)
        counts = Counts(SOURCE, sequence, self._lineage, self._title_count, now_ms, reports=past)
        entry = self._publication.put(counts.name, "counts", sequence, counts_.encode(counts))
        self._publication.commit({counts.name: entry}, now_ms)
