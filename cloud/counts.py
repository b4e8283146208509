"""Counts: how many devices finished each title. Their objects, and the merge that every level of the federation uses.

An object is the whole state of its source, under a sequence that only rises; the highest sequence of a source stands. A
region's object is the sum of those of its shards, the hub's the sum of its regions'; a device lives on one shard, so sums
count it once. The sum depends neither on the order in which objects came nor on how often.

- days: of each UTC day, how many distinct devices finished a title that day (a device has one vote a title and day), and
  how many of these voters are suspect (see velocity.py); and the voters of that day, each once.
- windows: of each pair of end day and length, how many distinct devices finished a title in the `length` days before the
  end day began, and devices in all. A source that lacks a window has, for the merge, the largest of its days there: no
  more devices than it truly has.
- reports: of each UTC day, how many falsified reports (see estimates.py) came, and how many of them support each title.

Keys: 1 source, 2 sequence, 3 lineage (8 bytes), 4 title count, 5 made at (Unix ms), 6 what was summed {source: sequence},
7 days, 8 windows, 9 reports, 10 the shard's own notes. 7: [day, voters, suspect voters, rows u32[m], votes u32[m],
suspects u32[m]], 8: [end day, length, devices, rows u32[m], devices u32[m]], 9: [day, reports, support u32[titles]].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from cloud import objects
from cloud.names import SOURCE, check_lineage
from omega_edge.errors import ProtocolError
from omega_edge.protocol import COUNT_CATEGORIES, DAY_MS, MAX_TIMESTAMP_MS, U32_MAX, U64_MAX
from omega_edge.wire_fields import Fields

MAX_COUNTS_BYTES = 64 << 20
MAX_TITLES = 1 << 24
MAX_DAYS = 400
MAX_DAY = MAX_TIMESTAMP_MS // DAY_MS
MAX_NOTES = 1_000
Key = TypeVar("Key", int, tuple[int, int])
MAX_SUMMED = 10_000
"""Sources in one sum."""


@dataclass(frozen=True, slots=True)
class DayVotes:
    """Votes of one UTC day: rows uint32[m] ascending, each once; votes, suspects uint32[m]; voters, suspect_voters: devices."""

    rows: np.ndarray
    votes: np.ndarray
    suspects: np.ndarray
    voters: int
    suspect_voters: int


@dataclass(frozen=True, slots=True)
class WindowVotes:
    """Distinct devices of some days: rows uint32[m] ascending, each once; devices uint32[m]; voters: devices with any vote."""

    rows: np.ndarray
    devices: np.ndarray
    voters: int


@dataclass(frozen=True, slots=True)
class DayReports:
    """Falsified reports of one UTC day: how many, and how many of them support each title, uint32[titles]."""

    reports: int
    support: np.ndarray


@dataclass(frozen=True, slots=True)
class Counts:
    """One counts object. days and reports by day since 1970, windows by (end day, length in days): day end - 1 is the last
    one counted. summed: which objects it is the sum of. notes: what a shard's counting process wants to find again."""

    source: str
    sequence: int
    lineage: str
    title_count: int
    made_ms: int
    days: dict[int, DayVotes] = field(default_factory=dict)
    windows: dict[tuple[int, int], WindowVotes] = field(default_factory=dict)
    reports: dict[int, DayReports] = field(default_factory=dict)
    summed: dict[str, int] = field(default_factory=dict)
    notes: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called in a publication."""
        return f"counts.{self.lineage}"


def window_of(counts: Counts, end_day: int, days: int) -> WindowVotes:
    """The window that ends when end_day begins: the source's own, else the largest of its days, which are no more."""
    own = counts.windows.get((end_day, days))
    if own is not None:
        return own
    inside = [votes for day, votes in counts.days.items() if end_day - days <= day < end_day]
    rows, (devices,) = _most([(votes.rows, (votes.votes,)) for votes in inside])
    return WindowVotes(rows, devices, max((votes.voters for votes in inside), default=0))


