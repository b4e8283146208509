"""The model job: each part against its definition, and the whole on a small world whose rules are known."""

from __future__ import annotations

from datetime import UTC

import numpy as np
import pytest

from cloud import ease, signals
from cloud.knowledge import TitleData, knowledge_before, unfitted_catalog
from cloud.model import train
from cloud.replay import Blocks, Timeline, earlier_alike, replay
from cloud.settings import ModelSettings
from omega_edge._simd import kernels
from omega_edge.catalog import Catalog, Title, title_sections
from omega_edge.datasets import Events
from omega_edge.errors import ConfigError
from omega_edge.protocol import EMBEDDING_DIMENSIONS, MAX_TIMESTAMP_MS, local_day
from omega_edge.ranking import FEATURES, PATTERNS, ROWS, TREND_SHORT, bucket_of, slot_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_362_000_000_000


def random_events(seed: int, count: int = 400, households: int = 25, titles: int = 30) -> Events:
    rng = np.random.default_rng(seed)
    return Events(
        household=rng.integers(0, households, count).astype(np.int32),
        title=rng.integers(0, titles, count).astype(np.int32),
        watch_percentage=rng.integers(0, 11, count) / 10,
        timestamp=START_MS + np.sort(rng.integers(0, 30 * DAY_MS, count)),
    )


def titles_of(count: int, genre_of=lambda row: "Drama", genres=("Comedy", "Drama"), seed: int = 0) -> TitleData:
    """Titles whose vectors point in random directions of their own."""
    titles = [
        Title(f"t{row:04d}", f"Title {row}", None, (genre_of(row),), None, 0, MAX_TIMESTAMP_MS) for row in range(count)
    ]
    vectors = np.random.default_rng(seed).normal(size=(count, EMBEDDING_DIMENSIONS)).astype(np.float32)
    codes, scale = np.empty(vectors.shape, np.int8), np.empty(count, np.float32)
    kernels.quantise(vectors, codes, scale)
    return TitleData(title_sections(titles, genres) | {"codes": codes, "code_scale": scale}, genres, "0" * 16)


