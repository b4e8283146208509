"""Tries the image of a shard, as an operator would run it: `python -m toolchain.image_trial --bundle DIR --catalog FILE`.

runc starts the unpacked image (an OCI bundle) on this machine's loopback: not as root, without a capability, its root
read-only, with one volume and a key's file. A real television syncs with it; it is killed in the midst and started again
on the same volume, where nothing acknowledged may be missing; at the end SIGTERM lets it answer what it has in hand.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omega_edge import wire
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.manifest import KIND, Manifest
from omega_edge.protocol import SyncRequest, ViewContext, ViewingEvent
from omega_edge.signing import create_signing_key, public_key, seal
from omega_edge.sync import DONE, SyncClient, SyncConfig, SyncReport

USER = 10001
"""As Containerfile has it."""
WAIT_SECONDS = 60.0
SYNCS_BEFORE_THE_KILL = 8
HOST = "127.0.0.1"
PROBE = (
    "import errno, os, pathlib\n"
    "assert (os.getuid(), os.getgid()) == (10001, 10001), os.getuid()\n"
    "assert 'CapEff:\\t0000000000000000' in pathlib.Path('/proc/self/status').read_text()\n"
    "for place in ('/opt/omega/x', '/tmp/x', '/etc/x'):\n"
    "    try:\n"
    "        open(place, 'w')\n"
    "    except OSError as fault:\n"
    "        assert fault.errno in (errno.EROFS, errno.EACCES), fault\n"
    "    else:\n"
    "        raise SystemExit(place + ' can be written to')\n"
    "assert not os.path.exists('/bin/sh'), 'there is a shell'\n"
)
"""What is asked inside a container."""


class TrialFailed(Exception):
    """The container did not do what it should; the text says what was expected and what came."""


def until(what: str, done: Callable[[], bool]) -> None:
    """Return when it is done; TrialFailed after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise TrialFailed(f"expected within {WAIT_SECONDS:.0f} s: {what}")
        time.sleep(0.05)


def expect(what: str, expected: object, got: object) -> None:
    """TrialFailed unless both are equal."""
    if expected != got:
        raise TrialFailed(f"{what}: expected {expected!r}, got {got!r}")


@dataclass(slots=True)
class Container:
    """A shard in a container. folder: of this trial, with volume/ and key; bundle: the unpacked image."""

    bundle: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Of the container, for runc."""
        return f"omega-edge-trial-{os.getpid()}"

    def runc(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of runc."""
        command = [*self._runc, *words]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )

    @property
    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self.folder / "runc")]

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._runc, "run", "--bundle", str(self.bundle), self.name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until("the container answers that it is ready", self._ready)

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise TrialFailed(f"expected the container to go on, it ended with code {self.process.returncode}")
        with contextlib.suppress(OSError):
            return self.get("health/ready")[0] == 200
        return False

    def get(self, path: str) -> tuple[int, object]:
        """Status and JSON of GET /api/v1/PATH."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", f"/api/v1/{path}")
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a second container of the same image, rights, volume and network, to its end.

        Not by `runc exec`: where runc itself runs in a chroot, that one enters this machine's root.
        """
        config = json.loads((self.bundle / "config.json").read_text())
        config["process"]["args"] = list(command)
        config["root"]["path"] = str(self.bundle / "rootfs")
        asked = self.folder / "asked"
        asked.mkdir(exist_ok=True)
        (asked / "config.json").write_text(json.dumps(config))
        done = self.runc("run", "--bundle", str(asked), f"{self.name}-asked")
        self.runc("delete", "--force", f"{self.name}-asked")
        return done

    def signal(self, number: int) -> None:
        """Send a signal to its first process."""
        self.runc("kill", self.name, str(int(number)))

    def ended(self) -> int:
        """Wait for its end; the exit code, 128 + number after a signal."""
        code = self.process.wait(WAIT_SECONDS)
        self.runc("delete", "--force", self.name)
        return code

    def remove(self) -> None:
        """End it, whatever it does."""
        self.runc("delete", "--force", self.name)
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(WAIT_SECONDS)


