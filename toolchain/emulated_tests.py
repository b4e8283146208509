"""Runs the tests on emulated 64-bit ARM processors, against an installed wheel: `python -m toolchain.emulated_tests`.

The tests are copied beside the emulated Python without the package's sources, so what they import is the wheel. Every
test module belongs to a run below or to NOT_EMULATED; a test holds this list to the tests that exist.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

EXPECTED_ISA = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "neondot"}
"""The instruction set that must be chosen on each processor: of the three, only the A76 has the dot product."""

KERNELS = ("installed", "kernels*", "scan*")
"""Test modules of the C core, which run with every instruction set; names without test_ and .py, * for any ending."""

NOT_EMULATED = {
    "bench*": "measurements of this machine",
    "bootstrap": "intervals of the model job, which runs in the cloud",
    "build_bundle": "made before the television gets it",
    "cli*": "the command in hundreds of processes, each seconds of start under emulation",
    "codes": "trains codebooks, which the cloud does; tiered_memory reads one",
    "compression": "embeds titles as the toolchain does; tiered_memory runs the encodings",
    "cross_wheel": "the build itself",
    "demo": "the command, as above",
    "directed": "the model job, which runs in the cloud",
    "elf": "the build itself",
    "emulated_tests": "this",
    "exploration": "thousands of lists against their chances; what ranks them runs in variety and brain",
    "export_model": "made before the television gets it",
    "extremes": "a household of 100,000 events takes minutes under emulation",
    "factors": "the model job, which runs in the cloud",
    "counts*": "the cloud's counts",
    "estimates": "the cloud's counts",
    "federation*": "the cloud's processes",
    "fusion_fit": "the model job, which runs in the cloud",
    "image": "the image of a shard, which no television runs",
    "judging": "the model job, which runs in the cloud",
    "memory_crash": "records writes by a library preloaded into programs of this machine",
    "instruction_counter": "a plugin of this machine's emulator",
    "model_*": "the model job, which runs in the cloud",
    "next_bundle*": "the model job, which runs in the cloud",
    "global_patterns": "the model job, which runs in the cloud; brain reads cohorts",
    "quantiser": "trains codebooks, which the cloud does; tiered_memory reads one",
    "reason_truth": "a thousand lists again without an event; that each is exact runs in ranking and sequence",
    "replay_baselines": "what the recommender is measured beside, with libraries that no television has",
    "scripts*": "scripts of the building machine",
    "second_stage_fit": "the model job, which runs in the cloud",
    "shard_*": "the cloud: processes of a building machine",
    "storage": "the cloud, as above",
    "sequence_sections": "the model job, which runs in the cloud",
    "sequence_training": "the model job, which runs in the cloud",
    "sharing_simulated": "thousands of syncs of a home; each kind of them runs in sharing",
    "sparse_rows": "the model job, which runs in the cloud",
    "signing": "needs a library that the emulated Python has not; the arithmetic is libsodium's own",
    "sync_*": "HTTP, for which the emulated Python has no library; what is sent is composed in sharing",
    "tidy": "reads sources",
    "together": "other libraries in an environment of this machine's own",
    "tokenizer": "compares with a package that no television has; inference runs the tokenizer",
    "train_dictionary": "made before the television gets it",
    "tuning": "the model job, which runs in the cloud",
    "updates*": "HTTP servers and killed processes of this machine; what makes the new bundle runs in bundle_delta",
    "walls": "reads sources",
    "wheel_check": "the build itself",
}
"""Test modules that run on the building machine only, each with the reason."""


READ_BY_TESTS = ("tests", "cloud", "bench")
"""Folders that the emulated tests read; cloud trains their codebooks, bench has data and makes encoders up."""


@dataclass(frozen=True, slots=True)
class Run:
    """Test modules on one processor, in one process; of their tests only those with one of these words, if there are any."""

    name: str
    cpu: str
    modules: tuple[str, ...]
    words: tuple[str, ...] = ()


ON_THE_PROCESSOR = (
    "vectors_match_the_reference", "vectors_are_unit", "equal_text", "beyond_the_longest", "meaning_is_near", "one_thread_mapped",
)  # fmt: skip
"""Of inference, what the arithmetic decides; faults of a folder and a cache are Python's, and an engine opens in 2 s there."""

# Longest first, so that two at a time end together.
ENCODED = ("tier_policy", "TestSearch", "the_floor", "no_direction", "code_cannot_hold", "decoded")
"""Words of the names of the tests of encodings whose result the processor's arithmetic decides; those with whole
households take minutes each under emulation."""

