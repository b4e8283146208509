"""One clock for all processes of the loop: a moment in a mapped file, moved by whoever replays and read by shards and hub."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Self

_MOMENT = struct.Struct("<q")


class SharedClock:
    """Unix milliseconds in the first 8 bytes of a file, mapped into each process; a callable, as every part takes its clock.

    One process moves it while the others wait, so that no half-written moment can be read.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), _MOMENT.size)

    @classmethod
    def make(cls, path: Path, now_ms: int) -> Self:
        """A new clock's file, showing a moment."""
        path.write_bytes(_MOMENT.pack(now_ms))
        return cls(path)

    def __call__(self) -> int:
        return _MOMENT.unpack_from(self._mapped)[0]

    def move_to(self, now_ms: int) -> None:
        """Show another moment to all. It never goes back."""
        if now_ms < self():
            raise ValueError(f"now_ms: expected {self()} or later, got {now_ms}")
        _MOMENT.pack_into(self._mapped, 0, now_ms)

    def close(self) -> None:
        """Let go of the file."""
        self._mapped.close()
