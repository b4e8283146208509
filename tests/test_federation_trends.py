"""What the hub tells: the threshold, one scale for votes and reports, the velocity alarm, one change a day, 5,400 bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud import collective as collectives
from cloud import counts as counts_
from cloud.collective import COLLECTIVE_BYTES, Collective, Trending, compose
from cloud.counts import Counts, DayReports, DayVotes, WindowVotes
from cloud.downstream import read_collective
from cloud.estimates import CHANCE, KEEP
from cloud.federation import FederationConfig, FederationCoordinator
from cloud.publication import write_file
from cloud.shard_counter import trend_days
from cloud.trending import REFERENCE_HOMES, Decisions, rows_of, trending, window_counts
from cloud.velocity import Alarm, alarms
from cloud.votes import VoteTable
from omega_edge import wire
from omega_edge.protocol import DAY_MS, GlobalPatterns, TitleReference, ViewingPattern
from omega_edge.signing import seal
from tests.shard_processes import write_bundle
from tests.shards import KEY, NOON_MS, SECRET, TODAY, TRUSTED, Clock
from tests.synthetic import catalog_of
from tests.test_federation import Source

TITLES = 60
LINEAGE = "0123456789abcdef"


def counts_of(votes: dict[int, int], reports: dict[int, DayReports] | None = None, days: int = 2, voters: int = 200) -> Counts:
    """Counts with one window that ends today."""
    rows, devices = np.array(sorted(votes), np.uint32), np.array([votes[row] for row in sorted(votes)], np.uint32)
    window = WindowVotes(rows, devices, voters)
    return Counts("hub", 1, LINEAGE, TITLES, 0, {}, {(TODAY, days): window}, reports or {})


def reports_of(homes: int, told: dict[int, int]) -> DayReports:
    """A day's reports whose support is just what is expected of it."""
    support = np.full(TITLES, homes * CHANCE)
    for row, number in told.items():
        support[row] += number * (KEEP - CHANCE)
    return DayReports(homes, np.rint(support).astype(np.uint32))


