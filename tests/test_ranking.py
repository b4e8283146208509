"""Ranking against a plain restatement of each feature, and reasons against real deletions."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge import ranking
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError
from omega_edge.left_out import scores_without_each
from omega_edge.ranker import Ranker
from omega_edge.ranking import FEATURES, HISTORY_HELD, HISTORY_WINDOW, History, Moment, bucket_of
from tests.synthetic import GENRES, PARAMETERS, catalog_of, sections_of


def random_history(catalog, events: int, seed: int, outside: bool = True) -> History:
    """A history of catalogue titles, one in ten outside the catalogue, some failures, a few rejections."""
    rng = np.random.default_rng(seed)
    history = History.empty()
    for _ in range(events):
        row = int(rng.integers(catalog.count))
        code, scale = catalog.codes[row], float(catalog.scale[row])
        if outside and rng.random() < 0.1:
            row = -1
            if rng.random() < 0.5:
                code, scale = None, 0.0
        history = history.push(
            row, code, scale, bool(rng.random() < 0.7), int(rng.integers(8)), rejected=bool(rng.random() < 0.05)
        )
    return history


def unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 1e-6 else vector * 0


def plain_features(catalog, history: History, moment: Moment) -> np.ndarray:
    """Every feature in float64, title by title and event by event, from the definitions alone."""
    vectors = catalog.codes.astype(float) * catalog.scale[:, None]
    events = [
        (
            int(history.rows[i]),
            history.codes[i].astype(float) * history.scale[i],
            -0.5 if history.rejected[i] else 1.0 if history.success[i] else PARAMETERS["failure_weight"],
            bool(history.success[i]),
            int(history.slots[i]),
        )
        for i in range(min(len(history.rows), HISTORY_WINDOW))
    ]
    named = {name: np.zeros(catalog.count) for name in FEATURES}
    profile, taste = np.zeros(384), np.zeros(64)
    for position, (row, vector, evidence, _success, _slot) in enumerate(events):
        if row >= 0:
            for name, table, decay in (("rows", catalog.rows, "row_decay"), ("slist", catalog.slist, "slist_decay")):
                for entry in range(table.offsets[row], table.offsets[row + 1]):
                    weight = float(table.values[entry]) * float(table.scale[row])
                    named[name][table.columns[entry]] += evidence * PARAMETERS[decay] ** position * weight
            taste += evidence * PARAMETERS["factor_decay"] ** position * factors_of(catalog)[row]
        profile += evidence * PARAMETERS["content_decay"] ** position * vector
    recent = [vector for _row, vector, _evidence, success, _slot in events if success and np.any(vector)][:2]
    if moment.recent_rows:
        recent = [vectors[row] for row in moment.recent_rows[:2]]
    named["factors"] = factors_of(catalog) @ (catalog.factors.fold.astype(float) @ taste)
    named["content_profile"] = vectors @ unit(profile)
    named["content_recent"] = vectors @ unit(np.mean(recent, axis=0)) if recent else np.zeros(catalog.count)
    named["popularity"] = catalog.popularity
    trends = moment.trends if moment.trends else [trend.scores for trend in catalog.trends]
    named["trend_short"], named["trend_long"] = trends
    masks = [[int(mask) >> genre & 1 for genre in range(len(GENRES))] for mask in catalog.genre_masks]
    now, now_count, ever, ever_count = np.zeros(len(GENRES)), 0, np.zeros(len(GENRES)), 0
    for row, _vector, _evidence, success, slot in events:
        if row >= 0 and success:
            share = np.array(masks[row]) / max(sum(masks[row]), 1)
            ever, ever_count = ever + share, ever_count + 1
            if slot == moment.slot:
                now, now_count = now + share, now_count + 1
    share_now = (now + 10 * catalog.context_prior[moment.slot]) / (now_count + 10)
    share_ever = (ever + 10 * catalog.context_overall) / (ever_count + 10)
    lift = share_now / share_ever - 1
    for title, mask in enumerate(masks):
        named["context"][title] = np.dot(mask, lift) / sum(mask) if sum(mask) else 0
    for row, weight in zip(moment.pattern_rows, moment.pattern_weights):
        named["patterns"][row] += weight
    out = [named[name] for name in FEATURES]
    if moment.mood_genre >= 0:
        out.append(np.array([mask[moment.mood_genre] / max(sum(mask), 1) for mask in masks]))
    return np.stack(out)


def factors_of(catalog) -> np.ndarray:
    """float64[n, 64]: the title factors that the codes stand for."""
    return catalog.factors.codes.astype(float) * catalog.factors.scale.astype(float)[:, None]


MOMENTS = {
    "plain": Moment(slot=4),
    "mood": Moment(slot=0, mood_genre=2),
    "announced": Moment(slot=7, recent_rows=(3, 9)),
    "patterns": Moment(
        slot=1, pattern_rows=np.array([5, 5, 7], np.uint32), pattern_weights=np.array([0.5, 0.25, 1], np.float32)
    ),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("events", [0, 1, 2, 5, 63, 64, 65, 90])
def test_features_equal_their_definitions(moment: Moment, events: int) -> None:
    catalog = catalog_of()
    history = random_history(catalog, events, seed=events)
    found = ranking.features(catalog, history, moment, PARAMETERS)
    expected = plain_features(catalog, history, moment)
    # The two content rows pass through 8-bit codes of the query: half a step of 1/127 of its largest
    # element, over 384 elements, moves a cosine by less than 0.01.
    tolerance = {ranking.CONTENT_PROFILE: 0.01, ranking.CONTENT_RECENT: 0.01}
    assert len(found) == len(expected)
    for feature in range(len(found)):
        np.testing.assert_allclose(
            found[feature], expected[feature], atol=tolerance.get(feature, 2e-5), err_msg=(*FEATURES, ranking.WISH)[feature]
        )


def test_trends_of_the_moment_replace_the_bundles() -> None:
    catalog = catalog_of()
    trends = (np.full(catalog.count, 0.25, np.float32), np.full(catalog.count, 0.75, np.float32))
    found = ranking.features(catalog, History.empty(), Moment(slot=0, trends=trends), PARAMETERS)
    assert (found[ranking.TREND_SHORT] == 0.25).all() and (found[ranking.TREND_LONG] == 0.75).all()


@pytest.mark.parametrize("events", [1, 4, 5, 6, 19, 20, 21, 64, 65, 80])
def test_scores_without_an_event_equal_a_ranking_that_never_had_it(events: int) -> None:
    """Catches: wrong shift of positions, the event that enters the window, the bucket at its edges."""
    catalog = catalog_of()
    history = random_history(catalog, events, seed=100 + events)
    candidates = np.array([0, 7, 31, 59], np.uint32)
    for moment in MOMENTS.values():
        present = np.ascontiguousarray(ranking.features(catalog, history, moment, PARAMETERS)[:, candidates])
        without = scores_without_each(catalog, history, moment, catalog.fusion, candidates, present)
        assert without.shape == (min(events, HISTORY_WINDOW), len(candidates))
        for index in range(len(without)):
            matrix = ranking.features(catalog, history.without(index), moment, PARAMETERS)
            scores = ranking.raw_scores(matrix, catalog.fusion, events - 1, moment)
            np.testing.assert_allclose(without[index], scores[candidates], atol=2e-3)


@pytest.mark.parametrize("events", [1, 2, 6, 64, 65, 80])
def test_what_is_linear_in_the_events_is_left_out_to_the_last_digits(events: int) -> None:
    """A reason rests on drops of 1e-4 and more: rows, directed rows and factors must be exact far below that."""
    sections, meta = sections_of()
    sections["fusion_weights"] = np.zeros_like(sections["fusion_weights"])
    sections["fusion_weights"][:, [ranking.ROWS, ranking.SLIST, ranking.FACTORS]] = (1.0, 2.0, 0.5)
    catalog = Catalog.from_sections(sections, meta)
    history, moment = random_history(catalog, events, seed=events), Moment(slot=1)
    candidates = np.arange(catalog.count, dtype=np.uint32)
    present = ranking.features(catalog, history, moment, PARAMETERS)
    without = scores_without_each(catalog, history, moment, catalog.fusion, candidates, present)
    for index in range(len(without)):
        matrix = ranking.features(catalog, history.without(index), moment, PARAMETERS)
        scores = ranking.raw_scores(matrix, catalog.fusion, events - 1, moment)
        np.testing.assert_allclose(without[index], scores, atol=5e-6)


@pytest.mark.parametrize("missing", ["row", "slist", "factor"])
def test_a_bundle_without_one_kind_of_knowledge_ranks_by_the_others(missing: str) -> None:
    sections, meta = sections_of()
    catalog = Catalog.from_sections({name: array for name, array in sections.items() if not name.startswith(missing + "_")}, meta)
    full, history, moment = catalog_of(), random_history(catalog_of(), 12, seed=7), Moment(slot=3)
    found = ranking.features(catalog, history, moment, PARAMETERS)
    expected = ranking.features(full, history, moment, PARAMETERS)
    expected[{"row": ranking.ROWS, "slist": ranking.SLIST, "factor": ranking.FACTORS}[missing]] = 0
    np.testing.assert_array_equal(found, expected)
    rows = np.array([1, 5], np.uint32)
    without = scores_without_each(catalog, history, moment, catalog.fusion, rows, np.ascontiguousarray(found[:, rows]))
    scores = ranking.raw_scores(ranking.features(catalog, history.without(4), moment, PARAMETERS), catalog.fusion, 11, moment)
    np.testing.assert_allclose(without[4], scores[rows], atol=2e-3)


def test_history_holds_one_event_more_than_the_window_and_counts_all() -> None:
    catalog = catalog_of()
    history = random_history(catalog, 200, seed=3)
    assert len(history.rows) == HISTORY_HELD == HISTORY_WINDOW + 1
    assert history.count == 200


def test_history_is_newest_first_and_never_changes() -> None:
    catalog = catalog_of()
    older = History.empty().push(3, catalog.codes[3], float(catalog.scale[3]), True, 0)
    newer = older.push(5, catalog.codes[5], float(catalog.scale[5]), False, 1)
    assert older.rows.tolist() == [3] and newer.rows.tolist() == [5, 3]
    assert newer.without(0).rows.tolist() == [3]


@pytest.mark.parametrize(("count", "bucket"), [(0, 0), (1, 1), (4, 1), (5, 2), (19, 2), (20, 3), (1000, 3)])
def test_bucket_edges(count: int, bucket: int) -> None:
    assert bucket_of(count) == bucket


def test_rank_without_diversity_is_the_order_of_the_scores() -> None:
    catalog = catalog_of()
    history = random_history(catalog, 12, seed=4)
    moment = Moment(slot=2)
    allowed_rows = [row for row in range(catalog.count) if row % 3]
    mask = np.zeros(catalog.count, bool)
    mask[allowed_rows] = True
    allowed = np.packbits(mask, bitorder="little")
    ranked = Ranker(catalog).rank(history, moment, allowed, 10, diversity=0.0)
    scores = ranking.raw_scores(ranking.features(catalog, history, moment, PARAMETERS), catalog.fusion, 12, moment)
    expected = sorted(allowed_rows, key=lambda row: (-scores[row], row))[:10]
    assert ranked.rows.tolist() == expected
    np.testing.assert_array_equal(ranked.raw, scores[expected])


def test_rank_returns_what_there_is_when_fewer_are_allowed() -> None:
    catalog = catalog_of()
    ranker, moment = Ranker(catalog), Moment(slot=2)
    nothing = np.zeros((catalog.count + 7) // 8, np.uint8)
    assert len(ranker.rank(History.empty(), moment, nothing, 5, 0.1).rows) == 0
    nothing[1] = 0b100
    assert ranker.rank(History.empty(), moment, nothing, 5, 0.1).rows.tolist() == [10]


def test_diversity_lowers_the_similarity_inside_the_list() -> None:
    catalog = catalog_of(titles=300)
    history, moment = random_history(catalog, 30, seed=5), Moment(slot=3)
    everything = np.full((catalog.count + 7) // 8, 255, np.uint8)
    everything[-1] = (1 << (catalog.count % 8 or 8)) - 1
    ranker = Ranker(catalog)

    def similarity(diversity: float) -> float:
        rows = ranker.rank(history, moment, everything, 10, diversity).rows
        vectors = catalog.codes[rows] * catalog.scale[rows][:, None]
        cosines = vectors @ vectors.T
        return float(cosines[np.triu_indices(len(rows), 1)].mean())

    assert similarity(0.0) > similarity(0.5) > similarity(1.0)


def test_a_context_without_weight_changes_nothing_but_the_work() -> None:
    sections, meta = sections_of()
    sections["fusion_weights"] = sections["fusion_weights"].copy()
    sections["fusion_weights"][:, ranking.CONTEXT] = 0
    catalog = Catalog.from_sections(sections, meta)
    everything = np.full((catalog.count + 7) // 8, 255, np.uint8)
    for events in (0, 1, 12, 80):
        history = random_history(catalog, events, seed=events)
        ranker, moment = Ranker(catalog), Moment(slot=2)
        ranked = ranker.rank(history, moment, everything, 10, diversity=0.0)
        complete = ranker.features(history, moment)
        assert complete[ranking.CONTEXT].any()
        scores = ranking.raw_scores(complete, catalog.fusion, events, moment)
        np.testing.assert_array_equal(ranked.raw, scores[ranked.rows])
        if events:
            complete = np.ascontiguousarray(complete[:, ranked.rows])
            without = scores_without_each(
                catalog, history, moment, catalog.fusion, ranked.rows, complete
            )
            np.testing.assert_allclose(ranked.raw - without, ranker.drops(history, moment, ranked), atol=1e-6)


def test_a_bundle_for_other_features_is_refused() -> None:
    sections, meta = sections_of()
    with pytest.raises(CatalogError, match="build or fetch a bundle"):
        Ranker(Catalog.from_sections(sections, meta | {"fusion_features": [*FEATURES[1:], "horoscope"]}))
    for wrong in (
        {"row_decay": 0}, {"content_decay": 1.5}, {"slist_decay": -1}, {"factor_decay": 0}, {"failure_weight": 7}
    ):  # fmt: skip
        with pytest.raises(CatalogError, match=next(iter(wrong))):
            Ranker(Catalog.from_sections(sections, meta | {"fusion_parameters": PARAMETERS | wrong}))
    with pytest.raises(CatalogError, match="row_decay missing"):
        Ranker(Catalog.from_sections(sections, meta | {"fusion_parameters": {}}))
    sections["trend_scores"] = np.ascontiguousarray(sections["trend_scores"][:1])
    with pytest.raises(CatalogError, match="1 trend windows"):
        Ranker(Catalog.from_sections(sections, meta | {"trend_window_hours": [48]}))
