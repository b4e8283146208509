"""The store: records checked one by one, damage survived, one process at a time, full and read-only disks named."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import lmdb
import pytest

from omega_edge import store as store_module
from omega_edge.errors import StoreBusyError, StoreDamagedError, StoreFullError, StoreReadOnlyError
from omega_edge.salvage import salvage
from omega_edge.store import DATABASE_NAME, JOURNAL_NAME, Store, decode_record, encode_record
from tests.long.damage import flip, overwrite_page, truncate, zero_sector
from tests.long.damage import run as damaged_files

DATABASE_FILES = (DATABASE_NAME, JOURNAL_NAME, "memory.lock")


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def rows(count: int, first: int = 0, seed: int = 0) -> list:
    chosen = random.Random(seed)
    return [
        ("episodes", key(number), {1: f"record {number}", 2: chosen.randbytes(40)})
        for number in range(first, first + count)
    ]


def contents(store: Store, table: str = "episodes") -> dict:
    return dict(store.items(table))


def expected(found: list) -> dict:
    return {record_key: fields for _table, record_key, fields in found}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class TestRecords:
    def test_a_record_is_bound_to_its_table_and_key(self):
        record = encode_record("episodes", b"key", {1: "value", 2: 3.5})
        assert decode_record("episodes", b"key", record) == {1: "value", 2: 3.5}
        assert decode_record("episodes", b"yek", record) is None
        assert decode_record("skills", b"key", record) is None
        assert decode_record("episodes", b"key", b"") is None

    def test_any_damaged_byte_is_found(self):
        record = encode_record("seen", b"key", {1: "value"})
        for offset in range(len(record)):
            for bit in range(8):
                damaged = bytearray(record)
                damaged[offset] ^= 1 << bit
                assert decode_record("seen", b"key", bytes(damaged)) is None

    def test_put_delete_and_order(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(300))
        store.write([("episodes", key(7), None), ("episodes", key(8), {1: "changed"}), ("episodes", key(900), None)])
        kept = expected(rows(300)) | {key(8): {1: "changed"}}
        del kept[key(7)]
        assert list(store.items("episodes")) == sorted(kept.items())
        assert list(store.items("episodes", key(290))) == sorted(kept.items())[-10:]
        assert store.get("episodes", key(7)) is None and store.get("episodes", key(8)) == {1: "changed"}
        assert store.count("episodes") == 299 and store.count("skills") == 0
        store.close()
        reopened = Store(tmp_path)
        assert contents(reopened) == kept and not reopened.damage.notes
        reopened.close()

    def test_a_record_that_fails_its_checksum_is_counted_named_and_passed_over(self, tmp_path):
        """The file is as LMDB left it and sealed; only a record's bytes are wrong, as after a fault in memory."""
        store = Store(tmp_path)
        store.write(rows(50))
        with store._environment.begin(write=True, db=store._databases["episodes"]) as transaction:
            record = bytearray(transaction.get(key(20)))
            record[10] ^= 1
            transaction.put(key(20), bytes(record))
        assert contents(store) == {k: v for k, v in expected(rows(50)).items() if k != key(20)}
        assert store.damage.records == 1 and store.damage.names == [f"episodes:{zlib.crc32(key(20)):08x}"]
        store.close()


