"""The folder that bundles are published from: BUNDLES/LINEAGE/ with bundle files, deltas, and the signed manifest, written last.

A file that was published never changes, so downloads may be kept for ever; the manifest is replaced by rename and its
sequence only rises, even where the folder was lost: it is at least the minutes from 1970 to what the bundle was built from. One
run at a time publishes, and none a bundle that another has overtaken. A run that ended before the manifest leaves files that
nobody is told of, and the next one writes them anew. Bundles and deltas that no manifest of the last ones names are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud import collective
from cloud.collective import Collective
from cloud.next_bundle import NextBundle
from cloud.publication import write_file
from omega_edge import signing, wire
from omega_edge.bundle_delta import make_delta
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError
from omega_edge.manifest import KIND, MAX_MANIFEST_BYTES, DeltaFile, Manifest, read_manifest
from omega_edge.protocol import GlobalPatterns
from omega_edge.signing import SigningKey

MANIFEST = "manifest"
MINUTE_MS = 60_000
DELTAS_FROM = 3
"""Bundles before the newest one from which there is a delta."""
_BUNDLE = re.compile(r"v?([0-9]{1,16})\.bundle")


def file_of(version: int) -> str:
    """Name of the bundle file of a version."""
    return f"v{version}.bundle"


@dataclass(frozen=True, slots=True)
class BundleFolder:
    """Bundles of one lineage. folder: BUNDLES/LINEAGE; trusted: keys that signed earlier manifests, the present one among
    them."""

    folder: Path
    key: SigningKey
    trusted: Collection[bytes] = ()

    def manifest(self) -> Manifest | None:
        """The manifest that stands; None where there is none. Raises SignatureError or CatalogError for one that is not
        the operator's: who can write here is then somebody else too."""
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        keys = {signing.public_key(self.key), *self.trusted}
        return read_manifest(signing.unseal(path.read_bytes(), KIND, keys, MAX_MANIFEST_BYTES))

    def present(self) -> Path | None:
        """The file of the newest bundle that is out."""
        manifest = self.manifest()
        return None if manifest is None else self.folder / manifest.file

    def publish_first(self, path: Path) -> Manifest:
        """Publish a bundle that was made elsewhere, where none is out yet. Raises CatalogError where one is."""
        with self._alone():
            if self.manifest() is not None:
                raise CatalogError(f"{self.folder}: expected no bundle to be out, there is one; publish its successor")
            with Catalog.open(path) as catalog:
                version = catalog.version
            write_file(self.folder / file_of(version), path.read_bytes())
            return self._put_out(version)

    def publish(self, made: NextBundle) -> Manifest:
        """Write the next bundle, the deltas to it, and the manifest. Raises CatalogError where one of its version or a later one
        is out already: it goes on from another than the present bundle."""
        version = made.meta["version"]
        with self._alone():
            standing = self.manifest()
            if standing is not None and standing.version >= version:
                raise CatalogError(
                    f"{self.folder}: expected the successor of version {standing.version}, got version {version}; train again"
                )
            made.write(self.folder / file_of(version))
            return self._put_out(version)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the folder, which is made where it is missing, against other processes that would publish too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _put_out(self, version: int) -> Manifest:
        standing, file = self.manifest(), self.folder / file_of(version)
        files = self._bundles()
        older = sorted((one for one in files if one < version), reverse=True)[:DELTAS_FROM]
        with Catalog.open(file) as catalog:
            lineage, built_at = catalog.lineage, catalog.built_at
        manifest = Manifest(
            lineage=lineage,
            version=version,
            sequence=max(1 if standing is None else standing.sequence + 1, built_at // MINUTE_MS),
            built_at=built_at,
            file=file.name,
            size=file.stat().st_size,
            sha256=_digest(file),
            deltas=tuple(self._delta(one, files[one], version) for one in older),
        )
        write_file(self.folder / MANIFEST, signing.seal(KIND, manifest.to_bytes(), self.key))
        self._remove_all_but({version, *older}, {delta.file for delta in manifest.deltas})
        return manifest

    def _delta(self, older: int, base: Path, version: int) -> DeltaFile:
        target = self.folder / file_of(version)
        delta = make_delta(base, target)
        path = self.folder / f"v{older}-v{version}.delta"
        write_file(path, delta)
        return DeltaFile(older, _digest(base), path.name, len(delta), hashlib.sha256(delta).hexdigest())

    def _bundles(self) -> dict[int, Path]:
        """Files of bundles by version; whoever put the first one here may have left out the "v"."""
        return {
            int(found[1]): self.folder / name
            for name in sorted(os.listdir(self.folder))
            if (found := _BUNDLE.fullmatch(name))
        }

    def _remove_all_but(self, versions: set[int], deltas: set[str]) -> None:
        """The deltas of the manifest before stay one publication longer, for televisions that are fetching them; what a run that
        ended early left half written goes."""
        newest = max(versions)
        for path in self.folder.glob("*"):
            bundle = _BUNDLE.fullmatch(path.name)
            old_delta = path.suffix == ".delta" and path.name not in deltas and not path.stem.endswith(
                tuple(f"-v{version}" for version in versions if version != newest)
            )
            half_written = path.name.startswith(".") and path.suffix in (".new", ".tmp")
            if half_written or old_delta or (bundle and int(bundle[1]) not in versions):
                path.unlink()


def write_patterns(folder: Path, made: NextBundle, bundle: Path, key: SigningKey) -> None:
    """Put the cohorts' patterns into a publication as its object "patterns", for the hub to pass on; none where no list gains
    by them, so that no television hears them or spends bytes on them."""
    with Catalog.open(bundle) as catalog:
        similar = made.patterns.messages(catalog) if made.pattern_gate.ships else ()
        found = GlobalPatterns(catalog.version, similar, ())
        frame = wire.encode_global_patterns(found, catalog)
        told = Collective(catalog.version, catalog.lineage, catalog.version, frame, catalog.built_at)
    write_file(folder / "patterns", signing.seal("patterns", collective.encode(told), key))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
