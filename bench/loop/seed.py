"""What the operator begins with: the seed as a data set of its own, the bundle trained on it, and the homes' stores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.loop.population import Population
from bench.replay.bundles import title_facts
from bench.replay.television import make_seed_store as make_empty_store
from cloud.model import ModelSettings
from toolchain.build_bundle import write_trained

RATING_STEPS = 10
"""Of MovieTweetings, the form that the seed is written in."""
SEED_SETTINGS = ModelSettings(tune=False, sequence=False, second_stage=False, queries_per_bucket=200)
"""The loop is about what sharing adds to the fusion, and has half an hour for some forty runs of the model job: settings are
not searched for, and the two learned stages are left out of every bundle alike."""


@dataclass(frozen=True, slots=True)
class Seed:
    """folder: holds all of it. data: the data set's folder, all that the model job is given; bundle; stores: of homes."""

    folder: Path

    @property
    def data(self) -> Path:
        """The data set that ends at the cut."""
        return self.folder / "data"

    @property
    def bundle(self) -> Path:
        """The first bundle of the lineage."""
        return self.folder / "seed.bundle"

    @property
    def stores(self) -> Path:
        """A store for each home, and the empty one that they began with."""
        return self.folder / "stores"


def make_seed(
    population: Population, model: Path, cache: Path, seed: Seed, say: Callable[[str], None],
    settings: ModelSettings = SEED_SETTINGS,
) -> None:  # fmt: skip
    """Write the data set and the bundle, and an empty store; each is left as it is where it is there already."""
    seed.folder.mkdir(parents=True, exist_ok=True)
    if not seed.data.exists():
        write_data(population, seed.folder / "data.new")
        os.replace(seed.folder / "data.new", seed.data)
    if not seed.bundle.exists():
        facts = title_facts(population.dataset, model, cache, say)
        past = replace(population.dataset, events=population.seed)
        beside = seed.folder / "new.bundle"
        write_trained(beside, past, facts.titles, facts.model_version, settings, 1, lambda what: say(f"seed: {what}"))
        os.replace(beside, seed.bundle)
    if not seed.stores.exists():
        shutil.rmtree(seed.folder / "stores.new", ignore_errors=True)
        (seed.folder / "stores.new").mkdir()
        make_empty_store(seed.bundle, seed.folder / "stores.new" / "empty")
        os.replace(seed.folder / "stores.new", seed.stores)


def write_data(population: Population, folder: Path) -> None:
    """Write the titles, and the viewings before the cut, as a data set of the form of MovieTweetings."""
    dataset, events = population.dataset, population.seed
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open(folder / "movies.dat", "w", encoding="utf-8") as file:
        file.writelines(f"{title.content_id}::{title.name}::{'|'.join(title.genres)}\n" for title in dataset.titles)
    ratings = np.rint(events.watch_percentage * RATING_STEPS).astype(int).tolist()
    with open(folder / "ratings.dat", "w", encoding="utf-8") as file:
        for household, title, rating, at_ms in zip(
            events.household.tolist(), events.title.tolist(), ratings, events.timestamp.tolist(), strict=True
        ):
            home, content_id = dataset.households[household], dataset.titles[title].content_id
            file.write(f"{home}::{content_id}::{rating}::{at_ms // 1000}\n")
