"""Global patterns: what homes of one cohort finish together, as mixtures of titles, for televisions that know little yet.

Cohorts are clusters of homes by the mean of the factors of what they finished (spherical k-means, begun at the homes that
lie farthest from one another, so nothing is drawn). A cohort's patterns grow from its most finished titles: each takes the
titles that the cohort's homes finish together with it more than its own share of homes explains (the cosine of the two
sets of homes), and a title stands in one pattern of a cohort. Nothing is said that fewer than the threshold of distinct
homes stand for: of a pattern, homes that finished the first title and the other one, for each other one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloud.learning_stream import Stream
from cloud.signals import DAY_MS
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, TOLERATED_GROUPS
from omega_edge.cohorts import WEIGHT_STEPS
from omega_edge.protocol import (
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
    MIN_QUALITY_THRESHOLD,
    TitleReference,
    ViewingPattern,
)

LEAST_TITLES = 3
"""Finished titles of a home that takes part in the clustering."""
ROUNDS = 30
LEAST_WEIGHT = 0.05
"""Of a title beside the first of its pattern."""
RECENT_DAYS = 120
"""Of the past that patterns tell of."""
PATTERN_SECTIONS = TOLERATED_GROUPS["cohort"]


@dataclass(frozen=True, slots=True)
class CohortPatterns:
    """Patterns of cohorts. centres: float32[k, 64], unit vectors among the factors; cohort: uint8[p], ascending; offsets:
    uint32[p+1] into rows uint32[r] and weights uint8[r] (in 1/255, the first title of each pattern 255); success: float32[p];
    homes: uint32[p], distinct homes that finished two of its titles or more; at_ms: when, Unix ms."""

    centres: np.ndarray
    cohort: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    success: np.ndarray
    homes: np.ndarray
    at_ms: int

    @staticmethod
    def none() -> CohortPatterns:
        """No cohort, no pattern."""
        return CohortPatterns(
            np.empty((0, FACTOR_DIMENSIONS), np.float32), np.empty(0, np.uint8), np.zeros(1, np.uint32),
            np.empty(0, np.uint32), np.empty(0, np.uint8), np.empty(0, np.float32), np.empty(0, np.uint32), 0,
        )

    def __len__(self) -> int:
        return len(self.cohort)

    def sections(self) -> dict[str, np.ndarray]:
        """The bundle's sections cohort_*; none where there is no pattern."""
        if not len(self):
            return {}
        return {
            "cohort_centres": self.centres,
            "cohort_of": self.cohort,
            "cohort_offsets": self.offsets,
            "cohort_rows": self.rows,
            "cohort_weights": self.weights,
            "cohort_success": self.success,
            "cohort_homes": self.homes,
        }

    def meta(self) -> dict:
        """The bundle's meta keys beside the sections."""
        return {"global_patterns": {"cohorts": len(self.centres), "patterns": len(self), "recent_days": RECENT_DAYS}}

    def messages(self, catalog: Catalog) -> tuple[ViewingPattern, ...]:
        """The same as messages, those of more homes first."""
        order = np.lexsort((np.arange(len(self)), -self.homes.astype(np.int64))).tolist()
        return tuple(self._message(catalog, place) for place in order)

    def _message(self, catalog: Catalog, place: int) -> ViewingPattern:
        span = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        ids = catalog.content_ids(self.rows[span].tolist())
        weights = (self.weights[span] / WEIGHT_STEPS).tolist()
        return ViewingPattern(
            id=place,
            success_rate=float(self.success[place]),
            sample_count=int(self.homes[place]),
            created_at=self.at_ms,
            updated_at=self.at_ms,
            references=tuple(TitleReference(one, weight) for one, weight in zip(ids, weights, strict=True)),
        )


def cohort_patterns(
    stream: Stream, sections: dict[str, np.ndarray], cohorts: int, min_devices: int, at_ms: int
) -> CohortPatterns:
    """Patterns of at most so many cohorts, MAX_SIMILAR_PATTERNS in all. sections: with the factors; at_ms: now, Unix ms."""
    from scipy import sparse

    if "factor_codes" not in sections:
        return CohortPatterns.none()
    events = stream.events
    finished = stream.timeline().success & (events.timestamp >= at_ms - RECENT_DAYS * DAY_MS)
    pairs = np.unique(events.household[finished].astype(np.int64) * (1 << 24) + events.title[finished])
    names, home = np.unique(pairs >> 24, return_inverse=True)
    title = pairs & ((1 << 24) - 1)
    factors = sections["factor_codes"] * sections["factor_scale"][:, None]
    watched = sparse.csr_matrix((np.ones(len(pairs)), (home, title)), shape=(len(names), len(factors)))
    profiles = watched @ factors
    norms = np.linalg.norm(profiles, axis=1)
    enough = np.flatnonzero((np.asarray(watched.sum(axis=1)).reshape(-1) >= LEAST_TITLES) & (norms > 0))
    if len(enough) < min_devices:
        return CohortPatterns.none()
    centres, member = _clusters(profiles[enough] / norms[enough, None], cohorts, min_devices)
    rate = _success_rates(stream, names[enough], member, len(centres), len(factors))
    most = MAX_SIMILAR_PATTERNS // len(centres)
    found = []
    for cohort in range(len(centres)):
        mine = watched[enough[member == cohort]]
        found += [(cohort, *one) for one in _patterns_of(mine, rate[cohort], min_devices, most)]
    return _joined(centres, found, at_ms)


