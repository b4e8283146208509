"""The catalogue: what is written comes back, titles are found, lookups refuse what is not there."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import bundle
from omega_edge.catalog import OPTIONAL_SECTIONS, Catalog, Title, lineage_of, title_sections, write_bundle
from omega_edge.errors import CatalogError
from omega_edge.protocol import MAX_TIMESTAMP_MS
from tests.synthetic import catalog_of, sections_of

PROJECT = Path(__file__).resolve().parent.parent
VIEWS = {
    "codes": "codes",
    "scale": "code_scale",
    "popularity": "popularity",
    "genre_masks": "genre_masks",
    "years": "years",
    "age_ratings": "age_ratings",
    "available_from": "available_from",
    "available_until": "available_until",
    "context_prior": "context_prior",
    "context_overall": "context_overall",
}


@pytest.fixture
def path(tmp_path):
    sections, meta = sections_of()
    write_bundle(tmp_path / "a.bundle", sections, meta)
    return tmp_path / "a.bundle"


def test_what_is_written_comes_back(path):
    sections, meta = sections_of()
    with Catalog.open(path) as catalog:
        for view, section in VIEWS.items():
            np.testing.assert_array_equal(getattr(catalog, view), sections[section])
            assert not getattr(catalog, view).flags.writeable
        assert (catalog.count, len(catalog), catalog.meta) == (60, 60, meta)
        assert (catalog.version, catalog.built_at, catalog.lineage) == (1, meta["built_at"], meta["lineage"])
        assert [trend.window_hours for trend in catalog.trends] == [48, 336]
        np.testing.assert_array_equal(np.stack([trend.scores for trend in catalog.trends]), sections["trend_scores"])
        for view, section in (("offsets", "row_offsets"), ("columns", "row_columns"), ("values", "row_values")):
            np.testing.assert_array_equal(getattr(catalog.rows, view), sections[section])
        for view in ("offsets", "columns", "values", "scale"):
            np.testing.assert_array_equal(getattr(catalog.slist, view), sections[f"slist_{view}"])
        for view in ("codes", "scale", "fold"):
            np.testing.assert_array_equal(getattr(catalog.factors, view), sections[f"factor_{view}"])
        np.testing.assert_array_equal(catalog.onboarding, sections["onboarding"])
        assert catalog.fusion.features == tuple(meta["fusion_features"])
        assert catalog.fusion.parameters == meta["fusion_parameters"]
        np.testing.assert_array_equal(catalog.fusion.weights, sections["fusion_weights"])
        np.testing.assert_array_equal(catalog.fusion.calibration, sections["fusion_calibration"])


def test_a_catalogue_in_memory_equals_the_opened_one(path):
    memory = catalog_of()
    with Catalog.open(path) as opened:
        assert [memory.title(row) for row in range(60)] == [opened.title(row) for row in range(60)]
        assert memory.meta == opened.meta
        assert not memory.codes.flags.writeable


def test_the_file_is_laid_out_as_documented(path):
    data = path.read_bytes()
    magic, version, count, length, reserved, digest = struct.unpack_from("<8sIIQQ32s", data)
    assert (magic, version, length, reserved) == (b"\x89OMEGA\r\n", 1, len(data), 0)
    assert digest == hashlib.sha256(data[:32] + data[64 : 64 + 128 * count]).digest()
    names = []
    for index in range(count):
        name, dtype, flags, dimensions, *shape, offset, size, checksum = struct.unpack_from(
            "<32s8sII4QQQ32s", data, 64 + 128 * index
        )
        names.append(name.rstrip(b"\0").decode())
        assert offset % 64 == 0
        assert checksum == hashlib.sha256(data[offset : offset + size]).digest()
        assert flags == (names[-1] not in OPTIONAL_SECTIONS)
        if names[-1] == "codes":
            assert (dtype.rstrip(b"\0"), dimensions, shape[:2]) == (b"|i1", 2, [60, 384])
        if names[-1] == "meta":
            assert json.loads(data[offset : offset + size])["name"] == "synthetic"
    assert names == sorted(names)


WRITE_AGAIN = """
import sys
from omega_edge.catalog import write_bundle
from tests.synthetic import sections_of
sections, meta = sections_of()
write_bundle(sys.argv[1], dict(reversed(sections.items())), dict(reversed(meta.items())))
"""


def test_another_process_writes_the_same_bytes_in_any_order(path, tmp_path):
    other = tmp_path / "other.bundle"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", WRITE_AGAIN, str(other)], cwd=PROJECT, env=environment, check=True, timeout=60)
    assert other.read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()
    sections, meta = sections_of(seed=2)
    with pytest.raises(CatalogError, match="not written: section popularity"):
        write_bundle(path, sections | {"popularity": sections["popularity"] + 1}, meta)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(path, sections, meta)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["a.bundle"]


def test_a_reader_keeps_its_bundle_while_a_new_one_takes_the_name(path):
    sections, meta = sections_of(seed=2)
    with Catalog.open(path) as old:
        write_bundle(path, sections, meta)
        np.testing.assert_array_equal(old.codes, sections_of()[0]["codes"])
        with Catalog.open(path) as new:
            np.testing.assert_array_equal(new.codes, sections["codes"])


def test_every_title_is_found_by_its_id():
    catalog = catalog_of()
    assert [catalog.row_of(catalog.content_id(row)) for row in range(60)] == list(range(60))


@pytest.mark.parametrize("content_id", ["", "t", "t0000", "t060", "zzz", "\ud800", "é", "t000\0", "t" * 10_000])
def test_an_unknown_id_has_no_row(content_id):
    assert catalog_of().row_of(content_id) == -1


def title(content_id: str, name: str = "A name", genres: tuple[str, ...] = (), **fields) -> Title:
    fields = {"year": None, "age_rating": None, "available_from": 0, "available_until": MAX_TIMESTAMP_MS} | fields
    return Title(content_id=content_id, name=name, genres=genres, **fields)


def catalog_with(titles: list[Title], genres: tuple[str, ...]) -> Catalog:
    sections, meta = sections_of(len(titles))
    shares = {"context_prior": np.zeros((8, len(genres)), np.float32), "context_overall": np.zeros(len(genres), np.float32)}
    lineage = lineage_of([each.content_id for each in titles])
    return Catalog.from_sections(
        sections | title_sections(titles, genres) | shares, meta | {"genres": list(genres), "lineage": lineage}
    )


ID_TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)


@pytest.mark.parametrize("text", [" ", "\u3000", "\u2028 ", "a\x85b", "a\x07b"])
def test_texts_that_no_message_could_carry_are_refused(text):
    for wrong in (title(text, "Name"), title("id", text)):
        with pytest.raises(CatalogError, match="blank|control characters"):
            catalog_with([title("first", "First"), wrong], ())


@settings(max_examples=60, deadline=None)
@given(st.sets(ID_TEXTS.filter(lambda text: not text.isspace()), min_size=1, max_size=30))
def test_ids_of_any_script_are_found(ids):
    ids = sorted(ids, key=lambda text: hashlib.sha256(text.encode()).digest())
    catalog = catalog_with([title(content_id) for content_id in ids], ())
    assert [catalog.content_id(row) for row in range(len(ids))] == ids
    assert [catalog.row_of(content_id) for content_id in ids] == list(range(len(ids)))
    assert catalog.row_of("".join(ids) + "x") == -1


def test_titles_come_back_with_all_they_have():
    titles = [
        title("b", "Face::Off (1997)", ("Action", "Drama"), year=1997, age_rating=16, available_from=5, available_until=9),
        title("ä", "Amélie 千", ("Drama",), age_rating=0),
        title("a", "Bare"),
    ]
    catalog = catalog_with(titles, ("Action", "Comedy", "Drama"))
    assert [catalog.title(row) for row in range(3)] == titles
    assert catalog.name(1) == "Amélie 千"
    assert catalog.genre_masks.tolist() == [0b101, 0b100, 0]
    assert catalog.age_ratings.tolist() == [16, 0, 255]


def test_sixty_four_genres_fit_and_a_genre_outside_the_list_is_left_out():
    genres = tuple(f"g{index}" for index in range(64))
    catalog = catalog_with([title("a", genres=(genres[63], genres[0])), title("b", genres=("other",))], genres)
    assert catalog.title(0).genres == ("g0", "g63") and catalog.title(1).genres == ()


def test_a_catalogue_without_genres_rows_and_trends(tmp_path):
    sections, meta = sections_of()
    for name in OPTIONAL_SECTIONS & sections.keys():
        del sections[name]
    sections["genre_masks"] = np.zeros(60, np.uint64)
    sections["context_prior"], sections["context_overall"] = np.zeros((8, 0), np.float32), np.zeros(0, np.float32)
    sections["trend_scores"] = np.zeros((0, 60), np.float32)
    write_bundle(tmp_path / "b", sections, meta | {"genres": [], "trend_window_hours": []})
    with Catalog.open(tmp_path / "b") as catalog:
        assert catalog.rows is None and catalog.slist is None and catalog.factors is None
        assert catalog.trends == () and catalog.genres == () and len(catalog.onboarding) == 0
        assert catalog.title(0).genres == ()


@pytest.mark.parametrize("row", [-1, 60, 1 << 40])
def test_rows_outside_the_catalogue_are_refused(row):
    for lookup in (catalog_of().title, catalog_of().name, catalog_of().content_id):
        with pytest.raises(IndexError, match="expected 0 to 59"):
            lookup(row)


def test_a_closed_catalogue_says_so_and_arrays_taken_before_stay_readable(path):
    catalog = Catalog.open(path)
    codes = catalog.codes
    catalog.close()
    catalog.close()
    path.unlink()
    np.testing.assert_array_equal(codes, sections_of()[0]["codes"])
    for use in (lambda: catalog.count, lambda: catalog.row_of("t000"), lambda: catalog.title(0)):
        with pytest.raises(CatalogError, match="was closed"):
            use()


def test_closing_frees_the_file(path):
    catalog = Catalog.open(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    catalog.close()
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_an_unknown_optional_section_is_skipped_and_a_required_one_refused(tmp_path):
    sections, meta = sections_of()
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    more = sections | {"meta": text, "later_invention": np.arange(5, dtype=np.float32)}
    bundle.write(tmp_path / "optional", more, OPTIONAL_SECTIONS | {"later_invention"})
    with Catalog.open(tmp_path / "optional") as catalog:
        assert catalog.count == 60
    bundle.write(tmp_path / "required", more, OPTIONAL_SECTIONS)
    with pytest.raises(CatalogError, match="needs section later_invention, which this program does not know; update"):
        Catalog.open(tmp_path / "required")
