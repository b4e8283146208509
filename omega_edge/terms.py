"""Terms of the protocol: versions, limits, enumerations, and the checks on single values that every message shares.

Times are integer Unix milliseconds, UTC. Nothing here imports numpy or reads a clock.
"""

from __future__ import annotations

import enum
import math
import re
import sys
from array import array
from datetime import UTC, datetime, tzinfo

from omega_edge.validation import check_enum, check_integer, check_text, refuse

PROTOCOL_VERSION = 1
SERVED_VERSIONS = range(max(1, PROTOCOL_VERSION - 2), PROTOCOL_VERSION + 1)
"""What a shard answers, each in its own version: this one and the two before it."""
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
DAY_MS = 24 * 3600 * 1000
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
PATTERN_CODE_BYTES = 48
"""A pattern's vector, product-quantised (see quantiser.py)."""
COUNT_EPSILON = 4.0
"""The privacy loss of one count report, of which there is at most one a day: at most 1,461 a year of 365.25 days."""
COUNT_CATEGORIES = 56
"""round(e^COUNT_EPSILON) + 1, with which local hashing has the least variance."""
MAX_AGE_RATING = 21
DEFAULT_PROFILE = "household"

EMBEDDING_BYTES = EMBEDDING_DIMENSIONS * 4
_UNIT_NORM_TOLERANCE = 1e-3
_PROFILE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1


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
