"""Why a title is recommended: the event that lifts its score most, else the trend that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omega_edge.protocol import ReasonEvent, TrendSignal
from omega_edge.ranking import CONTEXT, PATTERNS, POPULARITY, TREND_LONG, TREND_SHORT

MIN_DROP = 1e-4
"""Falls of the raw score below this are rounding of the 8-bit codes, not evidence."""


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An event as a reason names it. kind: watched, liked or disliked, what was said last; success: whether it was
    finished; watched: whether it was watched at all."""

    content_id: str
    content_title: str
    timestamp: int
    kind: str
    success: bool
    watched: bool


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason in words, with what it rests on: events (the strongest first) or a trend, or neither."""

    text: str
    events: tuple[ReasonEvent, ...] = ()
    trend: TrendSignal | None = None


def window_in_words(window_hours: int) -> str:
    """"2 days" for 48."""
    if window_hours % 24:
        return f"{window_hours} hours"
    days = window_hours // 24
    return "24 hours" if days == 1 else f"{days} days"


def _because(event: NamedEvent) -> str:
    verb = "liked" if event.kind == "liked" else "finished" if event.success else "started"
    return f"Because you {verb} {event.content_title}"


def strongest_events(
    drops: np.ndarray, events: Sequence[NamedEvent], nameable: np.ndarray, limit: int
) -> tuple[ReasonEvent, ...]:
    """The events whose absence lowers the score most, the strongest first, among those that may be named.

    drops: float32[e], fall of the raw score without each event. nameable: bool[e].
    """
    order = np.argsort(-np.where(nameable, drops, -np.inf), kind="stable")[:limit]
    return tuple(
        _reason_event(events[index], float(drops[index]))
        for index in order.tolist()
        if nameable[index] and drops[index] > MIN_DROP
    )


def strongest_event_each(drops: np.ndarray, nameable: np.ndarray) -> tuple[list[int], list[float]]:
    """For each of k titles, the index of the nameable event whose absence lowers its score most (-1 if none does by
    more than MIN_DROP; the newest of equals) and that fall. drops: float32[e, k]; nameable: bool[e]."""
    if not nameable.any():
        return [-1] * drops.shape[1], [0.0] * drops.shape[1]
    allowed = np.where(nameable[:, None], drops, -np.inf)
    best = allowed.argmax(axis=0)
    falls = allowed[best, np.arange(drops.shape[1])]
    return np.where(falls > MIN_DROP, best, -1).tolist(), falls.tolist()


def _reason_event(event: NamedEvent, drop: float) -> ReasonEvent:
    return ReasonEvent(event.content_id, event.content_title, event.timestamp, drop)


def because_of(event: NamedEvent, drop: float) -> Reason:
    """The reason that names an event."""
    return Reason(_because(event), (_reason_event(event, drop),))


def carried_by(
    content_id: str,
    contributions: list[float],
    trends: tuple[TrendSignal, TrendSignal],
    stale_since: tuple[str | None, str | None],
    time_of_day: str,
) -> Reason:
    """The reason for a title that no single event speaks for: the trend or popularity that carried it.

    contributions: weight times value of each feature. trends: the title's signals in the two windows. stale_since: for
    each, None if it tells of now, else the month that it tells of.
    """
    carried = max((POPULARITY, TREND_SHORT, TREND_LONG, PATTERNS), key=lambda feature: contributions[feature])
    if contributions[carried] <= 0:
        if contributions[CONTEXT] > 0:
            return Reason(f"Its kind is watched more at this time: {time_of_day}")
        return Reason("From the whole catalogue: nothing you watched speaks for it yet")
    if carried == POPULARITY:
        return Reason("Popular over all homes")
    if carried == PATTERNS:
        return Reason("Homes that share what they like finish this one")
    which = 0 if carried == TREND_SHORT else 1
    if stale_since[which] is not None:
        return Reason(f"Popular in {stale_since[which]}", trend=trends[which])
    return Reason(f"Popular in the last {window_in_words(trends[which].window_hours)}", trend=trends[which])
