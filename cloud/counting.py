"""The one process of a store that counts: what the workers stored becomes published objects, and what is too old goes.

A shard that starts while another one on the same store is still ending serves beside it, but waits with counting: two would
count every home twice, and unlink each other's objects.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cloud.configuration import ServerConfig
from cloud.lmdb_storage import LmdbStorage
from cloud.logs import log
from cloud.metrics import Counters
from cloud.opening import open_knowledge, open_storage
from cloud.shard_federation import ShardFederation
from omega_edge.errors import StoreError

LOCK_NAME = "counting.lock"
LOCK_SECONDS = 0.5
"""Between tries to have it."""
PURGE_SECONDS = 60.0
PURGE_AT_A_TIME = 200
"""Records: a few milliseconds, for which the workers' transactions wait."""
NICENESS = 5
"""Below the workers: on a full machine, counting may take longer, answers may not."""


def count(config: ServerConfig, clock: Callable[[], int], counters: Counters) -> None:
    """Until SIGTERM, or until the supervisor is gone."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.nice(NICENESS)
    parent = os.getppid()
    lock = _alone(config.shard.store_folder() / LOCK_NAME, stop, parent)
    if lock is None:
        return
    try:
        _count(config, clock, counters, stop, parent)
    finally:
        os.close(lock)


def _alone(path: Path, stop: threading.Event, parent: int) -> int | None:
    """The lock of whoever counts, once it is free; None where this process is to leave before. It ends with the process."""
    descriptor, told = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not told:
                log("another process counts on this store; waiting for its end", level=30)
                told = True
        if stop.wait(LOCK_SECONDS) or os.getppid() != parent:
            os.close(descriptor)
            return None


def _count(
    config: ServerConfig, clock: Callable[[], int], counters: Counters, stop: threading.Event, parent: int
) -> None:
    knowledge = open_knowledge(config)
    storage = open_storage(config, clock, knowledge)
    try:
        federation = ShardFederation(config, storage, knowledge, clock)
        counting_due = purging_due = time.monotonic()
        while not stop.wait(min(0.5, config.counting_interval_seconds)):
            if os.getppid() != parent:
                return
            if time.monotonic() >= counting_due:
                _step(federation, counters)
                counting_due = time.monotonic() + config.counting_interval_seconds
            if time.monotonic() >= purging_due:
                _purge(storage, clock, counters, stop)
                purging_due = time.monotonic() + PURGE_SECONDS
    finally:
        storage.close()


def _step(federation: ShardFederation, counters: Counters) -> None:
    """Count and pull. What fails is tried again with the next step: everything it stands on is in files."""
    try:
        if federation.step():
            counters.add("published")
            log("counted", **federation.held)
    except (StoreError, OSError) as fault:
        counters.add("counting_faults")
        log("counting failed", level=40, kind=type(fault).__name__, text=str(fault))
    if federation.faults:
        counters.add("counting_faults")
    for name, fault in federation.faults.items():
        log("a fault of what is pulled", level=30, object=name, fault=fault)


def _purge(storage: LmdbStorage, clock: Callable[[], int], counters: Counters, stop: threading.Event) -> None:
    """Delete what is past its age, a little at a time, so that the workers' transactions get in between."""
    try:
        while not stop.is_set() and (deleted := storage.purge(clock(), PURGE_AT_A_TIME)):
            counters.add("purged", deleted)
            stop.wait(0.02)
    except StoreError as fault:
        log("deleting what is too old failed", level=40, kind=type(fault).__name__)
