"""Collective knowledge on the television: global patterns and trends, what ranking reads of them, and what came
of following them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    EMBEDDING_DIMENSIONS,
    MAX_REFERENCES_PER_PATTERN,
    GlobalPatterns,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)
from omega_edge.vectors import VectorStore

SHOWN_LIST_LIFE_MS = 6 * 3600 * 1000
"""A viewing counts as an answer to a list for this long after the list was shown."""
_STATE = "collective"


@dataclass(frozen=True, slots=True)
class _Shown:
    """The last list shown to a profile: when, and which patterns spoke for one of its titles."""

    at_ms: int
    patterns: frozenset[int]


class CollectiveKnowledge:
    """Takes in GlobalPatterns, keeps them in the ReasoningBank, and turns them into ranking's inputs.

    Callers hold the brain's write lock for apply, note_watched and reload; the other methods only read.
    """

    def __init__(self, catalog: Catalog, memory: AgentMemory) -> None:
        self._catalog = catalog
        self._memory = memory
        self._titles = VectorStore.over(catalog.codes, catalog.scale)
        self._shown: dict[str, _Shown] = {}
        self.reload()

    def reload(self) -> None:
        """Read the stored state again, after an import or a forget."""
        state = self._memory.get_state(_STATE) or {}
        self.global_version: int = state.get("global_version", 0)
        signals = [TrendSignal(*signal) for signal in state.get("trending", ())]
        self._trend_arrays = self._arrays_of(signals)
        self._votes = self._count_votes()
        self._shown = {}

    def trends(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32[n] of the short and the long window: the bundle's, or newer ones from the cloud."""
        return self._trend_arrays

    def pattern_votes(self) -> tuple[np.ndarray, np.ndarray]:
        """Titles that global patterns speak for, uint32[m], and how strongly, float32[m] in 0–1, a title once."""
        return self._votes

    def apply(self, patterns: GlobalPatterns) -> int:
        """Merge what the cloud sent. Older knowledge than what is held changes nothing. Returns the changes."""
        if patterns.global_version < self.global_version:
            return 0
        changed = 0
        for pattern in patterns.similar:
            resolved = self._resolved(pattern)
            if resolved is not None:
                changed += self._memory.merge_global_pattern(pattern, *resolved)
        state = {
            "global_version": patterns.global_version,
            "trending": [[signal.content_id, signal.score, signal.window_hours] for signal in patterns.trending],
        }
        before = self._memory.get_state(_STATE) or {}
        if not patterns.trending:
            state["trending"] = before.get("trending", [])
        if state != before:
            changed += state["trending"] != before.get("trending", [])
            self._memory.set_state(_STATE, state)
        self.reload()
        return changed

    def note_shown(self, profile: str, rows: np.ndarray, now_ms: int) -> None:
        """A list was shown. Remembered in RAM only, and only where a pattern spoke for one of its titles."""
        if not len(self._votes[0]):
            return
        shown = set(self._catalog.content_ids(rows.tolist()))
        speaking = frozenset(
            pattern.pattern_id
            for pattern in self._memory.patterns()
            if any(reference.content_id in shown for reference in self._references(pattern))
        )
        self._shown = {**self._shown, profile: _Shown(now_ms, speaking)}

    def note_watched(self, profile: str, content_id: str, watch_percentage: float, now_ms: int) -> None:
        """A title was watched: record, for each pattern of the last list, whether it was followed, and the outcome."""
        shown = self._shown.pop(profile, None)
        if shown is None or not 0 <= now_ms - shown.at_ms <= SHOWN_LIST_LIFE_MS:
            return
        for pattern in self._memory.patterns():
            if pattern.pattern_id in shown.patterns:
                followed = any(reference.content_id == content_id for reference in self._references(pattern))
                self._memory.record_outcome(
                    pattern.pattern_id, followed, watch_percentage, decision_latency_ms=now_ms - shown.at_ms
                )
        self._votes = self._count_votes()

    def _references(self, pattern) -> list:
        """Title references of a stored pattern; of one that came as an embedding, its nearest titles."""
        if pattern.references:
            return list(pattern.references)
        return self._nearest(pattern.code, pattern.scale)

    def _nearest(self, code: np.ndarray, scale: float) -> list:
        found = self._titles.search_code(code, scale, MAX_REFERENCES_PER_PATTERN)
        return [
            TitleReference(self._catalog.content_id(row), min(max(cosine, 0.0), 1.0)) for row, cosine in found
        ]

    def _resolved(self, pattern: ViewingPattern) -> tuple[np.ndarray, float] | None:
        """Code and scale of a pattern, or None if this catalogue holds none of its titles."""
        if pattern.embedding is not None:
            vector = np.frombuffer(pattern.embedding, "<f4").astype(np.float32)
        else:
            rows = [(self._catalog.row_of(reference.content_id), reference.weight) for reference in pattern.references]
            known = [(row, weight) for row, weight in rows if row >= 0 and weight > 0]
            if not known:
                return None
            vector = np.zeros(EMBEDDING_DIMENSIONS, np.float32)
            for row, weight in known:
                vector += np.float32(weight) * self._catalog.codes[row] * self._catalog.scale[row]
            if not np.any(vector):
                return None
        codes, scale = np.empty((1, EMBEDDING_DIMENSIONS), np.int8), np.empty(1, np.float32)
        kernels.quantise(np.ascontiguousarray(vector[None]), codes, scale)
        return codes[0], float(scale[0])

    def _count_votes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every pattern votes for its titles with reference weight times strength, the strength being its success
        rate moved by the uplift measured in this home; the strongest title gets 1."""
        votes: dict[int, float] = {}
        for pattern in self._memory.patterns():
            strength = min(max(pattern.success_rate + pattern.mean_uplift, 0.0), 1.0)
            for reference in self._references(pattern):
                row = self._catalog.row_of(reference.content_id)
                if row >= 0:
                    votes[row] = votes.get(row, 0.0) + reference.weight * strength
        rows = np.array(sorted(votes), np.uint32)
        weights = np.array([votes[row] for row in rows.tolist()], np.float32)
        return rows, weights / weights.max() if len(weights) and weights.max() > 0 else weights

    def _arrays_of(self, signals: list[TrendSignal]) -> tuple[np.ndarray, np.ndarray]:
        """The bundle's trend scores, each window replaced by the signals nearest to it where there are any.

        A signal's score is on the bundle's scale, 1 for the strongest title; more counts as 1.
        """
        arrays = [trend.scores for trend in self._catalog.trends]
        hours = np.array([trend.window_hours for trend in self._catalog.trends])
        replaced: dict[int, np.ndarray] = {}
        for signal in signals:
            window = int(np.argmin(np.abs(hours - signal.window_hours)))
            array = replaced.setdefault(window, np.zeros(self._catalog.count, np.float32))
            row = self._catalog.row_of(signal.content_id)
            if row >= 0:
                array[row] = min(signal.score, 1.0)
        short, long = (replaced.get(window, array) for window, array in enumerate(arrays))
        return short, long
