"""Read an LMDB file without LMDB, so that no damage in it can crash the process.

The library maps the file and follows page numbers and offsets as it finds them: a truncated file ends the process by
SIGBUS, a damaged page by SIGSEGV or SIGABRT, or gives wrong data in silence. This module reads pages with pread,
checks every bound, visits a page at most once and skips what cannot be. What lies under a damaged page is lost, all
else is found. Whether a record itself is sound is for the caller to check: LMDB does not know.

Layout, of version 1 (LMDB 0.9), little-endian, W the machine's word size. Page 0 and 1 are meta pages, used in turn
by one transaction after the other; each names the root of a whole tree, so the older one is a snapshot of the state
before the last commit. A page starts with its number (W bytes), padding u16, flags u16, then lower and upper u16.
Leaf and branch pages go on, up to `lower`, with u16 offsets of their nodes. A node is two u16 (data size, or the low
words of the child's page), flags u16 (in a branch the high word of the child's page), key size u16, key, and in a
leaf the data, or the number of the first of the overflow pages that hold it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_WORD_BYTES = struct.calcsize("P")
_WORD = "Q" if _WORD_BYTES == 8 else "I"
_PAGE_HEADER = struct.Struct(f"<{_WORD}HHHH")
_NODE_HEADER = struct.Struct("<HHHH")
_PAGE_NUMBER = struct.Struct(f"<{_WORD}")
# pad (of the first database: the page size), flags, depth; branch, leaf and overflow pages; entries; root
_DATABASE_FIELDS = f"IHH{5 * _WORD}"
_DATABASE = struct.Struct(f"<{_DATABASE_FIELDS}")
# magic, version; address, map size; free and main database; last page, transaction
_META = struct.Struct(f"<II{2 * _WORD}{_DATABASE_FIELDS}{_DATABASE_FIELDS}{2 * _WORD}")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 0x01, 0x02, 0x04, 0x08
_DIRTY = 0x10
_BIG_DATA, _SUB_DATABASE = 0x01, 0x02
_NO_PAGE = (1 << (8 * _WORD_BYTES)) - 1
_PAGE_SIZES = tuple(1 << power for power in range(9, 17))
_MAX_DEPTH = 32
_MAX_FAULTS = 20


@dataclass(slots=True)
class Salvaged:
    """What a file holds: records (table, key, bytes), how many more its trees claim to hold, and what is at fault."""

    records: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    lost_records: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Meta:
    page_bytes: int
    transaction: int
    root: int
    last_page: int


def salvage(path: Path) -> Salvaged:
    """Every record that can be reached, of the last commit or, where fewer are lost so, of the one before it.

    Raises OSError only if the file cannot be opened.
    """
    with open(path, "rb", buffering=0) as file:
        metas = sorted(_metas(file.fileno()), key=lambda meta: -meta.transaction)
        if not metas:
            return Salvaged(faults=["both meta pages are damaged"])
        newest = best = _Tree(file.fileno(), metas[0]).read()
        if newest.faults and len(metas) > 1:
            former = _Tree(file.fileno(), metas[1]).read()
            if (former.lost_records, len(former.faults)) < (newest.lost_records, len(newest.faults)):
                best = former
                best.faults.append(f"of the last commit, {newest.faults[0]}, so the one before it is used")
        if len(metas) == 2 and metas[0].transaction - metas[1].transaction > 1:
            best.faults.append("the numbers of the last two commits do not follow one another")
        if len(metas) == 1:
            best.faults.append("one of the two meta pages is damaged, so the last commit may be lost")
    return best


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    """The bytes there, fewer at the end of the file, none where the medium cannot be read."""
    try:
        return os.pread(descriptor, length, offset)
    except OSError:
        return b""


def _metas(descriptor: int) -> list[_Meta]:
    """The sound ones of the two meta pages. Their page size says where the second lies, so each size is tried."""
    metas = []
    for offset in (0, *_PAGE_SIZES):
        image = _pread(descriptor, _PAGE_HEADER.size + _META.size, offset)
        if len(image) < _PAGE_HEADER.size + _META.size or not _PAGE_HEADER.unpack_from(image)[2] & _META_PAGE:
            continue
        values = _META.unpack_from(image, _PAGE_HEADER.size)
        meta = _Meta(page_bytes=values[4], transaction=values[21], root=values[19], last_page=values[20])
        if values[:2] == (_MAGIC, _VERSION) and meta.page_bytes in _PAGE_SIZES and offset in (0, meta.page_bytes):
            metas.append(meta)
    return metas


class _Tree:
    """The databases that one meta page names."""

    def __init__(self, descriptor: int, meta: _Meta) -> None:
        self._descriptor = descriptor
        self._meta = meta
        self._pages = os.fstat(descriptor).st_size // meta.page_bytes
        self._visited: set[int] = set()
        self._found = Salvaged()

    def read(self) -> Salvaged:
        """All records of all named databases."""
        if self._meta.last_page >= self._pages:
            self._fault(f"the file ends after {self._pages} of {self._meta.last_page + 1} pages")
        tables = [
            (key.decode("utf-8", "replace"), *_DATABASE.unpack(value)[-2:])
            for key, flags, value in self._leaves(self._meta.root, 0)
            if flags & _SUB_DATABASE and len(value) == _DATABASE.size
        ]
        for table, entries, root in tables:
            records = [(table, key, value) for key, flags, value in self._leaves(root, 0) if not flags & _SUB_DATABASE]
            self._found.records += records
            self._found.lost_records += max(min(entries, _NO_PAGE >> 1) - len(records), 0)
        return self._found

    def _fault(self, text: str) -> None:
        if len(self._found.faults) < _MAX_FAULTS:
            self._found.faults.append(text)

    def _page(self, number: int) -> bytes | None:
        """A branch or leaf page, if it is one, is what its place says, and was not visited before."""
        if 2 <= number < self._pages and number not in self._visited:
            self._visited.add(number)
            image = _pread(self._descriptor, self._meta.page_bytes, number * self._meta.page_bytes)
            if len(image) == self._meta.page_bytes:
                written, _padding, flags, lower, upper = _PAGE_HEADER.unpack_from(image)
                if (
                    written == number
                    and flags & ~_DIRTY in (_BRANCH, _LEAF)
                    and _PAGE_HEADER.size <= lower <= upper <= self._meta.page_bytes
                ):
                    return image
        self._fault(f"page {number} is damaged")
        return None

    def _leaves(self, number: int, depth: int) -> Iterator[tuple[bytes, int, bytes]]:
        """Nodes (key, flags, data) of the tree under a page, in order."""
        if number == _NO_PAGE:
            return
        image = self._page(number) if depth < _MAX_DEPTH else None
        if image is None:
            return
        _number, _padding, page_flags, lower, _upper = _PAGE_HEADER.unpack_from(image)
        for (at,) in struct.iter_unpack("<H", image[_PAGE_HEADER.size : lower - (lower - _PAGE_HEADER.size) % 2]):
            if not lower <= at <= self._meta.page_bytes - _NODE_HEADER.size:
                self._fault(f"page {number} is damaged")
                continue
            low, high, flags, key_bytes = _NODE_HEADER.unpack_from(image, at)
            if page_flags & _BRANCH:
                yield from self._leaves(low | high << 16 | (flags << 32 if _WORD_BYTES == 8 else 0), depth + 1)
                continue
            data_at = at + _NODE_HEADER.size + key_bytes
            data = self._data(image, data_at, low | high << 16, flags)
            if data_at > self._meta.page_bytes or data is None:
                self._fault(f"page {number} is damaged")
            else:
                yield image[data_at - key_bytes : data_at], flags, data

    def _data(self, image: bytes, at: int, length: int, flags: int) -> bytes | None:
        """A leaf node's data, wherever it lies, or None if it cannot be."""
        if not flags & _BIG_DATA:
            return image[at : at + length] if at + length <= self._meta.page_bytes else None
        if at + _PAGE_NUMBER.size > self._meta.page_bytes:
            return None
        number = _PAGE_NUMBER.unpack_from(image, at)[0]
        if not 2 <= number < self._pages or length > (self._pages - number) * self._meta.page_bytes:
            return None
        overflow = _pread(self._descriptor, _PAGE_HEADER.size + length, number * self._meta.page_bytes)
        if len(overflow) != _PAGE_HEADER.size + length or not _PAGE_HEADER.unpack_from(overflow)[2] & _OVERFLOW:
            return None
        return overflow[_PAGE_HEADER.size :]
