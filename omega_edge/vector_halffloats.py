"""The vectors of a store as half floats, in a file beside it: cold, but for the few rows that a search rescores.

Rows that came from the file lie in its private map; a row's checksum is compared when it is first read, so opening reads
none. A row that fails is replaced by what its code stands for, and counted. Rows written since lie in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels

RESCORED_BEYOND_K = 8
"""Candidates that a search rescores beyond k: 58 for k = 50. On real titles 64 have the same recall, .9998."""

Vectors = NDArray[np.float16]
FoundRows = NDArray[np.uint32]
Standins = Callable[[FoundRows], Vectors]


class HalfFloats:
    """float16[n, dimensions] by row, the first of them from a file."""

    __slots__ = ("_base", "_checksums", "_sound", "_tail", "damaged")

    def __init__(self, base: Vectors, checksums: NDArray[np.uint32], sound: NDArray[np.bool_], tail: Vectors) -> None:
        """base [b, dimensions] with the CRC-32 of each row's bytes and whether it was compared; tail: rows from b on."""
        self._base, self._checksums, self._sound, self._tail = base, checksums, sound, tail
        self.damaged: set[int] = set()

    @classmethod
    def empty(cls, dimensions: int) -> HalfFloats:
        """No rows."""
        return cls.over(np.empty((0, dimensions), np.float16), np.empty(0, np.uint32))

    @classmethod
    def over(cls, base: Vectors, checksums: NDArray[np.uint32]) -> HalfFloats:
        """The rows of a file, none of them compared yet. base is written to: a private map, or the caller's own."""
        return cls(base, checksums, np.zeros(len(base), np.bool_), np.empty((0, base.shape[1]), np.float16))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, room for growth included."""
        return self._base.nbytes + self._tail.nbytes

    def head(self, n: int) -> HalfFloats:
        """A view of the first n rows."""
        b = len(self._base)
        view = HalfFloats(self._base[:n], self._checksums[:n], self._sound[:n], self._tail[: max(n - b, 0)])
        view.damaged = self.damaged
        return view

    def grow(self, capacity: int) -> None:
        """Room for so many rows; views keep the arrays that they were made of."""
        tail = np.empty((max(capacity - len(self._base), 0), self._base.shape[1]), np.float16)
        tail[: len(self._tail)] = self._tail
        self._tail = tail

    def put(self, rows: NDArray[np.intp], vectors: Vectors) -> None:
        """Writes rows."""
        in_base = rows < len(self._base)
        self._base[rows[in_base]] = vectors[in_base]
        self._sound[rows[in_base]] = True
        self._tail[rows[~in_base] - len(self._base)] = vectors[~in_base]

    def take(self, rows: FoundRows, standins: Standins) -> Vectors:
        """A copy of some rows, float16[m, dimensions]. standins: the vectors that rows' codes stand for."""
        b = len(self._base)
        if not b:
            return self._tail[rows]
        self._compare(rows[rows < b], standins)
        vectors = np.empty((len(rows), self._base.shape[1]), np.float16)
        in_base = rows < b
        vectors[in_base] = self._base[rows[in_base]]
        vectors[~in_base] = self._tail[rows[~in_base] - b]
        return vectors

    def rescore(
        self, query: NDArray[np.float32], rows: FoundRows, k: int, standins: Standins
    ) -> tuple[FoundRows, NDArray[np.float32]]:
        """The k best of some rows by their vectors' cosines to a query float32[dimensions], and those cosines."""
        k = min(k, len(rows))
        found, scores = np.empty(k, np.uint32), np.empty(k, np.float32)
        if len(self._base) and len(self._tail) and (rows >= len(self._base)).any():
            rows = np.sort(rows)  # for ties to be by row
            vectors = self.take(rows, standins)
            count = kernels.rescore(vectors, query, np.arange(len(rows), dtype=np.uint32), k, found, scores)
            return rows[found[:count]], scores[:count]
        if len(self._base):
            self._compare(rows, standins)
        count = kernels.rescore(self._base if len(self._base) else self._tail, query, rows, k, found, scores)
        return found[:count], scores[:count]

    def _compare(self, rows: FoundRows, standins: Standins) -> None:
        """Compares the checksums of rows of the file that were not read before; a damaged row gets its stand-in."""
        for row in rows[~self._sound[rows]].tolist():
            if zlib.crc32(self._base[row]) != self._checksums[row]:
                self._base[row] = standins(np.array([row], np.uint32))[0]
                self.damaged.add(row)
            self._sound[row] = True
