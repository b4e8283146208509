"""Shards, hub and model job of one level: their folders, keys and processes, and what they do at a midnight."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.loop import confined
from bench.loop.clock import SharedClock
from bench.loop.cloud_processes import Hub, ShardCounting, ShardServer
from bench.loop.processes import ProcessFailed, Told, tell_all
from bench.machine import ROOT
from cloud.bundle_folder import BundleFolder
from cloud.model_command import NOT_PUBLISHED, THREAD_VARIABLES
from cloud.publication import write_file
from omega_edge import signing
from omega_edge.catalog import Catalog
from omega_edge.signing import SigningKey

SHARDS = 2
MIN_DEVICES = 2
"""Distinct devices without which nothing is told: the least that the federation takes. The product's 50 is for shards of
100,000 televisions; a fleet of a few hundred homes is a scale model."""
MODEL_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What the operator holds. trusted: public keys of shards, hub and model job."""

    folder: Path
    device_key: str
    federation_secret: str
    trusted: tuple[bytes, ...]

    @classmethod
    def make(cls, folder: Path, names: tuple[str, ...]) -> Keys:
        """New ones, a signing key for each name."""
        folder.mkdir(parents=True)
        trusted = tuple(signing.public_key(signing.create_signing_key(folder / name)) for name in names)
        return cls(folder, secrets.token_hex(32), secrets.token_hex(32), trusted)

    @property
    def trusted_text(self) -> str:
        """As the variable TRUSTED_KEYS."""
        return ",".join(key.hex() for key in self.trusted)


def place_first_bundle(bundles: Path, bundle: Path, keys: Keys) -> Path:
    """Put a bundle and its signed manifest into a folder of bundles, as the operator does once; the lineage's folder."""
    with Catalog.open(bundle) as catalog:
        folder = bundles / catalog.lineage
    BundleFolder(folder, signing.read_signing_key(keys.folder / "model")).publish_first(bundle)
    return folder


