"""Bundle deltas: what turns one bundle file into a later one, byte for byte, section by section.

A section that both files hold is copied from the old one; another is packed, with the old section of the same name
before it as a dictionary, with the old bytes subtracted, or alone, whichever is shortest. All numbers little-endian:

    offset  bytes  field
         0      8  magic, 0x89 "ODELT" CR LF
         8      4  format version, u32
        12      4  number of parts, u32: the head (header and section table) of the new file, and its sections in order
        16      8  length of the new file, u64
        24      8  length of the head, u64
        32     32  SHA-256 of the old file
        64     32  SHA-256 of the new file
        96    12·p the parts, one entry each: how u8, arrangement u8, 0 u16, packed length u64
       ...         the packed bytes of the parts, in order

How a part is made: 0 copied from the old file; else a zstd frame that states its length: 1 alone, 2 after the old part as a
dictionary, 3 of the difference to the old part, byte by byte. Arrangement of both parts before that: 0 as they are, 1 the
lowest byte of every number, then the next, and so on; 2 the same of each number less the one before it.

A reader believes nothing: every size is checked against the new file's own table before anything is allocated, at most
the largest section, twice, is in memory at once, and the new file takes its name only when its SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from omega_edge import bundle
from omega_edge.bundle import SectionEntry
from omega_edge.errors import CatalogError

FORMAT_VERSION = 1
MAGIC = b"\x89ODELT\r\n"
MAX_BUNDLE_BYTES = 1 << 28
"""Of a bundle that a television fetches: 256 MiB."""
MAX_DELTA_BYTES = MAX_BUNDLE_BYTES

_HEADER = struct.Struct("<8sIIQQ32s32s")
_PART = struct.Struct("<BBHQ")
_COPIED, _ALONE, _AFTER_THE_OLD, _DIFFERENCE = range(4)
_AS_IT_IS, _PLANES, _STEPS = range(3)
_MIB = 1 << 20
_LEVEL = 19
_TRIAL_LEVEL = 6
_LARGEST_WINDOW = 27
assert _HEADER.size == 96 and _PART.size == 12


@dataclass(frozen=True, slots=True)
class _Piece:
    """A contiguous part of a bundle file: bytes, and of how many bytes its numbers are."""

    data: np.ndarray
    itemsize: int


def make_delta(base_path: str | os.PathLike[str], target_path: str | os.PathLike[str]) -> bytes:
    """The delta from one bundle file to another. Same files, same bytes.

    Raises CatalogError where either is no bundle. It is not promised to be smaller than the target.
    """
    base, target = _mapped(base_path), _mapped(target_path)
    old = dict(_pieces(base_path, base))
    entries, blobs = [], []
    for name, piece in _pieces(target_path, target):
        how, arrangement, packed = _packed(piece, old.get(name))
        entries.append(_PART.pack(how, arrangement, 0, len(packed)))
        blobs.append(packed)
    digests = hashlib.sha256(base).digest(), hashlib.sha256(target).digest()
    head = bundle.head_bytes(len(entries) - 1)
    return b"".join((_HEADER.pack(MAGIC, FORMAT_VERSION, len(entries), len(target), head, *digests), *entries, *blobs))


def apply_delta(
    base_path: str | os.PathLike[str],
    delta: bytes | memoryview,
    out_path: str | os.PathLike[str],
    max_bytes: int = MAX_BUNDLE_BYTES,
) -> None:
    """Write the new bundle that a delta makes of an old one. out_path appears whole or not at all (write, fsync, rename).

    max_bytes: of the new bundle. Raises CatalogError where the delta is damaged, is for another old bundle, or would grow
    beyond that; OSError if the disk refuses.
    """
    delta = memoryview(delta)
    plan = _Plan.read(delta, max_bytes)
    base = _mapped(base_path)
    if hashlib.sha256(base).digest() != plan.base_digest:
        raise _unfit("expected the old bundle that it was made from, got another; fetch the whole bundle")
    old = dict(_pieces(base_path, base))
    head = plan.unpacked(0, delta, old.get(""), plan.head_length, 1).tobytes()
    entries = bundle.table_of("delta", head, plan.length)
    if bundle.head_bytes(len(entries)) != plan.head_length or len(entries) + 1 != len(plan.parts):
        raise _unfit(f"expected as many parts as its table has sections, {len(entries)}, got {len(plan.parts) - 1}")

    def write(file) -> bytes:
        whole = hashlib.sha256()
        place = _put(file, whole, 0, 0, head)
        for part, entry in enumerate(entries, start=1):
            made = plan.unpacked(part, delta, old.get(entry.name), entry.length, np.dtype(entry.dtype).itemsize)
            place = _put(file, whole, place, entry.offset, made)
        return whole.digest()

    _write_whole(Path(out_path), write, plan.target_digest)


def base_digest(delta: bytes | memoryview) -> bytes:
    """SHA-256 of the old bundle that a delta is for. Raises CatalogError for what is no delta."""
    return _Plan.read(memoryview(delta), MAX_BUNDLE_BYTES).base_digest


@dataclass(frozen=True, slots=True)
class _Plan:
    """The head of a delta. parts: (how, arrangement, start, packed length) each, inside the delta."""

    length: int
    head_length: int
    base_digest: bytes
    target_digest: bytes
    parts: tuple[tuple[int, int, int, int], ...]

    @staticmethod
    def read(delta: memoryview, max_bytes: int) -> _Plan:
        """From the bytes of a delta, whose sizes are checked; CatalogError where they do not fit together."""
        if len(delta) < _HEADER.size or bytes(delta[: len(MAGIC)]) != MAGIC:
            raise _unfit(f"expected a bundle delta, got {len(delta)} other bytes")
        _magic, version, count, length, head, base, target = _HEADER.unpack_from(delta)
        if version != FORMAT_VERSION:
            raise _unfit(f"expected format version {FORMAT_VERSION}, got {version}; fetch the whole bundle")
        end = _HEADER.size + count * _PART.size
        if not 1 <= count <= bundle.MAX_SECTIONS + 1 or end > len(delta):
            raise _unfit(f"expected 1 to {bundle.MAX_SECTIONS + 1} parts inside it, got {count}")
        if length > max_bytes or head > bundle.head_bytes(bundle.MAX_SECTIONS):
            raise _unfit(f"expected a bundle of at most {max_bytes} bytes, got one of {length} with a head of {head}")
        parts = []
        for index in range(count):
            how, arrangement, zero, packed = _PART.unpack_from(delta, _HEADER.size + index * _PART.size)
            if how > _DIFFERENCE or arrangement > _STEPS or zero or packed > len(delta) - end or (how == _COPIED and packed):
                raise _unfit(f"part {index} is damaged")
            parts.append((how, arrangement, end, packed))
            end += packed
        if end != len(delta):
            raise _unfit(f"expected {end} bytes, got {len(delta)}")
        return _Plan(length, head, base, target, tuple(parts))

    def unpacked(self, part: int, delta: memoryview, old: _Piece | None, length: int, itemsize: int) -> np.ndarray:
        """uint8[length]: a part as it stands in the new file. old: the old file's part of this name, if it has one."""
        how, arrangement, start, packed = self.parts[part]
        if how != _ALONE and (old is None or (how != _AFTER_THE_OLD and len(old.data) != length)):
            raise _unfit(f"part {part} needs an old one of {length} bytes, which there is not")
        if how == _COPIED:
            return old.data
        dictionary = _arranged(old, arrangement) if how != _ALONE else None
        frame = delta[start : start + packed]
        found = _decompressed(part, frame, length, dictionary if how == _AFTER_THE_OLD else None)
        if how == _DIFFERENCE:
            found = found + dictionary
        return _disarranged(found, arrangement, itemsize)


