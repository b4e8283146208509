"""The wire format: golden bytes, round trips with their exact tolerances, titles as numbers, caps and pages."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import cbor2
import pytest
from hypothesis import assume, given, settings

from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError, ProtocolError
from omega_edge.patterns import rounded
from omega_edge.protocol import (
    MAX_DOWNLOAD_BYTES,
    MAX_TIMESTAMP_MS,
    MAX_UPLOAD_BYTES,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)
from tests import wire_messages as messages
from tests.synthetic import catalog_of
from tests.wire_messages import (
    GOLDEN,
    GOLDEN_MS,
    LINEAGE,
    NUMBERED,
    NUMBERING,
    QUARTER_HOUR_MS,
    VECTORS,
    WIDE_NUMBERING,
    Numbering,
)

CODECS: dict[str, tuple[Callable, Callable]] = {
    "request": (wire.encode_request, wire.decode_request),
    "response": (wire.encode_response, wire.decode_response),
    "delta": (wire.compress_delta, wire.decompress_delta),
    "global_patterns": (wire.encode_global_patterns, wire.decode_global_patterns),
    "event": (wire.encode_event, wire.decode_event),
    "embedding": (wire.encode_global_patterns, wire.decode_global_patterns),
}
DEFLATED = {"embedding_zstd": wire.frame.DICTIONARY_NONE, "embedding_dictionary": wire.frame.DICTIONARY}
RAW_GOLDEN = sorted(GOLDEN.keys() - DEFLATED)
DECODED_ONLY = {"request_unknown_keys", "request_titles", "response", "response_frame"}
"""What no writer of today makes: unknown keys, patterns in whole bytes, and a frame made elsewhere."""

repeatable = settings(deadline=None, derandomize=True, max_examples=150)


def codec_of(name: str) -> tuple[Callable, Callable]:
    """Encoder and decoder for the message of a golden file."""
    return next(codec for kind, codec in CODECS.items() if name.startswith(kind))


def numbering_of(name: str) -> Numbering | None:
    """The numbering that a golden file was written with."""
    return NUMBERING if name in NUMBERED else None


def written_bytes(name: str) -> bytes:
    """The bytes that the README of the vectors spells for a file."""
    section = re.search(rf"^## {name}\.bin\n(.*?)(?=^## |\Z)", (VECTORS / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    spelt = bytearray()
    for line in section[1].splitlines():
        if line.startswith("    "):
            for pair, _, times in re.findall(r"([0-9a-f]{2})( × (\d+))?(?= |$)", spelling(line)):
                spelt += bytes.fromhex(pair) * int(times or 1)
    return bytes(spelt)


def spelling(line: str) -> str:
    """The hexadecimal at the start of a line, without the remark after it."""
    return re.match(r" *((?:[0-9a-f]{2}(?: × \d+)?(?: {1,2}|$))*)", line)[1]


class TestGoldenBytes:
    def test_every_file_has_a_message_and_a_section(self):
        files = {path.stem for path in VECTORS.glob("*.bin")}
        assert files == GOLDEN.keys() == set(re.findall(r"^## (\w+)\.bin$", (VECTORS / "README.md").read_text(), re.MULTILINE))

    @pytest.mark.parametrize("name", RAW_GOLDEN)
    def test_readme_spells_the_file(self, name):
        assert written_bytes(name) == (VECTORS / f"{name}.bin").read_bytes()

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_decodes_to_the_message(self, name):
        data = (VECTORS / f"{name}.bin").read_bytes()
        assert codec_of(name)[1](data, numbering_of(name)) == GOLDEN[name]

    @pytest.mark.parametrize("name", sorted(set(RAW_GOLDEN) - DECODED_ONLY))
    def test_encodes_to_the_bytes(self, name):
        encoded = codec_of(name)[0](GOLDEN[name], numbering_of(name))
        assert encoded == (VECTORS / f"{name}.bin").read_bytes()

    def test_a_frame_inside_a_response(self):
        response = replace(GOLDEN["response_frame"], patterns=None)
        framed = (VECTORS / "global_patterns.bin").read_bytes()[:4] + bytes.fromhex("a1 01 07")
        assert wire.encode_response_with(response, framed) == (VECTORS / "response_frame.bin").read_bytes()

    @pytest.mark.parametrize("name", sorted(DEFLATED))
    def test_what_deflated_files_hold(self, name):
        data = (VECTORS / f"{name}.bin").read_bytes()
        assert data[:4] == bytes((1, wire.KIND_GLOBAL_PATTERNS, wire.frame.BODY_ZSTD, DEFLATED[name]))
        assert wire.frame.content(data, wire.KIND_GLOBAL_PATTERNS, MAX_DOWNLOAD_BYTES) == written_bytes(name)

    def test_deflated_content_is_the_written_cbor(self):
        encoded = wire.encode_global_patterns(GOLDEN["embedding_dictionary"])
        assert encoded[:4] == (VECTORS / "embedding_dictionary.bin").read_bytes()[:4]
        content = wire.frame.content(encoded, wire.KIND_GLOBAL_PATTERNS, MAX_DOWNLOAD_BYTES)
        assert content == written_bytes("embedding_dictionary")

    @pytest.mark.parametrize("name", RAW_GOLDEN)
    def test_another_reader_sees_maps_with_integer_keys(self, name):
        fields = cbor2.loads((VECTORS / f"{name}.bin").read_bytes()[4:])
        assert isinstance(fields, dict) and all(type(key) is int for key in fields)


def quarter(timestamp: int) -> int:
    return timestamp - timestamp % QUARTER_HOUR_MS


def assert_patterns_close(sent: Sequence[ViewingPattern], received: Sequence[ViewingPattern]) -> None:
    assert tuple(received) == tuple(map(rounded, sent))


def assert_delta_close(sent: PatternDelta, received: PatternDelta) -> None:
    assert received.titles_finished == tuple(
        FinishedTitle(title.content_id, quarter(title.finished_at)) for title in sent.titles_finished
    )
    assert_patterns_close(sent.patterns_added, received.patterns_added)
    assert_patterns_close(sent.patterns_updated, received.patterns_updated)
    for field in ("local_version", "patterns_removed", "more_pages", "snapshot", "shared_set_hash"):
        assert getattr(received, field) == getattr(sent, field)


def assert_global_patterns_close(sent: GlobalPatterns, received: GlobalPatterns) -> None:
    assert received.global_version == sent.global_version
    assert_patterns_close(sent.similar, received.similar)
    assert [(signal.content_id, signal.window_hours) for signal in received.trending] == [
        (signal.content_id, signal.window_hours) for signal in sent.trending
    ]
    highest = max((signal.score for signal in sent.trending), default=0.0)
    for before, after in zip(sent.trending, received.trending, strict=True):
        assert abs(after.score - before.score) <= highest * (1 / 131_070 + 1e-12)
        assert after.score == before.score or before.score < highest
    by_score = sorted(zip(sent.trending, received.trending, strict=True), key=lambda pair: pair[0].score)
    assert all(lower[1].score <= higher[1].score for lower, higher in pairwise(by_score))


@pytest.mark.parametrize("titles", [None, WIDE_NUMBERING], ids=["text", "numbers"])
class TestRoundTrips:
    """decode(encode(x)) is x within the tolerances; encoding what was decoded gives the same bytes again."""

    @repeatable
    @given(delta=messages.deltas())
    def test_delta(self, titles, delta):
        assume(self._small(delta))
        data = wire.compress_delta(delta, titles)
        received = wire.decompress_delta(data, titles)
        assert_delta_close(delta, received)
        assert wire.compress_delta(received, titles) == data

    @staticmethod
    def _small(delta: PatternDelta) -> bool:
        """Whether at most one embedding is in the delta: two do not fit an upload."""
        return sum(pattern.embedding is not None for pattern in delta.patterns_added + delta.patterns_updated) <= 1

    @repeatable
    @given(request=messages.requests())
    def test_request(self, titles, request):
        assume(request.delta is None or self._small(request.delta))
        data = wire.encode_request(request, titles)
        received = wire.decode_request(data, titles)
        assert replace(received, delta=None) == replace(request, delta=None)
        assert (received.delta is None) == (request.delta is None)
        if request.delta is not None:
            assert_delta_close(request.delta, received.delta)
        assert wire.encode_request(received, titles) == data

    @repeatable
    @given(patterns=messages.global_patterns())
    def test_global_patterns(self, titles, patterns):
        data = wire.encode_global_patterns(patterns, titles)
        received = wire.decode_global_patterns(data, titles)
        assert_global_patterns_close(patterns, received)
        assert wire.encode_global_patterns(received, titles) == data

    @repeatable
    @given(response=messages.responses())
    def test_response(self, titles, response):
        data = wire.encode_response(response, titles)
        received = wire.decode_response(data, titles)
        assert replace(received, patterns=None) == replace(response, patterns=None)
        assert (received.patterns is None) == (response.patterns is None)
        if response.patterns is not None:
            assert_global_patterns_close(response.patterns, received.patterns)
        assert wire.encode_response(received, titles) == data

    @repeatable
    @given(event=messages.events)
    def test_event_is_exact(self, titles, event):
        assert wire.decode_event(wire.encode_event(event, titles), titles) == event


class TestLosses:
    @pytest.mark.parametrize("zone", ["Asia/Kathmandu", "Australia/Adelaide", "America/New_York", "UTC"])
    def test_rounding_keeps_the_local_hour_and_day(self, zone):
        rng = random.Random(5)
        times = [rng.randrange(1_300_000_000_000, 1_900_000_000_000) for _ in range(300)]
        delta = PatternDelta(1, tuple(FinishedTitle("a", time) for time in times))
        received = wire.decompress_delta(wire.compress_delta(delta))
        for sent, title in zip(times, received.titles_finished, strict=True):
            before, after = (datetime.fromtimestamp(t // 1000, UTC).astimezone(ZoneInfo(zone)) for t in (sent, title.finished_at))
            assert (before.date(), before.hour) == (after.date(), after.hour)

    @pytest.mark.parametrize("times", [(MAX_TIMESTAMP_MS, 0, MAX_TIMESTAMP_MS), (0, 0), (5 * QUARTER_HOUR_MS, 0)])
    def test_times_that_jump(self, times):
        delta = PatternDelta(1, tuple(FinishedTitle("a", time) for time in times))
        received = wire.decompress_delta(wire.compress_delta(delta))
        assert tuple(title.finished_at for title in received.titles_finished) == tuple(map(quarter, times))

    def test_no_shared_rate_falls_below_the_threshold(self):
        rates = [successes / count for count in range(1, 121) for successes in range(count + 1) if successes / count >= 0.7]
        for start in range(0, len(rates), 50):
            patterns = tuple(
                ViewingPattern(place, rate, 9, 0, 0, references=(TitleReference("a", 1),))
                for place, rate in enumerate(rates[start : start + 50])
            )
            received = wire.decompress_delta(wire.compress_delta(PatternDelta(1, patterns_added=patterns)))
            assert min(pattern.success_rate for pattern in received.patterns_added) >= 0.7

    def test_the_smallest_weight_stays_above_0(self):
        pattern = ViewingPattern(1, 1, 1, 0, 0, references=(TitleReference("a", 5e-324), TitleReference("b", 0.0)))
        received = wire.decompress_delta(wire.compress_delta(PatternDelta(1, patterns_added=(pattern,))))
        assert [title.weight for title in received.patterns_added[0].references] == [1 / 15, 0.0]

    def test_scores_of_0_and_the_largest_float(self):
        for scores in ((0.0, 0.0), (1.7e308, 0.0), (5e-324, 0.0)):
            sent = GlobalPatterns(1, trending=tuple(TrendSignal("ab"[at], score, 1) for at, score in enumerate(scores)))
            assert wire.decode_global_patterns(wire.encode_global_patterns(sent)) == sent


class Shifted:
    """A numbering of the same lineage that goes further than a catalogue: each row is 506 later."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.lineage = catalog.lineage

    def row_of(self, content_id: str) -> int:
        return self._catalog.row_of(content_id) + 506


