"""The loop's measurement: who takes part, that the model job can read nothing else, that bytes and lists are what passed.

Homes, shards, hub and model job are the real ones, in processes, on a made-up data set of a month.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bench.loop import confined
from bench.loop.__main__ import main, parse_arguments
from bench.loop.clock import SharedClock
from bench.loop.cloud_side import Keys, model_command, model_environment, place_first_bundle
from bench.loop.falsified import FinishedTitles, SimulatedShard
from bench.loop.full_log import full_stream
from bench.loop.lines import FULL_LOG, Judge, level_name
from bench.loop.meter import Passed, Relay
from bench.loop.outcome import Kept, Outcome, fingerprint
from bench.loop.population import Population
from bench.loop.processes import ProcessFailed, Told, tell_all
from bench.loop.report import page
from bench.loop.run import MODEL_NAMES, LevelRun, Plan, Site, make_stores
from bench.loop.seed import Seed, make_seed, write_data
from bench.machine import ROOT
from cloud.counts import DayReports
from cloud.estimates import estimate, support, title_hashes
from cloud.lists import pseudonym
from cloud.publication import read_counts, read_lists
from omega_edge import signing
from omega_edge.datasets import Dataset, DatasetTitle, Events, read_dataset
from omega_edge.errors import DatasetError
from omega_edge.protocol import DAY_MS

TITLES, HOUSEHOLDS, VIEWINGS, DAYS = 60, 30, 1_400, 28
HOMES, EVALUATED_DAYS = 10, 4
START_S = 1_369_612_800
needs_landlock = pytest.mark.skipif(not confined.kernel_confines(), reason="this kernel has no Landlock")


def made_data() -> Dataset:
    """Homes with a taste, and titles that come into fashion for two days."""
    rng = np.random.default_rng(5)
    titles = tuple(
        DatasetTitle(f"{row:07d}", f"Part {row} ({1990 + row % 20})", 1990 + row % 20, ("Drama",) if row % 2 else ("Comedy",))
        for row in range(TITLES)
    )
    at_s = START_S + np.sort(rng.choice(DAYS * 86_400 - 60, VIEWINGS, replace=False))
    household = np.minimum(rng.geometric(0.08, VIEWINGS) - 1, HOUSEHOLDS - 1)
    fashion = (at_s - START_S) // (2 * 86_400)
    title = np.where(rng.random(VIEWINGS) < 0.5, (7 * fashion + rng.integers(0, 4, VIEWINGS)) % TITLES, rng.integers(0, TITLES, VIEWINGS))
    watched = np.where(rng.random(VIEWINGS) < 0.8, 1.0, 0.3)
    events = Events(household.astype(np.int32), title.astype(np.int32), watched, at_s.astype(np.int64) * 1000)
    return Dataset("made up", titles, tuple(str(number) for number in range(HOUSEHOLDS)), events, (), None)


@dataclass(frozen=True)
class Made:
    """A population whose seed is trained and whose homes' stores are made."""

    population: Population
    site: Site


