"""Updates of the bundle over real HTTP: what is fetched, what is refused, what survives cuts, kills and full disks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from omega_edge.bundle_delta import make_delta
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.errors import CatalogError, StoreBusyError
from omega_edge.manifest import KIND, DeltaFile, Manifest, read_manifest
from omega_edge.signing import SigningKey, public_key, seal
from omega_edge.sync_held_bundle import HeldBundle
from omega_edge.updates import Outcome, UpdateClient, Updated
from tests.bundle_server import MANIFEST, BundleServer
from tests.synthetic import sections_of

KEY = SigningKey(bytes(range(32)))
TRUSTED = (public_key(KEY),)
LINEAGE = sections_of(60)[1]["lineage"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def version_of(path: Path) -> int:
    with Catalog.open(path) as catalog:
        return catalog.version


class Television:
    """A folder with a bundle of version 1, and a publication of versions of the same lineage."""

    def __init__(self, folder: Path, server: BundleServer) -> None:
        self.server = server
        self.published = folder / "published" / LINEAGE
        self.published.mkdir(parents=True)
        self.held = folder / "tv" / "the.bundle"
        self.held.parent.mkdir()
        self.write(self.held, 1)

    def write(self, path: Path, version: int, change: Callable[[dict, dict], None] = lambda sections, meta: None) -> None:
        """A bundle of 75 titles, its popularity by its version."""
        sections, meta = sections_of(60)
        sections["popularity"] = np.roll(sections["popularity"], version)
        meta |= {"version": version}
        change(sections, meta)
        write_bundle(path, sections, meta)

    def publish(
        self, version: int, *, sequence: int | None = None, delta: bool = True, key: SigningKey = KEY, **changed: object
    ) -> Manifest:
        """Publish a bundle with a delta from the one held; changed: fields of the manifest."""
        file = self.published / f"v{version}.bundle"
        if not file.exists():
            self.write(file, version)
        listed = ()
        if delta:
            made = self.published / f"v{version}-from-held.delta"
            made.write_bytes(make_delta(self.held, file))
            listed = (DeltaFile(1, digest(self.held), made.name, made.stat().st_size, digest(made)),)
        manifest = Manifest(
            LINEAGE, version, version if sequence is None else sequence, 0, file.name, file.stat().st_size, digest(file), listed
        )
        manifest = replace(manifest, **changed)
        (self.published / MANIFEST).write_bytes(seal(KIND, manifest.to_bytes(), key))
        return manifest

    def client(self, url: str | None = None, **options: object) -> UpdateClient:
        return UpdateClient(url or self.server.url, TRUSTED, self.held, **options)

    def update(self, **options: object) -> Updated:
        return asyncio.run(self.client(**options).update())

    def files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.held.parent) if not name.endswith((".lock", ".updates")))


@pytest.fixture
def television(tmp_path: Path):
    with BundleServer(tmp_path / "published") as server:
        yield Television(tmp_path, server)


class TestWhatIsFetched:
    def test_a_delta_where_there_is_one_and_the_old_bundle_is_kept(self, television):
        manifest, before = television.publish(2), television.held.read_bytes()
        done = television.update()
        assert (done.outcome, done.version, done.by_delta) == (Outcome.INSTALLED, 2, True)
        assert television.held.read_bytes() == (television.published / manifest.file).read_bytes()
        assert television.server.asked_for() == [MANIFEST, manifest.deltas[0].file]
        assert done.downloaded_bytes < manifest.size / 4
        assert television.files() == ["the.bundle", "the.bundle.previous"]
        assert (television.held.parent / "the.bundle.previous").read_bytes() == before

    def test_the_whole_where_there_is_no_delta_or_a_larger_one(self, television):
        manifest = television.publish(2, delta=False)
        assert not television.update().by_delta and version_of(television.held) == 2
        manifest = television.publish(3)
        larger = replace(manifest.deltas[0], size=manifest.size)
        manifest = television.publish(3, deltas=(larger,))
        television.server.requests.clear()
        assert television.update().outcome is Outcome.INSTALLED
        assert television.server.asked_for() == [MANIFEST, manifest.file]

    def test_nothing_where_the_manifest_did_not_change(self, television):
        television.publish(2)
        television.update()
        television.server.requests.clear()
        done = television.update()
        assert done.outcome is Outcome.CURRENT and done.version == 2 and done.downloaded_bytes == 0
        assert television.server.asked_for() == [MANIFEST]

    def test_a_damaged_delta_is_replaced_by_the_whole(self, television):
        manifest = television.publish(2)
        delta = television.published / manifest.deltas[0].file
        content = bytearray(delta.read_bytes())
        content[-1] ^= 1
        delta.write_bytes(content)
        done = television.update()
        assert done.outcome is Outcome.INSTALLED and not done.by_delta and version_of(television.held) == 2
        assert television.files() == ["the.bundle", "the.bundle.previous"]

    def test_a_delta_of_another_length_or_none_is_replaced_by_the_whole(self, television):
        for version in (2, 3):
            television.write(television.held, 1)
            manifest = television.publish(version)
            delta = television.published / manifest.deltas[0].file
            delta.unlink() if version == 2 else delta.write_bytes(delta.read_bytes()[:-1])
            done = television.update()
            assert done.outcome is Outcome.INSTALLED and not done.by_delta and version_of(television.held) == version

    def test_a_signed_delta_that_makes_something_else_is_replaced_by_the_whole(self, television):
        television.publish(3)
        wrong = (television.published / "v3-from-held.delta").read_bytes()
        manifest = television.publish(2)
        delta = television.published / manifest.deltas[0].file
        delta.write_bytes(wrong)
        television.publish(2, delta=False, deltas=(replace(manifest.deltas[0], size=len(wrong), sha256=digest(delta)),))
        done = television.update()
        assert done.outcome is Outcome.INSTALLED and not done.by_delta and version_of(television.held) == 2

    def test_requests_name_the_lineage_and_nothing_of_the_television(self, television):
        """The same requests from two televisions whose replies differ only in what a server could mark them by."""
        television.publish(2)
        first = television.update()
        seen = [(path, {name: text for name, text in headers.items() if name != "Host"}) for path, headers in
                television.server.requests]
        assert first.outcome is Outcome.INSTALLED
        assert all(set(headers) <= {"Accept", "Accept-Encoding", "User-Agent", "Range"} for _path, headers in seen)
        television.update()
        tag = television.server.requests[-1][1]["If-None-Match"]
        assert tag == f'"{digest(television.published / MANIFEST)[:32]}"'

    def test_a_session_of_the_caller_s_is_used_and_left_open(self, television):
        television.publish(2)

        async def run() -> Updated:
            async with aiohttp.ClientSession() as session:
                done = await television.client().update(session)
                assert not session.closed
                return done

        assert asyncio.run(run()).outcome is Outcome.INSTALLED


class TestWhatIsRefused:
    def test_a_manifest_by_another_key_or_changed_or_of_another_kind(self, television):
        path = television.published / MANIFEST
        television.publish(2, key=SigningKey(bytes(32)))
        assert television.update().outcome is Outcome.REFUSED
        manifest = television.publish(2)
        changed = bytearray(path.read_bytes())
        changed[-3] ^= 1
        path.write_bytes(changed)
        assert television.update().outcome is Outcome.REFUSED
        path.write_bytes(seal("counts", manifest.to_bytes(), KEY))
        assert television.update().outcome is Outcome.REFUSED
        path.write_bytes(bytes(1 << 20))
        assert television.update().outcome is Outcome.REFUSED
        assert version_of(television.held) == 1 and set(television.server.asked_for()) == {MANIFEST}

    def test_a_foreign_lineage(self, television):
        television.publish(2, lineage="0123456789abcdef")
        done = television.update()
        assert done.outcome is Outcome.REFUSED and "lineage" in done.detail

    def test_a_sequence_or_version_below_one_seen_before(self, television):
        television.publish(5, sequence=9)
        assert television.update().version == 5
        for version, sequence in ((5, 8), (4, 10)):
            television.publish(version, sequence=sequence)
            done = television.update()
            assert done.outcome is Outcome.REFUSED and "older" in done.detail and version_of(television.held) == 5
        television.publish(6, sequence=10)
        assert television.update().version == 6

    def test_a_version_below_the_one_held_is_no_update(self, television):
        television.write(television.held, 7)
        television.publish(2)
        assert television.update().outcome is Outcome.CURRENT and version_of(television.held) == 7

    def test_a_bundle_that_is_too_large(self, television):
        television.publish(2)
        assert television.update(max_bundle_bytes=1000).outcome is Outcome.REFUSED

    def test_a_file_of_another_length_than_promised(self, television):
        manifest = television.publish(2, delta=False)
        file = television.published / manifest.file
        file.write_bytes(file.read_bytes() + b"more")
        assert television.update().outcome is Outcome.OFFLINE
        assert television.files() == ["the.bundle"]

    def test_a_whole_file_that_is_damaged_is_fetched_once_and_the_next_version_again(self, television):
        manifest = television.publish(2, delta=False)
        file = television.published / manifest.file
        sound = file.read_bytes()
        file.write_bytes(sound[:-1] + bytes((sound[-1] ^ 1,)))
        assert television.update().outcome is Outcome.FAILED
        television.server.requests.clear()
        assert television.update().outcome is Outcome.KNOWN_BAD
        assert television.server.asked_for() == [MANIFEST]
        television.publish(3)
        assert television.update().version == 3

    @pytest.mark.parametrize("field", ["version", "sequence", "size", "file", "sha256", "lineage", "built_at", "deltas"])
    def test_a_manifest_without_a_field_or_with_a_wrong_one(self, television, field):
        fields = json.loads(television.publish(2).to_bytes())
        for wrong in (None, -1, 1.5, True, "../../etc/passwd", [1], {"a": 1}, 1 << 60, [{}] * 17):
            with pytest.raises(CatalogError):
                read_manifest(json.dumps(fields | {field: wrong}).encode())

    def test_random_manifests(self):
        rng = np.random.default_rng(4)
        sound = Manifest(LINEAGE, 1, 1, 0, "a.bundle", 9, "0" * 64).to_bytes()
        for payload in (b"", b"[]", b"{}", b"\xff", b"[" * 5000, b"1" * 20_000, *(rng.bytes(40) for _ in range(50))):
            with pytest.raises(CatalogError):
                read_manifest(payload)
        assert read_manifest(sound).file == "a.bundle"


class TestTheSelfCheck:
    def refused(self, television: Television, change: Callable[[dict, dict], None], **options: object) -> Updated:
        television.write(television.published / "v2.bundle", 2, change)
        television.publish(2)
        done = television.update(**options)
        assert done.outcome is Outcome.FAILED and version_of(television.held) == 1
        assert television.files() == ["the.bundle"]
        television.server.requests.clear()
        assert television.update(**options).outcome is Outcome.KNOWN_BAD
        assert television.server.asked_for() == [MANIFEST]
        return done

    def test_titles_under_other_numbers(self, television):
        def renumbered(sections: dict, meta: dict) -> None:
            lengths = np.diff(sections["content_id_offsets"])
            assert len(set(lengths.tolist())) == 1
            blob = sections["content_id_bytes"].reshape(len(lengths), -1)
            sections["content_id_bytes"] = np.ascontiguousarray(blob[::-1]).reshape(-1)
            sections["content_id_order"] = sections["content_id_order"][::-1].copy()

        assert "titles of the old bundle" in self.refused(television, renumbered).detail

    def test_fewer_titles(self, television):
        def fewer(sections: dict, meta: dict) -> None:
            sections.clear()
            sections.update(sections_of(50)[0])

        self.refused(television, fewer)

    def test_another_version_than_the_manifest_says(self, television):
        assert "expected version 2" in self.refused(television, lambda sections, meta: meta.update(version=1)).detail

    def test_the_ranking_code_refuses_it(self, television):
        def check(catalog: Catalog) -> None:
            raise CatalogError(f"{catalog.version} is odd")

        assert "is odd" in self.refused(television, lambda sections, meta: None, check=check).detail

    def test_the_ranking_code_fails_over_it(self, television):
        self.refused(television, lambda sections, meta: None, check=lambda catalog: catalog.content_id(1 << 40))

    def test_the_ranking_code_ranks(self, television):
        from omega_edge.ranker import Ranker
        from omega_edge.ranking import History, Moment

        ranked = []

        def check(catalog: Catalog) -> None:
            allowed = np.full(-(-catalog.count // 8), 255, np.uint8)
            ranked.extend(Ranker(catalog).rank(History.empty(), Moment(slot=0), allowed, 5, 0.1).rows.tolist())

        television.publish(2)
        assert television.update(check=check).outcome is Outcome.INSTALLED and len(ranked) == 5


class TestTheFirstOpen:
    def test_it_ends_the_trial(self, television):
        television.publish(2)
        television.update()
        held = HeldBundle(television.held)
        assert held.state.trial.version == 2
        assert held.open_on_trial(version_of) == 2 and held.state.trial is None

    def test_where_none_is_on_trial_nothing_is_written(self, television):
        assert HeldBundle(television.held).open_on_trial(version_of) == 1
        assert os.listdir(television.held.parent) == ["the.bundle"]

    def test_a_bundle_that_cannot_be_opened_gives_its_place_back(self, television):
        television.publish(2)
        television.update()

        def opener(path: Path) -> int:
            if version_of(path) == 2:
                raise CatalogError("not with this program")
            return version_of(path)

        held = HeldBundle(television.held)
        assert held.open_on_trial(opener) == 1 and version_of(television.held) == 1
        assert held.state.bad == (2,) and television.files() == ["the.bundle"]
        assert television.update().outcome is Outcome.KNOWN_BAD
        television.publish(3)
        assert television.update().version == 3
        assert HeldBundle(television.held).open_on_trial(opener) == 3

    def test_another_s_fault_leaves_it_on_trial(self, television):
        television.publish(2)
        television.update()

        def busy(path: Path) -> None:
            raise StoreBusyError("another process holds the store")

        for _ in range(5):
            with pytest.raises(StoreBusyError):
                HeldBundle(television.held).open_on_trial(busy)
        assert HeldBundle(television.held).open_on_trial(version_of) == 2

    def test_processes_that_die_over_it_twice_bring_the_old_one_back(self, television):
        television.publish(2)
        television.update()
        script = (
            "import os, signal, sys; from pathlib import Path; from omega_edge.sync_held_bundle import HeldBundle\n"
            "HeldBundle(Path(sys.argv[1])).open_on_trial(lambda path: os.kill(os.getpid(), signal.SIGKILL))"
        )
        for _ in range(2):
            assert subprocess.run([sys.executable, "-c", script, str(television.held)], check=False).returncode == -9
        assert HeldBundle(television.held).open_on_trial(version_of) == 1
        assert television.update().outcome is Outcome.KNOWN_BAD

    def test_a_process_that_dies_in_the_self_check_twice_leaves_the_version_out(self, television):
        television.publish(2)
        script = (
            "import asyncio, os, signal, sys; from pathlib import Path; from omega_edge.updates import UpdateClient\n"
            "client = UpdateClient(sys.argv[1], (bytes.fromhex(sys.argv[2]),), Path(sys.argv[3]),"
            " lambda catalog: os.kill(os.getpid(), signal.SIGKILL))\n"
            "print(asyncio.run(client.update()).outcome.value)"
        )
        command = [sys.executable, "-c", script, television.server.url, TRUSTED[0].hex(), str(television.held)]
        ends = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(4)]
        assert [end.returncode for end in ends] == [-9, -9, 0, 0]
        assert [end.stdout.strip() for end in ends[2:]] == ["failed", "known bad"]
        assert version_of(television.held) == 1
