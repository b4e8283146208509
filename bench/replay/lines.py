"""From answers to figures: one line a measure, with its interval, and a check of the lists it was taken from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bench.metrics import judged
from bench.replay.measures import (
    Estimate,
    Lists,
    coverage,
    intra_list_diversity,
    mean_by_household,
    ndcg_at_10,
    novelty,
    recall_at_10,
    reciprocal_rank,
    surprise_bits,
)
from bench.replay.split import FULL, KNOWN_EVENTS, MISSING, MISSING_EVENTS, Split
from cloud.signals import DAY_MS

HISTORIES = (("0", 0, 1), ("1-4", 1, 5), ("5-19", 5, 20), ("20+", 20, None))
"""Labels of how many viewings a household had before a query, from, up to."""
BUNDLE_AGES = (("0-1", 0, 1), ("1-3", 1, 3), ("3-7", 3, 7), ("7-14", 7, 14), ("14+", 14, None))
"""The same for days since the newest viewing that the block's bundle was trained on."""
OURS = "omega"
SWEPT = "omega_diversity_"
"""How the name of ours with a diversity that nobody ships begins."""
FULL_MEASURES = ("ndcg_at_10", "recall_at_10", "mrr", "coverage", "novelty", "intra_list_diversity")
UNITS = {"novelty": "bits"}


