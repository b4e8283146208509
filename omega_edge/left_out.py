"""What titles would score if one event had never been: what true reasons are chosen by.

Leaving event i out moves every older event one position newer, so that its weight grows by 1 / decay, and lets the
event just outside the window in. The bucket, shares of genres and the last two watched are those of the shorter history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Fusion
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, SLOTS
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.ranking import (
    CONTENT_PROFILE,
    CONTENT_RECENT,
    CONTEXT,
    FACTORS,
    FEATURES,
    HISTORY_HELD,
    HISTORY_WINDOW,
    LEAST_GENRE_SHARE,
    PATTERNS,
    POPULARITY,
    ROWS,
    SEQUENCE,
    SLIST,
    TREND_LONG,
    TREND_SHORT,
    History,
    Moment,
    Prepared,
    genre_membership,
    genre_share,
    quantised_directions,
    recent_vector,
    weights_of,
    window_lifts,
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The part of the work that depends on the history alone, e events in the window: computed once a history.

    directions: int8[e + t, 384] and scale: float32[e + t], the content profile without each event, then what stands for
    the last two watched without each of touched, t indices of events. mixing: float32[e, m], what rows, slist, factors and
    sequence of a title without each event are made from, those that the bundle has side by side: for the first two what each known
    event counts, for the others the household's factors and state. lifts: float32[8, h + 1, g], by slot of the week, of each genre
    with the whole window (row 0) and without each of the h events held.
    """

    directions: np.ndarray
    scale: np.ndarray
    touched: tuple[int, ...]
    mixing: np.ndarray
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
        mixing = []
        for table, weights, decay in (
            (catalog.rows, prepared.row_weights, parameters["row_decay"]),
            (catalog.slist, prepared.slist_weights, parameters["slist_decay"]),
        ):
            if table is not None:
                mixing.append(_shifts(decay)[:events, prepared.known] * weights[prepared.known])
        if catalog.factors is not None:
            sums = np.empty((events, FACTOR_DIMENSIONS), np.float32)
            growth = 1.0 / parameters["factor_decay"]
            kernels.left_out_sums(prepared.factor_codes, prepared.factor_scale, prepared.factor_weights, growth, sums)
            mixing.append(sums @ catalog.factors.fold.T)
        if catalog.sequence is not None:
            mixing.append(prepared.states[1:])
        mixed = np.concatenate(mixing, axis=1) if mixing else np.empty((events, 0), np.float32)
        return LeftOut(*quantised_directions(vectors), touched, mixed, _context_lifts(catalog, prepared))


@lru_cache(maxsize=4)
def _shifts(decay: float) -> np.ndarray:
    """float32[64, 65], read only: by what each event's weight is multiplied without each of the window. Itself by nothing,
    and older ones, a position newer, by 1 / decay."""
    without, event = np.indices((HISTORY_WINDOW, HISTORY_HELD))
    shifts = np.where(event > without, 1.0 / decay, event != without).astype(np.float32)
    shifts.flags.writeable = False
    return shifts


def _context_lifts(catalog: Catalog, prepared: Prepared) -> np.ndarray:
    """LeftOut.lifts."""
    shares, counted, slots = prepared.shares, prepared.counted, prepared.history.slots
    here = (slots == np.arange(SLOTS)[:, None]).astype(np.float32)
    now, events = here @ shares, here @ counted
    ever = genre_share(shares.sum(axis=0) - shares, counted.sum() - counted, catalog.context_overall)
    ever = np.maximum(ever, LEAST_GENRE_SHARE)
    lifts = np.empty((SLOTS, len(shares) + 1, shares.shape[1]), np.float32)
    lifts[:, 0] = window_lifts(catalog, prepared)
    without = lifts[:, 1:]
    # An event counts in its own slot and in all together; the shares of the other slots are as they were.
    np.divide(genre_share(now, events, catalog.context_prior)[:, None], ever, out=without)
    own = genre_share(now[slots] - shares, events[slots] - counted, catalog.context_prior[slots])
    without[slots, np.arange(len(slots))] = own / ever
    without -= np.float32(1.0)
    return lifts


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
    without = weights[CONTENT_PROFILE] * cosines[:events]
    if touched:
        without[touched] += weights[CONTENT_RECENT] * (cosines[events:] - present[CONTENT_RECENT])
    without += left_out.mixing @ _weighed_titles(catalog, prepared, weights, candidates)
    if catalog.sequence is not None:
        without += catalog.sequence.bias[candidates] * weights[SEQUENCE]
    if weights[CONTEXT] != 0:
        member = genre_membership(catalog.genre_masks[candidates], len(catalog.genres))
        without += left_out.lifts[moment.slot, 1 : events + 1] @ (member.T * weights[CONTEXT])
    same = _SAME[: len(_SAME) - len(FEATURES) - 1 + len(weights)]
    without += weights[same] @ present[same]
    return without


_SAME = np.array([CONTENT_RECENT, POPULARITY, TREND_SHORT, TREND_LONG, PATTERNS, len(FEATURES)])
"""Features that no event of the window moves, or that are moved apart; the wish, which is not always there, last."""


def _weighed_titles(catalog: Catalog, prepared: Prepared, weights: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32[m, k]: what LeftOut.mixing multiplies, of k titles, each part times its feature's weight."""
    known = len(prepared.known)
    tables = [(weights[at], table) for at, table in ((ROWS, catalog.rows), (SLIST, catalog.slist)) if table is not None]
    products = [
        (weights[at], titles) for at, titles in ((FACTORS, catalog.factors), (SEQUENCE, catalog.sequence)) if titles is not None
    ]
    found = np.empty((known * len(tables) + FACTOR_DIMENSIONS * len(products), len(candidates)), np.float32)
    start = 0
    for weight, table in tables:
        part = found[start : start + known]
        if weight != 0:
            kernels.row_lookup(
                table.offsets, table.columns, table.values, table.scale, prepared.known_rows, candidates, part
            )
            part *= weight
        else:
            part[:] = 0
        start += known
    for weight, titles in products:
        scale = titles.scale[candidates] * weight
        np.multiply(titles.codes[candidates].T, scale, out=found[start : start + FACTOR_DIMENSIONS])
        start += FACTOR_DIMENSIONS
    return found
