"""Patterns near to a vector: a usearch index for each region, made from the store, kept up from what changed since.

It holds the region's MAX_PATTERNS_PER_REGION patterns changed last. One index a region filters by region before anything is
searched. It lives in memory alone, 16 bits a dimension (with 8,
of ten nearest one was missed): whoever never asks pays nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cloud.storage import SimilarPattern, StoredPattern
from omega_edge.errors import ConfigError
from omega_edge.protocol import EMBEDDING_DIMENSIONS

if TYPE_CHECKING:
    from usearch.index import Index

    from cloud.lmdb_storage import LmdbStorage

MAX_PATTERNS_PER_REGION = 100_000
CONNECTIVITY = 32
"""HNSW's m, and below how widely it looks; recall of the first ten is above .95 on patterns of titles."""
EXPANSION_ADD, EXPANSION_SEARCH = 200, 200
CHANGES_A_TIME = 10_000

PatternVectors = Callable[[StoredPattern], "np.ndarray | None"]
"""The unit vector float32[384] of a pattern; None where its titles or its codebook are unknown here."""


class SimilarityIndex:
    """The indexes of a store's regions. Not thread-safe: one thread asks."""

    def __init__(self, storage: LmdbStorage, vectors: PatternVectors, max_patterns: int = MAX_PATTERNS_PER_REGION) -> None:
        self._storage, self._vectors, self._max_patterns = storage, vectors, max_patterns
        self._regions: dict[str, _RegionIndex] = {}
        self._region_of: dict[bytes, str] = {}
        self._changes_seen = self._erasures_seen = 0
        self._built = False

    def search(self, embedding: np.ndarray, k: int, region: str) -> list[SimilarPattern]:
        """See PatternStorage.find_similar."""
        if embedding.shape != (EMBEDDING_DIMENSIONS,) or k < 1:
            raise ConfigError(f"find_similar: expected a vector of {EMBEDDING_DIMENSIONS} and k of 1 or more")
        self._catch_up()
        found = self._regions.get(region)
        return [] if found is None else found.search(np.asarray(embedding, np.float32), k)

    def _catch_up(self) -> None:
        if not self._built:
            changes = self._storage.pattern_changes(True, 0, self._max_patterns)
            self._changes_seen = changes[0][0] if changes else 0
            for _, device_id in changes:  # newest first, until a region is full
                self._enter(device_id, only_if_room=True)
            for index in self._regions.values():
                index.turn_round()
            self._built = True
        while changes := self._storage.pattern_changes(False, self._changes_seen, CHANGES_A_TIME):
            for _, device_id in changes:
                self._enter(device_id)
            self._changes_seen = changes[-1][0]
        while erasures := self._storage.erasures_after(self._erasures_seen, CHANGES_A_TIME):
            for erasure in erasures:
                self._enter(erasure.device_id)
            self._erasures_seen = erasures[-1].sequence

    def _enter(self, device_id: bytes, only_if_room: bool = False) -> None:
        """Make the index hold a device's patterns as they are stored now."""
        known = self._region_of.pop(device_id, None)
        if known is not None:
            self._regions[known].remove(device_id)
        patterns = self._storage.patterns_of(device_id)
        region = self._storage.region_of(device_id) if patterns else ""
        if not region:
            return
        index = self._regions.setdefault(region, _RegionIndex(self._max_patterns))
        vectors = [(pattern, vector) for pattern in patterns if (vector := self._vectors(pattern)) is not None]
        if not vectors or (only_if_room and not index.has_room(len(vectors))):
            return
        for gone in index.add(device_id, vectors):
            self._region_of.pop(gone, None)
        self._region_of[device_id] = region


class _RegionIndex:
    """One region's patterns. Keys count up and are never used again."""

    def __init__(self, max_patterns: int) -> None:
        from usearch.index import Index  # only who asks for similar patterns loads it

        self._max_patterns = max_patterns
        self._index: Index = Index(
            ndim=EMBEDDING_DIMENSIONS, metric="cos", dtype="f16", connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD, expansion_search=EXPANSION_SEARCH,
        )  # fmt: skip
        self._devices: OrderedDict[bytes, list[int]] = OrderedDict()
        """Keys of each device's patterns, the device changed longest ago first."""
        self._patterns: dict[int, tuple[bytes, StoredPattern]] = {}
        self._next_key = 0

    def has_room(self, count: int) -> bool:
        return len(self._patterns) + count <= self._max_patterns

    def turn_round(self) -> None:
        """After filling newest first: put the oldest first."""
        self._devices = OrderedDict(reversed(self._devices.items()))

    def add(self, device_id: bytes, vectors: list[tuple[StoredPattern, np.ndarray]]) -> list[bytes]:
        """Enter a device's patterns; whoever changed longest ago makes room. Which devices those were."""
        gone = []
        while self._devices and not self.has_room(len(vectors)):
            oldest = next(iter(self._devices))
            self.remove(oldest)
            gone.append(oldest)
        keys = list(range(self._next_key, self._next_key + len(vectors)))
        self._next_key += len(vectors)
        self._index.add(np.array(keys, np.uint64), np.stack([vector for _, vector in vectors]).astype(np.float32))
        self._devices[device_id] = keys
        for key, (pattern, _) in zip(keys, vectors, strict=True):
            self._patterns[key] = (device_id, pattern)
        return gone

    def remove(self, device_id: bytes) -> None:
        """Take a device's patterns out."""
        keys = self._devices.pop(device_id, [])
        for key in keys:
            del self._patterns[key]
            self._index.remove(key)

    def search(self, embedding: np.ndarray, k: int) -> list[SimilarPattern]:
        """The k nearest, or all there are."""
        count = min(k, len(self._patterns))
        if not count:
            return []
        matches = self._index.search(embedding, count)
        found = []
        for key, distance in zip(matches.keys.tolist(), matches.distances.tolist(), strict=True):
            device_id, pattern = self._patterns[key]
            found.append(SimilarPattern(device_id, pattern, 1.0 - distance))
        return found
