"""The bundle build from a small data set with the real text model: content, determinism, cache, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from omega_edge.catalog import Catalog, lineage_of
from omega_edge.datasets import DatasetTitle, read_dataset
from omega_edge.errors import DatasetError, ModelUnavailable
from omega_edge.inference import InferenceEngine
from omega_edge.protocol import MAX_TIMESTAMP_MS
from omega_edge.ranking import FEATURES
from toolchain.build_bundle import build, genre_names
from toolchain.title_rules import age_rating, availability

PROJECT = Path(__file__).resolve().parent.parent
ROW_BUDGET_BYTES = 100_000
NAMES = ("Amélie (2001)", "Face::Off (1997)", "Untitled", "千と千尋の神隠し (2001)", "The News (2012)", "Ōkami (1972)")
GENRES = ("Comedy|Romance", "Action|Thriller", "", "Animation|Family", "News", "Drama")


def write_data(folder: Path, genres: tuple[str, ...] = GENRES) -> Path:
    """Twelve titles, 600 ratings of 40 households; one rating line is bad. A licence lies beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    names = [*NAMES, *(f"Title {index} ({1990 + index})" for index in range(6))]
    movies = [f"{index:07d}::{name}::{genres[index % len(genres)]}" for index, name in enumerate(names)]
    ratings = [
        f"{rng.integers(40)}::{rng.integers(12):07d}::{rng.integers(11)}::{1_362_000_000 + 3000 * index}"
        for index in range(600)
    ]
    ratings.insert(99, "7::0000001::eleven::1362000000")
    (folder / "movies.dat").write_text("\n".join(movies) + "\n", encoding="utf-8")
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n", encoding="utf-8")
    (folder / "LICENSE").write_text("You may.\n", encoding="utf-8")
    return folder


def run_tool(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "toolchain.build_bundle", *map(str, arguments)],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def built(data, model_dir, tmp_path_factory) -> tuple[Path, dict, str]:
    """(bundle, summary, progress) of a run of the tool itself."""
    out = tmp_path_factory.mktemp("built") / "new folder" / "small.bundle"
    done = run_tool("--data", data, "--model", model_dir, "--out", out, "--json", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


def test_the_bundle_holds_the_data_set(built, data):
    out, summary, _ = built
    dataset = read_dataset(data)
    with Catalog.open(out) as catalog:
        assert [catalog.name(row) for row in range(12)] == [title.name for title in dataset.titles]
        assert [catalog.content_id(row) for row in range(12)] == [title.content_id for title in dataset.titles]
        assert [catalog.title(row).year for row in range(4)] == [2001, 1997, None, 2001]
        assert [set(catalog.title(row).genres) for row in range(4)] == [set(title.genres) for title in dataset.titles[:4]]
        assert catalog.genres == tuple(sorted({"Comedy", "Romance", "Action", "Thriller", "Animation", "Family", "News", "Drama"}))
        assert catalog.lineage == lineage_of([title.content_id for title in dataset.titles])
        assert catalog.built_at == dataset.events.timestamp[-1]
        assert catalog.fusion.features == FEATURES and catalog.rows is not None
        assert summary["titles"] == 12 and summary["bytes"] == out.stat().st_size


def test_vectors_are_the_model_s_own(built, model_dir):
    """Cosine of the stored code to a fresh embedding of the documented text; 8 bits lose less than .002."""
    texts = {0: "Amélie (2001): Comedy, Romance", 1: "Face::Off (1997): Action, Thriller", 2: "Untitled"}
    with Catalog.open(built[0]) as catalog, InferenceEngine(model_dir) as engine:
        assert catalog.meta["embedding_model"] == engine.model_version
        for row, text in texts.items():
            stored = catalog.codes[row] * catalog.scale[row]
            assert np.linalg.norm(stored) == pytest.approx(1.0, abs=1e-5)
            assert float(stored @ engine.embed(text)) > 0.998


def test_demonstration_values_are_there_and_called_so(built):
    with Catalog.open(built[0]) as catalog:
        untitled, news = catalog.title(2), catalog.title(4)
        assert (untitled.age_rating, untitled.available_from, untitled.available_until) == (None, 0, MAX_TIMESTAMP_MS)
        assert news.available_until == datetime(2014, 1, 1, tzinfo=UTC).timestamp() * 1000
        assert set(catalog.meta["demonstration_values"]) == {"age_ratings", "availability"}
        for text in catalog.meta["demonstration_values"].values():
            assert "derived from" in text and "; not a r" in text


def test_progress_faults_and_summary(built):
    _, summary, progress = built
    assert "left out ratings.dat line 100: expected a rating, got 'eleven'" in progress
    assert summary["malformed"] == ["ratings.dat line 100: expected a rating, got 'eleven'"]
    assert "embedding titles: 0 of 12" in progress
    assert summary["section_bytes"]["codes"] == 12 * 384
    assert {"popularity", "rows", "fusion"} <= summary["held_out"]["lists"].keys()
    assert summary["peak_resident_mb"] > 0 and summary["build_seconds"] > 0


def test_the_licence_travels_inside(built):
    assert b"You may.\n" in built[0].read_bytes()


def test_same_input_same_bytes_in_another_process_and_place(built, data, model_dir, tmp_path):
    out = tmp_path / "again.bundle"
    done = run_tool("--data", data, "--model", model_dir, "--out", out, PYTHONHASHSEED="3", OPENBLAS_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == built[0].read_bytes()
    assert "NDCG@10" in done.stdout and str(out) in done.stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.bundle", "title-vectors.cache"]


def progress_of(data: Path, model_dir: Path, out: Path) -> list[str]:
    lines: list[str] = []
    build(data, model_dir, out, 1, ROW_BUDGET_BYTES, lines.append)
    return [line for line in lines if line.startswith("embedding")]


def test_vectors_are_computed_once_and_again_when_their_cache_is_damaged(data, model_dir, tmp_path):
    out, cache = tmp_path / "a.bundle", tmp_path / "title-vectors.cache"
    assert progress_of(data, model_dir, out) == ["embedding titles: 0 of 12"]
    first, vectors = out.read_bytes(), cache.read_bytes()
    assert progress_of(data, model_dir, out) == []
    assert out.read_bytes() == first
    for damaged in (vectors[:-1], b"", vectors[:100] + bytes([vectors[100] ^ 1]) + vectors[101:], vectors[:32]):
        cache.write_bytes(damaged)
        assert progress_of(data, model_dir, out) == ["embedding titles: 0 of 12"]
        assert out.read_bytes() == first and cache.read_bytes() == vectors


def test_a_catalogue_without_any_genre(model_dir, tmp_path):
    data = write_data(tmp_path / "data", genres=("",))
    build(data, model_dir, tmp_path / "bare.bundle", 1, ROW_BUDGET_BYTES, lambda what: None)
    with Catalog.open(tmp_path / "bare.bundle") as catalog:
        assert catalog.genres == () and (catalog.age_ratings == 255).all()


def test_movielens_builds_too(model_dir, tmp_path):
    data = tmp_path / "ml"
    data.mkdir()
    titles = [f'{index},"Title, The {index} (1995)",Comedy|Drama' for index in range(8)]
    (data / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]), encoding="utf-8")
    ratings = [f"{index % 9},{index % 8},{1 + index % 5},{964_000_000 + index * 5000}" for index in range(200)]
    (data / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]), encoding="utf-8")
    build(data, model_dir, tmp_path / "ml.bundle", 3, ROW_BUDGET_BYTES, lambda what: None)
    with Catalog.open(tmp_path / "ml.bundle") as catalog:
        assert catalog.name(0) == "Title, The 0 (1995)" and catalog.version == 3
        assert catalog.meta["name"] == "MovieLens (ml)"


