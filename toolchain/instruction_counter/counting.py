"""Builds the plugin and the counted programs, runs them under the emulator, and turns marks into counts."""

from __future__ import annotations

import ast
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from toolchain.cross_wheel import COMPILE_FLAGS, COMPILER
from toolchain.instruction_counter.limits import CALLS, KERNELS, Count
from toolchain.instruction_counter.marks import (
    CountError,
    expect_equal_outputs,
    expect_same_marks,
    read_calls,
    read_kernels,
    read_marks,
)

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
SIMD = ROOT / "omega_edge/_simd"
TELEVISION = ROOT / "build/aarch64"
"""What ./check --aarch64 makes: sysroot, Debian's root for arm64; site, the packages; installed, the wheel."""
PYTHON = "sysroot/usr/bin/python3.11"

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
"""Without dot product in order, without out of order, and with."""
EMULATOR, HOST_COMPILER = "qemu-aarch64", "gcc"
PACKAGES = {
    EMULATOR: "qemu-user",
    COMPILER: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    HOST_COMPILER: "gcc libc6-dev",
    "setarch": "util-linux",
}
"""Debian packages by the program that is needed of them."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of programs whose libraries would start more."""
NOTHING = "nothing"
"""The call that counts what two marks cost by themselves."""
_SECONDS = 600
_MESSAGE_CHARACTERS = 2_000

Progress = Callable[[str], None]


class ToolMissing(Exception):
    """A program or folder is needed that is not there; the message says how to get it."""


def check_tools(television: Path | None) -> None:
    """Raises ToolMissing, once for everything. television: its folder, or None where no Python is run."""
    packages = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if packages:
        raise ToolMissing(
            "programs are missing; install them by: apt-get install -y --no-install-recommends " + " ".join(packages)
        )
    if "-plugin" not in _output([EMULATOR, "-h"]):
        raise ToolMissing(
            f"{shutil.which(EMULATOR)} takes no plugins; install Debian's dynamic one: apt-get install -y qemu-user"
        )
    # onnxruntime ends by a signal if it reads this machine's cpuinfo.
    for name in (
        (PYTHON, "sysroot/proc/cpuinfo", "site/numpy", "installed/omega_edge") if television is not None else ()
    ):
        if not (television / name).exists():
            raise ToolMissing(
                f"{television / name} is missing; ./check --aarch64 makes it, --kernels counts without it"
            )


def check_wheel_is_present(television: Path) -> None:
    """Raises ToolMissing if the installed wheel is not of the present sources: its counts would be those of others.

    Python files are compared; what is compiled must be older than the folder that the wheel was installed into.
    """
    installed = television / "installed"
    for source in sorted((ROOT / "omega_edge").rglob("*.*")):
        inside = installed / source.relative_to(ROOT)
        if source.suffix == ".py":
            present = inside.exists() and inside.read_bytes() == source.read_bytes()
        else:
            compiled = source.suffix in {".c", ".h", ".pyx", ".pxd", ".pxi"} and source.name != "_kernels.c"
            present = not compiled or source.stat().st_mtime <= installed.stat().st_mtime
        if not present:
            raise ToolMissing(
                f"the wheel in {installed} was made before {source.relative_to(ROOT)} was changed; ./check --aarch64 "
                "installs the present one, --kernels counts without it"
            )


def tool_versions() -> dict[str, str]:
    """First lines of the tools' own words: counts belong to a compiler."""
    lines = {
        name: _output([program, "--version"]) for name, program in (("compiler", COMPILER), ("emulator", EMULATOR))
    }
    return {name: text.splitlines()[0] for name, text in lines.items()}


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
    )
    return done.stdout


def _run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    """Standard output of a command. Raises CountError with the end of its own words if it fails."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=environment,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired as error:
        raise CountError(f"{Path(command[0]).name}: expected an end within {_SECONDS} s") from error
    if done.returncode != 0:
        shown = " ".join(Path(word).name for word in command[:1] + command[-2:])
        words = done.stderr.strip()[-_MESSAGE_CHARACTERS:]
        raise CountError(f"{shown}: ended with code {done.returncode}\n{words}")
    return done.stdout


def compile_flags() -> list[str]:
    """The C core's flags, from setup.py and of the wheel for televisions: what is counted is what is shipped."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(name) for name in node.targets] == ["COMPILE_FLAGS"]:
            return [*ast.literal_eval(node.value), *COMPILE_FLAGS]
    raise CountError("setup.py: expected a list COMPILE_FLAGS, found none")


