"""Plain terminal text and JSON for the command line: widths, wrapping, colour, and what to do without Unicode."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TextIO

MIN_WIDTH, MAX_WIDTH = 72, 96
_STYLES = {"bold": "1", "dim": "2", "good": "32", "bad": "31", "warn": "33"}
_ASCII = str.maketrans(
    {
        "─": "-",
        "═": "=",
        "·": "-",
        "…": "~",
        "✓": "+",
        "✗": "x",
        "–": "-",
        "→": ">",
        "≤": "<",
        "“": '"',
        "”": '"',
        "’": "'",
    }
)
_PROBE = "─═·…✓✗–→≤“”’"


def as_plain(value: object) -> object:
    """The same value in the types that JSON has: messages become objects, tuples arrays, paths and enums text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value


def write_json(value: object, stream: TextIO | None = None) -> None:
    """One JSON value and a newline, in UTF-8 whatever the locale, as JSON requires. NaN is refused."""
    stream = sys.stdout if stream is None else stream
    text = json.dumps(as_plain(value), ensure_ascii=True, indent=2, allow_nan=False)
    stream.write(text + "\n")


def text_width(text: str) -> int:
    """Columns that the text takes on a terminal: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def fit(text: str, width: int) -> str:
    """The text, cut with an ellipsis or padded on the right, so that it takes exactly width columns."""
    if text_width(text) > width:
        kept = []
        used = 1
        for character in text:
            used += text_width(character)
            if used > width:
                break
            kept.append(character)
        text = "".join(kept).rstrip() + "…"
    return text + " " * (width - text_width(text))


def in_days(timestamp_ms: int, zone: tzinfo = UTC) -> str:
    """A day as "12 Jul 2013"."""
    return f"{_local(timestamp_ms, zone):%-d %b %Y}"


def in_minutes(timestamp_ms: int, zone: tzinfo = UTC) -> str:
    """A moment as "12 Jul 2013 21:40"."""
    return f"{_local(timestamp_ms, zone):%-d %b %Y %H:%M}"


def _local(timestamp_ms: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).astimezone(zone)


def in_bytes(count: float) -> str:
    """A size as "512 B", "4.2 kB" or "7.9 MB" (powers of 1,000)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def counted(count: int, noun: str) -> str:
    """ "1 title", "2,076 titles"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Screen:
    """Text for one stream: knows its width, whether it shows colour, and whether it can show Unicode."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        terminal = stream.isatty()
        columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns if terminal else MAX_WIDTH
        self.width = max(MIN_WIDTH, min(MAX_WIDTH, columns))
        self._colour = terminal and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"
        try:
            _PROBE.encode(stream.encoding or "ascii")
            self._unicode = True
        except UnicodeEncodeError:
            self._unicode = False

    def line(self, text: str = "") -> None:
        """One line. Without Unicode, rules and marks are drawn in ASCII and other letters become question marks."""
        if not self._unicode:
            text = text.translate(_ASCII)
            text = text.encode(self._stream.encoding or "ascii", "replace").decode(self._stream.encoding or "ascii")
        self._stream.write(text.rstrip() + "\n")

    def style(self, text: str, style: str) -> str:
        """The text in a style of _STYLES, or as it is where colour is off."""
        return f"\033[{_STYLES[style]}m{text}\033[0m" if self._colour else text

    def heading(self, text: str) -> None:
        """A blank line, the text in bold, and a rule under it."""
        self.line()
        self.line(self.style(text, "bold"))
        self.line(self.style("─" * min(self.width, text_width(text)), "dim"))

    def paragraph(self, text: str, indent: str = "", hanging: str | None = None, style: str | None = None) -> None:
        """The text wrapped to the width, lines after the first indented by `hanging` if that is given."""
        following = indent if hanging is None else hanging
        for part in textwrap.wrap(text, self.width, initial_indent=indent, subsequent_indent=following) or [""]:
            self.line(self.style(part, style) if style else part)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int], right: str) -> None:
        """A table; right: one character a column, "r" where it is aligned to the right. Cells are cut to fit."""
        self.line(self.style(self._cells(header, widths, right), "dim"))
        for row in rows:
            self.line(self._cells(row, widths, right))

    def _cells(self, row: Sequence[str], widths: Sequence[int], right: str) -> str:
        cells = []
        for cell, width, side in zip(row, widths, right, strict=True):
            fitted = fit(cell, width)
            cells.append(" " * (width - len(cell)) + cell if side == "r" and len(cell) < width else fitted)
        return "  ".join(cells)


class Progress:
    """Lines about work that takes over a second, on standard error. On a terminal one line is rewritten."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._rewrites = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = ""

    def say(self, text: str) -> None:
        """Show what goes on now."""
        if text == self._shown:
            return
        self._shown = text
        self._stream.write(f"\r\033[K{text}" if self._rewrites else text + "\n")
        self._stream.flush()

    def done(self) -> None:
        """Clear the line, so that the results stand alone."""
        if self._rewrites and self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
        self._shown = ""
