"""The rows of a vector store: their arrays, the snapshots that readers hold, and the writer that makes the next one.

A row is written only while no snapshot in use shows it as live, so a reader never sees one change. Each snapshot has its
own bitmap of live rows; the bitmap of a snapshot that is gone is brought up to date by the changes that it missed and
serves the next, so a change costs the same however many rows there are.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.vector_halffloats import HalfFloats

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]
Bits = NDArray[np.uint8]
FoundRows = NDArray[np.uint32]

SIGN_ROWS = 32
_FIRST_CAPACITY = 32


@dataclass(slots=True)
class VectorArrays:
    """n rows as the kernels take them; kernels.h states the layout of halves and signs."""

    high: NDArray[np.uint8]  # [n, dimensions / 2]
    low: NDArray[np.uint8]  # [n, dimensions / 2]
    scale: Scales  # [n]
    spread: NDArray[np.uint8]  # [n]
    ids: NDArray[np.uint64]  # [n]
    signs: NDArray[np.uint8] | None = None  # [ceil(n / 32), 4 dimensions], of stores large enough to search by them

    @classmethod
    def empty(cls, capacity: int, dimensions: int, with_signs: bool) -> VectorArrays:
        """Room for so many rows, each array starting on 64 bytes."""
        half = dimensions // 2
        return cls(
            aligned((capacity, half), np.uint8),
            aligned((capacity, half), np.uint8),
            aligned((capacity,), np.float32),
            aligned((capacity,), np.uint8),
            aligned((capacity,), np.uint64),
            aligned((sign_blocks(capacity), 4 * dimensions), np.uint8) if with_signs else None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.high, self.low, self.scale, self.spread, self.ids, self.signs)
        return sum(array.nbytes for array in arrays if array is not None)

    def head(self, n: int) -> VectorArrays:
        """Views of the first n rows."""
        signs = None if self.signs is None else self.signs[: sign_blocks(n)]
        return VectorArrays(self.high[:n], self.low[:n], self.scale[:n], self.spread[:n], self.ids[:n], signs)

    def put(self, rows: Sequence[int], codes: Codes, scale: Scales, ids: NDArray[np.uint64]) -> None:
        """Writes m rows from int8[m, dimensions] codes, float32[m] scales and uint64[m] ids."""
        m = len(rows)
        if m == 1 or isinstance(rows, range):
            span = slice(rows[0], rows[0] + m)
            kernels.halve(codes, self.high[span], self.low[span], self.spread[span])
            self.scale[span] = scale
            self.ids[span] = ids
            if self.signs is not None:
                kernels.put_signs(codes, rows[0], SIGN_ROWS * len(self.signs), self.signs)
            return
        high, low, spread = (np.empty((m, *a.shape[1:]), np.uint8) for a in (self.high, self.low, self.spread))
        kernels.halve(codes, high, low, spread)
        self.high[rows], self.low[rows], self.spread[rows] = high, low, spread
        self.scale[rows], self.ids[rows] = scale, ids
        if self.signs is not None:
            for position, row in enumerate(rows):
                kernels.put_signs(codes[position : position + 1], row, SIGN_ROWS * len(self.signs), self.signs)

    def codes_of(self, rows: FoundRows) -> Codes:
        """The codes of some rows, int8[m, dimensions]."""
        codes = np.empty((len(rows), 2 * self.high.shape[1]), np.int8)
        kernels.join(self.high, self.low, self.scale, self.spread, rows, codes)
        return codes


@dataclass(slots=True, weakref_slot=True)
class Snapshot:
    """Rows 0 to n - 1 as they were published; nothing here changes while the snapshot exists."""

    arrays: VectorArrays
    live: Bits  # [ceil(n / 8)], bit r & 7 of byte r >> 3
    count: int
    ordered: bool  # whether the ids of live rows ascend with the row
    halffloats: HalfFloats | None = None
    rows: int = field(init=False)  # live or not

    def __post_init__(self) -> None:
        self.rows = len(self.arrays.scale)

    @property
    def signed(self) -> bool:
        """Whether search can choose candidates by signs."""
        return self.arrays.signs is not None

    def search(
        self, code: Codes, scale: float, allowed: Bits | None, candidates: int, found: FoundRows, scores: Scales
    ) -> int:
        """The best len(found) rows by the kernels' order: exactly, or among so many candidates where not 0."""
        arrays, k = self.arrays, len(found)
        halves = arrays.high, arrays.low, arrays.scale, arrays.spread, code, scale, allowed
        if candidates:
            return kernels.search_two_stage(arrays.signs, *halves, candidates, k, found, scores)
        return kernels.search_halves(*halves, k, found, scores)

    def ids_of(self, rows: FoundRows) -> NDArray[np.uint64]:
        """Ids of some rows."""
        return self.arrays.ids[rows]

    def codes_of(self, rows: FoundRows) -> Codes:
        """The codes of some rows, int8[m, dimensions]."""
        return self.arrays.codes_of(rows)

    def scales_of(self, rows: FoundRows) -> Scales:
        """Scales of some rows."""
        return self.arrays.scale[rows]

    def live_rows(self) -> NDArray[np.intp]:
        """The live rows, ascending."""
        return np.flatnonzero(np.unpackbits(self.live, count=self.rows, bitorder="little"))


