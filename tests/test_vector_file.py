"""The vector store's file: what comes back, and what is refused."""

from __future__ import annotations

import os
import resource
import struct
import tempfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from omega_edge.errors import StoreDamagedError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.vector_file import HEADER_BYTES, VectorHeader, write_vectors
from omega_edge.vectors import VectorStore
from tests import reference

D = 32
STAMP = 77


def filled(ids, **options) -> VectorStore:
    store = VectorStore(D, **options)
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


def opened(path: Path, **options) -> VectorStore:
    """The store, looked at: a part of what is checked is checked at the first use."""
    store = VectorStore.load(path, STAMP, D, **options)
    store.verify()
    return store


def test_every_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    whole = path.read_bytes()
    assert len(whole) == 128 + 5 * 64  # halves of 2 * 16, scales, spreads and ids, each filled up to 64 bytes
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        with pytest.raises(StoreDamagedError, match="delete the file"):
            opened(path)


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.search(np.ones(D, np.float32)),
        lambda store: store.search(np.ones(D, np.float32), 1, [1]),
        lambda store: store.get(1),
        lambda store: store.vector(1),
        lambda store: store.ids(),
        lambda store: 1 in store,
        lambda store: store.count,
        lambda store: store.stats(),
        lambda store: store.upsert(1, np.ones(D, np.float32)),
        lambda store: store.delete(1),
        lambda store: store.save("/dev/null/never", 1),
        lambda store: store.calibrate(),
    ],
)
def test_no_use_of_a_damaged_file_gets_an_answer(tmp_path, use):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES] ^= 1
    path.write_bytes(content)
    store = VectorStore.load(path, STAMP, D)
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="of section high"):
            use(store)


def test_every_truncation_and_any_growth_is_noticed(tmp_path):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    whole = path.read_bytes()
    for damaged in [whole[:length] for length in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(StoreDamagedError):
            VectorStore.load(path, STAMP, D)


def rewritten(path: Path, **changes) -> None:
    """Changes fields of the header by their offset, under a true checksum."""
    content = bytearray(path.read_bytes())
    for field, (layout, value) in changes.items():
        struct.pack_into(layout, content, int(field[2:]), value)
    struct.pack_into("<I", content, 92, zlib.crc32(content[:92]))
    path.write_bytes(content)


def test_a_foreign_file_and_another_version_are_named(tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(b"SQLite format 3\0" * 10)
    with pytest.raises(StoreDamagedError, match="expected a vector file"):
        VectorStore.load(path, STAMP, D)
    for version in (1, 3):
        filled([1]).save(path, STAMP)
        rewritten(path, at8=("<I", version))
        with pytest.raises(StoreDamagedError, match=f"expected format version 2, got {version}; delete the file"):
            VectorStore.load(path, STAMP, D)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at16": ("<Q", 1 << 60)}, "1152921504606846976 of 2 rows"),
        ({"at16": ("<Q", 3)}, "3 of 2 rows"),
        ({"at24": ("<Q", 1 << 60)}, "of 1152921504606846976 rows"),
        ({"at24": ("<Q", (1 << 32) - 1)}, "bytes for 2 vectors, got 448"),
        ({"at12": ("<I", 33)}, "33 dimensions"),
        ({"at12": ("<I", 1 << 31)}, "2147483648 dimensions"),
        ({"at40": ("<I", 4)}, "known flags"),
        ({"at40": ("<I", 1)}, "bytes for 2 vectors, got 448"),
        ({"at60": ("<f", np.nan)}, "recalls"),
        ({"at64": ("<f", 2.0)}, "recalls"),
        ({"at48": ("<Q", 9), "at56": ("<I", 500)}, "expected signs, and at least 128 candidates"),
    ],
)
def test_a_header_that_no_store_writes_is_refused_before_memory_is_taken(tmp_path, change, message):
    path = tmp_path / "vectors"
    filled([1, 2]).save(path, STAMP)
    rewritten(path, **change)
    with pytest.raises(StoreDamagedError, match=message):
        VectorStore.load(path, STAMP, D)


def test_fewer_candidates_than_any_store_takes_are_refused(tmp_path):
    path = tmp_path / "vectors"
    filled(range(5000)).save(path, STAMP)
    rewritten(path, at48=("<Q", 5000), at56=("<I", 127))
    with pytest.raises(StoreDamagedError, match="at least 128 candidates"):
        VectorStore.load(path, STAMP, D)
    rewritten(path, at56=("<I", 2**32 - 1))  # more than a tenth of the rows: an exact search
    assert len(opened(path).search(np.ones(D, np.float32), 5000)) == 5000


@pytest.mark.parametrize(
    ("ids", "scale", "message"),
    [
        ([2, 1], 0.1, "ascending"),
        ([1, 1], 0.1, "ascending"),
        ([1, 2], 0.0, "scales above 0"),
        ([1, 2], np.nan, "scales above 0"),
    ],
)
def test_values_that_no_store_holds_are_damage_under_a_true_checksum(tmp_path, ids, scale, message):
    path = tmp_path / "vectors"
    high, low, spread = reference.halve(np.ones((2, D), np.int8))
    columns = [high, low, np.full(2, scale, np.float32), spread, np.array(ids, np.uint64)]
    header = VectorHeader(D, 2, 2, STAMP, False, None, None, 0.99)
    write_vectors(path, header, [[column] for column in columns] + [[]])
    with pytest.raises(StoreDamagedError, match=message):
        opened(path)


