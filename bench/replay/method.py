"""What a ranking method looks like to the replay: it is fitted on the past, and gives a score to every title."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from omega_edge.datasets import Events

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Past:
    """One household before a query.

    titles: int64[e], rows of the data set's titles, oldest first. success: bool[e]. timestamp: int64[e], Unix ms.
    now_ms: moment of the query. midnight_ms: the last midnight (UTC) before it, up to which trend counts run.
    """

    titles: np.ndarray
    success: np.ndarray
    timestamp: np.ndarray
    now_ms: int
    midnight_ms: int


class FutureRead(Exception):
    """A method asked for viewings that it could not have known of."""


@dataclass(frozen=True, slots=True)
class TrendEvents:
    """All successful viewings of a data set, of which only those before a midnight may be counted.

    titles: int64[s]. timestamp: int64[s], ascending, Unix ms. midnight_ms: the query's.
    """

    titles: np.ndarray
    timestamp: np.ndarray
    title_count: int
    midnight_ms: int
    _counted: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def counts(self, end_ms: int, window_hours: int) -> np.ndarray:
        """int64[n], not to be written to: successful viewings of each title in [end - window, end).

        Raises FutureRead if the end is later than the query's midnight.
        """
        if end_ms > self.midnight_ms:
            raise FutureRead(
                f"end_ms: expected at most the query's midnight {self.midnight_ms}, got {end_ms}; later viewings had "
                "not reached anyone"
            )
        known = self._counted.get((end_ms, window_hours))
        if known is None:
            first, last = np.searchsorted(self.timestamp, [end_ms - window_hours * HOUR_MS, end_ms])
            known = np.bincount(self.titles[first:last], minlength=self.title_count)
            known.flags.writeable = False
            self._counted[end_ms, window_hours] = known
        return known

    def until(self, midnight_ms: int) -> TrendEvents:
        """The same viewings, to be counted up to another midnight."""
        return replace(self, midnight_ms=midnight_ms, _counted={})


class ScoredMethod(Protocol):
    """A method that gives every title a score.

    The module of a family of methods offers `candidates() -> list[ScoredMethod]`, its small grid, unfitted. The replay
    fits each on what precedes the last span before the test, takes the one that ranks that span best, and fits it anew
    before every block of the test. name: of the configuration, such as "ease decay=0.9".
    """

    name: str

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Learn from the events before a block, in time order, from nothing each time. cut_ms: moment of the block's
        first event."""

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n], higher is better, finite. Scores of titles that the household has seen are not looked at."""
