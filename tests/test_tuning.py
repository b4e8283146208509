"""The choice of settings, on streams where it is known which are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud import tuning
from cloud.replay import Timeline
from cloud.settings import ModelSettings
from cloud.signals import slots_of
from cloud.tuning import tuned
from omega_edge.datasets import Events
from tests.test_model_job import DAY_MS, START_MS

HOUSEHOLDS, TITLES, DAYS = 150, 120, 120


def events_of(rows: list[tuple[float, int, int, bool]]) -> Events:
    """Events from (day, household, title, success) in any order."""
    day, household, title, success = zip(*sorted(rows), strict=True)
    return Events(
        np.array(household, np.int32),
        np.array(title, np.int32),
        np.where(success, 0.9, 0.1),
        START_MS + (np.array(day) * DAY_MS).astype(np.int64),
    )


def chosen(events: Events, settings: ModelSettings | None = None, end: int | None = None) -> ModelSettings:
    """What is chosen on the last fifth before an end, from what precedes it."""
    end = len(events) if end is None else end
    timeline = Timeline.of(events, slots_of(events.timestamp))
    told: list[str] = []
    start = end * 4 // 5
    found = tuned(timeline, TITLES, (end // 2, end), start, settings or ModelSettings(), told.append)
    assert len(told) == 1, "there were enough viewings"
    return found


def hits_of(days: float, seed: int) -> Events:
    """Everybody watches what is a hit just then, for so many days a hit; a hit is drawn anew and comes back."""
    rng = np.random.default_rng(seed)
    hits = {}
    rows = []
    for household in range(HOUSEHOLDS):
        for day in rng.random(40) * DAYS:
            hit = hits.setdefault(int(day / days), rng.permutation(TITLES)[:8])
            title = rng.choice(hit) if rng.random() < 0.8 else rng.integers(TITLES)
            rows.append((day, household, int(title), True))
    return events_of(rows)


def test_short_lived_hits_have_a_short_window_and_lasting_ones_a_long_one():
    brief, lasting = chosen(hits_of(2.0, 1)), chosen(hits_of(10 * DAYS, 1))
    assert brief.trend_window_hours[0] <= 48 and lasting.trend_window_hours[0] >= 168
    for windows in (brief.trend_window_hours, lasting.trend_window_hours):
        assert windows[1] in [min(round(windows[0] * factor), tuning.MAX_LONG_HOURS) for factor in (3.5, 7, 14)]


def neighbours(turn_days: float, seed: int) -> Events:
    """A household watches one group of titles; which titles make a group is drawn anew every so many days."""
    rng = np.random.default_rng(seed)
    groups: dict[int, np.ndarray] = {}
    rows = []
    for household in range(HOUSEHOLDS):
        # A home watches for ten days, so that it lives in one grouping.
        begin = rng.random() * (DAYS - 10)
        number = int(rng.integers(10))
        for day in begin + rng.random(24) * 10:
            order = groups.setdefault(int(begin / turn_days), rng.permutation(TITLES).reshape(10, 12))
            title = rng.choice(order[number]) if rng.random() < 0.5 else rng.integers(TITLES)
            rows.append((day, household, int(title), True))
    return events_of(rows)


def test_a_world_that_turns_forgets_and_one_that_stays_remembers():
    assert chosen(neighbours(25.0, 2)).half_life_days == 15.0
    assert chosen(neighbours(10 * DAYS, 2)).half_life_days >= 60.0


def test_a_lasting_world_is_remembered_over_decades_too():
    """The same viewings, stretched to 20 years: how long a half-life is best grows with them."""
    lasting = neighbours(10 * DAYS, 2)
    stretched = replace(lasting, timestamp=START_MS + (lasting.timestamp - START_MS - DAYS * DAY_MS) * 60)
    assert chosen(stretched).half_life_days >= 1_000.0


def test_half_lives_that_the_stream_cannot_tell_apart_are_not_tried():
    year = START_MS + np.arange(366) * DAY_MS
    assert tuning._half_lives(year) == (15.0, 30.0, 60.0, 120.0, 240.0)
    assert tuning._half_lives(year * 2 - year[0])[-1] == 1_000.0
    assert tuning._half_lives(year[:1]) == (15.0, 30.0, 60.0, 120.0, 240.0)


def outcomes(groups: int, distaste: bool, seed: int) -> Events:
    """Homes have a group of titles each. Either they watch anything, and what is of another group fails; or they watch
    their own group alone, and failing is chance."""
    rng = np.random.default_rng(seed)
    rows, size = [], TITLES // groups
    for household in range(400):
        group = household % groups
        for day in rng.random(15) * DAYS:
            title = rng.integers(TITLES) if distaste else size * group + rng.integers(size)
            success = title // size == group if distaste else rng.random() < 0.4
            rows.append((day, household, int(title), bool(success)))
    return events_of(rows)


def test_a_failure_counts_where_it_is_chance_and_not_where_it_is_distaste():
    assert chosen(outcomes(2, True, 3)).parameters["failure_weight"] == 0.0
    assert chosen(outcomes(6, False, 3)).parameters["failure_weight"] >= 0.5


def test_only_what_is_tuned_changes():
    settings = ModelSettings(directed_ridge=7.0, min_events=4)
    found = chosen(hits_of(2.0, 1), settings)
    assert (found.directed_ridge, found.min_events, found.tune) == (7.0, 4, True)
    assert found.ridge in tuning.RIDGES and found.half_life_days in tuning.HALF_LIFE_DAYS
    kept = {name: value for name, value in found.parameters.items() if name not in ("row_decay", "failure_weight")}
    assert kept == {name: settings.parameters[name] for name in kept}
    assert settings == ModelSettings(directed_ridge=7.0, min_events=4), "what was given is as it was"


def test_nothing_at_or_after_the_end_is_read():
    """The world turns at the end: with what follows it, another choice would be made."""
    brief, lasting = hits_of(2.0, 1), hits_of(10 * DAYS, 5)
    end = len(brief) * 3 // 5
    mixed = Events(
        *(
            np.concatenate((getattr(brief, name)[:end], getattr(lasting, name)[end:]))
            for name in ("household", "title", "watch_percentage")
        ),
        brief.timestamp,
    )
    assert chosen(mixed, end=end) == chosen(brief, end=end)
    assert chosen(mixed) != chosen(brief), "so much follows that it would show"


def test_a_stream_with_few_viewings_keeps_the_settings_given():
    events = hits_of(2.0, 1)
    timeline, settings = Timeline.of(events, slots_of(events.timestamp)), ModelSettings(ridge=12.5)
    end = 3000
    start = end - tuning.LEAST_QUERIES // 2
    assert tuned(timeline, TITLES, (0, end), start, settings, lambda what: None) is settings


@pytest.mark.parametrize(("shown", "rank"), [([0.0, 5.0, 3.0, 3.0, 1.0], 2.5), ([0.0, 5.0, 3.0, 3.0, 4.0], 3.5)])
def test_a_choice_is_by_ndcg_of_unseen_titles_ties_at_their_mean(shown, rank):
    """A home that saw title 1, the best of all, and now watches title 3."""
    events = events_of([(0.0, 0, 1, True), (1.0, 0, 3, True)])
    judge = tuning._Judge(Timeline.of(events, slots_of(events.timestamp)), 5, np.array([1]))
    assert judge._quality(lambda query: np.array(shown)) == pytest.approx(1 / np.log2(rank))
