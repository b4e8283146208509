"""OmegaBrain: the one room that knows all the others of the television.

It composes catalogue, memory, ranking, policy, reasons and, where there is a model, text embedding. It is
synchronous and thread-safe: readers take immutable snapshots, writers pass one lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random, SystemRandom
from types import TracebackType
from typing import Self

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Title
from omega_edge.collective import Collective
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError, ModelUnavailable, StoreError
from omega_edge.exploration import Exposure
from omega_edge.home_states import HomeStates, check_exported_home_states
from omega_edge.inference import InferenceEngine
from omega_edge.knowledge import CollectiveKnowledge, check_exported_state
from omega_edge.maintenance import Maintenance
from omega_edge.memory import AgentMemory, HistoryItem, Recorded
from omega_edge.onboarding import SHOWN, check_favourites, titles_to_offer
from omega_edge.policy import Policy
from omega_edge.profile_view import ProfileView
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    MAX_TITLE_BYTES,
    MAX_TITLES_FINISHED_PER_PAGE,
    FeedbackKind,
    GlobalPatterns,
    PatternDelta,
    Profile,
    Recommendation,
    ViewContext,
    ViewingEvent,
    check_content_id,
    check_integer,
    check_profile_id,
    check_text,
    local_day,
    parse_feedback_kind,
)
from omega_edge.ranking import HISTORY_HELD
from omega_edge.recommender import Explanation, Recommender
from omega_edge.title_vectors import TitleVectors

MAX_RECOMMENDATIONS = 500
NO_CODEBOOK = "this bundle brings no codebook; vectors out of use stay at 8 bits"


def wall_clock_ms() -> int:
    """Unix milliseconds, UTC, from the system's clock."""
    return time.time_ns() // 1_000_000


