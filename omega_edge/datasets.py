"""Rating data sets read as viewing: MovieTweetings (movies.dat, ratings.dat) and MovieLens (movies.csv, ratings.csv; or
one pair of atomic files, as ml-100k.item and ml-100k.inter: tab-separated with a typed header, genres between blanks).

A rating stands for a viewing: watch_percentage = rating / highest rating of the scale (10, or 5 for MovieLens). Each
file may be plain, .gz or .xz. A line that cannot be used is left out, counted and listed with its number and the
reason; a file with more than 1 % of such lines is refused. Titles may have no genre, and a file no column of genres.

Several ratings of one title by one household are several viewings and all are kept: a replay then shows rewatching as
it happened. Only a repetition with the same time as well is a copy of the line, not a viewing: the first is kept, the
later ones are left out as unusable, whatever their rating. Lines may come in any order: viewings are put in the order
of their times, and those of the same time stay in the order of their lines.
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
from dataclasses import dataclass, replace
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
    """One form of files. columns: names in a header, alternatives after "|", optional ones in brackets; none where the
    file has no header. genre_separator: between genres in their field."""

    name: str
    titles_file: str
    ratings_file: str
    separator: str
    rating_maximum: float
    title_columns: tuple[str, ...] = ()
    rating_columns: tuple[str, ...] = ()
    genre_separator: str = "|"


_FORMATS = (
    _Format("MovieTweetings", "movies.dat", "ratings.dat", "::", 10.0),
    _Format(
        "MovieLens",
        "movies.csv",
        "ratings.csv",
        ",",
        5.0,
        ("movieId", "title", "[genres]"),
        ("userId", "movieId", "rating", "timestamp"),
    ),
)
_ATOMIC_TITLES, _ATOMIC_RATINGS = ".item", ".inter"
_ATOMIC = _Format(
    "MovieLens",
    f"*{_ATOMIC_TITLES}",
    f"*{_ATOMIC_RATINGS}",
    "\t",
    5.0,
    ("item_id", "movie_title", "[class|genre|genres]", "[release_year]"),
    ("user_id", "item_id", "rating", "timestamp"),
    " ",
)
FORMAT_NAMES = {data_format.name.lower(): data_format.name for data_format in _FORMATS}
"""Formats that read_dataset can be told to expect, by how a command line names them."""


class _Unusable(Exception):
    """Why one line cannot be used. Never leaves this module."""


def read_dataset(
    path: str | os.PathLike[str], progress: Progress | None = None, expected: str | None = None
) -> Dataset:
    """Read the data set in a directory.

    expected: one of FORMAT_NAMES' values where only that format will do. Raises DatasetError if no known pair of files
    is there, or one of another format, a file cannot be read, more than 1 % of a file's lines are unusable, or no title
    or rating remains.
    """
    directory = Path(path)
    data_format, titles_path, ratings_path = _locate(directory)
    if expected not in (None, data_format.name):
        raise DatasetError(
            f"{directory}: expected a data set in the form of {expected}, found {titles_path.name} and "
            f"{ratings_path.name}, which is that of {data_format.name}"
        )
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
    return _locate_atomic(directory)


def _locate_atomic(directory: Path) -> tuple[_Format, Path, Path]:
    names = {ending: _stems(directory, ending) for ending in (_ATOMIC_TITLES, _ATOMIC_RATINGS)}
    titles, ratings = names[_ATOMIC_TITLES], names[_ATOMIC_RATINGS]
    both = sorted(titles.keys() & ratings.keys())
    if len(both) == 1:
        stem = both[0]
        files = {"titles_file": stem + _ATOMIC_TITLES, "ratings_file": stem + _ATOMIC_RATINGS}
        return replace(_ATOMIC, **files), titles[stem], ratings[stem]
    if both:
        raise DatasetError(f"{directory}: expected one pair of .item and .inter, found {', '.join(both)}")
    if titles or ratings:
        missing, stem = (_ATOMIC_RATINGS, min(titles)) if titles else (_ATOMIC_TITLES, min(ratings))
        raise DatasetError(f"{directory}: expected {stem}{missing} (plain, .gz or .xz) beside its partner, found none")
    wanted = " or ".join(f"{known.titles_file} and {known.ratings_file} ({known.name})" for known in (*_FORMATS, _ATOMIC))
    raise DatasetError(f"{directory}: expected {wanted}, each plain, .gz or .xz; found none of these")


def _stems(directory: Path, ending: str) -> dict[str, Path]:
    """Files with an ending, plain or compressed, by what comes before it; of one stem the plain one counts."""
    found: dict[str, Path] = {}
    for packing in _OPENERS:
        for path in sorted(directory.glob(f"*{ending}{packing}")):
            if path.is_file():
                found.setdefault(path.name.removesuffix(ending + packing), path)
    return found


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
        """Of the header; none without one."""
        self._malformed = malformed
        self._first_fault = len(malformed)
        self._order: list[int] | None = None

    def rows(self, what: str, report: Progress, parse: Callable[[list[str]], None]) -> None:
        """Call parse with the fields of each line, in the order of the columns; note the lines it refuses."""
        count = 0
        for number, line in _lines(self.path, what, report):
            try:
                fields = self._fields(line)
                if self._columns and self._order is None:
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
        if self._separator != "," or '"' not in text:
            return text.split(self._separator)
        try:
            return next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise _Unusable(f"quotes: {error}") from None

    def _header(self, fields: list[str]) -> list[int]:
        """Where each column stands, -1 for an optional one that is not there. A type after a colon is no part of a name."""
        names = [field.partition(":")[0] if self._separator == "\t" else field for field in fields]
        order, missing = [], []
        for column in self._columns:
            found = [name for name in column.strip("[]").split("|") if name in names]
            order.append(names.index(found[0]) if found else -1)
            if not found and not column.startswith("["):
                missing.append(column)
        if missing:
            expected = ", ".join(column for column in self._columns if not column.startswith("["))
            raise DatasetError(
                f"{self.path}: expected the columns {expected} in the first line, {', '.join(missing)} missing"
            )
        return order

    def _ordered(self, fields: list[str]) -> list[str]:
        assert self._order is not None
        if len(fields) <= max(self._order):
            raise _Unusable(f"expected {max(self._order) + 1} columns or more, got {len(fields)}")
        return [fields[index] if index >= 0 else "" for index in self._order]

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
        if data_format.title_columns:
            found, name, genres, *told_year = fields
        else:
            # A name may hold the separator: the id is the first field, the genres are the last.
            found, name, genres, told_year = fields[0], data_format.separator.join(fields[1:-1]), fields[-1], []
        content_id = check_content_id("id", found.strip())
        name = check_text("name", name.strip(), MAX_TITLE_BYTES)
        if content_id in titles:
            raise _Unusable(f"title {content_id} is listed already")
        year = (year_of(f"({told_year[0].strip()})") if told_year else None) or year_of(name)
        titles[content_id] = DatasetTitle(content_id, name, year, _genres(genres, data_format.genre_separator))

    _Reader(data_format, path, data_format.title_columns, malformed).rows("titles", report, parse)
    if not titles:
        raise DatasetError(f"{path}: expected titles, found none")
    return tuple(titles.values())


def year_of(name: str) -> int | None:
    """The year at the end of a name like "Arrival (2016)" (the first of a range), or None."""
    match = _TRAILING_YEAR.search(name)
    if match is None or not EARLIEST_YEAR <= int(match[1]) <= LATEST_YEAR:
        return None
    return int(match[1])


def _genres(field: str, separator: str) -> tuple[str, ...]:
    names = [name.strip() for name in field.split(separator)]
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

    _Reader(data_format, path, data_format.rating_columns, malformed).rows("ratings", report, parse)
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
    """Unix ms from a field of whole Unix seconds, which may be written as a decimal number with nothing after the point."""
    field = re.sub(r"\.0*$", "", field.strip())
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
