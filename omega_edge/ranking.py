"""The features and their weights: from a household's history and a moment to every title's score.

Every feature is pointwise: it depends on the history, the moment and one title, never on the other titles of
the list. Scores are therefore comparable between calls, and what a score would be without one event can be
computed exactly for a few titles without ranking the catalogue again.

The raw score of a title is the sum over features of weight[bucket, feature] * value, the bucket being the
length of the profile's history: 0, 1-4, 5-19, 20 and more events. Features and protocol follow the linear hybrid
described in the published comparisons of EASE (Steck, 2019) and session-decayed item-item models (SLIST, Choi
et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Encoder, Factors, Fusion, RowSet
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, SEQUENCE_DIMENSIONS, SLOTS
from omega_edge.protocol import EMBEDDING_DIMENSIONS, TimeOfDay
from omega_edge.sequence import SequenceEncoder

FEATURES = (
    "rows",
    "slist",
    "factors",
    "content_profile",
    "content_recent",
    "sequence",
    "popularity",
    "trend_short",
    "trend_long",
    "context",
    "patterns",
)
"""Order of the rows of every feature matrix and of the bundle's weights."""
WISH = "mood"
"""One more row where a mood is asked for: a wish is granted, not learned, so its weight is not the bundle's."""
MOOD_WEIGHT = 2.0
"""Weight of the wish, in units of the raw score: titles wholly of the genre move up as if e^2 times as likely."""
ROWS, SLIST, FACTORS, CONTENT_PROFILE, CONTENT_RECENT, SEQUENCE = range(6)
POPULARITY, TREND_SHORT, TREND_LONG, CONTEXT, PATTERNS = range(6, len(FEATURES))
PERSONAL = slice(ROWS, SEQUENCE + 1)
"""The rows that depend on the history alone: one stretch of the matrix, computed once after each event."""

DECAYS = ("row_decay", "content_decay", "slist_decay", "factor_decay")
PRODUCT_PARTS = 3
HISTORY_WINDOW = 64
"""Events that the decayed features read. At the slowest decay in use (0.94 an event) the next one weighs 2 %."""
HISTORY_HELD = HISTORY_WINDOW + 1
"""One more is held: it enters the window when another event is left out to find a reason."""
CONTEXT_PRIOR_EVENTS = 10.0
"""Weight, in events, of the bundle's genre shares against the household's own in the context feature."""
REJECTION_WEIGHT = -0.5
"""Evidence of a title that a viewer said no to, against 1 for a title finished. A choice: no public data set in
use holds such answers, so it cannot be fitted."""

_TIMES = tuple(TimeOfDay)


def slot_of(time_of_day: TimeOfDay, day_of_week: int) -> int:
    """Slot of the week (0–7): twice the part of the day (morning 0 … night 3), plus 1 on Saturday and Sunday."""
    return 2 * _TIMES.index(time_of_day) + (day_of_week >= 5)


def bucket_of(count: int) -> int:
    """Row of the fusion weights for a profile with `count` events: 0, 1–4, 5–19, 20 and more."""
    return 0 if count < 1 else 1 if count < 5 else 2 if count < 20 else 3


