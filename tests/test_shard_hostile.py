"""Bad input to a real shard over HTTP: each kind has its status code, stores nothing, and does nothing to others."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time

import cbor2
import pytest
import zstandard

from omega_edge import frame, wire
from omega_edge.protocol import DAY_MS, CountReport, FinishedTitle, PatternDelta, SyncRequest
from omega_edge.sync_identity import authorization, device_token
from tests.shard_processes import DEVICE_KEY, Shard, Television, running
from tests.synthetic import catalog_of


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    with running(tmp_path_factory.mktemp("shard"), MAX_DEVICES="200") as started:
        yield started


@pytest.fixture
def bystander(shard):
    """A television that must not notice anything."""
    television = Television(shard)
    television.tell("t001")
    pages = shard.stats()["title_pages"]
    yield television
    assert shard.stats()["title_pages"] == pages, "bad input stored something"
    response = television.tell("t002")
    assert not response.reset and response.acknowledged_local_version == 2


def signed(device_id: bytes, body: bytes, key: bytes = DEVICE_KEY) -> dict[str, str]:
    return {"Authorization": authorization(device_id, device_token(key, device_id), body)}


def bomb() -> bytes:
    """A body of a few bytes that declares, and holds, 16 MiB."""
    deflated = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 24))
    return bytes((1, 1, 1, 0)) + deflated


def lying_bomb() -> bytes:
    """A zstd frame header that declares 2^40 bytes."""
    return bytes((1, 1, 1, 0)) + b"\x28\xb5\x2f\xfd" + bytes((0xE0,)) + struct.pack("<Q", 1 << 40) + b"\x01\x00\x00"


MALFORMED = {
    "nothing": b"",
    "one byte": b"\x01",
    "text": b"{}",
    "another format version": bytes((9, 1, 0, 0)) + cbor2.dumps({1: 1, 2: 0}),
    "another kind": bytes((1, 2, 0, 0)) + cbor2.dumps({1: 1, 2: 0}),
    "a dictionary that nobody has": bytes((1, 1, 0, 7)) + cbor2.dumps({1: 1, 2: 0}),
    "CBOR cut off": bytes((1, 1, 0, 0)) + cbor2.dumps({1: 1, 2: 0})[:-1],
    "CBOR and more": bytes((1, 1, 0, 0)) + cbor2.dumps({1: 1, 2: 0}) + b"\x00",
    "no map": bytes((1, 1, 0, 0)) + cbor2.dumps([1, 2]),
    "text keys": bytes((1, 1, 0, 0)) + cbor2.dumps({"1": 1}),
    "fields missing": bytes((1, 1, 0, 0)) + cbor2.dumps({1: 1}),
    "deep": bytes((1, 1, 0, 0)) + b"\x81" * 500 + b"\x00",
    "indefinite": bytes((1, 1, 0, 0)) + b"\xbf\xff",
    "a tag": bytes((1, 1, 0, 0)) + cbor2.dumps({1: cbor2.CBORTag(2, b"\xff" * 100), 2: 0}),
    "a bomb": bomb(),
    "a lying bomb": lying_bomb(),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_is_400_with_and_without_a_device(shard, bystander, name):
    body = MALFORMED[name]
    for headers in ({}, signed(b"m" * 16, body)):
        answer = shard.call("POST", "/api/v1/sync", body, headers)
        assert answer.status == 400 and answer.error.startswith(("frame: expected", "SyncRequest", "zstd")), answer.body


def test_a_bomb_costs_no_memory(shard):
    before = resident_kb(shard)
    for _ in range(50):
        assert shard.call("POST", "/api/v1/sync", lying_bomb()).status == 400
    assert resident_kb(shard) - before < 8_192


def resident_kb(shard: Shard) -> int:
    """Of the largest process of the shard."""
    sizes = []
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                with open(f"/proc/{process}/stat") as file:
                    session = int(file.read().rpartition(")")[2].split()[3])
                if session == shard.process.pid:
                    with open(f"/proc/{process}/status") as file:
                        sizes.append(next(int(line.split()[1]) for line in file if line.startswith("VmRSS")))
            except (OSError, StopIteration):
                continue
    return max(sizes)


class TestLengths:
    def test_too_long_is_413_before_it_is_read(self, shard, bystander):
        assert shard.call("POST", "/api/v1/sync", bytes(2_049)).status == 413
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            connection.sendall(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
            assert until_closed(connection)

    def test_without_a_length_is_411(self, shard, bystander):
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            connection.sendall(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 411 ")

    @pytest.mark.parametrize("length", ["-1", "+5", "5, 5", "0x10", "٣", ""])
    def test_a_length_that_is_none_is_refused(self, shard, bystander, length):
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            head = f"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
            connection.sendall(head + bytes(16))
            assert connection.recv(20)[9:12] in (b"400", b"411")

    def test_gzip_is_not_unpacked(self, shard, bystander):
        answer = shard.call("POST", "/api/v1/sync", b"\x1f\x8b" + bytes(30), {"Content-Encoding": "gzip"})
        assert answer.status == 400


def until_closed(connection: socket.socket) -> bool:
    """Read until the other side closes."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


