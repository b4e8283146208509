"""Measures the encodings of vectors: `python -m bench.compression [--json] [--quick]`.

What each encoding does to real vectors that its codebook was not trained on (cosine, recall of the nearest ten), what it
costs, and what a household that has watched for long holds in RAM and on the flash, with and without a codebook. The
vectors are those of the text model: held-out titles as the catalogue embeds them, the bare names of the same titles
as a television embeds what no catalogue holds, and the centroids of skills that real viewing has gathered.
One JSON line a figure goes to standard output, progress to standard error; exit code 1 if a figure misses its limit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench import full_store
from bench.machine import ROOT, machine_facts, process_io
from bench.metrics import Scale, Settings
from bench.viewing import Watched, read_viewing
from cloud.quantiser_fit import held_out
from omega_edge.catalog import Catalog
from omega_edge.compression import BYTES, FLOORS, Encoding, cosines, decode, encode
from omega_edge.datasets import read_dataset
from omega_edge.memory import AgentMemory
from omega_edge.quantiser import Quantiser
from toolchain.build_bundle import embed_texts, embed_titles

LISTED = 10
QUERIES = 200
VIEWINGS, QUICK_VIEWINGS = 8_000, 1_500
"""What a household watches: at four viewings a day, five and a half years. They are those of the busiest households of
the data set, joined in time, because none of them watched for so long."""
FULL_STORE = Scale(1_000, 10_000, 500, 0, observes=1_000, texts=0, fresh_processes=0, trace_events=0)
QUICK_STORE = Scale(100, 1_200, 20, 0, observes=100, texts=0, fresh_processes=0, trace_events=0)
SMALLEST_SHARE = 0.01
MEASURED_FOR_LIMIT = ("held-out titles", "skill centroids")


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def line(metric: str, value: float, unit: str, limit: tuple[str, float] | None = None, **facts: object) -> dict:
    """One figure. limit: ("least" or "most", bound)."""
    made = {"metric": metric, "value": round(value, 5), "unit": unit, **facts}
    if limit is not None:
        made |= {"limit": limit[1], "met": value >= limit[1] if limit[0] == "least" else value <= limit[1]}
    return made


def cosine_lines(data: dict[str, np.ndarray], quantiser: Quantiser) -> Iterator[dict]:
    """compression_cosine: mean, 1 % and minimum of an encoding on each set, and the share of vectors at or above the
    floor, which are those that memory would hold so; one_bit also by way of pq48, as memory comes to it."""
    for encoding in Encoding:
        for name, vectors in data.items():
            ways = {"direct": vectors}
            if encoding is Encoding.ONE_BIT:
                ways["by way of pq48"] = decode(Encoding.PQ48, encode(Encoding.PQ48, vectors, quantiser), quantiser)
            for way, start in ways.items():
                decoded = decode(encoding, encode(encoding, start, quantiser), quantiser)
                found = cosines(decoded, vectors)
                limited = name in MEASURED_FOR_LIMIT and way == "direct"
                yield line(
                    "compression_cosine",
                    float(found.mean()),
                    "cosine",
                    ("least", FLOORS[encoding] - 1e-6) if limited else None,
                    tier=encoding.label,
                    data=name,
                    way=way,
                    vectors=len(vectors),
                    p1=round(float(np.quantile(found, SMALLEST_SHARE)), 5),
                    minimum=round(float(found.min()), 5),
                    share_at_floor=round(float((found >= FLOORS[encoding] - 1e-6).mean()), 4),
                )


def recall_lines(data: dict[str, np.ndarray], queries: np.ndarray, quantiser: Quantiser) -> Iterator[dict]:
    """utility: share of the nearest ten in float32 that are found where all vectors of a set have one encoding."""
    for name, vectors in data.items():
        true = nearest(queries, vectors)
        for encoding in Encoding:
            found = nearest(queries, decode(encoding, encode(encoding, vectors, quantiser), quantiser))
            shared = [len(set(left) & set(right)) for left, right in zip(true.tolist(), found.tolist(), strict=True)]
            recall = sum(shared) / true.size
            yield line("utility", recall, "recall at 10", tier=encoding.label, data=name, vectors=len(vectors))


def nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rows int64[q, 10] of the vectors nearest to each query."""
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :LISTED]


