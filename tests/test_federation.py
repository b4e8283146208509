"""Regions and hub in one process: tampered, replayed, foreign and swapped objects, sources that are down, ends at any point."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cloud import counts as counts_
from cloud import lists as lists_
from cloud.collective import decode as decode_collective
from cloud.counts import Counts, DayVotes, WindowVotes
from cloud.federation import FederationConfig, FederationCoordinator
from cloud.lists import segment_of
from cloud.publication import (
    Entry,
    Publication,
    decode_index,
    encode_index,
    read_counts,
    read_index,
    read_lists,
    reader_of,
    sealed,
)
from omega_edge import signing
from omega_edge.errors import ConfigError, ProtocolError, SignatureError
from omega_edge.protocol import DAY_MS
from omega_edge.signing import seal
from tests.shards import KEY, NOON_MS, OTHER_KEY, SECRET, TODAY, TRUSTED, Clock

TITLES = 60
LINEAGE = "0123456789abcdef"


class Source:
    """A shard's publication, filled directly."""

    def __init__(self, folder, name, lineage=LINEAGE, key=KEY, secret=SECRET):
        self.folder, self.name, self.lineage = folder, name, lineage
        self.publication = Publication(folder, name, key, secret)

    def say(self, votes: dict[int, int], homes: list[int] = (), moment: int = NOON_MS, day: int = TODAY - 1) -> None:
        """Publish the votes {row: devices} of yesterday, and one title for each of the homes."""
        rows, devices = np.array(sorted(votes), np.uint32), np.array([votes[row] for row in sorted(votes)], np.uint32)
        most = int(devices.max(initial=0))
        sequence = self.publication.next_sequence(moment)
        counts = Counts(
            self.name, sequence, self.lineage, TITLES, moment,
            {day: DayVotes(rows, devices, np.zeros_like(devices), most, 0)},
            {(TODAY + end, days): WindowVotes(rows, devices, most) for end in (0, 1) for days in (1, 2, 3, 4, 7, 28)},
        )  # fmt: skip
        entries = {counts.name: self.publication.put(counts.name, "counts", sequence, counts_.encode(counts))}
        if len(homes):
            moments = np.full(len(homes), moment - DAY_MS)
            rows = np.arange(len(homes))
            made = segment_of(
                self.name, TODAY, 0, sequence, self.lineage, 1, np.array(homes, np.uint64), rows, moments
            )
            entries[made.name] = self.publication.put(made.name, "lists", sequence, lists_.encode(made))
        self.publication.commit(entries, moment)


@pytest.fixture
def clock():
    return Clock()


def config_of(tmp_path, *sources, name="region-1", role="region", **options) -> FederationConfig:
    locations = tuple(str(source.folder if isinstance(source, Source) else source) for source in sources)
    return FederationConfig(role, name, locations, tmp_path / name, KEY, SECRET, timeout_seconds=1.0, **options)


def told(folder, day: int = TODAY - 1) -> dict[int, int]:
    """Votes of a day by row, as published."""
    counts = read_counts(folder, TRUSTED, SECRET)
    if counts is None or day not in counts.days:
        return {}
    return dict(zip(counts.days[day].rows.tolist(), counts.days[day].votes.tolist(), strict=True))


@pytest.fixture
def two(tmp_path, clock):
    """Two shards and their region."""
    first, second = Source(tmp_path / "s1", "shard-1"), Source(tmp_path / "s2", "shard-2")
    first.say({1: 5, 2: 7}, [10, 11])
    second.say({2: 3}, [12])
    return first, second, FederationCoordinator(config_of(tmp_path, first, second), clock)


def faults_of(region: FederationCoordinator, source: int = 0) -> dict[str, str]:
    return region.stats()["sources"][source]["faults"]


