"""The verb `export`: everything stored about the household, printed or in a file of its own."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
from pathlib import Path

from omega_edge.cli_codes import EXIT_OK
from omega_edge.cli_output import in_bytes, write_json
from omega_edge.cli_session import open_brain
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError


def export(options: argparse.Namespace, config: BrainConfig) -> int:
    """Print the export, or write it to --out. ConfigError if that is no file name or lies in the storage folder."""
    if options.out is not None:
        _check_target(options.out, config.storage_path)
    with open_brain(config) as brain:
        exported = brain.export()
    if options.out is None:
        write_json(exported)
        return EXIT_OK
    _remove_stale(options.out)
    _write_whole(options.out, exported)
    size_bytes = options.out.stat().st_size
    if options.json:
        write_json({"file": options.out, "bytes": size_bytes})
    else:
        print(f"{options.out}: {in_bytes(size_bytes)}")
    return EXIT_OK


def _check_target(out: Path, storage: Path) -> None:
    if not out.name:
        raise ConfigError(f"export --out: expected the name of a file, got {str(out)!r}")
    # Only the folder is followed: a link of the target's name is replaced, not written through.
    folder = Path(os.path.realpath(out.parent))
    if folder.is_relative_to(os.path.realpath(storage)):
        raise ConfigError(
            f"export --out: expected a file outside the storage folder {storage}, got {out}. "
            "What is forgotten is named by no file in that folder, and an export is never forgotten"
        )


def _write_whole(out: Path, exported: dict) -> None:
    """Write the file whole or not at all."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    # The file names what the household watched: for its owner only.
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        try:
            # The lock tells another export that this one lives; the system drops it when the process dies.
            fcntl.flock(file, fcntl.LOCK_EX)
            write_json(exported, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)


def _remove_stale(out: Path) -> None:
    """Remove what killed exports to the same file left: as good as an export, and nobody knows of it."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[0-9]+\.tmp")
    for path in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except OSError:
            # Held by an export that lives, or another user's: not ours to remove.
            continue
