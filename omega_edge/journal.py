"""The write-ahead journal: one small append per viewing, so that remembering it does not cost a database commit.

File: a header block of HEADER_BYTES, then records one after another, in a file allocated in full beforehand.

    header, big-endian   magic 8 B, format u16, seal (length u64, checksum u32), CRC32 of the former
    record, big-endian   payload length u32, CRC32 u32, sequence u64, payload

A record's CRC32 covers its length, sequence and payload and starts from the CRC32 of the record before it. So a
record that survived a power cut beyond a lost one can never be taken for the successor of what is written there
later. The first record may have any sequence; each further one the next.

Nothing is written to empty the journal: once the database holds every record, the next append starts over at the
first byte, and reading back ignores sequences that the database has applied.

Where a record fails its checksum, what follows tells a torn tail from damage. If the next record chains from the broken
one, both were once written whole: so it is damage, the one record is passed over and the rest taken. Nothing behind a
torn record chains from it, because a sector that holds a record's end holds it no later than the next one's beginning.

The header carries the seal of the database file: what it looked like after its last commit (see store.py).
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from omega_edge.errors import StoreError, StoreFullError, StoreReadOnlyError

HEADER_BYTES = 4096
"""One page: a commit rewrites it, an append does not touch it."""
CAPACITY_BYTES = 512 * 1024
"""Size of the file: some 4,000 ordinary records, so many can still be taken while the disk is full."""
MAX_PAYLOAD_BYTES = 4096

_MAGIC = b"OmegaJnl"
_FORMAT = 1
_HEADER = struct.Struct(">8sHQI")
_CHECKSUM = struct.Struct(">I")
_RECORD = struct.Struct(">IIQ")
_SECTOR_BYTES = 512
_LENGTH_BYTES = 4
_SEQUENCE_OFFSET = 8
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def store_error(fault: Exception, path: str | os.PathLike[str]) -> StoreError:
    """The StoreError that an error of the operating system, or of LMDB, on a file of the store stands for."""
    number = fault.errno if isinstance(fault, OSError) else _number_in(str(fault))
    if number in _FULL:
        return StoreFullError(f"{path}: no space left for the write ({os.strerror(number)}); free some and try again")
    if number in _READ_ONLY:
        return StoreReadOnlyError(f"{path}: cannot be written ({os.strerror(number)}); the store is read-only")
    return StoreError(f"{path}: {fault}")


def _number_in(text: str) -> int | None:
    """The error number whose text ends a message of LMDB, which tells no number of the operating system's errors."""
    return next((number for number in _FULL | _READ_ONLY if text.endswith(os.strerror(number))), None)


@dataclass(frozen=True, slots=True)
class Seal:
    """The database file after a commit: length in bytes, CRC32 of all of them."""

    length: int
    checksum: int


