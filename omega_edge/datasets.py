"""Rating data sets read as viewing: MovieTweetings (movies.dat, ratings.dat) and MovieLens (movies.csv, ratings.csv).

A rating stands for a viewing: watch_percentage = rating / highest rating of the scale (10, or 5 for MovieLens). Each
file may be plain, .gz or .xz. A line that cannot be used is left out, counted and listed with its number and the
reason; a file with more than 1 % of such lines is refused.

Several ratings of one title by one household are several viewings and all are kept: a replay then shows rewatching as
it happened. Only a repetition with the same time as well is a copy of the line, not a viewing, and is left out.
"""

from __future__ import annotations

import csv
import gzip
import lzma
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from omega_edge.errors import DatasetError, ProtocolError
from omega_edge.protocol import MAX_TITLE_BYTES, check_content_id, check_text, check_timestamp

MAX_MALFORMED_SHARE = 0.01
MAX_LINE_BYTES = 64 * 1024
EARLIEST_YEAR, LATEST_YEAR = 1870, 2100

_TRAILING_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\)$")
_OPENERS: dict[str, Callable[..., BinaryIO]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_FIVE_STAR_SUSPICION = 1000
"""From so many ratings on, none above half of the scale means that the scale was not the one assumed."""

Progress = Callable[[str, int], None]
"""Called with (what is being read, lines read so far), every 10,000 lines."""


@dataclass(frozen=True, slots=True)
class DatasetTitle:
    """One title. name: as the data set spells it, with its year if it is there; genres: in the data set's order."""

    content_id: str
    name: str
    year: int | None
    genres: tuple[str, ...]

    @property
    def bare_name(self) -> str:
        """The name without the year at its end; the whole name if nothing else is in it."""
        return _TRAILING_YEAR.sub("", self.name) or self.name


@dataclass(frozen=True, slots=True)
class Events:
    """Viewings, ordered by (timestamp, place in the file). Arrays of one length.

    household, title: i32, index into Dataset.households and Dataset.titles. watch_percentage: f64, 0 to 1 (in f32 a
    rating of 7 of 10 would fall below the success threshold of 0.7). timestamp: i64, Unix ms.
    """

    household: np.ndarray
    title: np.ndarray
    watch_percentage: np.ndarray
    timestamp: np.ndarray

    def __len__(self) -> int:
        return len(self.title)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that was left out. line: counted from 1."""

    file: str
    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as read. titles: in file order; households: in order of first appearance in the ratings file."""

    name: str
    titles: tuple[DatasetTitle, ...]
    households: tuple[str, ...]
    events: Events
    malformed: tuple[Malformed, ...]
    licence: str | None
    """Text of the LICENSE file beside the data, if there is one."""


@dataclass(frozen=True, slots=True)
class _Format:
    name: str
    titles_file: str
    ratings_file: str
    separator: str
    rating_maximum: float


_FORMATS = (
    _Format("MovieTweetings", "movies.dat", "ratings.dat", "::", 10.0),
    _Format("MovieLens", "movies.csv", "ratings.csv", ",", 5.0),
)
_TITLE_COLUMNS = ("movieId", "title", "genres")
_RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")


class _Unusable(Exception):
    """Why one line cannot be used. Never leaves this module."""


def read_dataset(path: str | os.PathLike[str], progress: Progress | None = None) -> Dataset:
    """Read the data set in a directory.

    Raises DatasetError if no known pair of files is there, a file cannot be read, more than 1 % of a file's lines are
    unusable, or no title or rating remains.
    """
    directory = Path(path)
    data_format, titles_path, ratings_path = _locate(directory)
    report = progress or (lambda what, lines: None)
    malformed: list[Malformed] = []
    titles = _read_titles(data_format, titles_path, malformed, report)
    households, events = _read_ratings(data_format, ratings_path, titles, malformed, report)
    licence = directory / "LICENSE"
    return Dataset(
        name=f"{data_format.name} ({directory.resolve().name})",
        titles=titles,
        households=households,
        events=events,
        malformed=tuple(malformed),
        licence=licence.read_text(encoding="utf-8") if licence.is_file() else None,
    )


def _locate(directory: Path) -> tuple[_Format, Path, Path]:
    if not directory.is_dir():
        raise DatasetError(f"{directory}: expected a directory with a data set, found none")
    for data_format in _FORMATS:
        paths = [_present(directory, name) for name in (data_format.titles_file, data_format.ratings_file)]
        if paths[0] and paths[1]:
            return data_format, paths[0], paths[1]
        if paths[0] or paths[1]:
            missing = data_format.titles_file if paths[1] else data_format.ratings_file
            raise DatasetError(f"{directory}: expected {missing} (plain, .gz or .xz) beside its partner, found none")
    wanted = " or ".join(f"{known.titles_file} and {known.ratings_file} ({known.name})" for known in _FORMATS)
    raise DatasetError(f"{directory}: expected {wanted}, each plain, .gz or .xz; found neither")


def _present(directory: Path, name: str) -> Path | None:
    return next((directory / (name + end) for end in _OPENERS if (directory / (name + end)).is_file()), None)


def _lines(path: Path, what: str, report: Progress) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a plain or compressed file; blank lines are skipped."""
    number = 0
    try:
        with _OPENERS[path.suffix if path.suffix in _OPENERS else ""](path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise DatasetError(f"{path}: line {number} is longer than {MAX_LINE_BYTES} bytes: not a data set")
                if number % 10_000 == 0:
                    report(what, number)
                line = line.rstrip(b"\r\n")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read after line {number}: {error}") from error


class _Reader:
    """Lines of one file as fields, the unusable ones noted; refuses the file at the end if they are too many."""

    def __init__(self, data_format: _Format, path: Path, columns: tuple[str, ...], malformed: list[Malformed]) -> None:
        self.path = path
        self._separator = data_format.separator
        self._columns = columns
        self._malformed = malformed
        self._first_fault = len(malformed)
        self._order: list[int] | None = None

    def rows(self, what: str, report: Progress, parse: Callable[[list[str]], None]) -> None:
        """Call parse with the fields of each line, in the order of the columns; note the lines it refuses."""
        count = 0
        for number, line in _lines(self.path, what, report):
            try:
                fields = self._fields(line)
                if self._separator == "," and self._order is None:
                    self._order = self._header(fields)
                    continue
                count += 1
                parse(fields if self._order is None else self._ordered(fields))
            except (_Unusable, ProtocolError) as error:
                self._malformed.append(Malformed(self.path.name, number, str(error)))
            except UnicodeDecodeError as error:
                self._malformed.append(Malformed(self.path.name, number, f"not UTF-8 at byte {error.start}"))
        self._refuse_if_rotten(count)

    def _fields(self, line: bytes) -> list[str]:
        text = line.decode("utf-8")
        if self._separator == "::":
            return text.split("::")
        if '"' not in text:
            return text.split(",")
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise _Unusable(f"quotes: {error}") from None

    def _header(self, fields: list[str]) -> list[int]:
        missing = [column for column in self._columns if column not in fields]
        if missing:
            raise DatasetError(
                f"{self.path}: expected the columns {', '.join(self._columns)} in the first line, "
                f"{', '.join(missing)} missing"
            )
        return [fields.index(column) for column in self._columns]

    def _ordered(self, fields: list[str]) -> list[str]:
        assert self._order is not None
        if len(fields) <= max(self._order):
            raise _Unusable(f"expected {len(self._columns)} columns, got {len(fields)}")
        return [fields[index] for index in self._order]

    def _refuse_if_rotten(self, count: int) -> None:
        faults = self._malformed[self._first_fault :]
        if faults and len(faults) > MAX_MALFORMED_SHARE * count:
            shown = "; ".join(f"line {fault.line}: {fault.why}" for fault in faults[:5])
            raise DatasetError(
                f"{self.path}: {len(faults)} of {count} lines are unusable, at most "
                f"{MAX_MALFORMED_SHARE:.0%} may be: {shown}"
            )


def _read_titles(
    data_format: _Format, path: Path, malformed: list[Malformed], report: Progress
) -> tuple[DatasetTitle, ...]:
    titles: dict[str, DatasetTitle] = {}

    def parse(fields: list[str]) -> None:
        if len(fields) < 3:
            raise _Unusable(f"expected id, name and genres, got {len(fields)} fields")
        # A name may hold the separator: the id is the first field, the genres are the last.
        content_id = check_content_id("id", fields[0].strip())
        name = check_text("name", data_format.separator.join(fields[1:-1]).strip(), MAX_TITLE_BYTES)
        if content_id in titles:
            raise _Unusable(f"title {content_id} is listed already")
        titles[content_id] = DatasetTitle(content_id, name, year_of(name), _genres(fields[-1]))

    _Reader(data_format, path, _TITLE_COLUMNS, malformed).rows("titles", report, parse)
    if not titles:
        raise DatasetError(f"{path}: expected titles, found none")
    return tuple(titles.values())


def year_of(name: str) -> int | None:
    """The year at the end of a name like "Arrival (2016)" (the first of a range), or None."""
    match = _TRAILING_YEAR.search(name)
    if match is None or not EARLIEST_YEAR <= int(match[1]) <= LATEST_YEAR:
        return None
    return int(match[1])


def _genres(field: str) -> tuple[str, ...]:
    names = [name.strip() for name in field.split("|")]
    kept = dict.fromkeys(name for name in names if name and name != "(no genres listed)")
    for name in kept:
        check_text("genre", name, MAX_TITLE_BYTES)
    return tuple(kept)


def _read_ratings(
    data_format: _Format,
    path: Path,
    titles: tuple[DatasetTitle, ...],
    malformed: list[Malformed],
    report: Progress,
) -> tuple[tuple[str, ...], Events]:
    title_index = {title.content_id: index for index, title in enumerate(titles)}
    household_index: dict[str, int] = {}
    seen: set[tuple[int, int, int]] = set()
    household, title, rating, timestamp = array("i"), array("i"), array("d"), array("q")

    def parse(fields: list[str]) -> None:
        if len(fields) != 4:
            raise _Unusable(f"expected household, title, rating and time, got {len(fields)} fields")
        name = check_content_id("household", fields[0].strip())
        index = title_index.get(fields[1].strip(), -1)
        if index < 0:
            raise _Unusable(f"title {fields[1].strip()[:40]!r} is not in {data_format.titles_file}")
        stars = _rating(fields[2], data_format.rating_maximum)
        moment = _moment(fields[3])
        who = household_index.setdefault(name, len(household_index))
        if (who, index, moment) in seen:
            raise _Unusable(f"repeats an earlier line of household {name}, title {fields[1]}, same time")
        seen.add((who, index, moment))
        household.append(who)
        title.append(index)
        rating.append(stars)
        timestamp.append(moment)

    _Reader(data_format, path, _RATING_COLUMNS, malformed).rows("ratings", report, parse)
    if not title:
        raise DatasetError(f"{path}: expected ratings, found none")
    if len(rating) >= _FIVE_STAR_SUSPICION and max(rating) <= data_format.rating_maximum / 2:
        raise DatasetError(
            f"{path}: expected ratings up to {data_format.rating_maximum:g}, the highest of {len(rating)} is "
            f"{max(rating):g}: this is a data set of another scale; convert it to {_FORMATS[1].ratings_file}"
        )
    return tuple(household_index), _ordered_events(household, title, rating, timestamp, data_format.rating_maximum)


def _rating(field: str, maximum: float) -> float:
    try:
        stars = float(field)
    except ValueError:
        raise _Unusable(f"expected a rating, got {field[:40]!r}") from None
    if not 0.0 <= stars <= maximum:
        raise _Unusable(f"expected a rating from 0 to {maximum:g}, got {field[:40]!r}")
    return stars


def _moment(field: str) -> int:
    """Unix ms from a field of whole Unix seconds."""
    field = field.strip()
    if not (field.isascii() and field.isdigit()):
        raise _Unusable(f"expected whole Unix seconds, got {field[:40]!r}")
    return check_timestamp("time", int(field[:20]) * 1000)


def _ordered_events(household: array, title: array, rating: array, timestamp: array, maximum: float) -> Events:
    times = np.asarray(timestamp, np.int64)
    order = np.argsort(times, kind="stable")
    return Events(
        household=np.asarray(household, np.int32)[order],
        title=np.asarray(title, np.int32)[order],
        watch_percentage=np.asarray(rating, np.float64)[order] / maximum,
        timestamp=times[order],
    )
