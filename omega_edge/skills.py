"""Tier 2, SkillLibrary: what a profile likes or not at a part of the day, from episodes that belong together."""

from __future__ import annotations

import enum
import heapq
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from omega_edge.changes import ChangeLog, Tier
from omega_edge.episodes import Episode, ReflexionMemory
from omega_edge.protocol import EMBEDDING_DIMENSIONS, MIN_QUALITY_THRESHOLD, TimeOfDay
from omega_edge.store import Row, Store
from omega_edge.vectors import VectorStore

JOIN_COSINE = 0.6
"""Episodes at least this near to a skill's centroid, or to one another, belong together. One random pair of titles in a
hundred is so near. Of 40 households with 80 to 308 viewings it gathers half of the episodes, in 4.8 skills each, more
than any lower or higher threshold; two titles of a skill have 0.49 of their genres in common, any two titles 0.22.
"""
MIN_EPISODES = 3
MAX_MEMBERS = 24
"""Titles that a skill names; the lightest beyond are counted on without a name."""
CENTROID_MEMORY = 32
"""A centroid is the mean of its episodes, but moves by at least 1/32 of the way: less is lost in an int8 code."""
AGEING_EVENTS = 10_000
"""A skill that nothing was added to while so many events were recorded has lost 0.3 of its value."""
SHARED_SKILLS = 20
SIMILARITY_WEIGHT, SUCCESS_WEIGHT, USES_WEIGHT, REWARD_WEIGHT = 0.4, 0.3, 0.1, 0.2
"""rank = 0.4 * similarity + 0.3 * success + 0.1 * min(uses / 1000, 1) + 0.2 * mean reward, the product's definition."""
FULL_USES = 1000
_MICRO = 1_000_000


class PartOfDay(enum.IntEnum):
    """Context of a skill. Morning and afternoon go together, and evening and night: a viewing that begins in the
    one often ends in the other, while day and late hours differ in who watches."""

    DAY = 0
    LATE = 1


_READ_AT_ONCE = 1024
_PARTS = tuple(PartOfDay)
_DAY_TIMES = (TimeOfDay.MORNING, TimeOfDay.AFTERNOON)


def part_of_day(time_of_day: TimeOfDay) -> PartOfDay:
    """The context that a time of the day belongs to."""
    return PartOfDay.DAY if time_of_day in _DAY_TIMES else PartOfDay.LATE


@dataclass(slots=True)
class Member:
    """What one title contributes to a skill. reward_micro: sum of rewards in millionths, exact in any order."""

    content_title: str
    episodes: int = 0
    successes: int = 0
    reward_micro: int = 0
    last_sequence: int = 0


@dataclass(slots=True)
class Skill:
    """At least 3 episodes of one profile, near in embedding and at one part of the day.

    code, scale: the centroid, int8[384] as bytes. created_at, updated_at: timestamps of its first and last episode.
    titles: the member titles, by content id. version: of its last change.
    """

    skill_id: int
    profile: str
    part_of_day: PartOfDay
    code: bytes
    scale: float
    successes: int
    failures: int
    reward_micro: int
    created_at: int
    updated_at: int
    last_sequence: int
    titles: dict[str, Member] = field(default_factory=dict)
    version: int = 0

    @property
    def sample_count(self) -> int:
        """Episodes counted: successes and failures. It is also the number of uses in the rank."""
        return self.successes + self.failures

    @property
    def success_rate(self) -> float:
        """Share of successes, 0 to 1."""
        return self.successes / self.sample_count

    @property
    def mean_reward(self) -> float:
        """Mean reward, 0 to 1."""
        return self.reward_micro / _MICRO / self.sample_count

    @property
    def members(self) -> dict[str, float]:
        """Content id to weight: how many of the episodes are of that title."""
        return {content_id: float(member.episodes) for content_id, member in self.titles.items()}

    def row(self) -> Row:
        """The record."""
        titles = [
            [
                content_id,
                member.content_title,
                member.episodes,
                member.successes,
                member.reward_micro,
                member.last_sequence,
            ]
            for content_id, member in self.titles.items()
        ]
        fields = {
            1: self.profile,
            2: int(self.part_of_day),
            3: self.code,
            4: self.scale,
            5: self.successes,
            6: self.failures,
            7: self.reward_micro,
            8: self.created_at,
            9: self.updated_at,
            10: self.last_sequence,
            11: titles,
            12: self.version,
        }
        return "skills", self.skill_id.to_bytes(4, "big"), fields

    @staticmethod
    def from_fields(skill_id: int, record: dict) -> Skill:
        """The skill of a record."""
        return Skill(
            skill_id,
            record[1],
            PartOfDay(record[2]),
            record[3],
            record[4],
            record[5],
            record[6],
            record[7],
            record[8],
            record[9],
            record[10],
            {title[0]: Member(*title[1:]) for title in record[11]},
            record[12],
        )

    def count(self, episode: Episode, sign: int = 1) -> None:
        """Add an episode's outcome, or with sign -1 take it back."""
        reward = sign * round(episode.reward * _MICRO)
        if episode.success:
            self.successes += sign
        else:
            self.failures += sign
        self.reward_micro += reward
        member = self.titles.get(episode.content_id)
        if member is not None:
            member.episodes += sign
            member.successes += sign * episode.success
            member.reward_micro += reward

    def gather(self, episode: Episode) -> None:
        """Count one more episode, and name its title."""
        if episode.content_id not in self.titles:
            self.titles[episode.content_id] = Member(episode.content_title)
        self.count(episode)
        self.titles[episode.content_id].last_sequence = episode.sequence
        self.created_at = min(self.created_at, episode.timestamp)
        self.updated_at = max(self.updated_at, episode.timestamp)
        self.last_sequence = max(self.last_sequence, episode.sequence)
        if len(self.titles) > MAX_MEMBERS:
            lightest = min(self.titles, key=lambda name: (self.titles[name].episodes, self.titles[name].last_sequence))
            del self.titles[lightest]


