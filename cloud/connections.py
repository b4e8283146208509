"""Connections: aiohttp's, with bounds. How many there are, how long a request may take to arrive, and what happens while the
gate is closed: a whole sync request is then refused by a prepared reply, unparsed.

Replies are written in one piece, with no header that a television does not need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cloud.admission import Gate
from cloud.metrics import Counters
from cloud.replies import error_body

if TYPE_CHECKING:
    from cloud.shard import ShardManager
    from cloud.sync_connections import SyncConnection, Turns

KEEP_ALIVE_SECONDS = 15.0
"""Shorter than any sync interval: a connection costs some 20 KB while it waits. Long enough for pages in a row."""
ARRIVAL_SECONDS = 10.0
"""In which a request has to arrive whole, from its first byte."""
MAX_UNSENT_BYTES = 256 * 1024
"""A client that sends requests and reads no replies is cut off here."""
MAX_LINE_BYTES, MAX_HEADERS_BYTES = 2_048, 8_190

_SILENT = logging.getLogger("omega.http")
_SILENT.disabled = True
"""aiohttp would log what a malformed request holds. What is worth a log is logged by the application."""
SYNC_START = b"POST /api/v1/sync HTTP/1.1\r\n"
MAX_HEAD_BYTES, MAX_LENGTH_DIGITS = 2_048, 4
"""Of a plain sync."""
_LENGTH = b"\r\ncontent-length: "
_REASONS = {status.value: status.phrase for status in HTTPStatus}

Handler = Callable[[web.BaseRequest], Awaitable["Written | web.StreamResponse"]]


def head_and_body(status: int, body: bytes, headers: tuple[tuple[str, str], ...] = (), keep_alive: bool = True) -> bytes:
    """A whole reply of HTTP/1.1."""
    if status == HTTPStatus.OK and keep_alive and not headers:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
    if status != HTTPStatus.NOT_MODIFIED:
        lines.append(f"Content-Length: {len(body)}")
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


OVERLOADED = head_and_body(
    503, b'{"error":"the shard is overloaded; come back later"}',
    (("Content-Type", "application/json"), ("Retry-After", "300")),
)  # fmt: skip


def is_whole_sync(data: bytes) -> bool:
    """Whether these bytes are one sync request with all of its body; False where that takes a parser to tell.

    Nothing may be taken for a whole request that HTTP reads as the beginning of one: the rest would pass for another.
    """
    if not data.startswith(SYNC_START):
        return False
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        return False
    head = data[:end].lower()
    at = head.find(_LENGTH)
    if at < 0 or head.count(b"content-length") > 1 or b"transfer-encoding" in head:
        return False
    length = data[at + len(_LENGTH) : data.find(b"\r", at + 2)]
    return length.isdigit() and len(length) <= MAX_LENGTH_DIGITS and end + 4 + int(length) == len(data)


def error_reply(status: int, words: str, retry_after: int | None = None, keep_alive: bool = True) -> Written:
    """A reply of an error: JSON with its words."""
    headers, body = error_body(words, retry_after)
    return Written(status, body, headers, keep_alive)


class Written:
    """A reply that is written to the transport as it is: all that aiohttp's connection asks of a response."""

    __slots__ = ("_body", "_headers", "keep_alive", "status")

    def __init__(
        self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = (), keep_alive: bool = True
    ) -> None:
        self.status, self._body, self._headers, self.keep_alive = status, body, headers, keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write it."""
        self.keep_alive = self.keep_alive and bool(request.keep_alive)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        data = head_and_body(self.status, self._body, self._headers, self.keep_alive)
        if request.method == "HEAD":
            data = data[: len(data) - len(self._body)]
        transport.write(data)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()

    async def write_eof(self) -> None:
        """Nothing is left to write."""


class BoundedServer(web.Server):
    """Makes and watches the connections of one worker. manager: answers plain syncs the short way (sync_connections.py)."""

    def __init__(
        self, handler: Handler, gate: Gate, counters: Counters, max_connections: int, manager: ShardManager | None = None
    ) -> None:
        # A body that a refusal left unread is not read after it either: the connection ends.
        super().__init__(
            handler, keepalive_timeout=KEEP_ALIVE_SECONDS, access_log=None, lingering_time=0.0, max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADERS_BYTES, max_headers=64, tcp_keepalive=False, auto_decompress=False, logger=_SILENT,
        )  # fmt: skip
        self.gate, self.counters, self.max_connections = gate, counters, max_connections
        self._manager = manager
        self._short: set[SyncConnection] = set()
        self._turns: Turns | None = None

    @property
    def turns(self) -> Turns:
        """Where plain syncs wait to be begun."""
        if self._turns is None:
            from cloud.sync_connections import Turns

            self._turns = Turns(self._loop)
        return self._turns

    def __call__(self) -> asyncio.Protocol:
        """A new connection's protocol."""
        if self._manager is None:
            return self.whole_connection()
        from cloud.sync_connections import SyncConnection

        return SyncConnection(self, self._manager)

    def whole_connection(self) -> BoundedConnection:
        """A protocol for all of HTTP."""
        return BoundedConnection(self, loop=self._loop, **self._kwargs)

    @property
    def open_connections(self) -> int:
        """How many there are."""
        return len(self._connections) + len(self._short)

    def take(self, connection: SyncConnection) -> bool:
        """Count a connection of the short way in; False where there are too many."""
        self._short.add(connection)
        if self.open_connections <= self.max_connections:
            return True
        self.counters.add("connections_refused")
        return False

    def refuse_unread(self, transport: asyncio.Transport) -> None:
        """Tell the sender of a whole sync request that the shard is overloaded."""
        self.counters.add("refused_unread")
        self.counters.answered("sync", 503)
        transport.write(OVERLOADED)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()

    def let_go(self, connection: SyncConnection) -> None:
        """Count it out."""
        self._short.discard(connection)

    def sweep(self) -> None:
        """Close connections whose request has been arriving for too long, and idle ones. To be called once a second."""
        late = self._loop.time() - ARRIVAL_SECONDS
        for connection in self.connections:
            if connection.arriving_since is not None and connection.arriving_since < late:
                self.counters.add("connections_timed_out")
                connection.force_close()
        unused = time.monotonic() - KEEP_ALIVE_SECONDS
        for connection in [one for one in self._short if one.idle and one.used_at < unused]:
            connection.close()
        self.counters.put("connections", self.open_connections)

    def close_idle(self) -> None:
        """While draining: close connections that no request is on."""
        for connection in self.connections:
            if connection.idle:
                connection.force_close()
        for connection in [one for one in self._short if one.idle]:
            connection.close()


