"""Counts and lists as objects: what is written is read back, nonsense is refused, and merges know neither order nor repeats."""

from __future__ import annotations

from dataclasses import replace

import cbor2
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cloud import counts as counts_
from cloud import lists as lists_
from cloud import objects
from cloud.counts import Counts, DayReports, DayVotes, WindowVotes, merged, window_of
from cloud.lists import Segment, segment_of, union, without
from omega_edge.columns import STEP_MS
from omega_edge.errors import ProtocolError
from omega_edge.protocol import DAY_MS

LINEAGE, OTHER_LINEAGE = "0123456789abcdef", "fedcba9876543210"
TITLES = 12
DAY = 20_000


@st.composite
def counts_objects(draw, source=None, sequence=None):
    """A counts object of few titles and days, its numbers within what counting can give."""
    source = source or f"shard-{draw(st.integers(1, 4))}"
    sequence = draw(st.integers(0, 3)) if sequence is None else sequence
    # All that a source says under one sequence is one thing.
    rng = np.random.default_rng([int(source[6:]), sequence])
    days, windows, reports = {}, {}, {}
    for day in range(DAY - 2, DAY + 1):
        rows = np.flatnonzero(rng.random(TITLES) < 0.5).astype(np.uint32)
        votes = rng.integers(1, 50, len(rows)).astype(np.uint32)
        days[day] = DayVotes(rows, votes, votes // 3, 60, 20)
        support = rng.integers(0, 40, TITLES).astype(np.uint32)
        reports[day] = DayReports(40, support)
    if sequence % 2:
        rows = np.arange(TITLES, dtype=np.uint32)
        windows[DAY + 1, 2] = WindowVotes(rows, rng.integers(1, 70, TITLES).astype(np.uint32), 70)
    return Counts(source, sequence, LINEAGE, TITLES, 1000 + sequence, days, windows, reports, {}, {1: 5})


@given(counts_objects())
def test_counts_come_back(counts):
    payload = counts_.encode(counts)
    again = counts_.decode(payload)
    assert counts_.encode(again) == payload
    assert (again.source, again.sequence, again.notes) == (counts.source, counts.sequence, counts.notes)
    assert set(again.days) == set(counts.days) and set(again.windows) == set(counts.windows)
    assert again.days[DAY].votes.tolist() == counts.days[DAY].votes.tolist()


@given(st.lists(counts_objects(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_sum_knows_neither_order_nor_repeats_nor_what_is_stale(found, shuffled):
    expected = counts_.encode(merged("region", 1, 0, found))
    mixed = found + shuffled.sample(found, shuffled.randrange(len(found) + 1))
    newest = {counts.source: counts.sequence for counts in sorted(found, key=lambda counts: counts.sequence)}
    mixed += [replace(counts, sequence=counts.sequence) for counts in found if counts.sequence < newest[counts.source]]
    shuffled.shuffle(mixed)
    assert counts_.encode(merged("region", 1, 0, mixed)) == expected


@given(st.lists(counts_objects(), min_size=2, max_size=8, unique_by=lambda counts: counts.source))
def test_regions_of_shards_sum_to_what_the_shards_sum_to(found):
    halves = found[:1], found[1:]
    regions = [merged(f"region-{number}", 1, 0, half) for number, half in enumerate(halves)]
    direct, through = merged("hub", 1, 0, found), merged("hub", 1, 0, regions)
    for day, votes in direct.days.items():
        assert through.days[day].votes.tolist() == votes.votes.tolist()
        assert through.days[day].voters == votes.voters
    for day, reports in direct.reports.items():
        assert through.reports[day].support.tolist() == reports.support.tolist()
    for key, window in direct.windows.items():
        told, exact = np.zeros(TITLES), np.zeros(TITLES)
        told[through.windows[key].rows], exact[window.rows] = through.windows[key].devices, window.devices
        assert (told <= exact).all()


def test_a_day_is_the_sum_and_a_missing_window_the_largest_of_its_days():
    days = {
        DAY: DayVotes(np.array([1, 3], np.uint32), np.array([5, 2], np.uint32), np.array([1, 0], np.uint32), 6, 1),
        DAY + 1: DayVotes(np.array([1], np.uint32), np.array([4], np.uint32), np.array([0], np.uint32), 4, 0),
    }
    first = Counts("shard-1", 1, LINEAGE, TITLES, 0, days)
    rows = np.array([1], np.uint32)
    second = Counts("shard-2", 1, LINEAGE, TITLES, 0, {}, {(DAY + 2, 2): WindowVotes(rows, np.array([7], np.uint32), 7)})
    assert window_of(first, DAY + 2, 2).devices.tolist() == [5, 2]
    total = merged("region", 1, 0, [first, second])
    assert total.windows[DAY + 2, 2].rows.tolist() == [1, 3]
    assert total.windows[DAY + 2, 2].devices.tolist() == [12, 2]
    assert total.windows[DAY + 2, 2].voters == 13
    assert merged("region", 1, 0, [first, second], first_day=DAY + 1).days.keys() == {DAY + 1}


def test_a_source_with_fewer_titles_adds_chance_to_the_rest():
    few = Counts("shard-1", 1, LINEAGE, 2, 0, reports={DAY: DayReports(560, np.array([7, 8], np.uint32))})
    many = Counts("shard-2", 1, LINEAGE, 3, 0, reports={DAY: DayReports(10, np.array([1, 2, 3], np.uint32))})
    total = merged("region", 1, 0, [few, many])
    assert total.reports[DAY].reports == 570 and total.reports[DAY].support.tolist() == [8, 10, 13]


def test_no_source_makes_anothers_numbers_wrap_around():
    most = (1 << 32) - 1
    rows, votes = np.array([0], np.uint32), np.array([most], np.uint32)
    sources = [
        Counts(f"shard-{number}", 1, LINEAGE, 1, 0, {DAY: DayVotes(rows, votes, votes, most, most)}) for number in (1, 2)
    ]
    total = merged("region", 1, 0, sources)
    assert total.days[DAY].votes.tolist() == [most] and total.days[DAY].voters == most
    counts_.decode(counts_.encode(total))


def test_no_source_crowds_out_the_days_of_others():
    nothing = DayVotes(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint32), 0, 0)
    few = [Counts(f"shard-{number}", 1, LINEAGE, 1, 0, {DAY: nothing, DAY + 500: nothing}) for number in (1, 2)]
    hostile = [Counts(f"shard-{number}", 1, LINEAGE, 1, 0, {number * 400 + day: nothing for day in range(400)}) for number in (3, 4)]
    total = merged("region", 1, 0, [*few, *hostile])
    assert len(total.days) == counts_.MAX_DAYS and {DAY, DAY + 500} <= total.days.keys()
    counts_.decode(counts_.encode(total))
    assert merged("region", 1, 0, [*few, *hostile], DAY - 35, DAY + 1).days.keys() == {DAY}


def test_lineages_are_never_mixed():
    with pytest.raises(ProtocolError, match="one lineage"):
        merged("region", 1, 0, [Counts("a", 1, LINEAGE, 1, 0), Counts("b", 1, OTHER_LINEAGE, 1, 0)])
    with pytest.raises(ProtocolError, match="none"):
        merged("region", 1, 0, [])


def u32(*numbers: int) -> bytes:
    return objects.column(np.array(numbers), "<u4")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (1, "Shard 1", "source"),
        (2, -1, "sequence"),
        (2, "1", "sequence"),
        (3, b"short", "lineage"),
        (4, 1 << 40, "title_count"),
        (6, {"shard-1": "x"}, "source"),
        (7, [[DAY, 9, 0, u32(0, 0), u32(1, 1), u32(0, 0)]], "rows"),
        (7, [[DAY, 9, 0, u32(TITLES), u32(1), u32(0)]], "rows"),
        (7, [[DAY, 9, 0, u32(0), u32(10), u32(0)]], "votes"),
        (7, [[DAY, 9, 0, u32(0), u32(1), u32(2)]], "votes"),
        (7, [[DAY, 9, 10, u32(0), u32(1), u32(0)]], "suspect_voters"),
        (7, [[DAY, 9, 0, u32(0, 1), u32(1), u32(0)]], "column"),
        (7, [[DAY, 9, 0]], "missing"),
        (7, [7], "lists"),
        (7, [[DAY, 0, 0, b"", b"", b""]] * 401, "at most 400"),
        (8, [[DAY, 2, 9, u32(0), u32(10)]], "voters"),
        (8, [[DAY, 0, 9, u32(0), u32(1)]], "days"),
        (9, [[DAY, 5, u32(*[6] * TITLES)]], "support"),
        (9, [[DAY, 5, u32(1)]], "column"),
        (10, {1: "x"}, "notes"),
    ],
)
def test_counts_that_cannot_be_are_refused(key, value, fault):
    fields = {1: "shard-1", 2: 1, 3: bytes.fromhex(LINEAGE), 4: TITLES, 5: 0, 6: {}, 7: [], 8: [], 9: [], 10: {}}
    counts_.decode(objects.pack(fields))
    with pytest.raises(ProtocolError, match=fault):
        counts_.decode(objects.pack(fields | {key: value}))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_that_error_alone(data):
    for read in (counts_.decode, lists_.decode):
        for payload in (data, zstandard.ZstdCompressor().compress(data)):
            with pytest.raises(ProtocolError):
                read(payload)


def test_a_bomb_is_refused_before_it_is_inflated():
    bomb = zstandard.ZstdCompressor().compress(bytes(objects.MAX_INFLATED_BYTES + 1))
    assert len(bomb) < 20_000
    with pytest.raises(ProtocolError, match="declared size of at most"):
        counts_.decode(bomb)
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(cbor2.dumps({}))
    with pytest.raises(ProtocolError, match="declared size of at most"):
        counts_.decode(undeclared)


def segment(source: str, day: int, sequence: int, titles: list[tuple[int, int, int]], part: int = 0) -> Segment:
    """A segment of (home, row, quarter-hours before the end of the day)."""
    homes, rows, ages = (np.array(column, np.int64) for column in zip(*titles, strict=True)) if titles else ([], [], [])
    finished_ms = (day + 1) * DAY_MS - np.array(ages, np.int64) * STEP_MS
    homes, rows = np.array(homes, np.uint64), np.array(rows, np.int64)
    return segment_of(source, day, part, sequence, LINEAGE, 7, homes, rows, finished_ms)


titles_sent = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 300)), min_size=1, max_size=12)
segments_sent = st.builds(
    segment, st.sampled_from(["shard-1", "shard-2"]), st.integers(DAY, DAY + 2), st.just(1), titles_sent
)


