"""The search measurements: a quick run of the real thing, and the arithmetic of recall, ratios, limits and the plot."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.brain import table_row
from bench.metrics import judged
from bench.search import lines
from bench.search.__main__ import main, parse_arguments
from bench.search.data import best_rows, load, make, real_rows, unit
from bench.search.environment import WHEELS, EnvironmentFailed, locked, run
from bench.search.lines import Case, Measured, choose
from bench.search.method import best_of, lowest_of
from bench.search.plot import BOTTOM, FLOOR, HEIGHT, TOP, Box, boxes_around, height_of, place_labels, svg
from bench.search.process import METHODS, recall
from bench.search.run import Plan, run_case
from bench.search.worker import Worker, WorkerFailed
from tests import reference

PROJECT = Path(__file__).resolve().parent.parent
MACHINE = {"cpu": "A processor & more", "architecture": "x86_64"}


def measured(name: str, rounds: list[list[int]], recall_at_50: float = 0.993, **facts: object) -> Measured:
    """A method as a process would have reported it, with the nanoseconds of its rounds."""
    families = {key: method.family for key, method in METHODS.items()}
    point = {"effort": {}, "recall_at_50": recall_at_50, "median_us": rounds[0][0] / 1e3, "equals_codes": True}
    known = {"version": "1", "instruction_set": "a", "build_seconds": 1.0, "load_ms": 2.0, "view_ms": 0.5}
    known |= {"file_bytes": 396_000, "memory_bytes": 400_000, "points": [point]}
    return Measured(name, families[name], {}, known | facts, 0, rounds)


def case_of(*methods: Measured, rows: int = 10_000, data: str = "real") -> Case:
    facts = {"real_rows": rows, "jittered_rows": 0}
    return Case(data, rows, facts, {method.name: method for method in methods}, {}, {}, [1.0, 1.5])


def by_metric(made: list[dict], metric: str, **wanted: object) -> dict:
    (found,) = [line for line in made if line["metric"] == metric and wanted.items() <= line.items()]
    return found


# A quick run, ours and numpy.


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> tuple[list[dict], list[dict], Path]:
    """The lines that a quick run printed and recorded, and its work folder."""
    folder = tmp_path_factory.mktemp("search")
    command = [sys.executable, "-m", "bench.search", "--json", "--quick", "--data", "real", "--model", str(model_dir)]
    command += ["--work", str(folder), "--results", str(folder / "results.jsonl")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = (folder / "results.jsonl").read_text(encoding="utf-8")
    return *([json.loads(text) for text in output.splitlines()] for output in (done.stdout, recorded)), folder


def test_a_quick_run_measures_every_mode_of_ours_and_checks_it(quick_run: tuple) -> None:
    printed, recorded, _folder = quick_run
    assert {made["method"] for made in printed if made["metric"] == "search_us"} == {
        name for name, method in METHODS.items() if method.family == "ours" or name == "numpy float32"
    }
    metrics = {made["metric"] for made in printed}
    assert {"recall_at_50", "read_loop_share", "call_overhead_us", "ranking_over_search", "ranking_over_numpy"} <= metrics
    for made in printed:
        assert made["correct"] is True, made
        assert made["quick"] is True and made["value"] > 0 and made["machine"]["cpu"]
    assert len(recorded) == len(printed) and recorded[0].keys() >= {"commit", "date"}


def test_a_quick_run_leaves_data_and_a_plot_and_nothing_else(quick_run: tuple) -> None:
    folder = quick_run[2]
    assert sorted(path.suffix or path.name.split("-")[0] for path in folder.iterdir()) == [
        ".cache", ".jsonl", ".svg", "data",
    ]  # fmt: skip
    root = ElementTree.parse(next(folder.glob("*.svg"))).getroot()
    assert any("omega exact" in (node.text or "") for node in root.iter())


def test_the_answers_on_disk_are_those_of_the_specification(quick_run: tuple) -> None:
    data = load(next(quick_run[2].glob("data-*")))
    for number in range(3):
        asked = data.query_codes[number], data.query_scale[number]
        rows, _ = reference.search(np.array(data.codes), np.array(data.scale), *asked, None, 50)
        assert data.code_truth[number].tolist() == rows.tolist()
        exact = data.base.astype(np.float64) @ data.queries[number]
        assert set(data.truth[number].tolist()) == set(np.argsort(-exact)[:50].tolist())


# Arguments.


@pytest.mark.parametrize("wrong", [["--size", "5k"], ["--sizes", "1k"], ["--data", "other"], ["more"], ["--qui"]])
def test_unknown_options_are_errors(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err or wrong[0] == "--qui"


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--quick", "--model", str(tmp_path / "none")]) == 2
    assert "--model" in capsys.readouterr().err


# Data.


def test_recall_is_the_share_of_the_true_rows() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall([np.array([4, 3, 2, 1]), np.array([5, 6, 9, 10])], truth) == 0.75
    assert recall([np.array([1]), np.array([9])], truth) == 0.125
    with pytest.raises(ValueError, match="longer"):
        recall([np.array([1])], truth)


def test_best_rows_put_equal_scores_in_order_of_rows() -> None:
    table = np.zeros((200, 4), np.float32)
    table[:, 0] = 1
    table[150, 0] = 2
    assert best_rows(table, None, np.eye(1, 4, dtype=np.float32), None)[0].tolist() == [150, *range(49)]


def test_the_tails_of_numpy_keep_the_best_in_order() -> None:
    scores = np.random.default_rng(0).permutation(200).astype(np.float32)
    assert scores[best_of(scores)].tolist() == list(range(199, 149, -1))
    assert scores[lowest_of(scores)].tolist() == list(range(50))
    assert best_of(np.array([1.0, 3.0, 2.0])).tolist() == [1, 2, 0]


def test_real_rows_hold_the_queries_out_and_say_how_many_are_made() -> None:
    titles = unit(np.random.default_rng(0).standard_normal((60, 384), np.float32))
    base, asked, facts = real_rows(titles, 100, 20, np.random.default_rng(1))
    assert base.shape == (100, 384) and facts == {"real_rows": 40, "jittered_rows": 60}
    assert not {row.tobytes() for row in base} & {row.tobytes() for row in asked}
    assert {row.tobytes() for row in base[:40]} < {row.tobytes() for row in titles}
    assert np.allclose(np.linalg.norm(base, axis=1), 1)
    fewer, same, _ = real_rows(titles, 10, 20, np.random.default_rng(1))
    assert len(fewer) == 10 and np.array_equal(same, asked)


def test_data_are_the_same_however_often_they_are_made(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, "uniform", 60, lambda: None, 3, "") for name in "ab"]
    first, second = (load(folder) for folder in folders)
    assert first.facts == second.facts and np.array_equal(first.code_truth, second.code_truth)
    before = (folders[0] / "base.npy").stat().st_mtime_ns
    make(tmp_path / "a", "uniform", 60, lambda: None, 3, "")
    assert (folders[0] / "base.npy").stat().st_mtime_ns == before


# Choices, ratios, limits.


def test_the_fastest_effort_that_reaches_the_recall_is_chosen() -> None:
    points = [
        {"recall_at_50": 0.95, "median_us": 10.0},
        {"recall_at_50": 0.995, "median_us": 40.0},
        {"recall_at_50": 0.99, "median_us": 30.0},
    ]
    assert choose(points, 0.99) == 2
    assert choose(points, 0.996) == 1
    assert choose(points[:1], 0.99) == 0


def test_a_ratio_compares_what_ran_in_the_same_round() -> None:
    # The machine slowed down threefold in the last two rounds: both methods did.
    ours = measured("omega exact", [[100, 110], [300], [330]])
    peer = measured("faiss SQ8", [[200, 220], [600], [660]])
    assert lines.ratio(ours, peer) == 0.5


def test_the_exact_ratio_takes_the_better_mode_and_the_best_peer_that_counts() -> None:
    case = case_of(
        measured("omega exact", [[90]]),
        measured("omega halves", [[60]]),
        measured("faiss SQ8", [[100]], 0.99),
        measured("usearch Index exact", [[50]], 0.95),  # too little recall to be compared with
    )
    made = by_metric(lines.comparison_lines(case, True), "exact_ratio")
    assert (made["value"], made["mode"], made["peer"]) == (0.6, "omega halves", "faiss SQ8")
    assert made["limit"] == 0.60 and made["met"] is True and made["correct"] is True


def test_wrong_rows_of_an_exact_mode_are_not_correct() -> None:
    wrong = measured("omega exact", [[90]])
    wrong.point["equals_codes"] = False
    case = case_of(wrong, measured("faiss SQ8", [[100]]))
    assert by_metric(lines.method_lines(case), "search_us", method="omega exact")["correct"] is False
    assert by_metric(lines.comparison_lines(case, True), "exact_ratio")["correct"] is False


def test_a_mode_that_does_not_reach_its_recall_is_not_correct() -> None:
    case = case_of(measured("omega two-stage", [[30]], 0.989), measured("omega two-stage + side file", [[40]], 0.9985))
    for mode, least in (("omega two-stage", "0.99"), ("omega two-stage + side file", "0.999")):
        made = by_metric(lines.recall_lines(case), "recall_at_50", mode=mode)
        assert made["correct"] is False and f"reaches recall {least}:" in made["fault"]


def test_a_method_that_failed_is_named_in_every_comparison_with_it() -> None:
    case = case_of(measured("omega exact", [[90]]), measured("omega two-stage", [[30]]))
    case.faults["faiss RaBitQ + SQ8"] = "ended with code 1: no such wheel"
    failed = by_metric(lines.method_lines(case), "search_us", method="faiss RaBitQ + SQ8")
    assert failed["value"] is None and failed["correct"] is False
    made = by_metric(lines.comparison_lines(case, True), "two_stage_ratio")
    assert made["correct"] is False and "no such wheel" in made["fault"]
    assert "none" in table_row(failed)


def test_a_mode_that_the_build_lacks_is_a_line_that_is_not_correct() -> None:
    case = case_of(measured("omega exact", [[90]]))
    case.faults["omega two-stage"] = "ModeMissing"
    made = by_metric(lines.recall_lines(case), "recall_at_50", mode="omega two-stage")
    assert made["value"] is None and made["correct"] is False and "ModeMissing" in made["fault"]


def test_limits_are_the_highest_or_the_lowest_that_is_met() -> None:
    assert judged("a", 0.35, "", None, 0.35)["met"] is True
    assert judged("a", 0.36, "", None, 0.35)["met"] is False
    assert judged("a", 0.75, "", None, 0.75, at_least=True)["met"] is True
    missed = judged("a", 0.74, "", None, 0.75, at_least=True)
    assert missed["met"] is False and ">= 0.75" in table_row(missed)
    assert judged("a", None, "", "why", 0.5)["met"] is False


def test_the_crossover_is_the_least_size_at_which_the_graph_is_faster() -> None:
    def at(rows: int, ours_ns: int, graph_recall: float) -> Case:
        graph = measured("usearch HNSW", [[100]], graph_recall)
        return case_of(measured("omega two-stage", [[ours_ns]], 0.991), graph, rows=rows)

    cases = [at(10_000, 50, 0.991), at(100_000, 150, 0.98), at(300_000, 150, 0.991)]
    made = lines.crossover_line(cases)
    assert made["value"] == 300_000  # at 100,000 the graph is faster, but not at the recall
    assert [tried["both_reach_recall"] for tried in made["tried"]] == [True, False, True]
    assert lines.crossover_line(cases[:2])["value"] is None
    assert lines.crossover_line([])["correct"] is False


def test_loading_and_inserting_are_compared_with_usearch() -> None:
    store, graph = measured("omega store", [[90]]), measured("usearch HNSW", [[90]])
    store.insert_us, graph.insert_us = 3.0, 150.0
    store.loads, graph.loads = [0.1, 0.3, 0.1], [2.0, 6.0, 2.0]
    load_line, insert_line, bytes_line = lines.store_lines(case_of(store, graph, rows=1_000))
    assert (load_line["value"], load_line["met"], load_line["peer"]) == (0.05, True, "usearch HNSW")
    assert insert_line["value"] == 0.02
    assert (bytes_line["value"], bytes_line["met"]) == (396.0, True)
    thin = measured("usearch Index exact", [[90]])
    thin.loads = [0.5, 1.5, 0.5]
    load_line = lines.store_lines(case_of(store, graph, thin, rows=1_000))[0]
    assert (load_line["value"], load_line["met"], load_line["peer"]) == (0.2, False, "usearch Index exact")


def test_ranking_is_compared_with_the_better_of_numpys_ways() -> None:
    found = {"rank_us": 50.0, "search_us": 40.0, "numpy_whole_us": 900.0, "numpy_gathered_us": 500.0}
    made = lines.ranking_lines(case_of(), found | {"selectivity": 0.10, "fault": None})
    assert by_metric(made, "ranking_over_search")["value"] == 1.25
    over_numpy = by_metric(made, "ranking_over_numpy")
    assert (over_numpy["value"], over_numpy["limit"], over_numpy["met"]) == (10.0, 12.0, False)
    assert over_numpy["over_numpy_masked"] == 18.0


# Processes.


def test_a_method_that_ends_early_is_named_with_its_last_words(tmp_path: Path) -> None:
    """hnswlib is no package of the product's environment: its process fails as a broken peer's would."""
    folder = make(tmp_path, "uniform", 60, lambda: None, 3, "")
    plan = Plan(tmp_path, Path(sys.executable), 1, 0.01, 0.01, None, "hnswlib HNSW")
    said: list[str] = []
    case = run_case("uniform", folder, plan, "version", said.append)
    assert "hnswlib" in case.faults["hnswlib HNSW"] and not case.methods
    assert any("FAILED" in text for text in said)


def test_a_process_that_ends_or_is_silent_is_named() -> None:
    silent = Worker(Path(sys.executable), "bench.search.process", {"processor": None})
    ending = Worker(Path(sys.executable), "bench.search.process", {"processor": None})
    try:
        with pytest.raises(WorkerFailed, match="no answer within 0 s"):
            silent.answer(0.0)  # it has only just been started
        with pytest.raises(WorkerFailed, match="ended with code 1: KeyError: 'data'"):
            ending.answer(20)
    finally:
        ending.close()


def test_an_installation_that_fails_says_what_was_said() -> None:
    with pytest.raises(EnvironmentFailed, match="(?s)installing: ended with code 3.*no such wheel"):
        run([sys.executable, "-c", "import sys; print('no such wheel'); sys.exit(3)"], "installing")


def test_the_lock_is_cut_by_names() -> None:
    lock = WHEELS.read_text(encoding="utf-8")
    part = locked(lock, frozenset({"tqdm", "usearch"}))
    assert [line.split("==")[0] for line in part.splitlines() if "==" in line] == ["tqdm", "usearch"]
    assert part.count("--hash") == sum(lock.split(f"\n{name}==")[1].split("==")[0].count("--hash") for name in ("tqdm", "usearch"))
    with pytest.raises(ValueError, match="annoy"):
        locked(lock, frozenset({"annoy"}))


# The plot.


def test_labels_overlap_neither_each_other_nor_the_points() -> None:
    rng = np.random.default_rng(2)
    points = [(300 + 500 * rng.random(), 300 + 20 * rng.random(), 150.0) for _ in range(12)]
    curve = [(200 + step, 320.0) for step in range(0, 600, 6)]
    boxes = place_labels(points, curve)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.holds(x, y) for x, y, _ in points)


def test_a_picture_without_room_is_an_error() -> None:
    assert list(boxes_around(300, 300, 4_000.0)) == []
    with pytest.raises(ValueError, match="no room"):
        place_labels([(300, 300, 4_000.0)], [])


def test_boxes_that_touch_do_not_overlap() -> None:
    box = Box(0, 0, 10, 10)
    assert not box.overlaps(Box(10, 0, 20, 10)) and box.overlaps(Box(9, 9, 20, 20))
    assert box.holds(5, 5) and not box.holds(10, 5)


def test_recall_rises_up_the_plot_and_ends_at_its_edges() -> None:
    heights = [height_of(value) for value in (FLOOR, 0.9, 0.99, 0.999, 1.0)]
    assert heights == sorted(heights, reverse=True)
    assert math.isclose(heights[0], HEIGHT - BOTTOM) and math.isclose(heights[-1], TOP)
    assert heights[1] - heights[2] > 60 and heights[2] - heights[3] > 60


def test_the_plot_names_every_method_and_what_is_missing() -> None:
    case = case_of(
        measured("omega exact", [[100_000]]),
        measured("faiss SQ8", [[150_000]]),
        measured("usearch HNSW", [[90_000]], 0.42),
    )
    case.faults["hnswlib HNSW"] = "gone"
    root = ElementTree.fromstring(svg(case, MACHINE))
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "omega exact, 100 µs" in texts and "faiss SQ8, 150 µs" in texts
    assert "10,000" in texts[0]
    assert any("usearch HNSW" in text and "42 %" in text and "hnswlib HNSW failed" in text for text in texts)
    assert any("A processor & more" in text for text in texts)
