"""The change log: one counter over all three tiers, and what was removed.

Every record bears the number of its last change, so the log of what exists is the records themselves. Stored beside
them are only the tombstones, table `removed`: version u64 -> tier, key. They are appended and dropped in the same
order, which costs the flash little; a log of every change would be written all over at each checkpoint. The oldest
beyond MAX_TOMBSTONES are dropped, and `complete_from` says from which version on the log knows all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import islice

from omega_edge.errors import ConfigError
from omega_edge.store import Row, Store

MAX_TOMBSTONES = 8192
_DROPPED_AT_ONCE = MAX_TOMBSTONES // 4


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
    """Numbers changes and keeps tombstones. What is not in the store yet is held until rows() was written."""

    def __init__(self, store: Store, local_version: int, complete_from: int) -> None:
        """complete_from: removals after this version are all known."""
        self._store = store
        self.local_version = local_version
        self.complete_from = complete_from
        self._unsaved: dict[int, tuple[Tier, int] | None] = {}

    def advance(self, by: int = 1) -> int:
        """Number a change. Returns its version."""
        self.local_version += by
        return self.local_version

    def bury(self, tier: Tier, key: int) -> int:
        """Number the removal of a record. Returns its version."""
        version = self.advance()
        self._unsaved[version] = (tier, key)
        return version

    def exhume(self, version: int) -> None:
        """Drop a tombstone, because its record is there again."""
        self._unsaved[version] = None

    def removed_since(self, version: int) -> list[Change]:
        """Removals after a version, oldest first; all that are known for 0.

        Raises ConfigError for a version from before the oldest tombstones were dropped: begin again from 0.
        """
        if 0 < version < self.complete_from:
            raise ConfigError(
                f"version: expected 0 or at least {self.complete_from}, got {version}; the log does not reach so far "
                "back, so read everything from 0"
            )
        found: dict[int, tuple[Tier, int] | None] = {
            int.from_bytes(key, "big"): (_TIERS[fields[1]], fields[2])
            for key, fields in self._store.items("removed", (version + 1).to_bytes(8, "big"))
        }
        found.update(self._unsaved)
        return [
            Change(number, *entry, deleted=True)
            for number, entry in sorted(found.items())
            if number > version and entry is not None
        ]

    def rows(self) -> list[Row]:
        """What the store has to write."""
        if self._store.count("removed") + len(self._unsaved) > MAX_TOMBSTONES:
            for change in islice(self.removed_since(0), _DROPPED_AT_ONCE):
                self.exhume(change.version)
                self.complete_from = change.version
        return [
            tombstone_row(version, *entry) if entry is not None else ("removed", version.to_bytes(8, "big"), None)
            for version, entry in self._unsaved.items()
        ]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()

    def all_rows(self) -> list[Row]:
        """Every tombstone."""
        return [tombstone_row(change.version, change.tier, change.key) for change in self.removed_since(0)]


def tombstone_row(version: int, tier: Tier, key: int) -> Row:
    """The record of a removal."""
    return "removed", version.to_bytes(8, "big"), {1: _TIERS.index(tier), 2: key}
