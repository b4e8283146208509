"""A shard in few words, for tests of televisions: the rules of the protocol by themselves, and a real HTTP server of them.

ModelShard is what a television's view of the cloud is compared with; it shares no code with the real one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from omega_edge import wire
from omega_edge.brain import OmegaBrain
from omega_edge.codes import set_hash
from omega_edge.protocol import CountReport, GlobalPatterns, PatternDelta, SyncRequest, SyncResponse, ViewingPattern
from omega_edge.sync_identity import device_token, parse_authorization, request_mac

KEY = bytes(range(32))
SERVER_NOW_MS = 1_370_000_000_000


@dataclass
class Device:
    """What a shard knows of a device."""

    epoch: int
    version: int = 0
    issued: int | None = None
    base: int | None = None
    applied: PatternDelta | None = None
    titles: dict[tuple[str, int], None] = field(default_factory=dict)
    patterns: dict[int, ViewingPattern] = field(default_factory=dict)


@dataclass
class ModelShard:
    """Answers requests. requests: every one that was answered. clock: the server's; it may jump. patterns: handed out to
    those who have not seen their version."""

    global_version: int = 0
    next_sync_secs: int = 300
    now_ms: int = SERVER_NOW_MS
    patterns: GlobalPatterns | None = None
    catalog_version: int | None = None
    snapshot_wanted: bool = False
    devices: dict[bytes, Device] = field(default_factory=dict)
    reports: dict[tuple[bytes, int], CountReport] = field(default_factory=dict)
    erased: list[bytes] = field(default_factory=list)
    requests: list[SyncRequest] = field(default_factory=list)

    def answer(self, request: SyncRequest) -> SyncResponse:
        """What the shard answers, and what it keeps."""
        self.requests.append(request)
        self.now_ms += 1
        told: dict[str, object] = {}
        if request.erase:
            self.devices.pop(request.device_id, None)
            self.erased.append(request.device_id)
            told["erased"] = True
        elif request.count_report is not None:
            self.reports.setdefault((request.device_id, request.count_report.day), request.count_report)
            told["counted"] = True
        elif request.delta is not None:
            told = self._take(request)
        patterns = self.patterns
        if patterns is not None and request.global_version_seen == patterns.global_version:
            patterns = None
        return SyncResponse(
            global_version=self.global_version if patterns is None else patterns.global_version,
            next_sync_secs=self.next_sync_secs,
            patterns=patterns,
            catalog_version=self.catalog_version,
            **{"server_time": self.now_ms, **told},
        )

    def _take(self, request: SyncRequest) -> dict[str, object]:
        delta, seen = request.delta, request.server_time_seen
        device = self.devices.get(request.device_id)
        if request.device_id in self.erased:
            return {"reset": True}
        if device is None or device.epoch != request.epoch:
            if seen is not None:
                return {"reset": True}
            device = Device(request.epoch, titles={} if device is None else device.titles)
            self.devices[request.device_id] = device
        elif seen not in (device.issued, device.base):
            return {"reset": True}
        if delta.local_version > device.version:
            device.titles.update(dict.fromkeys((title.content_id, title.finished_at) for title in delta.titles_finished))
            device.patterns = {} if delta.snapshot else device.patterns
            for pattern in (*delta.patterns_added, *delta.patterns_updated):
                device.patterns[pattern.id] = pattern
            for pattern_id in delta.patterns_removed:
                device.patterns.pop(pattern_id, None)
            device.version, device.applied = delta.local_version, delta
            device.base, device.issued = seen, max(self.now_ms, (device.issued or 0) + 1)
        elif delta != device.applied:
            return {"reset": True}  # a copy of the device, one step behind
        differ = delta.shared_set_hash not in (None, set_hash(device.patterns.values()))
        wanted = (self.snapshot_wanted or differ) and not delta.more_pages
        self.snapshot_wanted = self.snapshot_wanted and not wanted
        return {
            "acknowledged_local_version": delta.local_version,
            "snapshot_wanted": wanted and not delta.snapshot,
            "server_time": device.issued,
        }

    def titles_of_all(self) -> list[str]:
        """Every title that any device told, in order."""
        return [content_id for device in self.devices.values() for content_id, _at in device.titles]


@dataclass
class Traffic:
    """What went over the socket. port: where the server listens; raw: every request as it came, head and body; answered:
    bytes sent back."""

    port: int = 0
    raw: list[bytes] = field(default_factory=list)
    answered: int = 0

    @property
    def url(self) -> str:
        """Where a television finds the shard."""
        return f"http://127.0.0.1:{self.port}"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """Head and body of one HTTP request; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return head, await reader.readexactly(int(length.split(b":")[1]))
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None


