"""Vectors by id in several encodings, searched as one: int8 rows in a VectorStore, coarse codes packed beside it.

A coarse vector costs its code, 8 bytes of id and 4 of length, and nothing else: ids are kept sorted, so that no table
of them is needed. It is searched by table look-ups, without being decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from omega_edge.codebook_record import Codebook
from omega_edge.compression import BYTES, FLOORS, Encoding, coarse_code, cosines
from omega_edge.quantiser import Quantiser
from omega_edge.tier_policy import Standing
from omega_edge.vectors import VectorStore, quantised

COARSE = (Encoding.PQ48, Encoding.ONE_BIT)
_SHRINK_ABOVE_BYTES = 1 << 20
_SPARE_SHARE = 4


class _Packed:
    """Coarse vectors of one encoding, by ascending id: ids uint64[n], codes uint8[n, width], lengths float32[n]."""

    def __init__(self, encoding: Encoding) -> None:
        self.ids = np.empty(0, np.uint64)
        self.codes = np.empty((0, BYTES[encoding]), np.uint8)
        self.inverse_lengths = np.empty(0, np.float32)

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.codes.nbytes + self.inverse_lengths.nbytes

    def place_of(self, number: int) -> int | None:
        place = int(np.searchsorted(self.ids, np.uint64(number)))
        return place if place < len(self.ids) and self.ids[place] == number else None

    def add(self, ids: np.ndarray, codes: np.ndarray, inverse_lengths: np.ndarray) -> None:
        places = np.searchsorted(self.ids, ids)
        self.ids = np.insert(self.ids, places, ids)
        self.codes = np.insert(self.codes, places, codes, axis=0)
        self.inverse_lengths = np.insert(self.inverse_lengths, places, inverse_lengths)

    def delete(self, place: int) -> None:
        self.ids = np.delete(self.ids, place)
        self.codes = np.delete(self.codes, place, axis=0)
        self.inverse_lengths = np.delete(self.inverse_lengths, place)


class TieredVectors:
    """Vectors by id, each once, in int8 or coarse. Results as VectorStore's: best first, then by id; all of min(k, those
    that pass). A coarse vector's cosine is that of its decoded form, right to .002. Not thread-safe.

    Always exact: what a search in two stages finds depends on the searches and writes before it, and which skill an
    episode joins may depend on the entries alone.
    """

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook
        self._rows = VectorStore(recall=1.0)
        self._packed = {encoding: _Packed(encoding) for encoding in COARSE}

    @property
    def count(self) -> int:
        """Number of vectors present."""
        return self._rows.count + sum(len(packed.ids) for packed in self._packed.values())

    def usage(self) -> dict[Encoding, tuple[int, int]]:
        """Vectors and bytes in RAM by encoding, room for growth included. What is float32 or float16 in its record is
        searched as int8, and counts there."""
        found = {Encoding.INT8: (self._rows.count, self._rows.nbytes)}
        return found | {encoding: (len(packed.ids), packed.nbytes) for encoding, packed in self._packed.items()}

    def put_code(self, number: int, code: np.ndarray, scale: float) -> None:
        """Add or replace a vector as int8."""
        self._drop_coarse(number)
        self._rows.upsert_code(number, code, scale)

    def put_codes(self, ids: list[int], codes: np.ndarray, scale: np.ndarray) -> None:
        """Add many that are not present as int8[n, 384] codes and float32[n] scales."""
        self._rows.upsert_codes(ids, codes, scale)

    def put_coarse(self, encoding: Encoding, ids: list[int], codes: np.ndarray) -> None:
        """Add or replace many as codes uint8[n, BYTES[encoding]]."""
        for number in ids:
            self.delete(number)
        order = np.argsort(np.array(ids, np.uint64))
        lengths = coarse_code(encoding, self._codebook.quantiser).inverse_lengths(codes)
        self._packed[encoding].add(np.array(ids, np.uint64)[order], codes[order], lengths[order])

    def delete(self, number: int) -> bool:
        """Remove a vector; returns whether it was present."""
        if self._drop_coarse(number):
            return True
        present = self._rows.delete(number)
        if present and self._rows.nbytes > _SHRINK_ABOVE_BYTES:
            self._shrink()
        return present

    def code(self, number: int) -> tuple[np.ndarray, float]:
        """Code int8[384] and scale of a vector, whatever its encoding. KeyError for an id that is not present."""
        for encoding, packed in self._packed.items():
            place = packed.place_of(number)
            if place is not None:
                code = coarse_code(encoding, self._codebook.quantiser)
                return quantised(code.decode(packed.codes[place : place + 1])[0])
        return self._rows.get(number)

    def coarse(self, number: int) -> bytes:
        """The code of a coarse vector. KeyError for an id that is not present, or not coarse."""
        for packed in self._packed.values():
            place = packed.place_of(number)
            if place is not None:
                return packed.codes[place].tobytes()
        raise KeyError(f"no coarse vector of id {number!r}")

    def search(self, query: np.ndarray, k: int, filter: Iterable[int] | None = None) -> list[tuple[int, float]]:
        """The k vectors nearest to a query float32[384], of which the direction alone counts, as (id, cosine)."""
        allowed = None if filter is None else list(filter)
        found = self._rows.search(query, k, allowed)
        return self._with_coarse(found, query / np.linalg.norm(query), k, allowed)

    def search_code(
        self, code: np.ndarray, scale: float, k: int, filter: Iterable[int] | None = None
    ) -> list[tuple[int, float]]:
        """The same for a query that is a code already, int8[384], with its scale."""
        allowed = None if filter is None else list(filter)
        query = code * np.float32(scale)
        return self._with_coarse(self._rows.search_code(code, scale, k, allowed), query, k, allowed)

    def _with_coarse(
        self, found: list[tuple[int, float]], query: np.ndarray, k: int, allowed: list[int] | None
    ) -> list[tuple[int, float]]:
        merged = list(found)
        for encoding, packed in self._packed.items():
            if not len(packed.ids):
                continue
            table = coarse_code(encoding, self._codebook.quantiser).table(query.astype(np.float32))
            scores = table.dot_products(packed.codes) * packed.inverse_lengths
            places = np.arange(len(packed.ids))
            if allowed is not None:
                places = places[np.isin(packed.ids, np.array(allowed, np.uint64))]
            best = places[np.lexsort((packed.ids[places], -scores[places]))[:k]]
            merged += zip(packed.ids[best].tolist(), scores[best].tolist(), strict=True)
        if len(merged) == len(found):
            return found
        return sorted(merged, key=lambda item: (-item[1], item[0]))[:k]

    def _drop_coarse(self, number: int) -> bool:
        for packed in self._packed.values():
            place = packed.place_of(number)
            if place is not None:
                packed.delete(place)
                return True
        return False

    def _shrink(self) -> None:
        """Give back the room that vectors gone coarse have left, once it is most of the table."""
        present = self._rows.count
        if self._rows.nbytes < _SPARE_SHARE * present * BYTES[Encoding.INT8]:
            return
        smaller, ids = VectorStore(recall=1.0), self._rows.ids()
        if ids:
            vectors = [self._rows.get(number) for number in ids]
            codes = np.stack([code for code, _scale in vectors])
            smaller.upsert_codes(ids, codes, np.array([scale for _code, scale in vectors], np.float32))
        self._rows = smaller


def coarse_form(unit: np.ndarray, standing: Standing, to: Encoding, quantiser: Quantiser) -> bytes | None:
    """The code of a vector, float32[384], one step down: from int8 to pq48, or from pq48 to one_bit. Notes in the
    standing what it is true to. None, and nothing noted, where that is below the floor of the encoding.

    Whether a vector may go on to one_bit is measured when it becomes pq48, because its original is gone after that.
    """
    if to is Encoding.ONE_BIT:
        if standing.next_fidelity < FLOORS[to]:
            return None
        standing.note_fidelity(standing.next_fidelity)
        return quantiser.signs.encode(unit[None])[0].tobytes()
    codes = quantiser.product.encode(unit[None])
    decoded = quantiser.product.decode(codes)
    fidelity = least_cosine(standing.fidelity, float(cosines(decoded, unit[None])[0]))
    if fidelity < FLOORS[to]:
        return None
    further = quantiser.signs.decode(quantiser.signs.encode(decoded))
    standing.note_fidelity(fidelity, least_cosine(standing.fidelity, float(cosines(further, unit[None])[0])))
    return codes[0].tobytes()


def least_cosine(first: float, second: float) -> float:
    """The least cosine of a to c, where a to b has the first and b to c the second: their angles may add up. At least
    -1, where they add up to half a turn or more."""
    angle = sum(math.acos(min(max(cosine, -1.0), 1.0)) for cosine in (first, second))
    return math.cos(min(angle, math.pi))
