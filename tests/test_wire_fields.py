"""Every field of every golden message, missing, of the wrong type, too long and too short: refused, or read as absent."""

from __future__ import annotations

import cbor2
import pytest

from omega_edge import columns, wire
from omega_edge.errors import ProtocolError
from tests.hostile_wire import VECTOR_BYTES, decode, inflated, places, raw_frame, removed, replaced
from tests.wire_messages import GOLDEN, NUMBERING

KNOWN = [
    (name, path)
    for name in sorted(GOLDEN.keys() - {"request_unknown_keys"})
    for path in places(cbor2.loads(inflated(VECTOR_BYTES[name])))
]
OPTIONAL = {
    ("request_titles", (6,)), ("request_titles", (5,)), ("request_titles", (6, 4)), ("request_titles", (6, 6)),
    ("request_titles", (6, 7)), ("response", (5,)), ("response", (6,)), ("response", (6, 2)),
    ("event", (6, 3)), ("event", (6, 4)), ("event", (6, 5)), ("embedding_zstd", (2,)),
    ("embedding_dictionary", (2,)), ("global_patterns_code", (2,)), ("request_patterns", (6,)), ("request_patterns", (6, 4)),
    ("request_patterns", (6, 10)), ("request_count", (7,)), ("request_erase", (8,)), ("delta_snapshot", (9,)),
    ("delta_snapshot", (10,)), ("response_frame", (5,)), ("response_frame", (7,)), ("response_frame", (8,)),
    ("response_frame", (10,)), ("response_told", (11,)), ("response_told", (12,)), ("response_reset", (9,)),
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
