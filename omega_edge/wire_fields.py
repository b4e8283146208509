"""The fields of one map of a message, taken by key with their type checked."""

from __future__ import annotations

from collections.abc import Sequence

from omega_edge.columns import LINEAGE_BYTES, TitleNumbering, TitleReader
from omega_edge.errors import ProtocolError

_REQUIRED = object()
_ONLY_INTEGERS = frozenset({int})


class Fields:
    """One map of a message. name: what errors call it; fields: what the frame held in its place."""

    def __init__(self, name: str, fields: object) -> None:
        # A key of true or 1.0 equals 1 in Python; only integers are keys here.
        if type(fields) is not dict or not _ONLY_INTEGERS.issuperset(map(type, fields)):
            raise ProtocolError(f"{name}: expected a map with integer keys, got another {type(fields).__name__}")
        self._name = name
        self._fields = fields

    def __contains__(self, key: int) -> bool:
        return key in self._fields

    def take(self, key: int, field: str, kind: type, default: object = _REQUIRED) -> object:
        """The value of a key, of exactly this type; the default, if there is one, for an absent key."""
        value = self._fields.get(key, default)
        if type(value) is kind or (value is default and default is not _REQUIRED and key not in self._fields):
            return value
        if key not in self._fields:
            raise ProtocolError(f"{self._name}.{field}: expected key {key}, which is missing")
        raise ProtocolError(f"{self._name}.{field}: expected {kind.__name__}, got {type(value).__name__}")

    def take_number(self, key: int, field: str) -> float | int:
        """The value of a key that is there: a float or an integer."""
        value = self._fields.get(key)
        return value if type(value) is int else self.take(key, field, float)

    def reader(self, key: int, titles: TitleNumbering | None) -> TitleReader:
        """The reader of the map's title columns, from the lineage under this key."""
        lineage = self.take(key, "lineage", bytes, default=None)
        if lineage is not None and len(lineage) != LINEAGE_BYTES:
            raise ProtocolError(f"{self._name}.lineage: expected {LINEAGE_BYTES} bytes, got {len(lineage)}")
        return TitleReader(lineage, titles)


def check_length(name: str, values: Sequence, expected: int) -> None:
    """ProtocolError unless a column has as many values or bytes as its neighbours need."""
    if len(values) != expected:
        raise ProtocolError(f"{name}: expected {expected} values or bytes in the column, got {len(values)}")
