"""The second stage's kernels, and the fusion of rows that lie apart, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names
from tests import reference
from tests.synthetic import second_stage_of

PARTS = ("roots", "feature", "threshold", "children", "leaves")


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def bits(array: np.ndarray) -> list[int]:
    return np.ascontiguousarray(array, np.float32).view(np.uint32).tolist()


def random_forest(trees: int, depth: int, inputs: int, seed: int) -> dict[str, np.ndarray]:
    sections, _ = second_stage_of(tuple(f"input {number}" for number in range(inputs)), trees, depth, seed)
    return {part: sections[f"second_stage_{part}"] for part in PARTS}


# 8: the candidates that walk side by side; 128: those that small trees are asked of at once.
@pytest.mark.parametrize("candidates", [0, 1, 7, 8, 9, 16, 17, 100, 127, 128, 129, 260])
@pytest.mark.parametrize(("trees", "depth", "inputs"), [(0, 1, 1), (1, 1, 1), (1, 2, 3), (3, 9, 2), (40, 3, 26), (7, 16, 64)])
def test_sums_of_trees_equal_the_reference(isa, candidates, trees, depth, inputs):
    rng = np.random.default_rng(candidates * 100 + trees)
    forest = random_forest(max(trees, 1), min(depth, 12), inputs, seed=trees)
    forest["roots"] = forest["roots"][:trees]
    values = rng.normal(size=(inputs, candidates)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0.0  # some thresholds are 0: at most is not below
    out = np.full(candidates, np.nan, np.float32)
    isa.sum_trees(**forest, values=values, out=out)
    assert bits(out) == bits(reference.sum_trees(**forest, values=values))


@pytest.mark.parametrize("nodes", [1, 2, 30, 31, 32, 33])
def test_trees_about_as_large_as_those_asked_whole_equal_the_reference(isa, nodes):
    """Chains, so that every node counts; before and after each a tree of one node."""
    chain = np.arange(1, nodes + 1)
    left_or_right = np.arange(nodes) % 2
    children = np.full((nodes + 2, 2), ~0, np.int32)
    children[chain, left_or_right] = chain + 1
    children[chain, 1 - left_or_right] = ~chain
    children[nodes, left_or_right[-1]] = ~(nodes + 1)
    rng = np.random.default_rng(nodes)
    forest = {
        "roots": np.array([0, 1, nodes + 1], np.uint32),
        "feature": rng.integers(3, size=nodes + 2).astype(np.uint8),
        "threshold": rng.normal(scale=2, size=nodes + 2).astype(np.float32),
        "children": children,
        "leaves": rng.normal(size=nodes + 2).astype(np.float32),
    }
    values, out = rng.normal(size=(3, 150)).astype(np.float32), np.empty(150, np.float32)
    isa.sum_trees(**forest, values=values, out=out)
    assert bits(out) == bits(reference.sum_trees(**forest, values=values))


def test_trees_that_share_nodes_or_stand_in_another_order_equal_the_reference(isa):
    forest = random_forest(12, 4, 5, seed=3)
    roots = forest["roots"]
    values = np.random.default_rng(1).normal(size=(5, 100)).astype(np.float32)
    inner = np.array([node for pair in forest["children"] for node in pair if node >= 0], np.uint32)
    joined = forest["children"].copy()
    joined[0, 1] = roots[1]  # the first tree goes on in the second
    for changed in ({"roots": roots[::-1].copy()}, {"roots": np.concatenate((roots[:3], inner[:5], roots))}, {"children": joined}):
        out = np.empty(100, np.float32)
        isa.sum_trees(**forest | changed, values=values, out=out)
        assert bits(out) == bits(reference.sum_trees(**forest | changed, values=values))


def test_a_value_that_is_no_number_goes_to_the_second_child(isa):
    forest = {"roots": np.zeros(1, np.uint32), "feature": np.zeros(1, np.uint8), "threshold": np.zeros(1, np.float32)}
    forest |= {"children": np.array([[~0, ~1]], np.int32), "leaves": np.array([1, 2], np.float32)}
    out = np.zeros(5, np.float32)
    isa.sum_trees(**forest, values=np.array([[np.nan, -np.inf, np.inf, 0.0, -0.0]], np.float32), out=out)
    assert out.tolist() == [2, 1, 2, 1, 1]


def test_trees_add_up_in_their_order(isa):
    big = np.float32(2**24)
    forest = {"roots": np.array([0, 1, 2], np.uint32), "feature": np.zeros(3, np.uint8)}
    forest |= {"threshold": np.zeros(3, np.float32), "children": np.array([[~0, ~0], [~1, ~1], [~2, ~2]], np.int32)}
    for leaves, total in (((1, big, -big), 0), ((big, -big, 1), 1)):
        out = np.zeros(9, np.float32)
        isa.sum_trees(**forest, leaves=np.array(leaves, np.float32), values=np.zeros((1, 9), np.float32), out=out)
        assert out.tolist() == [total] * 9


@pytest.mark.parametrize(
    ("part", "at", "value", "message"),
    [
        ("roots", 2, 10_000, r"roots\[2\]"),
        ("feature", 1, 4, "node 1"),
        ("children", (2, 0), 2, "node 2"),
        ("children", (2, 1), 0, "node 2"),
        ("children", (0, 0), 1 << 30, "node 0"),
        ("children", (0, 1), -(1 << 31), "node 0"),
        ("children", (0, 1), -1000, "node 0"),
    ],
)
def test_trees_that_lead_nowhere_are_refused_before_anything_is_written(isa, part, at, value, message):
    forest = random_forest(5, 3, 4, seed=1)
    forest[part] = forest[part].copy()
    forest[part][at] = value
    out = np.full(20, 7, np.float32)
    with pytest.raises(ValueError, match=message):
        isa.sum_trees(**forest, values=np.zeros((4, 20), np.float32), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 5, 8, 33, 100])
@pytest.mark.parametrize("lists", [0, 1, 12])
def test_counts_of_greater_values_equal_the_reference(isa, m, lists):
    rng = np.random.default_rng(m)
    values = rng.integers(-3, 4, (lists, m)).astype(np.float32)  # many are equal
    values[:, ::3] += rng.normal(size=values[:, ::3].shape)
    values[rng.random(values.shape) < 0.05] = np.inf
    values[rng.random(values.shape) < 0.05] = np.nan
    of_count, out = rng.normal(size=m).astype(np.float32), np.full((lists, m), np.nan, np.float32)
    isa.count_greater(values, of_count, out)
    assert bits(out) == bits(reference.count_greater(values, of_count))


def test_rows_that_lie_apart_fuse_like_a_matrix(isa):
    rng = np.random.default_rng(4)
    matrix, weights = rng.normal(size=(16, 77)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    apart = tuple(row.copy() for row in matrix)
    out, rows, scores = np.empty(77, np.float32), np.empty(9, np.uint32), np.empty(9, np.float32)
    isa.fuse(apart, weights, out)
    assert bits(out) == bits(reference.fuse(matrix, weights))
    assert isa.fuse_top_k(apart, weights, None, 9, rows, scores) == 9
    assert (rows.tolist(), bits(scores)) == tuple(
        converted(found) for converted, found in zip((list, bits), reference.fuse_top_k(matrix, weights, None, 9))
    )


def test_rows_of_different_lengths_and_too_many_of_them_are_refused(isa):
    rows = (np.ones(5, np.float32), np.ones(6, np.float32))
    with pytest.raises(ValueError, match=r"^features: expected length 5 on axis 0 \(as long as the first\), got 6"):
        isa.fuse(rows, np.ones(2, np.float32), np.zeros(5, np.float32))
    for many in (rows[:1] * 17, np.ones((17, 5), np.float32), ()):
        with pytest.raises(ValueError, match="^features: expected"):
            isa.fuse(many, np.ones(len(many), np.float32), np.zeros(5, np.float32))
    with pytest.raises(TypeError, match="^features: expected float32"):
        isa.fuse((rows[0], np.ones(5)), np.ones(2, np.float32), np.zeros(5, np.float32))
