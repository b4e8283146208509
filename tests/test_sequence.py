"""The sequence encoder as a feature: against its definition, without each event, and where its sections are damaged."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from omega_edge import bundle, ranking
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import OPTIONAL_SECTIONS, Catalog, write_bundle
from omega_edge.catalog_checks import TOLERATED_GROUPS
from omega_edge.config import BrainConfig
from omega_edge.errors import CatalogError
from omega_edge.left_out import scores_without_each
from omega_edge.ranker import Ranker
from omega_edge.ranking import FEATURES, SEQUENCE, History, Moment
from omega_edge.sequence import SequenceEncoder
from tests.brains import EVENING, Clock, watch
from tests.encoders import encode, encoder_sections, model_of
from tests.synthetic import PARAMETERS, second_stage_of, sections_of
from tests.test_catalog_tolerated import place_of
from tests.test_ranking import random_history

TITLES = 60
MOMENT = Moment(slot=2)


def whole_sections() -> tuple[dict[str, np.ndarray], dict]:
    sections, meta = sections_of(TITLES)
    return sections | encoder_sections(TITLES, seed=5), meta


def catalog_with_sequence(only: bool = False) -> Catalog:
    """only: no feature but the encoder's has a weight."""
    sections, meta = whole_sections()
    if only:
        weights = np.zeros((4, len(FEATURES)), np.float32)
        weights[:, SEQUENCE] = 1
        sections["sequence_fusion_weights"] = weights
    return Catalog.from_sections(sections, meta)


def plain_values(sections: dict[str, np.ndarray], history: History) -> np.ndarray:
    """float64[n]: the feature from its definition: the newest 64 events inside the catalogue of the 65 held."""
    inside = history.rows >= 0
    encoder = {name: array for name, array in sections.items() if name in encoder_sections(1, 0)}
    finished = (history.success & ~history.rejected)[inside]
    state = encode(encoder, history.rows[inside], finished) if inside.any() else sections["sequence_start"].astype(float)
    embedding = sections["sequence_codes"].astype(float) * sections["sequence_scale"].astype(float)[:, None]
    return embedding @ state + sections["sequence_bias"]


@pytest.mark.parametrize("events", [0, 1, 2, 5, 20, 63, 64, 65, 66, 90])
def test_the_feature_is_the_definition_s(events):
    sections, meta = whole_sections()
    catalog = Catalog.from_sections(sections, meta)
    history = random_history(catalog, events, seed=events + 1)
    found = ranking.features(catalog, history, MOMENT, PARAMETERS)
    np.testing.assert_allclose(found[SEQUENCE], plain_values(sections, history), rtol=0, atol=3e-5)
    # The rows that lend their room to its parts are what they are without it.
    bare = Catalog.from_sections(*sections_of(TITLES))
    others = [feature for feature in range(len(FEATURES)) if feature != SEQUENCE]
    np.testing.assert_array_equal(found[others], ranking.features(bare, history, MOMENT, PARAMETERS)[others])


def test_a_title_outside_the_catalogue_takes_no_place_and_a_rejection_is_no_success():
    catalog = catalog_with_sequence()
    history = random_history(catalog, 10, seed=3, outside=False)
    value = ranking.features(catalog, history, MOMENT, PARAMETERS)[SEQUENCE]
    with_stranger = history.push(-1, None, 0.0, True, 1)
    np.testing.assert_array_equal(ranking.features(catalog, with_stranger, MOMENT, PARAMETERS)[SEQUENCE], value)
    code, scale = catalog.codes[4], float(catalog.scale[4])
    failed, rejected, finished = (
        ranking.features(catalog, history.push(4, code, scale, success, 1, rejected=no), MOMENT, PARAMETERS)[SEQUENCE]
        for success, no in ((False, False), (True, True), (True, False))
    )
    np.testing.assert_array_equal(failed, rejected)
    assert np.abs(failed - finished).max() > 1e-3


