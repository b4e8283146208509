"""The training of the second stage, with lightgbm itself as the judge of what became of its trees."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest

from cloud import second_stage_fit
from cloud.fusion_fit import FITTED, FitSet
from cloud.second_stage_fit import StageLists, stage_lists, stage_sections, staged_gains, train_trees, tree_sections
from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import stage_input_names
from omega_edge.ranking import FEATURES, POPULARITY, ROWS, History
from omega_edge.second_stage import SecondStage
from tests.synthetic import sections_of

INPUTS = stage_input_names(FEATURES)
PARTS = ("roots", "feature", "threshold", "children", "leaves")


def summed(sections: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """float32[m]: what a television's kernel makes of inputs float32[m, i]."""
    out = np.empty(len(inputs), np.float32)
    trees = [sections[f"second_stage_{part}"] for part in PARTS]
    kernels.sum_trees(*trees, np.ascontiguousarray(inputs.T), out)
    return out


def test_trees_say_what_lightgbm_predicts_at_their_thresholds_too():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2000, 5)).astype(np.float32)
    inputs[:, 3] = rng.integers(-2, 3, 2000)  # zeros among them
    wanted = np.sin(3 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 3] + 0.1 * rng.standard_normal(2000)
    settings = {"objective": "regression", "num_leaves": 12, "min_data_in_leaf": 5, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(inputs, wanted), 30)
    sections = tree_sections(booster.dump_model())
    assert len(sections["second_stage_roots"]) == 30
    asked = rng.standard_normal((6000, 5)).astype(np.float32)
    for feature in range(5):
        # At, just above and just below every threshold, as it is stored and as it was before it was rounded.
        known = sections["second_stage_threshold"][sections["second_stage_feature"] == feature]
        drawn = rng.choice(known, 900)
        asked[:900, feature] = drawn
        asked[900:1800, feature] = np.nextafter(rng.permutation(drawn), np.float32(np.inf))
        asked[1800:2700, feature] = np.nextafter(rng.permutation(drawn), np.float32(-np.inf))
        asked[2700:2800, feature] = 0.0
    asked[np.abs(asked) < 1e-30] = 0.0  # which lightgbm takes for 0 without saying so: its threshold below 0 is -1e-35
    np.testing.assert_allclose(summed(sections, asked), booster.predict(asked.astype(np.float64)), atol=2e-6)


def leaf(value: float) -> dict:
    return {"leaf_value": value}


def split(feature: int, threshold: float, left: dict, right: dict) -> dict:
    return {
        "decision_type": "<=", "split_feature": feature, "threshold": threshold, "left_child": left, "right_child": right
    }  # fmt: skip


def test_a_tree_by_hand():
    """A double just below a float32 is no threshold for that float32: it goes right."""
    below_half = 0.5 - 1e-12
    tree = split(1, below_half, split(0, 2.0, leaf(1.0), leaf(2.0)), leaf(4.0))
    dumped = {"tree_info": [{"tree_structure": structure} for structure in (tree, leaf(99.0), split(0, 0.0, leaf(8.0), leaf(16.0)))]}
    sections = tree_sections(dumped)
    assert sections["second_stage_roots"].tolist() == [0, 2]
    assert (sections["second_stage_children"][:2] > 0).sum() == 1, "a node comes before what is below it"
    asked = np.array([[0, 0], [2, 0.5], [3, 0.25], [2, np.nextafter(np.float32(0.5), np.float32(0))]], np.float32)
    assert summed(sections, asked).tolist() == [9.0, 20.0, 18.0, 17.0]


