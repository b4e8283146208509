"""AgentMemory: what the television remembers of its household, durably, in three tiers.

The face of the memory: it checks arguments, holds one lock around everything, and answers. What happens behind it:
keeper.py (journal, checkpoints), viewers.py (profiles), episodes.py, skills.py, reasoning.py (the tiers), changes.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np

from omega_edge import forgetting
from omega_edge.changes import Change
from omega_edge.entries import Entry, Outcome, Rated, Recorded, Watched
from omega_edge.episodes import Episode, RetrievedEpisode
from omega_edge.errors import ConfigError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.exporting import export_records, holds_anything
from omega_edge.importing import import_records
from omega_edge.keeper import Keeper, VectorLookup
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
from omega_edge.quantiser import Quantiser
from omega_edge.reasoning import ReasoningPattern, RecalledPattern
from omega_edge.skills import RankedSkill, Skill
from omega_edge.validation import check_integer, check_text
from omega_edge.viewers import HistoryItem

CONSOLIDATE_EVERY_MS = 15 * 60 * 1000
"""How often maintain() looks up vectors that could not be had before."""
TAKEN_IN_AT_ONCE = 64
"""How many events maintain() lets the tiers take in, so that it is never long in the way."""
_U64_MAX, _K_MAX = (1 << 64) - 1, (1 << 31) - 1


class AgentMemory:
    """The memory of one household. Thread-safe: one lock around everything."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Callable[[], int],
        *,
        vector_lookup: VectorLookup,
        catalogue_lookup: Callable[[str], tuple[np.ndarray, float] | None] | None = None,
        quantiser: Quantiser | None = None,
        read_only: bool = False,
        durability_window_secs: int = 300,
        checkpoint_events: int = 1024,
        max_episodes: int = 1_000,
        max_skills: int = 10_000,
        max_reasoning: int = 500,
    ) -> None:
        """Open the memory in a folder, making it if it is missing.

        clock: returns Unix milliseconds, UTC. vector_lookup: code int8[384] and scale of a title (content id, title),
        None if there is none; asked when the tiers take an event in, and by history(). catalogue_lookup: the same by
        content id alone, for titles whose vector will be had again at the next open, as the catalogue's are: those
        are not stored. quantiser: the codebook by which vectors out of use are held; None: they stay as they are.
        durability_window_secs: how long an event may wait to be synced; 0 syncs each before record() returns.
        checkpoint_events: how many may wait in the journal. On a read-only file system it opens read-only.
        Raises StoreBusyError, StoreFullError, StoreDamagedError (written by a newer version), StoreError.
        """
        self._clock = clock
        self._window_ms = 1000 * check_integer("durability_window_secs", durability_window_secs, 0, 24 * 3600)
        self._lock = threading.RLock()
        self._closed = False
        self._oldest_unsynced_at: int | None = None
        self._consolidated_at: int | None = None
        self._keeper = Keeper(
            Path(path),
            vector_lookup,
            catalogue_lookup,
            quantiser=quantiser,
            read_only=read_only,
            checkpoint_events=check_integer("checkpoint_events", checkpoint_events, 1, 10_000),
            max_episodes=check_integer("max_episodes", max_episodes, 1, 1_000_000),
            max_skills=check_integer("max_skills", max_skills, 1, 1_000_000),
            max_reasoning=check_integer("max_reasoning", max_reasoning, 1, 1_000_000),
        )

    def __enter__(self) -> Self:
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
        part, weekday = local_day(check_timestamp("timestamp", timestamp), UTC)
        part = part if time_of_day is None else time_of_day
        weekday = weekday if day_of_week is None else day_of_week
        entry = Rated(profile, content_id, content_title, parse_feedback_kind(kind), timestamp, part, weekday)
        with self._lock:
            return self._take(entry, profile)

    def record_outcome(self, pattern_id: int, followed: bool, reward: float, decision_latency_ms: int) -> Recorded:
        """record_outcomes() for one pattern."""
        sides = ([pattern_id], []) if followed else ([], [pattern_id])
        return self.record_outcomes(*sides, reward, decision_latency_ms)

    def record_outcomes(
        self, followed: Iterable[int], not_followed: Iterable[int], reward: float, decision_latency_ms: int
    ) -> Recorded:
        """Remember, in one record, what came of a decision in which global patterns spoke.

        followed: ids of those that spoke for what was watched; not_followed: of the others. reward: of what was
        watched, 0 to 1. decision_latency_ms: from the list to the viewing. Patterns not kept any more are passed over.
        """
        entry = Outcome.checked(followed, not_followed, reward, decision_latency_ms)
        with self._lock:
            return self._take(entry, None)

    def flush(self) -> None:
        """Return when everything recorded so far is durable. Raises StoreError if it cannot be made so."""
        with self._lock:
            keeper = self._open_keeper()
            self._sync()  # first: a full disk may refuse the commit, and what was recorded lasts all the same
            if keeper.changed_beside_journal and not keeper.store.read_only:
                keeper.commit()

    def checkpoint(self) -> None:
        """Move what the journal holds into the database, in one transaction. If it raises, nothing is lost."""
        with self._lock:
            keeper = self._writable_keeper()
            if keeper.unsaved:
                keeper.commit()

    def maintain(self, now_ms: int | None = None) -> None:
        """Do the timed work that is due at now_ms (the clock's time if None): sync the journal when the durability
        window is over, let the tiers take in what is new, look up vectors that are still missing, and checkpoint when
        enough events wait."""
        with self._lock:
            keeper = self._open_keeper()
            if keeper.store.read_only:
                return
            now_ms = self._clock() if now_ms is None else now_ms
            if self._window_is_over(now_ms):
                self._sync()
            keeper.apply_pending(TAKEN_IN_AT_ONCE)
            if self._consolidated_at is None or not 0 <= now_ms - self._consolidated_at < CONSOLIDATE_EVERY_MS:
                self._consolidated_at = now_ms
                if keeper.episodes.without_vector:
                    keeper.consolidate()
            keeper.checkpoint_if_due()

    def close(self) -> None:
        """Make everything durable and let go of the store. Closing twice is harmless.

        What waits in the journal stays there, synced: a checkpoint at the end of every session would write the flash
        for a few events what it writes for a thousand. Merged patterns that a full disk does not take are let go.
        """
        with self._lock:
            if self._closed:
                return
            try:
                self.flush()
            except StoreFullError:
                pass
            finally:
                self._closed = True
                self._keeper.store.close()

    # Profiles and history ------------------------------------------------------------------------

    def profiles(self) -> tuple[Profile, ...]:
        """Profiles in the order in which they were added; the default one exists from the first open."""
        with self._lock:
            return tuple(viewer.profile for viewer in self._open_keeper().viewers)

    def set_profile(self, profile: Profile) -> None:
        """Add a profile, at most 15, or change the name or limit of the one with this id. Durable on return."""
        with self._lock:
            self._writable_keeper().set_profile(profile)

    def history(self, profile: str, limit: int) -> list[HistoryItem]:
        """The newest episodes of a profile, newest first, at most `limit` and as many as tier 1 keeps."""
        check_integer("limit", limit, 0, _K_MAX)
        with self._lock:
            return self._open_keeper().history(profile, limit)

    def event_count(self, profile: str) -> int:
        """How many episodes of a profile were ever recorded, and not forgotten."""
        with self._lock:
            return self._open_keeper().viewers[profile].event_count

    def seen(self, profile: str) -> Mapping[str, int]:
        """Content id to the time when it was last watched, of everything ever watched. Live; not to be changed."""
        with self._lock:
            return MappingProxyType(self._open_keeper().viewers[profile].seen)

    def hidden(self, profile: str) -> Mapping[str, tuple[FeedbackKind, int | None]]:
        """Content id to the feedback that hides it, and until when: None for ever. Live; not to be changed."""
        with self._lock:
            return MappingProxyType(self._open_keeper().viewers[profile].hidden)

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
        check_integer("k", k, 1, _K_MAX)
        with self._lock:
            keeper = self._applied_keeper()
            if profile is not None:
                keeper.viewers[profile]
            return keeper.episodes.retrieve(
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
        """Gather into skills what can be by now; doing it twice changes nothing. Returns how many episodes newly count.

        Every event is considered when the tiers take it in; what is left are those whose vector could not be had then.
        """
        with self._lock:
            return self._writable_keeper().consolidate()

    def rank_skills(self, query_vector: np.ndarray, k: int, profile: str | None = None) -> list[RankedSkill]:
        """The k skills of the highest rank for a unit vector float32[384], best first; see SkillLibrary.rank_skills."""
        check_integer("k", k, 1, _K_MAX)
        with self._lock:
            return self._applied_keeper().skills.rank_skills(query_vector, k, profile)

    def skills(self) -> list[Skill]:
        """Every skill, by id."""
        with self._lock:
            return list(self._applied_keeper().skills)

    def episodes(self) -> list[Episode]:
        """Every episode kept, in the order of recording."""
        with self._lock:
            return self._applied_keeper().episodes.copies()

    # Tier 3 --------------------------------------------------------------------------------------

    def merge_global_pattern(self, pattern: ViewingPattern, code: np.ndarray, scale: float) -> bool:
        """Take in a global pattern and the code int8[384] that it resolves to. Returns whether anything changed.

        Merging again changes nothing. It is saved with the next checkpoint, flush() or other write.
        """
        with self._lock:
            keeper = self._writable_keeper()
            changed = keeper.reasoning.merge(pattern, code, scale)
            keeper.changed_beside_journal |= changed
            return changed

    def patterns(self) -> tuple[ReasoningPattern, ...]:
        """The global patterns kept, by id. Not to be changed."""
        with self._lock:
            return tuple(self._open_keeper().reasoning)

    def recall_by_utility(self, query_vector: np.ndarray, k: int) -> list[RecalledPattern]:
        """The k global patterns of the highest utility for a unit vector float32[384]; see ReasoningBank."""
        check_integer("k", k, 1, _K_MAX)
        with self._lock:
            return self._open_keeper().reasoning.recall_by_utility(query_vector, k)

    # Changes and sharing -------------------------------------------------------------------------

    @property
    def local_version(self) -> int:
        """The counter of changes over all tiers. What it counted is durable."""
        with self._lock:
            return self._saved_keeper().changes.local_version

    @property
    def epoch(self) -> int:
        """Random u64, new when the memory is made, restored or wholly forgotten, so that counters never repeat."""
        with self._lock:
            return self._open_keeper().epoch

    def get_changes_since(self, version: int) -> list[Change]:
        """Exactly the changes after a version, oldest first, one for each record, removals included."""
        check_integer("version", version, 0, _U64_MAX)
        with self._lock:
            return self._saved_keeper().changes_since(version)

    def set_sharing_titles(self, sharing: bool, anew_since: int | None = None) -> None:
        """Keep a log of titles finished from now on, or stop and delete it. Durable on return, and states with it.

        anew_since: nothing counts as acknowledged any more, and the log holds again what was finished in episodes kept
        of a later sequence, beside what it holds.
        """
        with self._lock:
            if self._open_keeper().sharing.titles != bool(sharing) or anew_since is not None:
                keeper = self._writable_keeper()
                keeper.apply_pending()
                keeper.sharing.set_titles(bool(sharing))
                if anew_since is not None:
                    keeper.sharing.share_anew(each for each in keeper.episodes if each.sequence > anew_since)
                keeper.commit()

    def finished_log(self, limit: int) -> list[tuple[int, FinishedTitle]]:
        """The titles finished while sharing and not acknowledged, each with its version, oldest first, at most `limit`."""
        check_integer("limit", limit, 0, _K_MAX)
        with self._lock:
            return self._saved_keeper().sharing.finished(limit)

    def titles_finished_since_acknowledged(self, limit: int) -> list[FinishedTitle]:
        """finished_log() without the versions."""
        return [finished for _version, finished in self.finished_log(limit)]

    def shared_skills(self) -> list[Skill]:
        """The 20 skills with the most samples among those with success_rate of at least 0.7."""
        with self._lock:
            return self._saved_keeper().skills.shared_skills()

    def acknowledged_shared_set(self) -> dict[int, ViewingPattern | None]:
        """The patterns that the cloud has acknowledged, by id; None for one that named a forgotten title."""
        with self._lock:
            return dict(self._open_keeper().sharing.acknowledged)

    def acknowledge(self, local_version: int, titles: int, shared: Mapping[int, ViewingPattern]) -> None:
        """The cloud holds the delta of local_version: its first `titles` finished titles and the shared set.

        Durable on return. The counter advances, so that a next page has a version of its own.
        """
        check_integer("local_version", local_version, 0, _U64_MAX)
        check_integer("titles", titles, 0, _K_MAX)
        with self._lock:
            keeper = self._writable_keeper()
            keeper.apply_pending()
            keeper.sharing.acknowledge(local_version, titles, shared)
            keeper.commit()

    # States --------------------------------------------------------------------------------------

    def get_state(self, name: str) -> dict | None:
        """What set_state() kept under a name, or None."""
        with self._lock:
            return self._open_keeper().state(name)

    def set_state(self, name: str, state: dict) -> None:
        """Keep a dict of plain values under a name. It is saved as merged patterns are."""
        with self._lock:
            self._writable_keeper().set_state(name, state)

    # The household's data ------------------------------------------------------------------------

    def export_records(self) -> dict[str, object]:
        """All that is stored, ready for JSON; see exporting.py for its form. import_records() restores it."""
        with self._lock:
            return export_records(self._saved_keeper())

    def import_records(self, exported: dict[str, object], replace: bool = False) -> None:
        """Restore an export into this memory, in one step, durable on return. It begins a new epoch.

        Refuses, with ConfigError, a memory that is not empty unless `replace` is set: then what it held is forgotten.
        Raises ProtocolError if the export is not valid; then nothing has changed.
        """
        with self._lock:
            keeper = self._writable_keeper()
            if not replace and holds_anything(keeper):
                raise ConfigError("import_records: expected an empty memory; pass replace=True to forget what it holds")
            import_records(keeper, exported)
            self._oldest_unsynced_at = None

    def forget(self, content_id: str | None = None, profile: str | None = None, everything: bool = False) -> None:
        """Forget one title, one profile, or everything: exactly one of them is given, else ConfigError.
        When it returns, durably, no file under the storage folder holds the bytes of what was forgotten. After an
        error or a crash it is done wholly or not at all. Needs room for a second copy of the database.
        """
        if (content_id is not None) + (profile is not None) + bool(everything) != 1:
            raise ConfigError("forget: expected exactly one of content_id, profile and everything")
        with self._lock:
            keeper = self._writable_keeper()
            if content_id is not None:
                forgetting.forget_title(keeper, check_content_id("content_id", content_id))
            elif profile is not None:
                keeper.viewers[profile]
                forgetting.forget_profile(keeper, profile)
            else:
                forgetting.forget_everything(keeper)
            self._oldest_unsynced_at = None

    def stats(self) -> dict[str, object]:
        """Counts, sizes, counters, and what is damaged or degraded. Names no title."""
        with self._lock:
            return {"durability_window_secs": self._window_ms // 1000, **self._applied_keeper().statistics()}

    # Inside --------------------------------------------------------------------------------------

    def _take(self, entry: Entry, profile: str | None) -> Recorded:
        keeper = self._writable_keeper()
        if profile is not None:
            keeper.viewers[profile]
        sequence = keeper.take(entry)
        now_ms = self._clock()
        if self._oldest_unsynced_at is None:
            self._oldest_unsynced_at = now_ms
        if self._window_is_over(now_ms):
            try:
                self._sync()
            except StoreError as fault:
                keeper.faults["journal"] = str(fault)  # it is recorded, but not durable: so the result says
        keeper.checkpoint_if_due()
        if not keeper.store.journal.unsynced_records:
            self._oldest_unsynced_at = None
        return Recorded(sequence, durable=self._oldest_unsynced_at is None)

    def _sync(self) -> None:
        self._keeper.store.journal.sync()
        self._keeper.faults.pop("journal", None)
        self._oldest_unsynced_at = None

    def _window_is_over(self, now_ms: int) -> bool:
        """Also if the clock was set back, because nobody knows then how long the oldest record has waited."""
        oldest = self._oldest_unsynced_at
        return oldest is not None and not 0 <= now_ms - oldest < self._window_ms

    def _open_keeper(self) -> Keeper:
        if self._closed:
            raise StoreError("this memory is closed; open another")
        return self._keeper

    def _writable_keeper(self) -> Keeper:
        keeper = self._open_keeper()
        if keeper.store.read_only:
            raise StoreReadOnlyError(f"{keeper.store.path}: the store is open read-only; nothing can be recorded")
        return keeper

    def _applied_keeper(self) -> Keeper:
        """With the tiers as they are now."""
        keeper = self._open_keeper()
        keeper.apply_pending()
        return keeper

    def _saved_keeper(self) -> Keeper:
        """With everything durable, for a reader that passes it on: what it tells will not be taken back."""
        keeper = self._applied_keeper()
        self.flush()
        return keeper
