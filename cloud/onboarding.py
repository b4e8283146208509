"""Which titles a new home is shown, so that the few it picks say the most about all the others.

The homes of the data set play new ones. A home shown a list picks the first titles of it that it once finished, PICKS at
most, and the rest of what it finished is to be foreseen: each title's log chance is log(its share of homes) + STRENGTH *
the sum over the picks of the log lift log(P(title | pick) / P(title)), the conditional share smoothed by
PRIOR_HOMES homes; a softmax over the titles makes it a distribution. The list grows greedily by the title that raises the
mean log-likelihood of the rest the most, over the homes that know it: a title that few know informs few, one that all
know informs little, one that tells what earlier titles told adds nothing.

Whether that beats the plain list of the most popular titles is measured before it is shipped: a list learned from one
half of the homes is judged by Recall@10 on the other half, both ways; where the lower bound of the household-bootstrap
interval of the gain is not above 0, the popular list ships. Deterministic on one type of CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloud.bootstrap import paired_interval

LISTED = 48
"""Titles in the bundle: twice what is shown at once, because age limits and availability take some out."""
SHOWN = 24
PICKS = 5
MIN_FINISHED = 8
"""Homes with fewer finished titles have nothing left to foresee after their picks."""
MAX_HOMES = 800
MAX_CANDIDATES = 150
"""Only the most finished titles may be shown: what few know few can pick."""
MAX_TARGETS = 600
PRIOR_HOMES = 5.0
STRENGTH = 0.5
LIST_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Onboarding:
    """rows: uint32[m], m at most LISTED, the most informative first. informative: whether they are the greedy list, not
    the most popular. gain: (mean, low, high) of its Recall@10 over the popular list's on homes that taught it nothing;
    homes: how many judged it."""

    rows: np.ndarray
    informative: bool
    gain: tuple[float, float, float]
    homes: int

    def report(self) -> dict:
        """What the bundle's meta says of it."""
        return {
            "rule": "informative" if self.informative else "popular",
            "homes": self.homes,
            "recall_at_10_over_popular": [round(bound, 4) for bound in self.gain],
        }


def onboarding_titles(household: np.ndarray, title: np.ndarray, title_count: int) -> Onboarding:
    """The titles to show, from the events watched with success: household, title, integer[e]. Repetitions do not count."""
    household, title = _once(household, title, title_count)
    popular = _most_finished(title, title_count)
    finished = _finished(household, title, popular, title_count)
    halves = np.arange(len(finished)) % 2
    if len(finished) < 4 or not len(popular):
        return Onboarding(popular[:LISTED].astype(np.uint32), False, (0.0, 0.0, 0.0), 0)
    plain = np.arange(min(SHOWN, len(popular)))
    gains, homes = [], []
    for half in (0, 1):
        world = _World.of(finished[halves != half])
        judged = finished[halves == half]
        gains.append(_recall_gain(world, judged, world.greedy(SHOWN), plain))
        homes.append(np.flatnonzero(halves == half))
    gain, home = np.concatenate(gains), np.concatenate(homes)
    interval = paired_interval(gain, home)
    informative = interval[1] > 0.0
    if informative:
        chosen = _World.of(finished).greedy(LISTED)
        chosen = np.concatenate((chosen, np.setdiff1d(np.arange(len(popular)), chosen)))
    else:
        chosen = np.arange(len(popular))
    return Onboarding(popular[chosen[:LISTED]].astype(np.uint32), informative, interval, len(home))


def informative_titles(household: np.ndarray, title: np.ndarray, title_count: int) -> np.ndarray:
    """int64[m]: the greedy list of LISTED titles, whether or not it beats the popular one; arguments as above."""
    household, title = _once(household, title, title_count)
    popular = _most_finished(title, title_count)
    finished = _finished(household, title, popular, title_count)
    return popular[_World.of(finished).greedy(LISTED)] if len(finished) else popular[:LISTED]


