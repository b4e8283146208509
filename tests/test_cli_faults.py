"""The command line where its surroundings are bad: streams closed or full, no home, no rights, killed half way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from omega_edge.catalog import write_bundle
from tests.synthetic import NOW_MS, sections_of
from tests.test_cli import AT, ROOT, Result, answer, cli_in, environment_of, refused, watched

NOBODY = 65534
UNLISTED = 54321
"""A user that no passwd file lists."""
COMMAND = f"{sys.executable} -m omega_edge.cli"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "synthetic.bundle"
    write_bundle(path, *sections_of(40))
    return path


@pytest.fixture
def variables(tmp_path: Path, catalog: Path) -> dict[str, str]:
    return environment_of(tmp_path, catalog)


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest) -> str:
    """PYTHONUNBUFFERED: output fails at the last flush, or at the print itself."""
    return request.param


@pytest.fixture
def open_folder(catalog: Path) -> Iterator[Path]:
    """A folder that other users may enter and read, with the bundle in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copyfile(catalog, folder / "synthetic.bundle")
        yield folder


def shell(command: str, variables: dict[str, str]) -> Result:
    """A bash line in which $omega is the command."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={"PYTHONUNBUFFERED": "", **variables, "omega": COMMAND},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def as_user(user: int, variables: dict[str, str], *arguments: str | Path, stdin: str = "") -> Result:
    """Run the command as another user where this process may become one."""
    if any(not folder.stat().st_mode & 0o001 for folder in Path(os.__file__).resolve().parents):
        pytest.skip("this Python lies in a folder that other users cannot enter")
    code = (
        "import os, sys\n"
        "from omega_edge import cli, cli_verbs, doctor\n"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=stdin,
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(result: Result, code: int, *words: str) -> None:
    refused(result, code, *words)
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("omega-edge: ")


# Standard streams --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["--help", "--version", "recommend --help", "recommend", "config show --json"])
def test_a_full_disk_under_the_output_is_74_and_a_reader_gone_is_141(
    verb: str, buffering: str, variables: dict[str, str]
) -> None:
    variables["PYTHONUNBUFFERED"] = buffering
    one_line(shell(f"$omega {verb} >/dev/full", variables), 74, "No space left")
    # The reader has ended before the command starts, so its first write fails.
    gone = shell(f"{{ sleep 0.2; $omega {verb}; echo $? >&2; }} | true", variables)
    assert gone.stderr == "141\n"


@pytest.mark.parametrize("verb", ["stats", "stats --json", "--help", "export"])
def test_closed_output_is_74_and_nothing_is_written_elsewhere(
    verb: str, variables: dict[str, str], tmp_path: Path
) -> None:
    one_line(shell(f"$omega {verb} >&-", variables), 74, "standard output")
    assert not (tmp_path / "store").exists()


def test_closed_input_is_66_where_it_is_needed_and_no_matter_elsewhere(variables: dict[str, str]) -> None:
    one_line(shell("$omega import - <&-", variables), 66, "standard input")
    assert json.loads(shell("$omega stats --json <&-", variables).stdout)["withheld"]
    assert shell("$omega observe <&-", variables).returncode == 2


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_stands_where_nobody_can_be_told(
    redirection: str, buffering: str, variables: dict[str, str]
) -> None:
    variables["PYTHONUNBUFFERED"] = buffering
    for arguments, code in (("recommend --at never", 78), ("dance", 2), ("recommend --catalog none.bundle", 66)):
        result = shell(f"$omega {arguments} {redirection}", variables)
        assert (result.returncode, result.stdout) == (code, "")


# Users without a home ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user that is not listed")
def test_a_user_without_a_home_needs_only_say_where_the_storage_is(open_folder: Path, variables: dict[str, str]) -> None:
    bare = {name: variables[name] for name in variables if name not in ("HOME", "OMEGA_STORAGE_PATH")}
    bare = {name: value for name, value in bare.items() if not name.startswith("XDG_")}
    bare["OMEGA_CATALOG_PATH"] = str(open_folder / "synthetic.bundle")
    (open_folder / "state").mkdir()
    os.chown(open_folder / "state", UNLISTED, UNLISTED)
    for verb in ("recommend", "stats", "doctor"):
        told = answer(as_user(UNLISTED, bare, verb, "--json", "--storage", open_folder / "state" / "store"))
        assert told
    one_line(as_user(UNLISTED, bare, "recommend"), 78, "storage_path", "--storage")


def test_a_path_of_a_user_that_is_not_there_is_a_configuration_error(variables: dict[str, str], tmp_path: Path) -> None:
    cli = cli_in(variables)
    one_line(cli("config", "show", more={"OMEGA_MODEL_PATH": "~nosuch/x"}), 78, "OMEGA_MODEL_PATH", "~nosuch/x")
    file = tmp_path / "named.toml"
    file.write_text('model_path = "~nosuch/x"\n')
    one_line(cli("config", "show", "--config", file, more={"OMEGA_MODEL_PATH": None}), 78, "named.toml", "~nosuch/x")


# Rights ------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_73_and_doctor_says_so(open_folder: Path, variables: dict[str, str]) -> None:
    locked = open_folder / "locked"
    locked.mkdir(mode=0o555)
    named = ("--catalog", open_folder / "synthetic.bundle", "--storage", locked / "store")
    # Root may write everywhere, and anybody else is already one who may not.
    run = partial(as_user, NOBODY, variables) if os.geteuid() == 0 else cli_in(variables)
    refused(run("observe", *named, stdin=watched("t001")), 73, "read-only")
    told = answer(run("doctor", "--json", *named))
    states = {check["check"]: check["state"] for check in told["checks"]}
    assert states["store"] == states["disk"] == "degraded"


@pytest.mark.parametrize("below", ["", "/store"])
def test_doctor_finds_that_the_storage_is_no_folder(variables: dict[str, str], tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    for path in (os.devnull, str(tmp_path / "file")):
        result = cli_in(variables)("doctor", "--json", "--storage", path + below)
        assert result.returncode == 1
        store = next(check for check in json.loads(result.stdout)["checks"] if check["check"] == "store")
        assert store["state"] == "failed" and "expected a folder" in store["detail"]


# Faults nobody foresaw -----------------------------------------------------------------------------------------


def test_an_internal_fault_is_70_in_one_line_and_a_traceback_only_for_debugging(variables: dict[str, str]) -> None:
    # A module of the installation that is not there.
    code = "import sys; sys.modules['omega_edge.doctor'] = None; from omega_edge import cli; sys.exit(cli.main())"
    call = [sys.executable, "-c", code, "doctor"]
    plain = subprocess.run(call, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)
    one_line(plain, 70, "internal fault", "doctor", "OMEGA_DEBUG=1")
    variables = {**variables, "OMEGA_DEBUG": "1"}
    debugged = subprocess.run(call, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert debugged.returncode == 70 and "Traceback" in debugged.stderr
    assert answer(cli_in(variables)("recommend", "--json", *AT))["recommendations"]


@pytest.mark.parametrize("text", ["²", "٣", "1" * 5000, "-1", "0001-01-01T00:00"])
def test_a_moment_that_is_none_is_refused(variables: dict[str, str], text: str) -> None:
    result = cli_in(variables)("recommend", "--at", text) if text != "-1" else cli_in(variables)("recommend", "--at=-1")
    assert result.returncode in (65, 78)
    one_line(result, result.returncode, "--at: expected")


def test_help_says_that_errors_are_text(variables: dict[str, str]) -> None:
    assert "errors are one line of text on standard error, with --json too." in cli_in(variables)("--help").stdout
    one_line(cli_in(variables)("recommend", "--json", "--profile", "stranger"), 78, "stranger")


# Exports -------------------------------------------------------------------------------------------------------


def test_an_export_into_the_storage_folder_is_refused(variables: dict[str, str], tmp_path: Path) -> None:
    cli, store = cli_in(variables), tmp_path / "store"
    answer(cli("observe", "--json", stdin=watched("t001", timestamp=NOW_MS)))
    before = sorted(os.listdir(store))
    (tmp_path / "link").symlink_to(store)
    (store / "below").mkdir()
    for out in (store / "e.json", store / "below" / "e.json", tmp_path / "link" / "e.json", store / ".." / "store" / "e"):
        one_line(cli("export", "--out", out), 78, "outside the storage folder")
    assert sorted(set(os.listdir(store)) - {"below"}) == before and os.listdir(store / "below") == []
    one_line(cli("export", "--out", "."), 78, "--out")


def test_what_a_killed_export_left_is_gone_after_the_next(variables: dict[str, str], tmp_path: Path) -> None:
    cli, out = cli_in(variables), tmp_path / "out"
    out.mkdir()
    # Left by a process that was killed while it wrote, and by one of the same target's name that still writes.
    killed = (
        "import os, signal; from omega_edge import cli_export; from pathlib import Path\n"
        "class Endless(dict):\n"
        "    def items(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cli_export._write_whole(Path({str(out / 'e.json')!r}), Endless(a=1))"
    )
    ended = subprocess.run([sys.executable, "-c", killed], cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == -9 and len(os.listdir(out)) == 1
    alive = subprocess.Popen(
        ["flock", str(out / ".e.json.1.tmp"), "sh", "-c", "echo held; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert alive.stdout.readline() == "held\n"
        others = {".e.json.tmp", ".e.json.x.tmp", ".exjson.5.tmp", "e.json.5.tmp"}
        for name in others:
            (out / name).touch()
        answer(cli("export", "--out", out / "e.json", "--json"))
        assert set(os.listdir(out)) == {"e.json", ".e.json.1.tmp", *others}
    finally:
        alive.communicate("\n", timeout=60)
    answer(cli("export", "--out", out / "e.json", "--json"))
    assert set(os.listdir(out)) == {"e.json", *others}
