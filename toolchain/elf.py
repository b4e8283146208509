"""Reads what the dynamic loader reads of a 64-bit little-endian ELF file: segments, needed libraries, versions, symbols.

Only the program headers and the dynamic section are followed, as the loader does: section headers may be stripped or
lie. Every offset and count is checked against the file before it is used; a fault is an ElfError that says what was
expected and what came. Formats: System V ABI gABI, chapters 4 and 5; GNU symbol versions: LSB Core, chapter 10.7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 64 << 20
MAX_SEGMENTS = 128
MAX_DYNAMIC_ENTRIES = 4096
MAX_SYMBOLS = 1 << 20
MAX_VERSIONS = 4096
MAX_NAME_BYTES = 4096

MACHINES = {3: "x86", 40: "ARM", 62: "x86-64", 183: "AArch64", 243: "RISC-V"}
"""Names of e_machine."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_VERSION_NEED = struct.Struct("<HHIII")
_VERSION_ENTRY = struct.Struct("<IHHII")

_SHARED_OBJECT = 3
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_RPATH, _DT_TEXTREL = 1, 4, 5, 6, 10, 15, 22
_DT_RUNPATH, _DT_FLAGS, _DT_GNU_HASH, _DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM = (
    29, 30, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF,
)  # fmt: skip
_DF_TEXTREL = 4
_LOCAL, _WEAK = 0, 2
_HIDDEN_VERSION = 0x8000


class ElfError(ValueError):
    """A file that is not an ELF file of the expected kind, or is damaged."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment that is loaded; offsets and sizes in bytes."""

    offset: int
    address: int
    file_bytes: int
    alignment: int
    flags: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """One global dynamic symbol; version is the needed version of an imported one, "" for none."""

    name: str
    defined: bool
    weak: bool
    hidden: bool
    version: str


@dataclass(frozen=True, slots=True)
class SharedObject:
    """What the loader sees of a shared library."""

    machine: str
    segments: tuple[Segment, ...]
    executable_stack: bool
    needed: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    """Needed versions as (library, version), in the file's order."""
    symbols: tuple[Symbol, ...]
    search_paths: tuple[str, ...]
    text_relocations: bool


