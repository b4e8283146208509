"""The velocity alarm: titles whose votes come unusually fast, or from devices that are unusual themselves.

A vote is suspect where its device is

- young: it first came on the day of the vote, the day before that, or after it;
- narrow: it has at least NARROW_VOTES votes in the window, and at most a third as many titles: it votes for the same few
  titles day after day.

Households are like that too, so neither counts by itself. A title is alarmed on a whole UTC day where it has at least
LEAST_VOTES votes and

- crowd: at least half of them are suspect, and so many more than the share of suspect voters among all voters of that day
  lets expect that six standard deviations do not explain it; or
- surge: they are more than SURGE_FACTOR times what its share of the votes of the days before (up to seven) lets expect,
  plus six standard deviations. A title's first days prove nothing, so this needs at least three days before it.

An alarmed title is held back from trends that a day of alarm lies in: by a surge for the day after it, by a crowd for as
long as its windows reach. An operator lets a title through, or withholds one for good, by configuration.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cloud.counts import Counts

NARROW_VOTES = 3
LEAST_VOTES = 20
SURGE_FACTOR = 8.0
SURGE_DAYS = 7
LEAST_DAYS_BEFORE = 3
SIGMAS = 6.0


@dataclass(frozen=True, slots=True)
class Suspects:
    """narrow: bool[devices]."""

    narrow: np.ndarray

    @staticmethod
    def young(first_days: np.ndarray, day: int) -> np.ndarray:
        """bool[v]: whether devices that first came on these days were young on a day."""
        return first_days >= day - 1


def suspect_devices(voting: np.ndarray, naming: np.ndarray, device_count: int) -> Suspects:
    """Which devices are suspect: voting holds the device of each vote, naming that of each device's distinct titles."""
    votes = np.bincount(voting, minlength=device_count)
    titles = np.bincount(naming, minlength=device_count)
    return Suspects((votes >= NARROW_VOTES) & (3 * titles <= votes))


@dataclass(frozen=True, slots=True)
class Alarm:
    """A title, by its row, that is held back; reason: crowd, surge, or withheld (by the operator). day: of the votes."""

    row: int
    reason: str
    day: int
    votes: int


def alarms(
    counts: Counts, end_day: int, days: int, allowed: Collection[int] = (), withheld: Collection[int] = ()
) -> list[Alarm]:
    """The titles to hold back from trends of the `days` whole days before end_day, by row, each once.

    allowed, withheld: rows that the operator has decided on.
    """
    held = {row: Alarm(row, "withheld", end_day, 0) for row in withheld}
    for day in range(end_day - days, end_day):
        for alarm in _alarms_of(counts, day, surges=day == end_day - 1):
            if alarm.row not in held and alarm.row not in allowed:
                held[alarm.row] = alarm
    return [held[row] for row in sorted(held)]


def _alarms_of(counts: Counts, day: int, surges: bool) -> list[Alarm]:
    votes = counts.days.get(day)
    if votes is None or not votes.voters:
        return []
    share = votes.suspect_voters / votes.voters
    expected = share * votes.votes
    spread = np.sqrt(expected * (1 - share) + 1)
    crowd = (2 * votes.suspects >= votes.votes) & (votes.suspects > expected + SIGMAS * spread)
    surge = _surging(counts, day) if surges else np.zeros(len(crowd), bool)
    enough = votes.votes >= LEAST_VOTES
    return [
        Alarm(int(votes.rows[place]), "crowd" if crowd[place] else "surge", day, int(votes.votes[place]))
        for place in np.flatnonzero(enough & (crowd | surge))
    ]


def _surging(counts: Counts, day: int) -> np.ndarray:
    """bool[m]: which titles of a day have far more votes than on the days before."""
    votes = counts.days[day]
    before = [counts.days[past] for past in range(day - SURGE_DAYS, day) if past in counts.days]
    voters = sum(past.voters for past in before)
    if len(before) < LEAST_DAYS_BEFORE or not voters:
        return np.zeros(len(votes.rows), bool)
    total = np.zeros(counts.title_count)
    for past in before:
        total[past.rows] += past.votes
    # By the voter, so that a day on which twice as many homes share is no surge of everything.
    usual = total[votes.rows] * (votes.voters / voters)
    return votes.votes > SURGE_FACTOR * usual + SIGMAS * np.sqrt(usual + 1)