class TestThreshold:
    def test_of_votes_by_name(self):
        told = window_counts(counts_of({1: 49, 2: 50, 3: 51}), TODAY, 2, 50).told
        assert (told > 0).nonzero()[0].tolist() == [2, 3]

    def test_of_reports_by_their_lower_bound(self):
        # 200 homes told of title 1, 2,000 of title 2: both estimates are above 50, only one lower bound is.
        found = window_counts(counts_of({}, {TODAY - 1: reports_of(20_000, {1: 200, 2: 2_000})}), TODAY, 2, 50)
        assert found.told[1] == 0 and found.told[2] > 0
        assert found.backed[1] < 50 <= found.backed[2] < 2_000

    def test_of_a_device_that_may_report_each_day(self):
        # The same title from the same homes on two days: what is proven is half of the home-days, or one day's.
        days = {day: reports_of(20_000, {2: 600}) for day in (TODAY - 1, TODAY - 2)}
        assert window_counts(counts_of({}, days), TODAY, 2, 50).backed[2] <= 600

    def test_votes_and_reports_are_not_added_up(self):
        """A device that shared titles since it sent a report is in both, and one device all the same."""
        reports = {TODAY - 1: reports_of(20_000, {2: 400})}
        alone = window_counts(counts_of({}, reports), TODAY, 2, 50).backed[2]
        assert 0 < alone
        for voted in (int(alone) // 2, int(alone) + 5):
            assert window_counts(counts_of({2: voted}, reports), TODAY, 2, 50).backed[2] == max(alone, voted)

    @pytest.mark.parametrize("least", [2, 50])
    def test_is_configured_and_at_least_two(self, least):
        told = window_counts(counts_of({1: 1, 2: 2, 3: 50}), TODAY, 2, least).told
        assert (told > 0).nonzero()[0].tolist() == ([2, 3] if least == 2 else [3])


class TestScale:
    def test_scores_do_not_depend_on_participation(self):
        few = window_counts(counts_of({1: 6_000, 2: 12_000}, voters=30_000), TODAY, 2, 50).told
        many = window_counts(counts_of({1: 60_000, 2: 120_000}, voters=300_000), TODAY, 2, 50).told
        assert few == pytest.approx(many) and few[1] == pytest.approx(REFERENCE_HOMES * 6_000 / 30_000)

    def test_few_homes_are_not_made_a_crowd(self):
        told = window_counts(counts_of({1: 60, 2: 120}, voters=300), TODAY, 2, 50).told
        assert told[1:3].tolist() == [60, 120]

    def test_votes_and_reports_weigh_alike(self):
        # A fifth of 10,000 homes finished title 3, whether they say so by name or falsified.
        named = window_counts(counts_of({3: 2_000}, voters=10_000), TODAY, 1, 50)
        by_name = window_counts(replace(counts_of({}), windows={(TODAY, 1): WindowVotes(
            np.array([3], np.uint32), np.array([2_000], np.uint32), 10_000)}), TODAY, 1, 50)  # fmt: skip
        reported = window_counts(counts_of({}, {TODAY - 1: reports_of(10_000, {3: 2_000})}, voters=0), TODAY, 1, 50)
        assert named.told[3] == 0  # the window asked for is not there, and no day stands in for it
        assert by_name.told[3] == pytest.approx(2_000)
        assert reported.told[3] == pytest.approx(by_name.told[3], rel=0.01)

    def test_titles_stay_in_order_of_homes(self):
        told = window_counts(counts_of({1: 60, 2: 90, 3: 70}), TODAY, 2, 50).told
        assert np.argsort(-told)[:3].tolist() == [2, 3, 1]


def day_of(votes: dict[int, tuple[int, int]], voters: int = 1_000, suspect_voters: int = 50) -> DayVotes:
    """Votes {row: (votes, suspects)} of a day."""
    rows = np.array(sorted(votes), np.uint32)
    numbers = np.array([votes[row] for row in sorted(votes)], np.uint32).reshape(-1, 2)
    return DayVotes(rows, numbers[:, 0], numbers[:, 1], voters, suspect_voters)


class TestVelocity:
    def counted(self, yesterday: dict[int, tuple[int, int]], before: dict[int, tuple[int, int]], days: int = 6) -> Counts:
        past = {TODAY - 2 - back: day_of(before) for back in range(days)}
        return Counts("hub", 1, LINEAGE, TITLES, 0, past | {TODAY - 1: day_of(yesterday)})

    def test_a_usual_day_raises_none(self):
        usual = {row: (100 + row, 5) for row in range(TITLES)}
        assert alarms(self.counted(usual, usual), TODAY, 7) == []

    def test_a_crowd_of_suspects_is_held_back_as_long_as_windows_reach(self):
        counts = self.counted({1: (100, 5), 2: (100, 90)}, {1: (100, 5), 2: (100, 5)})
        assert alarms(counts, TODAY, 7) == [Alarm(2, "crowd", TODAY - 1, 100)]
        assert alarms(counts, TODAY + 3, 7) == [Alarm(2, "crowd", TODAY - 1, 100)]
        assert alarms(counts, TODAY + 3, 2) == []

    def test_a_surge_is_held_back_for_a_day(self):
        counts = self.counted({1: (100, 5), 2: (400, 20)}, {1: (100, 5), 2: (10, 0)})
        assert alarms(counts, TODAY, 7) == [Alarm(2, "surge", TODAY - 1, 400)]
        assert alarms(counts, TODAY + 1, 7) == []

    def test_more_homes_are_no_surge(self):
        before = {row: (10, 1) for row in range(TITLES)}
        counts = self.counted({}, before)
        counts.days[TODAY - 1] = day_of({row: (200, 10) for row in range(TITLES)}, voters=20_000, suspect_voters=1_000)
        assert alarms(counts, TODAY, 7) == []

    def test_first_days_prove_nothing(self):
        counts = self.counted({2: (400, 20)}, {2: (10, 0)}, days=2)
        assert alarms(counts, TODAY, 7) == []

    def test_where_all_are_new_none_is_suspect(self):
        counts = Counts("hub", 1, LINEAGE, TITLES, 0, {TODAY - 1: day_of({2: (400, 400)}, 1_000, 1_000)})
        assert alarms(counts, TODAY, 7) == []

    def test_the_operator_decides(self):
        counts = self.counted({1: (100, 5), 2: (100, 90)}, {1: (100, 5), 2: (100, 5)})
        assert alarms(counts, TODAY, 7, allowed={2}) == []
        assert [alarm.reason for alarm in alarms(counts, TODAY, 7, withheld={1})] == ["withheld", "crowd"]

    def test_devices_are_young_for_two_days_and_narrow_by_their_votes(self):
        table = VoteTable(35)
        table.move_to(TODAY)
        # Device 0 came long ago and votes for one title on five days; device 1 for five titles; device 2 came yesterday.
        for back in range(5):
            days, rows = np.array([TODAY - back] * 2), np.array([7, 10 + back])
            table.add(days, rows, np.array([0, 1]))
        table.add(np.array([TODAY, TODAY - 1]), np.array([7, 8]), np.array([2, 2]))
        counted = table.days(TITLES, np.array([TODAY - 30, TODAY - 30, TODAY - 1], np.int32))
        today = counted[TODAY]
        assert dict(zip(today.rows.tolist(), today.suspects.tolist(), strict=True)) == {7: 2, 10: 0}
        assert (today.voters, today.suspect_voters) == (3, 2)


@pytest.fixture(scope="module")
def wide():
    """A catalogue of 3,000 titles."""
    return catalog_of(3_000)


class Population:
    """Homes that finish a title of Zipf's popularity a day, and hostile devices that vote at the cap for one title."""

    def __init__(self, catalog, homes: int, hostile: int, target: int, seed: int) -> None:
        self.catalog, self.homes, self.hostile, self.target = catalog, homes, hostile, target
        self.rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, catalog.count + 1)
        self.shares = np.cumsum(weights / weights.sum())
        self.table = VoteTable(60)
        self.day = TODAY - 30
        self.first_days = np.full(homes + hostile, self.day, np.int32)

    def live_a_day(self) -> None:
        """Every home finishes one title, every hostile device the target."""
        self.day += 1
        self.table.move_to(self.day)
        rows = np.searchsorted(self.shares, self.rng.random(self.homes))
        devices = np.arange(self.homes)
        self.table.add(np.full(self.homes, self.day), rows, devices)
        attackers = np.arange(self.homes, self.homes + self.hostile)
        self.table.add(np.full(self.hostile, self.day), np.full(self.hostile, self.target), attackers)

    def counts(self) -> Counts:
        size, end = len(self.first_days), self.day + 1
        windows = {(end, days): self.table.window(end, days, self.catalog.count, size) for days in trend_days(self.catalog)}
        return Counts(
            "hub", 1, LINEAGE, self.catalog.count, 0, self.table.days(self.catalog.count, self.first_days), windows
        )

    def ranks(self, decisions: Decisions) -> list[int]:
        """The target's rank in each window's trends, from 1; the number of titles where it is not told."""
        windows, _ = trending(self.counts(), self.catalog, self.day + 1, decisions)
        ranks = []
        for window in windows:
            devices = window.devices[self.target]
            ranks.append(1 + int((window.devices > devices).sum()) if devices > 0 else self.catalog.count)
        return ranks


