"""The thread that does the brain's timed work."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable

from omega_edge.errors import OmegaError

MAINTENANCE_PERIOD_SECONDS = 5.0
MEMORY_RETURN_PERIOD_SECONDS = 600.0


class Maintenance:
    """Calls a function every MAINTENANCE_PERIOD_SECONDS until stopped. degraded: where faults are named; one that the
    next call does not meet is taken out again."""

    def __init__(self, maintain: Callable[[], None], degraded: dict[str, str]) -> None:
        self._maintain = maintain
        self._degraded = degraded
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._memory_returned_at = -math.inf

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="omega-edge-maintenance", daemon=True)
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Let the call that runs be the last; does not wait."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the end, unless this is that thread."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def return_freed_memory(self) -> None:
        """Once every MEMORY_RETURN_PERIOD_SECONDS: let the C library give freed memory back to the system. Reading the store
        and consolidating free megabytes at once, which it would keep for as long as the process runs."""
        now = time.monotonic()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep less, or none
        if trim is not None and now - self._memory_returned_at >= MEMORY_RETURN_PERIOD_SECONDS:
            self._memory_returned_at = now
            trim(ctypes.c_size_t(0))

    def _run(self) -> None:
        try:
            while not self._stop.wait(MAINTENANCE_PERIOD_SECONDS):
                try:
                    self._maintain()
                except (OmegaError, OSError) as fault:
                    self._degraded["maintenance"] = str(fault)
                else:
                    self._degraded.pop("maintenance", None)
        except BaseException as fault:
            self._degraded["maintenance"] = f"stopped for good: {type(fault).__name__}: {fault}"
            raise