def _once(household: np.ndarray, title: np.ndarray, title_count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64[p] each: every pair of household and title once."""
    return np.divmod(np.unique(household.astype(np.int64) * title_count + title), max(title_count, 1))


def _most_finished(title: np.ndarray, title_count: int) -> np.ndarray:
    """int64[t]: titles finished at all, by the most homes first, ties to the lower row; at most MAX_TARGETS."""
    counts = np.bincount(title, minlength=title_count)
    order = np.argsort(-counts, kind="stable")[:MAX_TARGETS]
    return order[counts[order] > 0]


def _finished(household: np.ndarray, title: np.ndarray, targets: np.ndarray, title_count: int) -> np.ndarray:
    """bool[h, t]: what each home finished of the targets; homes with MIN_FINISHED or more, evenly drawn MAX_HOMES."""
    place = np.full(title_count, -1, np.int64)
    place[targets] = np.arange(len(targets))
    known = place[title] >= 0
    homes, places = household[known], place[title[known]]
    enough, counts = np.unique(homes, return_counts=True)
    enough = enough[counts >= MIN_FINISHED]
    if len(enough) > MAX_HOMES:
        enough = enough[np.arange(MAX_HOMES) * len(enough) // MAX_HOMES]
    matrix = np.zeros((len(enough), len(targets)), bool)
    kept = np.isin(homes, enough)
    matrix[np.searchsorted(enough, homes[kept]), places[kept]] = True
    return matrix


@dataclass(frozen=True, slots=True)
class _World:
    """What some homes teach. finished: bool[h, t]; base: float32[t], log shares; lift: float32[t, t], of each title
    (line) for each other one."""

    finished: np.ndarray
    base: np.ndarray
    lift: np.ndarray

    @staticmethod
    def of(finished: np.ndarray) -> _World:
        counts = finished.astype(np.float32)
        share = np.maximum(counts.mean(axis=0), np.float32(0.5 / len(counts)))
        conditional = (counts.T @ counts + PRIOR_HOMES * share) / (counts.sum(axis=0)[:, None] + PRIOR_HOMES)
        lift = np.float32(STRENGTH) * np.log(np.maximum(conditional, np.float32(1e-6)) / share)
        np.fill_diagonal(lift, 0.0)
        return _World(finished, np.log(share).astype(np.float32), lift.astype(np.float32))

    def greedy(self, count: int) -> np.ndarray:
        """int64[m]: places of the titles to show, in the order of their worth; m at most count."""
        homes, titles = self.finished.shape
        scores = np.tile(self.base, (homes, 1))
        rest = self.finished / self.finished.sum(axis=1, keepdims=True)
        likelihood = _log_likelihood(scores, rest)
        picks = np.zeros(homes, np.int64)
        chosen: list[int] = []
        candidates = min(MAX_CANDIDATES, titles)
        for _ in range(min(count, candidates)):
            gains = np.full(candidates, -np.inf)
            for title in range(candidates):
                if title not in chosen:
                    mine = np.flatnonzero(self.finished[:, title] & (picks < PICKS))
                    gains[title] = (
                        _log_likelihood(scores[mine] + self.lift[title], rest[mine]) - likelihood[mine]
                    ).sum(dtype=np.float64)
            best = int(np.argmax(gains))
            mine = np.flatnonzero(self.finished[:, best] & (picks < PICKS))
            chosen.append(best)
            scores[mine] += self.lift[best]
            picks[mine] += 1
            likelihood[mine] = _log_likelihood(scores[mine], rest[mine])
        return np.array(chosen, np.int64)


def _log_likelihood(scores: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """float32[h]: mean log softmax of scores [h, t] under the shares rest [h, t]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return (shifted * rest).sum(axis=1) - np.log(np.exp(shifted).sum(axis=1))


def first_picks(shown: np.ndarray, finished: np.ndarray) -> np.ndarray:
    """int64[p], p at most PICKS: the first of the shown titles that the home finished (bool by title)."""
    return shown[finished[shown]][:PICKS]


def _recall_gain(world: _World, judged: np.ndarray, ours: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """float64[h]: Recall@10 after picks from one list less that after picks from the other. What is picked from either
    is neither to be foreseen nor in the way."""
    gains = np.zeros(len(judged))
    for home, finished in enumerate(judged):
        picks = [first_picks(shown, finished) for shown in (ours, plain)]
        left = np.ones(len(finished), bool)
        left[np.concatenate(picks)] = False
        recalls = []
        for picked in picks:
            scores = np.where(left, world.base + world.lift[picked].sum(axis=0), -np.inf)
            ranked = np.argsort(-scores, kind="stable")[:LIST_LENGTH]
            recalls.append(np.count_nonzero(finished[ranked] & left[ranked]) / max(np.count_nonzero(finished & left), 1))
        gains[home] = recalls[0] - recalls[1]
    return gains
