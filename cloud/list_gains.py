"""What lists of ten are worth to homes on viewings that taught nothing: by the ranker that televisions run, bundle by bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cloud.fusion_fit import LIST_LENGTH, FitSet, discounted_gain
from cloud.learning_stream import Stream
from cloud.replay import Blocks, replay
from cloud.settings import ModelSettings
from omega_edge.catalog import Catalog
from omega_edge.cohorts import Cohorts
from omega_edge.ranker import Ranker
from omega_edge.ranking import History, Moment


@dataclass(frozen=True, slots=True)
class Asked:
    """A viewing to predict: what the television knows before it, the titles not to offer (bitmap of those allowed), and the
    title that was finished."""

    history: History
    moment: Moment
    allowed: np.ndarray
    title: int
    household: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Viewings of sharers that taught nothing. fitting: their features by the candidate; asked: the same for any bundle."""

    fitting: FitSet
    asked: tuple[Asked, ...]

    @property
    def households(self) -> np.ndarray:
        """int64[q]: whose they are."""
        return np.array([one.household for one in self.asked], np.int64)


def held_out(
    stream: Stream, start: int, catalog: Catalog, settings: ModelSettings, most: int, per_household: int
) -> HeldOut:
    """The sharers' first finishes from event `start` on, at most so many, evenly spread over the time.

    catalog: trained on the events before start. Trends are live: each day's up to its midnight.
    """
    timeline = stream.timeline()
    wanted = timeline.queries(start, len(stream.events), None, per_household)
    wanted = wanted[stream.shared[wanted] & timeline.success[wanted]]
    wanted = wanted[np.unique(np.arange(most) * len(wanted) // most)] if len(wanted) else wanted
    fitting, asked = FitSet(), []
    blocks = Blocks((start,), lambda _start: catalog)
    for query in replay(timeline, wanted, blocks, settings.trend_window_hours, settings.parameters):
        fitting.add(query)
        unseen = np.ones(catalog.count, bool)
        unseen[query.seen] = False
        asked.append(
            Asked(query.history, query.moment, np.packbits(unseen, bitorder="little"), query.title, query.household)
        )
    return HeldOut(fitting, tuple(asked))


def list_gains(catalog: Catalog, asked: tuple[Asked, ...]) -> np.ndarray:
    """float64[q]: NDCG@10 of the list that a television with this bundle would have shown before each viewing, hearing the
    patterns of its cohort where the bundle has any."""
    ranker, cohorts = Ranker(catalog), Cohorts(catalog)
    gains = np.zeros(len(asked))
    for place, one in enumerate(asked):
        rows, weights = cohorts.votes(one.history)
        moment = replace(one.moment, pattern_rows=rows, pattern_weights=weights)
        shown = ranker.rank(one.history, moment, one.allowed, LIST_LENGTH, diversity=0.0).rows
        found = np.flatnonzero(shown == one.title)
        if len(found):
            gains[place] = discounted_gain(float(found[0]) + 1.0)
    return gains
