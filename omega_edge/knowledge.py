"""Collective knowledge on the television: global patterns and trends, what ranking reads of them, and what came
of following them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.codes import vector_of
from omega_edge.cohorts import Cohorts
from omega_edge.errors import ProtocolError
from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    MAX_REFERENCES_PER_PATTERN,
    GlobalPatterns,
    TrendSignal,
    ViewingPattern,
    check_timestamp,
)
from omega_edge.ranking import History
from omega_edge.reasoning import ReasoningPattern
from omega_edge.vectors import VectorStore, quantised

SHOWN_LIST_LIFE_MS = 6 * 3600 * 1000
"""A viewing counts as an answer to a list for this long after the list was shown."""
WINDOW_RATIO = 2.0
"""A trend of a window more than this times longer or shorter than the bundle's is another thing, and is left out."""
STATE = "collective"


@dataclass(frozen=True, slots=True)
class Trends:
    """Scores float32[n] of the short and the long window, and the moment (Unix ms) that each tells of."""

    scores: tuple[np.ndarray, np.ndarray]
    as_of: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Voices:
    """Which patterns speak for which titles, resolved once. Entry i: pattern ids[i] names title rows[i] with weight
    weights[i] (float32) before the pattern's strength. votes: rows uint32[m] and float32[m] in 0–1, as ranking reads them.
    """

    ids: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    votes: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Shown:
    """The last list shown to a profile: when, and its rows."""

    at_ms: int
    rows: np.ndarray


