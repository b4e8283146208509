"""What is searched: real title vectors or uniform directions, held-out queries, and the exact answers.

`real`: MiniLM embeddings of the catalogue's titles by the product's own engine. 200 of them are taken out as queries.
Where more rows are asked for than titles are left, the rest is jittered: a + 0.5 (b - c) of three drawn titles,
normalised. `uniform`: standard normal directions, the hard case. Everything is drawn from one seed and kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
K = 50
"""How many neighbours every search asks for."""
SEED = 20_260
JITTER = 0.5
BLOCK = 20_000
FORMAT = 2
"""Part of the folder's name: a change of what is drawn makes the data anew."""


@dataclass(frozen=True, slots=True)
class SearchData:
    """One table and its queries. Codes are the product's: int8 in [-127, 127], scale 1 / ||code||."""

    base: NDArray[np.float32]  # [n, 384], unit rows
    codes: NDArray[np.int8]  # [n, 384]
    scale: NDArray[np.float32]  # [n]
    queries: NDArray[np.float32]  # [q, 384]
    query_codes: NDArray[np.int8]  # [q, 384]
    query_scale: NDArray[np.float32]  # [q]
    truth: NDArray[np.uint32]  # [q, 50]: best rows by float32 cosine
    code_truth: NDArray[np.uint32]  # [q, 50]: best rows by the codes, score descending, then row ascending
    facts: dict

    @property
    def rows(self) -> int:
        """Number of rows searched."""
        return len(self.base)


ARRAYS = ("base", "codes", "scale", "queries", "query_codes", "query_scale", "truth", "code_truth")


def load(folder: Path) -> SearchData:
    """The data of a folder that `make` wrote; the arrays are maps of its files."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return SearchData(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}, facts=facts)


def make(
    work: Path, kind: str, rows: int, titles: Callable[[], NDArray[np.float32]], queries: int, title_key: str
) -> Path:
    """The folder of the data, made unless it is there. titles gives the unit vectors float32[t, 384] of `real`;
    title_key says in the folder's name what they depend on."""
    key = hashlib.sha256(title_key.encode()).hexdigest()[:8] if kind == "real" else "drawn"
    folder = work / f"data-{FORMAT}-{kind}-{rows}-{queries}-{key}"
    if (folder / "facts.json").exists():
        return folder
    drawn = np.random.default_rng([SEED, rows])
    if kind == "real":
        base, asked, facts = real_rows(titles(), rows, queries, drawn)
    else:
        both = unit(drawn.standard_normal((rows + queries, DIMENSIONS), np.float32))
        base, asked, facts = both[:rows], both[rows:], {"real_rows": 0, "jittered_rows": 0}
    write(folder, base, asked, facts | {"data": kind, "rows": rows, "queries": queries, "seed": SEED})
    return folder


def real_rows(
    titles: NDArray[np.float32], rows: int, queries: int, drawn: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict]:
    """(table float32[rows, 384], queries float32[queries, 384], how many rows are real and how many jittered).

    The same titles are held out whatever the number of rows.
    """
    order = np.random.default_rng(SEED).permutation(len(titles))
    asked, kept = titles[order[:queries]], titles[order[queries:]]
    real = kept[:rows]
    missing = rows - len(real)
    parts = [real]
    for start in range(0, missing, BLOCK):
        a, b, c = kept[drawn.integers(0, len(kept), (3, min(BLOCK, missing - start)))]
        parts.append(unit(a + np.float32(JITTER) * (b - c)))
    return np.concatenate(parts), asked, {"real_rows": len(real), "jittered_rows": missing}


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows float32[n, d] scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(folder: Path, base: NDArray[np.float32], asked: NDArray[np.float32], facts: dict) -> None:
    """Quantises, finds the exact answers, and puts the folder in its place whole."""
    from omega_edge._simd import kernels

    made = {"base": np.ascontiguousarray(base, np.float32), "queries": np.ascontiguousarray(asked, np.float32)}
    for vectors, codes, scale in (("base", "codes", "scale"), ("queries", "query_codes", "query_scale")):
        made[codes] = np.empty(made[vectors].shape, np.int8)
        made[scale] = np.empty(len(made[vectors]), np.float32)
        kernels.quantise(made[vectors], made[codes], made[scale])
    made["truth"] = best_rows(made["base"], None, made["queries"], None)
    made["code_truth"] = best_rows(made["codes"], made["scale"], made["query_codes"], made["query_scale"])
    facts = facts | {"digest": hashlib.sha256(made["base"]).hexdigest()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".data-") as temporary:
        filled = Path(temporary) / "filled"
        filled.mkdir()
        for name, array in made.items():
            np.save(filled / f"{name}.npy", array)
        (filled / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(filled, folder)


def best_rows(
    table: NDArray, scale: NDArray[np.float32] | None, queries: NDArray, query_scale: NDArray[np.float32] | None
) -> NDArray[np.uint32]:
    """The K best rows of each query, uint32[q, K], score descending, then row ascending, by numpy alone.

    Dot products of codes are exact in float32: of 384 terms each partial sum stays below 2^24. Their scores are
    rounded as kernels.h states: (dot x row scale) x query scale.
    """
    scores = np.empty((len(queries), len(table)), np.float32)
    asked = np.asarray(queries, np.float32)
    for start in range(0, len(table), BLOCK):
        end = min(start + BLOCK, len(table))
        np.matmul(asked, np.asarray(table[start:end], np.float32).T, out=scores[:, start:end])
    if scale is not None and query_scale is not None:
        scores *= scale
        scores *= query_scale[:, None]
    found = np.empty((len(queries), K), np.uint32)
    for row, values in enumerate(scores):
        edge = np.partition(values, len(values) - K)[len(values) - K]
        near = np.flatnonzero(values >= edge)
        found[row] = near[np.argsort(-values[near], kind="stable")][:K]
    return found


def aligned(array: NDArray, boundary: int = 64) -> NDArray:
    """A copy whose first byte lies at a multiple of the boundary: rows then start on cache lines."""
    room = np.empty(array.nbytes + boundary, np.uint8)
    start = -room.ctypes.data % boundary
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
