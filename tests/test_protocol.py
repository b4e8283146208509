"""Messages check themselves: what is accepted, what is refused, and that every refusal is a short ProtocolError."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import protocol
from omega_edge.errors import OmegaError, ProtocolError
from omega_edge.protocol import (
    COUNT_CATEGORIES,
    DAY_MS,
    MAX_TIMESTAMP_MS,
    CountReport,
    FeedbackKind,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    Profile,
    ReasonEvent,
    Recommendation,
    SyncRequest,
    SyncResponse,
    TimeOfDay,
    TitleReference,
    TrendSignal,
    ViewContext,
    ViewingEvent,
    ViewingPattern,
)

repeatable = settings(deadline=None, derandomize=True)
CONTEXT = ViewContext(TimeOfDay.MORNING, 0)
UNIT = struct.pack("<384f", *[1 / math.sqrt(384)] * 384)
PATTERN = ViewingPattern(1, 0.8, 3, 0, 0, references=(TitleReference("a", 1),))
TREND = TrendSignal("a", 0.5, 48)

VALID: dict[type, dict[str, object]] = {
    Profile: {"id": "child", "name": "Zoë", "max_age_rating": 12},
    ViewContext: {
        "time_of_day": "evening", "day_of_week": 6, "recent_watches": ("a",), "mood_hint": "Drama", "profile": "child"
    },
    ViewingEvent: {
        "content_id": "tt1", "content_title": "Amélie (2001)", "watch_percentage": 0.7, "duration_seconds": 7000,
        "timestamp": 1, "context": CONTEXT,
    },
    TitleReference: {"content_id": "tt1", "weight": 0.5},
    ViewingPattern: {
        "id": 1, "success_rate": 0.8, "sample_count": 3, "created_at": 5, "updated_at": 4, "embedding": None,
        "references": (TitleReference("a", 0.5), TitleReference("b", 0)), "code": None, "codebook": None,
    },
    FinishedTitle: {"content_id": "tt1", "finished_at": 1},
    PatternDelta: {
        "local_version": 1, "titles_finished": (FinishedTitle("a", 2), FinishedTitle("a", 1)),
        "patterns_added": (PATTERN,), "patterns_updated": (dataclasses.replace(PATTERN, id=2),),
        "patterns_removed": (3,), "more_pages": True, "snapshot": False, "shared_set_hash": 7,
    },
    CountReport: {"day": 19_675, "seed": 5, "value": 55},
    TrendSignal: {"content_id": "tt1", "score": 3.5, "window_hours": 48},
    GlobalPatterns: {"global_version": 4, "similar": (PATTERN,), "trending": (TREND, TrendSignal("a", 0.5, 336))},
    ReasonEvent: {"content_id": "tt1", "content_title": "Arrival", "timestamp": 1, "drop": -0.5},
    Recommendation: {
        "content_id": "tt1", "content_title": "Arrival", "score": 0.5, "confidence": 1, "reason": "Because you finished Up",
        "events": (ReasonEvent("a", "Up", 0, 1),), "trend": TREND, "propensity": 0.25,
    },
    SyncRequest: {
        "version": 1, "global_version_seen": 5, "device_id": bytes(16), "epoch": 7, "server_time_seen": 3,
        "delta": PatternDelta(1), "count_report": None, "erase": False,
    },
    SyncResponse: {
        "global_version": 4, "next_sync_secs": 300, "server_time": 1, "version": 1, "patterns": GlobalPatterns(4),
        "acknowledged_local_version": 2, "catalog_version": 3, "reset": False, "snapshot_wanted": True, "erased": False,
        "counted": True,
    },
}
"""One full, valid set of fields for every message."""

TEXT_WRONG = ("", " ", "\t", "a\nb", "a\x00", "a\x7f", "a\x9b", "\ud800", 5, None, b"a", ("a",))
SHARE_WRONG = (-0.001, 1.001, math.nan, math.inf, -1, 2, 10**400, "0.5", None, True)
COUNT_WRONG = (-1, 1.0, "1", None, True, 10**5000, math.nan)
TIME_WRONG = (*COUNT_WRONG, MAX_TIMESTAMP_MS + 1)
U32_WRONG = (*COUNT_WRONG, 1 << 32)
U64_WRONG = (*COUNT_WRONG, 1 << 64)
U64_WRONG_OPTIONAL = tuple(wrong for wrong in U64_WRONG if wrong is not None)
FLAG_WRONG = (None, 1, "true", b"")

WRONG: dict[type, dict[str, tuple]] = {
    Profile: {
        "id": ("", "-a", "a b", "ä", "a" * 33, "a\n", 5, None), "name": (*TEXT_WRONG, "a" * 513),
        "max_age_rating": (-1, 22, 12.0, True, "12"),
    },
    ViewContext: {
        "time_of_day": ("noon", "EVENING", 2, None, [], "evening "), "day_of_week": (*COUNT_WRONG, 7),
        "recent_watches": (("a",) * 6, ["a"], "abc", (1,), ("",), None), "mood_hint": (*TEXT_WRONG[:9], "a" * 65),
        "profile": ("", "a b", None),
    },
    ViewingEvent: {
        "content_id": (*TEXT_WRONG, "a" * 65, "é" * 33), "content_title": (*TEXT_WRONG, "a" * 513),
        "watch_percentage": SHARE_WRONG, "duration_seconds": (*COUNT_WRONG, 604_801), "timestamp": TIME_WRONG,
        "context": (None, {}, "evening"),
    },
    TitleReference: {"content_id": (*TEXT_WRONG, "a" * 65), "weight": SHARE_WRONG},
    ViewingPattern: {
        "id": U32_WRONG, "success_rate": SHARE_WRONG, "sample_count": (*U32_WRONG, 0), "created_at": TIME_WRONG,
        "updated_at": TIME_WRONG, "embedding": (UNIT, b"", "x"),
        "references": (
            (), None, [TitleReference("a", 1)], ("a",), (TitleReference("a", 0), TitleReference("b", 0.0)),
            (TitleReference("a", 1), TitleReference("a", 0.5)),
            tuple(TitleReference(str(number), 1) for number in range(9)),
        ),
        "code": (bytes(48), b"", bytes(47), "x"), "codebook": (0, 1, "1", True),
    },
    FinishedTitle: {"content_id": (*TEXT_WRONG, "a" * 65), "finished_at": TIME_WRONG},
    PatternDelta: {
        "local_version": U64_WRONG,
        "titles_finished": (None, [FinishedTitle("a", 1)], ("a",), (FinishedTitle("a", 1),) * 601),
        "patterns_added": (
            None, (1,), (dataclasses.replace(PATTERN, id=2),), (dataclasses.replace(PATTERN, success_rate=0.699),),
            tuple(dataclasses.replace(PATTERN, id=number + 10) for number in range(65)),
        ),
        "patterns_updated": (None, (1,), (PATTERN,), (dataclasses.replace(PATTERN, id=2, success_rate=0.0),)),
        "patterns_removed": (None, [3], (3, 3), (1,), (2,), (-1,), (True,), (1 << 32,), tuple(range(10, 75))),
        "more_pages": FLAG_WRONG, "snapshot": (*FLAG_WRONG, True), "shared_set_hash": U64_WRONG_OPTIONAL,
    },
    CountReport: {
        "day": (*COUNT_WRONG, MAX_TIMESTAMP_MS // DAY_MS + 1), "seed": U32_WRONG, "value": (*COUNT_WRONG, COUNT_CATEGORIES),
    },
    TrendSignal: {
        "content_id": TEXT_WRONG, "score": (-0.1, math.nan, math.inf, -math.inf, 10**400, "1", None, True),
        "window_hours": (*COUNT_WRONG, 0, 24 * 366 + 1),
    },
    GlobalPatterns: {
        "global_version": U64_WRONG,
        "similar": (
            None, [PATTERN], (PATTERN, PATTERN),
            tuple(dataclasses.replace(PATTERN, id=number) for number in range(101)),
        ),
        "trending": (
            None, (TREND, TrendSignal("a", 0.1, 48)), tuple(TrendSignal(str(number), 1, 1) for number in range(501))
        ),
    },
    ReasonEvent: {
        "content_id": TEXT_WRONG, "content_title": TEXT_WRONG, "timestamp": TIME_WRONG,
        "drop": (math.nan, math.inf, 10**400, "1", None, True),
    },
    Recommendation: {
        "content_id": TEXT_WRONG, "content_title": TEXT_WRONG, "score": SHARE_WRONG, "confidence": SHARE_WRONG,
        "reason": TEXT_WRONG, "events": (None, (1,), (ReasonEvent("a", "Up", 0, 1),) * 6), "trend": ("a", 0.5),
        "propensity": (0.0, -0.1, 1.5, math.nan, "1", True),
    },
    SyncRequest: {
        "version": (*COUNT_WRONG, 0, 256), "global_version_seen": U64_WRONG,
        "device_id": (None, b"", bytes(15), bytes(17), bytearray(16), "0" * 16), "epoch": (*COUNT_WRONG, 1 << 64),
        "server_time_seen": (-1, 1.0, True, MAX_TIMESTAMP_MS + 1), "delta": ({}, 1),
        "count_report": ({}, 1, CountReport(1, 2, 3)), "erase": (*FLAG_WRONG, True),
    },
    SyncResponse: {
        "global_version": (*U64_WRONG, 3), "next_sync_secs": (*COUNT_WRONG, 59, 86_401), "server_time": TIME_WRONG,
        "version": (*COUNT_WRONG, 0, 256), "patterns": ({}, GlobalPatterns(5)),
        "acknowledged_local_version": (-1, 1.0, True, 1 << 64),
        "catalog_version": (-1, 1.0, True, "1", 1 << 32), "reset": (*FLAG_WRONG, True), "snapshot_wanted": FLAG_WRONG,
        "erased": FLAG_WRONG, "counted": FLAG_WRONG,
    },
}

MESSAGES = sorted(VALID, key=lambda kind: kind.__name__)


class TestEveryMessage:
    def test_all_are_here(self):
        defined = {kind for kind in vars(protocol).values() if dataclasses.is_dataclass(kind)}
        assert defined == VALID.keys() == WRONG.keys()

    @pytest.mark.parametrize("kind", MESSAGES)
    def test_valid_fields_are_kept(self, kind):
        message = kind(**VALID[kind])
        assert {field.name: getattr(message, field.name) for field in dataclasses.fields(kind)} == VALID[kind]

    @pytest.mark.parametrize("kind", MESSAGES)
    def test_every_field_has_wrong_values_listed(self, kind):
        assert {field.name for field in dataclasses.fields(kind)} == WRONG[kind].keys()

    @pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in MESSAGES for field in WRONG[kind]])
    def test_wrong_values_are_refused_in_few_words(self, kind, field):
        for wrong in WRONG[kind][field]:
            with pytest.raises(ProtocolError) as refused:
                kind(**VALID[kind] | {field: wrong})
            assert kind.__name__ in str(refused.value) and "expected" in str(refused.value)
            assert len(str(refused.value)) < 300

    @pytest.mark.parametrize("kind", MESSAGES)
    def test_frozen(self, kind):
        message = kind(**VALID[kind])
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, dataclasses.fields(kind)[0].name, None)

    @repeatable
    @given(st.sampled_from(MESSAGES), st.data())
    def test_no_value_raises_anything_else(self, kind, data):
        field = data.draw(st.sampled_from(sorted(VALID[kind])))
        value = data.draw(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
                st.lists(st.integers(), max_size=2), st.tuples(st.text(max_size=3)), st.just(object()), st.just(set()),
            )
        )
        try:
            message = kind(**VALID[kind] | {field: value})
        except ProtocolError:
            return
        assert getattr(message, field) == value


class TestBoundaries:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: ViewingEvent("é" * 32, "x" * 512, 0, 604_800, MAX_TIMESTAMP_MS, CONTEXT),
            lambda: ViewingEvent("a", "a", 1, 0, 0, CONTEXT),
            lambda: Profile("a" * 32, "a", 0),
            lambda: Profile("0", "a", 21),
            lambda: ViewContext("night", 6, ("a",) * 5, "a" * 64),
            lambda: ViewingPattern(0, 0, 1, 0, 0, UNIT),
            lambda: ViewingPattern(
                (1 << 32) - 1, 1, (1 << 32) - 1, MAX_TIMESTAMP_MS, 0,
                references=tuple(TitleReference(str(number), 5e-324) for number in range(8)),
            ),
            lambda: PatternDelta((1 << 64) - 1, (FinishedTitle("a", 0),) * 600, patterns_removed=tuple(range(64))),
            lambda: PatternDelta(0, patterns_added=(dataclasses.replace(PATTERN, success_rate=7 / 10),)),
            lambda: TrendSignal("a", 1.7e308, 24 * 366),
            lambda: SyncResponse((1 << 64) - 1, 60, 0),
            lambda: SyncResponse(0, 86_400, MAX_TIMESTAMP_MS),
            lambda: SyncRequest(),
        ],
    )
    def test_the_limits_themselves_are_allowed(self, make: Callable[[], object]):
        assert make() == make()

    def test_success_from_the_threshold_on(self):
        below = math.nextafter(0.7, 0)
        assert [ViewingEvent("a", "a", share, 0, 0, CONTEXT).success for share in (below, 0.7, 1)] == [False, True, True]

    def test_minus_zero_becomes_zero(self):
        assert math.copysign(1, ViewingEvent("a", "a", -0.0, 0, 0, CONTEXT).watch_percentage) == 1
        assert math.copysign(1, TrendSignal("a", -0.0, 1).score) == 1

    def test_an_empty_delta(self):
        assert PatternDelta(5).empty and PatternDelta(5, more_pages=True).empty
        for field in ("titles_finished", "patterns_added", "patterns_updated", "patterns_removed"):
            assert not PatternDelta(5, **{field: VALID[PatternDelta][field]}).empty
        assert not PatternDelta(5, snapshot=True).empty, "the empty set is news where another was held"
        assert PatternDelta(5, shared_set_hash=0).empty


class TestEmbeddings:
    @pytest.mark.parametrize("norm", [0.9991, 1.0, 1.0009])
    def test_norms_near_1_are_taken(self, norm):
        vector = struct.pack("<384f", norm, *[0.0] * 383)
        assert ViewingPattern(1, 1, 1, 0, 0, embedding=vector).embedding == vector

    @pytest.mark.parametrize("first", [0.0, 0.998, 1.002, math.nan, math.inf, -math.inf, 3.4e38])
    def test_other_vectors_are_refused(self, first):
        with pytest.raises(ProtocolError, match="a vector of norm 1"):
            ViewingPattern(1, 1, 1, 0, 0, embedding=struct.pack("<384f", first, *[0.0] * 383))

    def test_big_endian_vectors_are_not_unit_vectors(self):
        with pytest.raises(ProtocolError, match="a vector of norm 1"):
            ViewingPattern(1, 1, 1, 0, 0, embedding=struct.pack(">384f", *[1 / math.sqrt(384)] * 384))

    @pytest.mark.parametrize("size", [0, 1535, 1537, 768])
    def test_other_sizes_are_refused(self, size):
        with pytest.raises(ProtocolError, match=f"expected 1536 bytes .* got {size} bytes"):
            ViewingPattern(1, 1, 1, 0, 0, embedding=bytes(size))

    def test_a_code_and_its_codebook_come_together(self):
        assert ViewingPattern(1, 1, 1, 0, 0, code=bytes(48), codebook=(1 << 32) - 1).code == bytes(48)
        for fields in ({"code": bytes(48)}, {"codebook": 1, "references": PATTERN.references}):
            with pytest.raises(ProtocolError, match="code and codebook together"):
                ViewingPattern(1, 1, 1, 0, 0, **fields)

    def test_two_forms_or_none_are_refused(self):
        coded = {"code": bytes(48), "codebook": 1}
        for fields in ({}, {"embedding": UNIT, "references": PATTERN.references}, coded | {"references": PATTERN.references},
                       coded | {"embedding": UNIT}):  # fmt: skip
            with pytest.raises(ProtocolError, match="exactly one of embedding, references and code"):
                ViewingPattern(1, 1, 1, 0, 0, **fields)


class TestAnonymity:
    """In the mode `receive` nothing may link one sync to another."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"epoch": 1}, {"device_id": bytes(16)}, {"server_time_seen": 1}, {"delta": PatternDelta(1)}, {"erase": True},
            {"count_report": CountReport(1, 2, 3)},
        ],
    )
    def test_no_identifying_field_comes_alone(self, fields):
        with pytest.raises(ProtocolError, match="expected device_id and epoch"):
            SyncRequest(**fields)


