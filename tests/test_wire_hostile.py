"""Decoders against hostile bytes: ProtocolError and nothing else, in little time and memory."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import columns, frame, wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, MAX_UPLOAD_BYTES
from tests.wire_messages import GOLDEN, NUMBERING, VECTORS, Numbering

DECODERS: dict[int, tuple[Callable, int]] = {
    wire.KIND_REQUEST: (wire.decode_request, MAX_UPLOAD_BYTES),
    wire.KIND_RESPONSE: (wire.decode_response, MAX_DOWNLOAD_BYTES),
    wire.KIND_DELTA: (wire.decompress_delta, MAX_UPLOAD_BYTES),
    wire.KIND_GLOBAL_PATTERNS: (wire.decode_global_patterns, MAX_DOWNLOAD_BYTES),
    wire.KIND_EVENT: (wire.decode_event, MAX_UPLOAD_BYTES),
}
VECTOR_BYTES = {name: (VECTORS / f"{name}.bin").read_bytes() for name in sorted(GOLDEN)}
CPU_SECONDS = 0.1
"""Far above what any decoding takes, so that only a decoder whose time runs away fails on a busy machine."""

repeatable = settings(deadline=None, derandomize=True, max_examples=400)


def decode(data: bytes, titles: Numbering | None = NUMBERING) -> object | None:
    """What the decoder of the frame's kind makes of it, None where it refuses; any other exception comes through."""
    decoder, _ = DECODERS.get(data[1] if len(data) > 1 else 0, DECODERS[wire.KIND_REQUEST])
    started = time.thread_time()
    try:
        return decoder(data, titles)
    except ProtocolError as error:
        assert len(str(error)) < 400
        return None
    finally:
        assert time.thread_time() - started < CPU_SECONDS


def raw_frame(kind: int, body: bytes) -> bytes:
    return bytes((frame.FORMAT_VERSION, kind, frame.BODY_RAW, frame.DICTIONARY_NONE)) + body


def zstd_frame(kind: int, body: bytes) -> bytes:
    return bytes((frame.FORMAT_VERSION, kind, frame.BODY_ZSTD, frame.DICTIONARY_NONE)) + body


def inflated(data: bytes) -> bytes:
    """The CBOR of a golden frame."""
    return zstandard.ZstdDecompressor().decompress(data[4:]) if data[2] else data[4:]


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


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four of: a byte replaced, inserted or removed, a run repeated, moved or replaced."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(changed) + 1), rng.randint(1, 8)
        run = bytes(changed[place : place + length])
        action = rng.randrange(5)
        if action == 0 and place < len(changed):
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif action == 1:
            changed[place:place] = rng.randbytes(length)
        elif action == 2:
            del changed[place : place + length]
        elif action == 3:
            changed[place:place] = run * rng.randint(1, 50)
        else:
            changed[place : place + length] = rng.randbytes(len(run))
    return bytes(changed)


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


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values inside a structure of maps and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield (*path, key)
        yield from places(inner, (*path, key))


def replaced(fields: dict, path: tuple, value: object) -> dict:
    """A copy of the fields with another value at a path."""
    fields = copy.deepcopy(fields)
    container = fields
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
    return fields


def removed(fields: dict, path: tuple) -> dict:
    """A copy of the fields without the value at a path."""
    fields = replaced(fields, path, None)
    container = fields
    for key in path[:-1]:
        container = container[key]
    del container[path[-1]]
    return fields


KNOWN = [
    (name, path)
    for name in sorted(GOLDEN.keys() - {"request_unknown_keys"})
    for path in places(cbor2.loads(inflated(VECTOR_BYTES[name])))
]
OPTIONAL = {
    ("request_titles", (6,)), ("request_titles", (5,)), ("request_titles", (6, 4)), ("request_titles", (6, 6)),
    ("request_titles", (6, 7)), ("response", (5,)), ("response", (6,)), ("response", (6, 2)),
    ("event", (6, 3)), ("event", (6, 4)), ("event", (6, 5)), ("embedding_zstd", (2,)),
}
"""What can be left out of the golden messages one at a time."""


