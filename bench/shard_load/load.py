"""Drives a fleet against a shard: as fast as replies come (closed loop), or at times set beforehand (open loop).

In the open loop the moments of sending are drawn before the run, as of devices that know nothing of one another, and a
reply's latency counts from that moment, whether or not a connection or the processor was free then. So a shard that stops
for a second is charged for all that should have been sent meanwhile. Every reply is checked (checks.py).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import uvloop

from bench.shard_load.checks import Checked, ReplyCheck
from bench.shard_load.client import Connection, Reply
from bench.shard_load.fleet import Fleet

TICK_SECONDS = 0.001
"""How often the open loop looks what is due; what it is late by is counted as latency."""
LAST_REPLIES_SECONDS = 10.0
REFUSED_SECONDS = 0.03
"""In the closed loop, how long a connection that was refused lets pass before it goes on. (A television waits for minutes.)"""
MAX_FAULTS_TOLD = 5
MAX_FAULTS = 1_000
"""After so many, nothing more is sent."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one run. Moments in seconds since its start, latencies in ms.

    accepted, refused: latency from the moment that was intended, of each reply of that kind that came between the end of the
    warm-up and that of the run, and, so that none is left out for being slow, of all that came later. refused_after_sending:
    the shard's own part of the latter. lateness: how long after its moment a request was sent.
    """

    seconds: float
    accepted: array = field(default_factory=lambda: array("d"))
    refused: array = field(default_factory=lambda: array("d"))
    refused_after_sending: array = field(default_factory=lambda: array("d"))
    lateness: array = field(default_factory=lambda: array("d"))
    in_time: int = 0
    """Replies that accepted and came between the end of the warm-up and that of the run."""
    offered: int = 0
    all_accepted: int = 0
    """Of the whole run, warm-up and last replies included."""
    titles: int = 0
    lost: int = 0
    """Connections that ended in the place of a reply."""
    unanswered: int = 0
    connections: int = 0
    faults: int = 0
    told: list[str] = field(default_factory=list)

    def add_fault(self, text: str) -> None:
        """Count a fault; the first ones are kept in words."""
        self.faults += 1
        if len(self.told) < MAX_FAULTS_TOLD:
            self.told.append(text)

    @property
    def goodput(self) -> float:
        """Accepted syncs a second, by when their replies came."""
        return self.in_time / self.seconds

    def fault(self) -> str | None:
        """What is wrong with the run, None where all replies were as they must be."""
        if self.faults:
            return f"{self.faults} wrong replies, such as: {'; '.join(self.told)}"
        if self.unanswered:
            return f"{self.unanswered} requests had no reply {LAST_REPLIES_SECONDS:g} s after the run"
        return None


def percentile(values: array, share: float) -> float | None:
    """The value that `share` of the values do not exceed, one that was measured; None of none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else None


def run(work: Coroutine[object, object, Result]) -> Result:
    """The result of a coroutine, on uvloop, which costs the client half. SIGTERM cancels it, then ends the process."""
    terminated = 128 + signal.SIGTERM
    before = signal.getsignal(signal.SIGTERM)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(work)
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            sys.exit(terminated)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)


