"""That no list knows what came later, and that none depends on how titles and households are numbered.

The real parts run: the text model's vectors, bundles of the model job, brains on stores, the baselines.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bench.replay.bundles import TitleFacts, title_facts, write_bundles
from bench.replay.measures import Lists, mean_by_household, ndcg_at_10, recall_at_10
from bench.replay.method import FutureRead, Past, ScoredMethod, TrendEvents
from bench.replay.scored import TrendsByMidnight, answer
from bench.replay.split import FULL, RESTRICTED, Split
from bench.replay.television import Broadcast, Home, household_lists, make_seed_store
from bench.replay.trends import trend_message
from bench.replay.work import families
from cloud import sequence_training
from cloud.model import ModelSettings
from omega_edge.catalog import Catalog
from omega_edge.datasets import Dataset, DatasetTitle, Events

PROJECT = Path(__file__).resolve().parent.parent
TITLES, HOUSEHOLDS, VIEWINGS = 70, 60, 1500
START_S = 1_369_612_800
GENRES = ("Drama", "Comedy", "Horror", "Family")
QUICKLY_FITTED = ("content", "ease", "item_knn", "popularity", "popularity_window")
"""Baselines that are fitted within a second and need numpy alone; the others' own tests hold them to the same."""


def made_data(seed: int = 1) -> Dataset:
    """Households with a taste each, titles that come into fashion and go: something to learn, and trends."""
    rng = np.random.default_rng(seed)
    titles = tuple(
        DatasetTitle(f"t{row:02d}", f"A story of {GENRES[row % 4].lower()}, part {row} ({1990 + row % 20})", 1990 + row % 20,
                     (GENRES[row % 4],))
        for row in range(TITLES)
    )  # fmt: skip
    at_s = START_S + np.sort(rng.choice(30 * 86_400, VIEWINGS, replace=False))
    household = rng.integers(0, HOUSEHOLDS, VIEWINGS)
    # From day 24 on new households come, some of them with no past at all.
    household[at_s > START_S + 24 * 86_400] += HOUSEHOLDS // 3
    fashion = (at_s - START_S) // (2 * 86_400)
    liked = 4 * rng.integers(0, TITLES // 4, VIEWINGS) + household % 4
    title = np.where(rng.random(VIEWINGS) < 0.35, (7 * fashion + rng.integers(0, 5, VIEWINGS)) % TITLES, liked) % TITLES
    watched = np.where(rng.random(VIEWINGS) < 0.8, 1.0, 0.3)
    households = tuple(f"h{number}" for number in range(int(household.max()) + 1))
    events = Events(household.astype(np.int32), title.astype(np.int32), watched, at_s.astype(np.int64) * 1000)
    return Dataset("made up", titles, households, events, (), None)


@dataclass(frozen=True)
class Replayed:
    """A data set replayed: its split, the bytes of its bundles and syncs, and each method's lists."""

    split: Split
    bundles: list[bytes]
    syncs: dict[tuple[int, int], bytes]
    lists: dict[str, Lists]


def replayed(dataset: Dataset, facts: TitleFacts, folder: Path, methods: Sequence[ScoredMethod] = ()) -> Replayed:
    """Replay by the product with diversity 0, and by some methods."""
    folder.mkdir()
    split = Split(dataset.events, len(dataset.titles), blocks=2)
    bundles = write_bundles(split, dataset, facts, ModelSettings(), folder, lambda what: None)
    trends, syncs = TrendsByMidnight(split), {}
    with Catalog.open(bundles[0]) as catalog:
        for block, midnight_ms in set(zip(split.queries.block.tolist(), split.queries.midnight_ms.tolist(), strict=True)):
            syncs[block, midnight_ms] = trend_message(catalog, trends.until(midnight_ms))
    make_seed_store(bundles[0], folder / "seed-store")
    (folder / "homes").mkdir()
    home = Home(split, dataset.titles, Broadcast(bundles, syncs), folder / "homes", folder / "seed-store")
    lists = {"omega": Lists.empty(len(split.queries))}
    for household in np.unique(split.queries.household).tolist():
        mine = np.flatnonzero(split.queries.household == household)
        found = household_lists(home, household, mine, FULL, 0.0)
        lists["omega"].rank[mine], lists["omega"].top[mine] = found.rank, found.top
    home.close()
    for method in methods:
        lists[method.name] = answer(split, [method], lambda what: None, (FULL,)).lists[FULL]
    return Replayed(split, [path.read_bytes() for path in bundles], syncs, lists)


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """An encoder learns little in so few steps; whether it knows the future does not depend on that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_training, "FIRST_STEPS", 20)
        patch.setattr(sequence_training, "FURTHER_STEPS", 5)
        yield


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return made_data()


@pytest.fixture(scope="module")
def facts(dataset: Dataset, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TitleFacts:
    return title_facts(dataset, model_dir, tmp_path_factory.mktemp("vectors"), lambda what: None)


def baselines(facts: TitleFacts) -> list[ScoredMethod]:
    """The middle configuration of each family that is fitted quickly."""
    found = []
    for name in QUICKLY_FITTED:
        module, function = families()[name]
        candidates_of = getattr(importlib.import_module(module), function)
        grid = candidates_of(facts.vectors()) if name == "content" else candidates_of()
        found.append(grid[len(grid) // 2])
    return found


@pytest.fixture(scope="module")
def original(dataset: Dataset, facts: TitleFacts, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    return replayed(dataset, facts, tmp_path_factory.mktemp("original") / "work", [*baselines(facts), Peeking(dataset)])


class Peeking:
    """A method that knows all viewings, to show that the guards below see it."""

    name = "peeking"

    def __init__(self, dataset: Dataset) -> None:
        self._every = dataset.events

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        self._count = title_count

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        later = (self._every.timestamp >= past.now_ms) & (self._every.timestamp < past.now_ms + 43_200_000)
        return np.bincount(self._every.title[later], minlength=self._count).astype(np.float32)


class Today:
    """A method that counts up to the moment of the query, which trend counts refuse."""

    name = "today"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        pass

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        return trend_events.counts(past.now_ms, 48).astype(np.float32)


def exchanged(dataset: Dataset, chosen: np.ndarray, seed: int = 9, households: bool = True) -> Dataset:
    """The data set with other titles watched in some viewings (int64[m]), and who watched dealt out anew among them.

    Dealing out the titles alone would leave their counts as they are, and a trend that reads too far unseen.
    """
    events, order = dataset.events, np.random.default_rng(seed).permutation(chosen)
    household, title, watched = events.household.copy(), events.title.copy(), events.watch_percentage.copy()
    title[chosen], watched[chosen] = (events.title[order] + 7) % TITLES, events.watch_percentage[order]
    if households:
        household[chosen] = events.household[order]
    assert np.mean(title != events.title) > 0
    return replace(dataset, events=replace(events, household=household, title=title, watch_percentage=watched))


def test_what_happens_later_changes_no_list_of_today(
    dataset: Dataset, facts: TitleFacts, original: Replayed, tmp_path: Path
) -> None:
    """Everything after a viewing in the second block is exchanged: bundles, syncs and lists up to it stay as they are."""
    last = original.split.starts[1] + 60
    other = exchanged(dataset, np.arange(last + 1, VIEWINGS))
    again = replayed(other, facts, tmp_path / "work", [*baselines(facts), Peeking(other)])
    assert again.bundles == original.bundles
    # Which queries of a busy household are asked depends on how many it has in all; those asked in both are compared.
    earlier = np.intersect1d(again.split.queries.event, original.split.queries.event)
    earlier = earlier[earlier <= last]
    assert len(earlier) > 60 and earlier[0] < original.split.starts[1] < earlier[-1]
    here, there = (np.isin(one.split.queries.event, earlier) for one in (original, again))
    for midnight_ms in set(original.split.queries.midnight_ms[here].tolist()):
        keys = [key for key in original.syncs if key[1] == midnight_ms]
        assert keys and all(again.syncs[key] == original.syncs[key] for key in keys if key in again.syncs)
    for name, lists in original.lists.items():
        same = np.array_equal(again.lists[name].rank[there], lists.rank[here])
        same &= np.array_equal(again.lists[name].top[there], lists.top[here])
        assert same == (name != "peeking"), name


def test_what_others_watch_today_changes_no_list_of_today(
    dataset: Dataset, facts: TitleFacts, original: Replayed, tmp_path: Path
) -> None:
    """Between midnight and a query all other households watch other titles."""
    queries, events = original.split.queries, dataset.events
    for query in range(len(queries) - 1, -1, -1):
        today = np.arange(int(np.searchsorted(events.timestamp, queries.midnight_ms[query])), queries.event[query])
        today = today[events.household[today] != queries.household[query]]
        if len(today) > 25 and today[0] > original.split.starts[1]:
            break
    else:
        raise AssertionError("no query late enough in a day")
    other = exchanged(dataset, today, households=False)
    again = replayed(other, facts, tmp_path / "work", baselines(facts))
    place = int(np.flatnonzero(again.split.queries.event == queries.event[query])[0])
    assert again.bundles == original.bundles
    for name, lists in again.lists.items():
        assert lists.rank[place] == original.lists[name].rank[query], name
        assert np.array_equal(lists.top[place], original.lists[name].top[query]), name


def test_trend_counts_refuse_a_method_that_reads_beyond_midnight(dataset: Dataset) -> None:
    with pytest.raises(FutureRead, match="midnight"):
        answer(Split(dataset.events, TITLES), [Today()], lambda what: None, (FULL,))


def test_the_past_changes_bundles_and_lists(
    dataset: Dataset, facts: TitleFacts, original: Replayed, tmp_path: Path
) -> None:
    """The guards above would prove nothing if no list depended on anything."""
    other = exchanged(dataset, np.arange(original.split.starts[0] - 200, original.split.starts[0]), households=False)
    again = replayed(other, facts, tmp_path / "work", baselines(facts))
    assert again.bundles[0] != original.bundles[0] and again.bundles[1] != original.bundles[1]
    common = np.intersect1d(again.split.queries.event, original.split.queries.event)
    for name in (name for name in again.lists if not name.startswith("content")):
        found = again.lists[name].top[np.isin(again.split.queries.event, common)]
        assert not np.array_equal(found, original.lists[name].top[np.isin(original.split.queries.event, common)]), name


def renumbered(dataset: Dataset, seed: int) -> Dataset:
    """The same viewing with titles and households in another order and under other ids."""
    rng = np.random.default_rng(seed)
    title_at, household_at = rng.permutation(len(dataset.titles)), rng.permutation(len(dataset.households))
    titles = [None] * len(dataset.titles)
    for old, new in enumerate(title_at.tolist()):
        titles[new] = replace(dataset.titles[old], content_id=f"x{new:03d}")
    households = tuple(f"home {number}" for number in range(len(household_at)))
    title, household = title_at[dataset.events.title], household_at[dataset.events.household]
    events = replace(dataset.events, title=title.astype(np.int32), household=household.astype(np.int32))
    return replace(dataset, titles=tuple(titles), households=households, events=events)


def test_numbers_of_titles_and_households_decide_nothing(
    dataset: Dataset, model_dir: Path, original: Replayed, tmp_path: Path
) -> None:
    """Ranks of the score-array methods are the same but for the last bits of sums in another order. The product orders
    equal scores by row, in its lists, in its fitting and where a row of weights is cut off: a little may move."""
    other = renumbered(dataset, 5)
    facts = title_facts(other, model_dir, tmp_path, lambda what: None)
    again = replayed(other, facts, tmp_path / "work", baselines(facts))
    assert np.array_equal(again.split.queries.event, original.split.queries.event)
    for name, lists in again.lists.items():
        before, after = original.lists[name].rank, lists.rank
        tolerance = 0.005 if name == "omega" else 1e-3
        assert name == "omega" or np.mean(before != after) < 0.01, name
        for measure in (ndcg_at_10, recall_at_10):
            assert measure(after).mean() == pytest.approx(measure(before).mean(), abs=tolerance), name
        found = mean_by_household(ndcg_at_10(after), again.split.queries.household, 0)
        assert found.low == pytest.approx(mean_by_household(ndcg_at_10(before), original.split.queries.household, 0).low, abs=0.03)


# The whole program.


def write_movielens(dataset: Dataset, folder: Path) -> Path:
    """The data set as a pair of atomic files, with a line that cannot be used."""
    folder.mkdir()
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [f"{title.content_id}\t{title.bare_name}\t{title.year}\t{' '.join(title.genres)}" for title in dataset.titles]
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    events = dataset.events
    for household, title, watched, at_ms in zip(
        events.household, events.title, events.watch_percentage, events.timestamp, strict=True
    ):
        rows.append(f"h{household}\t{dataset.titles[title].content_id}\t{5 if watched == 1 else 2}\t{at_ms // 1000}")
    rows.insert(700, "h1\tt01\tsix\t1369612800")
    (folder / "made.item").write_text("\n".join(items) + "\n")
    (folder / "made.inter").write_text("\n".join(rows) + "\n")
    return folder


def run_program(data: Path, model_dir: Path, folder: Path, *more: str) -> tuple[list[dict], str]:
    command = [sys.executable, "-m", "bench.replay", "--dataset", "movielens", "--path", str(data), "--json", "--quick"]
    command += ["--model", str(model_dir), "--cache", str(folder), *more]
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(text) for text in done.stdout.splitlines()], done.stderr


def test_the_program_gives_the_same_with_one_process_and_with_two_and_leaves_nothing(
    dataset: Dataset, model_dir: Path, tmp_path: Path
) -> None:
    data, work = write_movielens(dataset, tmp_path / "made"), tmp_path / "work"
    work.mkdir()
    report = tmp_path / "report.html"
    made, said = run_program(data, model_dir, work, "--report", str(report), "--diversity-sweep")
    again, _ = run_program(data, model_dir, work, "--processes", "1", "--diversity-sweep")
    assert made == again
    assert "left out made.inter line 701: expected a rating, got 'six'" in said
    assert [path.name for path in work.iterdir()] == ["title-vectors.cache"]
    methods = {line["method"] for line in made}
    assert {"omega", "omega_diverse", "popularity", "item_knn"} <= methods
    assert all(line["correct"] and line["quick"] and line["malformed_lines"] == 1 for line in made)
    wanted = {"history", "bundle_age_days", "missing_events", "known_events", "diversity"}
    assert wanted <= set().union(*(line.keys() for line in made))
    text = report.read_text(encoding="utf-8")
    assert "The price of variety" in text and "Omega Edge" in text
    compared = [line for line in made if line["metric"] == "ndcg_at_10_minus_best_baseline"]
    assert {line["method"] for line in compared} == {"omega", "omega_diverse"}
    assert len(RESTRICTED) == 5 and {line["known_events"] for line in made if "known_events" in line} == {0, 1, 5, 20}
