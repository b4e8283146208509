"""Sections that the catalogue can do without: sound ones are there, damage leaves them out whole and says so."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from omega_edge import bundle
from omega_edge.catalog import OPTIONAL_SECTIONS, Catalog, write_bundle
from omega_edge.errors import CatalogError
from omega_edge.ranking import FEATURES
from tests.synthetic import second_stage_of, sections_of, sequence_of

STAGE_SECTIONS = tuple(second_stage_of()[0])


def with_stage() -> tuple[dict[str, np.ndarray], dict]:
    (sections, meta), (stage, inputs) = sections_of(), second_stage_of()
    return sections | stage, meta | inputs


@pytest.fixture
def path(tmp_path):
    write_bundle(tmp_path / "whole.bundle", *with_stage())
    return tmp_path / "whole.bundle"


def place_of(data: bytes, name: str) -> tuple[int, int]:
    """Offset and length of a section's bytes, from the file's table."""
    for entry in range(64, 64 + 128 * struct.unpack_from("<I", data, 12)[0], 128):
        if data[entry : entry + 32].rstrip(b"\0").decode() == name:
            return struct.unpack_from("<QQ", data, entry + 80)
    raise AssertionError(name)


def check_without_stage(catalog: Catalog, *words: str) -> None:
    """The stage is left out and named; the rest is whole."""
    sections, _ = sections_of()
    assert catalog.second_stage is None and list(catalog.faults) == ["second_stage"]
    for word in words:
        assert word in catalog.faults["second_stage"]
    np.testing.assert_array_equal(catalog.codes, sections["codes"])
    np.testing.assert_array_equal(catalog.fusion.weights, sections["fusion_weights"])
    assert catalog.title(3).content_id == "t003"


def test_sound_trees_are_there_and_no_fault_is_named(path):
    sections, meta = with_stage()
    with Catalog.open(path) as catalog:
        assert catalog.faults == {} and catalog.second_stage.inputs == tuple(meta["second_stage_inputs"])
        for part in ("roots", "feature", "threshold", "children", "leaves"):
            np.testing.assert_array_equal(getattr(catalog.second_stage, part), sections[f"second_stage_{part}"])
        assert catalog.second_stage.buckets.tolist() == [True] * 4


def test_a_bundle_without_trees_has_no_fault():
    catalog = Catalog.from_sections(*sections_of())
    assert catalog.second_stage is None and catalog.faults == {}


@pytest.mark.parametrize("name", STAGE_SECTIONS)
def test_a_flipped_bit_leaves_out_the_stage_and_nothing_else(path, name):
    data = path.read_bytes()
    offset, length = place_of(data, name)
    for place in (offset, offset + length // 2, offset + length - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :])
        with Catalog.open(path) as catalog:
            check_without_stage(catalog, name, "checksum does not match")


def test_a_flipped_bit_elsewhere_is_still_refused(path):
    data = path.read_bytes()
    for name in ("codes", "slist_values", "factor_fold", "fusion_weights"):
        offset, _ = place_of(data, name)
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x20]) + data[offset + 1 :])
        with pytest.raises(CatalogError, match=f"section {name} damaged"):
            Catalog.open(path)


def set_at(name: str, index: object, value: object):
    def change(sections: dict[str, np.ndarray], meta: dict) -> None:
        sections["second_stage_" + name] = sections["second_stage_" + name].copy()
        sections["second_stage_" + name][index] = value

    return change


def without(name: str):
    return lambda sections, meta: sections.pop("second_stage_" + name)


def shaped(name: str, make):
    def change(sections: dict[str, np.ndarray], meta: dict) -> None:
        sections["second_stage_" + name] = np.ascontiguousarray(make(sections["second_stage_" + name]))

    return change


def named(*inputs: object):
    def change(sections: dict[str, np.ndarray], meta: dict) -> None:
        meta["second_stage_inputs"] = list(inputs)

    return change


def chain_of_children(sections: dict[str, np.ndarray], meta: dict) -> None:
    """One tree of 17 levels, each node's children being the next node and a leaf."""
    for name, array in (
        ("roots", np.zeros(1, np.uint32)),
        ("feature", np.zeros(17, np.uint8)),
        ("threshold", np.zeros(17, np.float32)),
        ("children", np.array([[level + 1 if level < 16 else -1, -1] for level in range(17)], np.int32)),
    ):
        sections["second_stage_" + name] = array


