"""One profile's list, and why each title is on it: ranking, policy and reasons put together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.exploration import draw
from omega_edge.knowledge import CollectiveKnowledge
from omega_edge.policy import Policy, Withheld
from omega_edge.profile_view import ProfileView
from omega_edge.protocol import ReasonEvent, Recommendation, TrendSignal, ViewContext
from omega_edge.ranker import Ranked, Ranker
from omega_edge.ranking import (
    FEATURES,
    PATTERNS,
    TREND_LONG,
    TREND_SHORT,
    WISH,
    Moment,
    bucket_of,
    raw_scores,
    slot_of,
    weights_of,
)
from omega_edge.reasons import Reason, because_of, carried_by, strongest_event_each, strongest_events
from omega_edge.second_stage import CANDIDATES

EXPLAINED_EVENTS = 5
FRESH_FOR_HOURS = 48
"""A trend is told as one of now until so long after its window; then by the month that it tells of."""


@dataclass(frozen=True, slots=True)
class FeatureShare:
    """One feature of a title's score: its value, its weight, and their product."""

    value: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a title has the score it has. withheld: why it is not offered to this profile now, or None.

    place_by_score, place_in_second_stage: where it stands, from 1, among what the profile may be offered now, by its score
    and after the second stage, before the list is spread for variety; both None where the second stage does not order
    it: there is none for a history of this length, a genre was wished for, or the title is not among the best that it
    reads.
    """

    content_id: str
    content_title: str
    raw_score: float
    score: float
    confidence: float
    reason: str
    withheld: str | None
    features: dict[str, FeatureShare]
    events: tuple[ReasonEvent, ...]
    place_by_score: int | None
    place_in_second_stage: int | None


def _logistic(value: float) -> float:
    """1 / (1 + e^-value), without overflow."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    power = math.exp(value)
    return power / (1.0 + power)


