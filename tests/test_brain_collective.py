"""What the brain takes from the cloud and prepares for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omega_edge.catalog import write_bundle
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import (
    GlobalPatterns,
    TitleReference,
    TrendSignal,
    ViewingEvent,
    ViewingPattern,
)
from tests.brains import EVENING, Clock, bytes_in, listed, viewing, watch
from tests.synthetic import DAY_MS, NOW_MS, sections_of


def pattern(identity: int, titles: list[int], success_rate: float = 0.9) -> ViewingPattern:
    return ViewingPattern(
        identity, success_rate, 50, NOW_MS, NOW_MS, references=tuple(TitleReference(f"t{row:03d}", 1.0) for row in titles)
    )


def test_global_patterns_and_trends_reach_the_list_and_are_idempotent(opened) -> None:
    brain = opened()
    sent = GlobalPatterns(7, (pattern(1, [30, 31]), pattern(2, [90])), (TrendSignal("t044", 1.0, 48),))
    assert brain.explain("t030", EVENING).features["patterns"].value == 0
    assert brain.apply_global_patterns(sent) > 0
    assert brain.apply_global_patterns(sent) == 0
    assert brain.explain("t030", EVENING).features["patterns"].value > 0
    assert brain.explain("t044", EVENING).features["trend_short"].value == 1
    assert brain.explain("t043", EVENING).features["trend_short"].value == 0
    brain.close()
    again = opened()
    assert again.explain("t030", EVENING).features["patterns"].value > 0
    assert again.stats()["global_version"] == 7
    assert again.apply_global_patterns(GlobalPatterns(6, (pattern(9, [1]),))) == 0


def test_an_embedded_pattern_speaks_for_its_nearest_titles(opened) -> None:
    brain = opened()
    vector = brain._catalog.codes[20] * brain._catalog.scale[20]
    embedded = ViewingPattern(4, 0.9, 10, NOW_MS, NOW_MS, embedding=vector.astype("<f4").tobytes())
    brain.apply_global_patterns(GlobalPatterns(1, (embedded,)))
    assert brain.explain("t020", EVENING).features["patterns"].value == pytest.approx(1.0)


def test_receive_composes_nothing(opened) -> None:
    brain = opened()
    watch(brain, [1, 2, 5])
    assert brain.prepare_sync_delta() is None


def test_a_delta_carries_titles_in_order_until_acknowledged(opened) -> None:
    brain = opened(sharing="titles")
    watch(brain, [1, 2, 3, 5])
    delta = brain.prepare_sync_delta()
    assert [title.content_id for title in delta.titles_finished] == ["t001", "t002", "t005"]
    assert brain.prepare_sync_delta() == delta
    brain.observe(viewing(6, minute=9))
    with pytest.raises(ConfigError, match="prepared"):
        brain.acknowledge_sync(delta.local_version + 1000)
    brain.acknowledge_sync(delta.local_version)
    following = brain.prepare_sync_delta()
    assert [title.content_id for title in following.titles_finished] == ["t006"]
    assert following.local_version > delta.local_version
    brain.close()
    assert [title.content_id for title in opened(sharing="titles").prepare_sync_delta().titles_finished] == ["t006"]


def test_what_was_prepared_before_a_forget_cannot_be_acknowledged(opened, tmp_path: Path) -> None:
    brain = opened(sharing="titles")
    brain.observe(ViewingEvent("secret-id-7", "Zebra Crossing 1999", 0.9, 60, NOW_MS, EVENING))
    watch(brain, [1, 2])
    delta = brain.prepare_sync_delta()
    brain.forget(content_id="secret-id-7")
    with pytest.raises(ConfigError, match="prepare another"):
        brain.acknowledge_sync(delta.local_version)
    assert not bytes_in(tmp_path, b"secret-id-7")
    assert [title.content_id for title in brain.prepare_sync_delta().titles_finished] == ["t001", "t002"]


def test_titles_are_logged_exactly_while_they_are_shared(opened) -> None:
    sharing = opened(sharing="titles")
    watch(sharing, [1, 2])
    exported = sharing.export()
    sharing.forget(everything=True)
    watch(sharing, [5])
    assert [title.content_id for title in sharing.prepare_sync_delta().titles_finished] == ["t005"]
    sharing.close()
    silent = opened("silent")
    silent.import_export(exported)
    watch(silent, [6])
    silent.close()
    assert not opened("silent", sharing="titles").prepare_sync_delta().titles_finished


def test_pages_are_acknowledged_title_by_title_even_when_an_answer_is_lost(opened) -> None:
    brain = opened(sharing="titles")
    watch(brain, [1, 2, 4, 5, 6])
    received: list[str] = []
    first = brain.prepare_sync_delta(max_titles=2)
    received += [title.content_id for title in first.titles_finished]
    wider = brain.prepare_sync_delta(max_titles=3)  # the answer to the first page was lost
    assert first.more_pages and wider.more_pages and wider.local_version > first.local_version
    with pytest.raises(ConfigError, match="prepare another"):
        brain.acknowledge_sync(first.local_version)
    brain.acknowledge_sync(wider.local_version)
    rest = brain.prepare_sync_delta()
    assert [title.content_id for title in rest.titles_finished] == ["t005", "t006"] and not rest.more_pages
    with pytest.raises(ProtocolError, match="max_titles"):
        brain.prepare_sync_delta(max_titles=0)


def test_a_trend_is_told_as_one_of_now_only_while_it_is(opened) -> None:
    clock = Clock()
    brain = opened(clock=clock)
    by_trend = [one for one in brain.recommend(EVENING, 100) if one.trend is not None]
    assert by_trend and all("in the last" in one.reason for one in by_trend)
    clock.now_ms += 400 * DAY_MS
    by_trend = [one for one in brain.recommend(EVENING, 100) if one.trend is not None]
    assert by_trend and all(one.reason == "Popular in May 2013" for one in by_trend)


def test_signals_of_unknown_titles_or_of_another_window_leave_the_trends_alone(opened) -> None:
    brain = opened()
    before = brain.explain("t044", EVENING).features
    brain.apply_global_patterns(
        GlobalPatterns(3, (), (TrendSignal("elsewhere", 1.0, 48), TrendSignal("t044", 1.0, 8784)))
    )
    assert brain.explain("t044", EVENING).features == before


def test_following_a_pattern_is_remembered_for_young_profiles(opened) -> None:
    clock = Clock()
    brain = opened(clock=clock)
    brain.apply_global_patterns(GlobalPatterns(1, (pattern(1, [30, 31]), pattern(2, [34]))))
    assert {"t030", "t034"} <= set(listed(brain, 500))
    clock.now_ms += 60_000
    brain.observe(viewing(30))
    brain.observe(viewing(33))  # no list was shown in between: no decision to learn from
    outcomes = {one.pattern_id: (one.followed, one.not_followed) for one in brain._memory.patterns()}
    assert outcomes == {1: (1, 0), 2: (0, 1)}


def cohort_bundle(path: Path) -> None:
    """The synthetic bundle with two cohorts whose centres are the factors of t001 and t002."""
    sections, meta = sections_of(120)
    centres = sections["factor_codes"][[1, 2]] / np.linalg.norm(sections["factor_codes"][[1, 2]].astype(float), axis=1)[:, None]
    cohorts = {
        "cohort_centres": centres.astype(np.float32),
        "cohort_of": np.array([0, 1, 1], np.uint8),
        "cohort_offsets": np.array([0, 2, 4, 5], np.uint32),
        "cohort_rows": np.array([30, 31, 40, 41, 42], np.uint32),
        "cohort_weights": np.array([255, 128, 255, 51, 255], np.uint8),
        "cohort_success": np.array([1.0, 0.8, 0.4], np.float32),
        "cohort_homes": np.array([90, 80, 70], np.uint32),
    }
    write_bundle(path, sections | cohorts, meta)


def test_a_young_home_hears_the_cohort_of_the_bundle_that_it_is_nearest_to(opened, tmp_path: Path) -> None:
    cohort_bundle(tmp_path / "cohorts.bundle")
    brain = opened(catalog_path=tmp_path / "cohorts.bundle")

    def heard(row: int) -> float:
        return brain.explain(f"t{row:03d}", EVENING).features["patterns"].value

    assert [heard(row) for row in (30, 40, 42)] == [0.0, 0.0, 0.0]
    brain.observe(viewing(3, watched=0.1))  # not finished: tells no cohort
    assert heard(30) == heard(40) == 0.0
    brain.observe(viewing(2))
    assert [heard(row) for row in (40, 41, 42)] == pytest.approx([1.0, 0.2, 0.5], abs=0.01) and heard(30) == 0.0
    brain.apply_global_patterns(GlobalPatterns(3, (pattern(1, [50]),)))
    assert heard(50) == 1.0 and heard(40) == 0.0, "what the cloud sent comes first"
