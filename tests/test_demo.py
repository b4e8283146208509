"""The demonstration: real households of the committed data, the real model, the real store, in real processes."""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from omega_edge import demo_loop, demo_text
from omega_edge.catalog import UNRATED, Catalog
from omega_edge.cli_output import Screen, text_width
from omega_edge.datasets import Dataset, read_dataset
from omega_edge.demo import SCHEMA
from omega_edge.demo_data import well_filled
from omega_edge.demo_loop_text import show_two_televisions
from omega_edge.demo_measure import LIMITS, judged, percentile

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "bench" / "data" / "movietweetings-70k"
TITLES, EVENTS = 200, 6_000


def source_lines(name: str) -> list[str]:
    return lzma.decompress((SOURCE / name).read_bytes()).decode("utf-8").splitlines()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest 6,000 ratings of the 200 titles that are rated most."""
    folder = tmp_path_factory.mktemp("demo") / f"small-{os.getpid()}"
    folder.mkdir()
    ratings = source_lines("ratings.dat.xz")
    kept = {title for title, _ in Counter(line.split("::")[1] for line in ratings).most_common(TITLES)}
    ratings = sorted(
        (line for line in ratings if line.split("::")[1] in kept), key=lambda line: int(line.split("::")[3])
    )
    movies = source_lines("movies.dat.xz")
    (folder / "ratings.dat").write_text("\n".join(ratings[-EVENTS:]) + "\n", encoding="utf-8")
    (folder / "movies.dat").write_text(
        "\n".join(line for line in movies if line.split("::")[0] in kept) + "\n", encoding="utf-8"
    )
    return folder


@dataclass(frozen=True, slots=True)
class Shown:
    """A demonstration that was run twice, and what it rests on."""

    told: dict
    again: dict
    first_errors: str
    second_errors: str
    dataset: Dataset
    bundle: Path
    left_behind: list[str]


def environment_of(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMEGA_")}
    return {
        **kept,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }


def demo(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omega_edge.cli", "demo", *map(str, arguments)],
        cwd=ROOT,
        env=environment_of(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="session")
def shown(small_data: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("run")
    first = demo(folder, "--data", small_data, "--model", model_dir, "--json")
    assert first.returncode == 0, first.stderr
    second = demo(folder, "--data", small_data, "--model", model_dir, "--json")
    built = sorted((ROOT / "build").glob(f"*{small_data.name}-*"))
    yield Shown(
        told=json.loads(first.stdout),
        again=json.loads(second.stdout),
        first_errors=first.stderr,
        second_errors=second.stderr,
        dataset=read_dataset(small_data),
        bundle=next(path for path in built if path.suffix == ".bundle" and "-earlier-" not in path.name),
        left_behind=os.listdir(folder),
    )
    for path in built:
        path.unlink()


def household_titles(shown: Shown) -> set[str]:
    events, index = shown.dataset.events, shown.dataset.households.index(shown.told["household"]["id"])
    return {shown.dataset.titles[title].content_id for title in events.title[events.household == index]}


def lists_of(told: dict) -> list[dict]:
    """Every list shown to the household's own profile."""
    times = told["times_of_day"]
    return [told["recommendations"], told["after_feedback"], times["morning"], times["late_evening"]]


def test_the_bundle_of_other_data_is_built_once_and_nothing_else_is_left(shown: Shown) -> None:
    assert "building the catalogue" in shown.first_errors
    assert "building" not in shown.second_errors and "replaying" in shown.second_errors
    assert shown.left_behind == []


def test_two_runs_tell_the_same(shown: Shown) -> None:
    volatile = ("measured", "two_televisions")
    first, second = (
        {key: part for key, part in told.items() if key not in volatile} for told in (shown.told, shown.again)
    )
    assert first == second
    # Numbers that homes go by are drawn anew, and how long it took differs; lists and what was told do not.
    once, again = (told["two_televisions"] for told in (shown.told, shown.again))
    assert once["television_b"]["after"] == again["television_b"]["after"]
    assert (once["television_a"]["titles"], once["receiving_homes"]) == (again["television_a"]["titles"], again["receiving_homes"])


