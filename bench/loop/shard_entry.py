"""A whole shard as `python -m cloud` runs it, but for its clock: `python -m bench.loop.shard_entry CLOCK_FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.loop.clock import SharedClock
from cloud.configuration import from_environment
from cloud.server import run


def main() -> int:
    """Run until SIGTERM; the port is told on standard output once it takes requests."""
    clock = SharedClock(Path(sys.argv[1]))
    return run(from_environment(), clock, started=lambda port: print(f"listening on {port}", flush=True))


if __name__ == "__main__":
    sys.exit(main())
