"""The groups of measurements: each starts shards of its own in a folder of its own, and returns its lines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench.shard_load.checks import ReplyCheck
from bench.shard_load.disk import disk_facts
from bench.shard_load.fleet import Fleet, draw_pages
from bench.shard_load.herd import herd_lines
from bench.shard_load.ledger import Ledger
from bench.shard_load.load import Load, Outcome, percentile, run
from bench.shard_load.metrics import (
    AIM_SYNCS_PER_SECOND,
    OVERLOAD_ACCEPTED_MS_P99,
    OVERLOAD_REFUSED_MS_P99,
    STEADY_RATE,
    Scale,
    line,
)
from bench.shard_load.pictures import write_plot
from bench.shard_load.shard import COLLECTIVE_VERSION, DEVICE_KEY, Served, Shard, open_store

CONNECTIONS = 256
WHATEVER_COMES = 1_000_000
"""A bound on syncs a second that never closes the gate."""
MAX_CONNECTIONS = 2_000
IDLE_SECONDS = 1.0
FIRST_SYNCS_SECONDS = 300.0
"""The longest that a whole fleet may take for its first sync."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run measures, where its stores and its plot go, and how it says what it is at."""

    scale: Scale
    served: Served
    work: Path
    plot: Path
    machine: str
    seed: int
    say: Callable[[str], None]

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder of its own, removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.work) as folder:
            yield Path(folder)

    def fleet(self, devices: int) -> tuple[Fleet, ReplyCheck]:
        """Devices that have never synced, and what judges the replies to them."""
        catalog, now_ms = self.served.catalog, time.time_ns() // 1_000_000
        pages = draw_pages(catalog, catalog.count, self.scale.pages, now_ms, self.seed)
        fleet = Fleet(devices, pages, catalog, DEVICE_KEY, self.seed, COLLECTIVE_VERSION)
        return fleet, ReplyCheck(fleet, catalog, self.served.patterns_frame)


@dataclass(slots=True)
class Spent:
    """Processor seconds of the shard's processes and of this one over a run, those of an idle shard taken off."""

    shard: float
    client: float


def _first_faults(*faults: str | None) -> str | None:
    return next((fault for fault in faults if fault), None)


async def register(load: Load, fleet: Fleet) -> str | None:
    """Every device's first sync. What went wrong."""
    made = await load.closed_loop(CONNECTIONS, FIRST_SYNCS_SECONDS, 0.0, each_device_once=True)
    missing = fleet.acknowledged.count(0)
    return made.fault() or (f"{missing} of {len(fleet)} devices have not synced" if missing else None)


def idle_share(shard: Shard) -> float:
    """The share of a core that the shard takes while nobody syncs."""
    before, started = shard.processor_seconds(), time.perf_counter()
    time.sleep(IDLE_SECONDS)
    return (shard.processor_seconds() - before) / (time.perf_counter() - started)


class Meter:
    """Processor time of a shard and of this process over the body of a with statement."""

    def __init__(self, shard: Shard, idle: float) -> None:
        self._shard, self._idle = shard, idle
        self.spent = Spent(0.0, 0.0)

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._before = (self._shard.processor_seconds(), time.process_time())
        return self

    def __exit__(self, *exception: object) -> None:
        seconds = time.perf_counter() - self._started
        shard, client = self._before
        self.spent = Spent(self._shard.processor_seconds() - shard - self._idle * seconds, time.process_time() - client)


def audit(store: Path, fleet: Fleet) -> str | None:
    """What the store of an ended shard lacks of what it acknowledged."""
    storage = open_store(store)
    try:
        faults = Ledger(fleet).check(storage)
    finally:
        storage.close()
    return faults[0] if faults else None


def latencies(outcome: Outcome) -> dict[str, object]:
    """Middle, 99th percentile and highest latency in ms, and how late the client itself was."""
    found = {
        "accepted_ms_p50": percentile(outcome.accepted, 0.5),
        "accepted_ms_p99": percentile(outcome.accepted, 0.99),
        "accepted_ms_max": percentile(outcome.accepted, 1.0),
        "client_late_ms_p99": percentile(outcome.lateness, 0.99),
    }
    return {name: None if value is None else round(value, 3) for name, value in found.items()}