class CollectiveKnowledge:
    """Takes in GlobalPatterns, keeps them in the ReasoningBank, and turns them into ranking's inputs.

    Callers hold the brain's write lock for apply, note_watched and reload. The other methods take no lock: they read
    values that are replaced whole.
    """

    def __init__(self, catalog: Catalog, memory: AgentMemory) -> None:
        self._catalog = catalog
        self._memory = memory
        self._titles = VectorStore.over(catalog.codes, catalog.scale)
        self._cohorts = Cohorts(catalog)
        self._shown: dict[str, _Shown] = {}
        self.fault: str | None = None
        self.reload()

    def reload(self) -> None:
        """Read the stored state again, after an import or a forget. What cannot be read counts as never received, and
        fault says so."""
        self.fault = None
        try:
            self.global_version, signals, applied_at = parse_state(self._memory.get_state(STATE))
        except ProtocolError as unreadable:
            self.fault = f"stored trends cannot be read ({unreadable}); they come again with the next sync"
            self.global_version, signals, applied_at = 0, (), 0
        self._trends = self._trends_of(signals, applied_at)
        self._voices = self._resolved_voices()
        self._shown = {}

    def trends(self) -> Trends:
        """What is watched now, as the bundle or, newer, the cloud tells it."""
        return self._trends

    def pattern_votes(self, history: History) -> tuple[np.ndarray, np.ndarray]:
        """Titles that global patterns speak for, uint32[m], and how strongly, float32[m] in 0–1, a title once.

        Where the cloud sent none that speak, those of the bundle's cohort that this history is nearest to: which one that is
        never leaves the television.
        """
        return self._voices.votes if len(self._voices.rows) else self._cohorts.votes(history)

    def apply(self, patterns: GlobalPatterns, now_ms: int) -> int:
        """Merge what the cloud sent. Older knowledge than what is held changes nothing. Returns the changes.

        It is durable with the next checkpoint. Lost before that, it comes again: global_version is lost with it.
        """
        if patterns.global_version < self.global_version:
            return 0
        changed = 0
        for pattern in patterns.similar:
            resolved = self._code_of(pattern)
            if resolved is not None:
                changed += self._memory.merge_global_pattern(pattern, *resolved)
        before = self._memory.get_state(STATE) or {}
        trending = [[signal.content_id, signal.score, signal.window_hours] for signal in patterns.trending]
        state = {
            "global_version": patterns.global_version,
            "trending": trending or before.get("trending", []),
            "applied_at": before.get("applied_at", 0),
        }
        if trending and trending != before.get("trending"):
            state["applied_at"] = now_ms
            changed += 1
        if state != before:
            self._memory.set_state(STATE, state)
        self.reload()
        return changed

    def note_shown(self, profile: str, rows: np.ndarray, now_ms: int) -> None:
        """A list was shown in which patterns had weight. Remembered in RAM only."""
        if len(self._voices.rows):
            self._shown = {**self._shown, profile: _Shown(now_ms, rows)}

    def note_watched(self, profile: str, row: int, watch_percentage: float, now_ms: int) -> None:
        """A title (its catalogue row, -1 outside) was watched: record which patterns of the last list were followed."""
        shown = self._shown.pop(profile, None)
        if shown is None or not 0 <= now_ms - shown.at_ms <= SHOWN_LIST_LIFE_MS:
            return
        voices = self._voices
        speaking = set(voices.ids[np.isin(voices.rows, shown.rows)].tolist())
        followed = speaking & set(voices.ids[voices.rows == row].tolist())
        if speaking:
            self._memory.record_outcomes(followed, speaking - followed, watch_percentage, now_ms - shown.at_ms)
            self._voices = self._weighed(voices.ids, voices.rows, voices.weights)

    def _resolved_voices(self) -> _Voices:
        ids, rows, weights = [], [], []
        for pattern in self._memory.patterns():
            for row, weight in self._references(pattern):
                ids.append(pattern.pattern_id)
                rows.append(row)
                weights.append(weight)
        return self._weighed(np.array(ids, np.int64), np.array(rows, np.int64), np.array(weights, np.float32))

    def _weighed(self, ids: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> _Voices:
        """Every pattern votes for its titles with reference weight times strength, the strength being its success
        rate moved by the uplift measured in this home; the strongest title gets 1."""
        strength = {
            pattern.pattern_id: min(max(pattern.success_rate + pattern.mean_uplift, 0.0), 1.0)
            for pattern in self._memory.patterns()
        }
        voiced, inverse = np.unique(rows, return_inverse=True)
        strengths = np.array([strength.get(pattern_id, 0.0) for pattern_id in ids.tolist()], np.float64)
        votes = np.bincount(inverse, weights * strengths, minlength=len(voiced))
        strongest = votes.max(initial=0.0)
        scaled = (votes / strongest if strongest > 0 else votes).astype(np.float32)
        return _Voices(ids, rows, weights, (voiced.astype(np.uint32), scaled))

    def _references(self, pattern: ReasoningPattern) -> list[tuple[int, float]]:
        """Rows and weights of a stored pattern's titles; of one that came as an embedding, its nearest titles."""
        if pattern.references:
            found = [(self._catalog.row_of(one.content_id), one.weight) for one in pattern.references]
            return [(row, weight) for row, weight in found if row >= 0]
        nearest = self._titles.search_code(pattern.code, pattern.scale, MAX_REFERENCES_PER_PATTERN)
        return [(row, min(max(cosine, 0.0), 1.0)) for row, cosine in nearest]

    def _code_of(self, pattern: ViewingPattern) -> tuple[np.ndarray, float] | None:
        """Code and scale of a pattern; None if this catalogue holds none of its titles, or not the codebook of its code."""
        vector = vector_of(pattern, self._catalog)
        return None if vector is None else quantised(vector)

    def _trends_of(self, signals: tuple[TrendSignal, ...], applied_at: int) -> Trends:
        """The bundle's trend scores, each window replaced by the signals of a like window where there are any.

        A signal's score is on the bundle's scale, 1 for the strongest title; more counts as 1.
        """
        hours = np.array([trend.window_hours for trend in self._catalog.trends], float)
        replaced: dict[int, np.ndarray] = {}
        for signal in signals:
            ratio = np.maximum(hours / signal.window_hours, signal.window_hours / hours)
            window, row = int(np.argmin(ratio)), self._catalog.row_of(signal.content_id)
            if row >= 0 and ratio[window] <= WINDOW_RATIO:
                array = replaced.setdefault(window, np.zeros(self._catalog.count, np.float32))
                array[row] = min(signal.score, 1.0)
        short, long = (replaced.get(window, trend.scores) for window, trend in enumerate(self._catalog.trends))
        told = tuple(applied_at if window in replaced else self._catalog.built_at for window in (0, 1))
        return Trends((short, long), told)


def parse_state(state: object) -> tuple[int, tuple[TrendSignal, ...], int]:
    """Global version, trends and the moment they came, from the stored state or None. Raises ProtocolError."""
    if state is None:
        return 0, (), 0
    expected = "collective state: expected global_version, trending [content_id, score, window_hours] and applied_at"
    if not isinstance(state, dict) or not isinstance(state.get("trending"), list):
        raise ProtocolError(f"{expected}, got something else")
    signals = []
    for signal in state["trending"]:
        if not isinstance(signal, list) or len(signal) != 3:
            raise ProtocolError(f"{expected}, got another signal")
        signals.append(TrendSignal(*signal))
    known = GlobalPatterns(state.get("global_version"), (), tuple(signals))
    return known.global_version, known.trending, check_timestamp("applied_at", state.get("applied_at", 0))


def check_exported_state(exported: object) -> None:
    """ProtocolError where an export holds a collective state that reload() could not read. The rest is memory's to check."""
    states = exported.get("states") if isinstance(exported, dict) else None
    if isinstance(states, dict):
        parse_state(states.get(STATE))
