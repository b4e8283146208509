"""The centroids of skills in RAM, searched by group, and the encodings that they move between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from omega_edge.codebook_record import Codebook
from omega_edge.compression import BYTES, Encoding, VectorBytesError, decode, encode
from omega_edge.episodes import Vector
from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.tier_policy import Standing
from omega_edge.tiered_vectors import TieredVectors, coarse_form
from omega_edge.vectors import quantised

Group = tuple[str, int]
"""Profile and part of the day."""
_READ_AT_ONCE = 1024


class Centroids:
    """Centroids by group and skill id. Not thread-safe."""

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook
        self._groups: dict[Group, TieredVectors] = {}
        self._floats: dict[int, Encoding] = {}
        self._read: dict[tuple[Group, Encoding], tuple[list[int], bytearray, list[float]]] = {}

    @property
    def count(self) -> int:
        """Centroids of all groups."""
        return sum(centroids.count for centroids in self._groups.values())

    def groups(self) -> Iterable[tuple[Group, TieredVectors]]:
        """Every group with its centroids."""
        return self._groups.items()

    def of(self, group: Group) -> TieredVectors:
        """The centroids of a group."""
        found = self._groups.get(group)
        if found is None:
            found = self._groups[group] = TieredVectors(self._codebook)
        return found

    def usage(self) -> dict[Encoding, tuple[int, int]]:
        """Vectors and bytes in RAM by encoding; see TieredVectors."""
        total = dict.fromkeys((Encoding.INT8, Encoding.PQ48, Encoding.ONE_BIT), (0, 0))
        for centroids in self._groups.values():
            for encoding, (count, size) in centroids.usage().items():
                total[encoding] = (total[encoding][0] + count, total[encoding][1] + size)
        return total

    def stored_vectors(self) -> Counter[Encoding]:
        """How many of them records hold, by encoding."""
        found = Counter({encoding: count for encoding, (count, _size) in self.usage().items()})
        for encoding in self._floats.values():
            found[encoding] += 1
            found[Encoding.INT8] -= 1
        return found

    def put(self, group: Group, skill_id: int, held: Held) -> None:
        """Add a centroid, or replace the one of this skill."""
        encoding = held.standing.encoding
        if encoding.coarse:
            self.of(group).put_coarse(encoding, [skill_id], np.frombuffer(held.encoded, np.uint8)[None])
        else:
            self.of(group).put_code(skill_id, np.frombuffer(held.code, np.int8), held.scale)
        self._note(skill_id, encoding)

    def delete(self, group: Group, skill_id: int) -> None:
        """Remove a skill's centroid."""
        self.of(group).delete(skill_id)
        self._note(skill_id, Encoding.INT8)

    def _note(self, skill_id: int, encoding: Encoding) -> None:
        self._floats.pop(skill_id, None)
        if encoding < Encoding.INT8:
            self._floats[skill_id] = encoding

    def read(self, group: Group, skill_id: int, held: Held) -> None:
        """Take in a centroid of a record. end_reading() is to follow."""
        encoding = held.standing.encoding
        self._note(skill_id, encoding)
        if encoding.coarse:
            code, scale = held.encoded, 0.0
        else:
            encoding, code, scale = Encoding.INT8, held.code, held.scale
        ids, codes, scales = self._read.setdefault((group, encoding), ([], bytearray(), []))
        ids.append(skill_id)
        codes += code
        scales.append(scale)
        if len(ids) == _READ_AT_ONCE:
            self._take_in(group, encoding)

    def end_reading(self) -> None:
        """Everything was read."""
        for group, encoding in list(self._read):
            self._take_in(group, encoding)

    def _take_in(self, group: Group, encoding: Encoding) -> None:
        ids, codes, scales = self._read.pop((group, encoding))
        if encoding.coarse:
            table = np.frombuffer(codes, np.uint8).reshape(len(ids), BYTES[encoding])
            self.of(group).put_coarse(encoding, ids, table)
        else:
            table = np.frombuffer(codes, np.int8).reshape(len(ids), EMBEDDING_DIMENSIONS)
            self.of(group).put_codes(ids, table, np.array(scales, np.float32))