HOSTILE = {
    **{f"{name.removeprefix('second_stage_')} missing": (without(name.removeprefix("second_stage_")), f"{name} is missing")
       for name in STAGE_SECTIONS},
    "root outside": (set_at("roots", 0, 1 << 20), "second_stage_roots"),
    "no tree": (shaped("roots", lambda roots: roots[:0]), "expected 1 to"),
    "too many trees": (shaped("roots", lambda roots: np.zeros(2001, np.uint32)), "expected 1 to 2000 trees"),
    "input outside": (set_at("feature", 0, 255), "second_stage_feature"),
    "threshold not a number": (set_at("threshold", 0, np.nan), "second_stage_threshold"),
    "threshold infinite": (set_at("threshold", 0, np.inf), "second_stage_threshold"),
    "leaf not a number": (set_at("leaves", -1, np.nan), "second_stage_leaves"),
    "no leaf": (shaped("leaves", lambda leaves: leaves[:0]), "expected 1 to"),
    "child outside": (set_at("children", (0, 1), 1 << 30), "second_stage_children"),
    "leaf outside": (set_at("children", (0, 0), -(1 << 31)), "second_stage_children"),
    "a node that leads to itself": (set_at("children", (3, 0), 3), "second_stage_children"),
    "a node that leads back": (set_at("children", (3, 1), 0), "second_stage_children"),
    "a chain that is too deep": (chain_of_children, "at most 16 levels"),
    "a bucket of another kind": (set_at("buckets", 0, 2), "second_stage_buckets"),
    "five buckets": (shaped("buckets", lambda buckets: np.ones(5, np.uint8)), "second_stage_buckets"),
    "children of one column": (shaped("children", lambda children: children[:, :1]), "second_stage_children"),
    "children of floats": (shaped("children", lambda children: children.astype(np.float32)), "second_stage_children"),
    "nodes of different number": (shaped("threshold", lambda threshold: threshold[:-1]), "second_stage_threshold"),
    "an input of the future": (named(*[f"value:{name}" for name in FEATURES], "rank:horoscope"), "'rank:horoscope' is unknown"),
    "inputs that are no names": (named(1, 2), "second_stage_inputs"),
    "no inputs": (named(), "second_stage_inputs"),
    "an input twice": (named("rank:score", "rank:score"), "second_stage_inputs"),
    "inputs missing": (lambda sections, meta: meta.pop("second_stage_inputs"), "second_stage_inputs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_stage_that_is_not_sound_is_left_out_and_never_written(tmp_path, case):
    change, message = HOSTILE[case]
    sections, meta = with_stage()
    change(sections, meta)
    check_without_stage(Catalog.from_sections(sections, meta), message)
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    bundle.write(tmp_path / "hostile", sections | {"meta": text}, OPTIONAL_SECTIONS)
    with Catalog.open(tmp_path / "hostile") as catalog:
        check_without_stage(catalog, message)
    with pytest.raises(CatalogError, match="not written"):
        write_bundle(tmp_path / "x", sections, meta)
    assert [file.name for file in tmp_path.iterdir()] == ["hostile"]


# The encoder ----------------------------------------------------------------------------------------------------

SEQUENCE_SECTIONS = tuple(sorted(sequence_of()))


def test_a_sound_encoder_is_there_beside_the_stage(tmp_path):
    (sections, meta), sequence = with_stage(), sequence_of()
    write_bundle(tmp_path / "whole", sections | sequence, meta)
    with Catalog.open(tmp_path / "whole") as catalog:
        assert catalog.faults == {} and catalog.second_stage is not None
        for part in ("codes", "attention", "distance", "feed_out_bias", "input_scale"):
            np.testing.assert_array_equal(getattr(catalog.sequence, part), sequence[f"sequence_{part}"])
        np.testing.assert_array_equal(catalog.sequence_fusion.weights, sequence["sequence_fusion_weights"])
        np.testing.assert_array_equal(catalog.sequence_fusion.calibration, sequence["sequence_fusion_calibration"])
        np.testing.assert_array_equal(catalog.fusion.weights, sections["fusion_weights"])
        assert catalog.sequence_fusion.parameters == catalog.fusion.parameters


@pytest.mark.parametrize("name", SEQUENCE_SECTIONS)
def test_a_damaged_encoder_is_left_out_and_the_stage_stays(tmp_path, name):
    (sections, meta), sequence, path = with_stage(), sequence_of(), tmp_path / "bundle"
    write_bundle(path, sections | sequence, meta)
    data = path.read_bytes()
    offset, length = place_of(data, name)
    path.write_bytes(data[: offset + length - 1] + bytes([data[offset + length - 1] ^ 1]) + data[offset + length :])
    with Catalog.open(path) as catalog:
        assert catalog.sequence is None and catalog.sequence_fusion is None and catalog.second_stage is not None
        assert list(catalog.faults) == ["sequence"] and name in catalog.faults["sequence"]
    wrong = sequence[name].copy()
    wrong.flat[-1] = -128 if wrong.dtype == np.int8 else np.nan
    for changed in ({name: wrong}, {name: sequence[name][:-1].copy()}, {}):
        left = {other: array for other, array in sequence.items() if other != name} | changed
        catalog = Catalog.from_sections(sections | left, meta)
        assert catalog.sequence is None and name in catalog.faults["sequence"] and catalog.second_stage is not None
        with pytest.raises(CatalogError, match=f"not written: section {name}"):
            write_bundle(tmp_path / "x", sections | left, meta)
