"""Rows of the titles that the dense block has no room for, against their definition in dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from cloud import ease, sparse_rows
from cloud.knowledge import knowledge_before
from cloud.replay import Timeline
from cloud.settings import ModelSettings
from cloud.signals import slots_of
from cloud.sparse_rows import SHRINKAGE_HOMES, Finished, rows_beyond
from tests.test_model_job import dense_rows, interactions, random_events, titles_of

TITLES, IN_BLOCK = 40, 12
GENEROUS_BYTES = TITLES * TITLES * ease.BYTES_PER_ENTRY


def world(seed: int) -> tuple[Finished, np.ndarray, np.ndarray, np.ndarray]:
    """What homes finished, the titles in the block, those beyond it (two have no event), and EASE's weights."""
    events = random_events(seed, count=900, households=60, titles=TITLES - 2)
    weight = np.random.default_rng(seed).random(len(events))
    chosen = np.sort(np.random.default_rng(seed + 1).permutation(TITLES)[:IN_BLOCK])
    together = ease.co_watching(events.household, events.title, weight, chosen, TITLES)
    beyond = np.random.default_rng(seed + 2).permutation(np.setdiff1d(np.arange(TITLES), chosen))
    return Finished(events.household, events.title, weight), chosen, beyond, ease.item_weights(together, 5.0)


def newest_of(finished: Finished, most: int) -> np.ndarray:
    """float64[homes, n]: weights of the last event of each home and title, of its newest titles only."""
    matrix = np.zeros((finished.household.max() + 1, TITLES))
    for home in range(len(matrix)):
        mine = np.flatnonzero(finished.household == home)[::-1]
        titles = list(dict.fromkeys(finished.title[mine].tolist()))[:most]
        for title in titles:
            matrix[home, title] = finished.weight[mine[finished.title[mine] == title][0]]
    return matrix


def expected_weights(finished: Finished, chosen: np.ndarray, weights: np.ndarray, most: int) -> np.ndarray:
    """float64[n, n] before anything is cut or rounded."""
    watched = newest_of(finished, most)
    together = watched.T @ watched
    norms = np.sqrt(np.diag(together))
    cosine = together / np.maximum(np.outer(norms, norms), 1e-300) * together / (together + SHRINKAGE_HOMES)
    np.fill_diagonal(cosine, 0.0)
    block = np.ix_(chosen, chosen)
    factor = np.median(weights.max(axis=1)) / np.median(cosine[block].max(axis=1))
    found = cosine * factor
    found[block] = weights
    return found


@pytest.mark.parametrize(("most", "pairs"), [(200, 20_000_000), (5, 20_000_000), (200, 3 * TITLES)])
def test_rows_hold_ease_s_weights_in_the_block_and_shrunk_cosines_elsewhere(monkeypatch, most, pairs):
    monkeypatch.setattr(sparse_rows, "NEWEST_TITLES", most)
    monkeypatch.setattr(sparse_rows, "CHUNK_PAIRS", pairs)
    finished, chosen, beyond, weights = world(1)
    rows = rows_beyond(finished, weights, chosen, beyond, TITLES, GENEROUS_BYTES)
    expected = np.maximum(expected_weights(finished, chosen, weights, most), 0.0)
    half_step = expected.max(axis=1, keepdims=True) / 254 * 1.0001 + 1e-12
    held = dense_rows(rows, TITLES)
    assert (np.abs(held - expected) <= half_step).all()
    starts = rows.offsets[:-1][np.diff(rows.offsets.astype(np.int64)) > 0]
    assert (np.delete(np.diff(rows.columns.astype(np.int64), prepend=-1), starts) > 0).all(), "columns ascend in a row"
    outside = np.setdiff1d(beyond, [TITLES - 2, TITLES - 1])
    assert held[outside].any(axis=1).all() and held[:, outside].any(axis=0).all()


def test_the_budget_is_shared_by_all_rows_and_the_least_watched_go_without():
    finished, chosen, beyond, weights = world(2)
    beyond = beyond[beyond < TITLES - 2]
    listed = 20
    budget = listed * sparse_rows.LEAST_PER_ROW * ease.BYTES_PER_ENTRY + 3
    rows = rows_beyond(finished, weights, chosen, beyond, TITLES, budget)
    lengths = np.diff(rows.offsets.astype(np.int64))
    assert np.flatnonzero(lengths).tolist() == sorted([*chosen.tolist(), *beyond[: listed - IN_BLOCK].tolist()])
    assert lengths.max() == sparse_rows.LEAST_PER_ROW and len(rows.columns) * ease.BYTES_PER_ENTRY <= budget
    expected = expected_weights(finished, chosen, weights, 200)
    for row in np.flatnonzero(lengths).tolist():
        held = rows.columns[rows.offsets[row] : rows.offsets[row + 1]].tolist()
        strongest = np.argsort(-expected[row], kind="stable")[: sparse_rows.LEAST_PER_ROW]
        assert set(held) <= set(strongest.tolist())


@pytest.mark.parametrize("budget", [0, 59, IN_BLOCK * 3 * ease.BYTES_PER_ENTRY])
def test_a_budget_too_small_for_the_block_leaves_nothing_beyond_it(budget):
    finished, chosen, beyond, weights = world(3)
    rows = rows_beyond(finished, weights, chosen, beyond, TITLES, budget)
    assert len(rows.columns) * ease.BYTES_PER_ENTRY <= budget
    assert not np.diff(rows.offsets.astype(np.int64))[beyond].any()


@pytest.mark.filterwarnings("error")
def test_weights_whose_product_is_zero_make_no_row_and_no_infinity():
    """Two titles that six homes finished half a century before the third, with a half-life of 15 days."""
    old = 0.5 ** (46 * 365 / 30)
    finished = Finished(np.repeat(np.arange(6), 3), np.tile([0, 1, 2], 6), np.tile([old, old, 1.0], 6))
    rows = rows_beyond(finished, np.zeros((1, 1)), np.array([2]), np.array([0, 1]), 3, GENEROUS_BYTES)
    assert old > 0 and old * old == 0 and len(rows.columns) == 0 and not rows.scale.any()


def test_a_catalogue_that_fits_the_block_has_ease_s_rows_and_one_that_does_not_more(monkeypatch):
    events, titles, settings = random_events(4, count=900), titles_of(30), ModelSettings(tune=False)
    timeline = Timeline.of(events, slots_of(events.timestamp))
    success = timeline.success
    whole = knowledge_before(titles, timeline, len(events), settings)
    chosen = ease.eligible_titles(events.title, 30, settings.min_events)
    weight = 0.5 ** ((events.timestamp[-1] + 1 - events.timestamp[success]) / (60 * 86_400_000))
    dense = interactions(type(events)(*(getattr(events, name)[success] for name in (
        "household", "title", "watch_percentage", "timestamp"))), weight, chosen)
    rows = ease.strongest_rows(ease.item_weights(dense.T @ dense, settings.ridge), chosen, 30, settings.row_budget_bytes)
    assert np.array_equal(whole["row_columns"], rows.columns)
    assert np.abs(whole["row_values"].astype(int) - rows.values).max() <= 1
    monkeypatch.setattr(ease, "MAX_MODEL_TITLES", 10)
    cut = knowledge_before(titles, timeline, len(events), settings)
    assert np.count_nonzero(np.diff(cut["row_offsets"].astype(np.int64))) == np.count_nonzero(
        np.bincount(events.title, minlength=30) >= settings.min_events
    )
    assert np.count_nonzero(np.diff(cut["slist_offsets"].astype(np.int64))) <= 10