@pytest.fixture(scope="module")
def made(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("loop")
    whole = made_data()
    everything = Population(whole, len(whole.events), 0, 0, np.empty(0, np.int64), np.empty(0, np.int64))
    write_data(everything, folder / "data")
    population = Population.of(read_dataset(folder / "data"), HOMES, EVALUATED_DAYS)
    site = Site(folder / "data", Seed(folder / "seed"), folder / "work", EVALUATED_DAYS, 1)
    make_seed(population, model_dir, folder, site.seed, lambda what: None)
    make_stores(population, site)
    return Made(population, site)


# Who takes part -----------------------------------------------------------------------------------


def test_the_busiest_homes_of_the_second_half_take_part_and_are_asked_first_successes(made: Made) -> None:
    population, events = made.population, made.population.dataset.events
    assert population.begin_ms % DAY_MS == 0 and events.timestamp[population.cut - 1] < population.begin_ms
    assert events.timestamp[population.cut] >= population.begin_ms
    later = np.bincount(events.household[population.cut :], minlength=len(population.dataset.households))
    assert later[population.homes].min() >= np.delete(later, population.homes).max()
    last_days = population.begin_ms + (population.days - EVALUATED_DAYS) * DAY_MS
    for query in population.queries.tolist():
        home, title = events.household[query], events.title[query]
        assert home in population.homes and events.timestamp[query] >= last_days
        assert events.watch_percentage[query] >= 0.7
        assert not np.any((events.household[:query] == home) & (events.title[:query] == title))


def test_homes_that_share_at_ten_per_cent_share_at_all_higher_ones(made: Made) -> None:
    shares = [made.population.sharers(sharing) for sharing in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert [int(each.sum()) for each in shares] == [0, 1, 3, 5, 10]
    for fewer, more in itertools.pairwise(shares):
        assert not np.any(fewer & ~more)


def test_a_data_set_in_which_nobody_is_left_to_ask_is_refused() -> None:
    whole = made_data()
    failed = replace(whole.events, watch_percentage=np.full(len(whole.events), 0.2))
    with pytest.raises(DatasetError, match="expected first viewings that were successes in its last 4 days"):
        Population.of(replace(whole, events=failed), HOMES, EVALUATED_DAYS)


def test_the_seed_holds_what_came_before_the_cut_and_nothing_else(made: Made) -> None:
    population, stored = made.population, read_dataset(made.site.seed.data)
    assert [title.content_id for title in stored.titles] == [title.content_id for title in population.dataset.titles]
    names = np.array(stored.households)[stored.events.household]
    assert names.tolist() == np.array(population.dataset.households)[population.seed.household].tolist()
    assert stored.events.title.tolist() == population.seed.title.tolist()
    assert stored.events.watch_percentage == pytest.approx(population.seed.watch_percentage)
    assert stored.events.timestamp.max() < population.begin_ms


def test_the_full_log_holds_failures_and_exact_moments_and_ends_with_its_moment(made: Made) -> None:
    population, rows = made.population, np.arange(TITLES, dtype=np.int32)
    until_ms = population.midnight(5)
    stream = full_stream(population, rows, population.seed, until_ms)
    later = population.events_of(population.homes, until_ms)
    assert stream.shared.sum() == len(later) and stream.events.timestamp.max() < until_ms
    shared = stream.events.watch_percentage[stream.shared]
    assert shared.tolist() == population.dataset.events.watch_percentage[later].tolist() and shared.min() < 0.7


# The model job reads nothing else -----------------------------------------------------------------


@needs_landlock
def test_the_model_job_cannot_read_the_data_set(made: Made, tmp_path: Path) -> None:
    """The very command of the loop, but told of the whole data set as its seed, ends with the kernel's refusal."""
    keys = Keys.make(tmp_path / "keys", MODEL_NAMES)
    hub = tmp_path / "hub"
    place_first_bundle(hub / "bundles", made.site.seed.bundle, keys)
    key, now_ms = keys.folder / "model", made.population.midnight(7)
    environment = model_environment(keys, tmp_path)

    def ended(seed: Path, named: Path) -> subprocess.CompletedProcess[str]:
        command = model_command(hub, seed, key, now_ms, tmp_path)
        command = [str(named) if part == str(seed) else part for part in command]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)

    allowed = ended(made.site.seed.data, made.site.seed.data)
    assert allowed.returncode == 3 and "fewer than 50 new viewings" in allowed.stdout, allowed.stderr
    refused = ended(made.site.seed.data, made.site.data)
    assert refused.returncode == 1 and "Permission denied" in refused.stderr, refused.stderr


@needs_landlock
def test_a_confined_process_and_its_children_read_and_write_only_what_they_may(tmp_path: Path) -> None:
    probe = tmp_path / "code" / "probe_of_places.py"
    probe.parent.mkdir()
    for name in ("read", "written", "forbidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    probe.write_text(
        "import json, subprocess, sys\n"
        "found = {}\n"
        "for path, mode in json.loads(sys.argv[1]):\n"
        "    code = 'open(' + repr(path) + ', ' + repr(mode) + ').close()'\n"
        "    try:\n"
        "        exec(code)\n"
        "        mine = True\n"
        "    except OSError:\n"
        "        mine = False\n"
        "    child = subprocess.run([sys.executable, '-c', code], stderr=subprocess.DEVNULL).returncode == 0\n"
        "    found[path + ' ' + mode] = [mine, child]\n"
        "print(json.dumps(found))\n"
    )
    asked = [
        (str(tmp_path / "read" / "file"), "r"), (str(tmp_path / "read" / "file"), "r+"),
        (str(tmp_path / "written" / "file"), "r+"), (str(tmp_path / "written" / "new"), "w"),
        (str(tmp_path / "forbidden" / "file"), "r"), (str(tmp_path / "forbidden" / "new"), "w"),
    ]  # fmt: skip
    command = confined.command(
        "probe_of_places", [json.dumps(asked)],
        read=(tmp_path / "code", tmp_path / "read", ROOT / "bench"), write=(tmp_path / "written",),
    )  # fmt: skip
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path / 'code'}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [found[f"{path} {mode}"] for path, mode in asked] == [
        [True, True], [False, False], [True, True], [True, True], [False, False], [False, False]
    ]  # fmt: skip


