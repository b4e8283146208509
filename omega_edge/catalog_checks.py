"""What must hold of a catalogue's sections before anything relies on them: shapes, ranges, texts, references.

All of it is checked when a catalogue is opened, so that no index or length in it can lead the C core astray.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from omega_edge.protocol import (
    EMBEDDING_DIMENSIONS,
    MAX_CONTENT_ID_BYTES,
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
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
FACTOR_DIMENSIONS = 64
SEQUENCE_DIMENSIONS = 64
SEQUENCE_HEADS = 8
SEQUENCE_WINDOW = 64
SEQUENCE_FEED = 128
MAX_STAGE_INPUTS = 64
MAX_TREES = 2000
MAX_TREE_NODES = 1 << 16
MAX_TREE_DEPTH = 16
"""Bounds what the second stage can cost, whoever made the trees: a list takes at most trees times depth steps a title."""

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
    "slist_offsets": ("<u4", ("n+1",)),
    "slist_columns": ("<u4", ("slist",)),
    "slist_values": ("|i1", ("slist",)),
    "slist_scale": ("<f4", ("n",)),
    "factor_codes": ("|i1", ("n", FACTOR_DIMENSIONS)),
    "factor_scale": ("<f4", ("n",)),
    "factor_fold": ("<f4", (FACTOR_DIMENSIONS, FACTOR_DIMENSIONS)),
    "onboarding": ("<u4", ("any",)),
    "sequence_codes": ("|i1", ("n", SEQUENCE_DIMENSIONS)),
    "sequence_scale": ("<f4", ("n",)),
    "sequence_bias": ("<f4", ("n",)),
    "sequence_success": ("<f4", (2, SEQUENCE_DIMENSIONS)),
    "sequence_distance": ("<f4", (SEQUENCE_WINDOW, SEQUENCE_HEADS)),
    "sequence_norms": ("<f4", (3, SEQUENCE_DIMENSIONS)),
    "sequence_attention": ("|i1", (4, SEQUENCE_DIMENSIONS, SEQUENCE_DIMENSIONS)),
    "sequence_attention_scale": ("<f4", (4, SEQUENCE_DIMENSIONS)),
    "sequence_feed_in": ("|i1", (SEQUENCE_DIMENSIONS, SEQUENCE_FEED)),
    "sequence_feed_in_scale": ("<f4", (SEQUENCE_FEED,)),
    "sequence_feed_in_bias": ("<f4", (SEQUENCE_FEED,)),
    "sequence_feed_out": ("|i1", (SEQUENCE_FEED, SEQUENCE_DIMENSIONS)),
    "sequence_feed_out_scale": ("<f4", (SEQUENCE_DIMENSIONS,)),
    "sequence_feed_out_bias": ("<f4", (SEQUENCE_DIMENSIONS,)),
    "sequence_input_scale": ("<f4", (1,)),
    "sequence_start": ("<f4", (SEQUENCE_DIMENSIONS,)),
    "sequence_fusion_weights": ("<f4", (BUCKETS, "f")),
    "sequence_fusion_calibration": ("<f4", (BUCKETS, 2)),
    "second_stage_roots": ("<u4", ("trees",)),
    "second_stage_feature": ("|u1", ("nodes",)),
    "second_stage_threshold": ("<f4", ("nodes",)),
    "second_stage_children": ("<i4", ("nodes", 2)),
    "second_stage_leaves": ("<f4", ("any",)),
    "second_stage_buckets": ("|u1", (BUCKETS,)),
    "cohort_centres": ("<f4", ("cohorts", FACTOR_DIMENSIONS)),
    "cohort_of": ("|u1", ("patterns",)),
    "cohort_offsets": ("<u4", ("patterns+1",)),
    "cohort_rows": ("<u4", ("references",)),
    "cohort_weights": ("|u1", ("references",)),
    "cohort_success": ("<f4", ("patterns",)),
    "cohort_homes": ("<u4", ("patterns",)),
    "licence": ("|u1", ("any",)),
    **QUANTISER_SHAPES,
}


def _group(prefix: str) -> frozenset[str]:
    return frozenset(name for name in SHAPES if name.startswith(prefix + "_"))


_WHOLE_GROUPS = {name: _group(name) for name in ("row", "slist", "factor")}
"""Optional sections that come together or not at all."""
TOLERATED_GROUPS = {name: _group(name) for name in ("sequence", "second_stage", "cohort")}
"""Optional sections without which the television still ranks, if less well: damage leaves out the group, not the bundle."""
TOLERATED_SECTIONS = frozenset().union(*TOLERATED_GROUPS.values())
OPTIONAL_SECTIONS = (
    frozenset().union(*_WHOLE_GROUPS.values(), TOLERATED_SECTIONS, QUANTISER_SHAPES) | {"licence", "onboarding"}
)
_LINEAGE = re.compile(r"[0-9a-f]{16}")


class Fault(Exception):
    """What is wrong with a set of sections. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Sections that the rest of the program may rely on, and their meta. faults: by the name of each group that was left
    out, what is wrong with it."""

    sections: dict[str, np.ndarray]
    meta: dict
    faults: dict[str, str]


def check_sections(sections: dict[str, np.ndarray], damaged: Mapping[str, str] | None = None) -> Checked:
    """The sections after checking all that the rest of the program relies on, without the tolerated groups that are
    not sound.

    damaged: tolerated sections that could not be read, with the reason.
    """
    missing = sorted(SHAPES.keys() - OPTIONAL_SECTIONS - sections.keys())
    if missing:
        raise Fault(f"section {missing[0]} is missing")
    for group in _WHOLE_GROUPS.values():
        _check_complete(group, sections)
    unknown = sorted(sections.keys() - SHAPES.keys())
    if unknown:
        raise Fault(f"section {unknown[0]} is unknown")
    meta = _check_meta(sections["meta"])
    sizes = _sizes(sections, meta)
    kept = {name: array for name, array in sections.items() if name not in TOLERATED_SECTIONS}
    _check_shapes(kept, sizes)
    _check_titles(kept, len(meta["genres"]))
    _check_numbers(kept)
    for prefix in ("row", "slist"):
        if f"{prefix}_offsets" in kept:
            _check_rows(kept, prefix)
    if "factor_codes" in kept:
        _check_factors(kept)
    if "onboarding" in kept:
        _check_onboarding(kept["onboarding"], sizes["n"])
    if QUANTISER_SHAPES.keys() & kept.keys():
        _check_codebook(kept)
    faults = {}
    for name, group in TOLERATED_GROUPS.items():
        found = {section: sections[section] for section in group & sections.keys()}
        if found or group & (damaged or {}).keys():
            try:
                _check_tolerated(name, group, found, damaged or {}, meta, sizes)
                if name == "second_stage" and "sequence_codes" not in kept:
                    _check_asks_no_encoder(found, meta)
                kept |= found
            except Fault as fault:
                faults[name] = str(fault)
    return Checked(kept, meta, faults)


def _check_complete(group: frozenset[str], sections: Mapping[str, np.ndarray]) -> None:
    if 0 < len(group & sections.keys()) < len(group):
        raise Fault(f"section {min(group - sections.keys())} is missing beside the others of its group")


def _check_tolerated(
    name: str,
    group: frozenset[str],
    found: dict[str, np.ndarray],
    damaged: Mapping[str, str],
    meta: dict,
    sizes: dict[str, int],
) -> None:
    """Fault unless all sections of a tolerated group are there and sound."""
    for section in sorted(group & damaged.keys()):
        raise Fault(damaged[section])
    _check_complete(group, found)
    _check_shapes(found, sizes)
    _TOLERATED_CHECKS[name](found, meta, sizes)


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


def _sizes(sections: Mapping[str, np.ndarray], meta: dict) -> dict[str, int]:
    """What the letters of SHAPES stand for."""
    count = sections["code_scale"].size
    if not 1 <= count <= MAX_TITLES:
        raise Fault(f"expected 1 to {MAX_TITLES} titles, got {count}")

    def size_of(name: str) -> int:
        return sections[name].size if name in sections else 0

    return {
        "n": count,
        "n+1": count + 1,
        "g": len(meta["genres"]),
        "t": len(meta["trend_window_hours"]),
        "f": len(meta["fusion_features"]),
        "m": size_of("row_columns"),
        "slist": size_of("slist_columns"),
        "trees": size_of("second_stage_roots"),
        "nodes": size_of("second_stage_feature"),
        "cohorts": size_of("cohort_centres") // FACTOR_DIMENSIONS,
        "patterns": size_of("cohort_of"),
        "patterns+1": size_of("cohort_of") + 1,
        "references": size_of("cohort_rows"),
    }


def _check_shapes(sections: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
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


def _check_rows(sections: dict[str, np.ndarray], prefix: str) -> None:
    offsets, columns = sections[f"{prefix}_offsets"], sections[f"{prefix}_columns"]
    _check_offsets(f"{prefix}_offsets", offsets, columns.size)
    if np.any(columns >= len(offsets) - 1):
        raise Fault(f"section {prefix}_columns: expected columns below {len(offsets) - 1}")
    rising = columns[1:] > columns[:-1]
    starts = offsets[1:-1]
    rising[starts[(starts > 0) & (starts < columns.size)] - 1] = True
    if not np.all(rising):
        raise Fault(f"section {prefix}_columns: expected ascending columns inside a row")
    if np.any(sections[f"{prefix}_values"] == -128):
        raise Fault(f"section {prefix}_values: expected values from -127 to 127")
    _check_scale(f"{prefix}_scale", sections)


def _check_scale(name: str, sections: dict[str, np.ndarray]) -> None:
    if not np.all((sections[name] >= 0) & (sections[name] < 1e6)):
        raise Fault(f"section {name}: expected finite numbers of at least 0")


def _check_factors(sections: dict[str, np.ndarray]) -> None:
    if np.any(sections["factor_codes"] == -128):
        raise Fault("section factor_codes: expected values from -127 to 127")
    _check_scale("factor_scale", sections)
    if not np.all(np.abs(sections["factor_fold"]) < 1e6):
        raise Fault("section factor_fold: expected finite numbers below a million")


def _check_onboarding(rows: np.ndarray, count: int) -> None:
    if np.any(rows >= count) or len(np.unique(rows)) != len(rows):
        raise Fault(f"section onboarding: expected row numbers below {count}, each once")


def _check_second_stage(sections: dict[str, np.ndarray], meta: dict, sizes: dict[str, int]) -> None:
    """Inputs that have a meaning, numbers that are finite, and trees that end: every path leads from a node to ones with
    higher numbers, at most MAX_TREE_DEPTH times, to a leaf that is there."""
    inputs = meta.get("second_stage_inputs")
    if not _texts(inputs, MAX_STAGE_INPUTS) or not inputs:
        raise Fault(f"section meta: second_stage_inputs: expected 1 to {MAX_STAGE_INPUTS} different names")
    unknown = [name for name in inputs if name not in stage_input_names(meta["fusion_features"])]
    if unknown:
        raise Fault(f"section meta: second_stage_inputs: {unknown[0]!r} is unknown to this program; update Omega Edge")
    roots, children = sections["second_stage_roots"], sections["second_stage_children"]
    nodes, leaves = len(children), sections["second_stage_leaves"]
    if not (1 <= len(roots) <= MAX_TREES and 1 <= nodes <= MAX_TREE_NODES and 1 <= len(leaves) <= 2 * MAX_TREE_NODES):
        raise Fault(f"second stage: expected 1 to {MAX_TREES} trees of 1 to {MAX_TREE_NODES} nodes in all")
    if np.any(roots >= nodes):
        raise Fault(f"section second_stage_roots: expected nodes below {nodes}")
    if np.any(sections["second_stage_feature"] >= len(inputs)):
        raise Fault(f"section second_stage_feature: expected inputs below {len(inputs)}")
    if not np.all(np.isfinite(sections["second_stage_threshold"])):
        raise Fault("section second_stage_threshold: expected finite numbers")
    if not np.all(np.abs(leaves) < 1e6):
        raise Fault("section second_stage_leaves: expected finite numbers below a million")
    if np.any(sections["second_stage_buckets"] > 1):
        raise Fault("section second_stage_buckets: expected 0 or 1")
    inside = (children < nodes) & (children >= -len(leaves))
    if not np.all(inside & ((children < 0) | (children > np.arange(nodes)[:, None]))):
        raise Fault("section second_stage_children: expected leaves that are there, and nodes after their parent")
    reached = np.unique(roots)
    for _ in range(MAX_TREE_DEPTH):
        reached = np.unique(children[reached])
        reached = reached[reached >= 0]
    if len(reached):
        raise Fault(f"section second_stage_children: expected trees of at most {MAX_TREE_DEPTH} levels")


def _check_asks_no_encoder(sections: dict[str, np.ndarray], meta: dict) -> None:
    """Fault where a tree asks what a sequence encoder says and there is none that could say it: the trees learned from its
    values, and from the fusion beside it, and would judge by zeros."""
    for number in np.unique(sections["second_stage_feature"]).tolist():
        asked = meta["second_stage_inputs"][number]
        if asked.partition(":")[2] == "sequence":
            raise Fault(f"second stage: its trees ask for {asked}, and there is no sequence encoder that could be used")


def stage_input_names(features: list[str] | tuple[str, ...]) -> list[str]:
    """All that trees of the second stage may ask of a candidate (see second_stage.py), under a fusion of these features."""
    values, ranks = [f"value:{name}" for name in features], [f"rank:{name}" for name in (*features, "score")]
    return [*values, *ranks, "age_years", "log_history", "success_rate"]


def _check_sequence(sections: dict[str, np.ndarray], meta: dict, sizes: dict[str, int]) -> None:
    """Numbers so small that no float of a state and a score is infinite or NaN: the most that can overflow on the way is the
    square sum of a norm, and what is divided by that is 0."""
    for name, array in sorted(sections.items()):
        if array.dtype == np.int8:
            if np.any(array == -128):
                raise Fault(f"section {name}: expected values from -127 to 127")
        elif name.endswith("_scale"):
            _check_scale(name, sections)
        elif not np.all(np.abs(array) < 1e6):
            raise Fault(f"section {name}: expected finite numbers below a million")


def _check_cohorts(sections: dict[str, np.ndarray], meta: dict, sizes: dict[str, int]) -> None:
    """At most 255 cohorts with centres of norm 1 and MAX_SIMILAR_PATTERNS patterns in all, of titles that are there."""
    centres, cohort, offsets = sections["cohort_centres"], sections["cohort_of"], sections["cohort_offsets"]
    rows, success = sections["cohort_rows"], sections["cohort_success"]
    if len(cohort) > MAX_SIMILAR_PATTERNS or not 1 <= len(centres) <= 255 or np.any(cohort >= len(centres)):
        raise Fault(f"section cohort_of: expected at most {MAX_SIMILAR_PATTERNS} patterns of the cohorts that there are")
    if not np.all(np.abs(np.linalg.norm(centres.astype(np.float64), axis=1) - 1.0) < 1e-3):
        raise Fault("section cohort_centres: expected vectors of norm 1")
    _check_offsets("cohort_offsets", offsets, rows.size)
    lengths = np.diff(offsets)
    if np.any(lengths < 1) or np.any(lengths > MAX_REFERENCES_PER_PATTERN) or np.any(rows >= sizes["n"]):
        raise Fault(f"section cohort_rows: expected 1 to {MAX_REFERENCES_PER_PATTERN} titles a pattern, below {sizes['n']}")
    if not np.all((success >= 0) & (success <= 1)):
        raise Fault("section cohort_success: expected numbers from 0 to 1")


_TOLERATED_CHECKS = {"sequence": _check_sequence, "second_stage": _check_second_stage, "cohort": _check_cohorts}
