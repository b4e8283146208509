"""Title numbers as the shard reads them: strings that know their row, so that no list of titles is looked up again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cloud.storage import StoredPattern
from omega_edge.catalog import Catalog
from omega_edge.protocol import ViewingPattern

WEIGHT_STEPS = 255


class RowTitle(str):
    """A content id that came as a number. row: the number."""

    __slots__ = ("row",)


class ShardTitles:
    """A TitleNumbering whose titles know their rows."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.lineage = catalog.lineage
        self._titles: dict[int, RowTitle] = {}

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


@dataclass(frozen=True, slots=True)
class StorablePatterns:
    """Patterns that can be stored. left_out: how many had nothing that the catalogue knows."""

    patterns: tuple[StoredPattern, ...]
    left_out: int


def row_of(content_id: str, titles: ShardTitles | None) -> int:
    """The row of a title of a message, -1 where the catalogue has none (or there is no catalogue)."""
    if type(content_id) is RowTitle:
        return content_id.row
    return -1 if titles is None else titles.row_of(content_id)


def storable(patterns: Iterable[ViewingPattern], titles: ShardTitles | None) -> StorablePatterns:
    """Patterns as they are stored. A reference outside the catalogue is dropped, a pattern of such alone is left out."""
    kept, left_out = [], 0
    for pattern in patterns:
        references = [(row_of(reference.content_id, titles), reference.weight) for reference in pattern.references]
        known = tuple((row, max(1, round(weight * WEIGHT_STEPS))) for row, weight in references if row >= 0 and weight > 0)
        if not known and pattern.code is None:
            left_out += 1
            continue
        kept.append(
            StoredPattern(
                pattern.id, pattern.success_rate, pattern.sample_count, pattern.created_at, pattern.updated_at,
                known, pattern.code, pattern.codebook,
            )
        )  # fmt: skip
    return StorablePatterns(tuple(kept), left_out)