def test_no_model_and_no_data_are_errors_and_leave_no_bundle(data, model_dir, tmp_path):
    with pytest.raises(ModelUnavailable):
        build(data, tmp_path / "absent", tmp_path / "x.bundle", 1, ROW_BUDGET_BYTES, lambda what: None)
    with pytest.raises(DatasetError):
        build(tmp_path / "absent", model_dir, tmp_path / "x.bundle", 1, ROW_BUDGET_BYTES, lambda what: None)
    done = run_tool("--data", tmp_path / "absent", "--model", model_dir, "--out", tmp_path / "x.bundle")
    assert done.returncode == 1 and "expected a directory with a data set" in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_of_more_than_64_genres_the_most_frequent_stay():
    titles = [DatasetTitle(str(index), "x", None, (f"g{index:02d}", "common")) for index in range(70)]
    titles.append(DatasetTitle("last", "x", None, ("g69",)))
    names = genre_names(titles)
    assert len(names) == 64 and list(names) == sorted(names) and {"common", "g69", "g00"} <= set(names)


@pytest.mark.parametrize(
    ("genres", "expected"),
    [
        ((), None),
        (("Adult", "Drama"), 18),
        (("Horror",), 16),
        (("Thriller", "War"), 16),
        (("Horror", "Family", "Animation"), 12),
        (("Family", "Crime"), 12),
        (("Animation", "Mystery"), 12),
        (("Family", "Animation", "Comedy"), 0),
        (("Children", "Adventure"), 0),
        (("Family", "Drama"), 6),
        (("Animation", "Short", "Comedy"), 6),
        (("Animation", "Drama"), 12),
        (("Documentary", "Music"), 6),
        (("Comedy",), 12),
        (("Something new",), 12),
    ],
)
def test_age_ratings(genres, expected):
    assert age_rating(genres) == expected


def test_availability():
    new_year_2013, new_year_2015 = 1_356_998_400_000, 1_420_070_400_000
    assert availability(("Drama",), 2013) == (new_year_2013, MAX_TIMESTAMP_MS)
    assert availability(("Comedy", "Talk-Show"), 2013) == (new_year_2013, new_year_2015)
    assert availability(("News",), None) == (0, MAX_TIMESTAMP_MS)
    assert availability(("Drama",), 1925) == (0, MAX_TIMESTAMP_MS)
    assert availability(("News",), 1925) == (0, 0)
