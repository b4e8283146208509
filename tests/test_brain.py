"""The brain as its callers use it: real store, real bundle file, a clock that the test holds."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.catalog import write_bundle
from omega_edge.config import BrainConfig
from omega_edge.errors import CatalogError, ConfigError, ProtocolError, StoreBusyError, StoreFullError
from omega_edge.protocol import (
    GlobalPatterns,
    Profile,
    ViewingEvent,
)
from tests.brains import EVENING, Clock, bytes_in, listed, viewing, watch
from tests.synthetic import DAY_MS, NOW_MS, sections_of


def test_recommends_without_any_history(opened) -> None:
    shown = opened().recommend(EVENING, 5)
    assert len(shown) == 5
    assert all(recommendation.reason and not recommendation.events for recommendation in shown)


def test_a_viewing_shapes_the_very_next_list_and_is_not_offered_again(opened) -> None:
    brain = opened()
    before = listed(brain)
    brain.observe(viewing(int(before[0][1:])))
    after = listed(brain)
    assert before[0] not in after and after != before[1:] + after[-1:]


def test_the_same_events_give_the_same_list_also_after_reopening(opened) -> None:
    rows = [3, 17, 5, 40, 41, 3, 60, 99]
    brain = opened()
    watch(brain, rows)
    brain.feedback("t050", "like")
    brain.feedback("t051", "dislike")
    shown = brain.recommend(EVENING)
    brain.close()
    assert opened().recommend(EVENING) == shown
    other = opened("other")
    watch(other, rows)
    other.feedback("t050", "like")
    other.feedback("t051", "dislike")
    assert other.recommend(EVENING) == shown


def test_a_reason_names_the_event_whose_deletion_costs_most(opened) -> None:
    """Every event is really deleted: a brain of its own sees all the others."""
    rows = [3, 17, 5, 40, 41, 60, 99, 23]
    brain = opened()
    watch(brain, rows)
    shown = brain.recommend(EVENING, 12)
    whole = {one.content_id: brain.explain(one.content_id, EVENING).raw_score for one in shown}
    drops: dict[str, dict[str, float]] = {content_id: {} for content_id in whole}
    for left_out in rows:
        without = opened(f"without-{left_out}")
        for minute, row in enumerate(rows):
            if row != left_out:
                without.observe(viewing(row, 0.2 if row % 4 == 3 else 0.9, minute))
        for content_id, score in whole.items():
            drops[content_id][f"t{left_out:03d}"] = score - without.explain(content_id, EVENING).raw_score
    named = 0
    for one in shown:
        strongest = max(drops[one.content_id].values())
        if one.events:
            named += 1
            assert drops[one.content_id][one.events[0].content_id] >= strongest - 2e-3
            assert one.events[0].drop == pytest.approx(strongest, abs=2e-3)
            assert one.events[0].content_title in one.reason
        else:
            assert strongest < 2e-3
    assert named >= 6


def test_a_title_of_which_nothing_is_known_is_never_the_reason(opened) -> None:
    brain = opened()
    watch(brain, [3, 17])
    for _ in range(3):
        brain.observe(ViewingEvent("elsewhere", "Not in any catalogue", 0.9, 60, NOW_MS, EVENING))
    shown = brain.recommend(EVENING, 100)
    named = {event.content_id for one in shown for event in one.events}
    assert named and "elsewhere" not in named
    assert all(event.content_id != "elsewhere" for event in brain.explain(shown[0].content_id, EVENING).events)


def test_profiles_are_apart(opened) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 6))
    before = listed(brain, context=replace(EVENING, profile="kid"))
    watch(brain, [3, 17, 5])
    assert listed(brain, context=replace(EVENING, profile="kid")) == before
    assert brain.withheld_counts("kid")["seen"] == 0 and brain.withheld_counts()["seen"] == 3
    assert [profile.id for profile in brain.profiles()] == ["household", "kid"]


@pytest.mark.parametrize("call", ["recommend", "observe", "feedback", "withheld_counts", "export", "now_context"])
def test_an_unknown_profile_is_an_error(opened, call: str) -> None:
    brain = opened()
    context = replace(EVENING, profile="nobody")
    calls = {
        "recommend": lambda: brain.recommend(context),
        "observe": lambda: brain.observe(viewing(1, context=context)),
        "feedback": lambda: brain.feedback("t001", "like", "nobody"),
        "withheld_counts": lambda: brain.withheld_counts("nobody"),
        "export": lambda: brain.export("nobody"),
        "now_context": lambda: brain.now_context("nobody"),
    }
    with pytest.raises(ConfigError, match="nobody"):
        calls[call]()


def test_dislike_removes_the_title_and_what_is_like_it_falls(opened) -> None:
    brain = opened()
    watch(brain, [3, 17, 5])
    first = listed(brain)[0]
    brain.feedback(first, "dislike")
    assert first not in listed(brain, 100)
    assert brain.explain(first, EVENING).withheld == "hidden"


def test_not_now_comes_back_after_two_weeks_and_like_unhides(opened) -> None:
    clock = Clock()
    brain = opened(clock=clock)
    first, second = listed(brain)[:2]
    brain.feedback(first, "not now")
    brain.feedback(second, "never")
    assert not {first, second} & set(listed(brain, 100))
    clock.now_ms += 14 * DAY_MS + 1
    assert first in listed(brain, 100) and second not in listed(brain, 100)
    brain.feedback(second, "like")
    assert second in listed(brain, 100)


def test_feedback_is_checked(opened) -> None:
    brain = opened()
    with pytest.raises(ProtocolError, match="like, dislike, not_now, never"):
        brain.feedback("t001", "meh")
    with pytest.raises(ConfigError, match="content_title"):
        brain.feedback("elsewhere", "like")
    brain.feedback("elsewhere", "like", content_title="Somewhere else")


@pytest.mark.parametrize("k", [0, -1, 501, 2.5, True, "5"])
def test_k_outside_its_range_is_an_error(opened, k: object) -> None:
    with pytest.raises(ProtocolError, match="k"):
        opened().recommend(EVENING, k)


def test_recent_watches_that_were_not_observed_count_and_are_withheld(opened) -> None:
    brain = opened()
    watch(brain, [3, 17, 5])
    base = brain.recommend(EVENING, 100)
    told = replace(EVENING, recent_watches=(base[0].content_id,))
    assert base[0].content_id not in listed(brain, 100, told)
    assert brain.recommend(replace(EVENING, recent_watches=("t003", "t017", "t005")), 100) == base


def test_the_last_watched_are_found_behind_many_that_were_only_refused(opened) -> None:
    brain = opened()
    watch(brain, [1, 2, 5])
    for row in range(40, 55):
        brain.feedback(f"t{row:03d}", "dislike")
    assert brain.now_context().recent_watches == ("t001", "t002", "t005")


def test_a_title_liked_but_never_watched_is_news_when_it_was_just_watched(opened) -> None:
    brain = opened()
    first = listed(brain)[0]
    brain.feedback(first, "like")
    assert first in listed(brain, 100)
    assert first not in listed(brain, 100, replace(EVENING, recent_watches=(first,)))


def test_mood_lifts_its_genre_and_an_unknown_mood_is_an_error(opened) -> None:
    brain = opened()
    wishing = replace(EVENING, mood_hint="family")
    for content_id in ("t003", "t004", "t005"):
        genres = brain._catalog.title(int(content_id[1:])).genres
        told, plain = brain.explain(content_id, wishing), brain.explain(content_id, EVENING)
        assert told.raw_score - plain.raw_score == pytest.approx(2 * ("Family" in genres) / len(genres), abs=1e-5)
        assert told.features["mood"].value == pytest.approx(("Family" in genres) / len(genres))

    def family(context) -> int:
        return sum("Family" in brain._catalog.title(int(content_id[1:])).genres for content_id in listed(brain, 10, context))

    assert family(wishing) > 1.5 * family(EVENING)
    with pytest.raises(ProtocolError, match="Drama"):
        brain.recommend(replace(EVENING, mood_hint="sparkly"))


def test_explain_adds_up_and_tells_what_is_withheld(opened) -> None:
    brain = opened()
    watch(brain, [3, 17, 5])
    told = brain.explain("t003", EVENING)
    assert told.withheld == "seen"
    assert sum(share.contribution for share in told.features.values()) == pytest.approx(told.raw_score, abs=1e-5)
    with pytest.raises(ConfigError, match="catalogue"):
        brain.explain("elsewhere")


def test_explain_tells_a_child_nothing_of_a_title_above_its_age(opened) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 0))
    context = replace(EVENING, profile="kid")
    for row in range(20):
        rating = brain._catalog.title(row).age_rating
        if rating == 0:
            assert brain.explain(f"t{row:03d}", context).content_title
        else:
            with pytest.raises(ConfigError, match="withheld") as refused:
                brain.explain(f"t{row:03d}", context)
            assert brain._catalog.name(row) not in str(refused.value)


def test_a_second_process_is_refused_with_a_clear_error(opened, tmp_path: Path, bundle: Path) -> None:
    brain = opened()
    with pytest.raises(StoreBusyError):
        opened()
    code = (
        "from omega_edge.brain import OmegaBrain\nfrom omega_edge.config import BrainConfig\n"
        f"OmegaBrain.open(BrainConfig(storage_path={str(tmp_path / 'store')!r}, catalog_path={str(bundle)!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode != 0 and "StoreBusyError" in found.stderr
    brain.close()
    opened()


def test_a_closed_brain_refuses_every_call(opened) -> None:
    brain = opened()
    brain.close()
    brain.close()
    calls = [
        *(brain.recommend, brain.stats, brain.flush, brain.maintain, brain.prepare_sync_delta, brain.profiles, brain.export),
        *(brain.withheld_counts, brain.now_context, lambda: brain.observe(viewing(1)), lambda: brain.explain("t001")),
        *(lambda: brain.feedback("t001", "like"), lambda: brain.set_profile(Profile("kid", "Kid"))),
        *(lambda: brain.forget(everything=True), lambda: brain.apply_global_patterns(GlobalPatterns(1))),
        *(lambda: brain.acknowledge_sync(1), lambda: brain.import_export({})),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="closed"):
            call()


def test_readers_and_a_writer_at_once(opened) -> None:
    """Every list is whole: distinct titles, none that this thread knew to be watched before it asked."""
    brain = opened()
    observed: list[str] = []
    faults: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(150):
                known = set(observed)
                shown = listed(brain)
                assert len(shown) == len(set(shown)) and not known & set(shown)
        except BaseException as fault:
            faults.append(fault)
            raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for minute in range(80):
        brain.observe(viewing(minute, minute=minute))
        observed.append(f"t{minute:03d}")
    for reader in readers:
        reader.join()
    assert not faults


def test_export_then_import_restores_all(opened) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 6))
    watch(brain, [3, 17, 5, 40])
    watch(brain, [8], replace(EVENING, profile="kid"))
    brain.feedback("t050", "never")
    exported = json.loads(json.dumps(brain.export()))
    shown = brain.recommend(EVENING)
    other = opened("other")
    other.import_export(exported)
    assert other.recommend(EVENING) == shown
    assert other.profiles() == brain.profiles()
    assert other.withheld_counts("kid") == brain.withheld_counts("kid")


def test_forget_leaves_neither_id_nor_title_in_any_file(opened, tmp_path: Path) -> None:
    brain = opened()
    unlike = ViewingEvent("secret-id-7", "Zebra Crossing 1999", 0.9, 60, NOW_MS, EVENING)
    for _ in range(4):
        brain.observe(unlike)
    watch(brain, [3, 17, 5])
    brain.feedback("secret-id-7", "like", content_title="Zebra Crossing 1999")
    brain.flush()
    brain.stats()
    assert bytes_in(tmp_path, b"secret-id-7")
    brain.forget(content_id="secret-id-7")
    assert not bytes_in(tmp_path, b"secret-id-7") and not bytes_in(tmp_path, b"Zebra Crossing")
    assert "Zebra" not in json.dumps(brain.export())
    brain.close()
    assert not bytes_in(tmp_path, b"secret-id-7") and not bytes_in(tmp_path, b"Zebra Crossing")
    assert opened().withheld_counts()["seen"] == 3


def test_forget_a_profile_or_everything(opened) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 6))
    fresh = listed(brain)
    watch(brain, [3, 17, 5])
    watch(brain, [8], replace(EVENING, profile="kid"))
    brain.forget(profile="kid")
    assert [profile.id for profile in brain.profiles()] == ["household"]
    with pytest.raises(ConfigError, match="kid"):
        brain.recommend(replace(EVENING, profile="kid"))
    assert brain.withheld_counts()["seen"] == 3
    brain.forget(everything=True)
    assert listed(brain) == fresh
    with pytest.raises(ConfigError, match="True or False"):
        brain.forget(everything="no")
    for arguments in ({}, {"everything": False}, {"content_id": "a", "everything": True}):
        with pytest.raises(ConfigError, match="exactly one"):
            brain.forget(**arguments)


def test_without_a_model_the_brain_recommends_and_says_so(opened, tmp_path: Path) -> None:
    brain = opened(model_path=tmp_path / "no-model")
    watch(brain, [3, 17])
    brain.observe(ViewingEvent("elsewhere", "Not in any catalogue", 0.9, 60, NOW_MS, EVENING))
    assert len(listed(brain)) == 20
    assert any(entry.startswith("text embedding") for entry in brain.stats()["degraded"])


def test_a_missing_catalogue_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="nowhere.bundle"):
        OmegaBrain.open(BrainConfig(storage_path=tmp_path / "store", catalog_path=tmp_path / "nowhere.bundle"))


def test_a_clock_far_off_harms_nothing(opened) -> None:
    clock = Clock()
    brain = opened(clock=clock)
    watch(brain, [3, 17, 5])
    expected = listed(brain)
    for now_ms in (0, NOW_MS + 10 * 365 * DAY_MS, NOW_MS):
        clock.now_ms = now_ms
        brain.maintain()
        assert len(listed(brain)) == (20 if now_ms else len(listed(brain)))
    assert listed(brain) == expected
    clock.now_ms = 0
    brain.observe(viewing(7))
    clock.now_ms = NOW_MS
    assert "t007" not in listed(brain, 100) and brain.withheld_counts()["seen"] == 4


def test_stats_name_the_configuration_and_hold_no_title(opened) -> None:
    brain = opened(diversity=0.25)
    watch(brain, [1, 2, 5])
    stats = json.dumps(brain.stats())
    assert '"diversity": 0.25' in stats and "Título" not in stats and "t001" not in stats


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"dimensions": 128}, "dimensions"),
        ({"sharing": "all"}, "sharing"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"diversity": 2}, "diversity"),
        ({"sync_interval_secs": 1}, "sync_interval_secs"),
        ({"durability_window_secs": "5"}, "durability_window_secs"),
        ({"storage_path": ""}, "storage_path"),
    ],
)
def test_options_are_checked(options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        BrainConfig.from_mapping({"storage_path": tmp_path, "catalog_path": tmp_path / "c"} | options)


def test_scores_are_logistic_and_confidence_calibrated(opened) -> None:
    brain = opened()
    watch(brain, [1, 2, 5, 6, 8])
    for one in brain.recommend(EVENING):
        told = brain.explain(one.content_id, EVENING)
        assert one.score == pytest.approx(told.score) and 0 < one.score < 1
        slope, intercept = brain._catalog.fusion.calibration[2]
        assert one.confidence == pytest.approx(1 / (1 + np.exp(-(slope * told.raw_score + intercept))), abs=1e-6)


def test_a_failed_open_lets_go_of_the_store(opened, tmp_path: Path) -> None:
    sections, meta = sections_of()
    write_bundle(tmp_path / "foreign.bundle", sections, meta | {"fusion_features": [*meta["fusion_features"][1:], "x"]})
    with pytest.raises(CatalogError, match="build or fetch"):
        OmegaBrain.open(BrainConfig(storage_path=tmp_path / "store", catalog_path=tmp_path / "foreign.bundle"))
    opened()


@pytest.mark.parametrize(
    "state", [{"trending": 5}, {"trending": [["x"]]}, {"trending": [["x", -1, 48]]}, {"trending": [], "global_version": "x"}]
)
def test_an_export_with_a_malformed_state_changes_nothing(opened, state: dict) -> None:
    brain = opened()
    watch(brain, [3, 5])
    shown = brain.recommend(EVENING)
    exported = brain.export()
    exported["states"] = {"collective": state}
    with pytest.raises(ProtocolError):
        brain.import_export(exported, replace_existing=True)
    assert brain.recommend(EVENING) == shown
    brain.close()
    assert opened().recommend(EVENING) == shown


def test_a_child_s_context_names_nothing_above_its_age(opened) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid"))
    context = replace(EVENING, profile="kid")
    watch(brain, list(range(5)), context)
    brain.set_profile(Profile("kid", "Kid", 0))
    for content_id in brain.now_context("kid").recent_watches:
        assert brain._catalog.title(int(content_id[1:])).age_rating == 0


def test_a_liked_title_still_counts_as_watched(opened) -> None:
    brain = opened()
    watch(brain, [3, 17, 5])
    base = brain.now_context().recent_watches
    brain.feedback("t005", "like")
    assert brain.now_context().recent_watches == base == ("t003", "t017", "t005")
    shown = brain.recommend(EVENING, 50)
    assert brain.recommend(replace(EVENING, recent_watches=base), 50) == shown


def test_feedback_happens_at_the_household_s_time_of_day(opened) -> None:
    clock = Clock()
    brain = opened(clock=clock, time_zone="Asia/Tokyo")
    brain.feedback("t005", "like")
    assert brain._memory.history("household", 1)[0].time_of_day == brain.now_context().time_of_day


def test_wrong_arguments_are_refused_by_name(opened) -> None:
    brain = opened()
    for call, named in (
        (lambda: brain.recommend(5), "context"),
        (lambda: brain.explain("t001", "evening"), "context"),
        (lambda: brain.observe("t001"), "event"),
        (lambda: brain.set_profile("kid"), "profile"),
        (lambda: brain.apply_global_patterns(None), "patterns"),
        (lambda: OmegaBrain.open({"storage_path": "x"}), "config"),
        (lambda: OmegaBrain.open(brain.config, clock=5), "clock"),
        (lambda: BrainConfig.from_mapping(5), "options"),
        (lambda: BrainConfig.from_mapping({1: 2}), "unknown option 1"),
    ):
        with pytest.raises(ConfigError, match=named):
            call()


def test_a_profile_that_cannot_be_stored_does_not_hold(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 6))

    def full(*_arguments: object) -> None:
        raise StoreFullError("no space left for the write")

    monkeypatch.setattr(type(brain._memory._keeper.store), "write", full)
    for profile in (Profile("kid", "Kid", 18), Profile("teen", "Teen")):
        with pytest.raises(StoreFullError):
            brain.set_profile(profile)
    assert [(one.id, one.max_age_rating) for one in brain.profiles()] == [("household", None), ("kid", 6)]
    assert brain.withheld_counts("kid")["age_rating"] > 0
    with pytest.raises(ConfigError, match="teen"):
        brain.withheld_counts("teen")


def test_a_title_outside_the_catalogue_counts_once_maintenance_has_embedded_it(opened, model_dir: Path) -> None:
    brain = opened(model_path=model_dir)
    brain.observe(ViewingEvent("elsewhere", "Arrival (2016)", 0.9, 60, NOW_MS, EVENING))
    assert brain.explain("t003", EVENING).features["content_profile"].value == 0
    brain.maintain()
    embedded = brain.explain("t003", EVENING).features["content_profile"].value
    assert embedded != 0 and brain.stats()["memory"]["episodes_without_vector"] == 0
    brain.close()
    again = opened(model_path=model_dir)
    assert again.explain("t003", EVENING).features["content_profile"].value == pytest.approx(embedded)
