"""What the demonstration replays: the data set, its catalogue, one household of it, and a trace to measure with."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omega_edge.cli_output import Progress
from omega_edge.configuration import Setting, source_checkout
from omega_edge.datasets import Dataset
from omega_edge.demo_measure import TRACE_EVENTS
from omega_edge.errors import ConfigError

DEFAULT_DATA = Path("bench/data/movietweetings-70k")
DEFAULT_HOUSEHOLD = "6114"
"""77 viewings on 60 days, of all parts of the day but night, the last a day before the data set ends."""
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Viewing:
    """One event of the data set."""

    content_id: str
    name: str
    watched: float
    timestamp: int


def data_folder(named: Path | None) -> Path:
    """The data set to replay: the one named, else the one of the source checkout. ConfigError where there is neither."""
    root = source_checkout()
    if named is None and root is None:
        raise ConfigError("demo: expected --data DIR, because this installation has no source tree with data beside it")
    folder = root / DEFAULT_DATA if named is None else named
    if not folder.is_dir():
        raise FileNotFoundError(f"demo: expected the data set's folder {folder}, there is none")
    return folder


def with_bundle(
    options: argparse.Namespace, data: Path, settings: tuple[Setting, ...], progress: Progress
) -> tuple[Setting, ...]:
    """The settings with the catalogue of this data set, which is built first if a source tree can build it."""
    by_name = {setting.name: setting for setting in settings}
    if options.catalog is None and not is_default(data):
        by_name["catalog_path"] = Setting("catalog_path", _bundle_beside(data), "flag --data")
    catalog = by_name["catalog_path"]
    if not catalog.value.exists():
        if catalog.origin not in ("default", "flag --data"):
            raise FileNotFoundError(f"demo: expected the catalogue {catalog.value} ({catalog.origin}), there is none")
        _build_bundle(data, catalog.value, by_name["model_path"].value, progress)
    return tuple(by_name.values())


def is_default(data: Path) -> bool:
    """Whether this is the data set of the source tree."""
    root = source_checkout()
    return root is not None and data.resolve() == root / DEFAULT_DATA


def _bundle_beside(data: Path) -> Path:
    """Where the bundle of a data set lies: named by the folder and by what is in it."""
    root = source_checkout()
    if root is None:
        raise ConfigError("demo --data: expected --catalog FILE beside it; a bundle can be built only in a source tree")
    listing = sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in data.iterdir())
    digest = hashlib.sha256(repr((str(data.resolve()), listing)).encode()).hexdigest()[:12]
    return root / "build" / f"{data.resolve().name}-{digest}.bundle"


def _build_bundle(data: Path, path: Path, model: Path | None, progress: Progress) -> None:
    root = source_checkout()
    if model is None or not model.is_dir():
        raise FileNotFoundError("demo: a bundle is built with the text model, and there is none; ./run makes it, once")
    progress.say(f"building the catalogue of {data.name}, once")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "toolchain.build_bundle"]
    command += ["--data", str(data.resolve()), "--model", str(model.resolve()), "--out", str(path.resolve())]
    progress.done()
    finished = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if finished.returncode:
        raise ConfigError(
            f"demo: the catalogue of {data} could not be built (exit code {finished.returncode}, see above)"
        )


def household_index(dataset: Dataset, named: str | None, data: Path) -> int:
    """Index of the household to replay: the one named, else DEFAULT_HOUSEHOLD or, in other data, a well filled one."""
    if named is None and not is_default(data):
        return well_filled(dataset)
    wanted = DEFAULT_HOUSEHOLD if named is None else named
    if wanted not in dataset.households:
        some = ", ".join(dataset.households[:3])
        raise ConfigError(f"--household: expected an id of the data set, such as {some}; got {wanted!r}")
    return dataset.households.index(wanted)


def well_filled(dataset: Dataset) -> int:
    """The household with 20 to 90 viewings active on most days; without one, that with most viewings."""
    events = dataset.events
    counts = np.bincount(events.household, minlength=len(dataset.households))
    days = np.unique(np.stack([events.household.astype(np.int64), events.timestamp // DAY_MS]), axis=1)
    active_days = np.bincount(days[0], minlength=len(counts))
    fits = (counts >= 20) & (counts <= 90)
    return int(np.argmax(np.where(fits, active_days, 0))) if fits.any() else int(np.argmax(counts))


def viewings_at(dataset: Dataset, places: Iterable[int]) -> list[Viewing]:
    """The events at these places of dataset.events."""
    events = dataset.events
    return [
        Viewing(
            dataset.titles[events.title[place]].content_id,
            dataset.titles[events.title[place]].name,
            float(events.watch_percentage[place]),
            int(events.timestamp[place]),
        )
        for place in places
    ]


def trace_places(dataset: Dataset) -> list[int]:
    """The last TRACE_EVENTS events of the data set, each title once: several households joined into one."""
    seen: set[int] = set()
    places = []
    for place in range(len(dataset.events) - 1, -1, -1):
        title = int(dataset.events.title[place])
        if title not in seen:
            seen.add(title)
            places.append(place)
            if len(places) == TRACE_EVENTS:
                break
    return places[::-1]