class Journal:
    """The journal of one store. Not thread-safe: callers hold the store's lock."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, making it if it is missing. Raises StoreError if that cannot be done.

        A full disk is no error here: what was allocated can be used, and append() tries to get the rest.
        """
        self._path = path
        self._read_only = read_only
        self._descriptor = -1
        self._allocated_bytes = 0
        self._position = HEADER_BYTES
        self._chain = 0
        self._unsynced: list[tuple[int, bytes]] = []
        self._rewrite_before_sync = False
        self.seal: Seal | None = None
        self.damaged: tuple[int, ...] = ()
        """Sequences that the last replay() had to pass over."""
        self.bytes_written = 0
        try:
            self._descriptor = os.open(path, os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT, 0o600)
            self._allocated_bytes = os.fstat(self._descriptor).st_size
            # Read ahead, the file would come to lie in large pieces of the page cache, and Linux counts, and may write,
            # the whole of a piece of which a few bytes were changed.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self.seal = self._read_seal()
        except OSError as fault:
            self.close()
            if not (read_only and fault.errno == errno.ENOENT):
                raise store_error(fault, path) from fault

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless; what was not synced stays so."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # Reading -------------------------------------------------------------------------------------

    def replay(self, applied: int) -> list[tuple[int, bytes]]:
        """Records (sequence, payload) with a sequence above `applied`, in order, up to the first torn one.

        Damaged ones among them are passed over and named in `damaged`. The next append follows the last of them.
        """
        image = self._read_records()
        found: list[tuple[int, bytes]] = []
        damaged: list[int] = []
        offset, chain, expected = 0, 0, None
        self.restart()
        while offset + _RECORD.size <= len(image):
            length, checksum, sequence = _RECORD.unpack_from(image, offset)
            if _is_whole(image, offset, chain, expected):
                end = offset + _RECORD.size + length
                if sequence > applied:
                    found.append((sequence, image[offset + _RECORD.size : end]))
            else:
                passed = _pass_over(image, offset, chain, (sequence, applied + 1) if expected is None else (expected,))
                if passed is None:
                    break
                end, checksum, sequence = passed
                if sequence > applied:
                    damaged.append(sequence)
            offset, chain, expected = end, checksum, sequence + 1
            if sequence > applied:
                self._position, self._chain = HEADER_BYTES + offset, chain
        self.damaged = tuple(damaged)
        if not self._read_only:
            self._clear_beyond(image, max(applied + 1, expected or 0))
        return found

    def holds_bytes(self) -> bool:
        """Whether anything was ever recorded here, since the file was made or wiped."""
        return bool(self._read_records().strip(b"\0"))

    def _clear_beyond(self, image: bytes, sequence: int) -> None:
        """Overwrite what a power cut left beyond a lost record: records with the sequence that is appended next, or a
        later one. They were never told of, and must not come to follow one that is appended now."""
        beyond = image[self._position - HEADER_BYTES :].rstrip(b"\0")
        for prefix in (sequence >> 16, (sequence >> 16) + 1):
            pattern = rb"\x00\x00(?:\x00[\x01-\xff]|[\x01-\x10].)....%s(..)" % re.escape(prefix.to_bytes(6, "big"))
            for match in re.finditer(pattern, beyond, re.DOTALL):
                if (prefix << 16) + int.from_bytes(match[1], "big") >= sequence:
                    self._write(self._position, bytes(len(beyond)))
                    self._sync_file()
                    return

    def _read_records(self) -> bytes:
        if self._descriptor < 0:
            return b""
        try:
            return os.pread(self._descriptor, max(CAPACITY_BYTES - HEADER_BYTES, 0), HEADER_BYTES)
        except OSError as fault:
            raise store_error(fault, self._path) from fault

    def _read_seal(self) -> Seal | None:
        image = os.pread(self._descriptor, _HEADER.size + _CHECKSUM.size, 0)
        if len(image) < _HEADER.size + _CHECKSUM.size:
            return None
        if _CHECKSUM.unpack_from(image, _HEADER.size)[0] != zlib.crc32(image[: _HEADER.size]):
            return None
        magic, file_format, *seal = _HEADER.unpack_from(image)
        return Seal(*seal) if (magic, file_format) == (_MAGIC, _FORMAT) else None

    # Writing -------------------------------------------------------------------------------------

    @property
    def unsynced_records(self) -> int:
        """Appended records that a power cut can still take."""
        return len(self._unsynced)

    def append(self, sequence: int, payload: bytes) -> None:
        """Write one record behind the last. It survives the end of the process at once, a power cut after sync().

        payload: 1 to MAX_PAYLOAD_BYTES. Raises StoreFullError if it does not fit: then nothing has changed, and
        restart() makes room once the database holds what is here.
        """
        assert 0 < len(payload) <= MAX_PAYLOAD_BYTES
        if self._read_only:
            raise StoreReadOnlyError(f"{self._path}: the store is open read-only; nothing can be recorded")
        checksum = _record_checksum(len(payload), sequence, payload, self._chain)
        record = _RECORD.pack(len(payload), checksum, sequence) + payload
        if self._position + len(record) > CAPACITY_BYTES:
            raise StoreFullError(f"{self._path}: the journal is full and waits for the database to take its records")
        self._allocate()
        if self._position + len(record) > self._allocated_bytes:
            raise StoreFullError(f"{self._path}: no space left to allocate the journal; free some and try again")
        self._write(self._position, record)
        self._unsynced.append((self._position, record))
        self._position += len(record)
        self._chain = checksum

    def sync(self) -> None:
        """Return when every record appended before the call is durable. Raises StoreError if it cannot be done."""
        if not self._unsynced:
            return
        if self._rewrite_before_sync:
            # After a failed fdatasync the kernel may count its pages as clean: a second call would succeed for
            # nothing. So the records are written again.
            for offset, record in self._unsynced:
                self._write(offset, record)
        try:
            os.fdatasync(self._descriptor)
        except OSError as fault:
            self._rewrite_before_sync = True
            raise store_error(fault, self._path) from fault
        self._rewrite_before_sync = False
        self._unsynced.clear()

    def restart(self) -> None:
        """Start over at the first byte. To be called when the database holds every record, durably."""
        self._position, self._chain = HEADER_BYTES, 0
        self._unsynced.clear()
        self._rewrite_before_sync = False

    def wipe(self) -> None:
        """Overwrite every record with zeros, durably, and start over. For forgetting."""
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes > HEADER_BYTES:
            self._write(HEADER_BYTES, bytes(size_bytes - HEADER_BYTES))
        self._sync_file()
        self.restart()

    def write_seal(self, seal: Seal) -> None:
        """Note what the database file looks like after a commit. It becomes durable with the next record."""
        header = _HEADER.pack(_MAGIC, _FORMAT, seal.length, seal.checksum)
        self._allocate()
        self._write(0, header + _CHECKSUM.pack(zlib.crc32(header)))
        self.seal = seal

    def _allocate(self) -> None:
        """Claim the whole file, if not done already: a full disk is then met here and not in the midst of a record."""
        if self._allocated_bytes >= CAPACITY_BYTES:
            return
        try:
            os.posix_fallocate(self._descriptor, 0, CAPACITY_BYTES)
            os.fsync(self._descriptor)
        except OSError as fault:
            if fault.errno not in _FULL:
                raise store_error(fault, self._path) from fault
            return
        self._allocated_bytes = CAPACITY_BYTES

    def _sync_file(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as fault:
            raise store_error(fault, self._path) from fault

    def _write(self, offset: int, content: bytes) -> None:
        try:
            written = os.pwrite(self._descriptor, content, offset)
        except OSError as fault:
            raise store_error(fault, self._path) from fault
        self.bytes_written += written
        if written != len(content):
            raise StoreFullError(f"{self._path}: {written} of {len(content)} bytes were written; free some space")


def _record_checksum(length: int, sequence: int, payload: bytes, chain: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_RECORD.pack(length, 0, sequence), chain))


