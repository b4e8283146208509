"""Lists: which titles each sharing home finished, in order. What the model job trains on.

A segment holds what one shard received on one UTC day (of one lineage; a busy day has several parts). Homes go by
pseudonyms: HMAC-SHA256 of the device id by the operator's federation secret, its first 8 bytes, so that the same home is
the same pseudonym on every shard and whoever reads a segment cannot ask a shard for the device. A segment is relayed
untouched: its signature is the shard's. When a device is erased, its shard publishes each of its segments anew, under a
higher sequence and without it; of two segments of one name the higher sequence stands.

The payload's keys: 1 source, 2 day (of receipt, since 1970), 3 part, 4 sequence, 5 lineage (8 bytes), 6 last page's
sequence in the shard's storage, 7 pseudonyms u64[h] ascending, 8 how many titles of each u32[h], 9 rows u32[e], 10 age
of each finish in quarter-hours before the end of the day u32[e]; rows and ages of a home in the order they came.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from cloud import objects
from cloud.names import SOURCE, check_lineage
from omega_edge.columns import STEP_MS
from omega_edge.errors import ProtocolError
from omega_edge.protocol import DAY_MS, MAX_TIMESTAMP_MS, U64_MAX
from omega_edge.wire_fields import Fields

MAX_SEGMENT_TITLES = 2_000_000
"""Of one segment; the next part takes what comes after."""
MAX_SEGMENT_BYTES = 32 << 20
MAX_DAY = MAX_TIMESTAMP_MS // DAY_MS
MAX_ROW = (1 << 24) - 1
MAX_PART = 999

_STEPS_PER_DAY = DAY_MS // STEP_MS


def pseudonym(secret: bytes, device_id: bytes) -> int:
    """The u64 that stands for a device in lists."""
    return int.from_bytes(hmac.digest(secret, device_id, "sha256")[:8], "little")


@dataclass(frozen=True, slots=True)
class Segment:
    """What one shard received on one day. Arrays as the module says: pseudonyms uint64[h], counts uint32[h], rows and ages
    uint32[e]."""

    source: str
    day: int
    part: int
    sequence: int
    lineage: str
    through: int
    pseudonyms: np.ndarray
    counts: np.ndarray
    rows: np.ndarray
    ages: np.ndarray

    @property
    def name(self) -> str:
        """What it is called in a publication."""
        return f"lists.{self.lineage}.{self.source}.{self.day}.{self.part}"

    def finished_ms(self) -> np.ndarray:
        """int64[e]: when each title was finished, Unix ms, the start of its quarter-hour."""
        return (((self.day + 1) * _STEPS_PER_DAY - self.ages.astype(np.int64)) * STEP_MS).astype(np.int64)

    def homes(self) -> np.ndarray:
        """uint64[e]: the pseudonym of each title's home."""
        return np.repeat(self.pseudonyms, self.counts)


@dataclass(frozen=True, slots=True)
class Lists:
    """The union of segments: each home and title once, with its first finish. home, row, finished_ms: int64[e], by home,
    then by time; pseudonyms uint64[h], which home indexes, ascending. lineage: of the rows, "" where there are none."""

    lineage: str
    pseudonyms: np.ndarray
    home: np.ndarray
    row: np.ndarray
    finished_ms: np.ndarray


def segment_of(
    source: str, day: int, part: int, sequence: int, lineage: str, through: int,
    homes: np.ndarray, rows: np.ndarray, finished_ms: np.ndarray,
) -> Segment:
    """The segment of titles uint64[e], integer[e], int64[e] in the order that they came. Each home, title and quarter-hour
    is kept once."""
    ages = (day + 1) * _STEPS_PER_DAY - finished_ms // STEP_MS
    order = np.argsort(homes, kind="stable")
    homes, rows, ages = homes[order], rows[order].astype(np.uint32), ages[order].astype(np.uint32)
    first = np.sort(_first_of_each(np.lexsort((ages, rows, homes)), homes, rows, ages))
    homes, rows, ages = homes[first], rows[first], ages[first]
    pseudonyms, counts = np.unique(homes, return_counts=True)
    return Segment(source, day, part, sequence, lineage, through, pseudonyms, counts.astype(np.uint32), rows, ages)


def without(segment: Segment, erased: np.ndarray, sequence: int) -> Segment:
    """The segment under a new sequence without the homes uint64[k]; the very same object if none of them is in it."""
    gone = np.isin(segment.pseudonyms, erased)
    if not gone.any():
        return segment
    kept = np.repeat(~gone, segment.counts)
    return replace(
        segment, sequence=sequence, pseudonyms=segment.pseudonyms[~gone], counts=segment.counts[~gone],
        rows=segment.rows[kept], ages=segment.ages[kept],
    )


