"""The catalogue: what can be watched, and what ranking needs to know of it. One bundle file (see bundle.py), mapped.

Sections, n titles, g genres, f fusion features, t trend windows, m row entries. A title's number is its row:

    content_id_offsets u32[n+1], content_id_bytes u8[]   row r is bytes[offsets[r]:offsets[r+1]], UTF-8, unique
    content_id_order   u32[n]      rows in ascending order of the id's bytes: looked up by bisection
    name_offsets       u32[n+1], name_bytes u8[]         names as the data set spells them, UTF-8
    genre_masks        u64[n]      bit i: the title has genre i of meta "genres"
    years              i16[n]      0: unknown
    age_ratings        u8[n]       years of age; 255: unrated
    available_from, available_until   i64[n]   Unix ms, [from, until); MAX_TIMESTAMP_MS: open end
    codes              i8[n, 384], code_scale f32[n]     code * scale is the title's unit vector
    popularity         f32[n]      0 to 1
    trend_scores       f32[t, n]   0 to 1, windows in meta "trend_window_hours"
    context_prior      f32[8, g]   share of plays of each genre by slot of the week; context_overall f32[g]
    fusion_weights     f32[4, f], fusion_calibration f32[4, 2]   by history bucket
    meta               u8[]        JSON
    row_offsets u32[n+1], row_columns u32[m], row_values i8[m], row_scale f32[n]   optional: item-item rows; row j
                                   holds what watching title j says for others, columns ascending,
                                   weight = value * scale[j]
    licence            u8[]        optional: the text of the data set's licence

All of it is checked when a catalogue is opened, so that no index or length in it can lead the C core astray.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from omega_edge import bundle
from omega_edge.errors import CatalogError
from omega_edge.protocol import (
    EMBEDDING_DIMENSIONS,
    MAX_CONTENT_ID_BYTES,
    MAX_TIMESTAMP_MS,
    MAX_TITLE_BYTES,
    MAX_WINDOW_HOURS,
)

UNRATED = 255
"""Age rating of a title that nobody rated; profiles with a limit do not get it."""
MAX_GENRES = 64
MAX_TITLES = (1 << 24) - 1
"""Titles are numbered by 24 bits on the wire."""
MAX_META_BYTES = 1 << 20
SLOTS = 8
BUCKETS = 4

_SHAPES: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "content_id_offsets": ("<u4", ("n+1",)),
    "content_id_bytes": ("|u1", ("any",)),
    "content_id_order": ("<u4", ("n",)),
    "name_offsets": ("<u4", ("n+1",)),
    "name_bytes": ("|u1", ("any",)),
    "genre_masks": ("<u8", ("n",)),
    "years": ("<i2", ("n",)),
    "age_ratings": ("|u1", ("n",)),
    "available_from": ("<i8", ("n",)),
    "available_until": ("<i8", ("n",)),
    "codes": ("|i1", ("n", EMBEDDING_DIMENSIONS)),
    "code_scale": ("<f4", ("n",)),
    "popularity": ("<f4", ("n",)),
    "trend_scores": ("<f4", ("t", "n")),
    "context_prior": ("<f4", (SLOTS, "g")),
    "context_overall": ("<f4", ("g",)),
    "fusion_weights": ("<f4", (BUCKETS, "f")),
    "fusion_calibration": ("<f4", (BUCKETS, 2)),
    "meta": ("|u1", ("any",)),
    "row_offsets": ("<u4", ("n+1",)),
    "row_columns": ("<u4", ("m",)),
    "row_values": ("|i1", ("m",)),
    "row_scale": ("<f4", ("n",)),
    "licence": ("|u1", ("any",)),
}
_ROW_SECTIONS = frozenset(("row_offsets", "row_columns", "row_values", "row_scale"))
OPTIONAL_SECTIONS = _ROW_SECTIONS | {"licence"}
_LINEAGE = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Title:
    """One title. year, age_rating: None where unknown. Available in [available_from, available_until), Unix ms."""

    content_id: str
    name: str
    year: int | None
    genres: tuple[str, ...]
    age_rating: int | None
    available_from: int
    available_until: int


@dataclass(frozen=True, slots=True)
class RowSet:
    """Item-item weights in compressed sparse rows: offsets u32[n+1], columns u32[m] ascending inside a row,
    values i8[m], scale f32[n]. A weight is value * scale of its row."""

    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, slots=True)
class Trend:
    """What is watched now: scores f32[n], 0 to 1, over the last window_hours."""

    window_hours: int
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Fusion:
    """The learned ranking. weights f32[4, f] and calibration f32[4, 2] (slope, intercept) by history bucket (0,
    1-4, 5-19, 20 and more events); features: what the columns of weights mean; parameters: of the features.

    P(success) = logistic(slope * raw score + intercept).
    """

    features: tuple[str, ...]
    weights: np.ndarray
    parameters: dict[str, float]
    calibration: np.ndarray


class Catalog:
    """An opened catalogue. Its arrays are read-only views, over the file's map where it was opened from a file.

    count; lineage (16 hex digits: bundles of one lineage number titles alike); version; built_at (Unix ms); meta
    (dict); genres; and the arrays that the module's table of sections describes, under the names codes, scale,
    popularity, genre_masks, years, age_ratings, available_from, available_until, rows (RowSet or None), trends
    (tuple of Trend), context_prior, context_overall, fusion.
    """

    def __init__(self, sections: dict[str, np.ndarray], meta: dict) -> None:
        self.meta = meta
        self.count = len(sections["code_scale"])
        self.lineage: str = meta["lineage"]
        self.version: int = meta["version"]
        self.built_at: int = meta["built_at"]
        self.genres: tuple[str, ...] = tuple(meta["genres"])
        self.codes = sections["codes"]
        self.scale = sections["code_scale"]
        self.popularity = sections["popularity"]
        self.genre_masks = sections["genre_masks"]
        self.years = sections["years"]
        self.age_ratings = sections["age_ratings"]
        self.available_from = sections["available_from"]
        self.available_until = sections["available_until"]
        self.rows = (
            RowSet(*(sections[name] for name in ("row_offsets", "row_columns", "row_values", "row_scale")))
            if "row_offsets" in sections
            else None
        )
        self.trends = tuple(
            Trend(hours, scores) for hours, scores in zip(meta["trend_window_hours"], sections["trend_scores"])
        )
        self.context_prior = sections["context_prior"]
        self.context_overall = sections["context_overall"]
        self.fusion = Fusion(
            tuple(meta["fusion_features"]),
            sections["fusion_weights"],
            dict(meta["fusion_parameters"]),
            sections["fusion_calibration"],
        )
        self._id_offsets, self._id_bytes = sections["content_id_offsets"], sections["content_id_bytes"]
        self._id_order = sections["content_id_order"]
        self._sorted_ids = _fixed_width(self._id_offsets, self._id_bytes)[self._id_order]
        self._name_offsets, self._name_bytes = sections["name_offsets"], sections["name_bytes"]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalog:
        """Map a bundle file and check it wholly. Raises CatalogError naming the fault."""
        sections = bundle.read(path, frozenset(_SHAPES))
        try:
            return cls(sections, _check(sections))
        except _Fault as fault:
            raise CatalogError(f"{path}: {fault}; fetch or build the bundle again") from None

    @classmethod
    def from_sections(cls, sections: dict[str, np.ndarray], meta: dict) -> Catalog:
        """A catalogue over arrays in memory, checked like a file. meta becomes the section of that name."""
        sections = _with_meta(sections, meta)
        try:
            meta = _check(sections)
        except _Fault as fault:
            raise CatalogError(f"sections: {fault}") from None
        views = {name: array.view() for name, array in sections.items()}
        for view in views.values():
            view.flags.writeable = False
        return cls(views, meta)

    def close(self) -> None:
        """Give up the file. Arrays taken from the catalogue before stay valid, and the last of them to go unmaps it;
        the catalogue itself raises CatalogError from now on."""
        self.__dict__.clear()

    def __getattr__(self, name: str) -> object:
        # Reached only for attributes that are not there, which close() makes all of them.
        if not self.__dict__:
            raise CatalogError(f"{name}: this catalogue was closed; open it again")
        raise AttributeError(f"Catalog has no attribute {name!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count

    def row_of(self, content_id: str) -> int:
        """Row of a title, or -1 if it is not in the catalogue."""
        try:
            key = content_id.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate, which no id in the catalogue holds
            return -1
        ids = self._sorted_ids
        # An array of fixed-width bytes ignores NULs at the end, and no id has one.
        if not key or key[-1] == 0:
            return -1
        place = int(ids.searchsorted(key)) if len(key) <= ids.itemsize else self.count
        return int(self._id_order[place]) if place < self.count and ids[place] == key else -1

    def content_id(self, row: int) -> str:
        """Id of the title at a row. IndexError outside 0 to count - 1."""
        return self._id(self._checked(row)).decode("utf-8")

    def name(self, row: int) -> str:
        """Name of the title at a row as the data set spells it, with the year where the data set has it there."""
        row = self._checked(row)
        start, end = int(self._name_offsets[row]), int(self._name_offsets[row + 1])
        return self._name_bytes[start:end].tobytes().decode("utf-8")

    def content_ids(self, rows: Sequence[int]) -> list[str]:
        """Ids of the titles at several rows, as content_id gives each."""
        return self._texts(self._id_offsets, self._id_bytes, rows)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Names of the titles at several rows, as name gives each."""
        return self._texts(self._name_offsets, self._name_bytes, rows)

    def _texts(self, offsets: np.ndarray, blob: np.ndarray, rows: Sequence[int]) -> list[str]:
        chosen = np.array([self._checked(row) for row in rows], np.int64)
        blob = memoryview(blob)
        return [
            str(blob[start:end], "utf-8")
            for start, end in zip(offsets[chosen].tolist(), offsets[chosen + 1].tolist(), strict=True)
        ]

    def title(self, row: int) -> Title:
        """All that is known of the title at a row."""
        row = self._checked(row)
        mask, year, rating = int(self.genre_masks[row]), int(self.years[row]), int(self.age_ratings[row])
        return Title(
            content_id=self.content_id(row),
            name=self.name(row),
            year=year or None,
            genres=tuple(genre for bit, genre in enumerate(self.genres) if mask >> bit & 1),
            age_rating=None if rating == UNRATED else rating,
            available_from=int(self.available_from[row]),
            available_until=int(self.available_until[row]),
        )

    def _id(self, row: int | np.integer) -> bytes:
        return self._id_bytes[int(self._id_offsets[row]) : int(self._id_offsets[row + 1])].tobytes()

    def _checked(self, row: int) -> int:
        if not 0 <= row < self.count:
            raise IndexError(f"row: expected 0 to {self.count - 1}, got {row}")
        return int(row)