def test_a_thousandth_of_hostile_devices_never_enters_the_top_hundred(wide):
    target = 2_281
    population = Population(wide, homes=20_000, hostile=20, target=target, seed=3)
    for _ in range(14):
        population.live_a_day()
        # With the cap alone: the least threshold there may be, and the operator lets the title through every alarm.
        assert min(population.ranks(Decisions(2, allowed=frozenset({target})))) > 100
        assert min(population.ranks(Decisions(50))) > 100


def test_a_hundredth_of_them_is_held_back_by_the_alarm(wide):
    population = Population(wide, homes=20_000, hostile=200, target=2_281, seed=4)
    unprotected = []
    for day in range(10):
        population.live_a_day()
        if day == 4:  # by then they have voted five times for the same title, and homes know more
            unprotected = population.ranks(Decisions(2, allowed=frozenset({2_281})))
    assert min(unprotected) <= 100
    assert min(population.ranks(Decisions(2))) == wide.count
    assert [alarm.row for alarm in trending(population.counts(), wide, population.day + 1, Decisions(2))[1]] == [2_281]


def patterns_of(catalog, count: int) -> tuple[ViewingPattern, ...]:
    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        titles = rng.choice(catalog.count, 4, replace=False)
        references = tuple(TitleReference(catalog.content_id(int(row)), float(rng.uniform(0.1, 1))) for row in titles)
        created = NOON_MS - int(rng.integers(90 * DAY_MS))
        made.append(ViewingPattern(number + 1, 0.7 + 0.3 * float(rng.random()), 60 + number, created, NOON_MS, references=references))
    return tuple(made)


def coded_patterns(count: int) -> tuple[ViewingPattern, ...]:
    rng = np.random.default_rng(2)
    made = []
    for number in range(count):
        created, samples = NOON_MS - int(rng.integers(90 * DAY_MS)), int(rng.integers(50, 50_000))
        rate = 0.7 + 0.3 * float(rng.random())
        made.append(ViewingPattern(number + 1, rate, samples, created, NOON_MS, code=rng.bytes(48), codebook=1))
    return tuple(made)


