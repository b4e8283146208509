"""A small world in which sharing pays: homes with tastes, an operator's seed that is months old, and titles that came since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.learning_stream import chosen
from cloud.lists import Lists
from cloud.model import train
from cloud.settings import ModelSettings
from omega_edge.catalog import write_bundle
from omega_edge.datasets import Events
from tests.test_model_job import DAY_MS, START_MS, titles_of

TASTES, TITLES_OF_A_TASTE = 10, 12
TITLES = TASTES * TITLES_OF_A_TASTE
SEED_DAYS, SHARED_DAYS = 40, 20
CUT_MS = (START_MS // DAY_MS + SEED_DAYS) * DAY_MS
NOW_MS = CUT_MS + SHARED_DAYS * DAY_MS
PLAIN = ModelSettings(queries_per_bucket=60, sequence=False, second_stage=False, tune=False)


@dataclass(frozen=True, slots=True)
class World:
    """seed: what the operator holds; lists: what sharers finished since; bundle: trained on the seed."""

    seed: Events
    lists: Lists
    bundle: Path


def viewings(rng: np.random.Generator, homes: int, first_ms: int, days: int, newest: bool, each: int) -> Events:
    """Homes that watch what one taste of theirs holds. newest: of all its titles; else only of the older half of them."""
    known = TITLES_OF_A_TASTE if newest else TITLES_OF_A_TASTE // 2
    taste = rng.integers(0, TASTES, homes)
    order = np.stack([rng.permutation(known) for _ in range(homes)])[:, :each]
    household = np.repeat(np.arange(homes), order.shape[1])
    title = (taste[:, None] * TITLES_OF_A_TASTE + order).reshape(-1)
    strayed = rng.random(len(title)) < 0.1
    title[strayed] = rng.integers(0, TASTES, strayed.sum()) * TITLES_OF_A_TASTE + rng.integers(0, known, strayed.sum())
    watched = np.where(rng.random(len(title)) < 0.8, 1.0, 0.3)
    events = Events(
        household.astype(np.int32), title.astype(np.int32), watched,
        first_ms + rng.integers(0, days * DAY_MS, len(title)),
    )
    return chosen(events, np.argsort(events.timestamp, kind="stable"))


def lists_of(events: Events, lineage: str = "0" * 16) -> Lists:
    """What homes' finished titles look like when the hub has them."""
    finished = chosen(events, events.watch_percentage >= 0.7)
    pairs = finished.household.astype(np.int64) * TITLES + finished.title
    first = np.unique(pairs, return_index=True)[1]
    homes, rows, times = finished.household[first], finished.title[first], finished.timestamp[first]
    order = np.lexsort((times, homes))
    names, home = np.unique(homes[order], return_inverse=True)
    return Lists(lineage, names.astype(np.uint64), home.astype(np.int64), rows[order].astype(np.int64), times[order])


def make_world(folder: Path, sharers: int = 150, seed: int = 3) -> World:
    """A world whose bundle's file lies in a folder."""
    rng = np.random.default_rng(seed)
    past = viewings(rng, 150, CUT_MS - SEED_DAYS * DAY_MS, SEED_DAYS, newest=False, each=6)
    since = viewings(rng, sharers, CUT_MS, SHARED_DAYS, newest=True, each=12)
    titles = titles_of(TITLES)
    model = train(titles, past, PLAIN)
    meta = model.meta | {
        "name": "world", "version": 1, "built_at": CUT_MS, "lineage": titles.lineage, "genres": list(titles.genres),
    }
    bundle = folder / "first.bundle"
    write_bundle(bundle, titles.sections | model.sections, meta)
    return World(past, lists_of(since), bundle)
