"""What comes up: one source's counts and lists, verified, remembered, and never taken back to an older state.

A source is a shard or a region at a URL or in a folder. Its last index and counts are kept in a folder of this source, as
they came, so that after a kill, and while the source is down, it counts with what it said last. Lists are relayed into the
publication at once. Whatever is refused, or does not come, is in faults by the object's name, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection
from pathlib import Path

from cloud.counts import Counts
from cloud.publication import (
    INDEX,
    MAX_INDEX_BYTES,
    Entry,
    FolderReader,
    Index,
    Publication,
    Reader,
    SourceUnavailable,
    decode_counts,
    decode_index,
    decode_segment,
    digest_of,
    read_object,
    reader_of,
    write_file,
)
from omega_edge import signing
from omega_edge.errors import ProtocolError, SignatureError

PASS_SECONDS = 60.0
"""How long one source may take of a pass; what has not come by then comes with the next."""
MAX_FAULTS = 20

_REFUSED = (SignatureError, ProtocolError)


class ListsRelay:
    """The segments that a publication relays: of each name the highest sequence that any source had. Safe for threads."""

    def __init__(self, publication: Publication) -> None:
        self._publication, self._lock = publication, threading.Lock()
        self.held = {name: entry for name, entry in publication.index.entries.items() if entry.kind == "lists"}

    def wants(self, name: str, entry: Entry) -> bool:
        """Whether an object that a source lists is newer than what is held, or what is held has lost its file."""
        held = self.held.get(name)
        return held is None or not (self._publication.folder / name).exists() or (entry.sequence, entry.digest) > (held.sequence, held.digest)

    def take(self, name: str, sequence: int, data: bytes) -> None:
        """Relay a verified segment, unless a newer one came meanwhile."""
        with self._lock:
            if self.wants(name, Entry("lists", sequence, digest_of(data))):
                self.held[name] = self._publication.relay(name, "lists", sequence, data)

    def keep(self, names: Collection[str]) -> dict[str, Entry]:
        """Forget all segments but these; what is held then."""
        self.held = {name: entry for name, entry in self.held.items() if name in names}
        return self.held


class SourceIntake:
    """One source and what is known of it. faults: what was wrong in the last pass, by the object's name."""

    def __init__(
        self, location: str, state: Path, trusted: Collection[bytes], secret: bytes, timeout_seconds: float
    ) -> None:
        """state: a folder for all sources; each location has one of its own in it."""
        self.location, self._trusted, self._secret = location, trusted, secret
        self._reader: Reader = reader_of(location, timeout_seconds)
        self._folder = state / hashlib.sha256(location.encode()).hexdigest()[:16]
        self.index: Index | None = None
        self.counts: dict[str, Counts] = {}
        self._digests: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self.refusals = 0
        self.reached_ms: int | None = None
        self._recall()

    @property
    def listed(self) -> set[str]:
        """Names of the segments that the source published last."""
        return {name for name, entry in self.index.entries.items() if entry.kind == "lists"} if self.index else set()

    def _recall(self) -> None:
        """Take what is kept of an earlier process; what is damaged is fetched again."""
        kept = FolderReader(self._folder)
        for left_over in self._folder.glob(".*.new"):
            left_over.unlink(missing_ok=True)
        try:
            data = kept.read(INDEX, MAX_INDEX_BYTES)
            if data is None:
                return
            self.index = decode_index(signing.unseal(data, INDEX, self._trusted, MAX_INDEX_BYTES))
            for name, entry in self.index.entries.items():
                found = read_object(kept, name, "counts", self._trusted, self._secret) if entry.kind == "counts" else None
                if found is not None:
                    self.counts[name] = decode_counts(name, found[1])
                    self._digests[name] = digest_of(found[0])
        except (*_REFUSED, SourceUnavailable) as error:
            self._note(INDEX, error)

    def fetch(self, relay: ListsRelay, lineage: str | None, oldest_day: int, today: int, now_ms: int) -> None:
        """Read what is new at the source. lineage: of the only titles that are taken; None: all."""
        self.faults = {}
        deadline = time.monotonic() + PASS_SECONDS
        try:
            data = self._reader.read(INDEX, MAX_INDEX_BYTES)
            if data is None:
                self.faults[INDEX] = "expected an index, found none yet"
                return
            index = decode_index(signing.unseal(data, INDEX, self._trusted, MAX_INDEX_BYTES))
            if self.index is not None and index.source == self.index.source and index.sequence < self.index.sequence:
                raise ProtocolError(f"index: expected sequence {self.index.sequence} or more, got {index.sequence}: an old one")
        except (*_REFUSED, SourceUnavailable) as error:
            self._note(INDEX, error)
            return
        if self.index is not None and index.source != self.index.source:
            self.counts, self._digests = {}, {}
        self.reached_ms = now_ms
        if self.index != index:
            self.index = index
            write_file(self._folder / INDEX, data)
        for name in self.counts.keys() - index.entries.keys():
            del self.counts[name], self._digests[name]
            (self._folder / name).unlink(missing_ok=True)
        for name, entry in sorted(index.entries.items()):
            if time.monotonic() > deadline:
                self.faults[name] = f"expected all within {PASS_SECONDS:g} s; the rest comes later"
                break
            self._take(name, entry, relay, lineage, (oldest_day, today))

    def _take(self, name: str, entry: Entry, relay: ListsRelay, lineage: str | None, days: tuple[int, int]) -> None:
        if entry.kind not in ("counts", "lists"):
            return
        try:
            if lineage is not None and name.split(".")[1] != lineage:
                raise ProtocolError(f"{entry.kind}: expected lineage {lineage}, got {name.split('.')[1]}: foreign titles")
            if entry.kind == "counts":
                self._take_counts(name, entry)
            elif _within(name, *days) and relay.wants(name, entry):
                self._take_lists(name, entry, relay)
        except (*_REFUSED, SourceUnavailable) as error:
            self._note(name, error)

    def _take_counts(self, name: str, entry: Entry) -> None:
        if self._digests.get(name) == entry.digest:
            return
        found = read_object(self._reader, name, "counts", self._trusted, self._secret)
        if found is None:
            return
        counts, known = decode_counts(name, found[1]), self.counts.get(name)
        least = max(entry.sequence, known.sequence if known is not None else 0)
        if counts.source != self.index.source:
            raise ProtocolError(f"counts: expected those of {self.index.source}, got those of {counts.source}")
        if counts.sequence < least:
            raise ProtocolError(f"counts: expected sequence {least} or more, got {counts.sequence}: an old one")
        write_file(self._folder / name, found[0])
        self.counts[name], self._digests[name] = counts, digest_of(found[0])

    def _take_lists(self, name: str, entry: Entry, relay: ListsRelay) -> None:
        found = read_object(self._reader, name, "lists", self._trusted, self._secret)
        if found is None:
            return
        segment = decode_segment(name, found[1])
        if segment.sequence < entry.sequence:
            raise ProtocolError(f"lists: expected sequence {entry.sequence} or more, got {segment.sequence}: an old one")
        relay.take(name, segment.sequence, found[0])

    def _note(self, name: str, error: Exception) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults[name] = str(error)
        self.refusals += isinstance(error, _REFUSED)


def _within(name: str, oldest_day: int, today: int) -> bool:
    """Whether the segment of a name is of a day that is kept; ProtocolError for a day that has not come."""
    day = int(name.split(".")[3])
    if day > today + 1:
        raise ProtocolError(f"lists: expected a day up to {today + 1}, got {day}")
    return day >= oldest_day
