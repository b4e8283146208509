"""The thread that does the brain's timed work."""

from __future__ import annotations

import threading
from collections.abc import Callable

from omega_edge.errors import OmegaError

MAINTENANCE_PERIOD_SECONDS = 5.0


class Maintenance:
    """Calls a function every MAINTENANCE_PERIOD_SECONDS until stopped. degraded: where faults are named; one that the
    next call does not meet is taken out again."""

    def __init__(self, maintain: Callable[[], None], degraded: dict[str, str]) -> None:
        self._maintain = maintain
        self._degraded = degraded
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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
