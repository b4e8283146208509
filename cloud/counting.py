"""The one process of a shard that counts: what the workers stored becomes published objects, and what is too old goes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from cloud.configuration import ServerConfig
from cloud.lmdb_storage import LmdbStorage
from cloud.logs import log
from cloud.metrics import Counters
from cloud.opening import open_knowledge, open_storage
from omega_edge.errors import StoreError

STEP_SECONDS = 60.0
PURGE_AT_A_TIME = 1_000


def count(config: ServerConfig, clock: Callable[[], int], counters: Counters) -> None:
    """Until SIGTERM, or until the supervisor is gone."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid()
    knowledge = open_knowledge(config)
    storage = open_storage(config, clock, knowledge)
    try:
        waited = 0.0
        _purge(storage, clock, counters, stop)
        while not stop.wait(0.5):
            waited += 0.5
            if os.getppid() != parent:
                return
            if waited >= STEP_SECONDS:
                waited = 0.0
                _purge(storage, clock, counters, stop)
    finally:
        storage.close()


def _purge(storage: LmdbStorage, clock: Callable[[], int], counters: Counters, stop: threading.Event) -> None:
    """Delete what is past its age, a little at a time, so that the workers' transactions get in between."""
    try:
        while not stop.is_set() and (deleted := storage.purge(clock(), PURGE_AT_A_TIME)):
            counters.add("purged", deleted)
            stop.wait(0.02)
    except StoreError as fault:
        log("deleting what is too old failed", level=40, kind=type(fault).__name__)