class Held:
    """One centroid: `standing`; `code` int8[384] as bytes and `scale`; and, where the encoding is not int8, `encoded`,
    of which code and scale are a view, made when it is first asked for: of thousands that are read, few ever are. Two
    are equal that have the same code and scale: an export restores no more."""

    __slots__ = ("_codebook", "_viewed", "encoded", "standing")

    def __init__(self, standing: Standing, code: bytes, scale: float) -> None:
        """An int8 centroid."""
        self.standing = standing
        self.encoded: bytes | None = None
        self._viewed: Vector | None = (code, scale)
        self._codebook: Codebook | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and (self.code, self.scale) == (other.code, other.scale)

    __hash__ = None

    @property
    def code(self) -> bytes:
        """int8[384]."""
        return self._view()[0]

    @property
    def scale(self) -> float:
        """code * scale is the unit vector."""
        return self._view()[1]

    @property
    def unit(self) -> np.ndarray:
        """float32[384], as precise as it is held."""
        if self.encoded is None or self.standing.encoding.coarse:
            return np.frombuffer(self.code, np.int8) * np.float32(self.scale)
        return decode(self.standing.encoding, np.frombuffer(self.encoded, np.uint8)[None])[0]

    def replace(self, unit: np.ndarray) -> None:
        """Hold another vector, float32[384], in the encoding of the standing, which is int8 or more precise."""
        if self.standing.encoding is Encoding.INT8:
            code, scale = quantised(unit)
            self.encoded, self._viewed = None, (code.tobytes(), scale)
        else:
            # The view is that of what is encoded, as it is for who reads the record.
            self.encoded, self._viewed = encode(self.standing.encoding, unit[None])[0].tobytes(), None

    def move(self, to: Encoding, now: int, codebook: Codebook) -> bool:
        """Give the vector another encoding. Returns whether it has it now: coarse ones have a floor."""
        unit = self.unit
        if to.coarse:
            encoded = None if codebook.quantiser is None else coarse_form(unit, self.standing, to, codebook.quantiser)
            if encoded is None:
                return False
            codebook.adopt()
            self.encoded, self._viewed, self._codebook = encoded, None, codebook
        elif to is Encoding.INT8:
            self._viewed, self.encoded = self._view(), None
        else:
            self.encoded, self._viewed = encode(to, unit[None])[0].tobytes(), None
        self.standing.enter(to, now)
        return True

    def packed(self, codebook: Codebook) -> tuple[bytes, float, list]:
        """What a record holds: bytes, the scale of int8 ones, and the standing with the codebook's version, 0 where none
        is needed."""
        version = codebook.quantiser.version if self.standing.encoding.coarse else 0
        standing = [*self.standing.packed(), version]
        return (*self._view(), standing) if self.encoded is None else (self.encoded, 0.0, standing)

    @staticmethod
    def unpacked(data: bytes, scale: float, values: list | None, last_sequence: int, codebook: Codebook) -> Held | None:
        """The centroid of a record, or None if its bytes cannot be read, or not without a codebook that is lost."""
        if values is None:
            return Held(Standing.new(last_sequence), data, scale)
        held = Held(Standing.unpacked(values), data, scale)
        encoding = held.standing.encoding
        if encoding is Encoding.INT8:
            return held
        if len(data) != BYTES[encoding] or (encoding.coarse and not codebook.knows(values[6])):
            return None
        held.encoded, held._viewed, held._codebook = data, None, codebook
        if encoding.coarse:
            codebook.adopt()
        else:
            try:
                held._view()
            except VectorBytesError:
                return None
        return held

    def _view(self) -> Vector:
        if self._viewed is None:
            quantiser = None if self._codebook is None else self._codebook.quantiser
            unit = decode(self.standing.encoding, np.frombuffer(self.encoded, np.uint8)[None], quantiser)[0]
            code, scale = quantised(unit)
            self._viewed = code.tobytes(), scale
        return self._viewed
