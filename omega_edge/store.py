"""The household's store: LMDB as the truth, a checksum on every record, one process at a time.

Files in the storage folder: `memory.mdb` (LMDB, one file), `memory.journal` (journal.py), `memory.lock` (held by
flock; names the process). Tables are named databases with big-endian keys. A record is

    CRC32 u32 (of key and all that follows), record schema u8, table u8, CBOR map with integer keys

so that a damaged record, or one in the wrong place, is found when it is read. LMDB has no checksums of its pages,
and walks into a damaged page with a signal rather than an error. So the file is opened only while it carries a
seal: its length and CRC32 as of the last commit, kept in the journal's header. Without a fitting seal, which is the
case after a power cut in the midst of a commit and after damage, every record is read by salvage.py, which needs no
library and cannot crash, and the file is written anew from the sound ones.

The environment is opened without LMDB's lock file, because the flock keeps other processes out and the owner's lock
keeps its threads apart: the lock file's shared pages would be written back to the flash again and again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cbor2
import lmdb

from omega_edge.errors import StoreBusyError, StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.journal import Journal, Seal, store_error
from omega_edge.salvage import Salvaged, salvage

STORE_SCHEMA = 2
"""Version of the tables and keys. A store with a higher one is refused. 2: vectors in several encodings."""
RECORD_SCHEMA = 1
TABLES = (
    "meta", "profiles", "episodes", "skills", "reasoning", "removed", "graves", "seen", "hidden", "finished", "states",
    "outcomes",
)  # fmt: skip
"""A table's place in this tuple is in its records: append only."""
DATABASE_NAME = "memory.mdb"
JOURNAL_NAME = "memory.journal"
LOCK_NAME = "memory.lock"
DAMAGED_SUFFIX = ".damaged"
MAP_BYTES = 16 << 20
MAX_MAP_BYTES = 256 << 20

_REBUILT_SUFFIX = ".new"
_SCHEMA_KEY = b"schema"
_TABLE_NUMBER = {name: number for number, name in enumerate(TABLES)}
_RECORD_HEADER_BYTES = 6
_READ_BYTES = 1 << 20

Row = tuple[str, bytes, dict | None]
"""Table, key, and the record's fields, or None to delete it."""


def encode_record(table: str, key: bytes, fields: dict[int, object]) -> bytes:
    """A record's bytes. fields: CBOR-able values under integer keys."""
    body = bytes((RECORD_SCHEMA, _TABLE_NUMBER[table])) + cbor2.dumps(fields)
    return zlib.crc32(body, zlib.crc32(key)).to_bytes(4, "big") + body


def decode_record(table: str, key: bytes, record: bytes) -> dict[int, object] | None:
    """A record's fields, or None if it is damaged, foreign to this table and key, or of a newer schema."""
    if len(record) < _RECORD_HEADER_BYTES or zlib.crc32(record[4:], zlib.crc32(key)) != int.from_bytes(
        record[:4], "big"
    ):
        return None
    if record[4] != RECORD_SCHEMA or record[5] != _TABLE_NUMBER[table]:
        return None
    return cbor2.loads(record[_RECORD_HEADER_BYTES:])


@dataclass(slots=True)
class Damage:
    """What was found damaged since the store was opened. names: "table:CRC32 of the key" of the first few: a key may
    hold a title's id, which has no place in a report."""

    records: int = 0
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, table: str, key: bytes) -> None:
        """Count a damaged record."""
        self.records += 1
        if len(self.names) < 20:
            self.names.append(f"{table}:{zlib.crc32(key):08x}")


