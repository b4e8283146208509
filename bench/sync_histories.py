"""What real homes have to tell: the patterns that real brains form of their viewing, and the lists that each sync carries.

A home of the data set forms a handful of skills at most, few any, so a message of twenty patterns is made of several homes':
their skills as they are, the heaviest titles of each, in the order of their beginnings and numbered with the gaps that a
home's skill numbers have. Homes of twelve households each, joined by time, give the larger skills of busy televisions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np

from bench.viewing import Watched
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.codes import as_code, vector_of
from omega_edge.config import BrainConfig
from omega_edge.datasets import Dataset
from omega_edge.protocol import (
    SUCCESS_THRESHOLD,
    FinishedTitle,
    GlobalPatterns,
    TrendSignal,
    ViewingPattern,
)

JOINED_HOUSEHOLDS = 12
TRENDS, TREND_HOURS = 50, 48
GLOBAL_HOMES = (50, 300)
"""A global pattern counts the samples of so many homes like the one whose skill stands for it."""


def watched_by_household(dataset: Dataset) -> list[list[Watched]]:
    """The viewings of each household in time order, the busiest household first."""
    events = dataset.events
    watched: dict[int, list[Watched]] = {}
    for household, title, share, at_ms in zip(
        events.household.tolist(), events.title.tolist(), events.watch_percentage.tolist(), events.timestamp.tolist(), strict=True
    ):
        known = dataset.titles[title]
        watched.setdefault(household, []).append(Watched(known.content_id, known.name, share, at_ms))
    for viewings in watched.values():
        viewings.sort(key=lambda one: one.at_ms)
    return sorted(watched.values(), key=len, reverse=True)


def shared_set(viewings: list[Watched], bundle: Path) -> tuple[ViewingPattern, ...]:
    """What a brain that observed these viewings shares."""
    now_ms = [viewings[0].at_ms]
    with tempfile.TemporaryDirectory(prefix="omega-home-") as folder:
        config = BrainConfig(Path(folder), bundle, sharing="titles", background_maintenance=False)
        with OmegaBrain.open(config, lambda: now_ms[0], Random(1), Random(2)) as brain:
            for one in viewings:
                now_ms[0] = one.at_ms
                brain.observe(one.event())
            delta = brain.prepare_sync_delta()
            while delta.more_pages:  # the patterns come with the last one
                brain.acknowledge_sync(delta.local_version)
                delta = brain.prepare_sync_delta()
    return delta.patterns_added


@dataclass(frozen=True, slots=True)
class Skills:
    """Skills of real homes. gaps: between the numbers of one home's skills that follow each other."""

    patterns: tuple[ViewingPattern, ...]
    gaps: tuple[int, ...]
    homes: int

    @classmethod
    def of_homes(cls, households: list[list[Watched]], bundle: Path, single: int, joined: int) -> Skills:
        """Those of the `single` busiest households, and of `joined` homes of the next twelve households each."""
        homes = households[:single]
        for number in range(joined):
            start = single + JOINED_HOUSEHOLDS * number
            together = households[start : start + JOINED_HOUSEHOLDS]
            homes.append(sorted((one for viewings in together for one in viewings), key=lambda one: one.at_ms))
        patterns, gaps = [], []
        for viewings in homes:
            shared = shared_set(viewings, bundle) if viewings else ()
            patterns += shared
            gaps += [after.id - before.id for before, after in pairwise(sorted(shared, key=lambda one: one.id))]
        return cls(tuple(patterns), tuple(gaps) or (1,), len(homes))

    def drawn(self, count: int, chosen: Random) -> tuple[ViewingPattern, ...]:
        """So many of them, some more than once where there are fewer, as the shared set of one home."""
        drawn = chosen.sample(self.patterns, min(count, len(self.patterns)))
        drawn += chosen.choices(self.patterns, k=count - len(drawn))
        number, numbered = 0, []
        for pattern in sorted(drawn, key=lambda one: one.created_at):
            number += chosen.choice(self.gaps)
            numbered.append(replace(pattern, id=number))
        return tuple(numbered)


def with_references(patterns: tuple[ViewingPattern, ...], count: int) -> tuple[ViewingPattern, ...]:
    """The patterns with at most so many titles each, the heaviest."""
    return tuple(replace(pattern, references=pattern.references[:count]) for pattern in patterns)


def coded(patterns: tuple[ViewingPattern, ...], catalog: Catalog) -> tuple[ViewingPattern, ...]:
    """The patterns as codes; the catalogue has to have a codebook, and at least a title of each."""
    return tuple(as_code(pattern, catalog.quantiser, vector_of(pattern, catalog)) for pattern in patterns)


def global_patterns(version: int, patterns: tuple[ViewingPattern, ...], catalog: Catalog, chosen: Random) -> GlobalPatterns:
    """These patterns as those of many homes, beside the trends of the catalogue's most popular titles."""
    similar = tuple(
        replace(pattern, sample_count=pattern.sample_count * chosen.randint(*GLOBAL_HOMES)) for pattern in patterns
    )
    rows = np.argsort(-catalog.popularity, kind="stable")[:TRENDS].tolist()
    trending = tuple(TrendSignal(catalog.content_id(row), float(catalog.popularity[row]), TREND_HOURS) for row in rows)
    return GlobalPatterns(version, similar, trending)


def lists(households: list[list[Watched]], interval_ms: int) -> Iterator[tuple[FinishedTitle, ...]]:
    """What each sync has to tell that has anything: the titles that a household finished within one interval of the clock."""
    for viewings in households:
        page: list[FinishedTitle] = []
        for one in viewings:
            if one.watch_percentage < SUCCESS_THRESHOLD:
                continue
            if page and one.at_ms // interval_ms != page[-1].finished_at // interval_ms:
                yield tuple(page)
                page = []
            page.append(FinishedTitle(one.content_id, one.at_ms))
        if page:
            yield tuple(page)
