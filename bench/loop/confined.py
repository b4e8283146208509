"""Runs a module in a process that can read only named places: `python -m bench.loop.confined PLACES MODULE ARGUMENTS…`.

The kernel (Landlock, Linux 5.13 and later) refuses every other file to this process and all that it starts, whoever runs
it, from before the module is imported. So what the module learned came from those places. PLACES is JSON: {"read": [paths],
"write": [paths]}; a path that is written may also be read.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_EVERY_ACCESS = (1 << 13) - 1
"""The thirteen accesses to files of Landlock's first version."""
_READING = _EXECUTE | _READ_FILE | _READ_DIRECTORY
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE
SYSTEM_PLACES = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/proc", "/sys", "/dev")
"""What an interpreter and its libraries are loaded from, and asked about the machine. No data of ours lies there."""


class CannotConfine(Exception):
    """The kernel has no Landlock, or it is switched off."""


def kernel_confines() -> bool:
    """Whether this kernel can."""
    library = ctypes.CDLL(None, use_errno=True)
    return library.syscall(_CREATE_RULESET, None, 0, 1) > 0


def interpreter_places() -> list[Path]:
    """Where this interpreter and its packages lie, and the system's own places."""
    found = [Path(place) for place in SYSTEM_PLACES]
    found += [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent]
    return [place for place in found if place.exists()]


def confine(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Give up every file that does not lie at or below these places. It cannot be undone. Raises CannotConfine."""
    library = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("<Q", _EVERY_ACCESS)
    rules = library.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        raise CannotConfine(f"expected a kernel with Landlock, got: {os.strerror(ctypes.get_errno())}")
    try:
        for places, access in ((read, _READING), (write, _EVERY_ACCESS)):
            for place in places:
                _allow(library, rules, place, access)
        if library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.syscall(_RESTRICT_SELF, rules, 0):
            raise CannotConfine(f"expected the kernel to confine this process, got: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(rules)


def _allow(library: ctypes.CDLL, rules: int, place: Path, access: int) -> None:
    descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        rule = struct.pack("<Qi", access, descriptor)
        if library.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, rule, 0):
            raise CannotConfine(f"{place}: expected a place to allow, got: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def command(module: str, arguments: Iterable[str], read: Iterable[Path], write: Iterable[Path]) -> list[str]:
    """The command that runs a module so, with the interpreter's own places beside the ones named."""
    places = {
        "read": [str(place) for place in (*interpreter_places(), *read)],
        "write": ["/dev/null", *(str(place) for place in write)],
    }
    return [sys.executable, "-m", "bench.loop.confined", json.dumps(places), module, *arguments]


def main() -> None:
    """Confine this process, then become the module."""
    places = json.loads(sys.argv[1])
    module = sys.argv[2]
    confine([Path(place) for place in places["read"]], [Path(place) for place in places["write"]])
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