# Clock, bytes, processes ----------------------------------------------------------------------------


def test_a_clock_is_one_for_all_and_never_goes_back(tmp_path: Path) -> None:
    clock = SharedClock.make(tmp_path / "clock", 1_000)
    other = SharedClock(tmp_path / "clock")
    clock.move_to(5_000)
    assert (clock(), other()) == (5_000, 5_000)
    with pytest.raises(ValueError, match="expected 5000 or later, got 4999"):
        other.move_to(4_999)
    clock.close()
    other.close()


def test_a_relay_counts_what_passes_and_changes_nothing() -> None:
    async def exchange(sizes: list[int]) -> tuple[bytes, bytes, Passed]:
        asked = bytearray()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.extend(await reader.readexactly(sizes[0]))
            writer.write(b"d" * sizes[1])
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        relay = await Relay(server.sockets[0].getsockname()[1]).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"u" * sizes[0])
        got = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        await relay.stop()
        server.close()
        await server.wait_closed()
        return bytes(asked), got, relay.passed

    for sizes in ([1, 0], [300, 5_000], [200_000, 70_000]):
        asked, got, passed = asyncio.run(exchange(sizes))
        assert (asked, got) == (b"u" * sizes[0], b"d" * sizes[1])
        assert passed == Passed(*sizes)


def test_a_relay_to_nobody_hangs_up() -> None:
    async def refused() -> bytes:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        relay = await Relay(port).start()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            writer.close()
            await relay.stop()

    assert asyncio.run(refused()) == b""


class Adder:
    """A process for the test."""

    def __init__(self, first: int) -> None:
        self._sum = first

    async def add(self, number: int) -> int:
        self._sum += number
        return self._sum

    async def fail(self) -> None:
        raise LookupError("nothing there")

    async def vanish(self) -> None:
        os._exit(3)


def test_processes_do_what_they_are_told_and_say_what_went_wrong() -> None:
    first, second = Told(Adder, 1), Told(Adder, 10)
    try:
        assert tell_all([first, second], "add", 5) == [6, 15]
        assert first.tell("add", 1) == 7
        with pytest.raises(ProcessFailed, match="Adder: fail: .*(?s:.)*nothing there"):
            first.tell("fail")
        with pytest.raises(ProcessFailed, match="vanish: the process ended before it answered"):
            second.tell("vanish")
    finally:
        first.stop()
        second.stop()
    for process in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(process.process_id, 0)


# A level ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lived:
    """A level that half of the homes shared in."""

    outcome: Outcome
    modes: tuple[str, ...]
    lists: set[tuple[int, int]]
    homes: int
    folder: Path


@pytest.fixture(scope="module")
def lived(made: Made) -> Lived:
    modes = tuple("titles" if shares else "receive" for shares in made.population.sharers(0.5))
    outcome = LevelRun(made.population, made.site, Plan("half", modes), lambda what: None).run(lambda share: None)
    folder = made.site.work / "half"
    trusted = [signing.public_key(signing.read_signing_key(path)) for path in (folder / "keys").iterdir()]
    secret = bytes.fromhex((folder / "federation-secret").read_text())
    found = read_lists(folder / "hub", trusted, secret)
    return Lived(outcome, modes, set(zip(found.home.tolist(), found.row.tolist(), strict=True)), len(found.pseudonyms), folder)


def test_what_reaches_the_hub_is_what_sharers_finished_and_nothing_of_the_others(made: Made, lived: Lived) -> None:
    population, events = made.population, made.population.dataset.events
    assert lived.outcome.faults == []
    sharers = population.homes[population.sharers(0.5)]
    later = population.events_of(sharers, population.midnight(population.days - 1))
    later = later[events.watch_percentage[later] >= 0.7]
    expected = {(int(events.household[event]), int(events.title[event])) for event in later}
    assert lived.homes == len(np.unique(events.household[later]))
    by_home = sorted(sum(1 for home, _ in expected if home == one) for one in {home for home, _ in expected})
    assert sorted(sum(1 for home, _ in lived.lists if home == one) for one in range(lived.homes)) == by_home
    assert {row for _, row in lived.lists} == {row for _, row in expected}


