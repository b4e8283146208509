"""The product on a household's viewings: a real brain over a real store, asked before each viewing in question.

A household's store lives through the whole test; each block brings a new bundle, as a television gets them. Before a
query the brain has observed every viewing of the household before it, in order, and has applied what a sync brought at
the last midnight. Nothing else reaches it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.replay.measures import RANK_CUT, Lists, rank_in_list
from bench.replay.split import FULL, MISSING, Split, known_range
from bench.viewing import Watched
from omega_edge.brain import MAX_RECOMMENDATIONS, OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.datasets import DatasetTitle
from omega_edge.protocol import GlobalPatterns
from omega_edge.wire import decode_global_patterns

GROWING = (FULL, MISSING, "known_0")
"""What only grows from query to query: one brain goes through a block. Otherwise each query has a brain of its own."""


class Clock:
    """The time of the replay, set by whoever replays."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What reaches every television. bundles: a file for each block. syncs: by (block, midnight), the bytes of one."""

    bundles: tuple[Path, ...]
    syncs: dict[tuple[int, int], bytes]


class Television:
    """One brain on its store, and how far it has come in a household's viewings."""

    def __init__(self, home: Home, storage: Path, block: int, diversity: float) -> None:
        self._home, self._block = home, block
        self._clock = Clock()
        self._midnight_ms = -1
        config = BrainConfig(
            storage_path=storage,
            catalog_path=home.broadcast.bundles[block],
            diversity=diversity,
            background_maintenance=False,
        )
        self.brain = OmegaBrain.open(config, self._clock)

    def observe(self, events: np.ndarray) -> None:
        """Observe viewings, int64[e] indices in order."""
        for event in events.tolist():
            watched = self._home.watched(event)
            self._clock.now_ms = watched.at_ms
            self.brain.observe(watched.event())

    def listed(self, query: int, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64[m], scores float64[m]) of the list before a query, m at most 100; of titles that the household has
        not seen, though the brain knows only of some viewings, int64[e]."""
        queries = self._home.queries
        midnight_ms = int(queries.midnight_ms[query])
        if midnight_ms != self._midnight_ms:
            self._clock.now_ms = self._midnight_ms = midnight_ms
            self.brain.apply_global_patterns(self._home.sync(self._block, midnight_ms))
        self._clock.now_ms = int(queries.now_ms[query])
        title_of = self._home.split.events.title
        seen = title_of[self._home.split.events_before(queries, query)]
        unknown = np.setdiff1d(seen, title_of[known])
        shown = self.brain.recommend(k=min(RANK_CUT + len(unknown), MAX_RECOMMENDATIONS))
        rows = np.array([self._home.row_of[title.content_id] for title in shown], np.int64)
        scores = np.array([title.score for title in shown], np.float64)
        new = ~np.isin(rows, seen)
        return rows[new][:RANK_CUT], scores[new][:RANK_CUT]


class Home:
    """What every household's replay reads: the data, what was broadcast, and an empty store to begin with."""

    def __init__(
        self, split: Split, titles: tuple[DatasetTitle, ...], broadcast: Broadcast, folder: Path, seed_store: Path
    ) -> None:
        self.split, self.queries, self.broadcast = split, split.queries, broadcast
        self.row_of = {title.content_id: row for row, title in enumerate(titles)}
        self._titles = titles
        self._folder, self._seed_store = folder, seed_store
        self._catalog = Catalog.open(broadcast.bundles[0])
        self._syncs: dict[tuple[int, int], GlobalPatterns] = {}

    def close(self) -> None:
        """Let go of the bundle that syncs are read with."""
        self._catalog.close()

    def watched(self, event: int) -> Watched:
        """A viewing of the data set."""
        events = self.split.events
        title = self._titles[int(events.title[event])]
        share, at_ms = float(events.watch_percentage[event]), int(events.timestamp[event])
        return Watched(title.content_id, title.name, share, at_ms)

    def sync(self, block: int, midnight_ms: int) -> GlobalPatterns:
        """What a sync brought at a midnight, from its bytes."""
        key = (block, midnight_ms)
        if key not in self._syncs:
            self._syncs[key] = decode_global_patterns(self.broadcast.syncs[key], self._catalog)
        return self._syncs[key]

    @contextmanager
    def new_store(self, label: str) -> Iterator[Path]:
        """The place of a new television's store, removed afterwards."""
        place = self._folder / label
        # Making the tables of an empty store takes four times as long as opening one; they are the same in each.
        shutil.copytree(self._seed_store, place)
        try:
            yield place
        finally:
            shutil.rmtree(place)


def make_seed_store(bundle: Path, folder: Path) -> None:
    """The store of a television that was switched on once."""
    config = BrainConfig(storage_path=folder, catalog_path=bundle, background_maintenance=False)
    OmegaBrain.open(config, Clock()).close()


def household_lists(home: Home, household: int, chosen: np.ndarray, name: str, diversity: float) -> Lists:
    """Answers to some queries (int64[q], ascending, all of one household), with what is known under a name."""
    out = Lists.empty(len(chosen))
    blocks = home.queries.block[chosen]
    with home.new_store(f"household-{household}") as storage:
        observed = 0
        for block in np.unique(blocks).tolist():
            places = np.flatnonzero(blocks == block)
            if name in GROWING:
                observed = _walk(home, storage, chosen, places, name, diversity, observed, out)
                continue
            for place in places.tolist():
                with home.new_store(f"household-{household}-alone") as alone:
                    _walk(home, alone, chosen, np.array([place]), name, diversity, 0, out)
    return out


def _walk(
    home: Home,
    storage: Path,
    chosen: np.ndarray,
    places: np.ndarray,
    name: str,
    diversity: float,
    observed: int,
    out: Lists,
) -> int:
    """Answer the queries at some places of one block. observed: up to which viewing of the household the store has come;
    returns where it stands then."""
    queries = home.queries
    television = Television(home, storage, int(queries.block[chosen[places[0]]]), diversity)
    with television.brain:
        for place in places.tolist():
            query = int(chosen[place])
            mine = home.split.events_before(queries, query)
            first, last = known_range(name, len(mine))
            television.observe(mine[max(observed, first) : last])
            observed = max(observed, last)
            rows, scores = television.listed(query, mine[first:last])
            out.rank[place] = rank_in_list(rows, scores, int(queries.title[query]))
            shown = rows[: out.top.shape[1]]
            out.top[place, : len(shown)] = shown
    return observed