def interactions(events: Events, weight: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Dense households x chosen matrix, the last event of a pair counting."""
    matrix = np.zeros((events.household.max() + 1, events.title.max() + 1))
    for household, title, value in zip(events.household, events.title, weight):
        matrix[household, title] = value
    return matrix[:, chosen]


def test_co_watching_is_the_product_of_the_interactions():
    events = random_events(1)
    weight = np.random.default_rng(2).random(len(events))
    chosen = np.array([0, 3, 4, 11, 29])
    dense = interactions(events, weight, chosen)
    together = ease.co_watching(events.household, events.title, weight, chosen, 30)
    np.testing.assert_allclose(together, dense.T @ dense, rtol=1e-12)


def test_ease_solves_each_title_s_ridge_regression_on_the_others():
    """The closed form against its definition: column i predicts title i from all titles but itself."""
    events = random_events(3)
    dense = interactions(events, np.ones(len(events)), np.arange(30))
    weights = ease.item_weights(dense.T @ dense, ridge=4.0)
    for target in range(30):
        others = np.delete(np.arange(30), target)
        inputs = dense[:, others]
        solution = np.linalg.solve(inputs.T @ inputs + 4.0 * np.eye(29), inputs.T @ dense[:, target])
        np.testing.assert_allclose(weights[others, target], solution, rtol=1e-8, atol=1e-12)
    assert not np.diag(weights).any()


@pytest.mark.parametrize("titles", [1, 255, 257, 600])
def test_ease_inverts_matrices_of_any_size(titles):
    """A weight from its definition, -P[j, i] / P[i, i], with P by numpy's general inverse."""
    factor = np.random.default_rng(titles).standard_normal((2 * titles, titles))
    together = factor.T @ factor
    precision = np.linalg.inv(together + 3.0 * np.eye(titles))
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(ease.item_weights(together, 3.0), expected, atol=1e-10)


def test_eligible_titles_have_enough_events_and_the_most_watched_go_first(monkeypatch):
    title = np.repeat([7, 2, 5, 4], [6, 5, 4, 6])
    assert ease.eligible_titles(title, 10, 5).tolist() == [2, 4, 7]
    monkeypatch.setattr(ease, "MAX_MODEL_TITLES", 2)
    assert ease.eligible_titles(title, 10, 5).tolist() == [4, 7]


def dense_rows(rows, count: int) -> np.ndarray:
    out = np.zeros((count, count))
    for row in range(count):
        span = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        out[row, rows.columns[span]] = rows.values[span].astype(np.float64) * rows.scale[row]
    return out


def test_rows_hold_the_strongest_positive_weights_within_half_a_step():
    weights = np.random.default_rng(4).normal(size=(20, 20))
    np.fill_diagonal(weights, 0.0)
    chosen = np.arange(3, 43, 2)
    rows = ease.strongest_rows(weights, chosen, 50, budget_bytes=20 * 6 * ease.BYTES_PER_ENTRY + 9)
    held = dense_rows(rows, 50)
    for row in range(20):
        expected = np.sort(weights[row])[::-1][:6]
        strongest = np.argsort(-weights[row])[:6]
        step = expected[0] / 127
        kept = weights[row, strongest] > step / 2
        np.testing.assert_allclose(held[chosen[row], chosen[strongest[kept]]], expected[kept], atol=step / 2 * 1.0001)
        assert np.count_nonzero(held[chosen[row]]) == np.count_nonzero(kept)
    assert not held[np.setdiff1d(np.arange(50), chosen)].any() and len(rows.columns) <= 120
    inside = np.ones(len(rows.columns), bool)
    inside[rows.offsets[:-1][np.diff(rows.offsets) > 0]] = False
    assert np.all((np.diff(rows.columns.astype(np.int64), prepend=-1) > 0)[inside])


def test_equal_weights_go_to_the_lower_columns_and_no_budget_gives_no_rows():
    weights = np.ones((6, 6)) - np.eye(6)
    rows = ease.strongest_rows(weights, np.arange(6), 6, budget_bytes=6 * 2 * ease.BYTES_PER_ENTRY)
    assert rows.columns.reshape(6, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert len(ease.strongest_rows(weights, np.arange(6), 6, budget_bytes=29).columns) == 0
    assert len(ease.strongest_rows(-weights, np.arange(6), 6, budget_bytes=600).columns) == 0


@pytest.mark.parametrize("weak", [1e-60, 1e-308])
def test_a_row_weaker_than_float32_tells_is_empty(weak):
    """What titles of decades ago say, a half-life of weeks given; 127 divided by the weaker one is infinite."""
    weights = np.array([[0.0, weak, weak / 2], [1.0, 0.0, 0.5], [weak, 0.0, 0.0]])
    rows = ease.strongest_rows(weights, np.arange(3), 3, budget_bytes=600)
    assert rows.offsets.tolist() == [0, 0, 2, 2] and rows.values.tolist() == [127, 64]
    assert rows.scale[[0, 2]].tolist() == [0.0, 0.0] and rows.scale[1] > 0


def test_popularity_and_trend_are_log_counts_of_their_window():
    title = np.array([0, 1, 1, 2, 2, 2])
    timestamp = np.array([0, 1, 2, 10, 11, 12]) * HOUR_MS
    np.testing.assert_allclose(
        signals.popularity(title, 4), np.log([2, 3, 4, 1]) / np.log(4), rtol=1e-6
    )
    trend = signals.trend(title, timestamp, 11 * HOUR_MS, 10, 4)  # from hour 1, included, to hour 11, excluded
    np.testing.assert_allclose(trend, np.array([0, np.log(3), np.log(2), 0]) / np.log(3), rtol=1e-6)
    assert not signals.trend(title, timestamp, 0, 10, 4).any()


def test_slots_follow_the_protocol_s_parts_of_the_day():
    moments = np.random.default_rng(5).integers(0, 2_000_000_000_000, 500)
    expected = [slot_of(*local_day(int(moment), UTC)) for moment in moments]
    assert signals.slots_of(moments).tolist() == expected


def test_context_shares_by_hand():
    masks = np.array([0b01, 0b11], np.uint64)  # title 0: genre 0; title 1: both
    title = np.array([0, 1, 1, 0])
    watched = np.array([1.0, 1.0, 0.7, 0.2])  # the last one failed and does not count
    prior, overall = signals.context_shares(masks, 2, title, watched, np.array([3, 3, 5, 3], np.uint8))
    np.testing.assert_allclose(overall, [2 / 3, 1 / 3], rtol=1e-6)
    smoothing = signals.CONTEXT_SMOOTHING_EVENTS
    np.testing.assert_allclose(prior[3, 0], (1.5 + smoothing * 2 / 3) / (2 + smoothing), rtol=1e-6)
    np.testing.assert_allclose(prior[5, 1], (0.5 + smoothing * 1 / 3) / (1 + smoothing), rtol=1e-6)
    np.testing.assert_allclose(prior[0], overall, rtol=1e-6)


def test_the_timeline_counts_the_past():
    events = random_events(6)
    timeline = Timeline.of(events, signals.slots_of(events.timestamp))
    seen, counts = set(), dict.fromkeys(range(25), 0)
    for index, (household, title) in enumerate(zip(events.household.tolist(), events.title.tolist())):
        assert timeline.before[index] == counts[household]
        assert timeline.first[index] == ((household, title) not in seen)
        seen.add((household, title))
        counts[household] += 1
    assert earlier_alike(np.empty(0, np.int32)).tolist() == []


def test_queries_are_first_viewings_at_most_twenty_a_household_spread_over_time():
    events = random_events(7, count=3000, households=12, titles=200)
    timeline = Timeline.of(events, signals.slots_of(events.timestamp))
    found = timeline.queries(1000, 3000)
    assert timeline.first[found].all() and found.min() >= 1000
    assert np.bincount(events.household[found]).max() == 20
    some = timeline.queries(1000, 3000, per_bucket=30)
    assert set(some.tolist()) <= set(found.tolist())
    buckets = np.array([bucket_of(int(count)) for count in timeline.before[found]])
    assert len(some) == sum(min(30, int(np.count_nonzero(buckets == bucket))) for bucket in range(4))


def matrices(titles: TitleData, events: Events, wanted: np.ndarray) -> list[np.ndarray]:
    timeline = Timeline.of(events, signals.slots_of(events.timestamp))
    config = ModelSettings()

    def before(start: int) -> Catalog:
        return unfitted_catalog(titles, knowledge_before(titles, timeline, start, config), config)

    blocks = Blocks((200, 300), before)
    return [
        query.matrix.copy() for query in replay(timeline, wanted, blocks, config.trend_window_hours, config.parameters)
    ]


def test_nothing_of_the_future_reaches_a_query():
    """What is known at an event stays the same whatever happens from that event on."""
    titles, events = titles_of(30), random_events(8)
    wanted = np.array([220, 310, 350])
    known = matrices(titles, events, wanted)
    for place, index in enumerate(wanted):
        other = random_events(9)
        mixed = Events(
            **{
                name: np.concatenate((getattr(events, name)[:index], getattr(other, name)[index:]))
                for name in ("household", "title", "watch_percentage")
            },
            timestamp=events.timestamp,
        )
        mixed.household[index] = events.household[index]
        np.testing.assert_array_equal(matrices(titles, mixed, wanted[: place + 1])[-1], known[place])
    assert known[0][ROWS].any() and known[0][TREND_SHORT].any()


def test_a_query_knows_its_own_household_s_past():
    titles, events = titles_of(30), random_events(8)
    timeline = Timeline.of(events, signals.slots_of(events.timestamp))
    blocks = Blocks((0,), lambda start: catalog_without_knowledge(titles))
    for query in replay(timeline, np.arange(0, 400, 37), blocks, (48, 168), ModelSettings().parameters):
        mine = events.household[: query.event] == events.household[query.event]
        assert query.seen.tolist() == sorted(set(events.title[: query.event][mine].tolist()))
        assert query.bucket == bucket_of(int(mine.sum()))
        assert query.title == events.title[query.event]


def catalog_without_knowledge(titles: TitleData) -> Catalog:
    return Catalog.from_sections(
        titles.sections
        | {
            "popularity": np.zeros(titles.count, np.float32),
            "trend_scores": np.zeros((2, titles.count), np.float32),
            "context_prior": np.zeros((8, len(titles.genres)), np.float32),
            "context_overall": np.zeros(len(titles.genres), np.float32),
            "fusion_weights": np.zeros((4, len(FEATURES)), np.float32),
            "fusion_calibration": np.zeros((4, 2), np.float32),
        },
        {
            "name": "x",
            "version": 0,
            "built_at": 0,
            "lineage": "0" * 16,
            "genres": list(titles.genres),
            "trend_window_hours": [48, 168],
            "fusion_features": list(FEATURES),
            "fusion_parameters": ModelSettings().parameters,
        },
    )


def tribes(seed: int) -> tuple[TitleData, Events]:
    """A world of two tribes, each of which watches its own half of 80 titles and dislikes the other half."""
    rng = np.random.default_rng(seed)
    households, per_household = 120, 30
    rows = []
    for household in range(households):
        own = 40 * (household % 2) + rng.permutation(40)[:26]
        strange = 40 * (1 - household % 2) + rng.permutation(40)[:4]
        days = np.sort(rng.random(per_household)) * 60
        rows += [(day, household, title, 0.9) for day, title in zip(days, own)]
        rows += [(day, household, title, 0.1) for day, title in zip(rng.permutation(days), strange)]
    rows.sort()
    day, household, title, watched = zip(*rows)
    events = Events(
        household=np.array(household, np.int32),
        title=np.array(title, np.int32),
        watch_percentage=np.array(watched),
        timestamp=START_MS + (np.array(day) * DAY_MS).astype(np.int64),
    )
    return titles_of(80, lambda row: "Comedy" if row < 40 else "Drama"), events


PLAIN = ModelSettings(queries_per_bucket=200, sequence=False, second_stage=False, tune=False)
"""Without what test_model_gates.py and test_tuning.py are about."""


@pytest.fixture(scope="module")
def tribal_model():
    titles, events = tribes(1)
    return titles, train(titles, events, PLAIN)


def test_rows_tell_the_tribes_apart(tribal_model):
    _, model = tribal_model
    held = np.zeros((80, 80))
    offsets = model.sections["row_offsets"]
    for row in range(80):
        span = slice(int(offsets[row]), int(offsets[row + 1]))
        held[row, model.sections["row_columns"][span]] = model.sections["row_values"][span]
    inside = held[:40, :40].sum() + held[40:, 40:].sum()
    assert inside > 0.9 * held.sum()


def test_the_fusion_learns_to_use_the_rows(tribal_model):
    """Popularity cannot know the tribe: the fusion, which can, must do much better on time it has not seen."""
    _, model = tribal_model
    lists = model.report["lists"]
    assert lists["fusion"]["ndcg_at_10"] > 1.3 * lists["popularity"]["ndcg_at_10"]
    assert lists["fusion"]["ndcg_at_10"] > 1.3 * lists["trend_48_hours"]["ndcg_at_10"]
    assert model.sections["fusion_weights"][3, ROWS] > 0
    assert (model.sections["fusion_weights"] >= 0).all() and model.sections["fusion_weights"][3, PATTERNS] == 0


def test_confidence_learns_that_the_other_tribe_s_titles_fail(tribal_model):
    _, model = tribal_model
    calibration = model.report["calibration"]
    assert calibration["brier"] < 0.8 * calibration["brier_of_rate"]
    assert model.sections["fusion_calibration"][3, 0] > 0
    low, high = calibration["reliability"][0], calibration["reliability"][-1]
    assert low[1] < high[1]


def test_what_the_job_makes_is_a_catalogue_and_the_same_again(tribal_model):
    titles, model = tribal_model
    meta = model.meta | {"name": "tribes", "version": 1, "built_at": 0, "lineage": titles.lineage, "genres": list(titles.genres)}
    catalog = Catalog.from_sections(titles.sections | model.sections, meta)
    assert [trend.window_hours for trend in catalog.trends] == list(ModelSettings().trend_window_hours)
    again = train(*tribes(1), PLAIN)
    assert again.meta == model.meta
    for name, section in model.sections.items():
        assert again.sections[name].tobytes() == section.tobytes(), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"ridge": 0.0},
        {"half_life_days": float("nan")},
        {"min_events": 0},
        {"row_budget_bytes": -1},
        {"trend_window_hours": (48, 48)},
        {"queries_per_bucket": 0},
        {"parameters": {"row_decay": 0.9, "content_decay": 0.0, "failure_weight": 0.5}},
        {"parameters": {"row_decay": 0.9}},
        {"ridge": "5"},
        {"ridge": float("inf")},
        {"min_events": 2.5},
        {"trend_window_hours": (48,)},
        {"trend_window_hours": (48, 9000)},
        {"parameters": None},
        {"parameters": {"row_decay": 0.9, "content_decay": 0.9, "slist_decay": 0.9, "factor_decay": 0.9, "failure_weight": float("nan")}},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ModelSettings(**wrong)


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_a_few_events_make_a_model_too(count):
    titles = titles_of(30)
    events = random_events(10, count=count)
    model = train(titles, events, ModelSettings())
    meta = model.meta | {"name": "few", "version": 1, "built_at": 0, "lineage": "0" * 16, "genres": list(titles.genres)}
    Catalog.from_sections(titles.sections | model.sections, meta)


def test_only_failures_teach_no_taste():
    titles, events = titles_of(30), random_events(11)
    events = Events(events.household, events.title, np.zeros(len(events)), events.timestamp)
    model = train(titles, events, ModelSettings())
    assert not model.sections["popularity"].any() and not model.sections["fusion_weights"].any()
    assert len(model.sections["row_columns"]) == 0
    intercepts = model.sections["fusion_calibration"][:, 1]
    assert (intercepts <= 0).all() and intercepts.min() < -1
    assert model.report["lists"]["fusion"] == {"recall_at_10": 0, "ndcg_at_10": 0}