def test_the_schema_is_stable(shown: Shown) -> None:
    told = shown.told
    assert told["schema"] == SCHEMA == "omega-edge-demo/1"
    assert list(told) == [
        "schema",
        "machine",
        "data",
        "household",
        "recommendations",
        "after_feedback",
        "children",
        "times_of_day",
        "stored",
        "measured",
        "measured_events",
        "measured_note",
        "two_televisions",
        "notes",
    ]
    row = {"rank", "content_id", "content_title", "score", "confidence", "reason", "events", "trend", "propensity"}
    for listed in (*lists_of(told), told["children"]):
        assert len(listed["rows"]) == 5
        assert [each["rank"] for each in listed["rows"]] == [1, 2, 3, 4, 5]
        for each in listed["rows"]:
            assert set(each) - {"rank_before", "score_before"} == row
            assert 0 <= each["score"] <= 1 and 0 <= each["confidence"] <= 1


def test_the_household_is_described_by_its_data(shown: Shown) -> None:
    household, events = shown.told["household"], shown.dataset.events
    mine = events.household == shown.dataset.households.index(household["id"])
    assert household["viewings"] == np.count_nonzero(mine)
    assert household["finished"] == np.count_nonzero(events.watch_percentage[mine] >= 0.7)
    assert (household["first"], household["last"]) == (events.timestamp[mine].min(), events.timestamp[mine].max())
    assert household["titles"] == len(household_titles(shown))


def test_no_list_offers_what_was_watched_and_reasons_name_what_was(shown: Shown) -> None:
    watched = household_titles(shown)
    for listed in lists_of(shown.told):
        for row in listed["rows"]:
            assert row["content_id"] not in watched
            assert {event["content_id"] for event in row["events"]} <= watched
            if row["reason"].startswith("Because"):
                assert row["events"][0]["content_title"] in row["reason"]


def test_the_title_refused_is_gone_and_ranks_before_are_those_of_the_first_list(shown: Shown) -> None:
    before, after = shown.told["recommendations"]["rows"], shown.told["after_feedback"]
    assert after["feedback"]["content_id"] == before[0]["content_id"]
    assert before[0]["content_id"] not in [row["content_id"] for row in after["rows"]]
    ranks = {row["content_id"]: row["rank"] for row in before}
    for row in after["rows"]:
        if row["content_id"] in ranks:
            assert row["rank_before"] == ranks[row["content_id"]]
        else:
            # Not among the first five, and either ranked further down or not ranked at all.
            assert row["rank_before"] in (None, *range(6, 21))
        assert (row["rank_before"] is None) == (row["score_before"] is None)


def test_children_get_only_what_is_rated_for_them(shown: Shown) -> None:
    children = shown.told["children"]
    now_ms, limit = children["at"], children["profile"]["max_age_rating"]
    with Catalog.open(shown.bundle) as catalog:
        ratings = np.array(catalog.age_ratings)
        available = (catalog.available_from <= now_ms) & (now_ms < catalog.available_until)
        rows = [catalog.row_of(row["content_id"]) for row in children["rows"]]
        assert all(ratings[row] <= limit for row in rows)
        withheld = children["withheld"]
        assert children["titles"] == catalog.count == TITLES
        assert withheld["age_rating"] == np.count_nonzero((ratings > limit) & (ratings != UNRATED))
        assert withheld["unrated"] == np.count_nonzero(ratings == UNRATED)
        assert (
            children["withheld_total"] == sum(withheld.values()) == np.count_nonzero(~((ratings <= limit) & available))
        )


def test_morning_and_late_evening_are_asked_as_such(shown: Shown) -> None:
    times = shown.told["times_of_day"]
    assert times["morning"]["context"]["time_of_day"] == "morning"
    assert times["late_evening"]["context"]["time_of_day"] == "night"
    assert 0 <= times["in_both"] <= times["compared"] == 20
    first = {row["content_id"]: row["rank"] for row in times["morning"]["rows"]}
    for moved in times["moved_most"]:
        assert moved["rank_morning"] != moved["rank_late_evening"]
        assert first.get(moved["content_id"], moved["rank_morning"]) == moved["rank_morning"]


