"""./check --aarch64, toolchain/cross_build and what they source: what they need, take, refuse and let pass."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.test_scripts import PREPARE, ROOT, bare, bare_path, bash, wait_for  # noqa: F401  bare_path is a fixture

SOURCED = f"source {ROOT}/toolchain/sysroot.sh\nsource {ROOT}/toolchain/aarch64.sh\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("check", "--aarch64", "-k", "wire"), 2, "expected nothing after --aarch64, got: -k wire"),
        (("check", "--image", "-x"), 2, "expected nothing after --image, got: -x"),
        (("toolchain/cross_build", "--fast"), 2, "Usage: toolchain/cross_build"),
        (("toolchain/build_image", "--fast"), 2, "Usage: toolchain/build_image"),
    ],
)
def test_options_that_do_not_exist_are_refused_before_anything_is_prepared(
    command: tuple[str, ...], code: int, message: str
) -> None:
    done = subprocess.run([ROOT / command[0], *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.parametrize("script", ["check", "toolchain/cross_build"])
def test_help_tells_of_the_television_and_prepares_nothing(script: str) -> None:
    done = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, timeout=60, cwd="/", check=True)
    assert "--aarch64" in done.stdout and "OMEGA_DEBIAN_MIRROR" in done.stdout and done.stderr == ""


def test_the_continuous_integration_runs_every_check() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line.removeprefix("exec ") for line in lines if "./check" in line] == [
        "./check </dev/null",
        "./check --image </dev/null",
        "./check --aarch64 </dev/null",
    ]


def test_the_television_gets_the_locked_packages_but_for_those_of_the_build() -> None:
    result = bash(SOURCED + f"cd {ROOT}\nlocked_for_television\nprintf '%s\\n' \"${{NOT_ON_TELEVISION[@]}}\" >&2", ROOT)
    left_out = set(result.stderr.split())
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    kept = re.findall(r"^([\w-]+)==", result.stdout, re.MULTILINE)
    assert left_out <= set(locked) and kept == [name for name in locked if name not in left_out]
    assert {"numpy", "lmdb", "cbor2", "zstandard", "onnxruntime", "pytest"} <= set(kept)
    entries = re.split(r"\n(?=\S)", result.stdout.strip())
    assert all(entry.count("--hash=sha256:") >= 1 for entry in entries)
    assert "#" not in result.stdout


def test_the_mirror_is_the_machines_own_source_of_the_suite(tmp_path: Path) -> None:
    apt = tmp_path / "apt-get"
    uris = "'{0}/security/dists/bookworm-security/InRelease' a 0\\n'{0}/debian/dists/bookworm/InRelease' b 0 \\n"
    host = "http://example.org"
    apt.write_text(f'#!/bin/sh\n[ "$*" = "update --print-uris" ] && printf "{uris.format(host)}"\n')
    apt.chmod(0o755)
    path = f"PATH={tmp_path}:$PATH\n"
    assert bash(SOURCED + path + "debian_mirror", ROOT).stdout == f"{host}/debian\n"
    apt.write_text("#!/bin/sh\nexit 1\n")
    result = bash(SOURCED + path + "debian_mirror", ROOT)
    assert (result.returncode, result.stdout) == (0, "")


NEEDED = {
    "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross",
    "gcc-arm-linux-gnueabi", "libc6-dev-armel-cross", "qemu-user", "cmake", "make",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this system has no apt-get")
def test_without_root_the_one_line_to_run_is_printed(bare_path: Path) -> None:  # noqa: F811
    (bare_path / "apt-get").symlink_to(shutil.which("apt-get"))
    sysroot = (ROOT / "toolchain" / "sysroot.sh").read_text()
    result = bare(bare_path, as_root=False, script=f"{PREPARE.read_text()}\n{sysroot}\nrequire_cross\n")
    assert result.returncode == 69, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if "apt-get" in line)
    packages = line.rstrip("'").split("--no-install-recommends ")[1].split()
    assert set(packages) >= NEEDED and len(packages) == len(set(packages))
    result = bare(bare_path, as_root=False, script=f"{PREPARE.read_text()}\n{sysroot}\nrequire_cross aarch64\n")
    assert "gcc-aarch64-linux-gnu" in result.stderr and "gnueabi" not in result.stderr


def ctest_output(*lines: str) -> str:
    return "".join(f"{number}/{len(lines)} Test #{number}: {line}\n" for number, line in enumerate(lines, 1))


PASSED, SKIPPED = "...   Passed    0.01 sec", "...***Skipped   0.00 sec"


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        (ctest_output(f"check_one {PASSED}", f"check_two {PASSED}"), 0, ""),
        (ctest_output(f"check_one {PASSED}"), 1, "expected the check check_two among those that passed"),
        (ctest_output(f"check_one {PASSED}", f"check_two {SKIPPED}"), 1, "expected the check check_two"),
        (ctest_output(f"check_one {PASSED}", f"not_check_two {PASSED}"), 1, "expected the check check_two"),
    ],
    ids=["all", "one not listed", "one skipped", "another's name"],
)
def test_no_check_of_the_core_is_passed_over_in_silence(tmp_path: Path, output: str, code: int, message: str) -> None:
    for name in ("check_one", "check_two"):
        (tmp_path / f"{name}.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    (tmp_path / "part.c").write_text("int part;\n")
    (tmp_path / "report").write_text(output)
    result = bash(SOURCED + "every_check_passed . report", tmp_path)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr


def test_all_run_side_by_side_and_one_that_fails_fails_them_all(tmp_path: Path) -> None:
    steps = ["first", "touch first; until [ -e second ]; do sleep 0.02; done", "second", "touch second; echo said; exit 3"]
    command = [sys.executable, "-m", "toolchain.side_by_side", "--log", tmp_path / "logs", *steps, "third", "touch third"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "second" in done.stderr and "exit code 3" in done.stderr and "    said" in done.stderr
    assert (tmp_path / "third").exists() and "first ...." in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_runner_ends_all_that_it_started(tmp_path: Path, number: int) -> None:
    step = "sleep 600 & echo $! >pid.partial; mv pid.partial pid; wait"
    command = [sys.executable, "-m", "toolchain.side_by_side", "--log", tmp_path / "logs", "a step", step, "never", "touch never"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, "second", "sleep 600"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "pid")
    child = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the step's own child is left running"
        time.sleep(0.02)


def test_a_folder_without_checks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    assert bash(SOURCED + "every_check_passed . report", tmp_path).returncode == 66


def test_what_check_leaves_out_is_run_with_aarch64() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        options = tomllib.load(file)["tool"]["pytest"]["ini_options"]
    assert options["addopts"].endswith("-m 'not with_aarch64'")
    assert [marker.partition(":")[0] for marker in options["markers"]] == ["with_aarch64"]
    steps = bash(SOURCED + "declare -f check_aarch64 check_marked", ROOT).stdout
    assert re.search(r'checks\+=\(".*" check_marked\)', steps) and re.search(r'together "\$\{checks\[@\]\}" \|\| exit', steps)
    assert re.search(r"pytest .*-m with_aarch64 ", steps)


def test_the_core_is_sanitized_here_and_on_the_television(tmp_path: Path) -> None:
    listed = bash(SOURCED + 'printf "%s\n" "${SANITIZED_CHECKS[@]}"', ROOT).stdout.split("\n")
    assert [line.split()[0] for line in listed if line] == ["here", "aarch64"]
    programs = "cmake() { printf '%s ' \"$@\"; }; ctest() { printf '%s|' \"${ASAN_OPTIONS:-}\"; }; every_check_passed() { :; }\n"
    for arguments in (line for line in listed if line):
        said = bash(SOURCED + programs + f"mkdir -p build/aarch64\ncheck_sanitized {arguments}", tmp_path).stdout
        assert "-DOMEGA_SANITIZE=address,undefined" in said
        assert ("cross/aarch64.cmake" in said) == ("detect_leaks=0|" in said) == (arguments != "here")


def test_every_toolchain_file_is_used_and_shares_the_rest() -> None:
    listed = bash(SOURCED + 'printf "%s\\n" "${NATIVE_CHECKS[@]}"', ROOT).stdout.split("\n")
    files = {path.stem for path in (ROOT / "cross").glob("*.cmake")} - {"television"}
    assert {line.split()[0] for line in listed if line} == files
    for name in files:
        assert "television.cmake" in (ROOT / "cross" / f"{name}.cmake").read_text()
