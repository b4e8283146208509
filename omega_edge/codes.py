"""What a pattern says as titles, as a vector and as a code, and fingerprints by which two sides compare their patterns.

A pattern names titles of the catalogue where it can: four titles with weights keep .99 of a mixture's cosine in 10 bytes.
What lies outside the catalogue, or is to be compared without one, travels as a product-quantised code of 48 bytes, which
only the codebook that made it can read. Codebooks are part of a bundle; a code names its by version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.errors import ConfigError
from omega_edge.patterns import (
    WEEK_MS,
    TitleReference,
    ViewingPattern,
    count_step,
    life_step,
    rate_steps,
    weight_steps,
)
from omega_edge.protocol import EMBEDDING_DIMENSIONS, MAX_REFERENCES_PER_PATTERN, U64_MAX
from omega_edge.quantiser import Quantiser

USUAL_REFERENCES = 4
_LEAST_LENGTH = 1e-6
_ROWS_AT_ONCE = 4096


def vector_of(pattern: ViewingPattern, catalog: Catalog, quantiser: Quantiser | None = None) -> np.ndarray | None:
    """The unit vector float32[384] that a pattern stands for.

    quantiser: the codebook of codes; the catalogue's if not given. None where the vector cannot be known: a code of another
    codebook, references of which the catalogue has none, or what points nowhere.
    """
    if pattern.embedding is not None:
        return np.frombuffer(pattern.embedding, "<f4").astype(np.float32)
    if pattern.code is not None:
        quantiser = catalog.quantiser if quantiser is None else quantiser
        if quantiser is None or quantiser.version != pattern.codebook:
            return None
        return _unit(quantiser.product.decode(np.frombuffer(pattern.code, np.uint8)[None])[0])
    vector = np.zeros(EMBEDDING_DIMENSIONS, np.float32)
    for reference in pattern.references:
        row = catalog.row_of(reference.content_id)
        if row >= 0:
            vector += np.float32(reference.weight) * catalog.scale[row] * catalog.codes[row]
    return _unit(vector)


def as_code(pattern: ViewingPattern, quantiser: Quantiser, vector: np.ndarray | None = None) -> ViewingPattern:
    """The pattern with the code of its vector instead of titles or embedding.

    vector: unit float32[384], for a pattern of titles (see vector_of; a home knows its own vectors of titles that no
    catalogue has). Raises ConfigError for a pattern whose vector is neither given nor in it.
    """
    if pattern.code is not None and pattern.codebook == quantiser.version:
        return pattern
    if vector is None and pattern.embedding is not None:
        vector = np.frombuffer(pattern.embedding, "<f4").astype(np.float32)
    if vector is None:
        raise ConfigError("vector: expected one beside a pattern of titles or of another codebook's code, got None")
    code = quantiser.product.encode(vector[None])[0].tobytes()
    return replace(pattern, embedding=None, references=(), code=code, codebook=quantiser.version)


def as_references(
    pattern: ViewingPattern, catalog: Catalog, vector: np.ndarray, count: int = USUAL_REFERENCES
) -> ViewingPattern | None:
    """The pattern as a mixture of up to count (1 to 8) of the catalogue's titles, the heaviest weighing 1.

    vector: unit float32[384]. None where no title points its way.
    """
    references = mixture(vector, catalog, count)
    return replace(pattern, embedding=None, code=None, codebook=None, references=references) if references else None


def mixture(vector: np.ndarray, catalog: Catalog, count: int = USUAL_REFERENCES) -> tuple[TitleReference, ...]:
    """The titles whose weighted sum comes near a unit vector float32[384], the heaviest first with weight 1; () if none does.

    Titles are taken one after the other, each the nearest to what is missing still (orthogonal matching pursuit: Pati,
    Rezaiifar, Krishnaprasad, 1993); those that come out with a weight of 0 or less are left out.
    """
    if not 1 <= count <= MAX_REFERENCES_PER_PATTERN:
        raise ConfigError(f"count: expected 1 to {MAX_REFERENCES_PER_PATTERN} references, got {count!r}")
    rows: list[int] = []
    weights = np.zeros(0, np.float64)
    missing = vector.astype(np.float32)
    for _ in range(min(count, catalog.count)):
        cosines = _dot_products(missing, catalog)
        cosines[rows] = -np.inf
        rows.append(int(np.argmax(cosines)))
        titles = (catalog.codes[rows] * catalog.scale[rows, None]).astype(np.float64)
        weights = np.linalg.lstsq(titles.T, vector.astype(np.float64), rcond=None)[0]
        missing = (vector - weights @ titles).astype(np.float32)
        if np.linalg.norm(missing) <= _LEAST_LENGTH:
            break
    heaviest = float(weights.max())
    if heaviest <= 0:
        return ()
    kept = [(weight / heaviest, row) for weight, row in zip(weights.tolist(), rows, strict=True) if weight > 0]
    return tuple(TitleReference(catalog.content_id(row), weight) for weight, row in sorted(kept, key=lambda one: -one[0]))


def pattern_fingerprint(pattern: ViewingPattern) -> int:
    """u64 of what the wire keeps of a pattern: the same for the sender's pattern and for what a receiver decodes."""
    rate, samples = rate_steps(pattern.success_rate), count_step(pattern.sample_count)
    kept = [struct.pack("<IBBIB", pattern.id, rate, samples, pattern.created_at // WEEK_MS, life_step(pattern))]
    if pattern.embedding is not None:
        kept += (b"e", pattern.embedding)
    elif pattern.code is not None:
        kept += (b"c", struct.pack("<I", pattern.codebook), pattern.code)
    for reference in pattern.references:
        title = reference.content_id.encode()
        kept += (b"t", bytes((len(title), weight_steps(reference.weight))), title)
    return int.from_bytes(hashlib.blake2b(b"".join(kept), digest_size=8).digest(), "little")


def set_hash(patterns: Iterable[ViewingPattern]) -> int:
    """u64 of a set of patterns in any order: the sum of their fingerprints modulo 2^64, so a part can be added or taken off."""
    return sum(map(pattern_fingerprint, patterns)) & U64_MAX


def _unit(vector: np.ndarray) -> np.ndarray | None:
    length = float(np.linalg.norm(vector))
    return (vector / np.float32(length)).astype(np.float32) if length > _LEAST_LENGTH else None


def _dot_products(vector: np.ndarray, catalog: Catalog) -> np.ndarray:
    """float32[n]: a vector float32[384] times every title's."""
    found = np.empty(catalog.count, np.float32)
    for start in range(0, catalog.count, _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        found[block] = (catalog.codes[block].astype(np.float32) @ vector) * catalog.scale[block]
    return found
