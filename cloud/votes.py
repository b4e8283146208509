"""Votes: which device finished which title on which UTC day. One vote for each such triple, whatever it sends how often.

A vote is one u64: row (24 bits), device number (32), day modulo 256 (8), kept sorted and each once, 8 bytes a vote. In
that order both the distinct devices of a title and those of a title and day are neighbours, so counting never sorts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloud.counts import DayVotes, WindowVotes
from cloud.lists import pseudonym
from cloud.velocity import suspect_devices

MAX_WINDOW_DAYS = 200
"""Days that fit into a byte, with room for clocks."""

MOST_WAITING = 100_000
"""New votes that wait to be sorted in, while there are fewer than four times as many sorted ones."""

_DAY_CYCLE = 256


class DeviceTable:
    """Numbers devices, u32, in the order in which they first came; remembers the day of that, and each device's pseudonym.
    Numbers are never given twice."""

    def __init__(self, secret: bytes) -> None:
        """secret: of the pseudonyms, see lists.py."""
        self._secret = secret
        self._numbers: dict[bytes, int] = {}
        self._first_days = np.zeros(1024, np.int32)
        self._pseudonyms = np.zeros(1024, np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def first_days(self) -> np.ndarray:
        """int32[devices]: the day on which each first came."""
        return self._first_days[: self._count]

    @property
    def pseudonyms(self) -> np.ndarray:
        """uint64[devices]: what each is called in lists."""
        return self._pseudonyms[: self._count]

    def number_of(self, device_id: bytes, day: int) -> int:
        """The device's number; a new one where it was not known before this day."""
        number = self._numbers.get(device_id)
        if number is None:
            number = self._numbers[device_id] = self._count
            if number == len(self._first_days):
                self._first_days = np.concatenate([self._first_days, np.zeros_like(self._first_days)])
                self._pseudonyms = np.concatenate([self._pseudonyms, np.zeros_like(self._pseudonyms)])
            self._first_days[number] = day
            self._pseudonyms[number] = pseudonym(self._secret, device_id)
            self._count += 1
        return number

    def forget(self, device_ids: Sequence[bytes]) -> np.ndarray:
        """uint32[k]: the numbers of those of the devices that were known, which now are not."""
        numbers = [self._numbers.pop(device_id) for device_id in set(device_ids) if device_id in self._numbers]
        return np.array(sorted(numbers), np.uint32)


class VoteTable:
    """The votes of the newest window_days days up to today, both stated when counting."""

    def __init__(self, window_days: int) -> None:
        if not 1 <= window_days <= MAX_WINDOW_DAYS:
            raise ValueError(f"window_days: expected 1 to {MAX_WINDOW_DAYS}, got {window_days}")
        self._window_days = window_days
        self._settled_votes = np.empty(0, np.uint64)
        self._waiting: list[np.ndarray] = []
        self._waiting_count = 0
        self._today = 0

    def __len__(self) -> int:
        return len(self._votes)

    @property
    def _votes(self) -> np.ndarray:
        if self._waiting:
            self._settle()
        return self._settled_votes

    @property
    def today(self) -> int:
        """The newest day that is counted."""
        return self._today

    @property
    def first_day(self) -> int:
        """The oldest day that is counted."""
        return self._today - self._window_days + 1

    def move_to(self, today: int) -> None:
        """Go on to a later day; votes that are then too old are forgotten."""
        if today > self._today:
            days = self._days()  # before the move: a leap of the clock by more than their 8 bits must not make them young
            self._today = today
            self._settled_votes = self._votes[days >= self.first_day]

    def add(self, days: np.ndarray, rows: np.ndarray, devices: np.ndarray) -> None:
        """Take in votes: days int64[e] since 1970, rows and devices uint32[e]. Those outside the window are left out."""
        inside = (days >= self.first_day) & (days <= self._today)
        new = rows[inside].astype(np.uint64) << np.uint64(40)
        new |= devices[inside].astype(np.uint64) << np.uint64(8)
        new |= (days[inside] % _DAY_CYCLE).astype(np.uint64)
        self._waiting.append(new)
        self._waiting_count += len(new)
        if self._waiting_count > max(MOST_WAITING, len(self._settled_votes) // 4):
            self._settle()

    def erase(self, devices: np.ndarray) -> None:
        """Take out all votes of these devices, uint32[k]."""
        self._settled_votes = self._votes[~np.isin(self._devices(), devices)]

    def days(self, title_count: int, first_days: np.ndarray) -> dict[int, DayVotes]:
        """Votes by day, of titles below title_count. first_days int32[devices]: when each device first came."""
        days, devices, rows = self._days(), self._devices(), self._rows()
        pairs = _first_of_each(self._votes >> np.uint64(8))
        suspects = suspect_devices(devices, devices[pairs], len(first_days))
        counted: dict[int, DayVotes] = {}
        for day in np.unique(days).tolist():
            here = np.flatnonzero(days == day)
            row, device = rows[here], devices[here]
            suspect = suspects.narrow[device] | suspects.young(first_days[device], day)
            votes = np.bincount(row, minlength=title_count)[:title_count]
            suspected = np.bincount(row[suspect], minlength=title_count)[:title_count]
            named = np.flatnonzero(votes)
            counted[day] = DayVotes(
                named.astype(np.uint32),
                votes[named].astype(np.uint32),
                suspected[named].astype(np.uint32),
                _distinct(device, len(first_days)),
                _distinct(device[suspect], len(first_days)),
            )
        return counted

    def window(self, end_day: int, days: int, title_count: int, device_count: int) -> WindowVotes:
        """Distinct devices of each title in the `days` days before end_day."""
        voted = self._days()
        inside = self._votes[(voted >= end_day - days) & (voted < end_day)] >> np.uint64(8)
        pairs = inside[_first_of_each(inside)]
        devices = np.bincount((pairs >> np.uint64(32)).astype(np.int64), minlength=title_count)[:title_count]
        named = np.flatnonzero(devices)
        voters = _distinct((pairs & np.uint64(0xFFFFFFFF)).astype(np.int64), device_count)
        return WindowVotes(named.astype(np.uint32), devices[named].astype(np.uint32), voters)

    def _settle(self) -> None:
        """Sort what waits into the rest. A stable sort merges the two sorted runs in one walk."""
        both = np.concatenate([self._settled_votes, np.unique(np.concatenate(self._waiting))])
        both.sort(kind="stable")
        self._settled_votes = both[_first_of_each(both)]
        self._waiting, self._waiting_count = [], 0

    def _days(self) -> np.ndarray:
        """int32[v]: the day of each vote, told from its 8 bits by the days that can be in the window."""
        held = (self._votes & np.uint64(_DAY_CYCLE - 1)).astype(np.int32)
        return self._today - (self._today - held) % _DAY_CYCLE

    def _devices(self) -> np.ndarray:
        return ((self._votes >> np.uint64(8)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    def _rows(self) -> np.ndarray:
        return (self._votes >> np.uint64(40)).astype(np.int32)


def _first_of_each(ordered: np.ndarray) -> np.ndarray:
    """bool[n]: which numbers of an ascending array differ from the one before."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def _distinct(devices: np.ndarray, device_count: int) -> int:
    seen = np.zeros(device_count, bool)
    seen[devices] = True
    return int(seen.sum())
