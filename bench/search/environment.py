"""The peers' own environment, build/peers-venv: exact versions, checked by hash, beside the product's and never in it.

Made when it is needed and left alone while its stamp matches. Only this step uses the network.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.machine import ROOT

HERE = Path(__file__).resolve().parent
WHEELS = HERE / "peers.lock"
SOURCES = HERE / "peers_source.lock"
PLACE = ROOT / "build/peers-venv"
PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-deps")


class EnvironmentFailed(Exception):
    """The peers could not be installed; the message ends with what pip said."""


def prepare(place: Path, say: Callable[[str], None], locks: tuple[Path, ...] = (WHEELS, SOURCES)) -> Path:
    """The Python of the environment, made anew unless its stamp is that of the locks and of this Python."""
    stamp, python = place / "omega-edge.stamp", place / "bin/python"
    mark = hashlib.sha256(b"".join([sys.version.encode(), *(lock.read_bytes() for lock in locks)])).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == mark:
        return python
    say(f"installing the peers into {place} (network)")
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    run([str(base if base.exists() else sys.executable), "-m", "venv", "--clear", str(place)], "making the environment")
    for lock in locks:
        # What comes as source is built with what the first lock brought.
        isolation = ("--no-build-isolation",) if lock == SOURCES else ("--only-binary", ":all:")
        run([str(python), *PIP, *isolation, "--require-hashes", "-r", str(lock)], f"installing {lock.name}")
    stamp.write_text(mark, encoding="ascii")
    return python


def run(command: list[str], what: str) -> None:
    """Runs a step; EnvironmentFailed with the end of its output where it fails."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise EnvironmentFailed(f"{what}: ended with code {done.returncode}\n{end}")
