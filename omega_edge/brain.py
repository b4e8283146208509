"""OmegaBrain: the one room that knows all the others of the television.

It composes catalogue, memory, ranking, policy, reasons and, where there is a model, text embedding. It is
synchronous and thread-safe: readers take immutable snapshots, writers pass one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError, ModelUnavailable, OmegaError
from omega_edge.inference import InferenceEngine
from omega_edge.knowledge import CollectiveKnowledge
from omega_edge.memory import AgentMemory, HistoryItem, Recorded
from omega_edge.policy import Policy
from omega_edge.profile_view import ProfileView
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    EMBEDDING_DIMENSIONS,
    MAX_TITLE_BYTES,
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
from omega_edge.sharing import DeltaComposer

MAX_RECOMMENDATIONS = 500
MAINTENANCE_PERIOD_SECONDS = 5.0


def wall_clock_ms() -> int:
    """Unix milliseconds, UTC, from the system's clock."""
    return time.time_ns() // 1_000_000


class OmegaBrain:
    """The recommender of one television. Made by open(); see BrainConfig for its options."""

    def __init__(self, config: BrainConfig, clock: Callable[[], int]) -> None:
        """Use open(); this only composes."""
        self.config = config
        self._clock = clock
        self._zone = config.zone()
        self._write_lock = threading.RLock()
        self._closed = False
        self._degraded: dict[str, str] = {}
        self._catalog = Catalog.open(config.catalog_path)
        try:
            self._engine = self._open_engine()
            self._memory = AgentMemory(
                config.storage_path,
                clock,
                durability_window_secs=config.durability_window_secs,
                max_episodes=config.max_episodes,
                max_skills=config.max_patterns,
                max_reasoning=config.max_reasoning,
                vector_lookup=self._vector_of,
            )
        except BaseException:
            self._catalog.close()
            raise
        self._policy = Policy(self._catalog)
        self._knowledge = CollectiveKnowledge(self._catalog, self._memory)
        self._recommender = Recommender(self._catalog, self._policy, self._knowledge, config.diversity)
        self._composer = DeltaComposer(self._memory, config.sharing)
        self._views: dict[str, ProfileView] = {}
        self._awaiting_vector: set[str] = set()
        self._rebuild_views()
        self._stop = threading.Event()
        self._maintainer: threading.Thread | None = None

    @classmethod
    def open(cls, config: BrainConfig, clock: Callable[[], int] = wall_clock_ms) -> OmegaBrain:
        """Open the household's brain.

        clock: returns Unix milliseconds, UTC. Raises CatalogError for a bundle that cannot be used, and
        StoreError (busy, damaged, newer) for a memory that cannot. A missing model, or a read-only file
        system, degrades and is named in stats().
        """
        if not isinstance(config, BrainConfig):
            raise ConfigError(f"config: expected a BrainConfig, got {type(config).__name__}; see BrainConfig.from_mapping")
        brain = cls(config, clock)
        if config.background_maintenance:
            brain._start_maintenance()
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
            self._stop.set()
        if self._maintainer is not None and self._maintainer is not threading.current_thread():
            self._maintainer.join()
        with self._write_lock:
            try:
                self._memory.close()
            finally:
                if self._engine is not None:
                    self._engine.close()
                self._catalog.close()

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
            view = self._view(event.context.profile)
            recorded = self._memory.record(event)
            self._knowledge.note_watched(event.context.profile, event.content_id, event.watch_percentage, self._clock())
            code, scale = self._known_vector(event.content_id)
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
            self._views = {**self._views, event.context.profile: view.with_event(self._catalog, item)}
            if code is None and self._engine is not None:
                # Embedding takes longer than observe may: maintain() does it.
                self._awaiting_vector.add(event.context.profile)
            return recorded

    def feedback(
        self, content_id: str, kind: FeedbackKind | str, profile: str = DEFAULT_PROFILE, content_title: str | None = None
    ) -> Recorded:
        """What a viewer says of a title: like, dislike, not_now (hides it for two weeks) or never.

        content_title: needed only for a title outside the catalogue. Raises ProtocolError for another kind,
        ConfigError for an unknown profile or a title without a name.
        """
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
            recorded = self._memory.feedback(profile, content_id, content_title, kind, self._clock())
            self._views = {**self._views, profile: self._built_view(profile)}
            return recorded

    def flush(self) -> None:
        """Return when everything observed so far is durable."""
        with self._write_lock:
            self._require_open()
            self._memory.flush()

    def maintain(self) -> None:
        """Do the timed work that is due: sync the journal, checkpoint, consolidate, embed what waits.

        A thread calls this where background_maintenance is on; a caller with a virtual clock calls it itself.
        """
        with self._write_lock:
            self._require_open()
            self._memory.maintain(self._clock())
            awaited, self._awaiting_vector = self._awaiting_vector, set()
            for profile in awaited & self._views.keys():
                self._views = {**self._views, profile: self._built_view(profile)}

    # Recommending --------------------------------------------------------------------------------

    def now_context(
        self, profile: str = DEFAULT_PROFILE, mood_hint: str | None = None, at: int | None = None
    ) -> ViewContext:
        """The context of this moment, or of `at` (Unix milliseconds), for a profile."""
        view = self._view(profile)
        time_of_day, day_of_week = local_day(self._clock() if at is None else at, self._zone)
        return ViewContext(time_of_day, day_of_week, view.recent_ids(), mood_hint, profile)

    def recommend(self, context: ViewContext | None = None, k: int = 20) -> list[Recommendation]:
        """Up to k titles that the profile may see, has not seen and is likely to finish, best first.

        context: now_context() if None. k: 1 to 500. Fewer come back only if fewer may be shown. Raises
        ConfigError for an unknown profile and ProtocolError for a mood_hint that is no genre of the catalogue.
        """
        check_integer("k", k, 1, MAX_RECOMMENDATIONS)
        context = self.now_context() if context is None else context
        now_ms = self._clock()
        rows, listed = self._recommender.recommend(self._view(context.profile), context, now_ms, k)
        self._knowledge.note_shown(context.profile, rows, now_ms)
        return listed

    def explain(self, content_id: str, context: ViewContext | None = None) -> Explanation:
        """The score of one title of the catalogue taken apart, also of one that is seen, hidden or not available now.

        Raises ConfigError for a title that the catalogue does not hold, or whose age rating the profile may not see.
        """
        check_content_id("content_id", content_id)
        context = self.now_context() if context is None else context
        return self._recommender.explain(self._view(context.profile), content_id, context, self._clock())

    def withheld_counts(self, profile: str = DEFAULT_PROFILE) -> dict[str, int]:
        """How many titles of the catalogue are withheld from a profile now, by reason."""
        return self._policy.withheld_counts(self._view(profile).household, self._clock())

    # Profiles ------------------------------------------------------------------------------------

    def profiles(self) -> tuple[Profile, ...]:
        """The household's profiles; the default one, "household", is always there."""
        return self._memory.profiles()

    def set_profile(self, profile: Profile) -> None:
        """Add a profile, or change the one with this id."""
        if not isinstance(profile, Profile):
            raise ConfigError(f"profile: expected a Profile, got {type(profile).__name__}")
        with self._write_lock:
            self._require_open()
            self._memory.set_profile(profile)
            self._views = {**self._views, profile.id: self._built_view(profile.id)}

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
            self._memory.seen(profile_id),
            self._memory.hidden(profile_id),
        )

    def _rebuild_views(self) -> None:
        self._views = {profile.id: self._built_view(profile.id) for profile in self._memory.profiles()}

    # Collective knowledge ------------------------------------------------------------------------

    def prepare_sync_delta(self) -> PatternDelta | None:
        """What has changed since the cloud's last acknowledgement, one page of it; None unless sharing "titles".

        Preparing changes nothing: call acknowledge_sync with its local_version once the server has answered.
        """
        with self._write_lock:
            self._require_open()
            return self._composer.prepare()

    def acknowledge_sync(self, local_version: int) -> None:
        """The server holds the delta with this local_version. Only what that delta carried counts as sent."""
        with self._write_lock:
            self._require_open()
            self._composer.acknowledge(local_version)

    def apply_global_patterns(self, patterns: GlobalPatterns) -> int:
        """Take in what the cloud learned. Returns how many patterns and trends changed; idempotent."""
        if not isinstance(patterns, GlobalPatterns):
            raise ConfigError(f"patterns: expected GlobalPatterns, got {type(patterns).__name__}")
        with self._write_lock:
            self._require_open()
            return self._knowledge.apply(patterns)

    # The household's data ------------------------------------------------------------------------

    def export(self, profile: str | None = None) -> dict[str, object]:
        """All that is stored about the household, ready for JSON; import_export restores it.

        profile: only what this profile may see of its own viewing, for showing; it cannot be imported.
        """
        with self._write_lock:
            self._require_open()
            if profile is None:
                return self._memory.export_records()
            view = self._view(profile)
            items = self._memory.history(profile, self.config.max_episodes)
            rows = np.array([self._catalog.row_of(item.content_id) for item in items], np.int32)
            named = self._policy.may_name(view.household, [item.content_id for item in items], rows, self._clock())
            return {
                "profile": {"id": profile, "name": view.household.profile.name},
                "viewings": [
                    {
                        "content_id": item.content_id,
                        "content_title": item.content_title,
                        "timestamp": item.timestamp,
                        "watch_percentage": item.watch_percentage,
                        "kind": item.kind,
                    }
                    for item, shown in zip(items, named, strict=True)
                    if shown
                ],
            }

    def import_export(self, exported: dict[str, object], replace_existing: bool = False) -> None:
        """Restore an export() into this brain. Refuses a memory that is not empty unless replace_existing."""
        with self._write_lock:
            self._require_open()
            self._memory.import_records(exported, replace=replace_existing)
            self._knowledge.reload()
            self._rebuild_views()

    def forget(self, content_id: str | None = None, profile: str | None = None, everything: bool = False) -> None:
        """Forget one title, one profile's viewing, or everything. When it returns, no file names it any more.

        Exactly one of the three is given, else ConfigError.
        """
        if (content_id is not None) + (profile is not None) + bool(everything) != 1:
            raise ConfigError("forget: expected exactly one of content_id, profile and everything")
        with self._write_lock:
            self._require_open()
            if profile is not None:
                self._view(profile)
            if content_id is not None:
                check_content_id("content_id", content_id)
            self._memory.forget(content_id=content_id, profile=profile, everything=everything)
            if self._engine is not None:
                self._engine.clear_cache()
            self._knowledge.reload()
            self._rebuild_views()

    def stats(self) -> dict[str, object]:
        """Figures, the configuration in force, and every degraded feature by name. Holds no title."""
        with self._write_lock:
            self._require_open()
            memory = self._memory.stats()
            degraded = [f"{name}: {fault}" for name, fault in sorted(self._degraded.items())]
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

    def _known_vector(self, content_id: str) -> tuple[np.ndarray | None, float]:
        row = self._catalog.row_of(content_id)
        if row < 0:
            return None, 0.0
        return self._catalog.codes[row], float(self._catalog.scale[row])

    def _vector_of(self, content_id: str, content_title: str) -> tuple[np.ndarray, float] | None:
        """Code and scale of a title for memory: the bundle's, else embedded, else None. Never invented."""
        code, scale = self._known_vector(content_id)
        if code is not None:
            return code, scale
        if self._engine is None:
            return None
        try:
            vector = self._engine.embed(content_title)
        except ModelUnavailable as fault:
            self._degraded["text embedding"] = str(fault)
            return None
        except ConfigError:  # a name of invisible characters only has no meaning to embed
            return None
        codes, scales = np.empty((1, EMBEDDING_DIMENSIONS), np.int8), np.empty(1, np.float32)
        kernels.quantise(vector[None], codes, scales)
        return codes[0], float(scales[0])

    def _require_open(self) -> None:
        if self._closed:
            raise ConfigError("this brain is closed: open another with OmegaBrain.open")

    def _start_maintenance(self) -> None:
        self._maintainer = threading.Thread(target=self._maintain_until_stopped, name="omega-edge-maintenance", daemon=True)
        self._maintainer.start()

    def _maintain_until_stopped(self) -> None:
        while not self._stop.wait(MAINTENANCE_PERIOD_SECONDS):
            with self._write_lock:
                if self._closed:
                    return
                try:
                    self.maintain()
                except OmegaError as fault:
                    self._degraded["maintenance"] = str(fault)
                else:
                    self._degraded.pop("maintenance", None)
