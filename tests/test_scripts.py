"""./run, ./check and toolchain/prepare.sh: steps run once, failures leave no stamp, the next start repairs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PREPARE = ROOT / "toolchain" / "prepare.sh"
STEP = 'step "a step" stamp "$(fingerprint input)" output '
"""One step of which `input` is the only input and `output` the result; the command follows."""


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with prepare.sh sourced, in a folder, as ./run does: without a terminal."""
    text = f"set -euo pipefail\nsource {PREPARE}\n{script}\n"
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    """The same, left running in a process group of its own, as a terminal would start it."""
    text = f"set -euo pipefail\nsource {PREPARE}\ntrap on_exit EXIT\ntrap on_interrupt INT TERM\n{script}\n"
    return subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    """Return when the file is there; fail after 60 seconds."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input").write_text("one")
    return tmp_path


def runs(folder: Path) -> int:
    log = folder / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0


WORK = "bash -c 'echo run >>runs; cp input output'"


def test_a_step_runs_once_and_again_only_when_its_input_changes(folder: Path) -> None:
    first = bash(STEP + WORK, folder)
    assert first.returncode == 0, first.stderr
    assert "a step" in first.stderr and " s" in first.stderr
    second = bash(STEP + WORK, folder)
    assert (second.returncode, second.stderr, runs(folder)) == (0, "", 1)
    (folder / "input").write_text("two")
    assert bash(STEP + WORK, folder).returncode == 0
    assert (runs(folder), (folder / "output").read_text()) == (2, "two")


def test_a_step_runs_again_when_its_output_is_gone(folder: Path) -> None:
    bash(STEP + WORK, folder)
    (folder / "output").unlink()
    assert bash(STEP + WORK, folder).returncode == 0
    assert runs(folder) == 2


def test_a_failed_step_keeps_its_exit_code_shows_its_log_and_runs_again(folder: Path) -> None:
    failed = bash(STEP + "bash -c 'touch output; echo the disk fell off; exit 7'", folder)
    assert failed.returncode == 7
    assert "the disk fell off" in failed.stderr and "failed" in failed.stderr
    assert not (folder / "stamp").exists()
    assert bash(STEP + WORK, folder).returncode == 0
    assert runs(folder) == 1


def test_a_step_that_does_not_make_its_output_is_an_error(folder: Path) -> None:
    result = bash(STEP + "true", folder)
    assert result.returncode == 70
    assert "output" in result.stderr
    assert not (folder / "stamp").exists()


def test_a_changed_step_that_fails_does_not_leave_the_old_stamp(folder: Path) -> None:
    bash(STEP + WORK, folder)
    (folder / "input").write_text("two")
    assert bash(STEP + "false", folder).returncode == 1
    (folder / "input").write_text("one")
    bash(STEP + WORK, folder)
    assert runs(folder) == 2


def test_a_step_killed_in_the_midst_is_repeated_by_the_next_start(folder: Path) -> None:
    process = start(STEP + "bash -c 'echo half >output; : >begun; sleep 60'", folder)
    wait_for(folder / "begun")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "stamp").exists()
    assert bash(STEP + WORK, folder).returncode == 0
    assert (runs(folder), (folder / "output").read_text()) == (1, "one")


@pytest.mark.parametrize(
    "step",
    [STEP + "bash -c ': >begun; sleep 60'", "works() { : >begun && sleep 60; }\n" + STEP + "works"],
    ids=["a program", "a function, which this shell runs with its own output in the log"],
)
def test_ctrl_c_ends_with_130_and_says_that_the_next_start_goes_on(folder: Path, step: str) -> None:
    process = start(step, folder)
    wait_for(folder / "begun")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "next start" in errors
    assert not (folder / "stamp").exists()


def test_a_second_start_waits_for_the_first_and_then_finds_the_work_done(folder: Path) -> None:
    slow = "bash -c 'echo run >>runs; touch begun; until [ -e go ]; do sleep 0.02; done; touch output'"
    first = start("take_lock\n" + STEP + slow, folder)
    wait_for(folder / "begun")
    second = start("take_lock\ntouch entered\n" + STEP + slow, folder)
    assert "waiting" in second.stderr.readline()
    assert not (folder / "entered").exists()
    (folder / "go").touch()
    first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode, runs(folder)) == (0, 0, 1)


def test_a_half_installed_environment_is_made_anew(tmp_path: Path) -> None:
    environment = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    leftover = environment / "leftover"
    leftover.touch()
    script = f"python={sys.executable}\nmake_environment"
    assert bash(script, tmp_path).returncode == 0
    assert leftover.exists(), "a sound environment is kept"
    (environment / "omega-edge.installing").touch()
    assert bash(script, tmp_path).returncode == 0
    assert not leftover.exists()
    assert not (environment / "omega-edge.installing").exists()
    subprocess.run([environment / "bin" / "python", "-m", "pip", "--version"], check=True, capture_output=True)


def test_the_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    prints = [bash(f"fingerprint {name}", tmp_path).stdout for name in ("a", "b", "a b", "b a")]
    assert len(set(prints)) == 4
    (tmp_path / "a").write_text("y")
    assert bash("fingerprint a", tmp_path).stdout != prints[0]
    assert bash("mark=$(fingerprint missing); echo went on", tmp_path).returncode != 0


@pytest.fixture
def bare_path() -> Iterator[Path]:
    """A PATH without Python and compiler that another user may read, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for tool in ("bash", "id", "env"):
            (folder / tool).symlink_to(shutil.which(tool))
        yield folder


