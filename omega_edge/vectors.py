"""Vectors by id: cosine search over 8-bit codes, with filter, upsert and delete.

A store is derived data: it holds no truth that its owner could not rebuild, and its files are a cache that carries the
stamp of what it was built from.

Readers and the writer do not wait for each other. A reader takes the current snapshot, an immutable view of the rows
that were live when it was published; the writer puts every new vector into a row that no snapshot still in use shows as
live, then publishes the next snapshot. A row given up by a delete or a replacement is used again as soon as the
snapshots that showed it are gone. Only what has to look ids up, a filter or get, takes a lock, for as long as that takes.

An insert, a replacement and a delete cost the same however many vectors there are, room for growth amortised. What a
measurement for two-stage search costs is stated in vector_calibration.py.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.errors import ConfigError, StoreError, StoreReadOnlyError
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.vector_arguments import (
    MAX_ID,
    as_ids,
    check_code,
    check_codes,
    check_directions,
    check_id,
    check_k,
    check_recall,
    described,
    is_id,
)
from omega_edge.vector_calibration import CALIBRATED_K, TWO_STAGE_MIN_VECTORS, Calibration
from omega_edge.vector_file import MappedVectors, map_vectors
from omega_edge.vector_halffloats import RESCORED_BEYOND_K, HalfFloats
from omega_edge.vector_ids import IdTable
from omega_edge.vector_rows import Bits, Codes, CodeSnapshot, FoundRows, RowWriter, Scales, Snapshot, VectorArrays
from omega_edge.vector_saving import save_snapshot

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class VectorStats:
    """What a store holds and how it searches."""

    count: int
    capacity: int  # rows there is room for
    resident_bytes: int  # arrays and look-up table, room for growth included; without the half floats
    halffloat_bytes: int
    search: str  # "exact" or "two-stage"
    candidates: int  # of a two-stage search of k = 50 at most, else 0
    recall: float  # at 50, against exact search, measured on samples; 1 where exact
    reason: str  # why the search is exact, else empty
    damaged_vectors: int  # rows of the half floats' file that failed their checksum and stand by their codes


def quantised(vector: NDArray[np.float32]) -> tuple[Codes, float]:
    """Code int8[d] and scale of one vector float32[d]. Raises ValueError for NaN, infinity or zero."""
    codes, scale = np.empty((1, len(vector)), np.int8), np.empty(1, np.float32)
    kernels.quantise(_contiguous(vector)[None], codes, scale)
    return codes[0], scale.item()


def _contiguous(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector as the kernels take it; a copy only where it must be one."""
    flags = vector.flags
    return vector if flags.c_contiguous and flags.aligned else np.array(vector)