class OmegaBrain:
    """The recommender of one television. Made by open(); see BrainConfig for its options."""

    def __init__(self, config: BrainConfig, clock: Callable[[], int], randomness: Random, secrecy: Random) -> None:
        """Use open(); this only composes. What it has taken is given back if a later step fails."""
        self.config = config
        self._clock = clock
        self._zone = config.zone()
        self._write_lock = threading.RLock()
        self._closed = False
        self._degraded: dict[str, str] = {}
        self._views: dict[str, ProfileView] = {}
        self._awaiting_vector: set[str] = set()
        self._maintenance = Maintenance(self.maintain, self._degraded)
        with ExitStack() as taken:
            self._catalog = taken.enter_context(Catalog.open(config.catalog_path))
            self._engine = self._open_engine()
            if self._engine is not None:
                taken.callback(self._engine.close)
            self._policy = Policy(self._catalog)
            self._title_vectors = TitleVectors(self._catalog, self._engine)
            self._memory = taken.enter_context(
                AgentMemory(
                    config.storage_path,
                    clock,
                    durability_window_secs=config.durability_window_secs,
                    max_episodes=config.max_episodes,
                    max_skills=config.max_patterns,
                    max_reasoning=config.max_reasoning,
                    vector_lookup=self._title_vectors.lookup,
                    catalogue_lookup=self._title_vectors.in_catalog,
                    quantiser=self._catalog.quantiser,
                )
            )
            self._knowledge = CollectiveKnowledge(self._catalog, self._memory)
            self._states = HomeStates(self._memory)
            self._recommender = Recommender(
                self._catalog, self._policy, self._knowledge, config.diversity, config.novelty, config.exploration, randomness
            )
            self.collective = Collective(
                self._write_lock, self._require_open, clock, self._catalog, self._memory, self._knowledge, config.sharing, secrecy
            )
            self._rebuild_views()
            self._taken = taken.pop_all()

    @classmethod
    def open(
        cls, config: BrainConfig, clock: Callable[[], int] = wall_clock_ms,
        randomness: Random | None = None, secrecy: Random | None = None,
    ) -> OmegaBrain:  # fmt: skip
        """Open the household's brain.

        clock: returns Unix milliseconds, UTC. randomness: what exploration draws from; if None, a generator seeded
        from the system's entropy. secrecy: what device ids and falsified reports are drawn from; if None, as it has to be
        where a home is real, the system's entropy. Raises CatalogError for a bundle that cannot be used, and
        StoreError (busy, damaged, newer) for a memory that cannot. A missing model, or a read-only file
        system, degrades and is named in stats().
        """
        if not isinstance(config, BrainConfig):
            raise ConfigError(f"config: expected a BrainConfig, got {type(config).__name__}; see BrainConfig.from_mapping")
        if not callable(clock):
            raise ConfigError(f"clock: expected a function that returns Unix milliseconds, got {type(clock).__name__}")
        randomness = Random(os.urandom(32)) if randomness is None else randomness
        brain = cls(config, clock, randomness, SystemRandom() if secrecy is None else secrecy)
        if config.background_maintenance:
            brain._maintenance.start()
        return brain

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Make everything durable and let go of the store. Closing twice is harmless."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._maintenance.tell_to_stop()
        self._maintenance.join()
        with self._write_lock:
            self._states.save()
            self.collective.save()
            self._taken.close()

    # Watching ------------------------------------------------------------------------------------

    def observe(self, event: ViewingEvent) -> Recorded:
        """Remember one viewing. It shapes the very next recommend().

        Returns its sequence number and whether it is durable already; if not, it is queued in the journal: a
        killed process does not lose it, a power cut can within durability_window_secs, flush() makes it durable.
        Events count in the order in which they are observed, whatever their timestamps. Raises ConfigError for
        an unknown profile, StoreError (full, read-only, damaged) when it was not recorded.
        """
        if not isinstance(event, ViewingEvent):
            raise ConfigError(f"event: expected a ViewingEvent, got {type(event).__name__}")
        with self._write_lock:
            profile = event.context.profile
            view = self._view(profile)
            recorded = self._memory.record(event)
            # Looked up, not embedded: that takes longer than observe may, and maintain() does it.
            found = self._title_vectors.lookup(event.content_id, event.content_title)
            code, scale = found if found is not None else (None, 0.0)
            item = HistoryItem(
                content_id=event.content_id,
                content_title=event.content_title,
                timestamp=event.timestamp,
                watch_percentage=event.watch_percentage,
                reward=event.watch_percentage,
                success=event.success,
                time_of_day=event.context.time_of_day,
                day_of_week=event.context.day_of_week,
                kind="watched",
                code=code,
                scale=scale,
            )
            view = view.with_event(self._catalog, item)
            self._views = {**self._views, profile: view}
            self._recommender.prepare(view)
            if code is None:
                self._awaiting_vector.add(profile)
            self._note_outcome(event)
            return recorded

    def _note_outcome(self, event: ViewingEvent) -> None:
        """Tell the patterns of the last list what came of it. The viewing itself is recorded whatever becomes of this."""
        row = self._catalog.row_of(event.content_id)
        try:
            self._knowledge.note_watched(event.context.profile, row, event.watch_percentage, self._clock())
        except StoreError as fault:
            self._degraded["outcomes of global patterns"] = str(fault)

    def feedback(
        self, content_id: str, kind: FeedbackKind | str, profile: str = DEFAULT_PROFILE, content_title: str | None = None
    ) -> Recorded:
        """What a viewer says of a title: like, dislike, not_now (hides it for two weeks) or never.

        content_title: needed only for a title outside the catalogue. Raises ProtocolError for another kind,
        ConfigError for an unknown profile or a title without a name.
        """
        self._require_open()
        check_content_id("content_id", content_id)
        kind = parse_feedback_kind(kind)
        row = self._catalog.row_of(content_id)
        if content_title is None:
            if row < 0:
                raise ConfigError(
                    f"content_title: expected the title's name, because the catalogue does not hold {content_id!r}"
                )
            content_title = self._catalog.name(row)
        check_text("content_title", content_title, MAX_TITLE_BYTES)
        with self._write_lock:
            self._view(profile)
            now_ms = self._clock()
            time_of_day, day_of_week = local_day(now_ms, self._zone)
            recorded = self._memory.feedback(
                profile, content_id, content_title, kind, now_ms, time_of_day=time_of_day, day_of_week=day_of_week
            )
            self._views = {**self._views, profile: self._built_view(profile)}
            return recorded

    def flush(self) -> None:
        """Return when everything observed so far is durable."""
        with self._write_lock:
            self._require_open()
            self._states.save()
            self._memory.flush()

    def checkpoint(self) -> None:
        """Move what waits in the journal into the database now, in one transaction, as before a firmware update."""
        with self._write_lock:
            self._require_open()
            self._states.save()
            self.collective.save()
            self._memory.checkpoint()

    def maintain(self) -> None:
        """Do the timed work that is due: sync the journal, checkpoint, embed titles that wait, consolidate.

        A thread calls this where background_maintenance is on; a caller with a virtual clock calls it itself.
        """
        with self._write_lock:
            self._require_open()
            self._states.save()
            self._memory.maintain(self._clock())
        if self._title_vectors.embed_waiting():
            with self._write_lock:
                self._require_open()
                self._memory.consolidate()
                awaited, self._awaiting_vector = self._awaiting_vector, set()
                for profile in awaited & self._views.keys():
                    self._views = {**self._views, profile: self._built_view(profile)}
        self._maintenance.return_freed_memory()

    # Recommending --------------------------------------------------------------------------------

    def now_context(
        self, profile: str = DEFAULT_PROFILE, mood_hint: str | None = None, at: int | None = None
    ) -> ViewContext:
        """The context of this moment, or of `at` (Unix milliseconds), for a profile."""
        view = self._view(profile)
        now_ms = self._clock() if at is None else at
        time_of_day, day_of_week = local_day(now_ms, self._zone)
        return ViewContext(time_of_day, day_of_week, view.recent_ids(self._policy, now_ms), mood_hint, profile)

    def recommend(self, context: ViewContext | None = None, k: int = 20) -> list[Recommendation]:
        """Up to k titles that the profile may see, has not seen and is likely to finish, best first.

        The list is spread for variety among its best 100 candidates, or k if that is more. context: now_context() if None. k: 1 to 500. Fewer come back only if fewer may be shown. Raises
        ConfigError for an unknown profile and ProtocolError for a mood_hint that is no genre of the catalogue.
        """
        check_integer("k", k, 1, MAX_RECOMMENDATIONS)
        context = self._checked_context(context)
        view, now_ms = self._view(context.profile), self._clock()
        rows, listed = self._recommender.recommend(view, context, now_ms, k)
        if self._recommender.patterns_count(view):
            self._knowledge.note_shown(context.profile, rows, now_ms)
        self._states.note_shown(context.profile, listed, now_ms)
        return listed

    def exposures(self) -> list[Exposure]:
        """Where the newest lists could have shown another title: each slot's propensity, and the share watched of it."""
        with self._write_lock:
            self._require_open()
            return self._states.exposures(self.config.max_episodes)

    def onboarding(self, profile: str = DEFAULT_PROFILE, k: int = SHOWN) -> list[Title]:
        """Up to k titles (1 to 500) to show to a new home, the most informative first; what it picks of them goes to
        pick_favourites. Titles that the profile may see and has said nothing of yet."""
        check_integer("k", k, 1, MAX_RECOMMENDATIONS)
        return titles_to_offer(self._catalog, self._policy, self._view(profile), self._clock(), k)

    def pick_favourites(self, content_ids: Sequence[str], profile: str = DEFAULT_PROFILE) -> Recorded:
        """Take 1 to 20 titles of the catalogue that a viewer knows and likes; three to five are what a new home needs.

        Each counts as a like, so as an event, the first as the newest; none is offered any more. Raises ConfigError for
        a title that the catalogue does not hold, or whose age rating the profile may not see; then none is taken, nor
        where StoreError (full, read-only) says that they cannot be kept.
        """
        with self._write_lock:
            check_favourites(self._catalog, self._policy, self._view(profile), content_ids, self._clock())
            self._states.pick(profile, content_ids)
            return [self.feedback(each, FeedbackKind.LIKE, profile) for each in reversed(content_ids)][-1]

    def _checked_context(self, context: ViewContext | None) -> ViewContext:
        if context is None:
            return self.now_context()
        if not isinstance(context, ViewContext):
            raise ConfigError(f"context: expected a ViewContext or None, got {type(context).__name__}")
        return context

    def explain(self, content_id: str, context: ViewContext | None = None) -> Explanation:
        """The score of one title of the catalogue taken apart, also of one that is seen, hidden or not available now.

        Raises ConfigError for a title that the catalogue does not hold, or whose age rating the profile may not see.
        """
        check_content_id("content_id", content_id)
        context = self._checked_context(context)
        return self._recommender.explain(self._view(context.profile), content_id, context, self._clock())

    def withheld_counts(self, profile: str = DEFAULT_PROFILE) -> dict[str, int]:
        """How many titles of the catalogue are withheld from a profile now, by reason."""
        return self._policy.withheld_counts(self._view(profile).household, self._clock())

    # Profiles ------------------------------------------------------------------------------------

    def profiles(self) -> tuple[Profile, ...]:
        """The household's profiles; the default one, "household", is always there."""
        self._require_open()
        return self._memory.profiles()

    def set_profile(self, profile: Profile) -> None:
        """Add a profile, or change the one with this id."""
        if not isinstance(profile, Profile):
            raise ConfigError(f"profile: expected a Profile, got {type(profile).__name__}")
        with self._write_lock:
            self._require_open()
            try:
                self._memory.set_profile(profile)
            finally:
                # Also after a failure the view says what memory says.
                self._rebuild_views()

    def _view(self, profile: str) -> ProfileView:
        self._require_open()
        check_profile_id("profile", profile)
        view = self._views.get(profile)
        if view is None:
            raise ConfigError(
                f"profile: expected one of {', '.join(sorted(self._views))}, got {profile!r}; set_profile adds one"
            )
        return view

    def _built_view(self, profile_id: str) -> ProfileView:
        profile = next(known for known in self._memory.profiles() if known.id == profile_id)
        return ProfileView.build(
            self._catalog,
            profile,
            self._memory.history(profile_id, HISTORY_HELD),
            self._memory.event_count(profile_id),
            {*self._memory.seen(profile_id), *self._states.favourites(profile_id)},
            self._memory.hidden(profile_id),
        )

    def _rebuild_views(self) -> None:
        self._views = {profile.id: self._built_view(profile.id) for profile in self._memory.profiles()}

    # Collective knowledge ------------------------------------------------------------------------

    def prepare_sync_delta(self, max_titles: int = MAX_TITLES_FINISHED_PER_PAGE) -> PatternDelta | None:
        """What has changed since the cloud's last acknowledgement, a page of titles or the rest; None unless sharing "titles".

        max_titles: how many finished titles the page may carry (1 to 600); wire.titles_that_fit tells how many fit
        into a request. Nothing counts as sent until acknowledge_sync with the delta's local_version.
        """
        return self.collective.prepare(check_integer("max_titles", max_titles, 1, MAX_TITLES_FINISHED_PER_PAGE))

    def acknowledge_sync(self, local_version: int) -> None:
        """The server holds the delta with this local_version. Only what that delta carried counts as sent."""
        self.collective.acknowledge(local_version)

    def apply_global_patterns(self, patterns: GlobalPatterns) -> int:
        """Take in what the cloud learned. Returns how many patterns and trends changed; idempotent."""
        return self.collective.apply(patterns)

    # The household's data ------------------------------------------------------------------------

    def export(self, profile: str | None = None) -> dict[str, object]:
        """All that is stored about the household, ready for JSON; import_export restores it.

        profile: only what this profile may see of its own viewing, for showing; it cannot be imported.
        """
        with self._write_lock:
            self._require_open()
            if profile is None:
                self._states.save()
                return self._memory.export_records()
            view = self._view(profile)
            items = self._memory.history(profile, self.config.max_episodes)
            viewings = view.viewings(self._catalog, self._policy, items, self._clock())
            return {"profile": {"id": profile, "name": view.household.profile.name}, "viewings": viewings}

    def import_export(self, exported: dict[str, object], replace_existing: bool = False) -> None:
        """Restore an export() into this brain. Refuses a memory that is not empty unless replace_existing."""
        with self._write_lock:
            self._require_open()
            check_exported_state(exported)
            check_exported_home_states(exported)
            try:
                with self.collective.rewriting(imported=True):
                    self._memory.import_records(exported, replace=replace_existing)
            finally:
                self._restart_from_memory()

    def forget(self, content_id: str | None = None, profile: str | None = None, everything: bool = False) -> None:
        """Forget one title, one profile's viewing, or everything. When it returns, no file names it any more.

        Exactly one of the three is given, else ConfigError.
        """
        if not isinstance(everything, bool):
            raise ConfigError(f"everything: expected True or False, got {everything!r}")
        if (content_id is not None) + (profile is not None) + everything != 1:
            raise ConfigError("forget: expected exactly one of content_id, profile and everything")
        with self._write_lock:
            self._require_open()
            if profile is not None:
                self._view(profile)
            if content_id is not None:
                check_content_id("content_id", content_id)
            self._title_vectors.forget()
            self._states.save()
            self.collective.save()
            try:
                with self.collective.rewriting():
                    self._memory.forget(content_id=content_id, profile=profile, everything=everything)
            finally:
                self._restart_from_memory()

    def stats(self) -> dict[str, object]:
        """Figures, the configuration in force, and every degraded feature by name. Holds no title."""
        with self._write_lock:
            self._require_open()
            memory = self._memory.stats()
            faults = self._degraded | self._catalog.faults | {
                name: fault
                for name, fault in (
                    ("text embedding", self._title_vectors.fault),
                    *self.collective.faults().items(),
                    ("favourites and explored lists", self._states.fault),
                    ("vector compression", None if memory["vectors"]["codebook"]["bytes"] else NO_CODEBOOK),
                )
                if fault is not None
            }
            degraded = [f"{name}: {fault}" for name, fault in sorted(faults.items())]
            return {
                "configuration": self.config.as_dict(),
                "instruction_set": kernels.isa,
                "catalog": {
                    "titles": self._catalog.count,
                    "lineage": self._catalog.lineage,
                    "version": self._catalog.version,
                    "built_at": self._catalog.built_at,
                },
                "model_version": self._engine.model_version if self._engine is not None else None,
                "profiles": len(self._views),
                "memory": memory,
                "global_version": self._knowledge.global_version,
                "sharing": self.config.sharing,
                "sync": self.collective.stats(),
                "degraded": degraded + list(memory["degraded"]),
            }

    # Inside --------------------------------------------------------------------------------------

    def _open_engine(self) -> InferenceEngine | None:
        if self.config.model_path is None:
            self._degraded["text embedding"] = "no model_path is configured; titles outside the catalogue have no vector"
            return None
        try:
            return InferenceEngine(self.config.model_path)
        except ModelUnavailable as fault:
            self._degraded["text embedding"] = str(fault)
            return None

    def _restart_from_memory(self) -> None:
        """After memory was rewritten, or failed to be: everything kept in RAM is made from it again."""
        self.collective.restart()
        self._states.reload()
        self._rebuild_views()

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigError("this brain is closed: open another with OmegaBrain.open")
