"""The bundle that a television holds: how another one takes its place, and how the old one comes back.

Beside the bundle lie `NAME.previous`, the one before, and `NAME.updates`, a JSON object: the highest sequence and version
that a signed manifest had, which versions are known to be bad, and which one is on trial. Each is replaced by rename, so a
process or a power supply that ends at any moment leaves an old bundle or a new one, whole, and a state that fits it.

A new bundle is on trial until it was opened once: open_on_trial() goes back to the previous one where that fails, or where
a process died over it twice, and the version is never fetched again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from omega_edge.bundle import sync_folder
from omega_edge.errors import CatalogError, OmegaError

MAX_STATE_BYTES = 64 * 1024
MOST_ATTEMPTS = 2
"""Processes that may die over a bundle before it counts as bad."""
BAD_VERSIONS_KEPT = 64
_BLOCK_BYTES = 1 << 20

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Trial:
    """A bundle that has not proved itself. attempts: processes that began to check or open it and did not say how it went."""

    sha256: str
    version: int
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class UpdateState:
    """What outlives the process. sequence, version: the highest of any manifest; manifest_sha256: of the last signed manifest
    that led to nothing more to do, or empty; bad: versions that failed, oldest first."""

    sequence: int = 0
    version: int = 0
    manifest_sha256: str = ""
    bad: tuple[int, ...] = ()
    trial: Trial | None = None


class HeldBundle:
    """A bundle file and what lies beside it. One process at a time changes it: see locked()."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.name}.previous")
        self._state_path = path.with_name(f"{path.name}.updates")
        self.state = self._read_state()

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process may change the bundle, until the end of the block; the state is read anew."""
        with open(self.path.with_name(f"{self.path.name}.lock"), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self.state = self._read_state()
            yield True

    def digest(self) -> str:
        """SHA-256 of the bundle's file, as hex digits."""
        return digest_of(self.path)

    def remember(self, **changed: object) -> None:
        """Change fields of the state, durably."""
        self.state = replace(self.state, **changed)
        fields = json.dumps(asdict(self.state), sort_keys=True).encode("ascii")
        write_durably(self._state_path, fields)

    def is_bad(self, version: int) -> bool:
        """Whether a version failed here before."""
        return version in self.state.bad

    def condemn(self, version: int) -> None:
        """Never fetch a version again."""
        bad = (*(other for other in self.state.bad if other != version), version)[-BAD_VERSIONS_KEPT:]
        self.remember(bad=bad, trial=None)

    def begin_trial(self, sha256: str, version: int) -> bool:
        """Note that a bundle is about to be checked; False where processes died over it before, and it is bad by that."""
        before = self.state.trial
        attempts = before.attempts if before is not None and before.sha256 == sha256 else 0
        if attempts >= MOST_ATTEMPTS:
            self.condemn(version)
            return False
        self.remember(trial=Trial(sha256, version, attempts + 1))
        return True

    def install(self, made: Path) -> None:
        """Let a checked bundle, the one on trial, take the place of the held one, which is kept as the previous one."""
        trial = self.state.trial
        assert trial is not None, "a bundle that takes the place of another was checked before"
        self.remember(trial=replace(trial, attempts=0))
        kept = self.previous.with_name(f".{self.previous.name}.tmp")
        kept.unlink(missing_ok=True)
        os.link(self.path, kept)
        os.replace(kept, self.previous)
        os.replace(made, self.path)
        sync_folder(self.path.parent)

    def open_on_trial(self, opener: Callable[[Path], Opened]) -> Opened:
        """Open the bundle by `opener`, which raises CatalogError for one that it cannot work with.

        A bundle on trial that cannot be opened gives its place back to the previous one, which is opened instead. Errors
        that are not the bundle's pass through and leave it on trial. Where another process changes the bundle at this
        moment it is opened as it is; where none is on trial nothing is written, so the folder may be read-only.
        """
        if self._read_state().trial is None:
            return opener(self.path)
        with self.locked() as mine:
            trial = self.state.trial
            if not mine or trial is None:
                return opener(self.path)
            if trial.sha256 != self.digest():
                self.remember(trial=None)  # the process ended before the bundle took its place
                return opener(self.path)
            if trial.attempts >= MOST_ATTEMPTS and self.previous.exists():
                self._roll_back(trial)
                return opener(self.path)
            self.remember(trial=replace(trial, attempts=trial.attempts + 1))
            try:
                opened = opener(self.path)
            except CatalogError:
                if not self.previous.exists():
                    raise
                self._roll_back(trial)
                return opener(self.path)
            except OmegaError:
                self.remember(trial=trial)
                raise
            self.remember(trial=None)
            return opened

    def _roll_back(self, trial: Trial) -> None:
        """Back to the previous bundle. Ended in between, the next start goes on: it finds the trial without attempts left."""
        bad = (*(other for other in self.state.bad if other != trial.version), trial.version)[-BAD_VERSIONS_KEPT:]
        self.remember(bad=bad, trial=replace(trial, attempts=MOST_ATTEMPTS))
        os.replace(self.previous, self.path)
        sync_folder(self.path.parent)
        self.remember(trial=None)

    def beside(self, name: str) -> Path:
        """A temporary file of this bundle's, which clear() removes."""
        return self.path.with_name(f".{self.path.name}.{name}")

    def clear(self, *kept: Path) -> None:
        """Remove the temporary files that ended processes left, but for some."""
        for pattern in (f".{glob.escape(self.path.name)}.*", f"..{glob.escape(self.path.name)}.*"):
            for found in self.path.parent.glob(pattern):
                if found not in kept:
                    found.unlink(missing_ok=True)

    def _read_state(self) -> UpdateState:
        """The state as it was left; the first one where there is none or it is damaged: then the bundle's own version is
        all that is known."""
        try:
            with open(self._state_path, "rb") as file:
                fields = json.loads(file.read(MAX_STATE_BYTES).decode("ascii"))
            trial = fields["trial"]
            state = UpdateState(
                **(fields | {"bad": tuple(fields["bad"]), "trial": None if trial is None else Trial(**trial)})
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            return UpdateState()
        return state if _sound(state) else UpdateState()


def _sound(state: UpdateState) -> bool:
    numbers = [state.sequence, state.version, *state.bad]
    texts = [state.manifest_sha256]
    if state.trial is not None:
        numbers += [state.trial.version, state.trial.attempts]
        texts.append(state.trial.sha256)
    return all(type(number) is int and number >= 0 for number in numbers) and all(isinstance(text, str) for text in texts)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all (write, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)
