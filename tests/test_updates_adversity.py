"""Updates that are cut, killed, starved of disk or run twice at once: the bundle is the old one or the new one, whole."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from omega_edge.sync_held_bundle import HeldBundle
from omega_edge.updates import RESUMES, Outcome, Updated
from tests.bundle_server import MANIFEST, BundleServer, CuttingProxy
from tests.test_updates import TRUSTED, Television, version_of


@pytest.fixture
def television(tmp_path):
    with BundleServer(tmp_path / "published") as server:
        yield Television(tmp_path, server)


def updates_through(television: Television, cuts: list[int | None], calls: int = 1) -> list[Updated]:
    """Updates through a proxy that cuts the first connections after so many bytes of their replies."""

    async def run() -> list[Updated]:
        async with CuttingProxy(television.server.url) as proxy:
            proxy.cuts = list(cuts)
            return [await television.client(proxy.url).update() for _ in range(calls)]

    return asyncio.run(run())


class TestCuts:
    def test_a_transfer_goes_on_where_it_was_cut(self, television):
        """Cut at many places: what was received before is not sent again."""
        size = television.publish(2, delta=False).size
        total = 0
        for place in range(300, size, size // 25):
            (television.held.parent / "the.bundle").unlink()
            television.write(television.held, 1)
            television.server.requests.clear()
            # A connection for the manifest goes on to carry the file; the second one resumes it.
            done = updates_through(television, [place])
            while done[-1].outcome is Outcome.OFFLINE:
                done += updates_through(television, [])
            assert done[-1].outcome is Outcome.INSTALLED and version_of(television.held) == 2
            total += 1
            ranges = [headers["Range"] for _path, headers in television.server.requests if "Range" in headers]
            body = sum(one.downloaded_bytes for one in done)
            manifests = television.server.asked_for().count(MANIFEST)
            assert body <= size + manifests * 1024, (place, ranges)
        assert total > 20

    def test_a_connection_that_is_always_cut_moves_on_a_little_at_each_try(self, television):
        television.publish(2, delta=False)
        outcomes = []
        for _ in range(200):
            outcomes += updates_through(television, [None] + [4000] * (2 * RESUMES), calls=1)
            if outcomes[-1].outcome is Outcome.INSTALLED:
                break
        assert outcomes[-1].outcome is Outcome.INSTALLED

    def test_no_server_and_no_file(self, television):
        assert television.update(url="http://127.0.0.1:1").outcome is Outcome.OFFLINE
        manifest = television.publish(2, delta=False)
        (television.published / manifest.file).unlink()
        assert television.update().outcome is Outcome.OFFLINE
        (television.published / MANIFEST).unlink()
        assert television.update().outcome is Outcome.OFFLINE

    def test_parts_of_two_answers_are_thrown_away_and_fetched_anew(self, television):
        manifest = television.publish(2, delta=False)
        partial = HeldBundle(television.held).beside(f"{manifest.sha256[:16]}.part")
        partial.write_bytes(b"another beginning")
        done = television.update()
        assert done.outcome is Outcome.INSTALLED and version_of(television.held) == 2
        partial.write_bytes(bytes(manifest.size + 5))
        television.write(television.held, 1)
        assert television.update().outcome is Outcome.INSTALLED

    def test_what_others_left_is_cleared_away(self, television):
        television.publish(2)
        for name in (".the.bundle.0123456789abcdef.part", "..the.bundle.made.77.tmp", ".the.bundle.made"):
            (television.held.parent / name).write_bytes(b"old")
        television.update()
        assert television.files() == ["the.bundle", "the.bundle.previous"]


KILLED_AT = """
import asyncio, os, signal, sys
from pathlib import Path
from omega_edge.updates import UpdateClient

folder, left = str(Path(sys.argv[3]).parent), int(sys.argv[4])

def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.link", "os.remove", "os.truncate") and folder in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
client = UpdateClient(sys.argv[1], (bytes.fromhex(sys.argv[2]),), Path(sys.argv[3]))
done = asyncio.run(client.update())
print(done.outcome.value)
"""


@pytest.mark.parametrize("deltas", [True, False])
def test_a_process_killed_before_each_of_its_steps_on_the_disk(television, deltas):
    """Before every open, rename, link and removal: the bundle is whole, and the next process brings it to the end."""
    television.publish(2, delta=deltas)
    step, left_old, left_new = 0, 0, 0
    while True:
        step += 1
        for path in television.held.parent.iterdir():
            path.unlink()
        television.write(television.held, 1)
        command = [sys.executable, "-c", KILLED_AT, television.server.url, TRUSTED[0].hex(), str(television.held), str(step)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            assert ended.stdout.strip() == "installed"
            break
        assert ended.returncode == -9, ended.stderr
        version = HeldBundle(television.held).open_on_trial(version_of)
        left_old, left_new = left_old + (version == 1), left_new + (version == 2)
        done = television.update()
        assert done.outcome is (Outcome.INSTALLED if version == 1 else Outcome.CURRENT), (step, done)
        assert HeldBundle(television.held).open_on_trial(version_of) == 2
        assert television.files() == ["the.bundle", "the.bundle.previous"] or version == 2
    assert step > 15 and left_old > 5 and left_new > 0


FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from omega_edge.updates import UpdateClient

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
client = UpdateClient(sys.argv[1], (bytes.fromhex(sys.argv[2]),), Path(sys.argv[3]))
print(asyncio.run(client.update()).outcome.value)
"""


@pytest.mark.parametrize("deltas", [True, False])
@pytest.mark.parametrize("room", [600, 5_000, 40_000])
def test_a_disk_that_takes_no_more(television, deltas, room):
    """The system refuses every byte of a file past `room`, as a full disk would."""
    television.publish(2, delta=deltas)
    command = [sys.executable, "-c", FULL_DISK, television.server.url, TRUSTED[0].hex(), str(television.held), str(room)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.strip() == "no space", ended.stderr
    assert version_of(television.held) == 1 and television.files() == ["the.bundle"]
    assert television.update().outcome is Outcome.INSTALLED


def test_two_processes_at_once_and_a_damaged_state(television):
    television.publish(2)
    with HeldBundle(television.held).locked() as mine:
        assert mine and television.update().outcome is Outcome.BUSY
    assert television.update().outcome is Outcome.INSTALLED
    state = television.held.with_name("the.bundle.updates")
    sound = state.read_bytes()
    for damaged in (b"", b"[]", b"{", b'{"sequence": -1}', b"\xff" * 40, sound.replace(b"[]", b'["x"]'), sound[:-2]):
        state.write_bytes(damaged)
        assert HeldBundle(television.held).state.sequence == 0
        assert television.update().outcome is Outcome.CURRENT
    os.unlink(state)
    assert television.update().outcome is Outcome.CURRENT and version_of(television.held) == 2


def test_a_folder_that_cannot_be_written_to(television):
    """As of a bundle that lies in the firmware; here something else has the name of the lock."""
    television.publish(2)
    television.held.with_name("the.bundle.lock").mkdir()
    done = television.update()
    assert done.outcome is Outcome.FAILED and "writing" in done.detail and version_of(television.held) == 1
    assert television.server.asked_for() == []