def configure(bundle: Path, folder: Path, environment: dict[str, str]) -> None:
    """Change what umoci wrote beside the image: what an operator's engine would be told."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    process = config["process"]
    expect("the image's user", (USER, USER), (process["user"]["uid"], process["user"]["gid"]))
    process["terminal"] = False
    process["capabilities"] = {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")}
    process["noNewPrivileges"] = True
    names = {pair.partition("=")[0] for pair in process["env"]} - environment.keys()
    kept = [pair for pair in process["env"] if pair.partition("=")[0] in names]
    process["env"] = [*kept, *(f"{name}={value}" for name, value in environment.items())]
    config["root"]["readonly"] = True
    config["linux"]["namespaces"] = [space for space in config["linux"]["namespaces"] if space["type"] != "network"]
    options = {"type": "bind", "options": ["rbind", "rw", "nosuid", "nodev", "noexec"]}
    volumes = [options | {"destination": "/data", "source": str(folder / "volume")}]
    volumes.append({"destination": "/run/device-key", "source": str(folder / "device-key"), "type": "bind", "options": ["bind", "ro"]})
    replaced = {volume["destination"] for volume in volumes}  # by an earlier trial's too
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] not in replaced] + volumes
    path.write_text(json.dumps(config))


def lay_volume(folder: Path, catalog: Path) -> tuple[bytes, dict[str, str]]:
    """Make the volume with the signed catalogue, and the key's file; the key, and the container's environment."""
    key, bundles = secrets.token_bytes(32), folder / "volume" / "bundles"
    with Catalog.open(catalog) as opened:
        lineage, version, built_at = opened.lineage, opened.version, opened.built_at
    (bundles / lineage).mkdir(parents=True)
    content = catalog.read_bytes()
    (bundles / lineage / "first.bundle").write_bytes(content)
    manifest = Manifest(lineage, version, 1, built_at, "first.bundle", len(content), hashlib.sha256(content).hexdigest())
    signing_key = create_signing_key(folder / "signing-key")
    (bundles / lineage / "manifest").write_bytes(seal(KIND, manifest.to_bytes(), signing_key))
    (folder / "device-key").write_text(key.hex())
    for path in [folder / "device-key", folder / "volume", *(folder / "volume").rglob("*")]:
        os.chown(path, USER, USER)
    (folder / "device-key").chmod(0o400)
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    return key, {
        "SHARD_ID": "7", "REGION": "trial", "MAX_DEVICES": "10", "HOST": HOST, "PORT": str(port),
        "DATABASE_URL": "lmdb:///data/store", "DEVICE_KEY_FILE": "/run/device-key", "BUNDLE_DIR": "/data/bundles",
        "TRUSTED_KEYS": public_key(signing_key).hex(),
    }  # fmt: skip


@contextlib.contextmanager
def television(folder: Path, catalog: Path) -> Iterator[OmegaBrain]:
    """A television whose home shares the titles that it finishes."""
    config = BrainConfig(storage_path=folder / "home", catalog_path=catalog, sharing="titles", background_maintenance=False)
    brain = OmegaBrain.open(config)
    try:
        yield brain
    finally:
        brain.close()


def watch(brain: OmegaBrain, row: int) -> None:
    """A title of the catalogue is watched to its end."""
    title = brain.collective.titles.content_id(row)
    now_ms = time.time_ns() // 1_000_000
    brain.observe(ViewingEvent(title, f"Title {row}", 0.95, 5_400, now_ms - 60_000, ViewContext("evening", 2)))


def synced(brain: OmegaBrain, port: int) -> SyncReport:
    """One sync of the television, which has to be taken."""
    client = SyncClient(brain, SyncConfig(f"http://{HOST}:{port}/"))
    report = asyncio.run(client.sync_once())
    expect("the television's sync", DONE, report.outcome)
    return report


def drains(container: Container, brain: OmegaBrain) -> None:
    """SIGTERM while a request is under way: that one is answered, others are refused, and it ends well."""
    body = wire.encode_request(SyncRequest(global_version_seen=0), brain.collective.titles)
    with socket.create_connection((HOST, container.port), timeout=WAIT_SECONDS) as under_way:
        head = f"POST /api/v1/sync HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n"
        under_way.sendall(head.encode() + body[:3])
        container.get("health/live")  # after the request's beginning, which so has been read
        container.signal(signal.SIGTERM)
        until("a stopping container takes nothing new", lambda: not takes_requests(container))
        under_way.sendall(body[3:])
        answer = http.client.HTTPResponse(under_way)
        answer.begin()
        expect("the answer to the request under way", 200, answer.status)
    expect("the exit code after SIGTERM", 0, container.ended())


def takes_requests(container: Container) -> bool:
    """Whether a new connection is ready to be synced with."""
    try:
        return container.get("health/ready")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def check_inside(container: Container) -> None:
    """The image's own health check, and what the container may do."""
    health = container.ask("python3.11", "-m", "cloud", "health")
    expect(f"python -m cloud health ({health.stdout}{health.stderr})", 0, health.returncode)
    probe = container.ask("python3.11", "-c", PROBE)
    expect(f"the container's rights ({probe.stderr[-300:]})", 0, probe.returncode)


