"""What the kernel says of all processes of a session: processor time and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.machine import MEGABYTE

_TICKS = os.sysconf("SC_CLK_TCK")
_STATE, _SESSION, _USER, _SYSTEM = 0, 3, 11, 12
"""Fields of /proc/<pid>/stat after the name."""


@dataclass(frozen=True, slots=True)
class Memory:
    """MB over all processes: resident counts what they share in each of them, proportional once; anonymous is in no file."""

    processes: int
    resident: float
    proportional: float
    anonymous: float


def _fields(process: Path) -> list[str] | None:
    """The fields of a process after its name, None where it has ended."""
    try:
        return (process / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def of_session(session: int) -> list[int]:
    """Process ids of the session that still run."""
    found = []
    for process in Path("/proc").iterdir():
        fields = _fields(process) if process.name.isdigit() else None
        if fields is not None and int(fields[_SESSION]) == session and fields[_STATE] not in "ZX":
            found.append(int(process.name))
    return sorted(found)


def processor_seconds(process_ids: list[int]) -> float:
    """User and system time so far of these processes, in steps of a hundredth of a second; of ended ones nothing."""
    fields = [_fields(Path(f"/proc/{process_id}")) for process_id in process_ids]
    return sum(int(one[_USER]) + int(one[_SYSTEM]) for one in fields if one is not None) / _TICKS


def memory(process_ids: list[int]) -> Memory:
    """What these processes hold in memory now."""
    totals = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    for process_id in process_ids:
        for line in Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += int(value.split()[0]) * 1024
    resident, proportional, anonymous = (totals[name] / MEGABYTE for name in ("Rss", "Pss", "Anonymous"))
    return Memory(len(process_ids), resident, proportional, anonymous)