def test_what_is_stored_is_told_and_nothing_leaves(shown: Shown) -> None:
    stored = shown.told["stored"]
    assert stored["memory"]["events"] >= shown.told["household"]["viewings"]
    assert stored["file_bytes"] > 0 and stored["files"]
    assert stored["sharing"] == "receive" and stored["sync_delta"] is None
    # A data set this small trains no codebook.
    assert [line.partition(":")[0] for line in stored["degraded"]] == ["vector compression"]
    assert any(shown.told["household"]["last_viewings"][-1]["content_title"] in line for line in stored["in_words"])


def test_every_limit_is_measured_and_judged(shown: Shown) -> None:
    measured = shown.told["measured"]
    assert [line["metric"] for line in measured] == [limit.metric for limit in LIMITS]
    for line in measured:
        assert line["value"] > 0
        expected = "no limit" if line["limit"] is None else "met" if line["value"] <= line["limit"] else "missed"
        assert line["verdict"] == expected
    sizes = {line["metric"]: line["value"] for line in measured}
    assert shown.told["measured_events"] == min(300, TITLES)
    assert sizes["bundle_mb"] == shown.bundle.stat().st_size / 1e6
    assert sizes["resident_with_model_mb"] > sizes["resident_mb"]
    assert sizes["recommend_ms_p99"] >= sizes["recommend_ms_p50"]


def finished_of(shown: Shown, household: str, begin_ms: int, end_ms: int) -> list[str]:
    """Names of what a household finished from one moment to another, in order."""
    events, dataset = shown.dataset.events, shown.dataset
    mine = (events.household == dataset.households.index(household)) & (events.watch_percentage >= 0.7)
    mine &= (events.timestamp >= begin_ms) & (events.timestamp < end_ms)
    return [dataset.titles[title].name for title in events.title[mine].tolist()]


def test_television_a_tells_what_it_finished_and_the_bytes_are_told(shown: Shown) -> None:
    told = shown.told["two_televisions"]
    first, begin_ms = told["television_a"], told["at"] - told["shared_days"] * 86_400_000
    assert first["household"] == shown.told["household"]["id"] and first["sharing"] == "titles"
    assert "viewing history" in first["sharing_in_words"]
    expected = finished_of(shown, first["household"], begin_ms, told["at"])
    assert sorted(title["content_title"] for title in first["titles"]) == sorted(expected)
    sync, again = first["sync"], first["next_sync"]
    assert sync["titles"] == len(expected) and again["titles"] == 0
    for one in (sync, again):
        assert 0 < one["body_bytes_up"] < one["socket_bytes_up"] and one["body_bytes_down"] < one["socket_bytes_down"]
    totals = first["log"]["totals"]
    # A shard on a busy machine may have refused one, which is a failed sync.
    assert (totals["syncs"] - totals["failures"], totals["titles"]) == (2, len(expected))
    assert totals["bytes_up"] >= sync["body_bytes_up"] + again["body_bytes_up"]


