"""Damaged database files by the thousand: `python -m tests.long.damage --files 10000`.

Each is a whole store with one fault: a flipped bit, a zeroed sector, a page of noise, a file cut off. Opening it must
not end the process, give a wrong record, or lose one without saying so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omega_edge.store import DATABASE_NAME, JOURNAL_NAME, Store

Damage = Callable[[bytearray, random.Random], None]


def flip(image: bytearray, chosen: random.Random) -> None:
    """One bit."""
    image[chosen.randrange(len(image))] ^= 1 << chosen.randrange(8)


def zero_sector(image: bytearray, chosen: random.Random) -> None:
    """512 bytes, aligned."""
    sector = chosen.randrange(len(image) // 512)
    image[sector * 512 : (sector + 1) * 512] = bytes(512)


def truncate(image: bytearray, chosen: random.Random) -> None:
    """Everything from some byte on."""
    del image[chosen.randrange(len(image)) :]


def overwrite_page(image: bytearray, chosen: random.Random) -> None:
    """4,096 bytes, aligned, by noise."""
    page = chosen.randrange(len(image) // 4096)
    image[page * 4096 : (page + 1) * 4096] = chosen.randbytes(4096)


DAMAGES: tuple[Damage, ...] = (flip, zero_sector, truncate, overwrite_page)


def records(count: int, first: int = 0) -> list:
    """Rows of the table of episodes."""
    chosen = random.Random(first)
    return [
        ("episodes", number.to_bytes(8, "big"), {1: f"record {number}", 2: chosen.randbytes(40)})
        for number in range(first, first + count)
    ]


@dataclass
class Tally:
    """Over some damaged files: records that came back, records that were there, and faults found."""

    files: int = 0
    kept: int = 0
    offered: int = 0
    faults: tuple[str, ...] = ()


class WholeStore:
    """A store with records of all sizes, to be damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        written = records(400) + [("states", bytes([number]), {1: bytes([number]) * 6000}) for number in range(3)]
        store = Store(folder)
        store.write(written)
        store.write(records(100, first=400))
        store.close()
        self.sound = {key: fields for _table, key, fields in records(400) + records(100, first=400)}
        self.image = (folder / DATABASE_NAME).read_bytes()

    def damaged_copy(self, folder: Path, damage: Damage, chosen: random.Random) -> None:
        """A copy with one fault. Its journal, with the seal, is whole."""
        folder.mkdir()
        shutil.copy(self.folder / JOURNAL_NAME, folder / JOURNAL_NAME)
        image = bytearray(self.image)
        damage(image, chosen)
        (folder / DATABASE_NAME).write_bytes(image)

    def fault_of(self, folder: Path) -> tuple[str | None, int]:
        """What is wrong with how a damaged copy is opened, and how many records come back."""
        store = Store(folder)
        found = dict(store.items("episodes"))
        told = bool(store.damage.records or store.damage.notes)
        more = records(5, first=5000)
        store.write(more)
        store.close()
        again = Store(folder)
        later, clean = dict(again.items("episodes")), not again.damage.notes
        again.close()
        if not found.items() <= self.sound.items():
            return "a wrong record came back", len(found)
        if len(found) < len(self.sound) and not (told and (folder / f"{DATABASE_NAME}.damaged").exists()):
            return f"{len(self.sound) - len(found)} records were lost without a word", len(found)
        if later != found | {key: fields for _table, key, fields in more} or not clean:
            return "opened a second time it is not what it was", len(found)
        return None, len(found)


def run(folder: Path, damage: Damage, files: int, seed: int) -> Tally:
    """Damage a store so many times, in so many copies."""
    whole = WholeStore(folder / "whole")
    chosen, tally, faults = random.Random(f"{damage.__name__} {seed}"), Tally(), []
    for number in range(files):
        copy = folder / "copy"
        whole.damaged_copy(copy, damage, chosen)
        fault, kept = whole.fault_of(copy)
        if fault:
            faults.append(f"{damage.__name__}, seed {seed}, file {number}: {fault}")
        tally.files, tally.kept, tally.offered = tally.files + 1, tally.kept + kept, tally.offered + len(whole.sound)
        shutil.rmtree(copy)
    tally.faults = tuple(faults)
    return tally


def main() -> int:
    """Damage as many files as asked; the exit code is 1 if any was handled wrongly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = False
    for damage in DAMAGES:
        with tempfile.TemporaryDirectory() as folder:
            tally = run(Path(folder), damage, options.files // len(DAMAGES), options.seed)
        kept = tally.kept / tally.offered
        sys.stderr.write(
            f"{damage.__name__}: {tally.files} files, {len(tally.faults)} faults, {kept:.2%} of records kept\n"
        )
        for fault in tally.faults[:5]:
            sys.stderr.write(fault + "\n")
        failed |= bool(tally.faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