def test_bytes_are_counted_by_sync_and_a_receiver_says_the_same_whatever_it_watches(made: Made, lived: Lived) -> None:
    syncs = lived.outcome.syncs
    receiving = syncs["sharing"] == 0
    assert receiving.any() and set(syncs["titles"][receiving]) == {0}
    # Version and the global version last heard of: nothing else goes up, so few lengths there are.
    assert syncs["body_up"][receiving].max() <= 16
    assert np.all(syncs["up"] > syncs["body_up"]) and np.all(syncs["down"] > syncs["body_down"])
    assert syncs["titles"].sum() == lived.outcome.facts["titles_shared"] > 0
    daily = len(lived.modes) * (made.population.days - 1)
    assert daily <= lived.outcome.facts["syncs_done"] <= 2 * daily


def test_every_question_has_its_answer_and_trends_reach_those_who_only_receive(made: Made, lived: Lived) -> None:
    assert len(lived.outcome.rank) == len(made.population.queries)
    assert np.all(lived.outcome.rank >= 1)
    syncs = lived.outcome.syncs
    receiving = syncs["sharing"] == 0
    quiet = syncs["body_down"][receiving].min()
    assert syncs["body_down"][receiving].max() > quiet + 20, "expected trends in some replies"


def test_a_level_is_the_same_whatever_the_number_of_processes(made: Made, lived: Lived) -> None:
    site = replace(made.site, work=made.site.work / "again", processes=2)
    again = LevelRun(made.population, site, Plan("half", lived.modes), lambda what: None).run(lambda share: None)
    assert again.rank.tolist() == lived.outcome.rank.tolist()
    for name in ("titles", "patterns", "reports"):
        assert sorted(again.syncs[name].tolist()) == sorted(lived.outcome.syncs[name].tolist())


# Falsified reports ------------------------------------------------------------------------------------


def test_reports_of_a_large_fleet_estimate_what_its_homes_finished(made: Made) -> None:
    dataset = made.population.dataset
    finished = FinishedTitles.of(dataset)
    day, devices = made.population.begin_ms // DAY_MS + 3, 20_000
    hashes = title_hashes(title.content_id for title in dataset.titles)
    seeds, values = finished.reports(day, devices, 1)
    assert (seeds.shape, values.shape, int(values.max()) < 56) == ((devices,), (devices,), True)
    told = estimate([DayReports(devices, support(hashes, seeds, values))], TITLES)
    events = dataset.events
    success = events.watch_percentage >= 0.7
    share = np.zeros(TITLES)
    for moment in np.linspace(day * DAY_MS, (day + 1) * DAY_MS, 400).astype(np.int64):
        near = success & (events.timestamp > moment - DAY_MS) & (events.timestamp <= moment)
        for home in np.unique(events.household[near]):
            mine = events.title[near & (events.household == home)]
            np.add.at(share, mine, 1 / len(mine) / 400 / len(dataset.households))
    sigma = np.sqrt(told.variance)
    assert np.all(np.abs(told.homes - share * devices) < 5 * sigma + 0.02 * devices * share + 20)
    assert share.max() * devices > 10 * sigma.max(), "expected a title that stands out of the noise"


def test_a_simulated_shard_publishes_the_days_that_are_over(made: Made, tmp_path: Path) -> None:
    key = signing.create_signing_key(tmp_path / "key")
    secret = b"s" * 32
    begin = made.population.begin_ms // DAY_MS
    reports = {begin + day: DayReports(10 + day, np.full(TITLES, day, np.uint32)) for day in range(4)}
    shard = SimulatedShard(tmp_path / "source", key, secret, made.site.seed.bundle, reports)
    for midnight in (1, 3):
        shard.publish(made.population.midnight(midnight))
        counts = read_counts(tmp_path / "source", [signing.public_key(key)], secret)
        assert sorted(counts.reports) == [begin + day for day in range(midnight)]
    assert counts.reports[begin + 2].reports == 12
    assert pseudonym(secret, b"d" * 16) != pseudonym(b"t" * 32, b"d" * 16)


# Lines and page ---------------------------------------------------------------------------------------


