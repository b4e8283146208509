"""What comes down: the hub's collective and the bundles, pulled by regions from the hub and by shards from their region.

Everything is verified before it is placed, files before the manifest that names them, each by rename. What is placed never
goes back: a collective or manifest older than the one in place is refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from cloud import collective as collectives
from cloud.collective import Collective
from cloud.names import LINEAGE
from cloud.publication import (
    MAX_SMALL_BYTES,
    TIMEOUT_SECONDS,
    Entry,
    FolderReader,
    Index,
    SourceUnavailable,
    digest_of,
    read_index,
    reader_of,
    write_file,
)
from omega_edge import signing
from omega_edge.errors import CatalogError, ProtocolError, SignatureError
from omega_edge.manifest import Manifest, read_manifest

COLLECTIVE, MANIFEST = "collective", "manifest"
BUNDLE_TIMEOUT_SECONDS = 300.0
"""For one file of a bundle, which has megabytes."""


def read_collective(folder: Path, trusted: Collection[bytes], kind: str = COLLECTIVE) -> Collective | None:
    """The object in a folder; None where there is none. Raises SignatureError, ProtocolError, SourceUnavailable."""
    data = FolderReader(folder).read(kind, MAX_SMALL_BYTES)
    return None if data is None else collectives.decode(signing.unseal(data, kind, trusted, MAX_SMALL_BYTES))


def read_placed_manifest(folder: Path, trusted: Collection[bytes]) -> tuple[bytes, Manifest] | None:
    """(the whole object, the manifest) in a lineage's folder; None where there is none. Raises SignatureError and
    CatalogError."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    return data, read_manifest(signing.unseal(data, MANIFEST, trusted, MAX_SMALL_BYTES))


def manifest_entries(bundles: Path, trusted: Collection[bytes]) -> tuple[dict[str, Entry], dict[str, str]]:
    """(entries for the index of the bundles in a folder, faults by name)."""
    entries, faults = {}, {}
    for path in sorted(bundles.glob(f"*/{MANIFEST}")):
        name = f"{MANIFEST}.{path.parent.name}"
        try:
            found = read_placed_manifest(path.parent, trusted)
        except (SignatureError, CatalogError, OSError) as error:
            faults[name] = str(error)
            continue
        if found is not None and found[1].lineage == path.parent.name:
            entries[name] = Entry(MANIFEST, found[1].sequence, digest_of(found[0]))
    return entries, faults


class Downstream:
    """Pulls from one place into a publication's folder and a folder of bundles."""

    def __init__(
        self, location: str, trusted: Collection[bytes], folder: Path, bundles: Path, lineage: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """lineage: of the only bundles to pull; None: of all there are. timeout_seconds: for what is not a bundle's file."""
        self._reader, self._bundle_reader = (
            reader_of(location, seconds) for seconds in (timeout_seconds, BUNDLE_TIMEOUT_SECONDS)
        )
        self._trusted, self._folder, self._bundles, self._lineage = trusted, folder, bundles, lineage
        self._seen: Index | None = None
        self.faults: dict[str, str] = {}

    def pull(self) -> bool:
        """Take what is newer. Whether anything was; what was refused or did not come is in faults, by name."""
        self.faults = {}
        try:
            index = read_index(self._reader, self._trusted)
        except (SourceUnavailable, SignatureError, ProtocolError) as error:
            self.faults["index"] = str(error)
            return False
        if index is None:
            self.faults["index"] = "expected an index, found none yet"
            return False
        if self._seen is not None and index.source == self._seen.source and index.sequence < self._seen.sequence:
            self.faults["index"] = f"expected sequence {self._seen.sequence} or more, got {index.sequence}: an old one"
            return False
        self._seen = index
        taken = False
        for name, entry in sorted(index.entries.items(), reverse=True):  # bundles before what is numbered by them
            lineage = name.partition(".")[2]
            try:
                if entry.kind == COLLECTIVE:
                    taken |= self._pull_collective(entry)
                elif entry.kind == MANIFEST and LINEAGE.fullmatch(lineage) and self._lineage in (None, lineage):
                    taken |= self._pull_bundle(lineage, entry)
            except (SourceUnavailable, SignatureError, ProtocolError, CatalogError, OSError) as error:
                self.faults[name] = str(error)
        return taken

    def _pull_collective(self, entry: Entry) -> bool:
        path = self._folder / COLLECTIVE
        if path.exists() and digest_of(path.read_bytes()) == entry.digest:
            return False
        data = self._reader.read(COLLECTIVE, MAX_SMALL_BYTES)
        if data is None:
            return False
        found = collectives.decode(signing.unseal(data, COLLECTIVE, self._trusted, MAX_SMALL_BYTES))
        try:
            placed = read_collective(self._folder, self._trusted)
        except (SignatureError, ProtocolError):
            placed = None  # damaged: anything that is sound is better
        if placed is not None and found.version < placed.version:
            raise ProtocolError(f"collective: expected version {placed.version} or more, got {found.version}: an old one")
        if placed is not None and found == placed:
            return False
        write_file(path, data)
        return True

    def _pull_bundle(self, lineage: str, entry: Entry) -> bool:
        folder = self._bundles / lineage
        try:
            placed = read_placed_manifest(folder, self._trusted)
        except (SignatureError, CatalogError):
            placed = None
        if placed is not None and digest_of(placed[0]) == entry.digest:
            return False
        data = self._reader.read(f"bundles/{lineage}/{MANIFEST}", MAX_SMALL_BYTES)
        if data is None:
            return False
        manifest = read_manifest(signing.unseal(data, MANIFEST, self._trusted, MAX_SMALL_BYTES))
        if manifest.lineage != lineage:
            raise CatalogError(f"manifest: expected lineage {lineage}, got {manifest.lineage} under that name")
        if placed is not None and manifest.sequence < placed[1].sequence:
            raise CatalogError(
                f"manifest: expected sequence {placed[1].sequence} or more, got {manifest.sequence}: an old one"
            )
        if placed is not None and data == placed[0]:
            return False
        for part in (manifest, *manifest.deltas):
            self._pull_file(folder, part.file, part.size, part.sha256)
        write_file(folder / MANIFEST, data)
        self._tidy(folder, manifest, None if placed is None else placed[1])
        return True

    def _pull_file(self, folder: Path, name: str, size: int, sha256: str) -> None:
        path = folder / name
        if path.exists() and path.stat().st_size == size and _sha256_of(path) == sha256:
            return
        data = self._bundle_reader.read(f"bundles/{folder.name}/{name}", size)
        if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise SourceUnavailable(f"{name}: expected {size} bytes with SHA-256 {sha256}, got others or none")
        write_file(path, data)

    @staticmethod
    def _tidy(folder: Path, *manifests: Manifest | None) -> None:
        """Delete the files of older manifests; those of the last are kept for downloads under way."""
        named = {part.file for manifest in manifests if manifest for part in (manifest, *manifest.deltas)} | {MANIFEST}
        for path in folder.iterdir():
            if path.name not in named and not path.name.startswith("."):
                path.unlink(missing_ok=True)


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