def test_television_b_tells_nothing_and_gets_what_others_told(shown: Shown) -> None:
    told = shown.told["two_televisions"]
    second, gain = told["television_b"], told["receiving_homes"]
    assert second["sharing"] == "receive" and second["household"] != told["television_a"]["household"]
    sync = second["sync"]
    assert (sync["titles"], sync["patterns"], sync["requests"]) == (0, 0, 1) and sync["body_bytes_up"] < 20
    assert sync["changed"] > 0 and told["further_homes"]["titles"] > 0
    next_titles = finished_of(shown, second["household"], told["at"], told["at"] + told["later_days"] * 86_400_000)
    assert {title["content_title"] for title in second["watched_next"]} <= set(next_titles) and second["watched_next"]
    before = {row["content_id"]: row["rank"] for row in second["before"]}
    for row in second["after"]:
        assert row["rank_before"] == before.get(row["content_id"], row["rank_before"])
    entered, left = len(gain["entered"]), len(gain["left"])
    assert gain["in_first_ten_after"] - gain["in_first_ten_before"] == entered - left
    assert 1 <= gain["homes"] <= gain["titles"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_the_text_fits_the_screen_in_every_encoding(shown: Shown, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    demo_text.show(Screen(stream), shown.told)
    stream.seek(0)
    lines = stream.read().splitlines()
    assert max(text_width(line) for line in lines) <= 96
    text = "\n".join(lines)
    assert "\033" not in text
    for row in shown.told["recommendations"]["rows"]:
        assert row["reason"][:20].encode(encoding, "replace").decode(encoding) in text
    withheld = shown.told["children"]["withheld_total"]
    assert f"Withheld: {withheld:,} of {TITLES} titles" in text
    for line in shown.told["measured"]:
        assert line["words"] in text
    for title in shown.told["two_televisions"]["television_a"]["titles"][:3]:
        assert title["content_title"][:20].encode(encoding, "replace").decode(encoding) in text


def test_without_a_source_tree_or_packages_the_shard_is_left_out_and_why(
    shown: Shown, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(model: Path | None) -> dict:
        return demo_loop.two_televisions(tmp_path, shown.bundle, model, "1", lambda what: None)

    assert "text model" in told(None)["left_out"]
    failed = told(model_dir)["left_out"]  # a folder without a data set
    assert "exit code" in failed and "expected" in failed
    monkeypatch.setattr(demo_loop, "PACKAGES", ("aiohttp", "no_such_package_here"))
    assert "needs no_such_package_here" in told(model_dir)["left_out"]
    monkeypatch.setattr(demo_loop, "source_checkout", lambda: None)
    left_out = told(model_dir)
    assert "no source tree" in left_out["left_out"]
    stream = io.StringIO()
    show_two_televisions(Screen(stream), left_out)
    assert "Left out: this installation has no source tree" in " ".join(stream.getvalue().split())


def test_wrong_names_are_refused(small_data: Path, tmp_path: Path, shown: Shown, model_dir: Path) -> None:
    result = demo(tmp_path, "--data", small_data, "--model", model_dir, "--household", "nobody", "--json")
    assert (result.returncode, result.stdout) == (78, "")
    assert "nobody" in result.stderr
    result = demo(tmp_path, "--data", tmp_path / "nowhere")
    assert (result.returncode, result.stdout) == (66, "")
    result = demo(tmp_path, "--data", small_data, "--catalog", tmp_path / "none.bundle")
    assert result.returncode == 66
    assert "none.bundle" in result.stderr
    assert not (tmp_path / "none.bundle").exists()


def test_the_household_chosen_is_active_on_most_days_among_thewell_filled(shown: Shown) -> None:
    events = shown.dataset.events
    days: dict[int, set[int]] = {}
    counts: Counter[int] = Counter()
    for household, timestamp in zip(events.household.tolist(), events.timestamp.tolist(), strict=True):
        days.setdefault(household, set()).add(timestamp // 86_400_000)
        counts[household] += 1
    chosen = well_filled(shown.dataset)
    assert 20 <= counts[chosen] <= 90
    assert len(days[chosen]) == max(len(days[each]) for each in counts if 20 <= counts[each] <= 90)
    assert shown.told["household"]["id"] == shown.dataset.households[chosen]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 301)]
    assert percentile(values[::-1], 0.5) == 150.0
    assert percentile(values, 0.99) == 297.0
    assert percentile([3.0], 0.99) == 3.0


def test_a_verdict_is_met_at_the_limit_and_missed_above() -> None:
    at_limit = {limit.metric: limit.limit for limit in LIMITS}
    assert {line.verdict for line in judged(at_limit) if line.limit is not None} == {"met"}
    above = {limit.metric: None if limit.limit is None else limit.limit * 1.001 for limit in LIMITS}
    assert {line.verdict for line in judged(above)} == {"missed", "not measured"}
