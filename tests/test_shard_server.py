"""A shard's processes: kills, drains, workers on one port, overload, downloads, configuration, and the API's description."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields
from typing import ClassVar

import pytest

from cloud.configuration import VARIABLES, ServerConfig, from_environment
from cloud.counting import LOCK_NAME
from cloud.metrics import STATUSES
from cloud.openapi import document
from omega_edge import wire
from omega_edge.errors import ConfigError
from omega_edge.manifest import read_manifest
from omega_edge.protocol import SyncRequest
from omega_edge.signing import create_signing_key, public_key, unseal
from tests.shard_processes import (
    DEVICE_KEY,
    PROJECT,
    SIGNING_KEY,
    Shard,
    Television,
    environment_of,
    launch,
    running,
    write_bundle,
)

DEADLINE_SECONDS = 90.0


def eventually(condition) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def processes_of(shard: Shard) -> list[int]:
    """The children of a shard's supervisor."""
    with open(f"/proc/{shard.process.pid}/task/{shard.process.pid}/children") as file:
        return [int(word) for word in file.read().split()]


def tell_until_stopped(shard: Shard, acknowledged: dict[bytes, set[str]], stop: threading.Event) -> None:
    """Sync as new televisions do, noting what was acknowledged; faults of the connection are those of a killed shard."""
    while not stop.is_set():
        television = Television(shard)
        for number in range(3):
            title = f"t{number:03}"
            try:
                television.tell(title)
            except (OSError, AssertionError, ValueError):
                break
            acknowledged.setdefault(television.device_id, set()).add(title)


def stored_titles(shard: Shard) -> dict[bytes, set[str]]:
    """What the store of an ended shard holds."""
    store, found = shard.storage(), {}
    for page in store.pages_after(0, 1_000_000):
        found.setdefault(page.device_id, set()).update(map(shard.catalog.content_id, page.rows.tolist()))
    store.close()
    return found


def test_killed_after_acknowledging_it_has_all_of_it_when_it_comes_back(tmp_path):
    catalog = write_bundle(tmp_path / "bundles")
    acknowledged: dict[bytes, set[str]] = {}
    for _ in range(3):
        shard = launch(tmp_path, catalog, WORKERS="2")
        stop = threading.Event()
        threads = [threading.Thread(target=tell_until_stopped, args=(shard, acknowledged, stop)) for _ in range(6)]
        for thread in threads:
            thread.start()
        before = len(acknowledged)
        eventually(lambda before=before: len(acknowledged) > before + 10)
        shard.kill()
        stop.set()
        for thread in threads:
            thread.join()
        shard.process.stdout.close()
        stored = stored_titles(shard)
        lost = {device: titles - stored.get(device, set()) for device, titles in acknowledged.items()}
        assert not {device: titles for device, titles in lost.items() if titles}


def test_a_worker_that_dies_is_started_again_and_the_port_stays(tmp_path):
    with running(tmp_path, WORKERS="2") as shard:
        television = Television(shard)
        television.tell("t001")
        workers = processes_of(shard)[:2]
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: shard.stats()["restarts"] == 1)
        eventually(lambda: json.loads(shard.call("GET", "/api/v1/health").body)["workers"] == 2)
        assert not television.tell("t002").reset
        assert shard.stats()["devices"] == 1


def test_a_worker_that_cannot_store_any_more_leaves_and_another_comes(tmp_path):
    in_the_year_2248 = (
        "import sys; from cloud.configuration import from_environment; from cloud.server import run; "
        "sys.exit(run(from_environment(), lambda: 1 << 43, lambda port: print(f'listening on http://127.0.0.1:{port}', flush=True)))"
    )
    shard = launch(tmp_path, write_bundle(tmp_path / "bundles"), program=("-c", in_the_year_2248))
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            shard.sync(Television(shard).request("t001"))
        eventually(lambda: shard.stats()["restarts"] == 1)
        assert shard.synced(SyncRequest()).catalog_version == 1
        assert shard.stop() == 0
    finally:
        shard.process.stdout.close()


