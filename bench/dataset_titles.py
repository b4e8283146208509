"""The titles of a data set as the model job takes them, for measurements that train models of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloud.model import TitleData
from omega_edge._simd import kernels
from omega_edge.catalog import lineage_of, title_sections
from omega_edge.datasets import Dataset
from toolchain.build_bundle import catalog_title, embed_titles, genre_names


def title_data(dataset: Dataset, model_folder: Path, work: Path) -> TitleData:
    """Sections, vectors included. model_folder: of the text model; work: where vectors are kept for the next time."""
    work.mkdir(parents=True, exist_ok=True)
    vectors, _ = embed_titles(dataset.titles, model_folder, work, lambda what: None)
    codes, scale = np.empty(vectors.shape, np.int8), np.empty(len(vectors), np.float32)
    kernels.quantise(vectors, codes, scale)
    genres = genre_names(dataset.titles)
    sections = title_sections([catalog_title(title) for title in dataset.titles], genres)
    lineage = lineage_of([title.content_id for title in dataset.titles])
    return TitleData(sections | {"codes": codes, "code_scale": scale}, genres, lineage)
