"""The bundle file: named arrays in one memory-mapped, checksummed file. What the arrays mean is catalog.py's.

Layout, all numbers little-endian:

    offset  bytes  field
         0      8  magic, 0x89 "OMEGA" CR LF (a text-mode transfer breaks it)
         8      4  format version, u32
        12      4  number of sections, u32
        16      8  length of the file, u64
        24      8  reserved, 0
        32     32  SHA-256 of bytes 0 to 32 and the section table
        64  128·s  the section table, one entry a section:
                   name (32, ASCII, NUL-padded) · numpy dtype (8, ASCII, NUL-padded) · flags u32 (bit 0: required)
                   · dimensions u32 (0 to 4) · shape u64[4] · offset u64 · length u64 · SHA-256 (32) of the bytes
       ...         the sections in table order, each at the next multiple of 64; the gaps are zeros

A reader skips sections that it does not know unless their required bit is set. Every byte of the file is covered by
a checksum or must be zero, so a flipped bit anywhere is found at open. The file is replaced by rename, never edited
in place: a reader's map stays whole while a new bundle takes the name.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omega_edge.errors import CatalogError

FORMAT_VERSION = 1
MAGIC = b"\x89OMEGA\r\n"
ALIGNMENT = 64
MAX_SECTIONS = 256
REQUIRED = 1

_HEADER = struct.Struct("<8sIIQQ32s")
_ENTRY = struct.Struct("<32s8sII4QQQ32s")
_SIGNED_HEADER_BYTES = 32
_DTYPES = frozenset(("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"))
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
assert _HEADER.size == 64 and _ENTRY.size == 128


class _Damaged(Exception):
    """The bytes of one section are not those that were written. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class SectionEntry:
    """One line of the section table: where an array lies, what it is, and its SHA-256."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    required: bool
    offset: int
    length: int
    digest: bytes


def read(
    path: str | os.PathLike[str], known: frozenset[str], tolerated: frozenset[str] = frozenset()
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map a bundle, check every byte of it and give its sections as read-only arrays over the map, by name; and, of the
    tolerated sections, those whose bytes are damaged, with what is wrong.

    path: the file. known: names of the sections that the caller understands; others are skipped, or refused if they
    are marked required. tolerated: of the known, those that the caller can do without. Raises CatalogError that names
    the fault. The file is unmapped when the last array goes; it is never closed by hand, since numpy's arrays do not keep
    a map from being closed under them.
    """
    mapped = _map_file(path)
    damaged = {}
    with memoryview(mapped) as view:
        entries = table_of(path, view, len(view))
        _check_gaps(path, view, entries)
        for entry in entries:
            try:
                _check_section(path, view, entry, known)
            except _Damaged as fault:
                if entry.name not in tolerated:
                    raise _damaged(path, str(fault)) from None
                damaged[entry.name] = str(fault)
    arrays = {
        entry.name: np.ndarray(entry.shape, entry.dtype, buffer=mapped, offset=entry.offset)
        for entry in entries
        if entry.name in known and entry.name not in damaged
    }
    return arrays, damaged


def let_pages_go(arrays: dict[str, np.ndarray]) -> None:
    """Give back the memory of the map under the arrays of read(). Checks touch all of a bundle, ranking some of it; what is
    touched again comes from the system's page cache, or from the file."""
    for mapped in {id(array.base): array.base for array in arrays.values()}.values():
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def write(path: str | os.PathLike[str], sections: dict[str, np.ndarray], optional: frozenset[str]) -> None:
    """Write arrays as a bundle: same arrays, same bytes. The name appears whole or not at all (write, fsync, rename).

    sections: name to array, at most 4 dimensions, of a little-endian integer or float type; order does not matter.
    optional: names that a reader may skip if it does not know them. Raises ValueError on a name or type the format
    lacks, OSError if the disk refuses.
    """
    entries, blobs = _lay_out(sections, optional)
    table = b"".join(_packed(entry) for entry in entries)
    length = entries[-1].offset + entries[-1].length if entries else _HEADER.size
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(entries), length, 0, b"")[:_SIGNED_HEADER_BYTES]
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(head + hashlib.sha256(head + table).digest() + table)
            for entry, blob in zip(entries, blobs):
                file.write(bytes(entry.offset - file.tell()))
                file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(MAGIC))
            if start != MAGIC[: len(start)] or not start:
                raise CatalogError(
                    f"{path}: not a catalogue bundle: expected the first bytes {MAGIC!r}, got {start!r}; "
                    "give the file that toolchain.build_bundle wrote"
                )
            if size < _HEADER.size:
                raise _truncated(path, size, f"at least {_HEADER.size}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CatalogError(f"{path}: no such file; build or download a catalogue bundle first") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read: {error.strerror}") from error


def _truncated(path: str | os.PathLike[str], size: int, expected: object) -> CatalogError:
    return CatalogError(f"{path}: truncated: {size} bytes, expected {expected}; fetch or build the bundle again")


def _damaged(path: str | os.PathLike[str], what: str) -> CatalogError:
    return CatalogError(f"{path}: {what}; fetch or build the bundle again")


