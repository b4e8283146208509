"""Half-bytes and the facts of patterns in them: known values, round trips, and everything that no writer writes."""

from __future__ import annotations

import random

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import frame, wire
from omega_edge.errors import ProtocolError
from omega_edge.halfbytes import HalfBytesReader, HalfBytesWriter
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, GlobalPatterns
from tests.hostile_wire import VECTOR_BYTES, decode, inflated, mutated, raw_frame, replaced
from tests.test_wire_hostile import BOMBS, HOSTILE_VALUES, SOUND

repeatable = settings(deadline=None, derandomize=True, max_examples=200)


class TestHalfBytes:
    def test_known_values(self):
        column = HalfBytesWriter()
        column.half(15)
        for number in (0, 7, 8, 63, 64):
            column.number(number)
        for number in (0, -1, 1, -4, 4):
            column.signed(number)
        assert column.packed().hex() == "f0" "78" "1f" "78" "81" "01" "27" "81"
        assert HalfBytesWriter().packed() == b""

    @repeatable
    @given(st.lists(st.tuples(st.sampled_from(["half", "number", "signed"]), st.integers(-(1 << 70), 1 << 70))))
    def test_round_trip(self, values):
        limits = {"half": 15, "number": 1 << 71, "signed": 1 << 70}
        written = [(kind, value if kind == "signed" else abs(value) % (limits[kind] + 1)) for kind, value in values]
        column = HalfBytesWriter()
        for kind, value in written:
            getattr(column, kind)(value)
        reader = HalfBytesReader("x", column.packed())
        for kind, value in written:
            found = reader.half() if kind == "half" else getattr(reader, kind)(limits[kind])
            assert found == value
        assert reader.rest() == b""

    @pytest.mark.parametrize(
        ("column", "complaint"),
        [
            ("", "more half-bytes"), ("8", "more half-bytes"), ("80", "shortest form"), ("f7", "up to 62"), ("880", "up to 62"),
            ("ff" * 900, "up to 62"),
        ],
    )  # fmt: skip
    def test_numbers_that_are_refused(self, column, complaint):
        with pytest.raises(ProtocolError, match=f"x: expected .*{complaint}"):
            HalfBytesReader("x", bytes.fromhex(column + "8" * (len(column) & 1))).number(62)

    @pytest.mark.parametrize(
        ("column", "read", "rest"),
        [("10", 1, ""), ("11", 1, None), ("10ab", 1, "ab"), ("10ab", 2, "ab"), ("10ab", 3, None), ("10ab", 4, ""), ("", 0, "")],
    )
    def test_whole_bytes_follow_a_half_byte_of_0(self, column, read, rest):
        reader = HalfBytesReader("x", bytes.fromhex(column))
        for _ in range(read):
            reader.half()
        if rest is not None:
            assert reader.rest().hex() == rest
        else:
            with pytest.raises(ProtocolError, match="expected a half-byte of 0 after the last value"):
                reader.rest()


CODE = cbor2.loads(inflated(VECTOR_BYTES["global_patterns_code"]))
BOOK_AND_CODE = CODE[2][13][4:]
TITLES = cbor2.loads(inflated(VECTOR_BYTES["request_patterns"]))