def _is_whole(image: bytes, offset: int, chain: int, expected: int | None) -> bool:
    """Whether a record that chains from `chain`, of the expected sequence (None: any), lies there whole."""
    if offset + _RECORD.size > len(image):
        return False
    length, checksum, sequence = _RECORD.unpack_from(image, offset)
    end = offset + _RECORD.size + length
    if not 0 < length <= MAX_PAYLOAD_BYTES or end > len(image) or expected not in (None, sequence):
        return False
    return checksum == _record_checksum(length, sequence, image[offset + _RECORD.size : end], chain)


def _pass_over(image: bytes, offset: int, chain: int, sequences: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Where a damaged record ends, the checksum that the next chains from, and its sequence, one of those given.

    None if no next one proves that it was once written whole.
    """
    length, stored, _sequence = _RECORD.unpack_from(image, offset)
    # Between the length and the checksum of a header that two sectors share, a power cut may leave the second alone.
    split = 0 < -offset % _SECTOR_BYTES <= _LENGTH_BYTES
    payload = offset + _RECORD.size
    for sequence in sequences:
        following = (sequence + 1).to_bytes(9, "big")[1:]
        last = payload + MAX_PAYLOAD_BYTES + _RECORD.size
        at = image.find(following, payload + 1 + _SEQUENCE_OFFSET, last)
        while at >= 0:
            end = at - _SEQUENCE_OFFSET
            checksums = [] if split and length != end - payload else [stored]
            if length == end - payload:
                checksums.append(_record_checksum(length, sequence, image[payload:end], chain))
            for checksum in checksums:
                if _is_whole(image, end, checksum, sequence + 1):
                    return end, checksum, sequence
            at = image.find(following, at + 1, last)
    return None