class TestOneThingToTell:
    """A count report and an erasure come alone: no viewing beside the falsified title, nothing new beside the end."""

    @pytest.mark.parametrize("alone", [{"erase": True}, {"count_report": CountReport(1, 2, 3)}])
    @pytest.mark.parametrize("beside", [{"delta": PatternDelta(1)}, {"server_time_seen": 1}])
    def test_together_they_are_refused(self, alone, beside):
        SyncRequest(device_id=bytes(16), epoch=1, **alone)
        with pytest.raises(ProtocolError, match="at most one of delta, count_report and erase"):
            SyncRequest(device_id=bytes(16), epoch=1, **alone, **beside)

    @pytest.mark.parametrize(
        "beside", [{"acknowledged_local_version": 1}, {"snapshot_wanted": True}, {"erased": True}, {"counted": True}]
    )
    def test_a_reset_acknowledges_nothing(self, beside):
        assert SyncResponse(1, 300, 0, reset=True).reset
        with pytest.raises(ProtocolError, match="expected nothing acknowledged"):
            SyncResponse(1, 300, 0, reset=True, **beside)

    @pytest.mark.parametrize("beside", [{"patterns_updated": (PATTERN,)}, {"patterns_removed": (1,)}])
    def test_a_snapshot_is_whole(self, beside):
        with pytest.raises(ProtocolError, match="expected the whole set"):
            PatternDelta(1, snapshot=True, **beside)


