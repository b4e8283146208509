"""What a worker reads from files and tells televisions: the collective, the newest bundle's version, the titles' numbers.

    PUBLICATION_DIR/collective          signed, from the hub
    BUNDLE_DIR/LINEAGE/manifest         signed, names the newest bundle's file beside it

They are written by rename; refresh() looks whether a file changed. An object that fails its signature is refused, the one
before it stays, and stats() says so.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from cloud import collective as collectives
from cloud.collective import Collective
from cloud.publication import MAX_SMALL_BYTES
from cloud.shard_titles import ShardTitles
from omega_edge import signing
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError, ConfigError, ProtocolError, SignatureError
from omega_edge.manifest import Manifest, read_manifest
from omega_edge.protocol import MAX_DOWNLOAD_BYTES
from omega_edge.wire import RESPONSE_BYTES

Stamp = tuple[int, int, int]


class KnowledgeFiles:
    """The files' present content. trusted: public keys whose objects are believed."""

    def __init__(
        self, publication: Path | None, bundles: Path | None, trusted: Collection[bytes], lineage: str | None = None
    ) -> None:
        """Read what is there. ConfigError where bundles holds several lineages and none is chosen."""
        self._publication, self._trusted = publication, tuple(trusted)
        self._folder = None if bundles is None else _lineage_folder(bundles, lineage)
        self._bundles, self._lineage = bundles, lineage
        self._stamps: dict[Path, Stamp | None] = {}
        self._awaited: Path | None = None
        """The bundle that the manifest names, while it is not there whole."""
        self._faults: dict[str, str] = {}
        self.collective: Collective | None = None
        self.manifest: Manifest | None = None
        self.catalog: Catalog | None = None
        self.titles: ShardTitles | None = None
        self.refresh()

    @property
    def catalog_version(self) -> int | None:
        """The newest bundle's version, None where there is none."""
        return None if self.manifest is None else self.manifest.version

    def refresh(self) -> None:
        """Take in files that were replaced since."""
        if self._bundles is not None and self._folder is None:
            self._folder = _lineage_folder(self._bundles, self._lineage)
        if self._folder is not None:
            came = self._awaited is not None and self._changed(self._awaited)
            if self._changed(self._folder / "manifest") or came:
                self._read("manifest", self._take_manifest)
        if self._publication is not None and self._changed(self._publication / "collective"):
            self._read("collective", self._take_collective)

    def _changed(self, path: Path) -> bool:
        try:
            facts = os.stat(path)
        except OSError:
            return False
        stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
        if self._stamps.get(path) == stamp:
            return False
        self._stamps[path] = stamp
        return True

    def _read(self, name: str, take: object) -> None:
        try:
            take()
            self._faults.pop(name, None)
        except (SignatureError, ProtocolError, CatalogError, OSError) as fault:
            self._faults[name] = str(fault)

    def _take_manifest(self) -> None:
        data = (self._folder / "manifest").read_bytes()
        manifest = read_manifest(signing.unseal(data, "manifest", self._trusted, MAX_SMALL_BYTES))
        self._awaited = None
        if self.manifest is not None and manifest.version == self.manifest.version:
            self.manifest = manifest
            return
        file = self._folder / manifest.file
        self._changed(file)
        try:
            catalog = Catalog.open(file)
        except (CatalogError, OSError):
            self._awaited = file  # whoever copies a folder by hand may bring the manifest first
            raise
        if catalog.lineage != manifest.lineage:
            catalog.close()
            raise CatalogError(f"bundle: expected lineage {manifest.lineage}, got {catalog.lineage}")
        # The one before stays open while requests that hold its titles are under way; it is unmapped with its last user.
        self.manifest, self.catalog, self.titles = manifest, catalog, ShardTitles(catalog)

    def _take_collective(self) -> None:
        data = (self._publication / "collective").read_bytes()
        found = collectives.decode(signing.unseal(data, "collective", self._trusted, MAX_SMALL_BYTES))
        if len(found.frame) > MAX_DOWNLOAD_BYTES - RESPONSE_BYTES:
            raise ProtocolError(
                f"collective.frame: expected at most {MAX_DOWNLOAD_BYTES - RESPONSE_BYTES} bytes, which leave room for the rest "
                f"of a response, got {len(found.frame)}"
            )
        if self.manifest is not None and found.lineage != self.manifest.lineage:
            raise ProtocolError(f"collective: expected lineage {self.manifest.lineage}, got {found.lineage}")
        if self.collective is None or found.version >= self.collective.version:
            self.collective = found

    def withdraw_titles(self, fault: str) -> None:
        """Serve without this bundle: its numbers are not those that are stored."""
        self._faults["manifest"] = fault
        self.manifest = self.catalog = self.titles = None

    def stats(self) -> dict[str, object]:
        """For /api/v1/stats."""
        return {
            "lineage": None if self.manifest is None else self.manifest.lineage,
            "catalog_version": self.catalog_version,
            "global_version": None if self.collective is None else self.collective.version,
            "refused_files": dict(self._faults),
        }


def _lineage_folder(bundles: Path, lineage: str | None) -> Path | None:
    """The folder of the lineage that the shard serves; None where there is none yet."""
    if lineage is not None:
        return bundles / lineage
    found = sorted(path.parent for path in bundles.glob("*/manifest"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"BUNDLE_DIR: expected bundles of one lineage, got {names}; choose one by LINEAGE")
    return found[0] if found else None