def merged(
    source: str, sequence: int, made_ms: int, objects_: Collection[Counts], first_day: int = 0, last_day: int = MAX_DAY
) -> Counts:
    """The sum of the newest objects of distinct sources, all of one lineage, from first_day to last_day.

    Raises ProtocolError for two lineages or none. Sources that know fewer titles than others count for the rest as if
    their reports supported them by chance alone. No source's days and windows can crowd out those that most sources have.
    """
    newest: dict[str, Counts] = {}
    for counts in objects_:
        known = newest.get(counts.source)
        if known is None or counts.sequence > known.sequence:
            newest[counts.source] = counts
    lineages = sorted({counts.lineage for counts in newest.values()})
    if len(lineages) != 1:
        raise ProtocolError(f"counts: expected objects of one lineage, got {', '.join(lineages) or 'none'}")
    parts = [newest[name] for name in sorted(newest)]
    title_count = max(counts.title_count for counts in parts)
    span = range(first_day, last_day + 1)
    days = _most_named(day for counts in parts for day in counts.days if day in span)
    keys = _most_named(key for counts in parts for key in counts.windows if key[0] - 1 in span)
    reported = _most_named(day for counts in parts for day in counts.reports if day in span)
    return Counts(
        source, sequence, lineages[0], title_count, made_ms,
        days={day: _sum_days([counts.days[day] for counts in parts if day in counts.days]) for day in days},
        windows={key: _sum_windows([window_of(counts, *key) for counts in parts]) for key in keys},
        reports={
            day: _sum_reports([counts.reports[day] for counts in parts if day in counts.reports], title_count)
            for day in reported
        },
        summed={counts.source: counts.sequence for counts in parts},
    )


def _most_named(keys: Iterable[Key]) -> list[Key]:
    """The keys, ascending; where they are more than MAX_DAYS, those that are named the most."""
    named = Counter(keys)
    return sorted(sorted(named, key=lambda key: (-named[key], key))[:MAX_DAYS])


def numbered(counts: Counts, sequence: int) -> Counts:
    """The object under another sequence."""
    return replace(counts, sequence=sequence)


def same_content(left: Counts, right: Counts) -> bool:
    """Whether two objects say the same, whenever and under whatever sequence they were made."""
    return encode(replace(left, sequence=0, made_ms=0, summed={})) == encode(
        replace(right, sequence=0, made_ms=0, summed={})
    )


def encode(counts: Counts) -> bytes:
    """The payload of an object. Raises ProtocolError where it would be too large."""
    return objects.pack(
        {
            1: counts.source,
            2: counts.sequence,
            3: bytes.fromhex(counts.lineage),
            4: counts.title_count,
            5: counts.made_ms,
            6: counts.summed,
            7: [
                [day, votes.voters, votes.suspect_voters, *(_u32(part) for part in (votes.rows, votes.votes, votes.suspects))]
                for day, votes in sorted(counts.days.items())
            ],
            8: [
                [end_day, days, window.voters, _u32(window.rows), _u32(window.devices)]
                for (end_day, days), window in sorted(counts.windows.items())
            ],
            9: [[day, reports.reports, _u32(reports.support)] for day, reports in sorted(counts.reports.items())],
            10: counts.notes,
        }
    )


def decode(payload: bytes) -> Counts:
    """The object of a payload. Raises ProtocolError for any other bytes."""
    fields = objects.unpack("counts", payload)
    source = fields.take(1, "source", str)
    summed, notes = fields.take(6, "summed", dict), fields.take(10, "notes", dict)
    if not SOURCE.fullmatch(source) or len(summed) > MAX_SUMMED or not all(
        type(name) is str and SOURCE.fullmatch(name) and type(number) is int for name, number in summed.items()
    ):
        raise ProtocolError("counts.source: expected up to 32 lower-case letters, digits and hyphens a source, got others")
    if len(notes) > MAX_NOTES or not all(type(key) is type(value) is int for key, value in notes.items()):
        raise ProtocolError("counts.notes: expected integers by number, not many, got others")
    title_count = objects.take_integer(fields, 4, "title_count", 0, MAX_TITLES)
    return Counts(
        source,
        objects.take_integer(fields, 2, "sequence", 0, U64_MAX),
        check_lineage(fields.take(3, "lineage", bytes)),
        title_count,
        objects.take_integer(fields, 5, "made_ms", 0, MAX_TIMESTAMP_MS),
        days=dict(_read_day(entry, title_count) for entry in _entries(fields, 7, "days")),
        windows=dict(_read_window(entry, title_count) for entry in _entries(fields, 8, "windows")),
        reports=dict(_read_reports(entry, title_count) for entry in _entries(fields, 9, "reports")),
        summed=summed,
        notes=notes,
    )


def _u32(numbers: np.ndarray) -> bytes:
    return objects.column(numbers, "<u4")


def _entries(fields: Fields, key: int, name: str) -> Iterable[Fields]:
    """The entries of a list, their places as keys."""
    entries = fields.take(key, name, list)
    if len(entries) > MAX_DAYS:
        raise ProtocolError(f"counts.{name}: expected at most {MAX_DAYS}, got {len(entries)}")
    for entry in entries:
        if type(entry) is not list:
            raise ProtocolError(f"counts.{name}: expected lists, got a {type(entry).__name__}")
        yield Fields(f"counts.{name}", dict(enumerate(entry)))


