"""Messages between viewer, television and cloud: types, constants, limits, validation.

Every message is a frozen dataclass that checks itself when it is made, so a message that exists is valid.
Times are integer Unix milliseconds, UTC. Nothing here imports numpy or reads a clock.
"""

from __future__ import annotations

import enum
import math
import re
import sys
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from omega_edge.errors import ProtocolError
from omega_edge.validation import (
    are_plain,
    check_distinct,
    check_enum,
    check_finite,
    check_integer,
    check_optional,
    check_share,
    check_text,
    check_tuple,
    check_type,
    refuse,
)

PROTOCOL_VERSION = 1
EMBEDDING_DIMENSIONS = 384
SUCCESS_THRESHOLD = 0.7
"""Watching 70 % of a title is success."""
MIN_QUALITY_THRESHOLD = 0.7
"""Only patterns with at least this success rate are shared."""

MAX_CONTENT_ID_BYTES = 64
MAX_TITLE_BYTES = 512
MAX_RECENT_WATCHES = 5
MAX_MOOD_HINT_BYTES = 64
MAX_DURATION_SECONDS = 7 * 24 * 3600
MAX_TIMESTAMP_MS = (1 << 47) - 1
"""Year 6429: far past any clock fault, and exact in a float64."""
MAX_REFERENCES_PER_PATTERN = 8
MAX_PATTERNS_PER_DELTA = 64
MAX_TITLES_FINISHED_PER_PAGE = 600
MAX_SIMILAR_PATTERNS = 100
MAX_TREND_SIGNALS = 500
MAX_WINDOW_HOURS = 24 * 366
MAX_UPLOAD_BYTES = 2048
MAX_DOWNLOAD_BYTES = 6144
MIN_SYNC_INTERVAL_SECONDS = 60
MAX_SYNC_INTERVAL_SECONDS = 24 * 3600
DEVICE_ID_BYTES = 16
MAX_AGE_RATING = 21
DEFAULT_PROFILE = "household"

EMBEDDING_BYTES = EMBEDDING_DIMENSIONS * 4
_UNIT_NORM_TOLERANCE = 1e-3
_PROFILE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_U32_MAX = (1 << 32) - 1
_U64_MAX = (1 << 64) - 1


class TimeOfDay(str, enum.Enum):
    """Part of the local day: morning 5–12, afternoon 12–17, evening 17–22, else night."""

    MORNING = "morning"
    AFTERNOON = "afternoon"
    EVENING = "evening"
    NIGHT = "night"


class FeedbackKind(str, enum.Enum):
    """What a viewer says about a title, apart from watching it."""

    LIKE = "like"
    DISLIKE = "dislike"
    NOT_NOW = "not_now"
    NEVER = "never"


def time_of_day(hour: int) -> TimeOfDay:
    """Part of the day that the local hour (0–23) falls into; ProtocolError for another hour."""
    check_integer("hour", hour, 0, 23)
    if 5 <= hour < 12:
        return TimeOfDay.MORNING
    if 12 <= hour < 17:
        return TimeOfDay.AFTERNOON
    if 17 <= hour < 22:
        return TimeOfDay.EVENING
    return TimeOfDay.NIGHT


def local_day(timestamp_ms: int, zone: tzinfo) -> tuple[TimeOfDay, int]:
    """Part of the day and day of the week (Monday is 0) of a moment in a time zone."""
    local = datetime.fromtimestamp(check_timestamp("timestamp", timestamp_ms) / 1000, UTC).astimezone(zone)
    return time_of_day(local.hour), local.weekday()


def check_content_id(field: str, value: object) -> str:
    """A content id: 1 to 64 bytes of UTF-8 without control characters."""
    return check_text(field, value, MAX_CONTENT_ID_BYTES)


def check_timestamp(field: str, value: object) -> int:
    """A moment: integer Unix milliseconds, 0 to MAX_TIMESTAMP_MS."""
    return check_integer(field, value, 0, MAX_TIMESTAMP_MS)


