"""SyncClient: when a television speaks to its shard, and what it does with the answer or without one.

What is said is composed in the brain (sharing.py); this sends it. It never hurries: after a failure it waits for the next
interval, jittered, so that an outage never multiplies the load. Offline for ever is normal. Neither the moment of a sync
nor, in the sharing mode `receive`, a byte of it depends on what is watched.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random, SystemRandom
from typing import Protocol

from omega_edge import wire
from omega_edge.columns import TitleNumbering
from omega_edge.errors import ConfigError, OmegaError, ProtocolError, StoreError
from omega_edge.protocol import (
    MAX_SYNC_INTERVAL_SECONDS,
    MIN_SYNC_INTERVAL_SECONDS,
    PatternDelta,
    SyncRequest,
    SyncResponse,
)
from omega_edge.sync_address import DEVICES_PATH, SYNC_PATH, shard_url
from omega_edge.sync_http import ExchangeFailed, Reply, ShardConnection, required_aiohttp
from omega_edge.sync_identity import TOKEN_BYTES, authorization
from omega_edge.validation import check_integer

DONE = "done"
MAX_REQUESTS_A_SYNC = 32
"""A first list of 5,000 titles takes about ten; what is left waits for the next sync."""
STEADY_JITTER, FAILURE_JITTER, RETRY_AFTER_JITTER = 0.2, 0.5, 0.2
MAX_OUTCOME_CHARACTERS = 160
REFUSALS = {
    400: "it does not understand this television",
    401: "it does not know this television's key",
    404: "there is no shard at this address",
    409: "its catalogue is another one",
    411: "it wants another form of request",
    413: "the request is too long for it",
    426: "it speaks another version; this television's software has to be newer",
    429: "too many requests; it asks to wait",
    503: "it is overloaded or ends; it asks to wait",
}


IN_USE = 409
ENROLMENT_REFUSALS = {
    403: "its enrolment is closed",
    404: "it enrols nobody",
    IN_USE: "this home's number is in use; it takes another",
    429: REFUSALS[429],
    503: REFUSALS[503],
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waiting times before the first connection: first_delay_secs, then factor times more each, at most max_delay_secs,
    each shortened by up to half at random; attempts: how many syncs in all. After them the interval holds."""

    first_delay_secs: float = 1.0
    factor: float = 2.0
    max_delay_secs: float = 60.0
    attempts: int = 3

    def delay_secs(self, failed: int, randomness: Random) -> float:
        """Seconds to wait after so many failed attempts (1 or more)."""
        longest = min(self.first_delay_secs * self.factor ** (failed - 1), self.max_delay_secs)
        return longest * (1.0 - 0.5 * randomness.random())


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Options of SyncClient. sync_interval_secs: until the shard sets another. first_sync_spread_secs: the first sync comes at
    a random moment within these after the start."""

    constellation_url: str
    sync_interval_secs: int = 300
    timeout_secs: float = 30.0
    first_sync_spread_secs: float = 300.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        shard_url(self.constellation_url)
        try:
            check_integer(
                "sync_interval_secs", self.sync_interval_secs, MIN_SYNC_INTERVAL_SECONDS, MAX_SYNC_INTERVAL_SECONDS
            )
        except ProtocolError as refused:
            raise ConfigError(str(refused)) from None
        if not 0 < self.timeout_secs <= 600:
            raise ConfigError(f"timeout_secs: expected more than 0 and at most 600, got {self.timeout_secs!r}")


@dataclass(slots=True)
class SyncReport:
    """One sync. outcome: "done", or what went wrong, in words. connected: a shard answered, if only to refuse. requests: how
    many were sent; bytes_up, bytes_down: of their bodies. titles, patterns, reports: told and acknowledged; changed: patterns
    and trends that are new here. next_sync_secs, catalog_version: as the shard says, None if it does not. catalog_update: how
    the update went that a newer version called for, "installed" if it is to be opened; None where there was none."""

    outcome: str = DONE
    connected: bool = False
    status: int | None = None
    requests: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    titles: int = 0
    patterns: int = 0
    reports: int = 0
    changed: int = 0
    next_sync_secs: int | None = None
    retry_after_secs: float | None = None
    catalog_version: int | None = None
    catalog_update: str | None = None


class Updated(Protocol):
    """How an update of the catalogue went; see updates.Updated."""

    outcome: Enum
    version: int
    detail: str


class Updater(Protocol):
    """Fetches and installs a newer catalogue; see updates.UpdateClient."""

    async def update(self) -> Updated:
        """Raises OmegaError where what is held cannot be read."""


class Told(Protocol):
    """What a response meant to a request; see sharing.Taken."""

    titles: int
    patterns: int
    reported: bool
    more: bool
    fault: str | None


class Received(Protocol):
    """See collective.Received."""

    told: Told
    changed: int


class VersionedTitles(TitleNumbering, Protocol):
    """A catalogue, as far as a sync needs it."""

    version: int


class Collective(Protocol):
    """The brain's side of a sync; see collective.Collective."""

    mode: str
    titles: VersionedTitles

    def request(self, titles_that_fit: Callable[[PatternDelta], int]) -> SyncRequest:
        """The request to send next."""

    def receive(self, request: SyncRequest, response: SyncResponse) -> Received:
        """Note its answer."""

    def token_of(self, device_id: bytes) -> bytes | None:
        """The token of one of the home's numbers, if a shard gave it."""

    def keep_token(self, device_id: bytes, token: bytes) -> None:
        """Store it."""

    def disown(self, device_id: bytes) -> None:
        """Give the number up: its token cannot be had."""

    def note_sync(
        self, at: int, bytes_up: int, bytes_down: int, titles: int, patterns: int, reports: int, outcome: str
    ) -> None:
        """Log a sync."""


