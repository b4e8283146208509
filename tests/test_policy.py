"""No call ever returns a title that policy forbids."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog, write_bundle
from omega_edge.config import BrainConfig
from omega_edge.policy import Household, Policy, Withheld
from omega_edge.protocol import MAX_TIMESTAMP_MS, Profile, ViewContext, ViewingEvent
from tests.synthetic import DAY_MS, GENRES, NOW_MS, catalog_of, sections_of

TITLES = 60


def household(limit: int | None = None, seen: tuple[int, ...] = (), hidden: dict[int, int] | None = None) -> Household:
    seen_mask, hidden_until = np.zeros(TITLES, bool), np.zeros(TITLES, np.int64)
    seen_mask[list(seen)] = True
    for row, until in (hidden or {}).items():
        hidden_until[row] = until
    return Household(Profile("kid", "Kid", limit), seen_mask, hidden_until, {"outside": MAX_TIMESTAMP_MS})


def unpacked(bitmap: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(bitmap, bitorder="little")).tolist())


def test_allowed_agrees_with_withheld_for_every_title() -> None:
    catalog = catalog_of(TITLES)
    policy = Policy(catalog)
    for limit in (None, 0, 6, 12, 16, 18, 21):
        viewer = household(limit, seen=(1, 2), hidden={3: MAX_TIMESTAMP_MS, 5: NOW_MS, 6: NOW_MS + 1})
        allowed = unpacked(policy.allowed(viewer, NOW_MS, also_withheld=(8,)))
        for row in range(TITLES):
            assert (row in allowed) == (row != 8 and policy.withheld(viewer, row, NOW_MS) is None), row
        counted = policy.withheld_counts(viewer, NOW_MS)
        reasons = [policy.withheld(viewer, row, NOW_MS) for row in range(TITLES)]
        assert counted == {
            reason.value: reasons.count(reason) for reason in Withheld if reason is not Withheld.UNKNOWN
        }


def test_what_is_on_offer_is_right_at_every_moment_in_any_order() -> None:
    """A policy keeps what was on offer last until a title comes or goes."""
    sections, meta = sections_of(TITLES)
    rng = np.random.default_rng(4)
    start = rng.integers(0, 30, TITLES)
    end = np.where(rng.random(TITLES) < 0.3, MAX_TIMESTAMP_MS, start + rng.integers(0, 12, TITLES))
    sections |= {"available_from": start.astype(np.int64), "available_until": end.astype(np.int64)}
    policy = Policy(Catalog.from_sections(sections, meta))
    for now_ms in (*range(50), *rng.integers(0, 45, 200).tolist(), MAX_TIMESTAMP_MS, MAX_TIMESTAMP_MS - 1, 0):
        expected = {row for row in range(TITLES) if start[row] <= now_ms < end[row]}
        assert unpacked(policy.allowed(household(), now_ms)) == expected, now_ms


def test_each_reason_is_given_for_its_cause() -> None:
    catalog = catalog_of(TITLES)
    policy = Policy(catalog)
    child = household(0, seen=(0,), hidden={0: MAX_TIMESTAMP_MS})
    unrated = next(row for row in range(TITLES) if catalog.title(row).age_rating is None)
    adult = next(row for row in range(TITLES) if catalog.title(row).age_rating == 18)
    assert policy.withheld(child, unrated, NOW_MS) is Withheld.UNRATED
    assert policy.withheld(child, adult, NOW_MS) is Withheld.AGE_RATING
    assert policy.withheld(child, -1, NOW_MS) is Withheld.UNKNOWN
    grown = household(None, seen=(0,), hidden={1: NOW_MS + 1})
    assert policy.withheld(grown, 10, NOW_MS) is Withheld.NOT_AVAILABLE
    assert policy.withheld(grown, 10, NOW_MS + 30 * DAY_MS) is None
    assert policy.withheld(grown, 12, NOW_MS) is Withheld.NOT_AVAILABLE
    assert policy.withheld(grown, 12, NOW_MS - DAY_MS - 1) is None
    assert policy.withheld(grown, 1, NOW_MS) is Withheld.HIDDEN
    assert policy.withheld(grown, 1, NOW_MS + 1) is None
    assert policy.withheld(grown, 0, NOW_MS) is Withheld.SEEN


def test_titles_outside_the_catalogue_are_named_only_without_a_limit_and_unless_hidden() -> None:
    policy = Policy(catalog_of(TITLES))
    ids, rows = ["elsewhere", "outside", "t000"], np.array([-1, -1, 0], np.int32)
    assert policy.may_name(household(None), ids, rows, NOW_MS).tolist() == [True, False, True]
    assert policy.may_name(household(21), ids, rows, NOW_MS).tolist()[:2] == [False, False]
    assert policy.may_name(household(None, hidden={0: NOW_MS + 1}), ids, rows, NOW_MS).tolist() == [True, False, False]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "synthetic.bundle"
    write_bundle(path, *sections_of(TITLES))
    return path


content_ids = st.sampled_from([f"t{row:03d}" for row in range(TITLES)] + ["outside-1", "outside-2"])
profiles = st.sampled_from(["household", "kid", "teen"])
contexts = st.builds(
    ViewContext,
    time_of_day=st.sampled_from(["morning", "afternoon", "evening", "night"]),
    day_of_week=st.integers(0, 6),
    recent_watches=st.lists(content_ids, max_size=5).map(tuple),
    mood_hint=st.none() | st.sampled_from(GENRES),
    profile=profiles,
)
steps = st.one_of(
    st.tuples(st.just("watch"), content_ids, profiles, st.floats(0, 1)),
    st.tuples(st.just("say"), content_ids, profiles, st.sampled_from(["like", "dislike", "not_now", "never"])),
    st.tuples(st.just("recommend"), contexts, st.integers(1, 100), st.none()),
    st.tuples(st.just("wait"), st.integers(0, 40 * DAY_MS), st.none(), st.none()),
    st.tuples(st.just("limit"), profiles, st.sampled_from([None, 0, 6, 12, 18]), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=25), contexts)
def test_no_call_ever_returns_what_policy_forbids(bundle: Path, sequence: list, last: ViewContext) -> None:
    """The oracle keeps its own books in plain dictionaries; rows, reasons and exports are held to them."""
    clock = [NOW_MS]
    limits: dict[str, int | None] = {"household": None, "kid": 6, "teen": 12}
    seen: dict[str, set[str]] = {name: set() for name in limits}
    hidden: dict[str, dict[str, int]] = {name: {} for name in limits}
    titles = {title.content_id: title for title in map(catalog_of(TITLES).title, range(TITLES))}

    def may_see(profile: str, content_id: str) -> bool:
        if hidden[profile].get(content_id, 0) > clock[0]:
            return False
        if limits[profile] is None:
            return True
        rating = titles[content_id].age_rating if content_id in titles else None
        return rating is not None and rating <= limits[profile]

    with tempfile.TemporaryDirectory() as storage:
        config = BrainConfig(storage_path=storage, catalog_path=bundle, background_maintenance=False)
        with OmegaBrain.open(config, clock=lambda: clock[0]) as brain:
            for name, limit in limits.items():
                brain.set_profile(Profile(name, name, limit))
            for what, first, second, third in [*sequence, ("recommend", last, 100, None)]:
                if what == "watch":
                    context = ViewContext("evening", 2, profile=second)
                    brain.observe(ViewingEvent(first, f"Name of {first}", third, 60, clock[0], context))
                    seen[second].add(first)
                elif what == "say":
                    brain.feedback(first, third, second, content_title=f"Name of {first}")
                    if third == "like":
                        hidden[second].pop(first, None)
                    else:
                        until = clock[0] + 14 * DAY_MS if third == "not_now" else MAX_TIMESTAMP_MS
                        hidden[second][first] = until
                elif what == "wait":
                    clock[0] += first
                elif what == "limit":
                    limits[first] = second
                    brain.set_profile(Profile(first, first, second))
                else:
                    profile = first.profile
                    for shown in brain.recommend(first, second):
                        title = titles[shown.content_id]
                        assert may_see(profile, shown.content_id)
                        assert shown.content_id not in seen[profile]
                        assert shown.content_id not in first.recent_watches
                        assert title.available_from <= clock[0] < title.available_until
                        for event in shown.events:
                            assert may_see(profile, event.content_id)
                    for viewing in brain.export(profile)["viewings"]:
                        assert may_see(profile, viewing["content_id"])