def check_profile_id(field: str, value: object) -> str:
    """A profile id: 1 to 32 letters, digits, dots, underscores or hyphens, a letter or digit first."""
    if not isinstance(value, str) or not _PROFILE_ID.fullmatch(value):
        raise refuse(field, "1 to 32 letters, digits, '.', '_' or '-', a letter or digit first", value)
    return value


def check_embedding(field: str, value: object) -> bytes:
    """Little-endian float32[384] of unit norm, as bytes; else ProtocolError."""
    if not isinstance(value, bytes) or len(value) != EMBEDDING_BYTES:
        raise refuse(field, f"{EMBEDDING_BYTES} bytes (little-endian float32[{EMBEDDING_DIMENSIONS}])", value)
    numbers = array("f", value)
    if sys.byteorder != "little":
        numbers.byteswap()
    norm = math.hypot(*numbers)
    if not abs(norm - 1.0) <= _UNIT_NORM_TOLERANCE:
        raise refuse(field, "a vector of norm 1", norm)
    return value


def parse_feedback_kind(value: object) -> FeedbackKind:
    """FeedbackKind from itself or its text; "not now" with a blank is accepted too."""
    return check_enum("kind", value.replace(" ", "_") if isinstance(value, str) else value, FeedbackKind)


@dataclass(frozen=True, slots=True)
class Profile:
    """One viewer, or one group of viewers, of the household.

    max_age_rating: highest age rating (years, 0–21) that this profile may see; None for no limit. With a
    limit set, titles without a rating are withheld.
    """

    id: str
    name: str
    max_age_rating: int | None = None

    def __post_init__(self) -> None:
        check_profile_id("Profile.id", self.id)
        check_text("Profile.name", self.name, MAX_TITLE_BYTES)
        if self.max_age_rating is not None:
            check_integer("Profile.max_age_rating", self.max_age_rating, 0, MAX_AGE_RATING)


@dataclass(frozen=True, slots=True)
class ViewContext:
    """When and for whom: what recommend and observe know of the moment.

    day_of_week: Monday is 0. recent_watches: newest last. mood_hint: a genre of the catalogue, or None.
    """

    time_of_day: TimeOfDay
    day_of_week: int
    recent_watches: tuple[str, ...] = ()
    mood_hint: str | None = None
    profile: str = DEFAULT_PROFILE

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "time_of_day", check_enum("ViewContext.time_of_day", self.time_of_day, TimeOfDay)
        )
        check_integer("ViewContext.day_of_week", self.day_of_week, 0, 6)
        check_tuple("ViewContext.recent_watches", self.recent_watches, str, MAX_RECENT_WATCHES)
        for content_id in self.recent_watches:
            check_content_id("ViewContext.recent_watches", content_id)
        if self.mood_hint is not None:
            check_text("ViewContext.mood_hint", self.mood_hint, MAX_MOOD_HINT_BYTES)
        check_profile_id("ViewContext.profile", self.profile)


@dataclass(frozen=True, slots=True)
class ViewingEvent:
    """One title watched, wholly or in part. timestamp is the moment the viewing ended."""

    content_id: str
    content_title: str
    watch_percentage: float
    duration_seconds: int
    timestamp: int
    context: ViewContext

    def __post_init__(self) -> None:
        check_content_id("ViewingEvent.content_id", self.content_id)
        check_text("ViewingEvent.content_title", self.content_title, MAX_TITLE_BYTES)
        object.__setattr__(
            self, "watch_percentage", check_share("ViewingEvent.watch_percentage", self.watch_percentage)
        )
        check_integer("ViewingEvent.duration_seconds", self.duration_seconds, 0, MAX_DURATION_SECONDS)
        check_timestamp("ViewingEvent.timestamp", self.timestamp)
        check_type("ViewingEvent.context", self.context, ViewContext)

    @property
    def success(self) -> bool:
        """Whether this viewing counts as success: at least SUCCESS_THRESHOLD was watched."""
        return self.watch_percentage >= SUCCESS_THRESHOLD

    def to_embedding_text(self) -> str:
        """Text that stands for what was watched, for a title that the catalogue has no vector for.

        It is the title alone: when and by whom it was watched are features of their own.
        """
        return self.content_title