def _unfit(what: str) -> CatalogError:
    return CatalogError(f"delta: {what}")


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CatalogError(f"{path}: cannot be read: {error}") from None


def _pieces(path: str | os.PathLike[str], mapped: mmap.mmap) -> Iterator[tuple[str, _Piece]]:
    """The head of a bundle under the name "", then its sections, as views of the map."""
    whole = np.frombuffer(mapped, np.uint8)
    entries: tuple[SectionEntry, ...] = bundle.table_of(path, mapped, len(mapped))
    yield "", _Piece(whole[: bundle.head_bytes(len(entries))], 1)
    for entry in entries:
        yield entry.name, _Piece(whole[entry.offset : entry.offset + entry.length], np.dtype(entry.dtype).itemsize)


def _packed(piece: _Piece, old: _Piece | None) -> tuple[int, int, bytes]:
    """(how, arrangement, packed bytes) of the shortest way to make a part."""
    if old is not None and np.array_equal(piece.data, old.data):
        return _COPIED, _AS_IT_IS, b""
    ways = []
    for arrangement in (_AS_IT_IS,) if piece.itemsize == 1 else (_AS_IT_IS, _PLANES, _STEPS):
        new = _arranged(piece, arrangement)
        ways.append((_ALONE, arrangement, new, None))
        if old is not None and len(old.data) and old.itemsize == piece.itemsize:
            before = _arranged(old, arrangement)
            ways.append((_AFTER_THE_OLD, arrangement, new, before))
            if len(before) == len(new):
                ways.append((_DIFFERENCE, arrangement, new - before, None))
    how, arrangement, data, before = min(ways, key=lambda way: len(_compressed(way[2], way[3], _TRIAL_LEVEL)))
    return how, arrangement, _compressed(data, before, _LEVEL)


