"""The five encodings of a unit vector, from float32 to signs, with the cosine that each is allowed to cost.

    encoding   bytes   layout                                              floor
    float32     1536   384 float32, little-endian                          1
    float16      768   384 float16, little-endian                           .9999
    int8         388   384 codes int8 in [-127, 127], scale float32         .999
    pq48          48   quantiser.ProductCode                                .93
    one_bit       40   quantiser.SignCode: 320 signs                        .92

A floor is kept by every vector, not by the mean: who moves a vector measures what it would become, and leaves it where
it is if that is below the floor. `python -m bench.compression` measures what share of real vectors can go where.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.errors import ConfigError
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.quantiser import PRODUCT_BYTES, SIGN_BYTES, ProductCode, Quantiser, SignCode, check_vectors

Vectors = NDArray[np.float32]
Encoded = NDArray[np.uint8]

_INT8_ROW = np.dtype([("codes", "i1", EMBEDDING_DIMENSIONS), ("scale", "<f4")])


class Encoding(enum.IntEnum):
    """How a vector is held, the most precise first. The numbers are stored."""

    FLOAT32 = 0
    FLOAT16 = 1
    INT8 = 2
    PQ48 = 3
    ONE_BIT = 4

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name.lower()

    @property
    def coarse(self) -> bool:
        """Whether it needs a codebook, and loses more than rounding."""
        return self > Encoding.INT8


BYTES = {
    Encoding.FLOAT32: 4 * EMBEDDING_DIMENSIONS,
    Encoding.FLOAT16: 2 * EMBEDDING_DIMENSIONS,
    Encoding.INT8: _INT8_ROW.itemsize,
    Encoding.PQ48: PRODUCT_BYTES,
    Encoding.ONE_BIT: SIGN_BYTES,
}
"""Bytes of one encoded vector."""
FLOORS = {
    Encoding.FLOAT32: 1.0,
    Encoding.FLOAT16: 0.9999,
    Encoding.INT8: 0.999,
    Encoding.PQ48: 0.93,
    Encoding.ONE_BIT: 0.92,
}
"""The least cosine of a vector in an encoding to what it was before it lost precision."""


class VectorBytesError(ValueError):
    """Bytes that are no vector of the encoding that they are said to have."""


def coarse_code(encoding: Encoding, quantiser: Quantiser | None) -> ProductCode | SignCode:
    """The code of a coarse encoding. Raises ConfigError without a codebook, or for an encoding that is not coarse."""
    if not encoding.coarse:
        raise ConfigError(f"encoding: expected pq48 or one_bit, got {encoding.label}")
    if quantiser is None:
        raise ConfigError(f"{encoding.label}: expected a codebook; open a bundle that carries one")
    return quantiser.product if encoding is Encoding.PQ48 else quantiser.signs


def encode(encoding: Encoding, vectors: Vectors, quantiser: Quantiser | None = None) -> Encoded:
    """uint8[n, BYTES[encoding]] of unit vectors float32[n, 384].

    quantiser: needed for pq48 and one_bit. Raises ConfigError for another shape or type, for numbers that are not
    finite, for a zero vector, and for a missing codebook.
    """
    vectors = _checked(vectors)
    if encoding.coarse:
        return coarse_code(encoding, quantiser).encode(vectors)
    if encoding is Encoding.INT8:
        rows = np.empty(len(vectors), _INT8_ROW)
        codes, scale = np.empty(vectors.shape, np.int8), np.empty(len(vectors), np.float32)
        kernels.quantise(vectors, codes, scale)
        rows["codes"], rows["scale"] = codes, scale
        return rows.view(np.uint8).reshape(len(vectors), BYTES[encoding])
    stored = vectors.astype("<f4" if encoding is Encoding.FLOAT32 else "<f2")
    return stored.view(np.uint8).reshape(len(vectors), BYTES[encoding])


def decode(encoding: Encoding, encoded: Encoded, quantiser: Quantiser | None = None) -> Vectors:
    """Unit vectors float32[n, 384] of encoded ones, uint8[n, BYTES[encoding]].

    Raises VectorBytesError for bytes that encode() cannot have written (another length, not finite, no direction, a
    scale that is not the code's), ConfigError for a missing codebook.
    """
    width = BYTES[encoding]
    if (
        not isinstance(encoded, np.ndarray)
        or encoded.dtype != np.uint8
        or encoded.ndim != 2
        or encoded.shape[1] != width
    ):
        found = f"{encoded.dtype}{list(encoded.shape)}" if isinstance(encoded, np.ndarray) else type(encoded).__name__
        raise VectorBytesError(f"{encoding.label}: expected uint8[n, {width}], got {found}")
    if encoding.coarse:
        vectors = coarse_code(encoding, quantiser).decode(encoded)
        if not vectors.any(axis=1).all():
            raise VectorBytesError(f"{encoding.label}: expected codes that stand for a direction, got one for none")
        return vectors
    rows = np.ascontiguousarray(encoded)
    with np.errstate(all="ignore"):  # whatever the bytes make, overflow and NaN included, is judged by its length
        if encoding is Encoding.INT8:
            table = rows.view(_INT8_ROW)[:, 0] if len(rows) else np.empty(0, _INT8_ROW)
            vectors = table["codes"] * table["scale"][:, None]
            if np.any(table["codes"] == -128):
                raise VectorBytesError("int8: expected codes from -127 to 127, got -128")
        else:
            vectors = rows.view("<f4" if encoding is Encoding.FLOAT32 else "<f2").astype(np.float32)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-2):
        raise VectorBytesError(f"{encoding.label}: expected unit vectors, got one of another length")
    return vectors.astype(np.float32)


def cosines(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """float64[n]: cosine of each row of float32[n, 384] to the row of the same number; 0 for a zero row."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.where(lengths > 0, lengths, np.inf)


def _checked(vectors: Vectors) -> Vectors:
    if not check_vectors(vectors).any(axis=1).all():
        raise ConfigError("vectors: expected numbers that are not all zero; a vector needs a direction")
    return np.ascontiguousarray(vectors)
