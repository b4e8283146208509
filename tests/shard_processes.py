"""A real shard in real processes, with a signed bundle, and televisions that speak to it over HTTP, for tests."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cloud.lmdb_storage import LmdbStorage
from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.catalog import write_bundle as write_catalog
from omega_edge.manifest import Manifest
from omega_edge.protocol import FinishedTitle, PatternDelta, SyncRequest, SyncResponse
from omega_edge.signing import SigningKey, public_key, seal
from omega_edge.sync_identity import authorization, device_token
from tests.synthetic import NOW_MS, sections_of

PROJECT = Path(__file__).resolve().parent.parent
DEVICE_KEY = bytes(range(32))
SIGNING_KEY = SigningKey(bytes(range(1, 33)))


def write_bundle(folder: Path, titles: int = 60, version: int = 1, sequence: int = 1, key: SigningKey = SIGNING_KEY) -> Catalog:
    """A bundle and its signed manifest in BUNDLE_DIR; the catalogue, as a television opens it."""
    sections, meta = sections_of(titles)
    meta["version"] = version
    lineage = meta["lineage"] = sections_of(60)[1]["lineage"]
    (folder / lineage).mkdir(parents=True, exist_ok=True)
    path = folder / lineage / f"bundle-{version}.omega"
    write_catalog(path, sections, meta)
    data = path.read_bytes()
    manifest = Manifest(lineage, version, sequence, NOW_MS, path.name, len(data), hashlib.sha256(data).hexdigest())
    written = folder / lineage / "manifest.new"
    written.write_bytes(seal("manifest", manifest.to_bytes(), key))
    written.replace(folder / lineage / "manifest")
    return Catalog.open(path)


@dataclass
class Answer:
    """An HTTP reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The words of an error."""
        return json.loads(self.body)["error"]


@dataclass
class Shard:
    """A running shard. folder: holds store and bundles."""

    folder: Path
    process: subprocess.Popen
    port: int
    catalog: Catalog

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def sync(self, request: SyncRequest) -> Answer:
        """Send a request as its device would."""
        body = wire.encode_request(request, self.catalog)
        headers = {}
        if request.device_id is not None:
            token = device_token(DEVICE_KEY, request.device_id)
            headers["Authorization"] = authorization(request.device_id, token, body)
        return self.call("POST", "/api/v1/sync", body, headers)

    def synced(self, request: SyncRequest) -> SyncResponse:
        """The response to a request that must succeed."""
        answer = self.sync(request)
        assert answer.status == 200, (answer.status, answer.body)
        return wire.decode_response(answer.body, self.catalog)

    def stats(self) -> dict:
        """GET /api/v1/stats."""
        return json.loads(self.call("GET", "/api/v1/stats").body)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def storage(self) -> LmdbStorage:
        """Its store, once it has ended."""
        return LmdbStorage(self.folder / "store", clock=lambda: time.time_ns() // 1_000_000)


def environment_of(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a shard in this folder."""
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"lmdb://{folder / 'store'}",
        "BUNDLE_DIR": str(folder / "bundles"),
        "DEVICE_KEY": DEVICE_KEY.hex(),
        "TRUSTED_KEYS": public_key(SIGNING_KEY).hex(),
        "PORT": "0",
        **changes,
    }


def launch(folder: Path, catalog: Catalog, program: tuple[str, ...] = ("-m", "cloud"), **changes: str) -> Shard:
    """Start a shard and wait until it takes requests."""
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *program], cwd=PROJECT, env=environment_of(folder, **changes), start_new_session=True,
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), (line, (folder / "log").read_text())
    return Shard(folder, process, int(line.rsplit(":", 1)[1]), catalog)


@contextmanager
def running(folder: Path, **changes: str) -> Iterator[Shard]:
    """A shard for the length of a test; it must end by itself when it is told to, unless it was killed."""
    catalog = write_bundle(folder / "bundles")
    shard = launch(folder, catalog, **changes)
    try:
        yield shard
    except BaseException:
        if shard.process.poll() is None:
            shard.kill()
        raise
    finally:
        shard.process.stdout.close()
        if shard.process.poll() is None:
            assert shard.stop() == 0, (folder / "log").read_text()


@dataclass
class Television:
    """A device that keeps what a television keeps of its syncs."""

    shard: Shard
    device_id: bytes = field(default_factory=lambda: os.urandom(16))
    epoch: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "big"))
    version: int = 0
    seen: int | None = None

    def request(self, *titles: str, finished_at: int | None = None, **delta: object) -> SyncRequest:
        """The request that tells of titles finished since the last."""
        at = finished_at if finished_at is not None else time.time_ns() // 1_000_000 - 3_600_000
        changed = PatternDelta(
            self.version + (1 if titles or delta else 0), tuple(FinishedTitle(title, at) for title in titles), **delta
        )
        return SyncRequest(device_id=self.device_id, epoch=self.epoch, server_time_seen=self.seen, delta=changed)

    def tell(self, *titles: str, **delta: object) -> SyncResponse:
        """Sync, and take the acknowledgement in."""
        request = self.request(*titles, **delta)
        response = self.shard.synced(request)
        if not response.reset:
            assert response.acknowledged_local_version == request.delta.local_version
            assert self.seen is None or response.server_time > self.seen
            self.version, self.seen = request.delta.local_version, response.server_time
        return response
