"""The most watched titles of all time, and of the best window of days: what every home is shown alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bench.replay.baselines.evidence import check_positive
from bench.replay.method import Past, TrendEvents
from omega_edge.datasets import Events
from omega_edge.protocol import SUCCESS_THRESHOLD

WINDOWS_HOURS = (24, 48, 96, 7 * 24, 14 * 24, 30 * 24, 60 * 24)


def successes(events: Events, title_count: int) -> np.ndarray:
    """int64[n]: successful viewings of each title."""
    return np.bincount(events.title[events.watch_percentage >= SUCCESS_THRESHOLD], minlength=title_count)


@dataclass(slots=True)
class AllTime:
    """score = successful viewings before the block."""

    name: str = "popularity of all time"
    _counts: np.ndarray | None = field(init=False, default=None)

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Count."""
        self._counts = successes(events, title_count).astype(np.float32)

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._counts is not None, "fit comes first"
        return self._counts


@dataclass(slots=True)
class Window:
    """score = successful viewings in the window up to the last midnight; equal counts are ordered by all time's."""

    window_hours: int
    name: str = field(init=False)
    _all_time: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_positive(window_hours=self.window_hours)
        self.name = f"popularity window_hours={self.window_hours}"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Count what orders the titles of equal count."""
        counts = successes(events, title_count)
        self._all_time = counts / (counts.max(initial=0) + 1.0)

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._all_time is not None, "fit comes first"
        return (trend_events.counts(past.midnight_ms, self.window_hours) + self._all_time).astype(np.float32)


def candidates() -> list[AllTime]:
    """The grid of all time: one."""
    return [AllTime()]


def window_candidates() -> list[Window]:
    """The grid of windows."""
    return [Window(hours) for hours in WINDOWS_HOURS]