RUNS = (
    Run("encodings of vectors", "cortex-a72", ("tier_policy", "tiered_memory"), ENCODED),
    Run("bundle deltas", "cortex-a72", ("bundle_delta",), ("byte_for_byte", "arrangement", "refused_before")),
    Run("messages and wire", "cortex-a72", ("protocol", "randomised", "wire*")),
    Run("memory", "cortex-a53", ("memory", "memory_faults", "memory_household_data", "memory_model", "memory_tiers")),
    Run("store and bundle", "cortex-a76", ("journal", "store", "catalog*", "datasets")),
    Run("brain", "cortex-a72", ("brain*", "policy", "onboarding", "sharing", "sharing_counts", "variety")),
    Run("inference", "cortex-a53", ("inference",), ON_THE_PROCESSOR),
    Run("inference", "cortex-a76", ("inference",), ON_THE_PROCESSOR),
    Run("vectors and ranking", "cortex-a53", ("vector*", "ranking", "second_stage", "sequence")),
    Run("kernels", "cortex-a53", KERNELS),
    Run("kernels", "cortex-a76", KERNELS),
    # It runs the A53's instructions; all of them in the C checks too.
    Run("kernels", "cortex-a72", ("installed", "scan*")),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended; summary is pytest's last line."""

    run: Run
    exit_code: int
    seconds: float
    summary: str
    log: Path


def files_of(modules: Iterable[str], tests: Path) -> list[Path]:
    """The files that patterns of modules name, in order; FileNotFoundError for a pattern that names none."""
    files: list[Path] = []
    for pattern in modules:
        found = sorted(tests.glob(f"test_{pattern}.py"))
        if not found:
            raise FileNotFoundError(f"test_{pattern}.py: no such tests in {tests}; change RUNS in {__file__}")
        files += [path for path in found if path not in files]
    return files


def copy_tests(target: Path) -> None:
    """Make `target` anew with the tests and what they read, but not the package that they test."""
    shutil.rmtree(target, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in READ_BY_TESTS:
        shutil.copytree(PROJECT / name, target / name, ignore=unwanted)
    shutil.copyfile(PROJECT / "pyproject.toml", target / "pyproject.toml")


def write_python(folder: Path, cpu: str) -> Path:
    """Write folder/bin/python-CPU, which starts the sysroot's Python on that processor, and return its path.

    folder holds sysroot, site (the packages) and installed (the wheel). The script sets the environment itself, because
    tests start Python with environments of their own.
    """
    packages = [PROJECT / "toolchain" / "emulated", folder / "installed", folder / "site"]
    sysroot = folder / "sysroot"
    script = folder / "bin" / f"python-{cpu}"
    command = ["qemu-aarch64", "-cpu", cpu, "-L", str(sysroot), str(sysroot / "usr/bin/python3.11")]
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        "#!/usr/bin/env bash\n"
        f"export PYTHONPATH={shlex.quote(':'.join(map(str, packages)))} OMEGA_EMULATED_PYTHON={shlex.quote(str(script))}\n"
        f'exec {shlex.join(command)} "$@"\n'
    )
    script.chmod(0o755)
    return script


def run_tests(run: Run, folder: Path, model: Path, running: set[subprocess.Popen[bytes]]) -> Outcome:
    """Run one set of tests, whose process is in `running` meanwhile; what pytest says goes to a log in folder/logs."""
    here = folder / "tests" / run.cpu
    files = [str(path.relative_to(here)) for path in files_of(run.modules, here / "tests")]
    environment = os.environ | {
        "OMEGA_EXPECTED_ISA": EXPECTED_ISA[run.cpu],
        "OMEGA_EXPECTED_PACKAGE": str(folder / "installed"),
        "OMEGA_TEST_MODEL": str(model),
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    log = folder / "logs" / f"{re.sub(r'[^a-z0-9]+', '-', run.name)}-{run.cpu}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(folder / "bin" / f"python-{run.cpu}"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--durations=25", "-p", "fewer_examples", *(["-k", " or ".join(run.words)] if run.words else []), *files]
    started = time.monotonic()
    with log.open("w") as output, subprocess.Popen(
        command, cwd=here, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    ) as process:
        running.add(process)
        exit_code = process.wait()
        running.discard(process)
    lines = log.read_text(errors="replace").splitlines()
    summary = lines[-1] if lines else "no output"
    return Outcome(run, exit_code, time.monotonic() - started, summary, log)


def report(outcome: Outcome) -> None:
    """One line for a run; for a failed one also the end of its log."""
    run = outcome.run
    title = f"{run.name} on {run.cpu}"
    print(f"  {title} {'.' * (33 - len(title))} {outcome.seconds:.1f} s: {outcome.summary}", flush=True)
    if outcome.exit_code:
        print(f"failed with exit code {outcome.exit_code}. The end of {outcome.log}:")
        for line in outcome.log.read_text(errors="replace").splitlines()[-40:]:
            print(f"    {line}")
        sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run all or some of the runs; 0 if all passed, 1 if one failed, 66 if the sysroot or model is missing."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.emulated_tests", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder with sysroot, site and installed")
    parser.add_argument("--model", type=Path, required=True, help="folder of the text model")
    parser.add_argument("--cpu", choices=EXPECTED_ISA, action="append", help="only on this processor; may be repeated")
    parser.add_argument("--run", choices=sorted({run.name for run in RUNS}), action="append", help="only this run; may be repeated")
    parser.add_argument("--list", action="store_true", help="print what would run, and end")
    options = parser.parse_args(arguments)
    chosen = [run for run in RUNS if run.cpu in (options.cpu or EXPECTED_ISA) and run.name in (options.run or [run.name])]
    if options.list:
        for run in chosen:
            words = [f"(only {', '.join(run.words)})"] if run.words else []
            print(f"{run.name} on {run.cpu}:", *(path.stem for path in files_of(run.modules, PROJECT / "tests")), *words)
        return 0
    folder, model = options.folder.resolve(), options.model.resolve()
    for needed in (folder / "sysroot", folder / "site", folder / "installed", model / "manifest.json"):
        if not needed.exists():
            print(f"{needed}: missing; ./check --aarch64 makes it", file=sys.stderr)
            return 66
    if not chosen:
        parser.error("no run is left with these --cpu and --run")
    for cpu in {run.cpu for run in chosen}:
        # A copy for each processor: tests leave byte code and example files beside themselves.
        copy_tests(folder / "tests" / cpu)
        write_python(folder, cpu)
    return 1 if run_all(chosen, folder, model) else 0


def run_all(chosen: list[Run], folder: Path, model: Path) -> int:
    """Run them two at a time, report each, and return how many failed; nothing is left running, whatever ends this."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    failed = 0
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        try:
            for outcome in pool.map(lambda run: run_tests(run, folder, model, running), chosen):
                report(outcome)
                failed += outcome.exit_code != 0
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


if __name__ == "__main__":
    sys.exit(main())
