"""What falsified reports (omega_edge/randomised.py) say of titles: how many reports support each, and what follows.

A report supports every title that its hash function sends to its value. A home that finished title i reports a value that
supports i with probability p = e^eps / (e^eps + g - 1), any other home with q = 1 / g (g = COUNT_CATEGORIES; over the
seeds the hash is uniform). Of n reports C support i; if N of the homes finished i, then

    E[C] = N p + (n - N) q                 estimate = (C - n q) / (p - q), unbiased
    Var[C] = N p (1 - p) + (n - N) q (1 - q)         its variance divided by (p - q)^2

The lower confidence bound is the least N for which C is not too many, by Bernstein's inequality, which holds for every n:
P(C - E[C] >= t) <= exp(-t^2 / (2 (Var[C] + t / 3))). Its confidence is shared by all the titles and days that are looked at
(Bonferroni), so that of all that is ever published of one window, with probability 1 - FAILURE, no bound is too high. A
hostile home can support one title for certain, so it weighs up to 1 / (p - q) (2.1) homes; votes by name weigh one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud.counts import DayReports
from omega_edge import randomised
from omega_edge.protocol import COUNT_CATEGORIES

FAILURE = 0.05
"""The chance that any of the lower bounds of one window is above the truth."""
NOISE_SIGMAS = 2.0
"""An estimate below this many standard deviations counts as 0 (research: noise that is added up would rank titles)."""

KEEP = randomised.keep_probability()
CHANCE = 1 / COUNT_CATEGORIES


@dataclass(frozen=True, slots=True)
class Estimate:
    """What reports say of titles: home-days each, float64[titles]. variance: of the estimate, at that estimate."""

    reports: int
    homes: np.ndarray
    variance: np.ndarray
    lower: np.ndarray

    @property
    def above_noise(self) -> np.ndarray:
        """The estimates, 0 where one is below NOISE_SIGMAS standard deviations of no home at all."""
        noise = NOISE_SIGMAS * math.sqrt(self.reports * CHANCE * (1 - CHANCE)) / (KEEP - CHANCE)
        return np.where(self.homes > noise, self.homes, 0.0)


def title_hashes(content_ids: Iterable[str]) -> np.ndarray:
    """uint64[titles]: randomised.title_hash of each."""
    return np.fromiter(map(randomised.title_hash, content_ids), np.uint64)


def support(hashes: np.ndarray, seeds: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint32[titles]: how many of the reports seeds[r], values[r] each title of hashes uint64[titles] is supported by.

    The same integers as randomised.category() gives, 25 µs a report for 9,000 titles.
    """
    keys = _mixed((seeds.astype(np.uint64) + np.uint64(1)) * np.uint64(randomised.GOLDEN_64))
    # category() is value where mixed() lies in [low, low + width), the multiplication by COUNT_CATEGORIES undone.
    edges = [-(-(value << 32) // COUNT_CATEGORIES) << 32 for value in range(COUNT_CATEGORIES)]
    low = np.array(edges, np.uint64)[values]
    width = np.array([*edges[1:], 0], np.uint64)[values] - low  # the last wraps around, as it should
    counts = np.zeros(len(hashes), np.uint32)
    mixed, shifted = np.empty((2, len(hashes)), np.uint64)
    inside = np.empty(len(hashes), bool)
    for report in range(len(keys)):
        np.bitwise_xor(hashes, keys[report], out=mixed)
        _mix(mixed, shifted)
        np.subtract(mixed, low[report], out=mixed)
        np.less(mixed, width[report], out=inside)
        np.add(counts, inside, out=counts)
    return counts


def estimate(days: Sequence[DayReports], title_count: int, looks: int | None = None) -> Estimate:
    """What the reports of some days say together, in home-days.

    looks: how many bounds share the confidence; None: one for each title.
    """
    reports = sum(day.reports for day in days)
    supported = np.zeros(title_count)
    for day in days:
        supported += day.support[:title_count]
    homes = (supported - reports * CHANCE) / (KEEP - CHANCE)
    variance = variance_of(np.clip(homes, 0, reports), reports)
    return Estimate(reports, homes, variance, lower_bound(supported, reports, title_count if looks is None else looks))


def variance_of(homes: np.ndarray, reports: int) -> np.ndarray:
    """float64: the exact variance of the estimate where homes (float64) of the reports told of a title."""
    return (homes * KEEP * (1 - KEEP) + (reports - homes) * CHANCE * (1 - CHANCE)) / (KEEP - CHANCE) ** 2


def lower_bound(supported: np.ndarray, reports: int, looks: int) -> np.ndarray:
    """float64[titles], 0 to reports: fewer homes than this told of a title with a chance of FAILURE / looks at most."""
    if not reports:
        return np.zeros(len(supported))
    confidence = math.log(max(looks, 1) / FAILURE)

    def too_many(homes: np.ndarray) -> np.ndarray:
        variance = variance_of(homes, reports) * (KEEP - CHANCE) ** 2
        allowed = confidence / 3 + np.sqrt((confidence / 3) ** 2 + 2 * confidence * variance)
        return supported - (homes * KEEP + (reports - homes) * CHANCE) > allowed

    low, high = np.zeros(len(supported)), np.full(len(supported), float(reports))
    bounded = too_many(low)
    for _ in range(48):
        middle = (low + high) / 2
        above = too_many(middle)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(bounded, low, 0.0)


class ReportTable:
    """Falsified reports of a shard's newest days: 9 bytes each, and their support of every title."""

    def __init__(self, hashes: np.ndarray) -> None:
        """hashes: title_hashes() of the titles by row."""
        self._hashes = hashes
        self._days: dict[int, _Day] = {}

    def __len__(self) -> int:
        return sum(len(day.seeds) for day in self._days.values())

    def add(self, day: int, devices: np.ndarray, seeds: np.ndarray, values: np.ndarray, counted: int = 0) -> None:
        """Take in the reports of a day: devices, seeds uint32[r], values uint8[r]. counted: how many of them, from the first,
        preset() has told the support of."""
        held = self._days.setdefault(day, _Day.empty(len(self._hashes)))
        held.devices = np.concatenate([held.devices, devices.astype(np.uint32)])
        held.seeds = np.concatenate([held.seeds, seeds.astype(np.uint32)])
        held.values = np.concatenate([held.values, values.astype(np.uint8)])
        held.support += support(self._hashes, seeds[counted:], values[counted:])

    def preset(self, day: int, known: np.ndarray) -> None:
        """Begin an empty day with the support uint32[titles] of reports that add() will bring as counted."""
        self._days[day] = _Day.empty(len(self._hashes))
        self._days[day].support += known

    def erase(self, devices: np.ndarray) -> int:
        """Take out all reports of these devices, uint32[k]. How many they were."""
        erased = 0
        for day in self._days.values():
            gone = np.isin(day.devices, devices)
            if gone.any():
                day.support -= support(self._hashes, day.seeds[gone], day.values[gone])
                day.devices, day.seeds, day.values = day.devices[~gone], day.seeds[~gone], day.values[~gone]
                erased += int(gone.sum())
        return erased

    def forget_before(self, first_day: int) -> None:
        """Let go of days before first_day."""
        self._days = {day: held for day, held in self._days.items() if day >= first_day}

    def take_titles(self, hashes: np.ndarray) -> None:
        """Go on with more titles: those held before, at the same rows, and new ones after them."""
        new = hashes[len(self._hashes) :]
        for day in self._days.values():
            day.support = np.concatenate([day.support, support(new, day.seeds, day.values)])
        self._hashes = hashes

    def days(self) -> dict[int, DayReports]:
        """The reports by day, copied."""
        return {day: DayReports(len(held.seeds), held.support.copy()) for day, held in sorted(self._days.items())}


@dataclass(slots=True)
class _Day:
    devices: np.ndarray
    seeds: np.ndarray
    values: np.ndarray
    support: np.ndarray

    @classmethod
    def empty(cls, title_count: int) -> _Day:
        return cls(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint8), np.zeros(title_count, np.uint32))


def _mix(numbers: np.ndarray, beside: np.ndarray) -> None:
    """randomised.mixed() of every number uint64[n], in its place; beside: room of the same size."""
    for shift, factor in ((30, randomised.MIX_FIRST_64), (27, randomised.MIX_SECOND_64), (31, 1)):
        np.right_shift(numbers, np.uint64(shift), out=beside)
        np.bitwise_xor(numbers, beside, out=numbers)
        if factor != 1:
            np.multiply(numbers, np.uint64(factor), out=numbers)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    _mix(numbers, np.empty_like(numbers))
    return numbers
