"""Other vector libraries in the process: in whatever order they are imported, our kernels answer the same, and so do they.

The libraries come from bench/search/peers.lock into an environment of their own, build/beside-venv, made when
`pytest -m with_aarch64` first runs these. usearch loads NumKong for all to see, and disturbs SimSIMD; our symbols are hidden.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.search.environment import prepare
from bench.search.together import LIBRARIES
from omega_edge._simd import _kernels

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = frozenset({"numpy", "numkong", "simsimd", "tqdm", "usearch"})
ORDERS = [",".join(order) for order in itertools.permutations(LIBRARIES)]


@pytest.fixture(scope="module")
def beside() -> Path:
    """The Python of the environment that has the other libraries."""
    return prepare(PROJECT / "build/beside-venv", lambda _text: None, PACKAGES)


def answer(python: Path, order: str) -> dict:
    """What bench.search.together says of an order of imports."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-m", "bench.search.together", order],
        capture_output=True, text=True, check=False, timeout=60, cwd=PROJECT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def alone(beside: Path) -> dict:
    """What our kernels return where nothing else is imported."""
    return answer(beside, "omega_edge")


@pytest.fixture(scope="module")
def without_us(beside: Path) -> dict[str, dict]:
    """What the others say of themselves without us, by their order."""
    return {order: answer(beside, order)["others"] for order in ("usearch,simsimd", "simsimd,usearch")}


@pytest.mark.with_aarch64
@pytest.mark.parametrize("order", ORDERS)
def test_imported_in_any_order_nothing_changes(beside: Path, alone: dict, without_us: dict, order: str) -> None:
    together = answer(beside, order)
    assert together["isa"] == alone["isa"]
    assert together["digests"] == alone["digests"]
    theirs = ",".join(name for name in order.split(",") if name != "omega_edge")
    assert together["others"] == without_us[theirs]


@pytest.mark.with_aarch64
def test_every_instruction_set_returns_the_same(alone: dict) -> None:
    assert len(alone["digests"]) >= 1 and len(set(alone["digests"].values())) == 1


def test_an_unknown_library_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.search.together", "omega_edge,annoy"],
        capture_output=True, text=True, check=False, cwd=PROJECT,
    )  # fmt: skip
    assert done.returncode == 2 and "annoy" in done.stderr


def test_the_core_exports_nothing_but_its_entry() -> None:
    """Of the symbols that the extension defines, other libraries in the process see only what Python calls."""
    assert exported(Path(_kernels.__file__)) == {"PyInit__kernels"}


def exported(library: Path) -> set[str]:
    """Names of the defined symbols in a library's dynamic table that are visible to others, read from its ELF file."""
    image = library.read_bytes()
    assert image[:6] == b"\x7fELF\x02\x01", "expected a 64-bit little-endian ELF file"

    def number(at: int, size: int) -> int:
        return int.from_bytes(image[at : at + size], "little")

    table, count = number(0x28, 8), number(0x3C, 2)
    sections = [table + 64 * index for index in range(count)]
    symbols = next(header for header in sections if number(header + 4, 4) == 11)  # SHT_DYNSYM
    names = number(sections[number(symbols + 40, 4)] + 24, 8)
    start, size = number(symbols + 24, 8), number(symbols + 32, 8)
    found = set()
    for entry in range(start, start + size, 24):
        binding, defined_in, visibility = image[entry + 4] >> 4, number(entry + 6, 2), image[entry + 5] & 3
        if binding in (1, 2) and defined_in and visibility == 0:  # global or weak, defined, of default visibility
            at = names + number(entry, 4)
            found.add(image[at : image.index(b"\0", at)].decode())
    return found
