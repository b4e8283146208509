"""The peers' own environment, build/peers-venv: exact versions, checked by hash, beside the product's and never in it.

Made when it is needed and left alone while its stamp matches. Only this step uses the network.
"""

from __future__ import annotations

import hashlib
import re
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


def prepare(place: Path, say: Callable[[str], None], names: frozenset[str] | None = None) -> Path:
    """The Python of the environment, made anew unless its stamp is that of the locks and of this Python.

    names: the packages to install, of those that come as wheels; all packages if None.
    """
    locks = [WHEELS.read_text(encoding="utf-8"), SOURCES.read_text(encoding="utf-8")]
    if names is not None:
        locks = [locked(locks[0], names)]
    stamp, python = place / "omega-edge.stamp", place / "bin/python"
    mark = hashlib.sha256("".join([sys.version, *locks]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == mark:
        return python
    say(f"installing {'the peers' if names is None else ', '.join(sorted(names))} into {place} (network)")
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    run([str(base if base.exists() else sys.executable), "-m", "venv", "--clear", str(place)], "making the environment")
    for lock, how in zip(locks, (("--only-binary", ":all:"), ("--no-build-isolation",)), strict=False):
        # What comes as source is built with what the first lock brought.
        requirements = place / "requirements.lock"
        requirements.write_text(lock, encoding="utf-8")
        run([str(python), *PIP, *how, "--require-hashes", "-r", str(requirements)], "installing")
    stamp.write_text(mark, encoding="ascii")
    return python


def locked(lock: str, names: frozenset[str]) -> str:
    """The entries of a lock file for some packages. ValueError names a package that it does not have."""
    entries = re.findall(r"^(\S+)==(\S+(?: \\\n +--hash=\S+)+)", lock, re.MULTILINE)
    absent = names - {name for name, _ in entries}
    if absent:
        raise ValueError(f"expected the lock to have {', '.join(sorted(absent))}; it has not")
    return "".join(f"{name}=={rest}\n" for name, rest in entries if name in names)


def run(command: list[str], what: str) -> None:
    """Runs a step; EnvironmentFailed with the end of its output where it fails."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise EnvironmentFailed(f"{what}: ended with code {done.returncode}\n{end}")