def _joined(centres: np.ndarray, found: list[tuple[int, list[int], list[int], float, int]], at_ms: int) -> CohortPatterns:
    if not found:
        return CohortPatterns.none()
    cohort, rows, weights, success, homes = zip(*found, strict=True)
    return CohortPatterns(
        centres.astype(np.float32),
        np.array(cohort, np.uint8),
        np.concatenate(([0], np.cumsum([len(one) for one in rows]))).astype(np.uint32),
        np.concatenate(rows).astype(np.uint32),
        np.concatenate(weights).astype(np.uint8),
        np.array(success, np.float32),
        np.array(homes, np.uint32),
        at_ms,
    )


def _clusters(points: np.ndarray, count: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres float64[k, d] of norm 1, cluster int64[n] of each point) of at least so many unit vectors; k is at most count, at
    least 1. Each cluster has at least so many points too: the centre of one home's own is that home's taste."""
    centres = _far_apart(points, min(count, len(points) // least))
    while True:
        centres, member = _settled(points, centres)
        sizes = np.bincount(member, minlength=len(centres))
        if sizes.min() >= least:
            return centres, member
        centres = np.delete(centres, int(np.argmin(sizes)), axis=0)


def _far_apart(points: np.ndarray, count: int) -> np.ndarray:
    """So many of the points, each the farthest from those before it."""
    chosen = [int(np.argmin(points @ points.mean(axis=0)))]
    nearest = points @ points[chosen[0]]
    for _ in range(1, count):
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, points @ points[chosen[-1]])
    return points[chosen]


def _settled(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(centres, cluster of each point) once no point changes its cluster, or after ROUNDS; empty clusters are gone."""
    member = np.argmax(points @ centres.T, axis=1)
    for _ in range(ROUNDS):
        sums = np.stack([points[member == cluster].sum(axis=0) for cluster in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1)
        kept = lengths > 0
        centres = sums[kept] / lengths[kept, None]
        moved = np.argmax(points @ centres.T, axis=1)
        if kept.all() and np.array_equal(moved, member):
            break
        member = moved
    return centres, member


def _success_rates(stream: Stream, names: np.ndarray, member: np.ndarray, cohorts: int, titles: int) -> np.ndarray:
    """float64[k, n]: share of the viewings of each title that succeeded in each cohort's homes; 1 without any."""
    cohort_of = np.full(int(stream.events.household.max()) + 1, -1, np.int64)
    cohort_of[names] = member
    cohort = cohort_of[stream.events.household]
    success = stream.timeline().success
    rates = np.ones((cohorts, titles))
    for one in range(cohorts):
        mine = cohort == one
        viewings = np.bincount(stream.events.title[mine], minlength=titles)
        wins = np.bincount(stream.events.title[mine & success], minlength=titles)
        np.divide(wins, viewings, out=rates[one], where=viewings > 0)
    return rates


def _patterns_of(watched, rate: np.ndarray, min_devices: int, most: int):
    """(rows, weights, success rate, homes) of a cohort's patterns; watched: sparse float64[h, n] of its homes."""
    homes = np.asarray(watched.sum(axis=0)).reshape(-1)
    by_title = watched.T.tocsr()
    free = (homes >= min_devices) & (rate >= MIN_QUALITY_THRESHOLD)
    made = 0
    for anchor in np.lexsort((np.arange(len(homes)), -homes)).tolist():
        if made == most or homes[anchor] < min_devices:
            return
        if not free[anchor]:
            continue
        together = np.asarray((by_title[anchor] @ watched).todense()).reshape(-1)
        cosine = together / np.sqrt(np.maximum(homes * homes[anchor], 1.0))
        cosine[(together < min_devices) | ~free] = 0.0
        cosine[anchor] = 0.0
        others = np.lexsort((np.arange(len(cosine)), -cosine))[: MAX_REFERENCES_PER_PATTERN - 1]
        others = others[cosine[others] >= LEAST_WEIGHT]
        if not len(others):
            continue
        rows = [anchor, *others.tolist()]
        free[rows] = False
        weights = [WEIGHT_STEPS, *np.maximum(np.rint(cosine[others] / cosine[others[0]] * WEIGHT_STEPS), 1).astype(int).tolist()]
        several = np.asarray(watched[:, rows].sum(axis=1)).reshape(-1) >= 2
        made += 1
        yield rows, weights, float(np.average(rate[rows], weights=homes[rows])), int(np.count_nonzero(several))
