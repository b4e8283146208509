"""Who is let in: the gate, the buckets, the bounds of connections; and that nobody is answered before all is durable."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloud import commit as commit_module
from cloud.admission import DeviceBuckets, Gate
from cloud.app import ShardApplication
from cloud.commit import GroupCommit
from cloud.connections import BoundedServer
from cloud.downloads import Downloads
from cloud.enrolment import Enrolment
from cloud.knowledge_files import KnowledgeFiles
from cloud.lmdb_storage import LmdbStorage
from cloud.metrics import SharedCounters
from cloud.shard import ShardConfig, ShardManager
from cloud.storage import SyncChange, SyncOutcome
from omega_edge import wire
from omega_edge.errors import StoreError
from omega_edge.protocol import SyncRequest
from omega_edge.signing import public_key
from tests.shard_processes import DEVICE_KEY, SIGNING_KEY, write_bundle

NOW_MS = 1_700_000_000_000
BODY = wire.encode_request(SyncRequest())
REQUEST = b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class TestBuckets:
    def test_a_burst_then_one_in_each_gap(self):
        buckets = DeviceBuckets(min_gap_ms=1_000, burst=5)
        assert [buckets.wait_ms(b"d" * 16, NOW_MS) for _ in range(6)] == [0] * 5 + [1_000]
        assert buckets.wait_ms(b"d" * 16, NOW_MS + 999) == 1
        assert buckets.wait_ms(b"d" * 16, NOW_MS + 1_000) == 0
        assert buckets.wait_ms(b"d" * 16, NOW_MS + 1_000) == 1_000
        assert [buckets.wait_ms(b"d" * 16, NOW_MS + 60_000) for _ in range(6)] == [0] * 5 + [1_000]

    def test_a_refused_request_takes_nothing(self):
        buckets = DeviceBuckets(min_gap_ms=1_000, burst=1)
        assert buckets.wait_ms(b"d" * 16, NOW_MS) == 0
        assert {buckets.wait_ms(b"d" * 16, NOW_MS) for _ in range(100)} == {1_000}

    def test_a_clock_set_back_keeps_nobody_waiting(self):
        buckets = DeviceBuckets(min_gap_ms=1_000, burst=5)
        assert [buckets.wait_ms(b"d" * 16, NOW_MS) for _ in range(6)] == [0] * 5 + [1_000]
        an_hour_before = NOW_MS - 3_600_000
        assert [buckets.wait_ms(b"d" * 16, an_hour_before) for _ in range(6)] == [0] * 5 + [1_000]
        assert buckets.wait_ms(b"d" * 16, an_hour_before + 1_000) == 0

    def test_devices_have_their_own(self):
        buckets = DeviceBuckets(min_gap_ms=1_000, burst=1)
        waits = [buckets.wait_ms(os.urandom(16), NOW_MS) for _ in range(1_000)]
        assert waits.count(0) > 980  # in 262,144 slots a thousand meet about twice


class TestGate:
    @pytest.mark.parametrize(
        ("in_hand", "delay_ms", "stopped", "closed"),
        [(0, 0, False, False), (9, 50, False, False), (10, 0, False, True), (0, 50.1, False, True), (0, 0, True, True)],
    )
    def test_closes_at_its_bounds(self, in_hand, delay_ms, stopped, closed):
        gate = Gate(10, 50.0)
        gate.in_hand, gate.delay_ms, gate.stopped = in_hand, delay_ms, stopped
        assert gate.closed is closed

    def test_lets_in_so_many_a_second(self):
        gate = Gate(10_000, 50.0, max_per_second=1_000)

        def let_in() -> int:
            count = 0
            while not gate.closed:
                gate.enter()
                gate.leave()
                count += 1
            return count

        assert let_in() == 50
        gate.pass_time(0.01)
        assert let_in() == 10
        gate.pass_time(3_600.0)
        assert let_in() == 50
        assert gate.in_hand == 0

    def test_lets_in_even_one_a_second(self):
        gate = Gate(10_000, 50.0, max_per_second=1)
        assert not gate.closed
        gate.enter()
        assert gate.closed
        gate.pass_time(0.5)
        assert gate.closed
        gate.pass_time(0.5)
        assert not gate.closed

    def test_draining_alone_lets_in(self):
        gate = Gate(10, 50.0)
        gate.draining = True
        assert not gate.closed


@asynccontextmanager
async def served(folder: Path, max_connections: int = 100):
    """The parts of a worker in this loop; yields gate, counters, commit and a function that connects."""
    catalog = write_bundle(folder / "bundles")
    storage = LmdbStorage(folder / "store", clock=lambda: NOW_MS, lineage=catalog.lineage, map_bytes=1 << 24, reserve_bytes=4_096)
    shared = SharedCounters(1)
    gate, counters, loop = Gate(512, 60.0), shared.row(0), asyncio.get_running_loop()
    commit = GroupCommit(storage, loop)
    knowledge = KnowledgeFiles(None, folder / "bundles", (public_key(SIGNING_KEY),))
    config = ShardConfig(1, "default", f"lmdb://{folder / 'store'}")
    manager = ShardManager(config, storage, commit, knowledge, DEVICE_KEY, lambda: NOW_MS, counters)
    application = ShardApplication(
        manager, gate, Downloads(None, None), Enrolment(True, DEVICE_KEY, storage), counters
    )
    bounded = BoundedServer(application.handle, gate, counters, max_connections, manager)
    server = await loop.create_server(bounded, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield gate, shared, commit, lambda: asyncio.open_connection("127.0.0.1", port)
    finally:
        server.close()
        bounded.close_idle()
        await commit.close()
        await bounded.shutdown(1.0)
        storage.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One reply, head and body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    return head + await reader.readexactly(length)


def test_a_closed_gate_refuses_unread_on_both_ways_and_opens_again(tmp_path):
    async def run():
        async with served(tmp_path) as (gate, shared, _commit, connect):
            reader, writer = await connect()
            writer.write(REQUEST)
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 OK")
            gate.delay_ms = 1_000.0
            small, spaceless = REQUEST.replace(b"Content-L", b"content-l"), REQUEST.replace(b"Length: ", b"Length:")
            for data in (REQUEST, REQUEST.replace(BODY, b"\xff" * len(BODY)), small, spaceless):
                writer.write(data)
                refused = await answer(reader)
                assert refused.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 300" in refused
            assert shared.total("refused_unread") == 4
            gate.delay_ms = 0.0
            writer.write(REQUEST)
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 OK")
            writer.write(b"GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is aiohttp's from here
            assert b'"live": true' in await answer(reader)
            gate.delay_ms = 1_000.0
            writer.write(REQUEST)
            assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
            writer.write(b"GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b'"live": true' in await answer(reader)
            writer.close()

    asyncio.run(run())


@pytest.mark.parametrize("plain_before", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"transfer-encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 60", b"content-length: 60\r\nContent-Length: 5",
        b"Content-Length: " + b"1" * 5_000,
    ],
)  # fmt: skip
def test_a_closed_gate_reads_no_length_that_http_does_not(tmp_path, head, plain_before):
    async def run():
        async with served(tmp_path) as (gate, shared, _commit, connect):
            reader, writer = await connect()
            if plain_before:
                writer.write(b"GET /api/v1/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                await answer(reader)
            gate.delay_ms = 1_000.0
            writer.write(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n0\r\n\r\n")
            refused = await answer(reader)
            assert refused.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 503 ")) and b"Connection: close" in refused
            assert await reader.read() == b"" and shared.total("refused_unread") == 0
            writer.close()

    asyncio.run(run())


def test_too_many_connections_are_refused_at_once(tmp_path):
    async def run():
        async with served(tmp_path, max_connections=3) as (_gate, shared, _commit, connect):
            kept = [await connect() for _ in range(3)]
            for reader, writer in kept:
                writer.write(REQUEST)
                assert (await answer(reader)).startswith(b"HTTP/1.1 200 OK")
            reader, writer = await connect()
            assert (await answer(reader)).startswith(b"HTTP/1.1 503 ") and await reader.read() == b""
            assert shared.total("connections_refused") == 1
            for _, other in (*kept, (reader, writer)):
                other.close()

    asyncio.run(run())


def test_of_requests_in_one_packet_each_is_refused_while_the_gate_is_closed(tmp_path):
    async def run():
        async with served(tmp_path) as (gate, _shared, _commit, connect):
            gate.delay_ms = 1_000.0
            reader, writer = await connect()
            writer.write(REQUEST * 20)
            assert {(await answer(reader))[:13] for _ in range(20)} == {b"HTTP/1.1 503 "}
            writer.close()

    asyncio.run(run())


def test_bodies_that_do_not_come_keep_nobody_out(tmp_path):
    async def run():
        async with served(tmp_path) as (gate, _shared, _commit, connect):
            gate.max_in_hand = 2
            slow = [await connect() for _ in range(5)]
            for _, writer in slow:
                writer.write(REQUEST[:-3])
            await asyncio.sleep(0.05)
            reader, writer = await connect()
            writer.write(REQUEST)
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 OK") and gate.in_hand == 0
            for other, late in slow:
                late.write(REQUEST[-3:])
                assert (await answer(other)).startswith(b"HTTP/1.1 200 OK")
            writer.write(REQUEST[:-3])
            await asyncio.sleep(0.05)
            gate.delay_ms = 1_000.0
            writer.write(REQUEST[-3:])
            assert (await answer(reader)).startswith(b"HTTP/1.1 503 ")
            for _, late in (*slow, (reader, writer)):
                late.close()

    asyncio.run(run())


def test_a_client_that_goes_away_leaves_no_request_in_hand(tmp_path):
    async def run():
        async with served(tmp_path) as (gate, _shared, _commit, connect):
            for _ in range(20):
                _, writer = await connect()
                writer.write(REQUEST[:-3])
                writer.transport.abort()
                _, writer = await connect()
                writer.write(REQUEST)
                writer.transport.abort()
            deadline = time.monotonic() + 20
            while gate.in_hand:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(run())


class SlowStorage:
    """A storage whose transactions wait until they may go on; it keeps what came, in order."""

    def __init__(self) -> None:
        self.go, self.batches, self.fault = threading.Semaphore(0), [], None

    def apply(self, batch: list[SyncChange]) -> list[SyncOutcome]:
        self.go.acquire()
        if self.fault is not None:
            raise self.fault
        self.batches.append(list(batch))
        return [SyncOutcome(NOW_MS, change.local_version) for change in batch]


class TestGroupCommit:
    @staticmethod
    def change(version: int) -> SyncChange:
        return SyncChange(bytes(16), 1, NOW_MS, None, version)

    def test_takes_whatever_waits_and_answers_only_after_the_commit(self):
        async def run():
            storage, told = SlowStorage(), []
            commit = GroupCommit(storage, asyncio.get_running_loop())
            for version in range(50):
                commit.submit(self.change(version), lambda outcome: told.append(outcome.acknowledged_local_version))
            await asyncio.sleep(0.05)
            assert told == [] and commit.unfinished == 50 and (commit.delay_ms() > 0 or commit.batches == 0)
            for _ in range(50):
                storage.go.release()
            await commit.close()
            await asyncio.sleep(0)
            assert told == list(range(50)) and commit.unfinished == 0
            assert len(storage.batches) <= 3, "they were not taken together"

        asyncio.run(run())

    def test_the_first_waits_a_little_for_others(self, monkeypatch):
        monkeypatch.setattr(commit_module, "GATHER_SECONDS", 1.0)

        async def run():
            storage, told = SlowStorage(), []
            commit = GroupCommit(storage, asyncio.get_running_loop())
            for version in range(3):
                commit.submit(self.change(version), lambda outcome: told.append(outcome.acknowledged_local_version))
                await asyncio.sleep(0.02)
                storage.go.release()
            while len(told) < 3:
                await asyncio.sleep(0.005)
            await commit.close()
            assert told == [0, 1, 2] and len(storage.batches) == 1

        asyncio.run(run())

    def test_a_fault_of_one_who_is_told_leaves_nobody_waiting(self):
        async def run():
            storage, told, faults, loop = SlowStorage(), [], [], asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: faults.append(context["exception"]))
            commit = GroupCommit(storage, loop)
            commit.submit(self.change(0), told.append)  # keeps the thread until the others wait together
            await asyncio.sleep(0.05)
            commit.submit(self.change(1), lambda _: 1 // 0)
            for version in range(2, 100):
                commit.submit(self.change(version), told.append)
            for _ in range(100):
                storage.go.release()
            await commit.close()
            await asyncio.sleep(0.05)
            assert len(told) == 99 and commit.unfinished == 0 and len(faults) == 1

        asyncio.run(run())

    def test_a_fault_of_the_store_reaches_everyone_who_waited_for_it(self):
        async def run():
            storage, told = SlowStorage(), []
            commit = GroupCommit(storage, asyncio.get_running_loop())
            storage.fault = StoreError("broken")
            for version in range(3):
                commit.submit(self.change(version), told.append)
            for _ in range(3):
                storage.go.release()
            while len(told) < 3:
                await asyncio.sleep(0.005)
            assert told == [storage.fault] * 3
            storage.fault = None
            commit.submit(self.change(9), told.append)
            storage.go.release()
            await commit.close()
            await asyncio.sleep(0)
            assert told[-1].acknowledged_local_version == 9

        asyncio.run(run())
