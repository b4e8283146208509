"""A named event is a reason: with every feature and both stages on, the title scores lower where it never happened."""

from __future__ import annotations

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.ranker import Ranker
from omega_edge.ranking import FEATURES, Moment, features, raw_scores
from omega_edge.reasons import strongest_event_each
from tests.encoders import encoder_sections
from tests.synthetic import second_stage_of, sections_of
from tests.test_ranking import random_history

TITLES, LISTS, LISTED = 300, 60, 20
CASES = 1_000


def complete_catalog() -> Catalog:
    sections, meta = sections_of(TITLES)
    stage = second_stage_of()
    sections |= encoder_sections(TITLES, seed=3) | stage[0]
    weights = np.abs(np.random.default_rng(4).normal(size=(4, len(FEATURES)))).astype(np.float32) + np.float32(0.1)
    return Catalog.from_sections(sections | {"sequence_fusion_weights": weights}, meta | stage[1])


def test_without_the_named_event_the_title_scores_lower_in_every_one_of_a_thousand_cases():
    catalog = complete_catalog()
    assert catalog.sequence is not None and catalog.second_stage is not None and catalog.slist is not None
    ranker, everything = Ranker(catalog), np.full((TITLES + 7) // 8, 255, np.uint8)
    checked, rng = 0, np.random.default_rng(5)
    for number in range(LISTS):
        history = random_history(catalog, int(rng.integers(1, 90)), seed=number)
        moment = Moment(slot=number % 8)
        ranked = ranker.rank(history, moment, everything, LISTED, diversity=0.1)
        nameable = ranker.contributing(history, min(len(history.rows), 64)) & ~history.rejected[:64]
        named, falls = strongest_event_each(ranker.drops(history, moment, ranked), nameable)
        for place, (event, fall) in enumerate(zip(named, falls, strict=True)):
            if event < 0:
                continue
            shorter = history.without(event)
            matrix = features(catalog, shorter, moment, catalog.fusion.parameters)
            without = raw_scores(matrix, catalog.fusion, shorter.count, moment)[ranked.rows[place]]
            assert without < ranked.raw[place], (number, place)
            np.testing.assert_allclose(ranked.raw[place] - without, fall, rtol=1e-3, atol=1e-4)
            checked += 1
    assert checked >= CASES