class BoundedConnection(RequestHandler):
    """One connection. arriving_since: when the request that is not whole yet began, None between requests."""

    __slots__ = ("_server", "arriving_since", "between_requests")

    def __init__(self, server: BoundedServer, **options: object) -> None:
        super().__init__(server, **options)
        self._server = server
        self.arriving_since: float | None = None
        self.between_requests = True

    @property
    def idle(self) -> bool:
        """Whether no request is under way on it."""
        return self.between_requests and not self._messages and self._current_request is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or where there are too many, refuse it."""
        super().connection_made(transport)
        if self._server.open_connections > self._server.max_connections:
            self._server.counters.add("connections_refused")
            transport.write(OVERLOADED)
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Refuse a whole sync request while the gate is closed; else let it be parsed."""
        server = self._server
        if server.gate.closed and self.idle and is_whole_sync(data):
            server.refuse_unread(self.transport)
            return
        super().data_received(data)
        if self._messages and self._messages[-1][1].is_eof():
            self.between_requests, self.arriving_since = True, None
        elif self.arriving_since is None:
            self.between_requests, self.arriving_since = False, self._loop.time()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Written:
        """The reply to what is no HTTP, or to a fault of the application; the connection ends with it."""
        self._server.counters.answered("other", status)
        words = "the shard met a fault of its own" if status == HTTPStatus.INTERNAL_SERVER_ERROR else (message or _REASONS[status])
        return error_reply(status, words, keep_alive=False)

    def arrived(self) -> None:
        """The request under way has been read whole."""
        self.between_requests, self.arriving_since = True, None
