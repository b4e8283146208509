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
    slist_offsets u32[n+1], slist_columns u32[m], slist_values i8[m], slist_scale f32[n]   optional: directed rows, laid
                                   out likewise; row j holds what is watched after title j
    factor_codes i8[n, 64], factor_scale f32[n], factor_fold f32[64, 64]   optional: title factors v = code * scale (scale
                                   0: none); a household's are fold @ (weighted sum of those of its titles)
    onboarding         u32[m]      optional: titles to show to a new home, the most informative first
    sequence_*         tolerated: one block of self-attention over the history, 8 heads of 8 dimensions; matrices [in, out]
                                   of int8 codes, a float32 scale for each output
        codes i8[n, 64], scale f32[n], bias f32[n]   the titles' embeddings code * scale, and what is added to a title's value
        success f32[2, 64], input_scale f32[1]       added to an event's embedding by its success (0 or 1), and their factor
        start f32[64]                                the state of a household without events: what new homes watch
        distance f32[64, 8]                          added to a logit by how many events ago, of each head
        norms f32[3, 64]                             gains before the attention, before the feed-forward, and at the end
        attention i8[4, 64, 64], attention_scale f32[4, 64]   query, key, value, output; number 8 * dimension + head
        feed_in i8[64, 128], feed_in_scale f32[128], feed_in_bias f32[128]
        feed_out i8[128, 64], feed_out_scale f32[64], feed_out_bias f32[64]
        fusion_weights f32[4, f], fusion_calibration f32[4, 2]   used instead of those without "sequence_" beside it
    second_stage_roots u32[t], second_stage_feature u8[k], second_stage_threshold f32[k], second_stage_children i32[k, 2],
    second_stage_leaves f32[l], second_stage_buckets u8[4]   tolerated: t regression trees of k nodes that re-order the
                                   fusion's best (see second_stage.py); their inputs are named in meta
                                   "second_stage_inputs". A node leads to the left child where value <= threshold; a child
                                   of at least 0 is a node, after its parent, and one below 0 is leaf ~child. Bucket: 1
                                   where the stage serves
    cohort_centres f32[c, 64]      tolerated: cohorts of homes, unit vectors among the factors, and what each finishes together:
    cohort_of u8[p], cohort_offsets u32[p+1], cohort_rows u32[r], cohort_weights u8[r], cohort_success f32[p], cohort_homes
                                   u32[p]: p patterns, each of a cohort, of the titles rows[offsets[i]:offsets[i+1]] with
                                   weights in 1/255, its rate of success, and how many homes stand for it
    licence            u8[]        optional: the text of the data set's licence
    quantiser_*        quantiser.SECTIONS   optional: the codebook of coarse vectors, all of its arrays or none

All of it is checked when a catalogue is opened, so that no index or length in it can lead the C core astray. Damage
refuses the bundle, but of the tolerated groups, without which the television ranks as well as it could before they were
there: such a group is left out whole, and `faults` says why. Trees that ask for the feature "sequence" go with an encoder
that is left out: they learned from what it said.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from omega_edge import bundle
from omega_edge.catalog_checks import OPTIONAL_SECTIONS, SHAPES, TOLERATED_SECTIONS, Checked, Fault, check_sections
from omega_edge.errors import CatalogError
from omega_edge.quantiser import Quantiser

UNRATED = 255
"""Age rating of a title that nobody rated; profiles with a limit do not get it."""


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
class Factors:
    """Title factors codes int8[n, 64] * scale float32[n], and the map fold float32[64, 64] to a household's."""

    codes: np.ndarray
    scale: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True, slots=True)
class Encoder:
    """The sequence encoder: title embeddings codes int8[n, 64] * scale float32[n], bias float32[n] of titles, start
    float32[64], the state of a household without events, and model, all
    that the kernels read (see Kernels.sequence_events)."""

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    start: np.ndarray
    model: tuple[np.ndarray | float, ...]


@dataclass(frozen=True, slots=True)
class TreeSet:
    """Regression trees over named inputs, as the module's table of sections describes them. buckets: bool[4], the history
    buckets that they serve."""

    inputs: tuple[str, ...]
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    children: np.ndarray
    leaves: np.ndarray
    buckets: np.ndarray


