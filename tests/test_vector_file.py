"""The vector store's file: what comes back, and what is refused."""

from __future__ import annotations

import os
import resource
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from omega_edge.errors import StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.vector_file import VectorTable, write_vectors
from omega_edge.vectors import VectorStore

D = 32
STAMP = 77


def filled(ids) -> VectorStore:
    store = VectorStore(D)
    for id in ids:
        store.upsert(id, np.random.default_rng(id % 1000).standard_normal(D).astype(np.float32))
    return store


def contents(store: VectorStore) -> dict:
    return {id: (store.get(id)[0].tolist(), store.get(id)[1]) for id in store.ids()}


@pytest.mark.parametrize("ids", [[], [5], [2**64 - 1, 0, 9], list(range(300))])
def test_what_was_saved_comes_back_and_can_be_changed(tmp_path, ids):
    store, path = filled(ids), tmp_path / "vectors"
    store.save(path, STAMP)
    loaded = VectorStore.load(path, STAMP, D)
    assert contents(loaded) == contents(store)
    query = np.ones(D, np.float32)
    assert loaded.search(query, 9) == store.search(query, 9)
    for either in (loaded, store):
        either.upsert(4, query)
        either.delete(9)
    assert contents(loaded) == contents(store)
    assert loaded.search(query, 9) == store.search(query, 9)
    assert [entry.name for entry in tmp_path.iterdir()] == ["vectors"]


def test_the_same_vectors_make_the_same_bytes(tmp_path):
    one, other = filled([1, 2, 3, 4]), filled([9, 4, 3, 2, 1])
    other.delete(9)
    one.save(tmp_path / "one", STAMP)
    other.save(tmp_path / "other", STAMP)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_another_stamp_other_dimensions_or_no_file_is_none(tmp_path):
    path = tmp_path / "vectors"
    assert VectorStore.load(path, STAMP, D) is None
    filled([1]).save(path, STAMP)
    assert VectorStore.load(path, STAMP + 1, D) is None
    assert VectorStore.load(path, STAMP, 64) is None
    assert VectorStore.load(path, STAMP, D) is not None


def test_every_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    whole = path.read_bytes()
    assert len(whole) == 64 + 2 * (8 + 4 + D)
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        with pytest.raises(StoreDamagedError, match="delete the file"):
            VectorStore.load(path, STAMP, D)


def test_every_truncation_and_any_growth_is_noticed(tmp_path):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    whole = path.read_bytes()
    for damaged in [whole[:length] for length in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(StoreDamagedError):
            VectorStore.load(path, STAMP, D)


def test_a_foreign_file_and_a_later_version_are_named(tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(b"SQLite format 3\0" * 10)
    with pytest.raises(StoreDamagedError, match="expected a vector file"):
        VectorStore.load(path, STAMP, D)
    fields = struct.pack("<8sIIQQI", b"OMEGAVEC", 2, D, 0, STAMP, 0)
    path.write_bytes((fields + struct.pack("<I", zlib.crc32(fields))).ljust(64, b"\0"))
    with pytest.raises(StoreDamagedError, match="expected format version 1, got 2"):
        VectorStore.load(path, STAMP, D)


@pytest.mark.parametrize(
    ("ids", "scale", "code", "message"),
    [
        ([2, 1], 0.1, 1, "ascending"),
        ([1, 1], 0.1, 1, "ascending"),
        ([1, 2], 0.0, 1, "scales above 0"),
        ([1, 2], np.nan, 1, "scales above 0"),
        ([1, 2], 0.1, -128, "codes from -127"),
    ],
)
def test_values_that_no_store_holds_are_damage_under_a_true_checksum(tmp_path, ids, scale, code, message):
    path = tmp_path / "vectors"
    table = VectorTable(np.array(ids, np.uint64), np.full(2, scale, np.float32), np.full((2, D), code, np.int8))
    write_vectors(path, STAMP, table)
    with pytest.raises(StoreDamagedError, match=message):
        VectorStore.load(path, STAMP, D)


def test_a_count_that_the_file_cannot_hold_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "vectors"
    fields = struct.pack("<8sIIQQI", b"OMEGAVEC", 1, D, 1 << 60, STAMP, 0)
    path.write_bytes((fields + struct.pack("<I", zlib.crc32(fields))).ljust(64, b"\0"))
    with pytest.raises(StoreDamagedError, match="bytes for 1152921504606846976 vectors, got 64"):
        VectorStore.load(path, STAMP, D)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "vectors"
    filled([1]).save(path, STAMP)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the kernel refuses the file at 4 KB, as a full disk would
    try:
        with pytest.raises(StoreFullError, match="could not be written"):
            filled(range(200)).save(path, STAMP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["vectors"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            with pytest.raises(StoreReadOnlyError, match="could not be written"):
                filled([1]).save(Path(folder) / "vectors", STAMP)
        finally:
            os.seteuid(user)
    with pytest.raises(StoreError, match="could not be written: No such file or directory"):
        filled([1]).save(tmp_path / "absent" / "vectors", STAMP)


def test_a_folder_in_the_files_place_is_named(tmp_path):
    with pytest.raises(StoreError, match="could not be read: Is a directory"):
        VectorStore.load(tmp_path, STAMP, D)