class Store:
    """Tables of one household. Not thread-safe: callers hold one lock around everything.

    Read-only, nothing is mapped: the records are read by salvage.py into memory.
    """

    def __init__(self, path: Path, *, read_only: bool = False, max_map_bytes: int = MAX_MAP_BYTES) -> None:
        """Open the folder, making it if it is missing.

        Turns read-only by itself where the file system is. Raises StoreBusyError if another process holds the
        store, StoreDamagedError if it was written by a newer version, StoreFullError, StoreError.
        """
        self.path = path
        self.read_only = read_only
        self.damage = Damage()
        self._max_map_bytes = max_map_bytes
        self._map_bytes = 0
        self._schema_outdated = False
        self._environment: lmdb.Environment | None = None
        self._databases: dict[str, object] = {}
        self._records: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self._lock_descriptor = -1
        self._take_lock()
        self.journal: Journal | None = None
        try:
            self.journal = Journal(path / JOURNAL_NAME, read_only=self.read_only)
            self._open_checked()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files and the lock. Closing twice is harmless."""
        self._close_environment()
        if self.journal is not None:
            self.journal.close()
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    # Records -------------------------------------------------------------------------------------

    def get(self, table: str, key: bytes) -> dict[int, object] | None:
        """A record's fields, or None if there is none, or a damaged one, which is counted."""
        if self._environment is None:
            record = self._records[table].get(key)
        else:
            with self._environment.begin(db=self._databases[table]) as transaction:
                record = transaction.get(key)
        return None if record is None else self._decoded(table, key, record)

    def items(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, dict[int, object]]]:
        """Records (key, fields) of a table in the order of their keys, from a key on. Damaged ones are counted.

        To be used up, or closed, before the next write.
        """
        if self._environment is None:
            for key in sorted(key for key in self._records[table] if key >= first):
                fields = self._decoded(table, key, self._records[table][key])
                if fields is not None:
                    yield key, fields
            return
        with self._environment.begin(db=self._databases[table]) as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(first):
                return
            for key, record in cursor.iternext():
                fields = self._decoded(table, key, record)
                if fields is not None:
                    yield key, fields

    def release_pages(self) -> None:
        """Let go of the file's pages that reading has brought into this process, after a whole table was read."""
        if self._environment is not None:
            self._close_environment()
            self._open_environment()

    def count(self, table: str) -> int:
        """Number of records in a table, damaged ones among them."""
        if self._environment is None:
            return len(self._records[table])
        with self._environment.begin() as transaction:
            return transaction.stat(self._databases[table])["entries"]

    def holds_anything(self) -> bool:
        """Whether something is, or by the traces of damage was, in the tables but `meta`, or in the journal."""
        return bool(
            self.damage.records
            or any(self.path.glob(f"{DATABASE_NAME}{DAMAGED_SUFFIX}*"))
            or any(self.count(table) for table in TABLES if table != "meta")
            or self.journal.holds_bytes()
        )

    def write(self, rows: Iterable[Row]) -> None:
        """Put and delete records, all or none, durably; then seal the file.

        Raises StoreFullError if the disk, or the largest map allowed, has no room, and StoreReadOnlyError.
        """
        if self._environment is None:
            raise StoreReadOnlyError(f"{self.path}: the store is open read-only; nothing can be written")
        encoded = [
            (table, key, None if fields is None else encode_record(table, key, fields)) for table, key, fields in rows
        ]
        if self._schema_outdated:
            encoded.append(_schema_row())
        encoded.sort(key=lambda row: (_TABLE_NUMBER[row[0]], row[1]))
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for table, key, record in encoded:
                        if record is None:
                            transaction.delete(key, db=self._databases[table])
                        else:
                            transaction.put(key, record, db=self._databases[table])
                break
            except lmdb.MapFullError:
                self._grow_map()
            except lmdb.Error as fault:
                self._recover_from(fault, sum(len(key) + len(record or b"") for _table, key, record in encoded))
        self._schema_outdated = False
        self._seal()

    def rebuild(self, rows: Iterable[Row]) -> None:
        """Replace the whole database by these rows, durably and at once, in a file that never held anything else.

        A crash leaves either the old database or the new one. Errors as for write().
        """
        if self._environment is None:
            raise StoreReadOnlyError(f"{self.path}: the store is open read-only; nothing can be written")
        self._rebuild((table, key, encode_record(table, key, fields)) for table, key, fields in rows)

    def remove_quarantined(self) -> None:
        """Delete damaged database files that were kept aside, durably. Raises StoreError if it cannot be done."""
        try:
            for name in sorted(self.path.glob(f"{DATABASE_NAME}{DAMAGED_SUFFIX}*")):
                name.unlink()
            self._sync_folder()
        except OSError as fault:
            raise store_error(fault, self.path) from fault

    def size_bytes(self) -> int:
        """Bytes of the store's files. None is sparse, and blocks would depend on when the disk allocates them."""
        return sum(file.stat().st_size for file in self.path.glob("memory.*"))

    def _decoded(self, table: str, key: bytes, record: bytes) -> dict[int, object] | None:
        fields = decode_record(table, key, record)
        if fields is None:
            self.damage.add(table, key)
        return fields

    # Opening -------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        lock_path = self.path / LOCK_NAME
        try:
            if not self.read_only and not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_file(self.path.parent)
            self._lock_descriptor = os.open(lock_path, os.O_RDONLY if self.read_only else os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as fault:
            error = store_error(fault, lock_path)
            if self.read_only and isinstance(fault, FileNotFoundError):
                return
            if self.read_only or not isinstance(error, StoreReadOnlyError):
                raise error from fault
            self.read_only = True
            self.damage.notes.append("read-only: the storage folder cannot be written, so nothing is recorded")
            self._take_lock()
            return
        try:
            fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_descriptor, 20, 0).strip().decode("ascii", "replace") or "unknown"
            os.close(self._lock_descriptor)
            raise StoreBusyError(
                f"{self.path}: the store is held by process {holder}; close that one, or ask it instead"
            ) from None
        if not self.read_only:
            self._name_holder(lock_path)

    def _name_holder(self, lock_path: Path) -> None:
        try:
            os.pwrite(self._lock_descriptor, b"%-19d\n" % os.getpid(), 0)
        except OSError as fault:
            error = store_error(fault, lock_path)
            if not isinstance(error, StoreFullError):  # a full disk costs the name, not the lock
                os.close(self._lock_descriptor)
                raise error from fault

    def _open_checked(self) -> None:
        """Open the database if it is what the seal says, else write it anew from its sound records."""
        database = self.path / DATABASE_NAME
        if not self.read_only:
            self._rebuilt_path().unlink(missing_ok=True)
        if not database.exists():
            if not self.read_only:
                self._rebuild([])
            return
        if self._sealed(database) and not self.read_only:
            self._open_environment()
            stored = self.get("meta", _SCHEMA_KEY)
            self._check_schema(stored)
            self._schema_outdated = stored is None or stored[1] < STORE_SCHEMA
            return
        salvaged = salvage(database)
        for table, key, record in salvaged.records:
            if (table, key) == ("meta", _SCHEMA_KEY):
                self._check_schema(decode_record(table, key, record))
        self._start_from(salvaged, database)

    def _sealed(self, database: Path) -> bool:
        seal = self.journal.seal
        return seal is not None and os.stat(database).st_size == seal.length and _checksum_of(database) == seal.checksum

    def _check_schema(self, fields: dict | None) -> None:
        if fields is not None and fields[1] > STORE_SCHEMA:
            raise StoreDamagedError(
                f"{self.path}: the store has schema {fields[1]}, this version reads up to {STORE_SCHEMA}; "
                "update the software, or import an export into a new folder"
            )

    def _start_from(self, salvaged: Salvaged, database: Path) -> None:
        """Use the sound records alone. Where some were lost, the old file is kept beside the new one."""
        rows: list[tuple[str, bytes, bytes]] = []
        for table, key, record in salvaged.records:
            if table not in _TABLE_NUMBER or decode_record(table, key, record) is None:
                self.damage.add(table, key)
            elif (table, key) != ("meta", _SCHEMA_KEY):
                rows.append((table, key, record))
        self.damage.records += salvaged.lost_records
        damaged = bool(self.damage.records or salvaged.faults)
        if damaged:
            reasons = "; ".join(salvaged.faults) or "records fail their checksums"
            self.damage.notes.append(
                f"store damaged: {reasons}; {len(rows)} records were kept, {self.damage.records} were lost"
            )
        if self.read_only:
            for table, key, record in rows:
                self._records[table][key] = record
            return
        self._rebuild(rows, quarantine=damaged)

    # The database file ---------------------------------------------------------------------------

    def _rebuilt_path(self) -> Path:
        return self.path / (DATABASE_NAME + _REBUILT_SUFFIX)

    def _rebuild(self, records: Iterable[tuple[str, bytes, bytes]], quarantine: bool = False) -> None:
        database, rebuilt = self.path / DATABASE_NAME, self._rebuilt_path()
        ordered = sorted((_schema_row(), *records), key=lambda row: (_TABLE_NUMBER[row[0]], row[1]))
        map_bytes = max(self._map_bytes, MAP_BYTES)
        needed_bytes = 2 * sum(len(key) + len(record) + 64 for _table, key, record in ordered) + (1 << 20)
        while map_bytes < needed_bytes:
            map_bytes *= 2
        try:
            rebuilt.unlink(missing_ok=True)
            environment = _environment_at(rebuilt, map_bytes)
            try:
                databases = {table: environment.open_db(table.encode()) for table in TABLES}
                with environment.begin(write=True) as transaction:
                    for table, key, record in ordered:
                        transaction.put(key, record, db=databases[table], append=True)
            finally:
                environment.close()
            _sync_file(rebuilt)
            self._close_environment()
            if quarantine and database.exists():
                os.replace(database, self.path / (DATABASE_NAME + DAMAGED_SUFFIX))
            os.replace(rebuilt, database)
            self._sync_folder()
        except (lmdb.Error, OSError) as fault:
            error = _write_error(fault, rebuilt, sum(len(key) + len(record) for _table, key, record in ordered))
            rebuilt.unlink(missing_ok=True)
            if self._environment is None and database.exists():
                self._open_environment()
            raise error from fault
        self._schema_outdated = False
        self._open_environment()
        self._seal()

    def _open_environment(self) -> None:
        database = self.path / DATABASE_NAME
        if self._map_bytes == 0:
            self._map_bytes = MAP_BYTES
            while self._map_bytes < 2 * os.stat(database).st_size:
                self._map_bytes *= 2
        try:
            self._environment = _environment_at(database, self._map_bytes)
            self._databases = {table: self._environment.open_db(table.encode()) for table in TABLES}
        except lmdb.Error as fault:
            raise store_error(fault, database) from fault

    def _close_environment(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _grow_map(self) -> None:
        if self._map_bytes * 2 > self._max_map_bytes:
            raise StoreFullError(
                f"{self.path}: the store has reached its largest size, {self._max_map_bytes} bytes; forget something"
            )
        self._map_bytes *= 2
        self._environment.set_mapsize(self._map_bytes)

    def _recover_from(self, fault: lmdb.Error, wanted_bytes: int) -> None:
        """After a commit that failed: the last one stands, but the library may refuse to go on. Then raise."""
        database = self.path / DATABASE_NAME
        self._close_environment()
        self._open_environment()
        self._seal()
        raise _write_error(fault, database, wanted_bytes) from fault

    def _seal(self) -> None:
        database = self.path / DATABASE_NAME
        self.journal.write_seal(Seal(os.stat(database).st_size, _checksum_of(database)))

    def _sync_folder(self) -> None:
        _sync_file(self.path)


def _schema_row() -> tuple[str, bytes, bytes]:
    return "meta", _SCHEMA_KEY, encode_record("meta", _SCHEMA_KEY, {1: STORE_SCHEMA})


def _environment_at(path: Path, map_bytes: int) -> lmdb.Environment:
    name = os.fsencode(path)  # a path need not be UTF-8, which is all that the library makes of a str
    return lmdb.open(
        name, map_size=map_bytes, subdir=False, lock=False, max_dbs=len(TABLES), mode=0o600, readahead=False
    )


def _write_error(fault: Exception, path: Path, wanted_bytes: int) -> StoreError:
    """The error for a write of so many bytes that failed.

    LMDB says EIO also where a page could be written only in part, which is how a disk that fills up may show.
    """
    cut_short = isinstance(fault, lmdb.Error) and str(fault).endswith(os.strerror(errno.EIO)) and path.exists()
    if cut_short and _room_for(path) < 2 * wanted_bytes:
        return StoreFullError(f"{path}: no space left for the write; free some and try again")
    return store_error(fault, path)


def _room_for(path: Path) -> int:
    """Bytes by which a file may grow: what the file system has free, and what the process may write."""
    facts = os.statvfs(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    allowed = sys.maxsize if limit == resource.RLIM_INFINITY else limit - os.stat(path).st_size
    return min(facts.f_bavail * facts.f_frsize, allowed)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum_of(path: Path) -> int:
    checksum = 0
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # see Journal.__init__
        while chunk := file.read(_READ_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
