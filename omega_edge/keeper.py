"""The household's state as a whole: takes entries in, lets the tiers follow, and moves it all into the database.

What is recorded goes into the journal and to the viewers at once; the tiers take it in, in order, when they are read
or saved; the database gets it with the next checkpoint, in one transaction that also names the last entry it holds.
What the tiers hold is a function of the entries in their order: when they were taken in makes no difference, so
neither does a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from omega_edge.changes import ChangeLog
from omega_edge.entries import Entry, Outcome, Watched, decode_entry, encode_entry
from omega_edge.episodes import Episode, ReflexionMemory
from omega_edge.errors import StoreError, StoreFullError
from omega_edge.reasoning import ReasoningBank
from omega_edge.sharing_state import SharingState
from omega_edge.skills import SkillLibrary
from omega_edge.store import Row, Store
from omega_edge.viewers import MAX_PROFILES, Revision, Viewers

RECENT_EPISODES = 65
"""Episodes of each profile that are never evicted: one more than ranking reads."""
RETRY_EVENTS = 64
"""After a checkpoint that failed, the next is tried when so many more events have come."""
_STATE_KEYS = (b"state", b"state copy")
_CACHED_VECTORS = 4096

VectorLookup = Callable[[str, str], "tuple[np.ndarray, float] | None"]


class Keeper:
    """Everything behind AgentMemory. Not thread-safe: AgentMemory holds one lock around it."""

    def __init__(
        self,
        path: Path,
        lookup: VectorLookup,
        *,
        read_only: bool,
        checkpoint_events: int,
        max_episodes: int,
        max_skills: int,
        max_reasoning: int,
    ) -> None:
        """Open the store and read it. Arguments and errors: see AgentMemory."""
        self._lookup = lookup
        self._checkpoint_events = checkpoint_events
        self._limits = (max_episodes, max_skills, max_reasoning)
        self._known_vectors: dict[str, tuple[bytes, float]] = {}
        self._retry_at_events = 0
        self.faults: dict[str, str] = {}
        self.store = Store(path, read_only=read_only)
        try:
            self.load()
            self._replay()
        except BaseException:
            self.store.close()
            raise

    # Taking in -----------------------------------------------------------------------------------

    @property
    def waiting_events(self) -> int:
        """Entries that the database does not hold yet."""
        return self.last_sequence - self._applied_sequence

    @property
    def unsaved(self) -> bool:
        """Whether the database lacks anything."""
        return self.waiting_events > 0 or self.changed_beside_journal

    def take(self, entry: Entry) -> int:
        """Record an entry. It counts, and survives the end of the process, on return. Returns its sequence.

        Raises StoreFullError if neither the journal nor the database has room; then nothing was recorded.
        """
        sequence = self.last_sequence + 1
        payload = encode_entry(entry)
        try:
            self.store.journal.append(sequence, payload)
        except StoreFullError:
            self.commit()
            self.store.journal.append(sequence, payload)
        self.last_sequence = sequence
        self._note(sequence, entry)
        return sequence

    def checkpoint_if_due(self) -> None:
        """Checkpoint when enough entries wait. If that fails they wait on: the journal holds them, and readers have
        them, so only when it is full, too, is there nothing left to do."""
        if self.waiting_events < max(self._checkpoint_events, self._retry_at_events):
            return
        try:
            self.commit()
        except StoreError as fault:
            self.faults["checkpoint"] = str(fault)
            self._retry_at_events = self.waiting_events + RETRY_EVENTS

    def _note(self, sequence: int, entry: Entry) -> None:
        """Let the viewers take an entry in, and queue what it means to the tiers."""
        if isinstance(entry, Outcome):
            self.reasoning.record_outcome(entry.pattern_id, entry.followed, entry.reward, entry.decision_latency_ms)
            return
        if isinstance(entry, Watched):
            meaning = self.viewers.take_viewing(sequence, entry)
        else:
            meaning = self.viewers.take_rating(sequence, entry)
        if meaning is not None:
            self._pending.append(meaning)

    def apply_pending(self) -> None:
        """Let the tiers take in what is queued, in order."""
        for meaning in self._pending:
            if isinstance(meaning, Episode):
                self._add_episode(meaning)
            else:
                self._revise(meaning)
        self._pending.clear()

    def consolidate(self) -> int:
        """Look up the vectors that episodes still lack, and consolidate those episodes. Returns how many now count."""
        self.apply_pending()
        gathered = 0
        for episode in [episode for episode in self.episodes if episode.code is None]:
            found = self.vector_of(episode.content_id, episode.content_title)
            if found is not None:
                self.episodes.set_vector(episode, *found)
                gathered += self._gather(episode)
                self.changed_beside_journal = True
        return gathered

    def vector_of(self, content_id: str, content_title: str) -> tuple[bytes, float] | None:
        """Code and scale of a title, or None if it has no vector."""
        known = self._known_vectors.get(content_id)
        if known is not None:
            return known
        found = self._lookup(content_id, content_title)
        if found is None:
            return None
        if len(self._known_vectors) >= _CACHED_VECTORS:
            self._known_vectors.clear()
        known = (np.ascontiguousarray(found[0], np.int8).tobytes(), float(found[1]))
        self._known_vectors[content_id] = known
        return known

    def forget_vectors(self) -> None:
        """Drop the cache of title vectors."""
        self._known_vectors.clear()

    def _add_episode(self, episode: Episode) -> None:
        found = self.vector_of(episode.content_id, episode.content_title)
        if found is not None:
            episode.code, episode.scale = found
        self.episodes.add(episode)
        self._gather(episode)
        self.episodes.evict()
        if episode.success and episode.watch_percentage is not None:
            self.sharing.note_finished(episode)

    def _gather(self, episode: Episode) -> int:
        """Consolidate an episode that is new or has a new vector, and number what changed."""
        gathered = self.skills.consolidate(episode, self.episodes)
        for changed in gathered or (episode,):
            self.episodes.note_change(changed)
        return len(gathered)

    def _revise(self, revision: Revision) -> None:
        episode = self.episodes.get(revision.sequence)
        if (episode.engagement, episode.kind) == (revision.engagement, revision.kind):
            return
        before = replace(episode)
        episode.engagement, episode.kind = revision.engagement, revision.kind
        if episode.skill_id:
            self.skills.adjust(episode.skill_id, before, episode)
        self.episodes.note_change(episode)

    def degraded(self) -> list[str]:
        """What does not work as it should, in words."""
        found = [*self.store.damage.notes, *(f"{name}: {fault}" for name, fault in self.faults.items())]
        for profile in self.viewers.restored:
            found.append(f"profile {profile}: its record was damaged; it is restricted until it is set again")
        if self.store.damage.records and not self.store.damage.notes:
            found.append(f"store damaged: {self.store.damage.records} records fail their checksums")
        return found

    # Keeping -------------------------------------------------------------------------------------

    def commit(self, further: list[Row] | None = None) -> None:
        """Write everything unsaved, and what the caller adds, in one transaction. On an error all stays unsaved."""
        self.apply_pending()
        rows = [row for part in self._parts() for row in part.rows()]
        self.store.write([*rows, *self.state_rows(), *(further or ())])
        for part in self._parts():
            part.saved()
        self._applied_sequence = self.last_sequence
        self.changed_beside_journal = False
        self._retry_at_events = 0
        self.faults.pop("checkpoint", None)
        self.store.journal.restart()

    def all_rows(self) -> list[Row]:
        """Every record but the state's. To be called when nothing is unsaved in the store's own tables."""
        return [row for part in self._parts() for row in part.all_rows()]

    def state_rows(self, wipe_wanted: bool = False) -> list[Row]:
        """The record of the counters. wipe_wanted: whether the journal may still hold what was forgotten."""
        changes = self.changes
        counted = (self.last_sequence, changes.local_version, self.skills.next_id, self.epoch)
        return state_rows(*counted, changes.complete_from, changes.tombstones, wipe_wanted)

    def load(self) -> None:
        """Read the database."""
        max_episodes, max_skills, max_reasoning = self._limits
        window = min(RECENT_EPISODES, max(max_episodes // MAX_PROFILES, 1))
        state = next((found for key in _STATE_KEYS if (found := self.store.get("meta", key))), None)
        if state is None:
            state = self._reconstructed_state()
        self._applied_sequence = self.last_sequence = state[1]
        self.epoch: int = state[4]
        self._wipe_wanted = bool(state[7])
        self.changes = ChangeLog(self.store, state[2], state[5], state[6])
        self.episodes = ReflexionMemory(self.store, self.changes, max_episodes, window)
        self.skills = SkillLibrary(self.store, self.changes, max_skills, state[3])
        self.reasoning = ReasoningBank(self.store, self.changes, max_reasoning)
        self.sharing = SharingState(self.store, self.changes)
        self.viewers = Viewers(self.store, window)
        self.viewers.load_recent(self.episodes)
        self._pending: list[Episode | Revision] = []
        self.changed_beside_journal = False

    def _parts(self) -> tuple:
        return self.episodes, self.skills, self.reasoning, self.viewers, self.sharing, self.changes

    def _reconstructed_state(self) -> dict[int, object]:
        """The counters of a store that is new or has lost them: beyond every one that its records bear."""

        def last(table: str) -> int:
            return max((int.from_bytes(key, "big") for key, _fields in self.store.items(table)), default=0)

        tombstones = sum(fields[3] for _key, fields in self.store.items("changes"))
        return {1: last("episodes"), 2: last("changes"), 3: last("skills") + 1, 4: new_epoch(), 5: 0, 6: tombstones, 7: 0}

    def _replay(self) -> None:
        """Take in what the journal holds and the database does not."""
        if self._wipe_wanted and not self.store.read_only:
            self.finish_forgetting()
        for sequence, payload in self.store.journal.replay(self._applied_sequence):
            entry = decode_entry(payload)
            if entry is None:
                self.store.damage.add("journal", sequence.to_bytes(8, "big"))
            else:
                if not isinstance(entry, Outcome):
                    self.viewers.owner(entry.profile)
                self._note(sequence, entry)
            self.last_sequence = sequence

    def finish_forgetting(self) -> None:
        """The last steps of a forget: no trace in the journal, no damaged file kept aside. Safe to repeat."""
        self.store.journal.wipe()
        self.store.remove_quarantined()
        self.store.write(self.state_rows(wipe_wanted=False))
        self._wipe_wanted = False


def state_rows(
    last_sequence: int,
    local_version: int,
    next_skill_id: int,
    epoch: int,
    complete_from: int,
    tombstones: int,
    wipe_wanted: bool,
) -> list[Row]:
    """The record of the counters, twice, so that no single damaged record loses them."""
    values = (last_sequence, local_version, next_skill_id, epoch, complete_from, tombstones, wipe_wanted)
    return [("meta", key, dict(enumerate(values, 1))) for key in _STATE_KEYS]


def new_epoch() -> int:
    """A random u64."""
    return int.from_bytes(os.urandom(8), "big")
