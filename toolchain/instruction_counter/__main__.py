"""`toolchain/count_instructions`: instructions on ARM, counted, compared with toolchain/instruction_limits.json.

Exit codes: 0 fine, 1 a count rose over its limit or has none, 2 wrong options, 69 something must be installed first,
70 a count could not be taken.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolchain.instruction_counter.counting import (
    CPUS,
    ROOT,
    TELEVISION,
    ToolMissing,
    check_tools,
    check_wheel_is_present,
    run_counts,
    tool_versions,
)
from toolchain.instruction_counter.limits import CALLS, KERNELS, Count, Limits, LimitsError
from toolchain.instruction_counter.marks import CountError

LIMITS = ROOT / "toolchain/instruction_limits.json"
FOLDER = ROOT / "build/instruction_counter"
RISEN, UNAVAILABLE, FAILED, INTERRUPTED = 1, 69, 70, 130

EXACT, TWO_STAGE = ("search", "search_halves"), ("search_two_stage",)
"""Kernels that answer alike; the best of them counts."""
GOALS = (
    ("exact search", EXACT, "cortex-a53", 100.0),
    ("exact search", EXACT, "cortex-a72", 100.0),
    ("exact search", EXACT, "cortex-a76", 32.0),
    ("search in two stages", TWO_STAGE, "cortex-a53", 40.0),
    ("search in two stages", TWO_STAGE, "cortex-a72", 40.0),
)
"""What the project set itself, in instructions per vector of 384 dimensions, 10,000 vectors, the best 50."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="toolchain/count_instructions",
        description="Counts, under an emulator, the instructions that kernels and calls take on ARM. Counts repeat "
        "within 0.05 %; they are no times: how many a cycle takes is the processor's affair.",
        allow_abbrev=False,
    )
    made.add_argument("--json", action="store_true", help="one JSON line a count instead of a table")
    made.add_argument("--kernels", action="store_true", help="only the kernels: no Python for arm64 is needed")
    made.add_argument("--cpu", action="append", choices=CPUS, help="only this processor; may be repeated")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--check", action="store_true", help="fail if a count is over 2 %% above its limit, or has none")
    which.add_argument("--update", action="store_true", help="write the counts as the new limits")
    made.add_argument("--limits", type=Path, default=LIMITS, metavar="FILE", help="default: %(default)s")
    made.add_argument(
        "--folder", type=Path, default=TELEVISION, help="with sysroot, site and installed; default: %(default)s"
    )
    return made


def say(text: str) -> None:
    """Progress and findings, to standard error."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """The counter's folder, new and empty, for one run at a time, removed afterwards.

    Its name is always the same, because another path is other work for those who open its files.
    """
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        try:
            yield FOLDER
        finally:
            shutil.rmtree(FOLDER)


def table(counts: Sequence[Count], limits: Limits, cpus: Sequence[str]) -> Iterator[str]:
    """Lines of a table of one metric: a kernel or call each, a column a processor, with the change from the limit."""
    found = {(count.name, count.cpu): count for count in counts}
    titles = {count.cpu: f"{count.cpu} {count.isa}" if count.isa else count.cpu for count in counts}
    yield f"{'instructions':42}" + "".join(f"{titles[cpu]:>24}" for cpu in cpus)
    for name, per in dict.fromkeys((count.name, count.per or "call") for count in counts):
        cells = "".join(f"{_cell(found[name, cpu], limits):>24}" for cpu in cpus)
        yield f"{name:24}per {per:14}{cells}"


def _cell(count: Count, limits: Limits) -> str:
    limit = limits.of(count)
    change = "no limit" if limit is None else f"{count.value / limit - 1:+.1%}"
    return f"{count.value:,.1f} {change:>8}" if count.metric == KERNELS else f"{count.value:,.0f} {change:>8}"


def goals(counts: Sequence[Count]) -> Iterator[str]:
    """A line a goal: met or not, and by which kernel."""
    for what, kernels, cpu, goal in GOALS:
        found = [count for count in counts if count.name in kernels and count.cpu == cpu]
        if found:
            best = min(found, key=lambda count: count.value)
            met = "met" if best.value <= goal else f"not met, {best.value / goal:.2f} times as many"
            yield f"goal: {what} on {cpu}: {best.value:,.1f} of at most {goal:,.0f} ({best.name}, {best.isa}): {met}"


def report(counts: Sequence[Count], limits: Limits, cpus: Sequence[str], *, as_json: bool) -> None:
    """Everything counted, to standard output."""
    if as_json:
        for count in counts:
            print(json.dumps(count.line() | {"limit": limits.of(count)}))
        return
    for metric in dict.fromkeys(count.metric for count in counts):
        print(*table([count for count in counts if count.metric == metric], limits, cpus), "", sep="\n")
    spans: dict[str, float] = {}
    for count in counts:
        if count.metric == CALLS:
            spans[count.name] = max(count.span, spans.get(count.name, 0.0))
    if spans:
        shown = ", ".join(f"{name} {span:.1%}" for name, span in spans.items())
        print(f"from the least to the most instructions of a call on other input: {shown}")
    for text in goals(counts):
        print(text)


def verdict(counts: Sequence[Count], limits: Limits, cpus: Sequence[str], versions: dict[str, str]) -> bool:
    """Say what rose, fell or is missing; whether the limits hold."""
    compared = limits.compare(counts, cpus)
    for title, changes in (
        ("rose over 2 %:", compared.risen),
        ("no limit, or no count:", compared.missing),
        ("fell over 2 %; lower the limits by --update, so that the gain is kept:", compared.fallen),
    ):
        if changes:
            say(title)
            for change in changes:
                say(f"  {change}")
    if not compared.holds and limits.counted_with and limits.counted_with != versions:
        say(f"the limits were counted with other tools: {limits.counted_with}; here: {versions}")
    return compared.holds


def count(options: argparse.Namespace) -> int:
    """Count and answer; the exit code."""
    cpus = [cpu for cpu in CPUS if options.cpu is None or cpu in options.cpu]
    television = None if options.kernels else options.folder.resolve()
    limits = Limits.read(options.limits)
    check_tools(television)
    if television is not None:
        check_wheel_is_present(television)
    versions = tool_versions()
    with work_folder() as folder:
        counts = run_counts(folder, cpus, television, say)
    if options.update:
        limits = limits.updated(counts, versions, cpus)
        limits.write(options.limits)
        say(f"{len(counts)} limits written to {options.limits}")
    report(counts, limits, cpus, as_json=options.json)
    if options.update:
        return 0
    holds = verdict(counts, limits, cpus, versions)
    return RISEN if options.check and not holds else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        return count(options)
    except ToolMissing as error:
        say(f"omega-edge: {error}")
        return UNAVAILABLE
    except (CountError, LimitsError) as error:
        say(f"omega-edge: {error}")
        return FAILED
    except KeyboardInterrupt:
        say("omega-edge: stopped; nothing was written")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