class TestForged:
    @pytest.mark.parametrize(
        "header",
        ["", "Omega", "Omega " + "A" * 43, "Omega " + "A" * 42, "Bearer abc", "Omega " + "!" * 43, "omega x" * 100, "Omega é"],
    )
    def test_a_header_that_proves_nothing_is_401(self, shard, bystander, header):
        body = wire.encode_request(bystander.request("t003"), shard.catalog)
        assert shard.call("POST", "/api/v1/sync", body, {"Authorization": header.encode("utf-8").decode("latin-1")}).status == 401

    def test_another_key_another_body_another_device_are_401(self, shard, bystander):
        body = wire.encode_request(bystander.request("t003"), shard.catalog)
        proof = signed(bystander.device_id, body)
        changed = body[:-1] + bytes((body[-1] ^ 1,))
        for sent, headers in (
            (body, signed(bystander.device_id, body, b"another key of 32 bytes, surely.")),
            (changed, proof),
            (body, signed(b"somebody else, x", body)),  # a sound proof, by another device
            (body, {}),  # a device without a proof
        ):
            assert shard.call("POST", "/api/v1/sync", sent, headers).status == 401

    def test_an_anonymous_body_under_a_devices_proof_is_401(self, shard, bystander):
        body = wire.encode_request(SyncRequest())
        assert shard.call("POST", "/api/v1/sync", body, signed(bystander.device_id, body)).status == 401


class TestForeign:
    def test_another_lineage_and_a_number_past_the_end_are_409(self, shard, bystander):
        other = catalog_of(70)
        larger = catalog_of(61)
        larger.lineage = shard.catalog.lineage
        for catalog, title in ((other, "t001"), (larger, "t060")):
            delta = PatternDelta(1, (FinishedTitle(title, 1_700_000_000_000),))
            body = wire.encode_request(SyncRequest(device_id=b"f" * 16, epoch=1, delta=delta), catalog)
            answer = shard.call("POST", "/api/v1/sync", body, signed(b"f" * 16, body))
            assert answer.status == 409, answer.body
        assert shard.stats()["devices"] >= 1

    @pytest.mark.parametrize("version", [0, 2, 255])
    def test_a_version_that_is_not_served_is_426_or_none_at_all_400(self, shard, bystander, version):
        body = bytes((1, 1, 0, 0)) + cbor2.dumps({1: version, 2: 0})
        assert shard.call("POST", "/api/v1/sync", body).status == (400 if version == 0 else 426)


class TestReplayed:
    def test_the_same_request_again_gets_the_same_acknowledgement_and_stores_nothing(self, shard):
        television = Television(shard)
        request = television.request("t010", "t011")
        first = shard.synced(request)
        pages = shard.stats()["title_pages"]
        for _ in range(3):
            again = shard.synced(request)
            assert again.acknowledged_local_version == first.acknowledged_local_version == 1 and not again.reset
        assert shard.stats()["title_pages"] == pages

    def test_an_old_request_is_told_to_reset_and_the_device_goes_on(self, shard):
        television = Television(shard)
        captured = television.request("t010")
        television.tell("t010")
        second = television.request("t011")
        television.tell("t011")
        television.tell("t012")
        pages = shard.stats()["title_pages"]
        for old in (captured, second):
            response = shard.synced(old)
            assert response.reset and response.acknowledged_local_version is None
        assert shard.stats()["title_pages"] == pages
        assert not television.tell("t013").reset

    def test_of_a_past_epoch_is_told_to_reset(self, shard):
        television = Television(shard)
        captured = television.request("t010")
        television.tell("t010")
        television.epoch, television.version, television.seen = television.epoch ^ 1, 0, None
        television.tell("t014")
        assert shard.synced(captured).reset
        assert not television.tell("t015").reset

    def test_after_an_erasure_stores_nothing(self, shard):
        television = Television(shard)
        captured = television.request("t010")
        television.tell("t010")
        assert shard.synced(SyncRequest(device_id=television.device_id, epoch=television.epoch, erase=True)).erased
        pages = shard.stats()["title_pages"]
        assert shard.synced(captured).reset
        assert shard.stats()["title_pages"] == pages
        assert shard.synced(SyncRequest(device_id=television.device_id, epoch=1, erase=True)).erased  # again is fine


