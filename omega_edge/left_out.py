"""What titles would score if one event had never been: what true reasons are chosen by.

Leaving event i out moves every older event one position newer, so that its weight grows by 1 / decay, and lets the
event just outside the window in. The bucket, shares of genres and the last two watched are those of the shorter history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Fusion, RowSet
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, SLOTS
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.ranking import (
    CONTENT_PROFILE,
    CONTENT_RECENT,
    CONTEXT,
    FACTORS,
    HISTORY_WINDOW,
    ROWS,
    SLIST,
    History,
    Moment,
    Prepared,
    genre_lift,
    genre_membership,
    quantised_directions,
    recent_vector,
    weights_of,
    window_lifts,
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The part of the work that depends on the history alone, e events in the window: computed once a history.

    directions: int8[e + t, 384] and scale: float32[e + t], the content profile without each event, then what stands for
    the last two watched without each of touched, t indices of events. tastes: float32[e, 64], the household's factors
    without each event; None where the bundle has none. lifts: float32[8, h + 1, g], by slot of the week, of each genre
    with the whole window (row 0) and without each of the h events held.
    """

    directions: np.ndarray
    scale: np.ndarray
    touched: tuple[int, ...]
    tastes: np.ndarray | None
    lifts: np.ndarray

    @staticmethod
    def of(catalog: Catalog, prepared: Prepared, parameters: dict[str, float]) -> LeftOut:
        """Of a prepared history, under the parameters it was prepared with."""
        history = prepared.history
        events, touched = min(len(history.rows), HISTORY_WINDOW), tuple(prepared.last_two())
        vectors = np.empty((events + len(touched), EMBEDDING_DIMENSIONS), np.float32)
        growth = 1.0 / parameters["content_decay"]
        kernels.left_out_sums(history.codes, history.scale, prepared.content_weights, growth, vectors[:events])
        for at, index in enumerate(touched, events):
            vectors[at] = recent_vector(history, prepared.last_two(index))
        tastes = None
        if catalog.factors is not None:
            sums = np.empty((events, FACTOR_DIMENSIONS), np.float32)
            growth = 1.0 / parameters["factor_decay"]
            kernels.left_out_sums(prepared.factor_codes, prepared.factor_scale, prepared.factor_weights, growth, sums)
            tastes = sums @ catalog.factors.fold.T
        return LeftOut(*quantised_directions(vectors), touched, tastes, _context_lifts(catalog, prepared))


def _context_lifts(catalog: Catalog, prepared: Prepared) -> np.ndarray:
    """LeftOut.lifts."""
    shares, counted = prepared.shares, prepared.counted
    here = (prepared.history.slots == np.arange(SLOTS)[:, None]).astype(np.float32)
    without = genre_lift(
        catalog,
        (here @ shares)[:, None] - here[:, :, None] * shares,
        (here @ counted)[:, None] - here * counted,
        shares.sum(axis=0) - shares,
        counted.sum() - counted,
    )
    return np.concatenate((window_lifts(catalog, prepared)[:, None], without), axis=1)


def _without_each(contributions: np.ndarray, decays: np.ndarray) -> np.ndarray:
    """Sums of decayed contributions [f, held, k] without each event of the window, float32[f, window, k]; decays: [f]."""
    # Older events are summed on their own: the difference of two sums, divided by the decay, would lose digits.
    newer = np.cumsum(contributions, axis=1) - contributions
    older = np.cumsum(contributions[:, ::-1], axis=1)[:, ::-1] - contributions
    return (newer + older / decays[:, None, None])[:, :HISTORY_WINDOW]


def scores_without_each(
    catalog: Catalog, history: History, moment: Moment, fusion: Fusion, candidates: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Raw scores float32[e, k] of candidate titles as if each event of the window had never been.

    candidates: uint32[k], rows of the catalogue. present: float32[f, k], their features with the whole
    history. Positions, bucket and shares are recomputed, so row i equals, up to rounding, the ranking of
    history.without(i).
    """
    prepared = Prepared.of(catalog, history, fusion.parameters)
    left_out = LeftOut.of(catalog, prepared, fusion.parameters)
    return prepared_scores_without_each(catalog, prepared, left_out, moment, fusion, candidates, present)


def prepared_scores_without_each(
    catalog: Catalog,
    prepared: Prepared,
    left_out: LeftOut,
    moment: Moment,
    fusion: Fusion,
    candidates: np.ndarray,
    present: np.ndarray,
) -> np.ndarray:
    """scores_without_each for a history that is prepared already."""
    events = min(len(prepared.history.rows), HISTORY_WINDOW)
    weights = weights_of(fusion, prepared.history.count - 1, moment)
    touched = [] if moment.recent_rows else list(left_out.touched)
    cosines = np.empty((events + len(touched), len(candidates)), np.float32)
    kernels.cosines(
        catalog.codes[candidates],
        catalog.scale[candidates],
        left_out.directions[: len(cosines)],
        left_out.scale[: len(cosines)],
        cosines,
    )
    apart = {CONTENT_PROFILE}
    without = weights[CONTENT_PROFILE] * cosines[:events]
    if touched:
        without[touched] += weights[CONTENT_RECENT] * (cosines[events:] - present[CONTENT_RECENT])
    tables = [
        (feature, table, said_weights, decay)
        for feature, table, said_weights, decay in (
            (ROWS, catalog.rows, prepared.row_weights, "row_decay"),
            (SLIST, catalog.slist, prepared.slist_weights, "slist_decay"),
        )
        if table is not None and weights[feature] != 0
    ]
    if tables:
        held, known = len(prepared.history.rows), prepared.known
        said = np.empty((len(tables), len(known), len(candidates)), np.float32)
        for place, (feature, table, said_weights, _) in enumerate(tables):
            apart.add(feature)
            _look_up(table, prepared.known_rows, candidates, said[place])
            said[place] *= (said_weights[known] * weights[feature])[:, None]
        if len(known) < held:
            everywhere = np.zeros((len(tables), held, len(candidates)), np.float32)
            everywhere[:, known] = said
            said = everywhere
        decays = np.array([fusion.parameters[decay] for *_, decay in tables], np.float32)
        without += _without_each(said, decays).sum(axis=0)
    if left_out.tastes is not None and weights[FACTORS] != 0:
        apart.add(FACTORS)
        titles = catalog.factors.codes[candidates] * catalog.factors.scale[candidates][:, None]
        without += left_out.tastes @ (titles.T * weights[FACTORS])
    if weights[CONTEXT] != 0:
        apart.add(CONTEXT)
        member = genre_membership(catalog.genre_masks[candidates], len(catalog.genres))
        without += left_out.lifts[moment.slot, 1 : events + 1] @ (member.T * weights[CONTEXT])
    same = [feature for feature in range(len(weights)) if feature not in apart]
    without += weights[same] @ present[same]
    return without


def _look_up(table: RowSet, known_rows: np.ndarray, candidates: np.ndarray, out: np.ndarray) -> None:
    """Fill float32[m, k]: what each title of known_rows says for each candidate."""
    kernels.row_lookup(table.offsets, table.columns, table.values, table.scale, known_rows, candidates, out)
