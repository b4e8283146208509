"""Rows by id: an open-addressing table of row numbers, 5 to 8 bytes an id where a dictionary takes about 90.

The ids themselves lie in the store's own array, by row; the table holds rows alone and looks there. Linear probing that
never wraps: the table ends in empty slots, and one that fills them is built anew, larger. Removing moves later entries
back, so no tombstones gather.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_EMPTY = 0xFFFFFFFF
# 2^64 / golden ratio: neighbouring ids spread evenly (Knuth, The Art of Computer Programming, 6.4), and so do ids of two
# numbers, one in each half, which a mix of the halves would bring together.
_FACTOR = 0x9E3779B97F4A7C15
_LOW_64 = (1 << 64) - 1
_BUILT_LOAD, _GROWN_LOAD, _GREATEST_LOAD = 0.8, 0.55, 0.85
_TAIL = 64
_FEW = 16  # ids that are looked up faster one by one

Ids = NDArray[np.uint64]
Rows = NDArray[np.uint32]


class IdTable:
    """Rows by id, for ids uint64[capacity] that hold each listed row's id. Not thread-safe: callers hold a lock."""

    def __init__(self, ids: Ids, rows: Rows) -> None:
        """The rows given, whose ids are distinct."""
        self._count = len(rows)
        self.move_to(ids)
        self._build(rows, _BUILT_LOAD)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._table.nbytes

    def move_to(self, ids: Ids) -> None:
        """The array of ids was replaced by another that holds the same for every row listed."""
        self._ids = ids
        self._id_at = memoryview(ids)  # its items are Python integers, at half the cost of numpy's

    def find(self, id: int) -> int:
        """The row of an id, -1 where it is not listed."""
        row = self._row_at[self._slot_of(id)]
        return -1 if row == _EMPTY else row

    def find_many(self, ids: Ids) -> NDArray[np.int64]:
        """The row of each id, int64[n], -1 where it is not listed."""
        found = np.full(len(ids), -1, np.int64)
        waiting = np.arange(len(ids))
        slots = _starts(ids, self._slots)
        while waiting.size > _FEW:
            rows = self._table[slots]
            listed = rows != _EMPTY
            if not listed.all():
                waiting, slots, rows = waiting[listed], slots[listed], rows[listed]
            matching = self._ids[rows] == ids[waiting]
            found[waiting[matching]] = rows[matching]
            waiting, slots = waiting[~matching], slots[~matching] + 1
        for position in waiting.tolist():
            found[position] = self.find(int(ids[position]))
        return found

    def put(self, id: int, row: int) -> int:
        """Lists a row under its id; the row that was there, or -1."""
        slot = self._slot_of(id)
        before = self._row_at[slot]
        if before != _EMPTY:
            self._row_at[slot] = row
            return before
        self._count += 1
        if self._count > self._slots * _GREATEST_LOAD or slot + 1 >= len(self._table):
            self._build(np.append(self._table[self._table != _EMPTY], np.uint32(row)), _GROWN_LOAD)
        else:
            self._row_at[slot] = row
        return -1

    def put_many(self, ids: Sequence[int], rows: Sequence[int]) -> list[int]:
        """Lists rows under their distinct ids; the rows that were there."""
        if 8 * len(ids) < self._count or len(ids) < 8:
            return [row for row in map(self.put, ids, rows) if row >= 0]
        known = self.find_many(np.array(ids, np.uint64))
        known = known[known >= 0]
        kept = self._table[self._table != _EMPTY]
        kept = kept[~np.isin(kept, known)]
        self._count = len(kept) + len(rows)
        self._build(np.concatenate([kept, np.array(rows, np.uint32)]), _GROWN_LOAD)
        return known.tolist()

    def remove(self, id: int) -> int:
        """Takes an id off the list; its row, or -1 where it was not listed."""
        hole = self._slot_of(id)
        removed = self._row_at[hole]
        if removed == _EMPTY:
            return -1
        probe = hole + 1
        while (row := self._row_at[probe]) != _EMPTY:
            if _start(self._id_at[row], self._slots) <= hole:
                self._row_at[hole] = row
                hole = probe
            probe += 1
        self._row_at[hole] = _EMPTY
        self._count -= 1
        return removed

    def _slot_of(self, id: int) -> int:
        """The slot that holds the id's row, or the empty one where it would go."""
        slot, row_at, id_at = _start(id, self._slots), self._row_at, self._id_at
        while (row := row_at[slot]) != _EMPTY and id_at[row] != id:
            slot += 1
        return slot

    def _build(self, rows: Rows, load: float) -> None:
        """A table of the rows at a load; entries in the order of their starting slots, each as early as it can be."""
        self._slots = max(16, int(self._count / load))
        starts = _starts(self._ids[rows], self._slots)
        order = np.argsort(starts, kind="stable")
        index = np.arange(len(rows), dtype=np.int64)
        slots = index + np.maximum.accumulate(starts[order] - index) if len(rows) else index
        length = max(self._slots, int(slots[-1]) + 1 if len(rows) else 0) + min(_TAIL, self._slots)
        self._table = np.full(length, _EMPTY, np.uint32)
        self._table[slots] = rows[order]
        self._row_at = memoryview(self._table)


def _start(id: int, slots: int) -> int:
    return ((id * _FACTOR & _LOW_64) >> 32) * slots >> 32


def _starts(ids: Ids, slots: int) -> NDArray[np.int64]:
    mixed = ids * np.uint64(_FACTOR) >> np.uint64(32)
    return (mixed * np.uint64(slots) >> np.uint64(32)).astype(np.int64)
