"""Small shared libraries made byte by byte, as the System V ABI defines them, for tests of what reads such files."""

from __future__ import annotations

import base64
import hashlib
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

AARCH64 = 183
PAGE = 16384
WEAK, GLOBAL = 2, 1


@dataclass
class Library:
    """What the made file says; the defaults are those of a sound library for a television."""

    machine: int = AARCH64
    bits: int = 64
    byte_order: int = 1
    kind: int = 3
    alignment: int = PAGE
    shift: int = 0
    """Bytes by which address and offset differ within a page."""
    load_flags: int = 5
    stack_flags: int | None = 6
    needed: tuple[str, ...] = ("libc.so.6",)
    runpath: str | None = None
    text_relocations: bool = False
    exports: tuple[str, ...] = ("PyInit__kernels",)
    hidden: tuple[str, ...] = ()
    """Those of exports that other libraries cannot see."""
    imports: dict[str, str] = field(default_factory=lambda: {"memcpy": "GLIBC_2.17", "PyErr_SetString": ""})
    weak: tuple[str, ...] = ("__gmon_start__",)
    gnu_hash: bool = True


def made(library: Library) -> bytes:
    """The library's bytes: one LOAD segment over the whole file, tables behind the program headers."""
    strings = bytearray(b"\0")
    offsets: dict[str, int] = {"": 0}

    def text(value: str) -> int:
        if value not in offsets:
            offsets[value] = len(strings)
            strings.extend(value.encode() + b"\0")
        return offsets[value]

    versions = sorted({version for version in library.imports.values() if version})
    names = [*library.imports, *library.weak, *library.exports]
    first_defined = 1 + len(library.imports) + len(library.weak)
    symbols, symbol_versions = bytearray(24), bytearray(struct.pack("<H", 0))
    for index, name in enumerate(names, 1):
        binding = WEAK if name in library.weak else GLOBAL
        defined = index >= first_defined
        symbols += struct.pack("<IBBHQQ", text(name), binding << 4 | 2, 2 * (name in library.hidden), 9 if defined else 0, 64 if defined else 0, 4)
        version = library.imports.get(name, "")
        symbol_versions += struct.pack("<H", 2 + versions.index(version) if version else 1 if defined else 0)
    needs = bytearray(struct.pack("<HHIII", 1, len(versions), text("libc.so.6"), 16, 0))
    for index, version in enumerate(versions):
        step = 16 if index + 1 < len(versions) else 0
        needs += struct.pack("<IHHII", 0, 0, 2 + index, text(version), step)
    if library.gnu_hash:
        chains = [struct.pack("<I", int(index == len(names))) for index in range(first_defined, len(names) + 1)]
        bucket = first_defined if library.exports else 0
        table = struct.pack("<IIIIQI", 1, first_defined, 1, 0, 0, bucket) + b"".join(chains)
    else:
        table = struct.pack("<III", 1, len(names) + 1, 0) + bytes(4 * (len(names) + 1))
    tags = [(1, text(name)) for name in library.needed]
    tags += [(29, text(library.runpath))] if library.runpath else []
    tags += [(22, 0)] if library.text_relocations else []
    programs = 2 + (library.stack_flags is not None)
    place = 64 + 56 * programs
    tables = {5: bytes(strings), 6: bytes(symbols), 0x6FFFFFF0: bytes(symbol_versions), 0x6FFFFFFE: bytes(needs)}
    tables[0x6FFFFEF5 if library.gnu_hash else 4] = table
    body = bytearray()
    for tag, content in tables.items():
        if tag != 0x6FFFFFFE or versions:
            tags.append((tag, library.shift + place + len(body)))
            body += content + bytes(-len(content) % 8)
    tags += [(10, len(strings))] + ([(0x6FFFFFFF, 1)] if versions else []) + [(0, 0)]
    dynamic_offset = place + len(body)
    body += b"".join(struct.pack("<qQ", *tag) for tag in tags)
    size = place + len(body)
    identity = b"\x7fELF" + bytes((library.bits // 32, library.byte_order, 1)) + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", identity, library.kind, library.machine, 1, 0, 64, 0, 0, 64, 56, programs, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, library.load_flags, 0, library.shift, 0, size, size, library.alignment)
    length = 16 * len(tags)
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, dynamic_offset, library.shift + dynamic_offset, 0, length, length, 8)
    stack = b"" if library.stack_flags is None else struct.pack("<IIQQQQQQ", 0x6474E551, library.stack_flags, *[0] * 6)
    return header + load + dynamic + stack + bytes(body)


def write_wheel(
    folder: Path,
    library: bytes | None,
    *,
    name: str = "omega_edge-0.1.0-cp311-abi3-manylinux_2_17_aarch64.whl",
    tag: str | None = None,
    change: dict[str, bytes | None] | None = None,
) -> Path:
    """Write a wheel with one library (none if None); `change` replaces or removes members after RECORD was written."""
    tag = tag or name.removesuffix(".whl").split("-", 2)[2]
    members = {
        "omega_edge/__init__.py": b"",
        "omega_edge-0.1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n\n".encode(),
    }
    if library is not None:
        members["omega_edge/_simd/_kernels.abi3.so"] = library
    record = "omega_edge-0.1.0.dist-info/RECORD"
    lines = []
    for path, data in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    members[record] = "".join([*lines, f"{record},,\n"]).encode()
    wheel = folder / name
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in (members | (change or {})).items():
            if data is not None:
                archive.writestr(path, data)
    return wheel
