"""Builds a catalogue bundle from a data set of ratings.

    python -m toolchain.build_bundle --data DIR --model DIR --out FILE [--row-budget-bytes N] [--json]

Same data, model and options make the same bytes on one type of CPU: the build runs with one thread for linear algebra
(it starts itself anew to get that) and reads no clock; the bundle's time is that of the data's last event. Title
vectors are kept beside the output, keyed by the model's version and the text, so that a second build need not compute
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cloud.model import EarlierWork, Model, ModelSettings, TitleData, train
from cloud.quantiser_fit import MINIMUM_VECTORS, held_out, train_quantiser
from omega_edge._simd import kernels
from omega_edge.catalog import UNRATED, Title, lineage_of, title_sections, write_bundle
from omega_edge.catalog_checks import MAX_GENRES
from omega_edge.datasets import Dataset, DatasetTitle, read_dataset
from omega_edge.errors import OmegaError
from omega_edge.inference import InferenceEngine
from omega_edge.protocol import EMBEDDING_DIMENSIONS, title_embedding_text
from toolchain.title_rules import RULES, age_rating, availability

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
NAMES_OF_ONE_IN = 4
Progress = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 after an error on stderr."""
    options = _parser().parse_args(arguments)
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):
        _restart_with_one_thread(sys.argv[1:] if arguments is None else list(arguments))
    started = time.monotonic()

    def progress(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", file=sys.stderr, flush=True)

    try:
        summary = build(
            options.data, options.model, options.out, options.bundle_version, options.row_budget_bytes, progress
        )
    except (OmegaError, OSError) as error:
        print(f"build_bundle: {error}", file=sys.stderr)
        return 1
    summary["build_seconds"] = round(time.monotonic() - started, 1)
    summary["peak_resident_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(summary) if options.json else _in_words(summary))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toolchain.build_bundle", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="directory of a data set (see omega_edge.datasets)")
    parser.add_argument("--model", required=True, type=Path, help="directory that toolchain.export_model wrote")
    parser.add_argument("--out", required=True, type=Path, help="bundle file to write")
    parser.add_argument("--bundle-version", type=int, default=1, help="number of this bundle in its lineage (1)")
    parser.add_argument(
        "--row-budget-bytes",
        type=int,
        default=ModelSettings().row_budget_bytes,
        help="room for the item-item rows (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _restart_with_one_thread(arguments: list[str]) -> None:
    """Replace this process by one in which linear algebra has a single thread; numpy reads that only at import."""
    sys.stdout.flush()
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    os.execve(sys.executable, [sys.executable, "-m", "toolchain.build_bundle", *arguments], environment)


def build(
    data: Path, model_dir: Path, out: Path, bundle_version: int, row_budget_bytes: int, progress: Progress
) -> dict:
    """Build a bundle file and return a summary: counts, bytes by section, quality on held-back time.

    Raises DatasetError, ModelUnavailable or CatalogError naming the fault, OSError if the disk refuses.
    """
    dataset = read_dataset(data, lambda what, lines: progress(f"reading {what}: {lines} lines"))
    for fault in dataset.malformed:
        progress(f"left out {fault.file} line {fault.line}: {fault.why}")
    out.parent.mkdir(parents=True, exist_ok=True)
    titles, model_version = describe_titles(dataset, model_dir, out.parent, progress)
    settings = ModelSettings(row_budget_bytes=row_budget_bytes)
    sections, model = write_trained(out, dataset, titles, model_version, settings, bundle_version, progress)
    return _summary(out, dataset, sections, model)


def describe_titles(
    dataset: Dataset, model_dir: Path, cache_directory: Path, progress: Progress
) -> tuple[TitleData, str]:
    """What a bundle says of its titles whatever was watched, and the version of the text model that it comes from."""
    genres = genre_names(dataset.titles)
    vectors, model_version = embed_titles(dataset.titles, model_dir, cache_directory, progress)
    codes = np.empty(vectors.shape, np.int8)
    scale = np.empty(len(vectors), np.float32)
    kernels.quantise(vectors, codes, scale)
    sections = title_sections([catalog_title(title) for title in dataset.titles], genres)
    sections |= {"codes": codes, "code_scale": scale}
    sections |= _codebook(dataset.titles, vectors, model_dir, cache_directory, progress)
    return TitleData(sections, genres, lineage_of([title.content_id for title in dataset.titles])), model_version


def write_trained(
    out: Path,
    dataset: Dataset,
    titles: TitleData,
    model_version: str,
    settings: ModelSettings,
    bundle_version: int,
    progress: Progress,
    earlier: EarlierWork | None = None,
) -> tuple[dict[str, np.ndarray], Model]:
    """Train on a data set's events and write the bundle; returns its sections and what was learned. earlier: of runs on
    shorter beginnings of the same events."""
    model = train(titles, dataset.events, settings, progress, earlier)
    sections = titles.sections | model.sections
    if dataset.licence is not None:
        sections["licence"] = np.frombuffer(dataset.licence.encode("utf-8"), np.uint8)
    write_bundle(out, sections, _meta(dataset, titles, model, model_version, bundle_version))
    return sections, model


def _codebook(
    titles: Sequence[DatasetTitle], vectors: np.ndarray, model_dir: Path, cache_directory: Path, progress: Progress
) -> dict[str, np.ndarray]:
    """The sections of the codebook of coarse vectors, trained on the titles that are not held out.

    A title outside the catalogue is embedded by the name that the television is told, without genres, so the names
    alone of a quarter of the titles are trained on too.
    """
    trained = ~held_out([title.content_id for title in titles])
    named = [titles[row] for row in np.flatnonzero(trained)[::NAMES_OF_ONE_IN].tolist()]
    if int(trained.sum()) + len(named) < MINIMUM_VECTORS:
        return train_quantiser(vectors[trained], progress)
    names = embed_texts([title.bare_name for title in named], model_dir, cache_directory, "names", progress)[0]
    return train_quantiser(np.concatenate([vectors[trained], names]), progress)


def genre_names(titles: Sequence[DatasetTitle]) -> tuple[str, ...]:
    """The genres of a bundle, in alphabetical order; of more than 64, the most frequent."""
    counts = Counter(genre for title in titles for genre in title.genres)
    return tuple(sorted(sorted(counts, key=lambda genre: (-counts[genre], genre))[:MAX_GENRES]))


def catalog_title(title: DatasetTitle) -> Title:
    """A title of the data set as the catalogue has it, with age rating and availability by rule."""
    available_from, available_until = availability(title.genres, title.year)
    return Title(
        content_id=title.content_id,
        name=title.name,
        year=title.year,
        genres=title.genres,
        age_rating=age_rating(title.genres),
        available_from=available_from,
        available_until=available_until,
    )


def _meta(dataset: Dataset, titles: TitleData, model: Model, model_version: str, bundle_version: int) -> dict:
    return model.meta | {
        "name": dataset.name,
        "version": bundle_version,
        "built_at": int(dataset.events.timestamp[-1]),
        "lineage": titles.lineage,
        "genres": list(titles.genres),
        "embedding_model": model_version,
        "data": {
            "titles": len(dataset.titles),
            "households": len(np.unique(dataset.events.household)),
            "events": len(dataset.events),
            "malformed_lines": len(dataset.malformed),
        },
        "demonstration_values": RULES,
    }


def embed_titles(
    titles: Sequence[DatasetTitle], model_dir: Path, cache_directory: Path, progress: Progress
) -> tuple[np.ndarray, str]:
    """(unit vectors float32[n, 384], version of the model). What is in the cache is not computed again."""
    texts = [title_embedding_text(title.bare_name, title.year, title.genres) for title in titles]
    return embed_texts(texts, model_dir, cache_directory, "titles", progress)


def embed_texts(
    texts: Sequence[str], model_dir: Path, cache_directory: Path, what: str, progress: Progress
) -> tuple[np.ndarray, str]:
    """The same for texts; `what` they are is for the progress."""
    with InferenceEngine(model_dir, cache_entries=0) as engine:
        cache = _EmbeddingCache(cache_directory, engine.model_version)
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        for done, text in enumerate(missing):
            if done % 1000 == 0:
                progress(f"embedding {what}: {done} of {len(missing)}")
            cache.add(text, engine.embed_uncached(text))
        if missing:
            cache.save()
        return np.stack([cache.vector(text) for text in texts]), engine.model_version


class _EmbeddingCache:
    """Vectors by text in one file: SHA-256 of all that follows, SHA-256 of the model's version, and for each text its
    SHA-256 and float32[384]. A file that is damaged or of another model counts as empty: it is only a cache."""

    _RECORD = np.dtype([("key", "V32"), ("vector", "<f4", EMBEDDING_DIMENSIONS)])

    def __init__(self, directory: Path, model_version: str) -> None:
        self._path = directory / "title-vectors.cache"
        self._model = hashlib.sha256(model_version.encode()).digest()
        self._vectors: dict[bytes, np.ndarray] = {}
        content = self._path.read_bytes() if self._path.is_file() else b""
        if content[:32] == hashlib.sha256(content[32:]).digest() and content[32:64] == self._model:
            for record in np.frombuffer(content[64:], self._RECORD):
                self._vectors[record["key"].tobytes()] = record["vector"]

    def __contains__(self, text: str) -> bool:
        return hashlib.sha256(text.encode()).digest() in self._vectors

    def add(self, text: str, vector: np.ndarray) -> None:
        self._vectors[hashlib.sha256(text.encode()).digest()] = vector

    def vector(self, text: str) -> np.ndarray:
        return self._vectors[hashlib.sha256(text.encode()).digest()]

    def save(self) -> None:
        body = self._model + b"".join(key + vector.tobytes() for key, vector in self._vectors.items())
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(hashlib.sha256(body).digest() + body)
        os.replace(temporary, self._path)


def _summary(out: Path, dataset: Dataset, sections: dict[str, np.ndarray], model: Model) -> dict:
    return {
        "bundle": str(out),
        "bytes": out.stat().st_size,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "section_bytes": {name: sections[name].nbytes for name in sorted(sections)},
        "titles": len(dataset.titles),
        "households": len(dataset.households),
        "events": len(dataset.events),
        "malformed": [f"{fault.file} line {fault.line}: {fault.why}" for fault in dataset.malformed],
        "as_of": datetime.fromtimestamp(int(dataset.events.timestamp[-1]) / 1000, UTC).isoformat(),
        "titles_with_rows": int(np.count_nonzero(np.diff(sections["row_offsets"]))),
        "row_entries": len(sections["row_columns"]),
        "unrated_titles": int(np.count_nonzero(sections["age_ratings"] == UNRATED)),
        "held_out": model.report,
    }


def _in_words(summary: dict) -> str:
    held_out = summary["held_out"]
    lists = held_out.get("lists", {})
    heading = f"held-back viewings ({held_out.get('queries', 0):,})"
    lines = [
        f"{summary['bundle']}: {summary['bytes']:,} bytes",
        f"{summary['titles']:,} titles, {summary['events']:,} viewings of {summary['households']:,} households",
        f"viewings up to {summary['as_of']}; {len(summary['malformed'])} malformed lines left out",
        f"rows: {summary['titles_with_rows']:,} titles, {summary['row_entries']:,} entries",
        f"{heading:32} NDCG@10  Recall@10",
    ]
    lines += [f"  {name:30} {row['ndcg_at_10']:.4f}   {row['recall_at_10']:.4f}" for name, row in lists.items()]
    lines.append(f"built in {summary['build_seconds']} s, peak {summary['peak_resident_mb']} MB resident")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
