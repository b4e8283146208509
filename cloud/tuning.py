"""Chooses the job's settings on the data's own past, by one rule for every data set.

Each setting takes the value with the best NDCG@10 of the plain list that it shapes: a trend window by its own list on all
viewings of the span; half-life, ridge, decay and the weight of a failure by the list of EASE's rows, on the viewings of
the span's last block, from what was known before it. One setting after the other, in that order. The better of two settings that differ
by less than noise does not matter; the grid is coarse for that reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cloud import ease
from cloud.fusion_fit import LIST_LENGTH, discounted_gain
from cloud.knowledge import co_watching_before
from cloud.replay import Timeline
from cloud.settings import ModelSettings
from cloud.signals import DAY_MS, HOUR_MS
from omega_edge.ranking import HISTORY_WINDOW

SHORT_WINDOW_HOURS = (24, 48, 96, 168, 336, 720)
LONG_WINDOW_FACTORS = (3.5, 7.0, 14.0)
MAX_LONG_HOURS = 24 * 180
HALF_LIFE_DAYS = (15.0, 30.0, 60.0, 120.0, 240.0, 1_000.0, 4_000.0, 16_000.0)
ALWAYS_TRIED_DAYS = 240.0
"""Longer half-lives are tried where they are at most twice what the stream lasts: beyond, they are all the same."""
RIDGES = (10.0, 30.0, 100.0, 300.0)
ROW_DECAYS = (0.8, 0.9, 0.95)
FAILURE_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
LEAST_QUERIES, MOST_QUERIES = 200, 1200
Progress = Callable[[str], None]


def tuned(
    timeline: Timeline, title_count: int, span: tuple[int, int], start: int, settings: ModelSettings, progress: Progress
) -> ModelSettings:
    """The settings to use, or those given where there are too few viewings to choose by. span: events, [begin, end);
    start: where its last block begins."""
    queries = _some(timeline, start, span[1])
    if len(queries) < LEAST_QUERIES:
        return settings
    settings = replace(settings, trend_window_hours=_windows(_Judge(timeline, title_count, _some(timeline, *span))))
    judge = _Judge(timeline, title_count, queries)
    chosen = ease.eligible_titles(timeline.events.title[:start], title_count, settings.min_events)

    def weights(half_life_days: float, ridge: float) -> np.ndarray:
        together = co_watching_before(timeline, start, chosen, title_count, half_life_days)
        return ease.item_weights(together, ridge)

    def by_rows(half_life_days: float, ridge: float, decay: float, failure: float) -> float:
        return judge.rows(weights(half_life_days, ridge), chosen, decay, failure)

    parameters = dict(settings.parameters)
    decay, failure = parameters["row_decay"], parameters["failure_weight"]
    tried = _half_lives(timeline.events.timestamp[:start])
    half_life = _best(tried, lambda days: by_rows(days, settings.ridge, decay, failure))
    ridge = _best(RIDGES, lambda value: by_rows(half_life, value, decay, failure))
    final = weights(half_life, ridge)
    decay = _best(ROW_DECAYS, lambda value: judge.rows(final, chosen, value, failure))
    failure = _best(FAILURE_WEIGHTS, lambda value: judge.rows(final, chosen, decay, value))
    parameters |= {"row_decay": decay, "failure_weight": failure}
    progress(
        f"settings chosen on {len(queries)} viewings: half-life {half_life:g} days, ridge {ridge:g}, decay {decay:g}, "
        f"a failure counts {failure:g}, trends of {' and '.join(map(str, settings.trend_window_hours))} hours"
    )
    return replace(settings, half_life_days=half_life, ridge=ridge, parameters=parameters)


def _half_lives(timestamp: np.ndarray) -> tuple[float, ...]:
    """Days to try for what is learned from events at these times (int64[e], ascending, Unix ms)."""
    lasted_days = (timestamp[-1] - timestamp[0]) / DAY_MS if len(timestamp) else 0.0
    return tuple(days for days in HALF_LIFE_DAYS if days <= max(ALWAYS_TRIED_DAYS, 2.0 * lasted_days))


def _some(timeline: Timeline, start: int, end: int) -> np.ndarray:
    """Successful first viewings in [start, end), at most MOST_QUERIES, evenly spread over the time."""
    queries = timeline.queries(start, end)
    queries = queries[timeline.success[queries]]
    return queries[np.unique(np.arange(MOST_QUERIES) * len(queries) // MOST_QUERIES)] if len(queries) else queries


def _best(values: tuple[float, ...], quality: Callable[[float], float]) -> float:
    """The value of the greatest quality; the first of equals."""
    return max(values, key=quality)


def _windows(judge: _Judge) -> tuple[int, int]:
    short = int(_best(SHORT_WINDOW_HOURS, lambda hours: judge.trend(int(hours))))
    longer = tuple(min(round(short * factor), MAX_LONG_HOURS) for factor in LONG_WINDOW_FACTORS)
    return short, int(_best(longer, judge.trend))


class _Judge:
    """Ranks the same viewings by one list after another; titles already seen are left out."""

    def __init__(self, timeline: Timeline, title_count: int, queries: np.ndarray) -> None:
        events = timeline.events
        self._count = title_count
        self._title = events.title[queries]
        self._midnight = events.timestamp[queries] // DAY_MS * DAY_MS
        finished = np.flatnonzero(timeline.success)
        self._finished, self._finished_at = events.title[finished], events.timestamp[finished]
        order = np.argsort(events.household, kind="stable")
        first = np.searchsorted(events.household[order], events.household[queries])
        self._past = [
            order[begin : begin + before][::-1] for begin, before in zip(first.tolist(), timeline.before[queries].tolist())
        ]
        self._titles, self._success = events.title, timeline.success

    def trend(self, hours: int) -> float:
        """NDCG@10 of the titles finished most often in so many hours up to the last midnight."""
        midnight, counts = -1, np.empty(0)

        def scores(query: int) -> np.ndarray:
            # Viewings come in the order of their times: counts of one midnight at a time are held.
            nonlocal midnight, counts
            if (asked := int(self._midnight[query])) != midnight:
                midnight = asked
                span = np.searchsorted(self._finished_at, (midnight - hours * HOUR_MS, midnight))
                counts = np.bincount(self._finished[span[0] : span[1]], minlength=self._count).astype(np.float64)
            return counts

        return self._quality(scores)

    def rows(self, weights: np.ndarray, chosen: np.ndarray, decay: float, failure: float) -> float:
        """NDCG@10 of the decayed sums of item-item rows."""
        place = np.full(self._count, -1, np.int64)
        place[chosen] = np.arange(len(chosen))

        def scores(query: int) -> np.ndarray:
            past = self._past[query][:HISTORY_WINDOW]
            evidence = np.where(self._success[past], 1.0, failure) * decay ** np.arange(len(past))
            known = np.flatnonzero(place[self._titles[past]] >= 0)
            found = np.zeros(self._count)
            found[chosen] = evidence[known] @ weights[place[self._titles[past[known]]]]
            return found

        return self._quality(scores)

    def _quality(self, scores: Callable[[int], np.ndarray]) -> float:
        total = 0.0
        for query, title in enumerate(self._title.tolist()):
            found = scores(query).copy()
            told = found[title]
            found[self._titles[self._past[query]]] = -np.inf
            rank = 1.0 + np.count_nonzero(found > told) + 0.5 * (np.count_nonzero(found == told) - 1)
            total += float(discounted_gain(rank)) if rank <= LIST_LENGTH else 0.0
        return total / len(self._title)