def table_of(path: str | os.PathLike[str], view: memoryview | bytes, size: int) -> tuple[SectionEntry, ...]:
    """The sections of a bundle of so many bytes, by its beginning, which holds at least the table: every one lies where the
    format says, inside the file, and its length is that of its shape. path: named by the CatalogError on a fault."""
    if len(view) < _HEADER.size:
        raise _truncated(path, len(view), f"at least {_HEADER.size}")
    magic, version, count, length, _reserved, digest = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise _damaged(path, f"not a catalogue bundle: expected the first bytes {MAGIC!r}, got {magic!r}")
    if version != FORMAT_VERSION:
        raise CatalogError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; "
            + ("update Omega Edge" if version > FORMAT_VERSION else "build the bundle again")
        )
    if size < length:
        raise _truncated(path, size, length)
    if size > length:
        raise _damaged(path, f"damaged: {size} bytes, its header says {length}")
    table_end = head_bytes(count)
    if count > MAX_SECTIONS or table_end > len(view):
        raise _damaged(path, f"section table damaged: {count} sections do not fit")
    hasher = hashlib.sha256(view[:_SIGNED_HEADER_BYTES])
    hasher.update(view[_HEADER.size : table_end])
    if hasher.digest() != digest:
        raise _damaged(path, "section table damaged: its checksum does not match")
    entries = tuple(
        _unpacked(path, _ENTRY.unpack_from(view, _HEADER.size + index * _ENTRY.size)) for index in range(count)
    )
    names = [entry.name for entry in entries]
    if len(set(names)) != count:
        raise _damaged(path, "section table damaged: a section is listed twice")
    _check_places(path, entries, size)
    return entries


def head_bytes(sections: int) -> int:
    """Bytes of the header and the table of so many sections."""
    return _HEADER.size + sections * _ENTRY.size


def _unpacked(path: str | os.PathLike[str], fields: tuple) -> SectionEntry:
    raw_name, raw_dtype, flags, dimensions, *shape, offset, length, digest = fields
    name = raw_name.rstrip(b"\0").decode("latin-1")
    dtype = raw_dtype.rstrip(b"\0").decode("latin-1")
    if not _NAME.fullmatch(name):
        raise _damaged(path, f"section table damaged: {name!r} is no section name")
    if dtype not in _DTYPES or dimensions > 4:
        raise _damaged(path, f"section {name}: unknown type {dtype!r} with {dimensions} dimensions")
    return SectionEntry(name, dtype, tuple(shape[:dimensions]), bool(flags & REQUIRED), offset, length, digest)


def _check_places(path: str | os.PathLike[str], entries: tuple[SectionEntry, ...], size: int) -> None:
    end = head_bytes(len(entries))
    for entry in entries:
        start = aligned(end)
        if entry.length != math.prod(entry.shape) * np.dtype(entry.dtype).itemsize:
            raise _damaged(path, f"section {entry.name}: {entry.length} bytes do not make {entry.dtype}{entry.shape}")
        if entry.offset != start or start + entry.length > size:
            raise _damaged(path, f"section {entry.name}: lies at {entry.offset}, expected {start} inside the file")
        end = start + entry.length
    if end != size:
        raise _damaged(path, f"damaged: {size - end} bytes after the last section")


def _check_gaps(path: str | os.PathLike[str], view: memoryview, entries: tuple[SectionEntry, ...]) -> None:
    end = head_bytes(len(entries))
    for entry in entries:
        if any(view[end : entry.offset]):
            raise _damaged(path, f"damaged: the bytes before section {entry.name} are not zero")
        end = entry.offset + entry.length


def _check_section(path: str | os.PathLike[str], view: memoryview, entry: SectionEntry, known: frozenset[str]) -> None:
    if entry.required and entry.name not in known:
        raise CatalogError(f"{path}: needs section {entry.name}, which this program does not know; update Omega Edge")
    if hashlib.sha256(view[entry.offset : entry.offset + entry.length]).digest() != entry.digest:
        raise _Damaged(f"section {entry.name} damaged: its checksum does not match")


def aligned(offset: int) -> int:
    """The next place where a section may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _lay_out(
    sections: dict[str, np.ndarray], optional: frozenset[str]
) -> tuple[list[SectionEntry], list[bytes | memoryview]]:
    if len(sections) > MAX_SECTIONS:
        raise ValueError(f"expected at most {MAX_SECTIONS} sections, got {len(sections)}")
    entries, blobs = [], []
    end = head_bytes(len(sections))
    for name in sorted(sections):
        array = np.ascontiguousarray(sections[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(np.shape(sections[name]))
        if not _NAME.fullmatch(name) or array.dtype.str not in _DTYPES or array.ndim > 4:
            raise ValueError(f"section {name!r}: a bundle cannot hold {array.dtype.str}{array.shape} under this name")
        blob = array.tobytes()
        offset = aligned(end)
        digest = hashlib.sha256(blob).digest()
        entries.append(
            SectionEntry(name, array.dtype.str, array.shape, name not in optional, offset, len(blob), digest)
        )
        blobs.append(blob)
        end = offset + len(blob)
    return entries, blobs


def _packed(entry: SectionEntry) -> bytes:
    shape = (*entry.shape, *(0 for _ in range(4 - len(entry.shape))))
    return _ENTRY.pack(
        entry.name.encode(),
        entry.dtype.encode(),
        REQUIRED if entry.required else 0,
        len(entry.shape),
        *shape,
        entry.offset,
        entry.length,
        entry.digest,
    )