class Load:
    """The fleet's devices over at most max_connections connections to 127.0.0.1:port."""

    def __init__(self, fleet: Fleet, port: int, check: ReplyCheck, max_connections: int) -> None:
        self._fleet, self._port, self._check = fleet, port, check
        self._max_connections = max_connections
        self._devices = deque(range(len(fleet)))
        self._free: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task] = set()
        self._in_flight = 0
        self._paused = 0
        self._closed_loop = False
        self._each_once = False
        self._started = 0.0
        self._warm_up = 0.0
        self._end = 0.0
        self._outcome = Outcome(0.0)

    async def closed_loop(
        self, connections: int, seconds: float, warm_up: float, each_device_once: bool = False
    ) -> Outcome:
        """Each connection sends its next request as soon as its reply came, for warm_up + seconds; or until every device
        has synced once, which ends it earlier.
        """
        self._begin(seconds, warm_up)
        self._closed_loop, self._each_once = True, each_device_once
        for _ in range(connections):
            self._launch(0.0)
        await self._settle(self._end)
        return self._ended()

    async def open_loop(self, rate: float, seconds: float, warm_up: float, seed: int) -> Outcome:
        """Requests at moments of a Poisson process of so many a second."""
        gaps = np.random.default_rng(seed).exponential(1.0 / rate, int(rate * (seconds + warm_up) * 1.2) + 100)
        moments = np.cumsum(gaps)
        due = moments[moments < warm_up + seconds].tolist()
        self._begin(seconds, warm_up)
        self._closed_loop, self._each_once = False, False
        at = 0
        while at < len(due) and self._outcome.faults < MAX_FAULTS:
            now = time.perf_counter() - self._started
            while at < len(due) and due[at] <= now:
                self._launch(due[at])
                at += 1
            if at < len(due):
                await asyncio.sleep(max(TICK_SECONDS, due[at] - now))
        await self._settle(0.0)
        return self._ended()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._connections):
            connection.abort()
        for task in self._opening:
            task.cancel()

    def _begin(self, seconds: float, warm_up: float) -> None:
        self._outcome = Outcome(seconds)
        self._warm_up, self._end = warm_up, warm_up + seconds
        self._started = time.perf_counter()

    async def _settle(self, until: float) -> None:
        """Wait until the moment, then for the last replies, as long as they may take."""
        now = time.perf_counter() - self._started
        deadline = max(until, now) + LAST_REPLIES_SECONDS
        while self._in_flight or self._opening or self._paused or (self._waiting and self._devices):
            now = time.perf_counter() - self._started
            if now > deadline:
                break
            if self._outcome.faults >= MAX_FAULTS:
                self._end = 0.0  # a shard that answers wrongly is not asked for ever
            await asyncio.sleep(0.005)

    def _ended(self) -> Outcome:
        outcome = self._outcome
        if self._each_once:  # moments for which no device was left
            self._waiting.clear()
        if self._in_flight or self._waiting:
            outcome.unanswered = self._in_flight + len(self._waiting)
            self.close()
        outcome.connections = len(self._connections)
        if self._each_once:
            self._devices = deque(range(len(self._fleet)))
        return outcome

    def _next_in_closed_loop(self) -> None:
        self._paused -= 1
        now = time.perf_counter() - self._started
        if self._closed_loop and now < self._end and self._devices:
            self._launch(now)

    def _launch(self, moment: float) -> None:
        """Send a request that is due, or let it wait for a connection."""
        self._outcome.offered += moment >= self._warm_up
        self._place(moment)

    def _place(self, moment: float) -> None:
        while self._free and self._devices:
            connection = self._free.pop()
            if connection.open:
                self._send(connection, moment)
                return
            self._connections.discard(connection)
        self._waiting.append(moment)
        if len(self._connections) + len(self._opening) < self._max_connections:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self._finished), "127.0.0.1", self._port)
        except OSError:
            self._outcome.lost += 1
            if self._waiting:
                self._waiting.popleft()
            return
        self._connections.add(connection)
        self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        if self._waiting and self._devices:
            self._send(connection, self._waiting.popleft())
        else:
            self._free.append(connection)

    def _send(self, connection: Connection, moment: float) -> None:
        device = self._devices.popleft()
        sent = time.perf_counter() - self._started
        if moment >= self._warm_up:
            self._outcome.lateness.append((sent - moment) * 1e3)
        self._in_flight += 1
        connection.send(self._fleet.request(device), (device, moment, sent))

    def _finished(self, connection: Connection, reply: Reply | None) -> None:
        """A reply came, or the connection ended."""
        now = time.perf_counter() - self._started
        device, moment, sent = connection.slot
        self._in_flight -= 1
        outcome, counted = self._outcome, moment >= self._warm_up
        titles = len(self._fleet.next_page(device).rows)
        judged = Checked.LOST if reply is None else self._check.judge(device, reply, outcome)
        if judged is Checked.ACCEPTED:
            outcome.all_accepted += 1
            outcome.in_time += self._warm_up <= now < self._end
            if counted:
                outcome.accepted.append((now - moment) * 1e3)
                outcome.titles += titles
        elif judged is Checked.REFUSED and counted:
            outcome.refused.append((now - moment) * 1e3)
            outcome.refused_after_sending.append((now - sent) * 1e3)
        elif judged is Checked.LOST:
            outcome.lost += 1
        if not self._each_once or judged is not Checked.ACCEPTED:
            self._devices.append(device)
        if not connection.open:
            self._connections.discard(connection)
        if self._closed_loop and judged is Checked.REFUSED:
            self._paused += 1
            asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._next_in_closed_loop)
        elif self._closed_loop and now < self._end and self._devices:
            outcome.offered += now >= self._warm_up
            self._waiting.append(now)
        if connection.open:
            self._go_on(connection)
        elif self._waiting:
            self._place(self._waiting.popleft())
