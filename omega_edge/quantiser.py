"""Coarse codes of 384-dimensional unit vectors: 48 bytes by product quantisation, 40 bytes of signs; trained codebooks.

Both work in a space of their own. A vector x has the coordinates y = R^T (x - mean), where the columns of R are the
principal directions of real title vectors, ordered so that each run of eight carries about the same variance (the
parametric solution of optimised product quantisation: Ge, He, Ke, Sun, "Optimized Product Quantization", 2013).

    product code   byte m names the nearest of 256 centroids to y[8m : 8m + 8]
    sign code      bit j is the sign of what is still missing along direction d(j) after the bits before it, each worth
                   its step: s(j). Directions of large variance have several bits, most of the small ones none, which is
                   how bits are shared out among Gaussian components (reverse water-filling: Cover and Thomas,
                   "Elements of Information Theory", section 10.3). A sign for each of the 384 coordinates, the plain
                   1-bit code, cannot do so: it keeps sqrt(2 / pi) = .798 of the cosine, whatever the rotation.

A decoded vector is unit length again. What a codebook does to real vectors: `python -m bench.compression`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omega_edge.errors import CatalogError, ConfigError
from omega_edge.protocol import EMBEDDING_DIMENSIONS

PRODUCT_BYTES = 48
SIGNS = 320
"""A multiple of 32 at which held-out titles (.933) and the centroids of skills (.947) keep .92 of their cosine on average;
with 256 bits titles keep .918, and with 384 the code is no smaller than the product code."""
SIGN_BYTES = SIGNS // 8
CENTROIDS = 256
SUBSPACE = EMBEDDING_DIMENSIONS // PRODUCT_BYTES

SECTIONS: dict[str, tuple[str, tuple[int, ...]]] = {
    "quantiser_mean": ("<f4", (EMBEDDING_DIMENSIONS,)),
    "quantiser_rotation": ("|i1", (EMBEDDING_DIMENSIONS, EMBEDDING_DIMENSIONS)),
    "quantiser_rotation_scale": ("<f4", (EMBEDDING_DIMENSIONS,)),
    "quantiser_centroids": ("|i1", (PRODUCT_BYTES, CENTROIDS, SUBSPACE)),
    "quantiser_centroid_scale": ("<f4", (PRODUCT_BYTES,)),
    "quantiser_sign_directions": ("<u2", (SIGNS,)),
    "quantiser_sign_steps": ("<f4", (SIGNS,)),
}
"""The codebook's arrays, numpy dtype and shape, by the names that they have in a bundle. The rotation is values times
one scale a column, the centroids are values times one scale a subspace. 250,944 bytes in all."""

_LEAST_LENGTH = 1e-6
"""What is shorter before it is made unit has no direction: rounding decides it."""
_ROWS_AT_ONCE = 512
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32) * 2 - 1
"""float32[256, 8]: the eight signs of a byte, bit 0 first."""

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint8]


class CodebookFault(CatalogError):
    """Arrays that do not make a codebook; the message says which and why."""


@dataclass(frozen=True, slots=True)
class QueryTable:
    """What a query is worth against every value of every byte of a code: dot product = offset + sum of entries.

    entries: float32[width, 256].
    """

    offset: float
    entries: Vectors

    def dot_products(self, codes: Codes) -> Vectors:
        """float32[n]: the query's dot product with what codes uint8[n, width] stand for, before they are made unit."""
        width = len(self.entries)
        places = np.arange(width, dtype=np.intp) * 256
        found = np.empty(len(codes), np.float32)
        flat = np.ascontiguousarray(self.entries).reshape(-1)
        for start in range(0, len(codes), _ROWS_AT_ONCE):
            block = codes[start : start + _ROWS_AT_ONCE]
            found[start : start + len(block)] = flat[block + places].sum(axis=1, dtype=np.float32)
        return found + np.float32(self.offset)


