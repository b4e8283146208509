"""A small catalogue with known contents, for tests of what stands on catalogues."""

from __future__ import annotations

import numpy as np

from omega_edge.catalog import Catalog, Title, lineage_of, title_sections
from omega_edge.protocol import EMBEDDING_DIMENSIONS, MAX_TIMESTAMP_MS
from omega_edge.ranking import FEATURES

DAY_MS = 24 * 3600 * 1000
NOW_MS = 1_370_000_000_000
GENRES = ("Drama", "Comedy", "Family", "Horror", "News")
PARAMETERS = {"row_decay": 0.8, "content_decay": 0.9, "failure_weight": -0.25}


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
    columns, values, offsets = [], [], [0]
    for row in range(titles):
        targets = np.sort(rng.choice(titles, size=row % 9, replace=False))
        columns.extend(targets[targets != row])
        values.extend(rng.integers(-127, 128, size=int((targets != row).sum())))
        offsets.append(len(columns))
    prior = rng.dirichlet(np.ones(len(GENRES)), size=9).astype(np.float32)
    sections = title_sections(described, GENRES) | {
        "codes": codes,
        "code_scale": scale,
        "popularity": rng.random(titles, np.float32),
        "trend_scores": rng.random((2, titles), np.float32),
        "context_prior": np.ascontiguousarray(prior[:8]),
        "context_overall": prior[8],
        "fusion_weights": rng.normal(size=(4, len(FEATURES))).astype(np.float32),
        "fusion_calibration": np.array([[1.0, 0.1 * bucket] for bucket in range(4)], np.float32),
        "row_offsets": np.array(offsets, np.uint32),
        "row_columns": np.array(columns, np.uint32),
        "row_values": np.array(values, np.int8),
        "row_scale": rng.random(titles, np.float32) * np.float32(0.01),
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


def catalog_of(titles: int = 60, seed: int = 1) -> Catalog:
    """The same as an opened catalogue."""
    return Catalog.from_sections(*sections_of(titles, seed))


