"""The short way for syncs: a connection that reads whole sync requests itself, without a parser, a task or a future.

Nearly every request of a television is one segment: head and body of one POST. Such a request is cut here by rules that are
stricter than HTTP's. Whatever does not keep to them goes to aiohttp, on the same connection and from then on, with every byte
that came: another path or method, a body that comes later, an odd header. So nothing is refused here that HTTP allows.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import TYPE_CHECKING

from cloud.connections import (
    MAX_HEAD_BYTES,
    MAX_LENGTH_DIGITS,
    MAX_UNSENT_BYTES,
    OVERLOADED,
    SYNC_START,
    BoundedServer,
    head_and_body,
    is_whole_sync,
)
from cloud.replies import error_body
from omega_edge.protocol import MAX_UPLOAD_BYTES

if TYPE_CHECKING:
    from cloud.shard import Reply, ShardManager

_HEADER = re.compile(rb"([A-Za-z0-9-]+): ?((?:[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?)")
_NOT_SHORT = frozenset((b"transfer-encoding", b"connection", b"expect", b"upgrade", b"content-encoding", b"te", b"trailer"))
"""Headers that ask for something of HTTP."""


def cut_request(data: bytes) -> tuple[bytes, str | None] | None:
    """Body and Authorization of bytes that are exactly one plain sync request; None for all others."""
    if not data.startswith(SYNC_START):
        return None
    end = data.find(b"\r\n\r\n", len(SYNC_START) - 2, MAX_HEAD_BYTES)
    if end < 0:
        return None
    length, authorization, host = None, None, None
    for line in data[len(SYNC_START) : end].split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None:
            return None
        name = found[1].lower()
        if name == b"content-length":
            if length is not None or not found[2].isdigit() or len(found[2]) > MAX_LENGTH_DIGITS:
                return None
            length = int(found[2])
        elif name == b"authorization":
            if authorization is not None:
                return None
            authorization = found[2].decode("ascii")
        elif name == b"host":
            if host is not None:
                return None
            host = found[2]
        elif name in _NOT_SHORT:
            return None
    if not host or length is None or length > MAX_UPLOAD_BYTES or end + 4 + length != len(data):
        return None
    return data[end + 4 :], authorization


class Turns:
    """Requests let in, begun a few at a time, so that between them the loop reads on: who is refused is told at once."""

    AT_ONCE = 24
    """Some 2 ms of work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[SyncConnection, tuple[bytes, str | None]]] = deque()

    def add(self, connection: SyncConnection, request: tuple[bytes, str | None]) -> None:
        """Let a request wait for its turn."""
        if not self._waiting:
            self._loop.call_soon(self._take)
        self._waiting.append((connection, request))

    def _take(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(min(self.AT_ONCE, len(waiting))):
                connection, request = waiting.popleft()
                connection.begin(*request)
        finally:
            if waiting:
                self._loop.call_soon(self._take)


class SyncConnection(asyncio.Protocol):
    """One connection, until something else than plain syncs comes on it."""

    __slots__ = ("_began", "_busy", "_held", "_manager", "_server", "_transport", "used_at")

    def __init__(self, server: BoundedServer, manager: ShardManager) -> None:
        self._server, self._manager = server, manager
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._began = 0.0
        self._held = b""
        """What came while a request was in hand."""
        self.used_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is under way on it."""
        return not self._busy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or where there are too many, refuse it."""
        self._transport = transport
        self.used_at = time.monotonic()
        if not self._server.take(self):
            transport.write(OVERLOADED)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was let go. What it sent is stored all the same."""
        self._transport = None
        self._server.let_go(self)

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one, or something else."""
        if self._busy:
            self._held += data
            self._transport.pause_reading()
            return
        server = self._server
        if server.gate.closed and is_whole_sync(data):
            self._refuse()
            return
        request = cut_request(data)
        if request is None:
            self._hand_over(data)
            return
        if server.gate.closed:
            self._refuse()
            return
        self._busy = True
        self._began = self.used_at = time.monotonic()
        server.gate.enter()
        server.turns.add(self, request)

    def begin(self, body: bytes, authorization: str | None) -> None:
        """Do what the request asks: its turn has come."""
        try:
            reply = self._manager.begin(body, authorization, self._answer)
        except BaseException:
            self._server.gate.leave()
            if self._transport is not None:
                self._transport.abort()
            raise
        if reply is not None:
            self._answer(reply)

    def _refuse(self) -> None:
        """Before anything is read, which costs a fifth of what an answer costs, so that a flood leaves time for answers."""
        self.used_at = time.monotonic()
        self._server.refuse_unread(self._transport)

    def _answer(self, reply: Reply) -> None:
        server, transport = self._server, self._transport
        server.gate.leave()
        server.counters.answered("sync", reply.status)
        self._busy = False
        if transport is None or transport.is_closing():
            return
        draining = server.gate.draining
        if reply.status == 200:
            server.counters.took((time.monotonic() - self._began) * 1000.0)
            transport.write(head_and_body(200, reply.body, keep_alive=not draining))
        else:
            headers, body = error_body(reply.body.decode("utf-8", "replace"), reply.retry_after)
            transport.write(head_and_body(reply.status, body, headers, not draining))
        if draining:
            transport.close()
        elif transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()
        elif self._held:
            self._hand_over(self._held)

    def _hand_over(self, data: bytes) -> None:
        """From now on the connection is aiohttp's."""
        self._held = b""
        transport = self._transport
        self._server.let_go(self)
        protocol = self._server.whole_connection()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()
        protocol.data_received(data)