def _rows(fields: Fields, key: int, title_count: int) -> np.ndarray:
    rows = objects.take_column(fields, key, "rows", "<u4")
    if (rows[1:] <= rows[:-1]).any() or (len(rows) and int(rows[-1]) >= title_count):
        raise ProtocolError(f"counts.rows: expected titles below {title_count}, ascending, each once, got others")
    return rows


def _read_day(fields: Fields, title_count: int) -> tuple[int, DayVotes]:
    rows = _rows(fields, 3, title_count)
    votes, suspects = (objects.take_column(fields, key, "votes", "<u4", len(rows)) for key in (4, 5))
    voters = objects.take_integer(fields, 1, "voters", 0, U32_MAX)
    suspect_voters = objects.take_integer(fields, 2, "suspect_voters", 0, voters)
    if (suspects > votes).any() or (len(votes) and int(votes.max()) > voters):
        raise ProtocolError("counts.votes: expected suspects to be at most the votes, and votes the voters, got more")
    return objects.take_integer(fields, 0, "day", 0, MAX_DAY), DayVotes(rows, votes, suspects, voters, suspect_voters)


def _read_window(fields: Fields, title_count: int) -> tuple[tuple[int, int], WindowVotes]:
    rows = _rows(fields, 3, title_count)
    devices = objects.take_column(fields, 4, "devices", "<u4", len(rows))
    voters = objects.take_integer(fields, 2, "voters", 0, U32_MAX)
    if len(devices) and int(devices.max()) > voters:
        raise ProtocolError("counts.windows: expected at most the voters for a title, got more")
    key = objects.take_integer(fields, 0, "end_day", 0, MAX_DAY + 1), objects.take_integer(fields, 1, "days", 1, MAX_DAYS)
    return key, WindowVotes(rows, devices, voters)


def _read_reports(fields: Fields, title_count: int) -> tuple[int, DayReports]:
    reports = objects.take_integer(fields, 1, "reports", 0, U32_MAX)
    support = objects.take_column(fields, 2, "support", "<u4", title_count)
    if len(support) and int(support.max()) > reports:
        raise ProtocolError("counts.support: expected at most the reports for a title, got more")
    return objects.take_integer(fields, 0, "day", 0, MAX_DAY), DayReports(reports, support)


def _sum_days(parts: list[DayVotes]) -> DayVotes:
    rows, (votes, suspects) = _added([(part.rows, (part.votes, part.suspects)) for part in parts], 2)
    voters, suspect_voters = _total(part.voters for part in parts), _total(part.suspect_voters for part in parts)
    return DayVotes(rows, votes, suspects, voters, suspect_voters)


def _sum_windows(parts: list[WindowVotes]) -> WindowVotes:
    rows, (devices,) = _added([(part.rows, (part.devices,)) for part in parts], 1)
    return WindowVotes(rows, devices, _total(part.voters for part in parts))


def _sum_reports(parts: list[DayReports], title_count: int) -> DayReports:
    support = np.zeros(title_count, np.uint64)
    for part in parts:
        support[: len(part.support)] += part.support
        support[len(part.support) :] += np.uint64(round(part.reports / COUNT_CATEGORIES))
    return DayReports(_total(part.reports for part in parts), np.minimum(support, U32_MAX).astype(np.uint32))


def _total(numbers: Iterable[int]) -> int:
    """The sum as far as its column can hold it: no source can make another's numbers wrap around."""
    return min(sum(numbers), U32_MAX)


_Parts = list[tuple[np.ndarray, tuple[np.ndarray, ...]]]


def _added(parts: _Parts, columns: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows uint32[m] of all parts, ascending, and each of their columns added up, uint32[m]."""
    return _combined(parts, np.add, columns)


def _most(parts: _Parts) -> tuple[np.ndarray, list[np.ndarray]]:
    """As _added, with the largest number of each row in the place of the sum."""
    return _combined(parts, np.maximum, 1)


def _combined(parts: _Parts, how: np.ufunc, columns: int) -> tuple[np.ndarray, list[np.ndarray]]:
    size = max((int(rows[-1]) + 1 for rows, _ in parts if len(rows)), default=0)
    tables = [np.zeros(size, np.uint64) for _ in range(columns)]
    present = np.zeros(size, bool)
    for rows, numbers in parts:
        present[rows] = True
        for table, column in zip(tables, numbers, strict=True):
            table[rows] = how(table[rows], column)
    rows = np.flatnonzero(present).astype(np.uint32)
    return rows, [np.minimum(table[rows], U32_MAX).astype(np.uint32) for table in tables]