class TestComposing:
    @pytest.fixture
    def windows(self, wide):
        rng = np.random.default_rng(1)
        return [Trending(hours, np.where(rng.random(3_000) < 0.4, rng.zipf(1.5, 3_000), 0).astype(float)) for hours in (48, 168)]

    def test_a_hundred_patterns_and_trends_fit(self, wide, windows):
        frame, trends = compose(5, wide, windows, patterns_of(wide, 100))
        told = wire.decode_global_patterns(frame, wide)
        assert len(frame) <= COLLECTIVE_BYTES and len(told.similar) == 100 and len(told.trending) == trends >= 200

    def test_trends_give_way_first_and_then_patterns(self, wide, windows):
        frame, trends = compose(5, wide, windows, coded_patterns(100))
        told = wire.decode_global_patterns(frame, wide)
        assert len(frame) <= COLLECTIVE_BYTES and trends == 100 and 80 < len(told.similar) < 100
        assert [pattern.id for pattern in told.similar] == list(range(1, len(told.similar) + 1))

    def test_scores_are_on_the_bundles_scale_and_the_best_are_told(self, wide, windows):
        frame, _ = compose(5, wide, windows)
        told = [signal for signal in wire.decode_global_patterns(frame, wide).trending if signal.window_hours == 48]
        assert told[0].score == pytest.approx(1.0) and all(0 < signal.score <= 1 for signal in told)
        best = np.sort(windows[0].devices)[::-1][: len(told)]
        expected = np.log1p(best) / np.log1p(best[0])
        assert [signal.score for signal in told] == pytest.approx(expected.tolist(), abs=1e-4)

    def test_nothing_to_tell_is_an_empty_frame(self, wide):
        frame, trends = compose(5, wide, [Trending(48, np.zeros(3_000))])
        assert wire.decode_global_patterns(frame, wide) == GlobalPatterns(5) and trends == 0