def write_bundle(path: str | os.PathLike[str], sections: dict[str, np.ndarray], meta: dict) -> None:
    """Write a catalogue as a bundle file, whole or not at all. Same sections and meta, same bytes.

    Raises CatalogError if they do not make a catalogue, OSError if the disk refuses.
    """
    sections = _with_meta(sections, meta)
    try:
        _check(sections)
    except _Fault as fault:
        raise CatalogError(f"{path}: not written: {fault}") from None
    bundle.write(path, sections, OPTIONAL_SECTIONS)


def title_sections(titles: Sequence[Title], genres: Sequence[str]) -> dict[str, np.ndarray]:
    """The sections that describe titles: ids, names, genres, years, age ratings, availability.

    genres: at most 64; a title's genres outside them are left out.
    """
    bits = {genre: 1 << bit for bit, genre in enumerate(genres)}
    id_offsets, id_bytes = _packed_texts([title.content_id for title in titles])
    name_offsets, name_bytes = _packed_texts([title.name for title in titles])
    ids = [title.content_id.encode("utf-8") for title in titles]
    return {
        "content_id_offsets": id_offsets,
        "content_id_bytes": id_bytes,
        "content_id_order": np.array(sorted(range(len(ids)), key=ids.__getitem__), np.uint32),
        "name_offsets": name_offsets,
        "name_bytes": name_bytes,
        "genre_masks": np.array(
            [sum(bits.get(genre, 0) for genre in dict.fromkeys(title.genres)) for title in titles], np.uint64
        ),
        "years": np.array([title.year or 0 for title in titles], np.int16),
        "age_ratings": np.array(
            [UNRATED if title.age_rating is None else title.age_rating for title in titles], np.uint8
        ),
        "available_from": np.array([title.available_from for title in titles], np.int64),
        "available_until": np.array([title.available_until for title in titles], np.int64),
    }