@given(segments_sent)
def test_segments_come_back(made):
    again = lists_.decode(lists_.encode(made))
    assert again.name == made.name and lists_.encode(again) == lists_.encode(made)
    assert again.rows.tolist() == made.rows.tolist() and again.homes().tolist() == made.homes().tolist()


@given(st.lists(segments_sent, max_size=6, unique_by=lambda made: made.name), st.randoms(use_true_random=False))
def test_the_union_knows_neither_order_nor_repeats_nor_what_is_stale(made, shuffled):
    first = union(made)
    newer = [replace(one, sequence=2) for one in made]
    mixed = newer + made + shuffled.sample(made, shuffled.randrange(len(made) + 1))
    shuffled.shuffle(mixed)
    again = union(mixed)
    for name in ("pseudonyms", "home", "row", "finished_ms"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    truth: dict[tuple[int, int], int] = {}
    for one in made:
        for home, row, moment in zip(one.homes().tolist(), one.rows.tolist(), one.finished_ms().tolist(), strict=True):
            truth[home, row] = min(truth.get((home, row), moment), moment)
    told = zip(first.pseudonyms[first.home].tolist(), first.row.tolist(), first.finished_ms.tolist(), strict=True)
    assert {(home, row): moment for home, row, moment in told} == truth and len(first.row) == len(truth)


def test_titles_of_one_quarter_hour_stay_in_the_order_they_were_sent():
    made = [segment("shard-1", DAY, 1, [(1, 9, 3), (1, 2, 3), (1, 5, 3)]), segment("shard-1", DAY + 1, 1, [(1, 1, 100)])]
    assert union(made[::-1]).row.tolist() == [1, 9, 2, 5]


def test_a_newer_segment_replaces_the_older_wholly():
    older, newer = segment("shard-1", DAY, 1, [(1, 9, 3), (2, 2, 3)]), segment("shard-1", DAY, 2, [(2, 2, 3)])
    assert union([older, newer]).pseudonyms.tolist() == union([newer, older]).pseudonyms.tolist() == [2]


def test_a_home_on_two_shards_is_one_home():
    found = union([segment("shard-1", DAY, 1, [(1, 9, 3)]), segment("shard-2", DAY, 1, [(1, 9, 5), (1, 4, 1)])])
    assert found.pseudonyms.tolist() == [1] and sorted(found.row.tolist()) == [4, 9]


def test_homes_are_taken_out():
    made = segment("shard-1", DAY, 1, [(1, 9, 3), (2, 2, 3), (2, 3, 1)])
    left = without(made, np.array([2, 7], np.uint64), 2)
    assert left.pseudonyms.tolist() == [1] and left.rows.tolist() == [9] and left.sequence == 2
    assert without(made, np.array([7], np.uint64), 2) is made


def test_segments_of_two_lineages_are_refused():
    made = segment("shard-1", DAY, 1, [(1, 9, 3)])
    with pytest.raises(ProtocolError, match="one lineage"):
        union([made, replace(made, lineage=OTHER_LINEAGE)])


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        (1, "../x", "source"),
        (2, -1, "day"),
        (3, 1000, "part"),
        (7, objects.column(np.array([2, 1], np.uint64), "<u8"), "ascending"),
        (8, u32(1, 2), "add up"),
        (8, u32(2, 0), "add up"),
        (8, u32(1), "column"),
        (9, u32(1 << 24, 1), "titles up to"),
        (10, u32(0, 1), "ages"),
        (10, u32(1, (DAY + 1) * 96 + 1), "ages"),
        (10, u32(1), "column"),
    ],
)
def test_segments_that_cannot_be_are_refused(key, value, fault):
    made = segment("shard-1", DAY, 1, [(1, 9, 3), (2, 2, 3)])
    fields = {
        1: made.source, 2: DAY, 3: 0, 4: 1, 5: bytes.fromhex(LINEAGE), 6: 7,
        7: objects.column(made.pseudonyms, "<u8"), 8: u32(1, 1), 9: u32(9, 2), 10: u32(3, 3),
    }  # fmt: skip
    lists_.decode(objects.pack(fields))
    with pytest.raises(ProtocolError, match=fault):
        lists_.decode(objects.pack(fields | {key: value}))
