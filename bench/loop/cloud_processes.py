"""The cloud's side of the loop: what `python -m cloud` composes, in processes whose clock is the loop's.

A shard is two processes, as in production: one answers televisions over HTTP, one counts and pulls. What they do each
second or minute there, they do here when they are told; nothing else differs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

from bench.loop.clock import SharedClock
from cloud.admission import Gate
from cloud.app import ShardApplication
from cloud.commit import GroupCommit
from cloud.configuration import from_environment
from cloud.connections import BoundedServer
from cloud.downloads import Downloads
from cloud.enrolment import Enrolment
from cloud.federate_command import from_environment as federation_from_environment
from cloud.federation import FederationCoordinator
from cloud.metrics import SharedCounters
from cloud.opening import open_knowledge, open_storage
from cloud.server import listening_sockets
from cloud.shard import ShardManager
from cloud.shard_federation import ShardFederation
from cloud.worker import MAX_DELAY_MS, MAX_IN_HAND

MOST_CONNECTIONS = 1_000


class ShardServer:
    """Answers televisions. environment: as of `python -m cloud`."""

    def __init__(self, environment: Mapping[str, str], clock: Path) -> None:
        self._config, self._clock = from_environment(environment), SharedClock(clock)
        self._knowledge = open_knowledge(self._config)
        self._storage = open_storage(self._config, self._clock, self._knowledge)

    async def listen(self) -> int:
        """Begin to answer; the port."""
        config, loop = self._config, asyncio.get_running_loop()
        listening: socket.socket = listening_sockets("127.0.0.1", 0, 1)[0]
        counters, gate = SharedCounters(1).row(0), Gate(MAX_IN_HAND, MAX_DELAY_MS)
        manager = ShardManager(
            config.shard, self._storage, GroupCommit(self._storage, loop), self._knowledge, config.device_key, self._clock,
            counters,
        )  # fmt: skip
        downloads = Downloads(config.bundle_dir, config.publication_dir)
        enrolment = Enrolment(config.enrolment_open, config.device_key, self._storage)
        application = ShardApplication(manager, gate, downloads, enrolment, counters)
        self._manager = manager
        self._server = await loop.create_server(
            BoundedServer(application.handle, gate, counters, MOST_CONNECTIONS), sock=listening
        )
        return listening.getsockname()[1]

    async def refresh(self) -> dict[str, object]:
        """Look at the files now; the shard's stats."""
        self._knowledge.refresh()
        return self._manager.stats()


class ShardCounting:
    """Counts and pulls for a shard."""

    def __init__(self, environment: Mapping[str, str], clock: Path) -> None:
        config, now = from_environment(environment), SharedClock(clock)
        knowledge = open_knowledge(config)
        self._federation = ShardFederation(config, open_storage(config, now, knowledge), knowledge, now)

    async def step(self) -> dict[str, str]:
        """Pull, count and publish; what was at fault."""
        self._federation.step()
        return self._federation.faults


class Hub:
    """Sums the shards and makes the collective. environment: as of `python -m cloud federate`."""

    def __init__(self, environment: Mapping[str, str], clock: Path) -> None:
        self._coordinator = FederationCoordinator(federation_from_environment(environment), SharedClock(clock))

    async def run_once(self) -> dict[str, object]:
        """One pass; the stats after it."""
        self._coordinator.run_once()
        return self._coordinator.stats()