def bare(folder: Path, *, as_root: bool, script: str = "") -> subprocess.CompletedProcess[str]:
    """A script, or require_system, with nothing but what is in folder, by an ordinary user unless as_root."""
    drop = []
    if os.geteuid() == 0 and not as_root:
        drop = [shutil.which("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        [*drop, shutil.which("bash"), "-s"],
        input="set -euo pipefail\n" + (script or f"{PREPARE.read_text()}\nrequire_system\n"),
        cwd="/",
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# find_python looks at /usr/bin/python3 whatever the PATH, so a machine that has one lacks only the compiler.
EXPECTED_MISSING = ("gcc", "libc6-dev")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this system has no apt-get")
def test_without_root_the_one_line_to_run_is_printed(bare_path: Path) -> None:
    (bare_path / "apt-get").symlink_to(shutil.which("apt-get"))
    result = bare(bare_path, as_root=False)
    assert result.returncode == 69, result.stderr
    lines = [line.strip() for line in result.stderr.splitlines() if "apt-get" in line]
    assert len(lines) == 1
    assert lines[0].startswith("sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends ")
    for package in EXPECTED_MISSING:
        assert package in lines[0].rstrip("'").split()


def test_without_apt_the_missing_parts_are_named(bare_path: Path) -> None:
    result = bare(bare_path, as_root=True)
    assert result.returncode == 69, result.stderr
    assert "3.11" in result.stderr
    for package in EXPECTED_MISSING:
        assert package in result.stderr


def inputs(name: str) -> set[str]:
    """Project files that prepare.sh lists as a step's inputs."""
    result = bash(f'printf "%s\\n" "${{{name}[@]}}"', ROOT)
    return set(result.stdout.splitlines())


@pytest.mark.parametrize(
    ("module", "name"), [("toolchain.build_bundle", "BUNDLE_INPUTS"), ("toolchain.export_model", "MODEL_INPUTS")]
)
def test_a_step_lists_every_module_that_shapes_its_output(module: str, name: str) -> None:
    code = (
        f"import sys, {module}\n"
        "print(*[m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)], sep='\\n')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = (ROOT / "omega_edge", ROOT / "cloud", ROOT / "toolchain")
    loaded = {
        str(Path(line).relative_to(ROOT))
        for line in result.stdout.splitlines()
        if any(Path(line).is_relative_to(folder) for folder in ours) and line.endswith(".py")
    }
    listed = inputs(name)
    unlisted = {path for path in loaded - listed if not path.endswith("__init__.py") and "errors.py" not in path}
    assert not unlisted
    assert {path for path in listed if path.startswith("cloud/")} <= loaded, "what the shard alone needs makes no bundle stale"
    assert all((ROOT / path).is_file() for path in listed)


def test_the_core_lists_every_source_file() -> None:
    sources = {
        str(path.relative_to(ROOT))
        for pattern in ("*.c", "*.h", "*.pyx", "*.pxd")
        for path in (ROOT / "omega_edge" / "_simd").glob(pattern)
        if path.name != "_kernels.c"
    }
    assert sources and sources <= inputs("CORE_INPUTS")


def locked(name: str) -> dict[str, str]:
    """Entries of a lock by package: its version and hashes, as written."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    return {entry.partition("==")[0]: entry for entry in entries if not entry.startswith("#")}


def required(text: str) -> str:
    """The package that a requirement is of."""
    return canonicalize_name(Requirement(text).name)


PROJECT_TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT_TABLE["optional-dependencies"]
LOCKS = ("requirements.lock", "requirements-model.lock", "requirements-cloud.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_a_version_with_hashes_of_every_package(name: str) -> None:
    entries = locked(name)
    assert entries and list(entries) == sorted(entries)
    for package, entry in entries.items():
        first, *hashes = entry.splitlines()
        assert re.fullmatch(rf"{package}==[\w.]+ \\", first)
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)


def test_the_lock_of_the_training_libraries_adds_to_the_other_one_and_pins_the_extra() -> None:
    base, added = locked("requirements.lock"), locked("requirements-model.lock")
    assert not base.keys() & added.keys()
    extra = {required(name) for name in EXTRAS["model"]}
    assert extra == {"jax", "jaxlib", "lightgbm", "scipy", "implicit"} and extra <= added.keys()
    assert not {required(name) for name in PROJECT_TABLE["dependencies"]} & added.keys()


def test_the_lock_of_the_shard_is_complete_and_agrees_with_the_others() -> None:
    shard = locked("requirements-cloud.lock")
    named = {required(name) for name in (*PROJECT_TABLE["dependencies"], *EXTRAS["sync"], *EXTRAS["cloud"])}
    assert named - {"omega-edge"} <= shard.keys()
    for name in LOCKS[:2]:
        others = locked(name)
        assert all(others[package] == shard[package] for package in others.keys() & shard.keys())
    alone = shard.keys() - locked("requirements.lock").keys()
    assert alone == {"numkong", "prometheus-client", "tqdm", "usearch", "uvloop"}


def test_the_lock_of_the_shard_holds_all_that_its_packages_require() -> None:
    """By what the installed packages say of themselves, without their extras."""
    shard = locked("requirements-cloud.lock").keys()
    for package in shard:
        needed = [Requirement(line) for line in requires(package) or ()]
        wanted = {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})}
        assert wanted <= shard, package


def test_the_television_needs_no_more_than_before() -> None:
    assert {required(name) for name in PROJECT_TABLE["dependencies"]} == {"numpy", "lmdb", "cbor2", "zstandard"}
    assert {required(name) for name in EXTRAS["sync"]} == {"aiohttp", "pynacl"}


@pytest.mark.parametrize("script", ["run", "check"])
def test_help_prepares_nothing(script: str) -> None:
    result = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: ./{script}")
    assert result.stderr == ""


ALL = "--dist loadfile --no-loadscope-reorder"


@pytest.mark.parametrize(
    ("arguments", "spread"),
    [
        ("", f"-n auto {ALL}"),
        ("-x", f"-n auto {ALL}"),
        ("-q --durations=5", f"-n auto {ALL}"),
        ("-n 4", ALL),
        ("-x -n0", ALL),
        ("-k ranking", ""),
        ("tests/test_ranking.py -x", ""),
        ("--lf", ""),
    ],
)
def test_all_tests_run_in_many_processes_and_chosen_ones_in_this_one(arguments: str, spread: str) -> None:
    function = re.search(r"^in_processes\(\) .*?^}", (ROOT / "check").read_text(), re.MULTILINE | re.DOTALL)
    result = bash(f"{function[0]}\nin_processes {arguments}", ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, spread), result.stderr


SCRIPTS = ("run", "check", ".ci/run", "toolchain/build_image", "toolchain/cross_build", "toolchain/count_instructions")
SOURCED = ("toolchain/prepare.sh", "toolchain/sysroot.sh", "toolchain/aarch64.sh", "toolchain/image.sh")


@pytest.mark.parametrize("script", [*SCRIPTS, *SOURCED])
def test_scripts_are_sound_and_name_no_host(script: str) -> None:
    path = ROOT / script
    subprocess.run(["bash", "-n", path], check=True)
    assert "://" not in path.read_text()
    assert os.access(path, os.X_OK) == (script in SCRIPTS)
