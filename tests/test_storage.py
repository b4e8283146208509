"""The LMDB engine: what is stored, in order, under checksums; erased, purged, found again; room that runs out."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cloud import storage_records as records
from cloud.lmdb_storage import LmdbStorage
from cloud.storage import StoredPattern, SyncChange
from cloud.storage_environment import DATABASE_NAME, RESERVE_NAME, probe
from omega_edge.columns import STEP_MS
from omega_edge.errors import ConfigError, StoreDamagedError, StoreFullError, StoreReadOnlyError
from omega_edge.protocol import DAY_MS

NOW_MS = 1_700_000_000_000
NOBODY = 65_534
PROJECT = Path(__file__).resolve().parent.parent


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_store(tmp_path, clock):
    opened = []

    def open_it(**options) -> LmdbStorage:
        store = LmdbStorage(tmp_path / "store", clock=clock, **{"map_bytes": 64 << 20, "reserve_bytes": 1 << 16} | options)
        opened.append(store)
        return store

    yield open_it
    for store in opened:
        store.close()


def device_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def change(device: int, version: int, rows=(), seen=None, epoch=7, now=NOW_MS, **others) -> SyncChange:
    return SyncChange(
        device_id(device), epoch, now, seen, version, list(rows), [now - 3_600_000] * len(rows), **others
    )


def pattern(number: int, row: int = 1, **changes) -> StoredPattern:
    return StoredPattern(
        **{"id": number, "success_rate": 0.8, "sample_count": 5, "created_at": NOW_MS // STEP_MS * STEP_MS,
           "updated_at": NOW_MS // STEP_MS * STEP_MS, "references": ((row, 255),)} | changes
    )  # fmt: skip


class TestPages:
    def test_come_back_in_the_order_of_arrival_and_survive_a_reopening(self, open_store):
        store = open_store()
        store.apply([change(number, 1, [number, 65_536 + number]) for number in range(5)])
        store.close()
        pages = open_store().pages_after(0, 10)
        assert [page.device_id for page in pages] == [device_id(number) for number in range(5)]
        assert [page.rows.tolist() for page in pages] == [[number, 65_536 + number] for number in range(5)]
        assert all(page.rows.dtype == np.uint32 and page.finished_ms.dtype == np.int64 for page in pages)
        assert pages[0].finished_ms.tolist() == [NOW_MS - 3_600_000] * 2 and pages[0].received_ms == NOW_MS
        assert sorted({page.sequence for page in pages}) == [page.sequence for page in pages]

    def test_a_reader_goes_on_after_the_last_sequence_it_saw(self, open_store):
        store = open_store()
        store.apply([change(number, 1, [number]) for number in range(7)])
        first = store.pages_after(0, 3)
        assert [page.rows[0] for page in first] == [0, 1, 2]
        assert [page.rows[0] for page in store.pages_after(first[-1].sequence, 10)] == [3, 4, 5, 6]
        assert store.pages_after(store.pages_after(0, 10)[-1].sequence, 10) == []

    def test_a_sequence_is_not_given_twice_even_when_all_records_are_gone(self, open_store):
        store = open_store()
        store.apply([change(1, 1, [1])])
        before = store.pages_after(0, 1)[0].sequence
        store.erase(device_id(1))
        store.close()
        store = open_store()
        store.apply([change(2, 1, [2])])
        assert store.pages_after(0, 1)[0].sequence > before + 1  # the erasure has one too

    def test_a_batch_without_news_writes_nothing(self, open_store, tmp_path):
        store = open_store()
        (outcome,) = store.apply([change(1, 1, [1])])
        size = (tmp_path / "store" / DATABASE_NAME).stat().st_mtime_ns
        later = change(1, 1, seen=outcome.server_time, now=NOW_MS + 5)
        assert store.apply([later])[0].changed is False
        assert (tmp_path / "store" / DATABASE_NAME).stat().st_mtime_ns == size

    def test_the_store_of_another_lineage_is_refused(self, open_store):
        open_store(lineage="0123456789abcdef").close()
        open_store().close()
        with pytest.raises(ConfigError, match="expected bundles of lineage 0123456789abcdef"):
            open_store(lineage="fedcba9876543210")


class TestErasing:
    def test_takes_pages_reports_and_patterns_and_nobody_elses(self, open_store):
        store = open_store()
        seen = {1: None, 2: None}
        for version in (1, 2, 3):
            batch = [change(device, version, [version], seen[device], patterns=[pattern(version)]) for device in (1, 2)]
            for device, outcome in zip((1, 2), store.apply(batch), strict=True):
                seen[device] = outcome.server_time
        today = NOW_MS // DAY_MS
        store.apply([change(device, 3, report=(today, 1, device)) for device in (1, 2)])
        assert store.erase(device_id(1)) is True
        assert store.device(device_id(1)) is None and store.patterns_of(device_id(1)) == []
        assert {page.device_id for page in store.pages_after(0, 99)} == {device_id(2)}
        assert len(store.pages_after(0, 99)) == 3
        assert [report.device_id for report in store.reports_after(0, 99)] == [device_id(2)]
        assert [erasure.device_id for erasure in store.erasures_after(0, 99)] == [device_id(1)]
        assert len(store.patterns_of(device_id(2))) == 3
        assert store.erase(device_id(1)) is False

    def test_what_was_captured_before_cannot_be_played_again_after_it(self, open_store):
        store = open_store()
        captured = change(1, 1, [1])
        store.apply([captured])
        store.apply([SyncChange(device_id(1), 7, NOW_MS, erase=True)])
        assert store.apply([captured])[0].reset is True
        assert store.device(device_id(1)) is None and store.pages_after(0, 9) == []
        assert store.apply([change(1, 1, [1], epoch=8)])[0].reset is False  # the device itself comes with a new epoch

    def test_a_chain_broken_by_damage_is_followed_to_its_end_all_the_same(self, open_store, tmp_path):
        store = open_store()
        seen = None
        for version in range(1, 6):
            seen = store.apply([change(1, version, [version], seen)])[0].server_time
        store.apply([change(2, 1, [9])])
        third = store.pages_after(0, 9)[2].sequence
        store.close()
        damage(tmp_path / "store", "pages", records.sequence_key(third))
        store = open_store()
        assert [page.rows[0] for page in store.pages_after(0, 9)] == [1, 2, 4, 5, 9]
        assert store.erase(device_id(1)) is True
        assert [page.rows[0] for page in store.pages_after(0, 9)] == [9]


def damage(folder: Path, table: str, key: bytes) -> None:
    """Change one byte of a record in place."""
    environment = lmdb.open(os.fsencode(folder / DATABASE_NAME), subdir=False, max_dbs=16, map_size=64 << 20)
    database = environment.open_db(table.encode())
    with environment.begin(write=True) as transaction:
        record = bytearray(transaction.get(key, db=database))
        record[-1] ^= 1
        transaction.put(key, bytes(record), db=database)
    environment.close()


class TestDamage:
    def test_a_damaged_device_is_told_to_reset_and_is_counted(self, open_store, tmp_path):
        store = open_store()
        seen = store.apply([change(1, 1, [1])])[0].server_time
        store.close()
        damage(tmp_path / "store", "devices", device_id(1))
        store = open_store()
        assert store.device(device_id(1)) is None
        assert store.apply([change(1, 2, [2], seen)])[0].reset is True
        assert store.facts().damaged_records >= 2

    def test_a_record_in_anothers_place_is_damage(self):
        sealed = records.sealed("devices", b"key", b"fields")
        assert records.opened("devices", b"key", sealed) == b"fields"
        assert records.opened("devices", b"kez", sealed) is None
        assert records.opened("pages", b"key", sealed) is None
        assert records.opened("devices", b"key", b"") is None

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_cut_database_is_refused_in_words_before_it_is_opened(self, open_store, tmp_path, share):
        store = open_store()
        store.apply([change(number, 1, range(40)) for number in range(300)])
        store.close()
        database = tmp_path / "store" / DATABASE_NAME
        os.truncate(database, int(database.stat().st_size * share) // 4096 * 4096)
        with pytest.raises(StoreDamagedError, match="database is damaged"):
            probe(tmp_path / "store")

    def test_other_bytes_are_refused_in_words(self, open_store, tmp_path):
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / DATABASE_NAME).write_bytes(random.Random(1).randbytes(1 << 16))
        with pytest.raises(StoreDamagedError, match="database is damaged"):
            probe(tmp_path / "store")
        with pytest.raises(StoreDamagedError, match="database is damaged"):
            open_store()

    @pytest.mark.parametrize(("folder_mode", "database_mode"), [(0o755, 0), (0, 0o600)])
    def test_another_users_database_is_not_called_damaged(self, folder_mode, database_mode):
        superuser = os.geteuid() == 0
        with tempfile.TemporaryDirectory() as outer:  # pytest's folders are closed to others
            folder = Path(outer) / "store"
            LmdbStorage(folder, clock=Clock()).close()
            for path, mode in ((folder / DATABASE_NAME, database_mode), (folder, folder_mode), (outer, 0o755)):
                os.chmod(path, mode)
            try:
                if superuser:
                    os.seteuid(NOBODY)
                with pytest.raises(StoreReadOnlyError, match="its owner"):
                    probe(folder)
            finally:
                if superuser:
                    os.seteuid(0)
                os.chmod(folder, 0o700)

    def test_a_sound_one_and_none_at_all_pass(self, open_store, tmp_path):
        probe(tmp_path / "store")
        store = open_store()
        store.apply([change(1, 1, [1])])
        store.close()
        probe(tmp_path / "store")


class TestAge:
    def test_pages_go_after_their_days_and_devices_that_stay_away_are_forgotten(self, open_store, clock):
        store = open_store(retention_days=10)
        seen = store.apply([change(1, 1, [1])])[0].server_time
        store.apply([change(2, 1, [2])])
        clock.now_ms = NOW_MS + 6 * DAY_MS
        store.apply([change(1, 2, [3], seen, now=clock.now_ms)])
        clock.now_ms = NOW_MS + 11 * DAY_MS
        while store.purge(clock.now_ms):
            pass
        assert [page.rows[0] for page in store.pages_after(0, 9)] == [3]
        assert store.device(device_id(1)) is not None and store.device(device_id(2)) is None
        assert store.erase(device_id(1)) is True  # its chain ends where age has cut it
        assert store.pages_after(0, 9) == []

    def test_a_little_at_a_time(self, open_store, clock):
        store = open_store(retention_days=10)
        store.apply([change(number, 1, [1]) for number in range(25)])
        clock.now_ms = NOW_MS + 11 * DAY_MS
        assert store.purge(clock.now_ms, 10) == 10
        assert len(store.pages_after(0, 99)) == 15


class TestPatterns:
    def test_of_every_form_come_back(self, open_store):
        store = open_store()
        stored = [
            pattern(1, references=tuple((row, row % 255 + 1) for row in (0, 300, 70_000, 16_777_214))),
            pattern(2, references=(), code=bytes(range(48)), codebook=4_000_000_000),
            pattern(4_000_000_000, success_rate=1.0, sample_count=(1 << 32) - 1),
        ]
        store.apply([change(1, 1, patterns=stored)])
        assert store.patterns_of(device_id(1)) == stored
        store.store_patterns(device_id(1), stored[:1])
        assert store.patterns_of(device_id(1)) == stored[:1]
        with pytest.raises(KeyError):
            store.store_patterns(device_id(2), stored)

    def test_one_device_cannot_pile_them_up(self, open_store):
        store, seen = open_store(), None
        for version in range(1, 6):
            batch = [change(1, version, seen=seen, patterns=[pattern(version * 100 + number) for number in range(50)])]
            seen = store.apply(batch)[0].server_time
        assert len(store.patterns_of(device_id(1))) == 64


class TestFindSimilar:
    @staticmethod
    def unit(seed: int) -> np.ndarray:
        vector = np.random.default_rng(seed).normal(size=384)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def vectors(self, stored: StoredPattern) -> np.ndarray | None:
        row = stored.references[0][0]
        return None if row == 999 else self.unit(row)

    def test_finds_the_nearest_follows_changes_and_keeps_to_the_region(self, open_store):
        south = open_store(region="south")
        south.apply([change(1_000 + number, 1, patterns=[pattern(1, number)]) for number in range(5)])
        south.close()
        north = open_store(region="north", vectors=self.vectors)
        north.apply([change(number, 1, patterns=[pattern(1, number)]) for number in range(200)])
        found = north.find_similar(self.unit(7), 10, "north")
        assert len(found) == 10 and found[0].device_id == device_id(7) and found[0].similarity > 0.99
        assert len(north.find_similar(self.unit(7), 10, "south")) == 5
        assert north.find_similar(self.unit(7), 10, "nowhere") == []
        north.store_patterns(device_id(7), [pattern(1, 500)])
        assert north.find_similar(self.unit(7), 1, "north")[0].device_id != device_id(7)
        assert north.find_similar(self.unit(500), 1, "north")[0].device_id == device_id(7)
        north.erase(device_id(7))
        assert north.find_similar(self.unit(500), 1, "north")[0].device_id != device_id(7)
        north.store_patterns(device_id(8), [pattern(1, 999)])  # a pattern that the bundle cannot resolve is in no index
        assert len(north.find_similar(self.unit(8), 500, "north")) == 198

    def test_equals_the_exact_search_on_nearly_all(self, open_store):
        store = open_store(vectors=self.vectors)
        store.apply([change(number, 1, patterns=[pattern(1, number)]) for number in range(900)])
        everything = np.stack([self.unit(number) for number in range(900)])
        right = 0
        for seed in range(2_000, 2_020):
            exact = set(np.argsort(-(everything @ self.unit(seed)))[:10].tolist())
            found = store.find_similar(self.unit(seed), 10, "default")
            right += len(exact & {int.from_bytes(one.device_id, "big") for one in found})
        assert right >= 190

    def test_needs_vectors_and_a_sound_question(self, open_store):
        store = open_store()
        with pytest.raises(ConfigError, match="expected a bundle"):
            store.find_similar(self.unit(1), 1, "default")
        store.close()
        with pytest.raises(ConfigError, match="a vector of 384"):
            open_store(vectors=self.vectors).find_similar(np.zeros(3, np.float32), 1, "default")


class TestTrending:
    def test_counts_distinct_devices_of_the_region_in_the_window(self, open_store, clock):
        south = open_store(region="south")
        south.apply([change(4, 1, [7])])
        south.close()
        store = open_store(region="north")
        store.apply([change(1, 1, [5, 5, 6]), change(2, 1, [5]), change(3, 1, [7])])
        best = store.get_trending("north", 2)
        assert [(one.row, one.devices) for one in best] == [(5, 2), (6, 1)]
        assert [one.row for one in store.get_trending("south", 9)] == [7]
        assert store.get_trending("elsewhere", 9) == []
        clock.now_ms += 3 * DAY_MS
        assert store.get_trending("north", 2) == []


class TestRoom:
    def test_the_largest_size_refuses_news_and_still_erases(self, open_store):
        store = open_store(map_bytes=1 << 20)
        with pytest.raises(StoreFullError, match="largest size"):
            for first in range(0, 10_000, 20):
                store.apply([change(number, 1, range(100)) for number in range(first, first + 20)])
        kept = len(store.pages_after(0, 20_000))
        assert store.apply([SyncChange(device_id(0), 7, NOW_MS, erase=True)])[0].erased is True
        assert len(store.pages_after(0, 20_000)) == kept - 1

    def test_a_full_disk_refuses_news_and_still_erases(self, tmp_path):
        """A limit on the size of files stands for the end of the disk, in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(tmp_path / "store")], cwd=PROJECT, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["full", "erased", "sound"]