def title_embedding_text(name: str, year: int | None, genres: tuple[str, ...]) -> str:
    """Text that the bundle's title vectors are computed from: "Arrival (2016): Drama, Sci-Fi"."""
    text = f"{name} ({year})" if year else name
    return f"{text}: {', '.join(genres)}" if genres else text


@dataclass(frozen=True, slots=True)
class TitleReference:
    """A catalogue title and its weight (0–1) in a pattern."""

    content_id: str
    weight: float

    def __post_init__(self) -> None:
        check_content_id("TitleReference.content_id", self.content_id)
        object.__setattr__(self, "weight", check_share("TitleReference.weight", self.weight))


@dataclass(frozen=True, slots=True)
class ViewingPattern:
    """Something a household, or many, like: an embedding or a weighted mixture of titles, and how it went.

    id: u32, unique within a device epoch. Exactly one of embedding (unit float32[384], little-endian bytes)
    and references (1 to 8 titles, each once) is given. updated_at may lie before created_at: clocks of televisions
    jump, and nothing orders by them.
    """

    id: int
    success_rate: float
    sample_count: int
    created_at: int
    updated_at: int
    embedding: bytes | None = None
    references: tuple[TitleReference, ...] = ()

    def __post_init__(self) -> None:
        check_integer("ViewingPattern.id", self.id, 0, _U32_MAX)
        object.__setattr__(self, "success_rate", check_share("ViewingPattern.success_rate", self.success_rate))
        check_integer("ViewingPattern.sample_count", self.sample_count, 1, _U32_MAX)
        check_timestamp("ViewingPattern.created_at", self.created_at)
        check_timestamp("ViewingPattern.updated_at", self.updated_at)
        check_tuple("ViewingPattern.references", self.references, TitleReference, MAX_REFERENCES_PER_PATTERN)
        if (self.embedding is None) == (not self.references):
            raise ProtocolError("ViewingPattern: expected an embedding or references, and not both")
        if self.embedding is not None:
            check_embedding("ViewingPattern.embedding", self.embedding)
            return
        if not any(reference.weight > 0 for reference in self.references):
            raise ProtocolError("ViewingPattern.references: expected a weight above 0, all are 0")
        check_distinct("ViewingPattern.references", [reference.content_id for reference in self.references])


@dataclass(frozen=True, slots=True)
class FinishedTitle:
    """A title watched with success, and when."""

    content_id: str
    finished_at: int

    def __post_init__(self) -> None:
        check_content_id("FinishedTitle.content_id", self.content_id)
        check_timestamp("FinishedTitle.finished_at", self.finished_at)