def http_answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer as a shard sends it: no header that says nothing."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


Handler = Callable[[bytes, bytes], "Awaitable[bytes] | bytes"]
"""Head and body of a request -> the bytes to answer; none: the connection is closed."""


def handler_of(shard: ModelShard, titles: object, key: bytes = KEY) -> Handler:
    """The HTTP side of a shard."""

    def handle(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST /api/v1/devices HTTP/1.1\r\n"):
            return http_answer(device_token(key, body), "201 Created")
        assert head.startswith(b"POST /api/v1/sync HTTP/1.1\r\n"), head
        request = wire.decode_request(body, titles)
        proofs = [line[15:].decode() for line in head.split(b"\r\n") if line.startswith(b"Authorization: ")]
        if request.device_id is None:
            assert proofs == [], "a request without a device id says nothing of who sends it"
        else:
            device_id, mac = parse_authorization(proofs[0])
            assert (device_id, mac) == (request.device_id, request_mac(device_token(key, device_id), body))
        return http_answer(wire.encode_response(shard.answer(request), titles))

    return handle


def lose_tokens(brain: OmegaBrain) -> None:
    """Forget what proves that the home's numbers are its own."""
    composer = brain.collective._composer
    composer.keep(replace(composer._identity, tokens={}))


@asynccontextmanager
async def served(handle: Handler, tls: ssl.SSLContext | None = None, close: bool = False) -> AsyncIterator[Traffic]:
    """A server on this machine; yields its Traffic. close: whether it closes behind each answer."""
    traffic, talks = Traffic(), {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[asyncio.current_task()] = writer
        try:
            while (request := await read_request(reader)) is not None:
                traffic.raw.append(b"".join(request))
                answer = handle(*request)
                answer = answer if isinstance(answer, bytes) else await answer
                if not answer:
                    break
                writer.write(answer)
                traffic.answered += len(answer)
                await writer.drain()
                if close:
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    traffic.port = server.sockets[0].getsockname()[1]
    try:
        yield traffic
    finally:
        await ended(server, talks)


async def ended(server: asyncio.Server, talks: dict[asyncio.Task, asyncio.StreamWriter]) -> None:
    """Close a server and see its conversations end, and their sockets, whatever is unsent in them; before Python 3.12,
    wait_closed() waits for none."""
    server.close()
    for talk in talks:
        talk.cancel()
    await asyncio.gather(*talks, return_exceptions=True)
    for writer in talks.values():
        writer.transport.abort()
    await asyncio.gather(*(writer.wait_closed() for writer in talks.values()), return_exceptions=True)
    await server.wait_closed()


@asynccontextmanager
async def cutting(port: int, direction: str, cut: int, whole_connections: bool = False) -> AsyncIterator[Traffic]:
    """A proxy in front of a server, which cuts every connection once `cut` bytes went in a direction ("up" or "down"),
    counted over all connections. whole_connections: one that has begun is let through; the next ones are cut."""
    traffic, left, talks = Traffic(), cut, {}

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool) -> None:
        nonlocal left
        begun = False
        while data := await reader.read(4096):
            if counted:
                let_through = len(data) if begun or (whole_connections and left > 0) else max(min(len(data), left), 0)
                begun = begun or (whole_connections and left > 0)
                left -= len(data)
                writer.write(data[:let_through])
                if let_through < len(data):
                    break
            else:
                writer.write(data)
            await writer.drain()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks[asyncio.current_task()] = writer
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        both = [
            asyncio.create_task(relay(reader, server_writer, direction == "up")),
            asyncio.create_task(relay(server_reader, writer, direction == "down")),
        ]
        try:
            _done, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        finally:
            for each in (writer, server_writer):
                each.close()

    proxy = await asyncio.start_server(talk, "127.0.0.1", 0)
    traffic.port = proxy.sockets[0].getsockname()[1]
    try:
        yield traffic
    finally:
        await ended(proxy, talks)