def test_a_loaded_store_never_changes_its_file(tmp_path):
    path = tmp_path / "vectors"
    filled(range(5000), recall=0.5).save(path, STAMP)
    before = path.read_bytes()
    loaded, mapped = VectorStore.load(path, STAMP, D, recall=0.5), path.stat().st_size
    assert loaded.stats().capacity > 5000  # the first of the rows to spare are written in the map
    for id in range(3000):
        loaded.upsert(id, np.random.default_rng(id % 7).standard_normal(D).astype(np.float32))
    assert loaded.stats().capacity < 5500
    assert (path.read_bytes(), path.stat().st_size) == (before, mapped)


def test_a_file_replaced_while_it_is_mapped_keeps_its_reader(tmp_path):
    path = tmp_path / "vectors"
    filled(range(100)).save(path, STAMP)
    loaded = VectorStore.load(path, STAMP, D)
    filled(range(3)).save(path, STAMP)
    assert contents(loaded) == contents(filled(range(100)))
    loaded.save(path, STAMP)  # onto the place of what it came from
    assert contents(VectorStore.load(path, STAMP, D)) == contents(loaded)


def test_a_vector_takes_at_most_450_bytes(tmp_path):
    path, n = tmp_path / "vectors", 10_000
    codes, scale = reference.quantise(np.random.default_rng(0).standard_normal((n, 384)).astype(np.float32))
    store = VectorStore()
    store.upsert_codes(range(n), codes, scale)
    store.save(path, STAMP)
    assert path.stat().st_size <= 450 * n
    loaded = VectorStore.load(path, STAMP)
    assert loaded.delete(5)  # makes the table of ids
    assert path.stat().st_size - 192 <= loaded.nbytes <= 455 * n


def test_a_store_over_codes_can_be_saved(tmp_path):
    path = tmp_path / "vectors"
    codes, scale = reference.quantise(np.random.default_rng(0).standard_normal((2000, D)).astype(np.float32))
    VectorStore.over(codes, scale).save(path, STAMP)
    loaded = VectorStore.load(path, STAMP, D)
    assert loaded.ids() == list(range(2000))
    assert all(np.array_equal(loaded.get(id)[0], codes[id]) for id in (0, 1023, 1024, 1999))


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


def test_a_file_that_may_only_be_read_is_loaded_and_the_store_changed():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors"
        filled(range(9)).save(path, STAMP)
        before = path.read_bytes()
        os.chmod(path, 0o444)
        os.chmod(folder, 0o555)
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            loaded = VectorStore.load(path, STAMP, D)
            loaded.upsert(3, np.ones(D, np.float32))
            loaded.delete(4)
            assert loaded.search(np.ones(D, np.float32), 1)[0][0] == 3
            assert loaded.ids() == [0, 1, 2, 3, 5, 6, 7, 8]
        finally:
            os.seteuid(user)
        assert path.read_bytes() == before


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


def test_saves_at_once_never_show_half_a_file(tmp_path):
    """They share the temporary file beside the path: one that is being written must not be put in its place."""
    store, vectors = VectorStore(D, keep_vectors=True), np.random.default_rng(4).standard_normal((200, D), np.float32)
    for id, vector in enumerate(vectors):
        store.upsert(id, vector)
    store.save(tmp_path / "vectors", 1)
    faults: list[Exception] = []

    def save() -> None:
        try:
            for _ in range(8):
                store.save(tmp_path / "vectors", 1)
        except StoreError as error:
            faults.append(error)

    savers = [threading.Thread(target=save) for _ in range(3)]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        assert VectorStore.load(tmp_path / "vectors", 1, D).count == 200
    for saver in savers:
        saver.join()
    assert faults == []
    assert VectorStore.load(tmp_path / "vectors", 1, D, keep_vectors=True).count == 200


def test_a_large_file_saved_without_signs_is_searched_by_them(tmp_path):
    """A store over a catalogue's codes has none; a store that is not large enough says so, and no other does."""
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((60, D))[rng.integers(0, 60, 5000)] + rng.standard_normal((5000, D)) / 2
    codes, scale = reference.quantise(vectors.astype(np.float32))
    exact = VectorStore.over(codes, scale)
    exact.save(tmp_path / "vectors", 1)
    loaded = VectorStore.load(tmp_path / "vectors", 1, D, recall=0.9)
    loaded.calibrate()
    stats = loaded.stats()
    assert (stats.search, stats.reason) == ("two-stage", "")
    shares = []
    for row in range(0, 5000, 100):
        true, found = exact.search_code(codes[row], scale[row]), loaded.search_code(codes[row], scale[row])
        shares.append(len({id for id, _ in true} & {id for id, _ in found}) / 50)
    assert np.mean(shares) >= 0.9