class Home(Protocol):
    """A brain, as far as a sync needs it."""

    collective: Collective


def wall_clock_ms() -> int:
    """Unix milliseconds, UTC, from the system's clock."""
    return time.time_ns() // 1_000_000


class SyncClient:
    """Syncs one home with its shard: sync_once(), or run() for ever."""

    def __init__(
        self,
        brain: Home,
        config: SyncConfig,
        updates: Updater | None = None,
        *,
        randomness: Random | None = None,
        clock: Callable[[], int] = wall_clock_ms,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises ModuleNotFoundError where aiohttp is not installed. updates: asked for a newer catalogue once the shard says that there is one; None: never. randomness: what jitter is drawn from. clock: Unix milliseconds; monotonic, sleep: seconds."""
        required_aiohttp()
        self._home = brain.collective
        self._config = config
        self._url = shard_url(config.constellation_url)
        self._randomness = SystemRandom() if randomness is None else randomness
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._interval_secs = config.sync_interval_secs
        self._updates = updates
        self._catalog_version = self._home.titles.version

    # When ----------------------------------------------------------------------------------------

    async def run(self, reported: Callable[[SyncReport], bool | None] | None = None) -> None:
        """Sync for ever: first within first_sync_spread_secs, by RetryPolicy until a shard answered, then at the interval.

        reported: called after each sync; run ends where it returns True, else by cancellation, or with the brain's ConfigError
        once that is closed.
        """
        due = self._monotonic() + self._config.first_sync_spread_secs * self._randomness.random()
        failed = 0
        retrying = self._config.retry.attempts > 1
        while True:
            await self._sleep(max(due - self._monotonic(), 0.0))
            began = self._monotonic()
            report = await self.sync_once()
            if reported is not None and reported(report):
                return
            failed += 1
            retrying = retrying and not report.connected and failed < self._config.retry.attempts
            # From the beginning on, so that the time which the answer took to be taken in does not show in the next moment.
            due = began + (
                self._config.retry.delay_secs(failed, self._randomness) if retrying else self.next_delay_secs(report)
            )

    async def first_sync(self) -> SyncReport:
        """One sync, tried again by RetryPolicy while no shard answers."""
        for failed in range(1, self._config.retry.attempts + 1):
            report = await self.sync_once()
            if report.connected or failed == self._config.retry.attempts:
                break
            await self._sleep(self._config.retry.delay_secs(failed, self._randomness))
        return report

    def next_delay_secs(self, report: SyncReport) -> float:
        """Seconds from the beginning of this sync to the next: the shard's interval +-20 %, after a failure +-50 %, and not
        before the shard wants to be asked again."""
        jitter = STEADY_JITTER if report.outcome == DONE else FAILURE_JITTER
        draw = self._randomness.random()
        delay = self._interval_secs * (1 - jitter + 2 * jitter * draw)
        if report.retry_after_secs is not None:
            delay = max(delay, report.retry_after_secs * (1 + RETRY_AFTER_JITTER * draw))
        return delay

    # What ----------------------------------------------------------------------------------------

    async def sync_once(self) -> SyncReport:
        """Speak to the shard now: one request, or more where titles are shared and do not fit into one. It never raises
        for what the network or the shard does; the report says it, and the brain's log of syncs."""
        report = SyncReport()
        try:
            async with ShardConnection(self._url, self._config.timeout_secs, self._config.tls) as connection:
                while report.requests < MAX_REQUESTS_A_SYNC and await self._exchange(connection, report):
                    pass
        except ExchangeFailed as failed:
            report.connected |= failed.connected
            report.outcome = str(failed)
        report.outcome = report.outcome.encode("ascii", "replace").decode("ascii")[:MAX_OUTCOME_CHARACTERS]
        if report.next_sync_secs is not None:
            self._interval_secs = min(max(report.next_sync_secs, MIN_SYNC_INTERVAL_SECONDS), MAX_SYNC_INTERVAL_SECONDS)
        if report.outcome == DONE and self._updates is not None and (report.catalog_version or 0) > self._catalog_version:
            report.catalog_update = await self._updated(self._updates)
        await asyncio.to_thread(
            self._home.note_sync,
            self._clock(), report.bytes_up, report.bytes_down, report.titles, report.patterns, report.reports, report.outcome,
        )  # fmt: skip
        return report

    async def _updated(self, updates: Updater) -> str:
        """How an update went, in words."""
        try:
            updated = await updates.update()
        except (OmegaError, OSError) as fault:
            return f"failed: {fault}"
        self._catalog_version = max(self._catalog_version, updated.version)
        return updated.outcome.value if not updated.detail else f"{updated.outcome.value}: {updated.detail}"

    async def _exchange(self, connection: ShardConnection, report: SyncReport) -> bool:
        """One request and its answer; whether another is to follow at once."""
        try:
            request, body = await asyncio.to_thread(self._composed)
        except ProtocolError as unfit:
            report.outcome = f"what is to be told cannot be sent: {unfit}"
            return False
        if report.requests and request.device_id is None:
            return False
        proof = None
        if request.device_id is not None:
            token = await self._token(connection, report, request.device_id)
            if token is None:
                return False
            proof = authorization(request.device_id, token, body)
        reply = await self._posted(connection, report, SYNC_PATH, body, proof)
        if reply.status != 200:
            report.outcome = f"refused with {reply.status}: {REFUSALS.get(reply.status, 'no reason known')}"
            return False
        try:
            response, received = await asyncio.to_thread(self._taken, request, reply.body)
        except ProtocolError as unreadable:
            report.outcome = f"bad answer: {unreadable}"
            return False
        told = received.told
        report.next_sync_secs, report.catalog_version = response.next_sync_secs, response.catalog_version
        report.titles += told.titles
        report.patterns += told.patterns
        report.reports += told.reported
        report.changed += received.changed
        report.outcome = DONE if told.fault is None else told.fault
        return told.more and told.fault is None

    async def _posted(
        self, connection: ShardConnection, report: SyncReport, path: str, body: bytes, proof: str | None = None
    ) -> Reply:
        """The answer to a body, counted in the report."""
        report.requests += 1
        try:
            reply = await connection.exchange(path, body, proof, self._clock())
        except ExchangeFailed as failed:
            report.bytes_up += len(body) if failed.sent else 0
            raise
        report.bytes_up += len(body)
        report.bytes_down += len(reply.body)
        report.connected, report.status, report.retry_after_secs = True, reply.status, reply.retry_after_secs
        return reply

    async def _token(self, connection: ShardConnection, report: SyncReport, device_id: bytes) -> bytes | None:
        """The token of a number of this home, as the shard gave it, which is asked once and stored before anything is told.
        None where there is none; the report says why."""
        token = await asyncio.to_thread(self._home.token_of, device_id)
        if token is not None:
            return token
        reply = await self._posted(connection, report, DEVICES_PATH, device_id)
        if reply.status != 201 or len(reply.body) != TOKEN_BYTES:
            report.outcome = f"no token: refused with {reply.status}: {ENROLMENT_REFUSALS.get(reply.status, 'no reason known')}"
        try:
            if reply.status == IN_USE:
                await asyncio.to_thread(self._home.disown, device_id)
            if report.outcome != DONE:
                return None
            await asyncio.to_thread(self._home.keep_token, device_id, reply.body)
        except StoreError as fault:
            report.outcome = f"the shard's token cannot be stored: {fault}"
            return None
        return reply.body

    def _composed(self) -> tuple[SyncRequest, bytes]:
        titles = self._home.titles
        request = self._home.request(lambda delta: wire.titles_that_fit(delta, titles))
        return request, wire.encode_request(request, titles)

    def _taken(self, request: SyncRequest, body: bytes) -> tuple[SyncResponse, Received]:
        response = wire.decode_response(body, self._home.titles)
        return response, self._home.receive(request, response)
