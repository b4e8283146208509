"""A bundle in which every feature and both stages work, whatever the model job found worth shipping.

For measurements of what a list costs at most. Sections that the given bundle lacks are made up, in the sizes that they
have where they are learned: directed rows like the item-item rows, factors projected from the titles' vectors, a sequence
encoder, 200 trees of depth 4. Every feature gets a weight in every history bucket, but global patterns only in those where
the model job gives them one. The lists say nothing about quality.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloud.fusion_fit import PATTERN_WEIGHTS
from cloud.sequence_sections import sequence_sections
from omega_edge import bundle
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.catalog_checks import FACTOR_DIMENSIONS, SHAPES, stage_input_names
from omega_edge.ranking import FEATURES, PATTERNS, SEQUENCE

TREES = 200
TREE_DEPTH = 4
LEAST_WEIGHT = 0.1


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
        if catalog.sequence is None:
            sections |= sequence_sections(encoder_parameters(catalog.count, rng))
            sections |= {f"sequence_fusion_{part}": sections[f"fusion_{part}"].copy() for part in ("weights", "calibration")}
        if catalog.second_stage is None:
            sections |= _trees(rng)
            meta = meta | {"second_stage_inputs": stage_input_names(FEATURES)}
    weighed = np.ones((len(PATTERN_WEIGHTS), len(FEATURES)), bool)
    weighed[:, PATTERNS] = np.array(PATTERN_WEIGHTS) > 0
    for name, without in (("sequence_fusion_weights", []), ("fusion_weights", [SEQUENCE])):
        least = np.where(weighed, np.float32(LEAST_WEIGHT), np.float32(0))
        least[:, without] = 0
        sections[name] = np.maximum(sections[name], least) * (least > 0)
    write_bundle(target, sections, meta)


def encoder_parameters(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """float32 parameters of a sequence encoder over `count` titles, of a trained one's size, as sequence_sections wants
    them."""

    def drawn(*shape: int, size: float) -> np.ndarray:
        return (rng.standard_normal(shape) * size).astype(np.float32)

    return {
        "E": drawn(count, 64, size=0.2),
        "B": drawn(count, size=0.5),
        "S": drawn(2, 64, size=0.05),
        "R": drawn(64, 8, size=0.3) - np.linspace(0, 2, 64, dtype=np.float32)[:, None],
        "norms": 1 + drawn(3, 64, size=0.2),
        **{name: drawn(64, 64, size=0.25) for name in ("Wq", "Wk", "Wv", "Wo")},
        "W1": drawn(64, 128, size=0.15),
        "b1": drawn(128, size=0.1),
        "W2": drawn(128, 64, size=0.1),
        "b2": drawn(64, size=0.1),
        "input_scale": np.array([4.0], np.float32),
        "start": drawn(64, size=1.0),
    }


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
    nodes, leaves = 2**TREE_DEPTH - 1, 2**TREE_DEPTH
    feature = rng.integers(len(names), size=TREES * nodes)
    # A heap: what would be below its last level are the leaves.
    below = 2 * np.arange(nodes)[:, None] + [1, 2]
    firsts = np.arange(TREES)[:, None, None]
    children = np.where(below < nodes, below + firsts * nodes, ~(below - nodes + firsts * leaves))
    return {
        "second_stage_roots": (np.arange(TREES) * nodes).astype(np.uint32),
        "second_stage_feature": feature.astype(np.uint8),
        "second_stage_threshold": (rng.random(TREES * nodes) * most[feature]).astype(np.float32),
        "second_stage_children": children.reshape(-1, 2).astype(np.int32),
        "second_stage_leaves": rng.normal(scale=0.05, size=TREES * leaves).astype(np.float32),
        "second_stage_buckets": np.ones(4, np.uint8),
    }