@dataclass(frozen=True, slots=True)
class PatternDelta:
    """What changed on this television since the cloud last acknowledged.

    titles_finished: in the order of finishing. patterns_added, patterns_updated: only with a success rate of at least
    MIN_QUALITY_THRESHOLD. patterns_removed: ids of patterns that left the shared set. A pattern id is named once.
    local_version: the television's own counter, never the cloud's. more_pages: further titles_finished wait.
    """

    local_version: int
    titles_finished: tuple[FinishedTitle, ...] = ()
    patterns_added: tuple[ViewingPattern, ...] = ()
    patterns_updated: tuple[ViewingPattern, ...] = ()
    patterns_removed: tuple[int, ...] = ()
    more_pages: bool = False

    def __post_init__(self) -> None:
        check_integer("PatternDelta.local_version", self.local_version, 0, _U64_MAX)
        check_tuple(
            "PatternDelta.titles_finished", self.titles_finished, FinishedTitle, MAX_TITLES_FINISHED_PER_PAGE
        )
        check_tuple("PatternDelta.patterns_added", self.patterns_added, ViewingPattern, MAX_PATTERNS_PER_DELTA)
        check_tuple("PatternDelta.patterns_updated", self.patterns_updated, ViewingPattern, MAX_PATTERNS_PER_DELTA)
        check_tuple("PatternDelta.patterns_removed", self.patterns_removed, int, MAX_PATTERNS_PER_DELTA)
        for pattern_id in self.patterns_removed:
            check_integer("PatternDelta.patterns_removed", pattern_id, 0, _U32_MAX)
        check_type("PatternDelta.more_pages", self.more_pages, bool)
        shared = (*self.patterns_added, *self.patterns_updated)
        for pattern in shared:
            if pattern.success_rate < MIN_QUALITY_THRESHOLD:
                raise refuse(
                    "PatternDelta: success_rate of a pattern", f"{MIN_QUALITY_THRESHOLD} or more", pattern.success_rate
                )
        check_distinct("PatternDelta: pattern ids", [*(pattern.id for pattern in shared), *self.patterns_removed])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell the cloud."""
        return not (self.titles_finished or self.patterns_added or self.patterns_updated or self.patterns_removed)


@dataclass(frozen=True, slots=True)
class TrendSignal:
    """How much a title is watched now: score (0 or more) over a window of window_hours."""

    content_id: str
    score: float
    window_hours: int

    def __post_init__(self) -> None:
        check_content_id("TrendSignal.content_id", self.content_id)
        object.__setattr__(self, "score", check_finite("TrendSignal.score", self.score))
        if self.score < 0:
            raise refuse("TrendSignal.score", "0 or more", self.score)
        check_integer("TrendSignal.window_hours", self.window_hours, 1, MAX_WINDOW_HOURS)


@dataclass(frozen=True, slots=True)
class GlobalPatterns:
    """Collective knowledge for one television. global_version: the cloud's counter.

    similar: each pattern id once. trending: each pair of title and window once.
    """

    global_version: int
    similar: tuple[ViewingPattern, ...] = ()
    trending: tuple[TrendSignal, ...] = ()

    def __post_init__(self) -> None:
        check_integer("GlobalPatterns.global_version", self.global_version, 0, _U64_MAX)
        check_tuple("GlobalPatterns.similar", self.similar, ViewingPattern, MAX_SIMILAR_PATTERNS)
        check_tuple("GlobalPatterns.trending", self.trending, TrendSignal, MAX_TREND_SIGNALS)
        check_distinct("GlobalPatterns.similar", [pattern.id for pattern in self.similar])
        check_distinct(
            "GlobalPatterns.trending", [(signal.content_id, signal.window_hours) for signal in self.trending]
        )


@dataclass(frozen=True, slots=True)
class ReasonEvent:
    """An event that a recommendation rests on; drop: how much the raw score falls without it."""

    content_id: str
    content_title: str
    timestamp: int
    drop: float

    def __post_init__(self) -> None:
        # A list makes twenty of these and of the next: what is plain, as nearly all is, is checked in a third of the time.
        if not (
            are_plain(self.content_id, self.content_title)
            and len(self.content_id) <= MAX_CONTENT_ID_BYTES
            and len(self.content_title) <= MAX_TITLE_BYTES
        ):
            check_content_id("ReasonEvent.content_id", self.content_id)
            check_text("ReasonEvent.content_title", self.content_title, MAX_TITLE_BYTES)
        check_timestamp("ReasonEvent.timestamp", self.timestamp)
        if type(self.drop) is float and 0.0 < self.drop < math.inf:
            return
        object.__setattr__(self, "drop", check_finite("ReasonEvent.drop", self.drop))


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One title offered. score: logistic of the raw fused score. confidence: calibrated P(success).

    propensity: the chance that this title stood at this position, where lists may explore (BrainConfig.exploration);
    None where they may not.
    """

    content_id: str
    content_title: str
    score: float
    confidence: float
    reason: str
    events: tuple[ReasonEvent, ...] = ()
    trend: TrendSignal | None = None
    propensity: float | None = None

    def __post_init__(self) -> None:
        if not (
            are_plain(self.content_id, self.content_title, self.reason)
            and len(self.content_id) <= MAX_CONTENT_ID_BYTES
            and len(self.content_title) <= MAX_TITLE_BYTES
            and len(self.reason) <= 2 * MAX_TITLE_BYTES
        ):
            check_content_id("Recommendation.content_id", self.content_id)
            check_text("Recommendation.content_title", self.content_title, MAX_TITLE_BYTES)
            check_text("Recommendation.reason", self.reason, 2 * MAX_TITLE_BYTES)
        if not (type(self.score) is type(self.confidence) is float and 0 < self.score <= 1 and 0 < self.confidence <= 1):
            object.__setattr__(self, "score", check_share("Recommendation.score", self.score))
            object.__setattr__(self, "confidence", check_share("Recommendation.confidence", self.confidence))
        check_tuple("Recommendation.events", self.events, ReasonEvent, MAX_RECENT_WATCHES)
        check_optional("Recommendation.trend", self.trend, TrendSignal)
        if self.propensity is not None:
            object.__setattr__(self, "propensity", check_share("Recommendation.propensity", self.propensity))
            if self.propensity <= 0.0:
                raise refuse("Recommendation.propensity", "a chance above 0", self.propensity)


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """Television to cloud. In the sharing mode `receive` every optional field is None.

    device_id: 16 random bytes. epoch: random u64, new after a wipe or restore. server_time_seen: the server's
    clock at the last response. global_version_seen: the cloud's counter at the last response. device_id and epoch
    come together; server_time_seen and delta only beside them, since a time in milliseconds that is sent back
    would by itself link one anonymous sync to the last.
    """

    version: int = PROTOCOL_VERSION
    global_version_seen: int = 0
    device_id: bytes | None = None
    epoch: int | None = None
    server_time_seen: int | None = None
    delta: PatternDelta | None = None

    def __post_init__(self) -> None:
        check_integer("SyncRequest.version", self.version, 1, 255)
        check_integer("SyncRequest.global_version_seen", self.global_version_seen, 0, _U64_MAX)
        if self.device_id is not None and not (
            isinstance(self.device_id, bytes) and len(self.device_id) == DEVICE_ID_BYTES
        ):
            raise refuse("SyncRequest.device_id", f"{DEVICE_ID_BYTES} bytes", self.device_id)
        if self.epoch is not None:
            check_integer("SyncRequest.epoch", self.epoch, 0, _U64_MAX)
        if self.server_time_seen is not None:
            check_timestamp("SyncRequest.server_time_seen", self.server_time_seen)
        check_optional("SyncRequest.delta", self.delta, PatternDelta)
        if (self.device_id is None) != (self.epoch is None):
            raise ProtocolError("SyncRequest: expected device_id and epoch together, or neither")
        if self.device_id is None and (self.delta is not None or self.server_time_seen is not None):
            raise ProtocolError("SyncRequest: expected device_id and epoch beside delta and server_time_seen")