def try_container(container: Container, catalog: Path, key: bytes, say: Callable[[str], None]) -> None:
    """The whole trial; TrialFailed at the first thing that is not as it should be."""
    container.start()
    check_inside(container)
    say("started: not root, no capability, nothing but /data can be written to")
    with television(container.folder, catalog) as brain:
        for row in range(SYNCS_BEFORE_THE_KILL):
            watch(brain, row)
            expect("titles acknowledged", 1, synced(brain, container.port).titles)
        container.signal(signal.SIGKILL)
        expect("the exit code after SIGKILL", 128 + signal.SIGKILL, container.ended())
        container.start()
        stats = container.get("stats")[1]
        counted = {name: stats[name] for name in ("shard_id", "region", "devices", "title_pages", "damaged_records")}
        wanted = {"shard_id": 7, "region": "trial", "devices": 1, "title_pages": SYNCS_BEFORE_THE_KILL, "damaged_records": 0}
        expect("stats after kill -9 and a start on the same volume", wanted, counted)
        say(f"killed and started again: all {SYNCS_BEFORE_THE_KILL} acknowledged syncs are there")
        watch(brain, SYNCS_BEFORE_THE_KILL)
        # A shard that had forgotten would want all of them again.
        expect("titles acknowledged after the kill", 1, synced(brain, container.port).titles)
        drains(container, brain)
        say("SIGTERM: what was under way was answered, the exit code is 0")
        logged = (container.folder / "log").read_text(errors="replace")
        if key.hex() in logged or brain.collective.titles.content_id(0) in logged.split():
            raise TrialFailed("expected neither key nor titles in what the container logged")


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well; 1 if not, with the end of the container's log on standard error."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.image_trial", description=__doc__.partition(":")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="the unpacked image, an OCI bundle; its config.json is changed")
    parser.add_argument("--catalog", type=Path, required=True, help="catalogue that television and shard have")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="omega-edge-image-"))
    try:
        # The container's user reads its volume through it; the key's file has a mode of its own.
        folder.chmod(0o711)
        key, environment = lay_volume(folder, options.catalog)
        configure(options.bundle, folder, environment)
        container = Container(options.bundle.resolve(), folder, int(environment["PORT"]))
        try:
            try_container(container, options.catalog, key, lambda text: print(f"  {text}", file=sys.stderr, flush=True))
        except (TrialFailed, subprocess.TimeoutExpired, OSError, http.client.HTTPException) as fault:
            print(f"omega-edge: the image failed: {fault}\nThe end of what the container said:", file=sys.stderr)
            print("\n".join((folder / "log").read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
            return 1
        finally:
            container.remove()
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
