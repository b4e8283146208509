"""A small catalogue with known contents, for tests of what stands on catalogues."""

from __future__ import annotations

import numpy as np

from omega_edge.catalog import Catalog, Title, lineage_of, title_sections
from omega_edge.catalog_checks import stage_input_names
from omega_edge.protocol import EMBEDDING_DIMENSIONS, MAX_TIMESTAMP_MS
from omega_edge.ranking import FEATURES, TREND_LONG, TREND_SHORT

DAY_MS = 24 * 3600 * 1000
NOW_MS = 1_370_000_000_000
GENRES = ("Drama", "Comedy", "Family", "Horror", "News")
PARAMETERS = {
    "row_decay": 0.8,
    "content_decay": 0.9,
    "slist_decay": 0.7,
    "factor_decay": 0.85,
    "failure_weight": -0.25,
}


def sections_of(titles: int = 60, seed: int = 1) -> tuple[dict[str, np.ndarray], dict]:
    """Sections and meta of a random catalogue: every fifth title unrated, some outside their window."""
    rng = np.random.default_rng(seed)
    described = [
        Title(
            content_id=f"t{row:03d}",
            name=f"Título {row} ({1990 + row % 30})",
            year=1990 + row % 30,
            genres=tuple(rng.choice(GENRES, size=1 + row % 3, replace=False)),
            age_rating=None if row % 5 == 4 else int(rng.choice([0, 6, 12, 16, 18])),
            available_from=NOW_MS + 30 * DAY_MS if row % 11 == 10 and row % 13 != 12 else 0,
            available_until=NOW_MS - DAY_MS if row % 13 == 12 else MAX_TIMESTAMP_MS,
        )
        for row in range(titles)
    ]
    codes = np.rint(rng.normal(size=(titles, EMBEDDING_DIMENSIONS)) * 30).clip(-127, 127).astype(np.int8)
    scale = (1 / np.sqrt((codes.astype(np.int64) ** 2).sum(axis=1))).astype(np.float32)
    weights = rng.normal(size=(4, len(FEATURES))).astype(np.float32)
    weights[:, [TREND_SHORT, TREND_LONG]] = np.abs(weights[:, [TREND_SHORT, TREND_LONG]])  # so that trends carry some titles
    prior = rng.dirichlet(np.ones(len(GENRES)), size=9).astype(np.float32)
    sections = title_sections(described, GENRES) | {
        "codes": codes,
        "code_scale": scale,
        "popularity": rng.random(titles, np.float32),
        "trend_scores": rng.random((2, titles), np.float32),
        "context_prior": np.ascontiguousarray(prior[:8]),
        "context_overall": prior[8],
        "fusion_weights": weights,
        "fusion_calibration": np.array([[1.0, 0.1 * bucket] for bucket in range(4)], np.float32),
        **row_sections("row", titles, rng),
        **row_sections("slist", titles, rng),
        "factor_codes": rng.integers(-127, 128, (titles, 64)).astype(np.int8),
        "factor_scale": np.where(np.arange(titles) % 7 == 6, 0, rng.random(titles) * 0.003).astype(np.float32),
        "factor_fold": (np.eye(64) * 0.3 + rng.normal(size=(64, 64)) * 0.02).astype(np.float32),
        "onboarding": rng.permutation(titles)[: titles // 2].astype(np.uint32),
    }
    meta = {
        "name": "synthetic",
        "version": 1,
        "built_at": NOW_MS,
        "lineage": lineage_of([title.content_id for title in described]),
        "genres": list(GENRES),
        "trend_window_hours": [48, 336],
        "fusion_features": list(FEATURES),
        "fusion_parameters": PARAMETERS,
    }
    return sections, meta


def row_sections(prefix: str, titles: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Item-item rows of 0 to 8 random entries, as four sections."""
    columns, values, offsets = [], [], [0]
    for row in range(titles):
        targets = np.sort(rng.choice(titles, size=row % 9, replace=False))
        columns.extend(targets[targets != row])
        values.extend(rng.integers(-127, 128, size=int((targets != row).sum())))
        offsets.append(len(columns))
    return {
        f"{prefix}_offsets": np.array(offsets, np.uint32),
        f"{prefix}_columns": np.array(columns, np.uint32),
        f"{prefix}_values": np.array(values, np.int8),
        f"{prefix}_scale": rng.random(titles, np.float32) * np.float32(0.01),
    }


def second_stage_of(
    inputs: tuple[str, ...] | None = None, trees: int = 30, depth: int = 3, seed: int = 2
) -> tuple[dict[str, np.ndarray], dict]:
    """The sections and the meta of random trees for the second stage, some branches shorter than others.

    inputs: if None, all that there are without a sequence encoder.
    """
    rng = np.random.default_rng(seed)
    inputs = inputs or tuple(name for name in stage_input_names(FEATURES) if not name.endswith(":sequence"))
    roots, feature, threshold, children, leaves = [], [], [], [], []

    def grow(level: int) -> int:
        if level and (level == depth or rng.random() < 0.15):
            leaves.append(rng.normal())
            return ~(len(leaves) - 1)
        node = len(feature)
        feature.append(int(rng.integers(len(inputs))))
        threshold.append(float(rng.choice([rng.normal(), rng.random() * 5, 0.0])))
        children.append([0, 0])
        children[node] = [grow(level + 1), grow(level + 1)]
        return node

    for _ in range(trees):
        roots.append(grow(0))
    sections = {
        "second_stage_roots": np.array(roots, np.uint32),
        "second_stage_feature": np.array(feature, np.uint8),
        "second_stage_threshold": np.array(threshold, np.float32),
        "second_stage_children": np.array(children, np.int32),
        "second_stage_leaves": np.array(leaves, np.float32),
        "second_stage_buckets": np.ones(4, np.uint8),
    }
    return sections, {"second_stage_inputs": list(inputs)}


def catalog_of(titles: int = 60, seed: int = 1) -> Catalog:
    """The same as an opened catalogue."""
    return Catalog.from_sections(*sections_of(titles, seed))