def lineage_of(content_ids: Sequence[str]) -> str:
    """Lineage of a first bundle: 16 hex digits of the SHA-256 over its content ids in row order, NUL between them."""
    return hashlib.sha256("\0".join(content_ids).encode("utf-8")).hexdigest()[:16]


def _packed_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    blobs = [text.encode("utf-8") for text in texts]
    offsets = np.zeros(len(blobs) + 1, np.uint32)
    offsets[1:] = np.cumsum([len(blob) for blob in blobs])
    return offsets, np.frombuffer(b"".join(blobs), np.uint8)


def _fixed_width(offsets: np.ndarray, blob: np.ndarray) -> np.ndarray:
    """The texts as one array of byte strings, NUL-padded to the longest: a binary search in it needs no Python object."""
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    width = int(lengths.max(initial=1))
    padded = np.zeros((len(starts), width), np.uint8)
    for place in range(width):
        longer = lengths > place
        padded[longer, place] = blob[starts[longer] + place]
    return padded.view(f"S{width}")[:, 0]


def _with_meta(sections: dict[str, np.ndarray], meta: dict) -> dict[str, np.ndarray]:
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return sections | {"meta": np.frombuffer(text.encode("utf-8"), np.uint8)}


class _Fault(Exception):
    """What is wrong with a set of sections. Never leaves this module."""