class TestDay:
    @pytest.mark.parametrize(
        ("hours", "part"),
        [
            (range(5, 12), TimeOfDay.MORNING), (range(12, 17), TimeOfDay.AFTERNOON), (range(17, 22), TimeOfDay.EVENING),
            ((22, 23, 0, 1, 2, 3, 4), TimeOfDay.NIGHT),
        ],
    )
    def test_parts(self, hours, part):
        assert {protocol.time_of_day(hour) for hour in hours} == {part}

    @pytest.mark.parametrize("hour", [-1, 24, 12.0, None, True, "12"])
    def test_hours_that_are_none(self, hour):
        with pytest.raises(ProtocolError, match="hour: expected an integer from 0 to 23"):
            protocol.time_of_day(hour)

    def test_local_day_follows_the_zone(self):
        # Sunday 2013-03-31, 21:30 UTC: Sunday night in Madrid (summer time began that morning), Monday in Tokyo
        moment = int(datetime(2013, 3, 31, 21, 30, tzinfo=UTC).timestamp()) * 1000
        assert protocol.local_day(moment, UTC) == (TimeOfDay.EVENING, 6)
        assert protocol.local_day(moment, ZoneInfo("Europe/Madrid")) == (TimeOfDay.NIGHT, 6)
        assert protocol.local_day(moment, ZoneInfo("Asia/Tokyo")) == (TimeOfDay.MORNING, 0)
        assert protocol.local_day(moment - 24 * 3600 * 1000, ZoneInfo("Europe/Madrid")) == (TimeOfDay.NIGHT, 5)

    def test_the_first_and_last_moments(self):
        assert protocol.local_day(0, timezone(timedelta(hours=-12))) == (TimeOfDay.AFTERNOON, 2)
        assert protocol.local_day(MAX_TIMESTAMP_MS, ZoneInfo("Pacific/Kiritimati"))[0] in TimeOfDay

    @repeatable
    @given(st.integers(0, MAX_TIMESTAMP_MS))
    def test_the_last_millisecond_of_an_hour_belongs_to_it(self, moment):
        hour_ms = 3_600_000
        start = min(moment - moment % hour_ms, MAX_TIMESTAMP_MS - hour_ms)
        start -= start % hour_ms
        assert protocol.local_day(start, UTC) == protocol.local_day(start + hour_ms - 1, UTC)