class Recommender:
    """Lists and explanations over one catalogue. Thread-safe: it keeps nothing of a household."""

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        knowledge: CollectiveKnowledge,
        diversity: float,
        novelty: float,
        exploration: float,
        randomness: Random,
    ) -> None:
        self._catalog = catalog
        self._policy = policy
        self._knowledge = knowledge
        self._diversity = diversity
        self._novelty = novelty
        self._exploration = exploration
        self._randomness = randomness
        self._ranker = Ranker(catalog)

    def prepare(self, view: ProfileView) -> None:
        """Do after an event what the next list would have to do first."""
        self._ranker.prepare(view.history)

    def recommend(
        self, view: ProfileView, context: ViewContext, now_ms: int, k: int
    ) -> tuple[np.ndarray, list[Recommendation]]:
        """Up to k titles that the profile may be offered, best first: their rows uint32[m] and what is said of them."""
        moment = self._moment(context, view)
        allowed = self._policy.allowed(view.household, now_ms, moment.recent_rows)
        explores = self._explores(view)
        # Spreading picks one title after another, so the first k of a longer list are the list of k.
        wanted = max(k, CANDIDATES) if explores else k
        ranked = self._ranker.rank(view.history, moment, allowed, wanted, self._diversity, self._novelty)
        propensity = None
        if explores:
            drawn = draw(len(ranked.rows), k, self._exploration, self._randomness)
            chosen, propensity = drawn.chosen, drawn.propensity
            ranked = Ranked(ranked.rows[chosen], ranked.raw[chosen], np.ascontiguousarray(ranked.features[:, chosen]))
        drops, nameable = self._drops(view, moment, ranked, now_ms)
        return ranked.rows, self._told(view, moment, ranked, drops, nameable, context, now_ms, propensity)

    def _explores(self, view: ProfileView) -> bool:
        return self._exploration > 0.0 and view.household.profile.max_age_rating is None

    def explain(self, view: ProfileView, content_id: str, context: ViewContext, now_ms: int) -> Explanation:
        """The score of one title taken apart. Raises ConfigError for a title that the catalogue does not hold, or that
        the profile may not see for its age: not even its name is told.
        """
        row = self._catalog.row_of(content_id)
        if row < 0:
            raise ConfigError(f"content_id: expected a title of the catalogue, which does not hold {content_id!r}")
        withheld = self._policy.withheld(view.household, row, now_ms)
        if withheld in (Withheld.AGE_RATING, Withheld.UNRATED):
            raise ConfigError(
                f"content_id: expected a title that the profile {context.profile!r} may see; {content_id!r} is withheld "
                f"({withheld.value})"
            )
        moment = self._moment(context, view)
        rows = np.array([row], np.uint32)
        present = np.ascontiguousarray(self._ranker.features(view.history, moment)[:, rows])
        ranked = Ranked(rows, raw_scores(present, self._catalog.fusion, view.history.count, moment), present)
        drops, nameable = self._drops(view, moment, ranked, now_ms)
        told = self._told(view, moment, ranked, drops, nameable, context, now_ms)[0]
        weights = weights_of(self._catalog.fusion, view.history.count, moment).tolist()
        allowed = self._policy.allowed(view.household, now_ms, moment.recent_rows)
        places = self._ranker.places(view.history, moment, allowed, row) or (None, None)
        return Explanation(
            content_id=content_id,
            content_title=told.content_title,
            raw_score=float(ranked.raw[0]),
            score=told.score,
            confidence=told.confidence,
            reason=told.reason,
            withheld=withheld.value if withheld is not None else None,
            features={
                name: FeatureShare(value, weight, value * weight)
                for name, value, weight in zip((*FEATURES, WISH), present[:, 0].tolist(), weights, strict=False)
            },
            events=strongest_events(drops[:, 0], view.events, nameable, EXPLAINED_EVENTS),
            place_by_score=places[0],
            place_in_second_stage=places[1],
        )

    def _moment(self, context: ViewContext, view: ProfileView) -> Moment:
        """What the ranking is told of the context.

        A title in recent_watches that was never observed is news: it stands for the last watched, and is not
        offered. One that the history holds already changes nothing.
        """
        # The last watched stand first among the events: each is found at once, without looking through them all.
        news = [
            content_id
            for content_id in reversed(context.recent_watches)
            if not any(event.content_id == content_id and event.watched for event in view.events)
        ]
        pattern_rows, pattern_weights = self._knowledge.pattern_votes(view.history)
        return Moment(
            slot=slot_of(context.time_of_day, context.day_of_week),
            trends=self._knowledge.trends().scores,
            recent_rows=tuple(row for row in map(self._catalog.row_of, news) if row >= 0),
            mood_genre=-1 if context.mood_hint is None else self._genre_wished(context.mood_hint),
            pattern_rows=pattern_rows,
            pattern_weights=pattern_weights,
        )

    def _genre_wished(self, mood_hint: str) -> int:
        for index, genre in enumerate(self._catalog.genres):
            if genre.casefold() == mood_hint.casefold():
                return index
        genres = ", ".join(self._catalog.genres)
        raise ProtocolError(f"mood_hint: expected a genre of the catalogue ({genres}), got {mood_hint!r}")

    def _drops(
        self, view: ProfileView, moment: Moment, ranked: Ranked, now_ms: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each event of the window lends each ranked title, float32[e, k], and which events a reason may name,
        bool[e]: those that count, of titles that policy lets name."""
        drops = self._ranker.drops(view.history, moment, ranked)
        nameable = view.nameable(self._policy, len(drops), now_ms)
        return drops, nameable & self._ranker.contributing(view.history, len(drops))

    def _told(
        self,
        view: ProfileView,
        moment: Moment,
        ranked: Ranked,
        drops: np.ndarray,
        nameable: np.ndarray,
        context: ViewContext,
        now_ms: int,
        propensity: list[float] | None = None,
    ) -> list[Recommendation]:
        """What is said of each ranked title. propensity: of each, where the list may explore."""
        strongest, falls = strongest_event_each(drops, nameable)
        catalog = self._catalog
        slope, intercept = catalog.fusion.calibration[bucket_of(view.history.count)].tolist()
        rows = ranked.rows.tolist()
        told = []
        for index, (content_id, name, raw) in enumerate(
            zip(catalog.content_ids(rows), catalog.names(rows), ranked.raw.tolist(), strict=True)
        ):
            if strongest[index] >= 0:
                reason = because_of(view.events[strongest[index]], falls[index])
            else:
                reason = self._carried(content_id, ranked.features[:, index], view, moment, context, now_ms)
            told.append(
                Recommendation(
                    content_id=content_id,
                    content_title=name,
                    score=_logistic(raw),
                    confidence=_logistic(slope * raw + intercept),
                    reason=reason.text,
                    events=reason.events,
                    trend=reason.trend,
                    propensity=None if propensity is None else propensity[index],
                )
            )
        return told

    def patterns_count(self, view: ProfileView) -> bool:
        """Whether global patterns have weight in this profile's lists."""
        return bool(self._catalog.fusion.weights[bucket_of(view.history.count), PATTERNS] != 0)

    def _carried(
        self,
        content_id: str,
        values: np.ndarray,
        view: ProfileView,
        moment: Moment,
        context: ViewContext,
        now_ms: int,
    ) -> Reason:
        contributions = values * weights_of(self._catalog.fusion, view.history.count, moment)
        signals, stale = [], []
        for trend, value, as_of in zip(
            self._catalog.trends, values[TREND_SHORT : TREND_LONG + 1].tolist(), self._knowledge.trends().as_of, strict=True
        ):
            signals.append(TrendSignal(content_id, value, trend.window_hours))
            fresh = now_ms <= as_of + (trend.window_hours + FRESH_FOR_HOURS) * 3_600_000
            stale.append(None if fresh else datetime.fromtimestamp(as_of / 1000, UTC).strftime("%B %Y"))
        return carried_by(content_id, contributions.tolist(), tuple(signals), tuple(stale), context.time_of_day.value)
