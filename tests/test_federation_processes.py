"""Three shards, two regions and a hub as processes, televisions over HTTP; some are killed and come back. What the hub says
in the end is exactly what the televisions sent.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloud.collective import decode as decode_collective
from cloud.counts import Counts
from cloud.estimates import support, title_hashes
from cloud.publication import HttpReader, SourceUnavailable, read_counts, read_lists, reader_of
from omega_edge import randomised, signing, wire
from omega_edge.columns import STEP_MS
from omega_edge.protocol import DAY_MS, CountReport, SyncRequest
from tests.shard_processes import PROJECT, SIGNING_KEY, Shard, Television, launch, write_bundle

SECRET = bytes(range(50, 82))
TRUSTED = (signing.public_key(SIGNING_KEY),)
TITLES = 60
DEADLINE_SECONDS = 60.0


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask until it holds; the test fails where that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


class Federation:
    """The processes of one test, in folders of its own. Each keeps its port when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "key").write_text(bytes(SIGNING_KEY).hex())
        self.catalog = write_bundle(folder / "hub" / "bundles")
        self.running: dict[str, subprocess.Popen] = {}
        self.ports: dict[str, int] = {}
        self.shards: dict[str, Shard] = {}
        self.common = {
            "SIGNING_KEY_FILE": str(folder / "key"), "FEDERATION_SECRET": SECRET.hex(), "COUNTING_INTERVAL_SECONDS": "1",
            "AGGREGATION_INTERVAL_SECONDS": "1", "MIN_DEVICES": "2", "TIMEOUT_SECONDS": "5",
        }  # fmt: skip

    def shard(self, name: str, upstream: str) -> Shard:
        """Start a shard, which pulls from a region."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if name != "shard-3" and not (folder / "bundles").exists():
            write_bundle(folder / "bundles")
        shard = launch(
            folder, self.catalog, **self.common, SHARD_ID=name[-1], PUBLICATION_DIR=str(folder / "publication"),
            FEDERATION_URL=self.url(upstream), PORT=str(self.ports.get(name, 0)),
        )
        self.shards[name], self.ports[name], self.running[name] = shard, shard.port, shard.process
        return shard

    def level(self, name: str, role: str, sources: str, upstream: str | None = None) -> None:
        """Start a region or the hub."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = self.common | {
            "PATH": os.environ["PATH"], "ROLE": role, "NAME": name, "SOURCES": sources, "PUBLICATION_DIR": str(folder),
            "PORT": str(self.ports.get(name, 0)), "TRUSTED_KEYS": "", "TRENDS": "live",
        }  # fmt: skip
        if upstream is not None:
            environment["FEDERATION_URL"] = upstream
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cloud", "federate"], cwd=PROJECT, env=environment, stdout=subprocess.PIPE,
                stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), (line, (self.folder / f"{name}.log").read_text())
        self.running[name], self.ports[name] = process, int(line.rsplit(":", 1)[1])

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}/api/v1/federation/"

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        process.stdout.close()

    def stats(self, name: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/api/v1/stats", timeout=30) as response:
            return json.load(response)

    def end(self) -> list[int]:
        """Tell all to end; their exit codes."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(60) for process in self.running.values()]
        for process in self.running.values():
            process.stdout.close()
        return codes


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        for name in list(made.running):
            made.kill(name)


class Truth:
    """What was sent: votes and lists by device, of all shards."""

    def __init__(self, seed: int, content_ids: list[str]) -> None:
        self.content_ids = content_ids
        self.random = random.Random(seed)
        self.sent: dict[bytes, dict[int, int]] = {}
        self.reports: list[CountReport] = []

    def report(self, shard: Shard, televisions: int) -> None:
        """Televisions of the mode `counts`: one falsified title each."""
        for _ in range(televisions):
            day = time.time_ns() // 1_000_000 // DAY_MS - self.random.randrange(2)
            hashed = randomised.title_hash(shard.catalog.content_id(self.random.randrange(TITLES)))
            report = CountReport(day, *randomised.falsified(hashed, self.random))
            told = SyncRequest(device_id=self.random.randbytes(16), epoch=1, count_report=report)
            assert shard.synced(told).counted
            self.reports.append(report)

    def supports(self, counts: Counts, content_ids: list[str]) -> bool:
        """Whether counts say of falsified reports exactly what these support."""
        hashes = title_hashes(content_ids)
        expected = {}
        for day in {report.day for report in self.reports}:
            here = [report for report in self.reports if report.day == day]
            seeds, values = (np.array([getattr(one, name) for one in here], np.uint32) for name in ("seed", "value"))
            expected[day] = len(here), support(hashes, seeds, values).tolist()
        return {day: (told.reports, told.support.tolist()) for day, told in counts.reports.items()} == expected

    def tell(self, shard: Shard, televisions: int) -> list[Television]:
        """New televisions that each finished some titles of the last days, in one sync."""
        made = [Television(shard, device_id=self.random.randbytes(16)) for _ in range(televisions)]
        for television in made:
            self.tell_more(television)
        return made

    def tell_more(self, television: Television) -> None:
        now_ms = time.time_ns() // 1_000_000
        rows = self.random.sample(range(TITLES), self.random.randrange(1, 6))
        at = now_ms - self.random.randrange(5 * DAY_MS)
        television.tell(*(television.shard.catalog.content_id(row) for row in rows), finished_at=at)
        held = self.sent.setdefault(television.device_id, {})
        for row in rows:
            held[row] = min(held.get(row, at), at)

    def forget(self, television: Television) -> None:
        television.shard.synced(SyncRequest(device_id=television.device_id, epoch=television.epoch, erase=True))
        del self.sent[television.device_id]

    def windows(self) -> np.ndarray:
        """uint32[titles]: devices that finished each title; all of it lies within 28 days."""
        return np.bincount([row for titles in self.sent.values() for row in titles], minlength=TITLES)

    def matches(self, location: str | Path) -> bool:
        """Whether a publication says exactly this."""
        try:
            counts = read_counts(location, TRUSTED, SECRET)
            lists = read_lists(location, TRUSTED, SECRET)
        except SourceUnavailable:
            return False
        if counts is None or not self.supports(counts, self.content_ids):
            return False
        end_day = max((end for end, _ in counts.windows), default=0)
        told = np.zeros(TITLES, np.int64)
        if (end_day, 28) in counts.windows:
            told[counts.windows[end_day, 28].rows] = counts.windows[end_day, 28].devices
        homes: list[dict[int, int]] = [{} for _ in lists.pseudonyms]
        for home, row, moment in zip(lists.home.tolist(), lists.row.tolist(), lists.finished_ms.tolist(), strict=True):
            homes[home][row] = moment // STEP_MS
        sent = [{row: at // STEP_MS for row, at in titles.items()} for titles in self.sent.values()]
        key = lambda titles: sorted(titles.items())
        return told.tolist() == self.windows().tolist() and sorted(homes, key=key) == sorted(sent, key=key)


def test_three_shards_two_regions_and_a_hub_some_killed_and_returned(federation):
    truth = Truth(1, federation.catalog.content_ids(range(TITLES)))
    # From the top down, since each asks the one above; the hub's sources are known once the regions have ports.
    for name in ("region-1", "region-2"):
        federation.level(name, "region", str(federation.folder / "nobody"))
    federation.level("hub", "hub", f"{federation.url('region-1')},{federation.url('region-2')}")
    first = federation.shard("shard-1", "region-1")
    second = federation.shard("shard-2", "region-1")
    third = federation.shard("shard-3", "region-2")
    hub = federation.url("hub")
    for name, sources in (("region-1", ("shard-1", "shard-2")), ("region-2", ("shard-3",))):
        federation.kill(name)
        federation.level(name, "region", ",".join(federation.url(shard) for shard in sources), hub)
    wait_until(lambda: third.stats()["catalog_version"] == 1)  # it began without a bundle, and got it from above
    homes = [home for shard in (first, second, third) for home in truth.tell(shard, 12)]
    for shard in (first, second, third):
        truth.report(shard, 4)
    wait_until(lambda: truth.matches(hub))

    federation.kill("shard-2")  # durable what it acknowledged, and counted with what it published last
    truth.tell(first, 5)
    wait_until(lambda: truth.matches(hub))
    wait_until(lambda: [bool(source["faults"]) for source in federation.stats("region-1")["sources"]] == [False, True])

    federation.kill("region-2")
    again = federation.shard("shard-2", "region-1")
    for home in homes[12:24]:
        home.shard = again
        truth.tell_more(home)
    truth.tell(third, 3)
    truth.report(again, 4)
    federation.level("region-2", "region", federation.url("shard-3"), hub)
    federation.kill("hub")
    federation.level("hub", "hub", f"{federation.url('region-1')},{federation.url('region-2')}")
    truth.forget(homes[0])
    truth.forget(homes[30])
    wait_until(lambda: truth.matches(hub))

    told = told_by(hub, federation)
    wait_until(lambda: all(global_version(shard) == told for shard in federation.shards.values()))
    assert told > 0
    assert set(federation.end()) == {0}
    federation.running.clear()


def told_by(hub: str, federation: Federation) -> int:
    """The global version of the hub's collective, whose trends are those of the counts above the threshold."""
    data = reader_of(hub).read("collective", 1 << 16)
    found = decode_collective(signing.unseal(data, "collective", TRUSTED, 1 << 16))
    patterns = wire.decode_global_patterns(found.frame, federation.catalog)
    assert patterns.trending and patterns.global_version == found.version
    return found.version


def global_version(shard: Shard) -> int | None:
    return shard.stats()["global_version"]


def test_a_reader_refuses_what_is_too_much_or_too_slow(tmp_path):
    import socketserver
    import threading

    class Hostile(socketserver.StreamRequestHandler):
        def handle(self):
            path = self.rfile.readline().split()[1].decode()
            while self.rfile.readline().strip():
                pass
            if path.endswith("large"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            elif path.endswith("endless"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000))
            elif path.endswith("short"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + bytes(50))
            elif path.endswith("moved"):
                self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /api/v1/federation/index\r\nContent-Length: 0\r\n\r\n")
            elif path.endswith("garbage"):
                self.wfile.write(b"\xff\xfe\r\n\r\n")
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
                try:
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                except OSError:
                    pass  # the reader has gone, as it should

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        reader = HttpReader(f"http://127.0.0.1:{server.server_address[1]}/api/v1/federation/", timeout_seconds=0.5)
        for name, fault in {
            "large": "at most 1000 bytes", "endless": "at most 1000 bytes", "short": "IncompleteRead|bytes less",
            "moved": "got 302", "garbage": "BadStatusLine", "slow": "too slow",
        }.items():  # fmt: skip
            with pytest.raises(SourceUnavailable, match=fault):
                reader.read(name, 1000)
    finally:
        server.shutdown()
        server.server_close()