class TestFeedback:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("like", FeedbackKind.LIKE), ("not now", FeedbackKind.NOT_NOW), ("not_now", FeedbackKind.NOT_NOW),
            ("never", FeedbackKind.NEVER), ("dislike", FeedbackKind.DISLIKE), (FeedbackKind.LIKE, FeedbackKind.LIKE),
        ],
    )
    def test_kinds(self, text, kind):
        assert protocol.parse_feedback_kind(text) is kind

    @pytest.mark.parametrize("wrong", ["Like", "", "hate", None, 1, [], b"like", TimeOfDay.NIGHT])
    def test_other_words(self, wrong):
        with pytest.raises(ProtocolError, match="one of like, dislike, not_now, never"):
            protocol.parse_feedback_kind(wrong)


class TestEmbeddingText:
    @pytest.mark.parametrize(
        ("year", "genres", "text"),
        [
            (2016, ("Drama", "Sci-Fi"), "Arrival (2016): Drama, Sci-Fi"), (None, ("Drama",), "Arrival: Drama"),
            (2016, (), "Arrival (2016)"), (None, (), "Arrival"),
        ],
    )
    def test_titles(self, year, genres, text):
        assert protocol.title_embedding_text("Arrival", year, genres) == text

    def test_an_event_speaks_of_its_title(self):
        assert ViewingEvent("tt1", "Arrival", 1, 0, 0, CONTEXT).to_embedding_text() == "Arrival"


