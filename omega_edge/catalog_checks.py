"""What must hold of a catalogue's sections before anything relies on them: shapes, ranges, texts, references.

All of it is checked when a catalogue is opened, so that no index or length in it can lead the C core astray.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np

from omega_edge.protocol import (
    EMBEDDING_DIMENSIONS,
    MAX_CONTENT_ID_BYTES,
    MAX_TIMESTAMP_MS,
    MAX_TITLE_BYTES,
    MAX_WINDOW_HOURS,
)
from omega_edge.quantiser import SECTIONS as QUANTISER_SHAPES
from omega_edge.quantiser import CodebookFault, check_codebook

MAX_GENRES = 64
MAX_TITLES = (1 << 24) - 1
"""Titles are numbered by 24 bits on the wire."""
MAX_META_BYTES = 1 << 20
SLOTS = 8
"""Slots of the week: four parts of the day, workday or weekend."""
BUCKETS = 4

SHAPES: dict[str, tuple[str, tuple[str | int, ...]]] = {
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
    **QUANTISER_SHAPES,
}
_ROW_SECTIONS = frozenset(("row_offsets", "row_columns", "row_values", "row_scale"))
OPTIONAL_SECTIONS = _ROW_SECTIONS | {"licence"} | QUANTISER_SHAPES.keys()
_LINEAGE = re.compile(r"[0-9a-f]{16}")


class Fault(Exception):
    """What is wrong with a set of sections. Never leaves this module."""


def check_sections(sections: dict[str, np.ndarray]) -> dict:
    """The meta of a set of sections, after checking all that the rest of the program relies on."""
    missing = sorted(SHAPES.keys() - OPTIONAL_SECTIONS - sections.keys())
    if missing:
        raise Fault(f"section {missing[0]} is missing")
    if 0 < len(_ROW_SECTIONS & sections.keys()) < len(_ROW_SECTIONS):
        raise Fault(f"section {min(_ROW_SECTIONS - sections.keys())} is missing beside the other row sections")
    unknown = sorted(sections.keys() - SHAPES.keys())
    if unknown:
        raise Fault(f"section {unknown[0]} is unknown")
    meta = _check_meta(sections["meta"])
    _check_shapes(sections, meta)
    _check_titles(sections, len(meta["genres"]))
    _check_numbers(sections)
    if "row_offsets" in sections:
        _check_rows(sections)
    if QUANTISER_SHAPES.keys() & sections.keys():
        _check_codebook(sections)
    return meta


def _check_meta(section: np.ndarray) -> dict:
    if section.dtype != np.uint8 or section.ndim != 1 or section.size > MAX_META_BYTES:
        raise Fault(f"section meta: expected at most {MAX_META_BYTES} bytes")
    try:
        meta = json.loads(section.tobytes().decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Fault(f"section meta: not JSON: {type(error).__name__}") from None
    if not isinstance(meta, dict):
        raise Fault("section meta: expected a JSON object")
    for key, well_formed in _META_KEYS.items():
        if not well_formed(meta.get(key)):
            raise Fault(f"section meta: {key} is missing or malformed")
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
        raise Fault(f"expected 1 to {MAX_TITLES} titles, got {count}")
    sizes = {
        "n": count,
        "n+1": count + 1,
        "g": len(meta["genres"]),
        "t": len(meta["trend_window_hours"]),
        "f": len(meta["fusion_features"]),
        "m": sections["row_columns"].size if "row_columns" in sections else 0,
    }
    for name, array in sections.items():
        dtype, shape = SHAPES[name]
        expected = tuple(array.size if size == "any" else sizes.get(size, size) for size in shape)
        if array.dtype != np.dtype(dtype) or array.shape != expected:
            raise Fault(f"section {name}: expected {dtype}{expected}, got {array.dtype.str}{array.shape}")
        if not array.flags.c_contiguous:
            raise Fault(f"section {name}: expected a C-contiguous array")


def _check_offsets(name: str, offsets: np.ndarray, end: int) -> None:
    if offsets[0] != 0 or offsets[-1] != end or np.any(offsets[1:] < offsets[:-1]):
        raise Fault(f"section {name}: expected offsets from 0 to {end}, never falling")


def _check_texts(sections: dict[str, np.ndarray], kind: str, max_bytes: int) -> None:
    """Offsets are in order, lengths 1 to max_bytes, the bytes UTF-8 without control characters, cut between
    characters."""
    offsets, blob = sections[f"{kind}_offsets"], sections[f"{kind}_bytes"]
    _check_offsets(f"{kind}_offsets", offsets, blob.size)
    lengths = np.diff(offsets)
    if np.any(lengths < 1) or np.any(lengths > max_bytes):
        raise Fault(f"section {kind}_offsets: expected texts of 1 to {max_bytes} bytes")
    if np.any(blob < 32) or np.any(blob == 127) or np.any(blob[offsets[:-1]] & 0xC0 == 0x80):
        raise Fault(f"section {kind}_bytes: expected whole characters and no control characters")
    try:
        blob.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault(f"section {kind}_bytes: not UTF-8 at byte {error.start}") from None
    # What protocol.check_text refuses would make every list that holds the title an error.
    if np.any((blob[:-1] == 0xC2) & (blob[1:] >= 0x80) & (blob[1:] < 0xA0)):
        raise Fault(f"section {kind}_bytes: expected no control characters, got one of U+0080 to U+009F")
    inked = np.logical_or.reduceat((blob > 32) & (blob < 127), offsets[:-1])
    for row in np.flatnonzero(~inked).tolist():
        if blob[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8").isspace():
            raise Fault(f"section {kind}_bytes: expected text that is not blank, got blank in row {row}")


def _check_titles(sections: dict[str, np.ndarray], genre_count: int) -> None:
    _check_texts(sections, "content_id", MAX_CONTENT_ID_BYTES)
    _check_texts(sections, "name", MAX_TITLE_BYTES)
    offsets, blob = sections["content_id_offsets"].tolist(), sections["content_id_bytes"].tobytes()
    order = sections["content_id_order"]
    if np.any(order >= len(order)):
        raise Fault("section content_id_order: expected row numbers")
    # Strictly ascending ids are all different, so the order is a permutation without a further look.
    ordered = [blob[offsets[row] : offsets[row + 1]] for row in order.tolist()]
    if any(first >= second for first, second in pairwise(ordered)):
        raise Fault("section content_id_order: expected each content id once, in ascending order")
    if genre_count < MAX_GENRES and np.any(sections["genre_masks"] >> np.uint64(genre_count)):
        raise Fault(f"section genre_masks: expected bits 0 to {genre_count - 1} only")
    if np.any(sections["years"] < 0):
        raise Fault("section years: expected 0 or a year")
    start, end = sections["available_from"], sections["available_until"]
    if np.any(start < 0) or np.any(end < start) or np.any(end > MAX_TIMESTAMP_MS):
        raise Fault("sections available_from and available_until: expected 0 <= from <= until")


def _check_numbers(sections: dict[str, np.ndarray]) -> None:
    if np.any(sections["codes"] == -128):
        raise Fault("section codes: expected values from -127 to 127")
    for name in ("popularity", "trend_scores", "context_prior", "context_overall"):
        if not np.all((sections[name] >= 0) & (sections[name] <= 1)):
            raise Fault(f"section {name}: expected numbers from 0 to 1")
    for name in ("fusion_weights", "fusion_calibration"):
        if not np.all(np.abs(sections[name]) < 1e6):
            raise Fault(f"section {name}: expected finite numbers below a million")
    if not np.all((sections["code_scale"] > 0) & (sections["code_scale"] <= 1)):
        raise Fault("section code_scale: expected numbers above 0, at most 1")


def _check_codebook(sections: dict[str, np.ndarray]) -> None:
    try:
        check_codebook(sections)
    except CodebookFault as fault:
        raise Fault(str(fault)) from None


def _check_rows(sections: dict[str, np.ndarray]) -> None:
    offsets, columns = sections["row_offsets"], sections["row_columns"]
    _check_offsets("row_offsets", offsets, columns.size)
    if np.any(columns >= len(offsets) - 1):
        raise Fault(f"section row_columns: expected columns below {len(offsets) - 1}")
    rising = columns[1:] > columns[:-1]
    starts = offsets[1:-1]
    rising[starts[(starts > 0) & (starts < columns.size)] - 1] = True
    if not np.all(rising):
        raise Fault("section row_columns: expected ascending columns inside a row")
    if np.any(sections["row_values"] == -128):
        raise Fault("section row_values: expected values from -127 to 127")
    if not np.all((sections["row_scale"] >= 0) & (sections["row_scale"] < 1e6)):
        raise Fault("section row_scale: expected finite numbers of at least 0")
