"""`python -m cloud model` as operators run it: from a hub's publication to a signed bundle that a television takes as a delta."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cloud import collective, lists
from cloud.bundle_folder import BundleFolder, file_of
from cloud.next_bundle import NextBundle
from cloud.publication import FolderReader, Publication, opened
from omega_edge import bundle, signing, wire
from omega_edge.bundle_delta import apply_delta
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import SHAPES
from omega_edge.errors import CatalogError, SignatureError
from omega_edge.manifest import KIND
from omega_edge.ranking import PATTERNS
from omega_edge.updates import Outcome, UpdateClient
from tests.bundle_server import BundleServer
from tests.sharing_world import NOW_MS, TITLES, World, make_world
from tests.test_model_job import DAY_MS

SECRET = bytes(range(32))
LINEAGE = "0" * 16


@dataclass(frozen=True, slots=True)
class Operator:
    """Where an operator keeps things."""

    hub: Path
    seed: Path
    key_file: Path
    world: World

    @property
    def key(self) -> signing.SigningKey:
        return signing.read_signing_key(self.key_file)

    @property
    def bundles(self) -> Path:
        return self.hub / "bundles" / LINEAGE

    def run(self, *more: str, secret: str = SECRET.hex(), now_ms: int = NOW_MS) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "cloud", "model", "--hub", str(self.hub), "--seed", str(self.seed), "--json"]
        command += ["--signing-key", str(self.key_file), "--min-devices", "3", "--quick", "--now-ms", str(now_ms), *more]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FEDERATION")}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment | {"FEDERATION_SECRET": secret}
        )

    def first(self) -> None:
        done = self.run("--first", str(self.world.bundle))
        assert done.returncode == 0, done.stderr


def write_seed(folder: Path, world: World) -> None:
    """The seed's viewings as a data set in the form of MovieTweetings."""
    folder.mkdir()
    titles = [f"t{row:04d}::Title {row} (2000)::Drama" for row in range(TITLES)]
    (folder / "movies.dat").write_text("\n".join(titles) + "\n")
    events = world.seed
    lines = [
        f"{household}::t{title:04d}::{round(10 * watched)}::{at_ms // 1000}"
        for household, title, watched, at_ms in zip(
            events.household.tolist(), events.title.tolist(), events.watch_percentage.tolist(), events.timestamp.tolist()
        )
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")


def publish_lists(operator: Operator) -> None:
    """The sharers' lists as a shard publishes them, day by day."""
    found, publication = operator.world.lists, Publication(operator.hub, "hub", operator.key, SECRET)
    entries = {}
    for day in np.unique(found.finished_ms // DAY_MS).tolist():
        mine = found.finished_ms // DAY_MS == day
        segment = lists.segment_of(
            "shard-1", day, 0, 1, LINEAGE, 1, found.pseudonyms[found.home[mine]], found.row[mine], found.finished_ms[mine]
        )
        entries[segment.name] = publication.put(segment.name, "lists", 1, lists.encode(segment))
    publication.commit(entries, NOW_MS)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    world = make_world(tmp_path)
    write_seed(tmp_path / "seed", world)
    signing.create_signing_key(tmp_path / "key")
    operator = Operator(tmp_path / "hub", tmp_path / "seed", tmp_path / "key", world)
    publish_lists(operator)
    return operator


def test_from_lists_to_a_television(operator, tmp_path):
    operator.first()
    first = BundleFolder(operator.bundles, operator.key).manifest()
    television = tmp_path / "tv" / "the.bundle"
    television.parent.mkdir()
    television.write_bytes((operator.bundles / file_of(1)).read_bytes())

    done = operator.run()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["published"] and told["version"] == 2 and told["homes"] == len(operator.world.lists.pseudonyms)

    manifest = BundleFolder(operator.bundles, operator.key).manifest()
    assert (manifest.version, manifest.deltas[0].size) == (2, told["delta_bytes"]["1"])
    assert first.sequence < manifest.sequence
    assert manifest.deltas[0].size < manifest.size / 2
    with BundleServer(operator.hub / "bundles") as server:
        client = UpdateClient(server.url, (signing.public_key(operator.key),), television)
        updated = asyncio.run(client.update())
    assert updated.outcome is Outcome.INSTALLED and updated.by_delta
    assert television.read_bytes() == (operator.bundles / file_of(2)).read_bytes()

    patterns = collective.decode(
        opened((operator.hub / "patterns").read_bytes(), "patterns", (signing.public_key(operator.key),), SECRET)
    )
    with Catalog.open(television) as catalog:
        similar = wire.decode_global_patterns(patterns.frame, catalog).similar
        assert patterns.catalog_version == 2 and told["patterns"] == len(catalog.cohorts.cohort) > 0
        assert len(similar) == (told["patterns"] if told["pattern_gate"]["ships"] else 0)
        assert bool(catalog.fusion.weights[:, PATTERNS].any()) == told["pattern_gate"]["ships"]

    before = sorted((path.name, path.read_bytes()) for path in operator.bundles.iterdir())
    again = operator.run()
    assert again.returncode == 3 and not json.loads(again.stdout)["published"]
    assert sorted((path.name, path.read_bytes()) for path in operator.bundles.iterdir()) == before


def test_what_is_wrong_is_an_error_and_publishes_nothing(operator, tmp_path):
    done = operator.run()
    assert done.returncode == 1 and "--lineage" in done.stderr
    operator.first()
    again = operator.run("--first", str(operator.world.bundle), secret="ff" * 32)
    assert again.returncode == 1 and "secret" in again.stderr.lower()
    no_data = operator.run("--seed", str(tmp_path / "nowhere"))
    assert no_data.returncode == 1 and "nowhere" in no_data.stderr
    signing.create_signing_key(tmp_path / "other")
    foreign = operator.run("--signing-key", str(tmp_path / "other"))
    assert foreign.returncode == 1 and "trusted" in foreign.stderr
    assert operator.run("--min-devices", "1").returncode == 1
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "movies.dat").write_text("x0001::Another (2000)::Drama\n")
    (tmp_path / "foreign" / "ratings.dat").write_text("1::x0001::8::1300000000\n")
    other_titles = operator.run("--seed", str(tmp_path / "foreign"))
    assert other_titles.returncode == 1 and "expected a data set of the bundle's titles" in other_titles.stderr
    assert operator.run("--unknown").returncode == 2
    elsewhere = operator.run("--hub", "http://127.0.0.1:1/api/v1/federation/")
    assert elsewhere.returncode == 1 and "--bundles" in elsewhere.stderr
    assert BundleFolder(operator.bundles, operator.key).manifest().version == 1
    assert FolderReader(operator.hub).read("patterns", 1 << 20) is None


def test_deltas_from_the_last_three_bundles_and_no_older_files(operator, tmp_path):
    folder = BundleFolder(operator.bundles, operator.key)
    folder.publish_first(operator.world.bundle)
    with pytest.raises(CatalogError, match="expected no bundle to be out"):
        folder.publish_first(operator.world.bundle)
    sections, _damaged = bundle.read(operator.world.bundle, frozenset(SHAPES))
    with Catalog.open(operator.world.bundle) as catalog:
        gate, meta = None, catalog.meta
    kept = {1: operator.world.bundle.read_bytes()}
    sequence = folder.manifest().sequence
    (operator.bundles / ".v2.bundle.77.tmp").write_bytes(b"half written by a process that ended")
    for version in range(2, 7):
        changed = {name: array for name, array in sections.items() if name != "meta"}
        changed["popularity"] = np.roll(changed["popularity"], version)
        manifest = folder.publish(NextBundle(True, gate, gate, changed, meta | {"version": version}))
        kept[version] = (operator.bundles / manifest.file).read_bytes()
        assert manifest.sequence == sequence + version - 1
        assert [delta.from_version for delta in manifest.deltas] == list(range(version - 1, max(version - 4, 0), -1))
        for delta in manifest.deltas:
            (tmp_path / "base").write_bytes(kept[delta.from_version])
            apply_delta(tmp_path / "base", (operator.bundles / delta.file).read_bytes(), tmp_path / "made")
            assert (tmp_path / "made").read_bytes() == kept[version]
    names = sorted(path.name for path in operator.bundles.iterdir())
    assert [name for name in names if name.endswith(".bundle")] == [f"v{version}.bundle" for version in (3, 4, 5, 6)]
    assert {name for name in names if name.endswith("-v6.delta")} == {f"v{version}-v6.delta" for version in (3, 4, 5)}
    assert not [name for name in names if name.endswith("-v2.delta") or name.startswith(".")]
    (operator.bundles / "manifest").write_bytes(signing.seal(KIND, b"{}", signing.SigningKey.generate()))
    with pytest.raises(SignatureError):
        folder.manifest()


def changed_bundle(world: World, version: int, built_at: int, shift: int) -> NextBundle:
    """The world's bundle as a later one, its popularity moved by so many rows."""
    sections, _damaged = bundle.read(world.bundle, frozenset(SHAPES))
    with Catalog.open(world.bundle) as catalog:
        meta = catalog.meta | {"version": version, "built_at": built_at}
    changed = {name: array for name, array in sections.items() if name != "meta"}
    changed["popularity"] = np.roll(changed["popularity"], shift)
    return NextBundle(True, None, None, changed, meta)


def test_what_another_run_has_overtaken_is_not_published(tmp_path):
    """Two runs went on from the same bundle; the file that the first published stays as it is."""
    world, key = make_world(tmp_path), signing.SigningKey.generate()
    folder = BundleFolder(tmp_path / "bundles", key)
    folder.publish_first(world.bundle)
    before = folder.publish(changed_bundle(world, 2, NOW_MS, 1))
    with pytest.raises(CatalogError, match="expected the successor of version 2, got version 2"):
        folder.publish(changed_bundle(world, 2, NOW_MS, 2))
    assert folder.manifest() == before
    assert hashlib.sha256((tmp_path / "bundles" / before.file).read_bytes()).hexdigest() == before.sha256


def test_one_run_at_a_time_publishes(tmp_path):
    world, key = make_world(tmp_path), signing.SigningKey.generate()
    BundleFolder(tmp_path / "bundles", key).publish_first(world.bundle)
    made = [changed_bundle(world, 2, NOW_MS, shift) for shift in (1, 2, 3, 4)]
    outcomes = []

    def run(one: NextBundle) -> None:
        try:
            outcomes.append(BundleFolder(tmp_path / "bundles", key).publish(one).sha256)
        except CatalogError as fault:
            assert "train again" in str(fault)
            outcomes.append("")

    runs = [threading.Thread(target=run, args=(one,)) for one in made]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    manifest = BundleFolder(tmp_path / "bundles", key).manifest()
    assert sorted(outcomes) == ["", "", "", manifest.sha256]
    assert hashlib.sha256((tmp_path / "bundles" / manifest.file).read_bytes()).hexdigest() == manifest.sha256


def test_televisions_go_on_where_the_folder_was_lost(tmp_path):
    """The operator begins anew with the newest bundle: no television takes its manifest for an old one."""
    world, key = make_world(tmp_path), signing.SigningKey.generate()
    folder = BundleFolder(tmp_path / "bundles", key)
    folder.publish_first(world.bundle)
    last = [folder.publish(changed_bundle(world, version, NOW_MS + version * DAY_MS, version)) for version in (2, 3)][-1]
    shutil.copyfile(tmp_path / "bundles" / last.file, tmp_path / "saved")
    shutil.rmtree(tmp_path / "bundles")
    assert folder.publish_first(tmp_path / "saved").sequence >= last.sequence
    assert folder.publish(changed_bundle(world, 4, NOW_MS + 4 * DAY_MS, 4)).sequence > last.sequence
