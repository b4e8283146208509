"""What a new home is shown, what its picks do, and how the model job chooses the list."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cloud.onboarding import LISTED, PICKS, first_picks, onboarding_titles
from omega_edge.errors import ConfigError, StoreFullError
from omega_edge.protocol import Profile, ViewContext
from omega_edge.ranking import bucket_of
from tests.brains import bundle, listed, opened, viewing  # noqa: F401
from tests.synthetic import catalog_of
from tests.test_memory import small_disk  # noqa: F401


def world(homes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Homes that all finish most of titles 0 to 9, and each most of one block of ten of 20 to 59; 10 to 19 now and then."""
    random = np.random.default_rng(seed)
    taste = random.integers(0, 4, homes)
    chance = np.full((homes, 60), 0.02)
    chance[:, :10] = 0.9
    chance[:, 10:20] = 0.3
    for block in range(4):
        chance[taste == block, 20 + 10 * block : 30 + 10 * block] = 0.6
    household, title = np.nonzero(random.random((homes, 60)) < chance)
    order = random.permutation(len(title))
    return household[order], title[order]


def test_the_list_leads_with_titles_that_tell_tastes_apart() -> None:
    household, title = world(300, 1)
    chosen = onboarding_titles(household, title, 60)
    assert chosen.informative and chosen.gain[1] > 0
    blocks = {(row - 20) // 10 for row in chosen.rows[:8].tolist() if row >= 20}
    assert blocks == {0, 1, 2, 3}, "one of each taste among the first"
    assert not set(chosen.rows[:4].tolist()) & set(range(10)), "what everybody knows tells nothing"
    assert len(chosen.rows) == LISTED == len(set(chosen.rows.tolist()))


def test_without_tastes_the_popular_list_ships() -> None:
    random = np.random.default_rng(3)
    household, title = np.nonzero(random.random((300, 60)) < np.linspace(0.7, 0.1, 60))
    chosen = onboarding_titles(household, title, 60)
    counts = np.bincount(title, minlength=60)
    assert not chosen.informative
    assert chosen.rows.tolist() == np.argsort(-counts, kind="stable")[:LISTED].tolist()


def test_the_choice_does_not_depend_on_the_order_of_events_nor_on_repetitions() -> None:
    household, title = world(120, 5)
    # Homes with four titles, one of them watched over and over: not more finished, nor enough to foresee anything.
    household = np.concatenate((household, np.repeat(np.arange(120, 160), 4)))
    title = np.concatenate((title, np.tile([50, 51, 52, 59], 40)))
    chosen = onboarding_titles(household, title, 60)
    again = np.repeat(np.arange(len(title))[::-1], np.where(title[::-1] == 59, 9, 1))
    repeated = onboarding_titles(household[again], title[again], 60)
    np.testing.assert_array_equal(chosen.rows, repeated.rows)
    assert chosen.homes == repeated.homes == 120


def test_no_events_and_few_events_give_what_there_is() -> None:
    nothing = np.empty(0, np.int64)
    assert len(onboarding_titles(nothing, nothing, 60).rows) == 0
    few = onboarding_titles(np.array([0, 1, 2]), np.array([7, 7, 3]), 60)
    assert few.rows.tolist() == [7, 3] and not few.informative


def test_picks_are_the_first_shown_that_the_home_finished() -> None:
    finished = np.zeros(30, bool)
    finished[[2, 4, 6, 8, 10, 12]] = True
    assert first_picks(np.array([12, 1, 10, 8, 6, 4, 2]), finished).tolist() == [12, 10, 8, 6, 4]
    assert PICKS == 5


def test_offers_the_bundles_list_in_its_order_then_the_popular_ones(opened) -> None:  # noqa: F811
    catalog, brain = catalog_of(120), opened()
    offered = [int(title.content_id[1:]) for title in brain.onboarding(k=100)]
    may_see = [row for row in range(120) if not (row % 13 == 12 or row % 11 == 10)]
    first = [row for row in catalog.onboarding.tolist() if row in may_see]
    others = sorted((row for row in may_see if row not in first), key=lambda row: -catalog.popularity[row])
    assert offered == (first + others)[:100]
    assert len(brain.onboarding()) == 24


def test_offers_only_what_the_profile_may_see_and_has_not_spoken_of(opened) -> None:  # noqa: F811
    brain = opened()
    brain.set_profile(Profile("kid", "Kid", 6))
    assert all(title.age_rating is not None and title.age_rating <= 6 for title in brain.onboarding("kid", 100))
    before = [title.content_id for title in brain.onboarding(k=100)]
    brain.observe(viewing(int(before[0][1:])))
    brain.feedback(before[1], "dislike")
    brain.feedback(before[2], "like")
    brain.pick_favourites([before[3]])
    assert [title.content_id for title in brain.onboarding(k=96)] == before[4:100]
    with pytest.raises(ConfigError, match="may see"):
        brain.pick_favourites([next(title for title in before if title in unsuitable(brain))], "kid")


def unsuitable(brain) -> set[str]:
    catalog = brain._catalog
    return {catalog.content_id(row) for row in range(catalog.count) if catalog.age_ratings[row] > 6}


def test_picks_count_as_events_and_are_not_offered_again(opened) -> None:  # noqa: F811
    brain = opened()
    empty = listed(brain)
    picked = [title.content_id for title in brain.onboarding()[:5]]
    assert set(picked) & set(listed(brain, 100)), "before, the ranking offers some of them"
    brain.pick_favourites(picked)
    history = brain._views["household"].history
    assert history.count == 5 and bucket_of(history.count) == 2
    assert history.success.all() and not history.rejected.any()
    assert [f"t{row:03d}" for row in history.rows] == picked, "the first pick is the newest"
    assert not set(picked) & set(listed(brain, 100))
    assert listed(brain) != empty


def test_favourites_last_and_are_forgotten(opened) -> None:  # noqa: F811
    brain = opened()
    picked = [title.content_id for title in brain.onboarding()[:5]]
    brain.set_profile(Profile("ann", "Ann"))
    brain.pick_favourites(picked)
    brain.pick_favourites(picked[:2], "ann")
    exported = brain.export()
    brain.close()
    brain = opened()
    assert not set(picked) & set(listed(brain, 100))
    brain.forget(content_id=picked[0])
    assert picked[0] in listed(brain, 100) and not set(picked[1:]) & set(listed(brain, 100))
    brain.forget(profile="ann")
    assert brain.export()["states"]["favourites"] == {
        "picked": [{"profile": "household", "content_id": content_id} for content_id in picked[1:]]
    }
    restored = opened("elsewhere")
    restored.import_export(exported)
    context = ViewContext("evening", 2, profile="ann")
    assert picked[2] in listed(restored, 100, context) and picked[1] not in listed(restored, 100, context)


def test_favourites_outlive_a_killed_process_as_their_likes_do(opened, tmp_path) -> None:  # noqa: F811
    brain = opened()
    picked = [title.content_id for title in brain.onboarding()[:5]]
    brain.pick_favourites(picked)
    shutil.copytree(tmp_path / "store", tmp_path / "killed")  # what a killed process leaves
    after = opened("killed")
    assert after._views["household"].history.count == 5 and not set(picked) & set(listed(after, 100))


def test_a_title_called_as_a_profile_is_forgotten_alone(opened) -> None:  # noqa: F811
    brain = opened()
    brain.pick_favourites(["t003", "t004"])
    brain.forget(content_id="household")
    assert not {"t003", "t004"} & set(listed(brain, 100))


@pytest.mark.parametrize(
    "picked",
    [[], ["t000"] * 2, ["nowhere"], "t000", [f"t{row:03d}" for row in range(21)], None, {"t000", "t001"}],
)
def test_picks_that_are_none_are_refused_and_nothing_is_taken(opened, picked) -> None:  # noqa: F811
    brain = opened()
    with pytest.raises(ConfigError, match="favourites: expected"):
        brain.pick_favourites(picked)
    assert brain._views["household"].history.count == 0 and brain.export()["states"] == {}


def test_where_the_disk_is_full_no_favourite_is_taken(small_disk, opened) -> None:  # noqa: F811
    brain, ballast = opened(small_disk / "store"), small_disk / "ballast"
    brain.pick_favourites(["t000"])
    with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreFullError):
        for first in range(0, 100, 20):
            brain.pick_favourites([content_id for content_id in every_id() if content_id not in kept(brain)][:20])
    taken = kept(brain)
    assert brain._views["household"].history.count == len(taken)
    ballast.unlink()
    brain.flush()
    assert kept(brain) == taken


def every_id() -> list[str]:
    catalog = catalog_of(120)
    return [catalog.content_id(row) for row in range(120)]


def kept(brain) -> list[str]:
    return [each["content_id"] for each in brain._memory.get_state("favourites")["picked"]]
