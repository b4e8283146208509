"""Tier 3, ReasoningBank: patterns of many households, and what came of following them in this one."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from omega_edge.changes import ChangeLog, Tier
from omega_edge.entries import Outcome
from omega_edge.protocol import TitleReference, ViewingPattern
from omega_edge.store import Row, Store
from omega_edge.vectors import VectorStore

SIMILARITY_WEIGHT, UPLIFT_WEIGHT, LATENCY_WEIGHT = 0.7, 0.2, 0.1
"""U = 0.7 * similarity + 0.2 * mean uplift - 0.1 * latency, of the product's definition of causal recall."""
FULL_LATENCY_MS = 180_000
"""A decision of three minutes or more counts as latency 1: the product wants it shorter."""
_MICRO = 1_000_000


@dataclass(slots=True)
class ReasoningPattern:
    """A global pattern and its outcomes here.

    code, scale: what it resolves to on this television, int8[384] as bytes. references: the titles it came as, empty
    if it came as an embedding. Sums of rewards are in millionths, exact in any order.
    """

    pattern_id: int
    success_rate: float
    sample_count: int
    created_at: int
    updated_at: int
    references: tuple[TitleReference, ...]
    code_bytes: bytes
    scale: float
    followed: int = 0
    followed_reward_micro: int = 0
    not_followed: int = 0
    not_followed_reward_micro: int = 0
    latency_ms_sum: int = 0
    outcome_version: int = 0
    merge_version: int = 0

    @property
    def version(self) -> int:
        """Version of its last change, be it a merge or an outcome."""
        return max(self.outcome_version, self.merge_version)

    @property
    def outcomes(self) -> int:
        """Decisions in which it spoke."""
        return self.followed + self.not_followed

    @property
    def code(self) -> np.ndarray:
        """int8[384]."""
        return np.frombuffer(self.code_bytes, np.int8)

    @property
    def mean_uplift(self) -> float:
        """Mean reward when followed less mean reward when not, -1 to 1; 0 until both have happened."""
        if not self.followed or not self.not_followed:
            return 0.0
        followed = self.followed_reward_micro / self.followed
        return (followed - self.not_followed_reward_micro / self.not_followed) / _MICRO

    @property
    def mean_latency(self) -> float:
        """Mean time to decide, as a share of FULL_LATENCY_MS, 0 to 1; 0 before the first outcome."""
        return min(self.latency_ms_sum / self.outcomes / FULL_LATENCY_MS, 1.0) if self.outcomes else 0.0

    @property
    def value(self) -> float:
        """What eviction goes by: 0.5 * success rate + 0.2 * min(log(samples) / log(1000), 1) + 0.3 * mean uplift, and
        0.1 more if there is any outcome here, because that cannot be sent again."""
        return (
            0.5 * self.success_rate
            + 0.2 * min(math.log(self.sample_count) / math.log(1000), 1.0)
            + 0.3 * self.mean_uplift
            + 0.1 * bool(self.outcomes)
        )

    def content(self) -> tuple:
        """What a merge compares, the later first, so that two patterns of one id have the same order everywhere."""
        references = tuple((reference.content_id, reference.weight) for reference in self.references)
        return (self.updated_at, self.sample_count, self.success_rate, self.created_at, references, self.code_bytes)

    def row(self) -> Row:
        """The record of what was merged. Outcomes have a small one of their own, because they change far more often."""
        fields = {
            1: self.success_rate,
            2: self.sample_count,
            3: self.created_at,
            4: self.updated_at,
            5: [[reference.content_id, reference.weight] for reference in self.references],
            6: self.code_bytes,
            7: self.scale,
            8: self.merge_version,
        }
        return "reasoning", self.pattern_id.to_bytes(4, "big"), fields

    def outcome_row(self) -> Row:
        """The record of its outcomes, or the removal of that where there are none."""
        fields = {
            1: self.followed,
            2: self.followed_reward_micro,
            3: self.not_followed,
            4: self.not_followed_reward_micro,
            5: self.latency_ms_sum,
            6: self.outcome_version,
        }
        return "outcomes", self.pattern_id.to_bytes(4, "big"), fields if self.outcomes else None

    @staticmethod
    def from_fields(pattern_id: int, record: dict, outcomes: dict | None) -> ReasoningPattern:
        """The pattern of its records."""
        references = tuple(TitleReference(*reference) for reference in record[5])
        counted = (0, 0, 0, 0, 0, 0) if outcomes is None else tuple(outcomes[key] for key in range(1, 7))
        return ReasoningPattern(
            pattern_id,
            record[1],
            record[2],
            record[3],
            record[4],
            references,
            record[6],
            record[7],
            *counted,
            record[8],
        )


@dataclass(frozen=True, slots=True)
class RecalledPattern:
    """A pattern, its cosine to the query, and its utility."""

    pattern: ReasoningPattern
    similarity: float
    utility: float


