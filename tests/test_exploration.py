"""Exploration: one position now and then, with known chances, logged; and what an estimate makes of the log."""

from __future__ import annotations

import subprocess
from collections import Counter
from random import Random

import numpy as np
import pytest

from cloud.off_policy import estimate
from omega_edge.brain import OmegaBrain
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError, ProtocolError, StoreFullError
from omega_edge.exploration import LISTS_KEPT, NEVER_EXPLORED, draw
from omega_edge.protocol import Profile, ViewContext
from omega_edge.second_stage import CANDIDATES
from tests.brains import EVENING, Clock, bundle, listed, opened, viewing, watch  # noqa: F401
from tests.synthetic import NOW_MS
from tests.test_memory import small_disk  # noqa: F401

HOUR_MS = 3_600_000


def test_chances_of_every_title_at_every_position_are_those_stated() -> None:
    random, counts, lists = Random(5), Counter(), 60_000
    for _ in range(lists):
        drawn = draw(12, 6, 0.2, random)
        assert drawn.chosen[:NEVER_EXPLORED] == [0, 1, 2] and drawn.propensity[:NEVER_EXPLORED] == [1.0] * 3
        assert len(set(drawn.chosen)) == 6
        counts.update(zip(range(6), drawn.chosen, drawn.propensity, strict=True))
    for (position, candidate, propensity), count in counts.items():
        # Of 60,000 Bernoulli trials: five standard deviations.
        assert abs(count - lists * propensity) <= 5 * (lists * propensity * (1 - propensity)) ** 0.5, (position, candidate)
    own = [propensity for (position, candidate, propensity) in counts if position == candidate]
    other = [propensity for (position, candidate, propensity) in counts if position != candidate]
    assert own == pytest.approx([1, 1, 1] + [1 - 0.2 / 3] * 3) and other == pytest.approx([0.2 / 18] * 18)


@pytest.mark.parametrize(("candidates", "k"), [(100, 3), (100, 1), (20, 20), (5, 20), (0, 20), (3, 3)])
def test_where_nothing_can_be_otherwise_the_list_is_the_rankings(candidates: int, k: int) -> None:
    for seed in range(50):
        drawn = draw(candidates, k, 0.2, Random(seed))
        assert drawn.chosen == list(range(min(k, candidates))) and set(drawn.propensity) <= {1.0}


def test_an_explored_title_is_allowed_and_from_the_hundred_best(opened) -> None:  # noqa: F811
    brain, plain = opened(exploration=0.2), opened("plain")
    for each in (brain, plain):
        watch(each, [1, 2, 5, 8])
        each.feedback("t020", "never")
    best, own = set(listed(plain, 100)), listed(plain, 10)
    changed = 0
    for _ in range(300):
        told = brain.recommend(EVENING, 10)
        found = [shown.content_id for shown in told]
        different = [place for place in range(10) if found[place] != own[place]]
        assert len(different) <= 1 and len(set(found)) == 10
        for place in different:
            assert place >= 3 and found[place] in best - set(own)
            assert told[place].propensity == pytest.approx(0.2 / (7 * (len(best) - 10)))
            changed += 1
        assert all(
            shown.propensity == pytest.approx(1.0 if place < 3 else 1 - 0.2 / 7)
            for place, shown in enumerate(told)
            if place not in different
        )
    assert 30 <= changed <= 95, "60 expected of 300 at 0.2; 5 standard deviations are 35"


def test_off_by_default_and_never_for_a_profile_with_an_age_limit(opened) -> None:  # noqa: F811
    brain = opened()
    assert all(shown.propensity is None for shown in brain.recommend(EVENING, 20)) and brain.exposures() == []
    other = opened("other", exploration=0.2)
    other.set_profile(Profile("kid", "Kid", 12))
    kid = ViewContext("evening", 2, profile="kid")
    lists = [tuple(listed(other, 10, kid)) for _ in range(60)]
    assert len(set(lists)) == 1 and other.exposures() == []
    assert all(shown.propensity is None for shown in other.recommend(kid, 10))


@pytest.mark.parametrize("value", [-0.01, 0.21, 1, True, "0.1", float("nan"), None])
def test_chance_is_bounded(value: object) -> None:
    with pytest.raises(ConfigError, match="exploration: expected a number from 0 to 0.2"):
        BrainConfig(storage_path="a", catalog_path="b", exploration=value)


def test_slots_are_joined_with_what_was_watched_within_six_hours(opened) -> None:  # noqa: F811
    clock = Clock()
    brain = opened(clock=clock, exploration=0.1)
    first = brain.recommend(EVENING, 8)
    rows = [int(shown.content_id[1:]) for shown in first]
    brain.observe(viewing_at(rows[4], 0.8, clock.now_ms + HOUR_MS))
    brain.observe(viewing_at(rows[5], 0.9, clock.now_ms + 7 * HOUR_MS))
    brain.observe(viewing_at(rows[6], 0.9, clock.now_ms - 1))
    brain.observe(viewing_at(rows[0], 0.9, clock.now_ms + HOUR_MS))
    exposures = brain.exposures()
    assert [each.position for each in exposures] == [4, 5, 6, 7, 8]
    assert [each.content_id for each in exposures] == [f"t{row:03d}" for row in rows[3:]]
    assert [each.propensity for each in exposures] == [shown.propensity for shown in first[3:]]
    assert [each.reward for each in exposures] == [0, 0.8, 0, 0, 0]
    assert {each.shown_at for each in exposures} == {NOW_MS}