def _check(sections: dict[str, np.ndarray]) -> dict:
    """The meta of a set of sections, after checking all that the rest of the program relies on."""
    missing = sorted(_SHAPES.keys() - OPTIONAL_SECTIONS - sections.keys())
    if missing:
        raise _Fault(f"section {missing[0]} is missing")
    if 0 < len(_ROW_SECTIONS & sections.keys()) < len(_ROW_SECTIONS):
        raise _Fault(f"section {min(_ROW_SECTIONS - sections.keys())} is missing beside the other row sections")
    unknown = sorted(sections.keys() - _SHAPES.keys())
    if unknown:
        raise _Fault(f"section {unknown[0]} is unknown")
    meta = _check_meta(sections["meta"])
    _check_shapes(sections, meta)
    _check_titles(sections, len(meta["genres"]))
    _check_numbers(sections)
    if "row_offsets" in sections:
        _check_rows(sections)
    return meta


def _check_meta(section: np.ndarray) -> dict:
    if section.dtype != np.uint8 or section.ndim != 1 or section.size > MAX_META_BYTES:
        raise _Fault(f"section meta: expected at most {MAX_META_BYTES} bytes")
    try:
        meta = json.loads(section.tobytes().decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _Fault(f"section meta: not JSON: {type(error).__name__}") from None
    if not isinstance(meta, dict):
        raise _Fault("section meta: expected a JSON object")
    for key, well_formed in _META_KEYS.items():
        if not well_formed(meta.get(key)):
            raise _Fault(f"section meta: {key} is missing or malformed")
    return meta


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_TIMESTAMP_MS


def _window(value: object) -> bool:
    return _whole(value) and 1 <= value <= MAX_WINDOW_HOURS


def _number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30


def _texts(value: object, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(item, str) and item for item in value)
        and len(set(value)) == len(value)
    )


_META_KEYS = {
    "name": lambda value: isinstance(value, str) and value != "",
    "version": _whole,
    "built_at": _whole,
    "lineage": lambda value: isinstance(value, str) and _LINEAGE.fullmatch(value) is not None,
    "genres": lambda value: _texts(value, MAX_GENRES),
    "trend_window_hours": lambda value: isinstance(value, list) and len(value) <= 8 and all(map(_window, value)),
    "fusion_features": lambda value: _texts(value, 64) and value != [],
    "fusion_parameters": lambda value: isinstance(value, dict) and all(map(_number, value.values())),
}


def _check_shapes(sections: dict[str, np.ndarray], meta: dict) -> None:
    count = sections["code_scale"].size
    if not 1 <= count <= MAX_TITLES:
        raise _Fault(f"expected 1 to {MAX_TITLES} titles, got {count}")
    sizes = {
        "n": count,
        "n+1": count + 1,
        "g": len(meta["genres"]),
        "t": len(meta["trend_window_hours"]),
        "f": len(meta["fusion_features"]),
        "m": sections["row_columns"].size if "row_columns" in sections else 0,
    }
    for name, array in sections.items():
        dtype, shape = _SHAPES[name]
        expected = tuple(array.size if size == "any" else sizes.get(size, size) for size in shape)
        if array.dtype != np.dtype(dtype) or array.shape != expected:
            raise _Fault(f"section {name}: expected {dtype}{expected}, got {array.dtype.str}{array.shape}")
        if not array.flags.c_contiguous:
            raise _Fault(f"section {name}: expected a C-contiguous array")


def _check_offsets(name: str, offsets: np.ndarray, end: int) -> None:
    if offsets[0] != 0 or offsets[-1] != end or np.any(offsets[1:] < offsets[:-1]):
        raise _Fault(f"section {name}: expected offsets from 0 to {end}, never falling")