@dataclass(slots=True)
class Results:
    """What a replay found. answers: lists by method and what is known. configurations: of the baselines, what was chosen.
    faults: why a method has no answers. sweep: diversity to the label of its method."""

    answers: dict[str, dict[str, Lists]] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    tuning: dict[str, Mapping[str, float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    sweep: dict[float, str] = field(default_factory=dict)


class Judge:
    """Makes lines of a replay's results. Every interval comes from the same resampled households."""

    def __init__(self, split: Split, vectors: np.ndarray, results: Results, seed: int) -> None:
        self._split, self._results, self._seed = split, results, seed
        self._vectors = vectors
        self._queries = split.queries
        self._restricted = split.queries.restricted()
        self._bits = [surprise_bits(split.before(start).title, split.title_count) for start in split.starts]

    @property
    def baselines(self) -> list[str]:
        """Methods that are not ours, in order."""
        return [method for method in self._results.answers if not method.startswith(OURS)]

    def lines(self) -> list[dict]:
        """All of them: of the whole test, by history, by staleness, cold, and against the best baseline."""
        made = []
        for method, answers in self._results.answers.items():
            made += self._whole(method, answers)
            made += self._split_lines(method, answers[FULL])
            made += self._with_less_known(method, answers)
        made += [self._difference(method) for method in self._results.answers if method.startswith(OURS)]
        for method, fault in self._results.faults.items():
            made.append(judged("ndcg_at_10", None, "", fault) | {"method": method})
        return [line for line in made if line is not None]

    def best_baseline(self) -> str | None:
        """The baseline of the highest NDCG@10 on the test: the hardest to beat, chosen in its favour."""
        return max(
            self.baselines, key=lambda method: ndcg_at_10(self._results.answers[method][FULL].rank).mean(), default=None
        )

    def _line(
        self, metric: str, method: str, estimate: Estimate, queries: int, fault: str | None, **where: object
    ) -> dict:
        known = {"configuration": self._results.configurations.get(method)}
        return (
            judged(metric, estimate.value, UNITS.get(metric, ""), fault)
            | {"method": method, "low": _rounded(estimate.low), "high": _rounded(estimate.high), "queries": queries}
            | {name: value for name, value in (known | where).items() if value is not None}
        )

    def _whole(self, method: str, answers: Mapping[str, Lists]) -> list[dict]:
        lists, household = answers[FULL], self._queries.household
        fault = self._fault(lists)
        means = {
            "ndcg_at_10": ndcg_at_10(lists.rank),
            "recall_at_10": recall_at_10(lists.rank),
            "mrr": reciprocal_rank(lists.rank),
            "novelty": self._novelty(lists),
            "intra_list_diversity": intra_list_diversity(lists.top, self._vectors),
        }
        found = {name: mean_by_household(values, household, self._seed) for name, values in means.items()}
        found["coverage"] = coverage(lists.top, household, self._split.title_count)
        where = {"diversity": next((value for value, of in self._results.sweep.items() if of == method), None)}
        return [self._line(name, method, found[name], len(household), fault, **where) for name in FULL_MEASURES]

    def _novelty(self, lists: Lists) -> np.ndarray:
        values = np.zeros(len(lists.rank))
        for block, bits in enumerate(self._bits):
            mine = self._queries.block == block
            values[mine] = novelty(lists.top[mine], bits[None])
        return values

    def _split_lines(self, method: str, lists: Lists) -> list[dict]:
        if method.startswith(SWEPT):
            return []
        built_at = self._split.events.timestamp[np.array(self._split.starts) - 1]
        age_days = (self._queries.now_ms - built_at[self._queries.block]) / DAY_MS
        made = []
        for name, values, bounds in (
            ("history", self._queries.known, HISTORIES),
            ("bundle_age_days", age_days, BUNDLE_AGES),
        ):
            for label, low, high in bounds:
                chosen = np.flatnonzero((values >= low) & (values < (np.inf if high is None else high)))
                made += self._means(method, lists.take(chosen), chosen, **{name: label})
        return made

    def _with_less_known(self, method: str, answers: Mapping[str, Lists]) -> list[dict]:
        if MISSING not in answers:
            return []
        queries, made = self._restricted, []
        made += self._means(method, answers[FULL].take(queries), queries, missing_events=0)
        made += self._means(method, answers[MISSING], queries, missing_events=MISSING_EVENTS)
        for count in KNOWN_EVENTS:
            made += self._means(method, answers[f"known_{count}"], queries, known_events=count)
        return made

    def _means(self, method: str, lists: Lists, queries: np.ndarray, **where: object) -> list[dict]:
        """NDCG@10 and Recall@10 of the answers to some queries; nothing if there are none."""
        household = self._queries.household[queries]
        if not len(queries):
            return []
        return [
            self._line(name, method, mean_by_household(of(lists.rank), household, self._seed), len(queries), None, **where)
            for name, of in (("ndcg_at_10", ndcg_at_10), ("recall_at_10", recall_at_10))
        ]

    def _difference(self, method: str) -> dict | None:
        """NDCG@10 of ours minus the best baseline's on the same queries; met if the interval lies above 0."""
        best = self.best_baseline()
        if best is None or method.startswith(SWEPT):
            return None
        answers = self._results.answers
        values = ndcg_at_10(answers[method][FULL].rank) - ndcg_at_10(answers[best][FULL].rank)
        estimate = mean_by_household(values, self._queries.household, self._seed)
        line = self._line("ndcg_at_10_minus_best_baseline", method, estimate, len(values), None, baseline=best)
        return line | {"limit": 0.0, "met": estimate.low > 0, "at_least": True}

    def _fault(self, lists: Lists) -> str | None:
        """What is wrong with lists: a title that was seen, one twice, or a rank that the list contradicts."""
        for query in range(len(self._queries)):
            shown = lists.top[query]
            shown = shown[shown >= 0]
            seen = self._split.events.title[self._split.events_before(self._queries, query)]
            if len(np.unique(shown)) != len(shown) or np.isin(shown, seen).any():
                return f"query {query}: the list shows a title twice, or one that was seen"
            found = np.flatnonzero(shown == self._queries.title[query])
            # A rank shared by equal scores may lie on either side of the tenth place.
            if len(found) == 0 and lists.rank[query] < 1.5:
                return f"query {query}: the title has rank {lists.rank[query]:g} and is not in the list"
            if len(found) and not np.isfinite(lists.rank[query]):
                return f"query {query}: the title is in the list and has no rank"
        return None


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