class Household:
    """Real viewing in a real memory, new or in this folder, with a codebook or without."""

    def __init__(
        self, folder: Path, catalog: Catalog, watched: tuple[Watched, ...], quantiser: Quantiser | None
    ) -> None:
        def in_catalog(content_id: str) -> tuple[np.ndarray, float] | None:
            row = catalog.row_of(content_id)
            return None if row < 0 else (catalog.codes[row], float(catalog.scale[row]))

        options = {
            "vector_lookup": lambda content_id, _title: in_catalog(content_id),
            "catalogue_lookup": in_catalog,
            "quantiser": quantiser,
        }
        written = process_io()[0]
        with AgentMemory(folder, lambda: watched[-1].at_ms, **options) as memory:
            for item in watched:
                memory.record(item.event())
            memory.checkpoint()
        self.bytes_submitted = process_io()[0] - written
        self.memory = AgentMemory(folder, lambda: watched[-1].at_ms, **options)
        self.memory.consolidate()
        self.skills = self.memory.skills()
        self.viewings = len(watched)
        self.memory.rank_skills(np.eye(1, 384, dtype=np.float32)[0], 1)
        self.stats = self.memory.stats()

    def centroids(self) -> np.ndarray:
        """float32[n, 384] of its skills."""
        return np.stack([np.frombuffer(skill.code, np.int8) * np.float32(skill.scale) for skill in self.skills])

    def resident_bytes(self, tier: str) -> int:
        """Bytes of a tier's vectors in RAM."""
        return sum(held["bytes"] for held in self.stats["vectors"][tier]["resident"].values())

    def nearest_episodes(self, query: np.ndarray) -> set[int]:
        """Sequences of the ten episodes nearest to a query."""
        return {found.episode.sequence for found in self.memory.retrieve(query, LISTED)}

    def nearest_skills(self, query: np.ndarray) -> set[int]:
        """Ids of the ten skills of the highest rank for a query."""
        return {found.skill.skill_id for found in self.memory.rank_skills(query, LISTED)}


def household_lines(name: str, plain: Household, tiered: Household, queries: np.ndarray) -> Iterator[dict]:
    """household_bytes before and after, what its searches lose, and what the tiers hold."""
    yield from _bytes_lines(name, plain, tiered)
    gathered = {"plain": len(plain.skills), "tiered": len(tiered.skills)}
    for search in ("nearest_episodes", "nearest_skills"):
        shared = [len(getattr(plain, search)(query) & getattr(tiered, search)(query)) for query in queries]
        facts = {"household": name, "tier": "as held", "data": search.replace("_", " "), "skills": gathered}
        yield line("utility", sum(shared) / (LISTED * len(queries)), "recall at 10", **facts)