class TestHub:
    """One shard's counts under a hub with a real bundle."""

    @pytest.fixture
    def hub(self, tmp_path):
        folder, clock = tmp_path / "hub", Clock()
        catalog = write_bundle(folder / "bundles", key=KEY)
        source = Source(tmp_path / "s1", "shard-1", lineage=catalog.lineage)
        source.say({row: 50 + row for row in range(20)})
        config = FederationConfig("hub", "hub", (str(source.folder),), folder, KEY, SECRET)
        return _Hub(config, clock, catalog, source)

    def test_trends_above_the_threshold_are_told(self, hub):
        hub.source.say({1: 49, 2: 50, 3: 90})
        hub.passes()
        told = hub.told()
        assert {signal.content_id for signal in told.trending} == {hub.catalog.content_id(2), hub.catalog.content_id(3)}
        assert {signal.window_hours for signal in told.trending} == {trend.window_hours for trend in hub.catalog.trends}
        assert hub.collective().catalog_version == hub.catalog.version

    def test_they_change_once_a_day(self, hub):
        hub.passes()
        first = hub.collective()
        hub.source.say({1: 500}, moment=NOON_MS + 60_000)
        hub.clock.now_ms += 900_000
        hub.passes()
        assert hub.collective() == first
        hub.clock.now_ms += DAY_MS
        hub.source.say({1: 500}, moment=NOON_MS + DAY_MS)
        hub.passes()
        assert hub.collective().version > first.version and hub.collective().day == first.day + 1

    def test_a_day_is_told_when_it_has_settled(self, hub):
        hub.passes()
        midnight = (TODAY + 1) * DAY_MS
        hub.source.say({1: 500}, moment=midnight)
        hub.clock.now_ms = midnight + 20 * 60_000
        hub.passes()
        assert hub.collective().day == TODAY
        hub.clock.now_ms = midnight + 31 * 60_000
        hub.passes()
        assert hub.collective().day == TODAY + 1

    def test_what_says_the_same_keeps_its_version(self, hub):
        hub.passes()
        first = hub.collective()
        hub.clock.now_ms += DAY_MS
        hub.source.say({row: 50 + row for row in range(20)}, moment=NOON_MS + DAY_MS)
        hub.passes()
        assert hub.collective().day == first.day + 1 and hub.collective().version == first.version

    def test_live_trends_change_with_every_pass(self, hub):
        hub.restart(daily_trends=False)
        hub.passes()
        first = hub.collective()
        hub.source.say({1: 500, 2: 90}, moment=NOON_MS + 60_000)
        hub.clock.now_ms += 900_000
        hub.passes()
        assert hub.collective().version > first.version

    def test_versions_rise_over_restarts_and_a_lost_folder(self, hub):
        hub.passes()
        first = hub.collective().version
        (hub.config.publication_dir / "collective").unlink()
        hub.clock.now_ms += DAY_MS
        hub.restart()
        hub.passes()
        assert hub.collective().version > first

    def test_patterns_of_the_model_job_go_along_at_once(self, hub):
        hub.passes()
        before = hub.collective().version
        hub.clock.now_ms += 900_000
        found = patterns_of(hub.catalog, 30)
        poor = (replace(found[0], id=98, success_rate=0.6), replace(found[1], id=99, sample_count=40))
        hub.give_patterns((*found, *poor))
        hub.passes()
        assert hub.collective().version > before
        assert {pattern.id for pattern in hub.told().similar} == {pattern.id for pattern in found}
        assert hub.told().trending

    def test_patterns_of_foreign_titles_are_refused_by_name(self, hub):
        hub.give_patterns(patterns_of(hub.catalog, 3), lineage="f" * 16)
        hub.passes()
        assert "foreign titles" in hub.coordinator.stats()["faults"]["patterns"]
        assert hub.told().similar == ()

    def test_withheld_titles_are_not_told_and_named_in_stats(self, hub):
        content_id = hub.catalog.content_id(19)
        hub.restart(withheld_titles=(content_id, "no such title"))
        hub.passes()
        assert content_id not in {signal.content_id for signal in hub.told().trending}
        assert [alarm["title"] for alarm in hub.coordinator.stats()["alarms"]] == [content_id]
        assert hub.coordinator.stats()["held_back"] == 1

    @pytest.mark.parametrize("crowd", [40, 60])
    def test_an_alarm_names_a_title_only_above_the_threshold(self, hub, crowd):
        rows, votes = np.array([3], np.uint32), np.array([crowd], np.uint32)
        yesterday = DayVotes(rows, votes, votes, 1_000, 70)
        window = WindowVotes(rows, np.array([60], np.uint32), 1_000)
        keys = {(TODAY, days): window for days in trend_days(hub.catalog)}
        counts = Counts("shard-1", hub.source.publication.next_sequence(NOON_MS), hub.catalog.lineage, TITLES, NOON_MS,
                        {TODAY - 1: yesterday}, keys)  # fmt: skip
        entry = hub.source.publication.put(counts.name, "counts", counts.sequence, counts_.encode(counts))
        hub.source.publication.commit({counts.name: entry}, NOON_MS)
        hub.passes()
        stats = hub.coordinator.stats()
        assert stats["held_back"] == 1 and len(stats["alarms"]) == (crowd >= 50)
        assert not hub.told().trending

    def test_a_hub_without_a_bundle_says_so_and_still_sums(self, hub, tmp_path):
        hub.restart(bundle_dir=tmp_path / "nothing")
        hub.passes()
        assert "found none yet" in hub.coordinator.stats()["faults"]["bundle"]
        assert hub.coordinator.stats()["published"] == 1 and hub.collective() is None

    def test_titles_of_the_operator_are_found_by_their_ids(self, hub):
        assert rows_of(hub.catalog, (hub.catalog.content_id(7), "no such title")) == {7}


class _Hub:
    def __init__(self, config, clock, catalog, source):
        self.config, self.clock, self.catalog, self.source = config, clock, catalog, source
        self.coordinator = FederationCoordinator(config, clock)

    def restart(self, **options):
        self.config = replace(self.config, **options)
        self.coordinator = FederationCoordinator(self.config, self.clock)

    def passes(self):
        self.coordinator.run_once()

    def collective(self) -> Collective | None:
        return read_collective(self.config.publication_dir, TRUSTED)

    def told(self) -> GlobalPatterns:
        return wire.decode_global_patterns(self.collective().frame, self.catalog)

    def give_patterns(self, patterns, lineage=None):
        frame = wire.encode_global_patterns(GlobalPatterns(1, patterns), self.catalog)
        made = Collective(1, lineage or self.catalog.lineage, 1, frame, NOON_MS)
        write_file(self.config.publication_dir / "patterns", seal("patterns", collectives.encode(made), KEY))