@dataclass(frozen=True, slots=True)
class History:
    """What ranking knows of one profile's past: up to HISTORY_HELD events, newest first. Immutable.

    rows: int32[e], the title's row in the bundle, -1 outside the catalogue. codes: int8[e, 384] and scale:
    float32[e], the title's vector, scale 0 where there is none. success: bool[e]. rejected: bool[e], what the
    viewer said no to. slots: uint8[e]. count: all events of the profile, also those no longer held.
    """

    rows: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    success: np.ndarray
    rejected: np.ndarray
    slots: np.ndarray
    count: int

    @staticmethod
    def empty() -> History:
        """The history of a profile that has watched nothing."""
        return History(
            rows=np.empty(0, np.int32),
            codes=np.empty((0, EMBEDDING_DIMENSIONS), np.int8),
            scale=np.empty(0, np.float32),
            success=np.empty(0, bool),
            rejected=np.empty(0, bool),
            slots=np.empty(0, np.uint8),
            count=0,
        )

    def push(
        self, row: int, code: np.ndarray | None, scale: float, success: bool, slot: int, rejected: bool = False
    ) -> History:
        """This history with one newer event. code: int8[384], or None for a title without a vector."""
        kept = min(len(self.rows), HISTORY_HELD - 1)
        codes = np.empty((kept + 1, EMBEDDING_DIMENSIONS), np.int8)
        codes[0] = 0 if code is None else code
        codes[1:] = self.codes[:kept]
        return History(
            rows=np.concatenate(([np.int32(row)], self.rows[:kept])),
            codes=codes,
            scale=np.concatenate(([np.float32(0.0 if code is None else scale)], self.scale[:kept])),
            success=np.concatenate(([success], self.success[:kept])),
            rejected=np.concatenate(([rejected], self.rejected[:kept])),
            slots=np.concatenate(([np.uint8(slot)], self.slots[:kept])),
            count=self.count + 1,
        )

    def without(self, index: int) -> History:
        """This history as if its event `index` (0 is the newest) had never been."""
        return replace(
            self,
            rows=np.delete(self.rows, index),
            codes=np.delete(self.codes, index, axis=0),
            scale=np.delete(self.scale, index),
            success=np.delete(self.success, index),
            rejected=np.delete(self.rejected, index),
            slots=np.delete(self.slots, index),
            count=self.count - 1,
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """What else a ranking depends on.

    slot: slot of the week, 0–7. trends: two float32[n] that replace the bundle's, or None. recent_rows: titles
    whose content stands for the last two watched, newest first, instead of the history's; empty for none.
    mood_genre: index of a genre asked for, or -1. pattern_rows (uint32[m]) and pattern_weights (float32[m]):
    titles that global patterns speak for.
    """

    slot: int
    trends: tuple[np.ndarray, np.ndarray] | None = None
    recent_rows: tuple[int, ...] = ()
    mood_genre: int = -1
    pattern_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    pattern_weights: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What features and reasons both read of one history, e events held: computed once a history.

    row_weights, slist_weights, factor_weights, content_weights: float32[e], evidence of each event times its decay.
    known: int64[m], indices of the events inside the catalogue; known_rows: uint32[m]. factor_codes: int8[e, 64] and
    factor_scale: float32[e], the factors of each event's title, scale 0 where there are none. shares: float32[e, g], genre shares of the
    successes inside the catalogue, and counted: float32[e], 1 for each of those. recent: indices of the three
    newest successes with a vector; two stand for the last titles, the third steps in for one left out. states:
    float32[1 + w, 64], what the sequence encoder says of the history and of it without each of the w events in the window;
    of length 0 where the bundle has none.
    """

    history: History
    row_weights: np.ndarray
    slist_weights: np.ndarray
    factor_weights: np.ndarray
    content_weights: np.ndarray
    known: np.ndarray
    known_rows: np.ndarray
    factor_codes: np.ndarray
    factor_scale: np.ndarray
    shares: np.ndarray
    counted: np.ndarray
    recent: tuple[int, ...]
    states: np.ndarray

    @staticmethod
    def of(
        catalog: Catalog, history: History, parameters: dict[str, float], encoder: SequenceEncoder | None = None
    ) -> Prepared:
        """Of a history, under the parameters that features() describes. encoder: the catalogue's, a new one if None."""
        finished_or_not = np.where(history.success, np.float32(1.0), np.float32(parameters["failure_weight"]))
        evidence = np.where(history.rejected, np.float32(REJECTION_WEIGHT), finished_or_not)
        position = np.arange(len(evidence), dtype=np.float32)
        row_weights, content_weights, slist_weights, factor_weights = (
            evidence * np.power(np.float32(parameters[decay]), position) for decay in DECAYS
        )
        known = np.flatnonzero(history.rows >= 0)
        known_rows = history.rows[known].astype(np.uint32)
        counted = np.zeros(len(evidence), np.float32)
        counted[known] = history.success[known]
        masks = np.zeros(len(evidence), np.uint64)
        masks[known] = catalog.genre_masks[known_rows]
        factor_codes, factor_scale = np.zeros((len(evidence), FACTOR_DIMENSIONS), np.int8), np.zeros(len(evidence), np.float32)
        if catalog.factors is not None:
            factor_codes[known], factor_scale[known] = catalog.factors.codes[known_rows], catalog.factors.scale[known_rows]
        states = _states_of(catalog, encoder, history, known)
        return Prepared(
            history=history,
            row_weights=row_weights,
            slist_weights=slist_weights,
            factor_weights=factor_weights,
            content_weights=content_weights,
            known=known,
            known_rows=known_rows,
            factor_codes=factor_codes,
            factor_scale=factor_scale,
            shares=genre_membership(masks, len(catalog.genres)) * counted[:, None],
            counted=counted,
            recent=tuple(np.flatnonzero(history.success & (history.scale > 0))[:3].tolist()),
            states=states,
        )

    def last_two(self, skipped: int = -1) -> list[int]:
        """Indices of the two newest successes with a vector, inside the window, as if one event had never been."""
        window = HISTORY_WINDOW + (0 <= skipped < HISTORY_WINDOW)
        return [index for index in self.recent if index != skipped and index < window][:2]


def _states_of(
    catalog: Catalog, encoder: SequenceEncoder | None, history: History, known: np.ndarray
) -> np.ndarray:
    """Prepared.states. Events outside the catalogue take no place in the encoder's window, so that without one of
    them the state is what it was."""
    if catalog.sequence is None:
        return np.empty((0, SEQUENCE_DIMENSIONS), np.float32)
    encoder = encoder or SequenceEncoder(catalog.sequence)
    inside = known[known < HISTORY_WINDOW]
    rows, finished = history.rows[known].astype(np.uint32), (history.success & ~history.rejected)[known]
    found = encoder.states(rows, finished, len(inside))
    count = 1 + min(len(history.rows), HISTORY_WINDOW)
    states = np.repeat(found[:1], count, axis=0)
    states[1 + inside] = found[1:]
    return states


def quantised_directions(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8[m, 384] and scale float32[m] of vectors float32[m, 384]; scale 0 for a zero vector."""
    codes = np.zeros(vectors.shape, np.int8)
    scale = np.zeros(len(vectors), np.float32)
    # Sums of unit vectors with weights of both signs can cancel; nothing below this norm is a direction.
    usable = np.flatnonzero(np.abs(vectors).max(axis=1, initial=0.0) > 1e-6)
    if len(usable) == len(vectors):
        kernels.quantise(np.ascontiguousarray(vectors), codes, scale)
    elif len(usable):
        some_codes, some_scale = np.empty((len(usable), vectors.shape[1]), np.int8), np.empty(len(usable), np.float32)
        kernels.quantise(np.ascontiguousarray(vectors[usable]), some_codes, some_scale)
        codes[usable], scale[usable] = some_codes, some_scale
    return codes, scale


def genre_membership(masks: np.ndarray, genre_count: int) -> np.ndarray:
    """float32[m, g] from genre bit masks uint64[m]: 1 / number of genres in each genre set, else 0."""
    bits = np.unpackbits(np.ascontiguousarray(masks).view(np.uint8).reshape(len(masks), 8), axis=1, bitorder="little")
    bits = bits[:, :genre_count].astype(np.float32)
    return bits / np.maximum(bits.sum(axis=1, keepdims=True), 1)


def genre_share(plays: np.ndarray, events: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """float32[..., g]: share of each genre in what was watched, smoothed by CONTEXT_PRIOR_EVENTS of the bundle's.

    plays: float32[..., g], sums of genre shares over events; events: float32[...], how many; prior: float32[..., g]."""
    weight = np.float32(CONTEXT_PRIOR_EVENTS)
    return (plays + weight * prior) / (events + weight)[..., None]


LEAST_GENRE_SHARE = np.float32(1e-6)
"""A lift is a share of the slot over that of all, no less than this, minus 1."""


def features(
    catalog: Catalog, history: History, moment: Moment, parameters: dict[str, float], out: np.ndarray | None = None
) -> np.ndarray:
    """Feature matrix float32[11, n] of every title of the catalogue, rows in the order of FEATURES; with a mood asked
    for, float32[12, n], the last row being each title's share in that genre.

    parameters: those of DECAYS (0–1, per event), failure_weight (evidence of an event that failed).
    out: written to and returned if given.
    """
    if out is None:
        out = np.empty((feature_count(moment), catalog.count), np.float32)
    prepared = Prepared.of(catalog, history, parameters)
    fill_personal(catalog, prepared, out[PERSONAL])
    out[POPULARITY] = catalog.popularity
    out[TREND_SHORT], out[TREND_LONG] = trends_of(catalog, moment)
    for feature, fill in momentary(catalog, moment, lambda: window_lifts(catalog, prepared)[moment.slot]).items():
        fill(out[feature])
    return out


def feature_count(moment: Moment) -> int:
    """Rows of the feature matrix: those of FEATURES, and the wish where there is one."""
    return len(FEATURES) + (moment.mood_genre >= 0)


def weights_of(fusion: Fusion, count: int, moment: Moment) -> np.ndarray:
    """Weights float32[11], or float32[12] with a wish, for a profile with `count` events."""
    learned = fusion.weights[bucket_of(count)]
    return learned if moment.mood_genre < 0 else np.append(learned, np.float32(MOOD_WEIGHT))


def trends_of(catalog: Catalog, moment: Moment) -> tuple[np.ndarray, np.ndarray]:
    """float32[n] of the short and the long window: the moment's, else the bundle's."""
    return moment.trends if moment.trends is not None else tuple(trend.scores for trend in catalog.trends)


def fill_personal(catalog: Catalog, prepared: Prepared, out: np.ndarray) -> None:
    """Fill the rows PERSONAL of a feature matrix, float32[6, n]: those that depend on the history alone."""
    _add_rows(catalog.rows, prepared, prepared.row_weights, out[ROWS])
    _add_rows(catalog.slist, prepared, prepared.slist_weights, out[SLIST])
    # The content rows, which are filled last, are room for the other parts of both products.
    if catalog.factors is None:
        out[FACTORS] = 0
    else:
        weights = (prepared.factor_weights * prepared.factor_scale)[:HISTORY_WINDOW]
        taste = catalog.factors.fold @ (weights @ prepared.factor_codes[:HISTORY_WINDOW].astype(np.float32))
        _products(catalog.factors, taste, out[FACTORS : FACTORS + PRODUCT_PARTS])
    if catalog.sequence is None:
        out[SEQUENCE] = 0
    else:
        _products(catalog.sequence, prepared.states[0], out[CONTENT_PROFILE : CONTENT_PROFILE + PRODUCT_PARTS])
        np.add(out[CONTENT_PROFILE], catalog.sequence.bias, out=out[SEQUENCE])
    history = prepared.history
    weights = prepared.content_weights[:HISTORY_WINDOW] * history.scale[:HISTORY_WINDOW]
    directions = np.empty((2, EMBEDDING_DIMENSIONS), np.float32)
    np.matmul(weights, history.codes[:HISTORY_WINDOW].astype(np.float32), out=directions[0])
    directions[1] = recent_vector(history, prepared.last_two())
    kernels.cosines(
        catalog.codes, catalog.scale, *quantised_directions(directions), out[CONTENT_PROFILE : CONTENT_RECENT + 1]
    )


def _add_rows(table: RowSet | None, prepared: Prepared, weights: np.ndarray, out: np.ndarray) -> None:
    """Fill float32[n] with the sum of the rows of the events in the window, weighted by float32[e]."""
    out[:] = 0
    inside = int(np.searchsorted(prepared.known, HISTORY_WINDOW))
    if table is not None and inside:
        kernels.row_scatter_add(
            table.offsets,
            table.columns,
            table.values,
            table.scale,
            prepared.known_rows[:inside],
            weights[prepared.known[:inside]],
            out,
        )


def _products(titles: Factors | Encoder, taste: np.ndarray, out: np.ndarray) -> None:
    """Fill out[0] of float32[3, n] with the product of each title's codes * scale and float32[64]; the others are
    overwritten.

    The taste is rounded to 8 bits, what that leaves to 8 bits again, and once more: 24 bits in all, as a float has, so
    that what an event lends a title is what left_out.py computes in float. One rounding would be off by .1 % of the
    largest products, two by .001 %, which is still half of the least drop that a reason rests on.
    """
    largest = float(np.abs(taste).max(initial=0.0))
    if largest < 1e-20:
        out[0] = 0
        return
    step, left = largest / 127, taste.astype(np.float64)
    queries, scale = np.empty((PRODUCT_PARTS, len(taste)), np.int8), np.empty(PRODUCT_PARTS, np.float32)
    for part in range(PRODUCT_PARTS):
        rounded = np.rint(left / step)
        queries[part], scale[part] = rounded, step
        left = left - rounded * step
        step /= 254  # what is left is at most half a step
    kernels.cosines(titles.codes, titles.scale, queries, scale, out)
    out[0] += out[1] + out[2]


def momentary(
    catalog: Catalog, moment: Moment, lift: Callable[[], np.ndarray]
) -> dict[int, Callable[[np.ndarray], None]]:
    """What fills the rows float32[n] that depend on the moment, by feature; the wish is number len(FEATURES).

    lift: gives float32[g], the lift of each genre in the moment's slot.
    """

    def fill_recent(out: np.ndarray) -> None:
        told = recent_vector(catalog, moment.recent_rows[:2])[None]
        kernels.cosines(catalog.codes, catalog.scale, *quantised_directions(told), out[None])

    def fill_context(out: np.ndarray) -> None:
        kernels.genre_means(catalog.genre_masks, lift(), out)

    def fill_patterns(out: np.ndarray) -> None:
        out[:] = 0
        np.add.at(out, moment.pattern_rows, moment.pattern_weights)

    def fill_wish(out: np.ndarray) -> None:
        wished = np.zeros(len(catalog.genres), np.float32)
        wished[moment.mood_genre] = 1.0
        kernels.genre_means(catalog.genre_masks, wished, out)

    fills = {CONTEXT: fill_context, PATTERNS: fill_patterns}
    if moment.recent_rows:
        fills[CONTENT_RECENT] = fill_recent
    if moment.mood_genre >= 0:
        fills[len(FEATURES)] = fill_wish
    return fills


def window_lifts(catalog: Catalog, prepared: Prepared) -> np.ndarray:
    """float32[8, g]: how much more than usual each genre is watched in each slot of the week, minus 1, over the window."""
    shares, counted = prepared.shares[:HISTORY_WINDOW], prepared.counted[:HISTORY_WINDOW]
    here = (prepared.history.slots[:HISTORY_WINDOW] == np.arange(SLOTS)[:, None]).astype(np.float32)
    now = genre_share(here @ shares, here @ counted, catalog.context_prior)
    ever = genre_share(shares.sum(axis=0), counted.sum(), catalog.context_overall)
    return now / np.maximum(ever, LEAST_GENRE_SHARE) - np.float32(1.0)


def recent_vector(source: History | Catalog, chosen: Sequence[int]) -> np.ndarray:
    """float32[384]: direction of the last two titles, by their indices in a history or rows of a catalogue."""
    direction = np.zeros(EMBEDDING_DIMENSIONS, np.float32)
    for index in chosen:
        direction += source.codes[index] * source.scale[index]
    return direction


def raw_scores(matrix: np.ndarray, fusion: Fusion, count: int, moment: Moment) -> np.ndarray:
    """Raw fused scores float32[n] of a feature matrix for a profile with `count` events."""
    out = np.empty(matrix.shape[1], np.float32)
    kernels.fuse(np.ascontiguousarray(matrix), weights_of(fusion, count, moment), out)
    return out