class TestOutOfOrder:
    def test_an_older_page_after_a_newer_one_changes_nothing(self, shard):
        television = Television(shard)
        television.tell("t020")
        seen, epoch, device = television.seen, television.epoch, television.device_id
        at = time.time_ns() // 1_000_000

        def page(version: int, title: str) -> SyncRequest:
            delta = PatternDelta(version, (FinishedTitle(title, at),))
            return SyncRequest(device_id=device, epoch=epoch, server_time_seen=seen, delta=delta)

        assert shard.synced(page(3, "t021")).acknowledged_local_version == 3
        pages = shard.stats()["title_pages"]
        assert shard.synced(page(2, "t022")).reset, "its titles would be acknowledged and lost"
        assert shard.stats()["title_pages"] == pages

    def test_times_far_off_are_kept_within_what_is_kept(self, shard):
        television = Television(shard)
        television.tell("t023", finished_at=0)
        television.tell("t024", finished_at=(1 << 47) - 1)
        assert not television.tell("t025").reset


class TestWipedAndCloned:
    def test_a_wiped_device_begins_anew_under_a_new_epoch(self, shard):
        television = Television(shard)
        television.tell("t030")
        television.epoch, television.version, television.seen = television.epoch ^ 1, 0, None
        response = television.tell("t031")
        assert not response.reset and response.acknowledged_local_version == 1

    def test_a_device_restored_from_an_old_copy_is_told_to_reset(self, shard):
        television = Television(shard)
        television.tell("t032")
        copy = Television(shard, television.device_id, television.epoch, television.version, television.seen)
        television.tell("t033")
        television.tell("t034")
        assert copy.tell("t035").reset
        assert not television.tell("t036").reset

    def test_of_two_clones_one_is_told_to_reset_however_they_alternate(self, shard):
        one = Television(shard)
        one.tell("t037")
        two = Television(shard, one.device_id, one.epoch, one.version, one.seen)
        resets = [False, False]
        for turn in range(4):
            for number, television in enumerate((one, two)):
                if not resets[number]:
                    television.version += 10 * turn + number  # they live different lives
                    resets[number] = television.tell(f"t{38 + turn:03}").reset
        assert resets == [True, False]

    def test_an_unknown_device_that_has_seen_a_server_time_is_told_to_reset(self, shard):
        television = Television(shard, seen=1_700_000_000_000)
        devices = shard.stats()["devices"]
        assert television.tell("t039").reset
        assert shard.stats()["devices"] == devices


class TestReports:
    def test_one_a_day_and_only_of_days_around_today(self, shard):
        today = time.time_ns() // 1_000_000 // DAY_MS
        device = os.urandom(16)

        def report(day: int, value: int = 3):
            return SyncRequest(device_id=device, epoch=1, count_report=CountReport(day, 9, value))

        reports = shard.stats()["count_reports"]
        assert shard.synced(report(today)).counted
        assert shard.synced(report(today, 4)).counted  # acknowledged, not stored
        assert shard.synced(report(today - 1)).counted
        assert shard.stats()["count_reports"] == reports + 2
        for day in (today - 3, today + 2, 0):
            assert shard.sync(report(day)).status == 400
        assert shard.stats()["count_reports"] == reports + 2


def test_an_anonymous_sync_writes_nothing(shard, bystander):
    devices = shard.stats()["devices"]
    response = shard.synced(SyncRequest(global_version_seen=77))
    assert response.global_version == 77 and response.acknowledged_local_version is None
    assert shard.stats()["devices"] == devices


