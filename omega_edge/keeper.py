"""The household's state as a whole: takes entries in, lets the tiers follow, and moves it all into the database.

What is recorded goes into the journal and to the viewers at once; the tiers take it in, in order, when they are read
or saved; the database gets it with the next checkpoint, in one transaction that also names the last entry it holds.
What the tiers hold is a function of the entries in their order: when they were taken in makes no difference, so
neither does a crash.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from omega_edge.changes import Change, ChangeLog, Tier
from omega_edge.codebook_record import Codebook
from omega_edge.entries import Entry, Outcome, Watched, decode_entry, encode_entry
from omega_edge.episodes import Episode, ReflexionMemory, Vector
from omega_edge.errors import StoreError, StoreFullError
from omega_edge.protocol import Profile
from omega_edge.quantiser import Quantiser
from omega_edge.reasoning import ReasoningBank
from omega_edge.sharing_state import SharingState, is_finished
from omega_edge.skills import SkillLibrary
from omega_edge.store import Row, Store
from omega_edge.vector_report import vector_report
from omega_edge.viewers import MAX_PROFILES, HistoryItem, Revision, Viewers

RECENT_EPISODES = 65
"""Episodes of each profile that are never evicted: one more than ranking reads."""
RETRY_EVENTS = 64
"""After a checkpoint that failed, the next is tried when so many more events have come."""
EPISODES_CONSIDERED = 2
"""Episodes whose encoding is considered with each new one: with one, it would always be the newest."""
VERSIONS_SKIPPED = 1 << 20
"""By how much the change counter advances when entries are taken in a second time; more than they can have used."""
_STATE_KEYS = (b"state", b"state copy")
_CACHED_VECTORS = 4096

VectorLookup = Callable[[str, str], "tuple[np.ndarray, float] | None"]


class Keeper:
    """Everything behind AgentMemory. Not thread-safe: AgentMemory holds one lock around it."""

    def __init__(
        self,
        path: Path,
        lookup: VectorLookup,
        catalogue_lookup: Callable[[str], tuple[np.ndarray, float] | None] | None,
        *,
        quantiser: Quantiser | None,
        read_only: bool,
        checkpoint_events: int,
        max_episodes: int,
        max_skills: int,
        max_reasoning: int,
    ) -> None:
        """Open the store and read it. Arguments and errors: see AgentMemory."""
        self._lookup = lookup
        self._catalogue_lookup = catalogue_lookup
        self._quantiser = quantiser
        self._checkpoint_events = checkpoint_events
        self._limits = (max_episodes, max_skills, max_reasoning)
        self._known_vectors: dict[str, tuple[bytes, float]] = {}
        self._retry_at_events = 0
        self.faults: dict[str, str] = {}
        self.store = Store(path, read_only=read_only)
        try:
            self.load()
            self._replay()
            if self.viewers.new and not self.store.read_only:
                self.commit()  # so that a store whose profiles are missing later is known to have lost them
        except BaseException:
            self.store.close()
            raise

    # Taking in -----------------------------------------------------------------------------------

    @property
    def waiting_entries(self) -> int:
        """Entries that the database does not hold yet."""
        return self.last_sequence - self._applied_sequence

    @property
    def unsaved(self) -> bool:
        """Whether the database lacks anything, or a forget its last steps."""
        return self.waiting_entries > 0 or self.changed_beside_journal or self._wipe_wanted

    def take(self, entry: Entry) -> int:
        """Record an entry. It counts, and survives the end of the process, on return. Returns its sequence.

        Raises StoreFullError if neither the journal nor the database has room; then nothing was recorded.
        """
        if self._wipe_wanted and not self.waiting_entries:
            self._retry_forgetting()
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
        """Checkpoint when enough events wait, fewer while a forget lacks its last steps; outcomes alone are no reason.

        If that fails they wait on: the journal holds them, and readers have them, so only when it is full, too, is
        there nothing left to do.
        """
        due_events = min(self._checkpoint_events, RETRY_EVENTS) if self._wipe_wanted else self._checkpoint_events
        if self._waiting_events < max(due_events, self._retry_at_events):
            return
        try:
            self.commit()
        except StoreError as fault:
            self.faults["checkpoint"] = str(fault)
            self._retry_at_events = self._waiting_events + RETRY_EVENTS

    def _note(self, sequence: int, entry: Entry) -> None:
        """Let the viewers take an entry in, and queue what it means to the tiers."""
        if isinstance(entry, Outcome):
            self.reasoning.count(entry)
            return
        self._waiting_events += 1
        if isinstance(entry, Watched):
            meaning = self.viewers.take_viewing(sequence, entry)
        else:
            meaning = self.viewers.take_rating(sequence, entry)
        if meaning is not None:
            self._pending.append(meaning)

    def set_profile(self, profile: Profile) -> None:
        """Add or change a profile, durably or not at all: a limit that could not be stored must not hold either."""
        before = self.viewers.set_profile(profile)
        try:
            self.commit()
        except BaseException:
            self.viewers.undo_set_profile(profile.id, before)
            raise

    def apply_pending(self, limit: int | None = None) -> None:
        """Let the tiers take in what is queued, in order; with a limit, at most so many."""
        for _ in range(len(self._pending) if limit is None else min(limit, len(self._pending))):
            meaning = self._pending[0]
            if isinstance(meaning, Episode):
                found = self.vector_of(meaning.content_id, meaning.content_title)
                self._pending.popleft()  # only now: whatever the lookup raises, the episode is taken in once
                self._add_episode(meaning, found)
            else:
                self._pending.popleft()
                self._revise(meaning)

    def consolidate(self) -> int:
        """Look up the vectors that episodes still lack, and consolidate those episodes. Returns how many now count."""
        self.apply_pending()
        gathered = 0
        for episode in [episode for episode in self.episodes if episode.standing is None]:
            found = self.vector_of(episode.content_id, episode.content_title)
            if found is not None:
                self.episodes.set_vector(episode, *found)
                gathered += self._gather(episode)
                self.changed_beside_journal = True
        return gathered

    def vector_of(self, content_id: str, content_title: str) -> Vector | None:
        """Code and scale of a title, or None if it has no vector."""
        known = self.catalogued(content_id) or self._known_vectors.get(content_id)
        if known is not None:
            return known
        found = self._lookup(content_id, content_title)
        if found is None:
            return None
        if len(self._known_vectors) >= _CACHED_VECTORS:
            self._known_vectors.clear()
        known = vector_of_arrays(*found)
        self._known_vectors[content_id] = known
        return known

    def history(self, profile: str, limit: int) -> list[HistoryItem]:
        """The newest episodes of a profile, newest first."""
        recent = self.viewers[profile].recent
        if limit <= len(recent) or len(recent) < recent.maxlen:
            newest = list(recent)[::-1][:limit]
        else:
            self.apply_pending()
            newest = [episode for episode in self.episodes if episode.profile == profile][::-1][:limit]
        return [
            HistoryItem.of(
                episode,
                self.episodes.vector_of(episode) or self.vector_of(episode.content_id, episode.content_title),
            )
            for episode in newest
        ]

    def statistics(self) -> dict[str, object]:
        """Counts, sizes, counters, and what is damaged or degraded. Names no title."""
        viewers, damage = list(self.viewers), self.store.damage
        return {
            "profiles": len(viewers),
            "events": sum(viewer.event_count for viewer in viewers),
            "episodes": len(self.episodes),
            "episodes_without_vector": self.episodes.without_vector,
            "skills": len(self.skills),
            "vectors": vector_report(self.episodes, self.skills, self.codebook),
            "patterns": len(self.reasoning),
            "seen": sum(len(viewer.seen) for viewer in viewers),
            "hidden": sum(len(viewer.hidden) for viewer in viewers),
            "local_version": self.changes.local_version,
            "last_sequence": self.last_sequence,
            "size_bytes": self.store.size_bytes(),
            "read_only": self.store.read_only,
            "pending_records": self.waiting_entries,
            "unsynced_records": self.store.journal.unsynced_records,
            "damaged_records": damage.records,
            "damaged_names": list(damage.names),
            "degraded": self.degraded(),
        }

    def forget_vectors(self) -> None:
        """Drop the cache of title vectors."""
        self._known_vectors.clear()

    def catalogued(self, content_id: str) -> Vector | None:
        """Code and scale of a title of the catalogue, else None."""
        found = None if self._catalogue_lookup is None else self._catalogue_lookup(content_id)
        return None if found is None else vector_of_arrays(*found)

    def _add_episode(self, episode: Episode, found: Vector | None) -> None:
        self.episodes.add(episode, found)
        self._gather(episode)
        self.episodes.evict()
        for _ in range(EPISODES_CONSIDERED):
            self.episodes.consider_next(len(self.skills))
        self.skills.consider_next(self.episodes.newest_sequence)
        if is_finished(episode):
            self.sharing.note_finished(episode)

    def _gather(self, episode: Episode) -> int:
        """Consolidate an episode that is new or has a new vector, and number what changed."""
        gathered = self.skills.consolidate(episode, self.episodes)
        for changed in gathered or (episode,):
            if changed is not episode:
                self.episodes.use(changed)
            self.episodes.note_change(changed)
        return len(gathered)

    def _revise(self, revision: Revision) -> None:
        episode = self.episodes.get(revision.sequence)
        if (episode.engagement, episode.kind) == (revision.engagement, revision.kind):
            return
        before = replace(episode)
        episode.engagement, episode.kind = revision.engagement, revision.kind
        if episode.skill_id:
            self.skills.adjust(episode.skill_id, before, episode, self.episodes.newest_sequence)
        self.episodes.use(episode)
        self.episodes.note_change(episode)

    def degraded(self) -> list[str]:
        """What does not work as it should, in words."""
        found = [*self.store.damage.notes, *(f"{name}: {fault}" for name, fault in self.faults.items())]
        if self.codebook.fault is not None:
            found.append(f"vector compression: {self.codebook.fault}")
        for profile in self.viewers.restored:
            found.append(f"profile {profile}: its record was damaged; it is restricted until it is set again")
        if self.store.damage.records and not self.store.damage.notes:
            found.append(f"store damaged: {self.store.damage.records} records fail their checksums")
        return found

    def state(self, name: str) -> dict | None:
        """What set_state() kept under a name, or None."""
        if name in self._unsaved_states:
            return self._unsaved_states[name]
        record = self.store.get("states", name.encode())
        return None if record is None else record[1]

    def set_state(self, name: str, state: dict) -> None:
        """Keep plain values under a name, from the next commit on in the database."""
        self._unsaved_states[name] = copy.deepcopy(state)
        self.changed_beside_journal = True

    def changes_since(self, version: int) -> list[Change]:
        """Exactly the changes after a version, oldest first, one for each record, removals included."""
        found = self.changes.removed_since(version)
        tiers = (
            (Tier.EPISODES, ((episode.sequence, episode.version) for episode in self.episodes)),
            (Tier.SKILLS, self.skills.versions()),
            (Tier.REASONING, ((pattern.pattern_id, pattern.version) for pattern in self.reasoning)),
        )
        for tier, versions in tiers:
            found += [Change(number, tier, key, deleted=False) for key, number in versions if number > version]
        return sorted(found, key=lambda change: change.version)

    # Keeping -------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write everything unsaved in one transaction. On an error all stays unsaved."""
        self.apply_pending()
        rows = [row for part in self._parts() for row in part.rows()]
        states = [("states", name.encode(), {1: state}) for name, state in self._unsaved_states.items()]
        self.store.write([*rows, *states, *self.state_rows(self._wipe_wanted)])
        for part in self._parts():
            part.saved()
        self._unsaved_states.clear()
        self._applied_sequence = self.last_sequence
        self._waiting_events = 0
        self.changed_beside_journal = False
        self._retry_at_events = 0
        self.faults.pop("checkpoint", None)
        self.store.release_pages()  # the sweep over the skills would have the whole file resident in the end
        self.store.journal.restart()
        if self._wipe_wanted:
            self._retry_forgetting()

    def all_rows(self) -> list[Row]:
        """Every record but the state's. To be called when nothing is unsaved in the store's own tables."""
        return [row for part in self._parts() for row in part.all_rows()]

    def state_rows(self, wipe_wanted: bool = False) -> list[Row]:
        """The record of the counters. wipe_wanted: whether the journal may still hold what was forgotten."""
        changes = self.changes
        counted = (self.last_sequence, changes.local_version, self.skills.next_id, self.epoch)
        cursors = (self.episodes.cursor, self.skills.cursor)
        return state_rows(*counted, changes.complete_from, wipe_wanted, cursors)

    def load(self) -> None:
        """Read the database."""
        max_episodes, max_skills, max_reasoning = self._limits
        window = min(RECENT_EPISODES, max(max_episodes // MAX_PROFILES, 1))
        state = self._stored_state() or self._reconstructed_state()
        self._applied_sequence = self.last_sequence = state[1]
        self._waiting_events = 0
        self.epoch: int = state[4]
        self._wipe_wanted = bool(state[6])
        self.changes = ChangeLog(self.store, state[2], state[5])
        self.codebook = Codebook(self.store, self._quantiser)
        self.episodes = ReflexionMemory(
            self.store, self.changes, self.codebook, max_episodes, window, self.catalogued, state.get(7, 0)
        )
        self.skills = SkillLibrary(self.store, self.changes, self.codebook, max_skills, state[3], state.get(8, 0))
        self.reasoning = ReasoningBank(self.store, self.changes, max_reasoning)
        self.sharing = SharingState(self.store, self.changes)
        self.viewers = Viewers(self.store, window, new=not self.store.holds_anything())
        self.viewers.load_recent(self.episodes)
        self._pending: deque[Episode | Revision] = deque()
        self._unsaved_states: dict[str, dict] = {}
        self.changed_beside_journal = False

    def _parts(self) -> tuple:
        return self.codebook, self.episodes, self.skills, self.reasoning, self.viewers, self.sharing, self.changes

    def _stored_state(self) -> dict[int, object] | None:
        return next((found for key in _STATE_KEYS if (found := self.store.get("meta", key))), None)

    def _reconstructed_state(self) -> dict[int, object]:
        """The counters of a store that is new or has lost them: beyond every one that its records bear."""

        def last(table: str) -> int:
            return max((int.from_bytes(key, "big") for key, _fields in self.store.items(table)), default=0)

        versions = [last("removed"), last("finished")]
        for table, field in (("episodes", 15), ("skills", 12), ("reasoning", 8), ("outcomes", 6)):
            versions += [fields[field] for _key, fields in self.store.items(table)]
        last_sequence = max(last("episodes"), last("seen"))
        return {1: last_sequence, 2: max(versions), 3: last("skills") + 1, 4: new_epoch(), 5: 0, 6: False}

    def _replay(self) -> None:
        """Take in what the journal holds and the database does not; then finish a forget that lacks its last steps."""
        for sequence, payload in self.store.journal.replay(self._applied_sequence):
            entry = decode_entry(payload)
            if entry is None:
                self.store.damage.add("journal", sequence.to_bytes(8, "big"))
            else:
                if not isinstance(entry, Outcome):
                    self.viewers.owner(entry.profile)
                self._note(sequence, entry)
            self.last_sequence = sequence
        damaged = self.store.journal.damaged
        for sequence in damaged:
            self.store.damage.add("journal", sequence.to_bytes(8, "big"))
        if damaged:
            self.store.damage.notes.append(f"journal damaged: {len(damaged)} of its records were lost")
        if self._pending:
            # A reader may have been told versions of what is now taken in again, perhaps with other vectors, so that
            # it is counted otherwise. None of those versions is used twice.
            self.changes.advance(VERSIONS_SKIPPED)
        if self._wipe_wanted and not self.store.read_only:
            try:
                self.commit()  # what the journal holds has to be in the database before it is wiped
            except StoreError as fault:
                self.faults["forget"] = str(fault)

    def _retry_forgetting(self) -> None:
        """Try finish_forgetting() again; if it fails, it stays wanted. To be called when no entry waits."""
        try:
            self.finish_forgetting()
        except StoreError as fault:
            self.faults["forget"] = str(fault)

    def finish_forgetting(self) -> None:
        """The last steps of a forget: no trace in the journal, no damaged file kept aside. Safe to repeat.

        To be called when the database holds every entry of the journal, which is wiped.
        """
        self.store.journal.wipe()
        self.store.remove_quarantined()
        state = self._stored_state()
        if state is not None:
            self.store.write(("meta", key, {**state, 6: False}) for key in _STATE_KEYS)
        self._wipe_wanted = False
        self.faults.pop("forget", None)


def vector_of_arrays(code: np.ndarray, scale: float) -> Vector:
    """A vector as the tiers hold it."""
    return np.ascontiguousarray(code, np.int8).tobytes(), float(scale)


def state_rows(
    last_sequence: int,
    local_version: int,
    next_skill_id: int,
    epoch: int,
    complete_from: int,
    wipe_wanted: bool,
    cursors: tuple[int, int] = (0, 0),
) -> list[Row]:
    """The record of the counters, twice, so that no single damaged record loses them. cursors: the episode and the
    skill whose encoding was considered last."""
    values = (last_sequence, local_version, next_skill_id, epoch, complete_from, wipe_wanted, *cursors)
    return [("meta", key, dict(enumerate(values, 1))) for key in _STATE_KEYS]


def new_epoch() -> int:
    """A random u64."""
    return int.from_bytes(os.urandom(8), "big")
