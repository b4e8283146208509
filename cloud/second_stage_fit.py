"""Trains the second stage: LambdaMART trees that put the fusion's best candidates into their final order.

Burges, "From RankNet to LambdaRank to LambdaMART" (2010), by lightgbm (the extra `model`), on lists that the fusion made
of held-back time. Inputs are computed by the television's own code (second_stage.StageTable), so that what is learned is
what will be asked. Deterministic.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cloud.fusion_fit import FITTED, LIST_LENGTH, FitSet, discounted_gain
from cloud.judging import fused, rank_of_watched
from omega_edge._simd import kernels
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import BUCKETS, stage_input_names
from omega_edge.ranking import FEATURES
from omega_edge.second_stage import CANDIDATES, StageTable

TREES = 150
MAX_DEPTH = 4
LEARNING_RATE = 0.06
LEAST_PER_LEAF = 50
TRUNCATION = 20
"""Pairs are counted where one of the two stands among so many: below, an exchange changes no list of ten."""
MAX_LISTS = 4_500
"""Lists learned from, the newest ones, each with all its candidates: with only the better half of them and the watched
title, to stand low would mean to be the watched one."""
LEAST_LISTS = 300
THREADS = 2
"""lightgbm's result does not depend on them under `deterministic`."""


@dataclass(frozen=True, slots=True)
class StageLists:
    """Lists for the trees. inputs: float32[c, i] each, c at most 100; watched: int64[q], the watched title's place in
    it, -1 where the fusion left it out; bucket: int64[q]; household: int64[q]."""

    inputs: list[np.ndarray]
    watched: np.ndarray
    bucket: np.ndarray
    household: np.ndarray


def stage_lists(queries: FitSet, weights: np.ndarray, catalog: Catalog) -> StageLists:
    """The fusion's best candidates of each successful viewing, with their inputs."""
    table, names = StageTable(catalog), stage_input_names(FEATURES)
    inputs, watched = [], []
    parts = zip(fused(queries, weights), queries.candidates, queries.rows, queries.histories, strict=True)
    for scores, matrix, rows, history in parts:
        # The watched title is the first of the candidates: of equal scores it must not win by that.
        order = np.lexsort((rows, -scores))[:CANDIDATES]
        values = np.zeros((len(FEATURES), len(order)), np.float32)
        values[list(FITTED)] = matrix[:, order]
        raw = scores[order].astype(np.float32)
        inputs.append(np.ascontiguousarray(table.inputs(names, values, raw, rows[order], history).T))
        place = np.flatnonzero(order == 0)
        watched.append(int(place[0]) if len(place) else -1)
    return StageLists(inputs, np.array(watched, np.int64), queries.list_buckets(), np.array(queries.households, np.int64))


def train_trees(lists: StageLists, unread: Collection[str] = ()) -> dict[str, np.ndarray] | None:
    """Sections second_stage_* but for the buckets, or None where there are too few lists. ImportError without lightgbm.

    unread: names of inputs that the trees may not ask for.
    """
    import lightgbm

    usable = np.flatnonzero(lists.watched >= 0)[-MAX_LISTS:]
    if len(usable) < LEAST_LISTS:
        return None
    # A column of zeros is never split on.
    read = np.array([name not in unread for name in stage_input_names(FEATURES)], np.float32)
    inputs = [lists.inputs[index] for index in usable.tolist()]
    labels = [np.arange(len(lines)) == lists.watched[index] for lines, index in zip(inputs, usable.tolist(), strict=True)]
    data = lightgbm.Dataset(
        np.concatenate(inputs) * read,
        np.concatenate(labels).astype(np.int32),
        group=[len(label) for label in labels],
        params={"max_bin": 127, "verbose": -1},
    )
    parameters = {
        "objective": "lambdarank",
        "num_leaves": 2**MAX_DEPTH,
        "max_depth": MAX_DEPTH,
        "learning_rate": LEARNING_RATE,
        "min_data_in_leaf": LEAST_PER_LEAF,
        "lambdarank_truncation_level": TRUNCATION,
        "label_gain": [0, 1],
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 10.0,
        "num_threads": THREADS,
        "deterministic": True,
        "force_row_wise": True,
        "seed": 1,
        "verbose": -1,
    }
    return tree_sections(lightgbm.train(parameters, data, TREES).dump_model())


def tree_sections(dumped: dict) -> dict[str, np.ndarray]:
    """The arrays of a model as lightgbm dumps it; a tree that is a single leaf says the same of all and is left out.

    Thresholds are rounded down to float32, so that a float32 input goes the way that lightgbm sends it.
    """
    roots, feature, threshold, children, leaves = [], [], [], [], []

    def placed(node: dict) -> int:
        """The node's number, or ~ the number of its leaf. A node comes before what is below it."""
        if "leaf_value" in node:
            leaves.append(node["leaf_value"])
            return ~(len(leaves) - 1)
        assert node["decision_type"] == "<=", node["decision_type"]
        mine = len(feature)
        feature.append(node["split_feature"])
        threshold.append(_rounded_down(node["threshold"]))
        children.append([0, 0])
        children[mine] = [placed(node["left_child"]), placed(node["right_child"])]
        return mine

    for tree in dumped["tree_info"]:
        if "leaf_value" not in tree["tree_structure"]:
            roots.append(placed(tree["tree_structure"]))
    return {
        "second_stage_roots": np.array(roots, np.uint32),
        "second_stage_feature": np.array(feature, np.uint8),
        "second_stage_threshold": np.array(threshold, np.float32),
        "second_stage_children": np.array(children, np.int32).reshape(-1, 2),
        "second_stage_leaves": np.array(leaves, np.float32),
    }


def _rounded_down(value: float) -> np.float32:
    single = np.float32(value)
    return np.nextafter(single, np.float32(-np.inf)) if float(single) > value else single


def staged_gains(lists: StageLists, sections: dict[str, np.ndarray]) -> np.ndarray:
    """float64[q]: NDCG@10 of the lists in the order of the trees; 0 where the watched title is not among the candidates."""
    trees = tuple(
        sections[f"second_stage_{part}"] for part in ("roots", "feature", "threshold", "children", "leaves")
    )
    gains = np.zeros(len(lists.inputs))
    for query, (inputs, place) in enumerate(zip(lists.inputs, lists.watched.tolist(), strict=True)):
        if place < 0:
            continue
        out = np.empty(len(inputs), np.float32)
        kernels.sum_trees(*trees, np.ascontiguousarray(inputs.T), out)
        rank = rank_of_watched(np.concatenate((out[place : place + 1], np.delete(out, place))))
        gains[query] = discounted_gain(np.float64(rank)) if rank <= LIST_LENGTH else 0.0
    return gains


def stage_sections(trees: dict[str, np.ndarray], serves: list[bool]) -> dict[str, np.ndarray]:
    """The whole group for the bundle. serves: by history bucket."""
    assert len(serves) == BUCKETS
    return trees | {"second_stage_buckets": np.array(serves, np.uint8)}