def test_one_device_in_a_hurry_is_429_and_others_are_not(shard):
    other = Television(shard)
    other.tell("t040")
    hasty = Television(shard)
    hasty.tell("t040")
    answers = [shard.sync(hasty.request()) for _ in range(100)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused and {answer.status for answer in answers} == {200, 429}
    assert int(refused[0].headers["retry-after"]) >= 1
    assert not other.tell("t041").reset


def test_many_at_once_of_one_device_are_applied_once(shard):
    television = Television(shard)
    request = television.request("t041", "t042")
    pages, answers = shard.stats()["title_pages"], []
    threads = [threading.Thread(target=lambda: answers.append(shard.synced(request))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert {answer.acknowledged_local_version for answer in answers} == {1} and not any(a.reset for a in answers)
    assert shard.stats()["title_pages"] == pages + 1


class TestHttp:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/api/v1/sync", 405),
            ("POST", "/api/v1/stats", 405),
            ("DELETE", "/metrics", 405),
            ("GET", "/", 404),
            ("POST", "/anything", 404),
            ("GET", "/api/v1/bundles/0123456789abcdef/manifest", 404),
            ("GET", "/api/v1/bundles/../store/shard.mdb", 404),
            ("GET", "/api/v1/bundles/0123456789abcdef/..%2f..%2fstore%2fshard.mdb", 404),
            ("GET", "/api/v1/bundles/%2e%2e/store", 404),
            ("GET", "/api/v1/federation/../../etc/passwd", 404),
            ("GET", "/api/v1/federation/.hidden", 404),
            ("GET", "/api/v1/sync/", 404),
        ],
    )
    def test_other_methods_and_paths(self, shard, method, path, status):
        assert shard.call(method, path).status == status

    def test_no_http_at_all_is_400_and_the_connection_ends(self, shard, bystander):
        for noise in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"A" * 9_000, b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(200)
                assert answer == b"" or answer[9:12] in (b"400", b"431", b"414"), answer
                assert until_closed(connection)

    def test_a_header_without_end_is_refused(self, shard, bystander):
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            connection.sendall(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000)
            assert connection.recv(20)[9:12] in (b"400", b"431")

    def test_requests_in_one_packet_are_answered_in_order(self, shard):
        body = wire.encode_request(SyncRequest())
        one = b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            connection.sendall(one * 20)
            received = b""
            while received.count(b"HTTP/1.1 200 OK") < 20:
                received += connection.recv(65_536)

    def test_a_reply_to_a_sync_has_no_header_to_spare(self, shard):
        answer = shard.call("POST", "/api/v1/sync", wire.encode_request(SyncRequest()))
        assert list(answer.headers) == ["content-length"]

    def test_a_request_that_trickles_is_cut_off(self, shard, bystander):
        with socket.create_connection(("127.0.0.1", shard.port), 10) as connection:
            connection.sendall(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n")
            connection.settimeout(30)
            deadline = time.monotonic() + 30
            try:
                while time.monotonic() < deadline:
                    connection.sendall(b"x")
                    time.sleep(0.5)
                pytest.fail("the connection stayed open")
            except (BrokenPipeError, ConnectionResetError):
                pass


def test_devices_beyond_the_most_are_503_and_known_ones_go_on(shard):
    known = Television(shard)
    known.tell("t050")
    answers = []
    while len(answers) < 250:
        answers.append(shard.sync(Television(shard).request("t050")))
        if answers[-1].status != 200:
            break
    assert answers[-1].status == 503 and "as many devices" in answers[-1].error
    assert int(answers[-1].headers["retry-after"]) > 0
    assert not known.tell("t051").reset


def test_the_log_names_no_device_and_no_key(shard):
    log = (shard.folder / "log").read_text()
    assert DEVICE_KEY.hex() not in log
    assert shard.sync(Television(shard, b"a device by name").request("t051")).status in (200, 503)
    log = (shard.folder / "log").read_text()
    assert "a device by name" not in log and b"a device by name".hex() not in log and "t051" not in log
    for line in log.splitlines():
        json.loads(line)


def test_a_response_frame_is_what_the_product_reads(shard):
    answer = shard.call("POST", "/api/v1/sync", wire.encode_request(SyncRequest()))
    assert answer.body[:4] == bytes((frame.FORMAT_VERSION, wire.KIND_RESPONSE, frame.BODY_RAW, frame.DICTIONARY_NONE))
    assert wire.decode_response(answer.body).next_sync_secs == 300
