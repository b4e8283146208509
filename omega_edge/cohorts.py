"""The bundle's cohorts as ranking reads them: which one a history is nearest to, and which titles its patterns speak for.

The cloud's model job judges patterns by this code, and the television picks by it: nobody is told which cohort it is.
"""

from __future__ import annotations

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.ranking import History

Votes = tuple[np.ndarray, np.ndarray]
"""Titles uint32[m], each once, and how strongly patterns speak for them, float32[m] from 0 to 1, the strongest 1."""
NO_VOTES: Votes = np.empty(0, np.uint32), np.empty(0, np.float32)
WEIGHT_STEPS = 255


class Cohorts:
    """Votes of the cohorts of one catalogue, made once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._votes = _votes_by_cohort(catalog) if catalog.cohorts is not None and catalog.factors is not None else ()

    def votes(self, history: History) -> Votes:
        """Those of the cohort whose centre lies nearest to the factors of what was finished; none where nothing of it has
        factors, or the catalogue no cohorts."""
        if not self._votes:
            return NO_VOTES
        finished = history.rows[(history.rows >= 0) & history.success]
        factors = self._catalog.factors
        profile = factors.scale[finished] @ factors.codes[finished]
        return self._votes[int(np.argmax(self._catalog.cohorts.centres @ profile))] if profile.any() else NO_VOTES


def _votes_by_cohort(catalog: Catalog) -> tuple[Votes, ...]:
    cohorts = catalog.cohorts
    pattern = np.repeat(np.arange(len(cohorts.cohort)), np.diff(cohorts.offsets.astype(np.int64)))
    strength = cohorts.weights / np.float32(WEIGHT_STEPS) * cohorts.success[pattern]
    votes = []
    for cohort in range(len(cohorts.centres)):
        mine = cohorts.cohort[pattern] == cohort
        rows, inverse = np.unique(cohorts.rows[mine], return_inverse=True)
        told = np.bincount(inverse, strength[mine], minlength=len(rows))
        votes.append((rows.astype(np.uint32), (told / max(told.max(initial=0.0), 1e-12)).astype(np.float32)))
    return tuple(votes)
