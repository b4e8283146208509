"""The file of a vector store: a checked cache, written whole and replaced atomically.

Layout, little-endian:

| offset | bytes | field |
|---|---|---|
| 0 | 8 | magic ``OMEGAVEC`` |
| 8 | 4 | format version, 1 |
| 12 | 4 | dimensions |
| 16 | 8 | count n |
| 24 | 8 | stamp: what the vectors were built from |
| 32 | 4 | CRC-32 of the sections |
| 36 | 4 | CRC-32 of bytes 0 to 35 |
| 40 | 24 | zero |
| 64 | n * 8 | ids, uint64, ascending |
| 64 + n * 8 | n * 4 | scales, float32 |
| 64 + n * 12 | n * dimensions | codes, int8 |
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omega_edge.errors import StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError

MAGIC = b"OMEGAVEC"
FORMAT_VERSION = 1
HEADER_BYTES = 64
_FIELDS = struct.Struct("<8sIIQQI")
_CHECKSUM = struct.Struct("<I")

assert _FIELDS.size + _CHECKSUM.size <= HEADER_BYTES


@dataclass(frozen=True, slots=True)
class VectorTable:
    """Vectors by ascending id."""

    ids: NDArray[np.uint64]  # [n]
    scale: NDArray[np.float32]  # [n]
    codes: NDArray[np.int8]  # [n, dimensions]


def write_vectors(path: Path, stamp: int, table: VectorTable) -> None:
    """Writes the table beside the path, syncs it to the disk, and puts it in the path's place."""
    sections = [
        np.ascontiguousarray(table.ids, "<u8"),
        np.ascontiguousarray(table.scale, "<f4"),
        np.ascontiguousarray(table.codes, np.int8),
    ]
    checksum = 0
    for section in sections:
        checksum = zlib.crc32(section, checksum)
    fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, table.codes.shape[1], len(table.ids), stamp, checksum)
    header = (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(header)
            for section in sections:
                file.write(section)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where the folder itself cannot be entered there is nothing to remove
            temporary.unlink()
        raise _refusal(path, error) from error


def read_vectors(path: Path, stamp: int, dimensions: int) -> VectorTable | None:
    """The table of the file, or None if there is none or it was written for another stamp or other dimensions."""
    try:
        with open(path, "rb") as file:
            return _read(path, file, stamp, dimensions)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: the vectors could not be read: {error.strerror}") from error


def _read(path: Path, file: BufferedReader, stamp: int, dimensions: int) -> VectorTable | None:
    header = file.read(HEADER_BYTES)
    _check_header(path, header)
    _, _, file_dimensions, count, file_stamp, checksum = _FIELDS.unpack_from(header)
    expected = HEADER_BYTES + count * (12 + file_dimensions)
    size = os.fstat(file.fileno()).st_size
    if size != expected:
        raise _damage(path, f"expected {expected} bytes for {count} vectors, got {size}")
    if (file_stamp, file_dimensions) != (stamp, dimensions):
        return None
    table = VectorTable(np.empty(count, "<u8"), np.empty(count, "<f4"), np.empty((count, dimensions), np.int8))
    found = 0
    for section in (table.ids, table.scale, table.codes):
        if section.size:
            file.readinto(memoryview(section).cast("B"))
        found = zlib.crc32(section, found)
    if found != checksum:
        raise _damage(path, f"expected CRC-32 {checksum:08x} of the vectors, got {found:08x}")
    _check_table(path, table)
    return table


def _check_table(path: Path, table: VectorTable) -> None:
    """What a file with a true checksum may still hold: values that another program put there."""
    if not (table.ids[1:] > table.ids[:-1]).all():
        raise _damage(path, "expected ids in ascending order, each once")
    if not ((table.scale > 0) & (table.scale <= 1)).all():
        raise _damage(path, "expected scales above 0, at most 1")
    if table.codes.size and table.codes.min() < -127:
        raise _damage(path, "expected codes from -127 to 127")


def _check_header(path: Path, header: bytes) -> None:
    if len(header) < HEADER_BYTES:
        raise _damage(path, f"expected a header of {HEADER_BYTES} bytes, got {len(header)}")
    if not header.startswith(MAGIC):
        raise _damage(path, f"expected a vector file, which begins with {MAGIC!r}, got {header[:8]!r}")
    (checksum,) = _CHECKSUM.unpack_from(header, _FIELDS.size)
    if checksum != zlib.crc32(header[: _FIELDS.size]) or any(header[_FIELDS.size + _CHECKSUM.size :]):
        raise _damage(path, "the header fails its checksum")
    (_, version, *_) = _FIELDS.unpack_from(header)
    if version != FORMAT_VERSION:
        raise _damage(path, f"expected format version {FORMAT_VERSION}, got {version}")


def _damage(path: Path, fault: str) -> StoreDamagedError:
    return StoreDamagedError(f"{path}: {fault}; delete the file, it is rebuilt from the store")


def _refusal(path: Path, error: OSError) -> StoreError:
    """The store's error for what the file system answered to a write."""
    kinds = {
        errno.ENOSPC: StoreFullError,
        errno.EDQUOT: StoreFullError,
        errno.EFBIG: StoreFullError,
        errno.EROFS: StoreReadOnlyError,
        errno.EACCES: StoreReadOnlyError,
        errno.EPERM: StoreReadOnlyError,
    }
    return kinds.get(error.errno, StoreError)(f"{path}: the vectors could not be written: {error.strerror}")


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
