"""The ranking written out from its definitions in plain numpy and float64, to check what the brain returns.

It shares no code with the brain: it reads the catalogue's public arrays and a list of viewings that the bench kept
itself. Slow on purpose; never timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.protocol import Recommendation, TimeOfDay, ViewContext

FEATURE_NAMES = (
    "rows", "slist", "factors", "content_profile", "content_recent", "sequence", "popularity", "trend_short",
    "trend_long", "context", "patterns",
)  # fmt: skip
WINDOW = 64
CONTEXT_PRIOR_EVENTS = 10.0
CANDIDATES = 100
MOOD_WEIGHT = 2.0
"""What a title wholly of the genre asked for gains; one of several genres gains its share."""
LIST_LIFE_MS = 6 * 3600 * 1000
SCORE_TOLERANCE = 5e-4
"""Largest difference of raw scores that counts as rounding. Sums in float32 differ by 1e-6; but a profile is rounded to
8 bits before it is compared with titles, and where one of its 384 numbers lies between two steps, a cosine moves by
1e-4."""


@dataclass(frozen=True, slots=True)
class Viewing:
    """One viewing as the bench keeps it. slot: 0–7, twice the part of the day plus 1 on a weekend."""

    row: int
    content_id: str
    success: bool
    slot: int


@dataclass(slots=True)
class Truth:
    """One profile's ranking, computed anew for every question. viewings: newest first, all of them."""

    catalog: Catalog
    viewings: list[Viewing] = field(default_factory=list)
    votes: dict[int, float] = field(default_factory=dict)
    """What the global patterns say of a title's row, the strongest 1."""

    def watched(self, content_id: str, success: bool, slot: int) -> None:
        """Add the newest viewing."""
        self.viewings.insert(0, Viewing(self.catalog.row_of(content_id), content_id, success, slot))

    def raw_scores(self, context: ViewContext, left_out: int = -1) -> np.ndarray:
        """float64[n]: weighted sum of the features and the mood asked for, of every title.

        left_out: index of a viewing that is taken as never made, or -1.
        """
        viewings = [viewing for index, viewing in enumerate(self.viewings) if index != left_out]
        weights = self.catalog.fusion.weights[_bucket(len(viewings))].astype(np.float64)
        assert tuple(self.catalog.fusion.features) == FEATURE_NAMES
        features = self._features(viewings[:WINDOW], slot_of_context(context))
        scores = sum(weight * features[name] for weight, name in zip(weights, FEATURE_NAMES, strict=True))
        if context.mood_hint is not None:
            genre = list(self.catalog.genres).index(context.mood_hint)
            scores = scores + MOOD_WEIGHT * self._membership(np.arange(self.catalog.count))[:, genre]
        return scores

    def _features(self, viewings: Sequence[Viewing], slot: int) -> dict[str, np.ndarray]:
        catalog, parameters = self.catalog, self.catalog.fusion.parameters
        evidence = [1.0 if viewing.success else parameters["failure_weight"] for viewing in viewings]
        rows, slist = np.zeros(catalog.count), np.zeros(catalog.count)
        profile, taste = np.zeros(catalog.codes.shape[1]), np.zeros(64)
        for age, (viewing, weight) in enumerate(zip(viewings, evidence, strict=True)):
            if viewing.row < 0:
                continue
            for sums, table, decay in ((rows, catalog.rows, "row_decay"), (slist, catalog.slist, "slist_decay")):
                if table is not None:
                    start, end = (int(offset) for offset in table.offsets[viewing.row : viewing.row + 2])
                    strengths = table.values[start:end] * float(table.scale[viewing.row])
                    sums[table.columns[start:end]] += weight * parameters[decay] ** age * strengths
            taste += weight * parameters["factor_decay"] ** age * self._factors(viewing.row)
            profile += weight * parameters["content_decay"] ** age * self._vector(viewing.row)
        finished = [self._vector(viewing.row) for viewing in viewings if viewing.success and viewing.row >= 0][:2]
        patterns = np.zeros(catalog.count)
        for row, vote in self.votes.items():
            patterns[row] = vote
        fold = catalog.factors.fold.astype(np.float64) if catalog.factors is not None else np.zeros((64, 64))
        return {
            "rows": rows,
            "slist": slist,
            "factors": self._factors(slice(None)) @ (fold @ taste),
            "sequence": self._sequence(viewings),
            "content_profile": self._cosines(profile),
            "content_recent": self._cosines(np.mean(finished, axis=0)) if finished else np.zeros(catalog.count),
            "popularity": catalog.popularity.astype(np.float64),
            "trend_short": catalog.trends[0].scores.astype(np.float64),
            "trend_long": catalog.trends[1].scores.astype(np.float64),
            "context": self._context(viewings, slot),
            "patterns": patterns,
        }

    def _vector(self, row: int) -> np.ndarray:
        return self.catalog.codes[row].astype(np.float64) * float(self.catalog.scale[row])

    def _factors(self, row: int | slice) -> np.ndarray:
        """float64[64] of a title, or [n, 64]; zeros where the bundle has none."""
        factors = self.catalog.factors
        if factors is None:
            return np.zeros((self.catalog.count, 64))[row]
        return factors.codes[row].astype(np.float64) * factors.scale[row].astype(np.float64)[..., None]

    def _sequence(self, viewings: Sequence[Viewing]) -> np.ndarray:
        """The encoder's score of every title: one block of self-attention that the newest event asks, in float64."""
        heard = [viewing for viewing in viewings if viewing.row >= 0]
        if self.catalog.sequence is None:
            return np.zeros(self.catalog.count)
        codes, scale, success, distance, norms, attention, attention_scale, feed_in, *rest = (
            np.asarray(part, np.float64) for part in self.catalog.sequence.model
        )
        feed_in_scale, feed_in_bias, feed_out, feed_out_scale, feed_out_bias, input_scale = rest

        def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
            return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain

        embeddings = codes * scale[:, None]
        if not heard:
            return embeddings @ self.catalog.sequence.start.astype(np.float64) + self.catalog.sequence.bias
        x = input_scale * np.array([embeddings[one.row] + success[int(one.success)] for one in heard])
        # An output is number 8 * dimension + head.
        query, key, value = (
            (normed(x, norms[0]) @ (attention[at] * attention_scale[at])).reshape(-1, 8, 8) for at in range(3)
        )
        logits = np.einsum("eh,peh->ph", query[0], key) / np.sqrt(8) + distance[: len(heard)]
        powers = np.exp(logits - logits.max(axis=0))
        mixed = np.einsum("ph,peh->eh", powers / powers.sum(axis=0), value).ravel()
        z = x[0] + mixed @ (attention[3] * attention_scale[3])
        inner = np.maximum(normed(z, norms[1]) @ (feed_in * feed_in_scale) + feed_in_bias, 0)
        z = z + inner @ (feed_out * feed_out_scale) + feed_out_bias
        return embeddings @ normed(z, norms[2]) + self.catalog.sequence.bias

    def _cosines(self, vector: np.ndarray) -> np.ndarray:
        """Cosine of the vector, rounded to 8 bits, to every title."""
        largest = np.abs(vector).max()
        if largest <= 1e-6:
            return np.zeros(self.catalog.count)
        code = np.rint(vector * 127.0 / largest)
        return (self.catalog.codes @ code) * self.catalog.scale.astype(np.float64) / np.linalg.norm(code)

    def _context(self, viewings: Sequence[Viewing], slot: int) -> np.ndarray:
        """How much more than usual a title's genres are watched in this slot: mean over its genres of the lift."""
        catalog = self.catalog
        finished = [viewing for viewing in viewings if viewing.success and viewing.row >= 0]
        now = [viewing for viewing in finished if viewing.slot == slot]
        ever = self._genre_share(finished, catalog.context_overall)
        lift = self._genre_share(now, catalog.context_prior[slot]) / np.maximum(ever, 1e-6) - 1.0
        member = self._membership(np.arange(catalog.count))
        return member @ lift

    def _genre_share(self, viewings: Sequence[Viewing], prior: np.ndarray) -> np.ndarray:
        member = self._membership(np.array([viewing.row for viewing in viewings], np.int64))
        smoothed = member.sum(axis=0) + CONTEXT_PRIOR_EVENTS * prior.astype(np.float64)
        return smoothed / (len(viewings) + CONTEXT_PRIOR_EVENTS)

    def _membership(self, rows: np.ndarray) -> np.ndarray:
        """float64[m, g]: 1 / number of genres in each genre of a title, else 0."""
        bits = np.arange(len(self.catalog.genres), dtype=np.uint64)
        member = ((self.catalog.genre_masks[rows][:, None] >> bits) & np.uint64(1)).astype(np.float64)
        return member / np.maximum(member.sum(axis=1, keepdims=True), 1)

    def allowed(self, now_ms: int) -> np.ndarray:
        """bool[n]: titles on offer now that were not watched. For a profile without a limit that hid nothing."""
        mask = (self.catalog.available_from <= now_ms) & (now_ms < self.catalog.available_until)
        mask[[viewing.row for viewing in self.viewings if viewing.row >= 0]] = False
        return mask

    def fault_in_list(
        self, listed: Sequence[Recommendation], k: int, context: ViewContext, now_ms: int, diversity: float
    ) -> str | None:
        """What is wrong with a list of recommendations, or None.

        Every place must hold the best title left, by the definition of maximal marginal relevance over the 100
        best raw scores, up to rounding. Where trees order the list, a rounding can move a title far: then the titles must
        be among the 100 best, with their true raw scores, and the order is for the tests of the trees.
        """
        rows = [self.catalog.row_of(item.content_id) for item in listed]
        allowed = self.allowed(now_ms)
        if len(rows) != min(k, int(allowed.sum())) or len(set(rows)) != len(rows):
            return f"expected {k} different titles, got {len(set(rows))}"
        if not all(row >= 0 and allowed[row] for row in rows):
            return "a title is listed that was watched, is not on offer or is not in the catalogue"
        raw = np.where(allowed, self.raw_scores(context), -np.inf)
        candidates = np.argsort(-raw, kind="stable")[: max(k, CANDIDATES)]
        lowest, highest = raw[candidates[-1]], raw[candidates[0]]
        vectors = np.stack([self._vector(row) for row in [*candidates, *rows]])
        cosines = vectors @ vectors[len(candidates) :].T
        nearest = np.zeros(len(vectors))
        # Scores are stretched to 0–1 over the candidates, so a rounding fault of a score is stretched as well.
        stretch = max(highest - lowest, 1e-9)
        relevance = np.clip((raw[[*candidates, *rows]] - lowest) / stretch, None, 1.0)
        trees = self.catalog.second_stage
        if trees is not None and trees.buckets[_bucket(len(self.viewings))]:
            for place, row in enumerate(rows):
                if abs(_logit(listed[place].score) - raw[row]) > SCORE_TOLERANCE or raw[row] < lowest - SCORE_TOLERANCE:
                    return f"place {place + 1}: {listed[place].content_id} is not among the best, or its score is not true"
            return None
        taken: set[int] = set()
        for place, row in enumerate(rows):
            if abs(_logit(listed[place].score) - raw[row]) > SCORE_TOLERANCE:
                return f"place {place + 1}: expected raw score {raw[row]:.5f}, got {_logit(listed[place].score):.5f}"
            values = (1.0 - diversity) * relevance - diversity * nearest
            left = [index for index, candidate in enumerate(candidates) if candidate not in taken]
            best = max(values[index] for index in left)
            if values[len(candidates) + place] < best - 2 * SCORE_TOLERANCE / stretch:
                return f"place {place + 1}: {listed[place].content_id} is not the best title left"
            taken.add(row)
            nearest = cosines[:, place] if place == 0 else np.maximum(nearest, cosines[:, place])
        return None

    def fault_in_reasons(self, listed: Sequence[Recommendation], context: ViewContext) -> str | None:
        """What is wrong with the events that the reasons name, or None: the first must be the one whose deletion,
        everything recomputed, lowers the raw score most."""
        rows = np.array([self.catalog.row_of(item.content_id) for item in listed])
        present = self.raw_scores(context)[rows]
        window = min(len(self.viewings), WINDOW)
        drops = np.stack([present - self.raw_scores(context, left_out)[rows] for left_out in range(window)])
        for place, item in enumerate(listed):
            largest = float(drops[:, place].max())
            if not item.events:
                if largest > 2 * SCORE_TOLERANCE:
                    return f"{item.content_id}: no event is named, though one carries {largest:.4f}"
                continue
            named = item.events[0]
            told = [index for index in range(window) if self.viewings[index].content_id == named.content_id]
            own = drops[told, place].tolist()
            if not own:
                return f"{item.content_id}: the reason names {named.content_id}, which is not in the window"
            if max(own) < largest - 2 * SCORE_TOLERANCE or abs(max(own) - named.drop) > 2 * SCORE_TOLERANCE:
                return f"{item.content_id}: the reason states a drop of {named.drop:.4f}, expected {largest:.4f}"
            if named.content_title not in item.reason:
                return f"{item.content_id}: the reason does not say what it names"
        return None