class _Space:
    """The rotated space that both codes share."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.mean = arrays["quantiser_mean"]
        self._values = arrays["quantiser_rotation"]
        self._scale = arrays["quantiser_rotation_scale"]
        self.mean_square = float(self.mean @ self.mean)
        self.rotated_mean = self.rotated(self.mean[None])[0]

    def rotated(self, vectors: Vectors) -> Vectors:
        """R^T x for each row."""
        return (vectors @ self._values.astype(np.float32)) * self._scale

    def coordinates(self, vectors: Vectors) -> Vectors:
        """y = R^T (x - mean) for each row."""
        return self.rotated(vectors - self.mean)

    def unit_vectors(self, coordinates: Vectors) -> Vectors:
        """x = mean + R y for each row, made unit; a row of zeros where that has no direction."""
        vectors = (coordinates * self._scale) @ self._values.astype(np.float32).T + self.mean
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > _LEAST_LENGTH, lengths, np.inf)).astype(np.float32)

    def inverse_lengths(self, coordinates: Vectors) -> Vectors:
        """1 / ||mean + R y|| for each row, from y alone. R is orthonormal but for its 8-bit values: right to .002."""
        squares = (coordinates * coordinates).sum(axis=1) + 2 * coordinates @ self.rotated_mean + self.mean_square
        return (1 / np.sqrt(np.maximum(squares, _LEAST_LENGTH**2))).astype(np.float32)


class ProductCode:
    """48 bytes a vector: the nearest of 256 centroids in each of 48 subspaces of 8 dimensions."""

    width = PRODUCT_BYTES

    def __init__(self, space: _Space, arrays: Mapping[str, np.ndarray]) -> None:
        self._space = space
        self._values = arrays["quantiser_centroids"]
        self._scale = arrays["quantiser_centroid_scale"]

    def encode(self, vectors: Vectors) -> Codes:
        """uint8[n, 48] of unit vectors float32[n, 384]. Of two centroids equally near, the one of the lower number."""
        coordinates = self._space.coordinates(check_vectors(vectors))
        codes = np.empty((len(vectors), PRODUCT_BYTES), np.uint8)
        for place in range(PRODUCT_BYTES):
            centroids = self._values[place].astype(np.float32) * self._scale[place]
            part = coordinates[:, SUBSPACE * place : SUBSPACE * (place + 1)]
            codes[:, place] = np.argmin((centroids * centroids).sum(axis=1) - 2 * part @ centroids.T, axis=1)
        return codes

    def decode(self, codes: Codes) -> Vectors:
        """Unit vectors float32[n, 384] of codes uint8[n, 48]; zeros where a code stands for no direction."""
        return self._space.unit_vectors(self._coordinates(_checked_codes(codes, PRODUCT_BYTES)))

    def table(self, query: Vectors) -> QueryTable:
        """The table of a unit vector float32[384]."""
        rotated = self._space.rotated(check_vectors(query[None]))[0]
        parts = rotated.reshape(PRODUCT_BYTES, SUBSPACE, 1)
        entries = (self._values.astype(np.float32) @ parts)[:, :, 0] * self._scale[:, None]
        return QueryTable(float(query @ self._space.mean), entries)

    def inverse_lengths(self, codes: Codes) -> Vectors:
        """float32[n]: what dot products with codes uint8[n, 48] are to be multiplied by to be cosines."""
        return self._space.inverse_lengths(self._coordinates(_checked_codes(codes, PRODUCT_BYTES)))

    def _coordinates(self, codes: Codes) -> Vectors:
        values = self._values[np.arange(PRODUCT_BYTES), codes].astype(np.float32)
        return (values * self._scale[:, None]).reshape(len(codes), EMBEDDING_DIMENSIONS)


class SignCode:
    """40 bytes a vector: 320 signs, each of what its predecessors left along one direction."""

    width = SIGN_BYTES

    def __init__(self, space: _Space, arrays: Mapping[str, np.ndarray]) -> None:
        self._space = space
        self._directions = arrays["quantiser_sign_directions"].astype(np.intp)
        self._steps = arrays["quantiser_sign_steps"]

    def encode(self, vectors: Vectors) -> Codes:
        """uint8[n, 40] of unit vectors float32[n, 384]; nothing left counts as positive."""
        missing = self._space.coordinates(check_vectors(vectors))
        positive = np.empty((len(vectors), SIGNS), bool)
        for place, (direction, step) in enumerate(zip(self._directions.tolist(), self._steps, strict=True)):
            positive[:, place] = missing[:, direction] >= 0
            missing[:, direction] -= np.where(positive[:, place], step, -step)
        return np.packbits(positive, axis=1, bitorder="little")

    def decode(self, codes: Codes) -> Vectors:
        """Unit vectors float32[n, 384] of codes uint8[n, 40]; zeros where a code stands for no direction."""
        return self._space.unit_vectors(self._coordinates(_checked_codes(codes, SIGN_BYTES)))

    def table(self, query: Vectors) -> QueryTable:
        """The table of a unit vector float32[384]."""
        rotated = self._space.rotated(check_vectors(query[None]))[0]
        worth = (rotated[self._directions] * self._steps).reshape(SIGN_BYTES, 8)
        return QueryTable(float(query @ self._space.mean), worth @ _BITS.T)

    def inverse_lengths(self, codes: Codes) -> Vectors:
        """float32[n]: what dot products with codes uint8[n, 40] are to be multiplied by to be cosines."""
        return self._space.inverse_lengths(self._coordinates(_checked_codes(codes, SIGN_BYTES)))

    def _coordinates(self, codes: Codes) -> Vectors:
        steps = _BITS[codes].reshape(len(codes), SIGNS) * self._steps
        coordinates = np.zeros((len(codes), EMBEDDING_DIMENSIONS), np.float32)
        for place, direction in enumerate(self._directions.tolist()):
            coordinates[:, direction] += steps[:, place]
        return coordinates


class Quantiser:
    """One codebook: `product`, `signs`, and `version`, a u32 by which codes name the codebook that made them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """arrays: those of SECTIONS, used and not copied. Raises CodebookFault for arrays that make no codebook."""
        check_codebook(arrays)
        self.arrays = {name: arrays[name] for name in SECTIONS}
        digest = hashlib.sha256()
        for name, array in self.arrays.items():
            digest.update(name.encode() + array.tobytes())
        self.version = int.from_bytes(digest.digest()[:4], "big")
        space = _Space(self.arrays)
        self.product = ProductCode(space, self.arrays)
        self.signs = SignCode(space, self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of the codebook."""
        return sum(array.nbytes for array in self.arrays.values())

    def packed(self) -> bytes:
        """The codebook as bytes: its arrays in the order of SECTIONS, little-endian."""
        return b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in self.arrays.values())

    @staticmethod
    def unpacked(packed: bytes) -> Quantiser:
        """The codebook of packed(). Raises CodebookFault where the bytes make none."""
        expected = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in SECTIONS.values())
        if len(packed) != expected:
            raise CodebookFault(f"codebook: expected {expected} bytes, got {len(packed)}")
        arrays, start = {}, 0
        for name, (dtype, shape) in SECTIONS.items():
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(packed, dtype, count, start).reshape(shape)
            start += arrays[name].nbytes
        return Quantiser(arrays)


def check_codebook(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise CodebookFault unless the arrays are those of SECTIONS and no code can lead out of them or to NaN."""
    for name, (dtype, shape) in SECTIONS.items():
        array = arrays.get(name)
        if array is None:
            raise CodebookFault(f"section {name} is missing beside the other quantiser sections")
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            raise CodebookFault(f"section {name}: expected {dtype}{shape}, got {array.dtype.str}{array.shape}")
    if not np.all(np.abs(arrays["quantiser_mean"]) <= 1):
        raise CodebookFault("section quantiser_mean: expected numbers from -1 to 1")
    for name in ("quantiser_rotation_scale", "quantiser_centroid_scale", "quantiser_sign_steps"):
        if not np.all((arrays[name] > 0) & (arrays[name] <= 1)):
            raise CodebookFault(f"section {name}: expected numbers above 0, at most 1")
    if np.any(arrays["quantiser_sign_directions"] >= EMBEDDING_DIMENSIONS):
        raise CodebookFault(f"section quantiser_sign_directions: expected numbers below {EMBEDDING_DIMENSIONS}")


def check_vectors(vectors: Vectors) -> Vectors:
    """The vectors, if they are finite float32[n, 384]; else ConfigError."""
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32 or vectors.ndim != 2:
        found = f"{vectors.dtype}{list(vectors.shape)}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise ConfigError(f"vectors: expected float32[n, {EMBEDDING_DIMENSIONS}], got {found}")
    if vectors.shape[1] != EMBEDDING_DIMENSIONS or not np.isfinite(vectors).all():
        raise ConfigError(f"vectors: expected finite float32[n, {EMBEDDING_DIMENSIONS}], got {list(vectors.shape)}")
    return vectors


def _checked_codes(codes: Codes, width: int) -> Codes:
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
        found = f"{codes.dtype}{list(codes.shape)}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise ConfigError(f"codes: expected uint8[n, {width}], got {found}")
    return codes