class TestEveryField:
    @pytest.mark.parametrize(("name", "path"), KNOWN)
    def test_wrong_types(self, name, path):
        data = VECTOR_BYTES[name]
        fields = cbor2.loads(inflated(data))
        assert decode(raw_frame(data[1], cbor2.dumps(fields))) is not None
        for wrong in (None, float("nan"), float("inf"), -1, 1 << 64, 1 << 600, [[[]]], {"a": 1}, [1, 2], "\x00", -0.5, {}):
            changed = replaced(fields, path, wrong)
            assert decode(raw_frame(data[1], cbor2.dumps(changed))) is None, wrong

    @pytest.mark.parametrize(("name", "path"), [(name, path) for name, path in KNOWN if (name, path) != ("event", (6, 3, 0))])
    def test_missing(self, name, path):  # without its numbers, (6, 3) of the event is a column of text
        data = VECTOR_BYTES[name]
        changed = removed(cbor2.loads(inflated(data)), path)
        assert (decode(raw_frame(data[1], cbor2.dumps(changed))) is not None) == ((name, path) in OPTIONAL)

    @pytest.mark.parametrize(("name", "path"), KNOWN)
    def test_columns_longer_and_shorter(self, name, path):
        data = VECTOR_BYTES[name]
        fields = cbor2.loads(inflated(data))
        value = fields
        for key in path:
            value = value[key]
        if type(value) is bytes and path != (6, 6):  # one tombstone more or fewer is a message too
            for changed in (value + b"\x01", value[:-1], b"", value * 2000):
                assert decode(raw_frame(data[1], cbor2.dumps(replaced(fields, path, changed)))) is None

    @pytest.mark.parametrize("key", [b"\xf5", b"\xf9\x3c\x00", b"\x61\x31", b"\x41\x31", b"\x80", b"\xa0", b"\xf6"])
    def test_keys_that_are_not_integers(self, key):
        # true and 1.0 equal 1 in Python: they must not pass for key 1
        assert decode(raw_frame(1, b"\xa2" + key + b"\x01\x02\x07")) is None
        assert decode(raw_frame(1, b"\xa3\x01\x01\x02\x07" + key + b"\x01")) is None

    def test_keys_given_twice(self):
        assert decode(raw_frame(1, bytes.fromhex("a3 01 01 02 07 01 01"))) is None
        assert decode(raw_frame(1, bytes.fromhex("a3 01 01 02 07 18 01 01"))) is None, "1 in two spellings"

    def test_a_pattern_with_neither_form_a_reference_twice_and_an_id_twice(self):
        fields = cbor2.loads(inflated(VECTOR_BYTES["request_titles"]))
        no_form = replaced(replaced(replaced(fields, (6, 4, 6), b"\0"), (6, 4, 7), []), (6, 4, 8), b"")
        twice = replaced(fields, (6, 4, 7), [bytes.fromhex("02 0000 0000")])
        same_id = replaced(fields, (6, 6), b"\x05")
        all_zero = replaced(fields, (6, 4, 8), b"\0\0")
        rate = replaced(fields, (6, 4, 2), b"\xfb")
        for changed in (no_form, twice, same_id, all_zero, rate):
            assert decode(raw_frame(1, cbor2.dumps(changed))) is None

    @pytest.mark.parametrize(
        "column",
        [
            ["a", b"\x02\x00\x00"],
            [b""],
            [b"\x04\x00\x00\x00\x00"],
            [b"\x01\x00"],
            [b"\x02\x00"],
            [b"\x02\xff\xff"],
            [b"\x02\x02\x01", "outside"],
            [b"\x03\x02\x01\x00", b"\x02"],
            [b"\x03\xfe\xff\xff"],
            [b"\x02" + b"\x02\x01" * 601],
            ["a"] * 601,
            [""],
            ["a" * 65],
            ["line\nbreak"],
        ],
    )
    def test_title_columns(self, column):
        count = (len(column[0]) - 1) // 2 if type(column[0]) is bytes else len(column)
        delta = {1: 1, 2: column, 3: b"\x00" * max(count, 1), 8: bytes.fromhex(NUMBERING.lineage)}
        assert decode(raw_frame(wire.KIND_DELTA, cbor2.dumps(delta))) is None

    def test_no_number_is_looked_up_beyond_the_count_allowed(self):
        reader = columns.TitleReader(bytes.fromhex(NUMBERING.lineage), NUMBERING)
        assert reader.read("x", [b"\x02\x02\x01\x00\x00"], 2) == ["tt0068646", "tt0000001"]
        with pytest.raises(ProtocolError, match="x: expected at most 1 numbers"):
            reader.read("x", [b"\x02\x02\x01\x00\x00"], 1)
        with pytest.raises(ProtocolError, match="expected a lineage beside title numbers"):
            columns.TitleReader(None, NUMBERING).read("x", [b"\x02\x02\x01"], 1)


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
        with pytest.raises(ProtocolError, match="without dictionary and checksum"):
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
            ((1, kind, 0, 1), "dictionary 0 .*, got 1"),
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
            "from tests.test_wire_hostile import BOMBS, VECTOR_BYTES, DECODERS, decode, zstd_frame\n"
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
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=VECTORS.parents[2]
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= 1024, "KiB of resident memory for all bombs together"