def test_a_worker_killed_in_its_transaction_neither_loses_nor_blocks(tmp_path):
    acknowledged: dict[bytes, set[str]] = {}
    with running(tmp_path, WORKERS="2") as shard:
        stop = threading.Event()
        threads = [threading.Thread(target=tell_until_stopped, args=(shard, acknowledged, stop)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for kills in range(1, 5):
            before = len(acknowledged)
            eventually(lambda before=before: len(acknowledged) > before + 5)
            os.kill(processes_of(shard)[kills % 2], signal.SIGKILL)
            eventually(lambda kills=kills: shard_restarts(shard) >= kills)
        stop.set()
        for thread in threads:
            thread.join()
    stored = stored_titles(shard)
    assert all(titles <= stored.get(device, set()) for device, titles in acknowledged.items())


def shard_restarts(shard: Shard) -> int:
    """How often a process of it was started again, as far as anybody answers."""
    try:
        return shard.stats()["restarts"]
    except (OSError, ValueError):
        return 0


def test_of_two_shards_on_one_store_one_counts(tmp_path):
    with running(tmp_path) as first:
        eventually(lambda: (tmp_path / "store" / LOCK_NAME).exists())
        second = launch(tmp_path, first.catalog)
        try:
            eventually(lambda: "another process counts" in (tmp_path / "log").read_text())
            assert not Television(second).tell("t001").reset and first.stats()["devices"] == 1
            with open(tmp_path / "store" / LOCK_NAME, "rb") as lock:
                assert first.stop() == 0
                eventually(lambda: not lockable(lock))
        finally:
            assert second.stop() == 0
            second.process.stdout.close()


def lockable(file) -> bool:
    """Whether nobody else holds the file's lock; it is not kept."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def test_two_workers_share_port_store_and_counters(tmp_path):
    with running(tmp_path, WORKERS="2") as shard:
        televisions = [Television(shard) for _ in range(30)]
        for _ in range(2):
            for television in televisions:
                assert not television.tell("t003").reset
        assert {shard.stats()["changes_stored"] for _ in range(10)} == {60}
        metrics = shard.call("GET", "/metrics").body.decode()
        assert 'omega_replies_total{route="sync",status="200"} 60.0' in metrics
        assert "omega_sync_seconds_count 60.0" in metrics and "omega_devices 30.0" in metrics
        assert "omega_ready 2.0" in metrics


def test_a_drain_answers_what_is_in_hand_and_refuses_nobody(tmp_path):
    with (
        running(tmp_path) as shard,
        socket.create_connection(("127.0.0.1", shard.port), 10) as idle,
        socket.create_connection(("127.0.0.1", shard.port), 10) as half,
    ):
        body = wire.encode_request(SyncRequest())
        half.sendall(b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:3])
        assert shard.call("POST", "/api/v1/sync", body).status == 200
        shard.process.send_signal(signal.SIGTERM)
        statuses = statuses_until_refused(shard, body)
        assert set(statuses) <= {200, 503}
        half.sendall(body[3:])
        reply = half.recv(1_000)
        assert reply.startswith(b"HTTP/1.1 200 OK") and b"Connection: close" in reply
        assert idle.recv(10) == b""
        assert shard.process.wait(20) == 0


def statuses_until_refused(shard: Shard, body: bytes) -> list[int]:
    """Syncs and questions for readiness until nobody listens any more: syncs are served to the end."""
    statuses = []
    while True:
        try:
            statuses.append(shard.call("POST", "/api/v1/sync", body).status)
            assert statuses[-1] == 200
            statuses.append(shard.call("GET", "/api/v1/health/ready").status)
        except OSError:
            return statuses


def test_workers_whose_supervisor_is_gone_leave(tmp_path):
    with running(tmp_path) as shard:
        children = processes_of(shard)
        os.kill(shard.process.pid, signal.SIGKILL)
        shard.process.wait(10)
        eventually(lambda: not any(os.path.exists(f"/proc/{child}") and state_of(child) != "Z" for child in children))


def state_of(process: int) -> str:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


class TestOverload:
    """A worker that is stopped by a signal cannot answer; what matters is what one does that has too much in hand."""

    def test_a_flood_is_refused_in_words_and_the_rest_is_answered(self, tmp_path):
        with running(tmp_path) as shard:
            body = wire.encode_request(SyncRequest())
            one = b"POST /api/v1/sync HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            connections = [socket.create_connection(("127.0.0.1", shard.port), 10) for _ in range(40)]
            for connection in connections:
                connection.sendall(one * 50)
            statuses = [status for connection in connections for status in received_statuses(connection, 50)]
            assert len(statuses) == 2_000 and set(statuses) <= {b"200", b"503"} and statuses.count(b"200") > 0
            eventually(lambda: shard.call("POST", "/api/v1/sync", body).status == 200)


def received_statuses(connection: socket.socket, count: int) -> list[bytes]:
    received = b""
    with connection:
        while received.count(b"HTTP/1.1 ") < count:
            data = connection.recv(65_536)
            if not data:
                break
            received += data
    return re.findall(rb"HTTP/1\.1 (\d{3})", received)


class TestFullDisk:
    def test_news_is_503_erasing_is_200_and_reading_goes_on(self, tmp_path):
        with running(tmp_path) as shard:
            first = Television(shard)
            first.tell("t001")
            limit = shard.stats()["store_bytes"] + (256 << 10)
            for child in processes_of(shard):
                subprocess.run(["prlimit", f"--pid={child}", f"--fsize={limit}:unlimited"], check=True)
            # RLIMIT_FSIZE sends SIGXFSZ, which Python ignores: the write then fails as it does on a full disk.
            refused = None
            for _ in range(3_000):
                answer = shard.sync(Television(shard).request(*(f"t{row:03}" for row in range(60))))
                if answer.status != 200:
                    refused = answer
                    break
            assert refused is not None and refused.status == 503 and "disk is full" in refused.error
            assert int(refused.headers["retry-after"]) > 0
            assert shard.call("GET", "/api/v1/health/live").status == 200
            for child in processes_of(shard):
                subprocess.run(["prlimit", f"--pid={child}", f"--fsize={limit + (1 << 20)}:unlimited"], check=True)
            assert shard.synced(SyncRequest(device_id=first.device_id, epoch=first.epoch, erase=True)).erased
            assert not Television(shard).tell("t002").reset


class TestDownloads:
    def test_manifest_and_bundle_with_etag_and_range(self, tmp_path):
        with running(tmp_path) as shard:
            base = f"/api/v1/bundles/{shard.catalog.lineage}"
            answer = shard.call("GET", f"{base}/manifest")
            assert answer.headers["cache-control"] == "no-cache"
            manifest = read_manifest(unseal(answer.body, "manifest", (public_key(SIGNING_KEY),), 65_536))
            whole = shard.call("GET", f"{base}/{manifest.file}")
            assert hashlib.sha256(whole.body).hexdigest() == manifest.sha256
            assert "immutable" in whole.headers["cache-control"] and int(whole.headers["content-length"]) == manifest.size
            etag = whole.headers["etag"]
            for path, tag in ((f"{base}/manifest", answer.headers["etag"]), (f"{base}/{manifest.file}", etag)):
                again = shard.call("GET", path, headers={"If-None-Match": tag})
                assert again.status == 304 and again.body == b"" and again.headers["etag"] == tag
            pieces = b""
            while len(pieces) < manifest.size:
                headers = {"Range": f"bytes={len(pieces)}-{len(pieces) + 99_999}", "If-Range": etag}
                piece = shard.call("GET", f"{base}/{manifest.file}", headers=headers)
                end = min(len(pieces) + 100_000, manifest.size)
                assert piece.status == 206
                assert piece.headers["content-range"] == f"bytes {len(pieces)}-{end - 1}/{manifest.size}"
                pieces += piece.body
            assert pieces == whole.body
            head = shard.call("HEAD", f"{base}/{manifest.file}")
            assert head.status == 200 and head.body == b"" and int(head.headers["content-length"]) == manifest.size

    @pytest.mark.parametrize(
        ("asked", "status", "length"),
        [("bytes=0-0", 206, 1), ("bytes=-5", 206, 5), ("bytes=99999999-", 416, 0), ("bytes=5-2", 200, None),
         ("bytes=0-1,3-4", 200, None), ("lines=1-2", 200, None), ("bytes=-0", 416, 0), ("bytes=-", 200, None)],
    )  # fmt: skip
    def test_ranges(self, range_shard, asked, status, length):
        path = f"/api/v1/bundles/{range_shard.catalog.lineage}/bundle-1.omega"
        answer = range_shard.call("GET", path, headers={"Range": asked})
        assert answer.status == status
        if length is not None:
            assert len(answer.body) == length

    def test_a_range_of_another_version_is_the_whole(self, range_shard):
        path = f"/api/v1/bundles/{range_shard.catalog.lineage}/bundle-1.omega"
        answer = range_shard.call("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
        assert answer.status == 200 and len(answer.body) > 10


@pytest.fixture(scope="class")
def range_shard(tmp_path_factory):
    with running(tmp_path_factory.mktemp("shard")) as shard:
        yield shard


def test_a_new_bundle_is_noticed_and_a_forged_manifest_is_not(tmp_path):
    with running(tmp_path) as shard:
        assert shard.synced(SyncRequest()).catalog_version == 1
        write_bundle(tmp_path / "bundles", titles=61, version=2, sequence=2)
        eventually(lambda: shard.synced(SyncRequest()).catalog_version == 2)
        manifest = tmp_path / "bundles" / shard.catalog.lineage / "manifest"
        forged = bytearray(manifest.read_bytes())
        forged[-5] ^= 1
        (manifest.parent / "new").write_bytes(forged)
        (manifest.parent / "new").replace(manifest)
        eventually(lambda: "manifest" in shard.stats()["refused_files"])
        assert shard.synced(SyncRequest()).catalog_version == 2


def test_a_bundle_that_comes_later_is_claimed_by_the_store(tmp_path):
    (tmp_path / "bundles").mkdir()
    catalog = write_bundle(tmp_path / "elsewhere")
    shard = launch(tmp_path, catalog)
    try:
        assert shard.sync(Television(shard).request("t001")).status == 409
        write_bundle(tmp_path / "bundles")
        eventually(lambda: shard.stats()["lineage"] == catalog.lineage)
        assert not Television(shard).tell("t001").reset
        assert shard.stop() == 0
    finally:
        shard.process.stdout.close()


class TestConfiguration:
    good: ClassVar = {"DATABASE_URL": "lmdb:///data", "DEVICE_KEY": DEVICE_KEY.hex()}

    def test_the_defaults(self):
        config = from_environment(self.good)
        assert (config.shard.shard_id, config.shard.region, config.shard.max_devices) == (1, "default", 100_000)
        assert (config.host, config.port, config.workers, config.shard.sync_interval_seconds) == ("127.0.0.1", 8080, 1, 300)
        assert DEVICE_KEY.hex() not in repr(config) and repr(DEVICE_KEY) not in repr(config)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("SHARD_ID", "0"), ("SHARD_ID", "101"), ("SHARD_ID", "one"), ("REGION", "Süd"), ("REGION", "a" * 25),
            ("MAX_DEVICES", "-1"), ("MAX_DEVICES", "1e5"), ("DATABASE_URL", ""), ("DATABASE_URL", "sqlite:///x"),
            ("DATABASE_URL", "postgresql://u:secret@h/d"), ("POSTGRES_URL", "postgres://u:secret@h/d"), ("PORT", "65536"),
            ("PORT", "http"), ("WORKERS", "0"), ("DEVICE_KEY", "abc"), ("DEVICE_KEY", "zz" * 32), ("DEVICE_KEY", ""),
            ("DEVICE_KEY_FILE", "/nowhere/at/all"), ("SIGNING_KEY_FILE", "/nowhere/at/all"), ("TRUSTED_KEYS", "abc"),
            ("SYNC_INTERVAL_SECONDS", "59"), ("SYNC_INTERVAL_SECONDS", "86401"), ("RETENTION_DAYS", "0"),
            ("LOG_LEVEL", "LOUD"), ("LINEAGE", "xyz"), ("FEDERATION_SECRET_FILE", "/nowhere/at/all"),
        ],
    )  # fmt: skip
    def test_a_wrong_value_names_its_variable_and_no_secret(self, name, value):
        environment = self.good | {name: value}
        if name.endswith("_FILE") and name.startswith("DEVICE"):
            environment.pop("DEVICE_KEY")
        with pytest.raises(ConfigError) as raised:
            from_environment(environment)
        assert name in str(raised.value) and "secret" not in str(raised.value)
        assert "zz" * 32 not in str(raised.value)

    def test_every_variable_is_in_the_help(self):
        done = subprocess.run(
            [sys.executable, "-m", "cloud", "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
        )
        assert all(name in done.stdout for name in VARIABLES)

    def test_no_option_is_accepted_and_ignored(self):
        code = [path.read_text() for path in (PROJECT / "cloud").glob("*.py") if path.name != "configuration.py"]
        users = [text for text in code if "ServerConfig" in text]
        ignored = [one.name for one in fields(ServerConfig) if not any(f"config.{one.name}" in text for text in users)]
        assert not ignored

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"FEDERATION_URL": "http://hub.example/api/v1/federation/"}, "FEDERATION_URL"),
            ({"SIGNING_KEY_FILE": "key"}, "SIGNING_KEY_FILE"), ({"FEDERATION_SECRET": "00" * 16}, "FEDERATION_SECRET"),
            ({"PUBLICATION_DIR": "here", "SIGNING_KEY_FILE": "key"}, "PUBLICATION_DIR"),
            ({"PUBLICATION_DIR": "here", "FEDERATION_URL": "ftp://hub.example"}, "source"),
            ({"PUBLICATION_DIR": "key", "SIGNING_KEY_FILE": "key", "FEDERATION_SECRET": "00" * 16}, "PUBLICATION_DIR"),
        ],
    )  # fmt: skip
    def test_what_only_the_counting_process_needs_is_refused_at_the_start(self, tmp_path, changes, named):
        create_signing_key(tmp_path / "key")
        placed = {name: value if "://" in value or len(value) > 8 else str(tmp_path / value) for name, value in changes.items()}
        (tmp_path / "bundles").mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "cloud"], cwd=PROJECT, env=environment_of(tmp_path, **placed), capture_output=True, text=True,
            timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith(f"python -m cloud serve: {named}: expected"), done.stderr

    def test_the_commands_exit_codes(self, tmp_path):
        def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [sys.executable, "-m", "cloud", *words], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
                env={"PATH": os.environ["PATH"], **environment},
            )  # fmt: skip

        assert run().returncode == 2 and "DATABASE_URL" in run().stderr
        assert run("bake").returncode == 2
        assert run("health", "http://127.0.0.1:9").returncode == 1
        made = run("keygen", str(tmp_path / "key"))
        assert made.returncode == 0 and re.fullmatch(r"[0-9a-f]{64}\n", made.stdout)
        assert run("keygen", str(tmp_path / "key")).returncode == 1
        assert (tmp_path / "key").stat().st_mode & 0o077 == 0
        token = run("token", "00" * 16, DEVICE_KEY=DEVICE_KEY.hex())
        assert re.fullmatch(r"[0-9a-f]{64}\n", token.stdout)
        assert run("token", "xx", DEVICE_KEY=DEVICE_KEY.hex()).returncode == 2


def test_a_damaged_store_is_refused_before_anything_listens(tmp_path):
    write_bundle(tmp_path / "bundles")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "shard.mdb").write_bytes(bytes(range(256)) * 256)
    done = subprocess.run(
        [sys.executable, "-m", "cloud"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
        env=environment_of(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2 and "the database is damaged" in done.stderr and done.stdout == ""


def test_the_health_command_asks_the_running_shard(tmp_path):
    with running(tmp_path) as shard:
        command = [sys.executable, "-m", "cloud", "health", f"http://127.0.0.1:{shard.port}"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and json.loads(done.stdout) == {"ready": True}


class TestOpenApi:
    def test_every_route_answers_as_it_is_described(self, tmp_path):
        with running(tmp_path) as shard:
            served = json.loads(shard.call("GET", "/api/v1/openapi.json").body)
            assert served == json.loads(json.dumps(document()))
            for path, methods in served["paths"].items():
                filled = path.replace("{lineage}", shard.catalog.lineage).replace("{file}", "bundle-1.omega")
                for method, described in methods.items():
                    answer = shard.call(method.upper(), filled.replace("{name}", "nothing"), b"" if method == "post" else None)
                    assert str(answer.status) in described["responses"], (method, path, answer.status)
                    assert answer.status != 404 or "{name}" in path
                wrong = shard.call("PUT", filled.replace("{name}", "nothing"), b"")
                assert wrong.status == 405 and "405" in next(iter(methods.values()))["responses"]

    def test_it_is_sound(self):
        described = document()
        assert described["openapi"].startswith("3.1")
        for path, methods in described["paths"].items():
            names = set(re.findall(r"{(\w+)}", path))
            for operation in methods.values():
                assert {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"} == names
                assert {int(status) for status in operation["responses"]} <= set(STATUSES), "counted as faults in /metrics"
                assert all(reply["description"] for reply in operation["responses"].values())
        text = json.dumps(described)
        for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text):
            assert reference in described["components"]["schemas"]
