"""Who is let in: bounds on what a worker has in hand, and a token bucket for each device."""

from __future__ import annotations

import math
import secrets
from array import array

BUCKET_SLOTS = 1 << 18
"""2 MB. Devices that fall into one slot share a bucket; which do is secret and new with each start, so none can be starved
on purpose, and a television syncs so rarely that two hardly meet."""
MIN_GAP_MS = 1_000
"""A device may sync once a second over time…"""
BURST = 60
"""…and this often at once: the pages of a whole history, or a test bench."""


BURST_SECONDS = 0.05
"""A worker lets in at once what belongs to so much time."""


class DeviceBuckets:
    """A token bucket for each device in fixed memory: for each slot the moment when its bucket is full again."""

    def __init__(self, min_gap_ms: int = MIN_GAP_MS, burst: int = BURST, slots: int = BUCKET_SLOTS) -> None:
        self._gap, self._room = min_gap_ms, min_gap_ms * burst
        self._full_at = array("q", bytes(8 * slots))
        self._mask, self._salt = slots - 1, secrets.randbits(64)

    def wait_ms(self, device_id: bytes, now_ms: int) -> int:
        """0, and a token is taken; or how long to wait for the next token, at most min_gap_ms.

        now_ms: of any clock. One that is set back fills the buckets, lest all who came before it are kept waiting.
        """
        slot = hash((device_id, self._salt)) & self._mask
        full_at = self._full_at[slot]
        if not now_ms <= full_at <= now_ms + self._room:  # it is full, or the clock was set back since
            full_at = now_ms
        wait = full_at + self._gap - now_ms - self._room
        if wait > 0:
            return wait
        self._full_at[slot] = full_at + self._gap
        return 0


class Gate:
    """Refuses before anything is read or decoded, so that what was let in is answered in time.

    Three bounds: requests in hand; how long the oldest change waits for a transaction; and how many requests are let in a
    second. The last keeps time free for refusing: a worker that is busy with answers alone has none left for a flood, and a
    flood of refusals then takes it from the answers. Whoever is refused comes back at its next interval, so a refusal is
    final.
    """

    def __init__(self, max_in_hand: int, max_delay_ms: float, max_per_second: float = math.inf) -> None:
        self.max_in_hand, self.max_delay_ms, self.max_per_second = max_in_hand, max_delay_ms, max_per_second
        self.in_hand = 0
        self.delay_ms = 0.0
        self.draining = False
        """The worker is stopping: what comes is still answered, and its connection then closed."""
        self.stopped = False
        self._left = self._most_left = max(1.0, max_per_second * BURST_SECONDS)

    @property
    def closed(self) -> bool:
        """Whether the next request is to be refused."""
        return (
            self.in_hand >= self.max_in_hand or self._left < 1.0 or self.delay_ms > self.max_delay_ms or self.stopped
        )

    def enter(self) -> None:
        """Let a request in."""
        self.in_hand += 1
        self._left -= 1.0

    def leave(self) -> None:
        """It is answered, or given up."""
        self.in_hand -= 1

    def pass_time(self, seconds: float) -> None:
        """So much time has passed since the last call: as many more may come in as belong to it."""
        self._left = min(self._left + seconds * self.max_per_second, self._most_left)
