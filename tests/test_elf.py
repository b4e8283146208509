"""The ELF reader: equal to readelf on real libraries, and a specific error for every kind of damage."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import lmdb.cpython
import numpy._core._multiarray_umath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge._simd import _kernels
from tests.elf_files import PAGE, Library, made
from toolchain.elf import MAX_FILE_BYTES, MAX_NAME_BYTES, MAX_SYMBOLS, ElfError, parse_shared_object, read_shared_object

REAL = [Path(module.__file__) for module in (_kernels, numpy._core._multiarray_umath, lmdb.cpython)]


def readelf(*arguments: str | Path) -> str:
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("readelf") is None, reason="this system has no readelf (Debian: binutils)")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_a_real_library_reads_as_readelf_reads_it(path: Path) -> None:
    library = read_shared_object(path)
    dynamic, segments = readelf("-d", path), readelf("-l", path)
    assert list(library.needed) == re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert list(library.search_paths) == re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    loads = re.findall(r"^ *LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+) 0x\w+ .{3} (0x\w+)$", segments, re.MULTILINE)
    found = [(s.offset, s.address, s.file_bytes, s.alignment) for s in library.segments]
    assert found == [tuple(int(field, 16) for field in load) for load in loads]
    assert library.executable_stack == ("E" in re.search(r"GNU_STACK.* ([RWE ]{3}) 0x", segments)[1])
    symbols = re.findall(
        r"^ *[1-9]\d*: \w+ +\d+ \w+ +(?:GLOBAL|WEAK|UNIQUE) +\w+ +(\w+) (\S+?)(?:@(\S+))?(?: \(\d+\))?$",
        readelf("--dyn-syms", path),
        re.MULTILINE,
    )
    ours = [(symbol.name, symbol.defined, symbol.version) for symbol in library.symbols]
    assert len(ours) > 20
    assert ours == [(name, place != "UND", version if place == "UND" else "") for place, name, version in symbols]
    owners = re.findall(r"File: (\S+)|Name: (\S+)", readelf("-V", path))
    owner, expected = "", []
    for file, version in owners:
        owner = file or owner
        expected += [(owner, version)] if version else []
    assert list(library.versions) == [pair for pair in expected if pair[0]]


def test_a_made_library_reads_as_it_was_made() -> None:
    for gnu_hash in (True, False):
        library = parse_shared_object(made(Library(gnu_hash=gnu_hash)))
        assert (library.machine, library.needed, library.executable_stack) == ("AArch64", ("libc.so.6",), False)
        assert [segment.alignment for segment in library.segments] == [PAGE]
        assert library.versions == (("libc.so.6", "GLIBC_2.17"),)
        described = {symbol.name: (symbol.defined, symbol.weak, symbol.version) for symbol in library.symbols}
        assert described == {
            "memcpy": (False, False, "GLIBC_2.17"),
            "PyErr_SetString": (False, False, ""),
            "__gmon_start__": (False, True, ""),
            "PyInit__kernels": (True, False, ""),
        }
        assert (library.search_paths, library.text_relocations) == ((), False)


def test_a_library_that_defines_nothing_has_its_imports() -> None:
    library = parse_shared_object(made(Library(exports=())))
    assert [symbol.name for symbol in library.symbols] == ["memcpy", "PyErr_SetString", "__gmon_start__"]


def test_without_a_word_on_the_stack_the_loader_makes_it_executable() -> None:
    assert parse_shared_object(made(Library(stack_flags=None))).executable_stack
    assert parse_shared_object(made(Library(stack_flags=7))).executable_stack


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (Library(bits=32), "expected class 64, got class 32"),
        (Library(byte_order=2), "expected little-endian"),
        (Library(kind=2), r"expected a shared object \(type 3\), got type 2"),
    ],
)
def test_another_kind_of_file_is_named(library: Library, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        parse_shared_object(made(library))


# Offsets of fields: the ELF header's table at 32 and count at 56; the program headers follow at 64.
LOAD, DYNAMIC = 64, 120


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x7fELG", "expected the ELF magic, got b'.x7fELG'"),
        (32, struct.pack("<Q", 1 << 62), "the program header table ends at byte"),
        (54, struct.pack("<H", 55), "program headers of 56 bytes, got 3 of 55"),
        (56, struct.pack("<H", 0), "expected 1 to 128 program headers"),
        (56, struct.pack("<H", 129), "expected 1 to 128 program headers"),
        (LOAD + 32, struct.pack("<Q", (1 << 64) - 1), "a LOAD segment ends at byte"),
        (LOAD + 32, struct.pack("<Q", 0), "expected inside a LOAD segment's file bytes"),
        (DYNAMIC, struct.pack("<I", 0), "expected a dynamic segment, found none"),
        (DYNAMIC + 8, struct.pack("<Q", 1 << 40), "the dynamic segment ends at byte"),
        (DYNAMIC + 32, struct.pack("<Q", 16), "expected the dynamic section to end with a null entry"),
    ],
)
def test_damage_of_the_headers_is_named(offset: int, value: bytes, message: str) -> None:
    data = bytearray(made(Library()))
    data[offset : offset + len(value)] = value
    with pytest.raises(ElfError, match=message):
        parse_shared_object(bytes(data), "it")


def changed_entry(tag: int, value: int, new_tag: int | None = None, **options: object) -> bytes:
    """A made library with the value, or the tag, of one entry of the dynamic section changed."""
    data = bytearray(made(Library(**options)))
    start, length = (struct.unpack_from("<Q", data, DYNAMIC + place)[0] for place in (8, 32))
    for offset in range(start, start + length, 16):
        if struct.unpack_from("<q", data, offset)[0] == tag:
            struct.pack_into("<qQ", data, offset, tag if new_tag is None else new_tag, value)
            return bytes(data)
    raise AssertionError(f"no entry {tag}")


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (1, 1 << 20, "a name at 1048576 does not end inside the string table"),
        (1, (1 << 64) - 1, "a name at 18446744073709551615 does not end inside the string table"),
        (5, 1 << 50, "the string table lies at address"),
        (10, 1 << 50, "the string table lies at address"),
        (6, 1 << 50, "the symbol table lies at address"),
        (0x6FFFFFF0, 1 << 50, "the table of symbol versions lies at address"),
        (0x6FFFFFFE, 1 << 50, "a needed version lies at address"),
        (0x6FFFFFFF, 1 << 40, "expected at most 4096 libraries with versions"),
        (0x6FFFFEF5, 1 << 50, "the GNU hash table lies at address"),
    ],
)
def test_damage_of_the_dynamic_section_is_named(tag: int, value: int, message: str) -> None:
    with pytest.raises(ElfError, match=message):
        parse_shared_object(changed_entry(tag, value))


@pytest.mark.parametrize(
    ("tag", "what"), [(5, "string table"), (10, "string table's size"), (6, "symbol table"), (0x6FFFFEF5, "hash table")]
)
def test_a_missing_table_is_named(tag: int, what: str) -> None:
    with pytest.raises(ElfError, match=f"expected an? {what}.* in the dynamic section, found none"):
        parse_shared_object(changed_entry(tag, 0, new_tag=0x7FFF0000))


def test_a_version_that_no_library_has_is_named() -> None:
    data = changed_entry(0x6FFFFFFE, 0, new_tag=0x7FFF0000)
    with pytest.raises(ElfError, match="symbol 'memcpy' names version 2, which no library is said to have"):
        parse_shared_object(data)


def test_a_hash_table_that_claims_too_much_costs_nothing() -> None:
    sound = made(Library(gnu_hash=False))
    place = sound.rindex(struct.pack("<III", 1, 5, 0) + bytes(20))
    for count, message in ((1 << 31, "expected at most 1048576 dynamic symbols"), (1 << 19, "the symbol table lies at")):
        data = bytearray(sound)
        struct.pack_into("<I", data, place + 4, count)
        with pytest.raises(ElfError, match=message):
            parse_shared_object(bytes(data))


def test_names_and_buckets_that_many_may_share_are_bounded() -> None:
    longest = "n" * MAX_NAME_BYTES
    assert parse_shared_object(made(Library(needed=(longest,)))).needed == (longest,)
    with pytest.raises(ElfError, match=f"expected names of at most {MAX_NAME_BYTES} bytes, the one at"):
        parse_shared_object(made(Library(needed=(longest + "n",))))
    data = bytearray(made(Library()))
    struct.pack_into("<I", data, data.rindex(struct.pack("<IIII", 1, 4, 1, 0)), MAX_SYMBOLS + 1)
    with pytest.raises(ElfError, match=f"expected at most {MAX_SYMBOLS} buckets of the GNU hash table"):
        parse_shared_object(bytes(data))


def test_of_two_hash_tables_the_one_that_mentions_more_counts() -> None:
    # The entry of the runpath becomes that of a second hash table, which lies in the header: it mentions three symbols.
    data = bytearray(changed_entry(29, 8, new_tag=4, runpath="/lib"))
    struct.pack_into("<II", data, 8, 1, 3)
    names = [symbol.name for symbol in parse_shared_object(bytes(data)).symbols]
    assert names == ["memcpy", "PyErr_SetString", "__gmon_start__", "PyInit__kernels"]
    struct.pack_into("<II", data, 8, 1, MAX_SYMBOLS + 1)
    with pytest.raises(ElfError, match=f"expected at most {MAX_SYMBOLS} dynamic symbols"):
        parse_shared_object(bytes(data))


def test_every_truncation_is_an_elf_error() -> None:
    data = made(Library())
    for length in range(len(data)):
        with pytest.raises(ElfError, match=r"expected|ends at|lies at|does not end"):
            parse_shared_object(data[:length])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(made(Library(gnu_hash=data.draw(st.booleans()))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, len(content) - 8))
        word = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x01\x00", b"\xff" * 4, b"\xff" * 8, b"\0" * 8]))
        content[place : place + len(word)] = word
    try:
        library = parse_shared_object(bytes(content))
    except ElfError as error:
        assert str(error).startswith("ELF file: ")
    else:
        assert len(library.symbols) <= len(content)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.so"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ElfError, match=f"expected at most {MAX_FILE_BYTES} bytes"):
        read_shared_object(large)
