"""The bundles that a television would have had: one for each block, trained on what precedes it and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.replay.split import Split
from cloud.model import EarlierWork, ModelSettings, TitleData
from omega_edge.datasets import Dataset
from omega_edge.protocol import MAX_TIMESTAMP_MS
from toolchain.build_bundle import describe_titles, write_trained

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TitleFacts:
    """A data set's titles as bundles describe them, and the version of the text model that their vectors are of."""

    titles: TitleData
    model_version: str

    def vectors(self) -> np.ndarray:
        """float32[n, 384]: the titles' content vectors as a television has them."""
        sections = self.titles.sections
        return sections["codes"].astype(np.float32) * sections["code_scale"][:, None]


def title_facts(dataset: Dataset, model_dir: Path, cache_folder: Path, progress: Progress) -> TitleFacts:
    """Describe the titles as build_bundle does, but for its made-up availability windows.

    Those are derived from the year and the genre, for demonstration; that a title was watched says that it could be.
    """
    titles, model_version = describe_titles(dataset, model_dir, cache_folder, progress)
    always = {
        "available_from": np.zeros_like(titles.sections["available_from"]),
        "available_until": np.full_like(titles.sections["available_until"], MAX_TIMESTAMP_MS),
    }
    return TitleFacts(replace(titles, sections=titles.sections | always), model_version)


def write_bundles(
    split: Split, dataset: Dataset, facts: TitleFacts, settings: ModelSettings, folder: Path, progress: Progress
) -> tuple[Path, ...]:
    """Train and write a bundle for each block of the test; returns their files in order."""
    files, earlier = [], EarlierWork()
    for block, start in enumerate(split.starts):
        past = replace(dataset, events=split.before(start))
        path = folder / f"block-{block}.bundle"
        write_trained(
            path,
            past,
            facts.titles,
            facts.model_version,
            settings,
            block + 1,
            lambda what, block=block: progress(f"block {block + 1} of {len(split.starts)}: {what}"),
            earlier,
        )
        files.append(path)
    return tuple(files)
