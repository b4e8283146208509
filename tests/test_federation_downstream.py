"""What comes down to regions and shards: newer collectives and bundles are placed, older, changed and foreign ones refused."""

from __future__ import annotations

import pytest

from cloud.collective import Collective
from cloud.collective import encode as encode_collective
from cloud.downstream import Downstream, read_collective
from cloud.publication import Entry, Publication, digest_of
from omega_edge.signing import seal
from tests.shard_processes import write_bundle
from tests.shards import KEY, NOON_MS, OTHER_KEY, SECRET, TRUSTED


@pytest.fixture
def above(tmp_path):
    """A hub's publication with a collective and a bundle, and who pulls from it."""
    folder = tmp_path / "hub"
    catalog = write_bundle(folder / "bundles", key=KEY)
    publication = Publication(folder, "hub", KEY, SECRET)
    below = Downstream(str(folder), TRUSTED, tmp_path / "below", tmp_path / "below" / "bundles")
    return catalog.lineage, publication, below


def publish(publication: Publication, lineage: str, version: int) -> None:
    made = Collective(version, lineage, 1, b"frame %d" % version, NOON_MS)
    manifest = (publication.folder / "bundles" / lineage / "manifest").read_bytes()
    entries = {
        "collective": publication.put("collective", "collective", version, encode_collective(made)),
        f"manifest.{lineage}": Entry("manifest", 1, digest_of(manifest)),
    }
    publication.commit(entries, NOON_MS + version)


def test_what_is_newer_is_placed(tmp_path, above):
    lineage, publication, below = above
    publish(publication, lineage, 5)
    assert below.pull() and not below.faults
    assert read_collective(tmp_path / "below", TRUSTED).version == 5
    for path in (publication.folder / "bundles" / lineage).iterdir():
        assert (tmp_path / "below" / "bundles" / lineage / path.name).read_bytes() == path.read_bytes()
    assert not below.pull()
    publish(publication, lineage, 6)
    assert below.pull() and read_collective(tmp_path / "below", TRUSTED).version == 6


def test_what_is_older_is_refused(tmp_path, above):
    lineage, publication, below = above
    publish(publication, lineage, 6)
    below.pull()
    publish(publication, lineage, 5)
    assert not below.pull() and "an old one" in below.faults["collective"]
    assert read_collective(tmp_path / "below", TRUSTED).version == 6


def test_an_older_manifest_is_refused(tmp_path, above):
    lineage, publication, below = above
    write_bundle(publication.folder / "bundles", version=2, sequence=2, key=KEY)
    publish(publication, lineage, 6)
    below.pull()
    write_bundle(publication.folder / "bundles", version=1, sequence=1, key=KEY)
    publish(publication, lineage, 7)
    below.pull()
    assert "an old one" in below.faults[f"manifest.{lineage}"]


def test_a_changed_bundle_is_refused_and_its_manifest_not_placed(tmp_path, above):
    lineage, publication, below = above
    publish(publication, lineage, 6)
    path = next((publication.folder / "bundles" / lineage).glob("*.omega"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    below.pull()
    assert "SHA-256" in below.faults[f"manifest.{lineage}"]
    assert not (tmp_path / "below" / "bundles" / lineage / "manifest").exists()


def test_an_untrusted_collective_is_refused(tmp_path, above):
    lineage, publication, below = above
    publish(publication, lineage, 6)
    made = Collective(9, lineage, 1, b"frame", NOON_MS)
    (publication.folder / "collective").write_bytes(seal("collective", encode_collective(made), OTHER_KEY))
    below.pull()
    assert "trusted keys" in below.faults["collective"]
    assert read_collective(tmp_path / "below", TRUSTED) is None


def test_files_of_bundles_before_the_last_go(tmp_path, above):
    lineage, publication, below = above
    for version in (1, 2, 3):
        write_bundle(publication.folder / "bundles", version=version, sequence=version, key=KEY)
        publish(publication, lineage, version)
        below.pull()
    names = sorted(path.name for path in (tmp_path / "below" / "bundles" / lineage).iterdir())
    assert names == ["bundle-2.omega", "bundle-3.omega", "manifest"]
