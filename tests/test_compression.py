"""The five encodings: sizes, round trips, hostile bytes, and their floors on real vectors that no codebook has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.quantiser_fit import held_out, train_quantiser
from omega_edge.compression import BYTES, FLOORS, Encoding, VectorBytesError, cosines, decode, encode
from omega_edge.datasets import read_dataset
from omega_edge.errors import ConfigError
from omega_edge.quantiser import Quantiser
from tests import codebooks
from toolchain.build_bundle import embed_titles

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "bench" / "data" / "movietweetings-70k"


def test_an_encoded_vector_has_the_bytes_that_are_stated():
    unit = codebooks.vectors(3, seed=1)
    sizes = {encoding.label: encode(encoding, unit, codebooks.quantiser()).shape[1] for encoding in Encoding}
    assert sizes == {"float32": 1536, "float16": 768, "int8": 388, "pq48": 48, "one_bit": 40}
    assert sizes == {encoding.label: size for encoding, size in BYTES.items()}


@pytest.mark.parametrize("encoding", Encoding)
def test_a_decoded_vector_encodes_to_itself(encoding):
    """But for rounding: so a vector that goes back and forth does not drift."""
    quantiser = codebooks.quantiser()
    once = decode(encoding, encode(encoding, codebooks.vectors(50, seed=2), quantiser), quantiser)
    twice = decode(encoding, encode(encoding, once, quantiser), quantiser)
    assert cosines(once, twice).min() > (0.99 if encoding.coarse else 0.9999)
    assert encode(encoding, once[:0], quantiser).shape == (0, BYTES[encoding])


@pytest.fixture(scope="module")
def real(model_dir) -> tuple[np.ndarray, np.ndarray]:
    """Real title vectors: those to train on, and those held out. Kept beside the bundle, where its build has them."""
    titles = read_dataset(DATA).titles
    vectors = embed_titles(titles, model_dir, PROJECT / "build", lambda _what: None)[0]
    out = held_out([title.content_id for title in titles])
    return vectors[~out], vectors[out]


@pytest.fixture(scope="module")
def trained(real) -> Quantiser:
    return Quantiser(train_quantiser(real[0], lambda _what: None))


@pytest.mark.parametrize("encoding", Encoding)
def test_real_vectors_keep_the_floor_on_average(real, trained, encoding):
    found = cosines(decode(encoding, encode(encoding, real[1], trained), trained), real[1])
    assert len(real[1]) > 1500 and found.mean() >= FLOORS[encoding] - 1e-6
    if not encoding.coarse:
        assert found.min() >= FLOORS[encoding] - 1e-6


def test_means_of_real_titles_keep_it_each(real, trained):
    """As the centroids of skills are: of each title and the two nearest to it."""
    unseen = real[1][:400]
    nearest = np.argsort(-(unseen @ unseen.T), axis=1)[:, :3]
    means = unseen[nearest].sum(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    found = cosines(decode(Encoding.PQ48, encode(Encoding.PQ48, means, trained), trained), means)
    assert (found >= FLOORS[Encoding.PQ48]).mean() > 0.98


def test_a_plain_sign_for_each_coordinate_does_not_reach_the_floor(real):
    """Which is why the sign code shares its bits out: sqrt(2 / pi) of the cosine is all that 384 plain signs keep."""
    assert cosines(np.sign(real[1]), real[1]).mean() == pytest.approx(0.798, abs=0.01)


class TestHostile:
    @pytest.mark.parametrize("encoding", Encoding)
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_any_bytes_decode_to_unit_vectors_or_are_refused(self, encoding, data):
        raw = data.draw(st.binary(min_size=BYTES[encoding], max_size=BYTES[encoding]))
        try:
            found = decode(encoding, np.frombuffer(raw, np.uint8)[None], codebooks.quantiser())
        except VectorBytesError as refusal:
            assert encoding.label in str(refusal) and not encoding.coarse
        else:
            assert found.shape == (1, 384) and np.linalg.norm(found) == pytest.approx(1, abs=0.011)

    @pytest.mark.parametrize("encoding", Encoding)
    def test_bytes_of_another_length_are_refused(self, encoding):
        for width in (0, BYTES[encoding] - 1, BYTES[encoding] + 1):
            with pytest.raises(VectorBytesError, match=rf"expected uint8\[n, {BYTES[encoding]}\]"):
                decode(encoding, np.zeros((1, width), np.uint8), codebooks.quantiser())
        with pytest.raises(VectorBytesError):
            decode(encoding, b"", codebooks.quantiser())

    def test_a_code_of_minus_128_is_none(self):
        encoded = encode(Encoding.INT8, codebooks.vectors(1, seed=1))
        encoded[0, 5] = 128
        with pytest.raises(VectorBytesError, match="int8"):
            decode(Encoding.INT8, encoded)

    @pytest.mark.parametrize("encoding", Encoding)
    @pytest.mark.parametrize("spoilt", [np.nan, np.inf, 0.0])
    def test_vectors_without_a_direction_are_refused(self, encoding, spoilt):
        vectors = codebooks.vectors(2, seed=1)
        vectors[1] = spoilt
        with pytest.raises(ConfigError, match="vectors: expected"):
            encode(encoding, vectors, codebooks.quantiser())

    @pytest.mark.parametrize("encoding", [Encoding.PQ48, Encoding.ONE_BIT])
    def test_a_code_that_stands_for_no_direction_is_refused(self, encoding):
        arrays = {name: array.copy() for name, array in codebooks.sections().items()}
        arrays["quantiser_mean"][:] = 0
        arrays["quantiser_rotation"][:] = 0
        with pytest.raises(VectorBytesError, match="stand for a direction"):
            decode(encoding, np.zeros((1, BYTES[encoding]), np.uint8), Quantiser(arrays))

    @pytest.mark.parametrize("encoding", [Encoding.PQ48, Encoding.ONE_BIT])
    def test_without_a_codebook_nothing_is_coarse(self, encoding):
        with pytest.raises(ConfigError, match=f"{encoding.label}: expected a codebook"):
            encode(encoding, codebooks.vectors(1, seed=1))
