"""Opening real brains in tests: a real store, a real bundle file, a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.config import BrainConfig
from omega_edge.protocol import (
    ViewContext,
    ViewingEvent,
)
from tests.synthetic import DAY_MS, NOW_MS, sections_of

EVENING = ViewContext("evening", 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "synthetic.bundle"
    write_bundle(path, *sections_of(120))
    return path


class Clock:
    """A clock that stands still unless moved."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def opened(tmp_path: Path, bundle: Path) -> Callable[..., OmegaBrain]:
    """Opens brains on one storage folder unless told another; closes them all at the end."""
    brains = []

    def open_brain(
        folder: str = "store", clock: Callable[[], int] | None = None, secrecy: Random | None = None, **options: object
    ) -> OmegaBrain:
        config = BrainConfig(
            storage_path=tmp_path / folder, background_maintenance=False, **({"catalog_path": bundle} | options)
        )
        brains.append(OmegaBrain.open(config, clock or Clock(), secrecy=secrecy))
        return brains[-1]

    yield open_brain
    for brain in brains:
        brain.close()


def viewing(row: int, watched: float = 0.9, minute: int = 0, context: ViewContext = EVENING) -> ViewingEvent:
    return ViewingEvent(f"t{row:03d}", f"Título {row}", watched, 3600, NOW_MS - DAY_MS + minute * 60_000, context)


def watch(brain: OmegaBrain, rows: list[int], context: ViewContext = EVENING) -> None:
    for minute, row in enumerate(rows):
        brain.observe(viewing(row, 0.2 if row % 4 == 3 else 0.9, minute, context))


def listed(brain: OmegaBrain, k: int = 20, context: ViewContext = EVENING) -> list[str]:
    return [shown.content_id for shown in brain.recommend(context, k)]


def bytes_in(folder: Path, needle: bytes) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
