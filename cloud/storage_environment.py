"""The LMDB environment of a shard: one file that several processes share, opened, checked, grown, kept from filling up.

Commits are synced, never mapped for writing: without the sync, or with a writable map, a power cut or a full disk damages the
database or ends the process by a signal. LMDB has no checksums of pages and follows a damaged one into a signal, so a child
process walks the whole database before the shard opens it (`probe`), and every record carries a CRC32.

On a full disk LMDB cannot even delete, because a commit writes new pages first. So a file of RESERVE_BYTES lies beside the
database, to be given up when a deletion finds no room, and made again when there is some.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Lock, RLock
from typing import TypeVar

import lmdb

from cloud.storage_records import TABLES
from omega_edge.errors import StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError

DATABASE_NAME = "shard.mdb"
RESERVE_NAME = "reserve"
RESERVE_BYTES = 32 << 20
MAP_BYTES = 64 << 30
"""The largest size of the database. Address space only: the file has the size of what is in it."""
MAX_READERS = 126

_GROWTH_BYTES = 16 << 20
_MAX_FAULT_BYTES = 4_096
_FULL = {os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
_READ_ONLY = {os.strerror(number) for number in (errno.EROFS, errno.EACCES, errno.EPERM)}
_CUT_SHORT = os.strerror(errno.EIO)
Result = TypeVar("Result")


def store_error(fault: Exception, path: Path) -> StoreError:
    """The StoreError that an error of LMDB, or of the operating system, stands for."""
    text = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else str(fault)
    if isinstance(fault, lmdb.MapFullError):
        return StoreFullError(f"{path}: the store has its largest size; lower RETENTION_DAYS, or give the shard fewer devices")
    if any(text.endswith(ending) for ending in _FULL) or (text.endswith(_CUT_SHORT) and _nearly_full(path)):
        return StoreFullError(f"{path}: no space left for the write; free some, or move the store to a larger disk")
    if any(text.endswith(ending) for ending in _READ_ONLY):
        return StoreReadOnlyError(f"{path}: cannot be written: {text}; check the volume and its owner")
    if isinstance(fault, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.VersionMismatchError):
        return damaged(path, text)
    return StoreError(f"{path}: {text}")


def damaged(path: Path, what: str) -> StoreDamagedError:
    """The error for a database that cannot be trusted."""
    return StoreDamagedError(
        f"{path}: the database is damaged ({what}); move the folder aside and start with a copy, or with an empty one: "
        "televisions send everything again when they are unknown"
    )


def _nearly_full(path: Path) -> bool:
    """Whether a page that was written in part, which LMDB calls an input/output error, may mean a full disk."""
    facts, limit = os.statvfs(path), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    room = facts.f_bavail * facts.f_frsize
    database = path if path.is_file() else path / DATABASE_NAME
    if limit != resource.RLIM_INFINITY and database.exists():
        room = min(room, limit - database.stat().st_size)
    return room < _GROWTH_BYTES


def probe(folder: Path) -> None:
    """Walk the whole database in a child process. StoreDamagedError where that ends badly; a missing one is fine. One that
    cannot even be opened is the StoreError that opening it would be: nobody is to throw away what is another user's.

    To be called before this process has threads, because it forks. Others may be writing.
    """
    database = folder / DATABASE_NAME
    try:
        if not database.exists() or database.stat().st_size == 0:
            return
    except OSError as fault:
        raise store_error(fault, folder) from fault
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        faulthandler.disable()  # its end by a signal is an answer, not a crash to report
        try:
            _walk(database)
            code = 0
        except lmdb.Error as fault:
            if not isinstance(store_error(fault, database), StoreDamagedError):
                os.write(writing, str(fault).encode()[:_MAX_FAULT_BYTES])
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        fault = told.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise damaged(database, f"reading it ends in {signal.Signals(os.WTERMSIG(status)).name}")
    if fault:
        raise store_error(lmdb.Error(fault), database)
    if os.WEXITSTATUS(status):
        raise damaged(database, "it cannot be read through")


def _walk(database: Path) -> None:
    environment = _open(database, MAP_BYTES, read_only=True)  # with its lock, or a writer would use pages anew under the walk
    with environment.begin() as transaction:
        for table in TABLES:
            opened = environment.open_db(table.encode(), txn=transaction, create=False)
            with transaction.cursor(db=opened) as cursor:
                for _ in cursor.iternext(keys=True, values=False):
                    pass


def _open(database: Path, map_bytes: int, read_only: bool = False) -> lmdb.Environment:
    return lmdb.open(
        os.fsencode(database), map_size=map_bytes, subdir=False, max_dbs=len(TABLES), max_readers=MAX_READERS, mode=0o600,
        readahead=False, readonly=read_only,
    )  # fmt: skip


class SharedEnvironment:
    """The open database. Reads and writes may come from any thread; writes wait for each other.

    Errors of all methods: StoreFullError, StoreDamagedError, StoreReadOnlyError, StoreError.
    """

    def __init__(self, folder: Path, map_bytes: int = MAP_BYTES, reserve_bytes: int = RESERVE_BYTES) -> None:
        """Open the folder's database, making both where they are missing."""
        self.path = folder / DATABASE_NAME
        self._reserve = folder / RESERVE_NAME
        self._map_bytes, self._reserve_bytes = map_bytes, reserve_bytes
        self._gate = RLock()
        """Held while reading and while the environment is replaced: closing it under a reader would end the process."""
        self._writing = Lock()
        self.databases: dict[str, object] = {}
        self._environment: lmdb.Environment | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()
        except (lmdb.Error, OSError) as fault:
            self.close()
            raise store_error(fault, folder) from fault
        self.keep_reserve()

    def _open(self) -> None:
        self._environment = _open(self.path, self._map_bytes)
        self._environment.reader_check()
        self.databases = {table: self._environment.open_db(table.encode()) for table in TABLES}

    def close(self) -> None:
        """Let go of the files. Closing twice is harmless."""
        with self._gate:
            if self._environment is not None:
                self._environment.close()
                self._environment = None

    def read(self, work: Callable[[lmdb.Transaction], Result]) -> Result:
        """What work returns, given a transaction that sees one durable state."""
        with self._gate:
            try:
                with self._begin(write=False) as transaction:
                    return work(transaction)
            except lmdb.Error as fault:
                raise store_error(fault, self.path) from fault

    def write(self, work: Callable[[lmdb.Transaction], Result], deletes: bool = False) -> Result:
        """What work returns, once all it did is durable. deletes: it only deletes, so the reserve may be spent on it.

        work may be called again after it failed; what it did before is undone then.
        """
        with self._writing:
            try:
                return self._written(work)
            except StoreFullError:
                if not deletes:
                    raise
            self._spend_reserve()
            return self._written(work)

    def _written(self, work: Callable[[lmdb.Transaction], Result]) -> Result:
        try:
            with self._begin(write=True) as transaction:
                return work(transaction)
        except lmdb.MapFullError as fault:  # the transaction is undone, the environment sound
            raise store_error(fault, self.path.parent) from fault
        except lmdb.Error as fault:
            error = store_error(fault, self.path.parent)
            self._reopen()
            raise error from fault

    def _begin(self, write: bool) -> lmdb.Transaction:
        if self._environment is None:
            raise StoreError(f"{self.path}: the store is closed")
        try:
            return self._environment.begin(write=write)
        except lmdb.MapResizedError:  # another process has grown it
            with self._gate:
                self._environment.set_mapsize(0)
                return self._environment.begin(write=write)

    def _reopen(self) -> None:
        """After a commit that failed: the last one stands, but the library may refuse to go on."""
        with self._gate:
            self.close()
            try:
                self._open()
            except (lmdb.Error, OSError) as fault:
                raise store_error(fault, self.path.parent) from fault

    # Room ----------------------------------------------------------------------------------------

    def _spend_reserve(self) -> None:
        self._reserve.unlink(missing_ok=True)
        with self._gate:
            if self.used_bytes() + _GROWTH_BYTES > self._environment.info()["map_size"]:
                self._environment.set_mapsize(self._environment.info()["map_size"] + _GROWTH_BYTES)

    def keep_reserve(self) -> bool:
        """Make the reserve where it is missing and there is room. Whether it is there."""
        try:
            if self._reserve.exists() and self._reserve.stat().st_size >= self._reserve_bytes:
                return True
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._reserve_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            self._reserve.unlink(missing_ok=True)
            return False
        return True

    def used_bytes(self) -> int:
        """Bytes of the database up to its last page."""
        with self._gate:
            return (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]

    def entries(self) -> dict[str, int]:
        """Number of records of each table."""
        return self.read(
            lambda transaction: {table: transaction.stat(database)["entries"] for table, database in self.databases.items()}
        )

    def check_readers(self) -> None:
        """Free the slots of readers whose processes have died: they would keep old pages from being used again."""
        with self._gate:
            self._environment.reader_check()
