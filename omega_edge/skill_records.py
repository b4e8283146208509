"""A skill as it is stored, and what ranking, sharing and eviction need of it."""

from __future__ import annotations

import enum
import math
import sys
from dataclasses import dataclass, field

from omega_edge.centroids import Held
from omega_edge.codebook_record import Codebook
from omega_edge.episodes import Episode
from omega_edge.protocol import TimeOfDay
from omega_edge.store import Row

MAX_MEMBERS = 24
"""Titles that a skill names; the lightest beyond are counted on without a name."""
AGEING_EVENTS = 10_000
"""A skill that nothing was added to while so many events were recorded has lost 0.3 of its value."""
SUCCESS_WEIGHT, USES_WEIGHT, REWARD_WEIGHT = 0.3, 0.1, 0.2
FULL_USES = 1000
MICRO = 1_000_000


class PartOfDay(enum.IntEnum):
    """Context of a skill. Morning and afternoon go together, and evening and night: a viewing that begins in the
    one often ends in the other, while day and late hours differ in who watches."""

    DAY = 0
    LATE = 1


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

    centroid: and its encoding. created_at, updated_at: timestamps of its first and last episode. titles: the member titles, by content id. version: of its last change.
    """

    skill_id: int
    profile: str
    part_of_day: PartOfDay
    centroid: Held
    successes: int
    failures: int
    reward_micro: int
    created_at: int
    updated_at: int
    last_sequence: int
    titles: dict[str, Member] = field(default_factory=dict)
    version: int = 0

    @property
    def code(self) -> bytes:
        """The centroid, int8[384] as bytes, with `scale`."""
        return self.centroid.code

    @property
    def scale(self) -> float:
        """code * scale is the centroid as a unit vector."""
        return self.centroid.scale

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
        return self.reward_micro / MICRO / self.sample_count

    @property
    def members(self) -> dict[str, float]:
        """Content id to weight: how many of the episodes are of that title."""
        return {content_id: float(member.episodes) for content_id, member in self.titles.items()}

    def row(self, codebook: Codebook) -> Row:
        """The record."""
        encoded, scale, standing = self.centroid.packed(codebook)
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
            3: encoded,
            4: scale,
            5: self.successes,
            6: self.failures,
            7: self.reward_micro,
            8: self.created_at,
            9: self.updated_at,
            10: self.last_sequence,
            11: titles,
            12: self.version,
            13: standing,
        }
        return "skills", self.skill_id.to_bytes(4, "big"), fields

    @staticmethod
    def from_fields(skill_id: int, record: dict, codebook: Codebook) -> Skill | None:
        """The skill of a record, or None if its centroid cannot be read."""
        centroid = Held.unpacked(record[3], record[4], record.get(13), record[10], codebook)
        if centroid is None:
            return None
        return Skill(
            skill_id,
            record[1],
            PartOfDay(record[2]),
            centroid,
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
        reward = sign * round(episode.reward * MICRO)
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
class SkillSummary:
    """What ranking, sharing and eviction need of a skill, held in RAM for all of them."""

    profile: str
    part_of_day: PartOfDay
    successes: int
    samples: int
    mean_reward: float
    last_sequence: int
    version: int

    @staticmethod
    def of_fields(record: dict) -> SkillSummary:
        """The summary of a skill's record; its profile's name is held once for all."""
        samples = record[5] + record[6]
        return SkillSummary(
            sys.intern(record[1]),
            _PARTS[record[2]],
            record[5],
            samples,
            record[7] / MICRO / samples,
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