class TestFacts:
    """Facts of the golden messages, changed: the pattern of global_patterns_code is 1 0 9 1 9 0 0 0 in half-bytes."""

    @pytest.mark.parametrize(
        ("facts", "fault"),
        [
            ("10 91 90 00", None),
            ("", "nothing"),
            ("10 91 90", "cut off"),
            ("00", "no pattern, but a rate and a code"),
            ("20 91 09 00 00 00 0", "two patterns, but one rate"),
            ("11 a2 90 00", None),
            ("12 91 90 00", "neither rising nor mixed"),
            ("1f 91 90 00", "neither rising nor mixed"),
            ("10 dd dd dd dd dd d3 90 00", "an id of more than 32 bits"),
            ("11 39 00 00", "an id below 0"),
            ("10 91 a0 00", "form 10"),
            ("10 91 e0 00", "form 14"),
            ("10 91 ff 00 00", "form 15 of its own"),
            ("10 91 f9 00 00", None),
            ("10 91 00 00", "an embedding that is not there"),
            ("10 91 10 00 f0", "a title that is not there"),
            ("10 91 9f 70 00", "step 63 of samples: above 32 bits"),
            ("10 91 90 10", "a week before 1970"),
            ("10 91 90 00 00", "a byte too many"),
            ("10 91 90 ff ff ff 70", "a week after all"),
            ("10 91 90 0b 4", "step 35 of weeks: past the last moment"),
            ("10 91 90 00 1", "a half-byte that is not 0"),
            ("cf 10 91 90 00", "124 patterns"),
            ("ff ff ff ff ff ff ff 71 00", "a number of patterns without end"),
        ],
        ids=str,
    )
    def test_of_a_code(self, facts, fault):
        digits = facts.replace(" ", "")
        changed = replaced(CODE, (2, 13), bytes.fromhex(digits + "0" * (len(digits) & 1)) + BOOK_AND_CODE)
        assert (decode(raw_frame(wire.KIND_GLOBAL_PATTERNS, cbor2.dumps(changed))) is None) == (fault is not None)

    def test_every_half_byte_changed(self):
        facts = CODE[2][13][:4]
        for place in range(2 * len(facts)):
            for half in range(16):
                changed = bytearray(facts)
                shift = 0 if place % 2 else 4
                changed[place // 2] = changed[place // 2] & ~(15 << shift) | half << shift
                fields = replaced(CODE, (2, 13), bytes(changed) + BOOK_AND_CODE)
                found = decode(raw_frame(wire.KIND_GLOBAL_PATTERNS, cbor2.dumps(fields)))
                assert found is None or isinstance(found, GlobalPatterns)

    @repeatable
    @given(facts=st.binary(max_size=40), fields=st.sampled_from([CODE, TITLES]))
    def test_any_facts(self, facts, fields):
        path, kind = ((2, 13), wire.KIND_GLOBAL_PATTERNS) if fields is CODE else ((6, 4, 13), wire.KIND_REQUEST)
        decode(raw_frame(kind, cbor2.dumps(replaced(fields, path, facts))))

    @pytest.mark.parametrize(
        "changed",
        [
            {13: CODE[2][13][:-1]}, {13: CODE[2][13] + b"\0"}, {13: CODE[2][13][:4]}, {13: CODE[2][13] + bytes(48)}, {12: 5},
            {12: [5, 5]}, {12: [None]}, {12: [True]}, {12: ["5"]}, {12: [-1]}, {12: [1 << 32]}, {12: {0: 5}}, {12: b"\5"},
            {12: [5]}, {2: b""}, {2: b"\xfb"}, {2: b"\x7d\x7d"},
        ],
        ids=str,
    )  # fmt: skip
    def test_codes_and_codebooks(self, changed):
        fields = {1: 7, 2: CODE[2] | changed}
        assert decode(raw_frame(wire.KIND_GLOBAL_PATTERNS, cbor2.dumps(fields))) is None

    def test_a_codebook_of_each_stands_in_the_place_of_that_of_all(self):
        each = CODE[2] | {12: [5], 13: CODE[2][13][:4] + CODE[2][13][8:]}
        data = raw_frame(wire.KIND_GLOBAL_PATTERNS, cbor2.dumps({1: 7, 2: each}))
        assert decode(data) == decode(VECTOR_BYTES["global_patterns_code"])

    def test_facts_beside_the_columns_of_the_first_writers_count_alone(self):
        older = cbor2.loads(inflated(VECTOR_BYTES["request_titles"]))[6][4]
        both = replaced(TITLES, (6, 4), older | TITLES[6][4])
        assert decode(raw_frame(wire.KIND_REQUEST, cbor2.dumps(both))) is None, "key 2 then tells the rates, of one pattern"
        del both[6][4][2]
        assert decode(raw_frame(wire.KIND_REQUEST, cbor2.dumps(both))) == decode(VECTOR_BYTES["request_patterns"])


def dictionary_frame(kind: int, deflated: bytes) -> bytes:
    """A frame by the dictionary, of a zstd frame with its magic number."""
    return bytes((frame.FORMAT_VERSION, kind, frame.BODY_ZSTD, frame.DICTIONARY)) + deflated[4:]


class TestDictionary:
    @pytest.mark.parametrize("name", sorted(BOMBS.keys() - {"old format"}))  # of which only the magic number is bad
    def test_bombs(self, name):
        for kind in (wire.KIND_REQUEST, wire.KIND_RESPONSE, wire.KIND_GLOBAL_PATTERNS):
            assert decode(dictionary_frame(kind, BOMBS[name])) is None

    @pytest.mark.parametrize("name", HOSTILE_VALUES)
    def test_hostile_cbor(self, name):
        body = bytes.fromhex(SOUND + HOSTILE_VALUES[name])
        assert decode(dictionary_frame(1, b"\x28\xb5\x2f\xfd" + frame._deflated(body))) is None

    def test_cut_at_every_length_and_every_bit(self):
        data = VECTOR_BYTES["embedding_dictionary"]
        assert all(decode(data[:length]) is None for length in range(len(data)))
        for place in range(8 * len(data)):
            changed = bytearray(data)
            changed[place // 8] ^= 1 << place % 8
            decode(bytes(changed))

    def test_mutated_content(self):
        rng = random.Random("by the dictionary")
        for name in sorted(VECTOR_BYTES):
            for _ in range(100):
                body = mutated(inflated(VECTOR_BYTES[name]), rng)
                decode(dictionary_frame(VECTOR_BYTES[name][1], b"\x28\xb5\x2f\xfd" + frame._deflated(body)))

    def test_a_body_deflated_without_it_does_not_pass_for_one_with_it(self):
        plain = zstandard.ZstdCompressor(level=19, write_checksum=False).compress(inflated(VECTOR_BYTES["embedding_zstd"]))
        as_plain = bytes((1, wire.KIND_GLOBAL_PATTERNS, 1, 0)) + plain
        assert decode(as_plain) is not None
        with pytest.raises(ProtocolError):
            wire.decode_global_patterns(as_plain[:3] + b"\1" + as_plain[4:])

    def test_what_it_saves(self):
        patterns = wire.decode_global_patterns(VECTOR_BYTES["embedding_dictionary"]).similar
        data = wire.encode_global_patterns(GlobalPatterns(7, patterns))
        assert data[2:4] == bytes((frame.BODY_ZSTD, frame.DICTIONARY))
        content = frame.content(data, wire.KIND_GLOBAL_PATTERNS, MAX_DOWNLOAD_BYTES)
        assert len(data) + frame.LEAST_SAVED_BYTES <= len(content)

    def test_small_bodies_stay_as_they_are(self):
        for size in range(1, frame.LEAST_DEFLATED_BYTES - 5):
            assert frame.pack(wire.KIND_REQUEST, {100: bytes(size)}, 2048)[2] == frame.BODY_RAW
        assert frame.pack(wire.KIND_REQUEST, {100: bytes(200)}, 2048)[2] == frame.BODY_ZSTD


class TestResponses:
    def test_a_hostile_frame_inside_a_response(self):
        fields = cbor2.loads(inflated(VECTOR_BYTES["response_frame"]))
        for body in BOMBS.values():
            framed = bytes((1, wire.KIND_GLOBAL_PATTERNS, 1, 0)) + body
            outer = raw_frame(wire.KIND_RESPONSE, cbor2.dumps(replaced(fields, (7,), framed)))
            if len(outer) <= MAX_DOWNLOAD_BYTES:
                assert decode(outer) is None

    def test_a_frame_inside_every_length_and_bit(self):
        fields = cbor2.loads(inflated(VECTOR_BYTES["response_frame"]))
        inner = VECTOR_BYTES["global_patterns_code"]
        for length in range(len(inner)):
            assert decode(raw_frame(wire.KIND_RESPONSE, cbor2.dumps(replaced(fields, (7,), inner[:length])))) is None
        for place in range(8 * len(inner)):
            changed = bytearray(inner)
            changed[place // 8] ^= 1 << place % 8
            decode(raw_frame(wire.KIND_RESPONSE, cbor2.dumps(replaced(fields, (7,), bytes(changed)))))