class TestSalvage:
    def test_it_reads_what_the_library_wrote(self, tmp_path):
        """The oracle is LMDB itself, on trees with branch pages, overflow pages, deletions and reused pages."""
        store = Store(tmp_path)
        chosen = random.Random(3)
        for round_number in range(12):
            found = rows(200, first=chosen.randrange(2000), seed=round_number)
            found += [
                ("skills", key(chosen.randrange(300)), {1: chosen.randbytes(chosen.choice((10, 900, 5000)))})
                for _ in range(40)
            ]
            found += [("episodes", key(chosen.randrange(2000)), None) for _ in range(150)]
            store.write({(table, name): (table, name, fields) for table, name, fields in found}.values())
        with store._environment.begin() as transaction:
            raw = {
                (table, bytes(name), bytes(value))
                for table, database in store._databases.items()
                for name, value in transaction.cursor(database)
            }
        store.close()
        salvaged = salvage(tmp_path / DATABASE_NAME)
        assert len(raw) > 800
        assert set(salvaged.records) == raw and len(salvaged.records) == len(raw)
        assert salvaged.faults == [] and salvaged.lost_records == 0

    def test_the_state_before_the_last_commit_is_used_where_the_last_is_lost(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(10))
        store.write(rows(10, first=10))
        store.close()
        environment = lmdb.open(str(tmp_path / DATABASE_NAME), subdir=False, lock=False, max_dbs=20)
        environment.close()
        image = bytearray((tmp_path / DATABASE_NAME).read_bytes())
        transactions = [
            int.from_bytes(image[page * 4096 + 16 + 128 : page * 4096 + 16 + 136], "little") for page in (0, 1)
        ]
        newest = transactions.index(max(transactions))
        root_at = newest * 4096 + 16 + 24 + 48 + 40
        root = int.from_bytes(image[root_at : root_at + 8], "little")
        image[root * 4096 : root * 4096 + 64] = bytes(64)
        (tmp_path / DATABASE_NAME).write_bytes(image)
        reopened = Store(tmp_path)
        assert contents(reopened) == expected(rows(10))
        reopened.close()


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "kept"), [(flip, 0.98), (zero_sector, 0.9), (truncate, 0.0), (overwrite_page, 0.8)]
    )
    def test_nothing_crashes_and_no_record_is_wrong_or_lost_in_silence(self, tmp_path, damage, kept):
        tally = damaged_files(tmp_path, damage, files=30, seed=1)
        assert tally.files == 30 and tally.faults == ()
        assert tally.kept >= kept * tally.offered

    def test_a_missing_seal_costs_nothing(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(100))
        store.close()
        (tmp_path / JOURNAL_NAME).unlink()
        reopened = Store(tmp_path)
        assert contents(reopened) == expected(rows(100))
        assert reopened.damage.records == 0 and not reopened.damage.notes
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATABASE_FILES)
        reopened.close()

    @pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"not a database " * 1000])
    def test_a_foreign_file_is_put_aside(self, tmp_path, content):
        (tmp_path / DATABASE_NAME).write_bytes(content)
        store = Store(tmp_path)
        assert contents(store) == {} and "store damaged" in store.damage.notes[0]
        assert (tmp_path / f"{DATABASE_NAME}.damaged").read_bytes() == content
        store.remove_quarantined()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATABASE_FILES)
        store.close()

    def test_a_newer_schema_is_refused_and_left_alone(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "STORE_SCHEMA", store_module.STORE_SCHEMA + 1)
            Store(tmp_path).close()
        before = (tmp_path / DATABASE_NAME).read_bytes()
        for sealed in (True, False):
            if not sealed:
                (tmp_path / JOURNAL_NAME).unlink()
            with pytest.raises(
                StoreDamagedError, match="has schema 3, this version reads up to 2; update the software"
            ):
                Store(tmp_path)
            assert (tmp_path / DATABASE_NAME).read_bytes() == before


class TestRebuild:
    def test_it_leaves_no_byte_of_what_was_there(self, tmp_path):
        store = Store(tmp_path)
        for number in range(20):
            store.write([("episodes", key(number), {1: "the secret " * (number + 1)})])
        store.write([("episodes", key(number), None) for number in range(20)])
        assert b"the secret" in (tmp_path / DATABASE_NAME).read_bytes(), "LMDB leaves it in free pages"
        store.rebuild(rows(30))
        assert contents(store) == expected(rows(30))
        assert all(b"the secret" not in path.read_bytes() for path in tmp_path.iterdir())
        store.close()

    def test_a_half_made_file_is_removed_at_open(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(10))
        store.close()
        (tmp_path / f"{DATABASE_NAME}.new").write_bytes(b"half")
        reopened = Store(tmp_path)
        assert contents(reopened) == expected(rows(10))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(DATABASE_FILES)
        reopened.close()


class TestOneProcess:
    def test_a_second_opener_is_told_who_holds_it(self, tmp_path):
        store = Store(tmp_path)
        command = (
            "import sys; from pathlib import Path; from omega_edge.store import Store; "
            "from omega_edge.errors import StoreBusyError\n"
            "try: Store(Path(sys.argv[1]), read_only=sys.argv[2] == 'r')\n"
            "except StoreBusyError as fault: print(fault)\n"
        )
        for mode in "rw":
            told = subprocess.run(
                [sys.executable, "-c", command, str(tmp_path), mode], capture_output=True, text=True, check=True
            )
            assert f"held by process {os.getpid()};" in told.stdout
        with pytest.raises(StoreBusyError):
            Store(tmp_path)
        store.close()
        Store(tmp_path).close()

    def test_a_killed_holder_does_not_block(self, tmp_path):
        command = (
            "import sys, time; from pathlib import Path; from omega_edge.store import Store; "
            "store = Store(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", command, str(tmp_path)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StoreBusyError, match=f"process {holder.pid};"):
                Store(tmp_path)
            holder.kill()
        Store(tmp_path).close()