@dataclass(slots=True)
class CloudSide:
    """The cloud of one level. seed: folder of the operator's data set. bundles: the lineage's folder at the hub. faults: what went
    wrong in federation; model_seconds: of each run of the model job; published: bundles that passed its gate."""

    folder: Path
    keys: Keys
    clock: SharedClock
    clock_path: Path
    seed: Path
    bundles: Path
    say: Callable[[str], None]
    servers: list[Told] = field(default_factory=list)
    countings: list[Told] = field(default_factory=list)
    hub: Told | None = None
    ports: tuple[int, ...] = ()
    faults: list[str] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)
    published: int = 0

    @classmethod
    def start(
        cls, folder: Path, bundle: Path, seed: Path, begin_ms: int, keys: Keys, say: Callable[[str], None],
        more_sources: tuple[Path, ...] = (),
    ) -> CloudSide:
        """Start everything, with the seed's bundle in place everywhere."""
        clock_path = folder / "clock"
        clock = SharedClock.make(clock_path, begin_ms)
        bundles = place_first_bundle(folder / "hub" / "bundles", bundle, keys)
        write_file(folder / "federation-secret", keys.federation_secret.encode("ascii"))
        made = cls(folder, keys, clock, clock_path, seed, bundles, say)
        try:
            made._start_processes(bundle, more_sources)
        except BaseException:
            made.stop()
            raise
        return made

    def _start_processes(self, bundle: Path, more_sources: tuple[Path, ...]) -> None:
        for number in range(1, SHARDS + 1):
            place_first_bundle(self._shard(number) / "bundles", bundle, self.keys)
            environment = self._shard_environment(number)
            self.servers.append(Told(ShardServer, environment, self.clock_path))
        self.ports = tuple(tell_all(self.servers, "listen"))
        for number in range(1, SHARDS + 1):
            self.countings.append(Told(ShardCounting, self._shard_environment(number), self.clock_path))
        sources = [f"http://127.0.0.1:{port}/api/v1/federation/" for port in self.ports]
        self.hub = Told(Hub, self._hub_environment([*sources, *map(str, more_sources)]), self.clock_path)
        self.federate()

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number}"

    def _shard_environment(self, number: int) -> dict[str, str]:
        folder = self._shard(number)
        (folder / "store").mkdir(parents=True, exist_ok=True)
        return {
            "DATABASE_URL": f"lmdb://{folder / 'store'}",
            "DEVICE_KEY": self.keys.device_key,
            "SHARD_ID": str(number),
            "PUBLICATION_DIR": str(folder / "publication"),
            "BUNDLE_DIR": str(folder / "bundles"),
            "SIGNING_KEY_FILE": str(self.keys.folder / f"shard-{number}"),
            "TRUSTED_KEYS": self.keys.trusted_text,
            "FEDERATION_URL": str(self.folder / "hub"),
            "FEDERATION_SECRET": self.keys.federation_secret,
            "LOG_LEVEL": "ERROR",
        }

    def _hub_environment(self, sources: list[str]) -> dict[str, str]:
        return {
            "ROLE": "hub",
            "SOURCES": ",".join(sources),
            "PUBLICATION_DIR": str(self.folder / "hub"),
            "BUNDLE_DIR": str(self.folder / "hub" / "bundles"),
            "SIGNING_KEY_FILE": str(self.keys.folder / "hub"),
            "TRUSTED_KEYS": self.keys.trusted_text,
            "FEDERATION_SECRET": self.keys.federation_secret,
            "MIN_DEVICES": str(MIN_DEVICES),
            "TRENDS_SETTLE_SECONDS": "0",
            "LOG_LEVEL": "ERROR",
        }

    def federate(self) -> dict[str, object]:
        """Shards count, the hub sums and tells, shards pull; the hub's stats. What was at fault is noted."""
        for faults in tell_all(self.countings, "step"):
            # Before the hub's first pass there is nothing to pull yet.
            self.faults += [f"shard: {name}: {fault}" for name, fault in faults.items() if "none yet" not in fault]
        stats = self.hub.tell("run_once")
        for source in stats["sources"]:
            self.faults += [f"hub: {name}: {fault}" for name, fault in source["faults"].items() if "none yet" not in fault]
        self.faults += [f"hub: {name}: {fault}" for name, fault in stats["faults"].items()]
        for faults in tell_all(self.countings, "step"):
            self.faults += [f"shard: {name}: {fault}" for name, fault in faults.items()]
        tell_all(self.servers, "refresh")
        return stats

    def bundle_version(self) -> int:
        """Of the newest bundle at the hub."""
        return BundleFolder(self.bundles, self.model_key).manifest().version

    @property
    def model_key(self) -> SigningKey:
        """The key that signs bundles."""
        return signing.read_signing_key(self.keys.folder / "model")

    def train(self) -> bool:
        """Run `python -m cloud model`, which sees the hub's folder, the seed and nothing else; whether it published."""
        before, began = self.bundle_version(), time.monotonic()
        hub, temporary = self.folder / "hub", self.folder / "model-tmp"
        temporary.mkdir(exist_ok=True)
        ended = subprocess.run(
            model_command(hub, self.seed, self.keys.folder / "model", self.clock(), temporary), cwd=ROOT,
            env=model_environment(self.keys, temporary),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MODEL_SECONDS, check=False,
        )  # fmt: skip
        if ended.returncode not in (0, NOT_PUBLISHED):
            raise ProcessFailed(f"the model job ended with {ended.returncode}: {ended.stderr[-2000:]}")
        return self.trained(before, began, f"model job: {ended.stdout.strip().splitlines()[-1][:160]}")

    def trained(self, version_before: int, began: float, words: str) -> bool:
        """Note a run of the model job, or of what stands in its place, that began at a monotonic moment; whether it published."""
        self.model_seconds.append(time.monotonic() - began)
        published = self.bundle_version() > version_before
        self.published += published
        self.say(f"{words} ({self.model_seconds[-1]:.0f} s)")
        return published

    def stop(self) -> None:
        """End all processes."""
        for process in (*self.servers, *self.countings, *([self.hub] if self.hub else [])):
            process.stop()
        self.clock.close()


def model_command(hub: Path, seed: Path, key: Path, now_ms: int, temporary: Path) -> list[str]:
    """The model job's command, confined to the code, the seed, its key and the hub's folder."""
    arguments = ["model", "--hub", str(hub), "--seed", str(seed), "--signing-key", str(key), "--now-ms", str(now_ms)]
    arguments += ["--min-devices", str(MIN_DEVICES), "--quick"]
    code = (ROOT / name for name in ("cloud", "omega_edge", "bench/__init__.py", "bench/loop/__init__.py", "bench/loop/confined.py"))
    return confined.command("cloud", arguments, read=(*code, seed, key), write=(hub, temporary))


def model_environment(keys: Keys, temporary: Path) -> dict[str, str]:
    """The environment of that command. One thread from the start: a confined process that began anew would find no code."""
    return os.environ | dict.fromkeys(THREAD_VARIABLES, "1") | {
        "TMPDIR": str(temporary),
        "TRUSTED_KEYS": keys.trusted_text,
        "FEDERATION_SECRET": keys.federation_secret,
    }
