"""Decoders against hostile bytes: ProtocolError and nothing else, in little time and memory."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import columns, wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import MAX_UPLOAD_BYTES
from tests.hostile_wire import (
    DECODERS,
    VECTOR_BYTES,
    decode,
    inflated,
    mutated,
    places,
    raw_frame,
    replaced,
    zstd_frame,
)
from tests.wire_messages import GOLDEN, VECTORS

repeatable = settings(deadline=None, derandomize=True, max_examples=400)


class TestCutAndChanged:
    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_cut_at_every_length(self, name):
        data = VECTOR_BYTES[name]
        assert decode(data) is not None
        for length in range(len(data)):
            assert decode(data[:length]) is None, length

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_anything_after_the_end(self, name):
        for tail in (b"\0", b"\xa0", VECTOR_BYTES[name], b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00", b"\x50\x2a\x4d\x18\0\0\0\0"):
            assert decode(VECTOR_BYTES[name] + tail) is None

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_every_single_bit(self, name):
        data = VECTOR_BYTES[name]
        for place in range(8 * len(data)):
            changed = bytearray(data)
            changed[place // 8] ^= 1 << place % 8
            decode(bytes(changed))

    @pytest.mark.parametrize("name", sorted(GOLDEN))
    def test_random_mutations(self, name):
        rng = random.Random(f"mutations of {name}")
        for _ in range(1500):
            decode(mutated(VECTOR_BYTES[name], rng))

    def test_mutated_content_under_sound_zstd(self):
        rng = random.Random("deflated")
        for name, data in VECTOR_BYTES.items():
            for _ in range(200):
                body = mutated(inflated(data), rng)
                decode(zstd_frame(data[1], zstandard.ZstdCompressor(write_checksum=False).compress(body))), name


simple_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.binary(max_size=40), st.text(max_size=20)
)
values = st.recursive(
    simple_values,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers(-3, 12) | st.text(max_size=3), inner, max_size=8),
    max_leaves=25,
)


class TestGenerated:
    @repeatable
    @given(data=st.binary(max_size=300))
    def test_any_bytes(self, data):
        decode(data)

    @repeatable
    @given(kind=st.sampled_from(sorted(DECODERS)), zstd=st.booleans(), body=st.binary(max_size=300))
    def test_any_body_under_a_sound_header(self, kind, zstd, body):
        decode(zstd_frame(kind, b"\x28\xb5\x2f\xfd" + body) if zstd else raw_frame(kind, body))

    @repeatable
    @given(kind=st.sampled_from(sorted(DECODERS)), fields=st.dictionaries(st.integers(0, 9), values, max_size=9))
    def test_any_fields(self, kind, fields):
        decode(raw_frame(kind, cbor2.dumps(fields)))

    @repeatable
    @given(data=st.data(), name=st.sampled_from(sorted(GOLDEN)))
    def test_any_value_in_any_place_of_a_message(self, data, name):
        fields = cbor2.loads(inflated(VECTOR_BYTES[name]))
        path = data.draw(st.sampled_from(list(places(fields))))
        decode(raw_frame(VECTOR_BYTES[name][1], cbor2.dumps(replaced(fields, path, data.draw(values)))))


class TestVarints:
    def test_known_values(self):
        assert columns.pack_varints([0, 1, 127, 128, 300, (1 << 64) - 1]) == bytes.fromhex("00017f8001ac02" + "ff" * 9 + "01")
        assert columns.pack_signed([0, -1, 1, -64, 64]) == bytes.fromhex("0001027f8001")

    @given(st.lists(st.integers(-(1 << 60), 1 << 60)))
    def test_round_trip(self, numbers):
        assert columns.read_signed("x", columns.pack_signed(numbers), len(numbers), 1 << 60) == numbers

    @pytest.mark.parametrize(
        "column", ["80", "8000", "ff00", "ffffffff10", "8080808080808080808001", "ff" * 2000, "000000", "00ac"]
    )
    def test_refused(self, column):
        with pytest.raises(ProtocolError):
            columns.read_varints("x", bytes.fromhex(column), 2, (1 << 32) - 1)


SOUND = "a301010207 0a"
"""A request up to the value of a key that it does not know: what follows is all that can be wrong with it."""

HOSTILE_VALUES = {
    "cut off": "",
    "cut off in its length": "19ff",
    "indefinite map": "bf0101ff",
    "indefinite array": "9f01ff",
    "indefinite text": "7f6161ff",
    "indefinite bytes": "5f4101ff",
    "break alone": "ff",
    "reserved length": "5c00",
    "huge bytes": "5bffffffffffffffff",
    "huge text": "7b7fffffffffffffff",
    "huge array": "9bffffffffffffffff",
    "huge array, plausible": "9a00ffffff",
    "huge map": "bbffffffffffffffff",
    "huge map, its items twice a multiple of 2^64": "bb8000000000000000",
    "big number": "c249ffffffffffffffffff",
    "negative big number": "c349ffffffffffffffffff",
    "decimal fraction": "c4821b7fffffffffffffff01",
    "big float": "c5821903e801",
    "date": "c11a514b67b0",
    "regular expression": "d823" + "68" + b"(a+)+$ab".hex(),
    "rational": "d81e820102",
    "shared value": "d81c80",
    "shared value that holds itself": "d81c81d81d00",
    "set": "d901028101",
    "self-described": "d9d9f700",
    "string references": "d9010081d81900",
    "a tag without meaning": "d9eeee00",
    "simple value": "e0",
    "simple value of two bytes": "f8ff",
    "undefined": "f7",
    "not UTF-8": "62c328",
    "lone surrogate": "63eda080",
    "overlong UTF-8": "62c080",
    "too deep": "81" * 8 + "00",
    "2000 deep": "81" * 2000 + "00",
    "maps 100 deep": "a100" * 100 + "00",
    "too many items": "9907fa" + "00" * 2042,
    "too many pairs": "b903fd" + "".join(f"19{number:04x}00" for number in range(1021)),
    "a second item": "00a0",
    "a map with a key twice": "a201000100",
}
SOUND_VALUES = ("81" * 7 + "00", "9907f9" + "00" * 2041, "6161", "fb7ff8000000000000", "f6", "3bffffffffffffffff", "a1a000")
HOSTILE_BODIES = {"nothing": "", "an array": "80", "an integer": "01", "text": "6161", "null": "f6", "cut off": "a2010102"}


class TestHostileCbor:
    @pytest.mark.parametrize("name", HOSTILE_VALUES)
    def test_values_of_unknown_keys(self, name):
        body = bytes.fromhex(SOUND + HOSTILE_VALUES[name])
        assert decode(raw_frame(1, body)) is None
        assert decode(zstd_frame(1, zstandard.ZstdCompressor(write_checksum=False).compress(body))) is None

    @pytest.mark.parametrize(
        ("value", "complaint"),
        [("c11a514b67b0", "without tags"), ("e0", "unassigned"), ("9fff", "definite lengths"), ("5c00", "reserved length")],
    )
    def test_the_complaint_names_the_fault(self, value, complaint):
        with pytest.raises(ProtocolError, match=complaint):
            wire.decode_request(raw_frame(1, bytes.fromhex(SOUND + value)))

    @pytest.mark.parametrize("value", SOUND_VALUES)
    def test_sound_values_of_unknown_keys_are_ignored(self, value):
        body = bytes.fromhex(SOUND + value)
        framed = raw_frame(1, body)
        if len(framed) > MAX_UPLOAD_BYTES:
            framed = zstd_frame(1, zstandard.ZstdCompressor(write_checksum=False).compress(body))
        assert decode(framed) == GOLDEN["request_receive"]

    @pytest.mark.parametrize("name", HOSTILE_BODIES)
    def test_bodies(self, name):
        for kind in DECODERS:
            assert decode(raw_frame(kind, bytes.fromhex(HOSTILE_BODIES[name]))) is None


def zstd_head(descriptor: int, rest: str) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes((descriptor,)) + bytes.fromhex(rest)


def rle_block(size: int, last: bool) -> bytes:
    """Four bytes that inflate to size zeros."""
    return (size << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\0"


def raw_block(content: bytes, last: bool) -> bytes:
    return (len(content) << 3 | last).to_bytes(3, "little") + content


REQUEST = b"\xa2\x01\x01\x02\x07"


def bombs() -> dict[str, bytes]:
    """zstd bodies that would take memory or time, by name."""
    zeros = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 26))
    undeclared = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(1 << 24))
    sound = zstandard.ZstdCompressor(write_checksum=False).compress(REQUEST)
    return {
        "declares 2^63 in 13 bytes": zstd_head(0xE0, "0000000000000080"),
        "declares 1 TiB": zstd_head(0xE0, "0000000000010000") + rle_block(1000, True),
        "declares one byte above the cap": zstd_head(0xA0, "01400000") + rle_block(16_385, True),
        "64 MiB of zeros": zeros,
        "16 MiB, size not declared": undeclared,
        "no size, window 3.75 TiB": zstd_head(0x00, "ff") + rle_block(100, True),
        "size 100, window 3.75 TiB": zstd_head(0x80, "ff64000000") + rle_block(100, True),
        "size 100, window 128 MiB": zstd_head(0x80, "8864000000") + rle_block(100, True),
        "declares 5, 500 blocks of 16 KiB": zstd_head(0x20, "05") + rle_block(16_384, False) * 499 + rle_block(5, True),
        "declares 16 KiB, 500 such blocks": zstd_head(0xA0, "00400000") + rle_block(16_384, False) * 500,
        "declares 16 KiB, 2 MiB block": zstd_head(0xA0, "00400000") + rle_block((1 << 21) - 1, True),
        "declares more than it has": zstd_head(0x20, "ff") + raw_block(REQUEST, True),
        "declares one less than it has": zstd_head(0x20, "05") + raw_block(REQUEST, False) + raw_block(b"\0", True),
        "declares far less than it has": zstd_head(0x20, "05") + raw_block(REQUEST, False) + rle_block(5, True),
        "endless empty blocks": zstd_head(0x20, "05") + b"\0\0\0" * 600,
        "reserved block": zstd_head(0x20, "05") + bytes((7 | 5 << 3, 0, 0)) + bytes(5),
        "reserved header bit": zstd_head(0x28, "05") + rle_block(5, True),
        "dictionary": zstd_head(0x21, "0705") + raw_block(REQUEST, True),
        "checksum": zstandard.ZstdCompressor(write_checksum=True).compress(REQUEST),
        "150 frames": sound * 150,
        "two frames": sound * 2,
        "skippable frame first": b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + sound,
        "skippable frame of 4 GiB": b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + sound,
        "skippable frame last": sound + b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
        "old format": b"\x27\xb5\x2f\xfd" + sound[4:],
        "zstd in zstd": zstandard.ZstdCompressor(write_checksum=False).compress(sound),
        "last block not marked": sound[:-8] + bytes((sound[-8] & 0xFE,)) + sound[-7:],
    }


BOMBS = bombs()


class TestBombs:
    def test_a_delta_of_nobody_is_refused_before_its_titles_are_read(self):
        body = bytes((wire.frame.FORMAT_VERSION, wire.KIND_REQUEST, 0, 0)) + cbor2.dumps({1: 1, 2: 0, 6: {1: 3, 2: "no column"}})
        with pytest.raises(ProtocolError, match="expected device_id beside delta"):
            wire.decode_request(body)

    @pytest.mark.parametrize("name", BOMBS)
    def test_refused(self, name):
        for kind in DECODERS:
            assert decode(zstd_frame(kind, BOMBS[name])) is None

    def test_sound_zstd_of_small_content_is_read(self):
        for body in (
            zstandard.ZstdCompressor(write_checksum=False).compress(REQUEST),
            zstd_head(0x20, "05") + raw_block(REQUEST, True),
            zstd_head(0x20, "05") + raw_block(REQUEST[:2], False) + raw_block(REQUEST[2:], True),
            zstd_head(0x80, "0005000000") + raw_block(REQUEST, True),
        ):
            assert decode(zstd_frame(1, body)) == GOLDEN["request_receive"]

    @pytest.mark.parametrize("name", ["dictionary", "checksum"])
    def test_frames_that_need_more_than_themselves(self, name):
        with pytest.raises(ProtocolError, match="without dictionary id and checksum"):
            wire.decode_request(zstd_frame(1, BOMBS[name]))

    @pytest.mark.parametrize("kind", DECODERS)
    def test_too_long_frames_are_refused_by_their_length(self, kind):
        decoder, max_bytes = DECODERS[kind]
        with pytest.raises(ProtocolError, match=f"expected 5 to {max_bytes} bytes, got {max_bytes + 1}"):
            decoder(raw_frame(kind, bytes(max_bytes - 3)))

    @pytest.mark.parametrize("kind", DECODERS)
    def test_header(self, kind):
        decoder, _ = DECODERS[kind]
        body = b"\xa0"
        for header, complaint in (
            ((2, kind, 0, 0), "format version 1, got 2"),
            ((0, kind, 0, 0), "format version 1, got 0"),
            ((1, kind % 5 + 1, 0, 0), f"kind {kind}, got kind {kind % 5 + 1}"),
            ((1, kind, 2, 0), "marked 0 .* or 1 .*, got 2"),
            ((1, kind, 0, 1), "dictionary 0 .* beside CBOR, got 1"),
            ((1, kind, 0, 2), "dictionary 0 .* or 1, got 2"),
            ((1, kind, 1, 255), "dictionary 0 .* or 1, got 255"),
        ):
            with pytest.raises(ProtocolError, match=complaint):
                decoder(bytes(header) + body)

    @pytest.mark.parametrize("data", ["text", None, 5, bytearray(b"\1\1\0\0\xa0"), memoryview(b"\1\1\0\0\xa0"), []])
    def test_what_is_not_bytes(self, data):
        with pytest.raises(ProtocolError, match="expected bytes, got"):
            wire.decode_request(data)

    def test_python_memory_stays_small(self):
        inputs = [zstd_frame(1, body)[:MAX_UPLOAD_BYTES] for body in BOMBS.values()]
        inputs += [raw_frame(1, bytes.fromhex(SOUND + value)) for value in HOSTILE_VALUES.values()]
        for data in inputs:
            decode(data)
        tracemalloc.start()
        try:
            for data in inputs:
                decode(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 256 * 1024

    def test_process_memory_stays_small(self):
        script = (
            "import resource, sys\n"
            "from tests.hostile_wire import VECTOR_BYTES, DECODERS, decode, zstd_frame\n"
            "from tests.test_wire_hostile import BOMBS\n"
            "decode(VECTOR_BYTES['embedding_zstd'])\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)\n"
            "for body in BOMBS.values():\n"
            "    for kind in DECODERS:\n"
            "        assert decode(zstd_frame(kind, body)) is None\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=VECTORS.parents[3]
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= 1024, "KiB of resident memory for all bombs together"