def measure_saturated(settings: Settings) -> list[dict]:
    """durable_syncs_per_second of a shard as it comes, and where it lets in whatever comes, with one process and with two; and
    cpu_us_per_sync of the one process that refuses nothing.
    """
    lines = []
    for workers, bound in ((1, None), (1, WHATEVER_COMES), (2, WHATEVER_COMES)):
        with settings.folder() as folder:
            disk = disk_facts(folder, settings.scale.syncs_to_disk)
            with Shard(folder, settings.served, workers, max_syncs_per_second=bound) as shard:
                fleet, check = settings.fleet(settings.scale.busy_devices)
                found, outcome, spent = _saturate(settings, shard, fleet, check)
                stopped = shard.stop()
            fault = _first_faults(found, outcome.fault(), stopped, audit(folder, fleet))
        common = {"processes": workers, "connections": CONNECTIONS, "devices": len(fleet), "seconds": outcome.seconds}
        common["lets_in"] = "5,000 a second (default)" if bound is None else "whatever comes"
        syncs = max(outcome.all_accepted, 1)
        made = line("durable_syncs_per_second", outcome.goodput, fault) | common | latencies(outcome)
        made |= {"titles_per_sync": round(outcome.titles / max(len(outcome.accepted), 1), 2), "lost": outcome.lost}
        made |= {"client_us_per_sync": round(spent.client / syncs * 1e6, 1), "aim": AIM_SYNCS_PER_SECOND}
        made["refused_per_second"] = round(len(outcome.refused) / outcome.seconds, 1)
        cost = line("cpu_us_per_sync", spent.shard / syncs * 1e6, fault) | common
        if bound is None:
            lines.append(made | disk)
            continue
        made = {name: value for name, value in made.items() if name not in ("limit", "met", "at_least")}
        lines.append(made | {"cpu_us_per_sync": cost["value"]} | disk)
        if workers == 1:
            lines.append(cost)
    return lines


def _saturate(settings: Settings, shard: Shard, fleet: Fleet, check: ReplyCheck) -> tuple[str | None, Outcome, Spent]:
    """First syncs of all, a pause, then as fast as replies come."""
    load = Load(fleet, shard.port, check, MAX_CONNECTIONS)

    async def work() -> tuple[str | None, Outcome, Spent]:
        fault = await register(load, fleet)
        meter = Meter(shard, idle_share(shard))
        with meter:
            outcome = await load.closed_loop(CONNECTIONS, settings.scale.saturated, settings.scale.warm_up)
        load.close()
        return fault, outcome, meter.spent

    return run(work())


def measure_steady(settings: Settings) -> list[dict]:
    """sync_ms_p99 of the open loop at several rates, and resident_mb, with every device of a full shard known to it."""
    scale, lines = settings.scale, []
    with settings.folder() as folder:
        disk = disk_facts(folder, scale.syncs_to_disk)
        with Shard(folder, settings.served) as shard:
            fleet, check = settings.fleet(scale.devices)
            empty = shard.memory()
            load = Load(fleet, shard.port, check, MAX_CONNECTIONS)
            settings.say(f"  first syncs of {scale.devices:,} devices")
            fault = run(closing(register(load, fleet), load))
            for rate in scale.rates:
                settings.say(f"  {rate:g} syncs/s")
                seconds = scale.steady if rate == STEADY_RATE else scale.at_rate
                meter = Meter(shard, idle_share(shard))
                load = Load(fleet, shard.port, check, MAX_CONNECTIONS)
                with meter:
                    outcome = run(closing(load.open_loop(rate, seconds, scale.warm_up, settings.seed), load))
                made = line("sync_ms_p99", percentile(outcome.accepted, 0.99), _first_faults(fault, outcome.fault()))
                if rate != STEADY_RATE:
                    made = {name: value for name, value in made.items() if name not in ("limit", "met")}
                spent = meter.spent.shard / max(outcome.all_accepted, 1) * 1e6
                made |= {"rate": rate, "devices": len(fleet), "seconds": seconds, "goodput": round(outcome.goodput, 1)}
                made |= {"refused": len(outcome.refused), "cpu_us_per_sync": round(spent, 1)} | latencies(outcome)
                lines.append(made | disk)
            held = shard.memory()
            stopped = shard.stop()
        fault = _first_faults(fault, stopped, audit(folder, fleet))
    resident = line("resident_mb", held.resident, fault) | {"devices": len(fleet)}
    resident |= {name: round(value, 2) for name, value in asdict(held).items() if name != "resident"}
    resident |= {"resident_before_the_first_sync": round(empty.resident, 2), "syncs": sum(fleet.acknowledged)}
    return [*lines, resident]


