"""What plugin.c and the counted programs write, read with suspicion: a count that is not certain is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

OPENS = 0
"""Number of the mark that opens a count; see mark.h."""
_MARK = re.compile(r"mark (\d{1,19}) (\d{1,19}) (\d{1,9})", re.ASCII)
_KERNEL = re.compile(r"count (\d{1,9}) (\w+) (\w+) ([\w-]+) ([1-9]\d{0,9}) ([0-9a-f]{16})", re.ASCII)
_CALL = re.compile(r"count (\d{1,9}) (\w+)", re.ASCII)


class CountError(Exception):
    """A count could not be taken, or cannot be trusted."""


@dataclass(frozen=True, slots=True)
class CountedKernel:
    """A line of counted_kernels.c: what the count of a mark belongs to and is divided by."""

    mark: int
    kernel: str
    isa: str
    per: str
    units: int
    output_hash: str


def read_marks(text: str) -> dict[int, list[int]]:
    """Instruction counts by the number of the mark that closed them, in order.

    Raises CountError for a line that is not the plugin's, a mark that closes what none opened, a count that was never
    closed, and a count during which more than one thread lived.
    """
    counts: dict[int, list[int]] = {}
    opened = False
    for line_number, line in enumerate(text.splitlines(), start=1):
        match = _MARK.fullmatch(line)
        if match is None:
            raise CountError(f"marks, line {line_number}: expected 'mark NUMBER COUNT THREADS', got {line!r:.80}")
        number, count, threads = (int(group) for group in match.groups())
        if (number == OPENS) == opened:
            expected = "the mark that closes the count" if opened else "a mark that opens a count"
            raise CountError(f"marks, line {line_number}: expected {expected}, got mark {number}")
        opened = number == OPENS
        if opened:
            continue
        if threads != 1:
            raise CountError(
                f"marks, line {line_number}: expected one thread during count {number}, got {threads}; "
                "the counts of several threads cannot be told apart"
            )
        counts.setdefault(number, []).append(count)
    if opened:
        raise CountError("marks: the last count was opened and never closed; the program ended in its midst")
    return counts


def read_kernels(text: str) -> list[CountedKernel]:
    """The lines of counted_kernels.c, the best instruction set first. Raises CountError for any other line."""
    kernels = [
        CountedKernel(int(mark), kernel, isa, per, int(units), output_hash)
        for mark, kernel, isa, per, units, output_hash in _matches(_KERNEL, text)
    ]
    _expect_different([kernel.mark for kernel in kernels])
    return kernels


def read_calls(text: str) -> dict[int, str]:
    """The lines of counted_calls.py: names of calls by mark. Raises CountError for any other line."""
    calls = [(int(mark), name) for mark, name in _matches(_CALL, text)]
    _expect_different([mark for mark, _ in calls])
    return dict(calls)


def _matches(form: re.Pattern[str], text: str) -> list[tuple[str, ...]]:
    matches = []
    for line in text.splitlines():
        match = form.fullmatch(line)
        if match is None:
            raise CountError(f"the counted program: expected a line of the form {form.pattern!r}, got {line!r:.80}")
        matches.append(match.groups())
    if not matches:
        raise CountError("the counted program announced nothing to count")
    return matches


def _expect_different(marks: list[int]) -> None:
    if OPENS in marks or len(set(marks)) != len(marks):
        raise CountError(f"the counted program: expected a mark of its own, over {OPENS}, for each count, got {marks}")


def expect_same_marks(announced: Iterable[int], counted: Iterable[int]) -> None:
    """Raises CountError unless what was announced was counted, and nothing else."""
    announced, counted = set(announced), set(counted)
    if announced != counted:
        raise CountError(
            f"announced and not counted: marks {sorted(announced - counted)}; "
            f"counted and not announced: marks {sorted(counted - announced)}"
        )


def expect_equal_outputs(kernels: Iterable[CountedKernel]) -> None:
    """Raises CountError where two instruction sets answered differently: the count of a wrong answer says nothing."""
    first: dict[str, CountedKernel] = {}
    for kernel in kernels:
        other = first.setdefault(kernel.kernel, kernel)
        if other.output_hash != kernel.output_hash:
            raise CountError(
                f"{kernel.kernel}: {other.isa} and {kernel.isa} answer differently; see tests/test_kernels.py"
            )
