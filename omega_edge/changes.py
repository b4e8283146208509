"""The change log: one counter over all three tiers, and for every record that exists or was removed, its last change.

Table `changes`: version u64 -> tier, key, whether removed. A record has at most one entry, so the log is as long as
the tiers and their tombstones together. The oldest tombstones beyond MAX_TOMBSTONES are dropped, and the log then
says from which version on it is complete.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from omega_edge.errors import ConfigError
from omega_edge.store import Row, Store

MAX_TOMBSTONES = 20_000


class Tier(str, enum.Enum):
    """The three tiers of memory."""

    EPISODES = "episodes"
    SKILLS = "skills"
    REASONING = "reasoning"


_TIERS = tuple(Tier)


@dataclass(frozen=True, slots=True)
class Change:
    """One record's last change. key: an episode's sequence, a skill's id or a global pattern's id."""

    version: int
    tier: Tier
    key: int
    deleted: bool


class ChangeLog:
    """Numbers changes, and tells those after a version. Unsaved entries are kept until rows() was written."""

    def __init__(self, store: Store, local_version: int, complete_from: int, tombstones: int) -> None:
        """complete_from: changes after this version are all known. tombstones: how many the log holds."""
        self._store = store
        self.local_version = local_version
        self.complete_from = complete_from
        self.tombstones = tombstones
        self._unsaved: dict[int, tuple[int, int, bool] | None] = {}

    def note(self, tier: Tier, key: int, previous: int, deleted: bool = False) -> int:
        """Number a change of a record whose last change was `previous` (0: it is new). Returns its version."""
        if previous:
            self.drop(previous)
        self.local_version += 1
        self._unsaved[self.local_version] = (_TIERS.index(tier), key, deleted)
        self.tombstones += deleted
        return self.local_version

    def drop(self, version: int, tombstone: bool = False) -> None:
        """Remove an entry, because its record has a later one or is new again (then it was a tombstone)."""
        self._unsaved[version] = None
        self.tombstones -= tombstone

    def advance(self) -> int:
        """Count a change that is of no tier, such as an acknowledgement."""
        self.local_version += 1
        return self.local_version

    def since(self, version: int) -> list[Change]:
        """Every change after a version, oldest first, tombstones included; 0 gives all that exists.

        Raises ConfigError for a version from before the oldest tombstones were dropped: begin again from 0.
        """
        if 0 < version < self.complete_from:
            raise ConfigError(
                f"version: expected 0 or at least {self.complete_from}, got {version}; the log does not reach so far "
                "back, so read everything from 0"
            )
        entries = {
            int.from_bytes(key, "big"): (fields[1], fields[2], fields[3])
            for key, fields in self._store.items("changes", (version + 1).to_bytes(8, "big"))
        }
        entries.update(self._unsaved)
        return [
            Change(number, _TIERS[entry[0]], entry[1], entry[2])
            for number, entry in sorted(entries.items())
            if number > version and entry is not None
        ]

    def rows(self) -> list[Row]:
        """What the store has to write."""
        if self.tombstones > MAX_TOMBSTONES:
            self._drop_tombstones(self.tombstones - MAX_TOMBSTONES * 3 // 4)
        return [
            ("changes", version.to_bytes(8, "big"), None if entry is None else dict(enumerate(entry, 1)))
            for version, entry in self._unsaved.items()
        ]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()

    def all_rows(self) -> list[Row]:
        """Every entry."""
        return [change_row(change) for change in self.since(0)]

    def _drop_tombstones(self, count: int) -> None:
        oldest = [change.version for change in self.since(0) if change.deleted][:count]
        for version in oldest:
            self.drop(version, tombstone=True)
        self.complete_from = oldest[-1]


def change_row(change: Change) -> Row:
    """The record of an entry."""
    fields = {1: _TIERS.index(change.tier), 2: change.key, 3: change.deleted}
    return "changes", change.version.to_bytes(8, "big"), fields
