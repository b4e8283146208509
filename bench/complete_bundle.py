"""A bundle in which every feature and both stages work, whatever the model job found worth shipping.

For measurements of what a list costs at most. Sections that the given bundle lacks are made up, in the sizes that they
have where they are learned: directed rows like the item-item rows, factors projected from the titles' vectors, 200 trees of
depth 3. Every feature gets a weight. The lists say nothing about quality.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omega_edge import bundle
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, SHAPES, stage_input_names
from omega_edge.ranking import FEATURES

TREES = 200
LEAST_WEIGHT = 0.1
TREE_CHILDREN = np.array([[1, 2], [3, 4], [5, 6], [~0, ~1], [~2, ~3], [~4, ~5], [~6, ~7]], np.int32)
"""One tree of depth 3: 7 nodes, 8 leaves."""


def write_complete_bundle(source: Path, target: Path, seed: int = 1) -> None:
    """Write a copy of a bundle with all that it lacks."""
    rng = np.random.default_rng(seed)
    mapped, _ = bundle.read(source, frozenset(SHAPES))
    sections = {name: np.array(array) for name, array in mapped.items() if name != "meta"}
    with Catalog.open(source) as catalog:
        meta = catalog.meta
        if catalog.slist is None:
            sections |= {f"slist_{part}": sections[f"row_{part}"] for part in ("offsets", "columns", "scale")}
            sections["slist_values"] = rng.permutation(sections["row_values"])
        if catalog.factors is None:
            sections |= _factors(catalog, rng)
        if catalog.second_stage is None:
            sections |= _trees(rng)
            meta = meta | {"second_stage_inputs": stage_input_names(FEATURES)}
    sections["fusion_weights"] = np.maximum(sections["fusion_weights"], np.float32(LEAST_WEIGHT))
    write_bundle(target, sections, meta)


def _factors(catalog: Catalog, rng: np.random.Generator) -> dict[str, np.ndarray]:
    directions = rng.normal(size=(catalog.codes.shape[1], FACTOR_DIMENSIONS)) / np.sqrt(FACTOR_DIMENSIONS)
    factors = (catalog.codes * catalog.scale[:, None]) @ directions.astype(np.float32)
    largest = np.abs(factors).max(axis=1)
    return {
        "factor_codes": np.rint(factors * (127 / largest[:, None])).astype(np.int8),
        "factor_scale": (largest / 127).astype(np.float32),
        "factor_fold": (0.1 * np.eye(FACTOR_DIMENSIONS)).astype(np.float32),
    }


def _trees(rng: np.random.Generator) -> dict[str, np.ndarray]:
    names = stage_input_names(FEATURES)
    # Thresholds lie where values do, so that candidates part at every node.
    most = np.array([{"value": 1.0, "rank": np.log(100)}.get(name.partition(":")[0], 10.0) for name in names])
    nodes, leaves = len(TREE_CHILDREN), len(TREE_CHILDREN) + 1
    feature = rng.integers(len(names), size=TREES * nodes)
    firsts = np.arange(TREES)[:, None, None]
    children = np.where(TREE_CHILDREN < 0, TREE_CHILDREN - firsts * leaves, TREE_CHILDREN + firsts * nodes)
    return {
        "second_stage_roots": (np.arange(TREES) * nodes).astype(np.uint32),
        "second_stage_feature": feature.astype(np.uint8),
        "second_stage_threshold": (rng.random(TREES * nodes) * most[feature]).astype(np.float32),
        "second_stage_children": children.reshape(-1, 2).astype(np.int32),
        "second_stage_leaves": rng.normal(scale=0.05, size=TREES * leaves).astype(np.float32),
        "second_stage_buckets": np.ones(4, np.uint8),
    }
