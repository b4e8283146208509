"""A store whose process is killed again and again: `python -m tests.long.kill_loop --kills 10000`.

A child works on the store and says after each call that it has returned; it is killed at a random moment. Everything
that returned must be there then, whether or not it was durable: a killed process leaves its writes to the kernel. Of
the call in flight, all or nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.households import PlainMemory, open_memory, steps_of, take_plain_step, take_step

STEPS = 150
STORE_LIFE = 15
"""A store is used for so many kills, then a new one is begun."""


def kill_once(store: Path, steps: list, chosen: random.Random) -> int:
    """Let a child take steps on a store and kill it. Returns how many it said had returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(store, steps, writing)
    os.close(writing)
    with open(reading, "rb", buffering=0) as said:
        returned = 0
        wanted = chosen.randrange(len(steps))
        while returned < wanted:
            found = said.read(4096)
            if not found:
                break
            returned += len(found)
        time.sleep(chosen.random() * 0.002)
        os.kill(child, signal.SIGKILL)
        while found := said.read(4096):
            returned += len(found)
    os.waitpid(child, 0)
    return returned


def _work(store: Path, steps: list, writing: int) -> None:
    """The child; it never returns."""
    try:
        memory = open_memory(store, checkpoint_events=5, max_episodes=10_000)
        for step in steps:
            take_step(memory, step)
            os.write(writing, b".")
        memory.close()
    finally:
        os._exit(1)


def run(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill so many times; returns the faults found."""
    chosen = random.Random(seed)
    faults: list[str] = []
    done: list = []
    for number in range(kills):
        store = folder / f"store-{number // STORE_LIFE}"
        if number % STORE_LIFE == 0:
            done = []
        steps = steps_of(seed * 1_000_000 + number, STEPS)
        returned = kill_once(store, steps, chosen)
        fault, held = _compare(store, done, steps, returned)
        if fault:
            faults.append(f"seed {seed}, kill {number}: {fault}")
        done = done + steps[:held]
        if number % STORE_LIFE == STORE_LIFE - 1:
            shutil.rmtree(store)
    return faults


def _compare(store: Path, done: list, steps: list, returned: int) -> tuple[str | None, int]:
    """What is wrong, and how many of the child's steps the store holds."""
    with open_memory(store, max_episodes=10_000) as memory:
        damaged = memory.stats()["damaged_records"]
        if damaged:
            return f"{damaged} records are damaged", returned
        for held in (returned, returned + 1):
            plain = PlainMemory()
            for step in done + steps[:held]:
                take_plain_step(plain, step)
            try:
                plain.check(memory)
            except AssertionError:
                continue
            return None, min(held, len(steps))
    return f"it holds neither the {returned} calls that returned nor one more", returned


def main() -> int:
    """Kill as often as asked; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    killed, faults, seed = 0, 0, options.seed
    while killed < options.kills:
        wanted = min(150, options.kills - killed)
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder), wanted, seed)
        killed, faults, seed = killed + wanted, faults + len(found), seed + 1
        for fault in found[:5]:
            sys.stderr.write(fault + "\n")
        sys.stderr.write(f"{killed} kills, {faults} with faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
