"""The baseline that lists are held against: the same job, trained on the full log of the same homes.

It learns what no list holds: viewings that failed, repetitions, and the exact moments. Everything else is the model job's:
the seed in every run, the present bundle, the weights' shrinkage, the gate, publishing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.loop.cloud_side import MIN_DEVICES
from bench.loop.population import Population
from cloud.bundle_folder import BundleFolder
from cloud.learning_stream import Stream
from cloud.model_command import rows_of
from cloud.next_bundle import NextSettings, next_bundle_of
from omega_edge import signing
from omega_edge.catalog import Catalog
from omega_edge.datasets import Events, read_dataset


def full_stream(population: Population, rows: np.ndarray, seed: Events, until_ms: int) -> Stream:
    """The seed and the homes' whole log before a moment. rows: int32[titles], the bundle's row of each title; seed: by these.

    As in the model job, what a home watches after the cut is another household's than what the seed holds of it.
    """
    events, cut = population.dataset.events, population.cut
    later = population.events_of(population.homes, until_ms)
    first = int(seed.household.max()) + 1
    place = np.full(int(events.household.max()) + 1, -1, np.int64)
    place[population.homes] = np.arange(len(population.homes))
    assert len(seed) == cut, "every title of the data set is in the bundle"
    joined = Events(
        np.concatenate((seed.household, first + place[events.household[later]])).astype(np.int32),
        np.concatenate((seed.title, rows[events.title[later]])).astype(np.int32),
        np.concatenate((seed.watch_percentage, events.watch_percentage[later])),
        np.concatenate((seed.timestamp, events.timestamp[later])),
    )
    return Stream(joined, first)


class FullLogJob:
    """Runs in a process of its own. bundles: folder of the lineage; seed: data set; key: file of the model job's key."""

    def __init__(self, data: Path, homes: int, evaluated_days: int, seed: Path) -> None:
        self._population = Population.of(read_dataset(data), homes, evaluated_days)
        self._seed = read_dataset(seed)

    async def train(self, folder: Path, key: Path, now_ms: int) -> str:
        """Train and publish where it gains, as the model job does; in words."""
        published = BundleFolder(folder, signing.read_signing_key(key))
        present = published.present()
        rows = _rows(present, self._population)
        stream = full_stream(self._population, rows, rows_of(present, self._seed), now_ms)
        settings = NextSettings(min_devices=MIN_DEVICES, quick=True)
        made = next_bundle_of(present, stream, None, settings, now_ms)
        if made.publish:
            published.publish(made)
        return f"full log: {'published' if made.publish else 'not published'}, {made.gate.report()}"


def _rows(bundle: Path, population: Population) -> np.ndarray:
    with Catalog.open(bundle) as catalog:
        return np.array([catalog.row_of(title.content_id) for title in population.dataset.titles], np.int32)
