"""Columns: many small values of one field in one byte string, and titles as numbers of a catalogue's lineage.

Integers are varints: seven bits a byte, least significant first, the top bit set on all bytes but a value's last, in
the shortest form. Signed ones are zigzagged first: 0, -1, 1, -2 … become 0, 1, 2, 3 …. What a column's reader returns
is checked for count and range; a column that is not as long as its neighbours is an error, never padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

from omega_edge.errors import CatalogError, LineageError, ProtocolError
from omega_edge.protocol import MAX_TIMESTAMP_MS

STEP_MS = 15 * 60 * 1000
"""Times in columns are whole quarter-hours since 1970, rounded down: every local time zone's hour and day stay true."""
MAX_STEP = MAX_TIMESTAMP_MS // STEP_MS
LINEAGE_BYTES = 8
OUTSIDE = (1 << 24) - 1
"""The title number that says: the next title in text. In 2-byte columns it is 2^16 - 1."""

_U64_MAX = (1 << 64) - 1


class TitleNumbering(Protocol):
    """How titles are numbered: one lineage of catalogues, in which numbers are only ever added. Catalog is one."""

    @property
    def lineage(self) -> str:
        """16 lower-case hexadecimal digits."""

    def row_of(self, content_id: str) -> int:
        """The title's number, 0 to 2^24 - 2, or -1 where it has none."""

    def content_id(self, row: int) -> str:
        """The title of a number; IndexError or CatalogError where there is none."""


def pack_varints(values: Iterable[int]) -> bytes:
    """The column of these integers, each 0 to 2^64 - 1."""
    column = bytearray()
    for value in values:
        while value > 127:
            column.append(value & 127 | 128)
            value >>= 7
        column.append(value)
    return bytes(column)


def read_varints(name: str, column: bytes, max_count: int, max_value: int) -> list[int]:
    """The integers of a column, at most max_count of them and each at most max_value; else ProtocolError."""
    if column.isascii() and len(column) <= max_count and max_value > 127:
        return list(column)  # every byte is a value of its own
    values: list[int] = []
    value = shift = 0
    for byte in column:
        value |= (byte & 127) << shift
        if value > max_value or (byte == 0 and shift):
            raise ProtocolError(f"{name}: expected integers up to {max_value} in shortest form, got another")
        if byte > 127:
            shift += 7
            continue
        if len(values) == max_count:
            raise ProtocolError(f"{name}: expected at most {max_count} integers, got more")
        values.append(value)
        value = shift = 0
    if shift:
        raise ProtocolError(f"{name}: expected a whole number of integers, the last one is cut off")
    return values


def pack_signed(values: Iterable[int]) -> bytes:
    """The column of these integers of either sign."""
    return pack_varints(2 * value if value >= 0 else -2 * value - 1 for value in values)


def read_signed(name: str, column: bytes, max_count: int, max_size: int) -> list[int]:
    """The integers of a column, each from -max_size to max_size; else ProtocolError."""
    return [code >> 1 if not code & 1 else -(code + 1 >> 1) for code in read_varints(name, column, max_count, 2 * max_size)]