class TestTitles:
    delta = PatternDelta(1, (FinishedTitle("tt0068646", GOLDEN_MS), FinishedTitle("local-film", GOLDEN_MS)))

    def test_numbers_need_a_numbering(self):
        with pytest.raises(ProtocolError, match="expected titles as text, got numbers of 0123456789abcdef"):
            wire.decompress_delta(wire.compress_delta(self.delta, NUMBERING))

    def test_numbers_of_another_lineage_are_refused(self):
        other = Numbering({"tt0068646": 258}, "0123456789abcdee")
        with pytest.raises(ProtocolError, match="expected 0123456789abcdee, got 0123456789abcdef"):
            wire.decompress_delta(wire.compress_delta(self.delta, NUMBERING), other)

    def test_text_is_read_with_any_numbering(self):
        outside_all = Numbering({}, "ffffffffffffffff")
        data = wire.compress_delta(self.delta, outside_all)
        assert data == wire.compress_delta(self.delta)
        assert LINEAGE.encode() not in data and bytes.fromhex("ff" * 8) not in data
        assert wire.decompress_delta(data, NUMBERING) == self.delta

    @pytest.mark.parametrize("error", [IndexError, CatalogError])
    def test_a_number_that_the_reader_lacks(self, error):
        class Shorter(Numbering):
            def content_id(self, row: int) -> str:
                raise error("the catalogue ends at 200")

        with pytest.raises(ProtocolError, match="expected a title of the catalogue, got number 258"):
            wire.decompress_delta(wire.compress_delta(self.delta, NUMBERING), Shorter({}))

    @pytest.mark.parametrize("lineage", ["", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdeg", "0x23456789abcdef"])
    def test_a_lineage_that_is_none(self, lineage):
        with pytest.raises(ProtocolError, match="expected 16 hexadecimal digits"):
            wire.compress_delta(self.delta, Numbering({"tt0068646": 1}, lineage))

    @pytest.mark.parametrize(
        ("rows", "width"), [((0, 65_534), 2), ((0, 65_535), 3), ((65_535,), 3), ((0, (1 << 24) - 2), 3)]
    )
    def test_numbers_take_2_bytes_up_to_65534(self, rows, width):
        numbering = Numbering({f"t{row}": row for row in rows})
        delta = PatternDelta(1, tuple(FinishedTitle(f"t{row}", 0) for row in rows))
        data = wire.compress_delta(delta, numbering)
        assert cbor2.loads(data[4:])[2] == [
            bytes((width,)) + b"".join(row.to_bytes(width, "little") for row in rows)
        ]
        assert wire.decompress_delta(data, numbering) == delta

    def test_a_number_beyond_24_bits_travels_as_text(self):
        numbering = Numbering({"far": (1 << 24) - 1, "near": 1})
        delta = PatternDelta(1, (FinishedTitle("far", 0), FinishedTitle("near", 0)))
        data = wire.compress_delta(delta, numbering)
        assert cbor2.loads(data[4:])[2] == [bytes.fromhex("02 ffff 0100"), "far"]
        assert wire.decompress_delta(data, numbering) == delta

    def test_a_catalogue_is_a_numbering(self):
        catalog = catalog_of()
        delta = PatternDelta(1, (FinishedTitle(catalog.content_id(7), 0), FinishedTitle(catalog.content_id(0), 0)))
        data = wire.compress_delta(delta, catalog)
        assert cbor2.loads(data[4:])[2] == [bytes.fromhex("02 0700 0000")]
        assert cbor2.loads(data[4:])[8].hex() == catalog.lineage
        assert wire.decompress_delta(data, catalog) == delta
        with pytest.raises(ProtocolError, match="expected a title of the catalogue, got number 513"):
            wire.decompress_delta(wire.compress_delta(delta, Shifted(catalog)), catalog)

    def test_a_receiving_television_names_nothing(self):
        data = wire.encode_request(SyncRequest(global_version_seen=9), NUMBERING)
        assert cbor2.loads(data[4:]) == {1: 1, 2: 9}


def many_titles(count: int, id_bytes: int = 3) -> tuple[FinishedTitle, ...]:
    rng = random.Random(count)
    return tuple(
        FinishedTitle(rng.randbytes(id_bytes).hex(), GOLDEN_MS + at * 95_000_000) for at in range(count)
    )


def many_patterns(count: int, id_bytes: int = 3) -> tuple[ViewingPattern, ...]:
    rng = random.Random(count)
    return tuple(
        ViewingPattern(
            number, 0.9, rng.randrange(1, 500), GOLDEN_MS, GOLDEN_MS + rng.randrange(10**10),
            references=tuple(TitleReference(rng.randbytes(id_bytes).hex(), rng.random()) for _ in range(8)),
        )
        for number in range(count)
    )


def worst_request(delta: PatternDelta, seed: int = 0) -> SyncRequest:
    """A request whose own fields take the most bytes, with random digits, other ones for each delta."""
    rng = random.Random(f"{seed} {delta!r}")
    largest = (1 << 64) - 1 - rng.getrandbits(62)
    return SyncRequest(255, largest, rng.randbytes(16), rng.getrandbits(64) | 1 << 63, MAX_TIMESTAMP_MS - 12_345, delta)


class TestCaps:
    def dropped(self, error: ProtocolError, what: str) -> int:
        return int(re.search(rf"(\d+) of \d+ {what}", str(error))[1])

    def test_titles_to_drop(self):
        delta = PatternDelta(700, many_titles(600), many_patterns(3))
        request = worst_request(delta)
        with pytest.raises(ProtocolError, match="SyncRequest: expected at most 2048 bytes") as refused:
            wire.encode_request(request)
        kept = 600 - self.dropped(refused.value, "finished titles")
        assert 100 < kept < 600
        page = replace(delta, titles_finished=delta.titles_finished[:kept], more_pages=True)
        assert len(wire.encode_request(replace(request, delta=page))) <= MAX_UPLOAD_BYTES
        page = replace(page, titles_finished=delta.titles_finished[: kept + 1])
        with pytest.raises(ProtocolError, match="drop the last 1 of"):
            wire.encode_request(replace(request, delta=page))

    @pytest.mark.parametrize("titles", [0, 9])
    def test_patterns_to_drop(self, titles):
        delta = PatternDelta(700, many_titles(titles), many_patterns(60)[:30], many_patterns(60)[30:])
        with pytest.raises(ProtocolError, match="PatternDelta: expected at most 2048 bytes") as refused:
            wire.compress_delta(delta)
        assert ("all 9 finished titles" in str(refused.value)) == (titles == 9)
        kept = 60 - self.dropped(refused.value, "patterns")
        assert 30 < kept < 60
        fitting = replace(delta, titles_finished=(), patterns_updated=delta.patterns_updated[: kept - 30])
        assert len(wire.compress_delta(fitting)) <= MAX_UPLOAD_BYTES

    def test_trends_to_drop(self):
        trending = tuple(TrendSignal(title.content_id, at, 48) for at, title in enumerate(many_titles(500, 12)))
        patterns = GlobalPatterns(3, many_patterns(20), trending)
        with pytest.raises(ProtocolError, match="SyncResponse: expected at most 6144 bytes") as refused:
            wire.encode_response(SyncResponse(3, 300, 0, patterns=patterns))
        kept = 500 - self.dropped(refused.value, "trends")
        fitting = replace(patterns, trending=trending[:kept])
        assert len(wire.encode_response(SyncResponse(3, 300, 0, patterns=fitting))) <= MAX_DOWNLOAD_BYTES

    def test_global_patterns_to_drop(self):
        patterns = GlobalPatterns(3, many_patterns(100, 12), (TrendSignal("a", 1, 1),))
        with pytest.raises(ProtocolError, match="drop all 1 trends and ") as refused:
            wire.encode_global_patterns(patterns)
        kept = 100 - self.dropped(refused.value, "patterns")
        fitting = replace(patterns, trending=(), similar=patterns.similar[:kept])
        assert len(wire.encode_global_patterns(fitting)) <= MAX_DOWNLOAD_BYTES

    def test_content_above_the_inflated_cap_is_refused_however_small_its_zstd(self):
        same = tuple(
            ViewingPattern(number, 1, 1, 0, 0, embedding=messages.FIRST_AXIS) for number in range(11)
        )
        with pytest.raises(ProtocolError, match="drop 1 of 11 patterns"):
            wire.encode_global_patterns(GlobalPatterns(1, same))
        assert wire.decode_global_patterns(wire.encode_global_patterns(GlobalPatterns(1, same[:10]))).similar == same[:10]


class Shard:
    """What a shard keeps of one device epoch, as wire.py's rule for pages says."""

    def __init__(self) -> None:
        self.version = 0
        self.titles: list[FinishedTitle] = []
        self.patterns: dict[int, ViewingPattern] = {}

    def take(self, data: bytes) -> int:
        delta = wire.decode_request(data).delta
        if delta.local_version > self.version:
            self.version = delta.local_version
            self.titles += delta.titles_finished
            self.patterns |= {pattern.id: pattern for pattern in delta.patterns_added + delta.patterns_updated}
            for pattern_id in delta.patterns_removed:
                self.patterns.pop(pattern_id, None)
        return self.version


class TestPages:
    delta = PatternDelta(2000, many_titles(600, 8), many_patterns(12), many_patterns(20)[12:], (77, 78))
    versions = tuple(range(1001, 1601))

    def test_a_delta_that_fits_is_its_own_page(self):
        small = PatternDelta(5, many_titles(3), many_patterns(2))
        assert wire.split_delta(small, (1, 2, 5)) == (small,)
        assert wire.titles_that_fit(small) == 3

    def test_pages_carry_all_in_order_and_fit_the_worst_request(self):
        pages = wire.split_delta(self.delta, self.versions)
        assert len(pages) > 2
        assert sum((page.titles_finished for page in pages), ()) == self.delta.titles_finished
        for page in pages[:-1]:
            last = self.delta.titles_finished.index(page.titles_finished[-1])
            assert page == PatternDelta(self.versions[last], page.titles_finished, more_pages=True)
        assert replace(pages[-1], titles_finished=self.delta.titles_finished) == self.delta
        sizes = [len(wire.encode_request(worst_request(page, seed))) for page in pages for seed in range(40)]
        assert max(sizes) <= MAX_UPLOAD_BYTES and min(sizes[: 40 * (len(pages) - 2)]) > MAX_UPLOAD_BYTES - 100

    def test_the_last_page_rises_above_the_one_before_even_if_the_last_title_is_the_last_change(self):
        delta = PatternDelta(300, many_titles(300), many_patterns(30))
        pages = wire.split_delta(delta, tuple(range(1, 301)))
        assert all(before.local_version < after.local_version for before, after in pairwise(pages))
        assert pages[-1].titles_finished and pages[-1].patterns_added == delta.patterns_added

    @pytest.mark.parametrize("seed", range(8))
    def test_a_shard_ends_with_all_titles_once_whatever_is_lost_or_repeated(self, seed):
        rng = random.Random(seed)
        shard, acknowledged = Shard(), 0
        while acknowledged < self.delta.local_version:
            waiting = sum(version <= acknowledged for version in self.versions)
            rest = replace(self.delta, titles_finished=self.delta.titles_finished[waiting:])
            data = wire.encode_request(worst_request(wire.split_delta(rest, self.versions[waiting:])[0]))
            fate = rng.choice(["request lost", "answer lost", "sent twice", "fine"])
            if fate == "sent twice":
                shard.take(data)
            if fate != "request lost":
                answer = shard.take(data)
                acknowledged = acknowledged if fate == "answer lost" else answer
        assert shard.titles == [FinishedTitle(t.content_id, quarter(t.finished_at)) for t in self.delta.titles_finished]
        assert shard.patterns.keys() == {p.id for p in self.delta.patterns_added + self.delta.patterns_updated}

    def test_titles_that_fit_fit(self):
        count = wire.titles_that_fit(self.delta)
        assert 0 < count < 600
        page = replace(self.delta, titles_finished=self.delta.titles_finished[:count], more_pages=True)
        assert len(wire.encode_request(worst_request(page))) <= MAX_UPLOAD_BYTES

    def test_patterns_that_never_fit(self):
        delta = PatternDelta(2000, many_titles(600), many_patterns(60))
        assert wire.titles_that_fit(delta) == -1
        with pytest.raises(ProtocolError, match="drop all 1 finished titles and [0-9]+ of 60 patterns"):
            wire.split_delta(delta, self.versions)

    @pytest.mark.parametrize("versions", [range(599), range(601), range(1, 2400, 4), [*range(599), 597], [*range(599), 598]])
    def test_versions_that_do_not_rise_or_go_beyond_the_delta(self, versions):
        with pytest.raises(ProtocolError, match="title_versions: expected"):
            wire.split_delta(self.delta, tuple(versions))