@dataclass(frozen=True, slots=True)
class CohortSet:
    """What cohorts of homes finish together. centres: float32[c, 64] of norm 1, among the factors; pattern i is of cohort
    cohort[i] and names rows[offsets[i]:offsets[i+1]] with weights uint8 (in 1/255); success: float32[p]; homes: uint32[p]."""

    centres: np.ndarray
    cohort: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    success: np.ndarray
    homes: np.ndarray


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
    popularity, genre_masks, years, age_ratings, available_from, available_until, rows and slist (RowSet or None), factors
    (Factors or None), onboarding (uint32[m], empty where the bundle has none), trends (tuple of Trend), context_prior,
    context_overall, fusion (the one for the encoder where there is one), sequence (Encoder or None), second_stage (TreeSet or
    None); cohorts (CohortSet or None); quantiser (the codebook of coarse vectors, or None); faults (by the name of each group of sections that was left
    out, why).
    """

    def __init__(self, checked: Checked) -> None:
        sections, meta = checked.sections, checked.meta
        self.faults: dict[str, str] = checked.faults
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
        self.rows, self.slist = _row_set(sections, "row"), _row_set(sections, "slist")
        self.factors = (
            Factors(sections["factor_codes"], sections["factor_scale"], sections["factor_fold"])
            if "factor_codes" in sections
            else None
        )
        self.onboarding = sections.get("onboarding", np.empty(0, np.uint32))
        self.sequence = _encoder(sections)
        self.second_stage = _tree_set(sections, meta)
        self.cohorts = _cohort_set(sections)
        self.trends = tuple(
            Trend(hours, scores) for hours, scores in zip(meta["trend_window_hours"], sections["trend_scores"])
        )
        self.context_prior = sections["context_prior"]
        self.context_overall = sections["context_overall"]
        self.fusion = Fusion(
            tuple(meta["fusion_features"]),
            sections["fusion_weights" if self.sequence is None else "sequence_fusion_weights"],
            dict(meta["fusion_parameters"]),
            sections["fusion_calibration" if self.sequence is None else "sequence_fusion_calibration"],
        )
        self.quantiser = Quantiser(sections) if "quantiser_mean" in sections else None
        self._id_offsets, self._id_bytes = sections["content_id_offsets"], sections["content_id_bytes"]
        self._id_order = sections["content_id_order"]
        self._sorted_ids = _fixed_width(self._id_offsets, self._id_bytes)[self._id_order]
        self._name_offsets, self._name_bytes = sections["name_offsets"], sections["name_bytes"]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Catalog:
        """Map a bundle file and check it wholly. Raises CatalogError naming the fault."""
        sections, damaged = bundle.read(path, frozenset(SHAPES), TOLERATED_SECTIONS)
        try:
            opened = cls(check_sections(sections, damaged))
        except Fault as fault:
            raise CatalogError(f"{path}: {fault}; fetch or build the bundle again") from None
        bundle.let_pages_go(sections)
        return opened

    @classmethod
    def from_sections(cls, sections: dict[str, np.ndarray], meta: dict) -> Catalog:
        """A catalogue over arrays in memory, checked like a file. meta becomes the section of that name."""
        sections = _with_meta(sections, meta)
        try:
            checked = check_sections(sections)
        except Fault as fault:
            raise CatalogError(f"sections: {fault}") from None
        views = {name: array.view() for name, array in checked.sections.items()}
        for view in views.values():
            view.flags.writeable = False
        return cls(replace(checked, sections=views))

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

    def continues(self, older: Catalog) -> bool:
        """Whether this catalogue is of an older one's lineage and numbers its titles as that did."""
        return self.lineage == older.lineage and self.numbers_alike(older)

    def numbers_alike(self, older: Catalog) -> bool:
        """Whether this catalogue begins with an older one's titles under their numbers: none lost, none moved."""
        end = int(older._id_offsets[-1])
        return (
            self.count >= older.count
            and np.array_equal(self._id_offsets[: older.count + 1], older._id_offsets)
            and np.array_equal(self._id_bytes[:end], older._id_bytes)
        )

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
        chosen = np.array(rows, np.int64)
        if len(chosen):
            self._checked(int(chosen.min()))
            self._checked(int(chosen.max()))
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

    Raises CatalogError if they do not make a catalogue, or a group of sections would be left out of it; OSError if the
    disk refuses.
    """
    sections = _with_meta(sections, meta)
    try:
        faults = check_sections(sections).faults
    except Fault as fault:
        raise CatalogError(f"{path}: not written: {fault}") from None
    for fault in faults.values():
        raise CatalogError(f"{path}: not written: {fault}")
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


def _row_set(sections: dict[str, np.ndarray], prefix: str) -> RowSet | None:
    if f"{prefix}_offsets" not in sections:
        return None
    return RowSet(*(sections[f"{prefix}_{part}"] for part in ("offsets", "columns", "values", "scale")))


_MODEL_PARTS = (
    *("codes", "scale", "success", "distance", "norms", "attention", "attention_scale"),
    *("feed_in", "feed_in_scale", "feed_in_bias", "feed_out", "feed_out_scale", "feed_out_bias"),
)
"""Sections in the order in which the kernels take them."""


def _encoder(sections: dict[str, np.ndarray]) -> Encoder | None:
    if "sequence_codes" not in sections:
        return None
    model = [sections[f"sequence_{part}"] for part in _MODEL_PARTS]
    return Encoder(
        codes=sections["sequence_codes"],
        scale=sections["sequence_scale"],
        bias=sections["sequence_bias"],
        start=sections["sequence_start"],
        model=(*model, float(sections["sequence_input_scale"][0])),
    )


def _tree_set(sections: dict[str, np.ndarray], meta: dict) -> TreeSet | None:
    if "second_stage_roots" not in sections:
        return None
    parts = {part: sections[f"second_stage_{part}"] for part in ("roots", "feature", "threshold", "children", "leaves")}
    buckets = sections["second_stage_buckets"].astype(bool)
    return TreeSet(inputs=tuple(meta["second_stage_inputs"]), buckets=buckets, **parts)


def _cohort_set(sections: dict[str, np.ndarray]) -> CohortSet | None:
    if "cohort_centres" not in sections:
        return None
    return CohortSet(*(sections[f"cohort_{part}"] for part in _COHORT_PARTS))


_COHORT_PARTS = ("centres", "of", "offsets", "rows", "weights", "success", "homes")


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
