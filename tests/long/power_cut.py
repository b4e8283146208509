"""What is left after a power cut, image by image: `python -m tests.long.power_cut --images 100000`.

A process works on a store while write_recorder.c, preloaded, notes every write, sync, rename and removal under its
folder, and every acknowledgement that the process gave. A cut is made at any of these. Of what was not synced by then,
each sector of 512 bytes is there in any of its versions, old or new, each name change only if all before it are, and a
file whose growth was not synced has its old size or the new one. The store is opened on that, and has to hold all that
was acknowledged as durable, nothing that never was, and no byte of what was forgotten.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import lmdb

from omega_edge.errors import OmegaError
from tests.households import PlainMemory, content_id, open_memory, steps_of, take_plain_step, take_step, title

SECTOR_BYTES = 512
RECORDER = Path(__file__).with_name("write_recorder.c")
_HEADER = struct.Struct("<BIQQ")
_OPENED, _WRITTEN, _SYNCED, _SIZED, _RENAMED, _UNLINKED = range(1, 7)


def build_recorder(folder: Path) -> Path:
    """The library to preload, compiled. Raises FileNotFoundError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("a C compiler")
    library = folder / "write_recorder.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, RECORDER, "-ldl"], check=True)
    return library


def record_workload(folder: Path, library: Path, seed: int, steps: int) -> list[Operation]:
    """Let a process work on folder/store, and return all that it submitted there and to folder/acknowledged."""
    log = folder.parent / f"{folder.name}.log"
    folder.mkdir()
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "WRITE_RECORDER_ROOT": str(folder),
        "WRITE_RECORDER_LOG": str(log),
    }
    command = [sys.executable, "-m", "tests.long.power_cut", "--work-on", str(folder), "--seed", str(seed)]
    subprocess.run([*command, "--steps", str(steps)], check=True, env=environment, cwd=Path(__file__).parents[2])
    return _read_log(log)


def work_on(folder: Path, seed: int, steps: int) -> None:
    """The process that is recorded: takes the steps, and writes down after each what is acknowledged by then."""
    window = 0 if seed % 3 == 0 else 300
    acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
    memory = open_memory(folder / "store", durability_window_secs=window, checkpoint_events=7)
    for place, step in enumerate(steps_of(seed, steps)):
        durable = take_step(memory, step)
        line = json.dumps({"taken": place + 1, "durable": bool(durable)}) + "\n"
        os.write(acknowledged, line.encode())
    memory.close()


@dataclass(frozen=True)
class Operation:
    """One thing submitted: its kind, the number of the file, an offset or size, and bytes or paths."""

    kind: int
    file: int
    offset: int
    content: bytes


def _read_log(path: Path) -> list[Operation]:
    image, place, found = path.read_bytes(), 0, []
    while place < len(image):
        kind, file, offset, length = _HEADER.unpack_from(image, place)
        place += _HEADER.size
        found.append(Operation(kind, file, offset, image[place : place + length]))
        place += length
    return found


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)  # as if everything had been synced
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def write(self, offset: int, content: bytes) -> None:
        if len(self.content) < offset + len(content):
            self.content.extend(bytes(offset + len(content) - len(self.content)))
        self.content[offset : offset + len(content)] = content
        self.pending.append((offset, content))

    def resize(self, size: int) -> None:
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def sync(self) -> None:
        self.durable[:] = self.content
        self.pending.clear()

    def after_cut(self, chosen: random.Random) -> bytes:
        """The durable bytes, and of each sector written since any of its versions."""
        size = chosen.choice((len(self.durable), len(self.content)))
        found = bytearray(self.durable[:size]).ljust(size, b"\0")
        versions: dict[int, list[tuple[int, bytes]]] = {}
        for offset, content in self.pending:
            end = offset + len(content)
            for sector in range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
                first, last = max(offset, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)
                versions.setdefault(sector, []).append((first, content[first - offset : last - offset]))
        for pieces in versions.values():
            for first, piece in pieces[: chosen.randint(0, len(pieces))]:
                if first < size:
                    found[first : first + len(piece)] = piece[: size - first]
        return bytes(found)


class _Disk:
    """Files and names as operations make them, and what of it a power cut would leave."""

    def __init__(self, folder: Path, ignore_syncs: bool) -> None:
        self._folder = str(folder)
        self._ignore_syncs = ignore_syncs
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._pending_names: list[tuple[str, _File | None]] = []
        self._open: dict[int, tuple[str, _File | None, bool]] = {}
        self.acknowledged = b""

    def take(self, operation: Operation) -> None:
        if operation.kind == _OPENED:
            self._take_open(operation)
        elif operation.kind == _RENAMED:
            source, target = (path.decode() for path in operation.content.split(b"\0"))
            self._name(target, self._names.pop(source))
            self._pending_names.append((source, None))
        elif operation.kind == _UNLINKED:
            path = operation.content.decode()
            if self._names.pop(path, None) is not None:
                self._pending_names.append((path, None))
        else:
            self._take_content(operation)

    def _take_open(self, operation: Operation) -> None:
        path = operation.content.decode()
        if os.path.basename(path) == "acknowledged" or path in (self._folder, f"{self._folder}/store"):
            self._open[operation.file] = (path, None, False)
            return
        if path not in self._names:
            self._name(path, _File())
        self._open[operation.file] = (path, self._names[path], bool(operation.offset))

    def _name(self, path: str, file: _File) -> None:
        self._names[path] = file
        self._pending_names.append((path, file))

    def _take_content(self, operation: Operation) -> None:
        _path, file, synchronous = self._open[operation.file]
        if file is None:
            if operation.kind == _WRITTEN:
                self.acknowledged += operation.content
            elif operation.kind == _SYNCED and not self._ignore_syncs:
                self._sync_names()
        elif operation.kind == _WRITTEN:
            if synchronous and not self._ignore_syncs:
                file.write(operation.offset, operation.content)
                file.pending.pop()
                end = operation.offset + len(operation.content)
                file.durable.extend(bytes(max(end - len(file.durable), 0)))
                file.durable[operation.offset : end] = operation.content
            else:
                file.write(operation.offset, operation.content)
        elif operation.kind == _SIZED:
            file.resize(operation.offset)
        elif not self._ignore_syncs:
            file.sync()

    def _sync_names(self) -> None:
        self._durable_names = dict(self._names)
        self._pending_names.clear()

    def cut(self, chosen: random.Random, target: Path) -> None:
        """Write what a power cut leaves into target/store."""
        names = dict(self._durable_names)
        for path, file in self._pending_names[: chosen.randint(0, len(self._pending_names))]:
            if file is None:
                names.pop(path, None)
            else:
                names[path] = file
        (target / "store").mkdir(parents=True)
        for path, file in names.items():
            (target / os.path.relpath(path, self._folder)).write_bytes(file.after_cut(chosen))


