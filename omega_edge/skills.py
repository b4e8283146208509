"""Tier 2, SkillLibrary: what a profile likes or not at a part of the day, from episodes that belong together."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import numpy as np

from omega_edge.centroids import Centroids, Held
from omega_edge.changes import ChangeLog, Tier
from omega_edge.codebook_record import Codebook
from omega_edge.compression import Encoding
from omega_edge.episodes import Episode, ReflexionMemory
from omega_edge.protocol import MIN_QUALITY_THRESHOLD
from omega_edge.skill_records import PartOfDay, RankedSkill, Skill, SkillSummary, part_of_day
from omega_edge.store import Row, Store
from omega_edge.tier_policy import Standing, score, wanted_encoding
from omega_edge.tiered_vectors import TieredVectors

JOIN_COSINE = 0.6
"""Episodes at least this near to a skill's centroid, or to one another, belong together. One random pair of titles in a
hundred is so near. Of 40 households with 80 to 308 viewings it gathers half of the episodes, in 4.8 skills each, more
than any lower or higher threshold; two titles of a skill have 0.49 of their genres in common, any two titles 0.22.
"""
MIN_EPISODES = 3
CENTROID_MEMORY = 32
"""A centroid is the mean of its episodes, but moves by at least 1/32 of the way: less is lost in an int8 code."""
SHARED_SKILLS = 20
SIMILARITY_WEIGHT = 0.4
"""rank = 0.4 * similarity + 0.3 * success + 0.1 * min(uses / 1000, 1) + 0.2 * mean reward, the product's definition."""
_LOOKED_AT = 64
"""How far the next skill to be considered is looked for: ids have gaps."""


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

    Centroids are held the more precisely the more they are in use (tier_policy.py); an episode that joins or is rated
    is a use. What a coarse centroid has lost does not come back by itself: the mean goes on from what the code says,
    and every episode that joins brings its own exact part. The records are rewritten with the next checkpoint, one
    skill considered an event, neighbours after one another, so that a page of the flash is written for several.
    """

    def __init__(
        self, store: Store, changes: ChangeLog, codebook: Codebook, max_skills: int, next_id: int, cursor: int = 0
    ) -> None:
        """Reads nothing yet. next_id: id of the next skill; ids are never used again. cursor: the skill whose encoding
        was considered last."""
        self._store = store
        self._changes = changes
        self._codebook = codebook
        self.cursor = cursor
        self._max_skills = max_skills
        self.next_id = next_id
        self._summaries: dict[int, SkillSummary] | None = None
        self._centroids: Centroids | None = None
        self._unsaved: dict[int, Skill | None] = {}
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        if self._centroids is None:
            return self._store.count("skills")
        return self._centroids.count

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
        key = skill_id.to_bytes(4, "big")
        record = self._store.get("skills", key)
        skill = None if record is None else Skill.from_fields(skill_id, record, self._codebook)
        if record is not None and skill is None and skill_id not in self._unreadable:
            self._unreadable.add(skill_id)
            self._store.damage.add("skills", key)
        return skill

    def consolidate(self, episode: Episode, episodes: ReflexionMemory) -> list[Episode]:
        """Let one episode join a skill, or found one with others that wait. Returns the episodes now counted."""
        if episode.skill_id or episode.standing is None:
            return []
        group = (episode.profile, part_of_day(episode.time_of_day))
        vector, scale = episodes.vector_of(episode)
        code = np.frombuffer(vector, np.int8)
        nearest = self._centroids_of(*group).search_code(code, scale, 1)
        if nearest and nearest[0][1] >= JOIN_COSINE:
            skill = self.get(nearest[0][0])
            if skill is None:  # its record was damaged since it was read
                self._all_centroids().delete(group, nearest[0][0])
                return self.consolidate(episode, episodes)
            self._join(skill, episode, episodes)
            self._keep(skill)
            return [episode]
        waiting = [
            other.sequence
            for other in episodes
            if not other.skill_id
            and other.standing is not None
            and other.sequence != episode.sequence
            and (other.profile, part_of_day(other.time_of_day)) == group
        ]
        if len(waiting) < MIN_EPISODES - 1:
            return []
        found = [
            sequence
            for sequence, cosine in episodes.near(code, scale, len(waiting), waiting)
            if cosine >= JOIN_COSINE
        ]
        if len(found) < MIN_EPISODES - 1:
            return []
        gathered = [episodes.get(sequence) for sequence in sorted((*found, episode.sequence))]
        self._found(group, gathered, episodes)
        return gathered

    def adjust(self, skill_id: int, before: Episode, after: Episode, now: int) -> None:
        """An episode that the skill counts now has another outcome, at event `now`."""
        skill = self.get(skill_id)
        if skill is None:
            return
        skill.count(before, -1)
        skill.count(after)
        self._use(skill, now)
        self._keep(skill)

    def consider_next(self, now: int) -> None:
        """Move the centroid of one skill, the next by id, where its score at event `now` says so."""
        for _ in range(min(_LOOKED_AT, self.next_id - 1)):
            self.cursor = self.cursor + 1 if self.cursor < self.next_id - 1 else 1
            skill = self.get(self.cursor)
            if skill is None:
                continue
            standing = skill.centroid.standing
            wanted = wanted_encoding(standing, score(standing, skill.sample_count, now), now)
            if wanted.coarse and not self._codebook.pays(len(self)):
                return
            if wanted is not standing.encoding and self._move(skill, wanted, now):
                self._unsaved[skill.skill_id] = skill
            return

    def usage(self) -> dict[Encoding, tuple[int, int]]:
        """Centroids and bytes in RAM by encoding; see TieredVectors. None are, before they are first needed."""
        return {} if self._centroids is None else self._centroids.usage()

    def stored_vectors(self) -> Counter[Encoding]:
        """How many records hold a centroid, by encoding."""
        if self._centroids is not None:
            return self._centroids.stored_vectors()
        found: Counter[Encoding] = Counter()
        for _skill_id, record in self._records():
            found[Standing.unpacked(record[13]).encoding if 13 in record else Encoding.INT8] += 1
        return found

    def rank_skills(self, query_vector: np.ndarray, k: int, profile: str | None = None) -> list[RankedSkill]:
        """The k skills of the highest rank for a vector float32[384], best first, ties by id.

        rank = 0.4 * similarity + 0.3 * success rate + 0.1 * min(uses / 1000, 1) + 0.2 * mean reward, where the uses
        are the episodes counted.
        """
        summaries = self._all_summaries()
        ranked = [
            (SIMILARITY_WEIGHT * cosine + summaries[skill_id].standing, -skill_id, cosine)
            for group, centroids in self._all_centroids().groups()
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
        self._all_centroids().delete((summary.profile, summary.part_of_day), skill_id)
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
            ("skills", skill_id.to_bytes(4, "big"), None) if skill is None else skill.row(self._codebook)
            for skill_id, skill in self._unsaved.items()
        ]

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()

    def all_rows(self) -> Iterator[Row]:
        """Every skill."""
        for skill in self:
            yield skill.row(self._codebook)

    # Inside --------------------------------------------------------------------------------------

    def _records(self) -> Iterator[tuple[int, dict]]:
        """Id and fields of every skill as it is now."""
        for key, record in self._store.items("skills"):
            skill_id = int.from_bytes(key, "big")
            if skill_id not in self._unsaved:
                yield skill_id, record
        for skill_id, skill in self._unsaved.items():
            if skill is not None:
                yield skill_id, skill.row(self._codebook)[2]

    def _all_summaries(self) -> dict[int, SkillSummary]:
        if self._summaries is None:
            self._summaries = {skill_id: SkillSummary.of_fields(record) for skill_id, record in self._records()}
            self._store.release_pages()
        return self._summaries

    def _all_centroids(self) -> Centroids:
        if self._centroids is None:
            self._centroids = Centroids(self._codebook)
            for skill_id, record in self._records():
                centroid = Held.unpacked(record[3], record[4], record.get(13), record[10], self._codebook)
                if centroid is not None:
                    self._centroids.read((record[1], PartOfDay(record[2])), skill_id, centroid)
            self._centroids.end_reading()
            self._store.release_pages()
        return self._centroids

    def _centroids_of(self, profile: str, part: PartOfDay) -> TieredVectors:
        return self._all_centroids().of((profile, part))

    def _found(self, group: tuple[str, PartOfDay], gathered: list[Episode], episodes: ReflexionMemory) -> None:
        first = gathered[0]
        centroid = Held(Standing.new(episodes.newest_sequence), *episodes.vector_of(first))
        skill = Skill(self.next_id, *group, centroid, 0, 0, 0, first.timestamp, first.timestamp, first.sequence)
        self.next_id += 1
        for episode in gathered:
            self._join(skill, episode, episodes)
        self._keep(skill)
        self._evict()

    def _join(self, skill: Skill, episode: Episode, episodes: ReflexionMemory) -> None:
        code, scale = episodes.vector_of(episode)
        vector, centroid = np.frombuffer(code, np.int8) * np.float32(scale), skill.centroid
        if skill.sample_count:
            weight = min(skill.sample_count, CENTROID_MEMORY)
            vector = vector + centroid.unit * np.float32(weight)
            centroid.standing.note_fidelity((weight * centroid.standing.fidelity + 1) / (weight + 1))
        self._use(skill, episodes.newest_sequence)
        self._set_centroid(skill, vector)
        skill.gather(episode)
        episode.skill_id = skill.skill_id

    def _use(self, skill: Skill, now: int) -> None:
        """Count a use of a skill's centroid, which may change its encoding. _keep() is to follow."""
        standing = skill.centroid.standing
        standing.use(now)
        wanted = wanted_encoding(standing, score(standing, skill.sample_count, now), now, used=True)
        if wanted is not standing.encoding:
            self._move(skill, wanted, now)

    def _move(self, skill: Skill, to: Encoding, now: int) -> bool:
        if not skill.centroid.move(to, now, self._codebook):
            return False
        self._all_centroids().put((skill.profile, skill.part_of_day), skill.skill_id, skill.centroid)
        return True

    def _set_centroid(self, skill: Skill, vector: np.ndarray) -> None:
        standing = skill.centroid.standing
        if standing.encoding.coarse:
            standing.enter(Encoding.INT8, standing.since)
        skill.centroid.replace((vector / np.linalg.norm(vector)).astype(np.float32))
        self._all_centroids().put((skill.profile, skill.part_of_day), skill.skill_id, skill.centroid)

    def _keep(self, skill: Skill) -> None:
        skill.version = self._changes.advance()
        self._unsaved[skill.skill_id] = skill
        if self._summaries is not None:
            self._summaries[skill.skill_id] = SkillSummary.of_fields(skill.row(self._codebook)[2])

    def _evict(self) -> None:
        while len(self) > self._max_skills:
            summaries = self._all_summaries()
            self.remove(min(summaries, key=lambda skill_id: (summaries[skill_id].value, skill_id)))
