"""Processes that do what they are told, a command at a time, over a pipe: homes, shards, counting, hub.

Each is started afresh (spawn), makes one object, and calls its asynchronous methods by name. It ends with its pipe, so
nothing stays behind where the one who tells is killed.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

STOP_SECONDS = 20.0


class ProcessFailed(Exception):
    """A process ended, or could not do what it was told; the text says why."""


async def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    loop = asyncio.get_running_loop()
    made: Any = None
    while True:
        try:
            if made is None:
                made = make(*arguments)
                pipe.send((True, None))
            try:
                name, told = await loop.run_in_executor(None, pipe.recv)
            except EOFError:
                return
            reply = await getattr(made, name)(*told)
        except BaseException:
            with suppress(OSError):
                pipe.send((False, traceback.format_exc()))
            raise
        pipe.send((True, reply))


def _run(pipe: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(pipe, make, arguments))
        return
    uvloop.run(_serve(pipe, make, arguments))


class Told:
    """One process, seen from outside. make: a class or function of a module, called there with the arguments."""

    def __init__(self, make: Callable[..., Any], *arguments: object) -> None:
        self._name = make.__name__
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._awaited = ["start"]

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

    def begin(self, name: str, *arguments: object) -> None:
        """Tell it a command; wait() gets the reply."""
        self._pipe.send((name, arguments))
        self._awaited.append(name)

    def wait(self) -> Any:
        """The reply to the oldest command not waited for, the start being the first. Raises ProcessFailed."""
        name = self._awaited.pop(0)
        try:
            done, reply = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise ProcessFailed(f"{self._name}: {name}: the process ended before it answered") from None
        if not done:
            raise ProcessFailed(f"{self._name}: {name}: {reply}")
        return reply

    def last_reply(self) -> Any:
        """The reply to the newest command, once all before it are done. Raises ProcessFailed."""
        reply = None
        while self._awaited:
            reply = self.wait()
        return reply

    def tell(self, name: str, *arguments: object) -> Any:
        """Tell it a command and wait for the reply. Raises ProcessFailed."""
        self.begin(name, *arguments)
        return self.last_reply()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            print(f"{self._name}: process {self._process.pid} does not end; it is killed", file=sys.stderr)
            self._process.kill()
            self._process.join()


def tell_all(processes: Sequence[Told], name: str, *arguments: object) -> list[Any]:
    """Tell several the same; their replies in order, once all have done it."""
    for process in processes:
        process.begin(name, *arguments)
    replies = []
    for process in processes:
        replies.append(process.last_reply())
    return replies