class TestSums:
    def test_shards_are_summed_and_lists_united(self, tmp_path, two):
        _, _, region = two
        assert region.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 10}
        assert read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms.tolist() == [10, 11, 12]
        assert not faults_of(region) and not faults_of(region, 1)

    def test_a_pass_without_news_changes_no_byte(self, tmp_path, two, clock):
        _, _, region = two
        region.run_once()
        before = {path: path.read_bytes() for path in (tmp_path / "region-1").rglob("*") if path.is_file()}
        clock.now_ms += 300_000
        assert not region.run_once()
        assert {path: path.read_bytes() for path in (tmp_path / "region-1").rglob("*") if path.is_file()} == before

    def test_the_newest_state_of_a_source_stands(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        first.say({1: 6}, [11])
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 6, 2: 3}
        assert read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms.tolist() == [11, 12]

    def test_segments_travel_untouched(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        for path in first.folder.glob("lists.*"):
            assert (tmp_path / "region-1" / path.name).read_bytes() == path.read_bytes()

    def test_a_source_that_is_gone_counts_with_what_it_said_last_even_after_a_restart(self, tmp_path, two, clock):
        first, second, region = two
        region.run_once()
        shutil.rmtree(first.folder)
        second.say({2: 4}, [12])
        again = FederationCoordinator(config_of(tmp_path, first, second), clock)
        again.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 11}
        assert read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms.tolist() == [10, 11, 12]
        assert "none yet" in faults_of(again)["index"]

    def test_a_source_that_is_no_longer_configured_counts_no_more(self, tmp_path, two, clock):
        first, second, region = two
        region.run_once()
        FederationCoordinator(config_of(tmp_path, second), clock).run_once()
        assert told(tmp_path / "region-1") == {2: 3}
        assert not (tmp_path / "region-1" / next(first.folder.glob("lists.*")).name).exists()

    def test_a_shard_in_two_places_counts_once_and_is_named(self, tmp_path, two, clock):
        first, second, _ = two
        shutil.copytree(first.folder, tmp_path / "copy")
        region = FederationCoordinator(config_of(tmp_path, first, tmp_path / "copy", second), clock)
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 10}
        assert region.stats()["named_twice"] == ["shard-1"]

    def test_old_days_leave(self, tmp_path, two, clock):
        _, _, region = two
        region.run_once()
        clock.now_ms += 500 * DAY_MS
        region.run_once()
        assert told(tmp_path / "region-1") == {}
        assert not list((tmp_path / "region-1").glob("lists.*"))


