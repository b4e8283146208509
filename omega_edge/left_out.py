"""What titles would score if one event had never been: what true reasons are chosen by."""

from __future__ import annotations

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Factors, Fusion, RowSet
from omega_edge.catalog_checks import FACTOR_DIMENSIONS
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
)


def _left_out_sums(contributions: np.ndarray, decay: float) -> np.ndarray:
    """Sum of decayed contributions [held, …] without each event of the window.

    Leaving event i out moves every older event one position up, so its contribution grows by 1 / decay; the
    event just outside the window moves in.
    """
    # Older events are summed on their own: the difference of two sums, divided by the decay, would lose digits.
    newer = np.cumsum(contributions, axis=0) - contributions
    older = np.cumsum(contributions[::-1], axis=0)[::-1] - contributions
    return (newer + older / np.float32(decay))[:HISTORY_WINDOW]


def scores_without_each(
    catalog: Catalog, history: History, moment: Moment, fusion: Fusion, candidates: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Raw scores float32[e, k] of candidate titles as if each event of the window had never been.

    candidates: uint32[k], rows of the catalogue. present: float32[f, k], their features with the whole
    history. Positions, bucket and shares are recomputed, so row i equals, up to rounding, the ranking of
    history.without(i).
    """
    return prepared_scores_without_each(
        catalog, Prepared.of(catalog, history, fusion.parameters), moment, fusion, candidates, present
    )


def prepared_scores_without_each(
    catalog: Catalog, prepared: Prepared, moment: Moment, fusion: Fusion, candidates: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """scores_without_each for a history that is prepared already."""
    history = prepared.history
    events = min(len(history.rows), HISTORY_WINDOW)
    feature_weights = weights_of(fusion, history.count - 1, moment)
    parameters = fusion.parameters
    codes, scale = catalog.codes[candidates], catalog.scale[candidates]
    apart = {}
    """float32[e, k] by feature: the values that the absence of an event changes."""
    for feature, table, weights, decay in (
        (ROWS, catalog.rows, prepared.row_weights, "row_decay"),
        (SLIST, catalog.slist, prepared.slist_weights, "slist_decay"),
    ):
        if table is not None and feature_weights[feature] != 0:
            said = np.zeros((len(history.rows), len(candidates)), np.float32)
            said[prepared.known] = _row_weights(table, prepared.known_rows, candidates)
            apart[feature] = _left_out_sums(said * weights[:, None], parameters[decay])
    if catalog.factors is not None and feature_weights[FACTORS] != 0:
        apart[FACTORS] = _factors_without_each(catalog.factors, prepared, events, 1.0 / parameters["factor_decay"], candidates)
    touched = [] if moment.recent_rows else prepared.last_two()
    directions = np.empty((events + len(touched), EMBEDDING_DIMENSIONS), np.float32)
    growth = 1.0 / parameters["content_decay"]
    kernels.left_out_sums(history.codes, history.scale, prepared.content_weights, growth, directions[:events])
    for at, index in enumerate(touched, events):
        directions[at] = recent_vector(history, prepared.last_two(index))
    cosines = np.empty((len(directions), len(candidates)), np.float32)
    kernels.cosines(codes, scale, *quantised_directions(directions), cosines)
    apart[CONTENT_PROFILE] = cosines[:events]
    if feature_weights[CONTEXT] != 0:
        apart[CONTEXT] = _context_without_each(catalog, prepared, moment, candidates)[:events]
    same = [feature for feature in range(len(feature_weights)) if feature not in apart]
    without = np.tile(feature_weights[same] @ present[same], (events, 1))
    without[touched] += feature_weights[CONTENT_RECENT] * (cosines[events:] - present[CONTENT_RECENT])
    for feature, values in apart.items():
        without += feature_weights[feature] * values
    return without


def _factors_without_each(
    factors: Factors, prepared: Prepared, events: int, growth: float, candidates: np.ndarray
) -> np.ndarray:
    """float32[e, k]: the factor feature of the candidates without each event of the window, in float."""
    sums = np.empty((events, FACTOR_DIMENSIONS), np.float32)
    kernels.left_out_sums(prepared.factor_codes, prepared.factor_scale, prepared.factor_weights, growth, sums)
    titles = factors.codes[candidates] * factors.scale[candidates][:, None]
    return sums @ (titles @ factors.fold).T


def _row_weights(table: RowSet, known_rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32[m, k]: what each title of known_rows says for each candidate."""
    found = np.empty((len(known_rows), len(candidates)), np.float32)
    kernels.row_lookup(table.offsets, table.columns, table.values, table.scale, known_rows, candidates, found)
    return found


def _context_without_each(
    catalog: Catalog, prepared: Prepared, moment: Moment, candidates: np.ndarray
) -> np.ndarray:
    """float32[held, k]: the context feature of the candidates without each held event."""
    shares, counted = prepared.shares, prepared.counted
    here = (prepared.history.slots == moment.slot).astype(np.float32)
    lift = genre_lift(
        catalog,
        moment,
        here @ shares - shares * here[:, None],
        here @ counted - counted * here,
        shares.sum(axis=0) - shares,
        counted.sum() - counted,
    )
    return lift @ genre_membership(catalog.genre_masks[candidates], len(catalog.genres)).T
