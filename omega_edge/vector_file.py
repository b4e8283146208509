"""The files of a vector store: checked caches, mapped into memory, written whole and replaced atomically.

The vectors, little-endian. Sections lie in this order, each filled up with zeros to a multiple of 64 bytes, so that each
begins at one; a capacity above the count leaves rows for the first changes after a load:

| offset | bytes | field |
|---|---|---|
| 0 | 8 | magic ``OMEGAVEC`` |
| 8 | 4 | format version, 2 |
| 12 | 4 | dimensions d |
| 16 | 8 | count n |
| 24 | 8 | capacity c |
| 32 | 8 | stamp: what the vectors were built from |
| 40 | 4 | flags: 1 signs, 2 half floats in a file beside |
| 44 | 4 | CRC-32 of the first 64 bytes of the half floats' file, 0 without |
| 48 | 8 | calibration: count of vectors that it was measured at, 0 without |
| 56 | 4 | calibration: candidates, 0 for exact searches |
| 60 | 4 | calibration: recall measured, float32 |
| 64 | 4 | calibration: recall asked for, float32 |
| 68 | 24 | CRC-32 of each section, its filling included |
| 92 | 4 | CRC-32 of bytes 0 to 91 |
| 96 | 32 | zero |
| 128 | c * d / 2 | upper halves of the codes |
| | c * d / 2 | lower halves |
| | c * 4 | scales, float32 |
| | c | spreads |
| | c * 8 | ids, uint64, ascending |
| | ceil(c / 32) * 4 d | signs, where flagged |

The half floats, in a file of the same name and ``.float16``:

| offset | bytes | field |
|---|---|---|
| 0 | 8 | magic ``OMEGAF16`` |
| 8 | 4 | format version, 1 |
| 12 | 4 | dimensions d |
| 16 | 8 | count n |
| 24 | 4 | CRC-32 of the rows' checksums, their filling included |
| 28 | 36 | zero |
| 64 | n * 4 | CRC-32 of each row, filled up with zeros to a multiple of 64 bytes |
| | n * d * 2 | rows, float16 |

Opening checks the headers, the sizes and the rows' checksums; ``MappedVectors.verify`` checks the sections, before the
first use of any. The maps are private: what is written to them never reaches the file. A file is never written in place,
and nobody else may truncate it while it is mapped: reading past its end would end the process.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from omega_edge.errors import StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.vector_calibration import EXACT_UNREACHED, LEAST_CANDIDATES, Plan
from omega_edge.vector_halffloats import HalfFloats
from omega_edge.vector_rows import VectorArrays, sign_blocks

MAGIC, HALFFLOAT_MAGIC = b"OMEGAVEC", b"OMEGAF16"
FORMAT_VERSION, HALFFLOAT_VERSION = 2, 1
HEADER_BYTES, HALFFLOAT_HEADER_BYTES = 128, 64
_FIELDS = struct.Struct("<8sIIQQQIIQIff6I")
_HALFFLOAT_FIELDS = struct.Struct("<8sIIQI")
_CHECKSUM = struct.Struct("<I")
_STEP = 64
_WITH_SIGNS, _WITH_HALFFLOATS = 1, 2
SECTIONS = ("high", "low", "scale", "spread", "ids", "signs")
_DTYPES = (np.uint8, np.uint8, np.float32, np.uint8, np.uint64, np.uint8)
_GREATEST_DIMENSIONS, _GREATEST_CAPACITY = 1024, 1 << 32

assert _FIELDS.size + _CHECKSUM.size <= HEADER_BYTES and HEADER_BYTES % _STEP == 0


@dataclass(frozen=True, slots=True)
class VectorHeader:
    """What the file says of itself."""

    dimensions: int
    count: int
    capacity: int
    stamp: int
    with_signs: bool
    halffloat_checksum: int | None
    plan: Plan | None
    recall: float
    checksums: tuple[int, ...] = (0,) * len(SECTIONS)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the sections, in their order."""
        c, d = self.capacity, self.dimensions
        return (c, d // 2), (c, d // 2), (c,), (c,), (c,), (sign_blocks(c) if self.with_signs else 0, 4 * d)

    def layout(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each section, filling included; last the offset of the end and 0."""
        offset = HEADER_BYTES
        for shape, dtype in zip(self.shapes(), _DTYPES, strict=True):
            length = _filled_up(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
            yield offset, length
            offset += length
        yield offset, 0

    def packed(self) -> bytes:
        """The header's bytes."""
        plan = self.plan or Plan()
        flags = _WITH_SIGNS * self.with_signs + _WITH_HALFFLOATS * (self.halffloat_checksum is not None)
        fields = _FIELDS.pack(
            MAGIC, FORMAT_VERSION, self.dimensions, self.count, self.capacity, self.stamp, flags,
            self.halffloat_checksum or 0, plan.vectors, plan.candidates, plan.recall, self.recall, *self.checksums,
        )
        return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


class MappedVectors:
    """A file of vectors, mapped privately."""

    def __init__(self, path: Path, header: VectorHeader, map: mmap.mmap, halffloats: HalfFloats | None) -> None:
        self.header = header
        self.halffloats = halffloats
        self._path = path
        self._map = map
        sections = []
        for (offset, _), shape, dtype in zip(header.layout(), header.shapes(), _DTYPES, strict=False):
            size = int(np.prod(shape))
            sections.append(np.frombuffer(map, dtype, size, offset).reshape(shape) if size else np.empty(shape, dtype))
        self.arrays = VectorArrays(*sections[:5], sections[5] if header.with_signs else None)

    def verify(self) -> None:
        """StoreDamagedError where a section fails its checksum or holds what no store holds.

        The codes themselves, spreads and signs are what their checksum vouches for: whatever they are, they lead no
        kernel out of bounds.
        """
        content, count = memoryview(self._map), self.header.count
        for name, (offset, length), expected in zip(
            SECTIONS, self.header.layout(), self.header.checksums, strict=False
        ):
            found = zlib.crc32(content[offset : offset + length])
            if found != expected:
                raise _damage(self._path, f"expected CRC-32 {expected:08x} of section {name}, got {found:08x}")
        ids, scale = self.arrays.ids[:count], self.arrays.scale[:count]
        if not (ids[1:] > ids[:-1]).all():
            raise _damage(self._path, "expected ids in ascending order, each once")
        if not ((scale > 0) & (scale <= 1)).all():
            raise _damage(self._path, "expected scales above 0, at most 1")


def write_vectors(path: Path, header: VectorHeader, sections: Iterable[Iterable[NDArray]]) -> None:
    """Writes a file of vectors: each section as arrays that follow one another. Its checksums are filled in."""

    def fill(file: BinaryIO) -> None:
        file.write(bytes(HEADER_BYTES))
        checksums = tuple(_write_section(file, parts) for parts in sections)
        file.seek(0)
        fields = {name: getattr(header, name) for name in header.__slots__}
        file.write(VectorHeader(**{**fields, "checksums": checksums}).packed())

    _replace(path, fill)


def write_halffloats(path: Path, dimensions: int, count: int, parts: Iterable[NDArray[np.float16]]) -> int:
    """Writes the file of half floats that belongs to one of vectors; the CRC-32 of its header."""
    checksums, header = np.zeros(count, "<u4"), b""

    def fill(file: BinaryIO) -> None:
        nonlocal header
        first = HALFFLOAT_HEADER_BYTES + _filled_up(checksums.nbytes)
        file.seek(first)
        row = 0
        for part in parts:
            content = np.ascontiguousarray(part, "<f2")
            for vector in content:
                checksums[row] = zlib.crc32(vector)
                row += 1
            file.write(content)
        assert row == count
        file.seek(HALFFLOAT_HEADER_BYTES)
        checksum = _write_section(file, [checksums])
        fields = _HALFFLOAT_FIELDS.pack(HALFFLOAT_MAGIC, HALFFLOAT_VERSION, dimensions, count, checksum)
        header = fields.ljust(HALFFLOAT_HEADER_BYTES, b"\0")
        file.seek(0)
        file.write(header)

    _replace(halffloat_path(path), fill)
    return zlib.crc32(header)


def remove_halffloats(path: Path) -> None:
    """Removes what an earlier save left beside a file of vectors; one that cannot be removed is never read."""
    with suppress(OSError):
        halffloat_path(path).unlink(missing_ok=True)


def halffloat_path(path: Path) -> Path:
    """Where the half floats of a file of vectors lie."""
    return path.with_name(path.name + ".float16")


def map_vectors(path: Path, stamp: int, dimensions: int, with_halffloats: bool) -> MappedVectors | None:
    """The file, mapped; None if there is none, or if it was written for another stamp, other dimensions, or without
    the half floats asked for.
    """
    try:
        with open(path, "rb") as file:
            header = _header(path, file)
            if (header.stamp, header.dimensions) != (stamp, dimensions):
                return None
            if with_halffloats and header.halffloat_checksum is None:
                return None
            map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return MappedVectors(path, header, map, _halffloats(path, header) if with_halffloats else None)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: the vectors could not be read: {error.strerror}") from error


def _header(path: Path, file: BinaryIO) -> VectorHeader:
    packed = file.read(HEADER_BYTES)
    if not packed.startswith(MAGIC[: len(packed)]) or len(packed) < len(MAGIC):
        raise _damage(path, f"expected a vector file, which begins with {MAGIC!r}, got {packed[:8]!r}")
    if len(packed) < HEADER_BYTES:
        raise _damage(path, f"expected a header of {HEADER_BYTES} bytes, got {len(packed)}")
    _, version, dimensions, count, capacity, stamp, flags, halffloat, vectors, candidates, measured, recall, *checksums = (
        _FIELDS.unpack_from(packed)
    )
    if version != FORMAT_VERSION:
        raise _damage(path, f"expected format version {FORMAT_VERSION}, got {version}")
    (checksum,) = _CHECKSUM.unpack_from(packed, _FIELDS.size)
    if checksum != zlib.crc32(packed[: _FIELDS.size]) or any(packed[_FIELDS.size + _CHECKSUM.size :]):
        raise _damage(path, "the header fails its checksum")
    if flags & ~(_WITH_SIGNS | _WITH_HALFFLOATS) or not 0 <= measured <= 1 or not 0 < recall <= 1:
        raise _damage(path, "expected known flags, and recalls from 0 to 1")
    if dimensions % 32 or not 32 <= dimensions <= _GREATEST_DIMENSIONS or not count <= capacity < _GREATEST_CAPACITY:
        raise _damage(path, f"expected {dimensions} dimensions and {count} of {capacity} rows to be what a store holds")
    plan = Plan(candidates, measured, "" if candidates else EXACT_UNREACHED, vectors) if vectors else None
    with_signs = bool(flags & _WITH_SIGNS)
    if candidates and not (with_signs and candidates >= LEAST_CANDIDATES):
        raise _damage(path, f"expected signs, and at least {LEAST_CANDIDATES} candidates, where they are chosen by signs")
    header = VectorHeader(
        dimensions, count, capacity, stamp, with_signs, halffloat if flags & _WITH_HALFFLOATS else None, plan, recall,
        tuple(checksums),
    )
    *_, (expected, _) = header.layout()
    size = os.fstat(file.fileno()).st_size
    if size != expected:
        raise _damage(path, f"expected {expected} bytes for {count} vectors, got {size}")
    return header


def _halffloats(path: Path, header: VectorHeader) -> HalfFloats:
    side, count, dimensions = halffloat_path(path), header.count, header.dimensions
    try:
        file = open(side, "rb")  # noqa: SIM115  closed below
    except FileNotFoundError:
        raise _damage(side, "expected the half floats that belong to the vectors, got no file") from None
    with file:
        packed = file.read(HALFFLOAT_HEADER_BYTES)
        if not packed.startswith(HALFFLOAT_MAGIC):
            raise _damage(side, f"expected half floats, which begin with {HALFFLOAT_MAGIC!r}, got {packed[:8]!r}")
        if zlib.crc32(packed) != header.halffloat_checksum:
            raise _damage(side, "the header is not the one that the vectors were saved with")
        _, version, side_dimensions, side_count, checksum = _HALFFLOAT_FIELDS.unpack_from(packed)
        if (version, side_dimensions, side_count) != (HALFFLOAT_VERSION, dimensions, count):
            raise _damage(side, f"expected version {HALFFLOAT_VERSION} with {count} rows of {dimensions}")
        first = HALFFLOAT_HEADER_BYTES + _filled_up(4 * count)
        expected, size = first + 2 * count * dimensions, os.fstat(file.fileno()).st_size
        if size != expected:
            raise _damage(side, f"expected {expected} bytes for {count} rows, got {size}")
        map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if zlib.crc32(memoryview(map)[HALFFLOAT_HEADER_BYTES:first]) != checksum:
        raise _damage(side, "the rows' checksums fail their own")
    if not count:
        return HalfFloats.empty(dimensions)
    checksums = np.frombuffer(map, "<u4", count, HALFFLOAT_HEADER_BYTES)
    return HalfFloats.over(np.frombuffer(map, "<f2", count * dimensions, first).reshape(count, dimensions), checksums)


def _write_section(file: BinaryIO, parts: Iterable[NDArray]) -> int:
    """Writes arrays one after another, filled up; the CRC-32."""
    checksum = length = 0
    for part in parts:
        content = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
        file.write(content)
        checksum = zlib.crc32(content, checksum)
        length += content.nbytes
    filling = bytes(_filled_up(length) - length)
    file.write(filling)
    return zlib.crc32(filling, checksum)


def _filled_up(length: int) -> int:
    return -(-length // _STEP) * _STEP


def _replace(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Writes a file beside the path, syncs it to the disk, and puts it in the path's place."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where the folder itself cannot be entered there is nothing to remove
            temporary.unlink()
        raise _refusal(path, error) from error


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
