"""Counting on a shard: the storage's pages, reports and erasures, as they come, become the shard's published counts and lists.

It runs in a process of its own beside the workers, and takes each minute only what is new. Where it stands is inside what
it publishes (the notes of its counts), so that after a kill it goes on from what it published last: the segments of lists
are its only memory of older pages; votes of the counted window are read from the storage again; the support of reports, the
one thing that is dear to compute, is taken from the published counts wherever the reports behind it are all still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud import counts as counts_
from cloud import lists
from cloud.counts import Counts
from cloud.estimates import ReportTable, title_hashes
from cloud.lists import MAX_SEGMENT_TITLES, Segment, segment_of
from cloud.publication import Entry, Publication
from cloud.storage import PatternStorage, StoredReport, TitlePage
from cloud.votes import MAX_WINDOW_DAYS, MOST_WAITING, DeviceTable, VoteTable
from omega_edge.catalog import Catalog
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import DAY_MS

BATCH = 8_192
"""Records read at a time."""
POPULARITY_DAYS = 28
"""Of the window that popularity is counted in."""
ERASURES_KEPT_DAYS = 6
"""Whoever counts less often than this has missed erasures, for which the storage keeps a week, and reads all pages again."""

_PAGES, _REPORTS, _ERASURES, _SAVED_DAY = 1, 2, 3, 4
"""Notes: the last sequence taken of each, and the day. A note under a day: of the last report
that was taken before that day."""


@dataclass(frozen=True, slots=True)
class CountingSettings:
    """window_days: days of votes that are counted, more where the bundle's trends are longer. retention_days: after which lists
    go."""

    window_days: int = 35
    retention_days: int = 400

    def __post_init__(self) -> None:
        if not 2 <= self.window_days <= MAX_WINDOW_DAYS:
            raise ConfigError(f"WINDOW_DAYS: expected 2 to {MAX_WINDOW_DAYS}, got {self.window_days}")


def trend_days(catalog: Catalog) -> list[int]:
    """Whole days of each of the bundle's trend windows, in their order, at most MAX_WINDOW_DAYS - 1."""
    return [min(-(-trend.window_hours // 24), MAX_WINDOW_DAYS - 1) for trend in catalog.trends]


class ShardCounter:
    """Counts one shard's storage for one lineage of titles, into one publication."""

    def __init__(
        self, storage: PatternStorage, publication: Publication, settings: CountingSettings, catalog: Catalog,
        clock: Callable[[], int],
    ) -> None:
        self._storage, self._publication, self._settings, self._clock = storage, publication, settings, clock
        self.lineage, self._title_count = catalog.lineage, catalog.count
        self._lengths = sorted({*trend_days(catalog), POPULARITY_DAYS})
        self._window_days = max(settings.window_days, *self._lengths) + 1
        self._hashes = title_hashes(catalog.content_ids(range(catalog.count)))
        self._begin()

    def _begin(self) -> None:
        """Know nothing but what was published, and where to go on from it."""
        self._devices, self._votes = DeviceTable(self._publication.secret), VoteTable(self._window_days)
        self._votes.move_to(self._clock() // DAY_MS)
        self._entries = dict(self._publication.index.entries)
        self._book = _ListsBook(self._publication, self._entries, self.lineage)
        self._saved = self._published()
        self._reports = ReportTable(self._hashes)
        self._report_notes: dict[int, int] = {}
        self._pages_through = self._reports_through = self._erasures_through = self._listed_through = 0
        self._counted_day = -1
        self._resume()

    @property
    def held(self) -> dict[str, int]:
        """How much is in memory, for stats: devices, votes, reports."""
        return {"devices": len(self._devices), "votes": len(self._votes), "reports": len(self._reports)}

    def take_titles(self, catalog: Catalog) -> bool:
        """Go on with a newer bundle of the same lineage. False where its trends are too long, or its titles fewer: then count
        anew, with another counter."""
        if catalog.lineage != self.lineage or catalog.count < self._title_count:
            return False
        lengths = sorted({*trend_days(catalog), POPULARITY_DAYS})
        if max(lengths) >= self._window_days:
            return False
        if catalog.count > self._title_count or lengths != self._lengths:
            self._hashes = title_hashes(catalog.content_ids(range(catalog.count)))
            self._reports.take_titles(self._hashes)
            self._title_count, self._lengths, self._counted_day = catalog.count, lengths, -1
        return True

    def run_once(self) -> bool:
        """Take in what is new, and publish where anything changed. Whether it did. Raises StoreError and OSError."""
        now_ms = self._clock()
        today = now_ms // DAY_MS
        if today < self._votes.today:  # the clock was ahead, and days that it then put out of the window are in it again
            self._begin()
        self._report_notes.setdefault(today, self._reports_through)
        taken = 0
        while True:
            pages = self._storage.pages_after(self._pages_through, BATCH)
            reports = self._storage.reports_after(self._reports_through, BATCH)
            # After the others: a device erased meanwhile is in here, whether its records were still found or not.
            erasures = self._storage.erasures_after(self._erasures_through, BATCH)
            if not (pages or reports or erasures):
                break
            taken += len(pages) + len(reports) + len(erasures)
            erased = {erasure.device_id: erasure.sequence for erasure in erasures}
            if erased:
                self._erase(list(erased), now_ms)
                self._erasures_through = erasures[-1].sequence
            self._take_pages([page for page in pages if page.sequence > erased.get(page.device_id, -1)], today, now_ms)
            self._take_reports([report for report in reports if report.sequence > erased.get(report.device_id, -1)])
            self._pages_through = pages[-1].sequence if pages else self._pages_through
            self._reports_through = reports[-1].sequence if reports else self._reports_through
        if not taken and today == self._counted_day:
            return False
        self._votes.move_to(today)
        self._reports.forget_before(self._votes.first_day)
        self._book.flush(self._publication.next_sequence(now_ms))
        self._book.forget_before(today - self._settings.retention_days)
        self._publish(today, now_ms)
        self._counted_day = today
        return True

    def _published(self) -> Counts | None:
        """The counts that this shard published last, None where there are none to go on from."""
        name = f"counts.{self.lineage}"
        payload = self._publication.stored(name, self._entries.get(name))
        if payload is None:
            return None
        try:
            counts = counts_.decode(payload)
        except ProtocolError:
            return None
        return counts if {_PAGES, _REPORTS, _ERASURES, _SAVED_DAY} <= counts.notes.keys() else None

    def _resume(self) -> None:
        """Find where to begin: after what was published, or from nothing, as where it was published on a day to come."""
        saved, today = self._saved, self._clock() // DAY_MS
        if saved is None or not 0 <= today - saved.notes[_SAVED_DAY] <= ERASURES_KEPT_DAYS:
            self._saved = None
            self._book.clear()
            return
        self._listed_through, self._erasures_through = saved.notes[_PAGES], saved.notes[_ERASURES]
        self._pages_through = min(self._book.through_before(self._votes.first_day - 1), self._listed_through)
        self._resume_reports(saved)

    def _resume_reports(self, saved: Counts) -> None:
        first_day, through = self._votes.first_day, saved.notes[_REPORTS]
        self._report_notes = {day: note for day, note in saved.notes.items() if day >= first_day - 2 and day > _SAVED_DAY}
        self._reports_through = min(self._report_notes.values(), default=0)
        found: list[StoredReport] = []
        while batch := self._storage.reports_after(self._reports_through, BATCH):
            inside = [report for report in batch if report.sequence <= through]
            found += inside
            self._reports_through = batch[-1].sequence
            if len(inside) < len(batch):
                break
        self._reports_through = through
        number = Counter(report.day for report in found)
        counted_days = set()
        for day, known in saved.reports.items():
            # Fewer reports than were counted: some were erased since, and what they supported is not known any more.
            if day >= first_day and len(known.support) == self._title_count and number[day] == known.reports:
                self._reports.preset(day, known.support)
                counted_days.add(day)
        self._take_reports(found, counted_days)

    def _erase(self, device_ids: Sequence[bytes], now_ms: int) -> None:
        pseudonyms = [lists.pseudonym(self._publication.secret, device_id) for device_id in device_ids]
        self._book.erase(np.array(pseudonyms, np.uint64), self._publication.next_sequence(now_ms))
        numbers = self._devices.forget(device_ids)
        if len(numbers):
            self._votes.erase(numbers)
            self._reports.erase(numbers)

    def _take_pages(self, pages: list[TitlePage], today: int, now_ms: int) -> None:
        if not pages:
            return
        received = np.array([page.received_ms // DAY_MS for page in pages], np.int64)
        numbers = np.array(
            [self._devices.number_of(page.device_id, day) for page, day in zip(pages, received.tolist(), strict=True)],
            np.uint32,
        )
        lengths = np.array([len(page.rows) for page in pages], np.int64)
        rows = np.concatenate([page.rows for page in pages])
        finished_ms = np.concatenate([page.finished_ms for page in pages])
        devices = np.repeat(numbers, lengths)
        self._votes.move_to(today)
        self._votes.add(finished_ms // DAY_MS, rows, devices)
        sequences = np.array([page.sequence for page in pages], np.uint64)
        new = np.repeat(sequences > self._listed_through, lengths)
        if new.any():
            homes = self._devices.pseudonyms[devices[new]]
            days, through = np.repeat(received, lengths)[new], pages[-1].sequence
            self._book.add(days, homes, rows[new], finished_ms[new], through, self._publication.next_sequence(now_ms))
            self._listed_through = through

    def _take_reports(self, reports: list[StoredReport], counted_days: set[int] = frozenset()) -> None:
        for day in sorted({report.day for report in reports}):
            if day < self._votes.first_day:
                continue
            here = [report for report in reports if report.day == day]
            devices = np.array([self._devices.number_of(report.device_id, day) for report in here], np.uint32)
            seeds = np.array([report.seed for report in here], np.uint32)
            values = np.array([report.value for report in here], np.uint8)
            self._reports.add(day, devices, seeds, values, len(here) if day in counted_days else 0)

    def _publish(self, today: int, now_ms: int) -> None:
        notes = {day: note for day, note in self._report_notes.items() if day >= self._votes.first_day - 2}
        self._report_notes = notes
        sequence = self._publication.next_sequence(now_ms)
        ends = [(end_day, days) for end_day in (today, today + 1) for days in self._lengths]
        counts = Counts(
            self._publication.source, sequence, self.lineage, self._title_count, now_ms,
            days=self._votes.days(self._title_count, self._devices.first_days),
            windows={key: self._votes.window(*key, self._title_count, len(self._devices)) for key in ends},
            reports=self._reports.days(),
            notes=notes | {
                _PAGES: self._listed_through, _REPORTS: self._reports_through, _ERASURES: self._erasures_through,
                _SAVED_DAY: today,
            },
        )  # fmt: skip
        entry = self._publication.put(counts.name, "counts", sequence, counts_.encode(counts))
        kept = {name: entry for name, entry in self._entries.items() if entry.kind not in ("counts", "lists")}
        self._entries = kept | self._book.entries | {counts.name: entry}
        self._publication.commit(self._entries, now_ms)


class _ListsBook:
    """The segments of one shard and lineage: the finished ones in files, and what came since the last flush()."""

    def __init__(self, publication: Publication, entries: dict[str, Entry], lineage: str) -> None:
        prefix = f"lists.{lineage}.{publication.source}."
        self._publication, self._lineage = publication, lineage
        self.entries = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
        self._waiting: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting_titles, self._through = 0, 0

    def clear(self) -> None:
        """Forget all segments; they are to be made from the storage again."""
        self.entries = {}

    def through_before(self, day: int) -> int:
        """The last page's sequence in the newest segments of days before this one; 0 where there are none."""
        days = [found for name in self.entries if (found := _day_of(name)) < day]
        names = [name for name in self.entries if days and _day_of(name) == max(days)]
        return min((segment.through for name in names if (segment := self._segment(name)) is not None), default=0)

    def add(
        self, days: np.ndarray, homes: np.ndarray, rows: np.ndarray, finished_ms: np.ndarray, through: int, sequence: int
    ) -> None:
        """Take in titles in the order that they came: days of receipt, pseudonyms, rows and moments [e]."""
        for day in np.unique(days).tolist():
            here = days == day
            self._waiting.append((day, homes[here], rows[here], finished_ms[here]))
        self._waiting_titles, self._through = self._waiting_titles + len(days), through
        if self._waiting_titles >= MOST_WAITING:
            self.flush(sequence)

    def erase(self, pseudonyms: np.ndarray, sequence: int) -> None:
        """Take these homes, uint64[k], out of every segment they are in."""
        self.flush(sequence)
        for name in list(self.entries):
            segment = self._segment(name)
            if segment is not None and (kept := lists.without(segment, pseudonyms, sequence)) is not segment:
                self._put(kept)

    def flush(self, sequence: int) -> None:
        """Write what waits into the segments of its days; published with the next commit."""
        by_day: dict[int, list[tuple[np.ndarray, ...]]] = {}
        for day, *columns in self._waiting:
            by_day.setdefault(day, []).append(tuple(columns))
        self._waiting, self._waiting_titles = [], 0
        for day, parts in sorted(by_day.items()):
            homes, rows, finished_ms = (np.concatenate(column) for column in zip(*parts, strict=True))
            last = max((int(name.rsplit(".", 1)[1]) for name in self.entries if _day_of(name) == day), default=0)
            held = self._segment(self._name(day, last))
            if held is not None and len(held.rows) + len(rows) > MAX_SEGMENT_TITLES:
                last, held = last + 1, None
            if held is not None:
                homes = np.concatenate([held.homes(), homes])
                rows = np.concatenate([held.rows, rows])
                finished_ms = np.concatenate([held.finished_ms(), finished_ms])
            source, through = self._publication.source, self._through
            self._put(segment_of(source, day, last, sequence, self._lineage, through, homes, rows, finished_ms))

    def forget_before(self, day: int) -> None:
        """Let go of what was received before this day."""
        self.entries = {name: entry for name, entry in self.entries.items() if _day_of(name) >= day}

    def _name(self, day: int, part: int) -> str:
        return f"lists.{self._lineage}.{self._publication.source}.{day}.{part}"

    def _segment(self, name: str) -> Segment | None:
        payload = self._publication.stored(name, self.entries.get(name))
        return None if payload is None else lists.decode(payload)

    def _put(self, segment: Segment) -> None:
        if len(segment.rows):
            self.entries[segment.name] = self._publication.put(
                segment.name, "lists", segment.sequence, lists.encode(segment)
            )
        else:
            self.entries.pop(segment.name, None)


def _day_of(name: str) -> int:
    return int(name.split(".")[3])
