"""Starts shard after shard without importing all of it each time: what the measurement of a thousand kills needs.

A process imports what `python -m cloud` imports, and then forks for each shard a child that goes on as that command does, in
a session and with an environment of its own.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import BinaryIO, Self

from bench.machine import ROOT

MAX_ENVIRONMENT_BYTES = 65_536
IMPORTED = ("uvloop", "cloud.server", "cloud.sync_connections", "cloud.collective")
"""What a shard imports, at its start or later, is imported once for all."""
_LIBC = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG."""


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent is gone."""
    _LIBC.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


class Nursery:
    """The process that shards are forked from. It ends with the context, shards that run on are their owner's."""

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.shard_load.nursery", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing here has threads
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()
        self._process.wait()

    def start(self, environment: dict[str, str]) -> tuple[int, BinaryIO]:
        """The process id of a shard's supervisor, which leads a session, and its standard output."""
        reading, writing = os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(environment).encode()], [writing])
        finally:
            os.close(writing)
        return int(self._socket.recv(64)), os.fdopen(reading, "rb", buffering=0)


def _go_on_as_shard(environment: dict[str, str], output: int) -> None:
    """What the forked child does; it never returns."""
    from cloud.__main__ import main as cloud

    code = 1
    try:
        os.setsid()
        end_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(output, 1)
        os.close(output)
        os.environ.clear()
        os.environ.update(environment)
        code = cloud([])
    finally:
        sys.stdout.flush()
        os._exit(code)


def main(descriptor: int) -> None:
    """Fork a shard for each environment that comes, until the socket is closed."""
    for module in IMPORTED:
        importlib.import_module(module)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever asked for a shard looks after it
    with socket.socket(fileno=descriptor) as asked:
        while True:
            data, outputs, _, _ = socket.recv_fds(asked, MAX_ENVIRONMENT_BYTES, 1)
            if not data:
                return
            child = os.fork()
            if child == 0:
                asked.close()
                _go_on_as_shard(json.loads(data), outputs[0])
            os.close(outputs[0])
            asked.send(str(child).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