def build_plugin(folder: Path) -> Path:
    """The plugin, compiled for this machine."""
    plugin = folder / "plugin.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    _run([HOST_COMPILER, *flags, "-o", plugin, HERE / "plugin.c"])
    return plugin


def build_kernels(folder: Path) -> Path:
    """counted_kernels.c with the C core, one static program for arm64."""
    program = folder / "counted_kernels"
    sources = [HERE / "counted_kernels.c", *sorted(SIMD.glob("[!_]*.c"))]
    flags = [*compile_flags(), "-Werror", "-static", f"-I{SIMD}", f"-I{ROOT / 'include'}", f"-I{HERE}"]
    _run([COMPILER, *flags, "-o", program, *sources, "-lm"])
    return program


def emulate(
    plugin: Path, cpu: str, command: Sequence[str | Path], television: Path | None = None
) -> tuple[str, dict[int, list[int]]]:
    """Standard output of an arm64 program, and its counts by mark. television: the folder whose libraries it takes.

    Nothing random is left that can be taken away: the address space, the random bytes of the C library, Python's
    hashes, and an environment that is empty but for what is set here.
    """
    out = plugin.with_name("marks")
    out.unlink(missing_ok=True)
    emulator = ["setarch", "-R", EMULATOR, "-cpu", cpu, "-seed", "1", "-plugin", f"file={plugin},out={out}"]
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"} | ONE_THREAD
    if television is not None:
        emulator += ["-L", television / "sysroot"]
        environment["PYTHONPATH"] = f"{television / 'installed'}:{television / 'site'}"
    printed = _run([*emulator, *command], environment)
    if not out.exists():
        raise CountError(f"{EMULATOR}: expected the plugin to write {out}; its interface is that of QEMU 6.0 to 8.2")
    return printed, read_marks(out.read_text(encoding="ascii", errors="replace"))


def make_inputs(folder: Path, what: str) -> None:
    """Write the input of "kernels" or "calls" into the folder; a process of its own does, as bench/ is not imported."""
    if not all((ROOT / path).exists() for path in ("build/movietweetings-70k.bundle", "build/model")):
        raise ToolMissing("build/ has no catalogue and no model to count with; run ./check once, which makes them")
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
    _run([sys.executable, "-m", "bench.counted_inputs", str(folder), what], environment)


def count_kernels(plugin: Path, program: Path, codes: Path, cpu: str) -> list[Count]:
    """Instructions of each kernel, of the instruction set that the processor's dispatch takes.

    The others run too, and must answer the same.
    """
    printed, counts = emulate(plugin, cpu, [program, codes])
    kernels = read_kernels(printed)
    expect_same_marks((kernel.mark for kernel in kernels), counts)
    expect_equal_outputs(kernels)
    best = kernels[0].isa
    return [
        Count(KERNELS, kernel.kernel, cpu, round(counts[kernel.mark][0] / kernel.units, 3), kernel.isa, kernel.per)
        for kernel in kernels
        if kernel.isa == best
    ]


def count_calls(plugin: Path, inputs: Path, cpu: str, television: Path) -> list[Count]:
    """Instructions of each call, median of its repeats, without those of the marks."""
    storage = inputs / "storage"
    shutil.rmtree(storage, ignore_errors=True)
    shutil.copytree(inputs / "full", storage)
    # Neither the counter's folder nor packages of the machine that counts are to be found: -P, -S.
    command = [television / PYTHON, "-P", "-S", HERE / "counted_calls.py", inputs / "request.json"]
    printed, counts = emulate(plugin, cpu, command, television)
    calls = read_calls(printed)
    expect_same_marks(calls, counts)
    repeats = {name: counts[mark] for mark, name in calls.items()}
    marks_alone = statistics.median_low(repeats.pop(NOTHING))
    found = []
    for name, values in repeats.items():
        median = statistics.median_low(values)
        span = (max(values) - min(values)) / median
        found.append(Count(CALLS, name, cpu, median - marks_alone, span=span))
    return found


def run_counts(folder: Path, cpus: Sequence[str], television: Path | None, say: Progress) -> list[Count]:
    """Every count: of the kernels and, where there is a television, of the calls."""
    say("building the plugin, the kernels and their input")
    plugin, program = build_plugin(folder), build_kernels(folder)
    make_inputs(folder, "kernels")
    counts: list[Count] = []
    for cpu in cpus:
        say(f"{cpu}: kernels")
        counts += count_kernels(plugin, program, folder / "codes.int8", cpu)
    if television is None:
        return counts
    say("building the household for the calls")
    make_inputs(folder, "calls")
    for cpu in cpus:
        say(f"{cpu}: calls")
        counts += count_calls(plugin, folder, cpu, television)
    return counts
