"""The bytes of syncs: a quick run over made-up homes measures every metric, and its checks can fail."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from bench import sync_bytes
from bench.sync_histories import Skills, lists, shared_set, watched_by_household
from bench.viewing import Watched
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.codes import set_hash
from omega_edge.datasets import read_dataset
from omega_edge.protocol import FinishedTitle, PatternDelta
from omega_edge.vectors import quantised
from tests import codebooks
from tests.synthetic import DAY_MS, NOW_MS, sections_of

TITLES, KINDS, HOUSEHOLDS = 240, 12, 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue whose titles are of twelve kinds, alike within each, with a codebook."""
    sections, meta = sections_of(TITLES)
    coded = [quantised(vector) for vector in codebooks.vectors(TITLES, seed=8)]
    sections |= {"codes": np.array([code for code, _ in coded]), "code_scale": np.array([s for _, s in coded], np.float32)}
    path = tmp_path_factory.mktemp("catalog") / "kinds.bundle"
    write_bundle(path, sections | codebooks.sections(), meta)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Households that each watch titles of two kinds in the evenings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    titles = [f"t{row:03d}::A long winter in town {row} ({1990 + row % 30})::Drama" for row in range(TITLES)]
    ratings = []
    for household in range(HOUSEHOLDS):
        for evening in range(24):
            kind = (household + evening % 2) % KINDS
            row = kind + KINDS * int(rng.integers(TITLES // KINDS))
            ratings.append(f"{household}::t{row:03d}::9::{(NOW_MS - evening * DAY_MS) // 1000 + household}")
    (folder / "movies.dat").write_text("\n".join(titles) + "\n")
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    return folder


def test_a_quick_run_measures_every_metric_and_its_checks_pass(data, bundle, tmp_path, capsys) -> None:
    results = tmp_path / "results.jsonl"
    options = ["--json", "--quick", "--catalog", str(bundle), "--data", str(data), "--results", str(results)]
    assert sync_bytes.main(options) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert {made["metric"] for made in lines} == {
        "upload_bytes", "download_bytes", "list_bytes_p50", "list_bytes_p99", "list_bytes_max", "page_bytes_max",
        "idle_sync_bytes",
    }  # fmt: skip
    assert all(made["correct"] and made["unit"] == "B" and made["value"] > 0 and made["quick"] for made in lines)
    assert {(made["patterns"], made["encoding"]) for made in lines if made["metric"] == "upload_bytes"} == {
        (20, "references"), (20, "codes"),
    }  # fmt: skip
    assert {made["mode"] for made in lines if made["metric"] == "idle_sync_bytes"} == {"receive", "titles", "with_device"}
    assert all(made["met"] for made in lines if made["metric"] == "idle_sync_bytes")
    recorded = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    assert [{name: made[name] for name in lines[0]} for made in recorded[:1]] == lines[:1] and len(recorded) == len(lines)


def test_what_comes_back_otherwise_is_not_correct(bundle) -> None:
    with Catalog.open(bundle) as catalog:
        finished = (FinishedTitle("t001", NOW_MS),)
        households = [[Watched(f"t{12 * place:03d}", "A title", 0.9, NOW_MS + place * DAY_MS) for place in range(9)]]
        patterns = Skills.of_homes(households, bundle, 1, 0).patterns
        assert patterns == shared_set(households[0], bundle) and patterns[0].sample_count == 9
        right = PatternDelta(1, finished, patterns, shared_set_hash=set_hash(patterns))
        wrong = PatternDelta(1, finished, patterns, shared_set_hash=set_hash(patterns) ^ 1)
        assert sync_bytes.sent_and_received(right, Random(1), catalog)[1]
        assert not sync_bytes.sent_and_received(wrong, Random(1), catalog)[1]


def test_lists_end_with_their_interval(data) -> None:
    households = watched_by_household(read_dataset(data))
    assert [len(viewings) for viewings in households] == [24] * HOUSEHOLDS
    evening = [Watched("a", "A", share, at) for share, at in ((0.9, 1), (0.2, 2), (0.8, 299_999), (0.7, 300_000), (0.9, 900_000))]
    found = [[title.finished_at for title in page] for page in lists([evening], 300_000)]
    assert found == [[1, 299_999], [300_000], [900_000]]


def test_drawn_patterns_are_one_homes_set(bundle) -> None:
    viewings = [Watched(f"t{12 * place:03d}", "A title", 0.9, NOW_MS + place * DAY_MS) for place in range(9)]
    skills = Skills.of_homes([viewings], bundle, 1, 0)
    drawn = skills.drawn(20, Random(3))
    ids = [pattern.id for pattern in drawn]
    assert len(drawn) == 20 and ids == sorted(set(ids))


def test_a_missing_bundle_is_said(tmp_path, capsys) -> None:
    assert sync_bytes.main(["--catalog", str(tmp_path / "none.bundle")]) == 2
    assert "--catalog: expected" in capsys.readouterr().err
