"""Popularity and trends from counts: votes by name and falsified reports on one scale, above the threshold, less alarms.

For a window of whole days a title has V distinct devices that voted by name, and an estimate N of home-days from the reports
(estimates.py; 0 where it is below the noise). V + N is in homes, whatever the mode they share in. It is then taken to
REFERENCE_HOMES homes where more told of the window, which are the voters by name and the mean number of reports a day: from
there on neither participation nor its growth moves a score. Fewer are not scaled up: that made one home's viewing weigh like
a crowd's, and cost NDCG@10 .074 against .083 with 300 homes of MovieTweetings that all share.

A title is told only where it is backed by min_devices distinct devices: V, or what the reports prove, not their sum, since
a device may have sent reports before it shared titles. Of reports the lower confidence bound counts, for the best single day, or
for the whole window divided by its days, since one device reports once a day.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cloud.collective import Trending
from cloud.counts import Counts, window_of
from cloud.estimates import Estimate, estimate
from cloud.shard_counter import trend_days
from cloud.velocity import Alarm, alarms
from omega_edge.catalog import Catalog
from omega_edge.errors import ConfigError

REFERENCE_HOMES = 10_000
LEAST_MIN_DEVICES = 2


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the operator has set. min_devices: 2 or more. allowed, withheld: rows that no alarm, or every alarm, is for."""

    min_devices: int = 50
    allowed: frozenset[int] = frozenset()
    withheld: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.min_devices < LEAST_MIN_DEVICES:
            raise ConfigError(f"MIN_DEVICES: expected {LEAST_MIN_DEVICES} or more, got {self.min_devices}")


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """One window's homes by title, float64[titles]. told: homes, of at most REFERENCE_HOMES, 0 where the threshold is not reached;
    backed: how many distinct devices stand behind each title for certain; homes: how many told of anything."""

    told: np.ndarray
    backed: np.ndarray
    homes: float


def window_counts(counts: Counts, end_day: int, days: int, min_devices: int) -> WindowCounts:
    """What `days` whole UTC days before end_day say of each title."""
    window = window_of(counts, end_day, days)
    voted = np.zeros(counts.title_count)
    voted[window.rows] = window.devices
    together, proven = reported_homes(counts, end_day, days)
    backed = np.maximum(voted, proven)
    homes = window.voters + together.reports / days
    found = voted + together.above_noise
    scale = min(REFERENCE_HOMES / homes, 1.0) if homes else 0.0
    return WindowCounts(np.where(backed >= min_devices, found * scale, 0.0), backed, homes)


def reported_homes(counts: Counts, end_day: int, days: int) -> tuple[Estimate, np.ndarray]:
    """(what the reports of `days` whole UTC days before end_day say together, in home-days; how many distinct devices stand behind
    each title for certain, float64[titles])."""
    reported = [counts.reports[day] for day in range(end_day - days, end_day) if day in counts.reports]
    looks = max(counts.title_count * (len(reported) + 1), 1)
    together = estimate(reported, counts.title_count, looks)
    proven = together.lower / days
    for day in reported:
        proven = np.maximum(proven, estimate([day], counts.title_count, looks).lower)
    return together, np.floor(proven)


def trending(
    counts: Counts, catalog: Catalog, end_day: int, decisions: Decisions
) -> tuple[list[Trending], list[Alarm]]:
    """The bundle's trend windows up to end_day, and the titles that were held back from any of them."""
    found: list[Trending] = []
    held: dict[int, Alarm] = {}
    for trend, days in zip(catalog.trends, trend_days(catalog), strict=True):
        told = window_counts(counts, end_day, days, decisions.min_devices).told[: catalog.count]
        devices = np.zeros(catalog.count)
        devices[: len(told)] = told
        for alarm in alarms(counts, end_day, days, decisions.allowed, decisions.withheld):
            if alarm.row < catalog.count:
                devices[alarm.row] = 0.0
            held.setdefault(alarm.row, alarm)
        found.append(Trending(trend.window_hours, devices))
    return found, [held[row] for row in sorted(held)]


def rows_of(catalog: Catalog, content_ids: Collection[str]) -> frozenset[int]:
    """Rows of the titles that the catalogue has."""
    return frozenset(row for content_id in content_ids if (row := catalog.row_of(content_id)) >= 0)
