"""Title numbers as the shard reads them: strings that know their row, so that no list of titles is looked up again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cloud.storage import StoredPattern
from omega_edge.catalog import Catalog
from omega_edge.codes import as_code, pattern_fingerprint, vector_of
from omega_edge.errors import CatalogError, ProtocolError
from omega_edge.protocol import TitleReference, ViewingPattern
from omega_edge.terms import check_content_id

WEIGHT_STEPS = 255


class RowTitle(str):
    """A content id that came as a number. row: the number."""

    __slots__ = ("row",)


class ShardTitles:
    """A TitleNumbering whose titles know their rows."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.lineage = catalog.lineage
        self.quantiser = catalog.quantiser
        self.lineage_bytes = bytes.fromhex(catalog.lineage)
        self._titles: dict[int, RowTitle] = {}
        self._sound: set[int] = set()

    def row_of(self, content_id: str) -> int:
        """See TitleNumbering."""
        return self._catalog.row_of(content_id)

    def content_id(self, row: int) -> RowTitle:
        """See TitleNumbering."""
        title = self._titles.get(row)
        if title is None:
            title = RowTitle(self._catalog.content_id(row))
            title.row = row
            self._titles[row] = title
        return title

    def has_all(self, rows: Sequence[int]) -> bool:
        """Whether every row has a title that a message may name."""
        if self._sound.issuperset(rows):
            return True
        try:
            for row in rows:
                check_content_id("title", self._catalog.content_id(row))
        except (IndexError, CatalogError, ProtocolError):
            return False
        self._sound.update(rows)
        return True


def row_of(content_id: str, titles: ShardTitles | None) -> int:
    """The row of a title of a message, -1 where the catalogue has none (or there is no catalogue)."""
    if type(content_id) is RowTitle:
        return content_id.row
    return -1 if titles is None else titles.row_of(content_id)


def storable(patterns: Iterable[ViewingPattern], titles: ShardTitles | None) -> tuple[StoredPattern, ...]:
    """Patterns as they are stored. References outside the catalogue are dropped; a vector becomes a code where the bundle has
    a codebook. The mark is that of the pattern as it came, so that both sides agree on the set whatever was dropped.
    """
    quantiser = None if titles is None else titles.quantiser
    kept = []
    for pattern in patterns:
        mark = pattern_fingerprint(pattern)
        if pattern.embedding is not None and quantiser is not None:
            pattern = as_code(pattern, quantiser)
        references = [(row_of(reference.content_id, titles), reference.weight) for reference in pattern.references]
        known = tuple((row, max(1, round(weight * WEIGHT_STEPS))) for row, weight in references if row >= 0 and weight > 0)
        kept.append(
            StoredPattern(
                pattern.id, pattern.success_rate, pattern.sample_count, pattern.created_at, pattern.updated_at,
                known, pattern.code, pattern.codebook, mark,
            )
        )  # fmt: skip
    return tuple(kept)


def vector_of_stored(stored: StoredPattern, catalog: Catalog | None) -> np.ndarray | None:
    """The unit vector float32[384] of a stored pattern; None where the catalogue cannot tell."""
    if catalog is None or (stored.code is None and not stored.references):
        return None
    if any(row >= len(catalog) for row, _ in stored.references):
        return None
    pattern = ViewingPattern(
        id=stored.id,
        success_rate=stored.success_rate,
        sample_count=stored.sample_count,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        references=tuple(
            TitleReference(catalog.content_id(row), weight / WEIGHT_STEPS) for row, weight in stored.references
        ),
        code=stored.code,
        codebook=stored.codebook,
    )
    return vector_of(pattern, catalog)