@pytest.mark.parametrize("events", [1, 2, 5, 6, 21, 64, 65, 66, 90])
@pytest.mark.parametrize("outside", [True, False])
def test_without_an_event_it_is_what_a_history_without_it_gives(events, outside):
    catalog = catalog_with_sequence(only=True)
    history = random_history(catalog, events, seed=50 + events, outside=outside)
    candidates = np.arange(TITLES, dtype=np.uint32)
    present = ranking.features(catalog, history, MOMENT, PARAMETERS)
    without = scores_without_each(catalog, history, MOMENT, catalog.fusion, candidates, present)
    for index in range(len(without)):
        value = ranking.features(catalog, history.without(index), MOMENT, PARAMETERS)[SEQUENCE]
        np.testing.assert_allclose(without[index], value, rtol=0, atol=1e-5, err_msg=f"without {index}")


def test_the_lone_event_of_a_household_is_a_reason_against_what_new_homes_watch():
    catalog = catalog_with_sequence(only=True)
    ranker, everything = Ranker(catalog), np.full((TITLES + 7) // 8, 255, np.uint8)
    history = History.empty().push(3, catalog.codes[3], float(catalog.scale[3]), False, 0)
    ranked = ranker.rank(history, MOMENT, everything, 5, diversity=0.0)
    beginning = ranker.features(History.empty(), MOMENT)[SEQUENCE].copy()
    expected = ranked.raw - beginning[ranked.rows]
    np.testing.assert_allclose(ranker.drops(history, MOMENT, ranked)[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(beginning, plain_values(whole_sections()[0], History.empty()), rtol=0, atol=1e-5)


def test_an_event_without_evidence_is_heard_by_the_encoder_alone():
    sections, meta = whole_sections()
    meta = meta | {"fusion_parameters": PARAMETERS | {"failure_weight": 0.0}}
    bare = {name: array for name, array in sections.items() if not name.startswith("sequence_")}
    for given, expected in ((sections, [False, True, True]), (bare, [False, False, True])):
        catalog = Catalog.from_sections(given, meta)
        history = History.empty()
        for row, success in ((3, True), (5, False), (-1, False)):
            code, scale = (catalog.codes[row], float(catalog.scale[row])) if row >= 0 else (None, 0.0)
            history = history.push(row, code, scale, success, 0)
        assert Ranker(catalog).contributing(history, 3).tolist() == expected


class TestKeptEvents:
    def test_states_from_kept_events_have_the_bits_of_new_ones(self):
        encoder = catalog_with_sequence().sequence
        kept, rng = SequenceEncoder(encoder), np.random.default_rng(1)
        rows, finished = np.empty(0, np.uint32), np.empty(0, bool)
        for _ in range(400):  # more than are kept, so that it forgets and begins again
            rows = np.append(np.uint32(rng.integers(TITLES)), rows)[:65].astype(np.uint32)
            finished = np.append(rng.random() < 0.6, finished)[:65].astype(bool)
            left = min(len(rows), 64)
            fresh = SequenceEncoder(encoder).states(rows, finished, left)
            assert kept.states(rows, finished, left).tobytes() == fresh.tobytes()

    def test_it_forgets_where_there_are_more_titles_than_it_keeps(self):
        sections, meta = sections_of(300)
        encoder = Catalog.from_sections(sections | encoder_sections(300, seed=6), meta).sequence
        kept = SequenceEncoder(encoder)
        for start in (0, 60, 120, 180, 235, 0):
            rows = np.arange(start, start + 65, dtype=np.uint32)
            finished = rows % 2 == 0
            fresh = SequenceEncoder(encoder).states(rows, finished, 64)
            assert kept.states(rows, finished, 64).tobytes() == fresh.tobytes()

    def test_threads_share_it(self):
        sections, meta = sections_of(300)
        encoder = Catalog.from_sections(sections | encoder_sections(300, seed=6), meta).sequence
        shared, wrong = SequenceEncoder(encoder), []
        rows = np.random.default_rng(2).integers(0, 300, (4, 60, 65)).astype(np.uint32)
        finished = np.random.default_rng(3).random((4, 60, 65)) < 0.5
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # so that threads meet in the middle of things

        def work(thread: int) -> None:
            for some, done in zip(rows[thread], finished[thread]):
                alone = SequenceEncoder(encoder).states(some, done, 3)
                if shared.states(some, done, 3).tobytes() != alone.tobytes():
                    wrong.append(thread)

        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(work, range(4)))
        finally:
            sys.setswitchinterval(interval)
        assert not wrong


# --- the bundle -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    write_bundle(tmp_path / "whole.bundle", *whole_sections())
    return tmp_path / "whole.bundle"


def check_fallback(catalog: Catalog, *words: str) -> None:
    """The encoder is left out and named, and the bundle ranks as one that never had it."""
    assert catalog.sequence is None and list(catalog.faults) == ["sequence"]
    for word in words:
        assert word in catalog.faults["sequence"]
    bare = Catalog.from_sections(*sections_of(TITLES))
    history, everything = random_history(bare, 12, seed=1), np.full((TITLES + 7) // 8, 255, np.uint8)
    found, expected = (Ranker(one).rank(history, MOMENT, everything, 10, diversity=0.1) for one in (catalog, bare))
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.raw, expected.raw)
    np.testing.assert_array_equal(catalog.fusion.calibration, bare.fusion.calibration)


def test_a_sound_encoder_is_there_with_the_fusion_made_for_it(path):
    sections, _ = whole_sections()
    with Catalog.open(path) as catalog:
        assert catalog.faults == {}
        np.testing.assert_array_equal(catalog.fusion.weights, sections["sequence_fusion_weights"])
        np.testing.assert_array_equal(catalog.fusion.calibration, sections["sequence_fusion_calibration"])
        for found, expected in zip(catalog.sequence.model, model_of(sections), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", sorted(TOLERATED_GROUPS["sequence"]))
def test_a_damaged_or_missing_section_leaves_out_the_encoder(tmp_path, path, name):
    data = path.read_bytes()
    offset, length = place_of(data, name)
    for place in (offset, offset + length - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :])
        with Catalog.open(path) as catalog:
            check_fallback(catalog, name, "checksum does not match")
    sections, meta = whole_sections()
    del sections[name]
    check_fallback(Catalog.from_sections(sections, meta), name, "missing")
    with pytest.raises(CatalogError, match="not written"):
        write_bundle(tmp_path / "x", sections, meta)


def test_of_two_tolerated_groups_the_sound_one_stays():
    (sections, meta), (stage, inputs) = whole_sections(), second_stage_of()
    sections, meta = sections | stage, meta | inputs
    whole = Catalog.from_sections(sections, meta)
    assert whole.faults == {} and whole.sequence is not None and whole.second_stage is not None
    without_encoder = Catalog.from_sections(sections | {"sequence_norms": np.full((3, 64), np.nan, np.float32)}, meta)
    assert list(without_encoder.faults) == ["sequence"] and without_encoder.second_stage is not None
    without_stage = Catalog.from_sections(sections | {"second_stage_roots": np.zeros(0, np.uint32)}, meta)
    assert list(without_stage.faults) == ["second_stage"] and without_stage.sequence is not None


def test_trees_that_ask_the_encoder_go_with_it(tmp_path):
    """They learned beside it; without it the linear fusion serves, and both are named."""
    (sections, meta), (stage, inputs) = whole_sections(), second_stage_of(("rank:score", "rank:sequence", "value:rows"))
    write_bundle(tmp_path / "whole", sections | stage, meta | inputs)
    data = (tmp_path / "whole").read_bytes()
    offset, _ = place_of(data, "sequence_feed_in")
    (tmp_path / "damaged").write_bytes(data[:offset] + bytes([data[offset] ^ 0x11]) + data[offset + 1 :])
    plain = {name: array for name, array in sections.items() if not name.startswith("sequence_")}
    write_bundle(tmp_path / "plain", plain, meta)

    def listed(name: str) -> tuple[list[str], list[str]]:
        config = BrainConfig(tmp_path / f"{name}-store", tmp_path / name, background_maintenance=False)
        with OmegaBrain.open(config, Clock()) as brain:
            watch(brain, [3, 9, 14])
            degraded = [fault for fault in brain.stats()["degraded"] if fault.startswith(("sequence", "second_stage"))]
            return degraded, [found.content_id for found in brain.recommend(EVENING, 10)]

    named, ours = listed("damaged")
    assert [fault.partition(":")[0] for fault in named] == ["second_stage", "sequence"]
    assert "rank:sequence" in named[0] and "no sequence encoder" in named[0] and "sequence_feed_in" in named[1]
    assert ours == listed("plain")[1]
    assert listed("whole")[0] == [] and listed("whole")[1] != ours
    # And never written: a bundle without an encoder whose trees ask for it.
    with pytest.raises(CatalogError, match="not written.*rank:sequence"):
        write_bundle(tmp_path / "x", plain | stage, meta | inputs)


def test_trees_that_only_could_ask_the_encoder_stay_without_it():
    """The model job names all inputs there are; what counts is what a node asks for."""
    (sections, meta), (stage, inputs) = sections_of(), second_stage_of(("rank:score", "value:rows"))
    inputs["second_stage_inputs"].append("value:sequence")
    assert Catalog.from_sections(sections | stage, meta | inputs).faults == {}


def hostile(name: str, value: object) -> tuple[dict[str, np.ndarray], dict]:
    sections, meta = whole_sections()
    sections[name] = sections[name].copy()
    sections[name].flat[-1] = value
    return sections, meta


@pytest.mark.parametrize("name", sorted(TOLERATED_GROUPS["sequence"]))
def test_numbers_that_are_none_leave_out_the_encoder(tmp_path, name):
    codes = whole_sections()[0][name].dtype == np.int8
    values = [-128] if codes else [np.nan, np.inf, -np.inf, 1e6] + [-1.0] * name.endswith("_scale")
    for value in values:
        sections, meta = hostile(name, value)
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        bundle.write(tmp_path / "hostile", sections | {"meta": text}, OPTIONAL_SECTIONS)
        with Catalog.open(tmp_path / "hostile") as catalog:
            check_fallback(catalog, name, "expected")


def test_a_shape_of_another_encoder_leaves_it_out():
    sections, meta = whole_sections()
    sections["sequence_distance"] = np.zeros((32, 8), np.float32)
    check_fallback(Catalog.from_sections(sections, meta), "sequence_distance", "(64, 8)")


def test_a_brain_recommends_with_a_damaged_encoder_and_says_so(tmp_path, path):
    def degraded_and_list(storage: str) -> tuple[list[str], list[str]]:
        config = BrainConfig(storage_path=tmp_path / storage, catalog_path=path, background_maintenance=False)
        with OmegaBrain.open(config, Clock()) as brain:
            watch(brain, [3, 9, 14])
            named = [fault for fault in brain.stats()["degraded"] if fault.startswith("sequence")]
            return named, [found.content_id for found in brain.recommend(EVENING, 10)]

    named, whole = degraded_and_list("whole")
    assert named == [] and len(whole) == 10
    data = path.read_bytes()
    offset, _ = place_of(data, "sequence_attention")
    path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
    named, fallback = degraded_and_list("damaged")
    assert len(named) == 1 and "sequence_attention damaged" in named[0]
    assert len(fallback) == 10 and fallback != whole


@pytest.mark.parametrize("size", [1e5, 9e5])
def test_the_largest_numbers_that_pass_give_finite_scores(size):
    sections, meta = whole_sections()
    for name in TOLERATED_GROUPS["sequence"]:
        if sections[name].dtype == np.float32:
            sections[name] = np.full_like(sections[name], size)
    catalog = Catalog.from_sections(sections, meta)
    assert catalog.faults == {}
    history = random_history(catalog, 65, seed=4)
    assert np.isfinite(ranking.features(catalog, history, MOMENT, PARAMETERS)[SEQUENCE]).all()
