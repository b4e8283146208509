"""The replay's baselines against answers computed in another way, on data small enough for that."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from bench.replay.baselines import content, ease, evidence, factors, item_knn, popularity, sasrec, slist
from bench.replay.baselines.item_item import ItemItem
from bench.replay.baselines.sasrec_network import DIMENSIONS, DROPOUTS, first_parameters, loss
from bench.replay.method import FutureRead, Past, TrendEvents
from bench.replay.work import candidates_of, families
from omega_edge.datasets import Events

DAY_MS = 86_400_000
NONE = TrendEvents(np.empty(0, np.int64), np.empty(0, np.int64), 6, 0)


def events_of(histories: list[list[int]], failures: frozenset[tuple[int, int]] = frozenset()) -> Events:
    """One event an hour, the households in turn: their first, their second, ... failures: (household, title)."""
    longest = max(map(len, histories))
    order = [(h, mine[k]) for k in range(longest) for h, mine in enumerate(histories) if k < len(mine)]
    return Events(
        np.array([h for h, _ in order], np.int32),
        np.array([title for _, title in order], np.int32),
        np.array([0.2 if pair in failures else 1.0 for pair in order]),
        np.arange(len(order), dtype=np.int64) * 3_600_000,
    )


def past_of(titles: list[int], success: list[bool] | None = None, now_ms: int = 0) -> Past:
    count = len(titles)
    flags = np.ones(count, bool) if success is None else np.array(success, bool)
    return Past(np.array(titles, np.int64), flags, np.zeros(count, np.int64), now_ms, now_ms // DAY_MS * DAY_MS)


HISTORIES = [[0, 1, 2], [0, 1, 3], [1, 2, 4], [0, 2, 3, 4], [3, 4, 0], [1, 0], [2, 4]]
EVENTS = events_of(HISTORIES)
WATCHED = np.array([[float(title in mine) for title in range(6)] for mine in HISTORIES])


def test_a_past_weighs_each_title_once_by_its_last_viewing():
    titles, weights = evidence.weights_of_past(past_of([4, 1, 4, 2], [True, False, False, True]), 2.0, -0.5)
    assert titles.tolist() == [1, 2, 4]
    assert weights == pytest.approx([-0.5 * math.exp(-1.0), 1.0, -0.5 * math.exp(-0.5)])
    assert evidence.weights_of_past(past_of([4, 1]), math.inf, 1.0)[1].tolist() == [1.0, 1.0]


def test_what_a_grid_learns_is_shared_until_the_events_change():
    asked = []

    def solve(events: Events, title_count: int, cut_ms: int) -> int:
        asked.append(cut_ms)
        return len(asked)

    shared: evidence.LastSolution[int] = evidence.LastSolution()
    other = replace(EVENTS, title=EVENTS.title[::-1])
    cases = [("a", EVENTS, 1), ("a", EVENTS, 1), ("b", EVENTS, 1), ("b", other, 1), ("b", other, 2)]
    assert [shared.of(solve, label, events, 6, cut) for label, events, cut in cases] == [1, 1, 2, 3, 4]


def test_popularity_counts_successes():
    method = popularity.AllTime()
    method.fit(events_of([[0, 1], [0, 2], [1, 2]], frozenset({(0, 1)})), 4, 0)
    assert method.scores(past_of([]), NONE).tolist() == [2.0, 1.0, 2.0, 0.0]


def test_a_window_orders_equal_counts_by_all_time_and_never_the_other_way():
    method = popularity.Window(24)
    method.fit(events_of([[0, 1, 2], [0], [0], [0], [1]]), 4, 0)
    trend = TrendEvents(np.array([0, 3, 1, 2]), np.array([0, 25, 26, 48]) * 3_600_000, 4, 2 * DAY_MS)
    scores = method.scores(past_of([], now_ms=2 * DAY_MS + 5), trend)
    assert scores == pytest.approx([4 / 5, 1 + 2 / 5, 1 / 5, 1.0])
    with pytest.raises(FutureRead):
        method.scores(past_of([], now_ms=3 * DAY_MS), trend)


def test_content_is_the_sum_of_cosines():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    method = content.ContentNeighbours(vectors, 1.0, 1.0)
    method.fit(EVENTS, 4, 0)
    old = math.exp(-1.0)
    expected = [old, 1.0, (1 + old) / math.sqrt(2), 0.0]
    assert method.scores(past_of([0, 1]), NONE) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="expected 6 rows"):
        method.fit(EVENTS, 6, 0)


def fitted(solve, lifetime: float = math.inf, failure: float = 1.0) -> ItemItem:
    method = ItemItem("under test", solve, lifetime, failure)
    method.fit(EVENTS, 6, int(EVENTS.timestamp[-1]) + 1)
    return method


@pytest.mark.parametrize("age_lifetime_days", [math.inf, 0.5])
def test_ease_is_a_ridge_regression_of_each_title_on_the_others(age_lifetime_days):
    cut_ms = int(EVENTS.timestamp[-1]) + 1
    watched = np.zeros((len(HISTORIES), 6))
    ages_days = (cut_ms - EVENTS.timestamp) / DAY_MS
    watched[EVENTS.household, EVENTS.title] = np.exp(-ages_days / age_lifetime_days)
    expected = np.zeros(6)
    for title in range(5):
        others = [other for other in range(5) if other != title]
        rows = watched[:, others]
        weights = np.linalg.solve(rows.T @ rows + 2.0 * np.eye(4), rows.T @ watched[:, title])
        expected[title] = sum(weights[others.index(j)] * w for j, w in ((1, math.exp(-0.5)), (3, 1.0)) if j != title)
    method = fitted(partial(ease.solve, ridge=2.0, age_lifetime_days=age_lifetime_days), 2.0)
    # Title 5, which nobody watched, is outside the matrix.
    assert method.scores(past_of([1, 3]), NONE) == pytest.approx(expected, abs=1e-6)


def test_item_knn_is_the_shrunk_cosine_of_the_nearest():
    # Title 0 was watched by five, 1 by four, 3 by three; 0 and 1 together by three, 0 and 3 by three, 1 and 3 by one.
    method = fitted(partial(item_knn.solve, neighbours=1, shrinkage_households=2.0))
    scores = method.scores(past_of([0]), NONE)
    assert scores[1] == pytest.approx(3 / (math.sqrt(5 * 4) + 2))
    assert scores[3] == pytest.approx(3 / (math.sqrt(5 * 3) + 2))
    # The nearest of title 1 is title 0, so title 3 says nothing of it once only one neighbour is kept.
    assert method.scores(past_of([3]), NONE)[1] == 0.0
    wide = fitted(partial(item_knn.solve, neighbours=5, shrinkage_households=2.0))
    assert wide.scores(past_of([3]), NONE)[1] == pytest.approx(1 / (math.sqrt(4 * 3) + 2))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_slist_solves_the_least_squares_of_before_and_after(share):
    before, after = [], []
    for mine in HISTORIES:
        for now in range(len(mine)):
            rows = np.zeros((2, 6))
            for place, title in enumerate(mine):
                distance = now - place if place <= now else place - now - 1
                rows[int(place > now), title] += math.exp(-distance / 3.0)
            before.append(rows[0])
            after.append(rows[1])
    stacked = np.concatenate([math.sqrt(1 - share) * np.array(before), math.sqrt(share) * WATCHED, 1.5 * np.eye(6)])
    wanted = np.concatenate([math.sqrt(1 - share) * np.array(after), math.sqrt(share) * WATCHED, np.zeros((6, 6))])
    weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    method = fitted(partial(slist.solve, ridge=1.5**2, session_lifetime_events=3.0, undirected_share=share))
    assert method.scores(past_of([2, 4]), NONE) == pytest.approx(weights[2] + weights[4], abs=1e-5)


def test_ials_folds_in_as_the_library_does_and_as_the_normal_equations_say():
    method = factors.Ials(4.0, 1.0, 2.0)
    method.fit(EVENTS, 6, 0)
    scores = method.scores(past_of([1, 3]), NONE)
    vectors = method._model.item_factors.astype(np.float64)
    confidence = {1: 1 + 4 * math.exp(-0.5), 3: 5.0}
    left = vectors.T @ vectors + 1.0 * np.eye(factors.FACTORS)
    for title, value in confidence.items():
        left += (value - 1) * np.outer(vectors[title], vectors[title])
    person = np.linalg.solve(left, sum(value * vectors[title] for title, value in confidence.items()))
    assert scores == pytest.approx(vectors @ person, abs=1e-4)
    row = factors.sparse.csr_matrix(([confidence[1], confidence[3]], [1, 3], [0, 2]), shape=(1, 6))
    ids, values = method._model.recommend(0, row, N=6, recalculate_user=True, filter_already_liked_items=False)
    assert scores[ids] == pytest.approx(values, abs=1e-5)


def test_bpr_keeps_two_tastes_apart():
    random = np.random.default_rng(3)
    tastes = [random.permutation(8)[:5] + 8 * (household % 2) for household in range(60)]
    method = factors.Bpr(0.05, 0.01, 1.0, math.inf)
    method.fit(events_of([taste.tolist() for taste in tastes]), 16, 0)
    for first in (0, 8):
        best = np.argsort(-method.scores(past_of([first, first + 1]), NONE))[:8]
        assert set(best.tolist()) == set(range(first, first + 8))


def test_sasrec_learns_a_cycle():
    cycle = [[(start + step) % 12 for step in range(7)] for start in range(12)] * 8
    method = sasrec.SelfAttentive(epochs=20, dropout=0.0, speed=1e-2, places_a_batch=200)
    method.fit(events_of(cycle), 14, 0)
    for start in range(12):
        titles = [(start + step) % 12 for step in range(5)]
        scores = method.scores(past_of(titles), NONE)
        assert scores.dtype == np.float32 and scores[12] == scores[13] == scores.min()
        scores[titles] = -np.inf
        assert int(np.argmax(scores)) == (start + 5) % 12


def test_an_epoch_of_sasrec_has_each_learnt_viewing_once_and_hides_what_was_seen():
    random = np.random.default_rng(5)
    histories = [random.permutation(300)[:count].tolist() for count in (1, 2, 9, 101, 102, 290)]
    histories[1] = [7, 7]
    events = events_of(histories, frozenset({(2, histories[2][4]), (4, histories[4][50])}))
    made = sasrec.histories_of(events, np.arange(300))
    # By household: of n viewings n - 1 have something before them; household 1 only repeats; two failed.
    expected = sorted(title for h, mine in enumerate(histories) if h != 1 for title in mine[1:])
    expected.remove(histories[2][4])
    expected.remove(histories[4][50])
    targets = []
    for batch in sasrec.batches(made, 512, np.random.default_rng(0)):
        real = batch.weights > 0
        targets += batch.targets[real].tolist()
        assert batch.seen_before[:, 300:].all()
        length = batch.titles.shape[1]
        for place, target in zip(batch.places[real], batch.targets[real]):
            row, column = divmod(int(place), length)
            before = set(np.flatnonzero(batch.seen_before[row, :300])) | set(batch.titles[row, : column + 1].tolist())
            mine = next(mine for mine in histories if mine[-1:] != [7] and before < set(mine) and target in mine)
            assert before == set(mine[: mine.index(target)])
    assert sorted(targets) == expected


def test_the_loss_of_sasrec_leaves_out_seen_titles():
    made = sasrec.histories_of(events_of([[0, 1, 2]]), np.arange(6))
    batch = next(sasrec.batches(made, 6, np.random.default_rng(0), 200))
    only_last = np.where(batch.targets == 2, batch.weights, 0.0)
    parameters = first_parameters(np.ones(6), sasrec.WINDOW_EVENTS, 1)
    noise = np.zeros((DROPOUTS, *batch.titles.shape, DIMENSIONS), np.uint8)
    cost = jax.jit(
        lambda p: loss(p, batch.titles, batch.seen_before, batch.places, batch.targets, only_last, noise, 0.0)
    )

    def with_bias(title: int) -> float:
        return float(cost(parameters | {"bias": parameters["bias"].at[title].add(3.0)}))

    plain = float(cost(parameters))
    assert with_bias(0) == with_bias(1) == plain
    assert with_bias(2) < plain < with_bias(3)


SMALL = {
    "popularity": popularity.AllTime,
    "window": lambda: popularity.Window(48),
    "content": lambda: content.ContentNeighbours(np.random.default_rng(1).normal(size=(6, 8)), 5.0, 0.5),
    "item-knn": lambda: ItemItem("k", partial(item_knn.solve, neighbours=3, shrinkage_households=1.0), 5.0, 0.5),
    "ease": lambda: ItemItem("e", partial(ease.solve, ridge=1.0, age_lifetime_days=1.0), 5.0, 0.5),
    "slist": lambda: ItemItem(
        "s", partial(slist.solve, ridge=1.0, session_lifetime_events=2.0, undirected_share=0.2), 5.0, 0.5
    ),
    "ials": lambda: factors.Ials(4.0, 1.0, 5.0, 0.5),
    "bpr": lambda: factors.Bpr(0.05, 0.01, 1.0, 5.0),
    "sasrec": lambda: sasrec.SelfAttentive(epochs=2, dropout=0.3, places_a_batch=200),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_future_changes_nothing_and_nothing_is_left_to_chance(name):
    events = events_of([[int(t) for t in np.random.default_rng(h).integers(0, 6, 8)] for h in range(24)])
    end = len(events) * 3 // 4
    future = np.random.default_rng(9).permutation(np.arange(end, len(events)))
    shuffled = replace(events, title=np.concatenate((events.title[:end], events.title[future])))
    assert not np.array_equal(events.title, shuffled.title)
    now_ms = int(events.timestamp[end])
    pasts = [past_of([], now_ms=now_ms), past_of([3], now_ms=now_ms), past_of([5, 1, 3, 1], [True, False, True, True], now_ms)]
    seen = []
    for data in (events, shuffled):
        method = SMALL[name]()
        method.fit(Events(data.household[:end], data.title[:end], data.watch_percentage[:end], data.timestamp[:end]), 6, now_ms)
        trend = TrendEvents(data.title.astype(np.int64), data.timestamp, 6, now_ms // DAY_MS * DAY_MS)
        seen.append([method.scores(past, trend).copy() for past in pasts])
    assert all(np.array_equal(a, b) for a, b in zip(*seen))
    assert all(scores.dtype == np.float32 and scores.shape == (6,) and np.isfinite(scores).all() for scores in seen[0])


def test_every_family_has_candidates_of_different_names():
    assert len(families()) == 9
    for family in families():
        grid = candidates_of(family, np.ones((6, 8), np.float32))
        names = [method.name for method in grid]
        assert names and len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: popularity.Window(0), "window_hours: expected above 0"),
        (lambda: content.ContentNeighbours(np.ones((2, 2)), 0.0, 1.0), "lifetime_events: expected above 0"),
        (lambda: content.ContentNeighbours(np.ones((2, 2)), math.nan, 1.0), "lifetime_events: expected above 0"),
        (lambda: ItemItem("e", None, 1.0, 1.5), "failure_weight: expected from -1 to 1"),
        (lambda: ease.solve(EVENTS, 6, 0, 0.0, 1.0), "ridge: expected above 0"),
        (lambda: ease.solve(EVENTS, 6, 0, 1.0, -1.0), "age_lifetime_days: expected above 0"),
        (lambda: item_knn.solve(EVENTS, 6, 0, 0, 1.0), "neighbours: expected above 0"),
        (lambda: slist.solve(EVENTS, 6, 0, 1.0, math.nan, 0.1), "session_lifetime_events: expected above 0"),
        (lambda: slist.solve(EVENTS, 6, 0, 1.0, 1.0, 1.1), "undirected_share: expected from 0 to 1"),
        (lambda: factors.Ials(-1.0, 1.0, 1.0), "confidence: expected above 0"),
        (lambda: factors.Bpr(0.1, 0.0, 1.0, 1.0), "regularisation: expected above 0"),
        (lambda: sasrec.SelfAttentive(0, 0.1), "epochs: expected above 0"),
        (lambda: sasrec.SelfAttentive(1, 0.1, places_a_batch=150), "places_a_batch: expected at least 200"),
        (lambda: sasrec.SelfAttentive(1, 1.0), "dropout: expected from 0 to below 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