class VectorStore:
    """Vectors by id, searched exactly, or in two stages where that is faster and keeps a stated recall.

    ids are integers from 0 to 2^64 - 1. Vectors are float32[dimensions], finite and not zero; their direction alone is
    kept, as int8[dimensions] codes in [-127, 127] and a scale of 1 / ||codes||_2. Results are ordered by score
    descending, then id ascending, whatever the order of the calls that filled the store.

    recall: the share of the true 50 nearest, by the codes, that a search of k = 50 finds on average, above 0, at most 1;
    1 means always exact. Below 4,096 vectors, and wherever that share is not reached, searches are exact anyway.

    keep_vectors: keep each vector beside its code as float16[dimensions] too. A search then takes the k + 8 best by the
    codes and orders them by the vectors themselves; scores are cosines of the vectors.

    Any number of threads may read while one writes; writers take turns. ConfigError, a ValueError, names an argument
    that is not acceptable; KeyError an id that is not present; StoreError a store that was closed.
    """

    def __init__(
        self,
        dimensions: int = EMBEDDING_DIMENSIONS,
        *,
        recall: float | None = None,
        keep_vectors: bool = False,
    ) -> None:
        """recall: None for .99, or .999 where vectors are kept."""
        if not isinstance(dimensions, int) or dimensions < 32 or dimensions > 1024 or dimensions % 32:
            raise ConfigError(f"dimensions: expected a multiple of 32 from 32 to 1024, got {dimensions!r}")
        self._dimensions = dimensions
        self._recall = check_recall(recall, keep_vectors)
        self._calibration = Calibration(self._recall)
        self._writing = threading.Lock()  # held by the one writer; taken before the other
        self._lock = threading.Lock()  # held while ids are looked up, and while they and the snapshot change
        self._saving = threading.Lock()  # a save writes two files that belong together
        self._unverified: MappedVectors | None = None
        halffloats = HalfFloats.empty(dimensions) if keep_vectors else None
        self._writer: RowWriter | None = self._row_writer(VectorArrays.empty(0, dimensions, False), 0, halffloats)
        self._index: IdTable | None = None
        self._snapshot: Snapshot | CodeSnapshot | None = self._writer.snapshot

    @classmethod
    def over(cls, codes: Codes, scale: Scales) -> VectorStore:
        """A read-only store over int8[n, dimensions] codes and float32[n] scales, whose ids are row numbers.

        The arrays are used, not copied: the caller leaves them as they are while the store lives.
        """
        if codes.ndim != 2:
            raise ConfigError(f"codes: expected int8[n, dimensions], got {codes.ndim} dimension(s)")
        store = cls(int(codes.shape[1]), recall=1.0)
        check_codes(codes, scale, store._dimensions)
        store._writer, store._snapshot = None, CodeSnapshot(codes, scale)
        return store

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    @property
    def count(self) -> int:
        """Number of vectors present."""
        return self._readable().count

    @property
    def nbytes(self) -> int:
        """Bytes that hold the codes and find them by id, room for growth included; for a store over given arrays,
        theirs. Half floats, which lie in a file, are not counted."""
        self._readable()
        with self._lock:
            snapshot = self._open_snapshot()
            if isinstance(snapshot, CodeSnapshot):
                return snapshot.codes.nbytes + snapshot.scale.nbytes
            return self._writer.nbytes + (self._index.nbytes if self._index is not None else 0)

    def stats(self) -> VectorStats:
        """What the store holds and how it searches, each as it is now."""
        snapshot, plan, writer = self._readable(), self._calibration.plan, self._writer
        halffloats = snapshot.halffloats
        return VectorStats(
            snapshot.count,
            snapshot.rows if writer is None else len(writer.ids),
            self.nbytes,
            halffloats.nbytes if halffloats is not None else 0,
            "two-stage" if plan.candidates else "exact",
            plan.candidates,
            plan.recall,
            plan.reason,
            len(halffloats.damaged) if halffloats is not None else 0,
        )

    def __len__(self) -> int:
        return self._readable().count

    def __contains__(self, id: object) -> bool:
        self._readable()
        with self._lock:
            return is_id(id) and self._row_of(self._open_snapshot(), operator.index(id)) >= 0

    def ids(self) -> list[int]:
        """The ids present, ascending."""
        snapshot = self._readable()
        return np.sort(snapshot.ids_of(snapshot.live_rows())).tolist()

    def get(self, id: int) -> tuple[Codes, float]:
        """A copy of the code, int8[dimensions], and the scale of an id."""
        snapshot, row = self._present(id)
        return snapshot.codes_of(row)[0], snapshot.scales_of(row).item()

    def vector(self, id: int) -> NDArray[np.float32]:
        """The unit vector, float32[dimensions], of an id: what its code stands for, or, where vectors are kept, that."""
        snapshot, row = self._present(id)
        if snapshot.halffloats is None:
            return _decoded(snapshot, row)[0]
        vector = snapshot.halffloats.take(row, lambda rows: _decoded(snapshot, rows))[0].astype(np.float32)
        return vector / np.linalg.norm(vector)

    def upsert(self, id: int, vector: NDArray[np.float32]) -> None:
        """Adds a vector, or replaces the one of the same id."""
        code, scale = self._encoded("vector", vector)
        self._store([check_id(id)], code[None], np.array([scale], np.float32), vector)

    def upsert_code(self, id: int, code: Codes, scale: float) -> None:
        """Adds or replaces a vector given as its code, int8[dimensions], and its scale."""
        code = check_code(code, scale, self._dimensions)
        self._store([check_id(id)], code[None], np.array([scale], np.float32), None)

    def upsert_codes(self, ids: Iterable[int], codes: Codes, scale: Scales) -> None:
        """Adds or replaces many: int8[n, dimensions] codes and float32[n] scales. Readers see all of them or none."""
        numbers = [check_id(id) for id in ids]
        check_codes(codes, scale, self._dimensions)
        check_directions(codes)
        if len(numbers) != len(codes):
            raise ConfigError(f"ids: expected one for each of {len(codes)} codes, got {len(numbers)}")
        self._store(numbers, codes, scale, None)

    def delete(self, id: int) -> bool:
        """Removes a vector; returns whether it was present."""
        number = check_id(id)
        with self._writing:
            writer = self._writable()
            with self._lock:
                row = self._table(writer).remove(number)
                if row < 0:
                    return False
                self._snapshot = writer.publish((), (), [row])
            self._calibration.note(writer.snapshot, 1)
        return True

    def search(
        self, query: NDArray[np.float32], k: int = 50, filter: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The k vectors nearest to a query, float32[dimensions], as (id, cosine), best first.

        filter, where given, names the only ids that may be returned; ids in it that are not present are passed over.
        All of min(k, vectors that pass) are returned.
        """
        ids, scores = self.search_arrays(query, k, filter)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def search_arrays(
        self, query: NDArray[np.float32], k: int = 50, filter: Iterable[int] | None = None
    ) -> tuple[NDArray[np.uint64], Scales]:
        """The same as ids, uint64[found], and cosines, float32[found]."""
        code, scale = self._encoded("query", query)
        return self._nearest(code, scale, k, filter, query)

    def search_code(
        self, code: Codes, scale: float, k: int = 50, filter: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The same search for a query that is a code already, int8[dimensions], with its scale."""
        ids, scores = self._nearest(check_code(code, scale, self._dimensions), float(scale), k, filter, None)
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def calibrate(self) -> None:
        """Measures now how many candidates the recall needs, where the store is large enough to search by them.

        Writes do it too, each a part of it, and a file keeps it; this is for a store that is read without being written.
        """
        with self._writing:
            writer = self._writable()
            self._calibration.finish(writer.snapshot)

    def save(self, path: Path | str, stamp: int) -> None:
        """Writes the vectors, by ascending id, with a stamp that says what they were built from; replaces atomically.

        stamp: an integer from 0 to 2^64 - 1. Kept vectors go to a second file, of the same name and .float16, which is
        replaced first: should the power fail between the two, load raises StoreDamagedError. StoreError names a disk
        that refuses. Saves of one store take turns; writers and readers do not wait for them.
        """
        number = check_id(stamp, "stamp")
        with self._saving:
            plan = self._calibration.plan
            save_snapshot(Path(path), number, self._readable(), plan, self._recall, self._dimensions)

    @classmethod
    def load(
        cls,
        path: Path | str,
        stamp: int,
        dimensions: int = EMBEDDING_DIMENSIONS,
        *,
        recall: float | None = None,
        keep_vectors: bool = False,
    ) -> VectorStore | None:
        """The store that save wrote, or None if there is no file, its stamp or dimensions are not the ones asked for, or
        it was saved without the vectors to keep.

        The files are mapped, not read: headers and sizes are checked here, the rest by verify, which the first use
        calls. StoreDamagedError where one is truncated, fails a checksum or is no vector file.
        """
        store = cls(dimensions, recall=recall, keep_vectors=keep_vectors)
        mapped = map_vectors(Path(path), check_id(stamp, "stamp"), dimensions, keep_vectors)
        if mapped is None:
            return None
        store._unverified, store._snapshot = mapped, None
        return store

    def verify(self) -> None:
        """Compares the checksums of a loaded file's vectors, as the first use would: StoreDamagedError where they fail."""
        self._readable()

    def close(self) -> None:
        """Lets go of memory and files. What is called afterwards raises StoreError; a search under way ends well."""
        with self._writing, self._lock:
            self._snapshot = self._writer = self._unverified = self._index = None

    def _readable(self) -> Snapshot | CodeSnapshot:
        """The current snapshot, verified; StoreError if the store was closed."""
        snapshot = self._snapshot
        return snapshot if snapshot is not None else self._adopted()

    def _adopted(self) -> Snapshot:
        """The first snapshot of a loaded store, whose file is verified now."""
        with self._lock:
            if self._snapshot is None:
                mapped = self._unverified
                if mapped is None:
                    raise StoreError("this vector store was closed; make or load another")
                mapped.verify()
                header = mapped.header
                self._writer = self._row_writer(mapped.arrays, header.count, mapped.halffloats)
                if header.plan is not None and header.recall == np.float32(self._recall):
                    self._calibration = Calibration(self._recall, header.plan)
                self._snapshot, self._unverified = self._writer.snapshot, None
            return self._snapshot

    def _writable(self) -> RowWriter:
        """What to write with; the caller holds the writing lock."""
        self._readable()
        if self._writer is None:
            raise StoreReadOnlyError("this store lies over a catalogue's codes, which do not change; use one of its own")
        return self._writer

    def _row_writer(self, arrays: VectorArrays, used: int, halffloats: HalfFloats | None) -> RowWriter:
        signs_from = TWO_STAGE_MIN_VECTORS if self._recall < 1 else MAX_ID
        return RowWriter(arrays, used, self._dimensions, signs_from, halffloats)

    def _table(self, writer: RowWriter) -> IdTable:
        """Rows by id, made when first asked for: a search needs none."""
        if self._index is None:
            self._index = IdTable(writer.ids, writer.snapshot.live_rows().astype(np.uint32))
        return self._index

    def _row_of(self, snapshot: Snapshot | CodeSnapshot, id: int) -> int:
        """Row of an id, -1 if it is not present; the caller holds the lock."""
        if isinstance(snapshot, CodeSnapshot):
            return id if id < snapshot.count else -1
        return self._table(self._writer).find(id)

    def _present(self, id: int) -> tuple[Snapshot | CodeSnapshot, FoundRows]:
        """The snapshot and, as an array, the row of an id; KeyError if it is not present."""
        self._readable()
        with self._lock:
            snapshot = self._open_snapshot()
            row = self._row_of(snapshot, operator.index(id)) if is_id(id) else -1
        if row < 0:
            raise KeyError(f"no vector of id {id!r}")
        return snapshot, np.array([row], np.uint32)

    def _encoded(self, name: str, vector: NDArray[np.float32]) -> tuple[Codes, float]:
        if not isinstance(vector, np.ndarray) or vector.dtype != _FLOAT32 or vector.shape != (self._dimensions,):
            raise ConfigError(f"{name}: expected float32[{self._dimensions}], got {described(vector)}")
        try:
            return quantised(vector)
        except ValueError:
            raise ConfigError(
                f"{name}: expected finite numbers that are not all zero; a vector needs a direction"
            ) from None

    def _nearest(
        self, code: Codes, scale: float, k: int, filter: Iterable[int] | None, query: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.uint64], Scales]:
        if type(k) is not int or k < 1:
            k = check_k(k)
        if filter is None:
            snapshot = self._readable()
            passing = snapshot.count
            allowed = None if passing == snapshot.rows else snapshot.live
        else:
            snapshot, allowed, passing = self._allowed(filter)
        k = min(k, passing)
        if k == 0:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        plan = self._calibration.plan
        candidates = plan.candidates_for(k, passing) if plan.candidates and snapshot.signed else 0
        near = k if snapshot.halffloats is None else min(k + RESCORED_BEYOND_K, passing)
        rows, scores = _top_rows(snapshot, code, scale, near, allowed, passing, candidates)
        if candidates and self._calibration.audits_next():
            # Of a wider search, which has more candidates, this says nothing.
            usual = rows if k <= CALIBRATED_K else rows[:0]
            self._calibration.audit(snapshot, code, scale, allowed, passing, usual)
        if snapshot.halffloats is None:
            return snapshot.ids_of(rows), scores
        query = code * np.float32(scale) if query is None else _contiguous(query)
        rows, scores = snapshot.halffloats.rescore(query, rows, near, lambda rows: _decoded(snapshot, rows))
        rows, scores = _ties_by_id(snapshot, rows, scores)
        return snapshot.ids_of(rows[:k]), scores[:k]

    def _allowed(self, filter: Iterable[int]) -> tuple[Snapshot | CodeSnapshot, Bits, int]:
        """A snapshot, the bitmap of its rows whose ids the filter names, both of one moment, and how many they are."""
        ids = as_ids(filter)
        self._readable()
        with self._lock:
            snapshot = self._open_snapshot()
            if isinstance(snapshot, CodeSnapshot):
                rows = ids[ids < snapshot.count].astype(np.int64)
            else:
                rows = self._table(self._writer).find_many(ids)
                rows = rows[rows >= 0]
        bits = np.zeros((snapshot.rows + 7) // 8, np.uint8)
        np.bitwise_or.at(bits, rows >> 3, np.uint8(1) << (rows & 7).astype(np.uint8))
        return snapshot, bits, int(np.bitwise_count(bits).sum())

    def _open_snapshot(self) -> Snapshot | CodeSnapshot:
        """The current snapshot under the lock, where the store may have been closed since it was last looked at."""
        if self._snapshot is None:
            raise StoreError("this vector store was closed; make or load another")
        return self._snapshot

    def _store(self, ids: list[int], codes: Codes, scale: Scales, vector: NDArray[np.float32] | None) -> None:
        if not ids:
            return
        if len(ids) > 1 and len(set(ids)) < len(ids):
            latest = {id: position for position, id in enumerate(ids)}  # of an id given twice, the last one holds
            positions = list(latest.values())
            ids, codes, scale = list(latest), codes[positions], scale[positions]
        numbers = np.array(ids, np.uint64)
        with self._writing:
            writer = self._writable()
            halves = _halved(vector) if vector is not None and writer.keeps_vectors else None
            rows = writer.take(len(ids))
            writer.write(rows, np.ascontiguousarray(codes), scale, numbers, halves)
            with self._lock:
                table = self._table(writer)
                table.move_to(writer.ids)
                retired = table.put_many(ids, rows)
                self._snapshot = writer.publish(ids, rows, retired)
            self._calibration.note(writer.snapshot, len(ids))


def _top_rows(
    snapshot: Snapshot | CodeSnapshot, code: Codes, scale: float, k: int, allowed: Bits | None, passing: int,
    candidates: int,
) -> tuple[FoundRows, Scales]:
    """The k best rows, ties by id. The kernel orders ties by row: where ids do not ascend with the row, all rows that tie
    with the k-th are looked at."""
    if snapshot.ordered:
        rows, scores = np.empty(k, np.uint32), np.empty(k, np.float32)
        found = snapshot.search(code, scale, allowed, candidates, rows, scores)
        assert found == k
        return rows, scores
    room = min(k + 1, passing)
    while True:
        rows, scores = np.empty(room, np.uint32), np.empty(room, np.float32)
        found = snapshot.search(code, scale, allowed, candidates, rows, scores)
        if found < room or room == passing or scores[found - 1] < scores[k - 1]:
            break
        room = min(2 * room, passing)
    rows, scores = _ties_by_id(snapshot, rows[:found], scores[:found])
    return rows[:k], scores[:k]


def _ties_by_id(
    snapshot: Snapshot | CodeSnapshot, rows: FoundRows, scores: Scales
) -> tuple[FoundRows, Scales]:
    """Rows by score descending, which tie by row, so that they tie by id."""
    if snapshot.ordered or not (scores[1:] == scores[:-1]).any():
        return rows, scores
    order = np.lexsort((snapshot.ids_of(rows), -scores))
    return rows[order], scores[order]


def _decoded(snapshot: Snapshot | CodeSnapshot, rows: FoundRows) -> NDArray[np.float32]:
    """The unit vectors that the codes of rows stand for."""
    return snapshot.codes_of(rows) * snapshot.scales_of(rows)[:, None]


def _halved(vector: NDArray[np.float32]) -> NDArray[np.float16]:
    """The unit vector of a vector, float16[1, dimensions]. Scaled first, for its square to be a number."""
    scaled = vector / np.abs(vector).max()
    return (scaled / np.linalg.norm(scaled)).astype(np.float16)[None]