class ReasoningBank:
    """Tier 3. All patterns are held in RAM; changes are kept until rows() was written."""

    def __init__(self, store: Store, changes: ChangeLog, max_patterns: int) -> None:
        """Load every pattern."""
        self._changes = changes
        self._max_patterns = max_patterns
        outcomes = dict(store.items("outcomes"))
        self._patterns = {
            (number := int.from_bytes(key, "big")): ReasoningPattern.from_fields(number, record, outcomes.get(key))
            for key, record in store.items("reasoning")
        }
        self._graves: dict[int, int] = {}
        self._unsaved: set[int] = set()
        self._unsaved_outcomes: set[int] = set()
        for key, record in store.items("graves"):
            if record[1] > changes.complete_from:
                self._graves[int.from_bytes(key, "big")] = record[1]
            else:
                self._unsaved.add(int.from_bytes(key, "big"))
        self._vectors: VectorStore | None = None

    def __len__(self) -> int:
        return len(self._patterns)

    def __iter__(self) -> Iterator[ReasoningPattern]:
        """Every pattern, by id."""
        return iter([self._patterns[pattern_id] for pattern_id in sorted(self._patterns)])

    def merge(self, pattern: ViewingPattern, code: np.ndarray, scale: float) -> bool:
        """Take in a pattern and what it resolves to. Returns whether anything changed; merging again changes nothing.

        Of two with one id the later update stands, whichever came first; outcomes stay. Beyond max_patterns the one
        of the least value goes, or the new one is not taken.
        """
        merged = ReasoningPattern(
            pattern.id,
            pattern.success_rate,
            pattern.sample_count,
            pattern.created_at,
            pattern.updated_at,
            pattern.references,
            code.tobytes(),
            float(scale),
        )
        known = self._patterns.get(pattern.id)
        if known is not None:
            if known.content() >= merged.content():
                return False
            merged.followed, merged.followed_reward_micro = known.followed, known.followed_reward_micro
            merged.not_followed, merged.not_followed_reward_micro = known.not_followed, known.not_followed_reward_micro
            merged.latency_ms_sum, merged.outcome_version = known.latency_ms_sum, known.outcome_version
        elif len(self._patterns) >= self._max_patterns:
            weakest = min(self, key=_standing)
            if _standing(merged) <= _standing(weakest):
                return False
            self.remove(weakest)
        self.keep(merged)
        if self._vectors is not None:
            self._vectors.upsert_code(merged.pattern_id, merged.code, merged.scale)
        return True

    def count(self, outcome: Outcome) -> None:
        """Count what came of a decision. Unknown ids are passed over: the pattern may have been evicted."""
        reward_micro = round(outcome.reward * _MICRO)
        for pattern in filter(None, map(self._patterns.get, outcome.followed)):
            pattern.followed += 1
            pattern.followed_reward_micro += reward_micro
            self._note_outcome(pattern, outcome)
        for pattern in filter(None, map(self._patterns.get, outcome.not_followed)):
            pattern.not_followed += 1
            pattern.not_followed_reward_micro += reward_micro
            self._note_outcome(pattern, outcome)

    def _note_outcome(self, pattern: ReasoningPattern, outcome: Outcome) -> None:
        pattern.latency_ms_sum += outcome.decision_latency_ms
        pattern.outcome_version = self._changes.advance()
        self._unsaved_outcomes.add(pattern.pattern_id)

    def recall_by_utility(self, query_vector: np.ndarray, k: int) -> list[RecalledPattern]:
        """The k patterns of the highest utility for a vector float32[384], best first, ties by id.

        U = 0.7 * similarity + 0.2 * mean uplift - 0.1 * mean latency; see ReasoningPattern.
        """
        if not self._patterns:
            return []
        if self._vectors is None:
            self._vectors = VectorStore()
            for pattern in self:
                self._vectors.upsert_code(pattern.pattern_id, pattern.code, pattern.scale)
        ranked = []
        for pattern_id, similarity in self._vectors.search(query_vector, len(self._patterns)):
            pattern = self._patterns[pattern_id]
            utility = (
                SIMILARITY_WEIGHT * similarity
                + UPLIFT_WEIGHT * pattern.mean_uplift
                - LATENCY_WEIGHT * pattern.mean_latency
            )
            ranked.append((utility, -pattern_id, similarity))
        return [
            RecalledPattern(self._patterns[-negative_id], similarity, utility)
            for utility, negative_id, similarity in heapq.nlargest(k, ranked)
        ]

    def remove(self, pattern: ReasoningPattern) -> None:
        """Remove a pattern, leaving a tombstone."""
        del self._patterns[pattern.pattern_id]
        self._graves[pattern.pattern_id] = self._changes.bury(Tier.REASONING, pattern.pattern_id)
        self._unsaved.add(pattern.pattern_id)
        self._unsaved_outcomes.add(pattern.pattern_id)
        if self._vectors is not None:
            self._vectors.delete(pattern.pattern_id)

    def keep(self, pattern: ReasoningPattern) -> None:
        """Number the change of a pattern, new or edited, which is to be saved."""
        grave = self._graves.pop(pattern.pattern_id, 0)
        if grave:
            self._changes.exhume(grave)
        pattern.merge_version = self._changes.advance()
        self._patterns[pattern.pattern_id] = pattern
        self._unsaved.add(pattern.pattern_id)

    def rows(self) -> list[Row]:
        """What the store has to write."""
        rows: list[Row] = []
        for pattern_id in self._unsaved:
            key = pattern_id.to_bytes(4, "big")
            pattern, grave = self._patterns.get(pattern_id), self._graves.get(pattern_id)
            rows.append(("reasoning", key, None) if pattern is None else pattern.row())
            rows.append(("graves", key, None if grave is None else {1: grave}))
        for pattern_id in self._unsaved_outcomes:
            pattern = self._patterns.get(pattern_id)
            removal: Row = ("outcomes", pattern_id.to_bytes(4, "big"), None)
            rows.append(removal if pattern is None else pattern.outcome_row())
        return rows

    def saved(self) -> None:
        """rows() has been written."""
        self._unsaved.clear()
        self._unsaved_outcomes.clear()

    def all_rows(self) -> Iterator[Row]:
        """Every pattern and tombstone."""
        for pattern in self:
            yield pattern.row()
            if pattern.outcomes:
                yield pattern.outcome_row()
        for pattern_id, version in self._graves.items():
            yield "graves", pattern_id.to_bytes(4, "big"), {1: version}


def _standing(pattern: ReasoningPattern) -> tuple[float, int]:
    return pattern.value, -pattern.pattern_id