@dataclass(frozen=True, slots=True)
class SyncResponse:
    """Cloud to television. acknowledged_local_version: the delta that is now durable, or None.

    global_version: what the television has once patterns are applied, so the patterns' own; without patterns it
    has all there is already.
    """

    global_version: int
    next_sync_secs: int
    server_time: int
    version: int = PROTOCOL_VERSION
    patterns: GlobalPatterns | None = None
    acknowledged_local_version: int | None = None

    def __post_init__(self) -> None:
        check_integer("SyncResponse.version", self.version, 1, 255)
        check_integer("SyncResponse.global_version", self.global_version, 0, _U64_MAX)
        check_integer(
            "SyncResponse.next_sync_secs", self.next_sync_secs, MIN_SYNC_INTERVAL_SECONDS, MAX_SYNC_INTERVAL_SECONDS
        )
        check_timestamp("SyncResponse.server_time", self.server_time)
        check_optional("SyncResponse.patterns", self.patterns, GlobalPatterns)
        if self.patterns is not None and self.patterns.global_version != self.global_version:
            raise refuse(
                "SyncResponse.patterns.global_version", f"the response's, {self.global_version}",
                self.patterns.global_version,
            )
        if self.acknowledged_local_version is not None:
            check_integer("SyncResponse.acknowledged_local_version", self.acknowledged_local_version, 0, _U64_MAX)
