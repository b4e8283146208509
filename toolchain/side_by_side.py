"""Runs commands of the shell two at a time: `python -m toolchain.side_by_side --log DIR TITLE COMMAND TITLE COMMAND ...`.

One line to standard error as each ends, in the form of prepare.sh's steps; of one that fails also the end of its log.
All are run, whichever fails. What ends this ends them, and what they started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_A_TIME = 2
SHOWN_OF_A_LOG = 20
"""Lines."""

class Running:
    """The processes that run; after stop() none is left and none can start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: str, log: Path) -> int:
        """Run a command in a process group of its own to its end and return its exit code; after stop(), not at all."""
        with log.open("wb") as output:
            with self._lock:
                if self._stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
                self._processes.add(process)
            exit_code = process.wait()
        with self._lock:
            self._processes.discard(process)
        return exit_code

    def stop(self) -> None:
        """End all that runs, with what it started."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):  # it has ended, its thread has not seen it yet
                    os.killpg(process.pid, signal.SIGTERM)


def run(title: str, command: str, logs: Path, running: Running) -> bool:
    """Run one command; say how it ended, return whether well."""
    log = logs / f"{re.sub(r'[^A-Za-z0-9]', '-', title)}.log"
    started = time.monotonic()
    exit_code = running.run(command, log)
    ended = f"{time.monotonic() - started:.1f} s"
    lines = [f"  {title} {'.' * (34 - len(title))} {f'failed after {ended}' if exit_code else ended}"]
    if exit_code:
        lines.append(f"exit code {exit_code}. The end of {log}:")
        lines += [f"    {line}" for line in log.read_text(errors="replace").splitlines()[-SHOWN_OF_A_LOG:]]
    print("\n".join(lines), file=sys.stderr, flush=True)
    return exit_code == 0


def run_all(commands: list[tuple[str, str]], logs: Path) -> bool:
    """Run (title, command) in order, AT_A_TIME; whether all ended well. Nothing is left running, whatever ends this."""
    running = Running()
    with ThreadPoolExecutor(max_workers=AT_A_TIME) as pool:
        try:
            return all(list(pool.map(lambda each: run(*each, logs, running), commands)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise


def main(arguments: list[str] | None = None) -> int:
    """0 if all ended well, else 1; 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.side_by_side", description=__doc__.partition(":")[0])
    parser.add_argument("--log", type=Path, required=True, help="folder for what the commands print")
    parser.add_argument("words", nargs="+", metavar="TITLE COMMAND", help="a title, then the command for bash")
    options = parser.parse_args(arguments)
    if len(options.words) % 2:
        parser.error(f"expected a command after each title, got {len(options.words)} words")
    options.log.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return 0 if run_all(list(zip(options.words[::2], options.words[1::2], strict=True)), options.log) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
