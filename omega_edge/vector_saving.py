"""A snapshot of a vector store, written to its files by ascending id, a thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.vector_calibration import TWO_STAGE_MIN_VECTORS, Plan
from omega_edge.vector_file import SECTIONS, VectorHeader, remove_halffloats, write_halffloats, write_vectors
from omega_edge.vector_rows import CodeSnapshot, FoundRows, Snapshot, VectorArrays, sign_blocks

_ROWS_AT_ONCE = 1024  # a multiple of a block of signs
_SPARE_SHARE = 128  # room for changes after a load: under 1 % of the file

assert _ROWS_AT_ONCE % 32 == 0


def save_snapshot(
    path: Path, stamp: int, snapshot: Snapshot | CodeSnapshot, plan: Plan, recall: float, dimensions: int
) -> None:
    """Writes the files. recall: what the plan was made to reach. StoreError names a disk that refuses."""
    rows = snapshot.live_rows()
    rows = rows[np.argsort(snapshot.ids_of(rows))].astype(np.uint32)
    count, large = len(rows), len(rows) >= TWO_STAGE_MIN_VECTORS
    with_signs = large and snapshot.signed
    capacity = -(-(count + count // _SPARE_SHARE) // 32) * 32 if large else count
    checksum = None
    if snapshot.halffloats is not None:
        checksum = write_halffloats(path, dimensions, count, _halffloats(snapshot, rows))
    header = VectorHeader(
        dimensions, count, capacity, stamp, with_signs, checksum, plan if plan.vectors and large else None, recall
    )
    write_vectors(path, header, _sections(snapshot, rows, header))
    if checksum is None:
        remove_halffloats(path)


def _sections(
    snapshot: Snapshot | CodeSnapshot, rows: FoundRows, header: VectorHeader
) -> Iterator[Iterator[NDArray]]:
    for position, shape in enumerate(header.shapes()):
        yield _section(snapshot, rows, header, position, shape)


def _section(
    snapshot: Snapshot | CodeSnapshot, rows: FoundRows, header: VectorHeader, position: int, shape: tuple[int, ...]
) -> Iterator[NDArray]:
    """One section of the file, in parts; the last part is the zeros of rows to spare."""
    written = 0
    for first in range(0, len(rows), _ROWS_AT_ONCE) if shape[0] else ():
        part = _column(snapshot, rows[first : first + _ROWS_AT_ONCE], header, position)
        written += len(part)
        yield part
    if written < shape[0]:
        yield np.zeros((shape[0] - written, *shape[1:]), part.dtype)


def _column(
    snapshot: Snapshot | CodeSnapshot, rows: FoundRows, header: VectorHeader, position: int
) -> NDArray:
    """Some rows of one section."""
    if SECTIONS[position] == "signs":
        blocks = np.zeros((sign_blocks(len(rows)), 4 * header.dimensions), np.uint8)
        kernels.put_signs(snapshot.codes_of(rows), 0, len(rows), blocks)
        return blocks
    if isinstance(snapshot, Snapshot):
        return getattr(snapshot.arrays, SECTIONS[position])[rows]
    arrays = VectorArrays.empty(len(rows), header.dimensions, False)
    arrays.put(range(len(rows)), snapshot.codes_of(rows), snapshot.scales_of(rows), snapshot.ids_of(rows))
    return getattr(arrays, SECTIONS[position])


def _halffloats(snapshot: Snapshot, rows: FoundRows) -> Iterator[NDArray[np.float16]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        yield snapshot.halffloats.take(
            part, lambda rows: snapshot.codes_of(rows) * snapshot.scales_of(rows)[:, None]
        )
