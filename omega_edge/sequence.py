"""The sequence encoder on the television: from the order of what was watched to a direction among the titles.

One self-attentive block over those of the newest 65 events that are inside the catalogue, at most 64 of them (SASRec
of Kang and McAuley, 2018, with a bias by distance for each head instead of positions). Only the newest event asks, and
an event's key and value depend on nothing but its title and outcome: they are computed once, and what the encoder would
say without one event costs little more than its feed-forward part. kernels.h has the arithmetic.
"""

from __future__ import annotations

import threading

import numpy as np

from omega_edge._simd import kernels
from omega_edge.catalog import Encoder
from omega_edge.catalog_checks import SEQUENCE_DIMENSIONS

EVENT_FLOATS = 3 * SEQUENCE_DIMENSIONS
"""Of an event: its input, its key and its value."""


class SequenceEncoder:
    """An encoder with the events that it has seen. Thread-safe."""

    EVENTS_KEPT = 256
    """196 kB: three profiles' whole histories, and all that the next event does not bring anew."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()
        self._places: dict[int, int] = {}
        self._events = np.empty((self.EVENTS_KEPT, EVENT_FLOATS), np.float32)

    def states(self, rows: np.ndarray, finished: np.ndarray, left: int) -> np.ndarray:
        """float32[1 + left, 64]: the state after events, and without each of the newest `left`; the encoder's start where
        there is none.

        rows: uint32[e], e at most 65, titles of the catalogue, newest first; finished: bool[e], whether each was a
        success that the viewer did not say no to. left: at most the smaller of e and 64. Only 64 events are read at once:
        the 65th where another is left out.
        """
        out = np.empty((1 + left, SEQUENCE_DIMENSIONS), np.float32)
        if len(rows):
            kernels.sequence_states(self._encoder.model, self._taken(rows, finished), out)
        if len(rows) < 2:
            out[len(rows) :] = self._encoder.start
        return out

    def _taken(self, rows: np.ndarray, finished: np.ndarray) -> np.ndarray:
        """float32[e, 192] of the events, of which those not kept are computed."""
        keys = (2 * rows.astype(np.int64) + finished).tolist()
        places = self._places
        with self._lock:
            new = [key for key in dict.fromkeys(keys) if key not in places]
            if len(places) + len(new) > self.EVENTS_KEPT:
                places.clear()
                new = list(dict.fromkeys(keys))
            if new:
                start, wanted = len(places), np.array(new)
                kernels.sequence_events(
                    self._encoder.model,
                    (wanted >> 1).astype(np.uint32),
                    (wanted & 1).astype(np.uint8),
                    self._events[start : start + len(new)],
                )
                places.update(zip(new, range(start, start + len(new))))
            return self._events[[places[key] for key in keys]]