def _arranged(piece: _Piece, arrangement: int) -> np.ndarray:
    """uint8: the bytes of a part in the order in which they are packed."""
    size = piece.itemsize
    if arrangement == _AS_IT_IS or size == 1 or len(piece.data) % size:
        return piece.data
    numbers = np.frombuffer(piece.data.tobytes(), f"<u{size}")
    if arrangement == _STEPS:
        numbers = np.diff(numbers, prepend=numbers.dtype.type(0))
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, size).T).reshape(-1)


def _disarranged(data: np.ndarray, arrangement: int, size: int) -> np.ndarray:
    """The opposite of _arranged. size: of a number, in bytes."""
    if arrangement == _AS_IT_IS or size == 1 or len(data) % size:
        return data
    numbers = np.ascontiguousarray(data.reshape(size, -1).T).reshape(-1).view(f"<u{size}")
    if arrangement == _STEPS:
        numbers = np.add.accumulate(numbers, dtype=numbers.dtype)
    return numbers.view(np.uint8)


def _window(length: int) -> int:
    """log2 of the window that spans so many bytes, as zstd counts windows."""
    return min(max((length - 1).bit_length(), 10), _LARGEST_WINDOW)


def _compressed(data: np.ndarray, dictionary: np.ndarray | None, level: int) -> bytes:
    """One zstd frame that states its length."""
    span = len(data) + (0 if dictionary is None else len(dictionary))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, window_log=_window(span), source_size=len(data), write_checksum=False, write_content_size=True
    )
    content = None if dictionary is None else _dictionary(dictionary)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=content).compress(data.tobytes())


def _dictionary(data: np.ndarray) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(data.tobytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _decompressed(part: int, frame: memoryview, length: int, dictionary: np.ndarray | None) -> np.ndarray:
    """uint8[length] of one zstd frame that states this length and ends where the frame's bytes end."""
    content = None if dictionary is None else _dictionary(dictionary)
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != length:
            raise _unfit(f"part {part} states {stated} bytes, expected {length}")
        # In one go it writes into a buffer of the stated length and nowhere else, whatever the frame holds.
        found = zstandard.ZstdDecompressor(dict_data=content).decompress(frame, length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _unfit(f"part {part} is damaged: {error}") from None
    if len(found) != length:
        raise _unfit(f"part {part} gives {len(found)} bytes, expected {length}")
    return np.frombuffer(found, np.uint8)


def _put(file, digest, place: int, offset: int, data: bytes | np.ndarray) -> int:
    """Write zeros up to an offset, then data; returns the place after it."""
    for block in (bytes(offset - place), memoryview(data)):
        for start in range(0, len(block), _MIB):
            file.write(block[start : start + _MIB])
        digest.update(block)
    return offset + len(data)


def _write_whole(target: Path, write: Callable[[object], bytes], expected: bytes) -> None:
    """Give a file its name once it is written and its digest, which write() returns, is the expected one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if write(file) != expected:
                raise _unfit("does not make the bundle that it promises: its SHA-256 differs; fetch the whole bundle")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    bundle.sync_folder(target.parent)
