"""The short way for a request's frame reads what wire.decode_request reads, or leaves the frame to it."""

from __future__ import annotations

import random

import cbor2
import pytest

from cloud.plain_requests import PlainRequest, read_plain_request
from cloud.shard_titles import RowTitle, ShardTitles
from omega_edge import wire
from omega_edge.columns import OUTSIDE, STEP_MS
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    MAX_TIMESTAMP_MS,
    MAX_TITLES_FINISHED_PER_PAGE,
    FinishedTitle,
    PatternDelta,
    SyncRequest,
)
from tests.shard_processes import write_bundle
from tests.test_shard_fuzz import messages, mutated

DEVICE_ID = bytes(range(16))
NOW_MS = 1_700_000_000_000
WIDTHS = (0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1)


@pytest.fixture(scope="module")
def titles(tmp_path_factory) -> ShardTitles:
    return ShardTitles(write_bundle(tmp_path_factory.mktemp("bundles")))


def long_way(body: bytes, titles: ShardTitles) -> PlainRequest:
    """What wire.decode_request reads, in the form of the short way. Raises ProtocolError."""
    request = wire.decode_request(body, titles)
    delta = request.delta
    assert delta is not None and not delta.snapshot
    assert not (delta.patterns_added or delta.patterns_updated or delta.patterns_removed)
    assert request.count_report is None and not request.erase
    assert all(type(title.content_id) is RowTitle for title in delta.titles_finished)
    return PlainRequest(
        request.version, request.global_version_seen, request.device_id, request.epoch, request.server_time_seen,
        delta.local_version, [title.content_id.row for title in delta.titles_finished],
        [title.finished_at for title in delta.titles_finished], delta.shared_set_hash,
    )  # fmt: skip


def agrees(body: bytes, titles: ShardTitles) -> bool:
    """Whether the short way read the bytes; then it has read what the long way reads."""
    found = read_plain_request(body, titles)
    if found is not None:
        assert found == long_way(body, titles), body.hex()
    return found is not None


def drawn(chosen: random.Random, count: int, spread_steps: int = 10) -> SyncRequest:
    """A usual request of so many titles."""
    newest = NOW_MS // STEP_MS
    finished = []
    for _ in range(count):
        newest += chosen.randrange(-spread_steps, spread_steps + 1) + wire.USUAL_TITLE_GAP_STEPS
        finished.append(FinishedTitle(f"t{chosen.randrange(60):03}", newest * STEP_MS))
    more = chosen.random() < 0.3
    shared_hash = None if more or chosen.random() < 0.5 else chosen.choice(WIDTHS)
    delta = PatternDelta(chosen.choice(WIDTHS), tuple(finished), more_pages=more, shared_set_hash=shared_hash)
    seen = chosen.choice((None, 0, 23, 24, NOW_MS, MAX_TIMESTAMP_MS))
    return SyncRequest(
        chosen.choice((1, 23, 24, 255)), chosen.choice(WIDTHS), chosen.randbytes(16), chosen.choice(WIDTHS), seen, delta
    )


def test_usual_requests_take_the_short_way(titles):
    chosen = random.Random(1)
    for _ in range(3_000):
        body = wire.encode_request(drawn(chosen, chosen.randrange(1, 30)), titles)
        assert agrees(body, titles) == (body[2] == 0)


def test_what_else_a_television_sends_takes_the_long_way(titles):
    for message in messages(DEVICE_ID):
        assert read_plain_request(wire.encode_request(message, titles), titles) is None
    text_only = wire.encode_request(drawn(random.Random(2), 3))
    assert read_plain_request(text_only, titles) is None
    numbered = wire.encode_request(drawn(random.Random(2), 3), titles)
    assert read_plain_request(numbered, None) is None and read_plain_request(numbered, titles) is not None


