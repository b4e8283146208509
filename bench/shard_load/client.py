"""One keep-alive connection of HTTP/1.1: sends prepared requests, cuts replies out of what comes. Nothing is pipelined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

MAX_HEAD_BYTES = 4_096
MAX_BODY_BYTES = 65_536
_LENGTH = b"\r\ncontent-length:"


class ReplyFault(Exception):
    """Bytes came that are no reply as the shard may send them."""


@dataclass(slots=True)
class Reply:
    """Status code, head (status line and headers, as they came) and body."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, None where it is missing."""
        for line in self.head.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


def cut_reply(data: bytes) -> Reply | None:
    """The reply that these bytes are, None while it is not whole; ReplyFault where they are none, or more than one."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ReplyFault(f"expected a reply's head within {MAX_HEAD_BYTES} bytes, got more")
        return None
    head = data[:end]
    if not (head.startswith(b"HTTP/1.1 ") and head[9:12].isdigit()):
        raise ReplyFault("expected a status line of HTTP/1.1, got other bytes")
    lower = head.lower()
    at = lower.find(_LENGTH)
    if at < 0:
        raise ReplyFault("expected Content-Length in the reply's head, which has none")
    stop = lower.find(b"\r\n", at + len(_LENGTH))
    length = int(lower[at + len(_LENGTH) : stop if stop > 0 else None])
    if length > MAX_BODY_BYTES:
        raise ReplyFault(f"expected a body of at most {MAX_BODY_BYTES} bytes, got {length}")
    whole = end + 4 + length
    if len(data) < whole:
        return None
    if len(data) > whole:
        raise ReplyFault(f"expected one reply to one request, got {len(data) - whole} bytes after it")
    return Reply(int(head[9:12]), head, data[end + 4 :])


class Connection(asyncio.Protocol):
    """Tells `finished` of each reply, or of None where the connection ended before it came. At most one request at a time."""

    __slots__ = ("_finished", "_received", "_transport", "busy", "open", "slot")

    def __init__(self, finished: Callable[[Connection, Reply | None], None]) -> None:
        self._finished = finished
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.open = False
        self.busy = False
        self.slot: object = None
        """What the owner keeps with the request under way."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Keep the transport."""
        self._transport = transport
        self.open = True

    def send(self, request: bytes, slot: object) -> None:
        """Send a request; `finished` is called once for it."""
        assert not self.busy and self._transport is not None
        self.busy, self.slot = True, slot
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Cut the reply out; bytes that are none close the connection."""
        if self._received:
            data = self._received + data
        try:
            reply = cut_reply(data)
        except (ReplyFault, ValueError):
            reply = Reply(0, data[:MAX_HEAD_BYTES], b"")
            self.open = False
            self._transport.abort()
        if reply is None:
            self._received = data
            return
        self._received = b""
        if not self.busy or b"\r\nconnection: close" in reply.head.lower():
            self.open = False
            self._transport.close()
        if self.busy:
            self.busy = False
            self._finished(self, reply)

    def connection_lost(self, error: Exception | None) -> None:
        """A request under way has no reply then."""
        self.open = False
        if self.busy:
            self.busy = False
            self._finished(self, None)

    def abort(self) -> None:
        """Close at once."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()
