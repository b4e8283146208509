"""What the closed loop added to messages: count reports, erasures, frames of patterns inside responses."""

from __future__ import annotations

from dataclasses import replace

import cbor2
import pytest
from hypothesis import given, settings

from omega_edge import wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    MAX_DOWNLOAD_BYTES,
    MAX_TIMESTAMP_MS,
    CountReport,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TrendSignal,
    ViewingPattern,
)
from tests import wire_messages as messages
from tests.wire_messages import NUMBERING, WIDE_NUMBERING

repeatable = settings(deadline=None, derandomize=True, max_examples=100)


class TestFrameInsideResponse:
    @repeatable
    @given(response=messages.responses())
    def test_it_reads_as_if_the_patterns_had_been_encoded_with_the_response(self, response):
        bare = replace(response, patterns=None)
        patterns = response.patterns or GlobalPatterns(response.global_version)
        data = wire.encode_response_with(bare, wire.encode_global_patterns(patterns, WIDE_NUMBERING))
        whole = wire.encode_response(replace(response, patterns=patterns), WIDE_NUMBERING)
        assert wire.decode_response(data, WIDE_NUMBERING) == wire.decode_response(whole, WIDE_NUMBERING)

    def test_the_frame_travels_unchanged(self):
        framed = wire.encode_global_patterns(GlobalPatterns(7, trending=(TrendSignal("tt0068646", 1.0, 48),)), NUMBERING)
        data = wire.encode_response_with(SyncResponse(7, 300, 0), framed)
        assert data.endswith(framed) and cbor2.loads(data[4:])[7] == framed

    def test_patterns_beside_the_frame_are_refused(self):
        with pytest.raises(ProtocolError, match="expected None beside a frame of patterns"):
            wire.encode_response_with(SyncResponse(7, 300, 0, patterns=GlobalPatterns(7)), b"")

    def test_a_frame_that_leaves_room_for_the_response_always_fits(self):
        fullest = SyncResponse(
            (1 << 64) - 1, 86_400, MAX_TIMESTAMP_MS, version=255, acknowledged_local_version=(1 << 64) - 1,
            catalog_version=(1 << 32) - 1, snapshot_wanted=True, erased=True, counted=True,
        )
        room = MAX_DOWNLOAD_BYTES - wire.RESPONSE_BYTES
        assert len(wire.encode_response_with(fullest, bytes(room))) <= MAX_DOWNLOAD_BYTES
        with pytest.raises(ProtocolError, match=f"of at most {room} bytes, got {MAX_DOWNLOAD_BYTES}"):
            wire.encode_response_with(fullest, bytes(MAX_DOWNLOAD_BYTES))

    @pytest.mark.parametrize(
        "framed",
        [
            b"", b"\1\4\0\0", b"\1\2\0\0\xa0", wire.encode_global_patterns(GlobalPatterns(8)),
            wire.encode_response_with(SyncResponse(7, 300, 0), wire.encode_global_patterns(GlobalPatterns(7))),
        ],
        ids=["nothing", "no body", "another kind", "another version", "a response"],
    )
    def test_what_is_no_frame_of_the_responses_version_is_refused(self, framed):
        with pytest.raises(ProtocolError):
            wire.decode_response(wire.encode_response_with(SyncResponse(7, 300, 0), framed))

    def test_patterns_twice_are_refused(self):
        framed = wire.encode_global_patterns(GlobalPatterns(7))
        fields = cbor2.loads(wire.encode_response_with(SyncResponse(7, 300, 0), framed)[4:])
        with pytest.raises(ProtocolError, match="got both"):
            wire.decode_response(bytes((1, 2, 0, 0)) + cbor2.dumps(fields | {6: {1: 7}}))


class TestCodedPatterns:
    def test_a_codebook_of_all_is_named_once(self):
        patterns = tuple(ViewingPattern(number, 0.9, 1, 0, 0, code=bytes(48), codebook=5) for number in range(3))
        mixed = (*patterns[:2], replace(patterns[2], codebook=6))
        for sent, books in ((patterns, None), (mixed, [5, 5, 6])):
            data = wire.compress_delta(PatternDelta(1, patterns_added=sent))
            assert wire.decompress_delta(data).patterns_added == sent
            columns = wire.frame.unpack(data, wire.KIND_DELTA, 2048)[4]
            assert columns.get(12) == books
            assert columns[13].endswith((b"" if books else bytes((5, 0, 0, 0))) + bytes(3 * 48))


class TestSmallMessages:
    @pytest.mark.parametrize("told", [{"count_report": CountReport(19_675, (1 << 32) - 1, 55)}, {"erase": True}])
    def test_a_count_report_and_an_erasure_are_small(self, told):
        request = SyncRequest(1, 12_345, bytes(range(16)), (1 << 64) - 1, **told)
        data = wire.encode_request(request)
        assert wire.decode_request(data) == request
        assert len(data) <= 64
