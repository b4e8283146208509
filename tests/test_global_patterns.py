"""Global patterns: cohorts that are there, mixtures that homes finish together, and nothing that few homes stand for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cloud.global_patterns import CohortPatterns, cohort_patterns
from cloud.learning_stream import NO_EVENTS, Stream, chosen, stream_of
from cloud.lists import Lists
from omega_edge import wire
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.catalog_checks import check_sections
from omega_edge.datasets import Events
from omega_edge.protocol import MAX_SIMILAR_PATTERNS, MIN_QUALITY_THRESHOLD, GlobalPatterns
from tests.sharing_world import NOW_MS, SHARED_DAYS, TITLES, TITLES_OF_A_TASTE, lists_of, viewings
from tests.synthetic import DAY_MS, sections_of

LEAST = 4


def stream_of_world(seed: int = 5, homes: int = 300) -> Stream:
    rng = np.random.default_rng(seed)
    since = viewings(rng, homes, NOW_MS - SHARED_DAYS * DAY_MS, SHARED_DAYS, newest=True, each=8)
    return stream_of(None, lists_of(since), TITLES, LEAST, "0" * 16)


def factors_of_tastes() -> dict[str, np.ndarray]:
    """Factors in which every taste has a dimension of its own."""
    codes = np.zeros((TITLES, 64), np.int8)
    codes[np.arange(TITLES), np.arange(TITLES) // TITLES_OF_A_TASTE] = 127
    return {"factor_codes": codes, "factor_scale": np.full(TITLES, 1 / 127, np.float32)}


@pytest.fixture(scope="module")
def found() -> CohortPatterns:
    return cohort_patterns(stream_of_world(), factors_of_tastes(), 10, LEAST, NOW_MS)


def titles_in(found: CohortPatterns, place: int) -> list[int]:
    return found.rows[int(found.offsets[place]) : int(found.offsets[place + 1])].tolist()


def test_cohorts_are_the_tastes_and_patterns_stay_inside_them(found):
    assert len(found.centres) == 10 and 10 <= len(found) <= MAX_SIMILAR_PATTERNS
    tastes = [int(np.argmax(np.abs(centre))) for centre in found.centres]
    assert sorted(tastes) == list(range(10))
    inside = [
        row // TITLES_OF_A_TASTE == tastes[cohort]
        for place, cohort in enumerate(found.cohort.tolist())
        for row in titles_in(found, place)
    ]
    assert np.mean(inside) > 0.9
    assert all(found.weights[found.offsets[:-1]] == 255) and found.weights.min() > 0


def test_a_title_stands_in_one_pattern_of_a_cohort_and_enough_homes_stand_for_each_pair(found):
    events = stream_of_world().events
    homes = [set(events.household[events.title == row].tolist()) for row in range(TITLES)]
    for cohort in range(len(found.centres)):
        rows = [row for place in np.flatnonzero(found.cohort == cohort).tolist() for row in titles_in(found, place)]
        assert len(set(rows)) == len(rows)
    for place in range(len(found)):
        first, *others = titles_in(found, place)
        assert others and all(len(homes[first] & homes[other]) >= LEAST for other in others)
        assert found.homes[place] >= LEAST


def test_nothing_where_too_few_homes_share_or_there_are_no_factors():
    stream = stream_of_world(homes=3)
    assert len(cohort_patterns(stream, factors_of_tastes(), 8, LEAST, NOW_MS)) == 0
    assert len(cohort_patterns(stream_of_world(), {}, 8, LEAST, NOW_MS)) == 0
    assert len(cohort_patterns(stream_of_world(), factors_of_tastes(), 8, 250, NOW_MS)) == 0
    later = cohort_patterns(stream_of_world(), factors_of_tastes(), 8, LEAST, NOW_MS + 400 * DAY_MS)
    assert not later.sections() and not later.messages(None)
    empty = stream_of(NO_EVENTS, Lists("", np.empty(0, np.uint64), *(np.empty(0, np.int64),) * 3), TITLES, 1, "0" * 16)
    assert len(cohort_patterns(empty, factors_of_tastes(), 8, LEAST, NOW_MS)) == 0


@pytest.mark.parametrize("cohorts", [8, 20, 70])
def test_no_cohort_is_of_too_few_homes(cohorts):
    """A home that watches like no other would be a cohort of its own, whose centre is its taste."""
    since = viewings(np.random.default_rng(5), 300, NOW_MS - SHARED_DAYS * DAY_MS, SHARED_DAYS, newest=True, each=8)
    lists = lists_of(since)
    odd = np.arange(0, TITLES, TITLES_OF_A_TASTE)[3:9]
    lists = Lists(
        lists.lineage, np.append(lists.pseudonyms, np.uint64(1 << 63)),
        np.concatenate((lists.home, np.full(len(odd), len(lists.pseudonyms)))), np.concatenate((lists.row, odd)),
        np.concatenate((lists.finished_ms, np.full(len(odd), NOW_MS - DAY_MS))),
    )  # fmt: skip
    stream, sections = stream_of(None, lists, TITLES, LEAST, "0" * 16), factors_of_tastes()
    found = cohort_patterns(stream, sections, cohorts, LEAST, NOW_MS)
    events = stream.events
    profiles = np.zeros((int(events.household.max()) + 1, 64))
    np.add.at(profiles, events.household, sections["factor_codes"][events.title] / 127)
    nearest = np.argmax(profiles @ found.centres.T, axis=1)
    assert np.bincount(nearest, minlength=len(found.centres)).min() >= LEAST


def test_titles_that_the_cohort_gives_up_on_are_in_no_pattern():
    stream = stream_of_world()
    events = stream.events
    given_up = chosen(events, np.flatnonzero(events.title == 0))
    failed = Events(given_up.household, given_up.title, np.full(len(given_up), 0.1), given_up.timestamp)
    parts = [events, failed, failed, failed]
    joined = Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in
                      ("household", "title", "watch_percentage", "timestamp")))
    joined = chosen(joined, np.argsort(joined.timestamp, kind="stable"))
    found = cohort_patterns(replace(stream, events=joined), factors_of_tastes(), 10, LEAST, NOW_MS)
    assert 0 not in found.rows and found.success.min() >= MIN_QUALITY_THRESHOLD


def test_the_same_stream_gives_the_same_patterns(found):
    again = cohort_patterns(stream_of_world(), factors_of_tastes(), 10, LEAST, NOW_MS)
    for name, array in found.sections().items():
        np.testing.assert_array_equal(again.sections()[name], array)


class TestAsMessagesAndSections:
    @pytest.fixture
    def catalog(self, found, tmp_path) -> Catalog:
        sections, meta = sections_of(TITLES)
        write_bundle(tmp_path / "bundle", sections | found.sections(), meta | found.meta())
        with Catalog.open(tmp_path / "bundle") as opened:
            yield opened

    def test_they_travel_in_one_download(self, found, catalog):
        messages = found.messages(catalog)
        assert len(messages) == len(found)
        assert [one.sample_count for one in messages] == sorted((one.sample_count for one in messages), reverse=True)
        frame = wire.encode_global_patterns(GlobalPatterns(1, messages, ()), catalog)
        assert len(frame) < 5_340
        assert len(wire.decode_global_patterns(frame, catalog).similar) == len(found)

    def test_the_bundle_holds_them(self, found, catalog):
        assert not catalog.faults
        np.testing.assert_array_equal(catalog.cohorts.rows, found.rows)
        np.testing.assert_array_equal(catalog.cohorts.centres, found.centres)

    @pytest.mark.parametrize(
        ("section", "wrong"),
        [
            ("cohort_of", lambda array: np.full_like(array, 200)),
            ("cohort_centres", lambda array: array * 2),
            ("cohort_centres", lambda array: np.full_like(array, np.nan)),
            ("cohort_offsets", lambda array: array[::-1].copy()),
            ("cohort_rows", lambda array: array + TITLES),
            ("cohort_success", lambda array: np.full_like(array, np.nan)),
            ("cohort_success", lambda array: array + 1),
            ("cohort_weights", lambda array: array[:-1]),
            ("cohort_homes", lambda array: array.astype(np.float32)),
        ],
    )
    def test_wrong_ones_are_left_out_and_the_bundle_serves(self, found, section, wrong):
        sections, meta = sections_of(TITLES)
        damaged = sections | found.sections()
        damaged[section] = wrong(damaged[section])
        meta_section = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
        checked = check_sections(damaged | meta_section)
        assert list(checked.faults) == ["cohort"] and not [name for name in checked.sections if name.startswith("cohort_")]
        whole = sections | found.sections()
        del whole["cohort_homes"]
        assert "is missing" in check_sections(whole | meta_section).faults["cohort"]