def _bytes_lines(name: str, plain: Household, tiered: Household) -> Iterator[dict]:
    for tier in ("episodes", "skills"):
        before, after = plain.resident_bytes(tier), tiered.resident_bytes(tier)
        vectors = sum(held["vectors"] for held in tiered.stats["vectors"][tier]["resident"].values())
        facts = {
            "household": name,
            "of": tier,
            "vectors": vectors,
            "before": before,
            "float32": vectors * BYTES[Encoding.FLOAT32],
        }
        facts["held"] = {name: held["vectors"] for name, held in tiered.stats["vectors"][tier]["stored"].items()}
        yield line("household_bytes", after, "B in RAM", **facts)
    before, after = (home.stats["size_bytes"] for home in (plain, tiered))
    codebook = tiered.stats["vectors"]["codebook"]
    facts = {"household": name, "of": "store", "before": before}
    yield line("household_bytes", after, "B of store", **facts, of_it_codebook=codebook["bytes"] * codebook["kept"])
    total = [
        sum(held["bytes"] for tier in ("episodes", "skills") for held in home.stats["vectors"][tier]["stored"].values())
        for home in (plain, tiered)
    ]
    after = total[1] + codebook["bytes"] * codebook["kept"]
    yield line("household_bytes", after, "B of records", household=name, of="vectors and codebook", before=total[0])
    facts = {"household": name, "before": round(plain.bytes_submitted / plain.viewings, 1)}
    yield line("bytes_submitted_per_event", tiered.bytes_submitted / tiered.viewings, "B", **facts)


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """Every figure."""
    catalog = Catalog.open(options.catalog)
    if catalog.quantiser is None:
        raise SystemExit(f"--catalog: expected a bundle with a codebook, {options.catalog} has none; ./run builds one")
    dataset = read_dataset(options.data)
    cache = options.catalog.parent
    vectors = embed_titles(dataset.titles, options.model, cache, say)[0]
    chosen = held_out([title.content_id for title in dataset.titles])
    held = [title for title, out in zip(dataset.titles, chosen.tolist(), strict=True) if out]
    with tempfile.TemporaryDirectory(prefix="compression-") as folder:
        names = embed_texts([title.bare_name for title in held], options.model, Path(folder), "names", say)[0]
        homes = households(options, catalog, Path(folder))
        plain, _tiered = homes["new"]
        data = {"held-out titles": vectors[chosen], "skill centroids": plain.centroids(), "held-out bare names": names}
        yield from cosine_lines(data, catalog.quantiser)
        for encoding in Encoding:
            yield line("bytes_per_vector", BYTES[encoding], "B", tier=encoding.label)
        yield line("codebook_bytes", catalog.quantiser.nbytes, "B")
        queries = vectors[chosen][: QUERIES // 10 if options.quick else QUERIES]
        yield from recall_lines(data, queries, catalog.quantiser)
        for name, pair in homes.items():
            yield from household_lines(name, *pair, queries)
            for home in pair:
                home.memory.close()


def households(options: argparse.Namespace, catalog: Catalog, folder: Path) -> dict[str, tuple[Household, Household]]:
    """The same viewing in a new memory, and in one that is full; each without a codebook, and with it."""
    paths = {name: str(getattr(options, name).resolve()) for name in ("catalog", "model", "data")}
    full_store.build(asdict(Settings(**paths, work=str(folder), scale=QUICK_STORE if options.quick else FULL_STORE)))
    watched = read_viewing(options.data, QUICK_VIEWINGS if options.quick else VIEWINGS, 0).stored
    found = {}
    for name in ("new", "full"):
        pair = []
        for kind, quantiser in (("plain", None), ("tiered", catalog.quantiser)):
            say(f"{len(watched)} viewings in a {name} memory, {kind}")
            storage = folder / f"{name}-{kind}"
            if name == "full":
                shutil.copytree(folder / full_store.FULL, storage)
            pair.append(Household(storage, catalog, watched, quantiser))
        found[name] = tuple(pair)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and every limit met; 1: one missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.compression", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON line a figure")
    parser.add_argument("--quick", action="store_true", help="a short household and few queries; no figure to quote")
    parser.add_argument("--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle")
    parser.add_argument("--model", type=Path, default=ROOT / "build/model")
    parser.add_argument("--data", type=Path, default=ROOT / "bench/data/movietweetings-70k")
    options = parser.parse_args(arguments)
    machine, met = machine_facts(), True
    for made in measure(options):
        met = met and made.get("met", True)
        facts = {name: value for name, value in made.items() if name not in ("metric", "value", "unit")}
        words = f"{made['metric']:20} {made['value']:>12g} {made['unit']:12} {facts}"
        print(json.dumps(made | {"machine": machine}) if options.json else words, flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
