"""The plain fields of requests and responses as tables: key, name, type, and the protocol version that brought each.

A next version takes the next PROTOCOL_VERSION (terms.py), its fields below with `since`, and a folder of golden bytes beside
those of the versions before; nothing else here changes. Whoever writes to an older version leaves out what is newer than
it, and whoever reads ignores what it does not know, so two versions lose no field that both have.
"""

from __future__ import annotations

from dataclasses import dataclass

from omega_edge.wire_fields import Fields


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message. kind: int, bytes or bool, as it travels; since: the version that brought it.

    A field whose value is None or False does not travel, and is then what the message has without it.
    """

    key: int
    name: str
    kind: type
    required: bool = False
    since: int = 1


REQUEST_FIELDS = (
    Field(1, "version", int, required=True),
    Field(2, "global_version_seen", int, required=True),
    Field(3, "device_id", bytes),
    Field(4, "epoch", int),
    Field(5, "server_time_seen", int),
    Field(8, "erase", bool),
)
"""Beside these: 6 delta, 7 count_report (wire.py)."""

RESPONSE_FIELDS = (
    Field(1, "version", int, required=True),
    Field(2, "global_version", int, required=True),
    Field(3, "next_sync_secs", int, required=True),
    Field(4, "server_time", int, required=True),
    Field(5, "acknowledged_local_version", int),
    Field(8, "catalog_version", int),
    Field(9, "reset", bool),
    Field(10, "snapshot_wanted", bool),
    Field(11, "erased", bool),
    Field(12, "counted", bool),
)
"""Beside these: 6 patterns, 7 a frame of patterns (wire.py)."""


def pack_plain(table: tuple[Field, ...], message: object) -> dict[int, object]:
    """The fields of a message, as its version has them."""
    version = message.version
    packed = {}
    for field in table:
        value = getattr(message, field.name)
        if value is not None and value is not False and field.since <= version:
            packed[field.key] = value
    return packed


def read_plain(table: tuple[Field, ...], fields: Fields) -> dict[str, object]:
    """The fields that are there, by name, their types checked; ProtocolError for a wrong type or a required one missing."""
    return {
        field.name: fields.take(field.key, field.name, field.kind)
        for field in table
        if field.required or field.key in fields
    }
