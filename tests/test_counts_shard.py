"""Counting on a shard, over a real store: votes, windows, reports and lists are exactly those of what was stored."""

from __future__ import annotations

import errno
import os
import random

import numpy as np
import pytest

from cloud import lists
from cloud.configuration import ServerConfig
from cloud.counts import Counts, window_of
from cloud.estimates import support, title_hashes
from cloud.opening import open_knowledge
from cloud.publication import Publication, read_counts, read_lists
from cloud.shard import ShardConfig
from cloud.shard_counter import POPULARITY_DAYS, CountingSettings, ShardCounter, trend_days
from cloud.shard_federation import ShardFederation
from omega_edge.columns import STEP_MS
from omega_edge.errors import ConfigError
from omega_edge.protocol import COUNT_CATEGORIES, DAY_MS
from tests import shards
from tests.shard_processes import write_bundle
from tests.shards import KEY, SECRET, TODAY, TRUSTED, Clock, FilledStorage
from tests.synthetic import catalog_of

SETTINGS = CountingSettings(window_days=35)
TITLES = 60


class Shard:
    """A store, its publication, and its counter, which a test can kill and start again."""

    def __init__(self, tmp_path):
        self.clock, self.folder = Clock(), tmp_path / "publication"
        self.catalog = catalog_of(TITLES)
        self.store = FilledStorage(tmp_path / "store", self.clock, self.catalog.lineage)
        self.start()

    def start(self):
        self.publication = Publication(self.folder, "shard-1", KEY, SECRET)
        self.counter = ShardCounter(self.store.storage, self.publication, SETTINGS, self.catalog, self.clock)

    def counts(self) -> Counts:
        return read_counts(self.folder, TRUSTED, SECRET)

    def check(self):
        """Everything published is the truth."""
        counts = self.counts()
        for day in range(TODAY - 40, self.clock() // DAY_MS + 1):
            truth = shards.votes_of([self.store], day, TITLES)
            if day < self.clock() // DAY_MS - 35:
                truth[:] = 0
            told = np.zeros(TITLES, np.uint32)
            if day in counts.days:
                told[counts.days[day].rows] = counts.days[day].votes
            assert told.tolist() == truth.tolist(), day
        today = self.clock() // DAY_MS
        lengths = (*trend_days(self.catalog), POPULARITY_DAYS)
        for end_day, days in ((end_day, days) for end_day in (today, today + 1) for days in lengths):
            truth = shards.window_of([self.store], end_day, days, TITLES)
            told = np.zeros(TITLES, np.uint32)
            window = window_of(counts, end_day, days)
            told[window.rows] = window.devices
            assert told.tolist() == truth.tolist()
        self.check_reports(counts)
        self.check_lists()

    def check_reports(self, counts: Counts):
        hashes = title_hashes(self.catalog.content_ids(range(TITLES)))
        by_day: dict[int, list[tuple[int, int]]] = {}
        for (_, day), report in self.store.reports.items():
            by_day.setdefault(day, []).append(report)
        assert {day: found.reports for day, found in counts.reports.items() if found.reports} == {
            day: len(found) for day, found in by_day.items()
        }
        for day, found in by_day.items():
            seeds, values = np.array(found, np.uint32).T
            assert counts.reports[day].support.tolist() == support(hashes, seeds, values).tolist()

    def check_lists(self):
        found = read_lists(self.folder, TRUSTED, SECRET)
        homes: dict[int, list[tuple[int, int]]] = {}
        for home, row, moment in zip(found.home.tolist(), found.row.tolist(), found.finished_ms.tolist(), strict=True):
            homes.setdefault(int(found.pseudonyms[home]), []).append((moment // STEP_MS, row))
        assert all([step for step, _ in titles] == sorted(step for step, _ in titles) for titles in homes.values())
        assert {home: {row: step for step, row in titles} for home, titles in homes.items()} == {
            lists.pseudonym(SECRET, shards.device_id(device)): titles for device, titles in self.store.lists.items()
        }


@pytest.fixture
def shard(tmp_path):
    made = Shard(tmp_path)
    yield made
    made.store.storage.close()


def fill(store: FilledStorage, seed: int, devices: range, reports: bool = True) -> None:
    drawn = random.Random(seed)
    with store.together():
        for device in devices:
            rows = [drawn.randrange(TITLES) for _ in range(drawn.randrange(1, 9))]
            store.finish(device, rows, sorted((drawn.uniform(0, 38) for _ in rows), reverse=True))
    with store.together():
        for device in devices if reports else ():
            day, value = TODAY - drawn.randrange(3), drawn.randrange(COUNT_CATEGORIES)
            store.report(1_000_000 + device, day, drawn.getrandbits(32), value)


def test_everything_stored_is_counted(shard):
    fill(shard.store, 1, range(80))
    assert shard.counter.run_once()
    shard.check()


def test_only_what_is_new_is_taken_and_nothing_new_changes_nothing(shard):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    before = {path.name: path.read_bytes() for path in shard.folder.iterdir()}
    shard.clock.now_ms += 60_000
    assert not shard.counter.run_once()
    assert {path.name: path.read_bytes() for path in shard.folder.iterdir()} == before
    fill(shard.store, 2, range(30, 60))
    assert shard.counter.run_once()
    shard.check()


def test_one_vote_a_device_title_and_day(shard):
    for _ in range(5):
        shard.store.finish(1, [3, 3, 3], [0.1, 0.1, 0.1])
    shard.counter.run_once()
    assert shard.counts().days[TODAY].votes.tolist() == [1]
    shard.check()


def test_a_device_counts_once_a_window_however_many_days_it_votes(shard):
    shard.store.finish(1, [3] * 6, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    shard.counter.run_once()
    assert window_of(shard.counts(), TODAY, 7).devices.tolist() == [1]


def test_erased_devices_leave(shard):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    erased = np.array([lists.pseudonym(SECRET, shards.device_id(device)) for device in (3, 4)], np.uint64)
    assert np.isin(erased, read_lists(shard.folder, TRUSTED, SECRET).pseudonyms).all()
    for device in (3, 4, 1_000_005):
        shard.store.erase(device)
    assert shard.counter.run_once()
    assert not np.isin(erased, read_lists(shard.folder, TRUSTED, SECRET).pseudonyms).any()
    shard.check()


def test_an_erased_device_that_comes_back_is_counted_from_then_on(shard):
    fill(shard.store, 1, range(10))
    shard.counter.run_once()
    shard.store.erase(3)
    shard.store.finish(3, [7], [0.2])
    shard.counter.run_once()
    shard.check()


def test_the_last_device_of_a_segment_takes_it_along(shard):
    shard.store.finish(1, [3], [0.1])
    shard.counter.run_once()
    assert list(shard.folder.glob("lists.*"))
    shard.store.erase(1)
    shard.counter.run_once()
    assert not list(shard.folder.glob("lists.*"))


@pytest.mark.parametrize("day_passed", [0, 1, 3, 12])
def test_a_counter_that_starts_again_goes_on(shard, day_passed):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    shard.clock.now_ms += day_passed * DAY_MS
    fill(shard.store, 2, range(30, 70), reports=False)
    shard.store.erase(5)
    shard.store.erase(1_000_006)
    shard.start()
    shard.counter.run_once()
    shard.check()
    shard.clock.now_ms += 60_000
    fill(shard.store, 3, range(60, 90), reports=False)
    shard.counter.run_once()
    shard.check()


@pytest.mark.parametrize("started_again", [False, True])
@pytest.mark.parametrize("leap_days", [1, 40, 500])
def test_a_clock_that_leaps_ahead_and_comes_back_loses_nothing(shard, leap_days, started_again):
    fill(shard.store, 1, range(20))
    shard.counter.run_once()
    shard.clock.now_ms += leap_days * DAY_MS
    shard.counter.run_once()
    shard.clock.now_ms -= leap_days * DAY_MS
    if started_again:
        shard.start()
    fill(shard.store, 2, range(30, 50), reports=False)
    shard.counter.run_once()
    shard.check()


@pytest.mark.parametrize("passed", [40, 256, 260])
def test_days_of_reports_and_votes_that_are_too_old_go(shard, passed):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    shard.clock.now_ms += passed * DAY_MS  # a day is kept in 8 bits: none may come back after 256
    shard.store.finish(100, [1], [0.1])
    shard.counter.run_once()
    counts = shard.counts()
    assert set(counts.days) == {TODAY + passed} and not counts.reports
    assert shard.counter.held["reports"] == 0 and shard.counter.held["votes"] == 1


def test_lists_are_kept_for_the_stated_time(shard):
    shard.store.finish(1, [3], [0.1])
    shard.counter.run_once()
    shard.clock.now_ms += 401 * DAY_MS
    shard.store.finish(2, [4], [0.1])
    shard.counter.run_once()
    assert read_lists(shard.folder, TRUSTED, SECRET).row.tolist() == [4]


def test_a_step_that_fails_loses_nothing(tmp_path, monkeypatch):
    clock = Clock()
    catalog = write_bundle(tmp_path / "bundles", key=KEY)
    store = FilledStorage(tmp_path / "store", clock, catalog.lineage)
    config = ServerConfig(
        ShardConfig(1, "default", f"lmdb://{tmp_path / 'store'}"), bytes(32), bundle_dir=tmp_path / "bundles",
        publication_dir=tmp_path / "publication", signing_key=KEY, trusted_keys=TRUSTED, federation_secret=SECRET,
    )  # fmt: skip
    federation = ShardFederation(config, store.storage, open_knowledge(config), clock)
    replace_file = os.replace
    for attempt in range(6):
        fill(store, attempt, range(10 * attempt, 10 * attempt + 12))
        left = [attempt % 3]  # lists, counts, index

        def failing(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "no space left on device")
            replace_file(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no space"):
            federation.step()
        monkeypatch.setattr(os, "replace", replace_file)
        clock.now_ms += 60_000
        store.finish(1000 + attempt, [1], [0.1])
        assert federation.step()
        lists_told = read_lists(tmp_path / "publication", TRUSTED, SECRET)
        assert len(lists_told.row) == sum(map(len, store.lists.values()))
        counts = read_counts(tmp_path / "publication", TRUSTED, SECRET)
        told = sum(int(day.votes.sum()) for day in counts.days.values())
        assert told == sum(day >= TODAY - 35 for _, _, day in store.votes)
    store.storage.close()


@pytest.mark.parametrize("lost", ["index", "counts.*", "lists.*", "*"])
def test_a_counter_whose_files_are_gone_makes_them_anew(shard, lost):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    for path in list(shard.folder.glob(lost)):
        path.unlink()
    if lost == "lists.*":
        (shard.folder / "index").unlink()
    shard.start()
    shard.counter.run_once()
    shard.check()


def test_sequences_rise_even_when_the_folder_was_lost(shard):
    shard.store.finish(1, [3], [0.1])
    shard.counter.run_once()
    before = shard.counts().sequence
    for path in list(shard.folder.iterdir()):
        path.unlink()
    shard.clock.now_ms += 1_000
    shard.start()
    shard.counter.run_once()
    assert shard.counts().sequence > before


def test_a_bundle_with_more_titles_counts_reports_for_them_too(shard):
    fill(shard.store, 1, range(40))
    shard.counter.run_once()
    older = shard.catalog
    newer = catalog_of(TITLES + 5)
    newer.meta["lineage"] = newer.lineage = older.lineage
    assert newer.content_ids(range(TITLES)) == older.content_ids(range(TITLES))
    assert shard.counter.take_titles(newer)
    shard.counter.run_once()
    counts = shard.counts()
    hashes = title_hashes(newer.content_ids(range(TITLES + 5)))
    reports = [report for (_, day), report in shard.store.reports.items() if day == TODAY]
    seeds, values = np.array(reports, np.uint32).T
    assert counts.reports[TODAY].support.tolist() == support(hashes, seeds, values).tolist()


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="WINDOW_DAYS"):
        CountingSettings(window_days=201)
