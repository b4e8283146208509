"""A real shard for one measurement: its folder with a signed bundle and collective, and `python -m cloud` on it."""

from __future__ import annotations

import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from bench.machine import ROOT
from bench.shard_load.nursery import Nursery, end_with_parent
from bench.shard_load.processes import Memory, memory, of_session, processor_seconds
from cloud import collective as collectives
from cloud.collective import Collective, Trending
from cloud.lmdb_storage import LmdbStorage
from omega_edge.catalog import Catalog
from omega_edge.manifest import Manifest
from omega_edge.protocol import DAY_MS, TitleReference, ViewingPattern
from omega_edge.signing import SigningKey, seal

DEVICE_KEY = bytes(range(32))
"""Of the simulated televisions. It opens nothing else."""
SIGNING_KEY = SigningKey(bytes(range(32, 64)))
SIGNING_KEY_FILE, FEDERATION_SECRET_FILE = "signing.key", "federation.secret"
"""With them the shard counts and publishes each minute, as one in a federation does."""
START_SECONDS, STOP_SECONDS = 60.0, 40.0
COLLECTIVE_VERSION = 70_000
PATTERNS, REFERENCES = 100, 4


class ShardFailed(Exception):
    """A shard that did not start."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the shards of a run give out: the bundle that numbers titles, and a full collective."""

    bundle: Path
    catalog: Catalog
    patterns_frame: bytes

    @classmethod
    def from_bundle(cls, bundle: Path, seed: int) -> Self:
        """With trends of random titles, and as many patterns as a response holds."""
        catalog, chosen = Catalog.open(bundle), random.Random(seed)
        votes = np.random.default_rng(seed).integers(50, 5_000, catalog.count).astype(np.float64)
        patterns = tuple(_pattern(number, catalog, chosen) for number in range(1, PATTERNS + 1))
        frame, _ = collectives.compose(COLLECTIVE_VERSION, catalog, [Trending(48, votes)], patterns)
        return cls(bundle, catalog, frame)

    def put_into(self, folder: Path) -> None:
        """Write the bundle, its manifest and the collective where a shard's BUNDLE_DIR and PUBLICATION_DIR point."""
        lineage, now_ms = self.catalog.lineage, time.time_ns() // 1_000_000
        bundles = folder / "bundles" / lineage
        if bundles.exists():
            return
        bundles.mkdir(parents=True)
        (folder / "publication").mkdir()
        shutil.copyfile(self.bundle, bundles / "served.bundle")
        digest = hashlib.sha256(self.bundle.read_bytes()).hexdigest()
        size = self.bundle.stat().st_size
        manifest = Manifest(lineage, 1, 1, now_ms, "served.bundle", size, digest)
        (bundles / "manifest").write_bytes(seal("manifest", manifest.to_bytes(), SIGNING_KEY))
        told = Collective(COLLECTIVE_VERSION, lineage, 1, self.patterns_frame, now_ms)
        for name, key in ((SIGNING_KEY_FILE, bytes(SIGNING_KEY)), (FEDERATION_SECRET_FILE, DEVICE_KEY)):
            (folder / name).write_text(key.hex() + "\n", encoding="ascii")
        sealed = seal("collective", collectives.encode(told), SIGNING_KEY)
        (folder / "publication" / "collective").write_bytes(sealed)


def _pattern(number: int, catalog: Catalog, chosen: random.Random) -> ViewingPattern:
    updated = time.time_ns() // 1_000_000 - chosen.randrange(30 * DAY_MS)
    rows = chosen.sample(range(catalog.count), REFERENCES)
    references = tuple(TitleReference(catalog.content_id(row), chosen.uniform(0.1, 1)) for row in rows)
    created = updated - chosen.randrange(60 * DAY_MS)
    return ViewingPattern(
        number, chosen.uniform(0.7, 1), chosen.randrange(3, 200), created, updated, references=references
    )


def open_store(folder: Path) -> LmdbStorage:
    """The store of an ended shard in this folder."""
    return LmdbStorage(folder / "data", clock=lambda: time.time_ns() // 1_000_000)


class Shard:
    """A running shard: use it as a context, at whose end no process of it is left. Its store stays in the folder."""

    def __init__(
        self,
        folder: Path,
        served: Served,
        workers: int = 1,
        nursery: Nursery | None = None,
        max_syncs_per_second: int | None = None,
    ) -> None:
        """Start it, by its command or from the nursery. max_syncs_per_second: of each worker, None for the shard's default.

        ShardFailed where it does not come to listen.
        """
        served.put_into(folder)
        settings = {
            "DATABASE_URL": f"lmdb://{folder.resolve()}/data",
            "DEVICE_KEY": DEVICE_KEY.hex(),
            "PORT": "0",
            "WORKERS": str(workers),
            "BUNDLE_DIR": str(folder / "bundles"),
            "PUBLICATION_DIR": str(folder / "publication"),
            "SIGNING_KEY_FILE": str(folder / SIGNING_KEY_FILE),
            "FEDERATION_SECRET_FILE": str(folder / FEDERATION_SECRET_FILE),
            "LOG_LEVEL": "WARNING",
            "PYTHONPATH": str(ROOT),
        }
        if max_syncs_per_second is not None:
            settings["MAX_SYNCS_PER_SECOND"] = str(max_syncs_per_second)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._command: subprocess.Popen[bytes] | None = None
        if nursery is None:
            self._command = subprocess.Popen(
                [sys.executable, "-m", "cloud"],
                cwd=ROOT,
                env=inherited | settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing here has threads
            )
            self._session, self._output = self._command.pid, self._command.stdout
        else:
            self._session, self._output = nursery.start(inherited | settings)
        try:
            self.port = self._listening_port()
        except BaseException:
            self.kill()
            raise

    def _listening_port(self) -> int:
        """The port that the shard says it listens on."""
        output, said = self._output, b""
        deadline = time.monotonic() + START_SECONDS
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            found = os.read(output.fileno(), 1_024) if ready else b""
            if not found:
                raise ShardFailed(f"expected the shard to listen within {START_SECONDS:g} s; its own words are above")
            said += found
        return int(said.decode().rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def process_ids(self) -> list[int]:
        """Of all its processes."""
        return of_session(self._session)

    def processor_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return processor_seconds(self.process_ids())

    def memory(self) -> Memory:
        """Of all its processes."""
        return memory(self.process_ids())

    def stop(self) -> str | None:
        """End it as an operator does. What was wrong with that, None if nothing."""
        os.kill(self._session, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while left := self.process_ids():
            if time.monotonic() > deadline:
                return f"{len(left)} processes of the shard did not end within {STOP_SECONDS:g} s of SIGTERM"
            time.sleep(0.01)
        code = self._command.wait() if self._command is not None else 0
        return f"the shard ended with code {code}" if code else None

    def kill(self) -> None:
        """End all its processes at once, by SIGKILL. Killing twice is harmless."""
        while process_ids := self.process_ids():
            for process_id in process_ids:
                try:
                    os.kill(process_id, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.002)
        if self._command is not None:
            self._command.wait()
        self._output.close()
