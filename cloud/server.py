"""A shard's processes: a supervisor, WORKERS that answer requests, and one that counts. `run` is the supervisor.

Each worker listens on a socket of its own on the same port (SO_REUSEPORT). The supervisor holds the sockets too, so what
waits on one while its worker is started again is not lost. Children that end are started again; SIGTERM or SIGINT is
passed on, and all leave once they have answered what they had in hand. A child whose supervisor is gone leaves too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloud.configuration import ServerConfig
from cloud.counting import count
from cloud.logs import log, start_logging
from cloud.metrics import Counters, SharedCounters
from cloud.opening import open_knowledge, open_storage
from cloud.shard_federation import ShardFederation
from cloud.storage_environment import probe
from cloud.worker import BACKLOG, work
from omega_edge.errors import ConfigError

STOP_SECONDS = 25.0
"""After which children that have not left are killed."""
RESTART_SECONDS = 1.0
"""Between the ends of one child."""
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP}


def now_ms() -> int:
    """Unix milliseconds of the machine's clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Child:
    name: str
    start: Callable[[], None]
    process: int = 0
    due: float = 0.0
    """When it may be started, monotonic seconds."""


def listening_sockets(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets on one port, which the system chooses where port is 0. Raises ConfigError where it cannot be had."""
    sockets: list[socket.socket] = []
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        for _ in range(count):
            opened = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            opened.setblocking(False)
            opened.bind((host, port))
            opened.listen(BACKLOG)
            port = opened.getsockname()[1]
    except OSError as fault:
        for opened in sockets:
            opened.close()
        raise ConfigError(f"HOST, PORT: expected an address to listen on, got {fault.strerror}: {host}:{port}") from None
    return sockets


def run(
    config: ServerConfig,
    clock: Callable[[], int] = now_ms,
    started: Callable[[int], None] | None = None,
) -> int:
    """Run a shard until SIGTERM or SIGINT; the exit code. To be called in a process without other threads.

    clock: Unix milliseconds, of all processes. started: called with the port once the workers take requests. Raises
    ConfigError, StoreDamagedError and other StoreErrors before anything is started.
    """
    start_logging(config.log_level)
    _raise_file_limit()
    _check_store(config, clock)
    shared = SharedCounters(config.workers + 2)
    sockets = listening_sockets(config.host, config.port, config.workers)
    port = sockets[0].getsockname()[1]
    supervisor = _Supervisor(config, clock, shared, sockets)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    log("starting", shard_id=config.shard.shard_id, region=config.shard.region, port=port, workers=config.workers)
    try:
        return supervisor.watch(lambda: started and started(port))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _raise_file_limit() -> None:
    """Allow as many open files, so connections, as this process may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _check_store(config: ServerConfig, clock: Callable[[], int]) -> None:
    """Refuse a damaged store, a foreign one, and folders that are not what they should be, before any child begins."""
    probe(config.shard.store_folder())
    knowledge = open_knowledge(config)
    storage = open_storage(config, clock, knowledge)
    try:
        ShardFederation(config, storage, knowledge, clock)
    except OSError as fault:
        raise ConfigError(f"PUBLICATION_DIR: expected a folder that can be written, got {fault.strerror}") from None
    finally:
        storage.close()


class _Supervisor:
    """Starts children and starts them again. Signals are blocked here and waited for."""

    def __init__(
        self, config: ServerConfig, clock: Callable[[], int], shared: SharedCounters, sockets: list[socket.socket]
    ) -> None:
        self._config, self._clock, self._shared, self._sockets = config, clock, shared, sockets
        self._own = shared.row(config.workers + 1)
        self._children = [
            *(_Child(f"worker {number}", lambda number=number: self._work(number)) for number in range(config.workers)),
            _Child("counting", self._count),
        ]

    def _work(self, number: int) -> None:
        for other, opened in enumerate(self._sockets):
            if other != number:
                opened.close()
        work(self._config, self._clock, self._sockets[number], self._shared.row(number))

    def _count(self) -> None:
        for opened in self._sockets:
            opened.close()
        count(self._config, self._clock, self._counters_of_counting())

    def _counters_of_counting(self) -> Counters:
        return self._shared.row(self._config.workers)

    def watch(self, started: Callable[[], object]) -> int:
        """Until a signal to stop."""
        told = False
        while True:
            for child in self._children:
                if not child.process and time.monotonic() >= child.due:
                    self._fork(child)
            if not told and self._shared.total("ready") >= self._config.workers:
                told = True
                started()
            came = signal.sigtimedwait(_SIGNALS, 0.02 if not told else 1.0)
            self._reap()
            if came is not None and came.si_signo in (signal.SIGTERM, signal.SIGINT):
                return self._stop()

    def _fork(self, child: _Child) -> None:
        process = os.fork()
        if process:
            child.process = process
            return
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            child.start()
            code = 0
        except KeyboardInterrupt:
            code = 0
        except BaseException as fault:
            log(f"{child.name} failed", level=40, kind=type(fault).__name__, text=str(fault))
            raise
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not process:
                return
            for number, child in enumerate(self._children):
                if child.process == process:
                    child.process, child.due = 0, time.monotonic() + RESTART_SECONDS
                    self._shared.row(number).put("ready", 0)
                    self._own.add("restarts")
                    log(f"{child.name} ended; it will be started again", level=30, status=status)

    def _stop(self) -> int:
        log("stopping")
        for opened in self._sockets:  # now each worker's own is the last, so that closing it stops its queue
            opened.close()
        for child in self._children:
            if child.process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process, signal.SIGTERM)
        deadline, code = time.monotonic() + STOP_SECONDS, 0
        for child in self._children:
            code |= _ended(child.process, deadline) if child.process else 0
        log("stopped")
        return code


def _ended(process: int, deadline: float) -> int:
    """Wait for a child's end, or make it; 0 if it left by itself."""
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return 0
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 1
