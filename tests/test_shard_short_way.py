"""The short way for syncs takes only what all of HTTP reads the same: body, authorization, and nothing after it."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from cloud.sync_connections import cut_request

BODY = bytes(range(90))
PLAIN = (
    b"POST /api/v1/sync HTTP/1.1\r\nHost: shard.example:8080\r\nAuthorization: Omega " + b"A" * 43
    + b"\r\nUser-Agent: tv/1.0\r\nAccept: */*\r\nContent-Length: 90\r\n\r\n" + BODY
)  # fmt: skip
PIECES = (
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x80", b"Content-Length: 5\r\n", b"content-length: 90\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n",
    b"Authorization: Omega x\r\n", b" folded\r\n", b"X-Y: z\r\n", b"9", b"POST /api/v1/sync HTTP/1.1\r\n", b"%20", b"+",
)  # fmt: skip


def parsed(data: bytes) -> tuple[bytes, str | None] | None:
    """Body and Authorization as aiohttp's parser reads exactly one whole POST; None for anything else."""

    async def read() -> tuple[bytes, str | None] | None:
        loop = asyncio.get_running_loop()
        parser = HttpRequestParser(BaseProtocol(loop), loop, 1 << 16)
        try:
            messages, upgraded, tail = parser.feed_data(data)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded or tail:
            return None
        message, payload = messages[0]
        if message.method != "POST" or message.path != "/api/v1/sync" or message.chunked or message.should_close:
            return None
        if not payload.is_eof():
            return None
        return await payload.read(), message.headers.get("Authorization")

    return asyncio.run(read())


def test_a_plain_request_goes_the_short_way():
    assert cut_request(PLAIN) == (BODY, "Omega " + "A" * 43) == parsed(PLAIN)
    anonymous = b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert cut_request(anonymous) == (b"abc", None)


@pytest.mark.parametrize(
    "data",
    [
        b"", PLAIN[:-1], PLAIN + b"x", PLAIN + PLAIN, PLAIN.replace(b"POST", b"post"), PLAIN.replace(b"1.1", b"1.0", 1),
        PLAIN.replace(b"sync", b"sync?x=1", 1), PLAIN.replace(b"Length: 90", b"Length: 090x"),
        PLAIN.replace(b"Length: 90", b"Length: 2049") + bytes(1_959), PLAIN.replace(b"Accept: */*", b"Connection: close"),
        PLAIN.replace(b"Accept: */*", b"Expect: 100-continue"), PLAIN.replace(b"Accept: */*", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"Accept: */*", b"Content-Length: 90"), PLAIN.replace(b"Accept: */*", b"Authorization: Omega B"),
        PLAIN.replace(b"Accept: */*", b" folded"), PLAIN.replace(b"Accept: */*", b"A" * 3_000),
        PLAIN.replace(b"Accept: */*", b"A:\nB: c"), PLAIN.replace(b"Content-Length: 90\r\n", b""),
    ],
)  # fmt: skip
def test_whatever_is_not_plain_does_not(data):
    assert cut_request(data) is None


def test_what_goes_the_short_way_is_read_alike_by_all_of_http():
    chosen = random.Random(11)
    short = 0
    for _ in range(3_000):
        data = bytearray(PLAIN)
        for _ in range(chosen.randrange(1, 4)):
            place, piece = chosen.randrange(len(data)), chosen.choice(PIECES)
            if chosen.random() < 0.5:
                data[place:place] = piece
            else:
                data[place : place + chosen.randrange(1, 9)] = piece if chosen.random() < 0.5 else b""
        found = cut_request(bytes(data))
        if found is not None:
            short += 1
            assert found == parsed(bytes(data)), bytes(data)
    assert short > 50
