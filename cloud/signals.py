"""What many households' events say of each title without any household's own history: popularity, trends, context."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from omega_edge.catalog_checks import SLOTS
from omega_edge.protocol import SUCCESS_THRESHOLD, local_day
from omega_edge.ranking import genre_membership, slot_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
CONTEXT_SMOOTHING_EVENTS = 100.0
"""Weight, in events, of the all-week genre shares against those of one slot of the week."""


def log_share(counts: np.ndarray) -> np.ndarray:
    """float32: log(1 + count) over its largest value, 0 to 1; all 0 if every count is 0."""
    logarithms = np.log1p(counts.astype(np.float64))
    return (logarithms / max(logarithms.max(initial=0.0), 1e-12)).astype(np.float32)


def popularity(title: np.ndarray, title_count: int) -> np.ndarray:
    """float32[n], 0 to 1, from the titles (integer[e]) of the events to count."""
    return log_share(np.bincount(title, minlength=title_count))


def trend(title: np.ndarray, timestamp: np.ndarray, end_ms: int, window_hours: int, title_count: int) -> np.ndarray:
    """float32[n], 0 to 1: how often each title was watched in [end - window, end).

    title: integer[e], timestamp: int64[e] ascending, Unix ms, of the events to count: the successful ones.
    """
    return log_share(watched_in(title, timestamp, end_ms, window_hours, title_count))


def watched_in(
    title: np.ndarray, timestamp: np.ndarray, end_ms: int, window_hours: int, title_count: int
) -> np.ndarray:
    """int64[n]: how often each title was watched in [end - window, end); arguments as of trend()."""
    first, last = np.searchsorted(timestamp, [end_ms - window_hours * HOUR_MS, end_ms])
    return np.bincount(title[first:last], minlength=title_count)


def slots_of(timestamp: np.ndarray) -> np.ndarray:
    """uint8[e]: slot of the week (0 to 7, see ranking.slot_of) of moments in Unix ms, by the clock of UTC."""
    monday = datetime(2024, 1, 1, tzinfo=UTC)
    table = np.empty(7 * 24, np.uint8)
    for hour in range(7 * 24):
        moment = monday + timedelta(hours=hour)
        table[hour] = slot_of(*local_day(int(moment.timestamp() * 1000), UTC))
    hours = timestamp // HOUR_MS - int(monday.timestamp()) // 3600
    return table[hours % len(table)]


def context_shares(
    genre_masks: np.ndarray, genre_count: int, title: np.ndarray, watch_percentage: np.ndarray, slots: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(prior float32[8, g], overall float32[g]): share of successful plays that each genre has, by slot and in all.

    A play counts for its title's genres in equal parts. A slot's shares are smoothed by CONTEXT_SMOOTHING_EVENTS
    events of the overall shares.
    """
    success = watch_percentage >= SUCCESS_THRESHOLD
    shares = genre_membership(genre_masks, genre_count)[title[success]]
    overall = shares.sum(axis=0, dtype=np.float64) / max(len(shares), 1)
    prior = np.empty((SLOTS, genre_count))
    for slot in range(SLOTS):
        here = shares[slots[success] == slot]
        prior[slot] = here.sum(axis=0, dtype=np.float64) + CONTEXT_SMOOTHING_EVENTS * overall
        prior[slot] /= len(here) + CONTEXT_SMOOTHING_EVENTS
    # Shares of genres add up to 1 at most; rounding to float32 must not lift one above it.
    return np.minimum(prior, 1.0).astype(np.float32), np.minimum(overall, 1.0).astype(np.float32)
