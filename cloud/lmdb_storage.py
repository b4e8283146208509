"""PatternStorage in the process: LMDB is the truth (see storage_records.py for the tables), usearch finds what is similar.

Several processes may have one folder open: the workers write, each through one thread, and whoever counts reads. Reads see
durable states only, because LMDB shows a commit after it is synced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import lmdb
import numpy as np

from cloud import storage_records as records
from cloud.storage import (
    DeviceState,
    Erasure,
    SimilarPattern,
    StorageFacts,
    StoredPattern,
    StoredReport,
    SyncChange,
    SyncOutcome,
    TitlePage,
    TrendingTitle,
)
from cloud.storage_changes import ChangeWriter
from cloud.storage_environment import MAP_BYTES, RESERVE_BYTES, SharedEnvironment
from cloud.storage_migration import migrate
from cloud.storage_similar import PatternVectors, SimilarityIndex
from cloud.sync_rules import admitted, next_server_time, snapshot_is_due
from omega_edge.errors import ConfigError, StoreDamagedError
from omega_edge.protocol import DAY_MS

TREND_WINDOW_MS = 2 * DAY_MS
ERASURES_KEPT_MS = 7 * DAY_MS
"""Readers by sequence are minutes behind, not days. After that, an erased device's id is gone too."""
MAX_REGIONS = 255

_SCHEMA_KEY, _REGIONS_KEY, _LINEAGE_KEY = b"schema", b"regions", b"lineage"
Row = TypeVar("Row")