def encode(segment: Segment) -> bytes:
    """The payload of a segment."""
    return objects.pack(
        {
            1: segment.source,
            2: segment.day,
            3: segment.part,
            4: segment.sequence,
            5: bytes.fromhex(segment.lineage),
            6: segment.through,
            7: objects.column(segment.pseudonyms, "<u8"),
            8: objects.column(segment.counts, "<u4"),
            9: objects.column(segment.rows, "<u4"),
            10: objects.column(segment.ages, "<u4"),
        }
    )


def decode(payload: bytes) -> Segment:
    """The segment of a payload. Raises ProtocolError for any other bytes."""
    fields = objects.unpack("lists", payload)
    segment = _read(fields)
    if (segment.pseudonyms[1:] <= segment.pseudonyms[:-1]).any():
        raise ProtocolError("lists.pseudonyms: expected them ascending, each once, got others")
    if segment.counts.sum(dtype=np.uint64) != len(segment.rows) or not segment.counts.all():
        raise ProtocolError("lists.counts: expected 1 or more a home that add up to the titles, got others")
    if len(segment.rows) and int(segment.rows.max()) > MAX_ROW:
        raise ProtocolError(f"lists.rows: expected titles up to {MAX_ROW}, got more")
    oldest = (segment.day + 1) * _STEPS_PER_DAY
    if len(segment.ages) and not 1 <= int(segment.ages.min()) <= int(segment.ages.max()) <= oldest:
        raise ProtocolError("lists.ages: expected finishes between 1970 and the end of the day of receipt, got others")
    return segment


def union(segments: Iterable[Segment]) -> Lists:
    """The lists of segments of one lineage, in whatever order they come and however often: of each name the highest
    sequence. Raises ProtocolError for two lineages.

    A home's titles of one quarter-hour stand in the order that the home sent them.
    """
    newest: dict[str, Segment] = {}
    for segment in segments:
        known = newest.get(segment.name)
        if known is None or segment.sequence > known.sequence:
            newest[segment.name] = segment
    ordered = sorted(newest.values(), key=lambda segment: (segment.day, segment.part, segment.source))
    lineages = sorted({segment.lineage for segment in ordered})
    if len(lineages) > 1:
        raise ProtocolError(f"lists: expected segments of one lineage, got {', '.join(lineages)}; choose one")
    homes = _joined([segment.homes() for segment in ordered], np.uint64)
    rows = _joined([segment.rows for segment in ordered], np.int64)
    finished_ms = _joined([segment.finished_ms() for segment in ordered], np.int64)
    first = np.sort(_first_of_each(np.lexsort((finished_ms, rows, homes)), homes, rows))
    homes, rows, finished_ms = homes[first], rows[first], finished_ms[first]
    order = np.lexsort((finished_ms, homes))  # stable, so what is equal stays in the order that it came in
    pseudonyms, home = np.unique(homes[order], return_inverse=True)
    lineage = lineages[0] if lineages else ""
    return Lists(lineage, pseudonyms, home.astype(np.int64), rows[order], finished_ms[order])


def _read(fields: Fields) -> Segment:
    source = fields.take(1, "source", str)
    if not SOURCE.fullmatch(source):
        raise ProtocolError("lists.source: expected up to 32 lower-case letters, digits and hyphens, got something else")
    pseudonyms = objects.take_column(fields, 7, "pseudonyms", "<u8")
    rows = objects.take_column(fields, 9, "rows", "<u4")
    if len(rows) > 2 * MAX_SEGMENT_TITLES:
        raise ProtocolError(f"lists.rows: expected at most {2 * MAX_SEGMENT_TITLES} titles, got {len(rows)}")
    return Segment(
        source=source,
        day=objects.take_integer(fields, 2, "day", 0, MAX_DAY),
        part=objects.take_integer(fields, 3, "part", 0, MAX_PART),
        sequence=objects.take_integer(fields, 4, "sequence", 0, U64_MAX),
        lineage=check_lineage(fields.take(5, "lineage", bytes)),
        through=objects.take_integer(fields, 6, "through", 0, U64_MAX),
        pseudonyms=pseudonyms,
        counts=objects.take_column(fields, 8, "counts", "<u4", len(pseudonyms)),
        rows=rows,
        ages=objects.take_column(fields, 10, "ages", "<u4", len(rows)),
    )


def _first_of_each(order: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Of an order int64[e] that brings equal values together: the places whose values differ from those before."""
    new = np.zeros(len(order), bool)
    new[:1] = True
    for values in columns:
        new[1:] |= values[order[1:]] != values[order[:-1]]
    return order[new]


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([array.astype(dtype) for array in arrays]) if arrays else np.empty(0, dtype)