def lists_of(seed: int, count: int, column: int, candidates: int = 12) -> StageLists:
    """Lists whose watched title has the greatest value of one input."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((candidates, len(INPUTS))).astype(np.float32) for _ in range(count)]
    watched = np.array([int(np.argmax(one[:, column])) for one in inputs])
    return StageLists(inputs, watched, np.zeros(count, np.int64), np.arange(count))


@pytest.fixture
def quick(monkeypatch) -> list[lightgbm.Booster]:
    """Few trees from few lists; the boosters that were trained."""
    boosters, train = [], lightgbm.train

    def kept(*arguments) -> lightgbm.Booster:
        boosters.append(train(*arguments))
        return boosters[-1]

    for name, value in (("TREES", 12), ("LEAST_LISTS", 40), ("LEAST_PER_LEAF", 5), ("THREADS", 1)):
        monkeypatch.setattr(second_stage_fit, name, value)
    monkeypatch.setattr(lightgbm, "train", kept)
    return boosters


def asked_of(sections: dict[str, np.ndarray]) -> set[str]:
    return {INPUTS[feature] for feature in sections["second_stage_feature"].tolist()}


def test_trees_find_the_input_that_tells_and_never_ask_for_one_that_they_may_not_read(quick):
    lists = lists_of(2, 200, INPUTS.index("value:sequence"))
    free, barred = train_trees(lists), train_trees(lists, ("value:sequence", "rank:sequence"))
    assert "value:sequence" in asked_of(free)
    assert asked_of(barred) and not asked_of(barred) & {"value:sequence", "rank:sequence"}
    fresh = lists_of(3, 200, INPUTS.index("value:sequence"))
    assert staged_gains(fresh, free).mean() > 0.8 > staged_gains(fresh, barred).mean() + 0.2


def test_trees_are_the_same_again_and_need_enough_lists(quick):
    lists = lists_of(4, 60, 2)
    first, again = train_trees(lists), train_trees(lists)
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    few = lists_of(4, 39, 2)
    few.inputs.extend(lists.inputs[:20])
    without = StageLists(few.inputs, np.append(few.watched, [-1] * 20), np.zeros(59, np.int64), np.arange(59))
    assert train_trees(without) is None, "a list without its watched title teaches nothing"


def test_trees_do_not_depend_on_the_number_of_threads(quick, monkeypatch):
    lists = lists_of(6, 60, 2)
    alone = train_trees(lists)
    monkeypatch.setattr(second_stage_fit, "THREADS", 2)
    together = train_trees(lists)
    assert [booster.params["num_threads"] for booster in quick] == [1, 2]
    assert all(alone[name].tobytes() == together[name].tobytes() for name in alone)


def test_trees_that_learned_from_a_good_order_keep_it(quick):
    """The watched title stands deep in some lists; that must not teach that to stand deep is to be watched."""
    rng = np.random.default_rng(11)
    column, lists, places = INPUTS.index("rank:score"), [], np.minimum(rng.geometric(0.04, 400) - 1, 99)
    for _ in places:
        lines = rng.standard_normal((100, len(INPUTS))).astype(np.float32)
        lines[:, column] = np.log1p(np.arange(100))
        lists.append(lines)
    known = StageLists(lists, places.astype(np.int64), np.zeros(400, np.int64), np.arange(400))
    by_rank = np.where(places < 10, 1 / np.log2(2 + places), 0.0)
    assert staged_gains(known, train_trees(known)).mean() > 0.8 * by_rank.mean()


def test_gains_of_the_trees_order_are_by_hand():
    sections = tree_sections({"tree_info": [{"tree_structure": split(0, 0.0, leaf(1.0), leaf(0.0))}]})
    first, tied = np.zeros((3, len(INPUTS)), np.float32), np.zeros((3, len(INPUTS)), np.float32)
    first[:, 0] = [1, -1, 1]
    lists = StageLists([first, first, tied, first], np.array([1, 0, 0, -1]), np.zeros(4, np.int64), np.arange(4))
    # First of all; tied for the second and third place; tied with both others; not among the candidates.
    np.testing.assert_allclose(staged_gains(lists, sections), [1.0, 1 / np.log2(3.5), 1 / np.log2(3.0), 0.0])


def queries_of(count: int, catalog: Catalog) -> FitSet:
    """Viewings with some candidates each, of which the most popular was watched."""
    rng, found = np.random.default_rng(5), FitSet()
    for query in range(count):
        matrix = rng.random((len(FITTED), 130)).astype(np.float32)
        order = np.argsort(-matrix[FITTED.index(POPULARITY)], kind="stable")
        found.candidates.append(np.ascontiguousarray(matrix[:, order]))
        found.rows.append(rng.permutation(catalog.count)[:130].astype(np.uint32))
        history = History.empty()
        for row in rng.integers(0, catalog.count, query % 7).tolist():
            history = history.push(row, None, 0.0, bool(row % 3), 0)
        found.histories.append(history)
        found.households.append(query)
        found.buckets.append(1)
        found.success.append(True)
    return found


def test_the_watched_title_does_not_win_ties():
    """It stands first in a FitSet; among equal scores the lower row goes first, as on the television."""
    catalog = Catalog.from_sections(*sections_of(150))
    queries = queries_of(20, catalog)
    lists = stage_lists(queries, np.zeros((4, len(FEATURES)), np.float32), catalog)
    expected = [int(np.count_nonzero(rows < rows[0])) for rows in queries.rows]
    assert lists.watched.tolist() == [place if place < 100 else -1 for place in expected]


def test_a_television_orders_the_candidates_as_lightgbm_does(quick):
    """From the fusion's queries through training to the television's second stage."""
    sections, meta = sections_of(150)
    plain = Catalog.from_sections(sections, meta)
    queries, weights = queries_of(60, plain), np.zeros((4, len(FEATURES)), np.float32)
    weights[:, ROWS], weights[:, POPULARITY] = 0.3, 0.02
    lists = stage_lists(queries, weights, plain)
    trees = stage_sections(train_trees(lists, ("value:sequence", "rank:sequence")), [False, True, False, True])
    assert 0 < np.count_nonzero(lists.watched < 0) < 20 and max(map(len, lists.inputs)) == 100
    staged = Catalog.from_sections(sections | trees, meta | {"second_stage_inputs": INPUTS})
    assert not staged.faults
    stage = SecondStage(staged, staged.second_stage)
    assert [stage.serves(bucket) for bucket in range(4)] == [False, True, False, True]
    for index in range(len(lists.inputs)):
        matrix = np.zeros((len(FEATURES), 130), np.float32)
        matrix[list(FITTED)] = queries.candidates[index]
        raw = weights[1] @ matrix
        order = np.lexsort((queries.rows[index], -raw))[:100]
        values = np.concatenate((matrix[:, order], raw[None, order]))
        table = np.concatenate((values, np.empty((len(values) + 3, 100), np.float32)))
        served = stage.scores(table, queries.rows[index][order], queries.histories[index])
        expected = quick[0].predict(lists.inputs[index].astype(np.float64))
        np.testing.assert_allclose(served, expected, atol=1e-5)
        apart = np.abs(np.diff(np.sort(expected))) > 1e-4
        assert (np.diff(served[np.argsort(expected)])[apart] > 0).all()
