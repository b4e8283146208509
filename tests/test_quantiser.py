"""Codebooks: the codes against a plain oracle, the training, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.quantiser_fit import MINIMUM_VECTORS, held_out, train_quantiser
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.errors import CatalogError, ConfigError
from omega_edge.quantiser import SECTIONS, CodebookFault, Quantiser
from tests import codebooks
from tests.synthetic import sections_of


@pytest.fixture(scope="module")
def arrays():
    return codebooks.sections()


@pytest.fixture(scope="module")
def quantiser():
    return codebooks.quantiser()


def plain_coordinates(arrays, vector):
    rotation = arrays["quantiser_rotation"].astype(np.float64) * arrays["quantiser_rotation_scale"]
    return rotation.T @ (vector.astype(np.float64) - arrays["quantiser_mean"]), rotation


def plain_unit(arrays, rotation, coordinates):
    vector = arrays["quantiser_mean"] + rotation @ coordinates
    return vector / np.linalg.norm(vector)


def test_the_product_code_names_the_nearest_centroids(quantiser, arrays):
    vectors = codebooks.vectors(5, seed=9)
    codes = quantiser.product.encode(vectors)
    for vector, code, decoded in zip(vectors, codes, quantiser.product.decode(codes), strict=True):
        wanted, rotation = plain_coordinates(arrays, vector)
        chosen = np.zeros(384)
        for place in range(48):
            centroids = (
                arrays["quantiser_centroids"][place].astype(np.float64) * arrays["quantiser_centroid_scale"][place]
            )
            part = wanted[8 * place : 8 * place + 8]
            distances = [float(((centroid - part) ** 2).sum()) for centroid in centroids]
            assert distances[code[place]] == pytest.approx(min(distances), abs=1e-6)
            chosen[8 * place : 8 * place + 8] = centroids[code[place]]
        assert decoded == pytest.approx(plain_unit(arrays, rotation, chosen), abs=1e-5)


def test_a_sign_is_that_of_what_the_ones_before_left(quantiser, arrays):
    vectors = codebooks.vectors(5, seed=9)
    codes = quantiser.signs.encode(vectors)
    for vector, code, decoded in zip(vectors, codes, quantiser.signs.decode(codes), strict=True):
        missing, rotation = plain_coordinates(arrays, vector)
        chosen = np.zeros(384)
        directions, steps = arrays["quantiser_sign_directions"], arrays["quantiser_sign_steps"]
        for place, (direction, step) in enumerate(zip(directions.tolist(), steps.tolist(), strict=True)):
            bit = code[place // 8] >> (place % 8) & 1
            assert abs(missing[direction]) < 1e-6 or bit == (missing[direction] >= 0)
            signed = step if bit else -step
            missing[direction] -= signed
            chosen[direction] += signed
        assert decoded == pytest.approx(plain_unit(arrays, rotation, chosen), abs=1e-5)


@pytest.mark.parametrize("kind", ["product", "signs"])
def test_table_look_ups_are_the_cosine_to_what_is_decoded(quantiser, kind):
    code = getattr(quantiser, kind)
    vectors, query = codebooks.vectors(1100, seed=3), codebooks.vectors(1, seed=4)[0]
    codes = code.encode(vectors)
    found = code.table(query).dot_products(codes) * code.inverse_lengths(codes)
    assert np.abs(found - code.decode(codes) @ query).max() < 0.002
    assert code.encode(vectors[:0]).shape == (0, code.width) and len(code.decode(codes[:0])) == 0


def test_what_is_encoded_comes_back_near(quantiser):
    unseen = codebooks.vectors(300, seed=77)
    for code in (quantiser.product, quantiser.signs):
        decoded = code.decode(code.encode(unseen))
        assert np.linalg.norm(decoded, axis=1) == pytest.approx(np.ones(300), abs=1e-5)
        assert (decoded * unseen).sum(axis=1).mean() > 0.97


def test_the_same_vectors_make_the_same_codebook(arrays):
    again = train_quantiser(codebooks.vectors(1200, seed=1), lambda _what: None)
    assert all((again[name] == arrays[name]).all() for name in SECTIONS)
    assert Quantiser(again).version == codebooks.quantiser().version != codebooks.quantiser(2).version


def test_too_few_vectors_make_none():
    said = []
    assert train_quantiser(codebooks.vectors(MINIMUM_VECTORS - 1, seed=1), said.append) == {}
    assert f"{MINIMUM_VECTORS} needed" in said[0]


def test_one_in_five_is_held_out_whatever_else_there_is():
    names = [f"t{number}" for number in range(2000)]
    out = held_out(names)
    assert 0.17 < out.mean() < 0.23 and (held_out(names[500:]) == out[500:]).all()


def test_a_codebook_packs_and_unpacks(quantiser):
    packed = quantiser.packed()
    assert len(packed) == quantiser.nbytes
    again = Quantiser.unpacked(packed)
    assert again.version == quantiser.version
    assert (again.product.encode(codebooks.vectors(9, 2)) == quantiser.product.encode(codebooks.vectors(9, 2))).all()
    with pytest.raises(CodebookFault, match=f"expected {len(packed)} bytes, got {len(packed) - 1}"):
        Quantiser.unpacked(packed[:-1])


WRONG = [
    ("quantiser_mean", lambda array: array * np.float32(np.nan), "numbers from -1 to 1"),
    ("quantiser_rotation_scale", lambda array: array * 0, "above 0, at most 1"),
    ("quantiser_sign_steps", lambda array: array * np.float32(np.inf), "above 0, at most 1"),
    ("quantiser_sign_directions", lambda array: array + np.uint16(384), "numbers below 384"),
    ("quantiser_centroids", lambda array: array[:47], r"expected \|i1\(48, 256, 8\)"),
    ("quantiser_rotation", lambda array: array.astype(np.int16), "expected "),
]


@pytest.mark.parametrize(("name", "spoilt", "message"), WRONG)
def test_arrays_that_make_no_codebook_are_refused(arrays, tmp_path, name, spoilt, message):
    wrong = {**arrays, name: np.ascontiguousarray(spoilt(arrays[name]))}
    with pytest.raises(CodebookFault, match=message):
        Quantiser(wrong)
    sections, meta = sections_of(20)
    with pytest.raises(CatalogError, match=f"not written: section {name}"):
        write_bundle(tmp_path / "wrong.bundle", {**sections, **wrong}, meta)


def test_a_bundle_carries_it_whole_or_not_at_all(arrays, tmp_path):
    sections, meta = sections_of(20)
    write_bundle(tmp_path / "with.bundle", {**sections, **arrays}, meta)
    with Catalog.open(tmp_path / "with.bundle") as catalog:
        assert catalog.quantiser.version == codebooks.quantiser().version
    write_bundle(tmp_path / "without.bundle", sections, meta)
    with Catalog.open(tmp_path / "without.bundle") as catalog:
        assert catalog.quantiser is None
    partial = {name: array for name, array in arrays.items() if name != "quantiser_mean"}
    with pytest.raises(CatalogError, match="section quantiser_mean is missing beside the other quantiser sections"):
        write_bundle(tmp_path / "partial.bundle", {**sections, **partial}, meta)


@pytest.mark.parametrize("kind", ["product", "signs"])
def test_arguments_of_another_shape_are_refused(quantiser, kind):
    code = getattr(quantiser, kind)
    good = codebooks.vectors(2, seed=1)
    for vectors in (good.astype(np.float64), good[:, :383], good[0], good * np.float32(np.nan), good.tolist()):
        with pytest.raises(ConfigError, match="vectors: expected"):
            code.encode(vectors)
    for codes in (np.zeros((2, code.width - 1), np.uint8), np.zeros((2, code.width), np.int8), b"0" * code.width):
        with pytest.raises(ConfigError, match="codes: expected uint8"):
            code.decode(codes)