def read_shared_object(path: Path) -> SharedObject:
    """Read a shared library; ElfError where it is larger than 64 MiB, of another kind, or damaged."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ElfError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {size}")
    return parse_shared_object(path.read_bytes(), str(path))


def parse_shared_object(data: bytes, name: str = "ELF file") -> SharedObject:
    """The same of bytes; `name` stands in front of every error."""
    return _Reader(data, name).read()


class _Reader:
    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.segments: list[Segment] = []
        self.strings = b""

    def read(self) -> SharedObject:
        machine, headers = self._header()
        executable_stack = True  # the loader's answer where no segment tells
        dynamic = None
        for kind, flags, offset, address, _, file_bytes, _, alignment in headers:
            if kind == _PT_GNU_STACK:
                executable_stack = bool(flags & 1)
            elif kind == _PT_LOAD:
                self._check(offset, file_bytes, "a LOAD segment")
                self.segments.append(Segment(offset, address, file_bytes, alignment, flags))
            elif kind == _PT_DYNAMIC:
                dynamic = self._check(offset, file_bytes, "the dynamic segment"), file_bytes
        if dynamic is None:
            raise self._error("expected a dynamic segment, found none: a static file or an object file")
        entries = self._dynamic(*dynamic)
        self.strings = self._string_table(entries)
        versions = self._versions(entries)
        textrel = _DT_TEXTREL in entries or bool(entries.get(_DT_FLAGS, [0])[0] & _DF_TEXTREL)
        paths = [*entries.get(_DT_RPATH, []), *entries.get(_DT_RUNPATH, [])]
        return SharedObject(
            machine=machine,
            segments=tuple(self.segments),
            executable_stack=executable_stack,
            needed=tuple(self._string(offset) for offset in entries.get(_DT_NEEDED, [])),
            versions=tuple((library, version) for library, version, _ in versions),
            symbols=tuple(self._symbols(entries, {index: version for _, version, index in versions})),
            search_paths=tuple(self._string(offset) for offset in paths),
            text_relocations=textrel,
        )

    def _error(self, text: str) -> ElfError:
        return ElfError(f"{self.name}: {text}")

    def _check(self, offset: int, size: int, what: str) -> int:
        if offset + size > len(self.data):
            raise self._error(f"{what} ends at byte {offset + size}, expected inside the {len(self.data)} bytes of the file")
        return offset

    def _header(self) -> tuple[str, list[tuple[int, ...]]]:
        if self.data[:4] != b"\x7fELF":
            raise self._error(f"expected the ELF magic, got {self.data[:4]!r}")
        if len(self.data) < _HEADER.size:
            raise self._error(f"expected an ELF header of {_HEADER.size} bytes, got {len(self.data)}")
        bits = {1: 32, 2: 64}.get(self.data[4], f"unknown ({self.data[4]})")
        if bits != 64:
            raise self._error(f"expected class 64, got class {bits}")
        if self.data[5] != 1:
            raise self._error(f"expected little-endian data (1), got {self.data[5]}")
        _, kind, machine, _, _, table, _, _, _, entry_bytes, count, _, _, _ = _HEADER.unpack_from(self.data)
        if kind != _SHARED_OBJECT:
            raise self._error(f"expected a shared object (type {_SHARED_OBJECT}), got type {kind}")
        if entry_bytes != _SEGMENT.size or not 0 < count <= MAX_SEGMENTS:
            raise self._error(
                f"expected 1 to {MAX_SEGMENTS} program headers of {_SEGMENT.size} bytes, got {count} of {entry_bytes}"
            )
        self._check(table, count * _SEGMENT.size, "the program header table")
        headers = [_SEGMENT.unpack_from(self.data, table + index * _SEGMENT.size) for index in range(count)]
        return MACHINES.get(machine, f"number {machine}"), headers

    def _at(self, address: int, size: int, what: str) -> int:
        """The file offset of `size` bytes that are loaded at an address."""
        for segment in self.segments:
            inside = address - segment.address
            if 0 <= inside and inside + size <= segment.file_bytes:
                return segment.offset + inside
        raise self._error(f"{what} lies at address {address:#x} ({size} bytes), expected inside a LOAD segment's file bytes")

    def _dynamic(self, offset: int, size: int) -> dict[int, list[int]]:
        entries: dict[int, list[int]] = {}
        for index in range(min(size // _DYNAMIC.size, MAX_DYNAMIC_ENTRIES)):
            tag, value = _DYNAMIC.unpack_from(self.data, offset + index * _DYNAMIC.size)
            if tag == 0:
                return entries
            entries.setdefault(tag, []).append(value)
        raise self._error(f"expected the dynamic section to end with a null entry in {MAX_DYNAMIC_ENTRIES} or fewer")

    def _one(self, entries: dict[int, list[int]], tag: int, what: str) -> int:
        if tag not in entries:
            raise self._error(f"expected {what} in the dynamic section, found none")
        return entries[tag][0]

    def _string_table(self, entries: dict[int, list[int]]) -> bytes:
        size = self._one(entries, _DT_STRSZ, "a string table's size (DT_STRSZ)")
        offset = self._at(self._one(entries, _DT_STRTAB, "a string table (DT_STRTAB)"), size, "the string table")
        return self.data[offset : offset + size]

    def _string(self, offset: int) -> str:
        # Bounded, because a million symbols may name the same long text.
        end = self.strings.find(b"\0", offset, offset + MAX_NAME_BYTES + 1)
        if end < 0:
            if offset + MAX_NAME_BYTES < len(self.strings):
                raise self._error(f"expected names of at most {MAX_NAME_BYTES} bytes, the one at {offset} is longer")
            raise self._error(f"a name at {offset} does not end inside the string table of {len(self.strings)} bytes")
        try:
            return self.strings[offset:end].decode("ascii")
        except UnicodeDecodeError as error:
            raise self._error(f"a name is not ASCII: {self.strings[offset:end]!r}") from error

    def _versions(self, entries: dict[int, list[int]]) -> list[tuple[str, str, int]]:
        """(library, version, index by which symbols name it) of everything in the version-needed section."""
        found: list[tuple[str, str, int]] = []
        if _DT_VERNEED not in entries:
            return found
        count = self._one(entries, _DT_VERNEEDNUM, "the number of needed versions (DT_VERNEEDNUM)")
        address = entries[_DT_VERNEED][0]
        if count > MAX_VERSIONS:
            raise self._error(f"expected at most {MAX_VERSIONS} libraries with versions, got {count}")
        for _ in range(count):
            offset = self._at(address, _VERSION_NEED.size, "a needed version")
            _, entry_count, library, first, following = _VERSION_NEED.unpack_from(self.data, offset)
            inner = address + first
            for _ in range(entry_count):
                offset = self._at(inner, _VERSION_ENTRY.size, "a needed version's entry")
                _, _, index, name, step = _VERSION_ENTRY.unpack_from(self.data, offset)
                found.append((self._string(library), self._string(name), index & ~_HIDDEN_VERSION))
                if len(found) > MAX_VERSIONS:
                    raise self._error(f"expected at most {MAX_VERSIONS} needed versions")
                inner += step
            address += following
        return found

    def _symbols(self, entries: dict[int, list[int]], versions: dict[int, str]) -> list[Symbol]:
        count = self._symbol_count(entries)
        table = self._at(
            self._one(entries, _DT_SYMTAB, "a symbol table (DT_SYMTAB)"), count * _SYMBOL.size, "the symbol table"
        )
        version_table = None
        if _DT_VERSYM in entries:
            version_table = self._at(entries[_DT_VERSYM][0], count * 2, "the table of symbol versions")
        symbols = []
        for index in range(1, count):
            name, info, other, section, _, _ = _SYMBOL.unpack_from(self.data, table + index * _SYMBOL.size)
            if info >> 4 == _LOCAL:
                continue
            number = 0
            if version_table is not None:
                number = struct.unpack_from("<H", self.data, version_table + 2 * index)[0] & ~_HIDDEN_VERSION
            if section == 0 and number > 1 and number not in versions:
                raise self._error(f"symbol {self._string(name)!r} names version {number}, which no library is said to have")
            version = versions.get(number, "")
            hidden = other & 3 in (1, 2)
            symbols.append(Symbol(self._string(name), section != 0, info >> 4 == _WEAK, hidden, version))
        return symbols

    def _symbol_count(self, entries: dict[int, list[int]]) -> int:
        """Of a library with both hash tables the larger count: relocations name symbols that neither has to mention."""
        counts = []
        if _DT_HASH in entries:
            offset = self._at(entries[_DT_HASH][0], 8, "the hash table")
            counts.append(struct.unpack_from("<II", self.data, offset)[1])
        if _DT_GNU_HASH in entries or not counts:
            counts.append(self._gnu_symbol_count(self._one(entries, _DT_GNU_HASH, "a hash table (DT_HASH or DT_GNU_HASH)")))
        count = max(counts)
        if count > MAX_SYMBOLS:
            raise self._error(f"expected at most {MAX_SYMBOLS} dynamic symbols, got {count}")
        return count

    def _gnu_symbol_count(self, address: int) -> int:
        """One past the last symbol: the highest bucket's chain runs to the entry whose lowest bit is set."""
        offset = self._at(address, 16, "the GNU hash table")
        buckets, first, bloom_words, _ = struct.unpack_from("<IIII", self.data, offset)
        if buckets > MAX_SYMBOLS:
            raise self._error(f"expected at most {MAX_SYMBOLS} buckets of the GNU hash table, got {buckets}")
        bucket_address = address + 16 + 8 * bloom_words
        offset = self._at(bucket_address, 4 * buckets, "the GNU hash table's buckets")
        last = max(struct.unpack_from(f"<{buckets}I", self.data, offset), default=0)
        if last < first:
            return first  # no bucket is filled: nothing is defined
        while last <= MAX_SYMBOLS:
            offset = self._at(bucket_address + 4 * (buckets + last - first), 4, "the GNU hash table's chains")
            last += 1
            if self.data[offset] & 1:
                return last
        return last