@dataclass(frozen=True, slots=True)
class RankedSkill:
    """A skill, its centroid's cosine to the query, and its rank value."""

    skill: Skill
    similarity: float
    rank: float


@dataclass(slots=True)
class _Summary:
    """What ranking, sharing and eviction need of a skill, held in RAM for all of them."""

    profile: str
    part_of_day: PartOfDay
    successes: int
    samples: int
    mean_reward: float
    last_sequence: int
    version: int

    @staticmethod
    def of_fields(record: dict) -> _Summary:
        """The summary of a skill's record; its profile's name is held once for all."""
        samples = record[5] + record[6]
        return _Summary(
            sys.intern(record[1]),
            _PARTS[record[2]],
            record[5],
            samples,
            record[7] / _MICRO / samples,
            record[10],
            record[12],
        )

    @property
    def standing(self) -> float:
        """The part of the rank that does not depend on the query."""
        return (
            SUCCESS_WEIGHT * self.successes / self.samples
            + USES_WEIGHT * min(self.samples / FULL_USES, 1.0)
            + REWARD_WEIGHT * self.mean_reward
        )

    @property
    def value(self) -> float:
        """What eviction goes by; see SkillLibrary."""
        founded = min(math.log(self.samples) / math.log(FULL_USES), 1.0)
        return (
            0.3 * abs(2 * self.successes / self.samples - 1)
            + 0.2 * abs(2 * self.mean_reward - 1)
            + 0.2 * founded
            + 0.3 * self.last_sequence / AGEING_EVENTS
        )


