"""Tokens for devices that ask: the interim until a television proves by its factory certificate that it is one.

A television draws its device id by itself, and takes a new one after a wipe, so its token cannot come with it from the
factory. Whoever asks gets the token of any id that is not in use yet on this shard; an id in use has its token given out
no more, or an eavesdropper who saw an id could speak for it. Shards of one DEVICE_KEY know each only its own devices. What
this does not stop is somebody who makes up many devices; how many a second, a bucket does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cloud.shard import Reply, refusal
from cloud.storage import PatternStorage
from omega_edge.protocol import DEVICE_ID_BYTES
from omega_edge.sync_identity import device_token

TOKENS_PER_SECOND = 100.0
BURST = 2_000
"""100,000 televisions that are new at once have their tokens within a quarter of an hour, at their own intervals."""
WAIT_SECONDS = 300


class Enrolment:
    """Answers POST /api/v1/devices of one worker. opened: whether tokens are given out at all (ENROLMENT)."""

    def __init__(
        self, opened: bool, device_key: bytes, storage: PatternStorage, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._opened, self._device_key, self._storage, self._monotonic = opened, device_key, storage, monotonic
        self._left, self._filled_at = float(BURST), monotonic()

    def answer(self, device_id: bytes) -> Reply:
        """201 and the token of 32 bytes; 400, 403, 409 or 503 with words. Nothing is stored."""
        if not self._opened:
            return refusal(403, "expected a device whose token was given to it: this shard's enrolment is closed")
        if len(device_id) != DEVICE_ID_BYTES:
            return refusal(400, f"expected a device id of {DEVICE_ID_BYTES} bytes, got {len(device_id)}")
        now = self._monotonic()
        self._left = min(self._left + (now - self._filled_at) * TOKENS_PER_SECOND, float(BURST))
        self._filled_at = now
        if self._left < 1.0:
            return refusal(503, "too many new devices at once; come back later", WAIT_SECONDS)
        if self._storage.device(device_id) is not None:
            return refusal(409, "expected a device id that is not in use; draw another")
        self._left -= 1.0
        return Reply(201, device_token(self._device_key, device_id))
