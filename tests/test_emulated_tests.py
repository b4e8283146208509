"""Which tests run on emulated processors: all that exist, but for those with a reason."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.test_scripts import wait_for
from toolchain.emulated_tests import (
    EXPECTED_ISA,
    KERNELS,
    NOT_EMULATED,
    RUNS,
    Run,
    copy_tests,
    files_of,
    main,
    run_tests,
    write_python,
)

PROJECT = Path(__file__).resolve().parent.parent
TESTS = PROJECT / "tests"
MODULES = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}


def matched(patterns: tuple[str, ...]) -> set[str]:
    return {module for module in MODULES if any(fnmatchcase(module, pattern) for pattern in patterns)}


def test_every_test_runs_emulated_or_has_a_reason_not_to() -> None:
    emulated = set().union(*(matched(run.modules) for run in RUNS))
    excluded = matched(tuple(NOT_EMULATED))
    unplaced = MODULES - emulated - excluded
    assert not unplaced, f"give {unplaced} a place in RUNS or NOT_EMULATED of toolchain/emulated_tests.py"
    assert emulated & excluded == set()
    assert all(NOT_EMULATED.values()) and all(matched((pattern,)) for pattern in NOT_EMULATED)


def test_the_kernels_run_with_every_instruction_set_and_on_every_processor() -> None:
    assert {EXPECTED_ISA[run.cpu] for run in RUNS if run.modules == KERNELS} == set(EXPECTED_ISA.values())
    assert {run.cpu for run in RUNS if run.name == "kernels"} == set(EXPECTED_ISA)
    of_kernels = {name for name in MODULES if "params=isa_names()" in (TESTS / f"test_{name}.py").read_text()}
    assert "kernels" in of_kernels
    assert of_kernels - {"emulated_tests"} <= matched(KERNELS)


def imported_by(path: Path) -> set[str]:
    """Modules and names, with dots, that a file imports when it is imported."""
    found: set[str] = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found |= {f"{statement.module}.{alias.name}" for alias in statement.names} | {str(statement.module)}
    return found


def test_what_emulated_tests_import_of_this_project_is_copied_or_installed(tmp_path: Path) -> None:
    copy_tests(tmp_path / "copy")
    waiting, seen = {path for run in RUNS for path in files_of(run.modules, TESTS)}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imported_by(path):
            room, file = name.partition(".")[0], Path(*name.split(".")).with_suffix(".py")
            if room not in ("bench", "cloud", "tests", "toolchain") or not (PROJECT / file).is_file():
                continue
            assert (tmp_path / "copy" / file).is_file(), f"{path.name} imports {file}, which READ_BY_TESTS does not name"
            waiting |= {PROJECT / file} - seen
    assert TESTS / "reference.py" in seen


def test_files_of_patterns_that_name_nothing_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").touch()
    assert files_of(("one", "o*"), tmp_path) == [tmp_path / "test_one.py"]
    with pytest.raises(FileNotFoundError, match="test_two.py: no such tests"):
        files_of(("two",), tmp_path)


@pytest.mark.parametrize(("body", "code", "word"), [("assert 1", 0, "1 passed"), ("assert 0", 1, "1 failed")])
def test_a_run_tells_what_pytest_told(tmp_path: Path, body: str, code: int, word: str) -> None:
    tests = tmp_path / "tests" / "cortex-a53" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_one.py").write_text(f"def test_one():\n    {body}\n")
    # This machine's own Python in the emulated one's place.
    script = tmp_path / "bin" / "python-cortex-a53"
    script.parent.mkdir()
    variables = f'PYTHONPATH="{PROJECT}/toolchain/emulated" OMEGA_EMULATED_PYTHON="$0"'
    script.write_text(f'#!/bin/sh\n{variables} exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    outcome = run_tests(Run("one", "cortex-a53", ("one",)), tmp_path, tmp_path, set())
    assert (outcome.exit_code, word in outcome.summary) == (code, True)
    selected = run_tests(Run("one", "cortex-a53", ("one",), ("no_such", "neither")), tmp_path, tmp_path, set())
    assert (selected.exit_code, "1 deselected" in selected.summary) == (5, True)
    assert outcome.log == tmp_path / "logs" / "one-cortex-a53.log"


def test_every_word_that_selects_is_in_a_test_of_its_modules() -> None:
    for run in (run for run in RUNS if run.words):
        text = "".join(path.read_text() for path in files_of(run.modules, TESTS))
        names = [*re.findall(r"^ *(?:def|class) ([tT]est_?\w+)", text, re.MULTILINE), *run.modules]
        assert [word for word in run.words if not any(word in name for name in names)] == []


def test_an_emulated_run_makes_a_fifth_of_the_random_examples(tmp_path: Path) -> None:
    (tmp_path / "test_examples.py").write_text(
        "from hypothesis import given, settings, strategies as st\n"
        "seen = []\n"
        "@settings(max_examples=50, derandomize=True)\n"
        "@given(st.integers())\n"
        "def test_it_says_how_many(number): seen.append(number)\n"
        "@given(st.integers())\n"
        "def test_it_does_not_say(number): seen.append(number)\n"
        "def test_sum(): assert len(seen) == 10 + 20\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "toolchain" / "emulated"), "OMEGA_EMULATED_PYTHON": sys.executable}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "fewer_examples", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout


def test_the_emulated_python_is_started_on_its_processor_whatever_the_environment(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    emulator = tmp_path / "bin" / "qemu-aarch64"
    emulator.parent.mkdir()
    emulator.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$PYTHONPATH" "$OMEGA_EMULATED_PYTHON"\n')
    emulator.chmod(0o755)
    script = write_python(folder, "cortex-a72")
    environment = {"PATH": f"{emulator.parent}:{os.environ['PATH']}"}
    done = subprocess.run([script, "-c", "two words"], env=environment, capture_output=True, text=True, check=True)
    sysroot = folder / "sysroot"
    assert done.stdout.splitlines() == [
        "-cpu",
        "cortex-a72",
        "-L",
        str(sysroot),
        str(sysroot / "usr/bin/python3.11"),
        "-c",
        "two words",
        f"{PROJECT / 'toolchain' / 'emulated'}:{folder / 'installed'}:{folder / 'site'}",
        str(script),
    ]


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path), "--model", str(tmp_path)]) == 66
    assert "sysroot: missing; ./check --aarch64 makes it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--folder", str(tmp_path), "--model", str(tmp_path), "--cpu", "cortex-a99"])
    assert ended.value.code == 2


def test_the_list_names_what_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path), "--model", str(tmp_path), "--list", "--cpu", "cortex-a76", "--run", "kernels"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("kernels on cortex-a76: test_installed test_kernels ")


def test_when_it_is_stopped_nothing_is_left_running(tmp_path: Path) -> None:
    for name in ("sysroot", "site", "installed", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "manifest.json").touch()
    emulator = tmp_path / "bin" / "qemu-aarch64"
    emulator.write_text(f'#!/bin/sh\necho $$ >"{tmp_path}/pid.partial"\nmv "{tmp_path}/pid.partial" "{tmp_path}/pid"\nexec sleep 60\n')
    emulator.chmod(0o755)
    command = [sys.executable, "-m", "toolchain.emulated_tests", "--folder", tmp_path, "--model", tmp_path]
    environment = os.environ | {"PATH": f"{emulator.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([*command, "--run", "inference", "--cpu", "cortex-a53"], cwd=PROJECT, env=environment)
    wait_for(tmp_path / "pid")
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
