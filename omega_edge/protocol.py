"""Messages between viewer, television and cloud: types and validation. Terms and limits are those of terms.py, what
messages are made of is in patterns.py; both are public here.

Every message is a frozen dataclass that checks itself when it is made, so a message that exists is valid.
Times are integer Unix milliseconds, UTC. Nothing here imports numpy or reads a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omega_edge.errors import ProtocolError
from omega_edge.patterns import FinishedTitle, TitleReference, TrendSignal, ViewingPattern
from omega_edge.terms import (
    COUNT_CATEGORIES,
    COUNT_EPSILON,
    DAY_MS,
    DEFAULT_PROFILE,
    DEVICE_ID_BYTES,
    EMBEDDING_BYTES,
    EMBEDDING_DIMENSIONS,
    MAX_AGE_RATING,
    MAX_CONTENT_ID_BYTES,
    MAX_DOWNLOAD_BYTES,
    MAX_DURATION_SECONDS,
    MAX_MOOD_HINT_BYTES,
    MAX_PATTERNS_PER_DELTA,
    MAX_RECENT_WATCHES,
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
    MAX_SYNC_INTERVAL_SECONDS,
    MAX_TIMESTAMP_MS,
    MAX_TITLE_BYTES,
    MAX_TITLES_FINISHED_PER_PAGE,
    MAX_TREND_SIGNALS,
    MAX_UPLOAD_BYTES,
    MAX_WINDOW_HOURS,
    MIN_QUALITY_THRESHOLD,
    MIN_SYNC_INTERVAL_SECONDS,
    PATTERN_CODE_BYTES,
    PROTOCOL_VERSION,
    SERVED_VERSIONS,
    SUCCESS_THRESHOLD,
    U32_MAX,
    U64_MAX,
    FeedbackKind,
    TimeOfDay,
    check_content_id,
    check_embedding,
    check_profile_id,
    check_timestamp,
    local_day,
    parse_feedback_kind,
    time_of_day,
)
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

__all__ = [
    "COUNT_CATEGORIES",
    "COUNT_EPSILON",
    "DAY_MS",
    "DEFAULT_PROFILE",
    "DEVICE_ID_BYTES",
    "EMBEDDING_BYTES",
    "EMBEDDING_DIMENSIONS",
    "MAX_AGE_RATING",
    "MAX_CONTENT_ID_BYTES",
    "MAX_DOWNLOAD_BYTES",
    "MAX_DURATION_SECONDS",
    "MAX_MOOD_HINT_BYTES",
    "MAX_PATTERNS_PER_DELTA",
    "MAX_RECENT_WATCHES",
    "MAX_REFERENCES_PER_PATTERN",
    "MAX_SIMILAR_PATTERNS",
    "MAX_SYNC_INTERVAL_SECONDS",
    "MAX_TIMESTAMP_MS",
    "MAX_TITLES_FINISHED_PER_PAGE",
    "MAX_TITLE_BYTES",
    "MAX_TREND_SIGNALS",
    "MAX_UPLOAD_BYTES",
    "MAX_WINDOW_HOURS",
    "MIN_QUALITY_THRESHOLD",
    "MIN_SYNC_INTERVAL_SECONDS",
    "PATTERN_CODE_BYTES",
    "PROTOCOL_VERSION",
    "SERVED_VERSIONS",
    "SUCCESS_THRESHOLD",
    "U32_MAX",
    "U64_MAX",
    "CountReport",
    "FeedbackKind",
    "FinishedTitle",
    "GlobalPatterns",
    "PatternDelta",
    "Profile",
    "ReasonEvent",
    "Recommendation",
    "SyncRequest",
    "SyncResponse",
    "TimeOfDay",
    "TitleReference",
    "TrendSignal",
    "ViewContext",
    "ViewingEvent",
    "ViewingPattern",
    "check_content_id",
    "check_embedding",
    "check_profile_id",
    "check_timestamp",
    "local_day",
    "parse_feedback_kind",
    "time_of_day",
    "title_embedding_text",
]


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
class PatternDelta:
    """What changed on this television since the cloud last acknowledged.

    titles_finished: in the order of finishing. patterns_added, patterns_updated: only with a success rate of at least
    MIN_QUALITY_THRESHOLD. patterns_removed: ids of patterns that left the shared set. A pattern id is named once.
    local_version: the television's own counter, never the cloud's. more_pages: further titles_finished wait.
    snapshot: patterns_added is the whole shared set, to stand in the place of what the cloud holds; then patterns_updated
    and patterns_removed are empty. shared_set_hash: u64 over the whole shared set once this delta is applied (see
    codes.set_hash); None on pages that more_pages follow.
    """

    local_version: int
    titles_finished: tuple[FinishedTitle, ...] = ()
    patterns_added: tuple[ViewingPattern, ...] = ()
    patterns_updated: tuple[ViewingPattern, ...] = ()
    patterns_removed: tuple[int, ...] = ()
    more_pages: bool = False
    snapshot: bool = False
    shared_set_hash: int | None = None

    def __post_init__(self) -> None:
        check_integer("PatternDelta.local_version", self.local_version, 0, U64_MAX)
        check_tuple(
            "PatternDelta.titles_finished", self.titles_finished, FinishedTitle, MAX_TITLES_FINISHED_PER_PAGE
        )
        check_tuple("PatternDelta.patterns_added", self.patterns_added, ViewingPattern, MAX_PATTERNS_PER_DELTA)
        check_tuple("PatternDelta.patterns_updated", self.patterns_updated, ViewingPattern, MAX_PATTERNS_PER_DELTA)
        check_tuple("PatternDelta.patterns_removed", self.patterns_removed, int, MAX_PATTERNS_PER_DELTA)
        for pattern_id in self.patterns_removed:
            check_integer("PatternDelta.patterns_removed", pattern_id, 0, U32_MAX)
        check_type("PatternDelta.more_pages", self.more_pages, bool)
        check_type("PatternDelta.snapshot", self.snapshot, bool)
        if self.snapshot and (self.patterns_updated or self.patterns_removed):
            raise ProtocolError("PatternDelta.snapshot: expected the whole set in patterns_added, got changes beside it")
        if self.shared_set_hash is not None:
            check_integer("PatternDelta.shared_set_hash", self.shared_set_hash, 0, U64_MAX)
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
        changes = self.titles_finished or self.patterns_added or self.patterns_updated or self.patterns_removed
        return not (changes or self.snapshot)


@dataclass(frozen=True, slots=True)
class CountReport:
    """The mode `counts`: one deliberately falsified title of a day, by optimised local hashing.

    day: whole days since 1970, UTC. seed: u32, which hash function was drawn. value: 0 to COUNT_CATEGORIES - 1, the hash of
    what was finished that day (or of nothing), told truly with probability e^eps / (e^eps + COUNT_CATEGORIES - 1) for
    eps = COUNT_EPSILON, else any other value alike (Wang, Blocki, Li, Jha, "Locally Differentially Private Protocols for
    Frequency Estimation", 2017).
    """

    day: int
    seed: int
    value: int

    def __post_init__(self) -> None:
        check_integer("CountReport.day", self.day, 0, MAX_TIMESTAMP_MS // DAY_MS)
        check_integer("CountReport.seed", self.seed, 0, U32_MAX)
        check_integer("CountReport.value", self.value, 0, COUNT_CATEGORIES - 1)


@dataclass(frozen=True, slots=True)
class GlobalPatterns:
    """Collective knowledge for one television. global_version: the cloud's counter.

    similar: each pattern id once. trending: each pair of title and window once.
    """

    global_version: int
    similar: tuple[ViewingPattern, ...] = ()
    trending: tuple[TrendSignal, ...] = ()

    def __post_init__(self) -> None:
        check_integer("GlobalPatterns.global_version", self.global_version, 0, U64_MAX)
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
    """Television to cloud. In the sharing mode `receive` every optional field is None, and erase is False.

    device_id: 16 random bytes. epoch: random u64, new after a wipe or restore. server_time_seen: the server's
    clock at the last response. global_version_seen: the cloud's counter at the last response. device_id and epoch
    come together; server_time_seen and delta only beside them, since a time in milliseconds that is sent back
    would by itself link one anonymous sync to the last. count_report: only in the mode `counts`, at most one a day, without
    delta and server_time_seen. erase: forget everything of this device; it comes alone beside device_id and epoch.
    """

    version: int = PROTOCOL_VERSION
    global_version_seen: int = 0
    device_id: bytes | None = None
    epoch: int | None = None
    server_time_seen: int | None = None
    delta: PatternDelta | None = None
    count_report: CountReport | None = None
    erase: bool = False

    def __post_init__(self) -> None:
        check_integer("SyncRequest.version", self.version, 1, 255)
        check_integer("SyncRequest.global_version_seen", self.global_version_seen, 0, U64_MAX)
        if self.device_id is not None and not (
            isinstance(self.device_id, bytes) and len(self.device_id) == DEVICE_ID_BYTES
        ):
            raise refuse("SyncRequest.device_id", f"{DEVICE_ID_BYTES} bytes", self.device_id)
        if self.epoch is not None:
            check_integer("SyncRequest.epoch", self.epoch, 0, U64_MAX)
        if self.server_time_seen is not None:
            check_timestamp("SyncRequest.server_time_seen", self.server_time_seen)
        check_optional("SyncRequest.delta", self.delta, PatternDelta)
        if (self.device_id is None) != (self.epoch is None):
            raise ProtocolError("SyncRequest: expected device_id and epoch together, or neither")
        check_optional("SyncRequest.count_report", self.count_report, CountReport)
        check_type("SyncRequest.erase", self.erase, bool)
        told = (self.delta is not None, self.count_report is not None, self.erase)
        if self.device_id is None and (any(told) or self.server_time_seen is not None):
            raise ProtocolError(
                "SyncRequest: expected device_id and epoch beside delta, server_time_seen, count_report and erase"
            )
        if sum(told) > 1 or (self.server_time_seen is not None and (self.erase or self.count_report is not None)):
            raise ProtocolError(
                "SyncRequest: expected at most one of delta, count_report and erase, server_time_seen with delta only"
            )


@dataclass(frozen=True, slots=True)
class SyncResponse:
    """Cloud to television. acknowledged_local_version: the delta that is now durable, or None.

    catalog_version: of the newest bundle of the television's lineage, where there is one. reset: nothing was taken; begin a
    new epoch under a new device id and send everything again. snapshot_wanted: the shared sets differ; send the whole set
    with a later sync. erased: everything of this device is gone. counted: the count report is durable.

    global_version: what the television has once patterns are applied, so the patterns' own; without patterns it
    has all there is already.
    """

    global_version: int
    next_sync_secs: int
    server_time: int
    version: int = PROTOCOL_VERSION
    patterns: GlobalPatterns | None = None
    acknowledged_local_version: int | None = None
    catalog_version: int | None = None
    reset: bool = False
    snapshot_wanted: bool = False
    erased: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        check_integer("SyncResponse.version", self.version, 1, 255)
        check_integer("SyncResponse.global_version", self.global_version, 0, U64_MAX)
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
            check_integer("SyncResponse.acknowledged_local_version", self.acknowledged_local_version, 0, U64_MAX)
        if self.catalog_version is not None:
            check_integer("SyncResponse.catalog_version", self.catalog_version, 0, U32_MAX)
        for field in ("reset", "snapshot_wanted", "erased", "counted"):
            check_type(f"SyncResponse.{field}", getattr(self, field), bool)
        if self.reset and (self.acknowledged_local_version is not None or self.snapshot_wanted or self.erased or self.counted):
            raise ProtocolError("SyncResponse.reset: expected nothing acknowledged beside it")