@dataclass
class Verdict:
    """What became of some images: how many were cut, how many of them after something had been acknowledged as
    durable, and the faults found, each with how to see it again."""

    images: int = 0
    after_acknowledgement: int = 0
    faults: list[str] = field(default_factory=list)


def check_images(
    folder: Path, library: Path, seed: int, images: int, steps: int, ignore_syncs: bool = False
) -> Verdict:
    """Record one workload, cut the power at random moments, and open what is left. ignore_syncs: pretend that no sync
    had any effect, to see that this finds a store that does not sync."""
    work = folder / f"work-{seed}"
    operations = record_workload(work, library, seed, steps)
    chosen = random.Random(seed)
    verdict = Verdict()
    moments = sorted(chosen.randrange(len(operations) + 1) for _ in range(images))
    disk, taken = _Disk(work, ignore_syncs), 0
    for number, moment in enumerate(moments):
        for operation in operations[taken:moment]:
            disk.take(operation)
        taken = moment
        image = folder / "image"
        disk.cut(chosen, image)
        fault = fault_of(image, disk.acknowledged, seed, steps)
        if fault:
            verdict.faults.append(f"seed {seed}, image {number} after operation {moment}: {fault}")
        verdict.images += 1
        verdict.after_acknowledgement += b'"durable": true' in disk.acknowledged
        shutil.rmtree(image)
    shutil.rmtree(work)
    return verdict


def fault_of(image: Path, acknowledged: bytes, seed: int, steps: int) -> str | None:
    """What is wrong with the store of an image, given the acknowledgements that had been written, or None."""
    lines = [json.loads(line) for line in acknowledged.splitlines()]
    taken = lines[-1]["taken"] if lines else 0
    durable = max((line["taken"] for line in lines if line["durable"]), default=0)
    try:
        with open_memory(image / "store") as memory:
            matching = [place for place in _plain_at(seed, steps, durable, taken + 1) if _matches(place[1], memory)]
            if not matching:
                return f"it holds no state between step {durable}, acknowledged as durable, and step {taken + 1}"
            memory.record_outcome(1, True, 1.0, 1)
            memory.flush()
        with open_memory(image / "store") as memory:
            if not _matches(matching[0][1], memory):
                return "opened a second time it holds something else"
    except (OmegaError, OSError, ArithmeticError, LookupError, TypeError, ValueError, lmdb.Error) as fault:
        return f"{type(fault).__name__}: {fault}"
    held = matching[0][0]  # a forget that the store shows as done must be so, even if it was never acknowledged
    return _trace_of_forgotten(image, steps_of(seed, steps)[:held], taken + 1, steps_of(seed, steps))


def _plain_at(seed: int, steps: int, first: int, last: int) -> list[tuple[int, PlainMemory]]:
    """The model after each number of steps from first to last."""
    found = []
    for count in range(first, min(last, steps) + 1):
        plain = PlainMemory()
        for step in steps_of(seed, steps)[:count]:
            take_plain_step(plain, step)
        found.append((count, plain))
    return found


def _matches(plain: PlainMemory, memory) -> bool:
    try:
        plain.check(memory)
    except AssertionError:
        return False
    return True


def _trace_of_forgotten(image: Path, done: list, reached: int, steps: list) -> str | None:
    """Whether a title that was forgotten, and not mentioned since, has left a byte in any file."""
    for place, step in enumerate(done):
        if step[0] != "forget":
            continue
        later = steps[place + 1 : reached]
        if any(other[1] == step[1] and other[0] != "forget" for other in later):
            continue
        for file in (image / "store").iterdir():
            content = file.read_bytes()
            if content_id(step[1]).encode() in content or title(step[1]).encode() in content:
                return f"{file.name} names what step {place + 1} forgot"
    return None


def main() -> int:
    """Cut images until there are enough of them; the exit code is 1 if any had a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--ignore-syncs", action="store_true", help="pretend that syncs do nothing; faults must be found"
    )
    parser.add_argument("--work-on", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work_on is not None:
        work_on(options.work_on, options.seed, options.steps)
        return 0
    images, faults, seed = 0, 0, options.seed
    with tempfile.TemporaryDirectory() as folder:
        library = build_recorder(Path(folder))
        while images < options.images:
            wanted = min(200, options.images - images)
            verdict = check_images(Path(folder), library, seed, wanted, options.steps, options.ignore_syncs)
            images, faults, seed = images + verdict.images, faults + len(verdict.faults), seed + 1
            for fault in verdict.faults[:5]:
                sys.stderr.write(fault + "\n")
            sys.stderr.write(f"{images} images, {faults} with faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
