"""Counts what passes a socket: a relay on loopback between a television and its shard that changes nothing.

Every byte that either side hands to the kernel on the connection is counted, HTTP's own included; what TCP and IP add, and
TLS would add, is not. A television has a relay of its own, so its bytes are known whatever others do meanwhile.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Passed:
    """Bytes that passed in each direction."""

    up: int = 0
    down: int = 0

    def __sub__(self, earlier: Passed) -> Passed:
        return Passed(self.up - earlier.up, self.down - earlier.down)


class _Side(asyncio.Protocol):
    """One of a relay's two ends of a connection; what comes is counted and handed to the other."""

    def __init__(self, relay: Relay, up: bool) -> None:
        self._relay, self._up = relay, up
        self.other: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self._up:
            self._relay.begin(self)
            return
        self.other.other = self
        for data in self.other._waiting:
            transport.write(data)
        if self.other.transport.is_closing():
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._relay.count(len(data), self._up)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._waiting.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Relay:
    """Listens on a port of loopback chosen by the kernel and passes every connection on to another port."""

    def __init__(self, port: int) -> None:
        self._to_port = port
        self._up = self._down = 0
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task] = set()

    async def start(self) -> Self:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, up=True), "127.0.0.1", 0)
        return self

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.sockets[0].getsockname()[1]

    @property
    def passed(self) -> Passed:
        """What has passed so far."""
        return Passed(self._up, self._down)

    def count(self, count: int, up: bool) -> None:
        """Count bytes of one direction."""
        if up:
            self._up += count
        else:
            self._down += count

    def begin(self, television: _Side) -> None:
        """Connect a television's new connection with the shard."""
        task = asyncio.get_running_loop().create_task(self._connect(television))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, television: _Side) -> None:
        shard = _Side(self, up=False)
        shard.other, loop = television, asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: shard, "127.0.0.1", self._to_port)
        except OSError:
            television.transport.abort()  # as if the shard itself had refused

    async def stop(self) -> None:
        """Listen no more."""
        self._server.close()
        await self._server.wait_closed()
