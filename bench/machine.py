"""What a measurement ran on, and what the kernel says of this process.

What only one function needs is imported there: a process whose memory is measured imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IN_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
MEGABYTE = 1e6
"""MB in every figure: 10^6 bytes, which reads higher than MiB."""


def machine_facts() -> dict[str, object]:
    """CPU model, architecture, cores, kernel and Python of this machine."""
    import platform

    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    """Name of the CPU; on ARM, where the kernel gives no name, its implementer and part numbers."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    return f"implementer {fields.get('CPU implementer', '?')} part {fields.get('CPU part', '?')}"


def commit_facts() -> dict[str, object]:
    """Commit hash of the tree and whether it differs from that commit; None for both outside git.

    The results file is left out: writing it is what a run does.
    """
    if not (ROOT / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)bench/results.jsonl")
    return {"commit": commit, "dirty": bool(changed)}


def _git(*arguments: str) -> str:
    import subprocess

    # The tree may belong to another user than the one who measures.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def file_system_of(path: Path) -> str:
    """Type of the file system that a path lies on, as the kernel names it, such as "ext4"."""
    resolved = path.resolve()
    best, name = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split(" ")[4].encode().decode("unicode_escape"))
        if resolved.is_relative_to(mount_point) and len(mount_point.parts) > best:
            best, name = len(mount_point.parts), after.split(" ")[0]
    return name


def process_io() -> tuple[int, int]:
    """Bytes that this process has handed to write calls, and bytes of pages it has dirtied on a block device."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["wchar"]), int(fields["write_bytes"])


def resident_memory() -> dict[str, float]:
    """Memory of this process in MB: resident, its anonymous part, proportional share, and the highest resident."""
    rollup = _kilobyte_fields("/proc/self/smaps_rollup")
    status = _kilobyte_fields("/proc/self/status")
    return {
        "resident": rollup["Rss"] * 1024 / MEGABYTE,
        "anonymous": rollup["Anonymous"] * 1024 / MEGABYTE,
        "proportional": rollup["Pss"] * 1024 / MEGABYTE,
        "peak": status["VmHWM"] * 1024 / MEGABYTE,
    }


def _kilobyte_fields(path: str) -> dict[str, int]:
    fields = {}
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            fields[words[0].rstrip(":")] = int(words[1])
    return fields


def files_under(paths: Iterable[Path]) -> list[Path]:
    """The regular files at and below some paths, in order."""
    found: list[Path] = []
    for path in paths:
        found.extend([path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file()))
    return found


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Ask the kernel to drop the cached pages of some files. Pages that another process has mapped stay."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a dirty page cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(files: Iterable[Path]) -> float:
    """Share (0 to 1) of the files' pages that lie in the page cache."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    cached = pages = 0
    for path in files:
        length = path.stat().st_size
        if not length:
            continue
        flags = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        # A private mapping counts as writable, so ctypes gives its address; it reads no page by itself.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), length, flags=mmap.MAP_PRIVATE) as mapped:
            first_byte = ctypes.c_char.from_buffer(mapped)
            failed = libc.mincore(ctypes.addressof(first_byte), length, flags)
            del first_byte  # the mapping cannot be closed while it is referred to
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        cached += sum(flag & 1 for flag in flags.raw[: -(-length // mmap.PAGESIZE)])
        pages += -(-length // mmap.PAGESIZE)
    return cached / pages if pages else 0.0
