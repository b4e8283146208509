"""Catalogue files that are damaged, foreign, from the future or hostile: each is refused by name of the fault."""

from __future__ import annotations

import hashlib
import json
import random
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omega_edge import bundle
from omega_edge.catalog import OPTIONAL_SECTIONS, Catalog, write_bundle
from omega_edge.errors import CatalogError
from tests.synthetic import sections_of

SECTIONS = (*sections_of(2)[0], "meta", "licence")
LICENCE = np.frombuffer(b"You may.", np.uint8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of a good bundle."""
    path = tmp_path_factory.mktemp("whole") / "whole.bundle"
    sections, meta = sections_of()
    write_bundle(path, sections | {"licence": LICENCE}, meta)
    return path.read_bytes()


def refusal(tmp_path, data: bytes) -> str:
    """The message that opening these bytes is refused with."""
    path = tmp_path / "test.bundle"
    path.write_bytes(data)
    with pytest.raises(CatalogError) as refused:
        Catalog.open(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


def table(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Section name to (place of its entry, offset, length)."""
    count = struct.unpack_from("<I", data, 12)[0]
    found = {}
    for entry in range(64, 64 + 128 * count, 128):
        name = data[entry : entry + 32].rstrip(b"\0").decode()
        found[name] = (entry, *struct.unpack_from("<QQ", data, entry + 80))
    return found


def resealed(data: bytes) -> bytes:
    """The same bytes with a table checksum that fits: what an attacker would send, not what a bad disk returns."""
    count = struct.unpack_from("<I", data, 12)[0]
    digest = hashlib.sha256(data[:32] + data[64 : 64 + 128 * count]).digest()
    return data[:32] + digest + data[64:]


def patched(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_flipped_bit_names_its_section(whole, tmp_path, name):
    _, offset, length = table(whole)[name]
    for place in {offset, offset + length // 2, offset + length - 1}:
        message = refusal(tmp_path, patched(whole, place, bytes([whole[place] ^ 0x10])))
        assert f"section {name} damaged: its checksum does not match" in message


def test_no_flipped_bit_anywhere_goes_unseen(whole, tmp_path):
    generator = random.Random(5)
    places = [*range(64), *(generator.randrange(64, len(whole)) for _ in range(400))]
    for place in places:
        refusal(tmp_path, patched(whole, place, bytes([whole[place] ^ (1 << generator.randrange(8))])))


def test_a_cut_file_is_refused_at_any_length(whole, tmp_path):
    edges = [edge for _, offset, length in table(whole).values() for edge in (offset - 1, offset, offset + length - 1)]
    for length in (*range(1, 70), 64 + 128, *edges, len(whole) - 1):
        message = refusal(tmp_path, whole[:length])
        assert "truncated" in message or length < 8
    assert "not a catalogue bundle" in refusal(tmp_path, b"")


def test_a_longer_file_is_refused(whole, tmp_path):
    assert "its header says" in refusal(tmp_path, whole + b"\0")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\x03\x04" + bytes(99), b"omega", b"\0" * 4096])
def test_a_foreign_file_is_called_foreign(tmp_path, data):
    assert "not a catalogue bundle" in refusal(tmp_path, data)


def test_no_file_and_a_directory(tmp_path):
    with pytest.raises(CatalogError, match="no such file"):
        Catalog.open(tmp_path / "absent")
    with pytest.raises(CatalogError, match="cannot be read: Is a directory"):
        Catalog.open(tmp_path)


def test_a_format_of_the_future_asks_for_an_update(whole, tmp_path):
    message = refusal(tmp_path, patched(whole, 8, struct.pack("<I", 2)))
    assert "format version 2, this program reads 1; update Omega Edge" in message


HOSTILE_ENTRIES = {
    "offset far outside": (80, struct.pack("<Q", 1 << 62), "lies at"),
    "offset of another section": (80, struct.pack("<Q", 64), "lies at"),
    "length far outside": (88, struct.pack("<Q", (1 << 64) - 1), "bytes do not make"),
    "shape whose product overflows": (48, struct.pack("<QQ", 1 << 63, 1 << 63), "bytes do not make"),
    "nine dimensions": (44, struct.pack("<I", 9), "unknown type"),
    "objects": (32, b"|O\0\0\0\0\0\0", "unknown type"),
    "big-endian numbers": (32, b">f4\0\0\0\0\0", "unknown type"),
    "a type that is not text": (32, b"\xff" * 8, "unknown type"),
    "a name that is a path": (0, b"../../etc/passwd" + bytes(16), "is no section name"),
    "a name twice": (0, b"meta" + bytes(28), "listed twice"),
}


@pytest.mark.parametrize("case", HOSTILE_ENTRIES)
def test_a_hostile_table_with_a_good_checksum_is_refused(whole, tmp_path, case):
    within, new, message = HOSTILE_ENTRIES[case]
    entry = table(whole)["codes"][0]
    assert message in refusal(tmp_path, resealed(patched(whole, entry + within, new)))


def test_a_hostile_number_of_sections_is_refused(whole, tmp_path):
    for count in (257, 1 << 31, (1 << 32) - 1):
        assert "section table damaged" in refusal(tmp_path, patched(whole, 12, struct.pack("<I", count)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_changes_of_header_and_table_never_crash(whole, tmp_path, data):
    changed = whole
    end = 64 + 128 * len(table(whole))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, end - 8))
        changed = patched(changed, place, data.draw(st.binary(min_size=1, max_size=8)))
    path = tmp_path / "fuzzed.bundle"
    path.write_bytes(resealed(changed))
    try:
        Catalog.open(path).close()
    except CatalogError as refused:
        assert str(path) in str(refused)


def set_at(name: str, index: object, value: object):
    def change(sections: dict[str, np.ndarray]) -> None:
        sections[name] = sections[name].copy()
        sections[name][index] = value

    return change


def replaced(name: str, make):
    def change(sections: dict[str, np.ndarray]) -> None:
        sections[name] = make(sections[name])

    return change


def swapped_columns(sections: dict[str, np.ndarray]) -> None:
    row = int(np.flatnonzero(np.diff(sections["row_offsets"].astype(np.int64)) > 1)[0])
    start = int(sections["row_offsets"][row])
    sections["row_columns"] = sections["row_columns"].copy()
    sections["row_columns"][[start, start + 1]] = sections["row_columns"][[start + 1, start]]


def same_id_twice(sections: dict[str, np.ndarray]) -> None:
    sections["content_id_bytes"] = sections["content_id_bytes"].copy()
    sections["content_id_bytes"][4:8] = sections["content_id_bytes"][0:4]


HOSTILE_CONTENT = {
    "ids: offset past the end": (set_at("content_id_offsets", -1, 10_000), "content_id_offsets"),
    "ids: offsets fall": (set_at("content_id_offsets", 3, 0), "content_id_offsets"),
    "ids: first offset": (set_at("content_id_offsets", 0, 1), "content_id_offsets"),
    "ids: empty id": (set_at("content_id_offsets", 3, 8), "content_id_offsets"),
    "ids: duplicate": (same_id_twice, "each content id once"),
    "ids: order outside": (set_at("content_id_order", 0, 60), "content_id_order"),
    "ids: order repeats": (set_at("content_id_order", 0, 1), "content_id_order"),
    "ids: control character": (set_at("content_id_bytes", 0, 0), "content_id_bytes"),
    "ids: not UTF-8": (set_at("content_id_bytes", 1, 0xFF), "content_id_bytes"),
    "ids: cut inside a character": (set_at("content_id_bytes", slice(3, 5), (0xC3, 0xA9)), "whole characters"),
    "names: too long": (set_at("name_offsets", slice(1, -1), 0), "name_offsets"),
    "names: not UTF-8": (set_at("name_bytes", 1, 0xFF), "name_bytes"),
    "genres: bit outside": (set_at("genre_masks", 7, 1 << 5), "genre_masks"),
    "genres: highest bit": (set_at("genre_masks", 7, 1 << 63), "genre_masks"),
    "years: negative": (set_at("years", 0, -1), "years"),
    "window: ends before it starts": (set_at("available_from", 12, 1 << 46), "available_from"),
    "window: before time": (set_at("available_from", 0, -1), "available_from"),
    "window: after time": (set_at("available_until", 0, 1 << 50), "available_from"),
    "codes: -128": (set_at("codes", (3, 3), -128), "codes"),
    "codes: another width": (replaced("codes", lambda codes: codes[:, :383].copy()), "codes"),
    "codes: a title missing": (replaced("codes", lambda codes: codes[:-1]), "codes"),
    "codes: another type": (replaced("codes", lambda codes: codes.view(np.uint8)), "codes"),
    "scale: zero": (set_at("code_scale", 0, 0.0), "code_scale"),
    "scale: not a number": (set_at("code_scale", 0, np.nan), "code_scale"),
    "scale: infinite": (set_at("code_scale", 0, np.inf), "code_scale"),
    "scale: two dimensions": (replaced("code_scale", lambda scale: scale[:, None].copy()), "code_scale"),
    "no titles": (replaced("code_scale", lambda scale: scale[:0]), "expected 1 to"),
    "popularity: above one": (set_at("popularity", 0, 1.5), "popularity"),
    "trends: not a number": (set_at("trend_scores", (0, 0), np.nan), "trend_scores"),
    "trends: one missing": (replaced("trend_scores", lambda scores: scores[:1]), "trend_scores"),
    "context: negative": (set_at("context_prior", (0, 0), -0.1), "context_prior"),
    "fusion: infinite": (set_at("fusion_weights", (0, 0), np.inf), "fusion_weights"),
    "fusion: not a number": (set_at("fusion_calibration", (0, 0), np.nan), "fusion_calibration"),
    "fusion: five buckets": (replaced("fusion_weights", lambda w: np.repeat(w, 2, axis=0)[:5].copy()), "fusion_weights"),
    "rows: column outside": (set_at("row_columns", 0, 60), "row_columns"),
    "rows: column far outside": (set_at("row_columns", -1, (1 << 32) - 1), "row_columns"),
    "rows: columns not ascending": (swapped_columns, "ascending columns"),
    "rows: offsets past the end": (set_at("row_offsets", -1, 1 << 31), "row_offsets"),
    "rows: offsets fall": (set_at("row_offsets", 5, 1 << 31), "row_offsets"),
    "rows: values shorter than columns": (replaced("row_values", lambda values: values[:-1]), "row_values"),
    "rows: -128": (set_at("row_values", 0, -128), "row_values"),
    "rows: scale not a number": (set_at("row_scale", 0, np.nan), "row_scale"),
    "slist: column outside": (set_at("slist_columns", 0, 60), "slist_columns"),
    "slist: offsets fall": (set_at("slist_offsets", 5, 1 << 31), "slist_offsets"),
    "slist: values shorter than columns": (replaced("slist_values", lambda values: values[:-1]), "slist_values"),
    "slist: scale negative": (set_at("slist_scale", 0, -1), "slist_scale"),
    "slist: one section missing": (lambda sections: sections.pop("slist_columns"), "slist_columns is missing"),
    "factors: -128": (set_at("factor_codes", (1, 2), -128), "factor_codes"),
    "factors: another width": (replaced("factor_codes", lambda codes: codes[:, :32].copy()), "factor_codes"),
    "factors: scale not a number": (set_at("factor_scale", 0, np.nan), "factor_scale"),
    "factors: fold infinite": (set_at("factor_fold", (0, 0), np.inf), "factor_fold"),
    "factors: fold of another shape": (replaced("factor_fold", lambda fold: fold[:32].copy()), "factor_fold"),
    "factors: one section missing": (lambda sections: sections.pop("factor_fold"), "factor_fold is missing"),
    "onboarding: row outside": (set_at("onboarding", 0, 60), "onboarding"),
    "onboarding: a row twice": (replaced("onboarding", lambda rows: np.repeat(rows, 2)), "onboarding"),
    "rows: one section missing": (lambda sections: sections.pop("row_scale"), "row_scale is missing"),
    "a section missing": (lambda sections: sections.pop("years"), "section years is missing"),
}


@pytest.mark.parametrize("case", HOSTILE_CONTENT)
def test_hostile_content_with_good_checksums_is_refused(tmp_path, case):
    change, message = HOSTILE_CONTENT[case]
    sections, meta = sections_of()
    change(sections)
    bundle.write(
        tmp_path / "test.bundle",
        sections | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)},
        OPTIONAL_SECTIONS,
    )
    assert message in refusal(tmp_path, (tmp_path / "test.bundle").read_bytes())
    with pytest.raises(CatalogError, match=message.replace("(", r"\(")):
        Catalog.from_sections(sections, meta)


def meta_with(**changes: object) -> bytes:
    return json.dumps(sections_of(2)[1] | changes).encode()


HOSTILE_META = {
    "not JSON": (b"{", "not JSON"),
    "not UTF-8": (b'"\xff"', "not JSON"),
    "nested without end": (b"[" * 200_000, "not JSON"),
    "a list": (b"[]", "expected a JSON object"),
    "too long": (b" " * ((1 << 20) + 1), "at most 1048576 bytes"),
    "not a number": (meta_with(fusion_parameters={"row_decay": float("nan")}), "not JSON"),
    "a number beyond float": (b'{"version": ' + b"9" * 5000 + b"}", "not JSON"),
    "a parameter of text": (meta_with(fusion_parameters={"row_decay": "1"}), "fusion_parameters"),
    "65 genres": (meta_with(genres=[f"g{index}" for index in range(65)]), "genres"),
    "a genre twice": (meta_with(genres=["Drama", "Drama"]), "genres"),
    "a lineage of another form": (meta_with(lineage="../x"), "lineage"),
    "a version that is true": (meta_with(version=True), "version"),
    "a negative time": (meta_with(built_at=-1), "built_at"),
    "windows that are text": (meta_with(trend_window_hours=["48", "168"]), "trend_window_hours"),
    "features missing": (meta_with(fusion_features=None), "fusion_features"),
    "more features than weights": (meta_with(fusion_features=["a", "b", "c", "d", "e", "f", "g", "h", "i"]), "fusion"),
}


@pytest.mark.parametrize("case", HOSTILE_META)
def test_hostile_meta_is_refused(tmp_path, case):
    meta, message = HOSTILE_META[case]
    sections = sections_of(2)[0] | {"meta": np.frombuffer(meta, np.uint8)}
    bundle.write(tmp_path / "test.bundle", sections, OPTIONAL_SECTIONS)
    assert message in refusal(tmp_path, (tmp_path / "test.bundle").read_bytes())


def test_the_writer_refuses_what_the_format_cannot_hold(tmp_path):
    for name, array in {
        "complex": np.zeros(2, np.complex64),
        "objects": np.array([None]),
        "deep": np.zeros((1, 1, 1, 1, 1), np.int8),
        "Bad-Name": np.zeros(1, np.int8),
    }.items():
        with pytest.raises(ValueError, match="a bundle cannot hold"):
            bundle.write(tmp_path / "x", {name: array}, frozenset())
    with pytest.raises(CatalogError, match="section surprise is unknown"):
        write_bundle(tmp_path / "x", sections_of()[0] | {"surprise": np.zeros(1, np.int8)}, sections_of()[1])
    assert list(tmp_path.iterdir()) == []