@pytest.mark.parametrize("seed", range(2))
def test_any_one_byte_changed_is_read_alike(titles, seed):
    chosen = random.Random(seed)
    body = wire.encode_request(drawn(chosen, (1, 3)[seed]), titles)
    taken = 0
    for place in range(len(body)):
        for value in range(256):
            taken += agrees(body[:place] + bytes((value,)) + body[place + 1 :], titles)
        assert not agrees(body[:place], titles)
        agrees(body[:place] + chosen.randbytes(1) + body[place:], titles)
        agrees(body[:place] + body[place + 1 :], titles)
    assert taken > 1_000  # most of all in the device's id, the epoch and the numbers


@pytest.mark.parametrize("seed", range(3))
def test_mutated_requests_are_read_alike(titles, seed):
    chosen, taken = random.Random(seed), 0
    for _ in range(6_000):
        body = wire.encode_request(drawn(chosen, chosen.choice((1, 1, 2, 9)), chosen.choice((3, 60, 3_000))), titles)
        taken += agrees(mutated(chosen, body), titles)
    assert taken > 100


def delta_of(body: bytes, **changes: object) -> bytes:
    """The frame with fields of its delta exchanged: k2=… is key 2."""
    fields = cbor2.loads(body[4:])
    fields[6] |= {int(name[1:]): value for name, value in changes.items()}
    return body[:4] + cbor2.dumps(fields, canonical=True)


def test_numbers_of_three_bytes_and_what_the_catalogue_lacks(titles):
    body = wire.encode_request(drawn(random.Random(5), 2), titles)
    wide = [b"\x03" + b"".join(row.to_bytes(3, "little") for row in rows) for rows in ((0, 59), (1, 60), (2, OUTSIDE))]
    assert agrees(delta_of(body, k2=[wide[0]]), titles)
    narrow = (b"\x02\x01\x00\x3c\x00", b"\x02\x01\x00\xff\xff", b"\x02\x01\x00\x01")
    for column in (wide[1], wide[2], *narrow, b"\x04" + bytes(8), b"\x02", b""):
        changed = delta_of(body, k2=[column])
        assert read_plain_request(changed, titles) is None
        with pytest.raises(ProtocolError):
            wire.decode_request(changed, titles)


def test_moments_out_of_range_and_lists_too_long_are_left_to_the_long_way(titles):
    body = wire.encode_request(drawn(random.Random(6), 2), titles)
    for times in ((0, 0), (MAX_TIMESTAMP_MS // STEP_MS * STEP_MS,) * 2):
        shown = wire.encode_request(
            SyncRequest(1, 0, DEVICE_ID, 1, 1, PatternDelta(1, tuple(FinishedTitle("t001", moment) for moment in times))),
            titles,
        )
        agrees(shown, titles)
    too_far, too_long = b"\xfe\xff\xff\xff\xff\x01\x00", b"\xff\xff\xff\xff\x0f\x00"
    for column in (b"\x01\x00", b"\x00\x61", too_far, too_long, b"\x80\x00\x00", b"\x00"):
        changed = delta_of(body, k3=column)
        assert read_plain_request(changed, titles) is None
        with pytest.raises(ProtocolError):
            wire.decode_request(changed, titles)
    count = MAX_TITLES_FINISHED_PER_PAGE + 1
    long = delta_of(body, k2=[b"\x02" + bytes(2 * count)], k3=b"\x00" * count)
    assert read_plain_request(long, titles) is None
    with pytest.raises(ProtocolError):
        wire.decode_request(long, titles)


def test_integers_longer_than_they_need_be_are_read_alike(titles):
    body = wire.encode_request(SyncRequest(1, 5, DEVICE_ID, 6, 7, PatternDelta(8, (FinishedTitle("t001", NOW_MS),))), titles)
    for short in (b"\x01\x01", b"\x02\x05", b"\x04\x06", b"\x05\x07", b"\x01\x08"):
        at = body.index(short, 5)
        for head, width in ((0x18, 1), (0x19, 2), (0x1A, 4), (0x1B, 8)):
            longer = short[:1] + bytes((head,)) + short[1:].rjust(width, b"\0")
            assert agrees(body[:at] + longer + body[at + 2 :], titles)
