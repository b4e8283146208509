"""Households and catalogues at the ends of what there is: very long histories, and a bundle that lacks what it may lack."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from bench.complete_bundle import write_complete_bundle
from bench.machine import resident_memory
from omega_edge import ranking
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.catalog_checks import OPTIONAL_SECTIONS
from omega_edge.config import BrainConfig
from omega_edge.maintenance import Maintenance
from omega_edge.memory import AgentMemory
from omega_edge.ranker import Ranker
from omega_edge.ranking import HISTORY_HELD, HISTORY_WINDOW, History, Moment
from tests.brains import EVENING, Clock, viewing
from tests.synthetic import PARAMETERS, catalog_of, second_stage_of, sections_of
from tests.test_ranking import random_history

EVENTS = 100_000


def test_a_history_of_100_000_events_is_that_of_its_newest_and_its_count() -> None:
    catalog = catalog_of()
    rng = np.random.default_rng(1)
    history = History.empty()
    newest = rng.integers(0, catalog.count, HISTORY_HELD).tolist()
    for row in newest:
        history = history.push(row, catalog.codes[row], float(catalog.scale[row]), True, 2)
    old = History(
        **{name: getattr(history, name) for name in ("rows", "codes", "scale", "success", "rejected", "slots")},
        count=EVENTS,
    )
    allowed = np.packbits(np.ones(catalog.count, bool), bitorder="little")
    found = Ranker(catalog).rank(old, Moment(slot=2), allowed, 20, 0.1)
    same = Ranker(catalog).rank(history, Moment(slot=2), allowed, 20, 0.1)
    assert found.rows.tolist() == same.rows.tolist()  # both are of the last bucket, and only the newest are read


def test_a_household_of_100_000_events_opens_lists_and_goes_on(tmp_path) -> None:
    (sections, meta), (stage, inputs) = sections_of(120), second_stage_of()
    write_bundle(tmp_path / "b", sections | stage, meta | inputs)
    rng = np.random.default_rng(2)
    watched = rng.integers(0, 90, EVENTS).tolist()  # some titles stay, so that there is a list
    with AgentMemory(tmp_path / "s", Clock(), vector_lookup=lambda _content_id, _title: None) as memory:
        for event, row in enumerate(watched):
            memory.record(viewing(row, 0.9 if event % 3 else 0.1, event))
    with OmegaBrain.open(BrainConfig(tmp_path / "s", tmp_path / "b", background_maintenance=False), Clock()) as brain:
        assert brain._memory.event_count("household") == EVENTS
        listed = [one.content_id for one in brain.recommend(EVENING, 20)]
        assert listed and not {f"t{row:03d}" for row in watched}.intersection(listed)
        told = brain.explain(listed[0], EVENING)
        assert told.place_in_second_stage is not None and np.isfinite(told.raw_score)
        brain.observe(viewing(int(listed[0][1:]), 1.0, EVENTS))
        assert listed[0] not in [one.content_id for one in brain.recommend(EVENING, 20)]


@pytest.mark.parametrize("events", [0, 7, 70])
def test_a_catalogue_without_genres_ranks_and_gives_reasons(events: int) -> None:
    (sections, meta), (stage, inputs) = sections_of(120), second_stage_of()
    sections |= {"genre_masks": np.zeros(120, np.uint64), "context_prior": np.zeros((8, 0), np.float32)}
    sections["context_overall"] = np.zeros(0, np.float32)
    catalog = Catalog.from_sections(sections | stage, meta | inputs | {"genres": []})
    assert catalog.faults == {}
    history, moment = random_history(catalog, events, seed=events), Moment(slot=3)
    ranker, allowed = Ranker(catalog), np.packbits(np.ones(120, bool), bitorder="little")
    ranked = ranker.rank(history, moment, allowed, 20, 0.1)
    matrix = ranking.features(catalog, history, moment, PARAMETERS)
    assert len(ranked.rows) == 20 and not matrix[ranking.CONTEXT].any()
    assert ranker.drops(history, moment, ranked).shape == (min(events, HISTORY_WINDOW), 20)


def test_a_catalogue_without_anything_optional_still_lists() -> None:
    sections, meta = sections_of(120)
    bare = {name: array for name, array in sections.items() if name not in OPTIONAL_SECTIONS}
    bare["fusion_weights"] = np.zeros_like(bare["fusion_weights"])  # and without anything learned
    catalog = Catalog.from_sections(bare, meta)
    history, moment = random_history(catalog, 9, seed=1), Moment(slot=3)
    ranker, allowed = Ranker(catalog), np.packbits(np.ones(120, bool), bitorder="little")
    ranked = ranker.rank(history, moment, allowed, 5, 0.0)
    assert ranked.rows.tolist() == [0, 1, 2, 3, 4] and not ranked.raw.any()
    np.testing.assert_allclose(ranker.drops(history, moment, ranked), 0, atol=1e-6)


def test_a_complete_bundle_has_every_feature_and_both_stages(tmp_path) -> None:
    """What costs are measured on: it must open without a fault, and no feature may be idle."""
    sections, meta = sections_of(150)
    bare = {name: array for name, array in sections.items() if name not in OPTIONAL_SECTIONS or name.startswith("row_")}
    write_bundle(tmp_path / "plain", bare, meta)
    write_complete_bundle(tmp_path / "plain", tmp_path / "complete")
    with Catalog.open(tmp_path / "complete") as catalog:
        assert catalog.faults == {} and catalog.second_stage.buckets.all() and catalog.sequence is not None
        # Global patterns are for young profiles; all else counts always.
        assert [index for index, weight in enumerate(catalog.fusion.weights.flat) if weight <= 0] == [4 * 11 - 1]
        history, moment = random_history(catalog, 30, seed=1), Moment(
            slot=3, pattern_rows=np.array([3], np.uint32), pattern_weights=np.ones(1, np.float32)
        )
        matrix = ranking.features(catalog, history, moment, catalog.fusion.parameters)
        idle = [name for name, row in zip(ranking.FEATURES, matrix, strict=True) if not row.any()]
        assert not idle
        allowed = np.packbits(np.ones(150, bool), bitorder="little")
        fused = np.argsort(-ranking.raw_scores(matrix, catalog.fusion, 30, moment), kind="stable")[:20]
        assert Ranker(catalog).rank(history, moment, allowed, 20, 0.0).rows.tolist() != fused.tolist()


def test_pages_that_only_the_checks_touched_are_given_back(tmp_path) -> None:
    sections, meta = sections_of(120)
    write_bundle(tmp_path / "large", sections | {"licence": np.full(8_000_000, 65, np.uint8)}, meta)
    before = resident_memory()["resident"]
    catalog = Catalog.open(tmp_path / "large")
    assert resident_memory()["resident"] - before < 4
    assert catalog.title(3).content_id == "t003"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc is asked for freed memory")
def test_memory_that_was_freed_is_given_back_but_not_at_every_turn() -> None:
    def freed() -> float:
        blocks = [np.ones(60_000, np.uint8) for _ in range(600)]  # 36 MB in pieces that are not mapped one by one
        kept.append(blocks[-1])  # at the end, so that the rest is not given back by itself
        del blocks
        held = resident_memory()["resident"]
        maintenance.return_freed_memory()
        return held - resident_memory()["resident"]

    kept: list[np.ndarray] = []
    maintenance = Maintenance(lambda: None, {})
    assert freed() > 20
    assert freed() < 20