class SkillLibrary:
    """Tier 2. In RAM are the centroids, and a summary of each skill, each from when it is first needed; the whole
    records are in the store.

    How episodes come together: taken in the order of recording, each joins the nearest skill of its profile and part
    of the day if the centroid's cosine is at least JOIN_COSINE. Else it waits; and once it and at least two waiting
    ones are that near to it, they become a skill. So what has been counted is never counted again, and counting
    after every viewing or after a thousand gives the same skills.

    Which skill is evicted beyond max_skills: the one of the least value, 0.3 * |2 * success rate - 1| +
    0.2 * |2 * mean reward - 1| + 0.2 * min(log(samples) / log(1000), 1) + 0.3 * last sequence / 10,000: clear and
    well-founded ones stay, and what nothing was added to for long goes in the end.
    """

    def __init__(self, store: Store, changes: ChangeLog, max_skills: int, next_id: int) -> None:
        """Reads nothing yet. next_id: id of the next skill; ids are never used again."""
        self._store = store
        self._changes = changes
        self._max_skills = max_skills
        self.next_id = next_id
        self._summaries: dict[int, _Summary] | None = None
        self._centroids: dict[tuple[str, PartOfDay], VectorStore] | None = None
        self._unsaved: dict[int, Skill | None] = {}

    def __len__(self) -> int:
        if self._centroids is None:
            return self._store.count("skills")
        return sum(centroids.count for centroids in self._centroids.values())

    def __iter__(self) -> Iterator[Skill]:
        """Every skill, by id."""
        for skill_id in sorted(self._all_summaries()):
            skill = self.get(skill_id)
            if skill is not None:
                yield skill

    def get(self, skill_id: int) -> Skill | None:
        """The skill with this id, or None."""
        if skill_id in self._unsaved:
            return self._unsaved[skill_id]
        record = self._store.get("skills", skill_id.to_bytes(4, "big"))
        return None if record is None else Skill.from_fields(skill_id, record)

    def consolidate(self, episode: Episode, episodes: ReflexionMemory) -> list[Episode]:
        """Let one episode join a skill, or found one with others that wait. Returns the episodes now counted."""
        if episode.skill_id or episode.code is None:
            return []
        group = (episode.profile, part_of_day(episode.time_of_day))
        code = np.frombuffer(episode.code, np.int8)
        nearest = self._centroids_of(*group).search_code(code, episode.scale, 1)
        if nearest and nearest[0][1] >= JOIN_COSINE:
            skill = self.get(nearest[0][0])
            if skill is None:  # its record was damaged since it was read
                self._centroids_of(*group).delete(nearest[0][0])
                return self.consolidate(episode, episodes)
            self._join(skill, episode)
            self._keep(skill)
            return [episode]
        waiting = [
            other.sequence
            for other in episodes
            if not other.skill_id
            and other.code is not None
            and other.sequence != episode.sequence
            and (other.profile, part_of_day(other.time_of_day)) == group
        ]
        if len(waiting) < MIN_EPISODES - 1:
            return []
        found = [
            sequence
            for sequence, cosine in episodes.near(code, episode.scale, len(waiting), waiting)
            if cosine >= JOIN_COSINE
        ]
        if len(found) < MIN_EPISODES - 1:
            return []
        gathered = [episodes.get(sequence) for sequence in sorted((*found, episode.sequence))]
        self._found(group, gathered)
        return gathered

    def adjust(self, skill_id: int, before: Episode, after: Episode) -> None:
        """An episode that the skill counts now has another outcome."""
        skill = self.get(skill_id)
        if skill is None:
            return
        skill.count(before, -1)
        skill.count(after)
        self._keep(skill)

    def rank_skills(self, query_vector: np.ndarray, k: int, profile: str | None = None) -> list[RankedSkill]:
        """The k skills of the highest rank for a vector float32[384], best first, ties by id.

        rank = 0.4 * similarity + 0.3 * success rate + 0.1 * min(uses / 1000, 1) + 0.2 * mean reward, where the uses
        are the episodes counted.
        """
        summaries = self._all_summaries()
        ranked = [
            (SIMILARITY_WEIGHT * cosine + summaries[skill_id].standing, -skill_id, cosine)
            for group, centroids in self._all_centroids().items()
            if centroids.count and (profile is None or group[0] == profile)
            for skill_id, cosine in centroids.search(query_vector, centroids.count)
        ]
        best = heapq.nlargest(k, ranked)
        found = [(self.get(-negative_id), cosine, rank) for rank, negative_id, cosine in best]
        return [RankedSkill(*item) for item in found if item[0] is not None]

    def shared_skills(self) -> list[Skill]:
        """The 20 skills with the most samples among those with success_rate of at least 0.7, most samples first."""
        good = [
            (summary.samples, -skill_id)
            for skill_id, summary in self._all_summaries().items()
            if summary.successes >= MIN_QUALITY_THRESHOLD * summary.samples
        ]
        best = [self.get(-negative_id) for _samples, negative_id in heapq.nlargest(SHARED_SKILLS, good)]
        return [skill for skill in best if skill is not None]

    def remove(self, skill_id: int) -> None:
        """Remove a skill, leaving a tombstone."""
        summary = self._all_summaries().pop(skill_id)
        self._changes.bury(Tier.SKILLS, skill_id)
        self._centroids_of(summary.profile, summary.part_of_day).delete(skill_id)
        self._unsaved[skill_id] = None

    def versions(self) -> Iterator[tuple[int, int]]:
        """Id and version of every skill."""
        return ((skill_id, summary.version) for skill_id, summary in self._all_summaries().items())

    def keep_changed(self, skill: Skill, centroid: np.ndarray | None) -> None:
        """Save a skill that was edited; with a centroid, float32[384], that is its new one."""
        if centroid is not None:
            self._set_centroid(skill, centroid)
        self._keep(skill)

    def rows(self) -> list[Row]:
        """What the store has to write."""
        return [
            ("skills", skill_id.to_bytes(4, "big"), None) if skill is None else skill.row()
            for skill_id, skill in self._unsaved.items()
        ]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()

    def all_rows(self) -> Iterator[Row]:
        """Every skill."""
        for skill in self:
            yield skill.row()

    # Inside --------------------------------------------------------------------------------------

    def _records(self) -> Iterator[tuple[int, dict]]:
        """Id and fields of every skill as it is now."""
        for key, record in self._store.items("skills"):
            skill_id = int.from_bytes(key, "big")
            if skill_id not in self._unsaved:
                yield skill_id, record
        for skill_id, skill in self._unsaved.items():
            if skill is not None:
                yield skill_id, skill.row()[2]

    def _all_summaries(self) -> dict[int, _Summary]:
        if self._summaries is None:
            self._summaries = {skill_id: _Summary.of_fields(record) for skill_id, record in self._records()}
            self._store.release_pages()
        return self._summaries

    def _all_centroids(self) -> dict[tuple[str, PartOfDay], VectorStore]:
        if self._centroids is None:
            self._centroids = {}
            read: dict[tuple[str, PartOfDay], tuple[list[int], bytearray, list[float]]] = {}
            for skill_id, record in self._records():
                group = (record[1], _PARTS[record[2]])
                ids, codes, scales = read.setdefault(group, ([], bytearray(), []))
                ids.append(skill_id)
                codes += record[3]
                scales.append(record[4])
                if len(ids) == _READ_AT_ONCE:
                    self._add_centroids(group, *read.pop(group))
            for group, columns in read.items():
                self._add_centroids(group, *columns)
            self._store.release_pages()
        return self._centroids

    def _add_centroids(
        self, group: tuple[str, PartOfDay], ids: list[int], codes: bytearray, scales: list[float]
    ) -> None:
        table = np.frombuffer(codes, np.int8).reshape(len(ids), EMBEDDING_DIMENSIONS)
        self._centroids_of(*group).upsert_codes(ids, table, np.array(scales, np.float32))

    def _centroids_of(self, profile: str, part: PartOfDay) -> VectorStore:
        return self._all_centroids().setdefault((profile, part), VectorStore())

    def _found(self, group: tuple[str, PartOfDay], gathered: list[Episode]) -> None:
        first = gathered[0]
        skill = Skill(
            self.next_id, *group, first.code, first.scale, 0, 0, 0, first.timestamp, first.timestamp, first.sequence
        )
        self.next_id += 1
        for episode in gathered:
            self._join(skill, episode)
        self._keep(skill)
        self._evict()

    def _join(self, skill: Skill, episode: Episode) -> None:
        vector = np.frombuffer(episode.code, np.int8) * np.float32(episode.scale)
        if skill.sample_count:
            weight = np.float32(min(skill.sample_count, CENTROID_MEMORY))
            vector = vector + np.frombuffer(skill.code, np.int8) * np.float32(skill.scale) * weight
        self._set_centroid(skill, vector)
        skill.gather(episode)
        episode.skill_id = skill.skill_id

    def _set_centroid(self, skill: Skill, vector: np.ndarray) -> None:
        vectors = self._centroids_of(skill.profile, skill.part_of_day)
        vectors.upsert(skill.skill_id, (vector / np.linalg.norm(vector)).astype(np.float32))
        code, scale = vectors.get(skill.skill_id)
        skill.code, skill.scale = code.tobytes(), float(scale)

    def _keep(self, skill: Skill) -> None:
        skill.version = self._changes.advance()
        self._unsaved[skill.skill_id] = skill
        if self._summaries is not None:
            self._summaries[skill.skill_id] = _Summary.of_fields(skill.row()[2])

    def _evict(self) -> None:
        while len(self) > self._max_skills:
            summaries = self._all_summaries()
            self.remove(min(summaries, key=lambda skill_id: (summaries[skill_id].value, skill_id)))
