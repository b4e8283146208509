"""The shard: what one sync request does, without HTTP. Proof, bucket, decoding, rules, durability, reply, in this order."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloud.admission import DeviceBuckets
from cloud.commit import GroupCommit
from cloud.knowledge_files import KnowledgeFiles
from cloud.metrics import Counters
from cloud.plain_requests import PlainRequest, read_plain_request
from cloud.replies import response_frame
from cloud.shard_titles import RowTitle, row_of, storable
from cloud.storage import PatternStorage, SyncChange, SyncOutcome
from cloud.sync_rules import REPORT_DAYS_AFTER, REPORT_DAYS_BEFORE, clamp_finished, report_is_due
from omega_edge import wire
from omega_edge.errors import ConfigError, LineageError, ProtocolError, StoreError, StoreFullError
from omega_edge.protocol import (
    MAX_SYNC_INTERVAL_SECONDS,
    MAX_UPLOAD_BYTES,
    MIN_SYNC_INTERVAL_SECONDS,
    SERVED_VERSIONS,
    SyncRequest,
)
from omega_edge.sync_identity import device_token, parse_authorization, request_mac

MAX_SHARD_ID = 100
RETRY_AFTER_SECONDS = 300
"""Told with a refusal that only time can help: the usual interval."""
BUSY_INTERVAL_FACTOR = 2
"""Intervals grow by this while requests wait for longer than half of what closes the gate."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """What makes a shard the one it is. database_url: lmdb:///folder. sync_interval_seconds: 60 to 86,400."""

    shard_id: int
    region: str
    database_url: str
    max_devices: int = 100_000
    sync_interval_seconds: int = 300
    retention_days: int = 400

    def __post_init__(self) -> None:
        for name, least, most in (
            ("shard_id", 1, MAX_SHARD_ID),
            ("max_devices", 1, 10_000_000),
            ("sync_interval_seconds", MIN_SYNC_INTERVAL_SECONDS, MAX_SYNC_INTERVAL_SECONDS),
            ("retention_days", 1, 3_650),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
        self.store_folder()

    def store_folder(self) -> Path:
        """The folder that database_url names; ConfigError for a URL of another kind."""
        prefix = "lmdb://"
        if not self.database_url.startswith(prefix + "/"):
            raise ConfigError(
                f"database_url: expected lmdb:///folder, got one that begins with {self.database_url.split(':')[0]!r}"
            )
        return Path(self.database_url[len(prefix) :])


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and body of a reply. body: a response frame for 200, else the words of an error. retry_after: seconds."""

    status: int
    body: bytes
    retry_after: int | None = None


def refusal(status: int, words: str, retry_after: int | None = None) -> Reply:
    """A reply that says what was expected, what came and what to do."""
    return Reply(status, words.encode(), retry_after)


class ShardManager:
    """One worker's share of a shard. device_key: from which each device's token follows. clock: Unix milliseconds."""

    def __init__(
        self,
        config: ShardConfig,
        storage: PatternStorage,
        commit: GroupCommit,
        knowledge: KnowledgeFiles,
        device_key: bytes,
        clock: Callable[[], int],
        counters: Counters,
        buckets: DeviceBuckets | None = None,
    ) -> None:
        self.config, self.storage, self.commit, self.knowledge = config, storage, commit, knowledge
        self._device_key, self._clock, self._counters = device_key, clock, counters
        self._buckets = buckets if buckets is not None else DeviceBuckets()
        self.busy = False
        """Set by the server while requests queue: intervals are stretched."""

    async def handle_sync(self, body: bytes, authorization: str | None) -> Reply:
        """The reply to a request's body. authorization: the header, None where there is none.

        What it says was stored is durable. It raises nothing for whatever bytes come.
        """
        later: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        reply = self.begin(body, authorization, lambda told: later.done() or later.set_result(told))
        return await later if reply is None else reply

    def begin(self, body: bytes, authorization: str | None, done: Callable[[Reply], object]) -> Reply | None:
        """handle_sync without waiting: the reply at once, or None, and done is called with it when all is durable."""
        if len(body) > MAX_UPLOAD_BYTES:
            return refusal(413, f"expected a body of at most {MAX_UPLOAD_BYTES} bytes, got {len(body)}")
        device_id = None
        if authorization is not None:
            device_id = self._proven(body, authorization)
            if device_id is None:
                return refusal(401, "expected `Authorization: Omega` with the device's proof of this body, got another")
            wait_ms = self._buckets.wait_ms(device_id, self._clock())
            if wait_ms:
                return refusal(429, "expected fewer requests of one device; wait", -(-wait_ms // 1000))
        plain = read_plain_request(body, self.knowledge.titles)
        if plain is not None and plain.version in SERVED_VERSIONS and plain.device_id == device_id:
            self._begin_plain(plain, done)
            return None
        try:
            request = wire.decode_request(body, self.knowledge.titles)
        except LineageError as fault:
            return refusal(409, str(fault))
        except ProtocolError as fault:
            return refusal(400, str(fault))
        if request.version not in SERVED_VERSIONS:
            return refusal(
                426, f"expected protocol version {SERVED_VERSIONS[0]} to {SERVED_VERSIONS[-1]}, got {request.version}"
            )
        if request.device_id != device_id:
            return refusal(401, "expected the device of the header in the body, and none without a header, got another")
        if device_id is None:
            return self._told(request, SyncOutcome(self._clock()))
        return self._begin_device(request, done)

    def _begin_plain(self, request: PlainRequest, done: Callable[[Reply], object]) -> None:
        """A list of titles, all of which the catalogue knows: what _begin_device does with any request."""
        now_ms = self._clock()
        finished_ms = [clamp_finished(moment, now_ms) for moment in request.finished_ms]
        change = SyncChange(
            request.device_id, request.epoch, now_ms, request.server_time_seen, request.local_version, request.rows,
            finished_ms, shared_set_hash=request.shared_set_hash,
        )  # fmt: skip
        self.commit.submit(change, lambda outcome: done(self._finished(request, change, outcome)))

    def _proven(self, body: bytes, authorization: str) -> bytes | None:
        """The device that proves to have sent this body, None where nobody does."""
        parsed = parse_authorization(authorization)
        if parsed is None:
            return None
        device_id, proof = parsed
        token = device_token(self._device_key, device_id)
        return device_id if hmac.compare_digest(request_mac(token, body), proof) else None

    def _begin_device(self, request: SyncRequest, done: Callable[[Reply], object]) -> Reply | None:
        now_ms = self._clock()
        report = request.count_report
        if report is not None and not report_is_due(report.day, now_ms):
            return refusal(
                400, f"count_report.day: expected {REPORT_DAYS_BEFORE} days before today to {REPORT_DAYS_AFTER} after, "
                "got another; check the clock",
            )  # fmt: skip
        change = self._change(request, now_ms)
        outcome = self.storage.unchanged(change)
        if outcome is not None:
            return self._told(request, outcome)
        self.commit.submit(change, lambda outcome: done(self._finished(request, change, outcome)))
        return None

    def _finished(self, request: SyncRequest | PlainRequest, change: SyncChange, outcome: SyncOutcome | StoreError) -> Reply:
        """The reply to a change that is durable, or could not be stored."""
        if isinstance(outcome, StoreFullError):
            return refusal(503, "the shard's disk is full", RETRY_AFTER_SECONDS)
        if isinstance(outcome, StoreError):
            return refusal(503, "the shard cannot store anything now", RETRY_AFTER_SECONDS)
        if outcome.device_limit:
            return refusal(503, "the shard has as many devices as it may", RETRY_AFTER_SECONDS)
        if outcome.reset:
            self._counters.add("resets")
        elif outcome.changed:
            self._counters.add("changes_stored")
            if change.rows:
                self._counters.add("titles_stored", len(change.rows))
        return self._told(request, outcome)

    def _change(self, request: SyncRequest, now_ms: int) -> SyncChange:
        change = SyncChange(request.device_id, request.epoch, now_ms, request.server_time_seen, erase=request.erase)
        if request.count_report is not None:
            report = request.count_report
            change.report = (report.day, report.seed, report.value)
        delta = request.delta
        if delta is None:
            return change
        change.local_version = delta.local_version
        if delta.titles_finished:
            self._take_titles(change, delta.titles_finished)
        if delta.patterns_added or delta.patterns_updated or delta.patterns_removed or delta.snapshot:
            change.patterns = storable((*delta.patterns_added, *delta.patterns_updated), self.knowledge.titles)
            change.patterns_removed, change.snapshot = delta.patterns_removed, delta.snapshot
        change.shared_set_hash = delta.shared_set_hash
        return change

    def _take_titles(self, change: SyncChange, finished: tuple) -> None:
        """Rows and times of the titles that the catalogue knows; others are counted and dropped."""
        titles, rows, moments = self.knowledge.titles, [], []
        for title in finished:
            content_id = title.content_id
            row = content_id.row if type(content_id) is RowTitle else row_of(content_id, titles)
            if row < 0:
                self._counters.add("titles_unknown")
            else:
                rows.append(row)
                moments.append(clamp_finished(title.finished_at, change.received_ms))
        change.rows, change.finished_ms = rows, moments

    def _told(self, request: SyncRequest | PlainRequest, outcome: SyncOutcome) -> Reply:
        """The reply of 200, with the collective's patterns where the television has others."""
        collective = self.knowledge.collective
        global_version, patterns = request.global_version_seen, None
        if collective is not None and collective.version != request.global_version_seen:
            global_version, patterns = collective.version, collective.frame
        interval = self.config.sync_interval_seconds * (BUSY_INTERVAL_FACTOR if self.busy else 1)
        body = response_frame(
            outcome,
            request.version,
            global_version,
            min(interval, MAX_SYNC_INTERVAL_SECONDS),
            self.knowledge.catalog_version,
            patterns,
        )
        return Reply(200, body)

    def stats(self) -> dict[str, object]:
        """What GET /api/v1/stats tells."""
        facts = self.storage.facts()
        return {
            "shard_id": self.config.shard_id,
            "region": self.config.region,
            "max_devices": self.config.max_devices,
            "devices": facts.devices,
            "title_pages": facts.pages,
            "count_reports": facts.reports,
            "store_bytes": facts.bytes_used,
            "damaged_records": facts.damaged_records,
            "sync_interval_seconds": self.config.sync_interval_seconds,
            "retention_days": self.config.retention_days,
            "protocol_versions": [SERVED_VERSIONS[0], SERVED_VERSIONS[-1]],
            **self.knowledge.stats(),
            **self._counters.totals(),
        }
