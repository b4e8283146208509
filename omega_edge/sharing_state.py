"""What the household shares and what the cloud has acknowledged of it: the log of finished titles, the shared set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from omega_edge.changes import ChangeLog
from omega_edge.episodes import Episode
from omega_edge.protocol import FinishedTitle, TitleReference, ViewingPattern
from omega_edge.store import Row, Store

IDENTITY_STATE, SYNC_LOG_STATE = "sync", "sync_log"
HOME_STATES = (IDENTITY_STATE, SYNC_LOG_STATE)
"""States of this home alone: not exported, and kept when an export takes the place of all else. They name no title."""
MAX_FINISHED = 5_000
"""Titles that wait for an acknowledgement; beyond, the oldest are dropped, so that a home without network stays small."""
_KEY = b"sharing"


class SharingState:
    """Kept in the store; changes are held until rows() was written.

    Table `finished`: the change counter u64 when the title was finished -> content id, time, profile. It is written
    only while titles are shared. Table `meta`, key `sharing`: whether they are, and the acknowledged set.
    """

    def __init__(self, store: Store, changes: ChangeLog) -> None:
        """Load the acknowledged set; the log stays in the store."""
        self._store = store
        self._changes = changes
        record = store.get("meta", _KEY) or {1: False, 2: 0, 3: []}
        self.titles: bool = record[1]
        self.acknowledged_version: int = record[2]
        self.acknowledged: dict[int, ViewingPattern | None] = {
            number: None if pattern is None else _pattern(number, pattern) for number, pattern in record[3]
        }
        self._log: dict[int, tuple[str, int, str] | None] = {}
        self._changed = False

    def note_finished(self, episode: Episode) -> None:
        """Log a title watched with success, if titles are shared."""
        if self.titles:
            self._log[self._changes.advance()] = _entry_of(episode)

    def set_titles(self, sharing: bool) -> None:
        """Start or stop the log. Stopping deletes it."""
        if not sharing:
            self._log.update({version: None for version, _entry in list(self.log())})
        self.titles = sharing
        self._changed = True

    def share_anew(self, episodes: Iterable[Episode]) -> None:
        """Nothing counts as acknowledged any more. The log begins anew: with what it held of episodes that are not kept any
        more, then with those given, oldest first, that it would have logged."""
        again = [_entry_of(episode) for episode in episodes if is_finished(episode)]
        held = list(self.log())
        self._log.update({version: None for version, _entry in held})
        known = set(again)
        for entry in [entry for _version, entry in held if entry not in known] + again:
            self._log[self._changes.advance()] = entry
        self.acknowledged = {}
        self._changed = True

    def finished(self, limit: int) -> list[tuple[int, FinishedTitle]]:
        """The oldest entries of the log with their versions."""
        return [(version, FinishedTitle(entry[0], entry[1])) for version, entry in islice(self.log(), limit)]

    def log(self) -> Iterator[tuple[int, tuple[str, int, str]]]:
        """Entries (version, (content id, time, profile)) of the log, oldest first."""
        for key, record in self._store.items("finished"):
            version = int.from_bytes(key, "big")
            if version not in self._log:
                yield version, (record[1], record[2], record[3])
        yield from ((version, entry) for version, entry in self._log.items() if entry is not None)

    def acknowledge(self, local_version: int, titles: int, shared: Mapping[int, ViewingPattern]) -> None:
        """Delete the first entries of the log, as many as were sent, none after local_version; keep the shared set."""
        sent = [version for version, _entry in islice(self.log(), titles) if version <= local_version]
        self._log.update(dict.fromkeys(sent))
        self.acknowledged_version = local_version
        self.acknowledged = dict(shared)
        self._changed = True
        self._changes.advance()

    def rows(self) -> list[Row]:
        """What the store has to write."""
        logged = sum(1 if entry is not None else -1 for entry in self._log.values())
        excess = self._store.count("finished") + logged - MAX_FINISHED
        if excess > 0:
            self._log.update({version: None for version, _entry in list(islice(self.log(), excess))})
        rows: list[Row] = [
            ("finished", version.to_bytes(8, "big"), None) if entry is None else finished_row(version, *entry)
            for version, entry in self._log.items()
        ]
        return rows + [self._row()] if self._changed else rows

    def saved(self) -> None:
        """rows() has been written."""
        self._log.clear()
        self._changed = False

    def all_rows(self) -> Iterator[Row]:
        """Everything."""
        yield self._row()
        for version, entry in self.log():
            yield finished_row(version, *entry)

    def forget(self, content_id: str | None, profile: str | None) -> None:
        """Drop a title, or a profile's titles, from the log, and the title from the acknowledged set.

        all_rows() is to follow.
        """
        self._log.update(
            {version: None for version, entry in list(self.log()) if content_id == entry[0] or profile == entry[2]}
        )
        for number, pattern in self.acknowledged.items():
            if pattern is not None and any(reference.content_id == content_id for reference in pattern.references):
                self.acknowledged[number] = None

    def _row(self) -> Row:
        return sharing_row(self.titles, self.acknowledged_version, self.acknowledged)


def is_finished(episode: Episode) -> bool:
    """Whether an episode is a title watched with success; a like alone is none."""
    return episode.success and episode.watch_percentage is not None


def _entry_of(episode: Episode) -> tuple[str, int, str]:
    return episode.content_id, episode.timestamp, episode.profile


def finished_row(version: int, content_id: str, timestamp: int, profile: str) -> Row:
    """The record of a finished title."""
    return "finished", version.to_bytes(8, "big"), {1: content_id, 2: timestamp, 3: profile}


def sharing_row(titles: bool, acknowledged_version: int, acknowledged: Mapping[int, ViewingPattern | None]) -> Row:
    """The record of all but the log."""
    shared = [[number, None if pattern is None else _fields(pattern)] for number, pattern in acknowledged.items()]
    return "meta", _KEY, {1: titles, 2: acknowledged_version, 3: shared}


def _fields(pattern: ViewingPattern) -> list:
    references = [[reference.content_id, reference.weight] for reference in pattern.references]
    return [
        pattern.success_rate,
        pattern.sample_count,
        pattern.created_at,
        pattern.updated_at,
        pattern.embedding,
        references,
        pattern.code,
        pattern.codebook,
    ]


def _pattern(number: int, fields: list) -> ViewingPattern:
    """Older records have no code."""
    return ViewingPattern(number, *fields[:5], tuple(TitleReference(*reference) for reference in fields[5]), *fields[6:])