class TestRefused:
    """Each is named, and the state before it stands."""

    def refused(self, tmp_path, region, name, fault):
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 10}
        assert fault in faults_of(region)[name], faults_of(region)

    @pytest.mark.parametrize("kind", ["counts", "lists", "index"])
    def test_a_changed_object(self, tmp_path, two, kind):
        first, _, region = two
        region.run_once()
        first.say({1: 99}, [99])
        path = next(first.folder.glob(f"{kind}*"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        region.run_once()
        assert "changed" in faults_of(region)[path.name]
        assert 99 not in read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms or kind == "counts"
        assert told(tmp_path / "region-1")[1] == (5 if kind != "lists" else 99)
        assert region.stats()["sources"][0]["refusals"] == 1

    def test_an_old_index_with_its_objects(self, tmp_path, two):
        first, _, region = two
        first.say({1: 4, 2: 7}, [10])
        shutil.copytree(first.folder, tmp_path / "old")
        first.say({1: 5, 2: 7}, [10, 11])
        region.run_once()
        shutil.rmtree(first.folder)
        shutil.copytree(tmp_path / "old", first.folder)
        self.refused(tmp_path, region, "index", "an old one")

    def test_an_old_object_under_a_new_index(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        name = f"counts.{LINEAGE}"
        old = (first.folder / name).read_bytes()
        first.say({1: 9}, [10, 11])
        (first.folder / name).write_bytes(old)
        self.refused(tmp_path, region, name, "an old one")

    def test_an_old_segment_under_a_new_index(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        path = next(first.folder.glob("lists.*"))
        old = path.read_bytes()
        first.say({1: 5, 2: 7}, [11])
        path.write_bytes(old)
        self.refused(tmp_path, region, path.name, "an old one")

    def test_an_untrusted_key(self, tmp_path, two, clock):
        first, _, region = two
        region.run_once()
        shutil.rmtree(first.folder)
        Source(first.folder, "shard-1", key=OTHER_KEY).say({1: 99}, moment=NOON_MS + 10_000)
        self.refused(tmp_path, region, "index", signing.public_key(OTHER_KEY).hex())

    def test_an_object_of_an_untrusted_key_under_a_trusted_index(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        first.say({1: 99}, [10, 11])
        name = f"counts.{LINEAGE}"
        payload = first.publication.stored(name, first.publication.index.entries[name])
        (first.folder / name).write_bytes(sealed("counts", payload, OTHER_KEY, SECRET))
        self.refused(tmp_path, region, name, "trusted keys")

    def test_a_swapped_kind(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        segment = next(first.folder.glob("lists.*")).read_bytes()
        first.say({1: 99}, [10, 11])
        (first.folder / f"counts.{LINEAGE}").write_bytes(segment)
        self.refused(tmp_path, region, f"counts.{LINEAGE}", "of kind lists")

    def test_another_shards_counts_under_this_ones_name(self, tmp_path, two):
        first, second, region = two
        region.run_once()
        first.say({1: 99}, [10, 11])
        second.say({2: 3}, [12], moment=NOON_MS + 10_000)
        name = f"counts.{LINEAGE}"
        shutil.copyfile(second.folder / name, first.folder / name)
        self.refused(tmp_path, region, name, "got those of shard-2")

    def test_a_segment_under_another_name(self, tmp_path, two):
        first, second, region = two
        region.run_once()
        first.say({1: 5, 2: 7}, [10, 11])
        path, other = next(first.folder.glob("lists.*")), next(second.folder.glob("lists.*"))
        shutil.copyfile(other, path)
        self.refused(tmp_path, region, path.name, "under that name")

    def test_another_secret(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        shutil.rmtree(first.folder)
        Source(first.folder, "shard-1", secret=b"another federation").say({1: 99}, moment=NOON_MS + 10_000)
        self.refused(tmp_path, region, f"counts.{LINEAGE}", "FEDERATION_SECRET")

    def test_foreign_titles(self, tmp_path, two, clock):
        first, second, _ = two
        region = FederationCoordinator(config_of(tmp_path, first, second, lineage=LINEAGE), clock)
        region.run_once()
        other = Source(tmp_path / "s3", "shard-3", lineage="f" * 16)
        other.say({1: 99}, [13])
        region = FederationCoordinator(config_of(tmp_path, other, first, second, lineage=LINEAGE), clock)
        self.refused(tmp_path, region, f"counts.{'f' * 16}", "foreign titles")
        assert read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms.tolist() == [10, 11, 12]

    def test_an_index_full_of_nonsense(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        index = replace(first.publication.index, sequence=first.publication.index.sequence + 1)
        for name, entry in {
            "../../etc/passwd": Entry("lists", 1, bytes(16)), "counts": Entry("counts", 1, bytes(16)),
            "counts.x": Entry("manifest", 1, bytes(16)), "index": Entry("index", 1, bytes(16)),
            "lists.a.b.c": Entry("lists", 1, bytes(16)), f"counts.{LINEAGE}": Entry("counts", -1, bytes(16)),
            f"lists.{LINEAGE}.shard-1.yesterday.0": Entry("lists", 1, bytes(16)),
            f"lists.{LINEAGE}.shard-1.1.0": Entry("lists", 1, b""),
        }.items():  # fmt: skip
            bad = replace(index, entries={name: entry})
            (first.folder / "index").write_bytes(seal("index", encode_index(bad), KEY))
            self.refused(tmp_path, region, "index", "index.entries")

    def test_a_day_that_has_not_come(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        made = segment_of("shard-1", TODAY + 9, 0, 1 << 50, LINEAGE, 1, np.array([9], np.uint64), np.array([1]), np.array([0]))
        entries = first.publication.index.entries | {
            made.name: first.publication.put(made.name, "lists", 1 << 50, lists_.encode(made))
        }
        first.publication.commit(entries, NOON_MS + 20_000)
        self.refused(tmp_path, region, made.name, "expected a day up to")

    def test_too_large_an_object(self, tmp_path, two):
        first, _, region = two
        region.run_once()
        first.say({1: 99}, [10, 11])
        name = f"counts.{LINEAGE}"
        os.truncate(first.folder / name, counts_.MAX_COUNTS_BYTES + 1)
        self.refused(tmp_path, region, name, "at most")

    def test_more_titles_than_others_know_by_far(self, tmp_path, two, clock):
        """A sum of 33 days of reports with room for 2^24 titles would take gigabytes."""
        first, second, _ = two
        other = Source(tmp_path / "s3", "shard-3")
        claimed = Counts("shard-3", 1, LINEAGE, counts_.MAX_TITLES, NOON_MS)
        entry = other.publication.put(claimed.name, "counts", 1, counts_.encode(claimed))
        other.publication.commit({claimed.name: entry}, NOON_MS)
        region = FederationCoordinator(config_of(tmp_path, other, first, second), clock)
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 10}
        assert read_counts(tmp_path / "region-1", TRUSTED, SECRET).title_count == TITLES
        assert "expected at most 240 titles" in region.stats()["faults"]["counts of shard-3"]

    def test_the_next_sound_object_is_taken(self, tmp_path, two):
        first, _, region = two
        self.test_a_swapped_kind(tmp_path, two)
        first.say({1: 6}, [10], moment=NOON_MS + 60_000)
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 6, 2: 3} and not faults_of(region)


@pytest.mark.parametrize(("kind", "read"), [("lists", read_lists), ("counts", read_counts)])
def test_a_reader_refuses_what_is_older_than_its_index_says(tmp_path, two, kind, read):
    """As a segment from before a device was erased, put back by whoever can write to the folder."""
    first, _, _ = two
    path = next(first.folder.glob(f"{kind}.*"))
    old = path.read_bytes()
    first.say({1: 4}, [11])
    path.write_bytes(old)
    with pytest.raises(ProtocolError, match="an old one"):
        read(first.folder, TRUSTED, SECRET)


def test_a_segment_whose_file_was_lost_is_fetched_again(tmp_path, two):
    _, _, region = two
    region.run_once()
    next((tmp_path / "region-1").glob("lists.*")).unlink()
    region.run_once()
    assert read_lists(tmp_path / "region-1", TRUSTED, SECRET).pseudonyms.tolist() == [10, 11, 12]


class TestSourcesThatAreDown:
    """The others are summed all the same, in bounded time, and the fault is named."""

    def passed(self, tmp_path, clock, two, location: str) -> str:
        first, second, _ = two
        region = FederationCoordinator(config_of(tmp_path, location, first, second), clock)
        region.run_once()
        assert told(tmp_path / "region-1") == {1: 5, 2: 10}
        assert not faults_of(region, 1) and not faults_of(region, 2)
        assert region.stats()["sources"][0]["reached_ms"] is None
        return faults_of(region)["index"]

    def test_nobody_listens(self, tmp_path, clock, two):
        with socket.socket() as bound:  # bound, not listening: refused, and no one else gets the port
            bound.bind(("127.0.0.1", 0))
            fault = self.passed(tmp_path, clock, two, f"http://127.0.0.1:{bound.getsockname()[1]}/api/v1/federation/")
        assert "ConnectionRefusedError" in fault

    def test_nobody_answers(self, tmp_path, clock, two):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            fault = self.passed(tmp_path, clock, two, f"http://127.0.0.1:{silent.getsockname()[1]}/api/v1/federation/")
        assert "timed out" in fault

    def test_a_folder_that_is_a_file(self, tmp_path, clock, two):
        (tmp_path / "file").write_bytes(b"")
        assert "Not a directory" in self.passed(tmp_path, clock, two, str(tmp_path / "file"))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_that_error_alone(data):
    for payload in (data, zstandard.ZstdCompressor().compress(data)):
        for read in (decode_index, decode_collective):
            with pytest.raises(ProtocolError):
                read(payload)


class Killed(Exception):
    """Where a test lets a process end: no handler of the product catches it, so everything stays as it is then."""


def test_an_end_before_any_rename_loses_nothing(tmp_path, clock, monkeypatch):
    """The disk is left as a kill leaves it before each rename in turn; the next process goes on from there."""
    first, second = Source(tmp_path / "s1", "shard-1"), Source(tmp_path / "s2", "shard-2")
    left = [0]
    replace_file = os.replace

    def counted(source, target):
        if left[0] <= 0:
            raise Killed
        left[0] -= 1
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", counted)
    ends = 0
    for survived in range(10):
        name = f"region-{survived}"
        for round_number in range(2):
            left[0] = 1000
            first.say({1: 5, 2: 7 + round_number}, [10, 11], moment=NOON_MS + 1000 * (2 * survived + round_number))
            second.say({2: 3}, [12, 13 + round_number], moment=NOON_MS + 1000 * (2 * survived + round_number))
            left[0] = survived
            try:
                FederationCoordinator(config_of(tmp_path, first, second, name=name), clock).run_once()
            except Killed:
                ends += 1
            told(tmp_path / name)  # whatever is there can be read
            left[0] = 1000
            FederationCoordinator(config_of(tmp_path, first, second, name=name), clock).run_once()
            assert told(tmp_path / name) == {1: 5, 2: 10 + round_number}
            lists = read_lists(tmp_path / name, TRUSTED, SECRET)
            assert lists.pseudonyms.tolist() == [10, 11, 12, 13 + round_number]
            assert not list((tmp_path / name).glob(".*.new"))
    assert 10 < ends < 20, "expected ends at every rename, and passes that came through"


def test_counts_and_lists_are_unreadable_without_the_secret(tmp_path, two):
    first, _, region = two
    region.run_once()
    for folder in (first.folder, tmp_path / "region-1"):
        with pytest.raises(SignatureError, match="FEDERATION_SECRET"):
            read_lists(folder, TRUSTED, b"another federation")
        for path in folder.iterdir():
            if path.name.startswith(("counts", "lists")):
                assert b"shard-1" not in path.read_bytes()[128:]


def test_indexes_are_read_by_whoever_trusts_the_key(tmp_path, two):
    first, _, _ = two
    index = read_index(reader_of(first.folder), TRUSTED)
    assert index.source == "shard-1" and {entry.kind for entry in index.entries.values()} == {"counts", "lists"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"role": "king"}, "ROLE"),
        ({"sources": ()}, "SOURCES"),
        ({"sources": ("a", "a")}, "once"),
        ({"sources": ("ftp://x/",)}, "source"),
        ({"min_devices": 1}, "MIN_DEVICES: expected 2"),
        ({"role": "hub", "upstream": "http://x/"}, "FEDERATION_URL"),
        ({"name": "Region 1"}, "source"),
        ({"secret": b"short"}, "FEDERATION_SECRET"),
    ],
)
def test_configuration_is_checked(tmp_path, clock, options, fault):
    given = {
        "role": "region", "name": "region-1", "sources": ("a",), "publication_dir": tmp_path, "key": KEY, "secret": SECRET,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=fault):
        FederationCoordinator(FederationConfig(**(given | options)), clock)
