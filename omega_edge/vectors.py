"""Vectors by id: exact cosine search over 8-bit codes, with filter, upsert and delete.

A store is derived data: it holds no truth that its owner could not rebuild, and its file is a cache that carries the
stamp of what it was built from.

Readers and the writer do not wait for each other. A reader takes the current snapshot, an immutable view of the rows
that were live when it was published; the writer puts every new vector into a row that no snapshot still in use shows as
live, then publishes the next snapshot. A row given up by a delete or a replacement is used again as soon as the
snapshots that showed it are gone.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.errors import ConfigError, StoreReadOnlyError
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.vector_file import VectorTable, read_vectors, write_vectors

MAX_ID = (1 << 64) - 1
_FIRST_CAPACITY = 256

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Snapshot:
    """Rows 0 to n - 1 as they were published; nothing here changes while the snapshot exists."""

    codes: Codes  # [n, dimensions]
    scale: Scales  # [n]
    ids: NDArray[np.uint64]  # [n]
    live: NDArray[np.uint8]  # [ceil(n / 8)], bit r & 7 of byte r >> 3
    count: int

    def live_rows(self) -> NDArray[np.intp]:
        return np.flatnonzero(np.unpackbits(self.live, count=len(self.ids), bitorder="little"))


def quantised(vector: NDArray[np.float32]) -> tuple[Codes, float]:
    """Code int8[d] and scale of one vector float32[d]. Raises ValueError for NaN, infinity or zero."""
    codes, scale = np.empty((1, len(vector)), np.int8), np.empty(1, np.float32)
    kernels.quantise(np.ascontiguousarray(vector)[None], codes, scale)
    return codes[0], float(scale[0])


class VectorStore:
    """Vectors by id, searched exactly.

    ids are integers from 0 to 2^64 - 1. Vectors are float32[dimensions], finite and not zero; their direction alone is
    kept, as int8[dimensions] codes in [-127, 127] and a scale of 1 / ||codes||_2. Results are ordered by score
    descending, then id ascending, whatever the order of the calls that filled the store.

    Any number of threads may read while one writes; writers take turns. ConfigError, a ValueError, names an argument
    that is not acceptable; KeyError an id that is not present.
    """

    def __init__(self, dimensions: int = EMBEDDING_DIMENSIONS) -> None:
        if not isinstance(dimensions, int) or dimensions < 32 or dimensions > 1024 or dimensions % 32:
            raise ConfigError(f"dimensions: expected a multiple of 32 from 32 to 1024, got {dimensions!r}")
        self._dimensions = dimensions
        self._writable = True
        self._lock = threading.Lock()
        self._row_of: dict[int, int] = {}
        self._free: list[int] = []
        self._used = 0
        # Rows that the snapshot superseded at each publication still showed, oldest first.
        self._retired: deque[tuple[weakref.ref[_Snapshot], list[int]]] = deque()
        self._allocate(0)
        self._snapshot = self._view(np.zeros(0, np.uint8))

    @classmethod
    def over(cls, codes: Codes, scale: Scales) -> VectorStore:
        """A read-only store over int8[n, dimensions] codes and float32[n] scales, whose ids are row numbers.

        The arrays are used, not copied: the caller leaves them as they are while the store lives.
        """
        if codes.ndim != 2:
            raise ConfigError(f"codes: expected int8[n, dimensions], got {codes.ndim} dimension(s)")
        store = cls(int(codes.shape[1]))
        _check_codes(codes, scale, store._dimensions)
        rows = len(codes)
        store._snapshot = _Snapshot(codes, scale, np.arange(rows, dtype=np.uint64), _all_live(rows), rows)
        store._writable = False
        return store

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    @property
    def count(self) -> int:
        """Number of vectors present."""
        return self._snapshot.count

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that hold the vectors, room for growth included; for a store over given arrays, theirs."""
        snapshot = self._snapshot
        arrays = (self._codes, self._scale, self._ids) if self._writable else (snapshot.codes, snapshot.scale)
        return sum(array.nbytes for array in arrays) + snapshot.live.nbytes

    def __len__(self) -> int:
        return self._snapshot.count

    def __contains__(self, id: object) -> bool:
        return self._find(id) is not None

    def ids(self) -> list[int]:
        """The ids present, ascending."""
        snapshot = self._snapshot
        return np.sort(snapshot.ids[snapshot.live_rows()]).tolist()

    def get(self, id: int) -> tuple[Codes, float]:
        """A copy of the code, int8[dimensions], and the scale of an id."""
        with self._lock:
            row = self._find(id)
            if row is None:
                raise KeyError(f"no vector of id {id!r}")
            return self._snapshot.codes[row].copy(), float(self._snapshot.scale[row])

    def vector(self, id: int) -> NDArray[np.float32]:
        """The unit vector, float32[dimensions], that the code of an id stands for."""
        code, scale = self.get(id)
        return code * np.float32(scale)

    def upsert(self, id: int, vector: NDArray[np.float32]) -> None:
        """Adds a vector, or replaces the one of the same id."""
        code, scale = self._encode("vector", vector)
        self._store([_check_id(id)], code[None], np.array([scale], np.float32))

    def upsert_code(self, id: int, code: Codes, scale: float) -> None:
        """Adds or replaces a vector given as its code, int8[dimensions], and its scale."""
        self.upsert_codes([id], np.asarray(code)[None], np.array([scale], np.float32))

    def upsert_codes(self, ids: Iterable[int], codes: Codes, scale: Scales) -> None:
        """Adds or replaces many: int8[n, dimensions] codes and float32[n] scales. Readers see all of them or none."""
        numbers = [_check_id(id) for id in ids]
        _check_codes(codes, scale, self._dimensions)
        if len(numbers) != len(codes):
            raise ConfigError(f"ids: expected one for each of {len(codes)} codes, got {len(numbers)}")
        self._store(numbers, codes, scale)

    def delete(self, id: int) -> bool:
        """Removes a vector; returns whether it was present."""
        number = _check_id(id)
        with self._lock:
            self._check_writable()
            row = self._row_of.pop(number, None)
            if row is None:
                return False
            live = self._snapshot.live.copy()
            live[row >> 3] &= 0xFF ^ (1 << (row & 7))
            self._publish(live, [row])
        return True

    def search(
        self, query: NDArray[np.float32], k: int = 50, filter: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The k vectors nearest to a query, float32[dimensions], as (id, cosine), best first.

        filter, where given, names the only ids that may be returned; ids in it that are not present are passed over.
        All of min(k, vectors that pass) are returned.
        """
        code, scale = self._encode("query", query)
        return self._search(code, scale, k, filter)

    def search_code(
        self, code: Codes, scale: float, k: int = 50, filter: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The same search for a query that is a code already, int8[dimensions], with its scale."""
        code = np.asarray(code)
        _check_codes(code[None], np.array([scale], np.float32), self._dimensions)
        return self._search(np.ascontiguousarray(code), float(scale), k, filter)

    def save(self, path: Path | str, stamp: int) -> None:
        """Writes the vectors, by ascending id, with a stamp that says what they were built from; replaces atomically.

        stamp: an integer from 0 to 2^64 - 1. StoreError names a disk that refuses.
        """
        snapshot = self._snapshot
        rows = snapshot.live_rows()
        rows = rows[np.argsort(snapshot.ids[rows])]
        table = VectorTable(snapshot.ids[rows], snapshot.scale[rows], snapshot.codes[rows])
        write_vectors(Path(path), _check_id(stamp, "stamp"), table)

    @classmethod
    def load(cls, path: Path | str, stamp: int, dimensions: int = EMBEDDING_DIMENSIONS) -> VectorStore | None:
        """The store that save wrote, or None if there is no file or its stamp or dimensions are not the ones asked for.

        StoreDamagedError where the file is truncated, fails its checksum or is no vector file.
        """
        store = cls(dimensions)
        table = read_vectors(Path(path), _check_id(stamp, "stamp"), dimensions)
        if table is None:
            return None
        store._adopt(table)
        return store

    def _find(self, id: object) -> int | None:
        """Row of a present id."""
        if self._writable:
            return self._row_of.get(id)
        return operator.index(id) if hasattr(id, "__index__") and 0 <= id < self._snapshot.count else None

    def _encode(self, name: str, vector: NDArray[np.float32]) -> tuple[Codes, float]:
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (self._dimensions,):
            raise ConfigError(f"{name}: expected float32[{self._dimensions}], got {_described(vector)}")
        if not vector.any() or not np.isfinite(vector).all():
            raise ConfigError(f"{name}: expected finite numbers that are not all zero; a vector needs a direction")
        return quantised(vector)

    def _search(self, code: Codes, scale: float, k: int, filter: Iterable[int] | None) -> list[tuple[int, float]]:
        wanted = _check_k(k)
        if filter is None:
            snapshot = self._snapshot
            allowed = None if snapshot.count == len(snapshot.ids) else snapshot.live
        else:
            snapshot, allowed = self._allowed(filter)
        if snapshot.count == 0:
            return []
        rows, scores = _top_rows(snapshot, code, scale, min(wanted, snapshot.count), allowed)
        ids = snapshot.ids[rows]
        order = np.lexsort((ids, -scores))[:wanted]
        return list(zip(ids[order].tolist(), scores[order].tolist(), strict=True))

    def _allowed(self, filter: Iterable[int]) -> tuple[_Snapshot, NDArray[np.uint8]]:
        """A snapshot and the bitmap of its rows whose ids the filter names, both of one moment."""
        ids = filter.tolist() if isinstance(filter, np.ndarray) else list(filter)
        with self._lock:
            snapshot = self._snapshot
            rows = [row for row in map(self._find, ids) if row is not None]
        mask = np.zeros(len(snapshot.ids), np.uint8)
        mask[rows] = 1
        return snapshot, np.packbits(mask, bitorder="little")

    def _check_writable(self) -> None:
        if not self._writable:
            raise StoreReadOnlyError(
                "this store lies over a catalogue's codes, which do not change; use one of its own"
            )

    def _store(self, ids: list[int], codes: Codes, scale: Scales) -> None:
        latest = {id: position for position, id in enumerate(ids)}  # of an id given twice, the last one holds
        with self._lock:
            self._check_writable()
            rows = self._take_rows(len(latest))
            positions = list(latest.values())
            self._codes[rows] = codes[positions]
            self._scale[rows] = scale[positions]
            self._ids[rows] = list(latest)
            live = np.zeros((self._used + 7) // 8, np.uint8)
            live[: len(self._snapshot.live)] = self._snapshot.live
            retired = []
            for id, row in zip(latest, rows, strict=True):
                live[row >> 3] |= 1 << (row & 7)
                old = self._row_of.get(id)
                if old is not None:
                    live[old >> 3] &= 0xFF ^ (1 << (old & 7))
                    retired.append(old)
                self._row_of[id] = row
            self._publish(live, retired)

    def _adopt(self, table: VectorTable) -> None:
        """Takes over the arrays of a file, into a store that is empty."""
        self._ids, self._scale, self._codes = table.ids, table.scale, table.codes
        self._used = len(table.ids)
        self._row_of = dict(zip(table.ids.tolist(), range(self._used), strict=True))
        self._snapshot = self._view(_all_live(self._used))

    def _take_rows(self, wanted: int) -> list[int]:
        """Rows that no snapshot in use shows as live; the caller holds the lock."""
        while self._retired and self._retired[0][0]() is None:
            self._free.extend(self._retired.popleft()[1])
        rows = [self._free.pop() for _ in range(min(wanted, len(self._free)))]
        fresh = wanted - len(rows)
        if self._used + fresh > len(self._ids):
            self._allocate(max(self._used + fresh, 2 * len(self._ids), _FIRST_CAPACITY))
        rows.extend(range(self._used, self._used + fresh))
        self._used += fresh
        return rows

    def _allocate(self, capacity: int) -> None:
        """Arrays of a new capacity with the rows used so far; snapshots keep the arrays that they were made of."""
        old = (self._codes, self._scale, self._ids) if self._used else ()
        self._codes = np.empty((capacity, self._dimensions), np.int8)
        self._scale = np.empty(capacity, np.float32)
        self._ids = np.empty(capacity, np.uint64)
        for source, target in zip(old, (self._codes, self._scale, self._ids), strict=False):
            target[: self._used] = source[: self._used]

    def _view(self, live: NDArray[np.uint8]) -> _Snapshot:
        used = self._used
        return _Snapshot(self._codes[:used], self._scale[:used], self._ids[:used], live, len(self._row_of))

    def _publish(self, live: NDArray[np.uint8], retired: list[int]) -> None:
        superseded = self._snapshot
        self._snapshot = self._view(live)
        # Also where nothing was retired: a reader of this snapshot may hold rows that a later entry gives up.
        self._retired.append((weakref.ref(superseded), retired))


def _top_rows(
    snapshot: _Snapshot, code: Codes, scale: float, k: int, allowed: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """At least the k best rows, and all rows that tie with the k-th: the kernel orders ties by row, the caller by id."""
    room = min(k + 1, len(snapshot.ids))
    while True:
        rows, scores = np.empty(room, np.uint32), np.empty(room, np.float32)
        found = kernels.search(snapshot.codes, snapshot.scale, code, scale, allowed, room, rows, scores)
        if found < room or room == len(snapshot.ids) or scores[found - 1] < scores[k - 1]:
            return rows[:found], scores[:found]
        room = min(2 * room, len(snapshot.ids))


def _all_live(rows: int) -> NDArray[np.uint8]:
    return np.packbits(np.ones(rows, np.uint8), bitorder="little")


def _described(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _check_id(id: int, name: str = "id") -> int:
    """The number as a Python int if it is an integer (not a bool) from 0 to 2^64 - 1."""
    if isinstance(id, (bool, np.bool_)) or not hasattr(id, "__index__") or not 0 <= operator.index(id) <= MAX_ID:
        raise ConfigError(f"{name}: expected an integer from 0 to 2^64 - 1, got {id!r}")
    return operator.index(id)


def _check_k(k: int) -> int:
    if isinstance(k, (bool, np.bool_)) or not hasattr(k, "__index__") or operator.index(k) < 1:
        raise ConfigError(f"k: expected an integer of 1 or more, got {k!r}")
    return operator.index(k)


def _check_codes(codes: Codes, scale: Scales, dimensions: int) -> None:
    """int8[n, dimensions] without -128, which is no code, and float32[n] above 0, at most 1."""
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.shape[1:] != (dimensions,):
        raise ConfigError(f"codes: expected int8[n, {dimensions}], got {_described(codes)}")
    if not isinstance(scale, np.ndarray) or scale.dtype != np.float32 or scale.shape != codes.shape[:1]:
        raise ConfigError(f"scale: expected float32[{len(codes)}], one for each code, got {_described(scale)}")
    if codes.size and codes.min() < -127:
        raise ConfigError("codes: expected values from -127 to 127, got -128")
    if not ((scale > 0) & (scale <= 1)).all():
        raise ConfigError("scale: expected 1 / ||codes||: above 0, at most 1")