def viewing_at(row: int, watched: float, at_ms: int):
    return viewing(row, watched, (at_ms - NOW_MS) // 60_000 + 24 * 60)


def test_the_log_is_bounded_lasts_is_exported_and_forgotten(opened) -> None:  # noqa: F811
    clock = Clock()
    brain = opened(clock=clock, exploration=0.2)
    brain.set_profile(Profile("ann", "Ann"))
    for minute in range(LISTS_KEPT + 5):
        clock.now_ms = NOW_MS + minute * 60_000
        brain.recommend(EVENING, 20)
    brain.recommend(ViewContext("evening", 2, profile="ann"), 20)
    kept = brain.exposures()
    assert len(kept) == LISTS_KEPT * 17 and kept[0].shown_at == NOW_MS + 6 * 60_000
    exported = brain.export()
    brain.close()
    brain = opened(clock=clock, exploration=0.2)
    assert brain.exposures() == kept
    gone = kept[0].content_id
    brain.forget(content_id=gone)
    assert brain.exposures() == [each for each in kept if each.content_id != gone]
    brain.forget(profile="ann")
    assert {each.profile for each in brain.exposures()} == {"household"}
    restored = opened("elsewhere", clock=clock)
    restored.import_export(exported)
    assert restored.exposures() == kept
    brain.forget(everything=True)
    assert brain.exposures() == []


def test_a_list_whose_only_logged_title_is_forgotten_goes_with_it(opened) -> None:  # noqa: F811
    """What is left has no chances to tell: writing it with the next list failed, and so did closing."""
    brain = opened(exploration=0.2)
    brain.forget(content_id=brain.recommend(EVENING, 4)[3].content_id)
    assert brain.exposures() == []
    brain.recommend(EVENING, 6)
    brain.close()
    assert [each.position for each in opened(exploration=0.2).exposures()] == [4, 5, 6]


def test_lists_of_a_profile_that_is_no_more_are_not_told(opened) -> None:  # noqa: F811
    brain, other = opened(exploration=0.2), opened("other")
    brain.recommend(EVENING, 5)
    exported = brain.export()
    (shown,) = exported["states"]["exploration"]["lists"]
    other.import_export({**exported, "states": {"exploration": {"lists": [{**shown, "profile": "gone"}, shown]}}})
    assert other.exposures() == brain.exposures() != []


def test_a_read_only_disk_takes_no_list_and_breaks_nothing(small_disk, opened) -> None:  # noqa: F811
    opened(small_disk / "store").close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    brain = opened(small_disk / "store", exploration=0.2)
    assert len(brain.recommend(EVENING, 5)) == 5
    brain.maintain()
    brain.flush()
    assert brain.export()["states"] == {} and len(brain.exposures()) == 2
    assert any(fault.startswith("favourites and explored lists: ") for fault in brain.stats()["degraded"])
    brain.close()


def test_viewings_last_on_a_full_disk_that_takes_no_list(small_disk, opened) -> None:  # noqa: F811
    brain, ballast = opened(small_disk / "store", exploration=0.2), small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    brain.observe(viewing(1))
    brain._memory.set_state("beside", {"text": "x" * 400_000})
    brain.recommend(EVENING, 20)
    with pytest.raises(StoreFullError):
        brain.flush()
    assert brain.stats()["memory"]["unsynced_records"] == 0
    ballast.unlink()


@pytest.mark.parametrize(
    "state",
    [
        {"lists": [{"profile": "household", "at": 1, "base": 0.0, "slots": []}]},
        {"lists": [{"profile": "household", "at": 1, "base": 0.5, "slots": [[3, "t001"]]}]},
        {"lists": [{"profile": "household", "at": 1, "base": 0.5, "slots": [[4, "t001", 2]]}]},
        {"lists": [{"profile": "household", "at": -1, "base": 0.5, "slots": []}]},
        {"lists": [{"profile": "household", "at": 1, "base": 0.5}]},
        {"lists": [7]},
        {"lists": [{"profile": "household", "at": 1, "base": 0.5, "slots": []}] * (LISTS_KEPT + 1)},
        {},
    ],
)
def test_a_state_that_cannot_be_read_is_refused(opened, state: dict) -> None:  # noqa: F811
    brain = opened()
    exported = brain.export()
    with pytest.raises(ProtocolError, match="exploration state"):
        brain.import_export({**exported, "states": {"exploration": state}})


# Evaluating another policy ------------------------------------------------------------------------


class Viewers:
    """Simulated: they watch the title at a row and a position with a chance that depends on both."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.appeal = np.random.default_rng(99).random(120)

    def chance(self, row: int, position: int) -> float:
        return self.appeal[row] * 0.9**position

    def watches(self, row: int, position: int) -> float:
        return float(self._random.random() < self.chance(row, position))


K = 8


def simulate(brain: OmegaBrain, lists: int, seed: int) -> dict[str, np.ndarray]:
    """Slots of real lists with what simulated viewers watched of them: list, position, row, propensity, reward."""
    viewers, slots = Viewers(seed), []
    for number in range(lists):
        for position, shown in enumerate(brain.recommend(EVENING, K)):
            if position >= 3:
                row = int(shown.content_id[1:])
                slots.append((number, position, row, shown.propensity, viewers.watches(row, position)))
    names = ("list", "position", "row", "propensity", "reward")
    return {name: np.array(values) for name, values in zip(names, zip(*slots, strict=True), strict=True)}


def truths_and_targets(brain: OmegaBrain, plain: OmegaBrain) -> dict[str, np.ndarray]:
    """By policy, float64[positions, titles]: the chance that it shows each title at each position from the fourth on."""
    every = [int(content_id[1:]) for content_id in listed(plain, CANDIDATES)]
    own, spare = every[:K], every[K:]
    targets = {name: np.zeros((K, 120)) for name in ("no exploration", "spare titles", "half and half")}
    for position in range(3, K):
        targets["no exploration"][position, own[position]] = 1.0
        targets["spare titles"][position, spare] = 1.0 / len(spare)
        targets["half and half"][position, own[position]] = 0.5
        targets["half and half"][position, spare[:10]] = 0.05
    return targets


def test_estimates_of_other_policies_agree_with_their_known_worth(tmp_path, bundle) -> None:  # noqa: F811
    def open_brain(name: str, exploration: float, seed: int = 0) -> OmegaBrain:
        config = BrainConfig(tmp_path / name, bundle, exploration=exploration, background_maintenance=False)
        return OmegaBrain.open(config, Clock(), Random(seed))

    viewers = Viewers(0)
    with open_brain("on", 0.2, 11) as brain, open_brain("off", 0.0) as plain:
        watch(brain, [1, 2, 5, 8])
        watch(plain, [1, 2, 5, 8])
        targets = truths_and_targets(brain, plain)
        runs = [simulate(brain, 250, seed) for seed in range(24)]
    worth = np.array([[viewers.chance(row, position) for row in range(120)] for position in range(K)])
    for name, target in targets.items():
        truth = float((target * worth)[3:].sum() / (K - 3))
        found = [
            estimate(run["reward"], run["propensity"], target[run["position"], run["row"]], run["list"], resamples=300)
            for run in runs
        ]
        values = np.array([each.ips[0] for each in found])
        spread = values.std(ddof=1) / len(values) ** 0.5
        assert abs(values.mean() - truth) <= 3 * spread, f"{name}: unbiased, {values.mean():.3f} for {truth:.3f}"
        normalised = np.array([each.self_normalised[0] for each in found])
        assert abs(normalised.mean() - truth) <= 3 * normalised.std(ddof=1) / len(values) ** 0.5 + 0.01, name
        assert normalised.std() <= values.std(), f"{name}: less spread"
        together = {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
        together["list"] = np.repeat(np.arange(24 * 250), K - 3)
        every = estimate(
            together["reward"], together["propensity"], target[together["position"], together["row"]], together["list"]
        )
        for value, low, high in (every.ips, every.self_normalised):
            # Six intervals are looked at, so each as wide as one of 99.9 %: 3.3 standard errors instead of 1.96.
            assert value - 1.7 * (value - low) <= truth <= value + 1.7 * (high - value), name
        covered = sum(each.ips[1] <= truth <= each.ips[2] for each in found)
        assert covered >= 18, f"{name}: {covered} of 24 intervals of 95 % hold the truth"
        assert every.slots == 24 * 250 * 5 and every.effective_slots < every.slots


def test_the_plain_mean_of_rewards_is_not_the_worth_of_another_policy() -> None:
    """What the weights are for: nine slots of ten show a title that nobody watches."""
    reward, propensity = np.array([0.0] * 9 + [1.0]), np.array([0.9] * 9 + [0.1])
    found = estimate(reward, propensity, np.array([0.0] * 9 + [1.0]), np.arange(10))
    assert found.ips[0] == pytest.approx(1.0) and found.self_normalised[0] == pytest.approx(1.0)
    assert found.effective_slots == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("propensity", "target"), [([0.0, 0.5], [1, 1]), ([1.5, 0.5], [1, 1]), ([0.5, 0.5], [0, 0]), ([0.5, 0.5], [-1, 1])]
)
def test_impossible_chances_are_refused(propensity: list, target: list) -> None:
    with pytest.raises(ConfigError, match="expected"):
        estimate(np.ones(2), np.array(propensity), np.array(target), np.arange(2))
