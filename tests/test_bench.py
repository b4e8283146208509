"""The measurements: every line carries a check that can fail, and the record of results grows."""

from __future__ import annotations

import dataclasses
import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.brain import append_result, main, table_row
from bench.machine import cached_share, drop_from_page_cache, file_system_of, process_io, resident_memory
from bench.metrics import EVENT_SPACING_SECONDS, UNITS, line
from bench.timing import percentile
from bench.truth import Truth, slot_of_context
from bench.viewing import Watched, context_at, read_viewing, respaced
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.config import BrainConfig
from omega_edge.protocol import Recommendation, ViewContext
from tests import codebooks
from tests.synthetic import NOW_MS, catalog_of, sections_of

PROJECT = Path(__file__).resolve().parent.parent
TITLES = 400
HOUSEHOLDS, VIEWINGS_EACH = 30, 16
HOUR_MS = 3_600_000
LISTED = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set over the titles of the synthetic catalogue, in the form of MovieTweetings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    titles = [f"t{row:03d}::A long winter in town {row} ({1990 + row % 30})::Drama|Family" for row in range(TITLES)]
    ratings = [
        f"{household}::t{row:03d}::{rng.integers(5, 11)}::{NOW_MS // 1000 + 977 * number + household}"
        for household in range(HOUSEHOLDS)
        for number, row in enumerate(rng.choice(TITLES, VIEWINGS_EACH, replace=False))
    ]
    (folder / "movies.dat").write_text("\n".join(titles) + "\n")
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic catalogue as a file."""
    path = tmp_path_factory.mktemp("catalog") / "synthetic.bundle"
    sections, meta = sections_of(TITLES)
    write_bundle(path, {**sections, **codebooks.sections()}, meta)
    return path


@pytest.fixture(scope="module")
def quick_run(
    tmp_path_factory: pytest.TempPathFactory, data: Path, bundle: Path, model_dir: Path
) -> tuple[list[dict], list[dict]]:
    """What one quick run of every metric printed, and what it recorded."""
    folder = tmp_path_factory.mktemp("bench")
    paths = {"--catalog": bundle, "--model": model_dir, "--data": data, "--work": folder / "work"}
    paths["--results"] = folder / "results.jsonl"
    command = [sys.executable, "-m", "bench.brain", "--json", "--quick"]
    command += [str(word) for option in paths.items() for word in option]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list((folder / "work").glob("run-*"))
    recorded = paths["--results"].read_text(encoding="utf-8")
    return tuple([json.loads(text) for text in output.splitlines()] for output in (run.stdout, recorded))


def test_a_quick_run_measures_every_metric_and_its_checks_pass(quick_run: tuple[list[dict], list[dict]]) -> None:
    printed, _recorded = quick_run
    assert {made["metric"] for made in printed} == set(UNITS)
    for made in printed:
        assert made["correct"] is True, made
        assert made["value"] > 0
        assert made["unit"] == UNITS[made["metric"]]
        assert made["machine"].keys() == {"cpu", "architecture", "cores", "kernel", "python"}
        assert made["quick"] is True


def test_open_is_measured_cold_and_warm_with_and_without_the_model(quick_run: tuple[list[dict], list[dict]]) -> None:
    opened = [made for made in quick_run[0] if made["metric"] == "open_ms"]
    assert [(made["model"], made["page_cache"]) for made in opened] == [
        (False, "cold"), (False, "warm"), (True, "cold"), (True, "warm"),
    ]  # fmt: skip
    imported = [made for made in quick_run[0] if made["metric"] == "import_and_open_ms"]
    for both, alone in zip(imported, opened, strict=True):
        assert alone["value"] < both["value"]
        assert both["interpreter_start_ms"] > 0


def test_the_trace_states_its_loss_window_and_what_stands_beside_it(quick_run: tuple[list[dict], list[dict]]) -> None:
    (traced,) = [made for made in quick_run[0] if made["metric"] == "submitted_bytes_per_event"]
    assert traced["loss_window_secs"] == 300 and traced["durable_per_event"]["loss_window_secs"] == 0
    for beside in ("durable_per_event", "new_store", "full_store"):
        assert traced[beside]["value"] > traced[beside]["before_the_checkpoint"] > 0


def test_results_are_recorded_with_commit_and_date(quick_run: tuple[list[dict], list[dict]]) -> None:
    printed, recorded = quick_run
    assert [{name: made[name] for name in printed[0]} for made in recorded[:1]] == printed[:1]
    assert len(recorded) == len(printed)
    for made in recorded:
        assert {"date", "commit", "dirty"} <= made.keys()


def test_appending_keeps_what_is_there(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    for value in (1.0, 2.0):
        append_result(results, line("bundle_mb", value, None), {"commit": "abc", "dirty": False})
    assert [json.loads(text)["value"] for text in results.read_text().splitlines()] == [1.0, 2.0]


def test_a_missing_artifact_is_named_and_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--quick", "--catalog", str(tmp_path / "none.bundle")]) == 2
    output = capsys.readouterr()
    assert "--catalog" in output.err and "none.bundle" in output.err
    assert output.out == ""


def test_a_line_says_whether_its_limit_is_met_and_what_is_wrong() -> None:
    assert line("open_ms", 300.0, None)["met"] is True
    missed = line("open_ms", 300.1, "the list differs")
    assert (missed["met"], missed["correct"], missed["fault"]) == (False, False, "the list differs")
    assert "MISSED" in table_row(missed) and "the list differs" in table_row(missed)
    assert "met" not in line("bundle_mb", 5.0, None)


def test_percentile_is_a_measured_value_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 1001)]
    assert percentile(values, 0.5) == 500.0
    assert percentile(values, 0.99) == 990.0
    assert percentile([7.0], 0.99) == 7.0


def test_viewing_is_joined_in_time_order_from_several_households(data: Path) -> None:
    viewing = read_viewing(data, stored=100, stream=40)
    joined = [*viewing.stored, *viewing.stream]
    assert (len(viewing.stored), len(viewing.stream)) == (100, 40)
    assert viewing.households > 1
    assert [watched.at_ms for watched in joined] == sorted(watched.at_ms for watched in joined)
    with pytest.raises(ValueError, match="expected at least"):
        read_viewing(data, stored=HOUSEHOLDS * VIEWINGS_EACH, stream=1)


def test_the_trace_takes_as_long_as_it_says() -> None:
    watched = [Watched("t001", "One", 1.0, NOW_MS)] * 300
    times = np.array([item.at_ms for item in respaced(watched, NOW_MS, seed=1)])
    assert times[-1] - NOW_MS == pytest.approx(300 * EVENT_SPACING_SECONDS * 1000, rel=1e-6)
    gaps = np.diff(times, prepend=NOW_MS)
    assert gaps.min() > 0 and gaps.std() > 1000 * EVENT_SPACING_SECONDS / 10


def test_the_kernel_counts_what_was_written_and_what_is_cached(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = process_io()[0]
    path.write_bytes(b"x" * 100_000)
    assert 100_000 <= process_io()[0] - before < 110_000
    assert cached_share([path]) == 1.0
    drop_from_page_cache([path])
    if file_system_of(tmp_path) not in ("tmpfs", "overlay"):
        assert cached_share([path]) < 1.0
    assert file_system_of(Path("/proc/self")) == "proc"


def test_resident_memory_grows_with_what_is_touched() -> None:
    size = 50_000_000
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as mapped:
        before = resident_memory()
        mapped.write(b"x" * size)
        after = resident_memory()
    # The bytes written from are freed again, unless the allocator keeps them.
    assert size / 1e6 - 1 < after["anonymous"] - before["anonymous"] < 2 * size / 1e6 + 1
    assert after["peak"] >= after["resident"] > after["anonymous"] > 0


@pytest.fixture(scope="module")
def listed(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, data: Path
) -> tuple[Truth, list[Recommendation], ViewContext, int, float]:
    """A real list of the brain after 90 viewings, and the truth that it is compared with."""
    viewing = read_viewing(data, stored=90, stream=0)
    now_ms = viewing.stored[-1].at_ms
    config = BrainConfig(tmp_path_factory.mktemp("store"), bundle, background_maintenance=False)
    truth = Truth(catalog_of(TITLES))
    with OmegaBrain.open(config, lambda: now_ms) as brain:
        for watched in viewing.stored:
            brain.observe(watched.event())
            slot = slot_of_context(context_at(watched.at_ms))
            truth.watched(watched.content_id, watched.watch_percentage >= 0.7, slot)
        context = context_at(now_ms, mood_hint="Horror")
        return truth, brain.recommend(context, k=LISTED), context, now_ms, config.diversity


def test_the_brains_list_and_reasons_agree_with_the_definitions(listed: tuple) -> None:
    truth, rows, context, now_ms, diversity = listed
    assert truth.fault_in_list(rows, LISTED, context, now_ms, diversity) is None
    assert truth.fault_in_reasons(rows, context) is None


def test_a_wrong_list_is_noticed(listed: tuple) -> None:
    truth, rows, context, now_ms, diversity = listed

    def fault(changed: list[Recommendation]) -> str | None:
        return truth.fault_in_list(changed, LISTED, context, now_ms, diversity)

    assert "not the best title left" in fault([rows[1], rows[0], *rows[2:]])
    assert "different titles" in fault([rows[0], rows[0], *rows[2:]])
    assert "different titles" in fault(rows[:-1])
    seen = dataclasses.replace(rows[0], content_id=truth.viewings[0].content_id)
    assert "watched" in fault([seen, *rows[1:]])
    assert "expected raw score" in fault([dataclasses.replace(rows[0], score=rows[0].score * 0.99), *rows[1:]])
    assert truth.fault_in_list(rows, LISTED, context_at(now_ms), now_ms, diversity) is not None


def test_a_wrong_reason_is_noticed(listed: tuple) -> None:
    truth, rows, context, _now_ms, _diversity = listed
    place = max(range(LISTED), key=lambda index: max((event.drop for event in rows[index].events), default=0.0))
    row, true_event = rows[place], rows[place].events[0]
    failed = next(viewing for viewing in truth.viewings[10:60] if not viewing.success)

    def fault(**changed: object) -> str | None:
        event = dataclasses.replace(true_event, **changed)
        changed_row = dataclasses.replace(row, events=(event,))
        return truth.fault_in_reasons([*rows[:place], changed_row, *rows[place + 1 :]], context)

    assert "drop" in fault(content_id=failed.content_id)
    assert "drop" in fault(drop=true_event.drop + 0.1)
    assert "not in the window" in fault(content_id="t-never-watched")
    assert "does not say" in fault(content_title="Another title")
    without = [*rows[:place], dataclasses.replace(row, events=()), *rows[place + 1 :]]
    assert "no event is named" in truth.fault_in_reasons(without, context)
