"""How many syncs a second arrive when all televisions lose the cloud, or their power, and get it back: on a virtual clock.

Each television is the product's own SyncClient, whose loop runs with a clock, a sleep and a randomness of this module's;
only the exchange with the shard is decided here: it succeeds, or during an outage fails. Beside it stands the policy of the
source text, which tries again three times at once. A television's syncs depend on no other's, so each is followed alone
through the whole time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import coroutine

import numpy as np

from bench.shard_load.metrics import line
from omega_edge.sync import DONE, SyncClient, SyncConfig, SyncReport

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
SOURCE_FAST_RETRIES = 3

Fails = Callable[[float], bool]
"""Whether a sync at this second fails."""
Television = Callable[[random.Random, float, float, Fails], Iterator[float]]
"""The moments before `end` at which a television tries to sync that is switched on at `on`: (chosen, on, end, fails)."""


@coroutine
def _pause(seconds: float) -> Generator[float, None, None]:
    """Sleep on the virtual clock: whoever drives the coroutine is told for how long."""
    yield seconds


class _Titles:
    version = 1


class _Collective:
    mode, titles = "receive", _Titles()


class _Home:
    """A home that shares nothing, as far as the moments of syncs go."""

    collective = _Collective()


class VirtualClient(SyncClient):
    """The product's client with all of its timing, on a virtual clock, and exchanges that cost nothing."""

    _CONFIG = SyncConfig("https://shard.invalid", sync_interval_secs=INTERVAL_SECONDS)

    def __init__(self, chosen: random.Random, on: float, fails: Fails) -> None:
        self.now = on
        self._fails = fails
        super().__init__(
            _Home(), self._CONFIG, randomness=chosen, clock=lambda: 0, monotonic=lambda: self.now, sleep=_pause
        )

    async def sync_once(self) -> SyncReport:
        """Done, or not connected while the shard is away."""
        if self._fails(self.now):
            return SyncReport("no shard answered")
        return SyncReport(DONE, connected=True, status=200, requests=1, next_sync_secs=INTERVAL_SECONDS)


def product_television(chosen: random.Random, on: float, end: float, fails: Fails) -> Iterator[float]:
    """As SyncClient.run does it."""
    client = VirtualClient(chosen, on, fails)
    running = client.run()
    try:
        while True:
            client.now += running.send(None)
            if client.now >= end:
                return
            yield client.now
    finally:
        running.close()


def source_television(chosen: random.Random, on: float, end: float, fails: Fails) -> Iterator[float]:
    """At once when switched on, then by the interval to the second; after a failure 3 times more, after 1, 2 and 4 s."""
    at, failures = on, 0
    while at < end:
        yield at
        failures = failures + 1 if fails(at) and failures < SOURCE_FAST_RETRIES else 0
        at += 2.0 ** (failures - 1) if failures else INTERVAL_SECONDS


@dataclass(frozen=True, slots=True)
class Herd:
    """Load of a shard's televisions: steady is its mean in syncs a second at DEVICES_OF_A_SHARD; the rest are ratios to it.

    during and after: mean and highest second of an outage, highest second after it; power_return: highest second of it.
    """

    steady: float
    during: float
    during_peak: float
    after_peak: float
    power_return_peak: float


def simulate(television: Television, devices: int, seed: int) -> Herd:
    """An outage that all televisions of a shard meet in the steady state, and a return of power to all of them."""
    begins = SETTLED_SECONDS + STEADY_SECONDS
    over, end = begins + OUTAGE_SECONDS, begins + OUTAGE_SECONDS + AFTER_SECONDS
    bin_seconds = DEVICES_OF_A_SHARD / devices
    chosen = random.Random(seed)

    def load(on_within: float, until: float, fails: Fails) -> np.ndarray:
        """Syncs in each bin of time."""
        bins = np.zeros(int(until / bin_seconds) + 1, dtype=np.int64)
        for _ in range(devices):
            for moment in television(chosen, chosen.uniform(0, on_within), until, fails):
                bins[int(moment / bin_seconds)] += 1
        return bins[:-1]

    counts = load(INTERVAL_SECONDS, end, lambda at: begins <= at < over)
    first, start, stop = (round(moment / bin_seconds) for moment in (SETTLED_SECONDS, begins, over))
    steady = float(counts[first:start].mean())
    back = load(RETURN_SECONDS, STEADY_SECONDS, lambda at: False)
    during = counts[start:stop]
    return Herd(
        steady, *(float(value) / steady for value in (during.mean(), during.max(), counts[stop:].max(), back.max()))
    )


def herd_lines(devices: int, seed: int) -> list[dict]:
    """outage_load_ratio, load_after_outage_ratio and power_return_peak_ratio, each with what the source's policy gives."""
    ours, source = (simulate(television, devices, seed) for television in (product_television, source_television))
    expected = DEVICES_OF_A_SHARD / INTERVAL_SECONDS
    fault = None
    if not 0.95 < ours.steady / expected < 1.05:
        fault = f"expected {expected:.0f} syncs a second in the steady state, got {ours.steady:.0f}"
    facts = {"devices": devices, "steady_syncs_per_second": round(ours.steady, 1), "clock": "virtual"}
    outage = facts | {"outage_minutes": OUTAGE_SECONDS // 60}
    return [
        line("outage_load_ratio", ours.during, fault)
        | outage
        | {"peak": round(ours.during_peak, 3), "source_policy": round(source.during, 3)},
        line("load_after_outage_ratio", ours.after_peak, fault)
        | outage
        | {"source_policy": round(source.after_peak, 3)},
        line("power_return_peak_ratio", ours.power_return_peak, fault)
        | facts
        | {
            "all_on_within_seconds": RETURN_SECONDS,
            "peak_syncs_per_second": round(ours.power_return_peak * ours.steady, 1),
            "source_policy": round(source.power_return_peak, 3),
        },
    ]
