"""One worker: an event loop that answers requests until it is told to stop, and then drains."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Coroutine

from cloud.admission import Gate
from cloud.app import ShardApplication
from cloud.commit import GroupCommit
from cloud.configuration import ServerConfig
from cloud.connections import BoundedServer
from cloud.downloads import Downloads
from cloud.enrolment import Enrolment
from cloud.knowledge_files import KnowledgeFiles
from cloud.logs import log
from cloud.metrics import Counters
from cloud.opening import open_knowledge, open_storage
from cloud.shard import ShardManager
from cloud.storage import PatternStorage
from omega_edge.errors import ConfigError, StoreError

MAX_IN_HAND = 256
"""Requests let in and not answered, a worker: at 5,000 a second, 50 ms of them."""
MAX_DELAY_MS = 60.0
"""How long a change may wait for a transaction before the gate closes."""
WATCH_MS = 5.0
"""How often the delay is looked at."""
MAX_CONNECTIONS = 20_000
BACKLOG = 4_096
"""Connections that may wait to be taken, a worker."""
FILES_KEPT_FREE = 128
GRACE_SECONDS = 0.3
"""While draining: connections are still taken for so long, since others may not have heard yet."""
DRAIN_SECONDS = 15.0
COLLECTED_AFTER = (20_000, 50, 100)
"""Of the garbage collector: requests in hand hold thousands of objects and no circles, so looking at them often is in vain."""
REFRESH_SECONDS = 2.0
"""How often files are looked at for a new collective or bundle."""


def work(config: ServerConfig, clock: Callable[[], int], listening: socket.socket, counters: Counters) -> None:
    """Answer requests on this socket until SIGTERM. Returns when everything in hand is answered."""
    knowledge = open_knowledge(config)
    storage = open_storage(config, clock, knowledge)
    try:
        _run_loop(_Worker(config, clock, listening, counters, storage, knowledge).serve())
    finally:
        storage.close()


def _run_loop(main: Coroutine[object, object, None]) -> None:
    """Run a coroutine on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    uvloop.run(main)


class _Worker:
    def __init__(
        self,
        config: ServerConfig,
        clock: Callable[[], int],
        listening: socket.socket,
        counters: Counters,
        storage: PatternStorage,
        knowledge: KnowledgeFiles,
    ) -> None:
        self._config, self._clock, self._listening, self._counters = config, clock, listening, counters
        self._storage, self._knowledge = storage, knowledge
        self._gate = Gate(MAX_IN_HAND, MAX_DELAY_MS, config.max_syncs_per_second)
        self._parent = os.getppid()

    async def serve(self) -> None:
        """Until SIGTERM or SIGINT, and then until all is answered."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        commit = GroupCommit(self._storage, loop)
        manager = ShardManager(
            self._config.shard, self._storage, commit, self._knowledge, self._config.device_key, self._clock, self._counters
        )
        downloads = Downloads(self._config.bundle_dir, self._config.publication_dir)
        enrolment = Enrolment(self._config.enrolment_open, self._config.device_key, self._storage)
        application = ShardApplication(manager, self._gate, downloads, enrolment, self._counters)
        most = min(MAX_CONNECTIONS, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_KEPT_FREE))
        connections = BoundedServer(application.handle, self._gate, self._counters, most, manager)
        # The loop listens anew, with 100 places unless told: then a herd's connections wait for their second SYN, or fifth.
        server = await loop.create_server(connections, sock=self._listening, backlog=BACKLOG)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECTED_AFTER)
        self._counters.put("ready", 1)
        watching = [
            loop.create_task(self._watch_delay(commit, manager, stop)),
            loop.create_task(self._watch_files(connections, stop)),
        ]
        await stop.wait()
        self._counters.put("ready", 0)
        if commit.alive:
            await self._drain(server, connections)
        for task in watching:
            task.cancel()
        await commit.close()
        await connections.shutdown(1.0)
        self._counters.put("connections", 0)

    async def _watch_delay(self, commit: GroupCommit, manager: ShardManager, stop: asyncio.Event) -> None:
        """Tell the gate how long changes wait. Without its commits a worker could only keep everybody waiting, so it leaves."""
        looked = time.monotonic()
        while True:
            now = time.monotonic()
            self._gate.pass_time(now - looked)
            looked = now
            self._gate.delay_ms = commit.delay_ms()
            manager.busy = self._gate.delay_ms > self._gate.max_delay_ms / 2
            self._counters.put("commits", commit.batches)
            if not commit.alive:
                log("nothing can be stored any more; the worker leaves", level=40)
                self._gate.stopped = True
                stop.set()
                return
            await asyncio.sleep(WATCH_MS / 1000.0)

    async def _watch_files(self, connections: BoundedServer, stop: asyncio.Event) -> None:
        """Once a second: late requests; new files; a supervisor that is gone."""
        beats = 0
        while True:
            await asyncio.sleep(1.0)
            connections.sweep()
            beats += 1
            if beats % int(REFRESH_SECONDS) == 0:
                await self._refresh()
            if os.getppid() != self._parent:
                log("the supervisor is gone", level=30)
                stop.set()

    async def _refresh(self) -> None:
        """Take in new files. The first bundle says whose title numbers are stored from now on."""
        numbered = self._knowledge.titles is not None
        self._knowledge.refresh()
        if not numbered and self._knowledge.titles is not None:
            try:
                await asyncio.to_thread(self._storage.claim_lineage, self._knowledge.titles.lineage)
            except (ConfigError, StoreError) as fault:
                self._knowledge.withdraw_titles(str(fault))

    async def _drain(self, server: asyncio.AbstractServer, connections: BoundedServer) -> None:
        """No new connections; idle ones closed; the others after their reply."""
        loop = asyncio.get_running_loop()
        self._gate.draining = True
        await asyncio.sleep(GRACE_SECONDS)
        server.close()
        deadline = loop.time() + DRAIN_SECONDS
        while connections.open_connections and loop.time() < deadline:
            connections.close_idle()
            await asyncio.sleep(0.01)
        self._gate.stopped = True
