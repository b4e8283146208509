"""The command line as a user meets it: real processes, a real bundle file, a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omega_edge import errors
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.cli_codes import EXIT_BY_ERROR, EXIT_CODES_TEXT, exit_code_of
from omega_edge.config import BrainConfig
from tests.synthetic import NOW_MS, sections_of

ROOT = Path(__file__).resolve().parent.parent
AT = ("--at", str(NOW_MS))
Result = subprocess.CompletedProcess[str]
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "synthetic.bundle"
    write_bundle(path, *sections_of(120))
    return path


def environment_of(folder: Path, bundle: Path) -> dict[str, str]:
    """A user without a configuration of their own; store and catalogue named by variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMEGA_")}
    return {
        **kept,
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
        "OMEGA_STORAGE_PATH": str(folder / "store"),
        "OMEGA_CATALOG_PATH": str(bundle),
        "OMEGA_MODEL_PATH": "none",
    }


def cli_in(environment: dict[str, str]) -> Cli:
    """Runs omega-edge with arguments; `more` adds to the environment, None removes from it."""

    def run(*arguments: str | Path, stdin: str = "", more: dict[str, str | None] | None = None) -> Result:
        variables = {name: value for name, value in {**environment, **(more or {})}.items() if value is not None}
        return subprocess.run(
            [sys.executable, "-m", "omega_edge.cli", *map(str, arguments)],
            input=stdin,
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def environment(tmp_path: Path, bundle: Path) -> dict[str, str]:
    return environment_of(tmp_path, bundle)


@pytest.fixture
def cli(environment: dict[str, str]) -> Cli:
    return cli_in(environment)


def answer(result: Result) -> dict:
    """The JSON of a call that went well and said nothing else."""
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def refused(result: Result, code: int, *words: str) -> None:
    """The call failed with this code, no data, and one message that holds the words."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def watched(content_id: str, **fields: object) -> str:
    """One line for observe."""
    return json.dumps({"content_id": content_id, "watch_percentage": 0.9, "duration_seconds": 5400, **fields}) + "\n"


# Help and usage ----------------------------------------------------------------------------------------------


def test_help_tells_every_exit_code_and_loads_nothing_heavy(cli: Cli) -> None:
    result = cli("--help")
    assert result.returncode == 0
    for _, code in EXIT_BY_ERROR:
        assert f"\n{code:>5}  " in EXIT_CODES_TEXT
    assert EXIT_CODES_TEXT.strip() in result.stdout
    code = (
        "import sys; from omega_edge.cli import build_parser; build_parser().format_help()\n"
        "print([name for name in ('numpy', 'lmdb', 'onnxruntime', 'dataclasses') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("recommend", "--count", "0"),
        ("recommend", "--no-such-flag"),
        ("feedback", "t001", "adore"),
        ("forget",),
        ("forget", "--everything"),
        ("forget", "--title", "t001", "--profile", "household"),
        ("forget", "--title", "t001", "--yes"),
        ("observe", "--content-id", "t001"),
        ("observe", "--content-id", "t001", "--watched", "0.5"),
        ("observe", "--watched", "0.5"),
        ("profile",),
        ("config",),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_done(
    cli: Cli, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    refused(cli(*arguments), 2, "usage:")
    assert not (tmp_path / "store").exists()


def test_every_error_type_has_an_exit_code_and_none_hides_another() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    ours = {kind for kind in below(errors.OmegaError) if kind.__module__ == "omega_edge.errors"}
    listed = [kind for kind, _ in EXIT_BY_ERROR]
    assert ours - {errors.OmegaError} <= set(listed)
    for kind, code in EXIT_BY_ERROR:
        assert exit_code_of(kind("x")) == code


# Recommending ------------------------------------------------------------------------------------------------


def test_recommend_as_json(cli: Cli) -> None:
    told = answer(cli("recommend", "--json", "-k", "7", *AT))
    assert told["profile"] == "household"
    assert told["context"]["time_of_day"] in ("morning", "afternoon", "evening", "night")
    rows = told["recommendations"]
    assert len(rows) == 7
    assert [row["score"] for row in rows] and all(0 <= row["score"] <= 1 and row["reason"] for row in rows)
    assert len({row["content_id"] for row in rows}) == 7


def test_recommend_as_text_is_plain_when_piped(cli: Cli) -> None:
    result = cli("recommend", "-k", "3", *AT)
    assert result.returncode == 0
    assert "\033" not in result.stdout
    assert all(len(line) <= 96 for line in result.stdout.splitlines())
    assert "Título" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_suits_the_locale(cli: Cli, environment: dict[str, str], encoding: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "omega_edge.cli", "explain", "t001", *AT],
        cwd=ROOT,
        env={**environment, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    text = result.stdout.decode(encoding)
    assert ("T?tulo" if encoding == "ascii" else "Título") in text


def test_at_is_read_in_the_time_zone_given(cli: Cli) -> None:
    tokyo = answer(cli("recommend", "--json", "--time-zone", "Asia/Tokyo", "--at", "2013-05-31T08:00"))
    assert tokyo["context"]["time_of_day"] == "morning"
    utc = answer(cli("recommend", "--json", "--time-zone", "Asia/Tokyo", "--at", "2013-05-31T08:00+00:00"))
    assert utc["context"]["time_of_day"] == "evening"
    refused(cli("recommend", "--at", "yesterday"), 78, "--at", "yesterday")


def test_explain_gives_the_parts_of_the_score(cli: Cli) -> None:
    told = answer(cli("explain", "t007", "--json", *AT))
    parts = told["features"]
    assert told["raw_score"] == pytest.approx(sum(part["contribution"] for part in parts.values()), abs=1e-4)
    assert answer(cli("recommend", "--json", *AT))["recommendations"]
    refused(cli("explain", "nowhere"), 78, "nowhere")
    text = cli("explain", "t007", *AT).stdout
    assert all(name in text for name in parts)


# Watching ----------------------------------------------------------------------------------------------------


def test_observe_one_viewing_takes_it_off_the_list(cli: Cli) -> None:
    first = answer(cli("recommend", "--json", *AT))["recommendations"][0]["content_id"]
    said = answer(cli("observe", "--content-id", first, "--watched", "0.9", "--duration", "5000", "--json", *AT))
    assert said == {"recorded": 1, "last_sequence": said["last_sequence"], "durable": True, "malformed": []}
    after = answer(cli("recommend", "--json", *AT))
    assert first not in [row["content_id"] for row in after["recommendations"]]
    assert after["context"]["recent_watches"] == [first]


def test_observe_takes_json_lines_and_reports_bad_ones_by_number(cli: Cli) -> None:
    lines = [
        watched("t001", timestamp=NOW_MS),
        "\n",
        "not json\n",
        watched("t002", timestamp=NOW_MS, colour="red"),
        watched("t003", timestamp=NOW_MS).replace("0.9", "1.5"),
        "[1, 2]\n",
        json.dumps({"content_id": "x" * 70_000}) + "\n",
        watched("t004", timestamp=NOW_MS, context={"time_of_day": "evening", "day_of_week": 4}, profile="household"),
        watched("t005", profile="nobody"),
        watched("t006", context={"day_of_week": 9}),
        '{"content_id": "t007"}',
    ]
    result = cli("observe", "--json", stdin="".join(lines))
    assert result.returncode == 65
    told = json.loads(result.stdout)
    assert told["recorded"] == 2
    assert [fault["line"] for fault in told["malformed"]] == [3, 4, 5, 6, 7, 9, 10, 11]
    for number, word in (
        (3, "JSON"),
        (4, "colour"),
        (5, "watch_percentage"),
        (7, "65536"),
        (9, "nobody"),
        (11, "duration"),
    ):
        assert any(f"line {number}:" in line and word in line for line in result.stderr.splitlines())
    assert answer(cli("recommend", "--json", *AT))["context"]["recent_watches"] == ["t001", "t004"]


def test_observe_keeps_a_title_that_the_catalogue_does_not_hold(cli: Cli) -> None:
    answer(cli("observe", "--json", stdin=watched("elsewhere", content_title="Home video", timestamp=NOW_MS)))
    assert "Home video" in cli("export").stdout


def test_feedback_hides_a_title(cli: Cli) -> None:
    assert answer(cli("explain", "t001", "--json", *AT))["withheld"] is None
    assert answer(cli("feedback", "t001", "never", "--json"))["durable"] is True
    assert answer(cli("explain", "t001", "--json"))["withheld"] == "hidden"
    refused(cli("feedback", "elsewhere", "like"), 78, "content_title")
    assert cli("feedback", "elsewhere", "like", "--title", "Home video").returncode == 0


def test_a_new_home_picks_its_favourites(cli: Cli) -> None:
    offered = [title["content_id"] for title in answer(cli("onboard", "--json"))["titles"]]
    assert len(offered) == 24
    told = answer(cli("onboard", "--pick", *offered[:3], "-k", "5", "--json"))
    assert told["picked"] == offered[:3]
    assert [title["content_id"] for title in told["titles"]] == offered[3:8]
    assert answer(cli("stats", "--json"))["memory"]["events"] == 3
    rows = answer(cli("recommend", "--json", "-k", "100", *AT))["recommendations"]
    assert not {row["content_id"] for row in rows} & set(offered[:3])
    shown = cli("onboard", "--pick", offered[3], "-k", "2")
    assert shown.returncode == 0 and "1 favourite noted" in shown.stdout and offered[4] in shown.stdout
    refused(cli("onboard", "--pick", "nowhere"), 78, "favourites", "nowhere")
    refused(cli("onboard", "-k", "0"), 2, "--count")


def test_exploration_is_an_option_like_others(cli: Cli) -> None:
    rows = answer(cli("recommend", "--json", "-k", "10", *AT))["recommendations"]
    assert {row["propensity"] for row in rows} == {None}
    explored = answer(cli("recommend", "--json", "-k", "10", *AT, more={"OMEGA_EXPLORATION": "0.2"}))["recommendations"]
    assert [row["propensity"] for row in explored[:3]] == [1.0] * 3
    assert all(0 < row["propensity"] < 1 for row in explored[3:])
    lists = answer(cli("export", "--json"))["states"]["exploration"]["lists"]
    assert [slot[1] for slot in lists[0]["slots"]] == [row["content_id"] for row in explored[3:]]
    refused(cli("recommend", more={"OMEGA_EXPLORATION": "0.5"}), 78, "exploration", "0.2")


def test_profiles_are_set_listed_and_kept_apart(cli: Cli) -> None:
    answer(cli("profile", "set", "kids", "--name", "Kids", "--max-age-rating", "7", "--json"))
    told = answer(cli("profile", "list", "--json"))["profiles"]
    assert {"id": "kids", "name": "Kids", "max_age_rating": 7} in told
    rows = answer(cli("recommend", "--json", "--profile", "kids", "-k", "100", *AT))["recommendations"]
    everyone = answer(cli("recommend", "--json", "-k", "100", *AT))["recommendations"]
    assert 0 < len(rows) < len(everyone)
    withheld = answer(cli("stats", "--json"))["withheld"]
    assert withheld["kids"]["age_rating"] > withheld["household"]["age_rating"] == 0
    refused(cli("recommend", "--profile", "stranger"), 78, "stranger")
    refused(cli("profile", "set", "!", "--name", "x"), 65, "Profile.id")


# The household's data ----------------------------------------------------------------------------------------


def test_export_import_and_forget(cli: Cli, tmp_path: Path) -> None:
    answer(cli("observe", "--json", stdin=watched("t001", timestamp=NOW_MS) + watched("t002", timestamp=NOW_MS + 1)))
    exported = answer(cli("export"))
    file = tmp_path / "export.json"
    said = answer(cli("export", "--out", file, "--json"))
    assert said == {"file": str(file), "bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    elsewhere = ("--storage", str(tmp_path / "second"))
    answer(cli("import", file, "--json", *elsewhere))
    assert answer(cli("recommend", "--json", *AT, *elsewhere)) == answer(cli("recommend", "--json", *AT))
    assert cli("import", file, *elsewhere).returncode != 0, "a memory that is not empty is not overwritten"
    answer(cli("import", "-", "--replace", "--json", *elsewhere, stdin=json.dumps(exported)))
    assert cli("forget", "--title", "t001").returncode == 0
    assert "t001" not in cli("export").stdout and "t002" in cli("export").stdout
    assert cli("forget", "--everything", "--yes").returncode == 0
    assert "t002" not in cli("export").stdout


def test_import_refuses_what_is_no_export(cli: Cli, tmp_path: Path) -> None:
    refused(cli("import", tmp_path / "missing.json"), 66, "missing.json")
    refused(cli("import", "-", stdin="{"), 65, "JSON")
    refused(cli("import", "-", stdin="[]"), 65, "object")
    assert cli("import", "-", stdin='{"some": "thing"}').returncode == 65


def test_stats_names_configuration_and_what_is_degraded(cli: Cli) -> None:
    told = answer(cli("stats", "--json"))
    assert told["configuration"]["sharing"] == "receive"
    assert any("text embedding" in each for each in told["degraded"])
    assert "text embedding" in cli("stats").stdout


# Doctor ------------------------------------------------------------------------------------------------------


def test_doctor_checks_everything_and_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    told = answer(cli("doctor", "--json"))
    states = {check["check"]: check["state"] for check in told["checks"]}
    assert states["core search"] == states["core binary"] == states["catalogue"] == states["store"] == "ok"
    assert states["text model"] == told["state"] == "degraded"
    assert not (tmp_path / "store").exists()
    answer(cli("observe", "--json", stdin=watched("t001")))
    before = {path: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    assert cli("doctor").returncode == 0
    assert {path: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before


def test_doctor_names_damage(cli: Cli, tmp_path: Path, bundle: Path) -> None:
    damaged = tmp_path / "damaged.bundle"
    content = bytearray(bundle.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    answer(cli("observe", "--json", stdin=watched("t001")))
    # A forget moves all that is kept into the database.
    answer(cli("forget", "--json", "--title", "t002"))
    database = tmp_path / "store" / "memory.mdb"
    pages = bytearray(database.read_bytes())
    place = bytes(pages).rindex(b"t001")
    pages[place] ^= 1
    database.write_bytes(pages)
    result = cli("doctor", "--json", "--catalog", damaged)
    assert result.returncode == 1
    states = {check["check"]: check for check in json.loads(result.stdout)["checks"]}
    assert states["catalogue"]["state"] == states["store"]["state"] == "failed"
    assert "checksum" in states["catalogue"]["detail"]


def test_doctor_embeds_with_a_real_model_and_names_a_damaged_one(cli: Cli, model_dir: Path, tmp_path: Path) -> None:
    def model_check(folder: Path) -> dict:
        told = answer(cli("doctor", "--json", "--model", folder))
        return next(check for check in told["checks"] if check["check"] == "text model")

    # The synthetic catalogue's vectors are random, which is what the cosine is there to tell.
    assert "all checksums match" in model_check(model_dir)["detail"]
    copy = tmp_path / "model"
    copy.mkdir()
    for path in model_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    with (copy / "vocab.txt").open("ab") as file:
        file.write(b"x")
    broken = model_check(copy)
    assert (broken["state"], "vocab.txt" in broken["detail"]) == ("degraded", True)


# Exit codes and options --------------------------------------------------------------------------------------


def test_exit_codes_name_the_kind_of_error(cli: Cli, tmp_path: Path, environment: dict[str, str], bundle: Path) -> None:
    refused(cli("recommend", "--catalog", tmp_path / "none.bundle"), 66, "none.bundle")
    foreign = tmp_path / "foreign.bundle"
    foreign.write_bytes(b"PK" * 500)
    refused(cli("recommend", "--catalog", foreign), 65, "not a catalogue bundle")
    refused(cli("recommend", "--config", tmp_path / "none.toml"), 66, "none.toml")
    refused(cli("recommend", "--time-zone", "Mars/Olympus"), 78, "Mars/Olympus")
    (tmp_path / "a_file").touch()
    refused(cli("recommend", "--storage", tmp_path / "a_file"), 74, "a_file")
    config = BrainConfig(Path(environment["OMEGA_STORAGE_PATH"]), bundle, background_maintenance=False)
    with OmegaBrain.open(config):
        refused(cli("recommend"), 75, str(os.getpid()))


def test_options_come_from_flags_then_variables_then_file_then_defaults(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "config" / "omega-edge" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('time_zone = "Asia/Tokyo"\nsharing = "titles"\ndiversity = 0\nstorage_path = "beside"\n')
    more = {"OMEGA_TIME_ZONE": "Europe/Berlin", "OMEGA_STORAGE_PATH": None, "OMEGA_DURABILITY_WINDOW_SECS": "60"}
    told = answer(cli("config", "show", "--json", "--time-zone", "America/Lima", more=more))
    assert told["time_zone"] == {"value": "America/Lima", "origin": "flag --time-zone"}
    assert told["sharing"] == {"value": "titles", "origin": f"file {file}"}
    assert told["storage_path"]["value"] == str(file.parent / "beside")
    assert told["durability_window_secs"] == {"value": 60, "origin": "environment OMEGA_DURABILITY_WINDOW_SECS"}
    assert told["max_episodes"] == {"value": 1000, "origin": "default"}
    told = answer(cli("config", "show", "--json", more=more))
    assert told["model_path"] == {"value": None, "origin": "environment OMEGA_MODEL_PATH"}
    assert told["time_zone"] == {"value": "Europe/Berlin", "origin": "environment OMEGA_TIME_ZONE"}
    assert "(default)" in cli("config", "show").stdout


@pytest.mark.parametrize(
    ("text", "variables", "word"),
    [
        ("colour = 'red'", {}, "colour"),
        ("max_episodes = 'many'", {}, "max_episodes"),
        ("max_episodes = true", {}, "max_episodes"),
        ("max_episodes = 1", {}, "max_episodes"),
        ("= 3", {}, "TOML"),
        ("", {"OMEGA_COLOUR": "red"}, "colour"),
        ("", {"OMEGA_MAX_EPISODES": "many"}, "OMEGA_MAX_EPISODES"),
        ("", {"OMEGA_BACKGROUND_MAINTENANCE": "perhaps"}, "OMEGA_BACKGROUND_MAINTENANCE"),
        ("", {"OMEGA_SHARING": "everything"}, "sharing"),
    ],
)
def test_unknown_and_wrong_options_are_errors(
    cli: Cli, tmp_path: Path, text: str, variables: dict[str, str], word: str
) -> None:
    file = tmp_path / "named.toml"
    file.write_text(text)
    refused(cli("config", "show", "--config", file, more=variables), 78, word)


# Signals and pipes -------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_ends_it_quietly(cli: Cli, environment: dict[str, str]) -> None:
    answer(cli("observe", "--json", stdin="".join(watched(f"t{number:03d}") for number in range(100))))
    process = subprocess.Popen(
        [sys.executable, "-m", "omega_edge.cli", "export"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    errors_told = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert errors_told == b""


def test_ctrl_c_ends_with_130_and_keeps_what_was_recorded(cli: Cli, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "omega_edge.cli", "observe"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(watched("t001", timestamp=NOW_MS) + "not json\n")
    process.stdin.flush()
    # The complaint about the second line tells that the first has been taken in.
    assert "line 2" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert answer(cli("recommend", "--json", *AT))["context"]["recent_watches"] == ["t001"]
