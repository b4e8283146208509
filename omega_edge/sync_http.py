"""One request to the shard and its answer over HTTP: bounded, timed, and bare of every header that could be left out.

No header tells one television from another: no user agent, no accepted encodings, no cookies, and redirects are not
followed. An idle sync stays under 350 bytes both ways, headers and all.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self

from omega_edge.protocol import MAX_DOWNLOAD_BYTES, MAX_SYNC_INTERVAL_SECONDS

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_BARE = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_READ_BYTES = 8192


class ExchangeFailed(Exception):
    """No usable answer came. connected: whether a shard answered at all; sent: whether anything may have left. The text is
    bounded and names no address."""

    def __init__(self, text: str, connected: bool = False, sent: bool = True) -> None:
        super().__init__(text)
        self.connected = connected
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Reply:
    """status: HTTP's. body: of a 200 or 201, else empty. retry_after_secs: when the shard wants to be asked again, or None."""

    status: int
    body: bytes
    retry_after_secs: float | None


def required_aiohttp() -> ModuleType:
    """The library of HTTP, an extra that a television without network does not need. ModuleNotFoundError says how to get it."""
    try:
        import aiohttp
    except ModuleNotFoundError as missing:
        if missing.name != "aiohttp":
            raise
        text = "sync: expected the package aiohttp, it is not installed; pip install omega-edge[sync]"
        raise ModuleNotFoundError(text, name="aiohttp") from None
    return aiohttp


def retry_after_secs(header: str | None, now_ms: int) -> float | None:
    """Seconds that a header Retry-After asks to wait, 0 to 24 h, from its number or its date; None for anything else."""
    if header is None or len(header) > 64:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(min(int(header), MAX_SYNC_INTERVAL_SECONDS))
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    waited = (moment - datetime.fromtimestamp(now_ms / 1000, UTC)).total_seconds()
    return min(max(waited, 0.0), float(MAX_SYNC_INTERVAL_SECONDS))


class ShardConnection:
    """The way to the shard during one sync: a connection for each request, closed behind its answer, since a shard cannot
    hold one open for every television, and nobody has to guess whether the other side still listens."""

    def __init__(self, url: str, timeout_secs: float, tls: ssl.SSLContext | None) -> None:
        """tls: how the shard's certificate is verified; None: by the system's authorities."""
        self._base_url = url
        self._timeout_secs = timeout_secs
        self._tls = tls
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        aiohttp = required_aiohttp()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, force_close=True, ssl=True if self._tls is None else self._tls),
            timeout=aiohttp.ClientTimeout(total=self._timeout_secs),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_BARE,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=_READ_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def exchange(self, path: str, body: bytes, authorization: str | None, now_ms: int) -> Reply:
        """Post a body, with who sends it, to a path of the shard, and read the answer. Raises ExchangeFailed.

        now_ms: this moment, for a Retry-After that is a date.
        """
        aiohttp = required_aiohttp()
        url = f"{self._base_url}/{path}"
        headers = {} if authorization is None else {"Authorization": authorization}
        connected = False
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                connected = True
                waited = retry_after_secs(response.headers.get("Retry-After"), now_ms)
                if response.status not in (200, 201):
                    response.close()
                    return Reply(response.status, b"", waited)
                return Reply(response.status, await _read_bounded(response), waited)
        except TimeoutError:
            raise ExchangeFailed(f"no whole answer within {self._timeout_secs:g} s", connected) from None
        except aiohttp.ClientConnectorCertificateError:
            raise ExchangeFailed("no connection: the shard's certificate is not valid here", sent=False) from None
        except aiohttp.ClientConnectorError as fault:
            raise ExchangeFailed(f"no connection: {type(fault).__name__}", sent=False) from None
        except aiohttp.ClientConnectionError as fault:
            # Nobody knows what a server took that hangs up before it answers.
            raise ExchangeFailed(f"connection lost: {type(fault).__name__}", connected) from None
        except (aiohttp.ClientError, ValueError, OSError) as fault:
            raise ExchangeFailed(f"bad answer: {type(fault).__name__}", connected) from None


async def _read_bounded(response: ClientResponse) -> bytes:
    """The body, never more than MAX_DOWNLOAD_BYTES of it: a longer one is hung up on."""
    coded = response.headers.get("Content-Encoding", "identity") != "identity"
    if coded or (response.content_length or 0) > MAX_DOWNLOAD_BYTES:
        response.close()
        raise ExchangeFailed(f"bad answer: more than {MAX_DOWNLOAD_BYTES} bytes, or bytes in another coding", connected=True)
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_DOWNLOAD_BYTES:
            response.close()
            raise ExchangeFailed(f"bad answer: more than {MAX_DOWNLOAD_BYTES} bytes", connected=True)
    return bytes(data)
