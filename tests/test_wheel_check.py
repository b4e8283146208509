"""The wheel's checks: a sound one passes, and each fault that a television's loader would trip over is named."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest

from tests.elf_files import Library, made, write_wheel
from toolchain.elf import ElfError
from toolchain.wheel_check import PAGE_BYTES, WheelError, check_wheel, main

SOUND = Library()


def test_a_sound_wheel_passes_and_its_libraries_are_told(tmp_path: Path) -> None:
    library = made(SOUND)
    (checked,) = check_wheel(write_wheel(tmp_path, library))
    assert (checked.name, checked.size, checked.glibc) == ("omega_edge/_simd/_kernels.abi3.so", len(library), "2.17")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": 62}, "expected machine AArch64, got x86-64"),
        ({"machine": 40}, "expected machine AArch64, got ARM"),
        ({"machine": 7}, "expected machine AArch64, got number 7"),
        ({"alignment": 4096}, "aligned to a multiple of 16384 bytes, got 4096"),
        ({"alignment": 0}, "aligned to a multiple of 16384 bytes, got 0"),
        ({"shift": 4096}, "a LOAD segment's address 0x1000 and offset 0x0 differ within a page"),
        ({"load_flags": 7}, "a segment is writable and executable"),
        ({"stack_flags": 7}, "expected a stack that is not executable"),
        ({"stack_flags": None}, "expected a stack that is not executable"),
        ({"text_relocations": True}, "expected no text relocations"),
        ({"runpath": "/opt/lib"}, "expected no library search path, got '/opt/lib'"),
        ({"needed": ("libc.so.6", "libgomp.so.1")}, "needs libgomp.so.1; allowed are libc.so.6, libm.so.6"),
        ({"imports": {"pthread_create": "GLIBC_2.34"}}, r"needs GLIBC_2.34 of libc.so.6 \(pthread_create\); at most GLIBC_2.17"),
        ({"imports": {"stat": "GLIBC_2.17.1", "fstat": "GLIBC_2.18"}}, r"needs GLIBC_2.18 of libc.so.6 \(fstat\)"),
        ({"imports": {"x": "GLIBCXX_3.4"}}, r"needs GLIBCXX_3.4 of libc.so.6 \(x\)"),
        ({"imports": {"secret": "GLIBC_PRIVATE"}}, r"needs GLIBC_PRIVATE of libc.so.6 \(secret\)"),
        ({"imports": {"dgemm": ""}}, "imports dgemm, which is neither the C library's nor Python's"),
        ({"weak": ("usearch_dot",)}, "imports usearch_dot, which is neither"),
        ({"exports": ("PyInit__kernels", "omega_dot")}, "expected to export PyInit__kernels, exports PyInit__kernels, omega_dot"),
        ({"exports": ()}, "expected to export PyInit__kernels, exports nothing"),
    ],
    ids=str,
)
def test_what_a_loader_would_trip_over_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    wheel = write_wheel(tmp_path, made(dataclasses.replace(SOUND, **change)))
    with pytest.raises(WheelError, match=message):
        check_wheel(wheel)


@pytest.mark.parametrize("alignment", [PAGE_BYTES, 4 * PAGE_BYTES])
def test_larger_pages_are_no_fault(tmp_path: Path, alignment: int) -> None:
    assert check_wheel(write_wheel(tmp_path, made(dataclasses.replace(SOUND, alignment=alignment))))


def test_a_symbol_that_others_cannot_see_is_not_exported(tmp_path: Path) -> None:
    both = ("PyInit__kernels", "omega_dot")
    assert check_wheel(write_wheel(tmp_path, made(dataclasses.replace(SOUND, exports=both, hidden=("omega_dot",)))))


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    library = dataclasses.replace(SOUND, machine=62, alignment=4096, stack_flags=7)
    with pytest.raises(WheelError) as caught:
        check_wheel(write_wheel(tmp_path, made(library)))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("omega_edge-0.1.0-cp311-abi3-linux_aarch64.whl", None, "expected the platform manylinux_2_17_aarch64, got linux"),
        ("omega_edge-0.1.0-cp311-cp311-manylinux_2_17_aarch64.whl", None, "expected cp311-abi3, got cp311-cp311"),
        (
            "omega_edge-0.1.0-cp311-abi3-manylinux_2_17_aarch64.whl",
            "cp311-abi3-linux_x86_64",
            r"expected the tag cp311-abi3-manylinux_2_17_aarch64 inside, as the name says, got \['cp311-abi3-linux_x86_64'\]",
        ),
        ("omega_edge.whl", "x", "expected a name like"),
    ],
)
def test_wrong_tags_are_named(tmp_path: Path, name: str, tag: str | None, message: str) -> None:
    with pytest.raises(WheelError, match=message):
        check_wheel(write_wheel(tmp_path, made(SOUND), name=name, tag=tag))


RECORD = "omega_edge-0.1.0.dist-info/RECORD"
KERNELS = "omega_edge/_simd/_kernels.abi3.so"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"omega_edge/__init__.py": b"changed"}, "omega_edge/__init__.py does not have the SHA-256 and size"),
        ({"omega_edge/__init__.py": None}, "RECORD and the files differ in omega_edge/__init__.py"),
        ({"omega_edge/more.py": b""}, "RECORD and the files differ in omega_edge/more.py"),
        ({RECORD: None}, "expected one file .dist-info/RECORD, found 0"),
        ({"../outside.py": b""}, r"expected paths inside the wheel, got '../outside.py'"),
        ({"/outside.py": b""}, r"expected paths inside the wheel, got '/outside.py'"),
    ],
    ids=str,
)
def test_a_wheel_that_was_tampered_with_is_refused(tmp_path: Path, change: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(WheelError, match=message):
        check_wheel(write_wheel(tmp_path, made(SOUND), change=change))


def test_a_wheel_without_the_core_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelError, match="expected at least one ELF file, found none"):
        check_wheel(write_wheel(tmp_path, None))


def test_a_library_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ElfError, match="_kernels.abi3.so: expected the ELF magic"):
        check_wheel(write_wheel(tmp_path, b"not a library"))


def test_an_elf_file_under_another_name_is_checked_too(tmp_path: Path) -> None:
    change = {"omega_edge/data.bin": made(dataclasses.replace(SOUND, machine=62))}
    with pytest.raises(WheelError, match="omega_edge/data.bin: expected machine AArch64, got x86-64"):
        check_wheel(write_wheel(tmp_path, made(SOUND), change=change))


def test_a_wheel_that_claims_too_much_is_not_inflated(tmp_path: Path) -> None:
    wheel = tmp_path / "omega_edge-0.1.0-cp311-abi3-manylinux_2_17_aarch64.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes((64 << 20) + 1))
    with pytest.raises(WheelError, match="expected at most 4096 files of together 67108864 bytes"):
        check_wheel(wheel)


def test_the_command_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = write_wheel(tmp_path, made(SOUND))
    assert main([str(wheel)]) == 0
    assert "AArch64, glibc 2.17" in capsys.readouterr().out
    assert main([str(tmp_path / "none.whl")]) == 66
    wheel.write_bytes(wheel.read_bytes()[:200])
    assert main([str(wheel)]) == 65
    assert "File is not a zip file" in capsys.readouterr().err
