"""Where a title's vector comes from: the bundle, else the text model, never invention."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.errors import ConfigError, ModelUnavailable
from omega_edge.inference import InferenceEngine
from omega_edge.vectors import quantised

Vector = tuple[np.ndarray, float]
"""Code int8[384] and scale."""

MAX_WAITING = 512
MAX_EMBEDDED = 2048
"""About 1 MB of codes. What memory has stored with its episodes need not stay here."""
EMBEDDED_AT_ONCE = 64
"""A maintenance round embeds so many titles at most: 0.1 s here, 1 s on a slow television core."""


class TitleVectors:
    """Codes and scales of titles by content id. Thread-safe.

    Embedding takes longer than a caller of observe may wait, so a title outside the catalogue is only noted, and
    embed_waiting(), called by the maintenance, embeds it. fault: why titles cannot be embedded, or None.
    """

    def __init__(self, catalog: Catalog, engine: InferenceEngine | None) -> None:
        self._catalog = catalog
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, str] = OrderedDict()
        self._embedded: OrderedDict[str, Vector | None] = OrderedDict()
        self.fault: str | None = None

    def in_catalog(self, content_id: str) -> Vector | None:
        """Code int8[384] and scale of a title of the catalogue, else None."""
        row = self._catalog.row_of(content_id)
        return None if row < 0 else (self._catalog.codes[row], float(self._catalog.scale[row]))

    def lookup(self, content_id: str, content_title: str) -> Vector | None:
        """Code and scale of a title as far as they are known; a title that could be embedded is noted for it."""
        found = self.in_catalog(content_id)
        if found is not None or self._engine is None:
            return found
        with self._lock:
            if content_id in self._embedded:
                return self._embedded[content_id]
            if len(self._waiting) < MAX_WAITING:
                self._waiting[content_id] = content_title
        return None

    def embed_waiting(self) -> bool:
        """Embed titles that wait, a bounded number. Returns whether any vector is new. Holds no lock meanwhile."""
        changed = False
        for _ in range(EMBEDDED_AT_ONCE):
            with self._lock:
                if not self._waiting:
                    break
                content_id, content_title = self._waiting.popitem(last=False)
            vector = self._embed(content_title)
            with self._lock:
                self._embedded[content_id] = vector
                if len(self._embedded) > MAX_EMBEDDED:
                    self._embedded.popitem(last=False)
            changed = changed or vector is not None
        return changed

    def forget(self) -> None:
        """Drop every title kept here."""
        with self._lock:
            self._waiting.clear()
            self._embedded.clear()
        if self._engine is not None:
            self._engine.clear_cache()

    def _embed(self, content_title: str) -> Vector | None:
        try:
            vector = self._engine.embed(content_title)
        except ModelUnavailable as fault:
            self.fault = str(fault)
            return None
        except ConfigError:  # a name of invisible characters only has no meaning to embed
            return None
        return quantised(np.asarray(vector))
