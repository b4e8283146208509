"""What it costs on this disk to make a few bytes durable: the floor under every acknowledgement."""

from __future__ import annotations

import os
import time
from array import array
from pathlib import Path

from bench.machine import IN_MEMORY_FILE_SYSTEMS, file_system_of
from bench.shard_load.load import percentile

PAGE = bytes(4_096)


def disk_facts(folder: Path, count: int) -> dict[str, object]:
    """The file system below a folder, and ms for a page written over and synced, as a commit of LMDB ends; count times."""
    path = folder / "synced"
    taken = array("d")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(descriptor, PAGE * 16, 0)
        os.fsync(descriptor)
        for number in range(count):
            started = time.perf_counter()
            os.pwrite(descriptor, PAGE, number % 16 * len(PAGE))
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - started) * 1e3)
    finally:
        os.close(descriptor)
        path.unlink()
    file_system = file_system_of(folder)
    return {
        "file_system": file_system,
        "in_memory": file_system in IN_MEMORY_FILE_SYSTEMS,
        "sync_to_disk_ms_p50": round(percentile(taken, 0.5), 3),
        "sync_to_disk_ms_p99": round(percentile(taken, 0.99), 3),
    }
