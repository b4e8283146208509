"""AgentMemory: what the television remembers of its household, durably, in three tiers.

A viewing is appended to the journal and counts at once; the tiers take it in when they are read, and the database
when enough have gathered (a checkpoint). What the tiers hold is a function of the entries in their order alone: when
they are taken in makes no difference, so neither does a crash.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from omega_edge.changes import Change, ChangeLog
from omega_edge.entries import Entry, Outcome, Rated, Watched, decode_entry, encode_entry
from omega_edge.episodes import Episode, EpisodeKind, ReflexionMemory, RetrievedEpisode
from omega_edge.errors import ConfigError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.protocol import (
    MAX_TITLE_BYTES,
    FeedbackKind,
    FinishedTitle,
    Profile,
    TimeOfDay,
    ViewingEvent,
    ViewingPattern,
    check_content_id,
    check_timestamp,
    local_day,
    parse_feedback_kind,
)
from omega_edge.reasoning import ReasoningBank, ReasoningPattern, RecalledPattern
from omega_edge.sharing_state import SharingState
from omega_edge.skills import RankedSkill, Skill, SkillLibrary
from omega_edge.store import Row, Store
from omega_edge.validation import check_integer, check_share, check_text
from omega_edge.viewers import MAX_PROFILES, Revision, Viewers

RECENT_EPISODES = 65
"""Episodes of each profile that are never evicted: one more than ranking reads."""
RETRY_EVENTS = 64
"""After a checkpoint that failed, the next is tried when so many more events have come."""
MAX_DECISION_LATENCY_MS = 24 * 3600 * 1000
_STATE_KEYS = (b"state", b"state copy")
_CACHED_VECTORS = 4096

Code = np.ndarray
VectorLookup = Callable[[str, str], "tuple[Code, float] | None"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an observation. sequence: its number. durable: whether it survives a power cut already; if not,
    it survives the end of the process, and a power cut after flush() or when the durability window is over."""

    sequence: int
    durable: bool


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One recent episode. watch_percentage: 0 where nothing was watched. code: int8[384], None without a vector."""

    content_id: str
    content_title: str
    timestamp: int
    watch_percentage: float
    reward: float
    success: bool
    time_of_day: TimeOfDay
    day_of_week: int
    kind: str
    code: np.ndarray | None
    scale: float


class AgentMemory:
    """The memory of one household. Thread-safe: one lock around everything."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Callable[[], int],
        *,
        vector_lookup: VectorLookup,
        read_only: bool = False,
        durability_window_secs: int = 300,
        checkpoint_events: int = 256,
        max_episodes: int = 1_000,
        max_skills: int = 10_000,
        max_reasoning: int = 500,
    ) -> None:
        """Open the memory in a folder, making it if it is missing.

        clock: returns Unix milliseconds, UTC. vector_lookup: code int8[384] and scale of a title (content id, title),
        None if there is none; asked when the tiers take an event in, and by history(), so it should be quick.
        durability_window_secs: how long an event may wait to be synced; 0 syncs each before record() returns.
        checkpoint_events: how many may wait in the journal. On a read-only file system it opens read-only.

        Raises StoreBusyError, StoreFullError, StoreDamagedError (written by a newer version), StoreError.
        """
        self._clock = clock
        self._lookup = vector_lookup
        self._window_ms = 1000 * check_integer("durability_window_secs", durability_window_secs, 0, 24 * 3600)
        self._checkpoint_events = check_integer("checkpoint_events", checkpoint_events, 1, 10_000)
        self._max_episodes = check_integer("max_episodes", max_episodes, 1, 1_000_000)
        self._max_skills = check_integer("max_skills", max_skills, 1, 1_000_000)
        self._max_reasoning = check_integer("max_reasoning", max_reasoning, 1, 1_000_000)
        self._lock = threading.RLock()
        self._closed = False
        self._oldest_unsynced_at: int | None = None
        self._retry_at_events = 0
        self._known_vectors: dict[str, tuple[bytes, float]] = {}
        self._store = Store(Path(path), read_only=read_only)
        try:
            self._load()
            self._replay()
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> AgentMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Recording -----------------------------------------------------------------------------------

    def record(self, event: ViewingEvent) -> Recorded:
        """Remember a viewing. It counts at once; see Recorded for when it is durable.

        Events count in the order of the calls, whatever their timestamps. Raises ConfigError for an unknown profile,
        StoreFullError or StoreReadOnlyError if it was not recorded.
        """
        with self._lock:
            return self._take(Watched.of(event), event.context.profile)

    def feedback(
        self,
        profile: str,
        content_id: str,
        content_title: str,
        kind: FeedbackKind | str,
        timestamp: int,
        *,
        time_of_day: TimeOfDay | None = None,
        day_of_week: int | None = None,
    ) -> Recorded:
        """Remember what a viewer said of a title: dislike and never hide it for ever, not_now for 14 days, and like
        shows it again. time_of_day, day_of_week: of the viewer's clock; those of UTC if not given.
        """
        check_content_id("content_id", content_id)
        check_text("content_title", content_title, MAX_TITLE_BYTES)
        utc = local_day(check_timestamp("timestamp", timestamp), UTC)
        entry = Rated(
            profile,
            content_id,
            content_title,
            parse_feedback_kind(kind),
            timestamp,
            utc[0] if time_of_day is None else time_of_day,
            utc[1] if day_of_week is None else day_of_week,
        )
        with self._lock:
            return self._take(entry, profile)

    def record_outcome(self, pattern_id: int, followed: bool, reward: float, decision_latency_ms: int) -> Recorded:
        """Remember what came of a decision in which a global pattern spoke.

        followed: whether what it spoke for was watched. reward: of what was watched, 0 to 1. decision_latency_ms:
        from the list to the viewing. A pattern that is not kept any more is passed over.
        """
        entry = Outcome(
            check_integer("pattern_id", pattern_id, 0, (1 << 32) - 1),
            bool(followed),
            check_share("reward", reward),
            check_integer("decision_latency_ms", decision_latency_ms, 0, MAX_DECISION_LATENCY_MS),
        )
        with self._lock:
            return self._take(entry, None)

    def flush(self) -> None:
        """Return when everything recorded so far is durable. Raises StoreError if it cannot be made so."""
        with self._lock:
            self._require_open()
            if self._store.read_only:
                return
            if self._unsaved_beside_journal:
                self._commit()
            self._sync()

    def checkpoint(self) -> None:
        """Move what the journal holds into the database, in one transaction. Raises StoreError; then nothing is lost."""
        with self._lock:
            self._require_writable()
            if self._last_sequence > self._applied_sequence or self._unsaved_beside_journal:
                self._commit()

    def maintain(self, now_ms: int | None = None) -> None:
        """Do the timed work that is due at now_ms (the clock's time if None): sync the journal when the durability
        window is over, checkpoint when enough events wait, and look up vectors that are still missing."""
        with self._lock:
            self._require_open()
            if self._store.read_only:
                return
            now_ms = self._clock() if now_ms is None else now_ms
            if self._window_is_over(now_ms):
                self._sync()
            self._checkpoint_if_due()

    def close(self) -> None:
        """Make everything durable and let go of the store. Closing twice is harmless.

        Where the disk is full, what the journal holds stays there, synced, and is taken from there at the next open.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._store.read_only and (
                    self._last_sequence > self._applied_sequence or self._unsaved_beside_journal
                ):
                    try:
                        self._commit()
                    except StoreFullError:
                        self._store.journal.sync()
            finally:
                self._store.close()

    # Profiles and history ------------------------------------------------------------------------

    def profiles(self) -> tuple[Profile, ...]:
        """Profiles in the order in which they were added; the default one exists from the first open."""
        with self._lock:
            return tuple(viewer.profile for viewer in self._viewers)

    def set_profile(self, profile: Profile) -> None:
        """Add a profile, at most 15, or change the name or limit of the one with this id. Durable on return."""
        with self._lock:
            self._require_writable()
            self._viewers.set_profile(profile)
            self._commit()

    def history(self, profile: str, limit: int) -> list[HistoryItem]:
        """The newest episodes of a profile, newest first, at most `limit` and as many as tier 1 keeps."""
        check_integer("limit", limit, 0, 1 << 31)
        with self._lock:
            recent = self._viewers[profile].recent
            if limit <= len(recent):
                newest = [recent[-1 - place] for place in range(limit)]
            else:
                self._apply_pending()
                newest = [episode for episode in self._episodes if episode.profile == profile][::-1][:limit]
            return [self._history_item(episode) for episode in newest]

    def event_count(self, profile: str) -> int:
        """How many episodes of a profile were ever recorded, and not forgotten."""
        with self._lock:
            return self._viewers[profile].event_count

    def seen(self, profile: str) -> Mapping[str, int]:
        """Content id to the time when it was last watched, of everything ever watched. Live; not to be changed."""
        with self._lock:
            return MappingProxyType(self._viewers[profile].seen)

    def hidden(self, profile: str) -> Mapping[str, tuple[FeedbackKind, int | None]]:
        """Content id to the feedback that hides it, and until when: None for ever. Live; not to be changed."""
        with self._lock:
            return MappingProxyType(self._viewers[profile].hidden)

    # Tier 1 and 2 --------------------------------------------------------------------------------

    def retrieve(
        self,
        query_vector: np.ndarray,
        k: int,
        minimum_reward: float | None = None,
        successes_only: bool = False,
        failures_only: bool = False,
        since: int | None = None,
        until: int | None = None,
        profile: str | None = None,
    ) -> list[RetrievedEpisode]:
        """The k episodes nearest to a unit vector float32[384], among those that pass every filter, nearest first.

        since, until: bounds of the timestamp, both included. Episodes without a vector are never among them.
        """
        if successes_only and failures_only:
            raise ConfigError("retrieve: expected at most one of successes_only and failures_only, got both")
        check_integer("k", k, 1, 1 << 31)
        with self._lock:
            self._apply_pending()
            if profile is not None:
                self._viewers[profile]
            return self._episodes.retrieve(
                query_vector,
                k,
                minimum_reward=minimum_reward,
                successes_only=successes_only,
                failures_only=failures_only,
                since=since,
                until=until,
                profile=profile,
            )

    def consolidate(self) -> int:
        """Gather into skills what can be gathered by now. Returns how many episodes newly count in one.

        Every event is considered when the tiers take it in; what is left to do here is episodes whose vector could
        not be had then. Doing it twice changes nothing.
        """
        with self._lock:
            self._apply_pending()
            gathered = 0
            for episode in list(self._episodes):
                if episode.code is None:
                    found = self._vector_of(episode.content_id, episode.content_title)
                    if found is not None:
                        self._episodes.set_vector(episode, np.frombuffer(found[0], np.int8), found[1])
                        gathered += self._gather(episode)
                        self._unsaved_beside_journal = True
            return gathered

    def rank_skills(self, query_vector: np.ndarray, k: int, profile: str | None = None) -> list[RankedSkill]:
        """The k skills of the highest rank for a unit vector float32[384], best first; see SkillLibrary.rank_skills."""
        check_integer("k", k, 1, 1 << 31)
        with self._lock:
            self._apply_pending()
            return self._skills.rank_skills(query_vector, k, profile)

    def skills(self) -> list[Skill]:
        """Every skill, by id."""
        with self._lock:
            self._apply_pending()
            return list(self._skills)

    def episodes(self) -> list[Episode]:
        """Every episode kept, in the order of recording."""
        with self._lock:
            self._apply_pending()
            return [replace(episode) for episode in self._episodes]

    # Tier 3 --------------------------------------------------------------------------------------

    def merge_global_pattern(self, pattern: ViewingPattern, code: np.ndarray, scale: float) -> bool:
        """Take in a global pattern and the code int8[384] that it resolves to. Returns whether anything changed.

        Merging again changes nothing. It is saved with the next checkpoint, flush() or other write.
        """
        with self._lock:
            self._require_writable()
            self._apply_pending()
            changed = self._reasoning.merge(pattern, code, scale)
            self._unsaved_beside_journal |= changed
            return changed

    def patterns(self) -> tuple[ReasoningPattern, ...]:
        """The global patterns kept, by id. Not to be changed."""
        with self._lock:
            self._apply_pending()
            return tuple(self._reasoning)

    def recall_by_utility(self, query_vector: np.ndarray, k: int) -> list[RecalledPattern]:
        """The k global patterns of the highest utility for a unit vector float32[384]; see ReasoningBank."""
        check_integer("k", k, 1, 1 << 31)
        with self._lock:
            self._apply_pending()
            return self._reasoning.recall_by_utility(query_vector, k)

    # Changes and sharing -------------------------------------------------------------------------

    @property
    def local_version(self) -> int:
        """The counter of changes over all tiers, durable: what it counted is in the database."""
        with self._lock:
            self._checkpoint_for_reader()
            return self._changes.local_version

    @property
    def epoch(self) -> int:
        """Random u64, new when the memory is made, restored or wholly forgotten, so that counters never repeat."""
        with self._lock:
            return self._epoch

    def get_changes_since(self, version: int) -> list[Change]:
        """Exactly the changes after a version, oldest first, one for each record, removals included."""
        check_integer("version", version, 0, (1 << 64) - 1)
        with self._lock:
            self._checkpoint_for_reader()
            return self._changes.since(version)

    def set_sharing_titles(self, sharing: bool) -> None:
        """Keep a log of titles finished from now on, or stop and delete it. Durable on return."""
        with self._lock:
            if self._sharing.titles == bool(sharing):
                return
            self._require_writable()
            self._apply_pending()
            self._sharing.set_titles(bool(sharing))
            self._commit()

    def titles_finished_since_acknowledged(self, limit: int) -> list[FinishedTitle]:
        """The titles finished while sharing and not acknowledged, oldest first, at most `limit`."""
        check_integer("limit", limit, 0, 1 << 31)
        with self._lock:
            self._checkpoint_for_reader()
            return self._sharing.finished(limit)

    def shared_skills(self) -> list[Skill]:
        """The 20 skills with the most samples among those with success_rate of at least 0.7."""
        with self._lock:
            self._checkpoint_for_reader()
            return self._skills.shared_skills()

    def acknowledged_shared_set(self) -> dict[int, ViewingPattern | None]:
        """The patterns that the cloud has acknowledged, by id; None for one that named a forgotten title."""
        with self._lock:
            return dict(self._sharing.acknowledged)

    def acknowledge(self, local_version: int, titles: int, shared: Mapping[int, ViewingPattern]) -> None:
        """The cloud holds the delta of local_version: its first `titles` finished titles and the shared set.

        Durable on return. The counter advances, so that a next page has a version of its own.
        """
        with self._lock:
            self._require_writable()
            self._apply_pending()
            self._sharing.acknowledge(check_integer("local_version", local_version, 0, (1 << 64) - 1), titles, shared)
            self._commit()

    # States --------------------------------------------------------------------------------------

    def get_state(self, name: str) -> dict | None:
        """What set_state() kept under a name, or None."""
        with self._lock:
            record = self._store.get("states", name.encode())
            return None if record is None else record[1]

    def set_state(self, name: str, state: dict) -> None:
        """Keep a dict of plain values (numbers, text, bytes, lists, dicts) under a name. Durable on return."""
        with self._lock:
            self._require_writable()
            self._commit([("states", name.encode(), {1: state})])

    # Inside: taking in ---------------------------------------------------------------------------

    def _take(self, entry: Entry, profile: str | None) -> Recorded:
        self._require_writable()
        if profile is not None:
            self._viewers[profile]
        sequence = self._last_sequence + 1
        payload = encode_entry(entry)
        try:
            self._store.journal.append(sequence, payload)
        except StoreFullError:
            self._commit()
            self._store.journal.append(sequence, payload)
        self._last_sequence = sequence
        self._note(sequence, entry)
        now_ms = self._clock()
        if self._oldest_unsynced_at is None:
            self._oldest_unsynced_at = now_ms
        if self._window_is_over(now_ms):
            self._sync()
        self._checkpoint_if_due()
        return Recorded(sequence, durable=self._store.journal.unsynced_records == 0)

    def _note(self, sequence: int, entry: Entry) -> None:
        """Let the viewers take an entry in, and queue for the tiers what it means to them."""
        meaning: Episode | Revision | Outcome | None
        if isinstance(entry, Watched):
            meaning = self._viewers.take_viewing(sequence, entry)
        elif isinstance(entry, Rated):
            meaning = self._viewers.take_rating(sequence, entry)
        else:
            meaning = entry
        if meaning is not None:
            self._pending.append(meaning)

    def _apply_pending(self) -> None:
        """Let the tiers take in what is queued, in order."""
        self._require_open()
        for meaning in self._pending:
            if isinstance(meaning, Episode):
                self._add_episode(meaning)
            elif isinstance(meaning, Revision):
                self._revise(meaning)
            else:
                self._reasoning.record_outcome(
                    meaning.pattern_id, meaning.followed, meaning.reward, meaning.decision_latency_ms
                )
        self._pending.clear()

    def _add_episode(self, episode: Episode) -> None:
        found = self._vector_of(episode.content_id, episode.content_title)
        if found is not None:
            episode.code, episode.scale = found
        self._episodes.add(episode)
        self._gather(episode)
        self._episodes.evict()
        if episode.success and episode.watch_percentage is not None:
            self._sharing.note_finished(episode)

    def _gather(self, episode: Episode) -> int:
        """Consolidate an episode that is new or has a new vector, and number what changed."""
        gathered = self._skills.consolidate(episode, self._episodes)
        for changed in gathered or (episode,):
            self._episodes.note_change(changed)
        return len(gathered)

    def _revise(self, revision: Revision) -> None:
        episode = self._episodes.get(revision.sequence)
        before = replace(episode)
        episode.engagement, episode.kind = revision.engagement, revision.kind
        if (episode.reward, episode.success, episode.kind) == (before.reward, before.success, before.kind):
            return
        if episode.skill_id:
            self._skills.adjust(episode.skill_id, before, episode)
        self._episodes.note_change(episode)

    def _vector_of(self, content_id: str, content_title: str) -> tuple[bytes, float] | None:
        known = self._known_vectors.get(content_id)
        if known is None:
            found = self._lookup(content_id, content_title)
            if found is None:
                return None
            code, scale = found
            known = (np.ascontiguousarray(code, np.int8).tobytes(), float(scale))
            if len(self._known_vectors) >= _CACHED_VECTORS:
                self._known_vectors.clear()
            self._known_vectors[content_id] = known
        return known

    def _history_item(self, episode: Episode) -> HistoryItem:
        if episode.code is None:
            found = self._vector_of(episode.content_id, episode.content_title)
        else:
            found = (episode.code, episode.scale)
        return HistoryItem(
            content_id=episode.content_id,
            content_title=episode.content_title,
            timestamp=episode.timestamp,
            watch_percentage=episode.watch_percentage or 0.0,
            reward=episode.reward,
            success=episode.success,
            time_of_day=episode.time_of_day,
            day_of_week=episode.day_of_week,
            kind=episode.kind.value,
            code=None if found is None else np.frombuffer(found[0], np.int8),
            scale=0.0 if found is None else found[1],
        )

    # Inside: keeping -----------------------------------------------------------------------------

    def _load(self) -> None:
        """Read the database."""
        state = next((found for key in _STATE_KEYS if (found := self._store.get("meta", key))), None)
        if state is None:
            state = self._reconstructed_state()
        self._applied_sequence = self._last_sequence = state[1]
        self._epoch = state[4]
        window = min(RECENT_EPISODES, max(self._max_episodes // MAX_PROFILES, 1))
        self._changes = ChangeLog(self._store, state[2], state[5], state[6])
        self._episodes = ReflexionMemory(self._store, self._changes, self._max_episodes, window)
        self._skills = SkillLibrary(self._store, self._changes, self._max_skills, state[3])
        self._reasoning = ReasoningBank(self._store, self._changes, self._max_reasoning)
        self._sharing = SharingState(self._store, self._changes)
        self._viewers = Viewers(self._store, window)
        self._viewers.load_recent(self._episodes)
        self._pending: list[Episode | Revision | Outcome] = []
        self._unsaved_beside_journal = False
        self._wipe_wanted = bool(state[7])

    def _reconstructed_state(self) -> dict[int, object]:
        """The counters of a store that is new or has lost them: beyond every one that its records bear."""

        def last(table: str) -> int:
            return max((int.from_bytes(key, "big") for key, _fields in self._store.items(table)), default=0)

        tombstones = sum(fields[3] for _key, fields in self._store.items("changes"))
        return {
            1: last("episodes"),
            2: last("changes"),
            3: last("skills") + 1,
            4: int.from_bytes(os.urandom(8), "big"),
            5: 0,
            6: tombstones,
            7: False,
        }

    def _replay(self) -> None:
        """Take in what the journal holds and the database does not."""
        if self._wipe_wanted and not self._store.read_only:
            self._finish_forgetting()
        for sequence, payload in self._store.journal.replay(self._applied_sequence):
            entry = decode_entry(payload)
            if entry is None:
                self._store.damage.add("journal", sequence.to_bytes(8, "big"))
            else:
                self._note(sequence, entry)
            self._last_sequence = sequence

    def _state_rows(self, wipe_wanted: bool) -> list[Row]:
        state = {
            1: self._last_sequence,
            2: self._changes.local_version,
            3: self._skills.next_id,
            4: self._epoch,
            5: self._changes.complete_from,
            6: self._changes.tombstones,
            7: wipe_wanted,
        }
        return [("meta", key, state) for key in _STATE_KEYS]

    def _commit(self, further: list[Row] | None = None) -> None:
        """Write everything unsaved, and what the caller adds, in one transaction. On an error all stays unsaved."""
        self._apply_pending()
        parts = (self._episodes, self._skills, self._reasoning, self._viewers, self._sharing, self._changes)
        rows = [row for part in parts for row in part.rows()]
        self._store.write([*rows, *self._state_rows(wipe_wanted=False), *(further or ())])
        for part in parts:
            part.saved()
        self._applied_sequence = self._last_sequence
        self._unsaved_beside_journal = False
        self._retry_at_events = 0
        self._store.journal.restart()
        self._oldest_unsynced_at = None

    def _sync(self) -> None:
        self._store.journal.sync()
        self._oldest_unsynced_at = None

    def _window_is_over(self, now_ms: int) -> bool:
        """Also if the clock was set back, because nobody knows then how long the oldest record has waited."""
        oldest = self._oldest_unsynced_at
        return oldest is not None and not 0 <= now_ms - oldest < self._window_ms

    def _checkpoint_if_due(self) -> None:
        waiting = self._last_sequence - self._applied_sequence
        if waiting < max(self._checkpoint_events, self._retry_at_events):
            return
        try:
            self._commit()
        except StoreFullError:
            # The journal holds the events, and readers have them: only when it is full is there nothing left to do.
            self._retry_at_events = waiting + RETRY_EVENTS

    def _checkpoint_for_reader(self) -> None:
        """Make durable what a reader is about to pass on to the cloud."""
        self._require_open()
        if self._store.read_only:
            self._apply_pending()
        elif self._last_sequence > self._applied_sequence or self._unsaved_beside_journal:
            self._commit()

    def _require_open(self) -> None:
        if self._closed and not self._store:
            raise StoreError("this memory is closed; open another")

    def _require_writable(self) -> None:
        self._require_open()
        if self._store.read_only:
            raise StoreReadOnlyError(f"{self._store.path}: the store is open read-only; nothing can be recorded")
