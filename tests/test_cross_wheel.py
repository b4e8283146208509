"""Building the wheel for another machine: its environment and sources, its faults, and real builds where possible."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from toolchain import cross_wheel
from toolchain.cross_wheel import DEFAULT_EPOCH, BuildError, build_environment, build_wheel, copy_sources, main

PROJECT = Path(__file__).resolve().parent.parent
HEADERS = PROJECT / "build" / "aarch64" / "sysroot" / "usr" / "include" / "python3.11"


def test_the_environment_names_the_television_and_nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "PYTHONPATH"):
        monkeypatch.setenv(name, "-march=native")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    environment = build_environment(Path("include/python3.11"), "a-compiler")
    assert "-march=native" not in " ".join(environment.values())
    assert environment["CC"].split()[:2] == ["a-compiler", "-Iinclude/python3.11"]
    spaced = build_environment(Path("a tree/include/python3.11"), "/opt/a maker/gcc")
    includes = ["-Ia tree/include/python3.11", "-idirafter", "a tree/include"]
    assert shlex.split(spaced["CC"]) == ["/opt/a maker/gcc", *includes]
    assert shlex.split(spaced["LDSHARED"])[:2] == ["/opt/a maker/gcc", "-shared"]
    assert "-march=armv8-a" in environment["CFLAGS"].split()
    assert environment["LDSHARED"].startswith("a-compiler -shared -Wl,-z,max-page-size=16384 ")
    assert environment["_PYTHON_HOST_PLATFORM"] == "linux-aarch64"
    assert environment["SOURCE_DATE_EPOCH"] == DEFAULT_EPOCH
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert build_environment(Path("include"), "a-compiler")["SOURCE_DATE_EPOCH"] == "1700000000"


def test_the_sources_are_copied_without_what_was_built_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = ("_simd/_kernels.c", "_simd/_kernels.abi3.so", "__pycache__/brain.cpython-311.pyc", "omega.egg-info/PKG-INFO")
    wanted = {"setup.py", "omega_edge/brain.py", "omega_edge/_simd/_kernels.pyx", "omega_edge/_simd/kernels_scalar.c"}
    for name in (*wanted, *(f"omega_edge/{name}" for name in built), "tests/test_brain.py"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
    monkeypatch.setattr(cross_wheel, "PROJECT", tmp_path / "tree")
    (tmp_path / "copy").mkdir(0o700)
    copy_sources(tmp_path / "copy")
    modes = {str(path.relative_to(tmp_path / "copy")): path.stat().st_mode & 0o777 for path in tmp_path.glob("copy/**/*")}
    assert {name for name in modes if "." in name} == wanted
    assert {mode for name, mode in modes.items() if name in wanted} == {0o644}
    assert modes["omega_edge"] == modes["omega_edge/_simd"] == 0o755


def test_the_wheel_is_made_of_what_the_project_has() -> None:
    assert all((PROJECT / name).exists() for name in cross_wheel.SOURCES)


def test_missing_headers_and_compilers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BuildError, match=r"expected the folder of a Python for AArch64 with Python\.h in it"):
        build_wheel(tmp_path, tmp_path / "out")
    (tmp_path / "Python.h").touch()
    with pytest.raises(BuildError, match="no-such-gcc: no such compiler"):
        build_wheel(tmp_path, tmp_path / "out", "no-such-gcc")
    assert main(["--python-headers", str(tmp_path), "--out", str(tmp_path / "out"), "--compiler", "no-such-gcc"]) == 70
    assert "no-such-gcc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_compiler_that_fails_leaves_nothing_in_the_place(tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "broken-gcc"
    compiler.write_text("#!/bin/sh\necho cannot compile >&2\nexit 3\n")
    compiler.chmod(0o755)
    with pytest.raises(BuildError, match="pip wheel ended with 1"):
        build_wheel(tmp_path, tmp_path / "out", str(compiler))
    assert not (tmp_path / "out").exists()


@pytest.mark.with_aarch64
@pytest.mark.skipif(
    shutil.which(cross_wheel.COMPILER) is None or not HEADERS.is_dir(),
    reason="no compiler or headers for ARM; ./check --aarch64 installs them and builds",
)
def test_a_wheel_that_fails_its_checks_is_not_put_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_wheel, "LINK_FLAGS", ("-shared", "-Wl,-z,max-page-size=4096", "-Wl,-z,execstack"))
    code = main(["--python-headers", str(HEADERS), "--out", str(tmp_path / "out")])
    assert code == 65 and not (tmp_path / "out").exists()
