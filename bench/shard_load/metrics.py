"""The metrics of a shard under load: names, units, limits, how much is measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.metrics import judged

UNITS = {
    "durable_syncs_per_second": "syncs/s",
    "cpu_us_per_sync": "us",
    "sync_ms_p99": "ms",
    "resident_mb": "MB",
    "goodput_share_at_5x": "share",
    "acknowledged_lost": "syncs",
    "outage_load_ratio": "ratio",
    "load_after_outage_ratio": "ratio",
    "power_return_peak_ratio": "ratio",
}
LIMITS = {
    "durable_syncs_per_second": 4_000.0,
    "cpu_us_per_sync": 100.0,
    "sync_ms_p99": 20.0,
    "resident_mb": 300.0,
    "goodput_share_at_5x": 0.9,
    "acknowledged_lost": 0.0,
    "outage_load_ratio": 1.1,
    "load_after_outage_ratio": 1.5,
}
AT_LEAST = frozenset({"durable_syncs_per_second", "goodput_share_at_5x"})
AIM_SYNCS_PER_SECOND = 10_000.0
"""Of all processes on two cores together."""
STEADY_RATE = 333.0
"""Syncs a second of 100,000 televisions that sync every 300 s."""
OVERLOAD_ACCEPTED_MS_P99 = 100.0
OVERLOAD_REFUSED_MS_P99 = 5.0
"""Within these an overloaded shard answers: with an acknowledgement, or with 503."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. Times in seconds; rates in syncs a second, ramp as multiples of the capacity measured."""

    devices: int
    busy_devices: int
    pages: int
    warm_up: float
    saturated: float
    steady: float
    rates: tuple[float, ...]
    at_rate: float
    ramp: tuple[float, ...]
    at_step: float
    kills: int
    simulated: int
    syncs_to_disk: int


FULL = Scale(
    devices=100_000,
    busy_devices=40_000,
    pages=4_096,
    warm_up=2.0,
    saturated=15.0,
    steady=60.0,
    rates=(STEADY_RATE, 1_000.0, 2_000.0, 3_000.0, 4_000.0),
    at_rate=15.0,
    ramp=(0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0),
    at_step=8.0,
    kills=1_000,
    simulated=100_000,
    syncs_to_disk=500,
)
QUICK = Scale(
    devices=1_000,
    busy_devices=4_000,
    pages=256,
    warm_up=0.3,
    saturated=1.5,
    steady=2.0,
    rates=(STEADY_RATE,),
    at_rate=2.0,
    ramp=(0.5, 1.0, 5.0),
    at_step=1.5,
    kills=10,
    simulated=2_000,
    syncs_to_disk=50,
)


def line(metric: str, value: float | None, fault: str | None) -> dict:
    """One metric's line, with its unit and, where it has one, its limit."""
    return judged(metric, value, UNITS[metric], fault, LIMITS.get(metric), at_least=metric in AT_LEAST)
