"""Tier 1, ReflexionMemory: what was watched and how it went, one episode a viewing, the most telling 1,000 kept."""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from omega_edge.changes import ChangeLog, Tier
from omega_edge.codebook_record import Codebook
from omega_edge.compression import Encoding
from omega_edge.protocol import SUCCESS_THRESHOLD, TimeOfDay
from omega_edge.store import Row, Store
from omega_edge.tier_policy import Standing, score, wanted_encoding
from omega_edge.tiered_vectors import TieredVectors, coarse_form

WATCH_WEIGHT, ENGAGEMENT_WEIGHT = 0.7, 0.3
"""reward = 0.7 * watch + 0.3 * engagement, of the product's definition of tier 1."""
EXTREMITY_WEIGHT, NOVELTY_WEIGHT, AGE_WEIGHT = 0.5, 0.2, 0.3
ABANDONED_EARLY, ABANDONED_HALFWAY = 0.25, 0.55
_LOOKED_AT = 64
"""How far the next episode to be considered is looked for: sequences have gaps."""
_TIMES = tuple(TimeOfDay)

Vector = tuple[bytes, float]
"""int8[384] as bytes, and scale."""
CoarseVector = tuple[bytes, int, bool]
"""Coarse code, version of its codebook, and whether the exact vector is the catalogue's."""
CatalogueLookup = Callable[[str], Vector | None]


class EpisodeKind(str, enum.Enum):
    """What the viewer last did about the title: only watch it, or say what they think of it."""

    WATCHED = "watched"
    LIKED = "liked"
    DISLIKED = "disliked"


_KINDS = tuple(EpisodeKind)


@dataclass(slots=True)
class Episode:
    """One viewing, or a like or dislike of a title not watched of late.

    sequence: order of recording, which counts as the order of time, because clocks jump. watch_percentage: None if
    nothing was watched. engagement: 1 after a like or for a rewatch, 0 after a dislike or never, else
    watch_percentage. skill_id: the one skill that counts this episode, 0 if none does yet. code, scale: the title's
    int8[384] code as bytes, None if the title has no vector; memory holds it elsewhere, see ReflexionMemory.vector_of.
    version: of its last change. standing: of its vector, None while it has none.
    """

    sequence: int
    profile: str
    content_id: str
    content_title: str
    watch_percentage: float | None
    duration_seconds: int
    timestamp: int
    time_of_day: TimeOfDay
    day_of_week: int
    mood_hint: str | None
    engagement: float
    kind: EpisodeKind = EpisodeKind.WATCHED
    skill_id: int = 0
    code: bytes | None = None
    scale: float = 0.0
    version: int = 0
    standing: Standing | None = None

    @property
    def reward(self) -> float:
        """0.7 * watch + 0.3 * engagement, 0 to 1; where nothing was watched, the engagement stands for both."""
        return reward_of(self.watch_percentage, self.engagement)

    @property
    def success(self) -> bool:
        """Whether at least SUCCESS_THRESHOLD was watched, and it was not disliked; a like alone is a success."""
        return success_of(self.watch_percentage, self.kind)

    @property
    def critique(self) -> str:
        """Why it failed, in words; empty for a success."""
        return critique_of(self.watch_percentage, self.kind)

    def row(self, vector: Vector | CoarseVector | None) -> Row:
        """The record. vector: to be stored in it, None for one that is had from the catalogue when it is read."""
        record: dict[int, object] = {
            1: self.profile,
            2: self.content_id,
            3: self.content_title,
            4: self.watch_percentage,
            5: self.duration_seconds,
            6: self.timestamp,
            7: _TIMES.index(self.time_of_day),
            8: self.day_of_week,
            10: self.engagement,
            11: _KINDS.index(self.kind),
            12: self.skill_id,
            15: self.version,
        }
        if self.mood_hint is not None:
            record[9] = self.mood_hint
        if vector is not None:
            record[13], record[14] = vector[:2]
        if vector is not None and len(vector) == 3:
            record[17] = vector[2]
        if self.standing is not None and self.standing != Standing.new(self.sequence):
            record[16] = self.standing.packed()
        return "episodes", self.sequence.to_bytes(8, "big"), record

    @staticmethod
    def from_fields(sequence: int, record: dict) -> Episode:
        """The episode of a record."""
        return Episode(
            sequence,
            record[1],
            record[2],
            record[3],
            record[4],
            record[5],
            record[6],
            _TIMES[record[7]],
            record[8],
            record.get(9),
            record[10],
            _KINDS[record[11]],
            record[12],
            record.get(13),
            record.get(14, 0.0),
            record[15],
            Standing.unpacked(record[16]) if 16 in record else None,
        )