def levels_of(population: Population, found_share: dict[str, float]) -> dict[str, Outcome]:
    """Levels in which the first so many of the questions find their title at the top, the others nowhere."""
    count = len(population.queries)
    syncs = {name: np.array([10, 20, 30]) for name in ("up", "down", "body_up", "body_down")}
    syncs |= {"titles": np.array([0, 2, 3]), "patterns": np.array([0, 0, 1]), "home": np.arange(3), "sharing": np.ones(3, int)}
    return {
        name: Outcome(np.where(np.arange(count) < share * count, 1.0, np.inf), syncs) for name, share in found_share.items()
    }


def test_gates_are_judged_against_the_frozen_seed_and_the_full_log(made: Made) -> None:
    population = made.population
    shares = {level_name(0.0): 0.2, level_name(0.1): 0.2, level_name(0.3): 0.6, level_name(1.0): 0.9, FULL_LOG: 0.95}
    lines = Judge(population, levels_of(population, shares), 0).lines()
    by = {(line["metric"], line.get("sharing"), line.get("group")): line for line in lines}
    assert by["ndcg_at_10", 0.0, None]["value"] == pytest.approx(0.2, abs=0.02)
    assert by["ndcg_at_10", 0.0, None]["mode"] == "receive" and by["ndcg_at_10", 1.0, None]["mode"] == "titles"
    assert by["ndcg_at_10_minus_frozen_seed", 0.1, None]["met"] and by["ndcg_at_10_minus_frozen_seed", 0.3, None]["met"]
    share = by["ndcg_at_10_share_of_full_log", 1.0, None]
    assert share["value"] == pytest.approx(0.9 / 0.95, abs=0.02) and not share["met"]
    worse = Judge(population, levels_of(population, shares | {level_name(0.1): 0.1, level_name(0.3): 0.2}), 0).lines()
    missed = [line["metric"] for line in worse if line.get("met") is False and line["metric"].endswith("frozen_seed")]
    assert len(missed) == 2
    lists = [line for line in lines if line["metric"] == "list_bytes_p99"]
    assert [(line["lists"], line["value"]) for line in lists] == [("alone", 20.0), ("with patterns", 30.0)]
    assert {line["direction"] for line in lines if line["metric"] == "bytes_per_sync_p99"} == {"up", "down"}


def test_a_fault_of_a_level_makes_its_lines_incorrect(made: Made) -> None:
    levels = levels_of(made.population, {level_name(0.0): 0.2, level_name(1.0): 0.4})
    levels[level_name(1.0)].faults.append("home 3: no connection")
    lines = Judge(made.population, levels, 0).lines()
    assert {line["correct"] for line in lines if line.get("sharing") == 1.0 and line["metric"].startswith("ndcg")} == {False}
    assert all(line["correct"] for line in lines if line.get("sharing") == 0.0)


def test_the_page_draws_each_level_and_tells_the_gates(made: Made) -> None:
    shares = {level_name(0.0): 0.2, level_name(0.3): 0.6, level_name(1.0): 0.9, FULL_LOG: 0.9}
    made_lines = Judge(made.population, levels_of(made.population, shares), 0).lines()
    text = page(made_lines, {"dataset": "made <up>", "homes": 10, "days": 14, "queries": 5, "quick": True})
    assert "made &lt;up&gt;" in text and "quick run" in text
    assert text.count("<circle") >= 3 + 2 + 1 and "trained on the full log" in text
    assert "ndcg_at_10_share_of_full_log" in text and "met" in text


def test_finished_levels_are_kept_for_the_same_run_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ratings.dat").write_text("1")
    first, other = (fingerprint(tmp_path / "data", {"homes": homes}) for homes in (10, 20))
    (tmp_path / "data" / "ratings.dat").write_text("2")
    assert len({first, other, fingerprint(tmp_path / "data", {"homes": 10})}) == 3
    outcome = Outcome(np.array([1.0, np.inf]), {"up": np.array([3, 4])}, {"syncs_done": 2, "none": None}, ["a fault"])
    Kept(tmp_path, first).write("level", outcome)
    assert Kept(tmp_path, other).read("level") is None
    again = Kept(tmp_path, first).read("level")
    assert again.rank.tolist() == [1.0, np.inf] and again.syncs["up"].tolist() == [3, 4]
    assert (again.facts, again.faults) == (outcome.facts, outcome.faults)


def test_wrong_options_end_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--levels", "sharing-020"], ["--homes", "1"], ["--nonsense"]):
        with pytest.raises(SystemExit) as ended:
            parse_arguments(arguments)
        assert ended.value.code == 2
    assert main(["--model", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert "expected" in capsys.readouterr().err
