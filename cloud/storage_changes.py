"""Changes of devices, put into one LMDB transaction: what sync_rules.py decides becomes records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import lmdb

from cloud import storage_records as records
from cloud.storage import SyncChange, SyncOutcome
from cloud.storage_records import DeviceRecord
from cloud.sync_rules import admitted, epoch_mark, next_server_time, reset_outcome, snapshot_is_due, with_report
from omega_edge.protocol import DAY_MS, MAX_PATTERNS_PER_DELTA, U64_MAX

SEQUENCE_KEY = b"sequence"
MAX_PATTERNS_PER_DEVICE = MAX_PATTERNS_PER_DELTA


class ChangeWriter:
    """One write transaction. databases: of the tables, by name; region: the number of the shard's region in the store.

    damaged: counts records that fail their checksums; such a record is as good as none, so its device is told to reset and
    sends everything again.
    """

    def __init__(self, transaction: lmdb.Transaction, databases: dict[str, object], region: int, max_devices: int) -> None:
        self._transaction, self._databases, self._region = transaction, databases, region
        self._max_devices = max_devices
        self._devices = transaction.stat(databases["devices"])["entries"]
        stored = self.get("meta", SEQUENCE_KEY)
        self._sequence = self._first_sequence = int.from_bytes(stored or b"", "big")
        self.damaged = 0

    # Records -------------------------------------------------------------------------------------

    def get(self, table: str, key: bytes) -> bytes | None:
        """A record's fields, or None for a missing or damaged one."""
        record = self._transaction.get(key, db=self._databases[table])
        if record is None:
            return None
        fields = records.opened(table, key, record)
        if fields is None:
            self.damaged += 1
        return fields

    def put(self, table: str, key: bytes, fields: bytes, append: bool = False) -> None:
        """Write a record. append: its key is above all others of the table."""
        self._transaction.put(key, records.sealed(table, key, fields), db=self._databases[table], append=append)

    def delete(self, table: str, key: bytes) -> bool:
        """Delete a record. Whether there was one."""
        return self._transaction.delete(key, db=self._databases[table])

    def all_of(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys and fields of a whole table, read before any of them is yielded. Damaged records are deleted."""
        with self._transaction.cursor(db=self._databases[table]) as cursor:
            rows = [(bytes(key), records.opened(table, key, record)) for key, record in cursor]
        for key, fields in rows:
            if fields is None:
                self.damaged += 1
                self.delete(table, key)
            else:
                yield key, fields

    def finish(self) -> None:
        """To be called last: keeps the sequence that the next transaction goes on from."""
        if self._sequence != self._first_sequence:
            self.put("meta", SEQUENCE_KEY, self._sequence.to_bytes(8, "big"))

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    # Changes -------------------------------------------------------------------------------------

    def apply(self, change: SyncChange) -> SyncOutcome:
        """Do what one request asks, as far as the rules allow."""
        device_id, now_ms = change.device_id, change.received_ms
        fields = self.get("devices", device_id)
        record = None if fields is None else records.unpack_device(fields)
        state = None if record is None else record.state
        if change.erase:
            erased = self.erase(device_id, now_ms)
            return SyncOutcome(next_server_time(state, change), erased=True, changed=erased)
        past_epochs = self._past_epochs(device_id) if record is None else ()
        ground = admitted(state, past_epochs, change)
        if ground is None or (ground is state and self._is_a_copys(record, change)):
            return reset_outcome(state, change)
        if record is None:
            if self._devices >= self._max_devices:
                return SyncOutcome(now_ms, device_limit=True)
            self._devices += 1
            record = DeviceRecord(ground)
        outcome = SyncOutcome(next_server_time(state, change), changed=ground is not state)
        record.state, record.region = ground, self._region
        if ground is not state and record.pattern_sequence:
            self._write_patterns(device_id, record, [])
        if change.report is not None:
            self._take_report(change, record, outcome)
        else:
            self._take_delta(change, record, outcome)
            if outcome.changed:
                record.state.time_issued = outcome.server_time
                record.state.time_base = change.server_time_seen or 0
            # Asking for a snapshot leaves the times alone: else playing a request again would make its device reset.
            if snapshot_is_due(record.state, change):
                record.state.snapshot_day = now_ms // DAY_MS
                outcome.snapshot_wanted = outcome.changed = True
        if outcome.changed:
            self.put("devices", device_id, records.pack_device(record))
        return outcome

    def _is_a_copys(self, record: DeviceRecord, change: SyncChange) -> bool:
        """Whether titles come under a version that others came under before: those of another copy of the device, which
        would be acknowledged and lost. A device that repeats itself sends the same titles under its newest version."""
        if not change.rows or change.local_version > record.state.local_version:
            return False
        if change.local_version < record.state.local_version or not record.last_page:
            return True
        fields = self.get("pages", records.sequence_key(record.last_page))
        return fields is None or records.unpack_page(record.last_page, fields).rows.tolist() != list(change.rows)

    def _take_report(self, change: SyncChange, record: DeviceRecord, outcome: SyncOutcome) -> None:
        outcome.counted = True
        state = with_report(record.state, change.report[0])
        if state is None:
            return
        sequence = self._next_sequence()
        fields = records.pack_report(change.device_id, record.last_report, change.received_ms, change.report)
        self.put("reports", records.sequence_key(sequence), fields, append=True)
        record.state, record.last_report = state, sequence
        outcome.changed = True

    def _take_delta(self, change: SyncChange, record: DeviceRecord, outcome: SyncOutcome) -> None:
        version = outcome.acknowledged_local_version = change.local_version
        if version is not None and version > record.state.local_version:
            if change.rows:
                sequence = self._next_sequence()
                fields = records.pack_page(
                    change.device_id, record.last_page, change.received_ms, self._region, change.rows, change.finished_ms
                )
                self.put("pages", records.sequence_key(sequence), fields, append=True)
                record.last_page = sequence
                outcome.changed = True
            if change.patterns or change.patterns_removed or change.snapshot:
                self._take_patterns(change, record)
                outcome.changed = True
            if outcome.changed:
                record.state.local_version = version

    def _take_patterns(self, change: SyncChange, record: DeviceRecord) -> None:
        fields = None if change.snapshot or not record.pattern_sequence else self.get("patterns", change.device_id)
        kept = {pattern.id: pattern for pattern in records.unpack_patterns(fields or b"")}
        for number in change.patterns_removed:
            kept.pop(number, None)
        kept.update((pattern.id, pattern) for pattern in change.patterns)
        while len(kept) > MAX_PATTERNS_PER_DEVICE:  # the set's hash then differs, and the device is asked for a snapshot
            del kept[next(iter(kept))]
        self._write_patterns(change.device_id, record, sorted(kept.values(), key=lambda pattern: pattern.id))

    def _write_patterns(self, device_id: bytes, record: DeviceRecord, patterns: list) -> None:
        if record.pattern_sequence:
            self.delete("pattern_changes", records.sequence_key(record.pattern_sequence))
        record.pattern_sequence = self._next_sequence()
        self.put("pattern_changes", records.sequence_key(record.pattern_sequence), device_id, append=True)
        self.put("patterns", device_id, records.pack_patterns(patterns))
        record.state.shared_set_hash = sum(pattern.mark for pattern in patterns) & U64_MAX

    def replace_patterns(self, device_id: bytes, patterns: list) -> None:
        """Put these in the place of a known device's patterns; KeyError for an unknown device."""
        fields = self.get("devices", device_id)
        if fields is None:
            raise KeyError(device_id)
        record = records.unpack_device(fields)
        self._write_patterns(device_id, record, patterns)
        self.put("devices", device_id, records.pack_device(record))

    # Erasing -------------------------------------------------------------------------------------

    def erase(self, device_id: bytes, now_ms: int) -> bool:
        """Delete everything of a device, and remember its epochs. Whether it was known."""
        fields = self.get("devices", device_id)
        if not self.delete("devices", device_id):
            return False
        self.delete("patterns", device_id)
        if fields is None:  # damaged: the chains are lost, so look through everything
            for table in ("pages", "reports"):
                self._delete_all_of(table, device_id)
            past = ()
        else:
            record = records.unpack_device(fields)
            if record.pattern_sequence:
                self.delete("pattern_changes", records.sequence_key(record.pattern_sequence))
            self._delete_chain("pages", device_id, record.last_page)
            self._delete_chain("reports", device_id, record.last_report)
            past = (*record.state.past_epochs, epoch_mark(record.state.epoch))
        self.put("erasures", records.sequence_key(self._next_sequence()), records.pack_erasure(device_id, now_ms), append=True)
        self.put("erased", _erased_key(device_id), records.pack_erased(now_ms, past))
        return True

    def _delete_chain(self, table: str, device_id: bytes, sequence: int) -> None:
        links = records.page_links if table == "pages" else records.report_links
        while sequence:
            key = records.sequence_key(sequence)
            fields = self.get(table, key)
            if not self.delete(table, key):
                return  # it and all before it are past their age
            if fields is None:
                self._delete_all_of(table, device_id)
                return
            sequence = links(fields)[1]

    def _delete_all_of(self, table: str, device_id: bytes) -> None:
        links = records.page_links if table == "pages" else records.report_links
        with self._transaction.cursor(db=self._databases[table]) as cursor:
            found = cursor.first()
            while found:
                key, record = cursor.item()
                fields = records.opened(table, key, record)
                owned = fields is not None and links(fields)[0] == device_id
                found = cursor.delete() and bool(cursor.key()) if owned else cursor.next()

    def _past_epochs(self, device_id: bytes) -> tuple[int, ...]:
        fields = self.get("erased", _erased_key(device_id))
        return () if fields is None else records.unpack_erased(fields)[1]

    # Age -----------------------------------------------------------------------------------------

    def purge_table(self, table: str, before_ms: int, limit: int) -> int:
        """Delete the records of pages, reports or erasures that are older, up to a limit, the first ones first. How many."""
        deleted = 0
        with self._transaction.cursor(db=self._databases[table]) as cursor:
            found = cursor.first()
            while found and deleted < limit:
                key, record = cursor.item()
                fields = records.opened(table, key, record)
                if fields is not None:
                    if table == "erasures":
                        moment = records.unpack_erasure(0, fields)[1]
                    else:
                        links = records.page_links if table == "pages" else records.report_links
                        moment = links(fields)[2]
                    if moment >= before_ms:
                        break
                found = cursor.delete() and bool(cursor.key())
                deleted += 1
        return deleted

    def purge_devices(self, before_ms: int, after: bytes, limit: int) -> tuple[int, bytes]:
        """Delete devices that changed nothing since, looking at up to limit of them after a key. How many; the last key seen,
        empty at the end."""
        doomed, seen, last = [], 0, b""
        with self._transaction.cursor(db=self._databases["devices"]) as cursor:
            found = cursor.set_range(after) if after else cursor.first()
            while found and seen < limit:
                key, record = cursor.item()
                last, seen = bytes(key), seen + 1
                fields = records.opened("devices", key, record)
                state = None if fields is None else records.unpack_device(fields).state
                if state is None or max(state.time_issued, state.report_day * DAY_MS) < before_ms:
                    doomed.append(last)
                found = cursor.next()
        for device_id in doomed:
            self.erase(device_id, before_ms)
        return len(doomed), last + b"\0" if seen == limit else b""


def _erased_key(device_id: bytes) -> bytes:
    return hashlib.sha256(device_id).digest()[:16]