def test_protocol_errors_are_caught_as_omega_errors_and_value_errors():
    assert issubclass(ProtocolError, OmegaError) and issubclass(ProtocolError, ValueError)


TEXTS = (
    "a", "Zoë", "a b", " a", "a ", "", " ", "\t", "a\n", "\x7f", "a\x1f", "\u0085", "a\u0085", "\u2003", "\ud800", "é" * 32,
    "é" * 33, "a" * 64, "a" * 65, "a" * 512, "a" * 513, "a" * 1024, "a" * 1025, None, 5, b"a", ("a",),
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=repr)
@pytest.mark.parametrize(
    ("message", "field", "most"),
    [
        (ReasonEvent, "content_id", 64),
        (ReasonEvent, "content_title", 512),
        (Recommendation, "content_id", 64),
        (Recommendation, "content_title", 512),
        (Recommendation, "reason", 1024),
    ],
)
def test_plain_text_is_checked_faster_and_not_otherwise(message: type, field: str, most: int, text: object) -> None:
    fields = VALID[message] | {field: text}
    try:
        protocol.check_text(f"{message.__name__}.{field}", text, most)
    except ProtocolError as refused:
        with pytest.raises(ProtocolError) as raised:
            message(**fields)
        assert str(raised.value) == str(refused)
    else:
        assert getattr(message(**fields), field) == text


@pytest.mark.parametrize("share", [0, 1, 0.0, -0.0, 1.0, 0.5, 1.0000001, -1e-9, math.nan, math.inf, True, "0.5", None])
@pytest.mark.parametrize("field", ["score", "confidence"])
def test_a_share_of_a_list_is_a_float_from_0_to_1(field: str, share: object) -> None:
    fields = VALID[Recommendation] | {field: share}
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        with pytest.raises(ProtocolError, match=f"Recommendation.{field}: expected a number from 0 to 1"):
            Recommendation(**fields)
    else:
        found = getattr(Recommendation(**fields), field)
        assert type(found) is float and found == share and math.copysign(1, found) == 1
