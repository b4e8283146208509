"""The measurements of a shard under load: what the simulated televisions send, and that each check can fail."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.shard_load.checks import Checked, ReplyCheck
from bench.shard_load.client import Reply, ReplyFault, cut_reply
from bench.shard_load.fleet import Fleet, draw_pages, list_length
from bench.shard_load.herd import herd_lines, product_television, simulate, source_television
from bench.shard_load.kills import kill_again_and_again
from bench.shard_load.ledger import Ledger
from bench.shard_load.load import Load, Outcome, percentile, run
from bench.shard_load.measure import Settings, audit, closing, register
from bench.shard_load.metrics import QUICK
from bench.shard_load.pictures import plot
from bench.shard_load.shard import COLLECTIVE_VERSION, Served, Shard
from cloud.lmdb_storage import LmdbStorage
from cloud.storage import SyncChange
from omega_edge import wire
from omega_edge.catalog import write_bundle
from omega_edge.protocol import SyncResponse
from omega_edge.sync_identity import device_token, parse_authorization, request_mac
from tests.synthetic import sections_of

KEY = bytes(range(32))
NOW_MS = 1_790_000_000_000
TITLES = 9_000


class Numbers:
    """A numbering of titles: t0, t1 and so on."""

    lineage = "0123456789abcdef"

    def row_of(self, content_id: str) -> int:
        """The number in the id."""
        return int(content_id[1:])

    def content_id(self, row: int) -> str:
        """The id with the number."""
        return f"t{row}"


@pytest.fixture(scope="module")
def pages():
    return draw_pages(Numbers(), TITLES, 300, NOW_MS, seed=3)


@pytest.fixture
def fleet(pages) -> Fleet:
    return Fleet(20, pages, Numbers(), KEY, seed=5)


def body_and_device(request: bytes) -> tuple[bytes, bytes]:
    """The body of an HTTP request, and the device that its proof shows to be the sender."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /api/v1/sync HTTP/1.1" and f"Content-Length: {len(body)}".encode() in lines
    header = next(line for line in lines if line.startswith(b"Authorization: ")).decode().removeprefix("Authorization: ")
    device_id, mac = parse_authorization(header)
    assert request_mac(device_token(KEY, device_id), body) == mac
    return body, device_id


def response(acknowledged: int, server_time: int, **more: object) -> Reply:
    body = wire.encode_response(
        SyncResponse(0, 300, server_time, acknowledged_local_version=acknowledged, **more), Numbers()
    )
    return Reply(200, b"HTTP/1.1 200 OK", body)


class TestFleet:
    def test_what_it_sends_is_what_the_products_encoder_makes(self, pages):
        deflated = [number for number, page in enumerate(pages) if not page.later]
        assert 0 < len(deflated) < 30
        fleet = Fleet(len(pages), pages, Numbers(), KEY, seed=5)
        assert {fleet.page_number(device, 0) for device in range(len(fleet))} >= set(deflated)
        for device in range(len(fleet)):
            for server_time in (None, NOW_MS + device):
                body, device_id = body_and_device(fleet.request(device))
                sent = wire.decode_request(body, Numbers())
                page = fleet.next_page(device)
                assert wire.encode_request(sent, Numbers()) == body
                assert sent.device_id == device_id == fleet.device_ids[device]
                assert tuple(int(title.content_id[1:]) for title in sent.delta.titles_finished) == page.rows
                assert tuple(title.finished_at for title in sent.delta.titles_finished) == page.finished_ms
                assert sent.delta.local_version == fleet.next_version(device)
                assert sent.server_time_seen == server_time
                fleet.acknowledge(device, NOW_MS + device)

    def test_a_request_stays_the_same_until_it_is_acknowledged(self, fleet):
        first = fleet.request(3)
        assert fleet.request(3) is first
        fleet.acknowledge(3, NOW_MS)
        assert fleet.request(3) != first
        assert [page.rows for page in fleet.acknowledged_pages(3)] == [fleet.pages[fleet.page_number(3, 0)].rows]

    def test_lists_are_as_long_as_those_of_homes(self):
        chosen = random.Random(1)
        lengths = sorted(list_length(chosen) for _ in range(20_000))
        assert lengths[10_000] == 1 and 23 <= lengths[19_800] <= 31 and lengths[-1] <= 50