class TestFull:
    def test_the_map_grows_to_its_limit(self, tmp_path):
        store = Store(tmp_path, max_map_bytes=64 << 20)
        large = [("states", key(number), {1: bytes(1 << 20)}) for number in range(40)]
        store.write(large)
        assert store.count("states") == 40
        with pytest.raises(StoreFullError, match="largest size, 67108864 bytes"):
            store.write(("states", key(100 + number), {1: bytes(1 << 20)}) for number in range(40))
        assert store.count("states") == 40
        store.write(rows(10))
        assert contents(store) == expected(rows(10))
        store.close()

    def test_a_full_disk_is_named_nothing_is_lost_and_space_cures_it(self, small_disk):
        folder = small_disk / "store"
        store = Store(folder)
        store.write(rows(100))
        ballast = small_disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(StoreFullError, match="No space left on device"):
            store.write(rows(3000, first=100))
        assert contents(store) == expected(rows(100))
        with pytest.raises(StoreFullError):
            store.rebuild(rows(50))
        assert contents(store) == expected(rows(100))
        assert sorted(path.name for path in folder.iterdir()) == sorted(DATABASE_FILES)
        ballast.unlink()
        store.write(rows(2000, first=100))
        assert contents(store) == expected(rows(100)) | expected(rows(2000, first=100))
        store.close()
        reopened = Store(folder)
        assert contents(reopened) == expected(rows(100)) | expected(rows(2000, first=100))
        assert not reopened.damage.notes
        reopened.close()

    def test_a_file_size_limit_is_a_full_disk(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(20))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(tmp_path / JOURNAL_NAME).st_size, hard))
        try:
            with pytest.raises(StoreFullError, match="no space left"):
                store.write(rows(20_000, first=20))
            assert contents(store) == expected(rows(20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, former)
        store.write(rows(5000, first=20))
        assert len(contents(store)) == 5020
        store.close()


    @pytest.mark.parametrize("spare_bytes", [100, 5_000, 50_000, 300_000])
    def test_a_rebuild_that_does_not_fit_is_a_full_disk_whatever_the_library_calls_it(self, tmp_path, spare_bytes):
        store = Store(tmp_path)
        store.write(rows(20))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000 + spare_bytes, hard))
        try:
            with pytest.raises(StoreFullError, match="no space left"):
                store.rebuild(rows(20_000))
            assert contents(store) == expected(rows(20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, former)
        store.rebuild(rows(20_000))
        assert len(contents(store)) == 20_000
        store.close()


class TestReadOnly:
    def test_it_reads_and_refuses_to_write(self, tmp_path):
        store = Store(tmp_path)
        store.write(rows(30))
        store.close()
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        reader = Store(tmp_path, read_only=True)
        assert contents(reader) == expected(rows(30))
        assert list(reader.items("episodes", key(25))) == sorted(expected(rows(30)).items())[25:]
        assert reader.get("episodes", key(3)) == rows(30)[3][2] and reader.count("episodes") == 30
        for write in (reader.write, reader.rebuild):
            with pytest.raises(StoreReadOnlyError):
                write(rows(1))
        reader.close()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_folder_that_is_missing_reads_as_empty(self, tmp_path):
        reader = Store(tmp_path / "none", read_only=True)
        assert contents(reader) == {}
        reader.close()
        assert not (tmp_path / "none").exists()

    def test_a_read_only_file_system_turns_the_store_read_only(self, small_disk):
        folder = small_disk / "store"
        store = Store(folder)
        store.write(rows(30))
        store.close()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        reader = Store(folder)
        assert reader.read_only and contents(reader) == expected(rows(30))
        assert any("read-only" in note for note in reader.damage.notes)
        with pytest.raises(StoreReadOnlyError):
            reader.write(rows(1))
        reader.close()
        empty = Store(small_disk / "other")
        assert empty.read_only and contents(empty) == {}
        empty.close()


def test_sizes_count_the_bytes_of_every_file(tmp_path: Path):
    store = Store(tmp_path)
    store.write(rows(1000))
    held = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert store.size_bytes() == held > 100_000
    store.close()
