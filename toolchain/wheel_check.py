"""Checks that a wheel is what its name says: `python -m toolchain.wheel_check WHEEL`.

For a wheel tagged manylinux_2_17_aarch64 every ELF file in it must load on a television with glibc 2.17 and pages of up
to 16 KB: class 64, AArch64, no newer symbol version, LOAD segments aligned, no executable stack, nothing needed but
libc and libm, nothing exported but the module's own entry, nothing imported but the C library and Python's stable ABI.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path, PurePosixPath

from toolchain.elf import ElfError, SharedObject, parse_shared_object

MAX_GLIBC = (2, 17)
PAGE_BYTES = 16384
PLATFORM = "manylinux_2_17_aarch64"
MACHINE = "AArch64"
ALLOWED_LIBRARIES = frozenset({"libc.so.6", "libm.so.6"})
MAX_WHEEL_BYTES = 64 << 20
MAX_MEMBERS = 4096

_NAME = re.compile(r"(?P<name>[\w.]+)-(?P<version>[\w.!+]+)-(?P<python>[\w.]+)-(?P<abi>[\w.]+)-(?P<platform>[\w.]+)\.whl")
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?")
# What every shared object of gcc refers to weakly: absent at run time without harm.
_WEAK_OF_THE_COMPILER = frozenset({"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"})


class WheelError(ValueError):
    """A wheel that is not what it must be; the text names every fault."""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """One ELF file that passed: its size in bytes and the highest glibc version that it asks for."""

    name: str
    size: int
    glibc: str


def check_wheel(path: Path, entries: frozenset[str] = frozenset({"PyInit__kernels"})) -> tuple[CheckedFile, ...]:
    """Check a wheel's name, tags, record and ELF files; `entries` are the symbols that may be exported.

    Returns the ELF files. Raises WheelError naming every fault, ElfError for a file that cannot be read as ELF.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise WheelError(f"{path.name}: expected a name like package-1.0-cp311-abi3-{PLATFORM}.whl")
    if path.stat().st_size > MAX_WHEEL_BYTES:
        raise WheelError(f"{path.name}: expected at most {MAX_WHEEL_BYTES} bytes, got {path.stat().st_size}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path.name)
    except zipfile.BadZipFile as error:
        raise WheelError(f"{path.name}: {error}") from error
    faults = [*_tag_faults(match, members), *_record_faults(members)]
    checked = []
    for name, data in members.items():
        if not data.startswith(b"\x7fELF") and not re.search(r"\.so(\.|$)", name):
            continue
        library = parse_shared_object(data, name)
        faults += [f"{name}: {fault}" for fault in library_faults(library, entries)]
        checked.append(CheckedFile(name, len(data), _highest_glibc(library)))
    if not checked:
        faults.append("expected at least one ELF file, found none: the C core is missing")
    if faults:
        raise WheelError("\n".join(f"{path.name}: {fault}" for fault in faults))
    return tuple(checked)


def library_faults(library: SharedObject, entries: frozenset[str]) -> Iterator[str]:
    """What keeps a shared library from being loaded on every television of the platform, one text a fault."""
    if library.machine != MACHINE:
        yield f"expected machine {MACHINE}, got {library.machine}"
    for segment in library.segments:
        if segment.alignment % PAGE_BYTES or segment.alignment == 0:
            yield f"expected LOAD segments aligned to a multiple of {PAGE_BYTES} bytes, got {segment.alignment}"
        if (segment.address - segment.offset) % PAGE_BYTES:
            yield f"a LOAD segment's address {segment.address:#x} and offset {segment.offset:#x} differ within a page"
        if segment.flags & 3 == 3:
            yield "a segment is writable and executable"
    if library.executable_stack:
        yield "expected a stack that is not executable (link with -z noexecstack)"
    if library.text_relocations:
        yield "expected no text relocations (compile with -fPIC)"
    for search_path in library.search_paths:
        yield f"expected no library search path, got {search_path!r}"
    for needed in library.needed:
        if needed not in ALLOWED_LIBRARIES:
            yield f"needs {needed}; allowed are {', '.join(sorted(ALLOWED_LIBRARIES))}"
    for owner, version in library.versions:
        match = _GLIBC.fullmatch(version)
        if match is None or (int(match[1]), int(match[2])) > MAX_GLIBC:
            names = [symbol.name for symbol in library.symbols if symbol.version == version]
            yield f"needs {version} of {owner} ({', '.join(names)}); at most GLIBC_{MAX_GLIBC[0]}.{MAX_GLIBC[1]} is allowed"
    yield from _symbol_faults(library, entries)


def _symbol_faults(library: SharedObject, entries: frozenset[str]) -> Iterator[str]:
    exported = {symbol.name for symbol in library.symbols if symbol.defined and not symbol.hidden}
    if exported != entries:
        yield f"expected to export {_listed(entries)}, exports {_listed(exported)}"
    for symbol in library.symbols:
        if symbol.defined or symbol.version or symbol.name.startswith(("Py", "_Py")):
            continue
        if not (symbol.weak and symbol.name in _WEAK_OF_THE_COMPILER):
            yield f"imports {symbol.name}, which is neither the C library's nor Python's"


def _listed(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _highest_glibc(library: SharedObject) -> str:
    versions = [(int(match[1]), int(match[2])) for _, version in library.versions if (match := _GLIBC.fullmatch(version))]
    return ".".join(map(str, max(versions))) if versions else "none"


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, bytes]:
    """The files of a wheel, in memory: bounded by what the directory declares, which zipfile holds the data to."""
    entries = archive.infolist()
    if len(entries) > MAX_MEMBERS or sum(entry.file_size for entry in entries) > MAX_WHEEL_BYTES:
        raise WheelError(f"{name}: expected at most {MAX_MEMBERS} files of together {MAX_WHEEL_BYTES} bytes")
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if entry.filename.startswith("/") or ".." in parts:
            raise WheelError(f"{name}: expected paths inside the wheel, got {entry.filename!r}")
    return {entry.filename: archive.read(entry) for entry in entries if not entry.is_dir()}


def _one_file(members: dict[str, bytes], ending: str) -> tuple[str, bytes]:
    found = [name for name in members if name.endswith(f".dist-info/{ending}")]
    if len(found) != 1:
        raise WheelError(f"expected one file .dist-info/{ending}, found {len(found)}")
    return found[0], members[found[0]]


def _tag_faults(match: re.Match[str], members: dict[str, bytes]) -> Iterator[str]:
    if match["platform"] != PLATFORM:
        yield f"expected the platform {PLATFORM}, got {match['platform']}"
    if (match["python"], match["abi"]) != ("cp311", "abi3"):
        yield f"expected cp311-abi3, got {match['python']}-{match['abi']}"
    fields = message_from_bytes(_one_file(members, "WHEEL")[1])
    tag = f"{match['python']}-{match['abi']}-{match['platform']}"
    if fields.get_all("Tag") != [tag]:
        yield f"expected the tag {tag} inside, as the name says, got {fields.get_all('Tag')}"
    if fields["Root-Is-Purelib"] != "false":
        yield f"expected Root-Is-Purelib: false, got {fields['Root-Is-Purelib']}"


def _record_faults(members: dict[str, bytes]) -> Iterator[str]:
    record_name, record = _one_file(members, "RECORD")
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(record.decode("utf-8"))) if row}
    if rows.keys() != members.keys():
        yield f"RECORD and the files differ in {_listed(rows.keys() ^ members.keys())}"
    for name in sorted(rows.keys() & members.keys() - {record_name}):
        digest = base64.urlsafe_b64encode(hashlib.sha256(members[name]).digest()).rstrip(b"=").decode()
        if rows[name] != [f"sha256={digest}", str(len(members[name]))]:
            yield f"{name} does not have the SHA-256 and size that RECORD says"


def main(arguments: list[str] | None = None) -> int:
    """Check one wheel; 0 if it is sound, 65 and the faults on stderr if not, 66 if it is missing."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.wheel_check", description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args(arguments).wheel
    if not wheel.is_file():
        print(f"{wheel}: no such wheel", file=sys.stderr)
        return 66
    try:
        for file in check_wheel(wheel):
            print(f"{file.name}: {file.size} bytes, {MACHINE}, glibc {file.glibc}")
    except (WheelError, ElfError) as error:
        print(error, file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
