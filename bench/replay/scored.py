"""Methods that score every title: settings chosen before the test, fitted anew for each block, asked the same queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.replay.measures import Lists, first_titles, ndcg_at_10, rank_of
from bench.replay.method import ScoredMethod, TrendEvents
from bench.replay.split import FULL, Queries, Split

Progress = Callable[[str], None]


class MethodFailed(Exception):
    """A method gave something else than a finite float32 score for every title."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A method's answers by what is known, and how it came to be configured.

    configuration: the name of what was chosen. tuning: NDCG@10 of each candidate on the tuning queries.
    """

    lists: Mapping[str, Lists]
    configuration: str
    tuning: Mapping[str, float]


def answer(split: Split, candidates: Sequence[ScoredMethod], progress: Progress, names: Sequence[str]) -> Answers:
    """Choose among the candidates on what precedes the test, then answer its queries.

    names: what is known (see split); FULL is asked of every query, the others of the restricted ones.
    """
    trends = TrendsByMidnight(split)
    tuning: dict[str, float] = {}
    for method in candidates:
        if method.name in tuning:
            raise MethodFailed(f"{method.name}: expected one candidate of this name, got two")
        if len(candidates) > 1:
            tuning[method.name] = _tuning_quality(split, method, trends)
            progress(f"{method.name}: NDCG@10 {tuning[method.name]:.4f} before the test")
    chosen = max(candidates, key=lambda method: tuning.get(method.name, 0.0))
    restricted = split.queries.restricted()
    asked = {name: np.arange(len(split.queries)) if name == FULL else restricted for name in names}
    lists = {name: Lists.empty(len(queries)) for name, queries in asked.items()}
    for block, start in enumerate(split.starts):
        progress(f"{chosen.name}: block {block + 1} of {len(split.starts)}")
        past = split.before(start)
        chosen.fit(past, split.title_count, int(split.events.timestamp[start]))
        place = tie_places(past.title, split.title_count)
        for name, queries in asked.items():
            for index in np.flatnonzero(split.queries.block[queries] == block).tolist():
                query = int(queries[index])
                seen = split.events.title[split.events_before(split.queries, query)]
                scores = _scores(split, split.queries, query, name, chosen, trends)
                lists[name].rank[index] = rank_of(scores, int(split.queries.title[query]), seen)
                lists[name].top[index] = first_titles(scores, seen, place)
    return Answers(lists, chosen.name, tuning)


class TrendsByMidnight:
    """The data set's successful viewings, limited to each midnight once."""

    def __init__(self, split: Split) -> None:
        self._every = split.trend_events()
        self._latest = self._every

    def until(self, midnight_ms: int) -> TrendEvents:
        """Those that may be counted before a query after this midnight."""
        if self._latest.midnight_ms != midnight_ms:
            self._latest = self._every.until(midnight_ms)
        return self._latest


def tie_places(title: np.ndarray, title_count: int) -> np.ndarray:
    """int64[n]: in which order titles with equal scores are shown: that of their first viewing, int[e] titles of viewings
    in time order, then those never watched. Numbers of titles decide as little as possible."""
    place = np.full(title_count, len(title), np.int64)
    first_titles_seen, first = np.unique(title, return_index=True)
    place[first_titles_seen] = first
    return place


def _tuning_quality(split: Split, method: ScoredMethod, trends: TrendsByMidnight) -> float:
    """Mean NDCG@10 of a candidate on the queries before the test, fitted on what precedes them."""
    queries = split.tuning_queries
    if not len(queries):
        return 0.0
    method.fit(split.before(split.tuning_start), split.title_count, int(split.events.timestamp[split.tuning_start]))
    ranks = np.empty(len(queries))
    for query in range(len(queries)):
        seen = split.events.title[split.events_before(queries, query)]
        ranks[query] = rank_of(_scores(split, queries, query, FULL, method, trends), int(queries.title[query]), seen)
    return math.fsum(ndcg_at_10(ranks)) / len(ranks)


def _scores(
    split: Split, queries: Queries, query: int, name: str, method: ScoredMethod, trends: TrendsByMidnight
) -> np.ndarray:
    past = split.past(queries, query, name)
    scores = method.scores(past, trends.until(past.midnight_ms))
    if scores.shape != (split.title_count,) or scores.dtype != np.float32 or not np.isfinite(scores).all():
        raise MethodFailed(
            f"{method.name}: expected {split.title_count} finite float32 scores, got {scores.dtype} of shape "
            f"{scores.shape}{'' if np.isfinite(scores).all() else ', some not finite'}"
        )
    return scores
