"""Versions N to N-2: golden bytes of each, and two imaginary later versions that lose nothing that both sides know."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from omega_edge import frame, wire
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    MAX_DOWNLOAD_BYTES,
    MAX_UPLOAD_BYTES,
    PROTOCOL_VERSION,
    SERVED_VERSIONS,
    PatternDelta,
    SyncRequest,
    SyncResponse,
)
from omega_edge.wire_fields import Fields
from omega_edge.wire_versions import REQUEST_FIELDS, RESPONSE_FIELDS, Field, pack_plain, read_plain
from tests.wire_messages import VECTORS

NEXT, AFTER_NEXT = PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 2


@dataclass(frozen=True, slots=True)
class NextRequest(SyncRequest):
    """A request of the next version: one field more."""

    screen_lines: int | None = None


@dataclass(frozen=True, slots=True)
class LaterRequest(NextRequest):
    """A request of the version after the next."""

    wants_less: bool = False


@dataclass(frozen=True, slots=True)
class NextResponse(SyncResponse):
    """A response of the next version."""

    notice: bytes | None = None


@dataclass(frozen=True, slots=True)
class LaterResponse(NextResponse):
    """A response of the version after the next."""

    closing: bool = False


LATER_REQUEST_FIELDS = (*REQUEST_FIELDS, Field(20, "screen_lines", int, since=NEXT), Field(21, "wants_less", bool, since=AFTER_NEXT))
LATER_RESPONSE_FIELDS = (*RESPONSE_FIELDS, Field(20, "notice", bytes, since=NEXT), Field(21, "closing", bool, since=AFTER_NEXT))


@dataclass(frozen=True, slots=True)
class Codec:
    """What a program of one version has: its tables and its messages."""

    version: int
    request: type
    response: type

    def table(self, kind: int) -> tuple[Field, ...]:
        """The fields that this version knows."""
        table = LATER_REQUEST_FIELDS if kind == wire.KIND_REQUEST else LATER_RESPONSE_FIELDS
        return tuple(field for field in table if field.since <= self.version)

    def encode(self, kind: int, message: SyncRequest | SyncResponse) -> bytes:
        """The frame of a message, for the version that the message names."""
        data = frame.pack(kind, pack_plain(self.table(kind), message), MAX_DOWNLOAD_BYTES)
        assert data is not None
        return data

    def decode(self, kind: int, data: bytes) -> SyncRequest | SyncResponse:
        """The message of a frame."""
        if self.version == PROTOCOL_VERSION:
            return wire.decode_request(data) if kind == wire.KIND_REQUEST else wire.decode_response(data)
        message = self.request if kind == wire.KIND_REQUEST else self.response
        unpacked = Fields(message.__name__, frame.unpack(data, kind, MAX_UPLOAD_BYTES))
        return message(**read_plain(self.table(kind), unpacked))


CODECS = [
    Codec(PROTOCOL_VERSION, SyncRequest, SyncResponse),
    Codec(NEXT, NextRequest, NextResponse),
    Codec(AFTER_NEXT, LaterRequest, LaterResponse),
]
FULL_REQUEST = {
    "global_version_seen": 7, "device_id": bytes(range(16)), "epoch": 9, "server_time_seen": 11, "screen_lines": 2160,
    "wants_less": True,
}  # fmt: skip
FULL_RESPONSES = (
    {
        "global_version": 7, "next_sync_secs": 300, "server_time": 11, "acknowledged_local_version": 5, "catalog_version": 3,
        "snapshot_wanted": True, "erased": True, "counted": True, "notice": b"hello", "closing": True,
    },
    {"global_version": 7, "next_sync_secs": 300, "server_time": 11, "reset": True, "notice": b"", "closing": True},
)  # fmt: skip


def known(message: type, values: dict[str, object]) -> dict[str, object]:
    """The values of fields that a message has."""
    names = {field.name for field in fields(message)}
    return {name: value for name, value in values.items() if name in names}


@pytest.mark.parametrize("reader", CODECS, ids=lambda codec: f"read by {codec.version}")
@pytest.mark.parametrize("writer", CODECS, ids=lambda codec: f"written by {codec.version}")
class TestThreeVersions:
    def test_requests(self, writer, reader):
        sent = writer.request(version=writer.version, **known(writer.request, FULL_REQUEST))
        received = reader.decode(wire.KIND_REQUEST, writer.encode(wire.KIND_REQUEST, sent))
        both = known(writer.request, known(reader.request, FULL_REQUEST))
        assert received == reader.request(version=writer.version, **both)

    @pytest.mark.parametrize("values", FULL_RESPONSES, ids=["acknowledged", "reset"])
    def test_responses_in_the_version_of_the_request(self, writer, reader, values):
        if writer.version < reader.version:
            return  # a shard answers televisions of its own version and older ones
        sent = writer.response(version=reader.version, **known(writer.response, values))
        data = writer.encode(wire.KIND_RESPONSE, sent)
        assert reader.decode(wire.KIND_RESPONSE, data) == reader.response(
            version=reader.version, **known(reader.response, values)
        )
        keys = set(frame.unpack(data, wire.KIND_RESPONSE, MAX_DOWNLOAD_BYTES))
        assert keys <= {field.key for field in reader.table(wire.KIND_RESPONSE)}, "nothing that the television does not know"


class TestTables:
    @pytest.mark.parametrize(("table", "nested"), [(REQUEST_FIELDS, {6, 7}), (RESPONSE_FIELDS, {6, 7})])
    def test_a_key_stands_for_one_field(self, table, nested):
        keys = [field.key for field in table]
        assert len(set(keys)) == len(keys) and not nested & set(keys)
        assert all(1 <= field.since <= PROTOCOL_VERSION for field in table)

    @pytest.mark.parametrize(
        ("table", "message", "elsewhere"),
        [(REQUEST_FIELDS, SyncRequest, {"delta", "count_report"}), (RESPONSE_FIELDS, SyncResponse, {"patterns"})],
    )
    def test_every_field_of_a_message_travels(self, table, message, elsewhere):
        assert {field.name for field in fields(message)} == {field.name for field in table} | elsewhere

    def test_the_delta_travels_in_every_version(self):
        request = SyncRequest(device_id=bytes(16), epoch=1, delta=PatternDelta(5))
        for version in (PROTOCOL_VERSION, NEXT, AFTER_NEXT):
            sent = replace(request, version=version)
            assert wire.decode_request(wire.encode_request(sent)) == sent

    def test_a_required_field_is_missed(self):
        with pytest.raises(ProtocolError, match=r"SyncResponse.server_time: expected key 4, which is missing"):
            wire.decode_response(frame.pack(wire.KIND_RESPONSE, {1: 1, 2: 7, 3: 300}, MAX_DOWNLOAD_BYTES))


class TestServedVersions:
    def test_this_one_and_the_two_before_it(self):
        assert SERVED_VERSIONS[-1] == PROTOCOL_VERSION
        assert len(SERVED_VERSIONS) == min(3, PROTOCOL_VERSION)

    def test_each_has_its_golden_bytes(self):
        folders = {path.name for path in VECTORS.parent.iterdir()}
        assert folders >= {str(version) for version in SERVED_VERSIONS}
        for version in SERVED_VERSIONS:
            kinds = {path.read_bytes()[1] for path in (VECTORS.parent / str(version)).glob("*.bin")}
            assert kinds >= {wire.KIND_REQUEST, wire.KIND_RESPONSE, wire.KIND_DELTA, wire.KIND_GLOBAL_PATTERNS}
