"""Counters that all processes of a shard share, and /metrics from them.

The supervisor maps one page of memory before it forks; each process adds in a row of its own, so nothing is locked, and
whoever is asked sums the rows. Counting costs 0.1 µs. No label names a device or a title.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Metric

    from cloud.shard import ShardManager

STATUSES = (200, 201, 206, 304, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 416, 426, 429, 431, 500, 503)
"""Status codes that are counted apart. Everything else counts as 500."""
ROUTES = ("sync", "devices", "bundles", "federation", "other")
LATENCY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

NAMES = {
    "changes_stored": "Requests that changed what is stored.",
    "titles_stored": "Finished titles stored.",
    "titles_unknown": "Titles dropped because the catalogue has no number for them.",
    "resets": "Requests answered with a reset.",
    "refused_unread": "Requests refused before they were read, because the shard was overloaded.",
    "connections_refused": "Connections closed at once because there were too many.",
    "connections_timed_out": "Connections closed because a request did not arrive in time.",
    "purged": "Records deleted because of their age.",
    "published": "Steps of counting that pulled or published something.",
    "counting_faults": "Steps of counting that failed, or pulled nothing although there was something.",
    "restarts": "Processes of the shard that ended and were started again.",
}
GAUGES = {
    "ready": "Workers that take requests.",
    "connections": "Open connections.",
    "commits": "Transactions since the worker's start.",
}
_LAYOUT = (
    *NAMES,
    *GAUGES,
    *(f"{route}:{status}" for route in ROUTES for status in STATUSES),
    *(f"latency:{bound}" for bound in LATENCY_BOUNDS_MS),
    "latency:more",
    "latency:sum_us",
)
_PLACE = {name: place for place, name in enumerate(_LAYOUT)}


class SharedCounters:
    """The memory of all rows. To be made before the processes fork."""

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * len(_LAYOUT) * 8)
        self._numbers = memoryview(self._memory).cast("Q")
        self._rows = rows

    def row(self, number: int) -> Counters:
        """The counters of one process, kept over its restarts."""
        start = number * len(_LAYOUT)
        return Counters(self, self._numbers[start : start + len(_LAYOUT)])

    def total(self, name: str) -> int:
        """The sum over all processes."""
        return sum(self._numbers[_PLACE[name] :: len(_LAYOUT)])


class Counters:
    """One process's row."""

    def __init__(self, shared: SharedCounters, numbers: memoryview) -> None:
        self.shared, self._numbers = shared, numbers

    def add(self, name: str, count: int = 1) -> None:
        """Count on. name: of NAMES."""
        self._numbers[_PLACE[name]] += count

    def put(self, name: str, value: int) -> None:
        """Set a gauge. name: of GAUGES."""
        self._numbers[_PLACE[name]] = value

    def answered(self, route: str, status: int) -> None:
        """Count a reply."""
        place = _PLACE.get(f"{route}:{status}")
        self._numbers[_PLACE[f"{route}:500"] if place is None else place] += 1

    def took(self, milliseconds: float) -> None:
        """Count a sync that was let in, by how long it took from its last byte to its reply."""
        numbers = self._numbers
        numbers[_PLACE["latency:sum_us"]] += int(milliseconds * 1000)
        for bound, place in _BOUNDS:
            if milliseconds <= bound:
                numbers[place] += 1
                return
        numbers[_PLACE["latency:more"]] += 1

    def totals(self) -> dict[str, int]:
        """The sums of NAMES over all processes."""
        return {name: self.shared.total(name) for name in NAMES}


_BOUNDS = tuple((bound, _PLACE[f"latency:{bound}"]) for bound in LATENCY_BOUNDS_MS)


class ShardCollector:
    """What prometheus-client asks for the numbers."""

    def __init__(self, shared: SharedCounters, manager: ShardManager) -> None:
        self._shared, self._manager = shared, manager

    def collect(self) -> Iterator[Metric]:
        """All families of metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, text in NAMES.items():
            yield CounterMetricFamily(f"omega_{name}", text, value=self._shared.total(name))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"omega_{name}", text, value=self._shared.total(name))
        replies = CounterMetricFamily("omega_replies", "Replies by route and status.", labels=("route", "status"))
        for route in ROUTES:
            for status in STATUSES:
                count = self._shared.total(f"{route}:{status}")
                if count:
                    replies.add_metric((route, str(status)), count)
        yield replies
        yield HistogramMetricFamily(
            "omega_sync_seconds", "How long a sync took that was let in.", buckets=list(self._buckets()),
            sum_value=self._shared.total("latency:sum_us") / 1e6,
        )  # fmt: skip
        facts = self._manager.storage.facts()
        for name, text, value in (
            ("devices", "Devices known.", facts.devices),
            ("title_pages", "Pages of finished titles kept.", facts.pages),
            ("count_reports", "Count reports kept.", facts.reports),
            ("store_bytes", "Bytes of the database.", facts.bytes_used),
            ("damaged_records", "Records that failed their checksum, of this worker.", facts.damaged_records),
        ):
            yield GaugeMetricFamily(f"omega_{name}", text, value=value)

    def _buckets(self) -> Iterable[tuple[str, float]]:
        total = 0
        for bound in LATENCY_BOUNDS_MS:
            total += self._shared.total(f"latency:{bound}")
            yield str(bound / 1000), total
        yield "+Inf", total + self._shared.total("latency:more")


def exposition(shared: SharedCounters, manager: ShardManager) -> bytes:
    """The text of /metrics."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(ShardCollector(shared, manager))
    return generate_latest(registry)
