"""Builds the wheel for 64-bit ARM televisions on another machine, checks it, and only then puts it in its place.

    python -m toolchain.cross_wheel --python-headers DIR --out DIR

The build runs in a temporary copy of the sources, by the ordinary setup.py, with a cross compiler named in the
environment, so nothing in the tree changes and nothing left over from another build gets in. The same sources, Python
packages and compiler give the same bytes: times come from SOURCE_DATE_EPOCH, modes and paths are fixed.
`toolchain/cross_build` fetches the headers and calls this.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from toolchain.elf import ElfError
from toolchain.wheel_check import MACHINE, PAGE_BYTES, PLATFORM, WheelError, check_wheel

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "omega_edge", "include")
"""Files and folders of the project that the wheel is made of."""

COMPILER = "aarch64-linux-gnu-gcc"
# Of 2020-01-01, where the caller's environment names none: a wheel is a zip file, whose times begin with 1980.
DEFAULT_EPOCH = "1577836800"

# -march: every 64-bit ARM television runs it; what needs more is chosen when the program runs. The rest makes the build
# independent of the flags that the building machine's own Python was compiled with.
COMPILE_FLAGS = ("-march=armv8-a", "-mno-outline-atomics", "-fno-stack-protector", "-fno-plt")
# Segments apart by 16 KB pages load on kernels with pages of 4 and 16 KB; gcc's own 64 KB pads the file.
LINK_FLAGS = (
    "-shared",
    f"-Wl,-z,max-page-size={PAGE_BYTES}",
    "-Wl,-z,noexecstack,-z,relro,-z,now",
    "-Wl,--as-needed,--build-id=none,--strip-all",
    "-Wl,--no-warn-search-mismatch",  # setuptools also names the building machine's library folders
)


class BuildError(RuntimeError):
    """The build failed; the text says in which step."""


def build_environment(headers: Path, compiler: str) -> dict[str, str]:
    """The environment in which an ordinary setup.py builds for the television.

    headers is the folder with Python.h of a 64-bit Python of version 3.11 or newer whose pyconfig.h knows AArch64.
    Variables that would add flags of the caller's own machine are dropped.
    """
    dropped = ("CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS", "C_INCLUDE_PATH", "CPATH", "PYTHONPATH", "AR")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    # Debian's pyconfig.h includes <aarch64-linux-gnu/python3.11/pyconfig.h> from the folder above.
    # In CC, because the building Python's own headers come after it; the other flags after that Python's, in CFLAGS.
    return environment | {
        "CC": shlex.join((compiler, f"-I{headers}", "-idirafter", str(headers.parent))),
        "CFLAGS": " ".join(COMPILE_FLAGS),
        "LDSHARED": shlex.join((compiler, *LINK_FLAGS)),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": ".abi3.so",
        "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def copy_sources(target: Path) -> None:
    """Copy what the wheel is made of, without what other builds left there, with modes that do not depend on umask."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_kernels.c", "*.egg-info")
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=unwanted)
        elif source.exists():
            shutil.copyfile(source, target / name)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def build_wheel(headers: Path, out: Path, compiler: str = COMPILER) -> Path:
    """Build and check the wheel, then move it into `out`, which is made; returns its path.

    Raises BuildError if a step fails, WheelError or ElfError if the wheel is not sound; then `out` is as it was.
    """
    if not (headers / "Python.h").is_file():
        raise BuildError(f"{headers}: expected the folder of a Python for {MACHINE} with Python.h in it")
    if shutil.which(compiler) is None:
        raise BuildError(f"{compiler}: no such compiler; on Debian: apt-get install gcc-aarch64-linux-gnu")
    environment = build_environment(headers.resolve(), compiler)
    return wheel_of_a_copy(out, environment, [f"--config-settings=--build-option=--plat-name={PLATFORM}"], check_wheel)


def wheel_of_a_copy(
    out: Path, environment: dict[str, str], options: list[str], check: Callable[[Path], object] = lambda wheel: None
) -> Path:
    """Build the wheel from a copy of the sources, check it, move it into `out`, which is made; returns its path.

    options are pip's. Raises BuildError if pip fails, and what `check` raises; then `out` is as it was.
    """
    with tempfile.TemporaryDirectory(prefix="omega-edge-") as name:
        folder = Path(name)
        copy_sources(folder)
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-input", "--no-index"]
        command += ["--no-deps", "--no-build-isolation", *options, "-w", "made", "."]
        done = subprocess.run(command, cwd=folder, env=environment, umask=0o022, stdout=sys.stderr, check=False)
        if done.returncode:
            raise BuildError(f"pip wheel ended with {done.returncode}; what it said stands above")
        made = sorted((folder / "made").glob("*.whl"))
        if len(made) != 1:
            raise BuildError(f"expected one wheel, found {[path.name for path in made]}")
        check(made[0])
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f".{made[0].name}.partial"
        shutil.copyfile(made[0], partial)
        return partial.replace(out / made[0].name)


def main(arguments: list[str] | None = None) -> int:
    """Build one wheel and print its path; 0, or 65 if it is not sound, or 70 if the build failed."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.cross_wheel", description=__doc__.split("\n")[0])
    parser.add_argument("--python-headers", type=Path, required=True, help="folder with Python.h for the television")
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheel")
    parser.add_argument("--compiler", default=COMPILER, help=f"C compiler for {MACHINE} (default: {COMPILER})")
    options = parser.parse_args(arguments)
    try:
        print(build_wheel(options.python_headers, options.out, options.compiler))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 70
    except (WheelError, ElfError) as error:
        print(error, file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main())
