"""What a level left: answers, bytes, and how long it took; kept in a file, so that a run that was cut goes on after it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.machine import ROOT

SOURCES = ("bench/loop", "bench/replay", "cloud", "omega_edge", "toolchain")


@dataclass(slots=True)
class Outcome:
    """One level. rank: float64[q] of each query's title, infinite where it was not found. syncs: int64 columns of equal
    length, one entry a sync: home, sharing (1 where its home told anything of viewing), up, down (at the socket), body_up,
    body_down, titles, patterns. facts: what else is to be told, JSON. faults: what went wrong, in words."""

    rank: np.ndarray
    syncs: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Kept:
    """Finished levels in a folder. fingerprint: of everything that their figures depend on; others' are not looked at."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder / f"levels-{fingerprint}"

    def read(self, name: str) -> Outcome | None:
        """A level finished before, or None."""
        try:
            with np.load(self._folder / f"{name}.npz") as stored:
                told = json.loads(bytes(stored["told"]))
                syncs = {key.removeprefix("sync_"): stored[key] for key in stored.files if key.startswith("sync_")}
                return Outcome(stored["rank"], syncs, told["facts"], told["faults"])
        except FileNotFoundError:
            return None

    def write(self, name: str, outcome: Outcome) -> None:
        """Keep a level, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps({"facts": outcome.facts, "faults": outcome.faults}).encode("utf-8")
        path = self._folder / f"{name}.npz"
        beside = path.with_name(f".{os.getpid()}.npz")
        np.savez(
            beside,
            rank=outcome.rank,
            told=np.frombuffer(told, np.uint8),
            **{f"sync_{key}": values for key, values in outcome.syncs.items()},
        )
        os.replace(beside, path)


def fingerprint(data: Path, settings: Mapping[str, object]) -> str:
    """Of the sources, the data set and what a run was told."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode("utf-8"))
    files = [path for name in SOURCES for path in sorted((ROOT / name).rglob("*.py"))]
    for path in (*files, *sorted(path for path in data.iterdir() if path.is_file())):
        found.update(path.name.encode("utf-8"))
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]
