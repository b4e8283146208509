"""The journal: what was appended comes back, torn or damaged or foreign bytes never do."""

from __future__ import annotations

import errno
import os
import struct
import zlib

import pytest

from omega_edge.errors import StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.journal import CAPACITY_BYTES, HEADER_BYTES, Journal, Seal, store_error


def payloads(count: int, first: int = 1) -> list[tuple[int, bytes]]:
    return [(number, b"payload %d " % number + bytes(range(number % 50))) for number in range(first, first + count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def filled(path, records) -> Journal:
    journal = Journal(path)
    assert journal.replay(0) == []
    for record in records:
        journal.append(*record)
    return journal


def reread(path, applied: int = 0) -> list[tuple[int, bytes]]:
    journal = Journal(path, read_only=True)
    try:
        return journal.replay(applied)
    finally:
        journal.close()


def test_records_come_back_in_order_without_a_sync(path):
    journal = filled(path, payloads(60))
    assert reread(path) == payloads(60)
    assert journal.unsynced_records == 60
    journal.sync()
    assert journal.unsynced_records == 0
    journal.close()


def test_only_records_beyond_what_the_database_applied_come_back(path):
    filled(path, payloads(10)).close()
    assert reread(path, applied=7) == payloads(3, first=8)
    assert reread(path, applied=10) == []
    assert reread(path, applied=99) == []


def test_a_record_is_as_the_format_says(path):
    filled(path, [(7, b"abc"), (8, b"de")]).close()
    image = path.read_bytes()
    assert len(image) == CAPACITY_BYTES
    first = struct.pack(">IIQ", 3, 0, 7)
    checksum = zlib.crc32(b"abc", zlib.crc32(first))
    second = struct.pack(">IIQ", 2, 0, 8)
    chained = zlib.crc32(b"de", zlib.crc32(second, checksum))
    expected = struct.pack(">IIQ", 3, checksum, 7) + b"abc" + struct.pack(">IIQ", 2, chained, 8) + b"de"
    assert image[HEADER_BYTES : HEADER_BYTES + len(expected)] == expected


def test_appending_goes_on_after_reopening(path):
    filled(path, payloads(5)).close()
    journal = Journal(path)
    assert journal.replay(0) == payloads(5)
    journal.append(*payloads(1, first=6)[0])
    journal.close()
    assert reread(path) == payloads(6)


def test_after_restart_former_records_are_gone_whatever_is_written_over_them(path):
    journal = filled(path, payloads(20))
    journal.restart()
    journal.append(21, b"short")
    journal.close()
    # Behind the new record lie the bytes of the old ones, some of them whole.
    assert reread(path, applied=20) == [(21, b"short")]


def test_a_record_beyond_a_lost_one_is_never_taken_for_the_next(path):
    """Power fails; of records 2 and 3, unsynced, only 3 reached the disk. The next record has the length of 2."""
    journal = filled(path, [(1, b"kept")])
    journal.append(2, b"lost....")
    journal.append(3, b"survivor")
    journal.close()
    image = bytearray(path.read_bytes())
    second = HEADER_BYTES + 16 + 4
    image[second : second + 24] = bytes(24)
    path.write_bytes(image)
    journal = Journal(path)
    assert journal.replay(0) == [(1, b"kept")]
    journal.append(2, b"another.")
    journal.close()
    assert reread(path) == [(1, b"kept"), (2, b"another.")]


def test_any_damaged_byte_costs_one_record_and_is_named(path):
    records = payloads(12)
    filled(path, records).close()
    image = path.read_bytes()
    starts, place = [], HEADER_BYTES
    for _sequence, payload in records:
        starts.append(place)
        place += 16 + len(payload)
    for offset in range(HEADER_BYTES, place):
        damaged = bytearray(image)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        hit = sum(start <= offset for start in starts) - 1
        journal = Journal(path)
        assert journal.replay(0) == records[:hit] + records[hit + 1 :], f"byte {offset}"
        # Of the last one nobody can tell damage from a torn write.
        named = () if hit == 11 else (records[hit][0],)
        assert journal.damaged == named, f"byte {offset}"
        following = 12 if hit == 11 else 13
        journal.append(following, b"more")
        journal.close()
        assert reread(path)[-1] == (following, b"more") and len(reread(path)) == 12


def test_what_the_database_holds_already_is_not_named_as_damaged(path):
    filled(path, payloads(12)).close()
    image = bytearray(path.read_bytes())
    image[HEADER_BYTES + 20] ^= 1
    path.write_bytes(image)
    journal = Journal(path)
    assert journal.replay(5) == payloads(7, first=6) and journal.damaged == ()
    journal.close()


def test_survivors_of_a_power_cut_never_come_back_as_what_follows_a_damaged_record(path):
    """Of records 2 to 5, unsynced, 2 is lost; the next record has its length, so the survivors line up behind it."""
    journal = filled(path, [(number, b"payload.") for number in range(1, 6)])
    journal.close()
    image = bytearray(path.read_bytes())
    second = HEADER_BYTES + 16 + 8
    image[second : second + 24] = bytes(24)
    path.write_bytes(image)
    journal = Journal(path)
    assert journal.replay(0) == [(1, b"payload.")]
    journal.append(2, b"another.")
    journal.close()
    assert reread(path) == [(1, b"payload."), (2, b"another.")]


def test_a_header_that_a_power_cut_tore_between_two_sectors_is_no_damage(path):
    """The first sector was lost: of the header in both, the length is missing, the checksum is there."""
    first = 512 - 16 - 4
    journal = filled(path, [(1, bytes(first)), (2, b"torn"), (3, b"survivor")])
    journal.close()
    image = bytearray(path.read_bytes())
    split = HEADER_BYTES + 512
    image[split - 4 : split] = bytes(4)
    path.write_bytes(image)
    journal = Journal(path)
    assert journal.replay(0) == [(1, bytes(first))] and journal.damaged == ()
    journal.close()


@pytest.mark.parametrize(
    "length", [0, 1, 7, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 15, HEADER_BYTES + 40, 9000]
)
def test_a_truncated_file_gives_the_whole_records_and_can_be_written_again(path, length):
    records = payloads(12)
    filled(path, records).close()
    os.truncate(path, length)
    journal = Journal(path)
    found = journal.replay(0)
    assert found == records[: len(found)]
    assert (len(found) > 0) == (length >= HEADER_BYTES + 16 + len(records[0][1]))
    following = len(found) + 1
    journal.append(following, b"more")
    journal.close()
    assert reread(path) == [*found, (following, b"more")]


def test_a_foreign_file_gives_nothing(path):
    path.write_bytes(os.urandom(20_000))
    assert reread(path) == []


def test_a_full_journal_refuses_and_keeps_what_it_has(path):
    journal = filled(path, [])
    sequence = 0
    with pytest.raises(StoreFullError, match="journal is full"):
        while True:
            journal.append(sequence + 1, bytes(4000))
            sequence += 1
    assert sequence == (CAPACITY_BYTES - HEADER_BYTES) // 4016
    journal.append(sequence + 1, b"a small one still fits")
    journal.close()
    found = reread(path)
    assert [number for number, _payload in found] == list(range(1, sequence + 2))


def test_a_wiped_journal_holds_no_byte_of_its_records(path):
    journal = filled(path, payloads(30))
    journal.restart()
    journal.append(31, b"payload new")
    journal.wipe()
    journal.close()
    assert b"payload" not in path.read_bytes()
    assert reread(path) == []


def test_the_seal_comes_back_and_a_damaged_one_does_not(path):
    journal = filled(path, payloads(3))
    assert journal.seal is None
    journal.write_seal(Seal(123456, 0xDEADBEEF))
    journal.close()
    reopened = Journal(path)
    assert reopened.seal == Seal(123456, 0xDEADBEEF)
    assert reopened.replay(0) == payloads(3)
    reopened.close()
    image = bytearray(path.read_bytes())
    for offset in range(26):
        damaged = bytearray(image)
        damaged[offset] ^= 0x10
        path.write_bytes(damaged)
        reopened = Journal(path)
        assert reopened.seal is None, f"byte {offset}"
        reopened.close()


def test_after_a_failed_sync_the_records_are_written_again_before_the_next(path, monkeypatch):
    """After EIO the kernel may drop the dirty pages and let the next fdatasync succeed; so the file is made to lose
    them here, and has to have them back."""
    journal = filled(path, payloads(4))
    journal.sync()
    for record in payloads(3, first=5):
        journal.append(*record)

    def failing(descriptor):
        os.pwrite(descriptor, bytes(2000), HEADER_BYTES + sum(16 + len(payload) for _number, payload in payloads(4)))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(StoreError, match="Input/output error"):
            journal.sync()
    assert journal.unsynced_records == 3
    assert reread(path) == payloads(4)
    journal.sync()
    journal.close()
    assert reread(path) == payloads(7)


def test_read_only(path):
    missing = Journal(path, read_only=True)
    assert missing.replay(0) == [] and missing.seal is None
    missing.close()
    filled(path, payloads(2)).close()
    journal = Journal(path, read_only=True)
    assert journal.replay(0) == payloads(2)
    with pytest.raises(StoreReadOnlyError):
        journal.append(3, b"no")
    journal.close()
    assert reread(path) == payloads(2)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EFBIG, StoreFullError),
        (errno.EROFS, StoreReadOnlyError),
        (errno.EACCES, StoreReadOnlyError),
        (errno.EIO, StoreError),
    ],
)
def test_errors_are_named(number, expected):
    assert type(store_error(OSError(number, os.strerror(number)), "file")) is expected
    assert type(store_error(RuntimeError(f"mdb_txn_commit: {os.strerror(number)}"), "file")) is expected