@dataclass(slots=True)
class PatternTruth:
    """What the global patterns say, moved by what came of following them in this home.

    patterns: success rate, and weight by content id. A viewing within LIST_LIFE_MS answers the last list: every
    pattern with a title in that list was followed if it names what was watched, and the reward is the share watched.
    """

    patterns: list[tuple[float, dict[str, float]]]
    rewards: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict)
    """Rewards when followed and when not, by place of the pattern."""
    _shown: tuple[int, frozenset[str]] | None = None

    def shown(self, listed: Sequence[Recommendation], now_ms: int) -> None:
        """A list was shown."""
        self._shown = (now_ms, frozenset(item.content_id for item in listed))

    def watched(self, content_id: str, watch_percentage: float, now_ms: int) -> None:
        """A title was watched."""
        shown, self._shown = self._shown, None
        if shown is None or not 0 <= now_ms - shown[0] <= LIST_LIFE_MS:
            return
        for place, (_success_rate, references) in enumerate(self.patterns):
            if not shown[1].isdisjoint(references):
                rewards = self.rewards.setdefault(place, ([], []))
                rewards[0 if content_id in references else 1].append(watch_percentage)

    def votes(self, catalog: Catalog) -> dict[int, float]:
        """By row: sum of weight times success rate, moved by the mean uplift and kept in 0–1; the largest made 1."""
        votes: dict[int, float] = {}
        for place, (success_rate, references) in enumerate(self.patterns):
            followed, not_followed = self.rewards.get(place, ((), ()))
            uplift = np.mean(followed) - np.mean(not_followed) if followed and not_followed else 0.0
            strength = min(max(success_rate + uplift, 0.0), 1.0)
            for content_id, weight in references.items():
                row = catalog.row_of(content_id)
                votes[row] = votes.get(row, 0.0) + weight * strength
        largest = max(votes.values())
        return {row: vote / largest for row, vote in votes.items()}


def slot_of_context(context: ViewContext) -> int:
    """Slot of the week (0–7) of a context."""
    return 2 * list(TimeOfDay).index(context.time_of_day) + (context.day_of_week in (5, 6))


def _bucket(events: int) -> int:
    return int(np.searchsorted([1, 5, 20], events, side="right"))


def _logit(share: float) -> float:
    return float(np.log(share) - np.log1p(-share))