def reward_of(watch_percentage: float | None, engagement: float) -> float:
    """reward = 0.7 * watch + 0.3 * engagement; where nothing was watched, the engagement stands for both."""
    watched = engagement if watch_percentage is None else watch_percentage
    return WATCH_WEIGHT * watched + ENGAGEMENT_WEIGHT * engagement


def success_of(watch_percentage: float | None, kind: EpisodeKind) -> bool:
    """At least SUCCESS_THRESHOLD watched and not disliked; where nothing was watched, liked."""
    if watch_percentage is None:
        return kind is EpisodeKind.LIKED
    return kind is not EpisodeKind.DISLIKED and watch_percentage >= SUCCESS_THRESHOLD


def critique_of(watch_percentage: float | None, kind: EpisodeKind) -> str:
    """Why an episode failed: disliked, or abandoned early (below 25 %), halfway (below 55 %) or late."""
    if success_of(watch_percentage, kind):
        return ""
    if kind is EpisodeKind.DISLIKED:
        return "disliked" if watch_percentage is None else f"disliked after {watch_percentage:.0%}"
    if watch_percentage < ABANDONED_EARLY:
        return f"abandoned early, at {watch_percentage:.0%}"
    if watch_percentage < ABANDONED_HALFWAY:
        return f"abandoned halfway, at {watch_percentage:.0%}"
    return f"abandoned late, at {watch_percentage:.0%}"


@dataclass(frozen=True, slots=True)
class RetrievedEpisode:
    """An episode and its cosine to the query."""

    episode: Episode
    similarity: float