FULL_DISK = f"""
import resource, signal, sys
from pathlib import Path
from tests.test_storage import NOW_MS, change, device_id
from cloud.lmdb_storage import LmdbStorage
from cloud.storage import SyncChange
from omega_edge.errors import StoreFullError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LmdbStorage(Path(sys.argv[1]), clock=lambda: NOW_MS, reserve_bytes=1 << 16)
resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 20}, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        store.apply([change(number + one, 1, range(100)) for one in range(20)])
        number += 20
except StoreFullError:
    print("full")
kept = len(store.pages_after(0, 20_000))
assert kept == number, (kept, number)
resource.setrlimit(resource.RLIMIT_FSIZE, ({1 << 22}, resource.RLIM_INFINITY))
assert store.apply([SyncChange(device_id(0), 7, NOW_MS, erase=True)])[0].erased
print("erased")
assert store.apply([change(99_999, 1, [1])])[0].changed and len(store.pages_after(0, 20_000)) == number
print("sound")
"""


def test_a_second_process_sees_what_the_first_made_durable_and_writes_beside_it(open_store, tmp_path):
    store = open_store()
    store.apply([change(1, 1, [1])])
    script = (
        "import sys; from pathlib import Path; from cloud.lmdb_storage import LmdbStorage\n"
        "from tests.test_storage import change, NOW_MS\n"
        "store = LmdbStorage(Path(sys.argv[1]), clock=lambda: NOW_MS, map_bytes=64 << 20, reserve_bytes=1 << 16)\n"
        "assert len(store.pages_after(0, 9)) >= 1\n"
        "for number in range(50): store.apply([change(100 + number, 1, [number])])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "store")], cwd=PROJECT)
    for number in range(50):
        store.apply([change(200 + number, 1, [number])])
    assert process.wait(60) == 0
    pages = store.pages_after(0, 999)
    assert len(pages) == 101 and len({page.sequence for page in pages}) == 101


def test_the_reserve_is_there_and_is_made_again(open_store, tmp_path, clock):
    store = open_store(reserve_bytes=1 << 20)
    reserve = tmp_path / "store" / RESERVE_NAME
    assert reserve.stat().st_size == 1 << 20
    reserve.unlink()
    store.purge(clock.now_ms)
    assert reserve.stat().st_size == 1 << 20


def test_a_store_of_a_newer_version_is_refused(open_store, tmp_path):
    open_store().close()
    environment = lmdb.open(os.fsencode(tmp_path / "store" / DATABASE_NAME), subdir=False, max_dbs=16, map_size=64 << 20)
    with environment.begin(write=True) as transaction:
        sealed = records.sealed("meta", b"schema", (99).to_bytes(2, "big"))
        transaction.put(b"schema", sealed, db=environment.open_db(b"meta", txn=transaction))
    environment.close()
    with pytest.raises(StoreDamagedError, match="the store has schema 99"):
        open_store()


def test_a_store_of_schema_1_is_brought_up_to_date_and_loses_nothing(open_store, tmp_path):
    """vectors/storage/schema_1.mdb.gz was written by the first version: three devices with two pages each and patterns, one
    report, one device erased."""
    (tmp_path / "store").mkdir()
    old = gzip.decompress((PROJECT / "tests/vectors/storage/schema_1.mdb.gz").read_bytes())
    (tmp_path / "store" / DATABASE_NAME).write_bytes(old)
    store = open_store(region="north", lineage="0123456789abcdef")
    assert [(page.device_id, page.rows.tolist()) for page in store.pages_after(0, 9)] == [
        (device_id(number), [number, version * 100]) for version in (1, 2) for number in (1, 2)
    ]
    state = store.device(device_id(1))
    assert (state.epoch, state.local_version, state.time_issued, state.past_epochs) == (7, 2, NOW_MS + 1, ())
    assert store.patterns_of(device_id(1)) == [
        pattern(1, 1), pattern(2, 1), pattern(9, references=(), code=bytes(range(48)), codebook=3)
    ]
    assert [report.seed for report in store.reports_after(0, 9)] == [77]
    assert [erasure.device_id for erasure in store.erasures_after(0, 9)] == [device_id(3)]
    (outcome,) = store.apply([change(1, 3, [5], NOW_MS + 1)])
    assert outcome.acknowledged_local_version == 3 and not outcome.reset
    store.close()
    assert open_store(region="north").device(device_id(1)).local_version == 3
