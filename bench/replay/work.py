"""The replay's work, divided among processes: each part gives the same whatever their number and order.

Processes are started afresh (spawn), with one thread for linear algebra each, and read what they share from one file.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.replay import baselines
from bench.replay.bundles import TitleFacts, write_bundles
from bench.replay.measures import Lists
from bench.replay.method import ScoredMethod
from bench.replay.scored import Answers, TrendsByMidnight, answer
from bench.replay.split import FULL, RESTRICTED, Split
from bench.replay.television import Broadcast, Home, household_lists, make_seed_store
from bench.replay.trends import trend_message
from cloud.model import ModelSettings
from omega_edge.catalog import Catalog
from omega_edge.datasets import Dataset

Progress = Callable[[str], None]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
HOUSEHOLDS_PER_PART = 16


@dataclass(frozen=True, slots=True)
class Shared:
    """What every part of the work reads."""

    dataset: Dataset
    facts: TitleFacts
    blocks: int
    folder: Path

    def split(self) -> Split:
        """The data set's viewings, divided."""
        return Split(self.dataset.events, len(self.dataset.titles), self.blocks)


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk of the product over queries: what is known, and the diversity it is configured with."""

    label: str
    name: str
    diversity: float


def say(text: str) -> None:
    """Progress, to standard error; from any process."""
    print(text, file=sys.stderr, flush=True)


def families() -> dict[str, tuple[str, str]]:
    """Families of baselines: name to module and function that gives the candidates, in alphabetical order.

    Every module of bench.replay.baselines with `candidates` is one, by its name; `window_candidates` in it is another,
    by the module's name and "_window". The sources are searched: libraries that only one method needs stay unread.
    A function with a parameter `vectors` gets the titles' content vectors, float32[n, 384].
    """
    found = {}
    for path in Path(baselines.__file__).parent.glob("*.py"):
        for match in re.finditer(r"^def (?:([a-z]\w*)_)?candidates\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            kind = match[1]
            name = f"{path.stem}_{kind}" if kind else path.stem
            found[name] = (f"{baselines.__name__}.{path.stem}", f"{kind}_candidates" if kind else "candidates")
    return dict(sorted(found.items()))


def candidates_of(family: str, vectors: np.ndarray) -> list[ScoredMethod]:
    """A family's grid, unfitted. vectors: float32[n, d], the titles' content vectors."""
    module, function = families()[family]
    make = getattr(importlib.import_module(module), function)
    return make(vectors) if "vectors" in inspect.signature(make).parameters else make()


@contextmanager
def workers(count: int) -> Iterator[Executor]:
    """Processes for the parts of the work."""
    with single_threaded(), ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        yield pool


@contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started meanwhile do linear algebra with one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_read: dict[Path, Shared] = {}
_split: dict[Path, Split] = {}
_home: dict[Path, Home] = {}


def _shared(file: Path) -> Shared:
    """What the file holds, read once a process."""
    if file not in _read:
        with file.open("rb") as opened:
            _read[file] = pickle.load(opened)
        _split[file] = _read[file].split()
    return _read[file]


def family_answers(file: Path, family: str) -> Answers:
    """A family of baselines on the whole test."""
    candidates = candidates_of(family, _shared(file).facts.vectors())
    return answer(_split[file], candidates, lambda what: say(f"  {family}: {what}"), (FULL, *RESTRICTED))


def trained_broadcast(file: Path, settings: ModelSettings) -> Broadcast:
    """The bundles of all blocks, and the syncs of every midnight before a query."""
    shared, split = _shared(file), _split[file]
    bundles = write_bundles(
        split, shared.dataset, shared.facts, settings, shared.folder, lambda what: say(f"  omega: {what}")
    )
    trends, syncs = TrendsByMidnight(split), {}
    keys = sorted(set(zip(split.queries.block.tolist(), split.queries.midnight_ms.tolist(), strict=True)))
    for block, path in enumerate(bundles):
        with Catalog.open(path) as catalog:
            for midnight_ms in (midnight for of, midnight in keys if of == block):
                syncs[block, midnight_ms] = trend_message(catalog, trends.until(midnight_ms))
    make_seed_store(bundles[0], shared.folder / "seed-store")
    with (shared.folder / "broadcast.pickle").open("wb") as opened:
        pickle.dump(Broadcast(bundles, syncs), opened)
    return Broadcast(bundles, syncs)


def part_lists(file: Path, chosen: np.ndarray, walk: Pass) -> tuple[str, np.ndarray, Lists]:
    """The product's answers to some queries (int64[q], of whole households): the pass's label, the queries, the lists."""
    shared, split = _shared(file), _split[file]
    if file not in _home:
        with (shared.folder / "broadcast.pickle").open("rb") as opened:
            broadcast = pickle.load(opened)
        place = shared.folder / f"homes-{os.getpid()}"
        place.mkdir(exist_ok=True)
        _home[file] = Home(split, shared.dataset.titles, broadcast, place, shared.folder / "seed-store")
    out = Lists.empty(len(chosen))
    household = split.queries.household[chosen]
    for one in np.unique(household).tolist():
        mine = np.flatnonzero(household == one)
        found = household_lists(_home[file], one, chosen[mine], walk.name, walk.diversity)
        out.rank[mine], out.top[mine] = found.rank, found.top
    return walk.label, chosen, out


def parts_of(split: Split, queries: np.ndarray) -> list[np.ndarray]:
    """Some queries (int64[q], ascending) in parts of whole households, int64[] each."""
    households = np.unique(split.queries.household[queries])
    groups = np.array_split(households, max(-(-len(households) // HOUSEHOLDS_PER_PART), 1))
    return [queries[np.isin(split.queries.household[queries], group)] for group in groups if len(group)]


def passes_lists(
    pool: Executor, file: Path, split: Split, passes: Mapping[Pass, np.ndarray], progress: Progress
) -> dict[str, Lists]:
    """The product's answers by label of the pass, each in the order of its queries (int64[q], ascending)."""
    waiting: list[Future] = []
    for walk, queries in passes.items():
        waiting += [pool.submit(part_lists, file, part, walk) for part in parts_of(split, queries)]
    out = {walk.label: Lists.empty(len(queries)) for walk, queries in passes.items()}
    asked = {walk.label: queries for walk, queries in passes.items()}
    for done, part in enumerate(as_completed(waiting), start=1):
        label, queries, found = part.result()
        places = np.searchsorted(asked[label], queries)
        out[label].rank[places], out[label].top[places] = found.rank, found.top
        if done * 10 // len(waiting) != (done - 1) * 10 // len(waiting):
            progress(f"omega: {done * 100 // len(waiting)} % of the households' lists")
    return out


def submit_families(pool: Executor, file: Path, families: Sequence[str]) -> dict[str, Future]:
    """Families of baselines, begun."""
    return {family: pool.submit(family_answers, file, family) for family in families}
