"""What the journal's payloads say: a CBOR array, its first item the kind of entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import cbor2

from omega_edge.protocol import FeedbackKind, TimeOfDay, ViewingEvent
from omega_edge.validation import check_distinct, check_integer, check_share

MAX_DECISION_LATENCY_MS = 24 * 3600 * 1000
_U32_MAX = (1 << 32) - 1
_TIMES = tuple(TimeOfDay)
_FEEDBACK = tuple(FeedbackKind)
_WATCHED, _RATED, _OUTCOME = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Watched:
    """A viewing. recent_watches of its context are not kept: the episodes before it say the same."""

    profile: str
    content_id: str
    content_title: str
    watch_percentage: float
    duration_seconds: int
    timestamp: int
    time_of_day: TimeOfDay
    day_of_week: int
    mood_hint: str | None

    @staticmethod
    def of(event: ViewingEvent) -> Watched:
        """The entry for an event."""
        context = event.context
        return Watched(
            context.profile,
            event.content_id,
            event.content_title,
            event.watch_percentage,
            event.duration_seconds,
            event.timestamp,
            context.time_of_day,
            context.day_of_week,
            context.mood_hint,
        )


@dataclass(frozen=True, slots=True)
class Rated:
    """What a viewer said of a title."""

    profile: str
    content_id: str
    content_title: str
    kind: FeedbackKind
    timestamp: int
    time_of_day: TimeOfDay
    day_of_week: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one decision in which global patterns spoke: the ids of those that were followed, and of the others,
    ascending."""

    followed: tuple[int, ...]
    not_followed: tuple[int, ...]
    reward: float
    decision_latency_ms: int

    @staticmethod
    def checked(
        followed: Iterable[int], not_followed: Iterable[int], reward: object, decision_latency_ms: object
    ) -> Outcome:
        """An outcome of values from outside. Raises ProtocolError."""
        ids = [[check_integer("pattern_id", one, 0, _U32_MAX) for one in some] for some in (followed, not_followed)]
        check_distinct("followed, not_followed", ids[0] + ids[1])
        return Outcome(
            tuple(sorted(ids[0])),
            tuple(sorted(ids[1])),
            check_share("reward", reward),
            check_integer("decision_latency_ms", decision_latency_ms, 0, MAX_DECISION_LATENCY_MS),
        )


Entry = Watched | Rated | Outcome


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an observation. sequence: its number. durable: whether it survives a power cut already; if not,
    it survives the end of the process, and a power cut after flush() or when the durability window is over."""

    sequence: int
    durable: bool


def encode_entry(entry: Entry) -> bytes:
    """The payload of an entry."""
    if isinstance(entry, Watched):
        return cbor2.dumps(
            [
                _WATCHED,
                entry.profile,
                entry.content_id,
                entry.content_title,
                entry.watch_percentage,
                entry.duration_seconds,
                entry.timestamp,
                _TIMES.index(entry.time_of_day),
                entry.day_of_week,
                entry.mood_hint,
            ]
        )
    if isinstance(entry, Rated):
        return cbor2.dumps(
            [
                _RATED,
                entry.profile,
                entry.content_id,
                entry.content_title,
                _FEEDBACK.index(entry.kind),
                entry.timestamp,
                _TIMES.index(entry.time_of_day),
                entry.day_of_week,
            ]
        )
    ids = (_steps(entry.followed), _steps(entry.not_followed))
    return cbor2.dumps([_OUTCOME, *ids, entry.reward, entry.decision_latency_ms])


def decode_entry(payload: bytes) -> Entry | None:
    """The entry of a payload whose checksum is right; None for a kind that this version does not know."""
    kind, *values = cbor2.loads(payload)
    if kind == _WATCHED:
        return Watched(*values[:6], _TIMES[values[6]], *values[7:])
    if kind == _RATED:
        return Rated(*values[:3], _FEEDBACK[values[3]], values[4], _TIMES[values[5]], values[6])
    if kind == _OUTCOME:
        return Outcome(tuple(accumulate(values[0])), tuple(accumulate(values[1])), *values[2:])
    return None


def _steps(ids: tuple[int, ...]) -> list[int]:
    """Ascending ids as their differences, which CBOR writes in fewer bytes."""
    return [number - former for former, number in pairwise((0, *ids))]