def pack_times(timestamps: Sequence[int], usual_gap_steps: int = 0) -> bytes:
    """The column of these moments (Unix ms) in steps: the first since 1970, then each since the one before.

    usual_gap_steps is taken off each but the first, so that gaps around it need one byte. Times may go backwards.
    """
    steps = [timestamp // STEP_MS for timestamp in timestamps]
    gaps = (after - before - usual_gap_steps for before, after in pairwise(steps))
    return pack_signed([*steps[:1], *gaps])


def read_times(name: str, column: bytes, max_count: int, usual_gap_steps: int = 0) -> list[int]:
    """The moments of a column, Unix ms, the starts of their steps; else ProtocolError. Gaps may add up to a moment
    outside what a message allows: the message refuses that.
    """
    timestamps: list[int] = []
    step = -usual_gap_steps
    for gap in read_signed(name, column, max_count, 2 * MAX_STEP):
        step += gap + usual_gap_steps
        timestamps.append(step * STEP_MS)
    return timestamps


class TitlePacker:
    """Writes title columns, as numbers where there is a numbering, and knows whether any number was written.

    Without a numbering a column is a list of content ids. With one it is [numbers, content id, …]: the first byte of
    numbers says how many bytes a number has, 2 or 3, little-endian; all ones stand for the next of the content ids.
    """

    def __init__(self, titles: TitleNumbering | None) -> None:
        self._titles = titles
        self.numbered = False

    def pack(self, content_ids: Sequence[str]) -> list[object]:
        """The column of these titles."""
        if self._titles is None:
            return list(content_ids)
        rows = [self._titles.row_of(content_id) for content_id in content_ids]
        outside = [content_id for content_id, row in zip(content_ids, rows, strict=True) if not 0 <= row < OUTSIDE]
        if len(outside) == len(content_ids):
            return list(outside)
        self.numbered = True
        width = 2 if max(row for row in rows if row < OUTSIDE) < 0xFFFF else 3
        all_ones = (1 << 8 * width) - 1
        numbers = (row if 0 <= row < OUTSIDE else all_ones for row in rows)
        return [bytes((width,)) + b"".join(number.to_bytes(width, "little") for number in numbers), *outside]

    def lineage(self) -> bytes:
        """The lineage that the numbers written belong to, 8 bytes."""
        assert self._titles is not None and self.numbered
        return lineage_bytes(self._titles)


class TitleReader:
    """Reads title columns. lineage: the message's, None where it has none; titles: the reader's own, or None."""

    def __init__(self, lineage: bytes | None, titles: TitleNumbering | None) -> None:
        self._titles = None
        if lineage is None:
            return
        if titles is None:
            raise LineageError(f"lineage: expected titles as text, got numbers of {lineage.hex()}: open its catalogue")
        if lineage.hex() != titles.lineage:
            raise LineageError(f"lineage: expected {titles.lineage}, got {lineage.hex()}: the catalogues differ")
        self._titles = titles

    def read(self, name: str, column: list, max_count: int) -> list[str]:
        """The content ids of a column, their own form unchecked; ProtocolError for anything else."""
        if not column or type(column[0]) is not bytes:
            return self._texts(name, column, max_count)
        rows = self._rows(name, column[0], max_count)
        outside = rows.count(OUTSIDE)
        texts = self._texts(name, column[1:], outside)
        if len(texts) < outside:
            raise ProtocolError(f"{name}: expected {outside} texts for titles outside the numbering, got {len(texts)}")
        in_order = iter(texts)
        return [next(in_order) if row == OUTSIDE else self._title(name, row) for row in rows]

    @staticmethod
    def _texts(name: str, column: list, max_count: int) -> list[str]:
        if len(column) > max_count or not all(type(text) is str for text in column):
            raise ProtocolError(f"{name}: expected at most {max_count} content ids in text, got other or more")
        return column

    @staticmethod
    def _rows(name: str, column: bytes, max_count: int) -> list[int]:
        width = column[0] if column else 0
        if width not in (2, 3) or (len(column) - 1) % width or len(column) - 1 > max_count * width:
            raise ProtocolError(f"{name}: expected at most {max_count} numbers of 2 or 3 bytes after their width")
        all_ones = (1 << 8 * width) - 1
        rows = [int.from_bytes(column[start : start + width], "little") for start in range(1, len(column), width)]
        return [OUTSIDE if row == all_ones else row for row in rows]

    def _title(self, name: str, row: int) -> str:
        if self._titles is None:
            raise ProtocolError(f"{name}: expected a lineage beside title numbers, got none")
        try:
            return self._titles.content_id(row)
        except (IndexError, CatalogError) as error:
            raise LineageError(f"{name}: expected a title of the catalogue, got number {row}: {error}") from None


def lineage_bytes(titles: TitleNumbering) -> bytes:
    """The lineage of a numbering as it travels; ProtocolError unless it is 16 lower-case hexadecimal digits."""
    lineage = titles.lineage
    if len(lineage) != 2 * LINEAGE_BYTES or not set(lineage) <= set("0123456789abcdef"):
        raise ProtocolError(f"lineage: expected {2 * LINEAGE_BYTES} hexadecimal digits, got {lineage!r}")
    return bytes.fromhex(lineage)