class TestReplies:
    def test_a_reply_is_cut_out_when_it_is_whole(self):
        data = b"HTTP/1.1 503 Service Unavailable\r\ncontent-LENGTH: 3\r\nRetry-After: 7\r\n\r\nbad"
        for length in range(len(data)):
            assert cut_reply(data[:length]) is None
        reply = cut_reply(data)
        assert (reply.status, reply.body, reply.header("retry-after"), reply.header("ETag")) == (503, b"bad", "7", None)

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            b"SSH-2.0 \r\n\r\n",
            b"x" * 5_000,
        ],
    )
    def test_other_bytes_are_faults(self, data):
        with pytest.raises(ReplyFault):
            cut_reply(data)

    def test_what_was_sent_and_acknowledged_is_accepted(self, fleet):
        check, outcome = ReplyCheck(fleet, Numbers()), Outcome(1.0)
        for turn in range(100):  # more than are needed for one to be decoded wholly
            assert check.judge(7, response(fleet.next_version(7), NOW_MS + turn), outcome) is Checked.ACCEPTED
        assert fleet.acknowledged[7] == 100 and outcome.fault() is None

    def test_anything_else_is_a_fault_and_acknowledges_nothing(self, fleet):
        check = ReplyCheck(fleet, Numbers())
        fleet.acknowledge(2, NOW_MS)
        expected = fleet.next_version(2)
        wrong = {
            "version": response(expected + 1, NOW_MS + 1),
            "time stands": response(expected, NOW_MS),
            "snapshot": response(expected, NOW_MS + 1, snapshot_wanted=True),
            "reset": Reply(200, b"", wire.encode_response(SyncResponse(0, 300, NOW_MS + 1, reset=True), Numbers())),
            "no frame": Reply(200, b"", b"\x01\x02\x00\x00\xff"),
            "empty": Reply(200, b"", b""),
            "status": Reply(500, b"HTTP/1.1 500 Internal Server Error", b""),
            "limited": Reply(429, b"HTTP/1.1 429\r\nRetry-After: 5", b""),
            "no Retry-After": Reply(503, b"HTTP/1.1 503 Service Unavailable", b""),
        }
        for name, reply in wrong.items():
            outcome = Outcome(1.0)
            assert check.judge(2, reply, outcome) is Checked.WRONG, name
            assert outcome.faults == 1 and outcome.fault() is not None
        refused = Reply(503, b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5", b"")
        assert check.judge(2, refused, Outcome(1.0)) is Checked.REFUSED
        assert fleet.next_version(2) == expected


class TestLedger:
    @pytest.fixture
    def storage(self, tmp_path: Path):
        storage = LmdbStorage(tmp_path / "store", clock=lambda: NOW_MS)
        yield storage
        storage.close()

    @staticmethod
    def sync(storage: LmdbStorage, fleet: Fleet, device: int, heard: bool = True, rows: int | None = None) -> None:
        """The device's next page, stored in the shard's way; rows: only so many of its titles."""
        body, device_id = body_and_device(fleet.request(device))
        sent, page = wire.decode_request(body, Numbers()), fleet.next_page(device)
        change = SyncChange(
            device_id, sent.epoch, NOW_MS, sent.server_time_seen, sent.delta.local_version,
            page.rows[:rows], page.finished_ms[:rows],
        )  # fmt: skip
        (outcome,) = storage.apply([change])
        assert outcome.acknowledged_local_version == fleet.next_version(device)
        if heard:
            fleet.acknowledge(device, outcome.server_time)

    def test_what_was_acknowledged_is_found(self, storage, fleet):
        ledger = Ledger(fleet)
        assert ledger.check(storage) == []
        for device in (0, 1, 0, 5):
            self.sync(storage, fleet, device)
        assert ledger.check(storage) == [] and (ledger.checked, ledger.lost, ledger.unheard) == (4, 0, 0)
        self.sync(storage, fleet, 1, heard=False)
        assert ledger.check(storage) == [] and (ledger.checked, ledger.unheard) == (4, 1)

    def test_what_is_missing_is_told(self, storage, fleet):
        self.sync(storage, fleet, 0)
        fleet.acknowledge(0, NOW_MS + 5)
        fleet.acknowledge(3, NOW_MS)
        ledger = Ledger(fleet)
        assert len(ledger.check(storage)) >= 2 and ledger.lost == 2

    def test_a_page_stored_in_part_is_told(self, storage, pages):
        long = next(number for number, page in enumerate(pages) if len(page.rows) > 3)
        fleet = Fleet(1, pages[long:], Numbers(), KEY, seed=5)
        self.sync(storage, fleet, 0, heard=False, rows=2)
        assert "without its titles" in Ledger(fleet).check(storage)[0]

    def test_what_nobody_sent_is_told(self, storage, fleet):
        self.sync(storage, fleet, 0)
        change = SyncChange(b"s" * 16, 7, NOW_MS, None, 9, (1, 2), (NOW_MS, NOW_MS))
        storage.apply([change])
        assert "never synced" in Ledger(fleet).check(storage)[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """What a shard serves here: the synthetic catalogue."""
    bundle = tmp_path_factory.mktemp("catalog") / "synthetic.bundle"
    write_bundle(bundle, *sections_of(400))
    return Served.from_bundle(bundle, seed=2)


def settings_in(folder: Path, served: Served) -> Settings:
    return Settings(QUICK, served, folder, folder / "ramp.svg", "a machine", 1, lambda text: None)


class TestRealShard:
    def test_replies_are_checked_and_the_store_is_compared(self, tmp_path, served):
        fleet, check = settings_in(tmp_path, served).fleet(60)
        with Shard(tmp_path, served) as shard:
            load = Load(fleet, shard.port, check, max_connections=40)

            async def work() -> tuple[str | None, Outcome, Outcome]:
                fault = await register(load, fleet)
                closed = await load.closed_loop(8, seconds=0.3, warm_up=0.1)
                opened = await load.open_loop(150.0, seconds=0.5, warm_up=0.1, seed=1)
                load.close()
                return fault, closed, opened

            fault, closed, opened = run(work())
            assert fault is None and closed.fault() is None and opened.fault() is None
            assert shard.memory().processes == len(shard.process_ids()) >= 2 and shard.memory().resident > 10
            assert shard.processor_seconds() > 0
            assert shard.stop() is None
        assert shard.process_ids() == []
        assert closed.all_accepted >= len(closed.accepted) > 0 and len(opened.accepted) == opened.offered > 0
        assert sum(fleet.acknowledged) == 60 + closed.all_accepted + opened.all_accepted
        assert audit(tmp_path, fleet) is None
        fleet.acknowledge(0, fleet.server_times[0] + 1)
        assert "device 0" in audit(tmp_path, fleet)

    def test_kills_lose_nothing(self, tmp_path, served):
        settings = settings_in(tmp_path, served)
        made = kill_again_and_again(tmp_path, served, 2, 1, settings.fleet)
        assert (made.kills, made.lost, made.faults) == (2, 0, []) and made.checked == made.acknowledged

    def test_a_shard_with_another_key_accepts_nothing(self, tmp_path, served):
        catalog = served.catalog
        fleet = Fleet(5, draw_pages(catalog, catalog.count, 10, NOW_MS, 1), catalog, bytes(32), 1, COLLECTIVE_VERSION)
        with Shard(tmp_path, served) as shard:
            load = Load(fleet, shard.port, ReplyCheck(fleet, catalog, served.patterns_frame), 4)
            outcome = run(closing(load.closed_loop(2, seconds=0.2, warm_up=0.0), load))
        assert outcome.all_accepted == 0 and "status 401" in outcome.fault()

    def test_a_bundle_that_nobody_signed_does_not_start_a_measurement(self, tmp_path, served):
        served.put_into(tmp_path)
        for path in (tmp_path / "bundles").rglob("manifest"):
            path.write_bytes(b"no manifest")
        fleet, check = settings_in(tmp_path, served).fleet(5)
        with Shard(tmp_path, served) as shard:
            load = Load(fleet, shard.port, check, 4)
            outcome = run(closing(load.closed_loop(2, seconds=0.2, warm_up=0.0), load))
        assert outcome.all_accepted == 0 and outcome.fault() is not None


class Stalling(asyncio.Protocol):
    """A server that acknowledges everything, and once stops for a while with everything it holds."""

    STALL_SECONDS, AT_REQUEST = 0.4, 40
    requests = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        Stalling.requests += 1
        if Stalling.requests == self.AT_REQUEST:
            time.sleep(self.STALL_SECONDS)
        sent = wire.decode_request(data.partition(b"\r\n\r\n")[2], Numbers())
        body = response(sent.delta.local_version, NOW_MS + Stalling.requests).body
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def test_a_server_that_stalls_is_charged_for_all_that_was_due_meanwhile(pages):
    fleet = Fleet(300, pages, Numbers(), KEY, seed=5)
    ready, stop = threading.Event(), threading.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        server = await asyncio.get_running_loop().create_server(Stalling, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            while not stop.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        load = Load(fleet, port, ReplyCheck(fleet, Numbers()), 200)
        outcome = run(closing(load.open_loop(200.0, seconds=1.0, warm_up=0.0, seed=2), load))
    finally:
        stop.set()
        thread.join()
    assert outcome.fault() is None and outcome.all_accepted == outcome.offered
    waited = sum(latency >= 100.0 for latency in outcome.accepted)
    assert waited >= 30, "about 60 requests were due in the first 0.3 s of the stall"


class TestHerd:
    def test_the_products_client_adds_nothing_to_an_outage(self):
        lines = {made["metric"]: made for made in herd_lines(4_000, seed=1)}
        assert all(made["correct"] for made in lines.values())
        assert lines["outage_load_ratio"]["met"] and lines["load_after_outage_ratio"]["met"]
        assert lines["power_return_peak_ratio"]["value"] < 1.6 < lines["power_return_peak_ratio"]["source_policy"]

    def test_what_the_virtual_clock_counts_is_what_the_client_waits(self):
        moments = list(product_television(random.Random(4), 10.0, 7_200.0, lambda at: 1_000 <= at < 3_000))
        gaps = np.diff(moments)
        assert 10 <= moments[0] <= 310
        failing = (np.array(moments[:-1]) >= 1_000) & (np.array(moments[:-1]) < 3_000)
        assert (gaps >= 150).all() and (gaps <= 450).all() and ((gaps[~failing] >= 240) & (gaps[~failing] <= 360)).all()
        assert gaps[failing].max() - gaps[failing].min() > 60

    def test_three_fast_retries_multiply_the_load_of_an_outage(self):
        herd = simulate(source_television, 5_000, seed=1)
        assert 3.8 < herd.during < 4.0 and herd.power_return_peak > 4


def test_percentiles_are_values_that_were_measured():
    values = np.arange(1.0, 101.0)
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile(np.empty(0), 0.99) is None


def test_the_plot_shows_every_step():
    steps = [
        {"offered": 100.0 * step, "goodput": 90.0 * step, "refused": 10.0 * (step - 1), "accepted_ms_p50": 2.0 * step,
         "accepted_ms_p99": None if step == 3 else 5.0 * step, "refused_ms_p99": None if step == 1 else 3.0}
        for step in (1, 2, 3)
    ]  # fmt: skip
    picture = plot(steps, 250.0, "a <machine>")
    assert picture.count("<circle") == 3 + 2 + 2 + 3 + 3 + 5  # and those of the keys
    assert "a &lt;machine&gt;" in picture and picture.startswith("<svg xmlns=")