async def closing(work: object, load: Load) -> object:
    """The work's result, the load's connections closed after it."""
    try:
        return await work
    finally:
        load.close()


def measure_overload(settings: Settings) -> list[dict]:
    """goodput_share_at_5x, and the plot of the ramp that leads there."""
    scale = settings.scale
    with settings.folder() as folder:
        with Shard(folder, settings.served) as shard:
            fleet, check = settings.fleet(scale.busy_devices)
            load = Load(fleet, shard.port, check, MAX_CONNECTIONS)
            fault, capacity, steps = run(closing(_ramp(settings, load, fleet), load))
            stopped = shard.stop()
        fault = _first_faults(fault, stopped, audit(folder, fleet))
    highest = max(step["goodput"] for step in steps)
    last = steps[-1]
    share = last["goodput"] / highest if highest else 0.0
    made = line("goodput_share_at_5x", share, fault)
    kept = last["accepted_ms_p99"] is not None and last["accepted_ms_p99"] <= OVERLOAD_ACCEPTED_MS_P99
    quick = last["refused_ms_p99"] is None or last["refused_ms_p99"] <= OVERLOAD_REFUSED_MS_P99
    made |= {"share_met": made["met"], "accepted_met": kept, "refused_met": quick}
    made["met"] = made["met"] and kept and quick
    made |= {"capacity": round(capacity, 1), "offered": last["offered"], "goodput": last["goodput"], "peak": highest}
    made |= {"accepted_ms_p99": last["accepted_ms_p99"], "accepted_ms_limit": OVERLOAD_ACCEPTED_MS_P99}
    made |= {"refused_ms_p99": last["refused_ms_p99"], "refused_ms_limit": OVERLOAD_REFUSED_MS_P99, "ramp": steps}
    write_plot(settings.plot, steps, capacity, settings.machine)
    settings.say(f"  plot: {settings.plot}")
    return [made]


async def _ramp(settings: Settings, load: Load, fleet: Fleet) -> tuple[str | None, float, list[dict]]:
    """What went wrong, the capacity of the closed loop, and what each step of the ramp gave."""
    scale = settings.scale
    fault = await register(load, fleet)
    closed = await load.closed_loop(CONNECTIONS, scale.at_step, scale.warm_up)
    fault = _first_faults(fault, closed.fault())
    steps = []
    for multiple in scale.ramp:
        rate = multiple * closed.goodput
        settings.say(f"  {multiple:g} times the capacity: {rate:,.0f} syncs/s")
        outcome = await load.open_loop(rate, scale.at_step, scale.warm_up, settings.seed)
        refused_ms = percentile(outcome.refused_after_sending, 0.99)
        step = {
            "multiple": multiple,
            "offered": round(outcome.offered / outcome.seconds, 1),
            "goodput": round(outcome.goodput, 1),
            "refused": round(len(outcome.refused) / outcome.seconds, 1),
            "refused_ms_p99": None if refused_ms is None else round(refused_ms, 3),
            "lost": outcome.lost,
            "connections": outcome.connections,
        }
        steps.append(step | latencies(outcome))
        fault = _first_faults(fault, outcome.fault() and f"at {multiple:g} times the capacity: {outcome.fault()}")
    return fault, closed.goodput, steps


def measure_herd(settings: Settings) -> list[dict]:
    """outage_load_ratio, load_after_outage_ratio and power_return_peak_ratio, on a virtual clock."""
    return herd_lines(settings.scale.simulated, settings.seed)
