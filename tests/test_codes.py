"""Patterns as titles, vectors and codes, and the hash by which two sides know that they hold the same set."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge import codes, wire
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError
from omega_edge.patterns import count_of_step, count_step, rounded, weeks_of_step
from omega_edge.protocol import (
    EMBEDDING_DIMENSIONS,
    U32_MAX,
    GlobalPatterns,
    PatternDelta,
    TitleReference,
    ViewingPattern,
)
from tests import codebooks
from tests import wire_messages as messages
from tests.brains import EVENING
from tests.synthetic import NOW_MS, sections_of
from tests.wire_messages import WIDE_NUMBERING

repeatable = settings(deadline=None, derandomize=True, max_examples=150)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """60 titles, with the codebook of the tests."""
    sections, meta = sections_of(60)
    return Catalog.from_sections(sections | codebooks.sections(), meta)


def vector_of_rows(catalog: Catalog, rows: dict[int, float]) -> np.ndarray:
    vector = sum(np.float32(weight) * catalog.codes[row] * catalog.scale[row] for row, weight in rows.items())
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def references(rows: dict[int, float]) -> tuple[TitleReference, ...]:
    return tuple(TitleReference(f"t{row:03d}", weight) for row, weight in rows.items())


def pattern(**content: object) -> ViewingPattern:
    return ViewingPattern(1, 0.9, 3, 0, 0, **content)


class TestVectors:
    def test_of_titles_it_is_their_weighted_sum(self, catalog):
        rows = {3: 1.0, 9: 0.5}
        found = codes.vector_of(pattern(references=references(rows)), catalog)
        assert found.dtype == np.float32 and np.allclose(found, vector_of_rows(catalog, rows), atol=1e-6)

    def test_titles_outside_the_catalogue_are_left_out(self, catalog):
        one = codes.vector_of(pattern(references=(*references({3: 1.0}), TitleReference("local-film", 1.0))), catalog)
        assert np.allclose(one, vector_of_rows(catalog, {3: 1.0}), atol=1e-6)
        assert codes.vector_of(pattern(references=(TitleReference("local-film", 1.0),)), catalog) is None

    def test_of_an_embedding_it_is_that(self, catalog):
        vector = vector_of_rows(catalog, {5: 1.0})
        found = codes.vector_of(pattern(embedding=vector.astype("<f4").tobytes()), catalog)
        assert np.array_equal(found, vector)

    def test_of_a_code_it_is_near_what_was_encoded(self, catalog):
        for vector in codebooks.vectors(20, seed=3):
            coded = codes.as_code(pattern(references=references({1: 1.0})), catalog.quantiser, vector)
            assert (coded.references, coded.codebook) == ((), catalog.quantiser.version)
            assert codes.vector_of(coded, catalog) @ vector > 0.9

    def test_a_code_of_another_codebook_says_nothing(self, catalog):
        coded = pattern(code=bytes(48), codebook=catalog.quantiser.version ^ 1)
        assert codes.vector_of(coded, catalog) is None
        other = codebooks.quantiser(2)
        assert codes.vector_of(replace(coded, codebook=other.version), catalog, other) is not None
        with Catalog.from_sections(*sections_of(60)) as without:
            assert without.quantiser is None and codes.vector_of(coded, without) is None


class TestCodes:
    def test_an_embedding_becomes_the_code_of_its_vector(self, catalog):
        vector = codebooks.vectors(1, seed=4)[0]
        sent = pattern(embedding=vector.astype("<f4").tobytes())
        coded = codes.as_code(sent, catalog.quantiser)
        assert coded.code == catalog.quantiser.product.encode(vector[None])[0].tobytes()
        assert replace(coded, code=None, codebook=None, embedding=sent.embedding) == sent
        assert codes.as_code(coded, catalog.quantiser) is coded

    @pytest.mark.parametrize(
        "content", [{"references": references({1: 1.0})}, {"code": bytes(48), "codebook": 5}], ids=["titles", "code"]
    )
    def test_what_has_no_vector_needs_one(self, catalog, content):
        with pytest.raises(ConfigError, match="vector: expected one beside a pattern of titles"):
            codes.as_code(pattern(**content), catalog.quantiser)


class TestMixtures:
    @pytest.mark.parametrize("seed", range(5))
    def test_titles_and_weights_are_found_again(self, catalog, seed):
        rng = random.Random(seed)
        rows = {row: rng.choice([1.0, 0.75, 0.5]) for row in rng.sample(range(60), 3)}
        rows[next(iter(rows))] = 1.0
        found = codes.mixture(vector_of_rows(catalog, rows), catalog, 3)
        assert {reference.content_id for reference in found} == {f"t{row:03d}" for row in rows}
        for reference in found:
            assert reference.weight == pytest.approx(rows[int(reference.content_id[1:])], abs=0.01)
        assert found[0].weight == 1.0 and list(found) == sorted(found, key=lambda one: -one.weight)

    def test_more_titles_come_nearer(self, catalog):
        vector = vector_of_rows(catalog, {row: 1.0 for row in range(0, 60, 6)})
        cosines = [
            float(codes.vector_of(codes.as_references(pattern(code=bytes(48), codebook=1), catalog, vector, count), catalog) @ vector)
            for count in (1, 2, 4, 8)
        ]
        assert cosines == sorted(cosines) and cosines[-1] > 0.9

    def test_the_opposite_of_all_titles_has_none(self, catalog):
        titles = catalog.codes * catalog.scale[:, None]
        away = -(np.linalg.lstsq(titles, np.ones(60), rcond=None)[0])
        vector = (away / np.linalg.norm(away)).astype(np.float32)
        assert (titles @ vector).max() < 0
        assert codes.mixture(vector, catalog) == ()
        assert codes.as_references(pattern(code=bytes(48), codebook=1), catalog, vector) is None

    @pytest.mark.parametrize("count", [0, 9, -1])
    def test_counts_that_no_pattern_has(self, catalog, count):
        with pytest.raises(ConfigError, match="count: expected 1 to 8"):
            codes.mixture(vector_of_rows(catalog, {1: 1.0}), catalog, count)


class TestRounding:
    @repeatable
    @given(sent=st.integers(0, U32_MAX).flatmap(messages.patterns))
    def test_it_moves_little_and_once(self, sent):
        kept = rounded(sent)
        assert rounded(kept) == kept
        assert abs(kept.success_rate - sent.success_rate) <= 1 / 100 + 1e-12
        assert (kept.success_rate >= 0.7) >= (sent.success_rate >= 0.7)
        assert 2 / 3 * sent.sample_count < kept.sample_count <= sent.sample_count
        week = 7 * messages.DAY_MS
        assert 0 <= sent.created_at - kept.created_at < week and kept.created_at % week == 0
        life = sent.updated_at // week - sent.created_at // week
        assert max(0, (life + 1) * 2 / 3 - 1) <= (kept.updated_at - kept.created_at) / week <= max(0, life)
        for before, after in zip(sent.references, kept.references, strict=True):
            assert after.content_id == before.content_id and (after.weight > 0) == (before.weight > 0)
            assert abs(after.weight - before.weight) <= (1 / 30 + 1e-12 if before.weight >= 1 / 30 else 1 / 15)

    def test_steps(self):
        assert [count_of_step(step) for step in range(10)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
        assert [weeks_of_step(step) for step in range(6)] == [0, 1, 2, 3, 5, 7]
        for count in [*range(1, 3000), U32_MAX - 1, U32_MAX]:
            step = count_step(count)
            assert count_of_step(step) <= count < count_of_step(step + 1)


class TestFingerprints:
    @repeatable
    @given(delta=messages.deltas())
    def test_sender_and_receiver_agree(self, delta):
        sent = delta.patterns_added + delta.patterns_updated
        fitting = [one for one in sent if one.embedding is None] + [one for one in sent if one.embedding is not None][:1]
        shared = PatternDelta(1, patterns_added=tuple(fitting))
        received = wire.decompress_delta(wire.compress_delta(shared, WIDE_NUMBERING), WIDE_NUMBERING).patterns_added
        assert codes.set_hash(received) == codes.set_hash(fitting)
        assert [*map(codes.pattern_fingerprint, received)] == [*map(codes.pattern_fingerprint, fitting)]

    def test_known_values(self):
        # Both sides compute these, on machines of any byte order and in any version: they never change.
        titles = replace(pattern(references=references({1: 1.0, 2: 0.2})), id=U32_MAX, updated_at=NOW_MS)
        assert codes.pattern_fingerprint(titles) == 0x8BDC66E3BF1D4221
        assert codes.pattern_fingerprint(pattern(code=bytes(range(48)), codebook=5)) == 0xD2B8DFC795C6E9A7

    def test_order_does_not_matter_and_parts_add_up(self):
        shared = [replace(pattern(references=references({row: 1.0})), id=row) for row in range(30)]
        whole = codes.set_hash(shared)
        assert codes.set_hash(reversed(shared)) == whole
        assert (codes.set_hash(shared[:11]) + codes.set_hash(shared[11:])) % (1 << 64) == whole
        assert codes.set_hash([]) == 0

    @pytest.mark.parametrize(
        "changed",
        [
            {"id": 2}, {"success_rate": 0.86}, {"sample_count": 4}, {"created_at": NOW_MS, "updated_at": NOW_MS},
            {"updated_at": NOW_MS}, {"references": references({1: 1.0})}, {"references": references({2: 0.5, 1: 1.0})},
            {"references": references({1: 1.0, 2: 0.6})}, {"references": references({1: 1.0, 3: 0.5})},
            {"references": (), "code": bytes(48), "codebook": 1}, {"references": (), "code": bytes(48), "codebook": 2},
        ],
        ids=str,
    )  # fmt: skip
    def test_every_difference_that_travels_counts(self, changed):
        base = pattern(references=references({1: 1.0, 2: 0.5}))
        others = {codes.pattern_fingerprint(base), codes.pattern_fingerprint(pattern(code=bytes(48), codebook=0))}
        assert codes.pattern_fingerprint(replace(base, **changed)) not in others

    def test_what_the_wire_does_not_keep_does_not_count(self):
        base = pattern(references=references({1: 1.0, 2: 0.5}))
        same = replace(base, success_rate=0.901, created_at=5, updated_at=9, references=references({1: 1.0, 2: 0.51}))
        assert codes.pattern_fingerprint(same) == codes.pattern_fingerprint(base)


class TestBrain:
    @pytest.fixture
    def brain(self, tmp_path: Path):
        sections, meta = sections_of(60)
        write_bundle(tmp_path / "coded.bundle", sections | codebooks.sections(), meta)
        config = BrainConfig(tmp_path / "store", tmp_path / "coded.bundle", background_maintenance=False)
        with OmegaBrain.open(config, lambda: NOW_MS) as opened:
            yield opened

    def test_a_coded_pattern_speaks_for_its_nearest_titles(self, brain):
        vector = codebooks.vectors(1, seed=9)[0]
        coded = codes.as_code(pattern(embedding=vector.astype("<f4").tobytes()), codebooks.quantiser())
        nearest = int(np.argmax((brain._catalog.codes * brain._catalog.scale[:, None]) @ codes.vector_of(coded, brain._catalog)))
        assert brain.apply_global_patterns(GlobalPatterns(1, (coded,))) == 1
        assert brain.explain(f"t{nearest:03d}", EVENING).features["patterns"].value == pytest.approx(1.0)

    def test_a_code_of_another_codebook_is_passed_over(self, brain):
        foreign = pattern(code=bytes(48), codebook=codebooks.quantiser().version ^ 1)
        known = replace(pattern(references=references({7: 1.0})), id=2)
        assert brain.apply_global_patterns(GlobalPatterns(1, (foreign, known))) == 1
        assert len(list(brain._memory.patterns())) == 1


def test_vectors_are_unit_length(catalog):
    found = codes.vector_of(pattern(references=references({row: 1.0 for row in range(8)})), catalog)
    assert found.shape == (EMBEDDING_DIMENSIONS,) and np.linalg.norm(found) == pytest.approx(1.0, abs=1e-6)