@dataclass(slots=True)
class CodeSnapshot:
    """The rows of given codes, all live, whose ids are the row numbers."""

    codes: Codes  # [n, dimensions]
    scale: Scales  # [n]
    live: None = None
    ordered: bool = True
    signed: bool = False
    halffloats: None = None
    rows: int = field(init=False)
    count: int = field(init=False)  # all are live

    def __post_init__(self) -> None:
        self.rows = self.count = len(self.scale)

    def search(
        self, code: Codes, scale: float, allowed: Bits | None, candidates: int, found: FoundRows, scores: Scales
    ) -> int:
        """The best len(found) rows, exactly: there are no candidates without signs."""
        assert not candidates
        return kernels.search(self.codes, self.scale, code, scale, allowed, len(found), found, scores)

    def ids_of(self, rows: FoundRows) -> NDArray[np.uint64]:
        """Ids of some rows."""
        return rows.astype(np.uint64)

    def codes_of(self, rows: FoundRows) -> Codes:
        """The codes of some rows, int8[m, dimensions]."""
        return self.codes[rows]

    def scales_of(self, rows: FoundRows) -> Scales:
        """Scales of some rows."""
        return self.scale[rows]

    def live_rows(self) -> NDArray[np.intp]:
        """All rows."""
        return np.arange(self.rows)


