"""Bundle deltas: exact whatever changed, refused when anything about them is wrong, and never larger in memory than told."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from omega_edge import bundle, bundle_delta
from omega_edge.bundle_delta import apply_delta, base_digest, make_delta
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.errors import CatalogError
from tests.synthetic import sections_of

PART = struct.Struct("<BBHQ")
HEADER_BYTES = 96


def write_pair(folder: Path, change=lambda sections: None, titles: int = 60) -> tuple[Path, Path]:
    """Two bundles of one lineage, the second one changed."""
    sections, meta = sections_of(titles)
    write_bundle(folder / "old", sections, meta)
    newer = dict(sections)
    newer["popularity"] = newer["popularity"][::-1].copy()
    change(newer)
    write_bundle(folder / "new", newer, meta | {"version": 2})
    return folder / "old", folder / "new"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path)


def grown(sections: dict[str, np.ndarray]) -> None:
    """Titles appended: every section but the few that count no titles becomes longer."""
    sections.update(sections_of(75)[0])


def fewer_sections(sections: dict[str, np.ndarray]) -> None:
    for name in [name for name in sections if name.startswith(("slist_", "factor_"))]:
        del sections[name]


def empty_rows(sections: dict[str, np.ndarray]) -> None:
    sections["row_offsets"] = np.zeros_like(sections["row_offsets"])
    sections["row_columns"], sections["row_values"] = np.empty(0, np.uint32), np.empty(0, np.int8)


@pytest.mark.parametrize("change", [lambda sections: None, grown, fewer_sections, empty_rows])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_new_bundle_comes_out_byte_for_byte(tmp_path, change, backwards):
    old, new = write_pair(tmp_path, change)
    if backwards:
        old, new = new, old
    delta = make_delta(old, new)
    apply_delta(old, delta, tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == new.read_bytes()
    assert delta == make_delta(old, new) and base_digest(delta) == hashlib.sha256(old.read_bytes()).digest()
    assert len(delta) < new.stat().st_size
    with Catalog.open(tmp_path / "made") as catalog, Catalog.open(new) as expected:
        assert catalog.version == expected.version


def test_the_same_bundle_again_is_a_table_of_copies(pair, tmp_path):
    old, _new = pair
    delta = make_delta(old, old)
    assert len(delta) == HEADER_BYTES + PART.size * (1 + struct.unpack_from("<I", old.read_bytes(), 12)[0])
    apply_delta(old, delta, tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == old.read_bytes()


@pytest.mark.parametrize("dtype", ["|i1", "<u2", "<u4", "<i8", "<f4", "<f8"])
def test_every_arrangement_can_be_undone(dtype):
    numbers = np.random.default_rng(3).integers(0, 255, 24 * np.dtype(dtype).itemsize).astype(np.uint8)
    piece = bundle_delta._Piece(numbers, np.dtype(dtype).itemsize)
    for arrangement in range(3):
        arranged = bundle_delta._arranged(piece, arrangement)
        np.testing.assert_array_equal(bundle_delta._disarranged(arranged, arrangement, piece.itemsize), numbers)


def test_a_delta_for_another_bundle_is_refused_and_leaves_nothing(pair, tmp_path):
    old, new = pair
    delta = make_delta(old, new)
    with pytest.raises(CatalogError, match="old bundle that it was made from"):
        apply_delta(new, delta, tmp_path / "made")
    with pytest.raises(CatalogError, match="cannot be read"):
        apply_delta(tmp_path / "none", delta, tmp_path / "made")
    (tmp_path / "empty").touch()
    with pytest.raises(CatalogError, match="cannot be read"):
        apply_delta(tmp_path / "empty", delta, tmp_path / "made")
    assert sorted(os.listdir(tmp_path)) == ["empty", "new", "old"]


def test_the_old_file_may_be_the_one_that_is_replaced(pair):
    old, new = pair
    apply_delta(old, make_delta(old, new), old)
    assert old.read_bytes() == new.read_bytes()


def test_sizes_are_refused_before_anything_is_made(pair, tmp_path):
    old, new = pair
    delta = bytearray(make_delta(old, new))
    with pytest.raises(CatalogError, match="at most 1000 bytes"):
        apply_delta(old, delta, tmp_path / "made", max_bytes=1000)
    for place, value, said in (
        (12, 0xFFFF_FFFF, "parts inside it"),
        (16, 1 << 62, "at most"),
        (24, 1 << 62, "at most"),
        (8, 9, "format version"),
    ):
        changed = bytearray(delta)
        struct.pack_into("<I" if place in (8, 12) else "<Q", changed, place, value)
        with pytest.raises(CatalogError, match=said):
            apply_delta(old, changed, tmp_path / "made")


def test_what_is_cut_or_changed_anywhere_is_refused(pair, tmp_path):
    """Every length, and a changed bit in every byte: none is taken, none leaves a file."""
    old, new = pair
    delta = make_delta(old, new)
    for length in range(0, len(delta), 7):
        with pytest.raises(CatalogError):
            apply_delta(old, delta[:length], tmp_path / "made")
    with pytest.raises(CatalogError):
        apply_delta(old, delta + b"\0", tmp_path / "made")
    rng = np.random.default_rng(11)
    for place in range(len(delta)):
        changed = bytearray(delta)
        changed[place] ^= 1 << int(rng.integers(8))
        try:
            apply_delta(old, changed, tmp_path / "made")
        except CatalogError:
            continue
        # A zstd frame can say one thing in two ways; what came out is what was promised.
        assert (tmp_path / "made").read_bytes() == new.read_bytes()
        (tmp_path / "made").unlink()
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_random_bytes_behind_a_sound_header_are_refused(pair, tmp_path):
    old, new = pair
    delta = make_delta(old, new)
    rng = np.random.default_rng(5)
    for _ in range(2000):
        changed = bytearray(delta)
        for _ in range(int(rng.integers(1, 6))):
            start = int(rng.integers(HEADER_BYTES, len(delta)))
            end = min(start + int(rng.integers(1, 40)), len(delta))
            changed[start:end] = rng.bytes(end - start)
        try:
            apply_delta(old, changed, tmp_path / "made")
        except CatalogError:
            continue
        assert (tmp_path / "made").read_bytes() == new.read_bytes()


def with_part(delta: bytes, index: int, how: int, packed: bytes) -> bytes:
    """A delta with one part exchanged."""
    count = struct.unpack_from("<I", delta, 12)[0]
    entries = [list(PART.unpack_from(delta, HEADER_BYTES + PART.size * part)) for part in range(count)]
    start = HEADER_BYTES + PART.size * count
    blobs = []
    for _how, _arrangement, _zero, length in entries:
        blobs.append(delta[start : start + length])
        start += length
    entries[index], blobs[index] = [how, 0, 0, len(packed)], packed
    return delta[:HEADER_BYTES] + b"".join(PART.pack(*entry) for entry in entries) + b"".join(blobs)


def popularity_part(new: Path) -> tuple[int, int]:
    """Number of the part, and its length."""
    entries = bundle.table_of(new, new.read_bytes(), new.stat().st_size)
    place = [entry.name for entry in entries].index("popularity")
    return place + 1, entries[place].length


def test_frames_that_grow_beyond_what_they_state_are_refused(pair, tmp_path):
    old, new = pair
    delta, (part, length) = make_delta(old, new), popularity_part(new)
    honest = zstandard.ZstdCompressor(level=1).compress(bytes(length))
    for frame, said in (
        (zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26)), "states"),
        (zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(length)), "states"),
        (honest + honest, "damaged"),
        (honest[:-1], "damaged"),
        (b"", "damaged"),
        (honest, "SHA-256"),
    ):
        with pytest.raises(CatalogError, match=said):
            apply_delta(old, with_part(delta, part, 1, frame), tmp_path / "made")
    # A frame that states the right length and holds blocks of runs that would make far more.
    runs = b"".join(((length << 3) | (1 << 1)).to_bytes(3, "little") + b"\0" for _ in range(1000))
    bomb = b"\x28\xb5\x2f\xfd\x20" + bytes((length,)) + runs
    assert zstandard.get_frame_parameters(bomb).content_size == length
    with pytest.raises(CatalogError, match="damaged"):
        apply_delta(old, with_part(delta, part, 1, bomb), tmp_path / "made")
    with pytest.raises(CatalogError, match="needs an old one"):
        longer = write_pair(tmp_path, grown)[1]
        apply_delta(old, with_part(make_delta(old, longer), popularity_part(longer)[0], 0, b""), tmp_path / "made")
    assert not (tmp_path / "made").exists()


APPLY_WITH_LITTLE_MEMORY = """
import resource, sys
from omega_edge.bundle_delta import apply_delta
delta = open(sys.argv[2], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
apply_delta(sys.argv[1], delta, sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_grows_with_the_largest_section_not_with_the_bundle(tmp_path):
    """Sixty sections of 1 MiB: what a delta needs beyond the map of the old file is a few of them."""
    rng = np.random.default_rng(9)
    sections = {f"part_{number:02d}": rng.integers(0, 255, 1 << 20).astype(np.uint8) for number in range(60)}
    bundle.write(tmp_path / "old", sections, frozenset(sections))
    for array in sections.values():
        array[::1000] += 1
    bundle.write(tmp_path / "new", sections, frozenset(sections))
    delta = make_delta(tmp_path / "old", tmp_path / "new")
    assert len(delta) < 1 << 20
    (tmp_path / "delta").write_bytes(delta)
    command = [sys.executable, "-c", APPLY_WITH_LITTLE_MEMORY, *(str(tmp_path / name) for name in ("old", "delta", "made"))]
    grown_kb = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mapped_kb = (tmp_path / "old").stat().st_size // 1024
    assert (tmp_path / "made").read_bytes() == (tmp_path / "new").read_bytes()
    assert grown_kb < mapped_kb + 24 * 1024, f"{grown_kb} kB beside a map of {mapped_kb} kB"


FULL_DISK = """
import resource, signal, sys
from omega_edge.bundle_delta import apply_delta
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    apply_delta(sys.argv[1], open(sys.argv[2], "rb").read(), sys.argv[3])
except OSError as error:
    print(type(error).__name__)
"""


def test_a_disk_that_takes_no_more_leaves_the_old_file_and_no_other(pair, tmp_path):
    old, new = pair
    (tmp_path / "delta").write_bytes(make_delta(old, new))
    command = [sys.executable, "-c", FULL_DISK, str(old), str(tmp_path / "delta"), str(old)]
    before = old.read_bytes()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "OSError"
    assert old.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["delta", "new", "old"]
