"""The profiles of the household as they are at this moment: recent episodes, what each has seen, what each has hidden.

It takes in every journal entry at once, in RAM, before the tiers do; and it tells the tiers what an entry means
(a new episode, or another outcome of a recent one), so that both always agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from omega_edge.entries import Rated, Watched
from omega_edge.episodes import Episode, EpisodeKind, ReflexionMemory
from omega_edge.errors import ConfigError
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    MAX_TIMESTAMP_MS,
    SUCCESS_THRESHOLD,
    FeedbackKind,
    Profile,
    TimeOfDay,
)
from omega_edge.store import Row, Store

MAX_PROFILES = 15
SNOOZE_MS = 14 * 24 * 3600 * 1000
"""How long "not now" hides a title: 14 days."""
_FEEDBACK = tuple(FeedbackKind)
_FOR_EVER = frozenset({FeedbackKind.DISLIKE, FeedbackKind.NEVER})


@dataclass(frozen=True, slots=True)
class Revision:
    """Another outcome of an episode that is recorded already."""

    sequence: int
    engagement: float
    kind: EpisodeKind


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
    code: np.ndarray | None = field(repr=False, compare=False)
    scale: float = field(repr=False, compare=False)

    @staticmethod
    def of(episode: Episode, vector: tuple[bytes, float] | None) -> HistoryItem:
        """The item for an episode whose title has this vector."""
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
            code=None if vector is None else np.frombuffer(vector[0], np.int8),
            scale=0.0 if vector is None else vector[1],
        )


@dataclass(slots=True)
class Viewer:
    """One profile.

    seen: content id to the time last watched; seen_sequence: to the event that says so. finished: those watched with
    success at least once. hidden: content id to the feedback that hides it and until when, None for ever. recent:
    newest last. restored: whether its own record was lost, so that its limit is not the one that was set.
    """

    profile: Profile
    position: int
    recent: deque[Episode]
    event_count: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    seen_sequence: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    hidden: dict[str, tuple[FeedbackKind, int | None]] = field(default_factory=dict)
    restored: bool = False


class Viewers:
    """All profiles. Changes are kept until rows() was written."""

    def __init__(self, store: Store, window: int, *, new: bool) -> None:
        """Load profiles, seen and hidden sets. window: recent episodes kept of each profile. new: whether the store
        never held anything; only there is a default profile made that may see everything."""
        self._window = window
        self._viewers: dict[str, Viewer] = {}
        self._unsaved: set[tuple[str, str, str]] = set()
        self._outdated: set[int] = set()
        loaded = sorted(store.items("profiles"), key=lambda item: item[1][3])
        for key, record in loaded:
            profile = Profile(key.decode(), record[1], record[2])
            self._viewers[profile.id] = Viewer(profile, record[3], deque(maxlen=window), record[4])
            self._viewers[profile.id].restored = record.get(5, False)
        self.new = new and not loaded
        """Whether the default profile was made because there was nothing."""
        if self.new:
            self.set_profile(Profile(DEFAULT_PROFILE, "Household"))
        for key, record in store.items("seen"):
            viewer, content_id = self.owner(record[1]), record[2]
            viewer.seen[content_id] = record[3]
            viewer.seen_sequence[content_id] = int.from_bytes(key, "big")
            if record[4]:
                viewer.finished.add(content_id)
        for key, record in store.items("hidden"):
            profile, _separator, content_id = key.decode().partition("\0")
            viewer = self.owner(profile)
            viewer.hidden[content_id] = (_FEEDBACK[record[1]], record[2])

    def __iter__(self) -> Iterator[Viewer]:
        """Viewers in the order in which their profiles were added."""
        return iter(sorted(self._viewers.values(), key=lambda viewer: viewer.position))

    def __getitem__(self, profile: str) -> Viewer:
        viewer = self._viewers.get(profile)
        if viewer is None:
            raise ConfigError(
                f"profile: expected one of {', '.join(sorted(self._viewers))}, got {profile!r}; set_profile adds one"
            )
        return viewer

    @property
    def restored(self) -> list[str]:
        """Profiles whose record was lost and that were not set again since."""
        return [viewer.profile.id for viewer in self if viewer.restored]

    def load_recent(self, episodes: ReflexionMemory) -> None:
        """Take the recent episodes from the tier."""
        for profile in episodes.profiles():
            viewer = self.owner(profile)
            viewer.recent.extend(replace(episode) for episode in episodes.newest_of(profile))
            viewer.event_count = max(viewer.event_count, len(viewer.recent))
        self.owner(DEFAULT_PROFILE)

    def set_profile(self, profile: Profile) -> tuple[Profile, bool] | None:
        """Add a profile, or change the name or limit of the one with this id. Returns what undo_set_profile() needs."""
        known = self._viewers.get(profile.id)
        before = None if known is None else (known.profile, known.restored)
        if known is not None:
            known.profile, known.restored = profile, False
        elif len(self._viewers) >= MAX_PROFILES:
            raise ConfigError(
                f"profile: expected at most {MAX_PROFILES} profiles; forget one before adding {profile.id!r}"
            )
        else:
            position = 1 + max((viewer.position for viewer in self._viewers.values()), default=-1)
            self._viewers[profile.id] = Viewer(profile, position, deque(maxlen=self._window))
        self._unsaved.add(("profiles", profile.id, ""))
        return before

    def undo_set_profile(self, profile_id: str, before: tuple[Profile, bool] | None) -> None:
        """Take back a set_profile that could not be stored."""
        if before is not None:
            self._viewers[profile_id].profile, self._viewers[profile_id].restored = before
        else:
            del self._viewers[profile_id]
            self._unsaved.discard(("profiles", profile_id, ""))

    def take_viewing(self, sequence: int, entry: Watched) -> Episode:
        """Take in a viewing. Returns its episode.

        Its engagement is 1 for a rewatch, which is to watch again what was once watched with success; a title that
        was left and is taken up again is not one.
        """
        viewer = self[entry.profile]
        rewatch = entry.content_id in viewer.finished
        episode = Episode(
            sequence,
            entry.profile,
            entry.content_id,
            entry.content_title,
            entry.watch_percentage,
            entry.duration_seconds,
            entry.timestamp,
            entry.time_of_day,
            entry.day_of_week,
            entry.mood_hint,
            engagement=1.0 if rewatch else entry.watch_percentage,
        )
        viewer.seen[entry.content_id] = entry.timestamp
        if entry.watch_percentage >= SUCCESS_THRESHOLD:
            viewer.finished.add(entry.content_id)
        former = viewer.seen_sequence.get(entry.content_id)
        if former is not None:
            self._outdated.add(former)
        viewer.seen_sequence[entry.content_id] = sequence
        self._unsaved.add(("seen", entry.profile, entry.content_id))
        self._push(viewer, episode)
        return episode

    def take_rating(self, sequence: int, entry: Rated) -> Episode | Revision | None:
        """Take in what a viewer said: "not now" hides the title for 14 days, dislike and never for ever, like shows
        it again.

        Apart from "not now", it is another outcome of the newest of the recent episodes of the title, or, if there
        is none, an episode of its own.
        """
        viewer = self[entry.profile]
        self._hide(viewer, entry)
        if entry.kind is FeedbackKind.NOT_NOW:
            return None
        kind = EpisodeKind.LIKED if entry.kind is FeedbackKind.LIKE else EpisodeKind.DISLIKED
        engagement = 1.0 if entry.kind is FeedbackKind.LIKE else 0.0
        for episode in reversed(viewer.recent):
            if episode.content_id == entry.content_id:
                episode.engagement, episode.kind = engagement, kind
                return Revision(episode.sequence, engagement, kind)
        episode = Episode(
            sequence,
            entry.profile,
            entry.content_id,
            entry.content_title,
            None,
            0,
            entry.timestamp,
            entry.time_of_day,
            entry.day_of_week,
            None,
            engagement,
            kind,
        )
        self._push(viewer, episode)
        return episode

    def rows(self) -> list[Row]:
        """What the store has to write."""
        changed = [_row(table, self._viewers[profile], content_id) for table, profile, content_id in self._unsaved]
        return changed + [("seen", sequence.to_bytes(8, "big"), None) for sequence in self._outdated]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()
        self._outdated.clear()

    def all_rows(self) -> Iterator[Row]:
        """Every profile, seen and hidden title."""
        for viewer in self:
            yield from viewer_rows(viewer)

    def forget_title(self, content_id: str, removed: Iterable[Episode]) -> None:
        """Drop a title from every profile. removed: its episodes, which count no more. all_rows() is to follow."""
        for viewer in self._viewers.values():
            viewer.seen.pop(content_id, None)
            viewer.seen_sequence.pop(content_id, None)
            viewer.finished.discard(content_id)
            viewer.hidden.pop(content_id, None)
        for episode in removed:
            self._viewers[episode.profile].event_count -= 1

    def forget_profile(self, profile: str) -> None:
        """Drop a profile; the default one is emptied and stays. all_rows() is to follow."""
        viewer = self._viewers.pop(profile)
        if profile == DEFAULT_PROFILE:
            emptied = Profile(DEFAULT_PROFILE, "Household", viewer.profile.max_age_rating)
            self._viewers[profile] = Viewer(emptied, viewer.position, deque(maxlen=self._window))
            self._viewers[profile].restored = viewer.restored

    def _hide(self, viewer: Viewer, entry: Rated) -> None:
        standing = viewer.hidden.get(entry.content_id)
        if entry.kind is FeedbackKind.LIKE:
            viewer.hidden.pop(entry.content_id, None)
        elif entry.kind in _FOR_EVER:
            viewer.hidden[entry.content_id] = (entry.kind, None)
        elif standing is None or standing[0] is FeedbackKind.NOT_NOW:
            viewer.hidden[entry.content_id] = (entry.kind, min(entry.timestamp + SNOOZE_MS, MAX_TIMESTAMP_MS))
        self._unsaved.add(("hidden", entry.profile, entry.content_id))

    def _push(self, viewer: Viewer, episode: Episode) -> None:
        viewer.recent.append(replace(episode))
        viewer.event_count += 1
        self._unsaved.add(("profiles", viewer.profile.id, ""))

    def owner(self, profile: str) -> Viewer:
        """The viewer that a record belongs to. Where the profile's own record was damaged, it comes back under its id,
        and may see nothing that is not for everyone until set_profile() says otherwise: it may be a child's."""
        if profile not in self._viewers:
            self.set_profile(Profile(profile, profile, max_age_rating=0))
            self._viewers[profile].restored = True
        return self._viewers[profile]


def viewer_rows(viewer: Viewer) -> Iterator[Row]:
    """Every record of a profile."""
    yield _row("profiles", viewer, "")
    for table, content_ids in (("seen", viewer.seen), ("hidden", viewer.hidden)):
        for content_id in content_ids:
            yield _row(table, viewer, content_id)


def _row(table: str, viewer: Viewer, content_id: str) -> Row:
    profile = viewer.profile
    if table == "profiles":
        fields = {1: profile.name, 2: profile.max_age_rating, 3: viewer.position, 4: viewer.event_count}
        if viewer.restored:
            fields[5] = True
        return table, profile.id.encode(), fields
    if table == "seen":
        fields = {1: profile.id, 2: content_id, 3: viewer.seen[content_id], 4: content_id in viewer.finished}
        return table, viewer.seen_sequence[content_id].to_bytes(8, "big"), fields
    key = f"{profile.id}\0{content_id}".encode()
    hidden = viewer.hidden.get(content_id)
    return table, key, None if hidden is None else {1: _FEEDBACK.index(hidden[0]), 2: hidden[1]}