def _check_texts(sections: dict[str, np.ndarray], kind: str, max_bytes: int) -> None:
    """Offsets are in order, lengths 1 to max_bytes, the bytes UTF-8 without control characters, cut between
    characters."""
    offsets, blob = sections[f"{kind}_offsets"], sections[f"{kind}_bytes"]
    _check_offsets(f"{kind}_offsets", offsets, blob.size)
    lengths = np.diff(offsets)
    if np.any(lengths < 1) or np.any(lengths > max_bytes):
        raise _Fault(f"section {kind}_offsets: expected texts of 1 to {max_bytes} bytes")
    if np.any(blob < 32) or np.any(blob == 127) or np.any(blob[offsets[:-1]] & 0xC0 == 0x80):
        raise _Fault(f"section {kind}_bytes: expected whole characters and no control characters")
    try:
        blob.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Fault(f"section {kind}_bytes: not UTF-8 at byte {error.start}") from None
    # What protocol.check_text refuses would make every list that holds the title an error.
    if np.any((blob[:-1] == 0xC2) & (blob[1:] >= 0x80) & (blob[1:] < 0xA0)):
        raise _Fault(f"section {kind}_bytes: expected no control characters, got one of U+0080 to U+009F")
    inked = np.logical_or.reduceat((blob > 32) & (blob < 127), offsets[:-1])
    for row in np.flatnonzero(~inked).tolist():
        if blob[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8").isspace():
            raise _Fault(f"section {kind}_bytes: expected text that is not blank, got blank in row {row}")


def _check_titles(sections: dict[str, np.ndarray], genre_count: int) -> None:
    _check_texts(sections, "content_id", MAX_CONTENT_ID_BYTES)
    _check_texts(sections, "name", MAX_TITLE_BYTES)
    offsets, blob = sections["content_id_offsets"].tolist(), sections["content_id_bytes"].tobytes()
    order = sections["content_id_order"]
    if np.any(order >= len(order)):
        raise _Fault("section content_id_order: expected row numbers")
    # Strictly ascending ids are all different, so the order is a permutation without a further look.
    ordered = [blob[offsets[row] : offsets[row + 1]] for row in order.tolist()]
    if any(first >= second for first, second in pairwise(ordered)):
        raise _Fault("section content_id_order: expected each content id once, in ascending order")
    if genre_count < MAX_GENRES and np.any(sections["genre_masks"] >> np.uint64(genre_count)):
        raise _Fault(f"section genre_masks: expected bits 0 to {genre_count - 1} only")
    if np.any(sections["years"] < 0):
        raise _Fault("section years: expected 0 or a year")
    start, end = sections["available_from"], sections["available_until"]
    if np.any(start < 0) or np.any(end < start) or np.any(end > MAX_TIMESTAMP_MS):
        raise _Fault("sections available_from and available_until: expected 0 <= from <= until")


def _check_numbers(sections: dict[str, np.ndarray]) -> None:
    if np.any(sections["codes"] == -128):
        raise _Fault("section codes: expected values from -127 to 127")
    for name in ("popularity", "trend_scores", "context_prior", "context_overall"):
        if not np.all((sections[name] >= 0) & (sections[name] <= 1)):
            raise _Fault(f"section {name}: expected numbers from 0 to 1")
    for name in ("fusion_weights", "fusion_calibration"):
        if not np.all(np.abs(sections[name]) < 1e6):
            raise _Fault(f"section {name}: expected finite numbers below a million")
    if not np.all((sections["code_scale"] > 0) & (sections["code_scale"] <= 1)):
        raise _Fault("section code_scale: expected numbers above 0, at most 1")


def _check_rows(sections: dict[str, np.ndarray]) -> None:
    offsets, columns = sections["row_offsets"], sections["row_columns"]
    _check_offsets("row_offsets", offsets, columns.size)
    if np.any(columns >= len(offsets) - 1):
        raise _Fault(f"section row_columns: expected columns below {len(offsets) - 1}")
    rising = columns[1:] > columns[:-1]
    starts = offsets[1:-1]
    rising[starts[(starts > 0) & (starts < columns.size)] - 1] = True
    if not np.all(rising):
        raise _Fault("section row_columns: expected ascending columns inside a row")
    if np.any(sections["row_values"] == -128):
        raise _Fault("section row_values: expected values from -127 to 127")
    if not np.all((sections["row_scale"] >= 0) & (sections["row_scale"] < 1e6)):
        raise _Fault("section row_scale: expected finite numbers of at least 0")