class LmdbStorage:
    """The store in a folder. See PatternStorage for what is not described here."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], int],
        region: str = "default",
        lineage: str = "",
        max_devices: int = 100_000,
        retention_days: int = 400,
        vectors: PatternVectors | None = None,
        map_bytes: int = MAP_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """Open the folder's store, making it or bringing an older one up to date.

        clock: Unix milliseconds. region: where devices that sync now belong. lineage: of the bundle whose title numbers are
        stored, empty for none yet; ConfigError if the store holds another's. vectors: finds the vector of a pattern, for
        find_similar. StoreDamagedError if the store was written by a newer version.
        """
        self._clock, self._max_devices, self._retention_ms = clock, max_devices, retention_days * DAY_MS
        self._environment = SharedEnvironment(folder, map_bytes, reserve_bytes)
        self._damaged = 0
        self._devices_checked_day, self._purge_after = 0, b""
        self._similar = SimilarityIndex(self, vectors) if vectors is not None else None
        try:
            self._region = self._environment.write(lambda transaction: self._prepare(transaction, region, lineage))
        except BaseException:
            self.close()
            raise

    def _prepare(self, transaction: lmdb.Transaction, region: str, lineage: str) -> int:
        """Check what the store says of itself, and enter what is new. The region's number."""
        writer = self._writer(transaction)
        schema = writer.get("meta", _SCHEMA_KEY)
        found = records.STORE_SCHEMA if schema is None else int.from_bytes(schema, "big")
        if found > records.STORE_SCHEMA:
            raise StoreDamagedError(
                f"{self._environment.path}: the store has schema {found}, this version reads up to {records.STORE_SCHEMA}; "
                "update the shard"
            )
        if schema is None or found < records.STORE_SCHEMA:
            migrate(writer, found)
            writer.put("meta", _SCHEMA_KEY, records.STORE_SCHEMA.to_bytes(2, "big"))
        self._claim(writer, lineage)
        regions = (writer.get("meta", _REGIONS_KEY) or b"").decode().split("\n")
        if region not in regions[1:]:
            regions.append(region)
            if len(regions) > MAX_REGIONS:
                raise ConfigError(f"{self._environment.path}: expected at most {MAX_REGIONS} regions over time, got more")
            writer.put("meta", _REGIONS_KEY, "\n".join(regions).encode())
        return regions.index(region)

    def _claim(self, writer: ChangeWriter, lineage: str) -> None:
        """Say whose title numbers are stored, or check it."""
        stored = (writer.get("meta", _LINEAGE_KEY) or b"").decode()
        if lineage and stored and stored != lineage:
            raise ConfigError(
                f"{self._environment.path}: expected bundles of lineage {stored}, whose title numbers are stored, got "
                f"{lineage}; use the right BUNDLE_DIR, or an empty store"
            )
        if lineage and not stored:
            writer.put("meta", _LINEAGE_KEY, lineage.encode())

    def claim_lineage(self, lineage: str) -> None:
        """See PatternStorage."""
        self._changed(lambda writer: self._claim(writer, lineage))

    def close(self) -> None:
        """Let go of the store. Closing twice is harmless."""
        self._environment.close()

    def _writer(self, transaction: lmdb.Transaction, region: int = 0) -> ChangeWriter:
        return ChangeWriter(transaction, self._environment.databases, region, self._max_devices)

    def _changed(self, work: Callable[[ChangeWriter], Row], deletes: bool = False) -> Row:
        """What work returns, once what it wrote is durable."""

        def inside(transaction: lmdb.Transaction) -> Row:
            writer = self._writer(transaction, self._region)
            result = work(writer)
            writer.finish()
            self._damaged += writer.damaged
            return result

        return self._environment.write(inside, deletes)

    # What requests ask ---------------------------------------------------------------------------

    def apply(self, batch: Sequence[SyncChange]) -> list[SyncOutcome]:
        """See PatternStorage. Where nothing changes, nothing is written. A batch of erasures alone may spend the reserve."""
        only_erases = all(change.erase for change in batch)
        return self._changed(lambda writer: [writer.apply(change) for change in batch], only_erases)

    def unchanged(self, change: SyncChange) -> SyncOutcome | None:
        """See PatternStorage."""
        if change.erase or change.report or change.rows or change.patterns or change.patterns_removed or change.snapshot:
            return None
        record = self._device_record(change.device_id)
        if record is None or record.state.epoch != change.epoch or admitted(record.state, (), change) is None:
            return None
        if snapshot_is_due(record.state, change):
            return None
        return SyncOutcome(next_server_time(record.state, change), change.local_version)

    def store_patterns(self, device: bytes, patterns: Sequence[StoredPattern]) -> None:
        """See PatternStorage."""
        self._changed(lambda writer: writer.replace_patterns(device, list(patterns)))

    def erase(self, device_id: bytes) -> bool:
        """See PatternStorage."""
        return self._changed(lambda writer: writer.erase(device_id, self._clock()), deletes=True)

    # Reading -------------------------------------------------------------------------------------

    def _record(self, table: str, key: bytes) -> bytes | None:
        database = self._environment.databases
        record = self._environment.read(lambda transaction: transaction.get(key, db=database[table]))
        fields = None if record is None else records.opened(table, key, record)
        if record is not None and fields is None:
            self._damaged += 1
        return fields

    def _device_record(self, device_id: bytes) -> records.DeviceRecord | None:
        fields = self._record("devices", device_id)
        return None if fields is None else records.unpack_device(fields)

    def device(self, device_id: bytes) -> DeviceState | None:
        """See PatternStorage."""
        record = self._device_record(device_id)
        return None if record is None else record.state

    def patterns_of(self, device: bytes) -> list[StoredPattern]:
        """See PatternStorage."""
        fields = self._record("patterns", device)
        return [] if fields is None else records.unpack_patterns(fields)

    def region_of(self, device: bytes) -> str:
        """The region that a device synced in last; empty for an unknown device."""
        record = self._device_record(device)
        regions = (self._record("meta", _REGIONS_KEY) or b"").decode().split("\n")
        return "" if record is None else regions[record.region]

    def _after(self, table: str, sequence: int, limit: int, unpack: Callable[[int, bytes], Row]) -> list[Row]:
        """Up to limit rows of higher sequence. Damaged ones are counted and left out."""

        def inside(transaction: lmdb.Transaction) -> list[Row]:
            rows = []
            with transaction.cursor(db=self._environment.databases[table]) as cursor:
                found = cursor.set_range(records.sequence_key(sequence + 1))
                while found and len(rows) < limit:
                    key, record = cursor.item()
                    fields = records.opened(table, key, record)
                    if fields is None:
                        self._damaged += 1
                    else:
                        rows.append(unpack(int.from_bytes(key, "big"), fields))
                    found = cursor.next()
            return rows

        return self._environment.read(inside)

    def pages_after(self, sequence: int, limit: int) -> list[TitlePage]:
        """See PatternStorage."""
        return self._after("pages", sequence, limit, records.unpack_page)

    def reports_after(self, sequence: int, limit: int) -> list[StoredReport]:
        """See PatternStorage."""
        return self._after("reports", sequence, limit, records.unpack_report)

    def erasures_after(self, sequence: int, limit: int) -> list[Erasure]:
        """See PatternStorage."""
        return self._after("erasures", sequence, limit, lambda number, fields: records.unpack_erasure(number, fields)[0])

    def pattern_changes(self, newest_first: bool, sequence: int, limit: int) -> list[tuple[int, bytes]]:
        """Whose patterns changed: (sequence, device id) above a sequence in order, or the newest ones, newest first."""

        def newest(transaction: lmdb.Transaction) -> list[tuple[int, bytes]]:
            found = []
            with transaction.cursor(db=self._environment.databases["pattern_changes"]) as cursor:
                for key, record in cursor.iterprev():
                    fields = records.opened("pattern_changes", key, record)
                    if fields is not None:
                        found.append((int.from_bytes(key, "big"), fields))
                    if len(found) == limit:
                        break
            return found

        if newest_first:
            return self._environment.read(newest)
        return self._after("pattern_changes", sequence, limit, lambda number, fields: (number, fields))

    def find_similar(self, embedding: np.ndarray, k: int, region: str) -> list[SimilarPattern]:
        """See PatternStorage. ConfigError where the store was opened without vectors."""
        if self._similar is None:
            raise ConfigError("find_similar: expected a bundle whose vectors patterns refer to; set BUNDLE_DIR")
        return self._similar.search(embedding, k, region)

    def get_trending(self, region: str, limit: int) -> list[TrendingTitle]:
        """See PatternStorage. The window is TREND_WINDOW_MS, by receipt."""
        regions = (self._record("meta", _REGIONS_KEY) or b"").decode().split("\n")
        if region not in regions[1:]:
            return []
        number, since = regions.index(region), self._clock() - TREND_WINDOW_MS

        def inside(transaction: lmdb.Transaction) -> set[tuple[bytes, int]]:
            votes: set[tuple[bytes, int]] = set()
            with transaction.cursor(db=self._environment.databases["pages"]) as cursor:
                for key, record in cursor.iterprev():
                    fields = records.opened("pages", key, record)
                    if fields is None:
                        continue
                    device_id, _previous, received_ms, found = records.page_links(fields)
                    if received_ms < since:
                        break
                    if found == number:
                        votes.update((device_id, row) for row in records.unpack_page(0, fields).rows.tolist())
            return votes

        counts: dict[int, int] = {}
        for _, row in self._environment.read(inside):
            counts[row] = counts.get(row, 0) + 1
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [TrendingTitle(row, devices) for row, devices in best[:limit]]

    # Upkeep --------------------------------------------------------------------------------------

    def purge(self, now_ms: int, limit: int = 1_000) -> int:
        """See PatternStorage. Devices are looked through once a day; one that changed nothing for as long as pages are kept is
        forgotten. To be called by one process."""
        before_ms = now_ms - self._retention_ms
        deleted = 0
        for table, moment in (("pages", before_ms), ("reports", before_ms), ("erasures", now_ms - ERASURES_KEPT_MS)):
            room = limit - deleted
            if room > 0:
                deleted += self._changed(
                    lambda writer, table=table, moment=moment, room=room: writer.purge_table(table, moment, room),
                    deletes=True,
                )
        today = now_ms // DAY_MS
        if deleted == 0 and today != self._devices_checked_day:
            deleted, after = self._changed(
                lambda writer: writer.purge_devices(before_ms, self._purge_after, limit), deletes=True
            )
            self._purge_after = after
            if after:
                return max(deleted, 1)  # not through yet
            self._devices_checked_day = today
        self._environment.check_readers()
        self._environment.keep_reserve()
        return deleted

    def facts(self) -> StorageFacts:
        """See PatternStorage."""
        entries = self._environment.entries()
        return StorageFacts(
            devices=entries["devices"],
            pages=entries["pages"],
            reports=entries["reports"],
            erasures=entries["erasures"],
            bytes_used=self._environment.used_bytes(),
            damaged_records=self._damaged,
        )