class LiveBits:
    """The bitmaps of live rows: the current one, and those that snapshots still hold or have left behind."""

    def __init__(self, capacity: int, live: int) -> None:
        """A bitmap for so many rows, the first of them live; the first snapshot holds it."""
        self.current = np.zeros((capacity + 7) // 8, np.uint8)
        self.current[: (live + 7) // 8] = all_live(live)
        self._is_held = True
        self._toggled: list[int] = []  # rows, in the order of their changes
        self._forgotten = 0  # changes before the first in the list
        self._held: list[tuple[weakref.ref[Snapshot], Bits, int]] = []  # with the number of changes that each has

    @property
    def nbytes(self) -> int:
        """Bytes of all the bitmaps."""
        return self.current.nbytes + sum(bits.nbytes for _, bits, _ in self._held)

    def grow(self, capacity: int) -> None:
        """Room for more rows. Bitmaps that snapshots hold stay theirs."""
        grown = np.zeros((capacity + 7) // 8, np.uint8)
        grown[: len(self.current)] = self.current
        self.current, self._held, self._is_held = grown, [], False

    def next(self, superseded: Snapshot, toggled: Sequence[int]) -> Bits:
        """The bitmap after some rows' change; the one before it stays as it is while its snapshot lives."""
        bits, has = self.current, self._forgotten + len(self._toggled)
        if self._is_held:
            bits, has = self._left_behind(has)
            self._held.append((weakref.ref(superseded), self.current, self._forgotten + len(self._toggled)))
        self._toggled.extend(toggled)
        self._toggle(bits, self._toggled[has - self._forgotten :])
        self.current, self._is_held = bits, True
        if len(self._toggled) > 64 + len(bits) // 4:  # so that a copy is due at most once in so many changes
            self._forgotten += len(self._toggled)
            self._toggled = []
        return bits

    def _left_behind(self, done: int) -> tuple[Bits, int]:
        """A bitmap that no snapshot holds, and how many of the changes it has: the one left behind that has the most,
        or a copy of the current one."""
        bits, has, kept = None, 0, []
        for entry in self._held:
            if entry[0]() is not None:
                kept.append(entry)
            else:
                _, bits, has = entry  # later entries have more changes
        self._held = kept
        if bits is None:
            return self.current.copy(), done
        if has < self._forgotten or 8 * (done - has) > len(bits) + 64:
            np.copyto(bits, self.current)
            has = done
        return bits, has

    @staticmethod
    def _toggle(bits: Bits, rows: list[int]) -> None:
        if len(rows) <= 16:
            byte_at = memoryview(bits)
            for row in rows:
                byte_at[row >> 3] ^= 1 << (row & 7)
            return
        numbers = np.array(rows, np.int64)
        np.bitwise_xor.at(bits, numbers >> 3, np.uint8(1) << (numbers & 7).astype(np.uint8))


@dataclass(slots=True)
class _Retired:
    """Rows that a superseded snapshot, or one before it, still showed."""

    snapshot: weakref.ref[Snapshot]
    rows: list[int] = field(default_factory=list)


class RowWriter:
    """What the one writer at a time knows: free rows, arrays with room, and how to publish. Callers hold a lock."""

    def __init__(
        self, arrays: VectorArrays, used: int, dimensions: int, signs_from: int, halffloats: HalfFloats | None
    ) -> None:
        """Rows 0 to used - 1 of the arrays are live, their ids ascending. signs_from: rows from which signs are kept;
        arrays of a file that was saved without them get them here."""
        if arrays.signs is None and len(arrays.scale) >= signs_from:
            arrays.signs = aligned((sign_blocks(len(arrays.scale)), 4 * dimensions), np.uint8)
            put_signs_of(arrays.head(used), arrays.signs)
        self._arrays = arrays
        self._dimensions = dimensions
        self._signs_from = signs_from
        self._halffloats = halffloats
        self._used = used
        self._free: list[int] = []
        self._retired: deque[_Retired] = deque()
        if halffloats is not None:
            halffloats.grow(self._capacity)
        self._bits = LiveBits(self._capacity, used)
        self._greatest_id = int(arrays.ids[used - 1]) if used else -1
        self._head = arrays.head(used)
        self._floats_head = halffloats.head(used) if halffloats is not None else None
        self.snapshot = Snapshot(self._head, self._bits.current[: (used + 7) // 8], used, True, self._floats_head)

    @property
    def ids(self) -> NDArray[np.uint64]:
        """Ids by row, of every row there is room for."""
        return self._arrays.ids

    @property
    def keeps_vectors(self) -> bool:
        """Whether half floats are kept."""
        return self._halffloats is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, room for growth included; without the half floats."""
        return self._arrays.nbytes + self._bits.nbytes

    @property
    def _capacity(self) -> int:
        return len(self._arrays.scale)

    def take(self, wanted: int) -> Sequence[int]:
        """Rows that no snapshot in use shows as live."""
        while self._retired and self._retired[0].snapshot() is None:
            self._free.extend(self._retired.popleft().rows)
        reused = min(wanted, len(self._free))
        rows = [self._free.pop() for _ in range(reused)]
        fresh = wanted - reused
        if self._used + fresh > self._capacity:
            self._grow(self._used + fresh)
        added = range(self._used, self._used + fresh)
        return [*rows, *added] if reused else added

    def write(
        self, rows: Sequence[int], codes: Codes, scale: Scales, ids: NDArray[np.uint64],
        vectors: NDArray[np.float16] | None,
    ) -> None:
        """Fills rows that take() gave. vectors: what the half floats keep; None for what the codes stand for."""
        self._arrays.put(rows, codes, scale, ids)
        if self._halffloats is not None:
            self._halffloats.put(np.array(rows), (codes * scale[:, None]).astype(np.float16) if vectors is None else vectors)

    def publish(self, ids: Sequence[int], added: Sequence[int], retired: list[int]) -> Snapshot:
        """The snapshot in which the added rows, with their ids, are live and the retired ones are not."""
        superseded = self.snapshot
        ordered = superseded.ordered and (not added or self._continues(ids, added))
        if added and (last := max(added)) >= self._used:
            self._used = last + 1
            self._head = self._arrays.head(self._used)
            self._floats_head = self._halffloats.head(self._used) if self._halffloats is not None else None
        bits = self._bits.next(superseded, [*added, *retired])
        count = superseded.count + len(added) - len(retired)
        self.snapshot = Snapshot(self._head, bits[: (self._used + 7) // 8], count, ordered, self._floats_head)
        # Also where nothing was retired: a reader of this snapshot may hold rows that a later entry gives up.
        self._retired.append(_Retired(weakref.ref(superseded), retired))
        return self.snapshot

    def _continues(self, ids: Sequence[int], added: Sequence[int]) -> bool:
        """Whether rows were added at the end, with ids that ascend and are above all before."""
        if not isinstance(added, range) or ids[0] <= self._greatest_id:
            return False
        if len(ids) > 1 and any(id >= following for id, following in pairwise(ids)):
            return False
        self._greatest_id = ids[-1]
        return True

    def _grow(self, needed: int) -> None:
        """Arrays with room for more; snapshots keep those that they were made of."""
        slack = self._used // 2 if self._used < 4096 else self._used // 4
        capacity = -(-max(needed, self._used + slack, _FIRST_CAPACITY) // SIGN_ROWS) * SIGN_ROWS
        old, used = self._arrays.head(self._used), self._used
        with_signs = capacity >= self._signs_from
        new = VectorArrays.empty(capacity, self._dimensions, with_signs)
        for name in ("high", "low", "scale", "spread", "ids"):
            getattr(new, name)[:used] = getattr(old, name)
        if with_signs and old.signs is not None:
            new.signs[: len(old.signs)] = old.signs
        elif with_signs:
            put_signs_of(old, new.signs)
        self._arrays = new
        self._head = new.head(used)
        self._bits.grow(capacity)
        if self._halffloats is not None:
            self._halffloats.grow(capacity)


def put_signs_of(arrays: VectorArrays, blocks: NDArray[np.uint8]) -> None:
    """Writes the signs of all rows, a thousand at a time: the codes are joined for that."""
    for first in range(0, len(arrays.scale), 1024):
        rows = np.arange(first, min(first + 1024, len(arrays.scale)), dtype=np.uint32)
        kernels.put_signs(arrays.codes_of(rows), first, SIGN_ROWS * len(blocks), blocks)


def sign_blocks(rows: int) -> int:
    """Blocks of signs that so many rows take."""
    return (rows + SIGN_ROWS - 1) // SIGN_ROWS


def all_live(rows: int) -> Bits:
    """The bitmap of so many rows, all live."""
    bits = np.full((rows + 7) // 8, 0xFF, np.uint8)
    if rows & 7:
        bits[-1] = (1 << (rows & 7)) - 1
    return bits


def aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray:
    """An array, not initialised, that starts on 64 bytes: whole cache lines, which the kernels read fastest."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