class ReflexionMemory:
    """Tier 1. All episodes are held in RAM; changes are kept until rows() was written.

    Which episode is evicted: the one of the least value,

        value = 0.5 * |2 * reward - 1|  +  0.2 if no skill counts it  -  0.3 * age / max_episodes

    A clear outcome teaches more than a lukewarm one; what a skill counts is not lost with the episode; and age, in
    events recorded since, lets everything go in the end (ageing by a rising floor as in GreedyDual: Young, "The
    k-server dual and loose competitiveness for paging", 1994; so the order of two episodes never changes with time).
    The newest `window` episodes of each profile are never evicted: ranking reads them.

    Vectors are int8 while they are in use and coarse later (tier_policy.py); never those of the newest `window`, nor
    of episodes that wait for a skill. What is coarse of a title of the catalogue is only what searches read: its
    vector is had from the catalogue as it always was, and is exact again at its next use. Of another title the code
    is all there is; used again, it is int8 of what the code says, and a new viewing brings an exact vector of its own.
    """

    def __init__(
        self,
        store: Store,
        changes: ChangeLog,
        codebook: Codebook,
        max_episodes: int,
        window: int,
        catalogued: CatalogueLookup,
        cursor: int = 0,
    ) -> None:
        """Load every episode. catalogued: the vector of a title, where the catalogue has it; it is not stored then.
        cursor: the episode whose encoding was considered last."""
        self._store = store
        self._changes = changes
        self._codebook = codebook
        self._max_episodes = max_episodes
        self._window = window
        self._catalogued = catalogued
        self.cursor = cursor
        self._episodes: dict[int, Episode] = {}
        self._newest: dict[str, list[int]] = {}
        self._viewings: Counter[str] = Counter()
        self._by_value: list[tuple[float, int]] | None = None
        self._unsaved: set[int] = set()
        self._own_vector: set[int] = set()
        self._vectors = TieredVectors(codebook)
        for key, record in store.items("episodes"):
            episode = Episode.from_fields(int.from_bytes(key, "big"), record)
            self._admit(episode)
            self._load_vector(episode, record)

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        """Episodes in the order of recording."""
        return iter(self._episodes.values())

    def get(self, sequence: int) -> Episode | None:
        """The episode with this sequence, or None."""
        return self._episodes.get(sequence)

    def newest_of(self, profile: str) -> list[Episode]:
        """The newest `window` episodes of a profile, oldest first."""
        return [self._episodes[sequence] for sequence in self._newest.get(profile, ())]

    def profiles(self) -> list[str]:
        """Profiles that have episodes."""
        return list(self._newest)

    @property
    def without_vector(self) -> int:
        """How many episodes wait for a vector."""
        return sum(episode.standing is None for episode in self._episodes.values())

    @property
    def newest_sequence(self) -> int:
        """Sequence of the newest episode kept, 0 if there is none: the time of day of the tiers."""
        return next(reversed(self._episodes), 0)

    def usage(self) -> dict[Encoding, tuple[int, int]]:
        """Vectors and bytes in RAM by encoding; see TieredVectors."""
        return self._vectors.usage()

    def stored_vectors(self) -> Counter[Encoding]:
        """How many records hold a vector, by encoding; those of catalogue titles hold only coarse ones."""
        standings = ((episode.sequence, episode.standing) for episode in self if episode.standing is not None)
        return Counter(
            standing.encoding
            for sequence, standing in standings
            if standing.encoding.coarse or sequence in self._own_vector
        )

    def vector_of(self, episode: Episode) -> Vector | None:
        """Code and scale of an episode's vector, or None if it has none."""
        if episode.standing is None:
            return None
        if episode.standing.encoding.coarse and episode.sequence not in self._own_vector:
            exact = self._catalogued(episode.content_id)
            if exact is not None:
                return exact
        code, scale = self._vectors.code(episode.sequence)
        return code.tobytes(), scale

    def copies(self) -> list[Episode]:
        """Every episode with its vector in it, for who is to keep them."""
        pairs = [(episode, self.vector_of(episode) or (None, 0.0)) for episode in self]
        return [replace(episode, code=code, scale=scale) for episode, (code, scale) in pairs]

    def add(self, episode: Episode, vector: Vector | None) -> None:
        """Take in the newest episode. note_change() and evict() are to follow."""
        self._admit(episode)
        if vector is not None:
            self.set_vector(episode, *vector)

    def set_vector(self, episode: Episode, code: bytes, scale: float) -> None:
        """Give an episode the vector that it lacked. note_change() is to follow."""
        episode.standing = Standing.new(episode.sequence)
        self._vectors.put_code(episode.sequence, np.frombuffer(code, np.int8), scale)
        if self._catalogued(episode.content_id) != (code, scale):
            self._own_vector.add(episode.sequence)

    def use(self, episode: Episode) -> None:
        """Count a use of an episode's vector, which brings a coarse one to int8. note_change() is to follow."""
        if episode.standing is None:
            return
        episode.standing.use(self.newest_sequence)
        self._move(episode, wanted_encoding(episode.standing, 1.0, self.newest_sequence, used=True))

    def consider_next(self, skills: int) -> None:
        """Move the vector of one episode, the next in the order of recording, where its score says so. skills: how many
        there are; see Codebook.pays."""
        newest = self.newest_sequence
        for _ in range(min(_LOOKED_AT, len(self._episodes))):
            self.cursor = self.cursor + 1 if self.cursor < newest else next(iter(self._episodes))
            episode = self._episodes.get(self.cursor)
            if episode is None:
                continue
            standing = episode.standing
            ready = standing is not None and episode.skill_id and self.cursor < self._newest[episode.profile][0]
            if ready and self._codebook.pays(skills):
                value = score(standing, self._viewings[episode.content_id], newest)
                # What comes in is int8, so there is nothing to be gained from more than that.
                wanted = max(wanted_encoding(standing, value, newest), Encoding.INT8)
                if self._move(episode, wanted):
                    self._unsaved.add(episode.sequence)
            return

    def note_change(self, episode: Episode) -> None:
        """Number the change of an episode, which is to be saved."""
        episode.version = self._changes.advance()
        self._unsaved.add(episode.sequence)
        if self._by_value is not None:
            heapq.heappush(self._by_value, (self._value(episode), episode.sequence))

    def evict(self) -> None:
        """Remove episodes of the least value until no more than max_episodes are left."""
        if len(self._episodes) <= self._max_episodes:
            return
        if self._by_value is None or len(self._by_value) > 4 * self._max_episodes:
            self._by_value = [(self._value(episode), episode.sequence) for episode in self]
            heapq.heapify(self._by_value)
        spared = []
        while len(self._episodes) > self._max_episodes:
            value, sequence = heapq.heappop(self._by_value)
            episode = self._episodes.get(sequence)
            if episode is None or value != self._value(episode):
                continue
            if sequence >= self._newest[episode.profile][0]:
                spared.append((value, sequence))
            else:
                self.remove(episode)
        for entry in spared:
            heapq.heappush(self._by_value, entry)

    def remove(self, episode: Episode) -> None:
        """Remove an episode and its vector, leaving a tombstone."""
        del self._episodes[episode.sequence]
        self._viewings[episode.content_id] -= 1
        self._changes.bury(Tier.EPISODES, episode.sequence)
        self._unsaved.add(episode.sequence)
        self._own_vector.discard(episode.sequence)
        self._vectors.delete(episode.sequence)

    def near(self, code: np.ndarray, scale: float, k: int, among: Iterable[int]) -> list[tuple[int, float]]:
        """The k nearest of some episodes, as (sequence, cosine), nearest first."""
        return self._vectors.search_code(code, scale, k, among)

    def retrieve(
        self,
        query_vector: np.ndarray,
        k: int,
        *,
        minimum_reward: float | None,
        successes_only: bool,
        failures_only: bool,
        since: int | None,
        until: int | None,
        profile: str | None,
    ) -> list[RetrievedEpisode]:
        """The k episodes nearest to a vector float32[384] among those that pass every filter."""
        passing = [
            episode.sequence
            for episode in self
            if episode.standing is not None
            and (minimum_reward is None or episode.reward >= minimum_reward)
            and not (successes_only and not episode.success)
            and not (failures_only and episode.success)
            and (since is None or episode.timestamp >= since)
            and (until is None or episode.timestamp <= until)
            and (profile is None or episode.profile == profile)
        ]
        if not passing:
            return []
        found = self._vectors.search(query_vector, k, passing)
        return [RetrievedEpisode(self._episodes[sequence], cosine) for sequence, cosine in found]

    def rows(self) -> list[Row]:
        """What the store has to write."""
        return [
            ("episodes", sequence.to_bytes(8, "big"), None)
            if (episode := self.get(sequence)) is None
            else episode.row(self._vector_to_store(episode))
            for sequence in self._unsaved
        ]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()

    def all_rows(self) -> list[Row]:
        """Every episode."""
        return [episode.row(self._vector_to_store(episode)) for episode in self]

    def _vector_to_store(self, episode: Episode) -> Vector | CoarseVector | None:
        own = episode.sequence in self._own_vector
        if episode.standing is not None and episode.standing.encoding.coarse:
            return self._vectors.coarse(episode.sequence), self._codebook.quantiser.version, not own
        return self.vector_of(episode) if own else None

    def _load_vector(self, episode: Episode, record: dict) -> None:
        """Hold the vector of an episode that was read: what its record holds, else the catalogue's."""
        standing, episode.standing = episode.standing or Standing.new(episode.sequence), None
        episode.code, episode.scale = None, 0.0
        if standing.encoding.coarse and self._codebook.knows(record[14]):
            self._codebook.adopt()
            code = np.frombuffer(record[13], np.uint8)[None]
            self._vectors.put_coarse(standing.encoding, [episode.sequence], code)
            if not record[17]:
                self._own_vector.add(episode.sequence)
            episode.standing = standing
            return
        if standing.encoding.coarse:
            # The codebook is lost. The title is looked up again, as one that never had a vector.
            self._store.damage.add("episodes", episode.sequence.to_bytes(8, "big"))
            standing.enter(Encoding.INT8, standing.since)
        vector = (record[13], record[14]) if isinstance(record.get(14), float) else self._catalogued(episode.content_id)
        if vector is None:
            return
        self._vectors.put_code(episode.sequence, np.frombuffer(vector[0], np.int8), vector[1])
        if isinstance(record.get(14), float):
            self._own_vector.add(episode.sequence)
        episode.standing = standing

    def _admit(self, episode: Episode) -> None:
        self._episodes[episode.sequence] = episode
        self._viewings[episode.content_id] += 1
        newest = self._newest.setdefault(episode.profile, [])
        newest.append(episode.sequence)
        del newest[: -self._window]

    def _value(self, episode: Episode) -> float:
        """Value without the part of age that all episodes share."""
        extremity = abs(2 * episode.reward - 1)
        novelty = 0.0 if episode.skill_id else 1.0
        youth = episode.sequence / self._max_episodes
        return EXTREMITY_WEIGHT * extremity + NOVELTY_WEIGHT * novelty + AGE_WEIGHT * youth

    def _move(self, episode: Episode, to: Encoding) -> bool:
        """Give an episode's vector another encoding. Returns whether it has it now."""
        standing, now = episode.standing, self.newest_sequence
        if to is standing.encoding:
            return False
        if to is Encoding.INT8:
            code, scale = self.vector_of(episode)
            if self._catalogued(episode.content_id) == (code, scale):
                standing.fidelity = 1.0
            else:  # also of a title that the catalogue has no more: what the code says is all there is now
                self._own_vector.add(episode.sequence)
            self._vectors.put_code(episode.sequence, np.frombuffer(code, np.int8), scale)
        elif to < standing.encoding:  # from signs to pq48 nothing is gained; only a use brings a vector back
            return False
        else:
            code = coarse_form(self._decoded(episode), standing, to, self._codebook.quantiser)
            if code is None:
                return False
            self._vectors.put_coarse(to, [episode.sequence], np.frombuffer(code, np.uint8)[None])
            self._codebook.adopt()
        standing.enter(to, now)
        return True

    def _decoded(self, episode: Episode) -> np.ndarray:
        code, scale = self._vectors.code(episode.sequence)
        return code * np.float32(scale)
