"""Bytes to storage per event, over a trace of six hours on a virtual clock.

Three counts, because none alone tells the wear of the flash:
value: bytes handed to write calls (wchar of /proc/self/io), a checkpoint at the end and closing included: the journal
holds more events than the trace has, so a trace without it would never pay for the database. By default a checkpoint
follows some 1,000 events, so this is the dear side.
device_bytes_per_event: bytes of pages that became dirty and were on their way to the device (write_bytes). The six
hours pass in seconds here, so a page that is written to again and again is dirty once between two syncs.
device_bytes_with_writeback_per_event: the same where every file is written back whenever WRITEBACK_MS of the virtual
clock have passed, as Linux does with pages that stay dirty; so a page that is written to at every event counts at every
event.

The last two are neither exact: Linux counts the whole of a folio, of which a file that was read ahead may have some of
64 KB, and counts nothing of what the file system writes for itself, such as a file's time of change. The sectors of a
block device of its own (a loop device under --work) tell both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bench.footprint import read_facts
from bench.full_store import LISTED
from bench.machine import IN_MEMORY_FILE_SYSTEMS, file_system_of, files_under, process_io
from bench.viewing import Watched, read_viewing, respaced
from omega_edge.brain import OmegaBrain
from omega_edge.config import BrainConfig
from omega_edge.maintenance import MAINTENANCE_PERIOD_SECONDS

WRITEBACK_MS = 30_000
"""Linux writes a page back when it has been dirty for 30 s (vm.dirty_expire_centisecs)."""


class _VirtualTime:
    """A clock that runs the timed work while it moves on, as the brain's thread and the kernel would."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._maintain: Callable[[], None] = lambda: None
        self._written_back_ms = now_ms
        self._storage: Path | None = None

    def __call__(self) -> int:
        return self.now_ms

    def drives(self, maintain: Callable[[], None], written_back: Path | None) -> None:
        """Call maintain() every MAINTENANCE_PERIOD_SECONDS; write the files of a folder back, if one is given."""
        self._maintain, self._storage = maintain, written_back

    def move_to(self, at_ms: int) -> None:
        """Let the time pass until at_ms."""
        period_ms = int(MAINTENANCE_PERIOD_SECONDS * 1000)
        while self.now_ms < at_ms:
            self.now_ms = min(self.now_ms + period_ms, at_ms)
            self._maintain()
            if self._storage is not None and self.now_ms - self._written_back_ms >= WRITEBACK_MS:
                self._written_back_ms = self.now_ms
                _write_back(self._storage)


def _write_back(folder: Path) -> None:
    for path in files_under([folder]):
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.close(descriptor)


def measure_trace(settings: dict, options: dict) -> dict:
    """Bytes per event of the trace, a list shown before each viewing as on a television.

    options: storage; events_before, how many events it holds; written_back; and durability_window_secs, None for the
    default.
    """
    scale, facts = settings["scale"], read_facts(settings)
    viewing = read_viewing(Path(settings["data"]), scale["episodes"], scale["observes"])
    trace = respaced(viewing.stream[: scale["trace_events"]], facts["clock_ms"], seed=3)
    storage = Path(options["storage"])
    window = options["durability_window_secs"]
    chosen = {} if window is None else {"durability_window_secs": window}
    config = BrainConfig(storage, settings["catalog"], background_maintenance=False, **chosen)
    clock = _VirtualTime(facts["clock_ms"])
    with OmegaBrain.open(config, clock) as brain:
        clock.drives(brain.maintain, storage if options["written_back"] else None)
        before = process_io()
        for watched in trace:
            clock.move_to(watched.at_ms)
            brain.recommend(k=LISTED)
            brain.observe(watched.event())
        brain.flush()
        flushed = process_io()
        brain.checkpoint()
    closed = process_io()
    device = round((closed[1] - before[1]) / len(trace), 2)
    return {
        "submitted": (closed[0] - before[0]) / len(trace),
        "submitted_before_checkpoint": (flushed[0] - before[0]) / len(trace),
        "device": device if file_system_of(storage) not in IN_MEMORY_FILE_SYSTEMS else None,
        "loss_window_secs": config.durability_window_secs,
        "fault": _fault_after_reopening(config, clock, trace, options["events_before"]),
    }


def _fault_after_reopening(
    config: BrainConfig, clock: Callable[[], int], trace: list[Watched], events_before: int
) -> str | None:
    """Every event of the trace must be there. A full memory evicts episodes of little value, so there it is counted
    and every title must be known as seen."""
    with OmegaBrain.open(config, clock) as brain:
        events = brain.stats()["memory"]["events"]
        viewings = brain.export(profile="household")["viewings"]
        allowed = [watched.content_id for watched in trace if brain.explain(watched.content_id).withheld is None]
    if events != events_before + len(trace):
        return f"after reopening there are {events} events, expected {events_before + len(trace)}"
    if allowed:
        return f"after reopening {len(allowed)} titles of the trace are not known as seen, first {allowed[0]}"
    kept = {(item["content_id"], item["timestamp"]) for item in viewings}
    lost = [watched.content_id for watched in trace if (watched.content_id, watched.at_ms) not in kept]
    if lost and not events_before:
        return f"{len(lost)} of {len(trace)} events are gone after reopening, first {lost[0]}"
    return None
