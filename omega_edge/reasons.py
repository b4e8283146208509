"""Why a title is recommended: the event that lifts its score most, else the trend that carries it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omega_edge.protocol import ReasonEvent, TrendSignal
from omega_edge.ranking import CONTEXT, PATTERNS, POPULARITY, TREND_LONG, TREND_SHORT

MIN_DROP = 1e-4
"""Falls of the raw score below this are rounding of the 8-bit codes, not evidence."""


@dataclass(frozen=True, slots=True)
class NamedEvent:
    """An event as a reason names it. kind: watched, liked or disliked; success: whether it was finished."""

    content_id: str
    content_title: str
    timestamp: int
    kind: str
    success: bool


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
    if event.kind == "watched":
        verb = "finished" if event.success else "started"
    else:
        verb = "liked" if event.kind == "liked" else "rated"
    return f"Because you {verb} {event.content_title}"


def strongest_events(
    drops: np.ndarray, events: list[NamedEvent], nameable: np.ndarray, limit: int
) -> tuple[ReasonEvent, ...]:
    """The events whose absence lowers the score most, the strongest first, among those that may be named.

    drops: float32[e], fall of the raw score without each event. nameable: bool[e].
    """
    order = np.argsort(-np.where(nameable, drops, -np.inf), kind="stable")[:limit]
    return tuple(
        ReasonEvent(events[index].content_id, events[index].content_title, events[index].timestamp, float(drops[index]))
        for index in order
        if nameable[index] and drops[index] > MIN_DROP
    )


def reason_for(
    content_id: str,
    drops: np.ndarray,
    events: list[NamedEvent],
    nameable: np.ndarray,
    contributions: np.ndarray,
    trend_values: np.ndarray,
    window_hours: tuple[int, int],
    time_of_day: str,
) -> Reason:
    """The true reason for one title.

    contributions: float32[8], weight times value of each feature. trend_values: float32[2], the title's
    scores in the two windows. Reads only; the words are the same for the same input.
    """
    best = int(np.argmax(np.where(nameable, drops, -np.inf))) if len(drops) else -1
    if best >= 0 and nameable[best] and drops[best] > MIN_DROP:
        return Reason(_because(events[best]), strongest_events(drops, events, nameable, 3))
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
    signal = TrendSignal(content_id, float(trend_values[which]), window_hours[which])
    return Reason(f"Popular in the last {window_in_words(window_hours[which])}", trend=signal)
