"""How many syncs a second arrive when all televisions lose the cloud, or their power, and get it back: on a virtual clock.

Each television keeps the product's own schedule (omega_edge/sync.py); beside it stands the policy of the source text, which
tries again three times at once. A television's syncs depend on no other's, so each is followed alone through the whole time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

INTERVAL_SECONDS = 300
OUTAGE_SECONDS = 15 * 60
SETTLED_SECONDS = 20 * 60
"""From the first power-on until the load counts as steady."""
STEADY_SECONDS = 30 * 60
AFTER_SECONDS = 45 * 60
RETURN_SECONDS = 60
"""After a regional power cut all televisions are on within this time."""
DEVICES_OF_A_SHARD = 100_000
"""With so many, load is counted by the second; with fewer, by as many seconds as hold as many syncs."""


class Television(Protocol):
    """When one television tries to sync. Seconds; nothing here reads a clock."""

    def first(self) -> float:
        """How long after it was switched on."""

    def after_success(self, next_sync_secs: int) -> float:
        """How long after a sync that the shard answered with this interval."""

    def after_failure(self) -> float:
        """How long after one that failed."""


class SourceTelevision:
    """The source text's policy: the interval to the second, at a failure 3 attempts more after 1, 2 and 4 s."""

    ATTEMPTS = 3

    def __init__(self, chosen: random.Random) -> None:
        self._failures = 0

    def first(self) -> float:
        """At once."""
        return 0.0

    def after_success(self, next_sync_secs: int) -> float:
        """The interval."""
        self._failures = 0
        return float(next_sync_secs)

    def after_failure(self) -> float:
        """1 s, doubled at each failure, for three attempts; then the interval."""
        self._failures += 1
        if self._failures > self.ATTEMPTS:
            self._failures = 0
            return float(INTERVAL_SECONDS)
        return float(2 ** (self._failures - 1))


@dataclass(frozen=True, slots=True)
class Herd:
    """Load of a shard's televisions. Ratios to the steady mean; peaks are the highest load of a second (see DEVICES_OF_A_SHARD).

    steady: mean of syncs a second at DEVICES_OF_A_SHARD.
    """

    steady: float
    outage_ratio: float
    outage_peak_ratio: float
    after_peak_ratio: float
    return_peak_ratio: float


def attempts(television: Television, on: float, end: float, fails: Callable[[float], bool]) -> Iterator[float]:
    """The moments before `end` at which a television that is switched on at `on` tries to sync."""
    at = on + television.first()
    while at < end:
        yield at
        at += television.after_failure() if fails(at) else television.after_success(INTERVAL_SECONDS)


def simulate(make: Callable[[random.Random], Television], devices: int, seed: int) -> Herd:
    """An outage that all televisions of a shard meet in the steady state, and a return of power to all of them."""
    begins = SETTLED_SECONDS + STEADY_SECONDS
    over, end = begins + OUTAGE_SECONDS, begins + OUTAGE_SECONDS + AFTER_SECONDS
    chosen = random.Random(seed)

    def load(on_within: float, until: float, fails: Callable[[float], bool]) -> np.ndarray:
        """Syncs in each bin of time."""
        moments: list[float] = []
        for _ in range(devices):
            moments.extend(attempts(make(chosen), chosen.uniform(0, on_within), until, fails))
        return np.histogram(moments, bins=np.arange(0.0, until + bin_seconds, bin_seconds))[0]

    bin_seconds = DEVICES_OF_A_SHARD / devices
    counts = load(INTERVAL_SECONDS, end, lambda at: begins <= at < over)
    first, start, stop = (round(moment / bin_seconds) for moment in (SETTLED_SECONDS, begins, over))
    steady = float(counts[first:start].mean())
    back = load(RETURN_SECONDS, STEADY_SECONDS, lambda at: False)
    return Herd(
        steady=steady,
        outage_ratio=float(counts[start:stop].mean()) / steady,
        outage_peak_ratio=float(counts[start:stop].max()) / steady,
        after_peak_ratio=float(counts[stop:].max()) / steady,
        return_peak_ratio=float(back.max()) / steady,
    )
