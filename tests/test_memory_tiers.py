"""The three tiers: retrieval, skills, reasoning, their eviction, and the change log over them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omega_edge import changes as changes_module
from omega_edge.changes import Change, Tier
from omega_edge.errors import ConfigError, ProtocolError
from omega_edge.protocol import DEFAULT_PROFILE, Profile, TimeOfDay, TitleReference, ViewingPattern
from omega_edge.skills import JOIN_COSINE
from tests.households import (
    CLUSTERS,
    START_MS,
    Clock,
    code_of,
    content_id,
    event,
    look_up,
    open_memory,
    steps_of,
    take_step,
    title,
    unit,
)

HOME = DEFAULT_PROFILE
DAY, LATE = TimeOfDay.MORNING, TimeOfDay.EVENING


@pytest.fixture
def memory(tmp_path):
    with open_memory(tmp_path / "store", Clock()) as opened:
        yield opened


def cosine(left: int, right: int) -> float:
    (first, scale_first), (second, scale_second) = code_of(left), code_of(right)
    return float(np.dot(first.astype(np.int64), second.astype(np.int64))) * scale_first * scale_second


def pattern(number: int, updated: int = 0, rate: float = 0.8, samples: int = 10) -> ViewingPattern:
    references = (TitleReference(content_id(number), 1.0),)
    return ViewingPattern(number, rate, samples, START_MS, START_MS + updated, references=references)


def merge(memory, number: int, **fields) -> bool:
    return memory.merge_global_pattern(pattern(number, **fields), *code_of(number))


def shape(memory) -> list:
    """All that the tiers hold, without the versions."""
    exported = memory.export_records()
    tiers = [exported["episodes"], exported["skills"], exported["patterns"]]
    return [[{key: value for key, value in record.items() if key != "version"} for record in tier] for tier in tiers]


class TestRetrieve:
    @pytest.fixture
    def filled(self, memory):
        memory.set_profile(Profile("ada", "Ada"))
        for number in range(40):
            profile = "ada" if number % 5 == 0 else HOME
            memory.record(event(number, (number % 11) / 10, START_MS + number, profile))
        return memory

    @pytest.mark.parametrize(
        "filters",
        [
            {},
            {"minimum_reward": 0.65},
            {"successes_only": True},
            {"failures_only": True},
            {"since": START_MS + 10, "until": START_MS + 29},
            {"profile": "ada"},
            {"successes_only": True, "profile": HOME, "since": START_MS + 5, "minimum_reward": 0.9},
            {"minimum_reward": 1.1},
        ],
    )
    @pytest.mark.parametrize("k", [1, 4, 100])
    def test_it_is_the_nearest_of_those_that_pass(self, filled, filters, k):
        def passes(number):
            watched = (number % 11) / 10
            return (
                watched >= filters.get("minimum_reward", 0)
                and not (filters.get("successes_only") and watched < 0.7)
                and not (filters.get("failures_only") and watched >= 0.7)
                and filters.get("since", 0) <= START_MS + number <= filters.get("until", 1 << 62)
                and filters.get("profile") in (None, "ada" if number % 5 == 0 else HOME)
            )

        nearest = sorted((number for number in range(40) if passes(number)), key=lambda number: -cosine(13, number))
        found = filled.retrieve(unit(13), k, **filters)
        assert [item.episode.content_id for item in found] == [content_id(number) for number in nearest[:k]]
        for item, number in zip(found, nearest, strict=False):
            assert item.similarity == pytest.approx(cosine(13, number), abs=0.01)

    def test_contradicting_filters_are_refused(self, filled):
        with pytest.raises(ConfigError, match="at most one of successes_only and failures_only"):
            filled.retrieve(unit(1), 3, successes_only=True, failures_only=True)


class TestEviction:
    def test_the_newest_of_each_profile_stay_and_of_the_rest_the_most_telling(self, tmp_path):
        with open_memory(tmp_path, max_episodes=45, vector_lookup=lambda name, name_of_it: None) as memory:
            memory.set_profile(Profile("ada", "Ada"))
            for number in range(3):
                memory.record(event(number, 0.5, START_MS, "ada"))
            for number in range(60):
                memory.record(event(number % 40, (0.5, 1.0, 0.0)[number % 3], START_MS + 1 + number))
            kept = memory.episodes()
            assert len(kept) == 45
            # A window of 45 // 15 = 3 of each profile. Of the older, the lukewarm go first.
            assert sum(episode.profile == "ada" for episode in kept) == 3
            assert {63, 62, 61} <= {episode.sequence for episode in kept}
            lukewarm = [episode for episode in kept if episode.profile == HOME and 0.4 < episode.reward < 0.6]
            clear = [episode for episode in kept if episode.profile == HOME and episode not in lukewarm]
            assert len(clear) > 35 and len(lukewarm) <= 42 - len(clear)

    def test_value_is_as_documented(self, tmp_path):
        """The oracle holds all, and takes out the least valuable but the newest two whenever there is one too many."""
        rewards = np.random.default_rng(4).random(150).round(2)
        kept: dict[int, float] = {}
        with open_memory(tmp_path, max_episodes=30, vector_lookup=lambda name, _title: None) as memory:
            for sequence, reward in enumerate(rewards.tolist(), start=1):
                viewing = event(1, reward)
                memory.record(type(viewing)(f"once-{sequence}", "Once", reward, 60, START_MS, viewing.context))
                kept[sequence] = 0.5 * abs(2 * reward - 1) + 0.2 + 0.3 * sequence / 30
                if len(kept) > 30:
                    del kept[min(sorted(kept)[:-2], key=kept.get)]
            assert {episode.sequence for episode in memory.episodes()} == set(kept)

    def test_an_evicted_episode_is_never_retrieved_and_leaves_a_tombstone(self, tmp_path):
        with open_memory(tmp_path, max_episodes=15) as memory:
            for number in range(40):
                memory.record(event(number, 0.6, START_MS + number))
            kept = {episode.sequence for episode in memory.episodes()}
            assert len(kept) == 15
            assert {item.episode.sequence for item in memory.retrieve(unit(3), 100)} == kept
            gone = {
                change.key for change in memory.get_changes_since(0) if change.deleted and change.tier is Tier.EPISODES
            }
            assert gone == set(range(1, 41)) - kept


class TestSkills:
    def test_three_that_belong_together_become_one_and_failures_count(self, memory):
        for place, (number, watched) in enumerate(((1, 1.0), (9, 0.2), (2, 1.0), (17, 0.9))):
            assert memory.skills() == []
            memory.record(event(number, watched, START_MS + place))
        (skill,) = memory.skills()
        assert (skill.successes, skill.failures, skill.sample_count) == (2, 1, 3)
        assert skill.success_rate == pytest.approx(2 / 3) and skill.mean_reward == pytest.approx((1.0 + 0.2 + 0.9) / 3)
        assert skill.members == {content_id(number): 1.0 for number in (1, 9, 17)}
        assert {member.content_title for member in skill.titles.values()} == {title(number) for number in (1, 9, 17)}
        assert (skill.created_at, skill.updated_at) == (START_MS, START_MS + 3)
        assert [episode.skill_id for episode in memory.episodes()] == [1, 1, 0, 1]
        centroid = unit(1) + unit(9) + unit(17)
        cosine_to_mean = np.frombuffer(skill.code, np.int8) @ centroid * skill.scale / np.linalg.norm(centroid)
        assert cosine_to_mean > 0.999

    def test_one_title_watched_again_and_again_is_a_skill(self, memory):
        for _ in range(3):
            memory.record(event(1))
        assert [skill.members for skill in memory.skills()] == [{content_id(1): 3.0}]

    @pytest.mark.parametrize(
        ("times", "together"),
        [((DAY, TimeOfDay.AFTERNOON, DAY), True), ((LATE, TimeOfDay.NIGHT, LATE), True), ((DAY, LATE, DAY), False)],
    )
    def test_day_and_late_hours_are_apart(self, memory, times, together):
        for number, time in zip((1, 9, 17), times, strict=True):
            memory.record(event(number, time=time))
        assert bool(memory.skills()) == together

    def test_profiles_are_apart(self, memory):
        memory.set_profile(Profile("ada", "Ada"))
        for number, profile in ((1, HOME), (9, "ada"), (17, HOME), (25, "ada")):
            memory.record(event(number, profile=profile))
        assert memory.skills() == []

    def test_what_is_not_near_is_not_gathered(self, memory):
        for number in range(CLUSTERS):
            memory.record(event(number))
        assert memory.skills() == [] and max(cosine(0, number) for number in range(1, CLUSTERS)) < JOIN_COSINE

    def test_consolidating_again_changes_nothing(self, memory):
        for number in range(40):
            memory.record(event(number, 0.9, START_MS + number))
        version, exported = memory.local_version, memory.export_records()
        assert memory.consolidate() == 0 and memory.consolidate() == 0
        assert memory.local_version == version and memory.export_records() == exported

    @pytest.mark.parametrize("seed", range(3))
    def test_taken_in_one_by_one_or_all_at_once_or_after_a_crash_it_is_the_same(self, tmp_path, seed):
        steps = [step for step in steps_of(seed, 250) if step[0] in ("record", "feedback")]
        options = {"max_episodes": 90, "max_skills": 6, "checkpoint_events": 10_000}
        with open_memory(tmp_path / "batch", **options) as batch:
            for step in steps:
                take_step(batch, step)
            expected = batch.export_records()
        assert len(expected["skills"]) == 6 and len(expected["episodes"]) == 90
        with open_memory(tmp_path / "single", **options) as single:
            for step in steps:
                take_step(single, step)
                single.skills()
            assert single.export_records() == expected
        for place in range(0, len(steps), 20):
            crashing = open_memory(tmp_path / "crashing", **options)
            for step in steps[place : place + 20]:
                take_step(crashing, step)
            crashing.skills()
            crashing._keeper.store.close()  # as a killed process would leave it
        with open_memory(tmp_path / "crashing", **options) as crashed:
            found = shape(crashed)
        with open_memory(tmp_path / "batch", **options) as batch:
            assert found == shape(batch)

    def test_an_episode_without_a_vector_is_kept_and_consolidated_once_it_has_one(self, tmp_path):
        known = {}
        with open_memory(tmp_path, vector_lookup=lambda name, _title: known.get(name)) as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            assert memory.stats()["episodes_without_vector"] == 3 and memory.skills() == []
            assert memory.retrieve(unit(1), 5) == [] and memory.history(HOME, 1)[0].code is None
            known.update({content_id(number): look_up(content_id(number)) for number in (1, 9, 17)})
            assert memory.consolidate() == 3
            assert memory.stats()["episodes_without_vector"] == 0
        with open_memory(tmp_path, vector_lookup=lambda name, _title: None) as memory:
            assert memory.skills()[0].sample_count == 3 and len(memory.retrieve(unit(1), 5)) == 3

    def test_a_lookup_that_raises_costs_no_episode_and_counts_none_twice(self, tmp_path):
        failures = iter([True, False, True, False, True])

        def unreliable(name, _title):
            if next(failures, False):
                raise RuntimeError("no vector today")
            return code_of(int(name[2:]))

        with open_memory(tmp_path, vector_lookup=unreliable) as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            for _ in range(3):
                with pytest.raises(RuntimeError):
                    memory.skills()
            (skill,) = memory.skills()
            assert skill.sample_count == 3 and len(memory.episodes()) == 3

    def test_vectors_that_the_catalogue_has_are_not_stored(self, tmp_path):
        code = code_of(1)[0].tobytes()
        for name, catalogue_lookup, stored in (("with", look_up, False), ("without", None, True)):
            with open_memory(tmp_path / name, catalogue_lookup=catalogue_lookup) as memory:
                memory.record(event(1))
                memory.checkpoint()
            assert (code in (tmp_path / name / "memory.mdb").read_bytes()) == stored
            with open_memory(
                tmp_path / name, catalogue_lookup=catalogue_lookup, vector_lookup=lambda *_: None
            ) as memory:
                assert memory.retrieve(unit(1), 1)[0].similarity == pytest.approx(1.0, abs=0.001)

    def test_feedback_moves_the_counts_of_the_skill(self, memory):
        for number in (1, 9, 17):
            memory.record(event(number, 0.9))
        memory.feedback(HOME, content_id(9), title(9), "dislike", START_MS)
        (skill,) = memory.skills()
        assert (skill.successes, skill.failures) == (2, 1)
        assert skill.mean_reward == pytest.approx((0.9 + 0.9 + 0.7 * 0.9) / 3)
        memory.feedback(HOME, content_id(9), title(9), "like", START_MS)
        (skill,) = memory.skills()
        assert (skill.successes, skill.failures) == (3, 0)
        assert skill.mean_reward == pytest.approx((0.9 + 0.9 + 0.7 * 0.9 + 0.3) / 3)

    def test_rank_is_as_defined(self, memory):
        for number in range(40):
            memory.record(event(number, (number % 5) / 4, START_MS + number))
        ranked = memory.rank_skills(unit(3), 100)
        assert len(ranked) == len(memory.skills()) >= 5
        for item in ranked:
            skill = item.skill
            similarity = float(np.frombuffer(skill.code, np.int8) @ unit(3)) * skill.scale
            assert item.similarity == pytest.approx(similarity, abs=0.01)
            expected = 0.4 * item.similarity + 0.3 * skill.success_rate + 0.1 * skill.sample_count / 1000
            assert item.rank == pytest.approx(expected + 0.2 * skill.mean_reward)
        assert [item.rank for item in ranked] == sorted((item.rank for item in ranked), reverse=True)
        assert memory.rank_skills(unit(3), 2) == ranked[:2]

    def test_beyond_the_limit_the_least_valuable_goes_for_good(self, tmp_path):
        with open_memory(tmp_path, max_skills=2) as memory:
            # Clear and failing in clear ways, then lukewarm: two of cluster 3 fail, one succeeds.
            for cluster, watched in ((1, (1.0, 1.0, 1.0)), (2, (0.0, 0.0, 0.0)), (3, (0.6, 0.7, 0.5))):
                for place, share in enumerate(watched):
                    memory.record(event(cluster + CLUSTERS * place, share))
            assert [skill.skill_id for skill in memory.skills()] == [1, 2]
            tombstones = [
                change for change in memory.get_changes_since(0) if change.tier is Tier.SKILLS and change.deleted
            ]
            assert [change.key for change in tombstones] == [3]
            counted = [episode.skill_id for episode in memory.episodes()]
            assert counted == [1, 1, 1, 2, 2, 2, 3, 3, 3], "what was counted is not counted a second time"
            assert memory.consolidate() == 0
        with open_memory(tmp_path, max_skills=2) as memory:
            for place in range(3):
                memory.record(event(4 + CLUSTERS * place))
            assert {skill.skill_id for skill in memory.skills()} < {1, 2, 4}

    def test_shared_skills_are_the_twenty_best_founded_of_good_ones(self, tmp_path):
        """25 groups of one title each, watched 3 to 27 times; every fifth fails."""
        rng = np.random.default_rng(5)
        codes = {
            f"x{number}": np.rint(rng.normal(size=384) * 30).clip(-127, 127).astype(np.int8) for number in range(25)
        }
        scales = {name: float(1 / np.linalg.norm(code.astype(float))) for name, code in codes.items()}
        with open_memory(tmp_path, vector_lookup=lambda name, _title: (codes[name], scales[name])) as memory:
            for number in range(25):
                for _ in range(3 + number):
                    viewing = event(1, 0.3 if number % 5 == 0 else 1.0)
                    memory.record(
                        type(viewing)(f"x{number}", "X", viewing.watch_percentage, 60, START_MS, viewing.context)
                    )
            shared = memory.shared_skills()
            good = [number for number in range(24, -1, -1) if number % 5]
            assert [skill.members for skill in shared] == [{f"x{number}": float(3 + number)} for number in good[:20]]


class TestReasoning:
    def test_merging_is_idempotent_and_the_later_update_stands_in_any_order(self, tmp_path):
        versions = [pattern(1, updated=1), pattern(1, updated=2, rate=0.5), pattern(1, updated=2, rate=0.9), pattern(2)]
        found = []
        for place, order in enumerate(itertools.permutations(versions)):
            with open_memory(tmp_path / str(place)) as memory:
                for item in order:
                    memory.merge_global_pattern(item, *code_of(item.id))
                before = memory.local_version
                assert not any(memory.merge_global_pattern(item, *code_of(item.id)) for item in versions)
                assert memory.local_version == before
                found.append([(item.pattern_id, item.success_rate, item.updated_at) for item in memory.patterns()])
        assert found == [[(1, 0.9, START_MS + 2), (2, 0.8, START_MS)]] * 24

    def test_uplift_is_the_difference_of_real_outcomes_and_zero_until_both_are_known(self, tmp_path):
        with open_memory(tmp_path) as memory:
            merge(memory, 1)
            memory.record_outcome(1, True, 0.9, 30_000)
            memory.record_outcome(1, True, 0.5, 90_000)
            assert memory.patterns()[0].mean_uplift == 0.0
            memory.record_outcome(1, False, 0.4, 150_000)
            memory.record_outcome(99, True, 1.0, 1)
            assert memory.patterns()[0].mean_uplift == pytest.approx(0.7 - 0.4)
            assert memory.patterns()[0].mean_latency == pytest.approx(90_000 / 180_000)
            memory.record_outcome(1, False, 0.4, 86_400_000)
            assert memory.patterns()[0].mean_latency == 1.0
            merge(memory, 1, updated=5)
        with open_memory(tmp_path) as memory:
            (kept,) = memory.patterns()
            assert (kept.followed, kept.not_followed, kept.updated_at) == (2, 2, START_MS + 5)
            assert kept.mean_uplift == pytest.approx(0.7 - 0.4)

    def test_one_decision_is_one_record_however_many_patterns_spoke(self, tmp_path):
        with open_memory(tmp_path / "one") as one, open_memory(tmp_path / "many") as many:
            for memory in (one, many):
                for number in range(1, 31):
                    merge(memory, number)
            before = one.stats()["last_sequence"]
            recorded = one.record_outcomes([7, 3, 99], set(range(10, 31)), 0.8, 60_000)
            assert recorded.sequence == before + 1
            for number in (3, 7):
                many.record_outcome(number, True, 0.8, 60_000)
            for number in range(10, 31):
                many.record_outcome(number, False, 0.8, 60_000)
            assert one.patterns() == many.patterns()
            expected = one.patterns()
        with open_memory(tmp_path / "one") as one:
            assert [(item.followed, item.not_followed) for item in one.patterns()] == [
                (item.followed, item.not_followed) for item in expected
            ]

    @pytest.mark.parametrize(
        ("followed", "others", "reward", "latency_ms"),
        [([1], [1], 0.5, 1), ([1, 1], [], 0.5, 1), ([-1], [], 0.5, 1), ([1], [], 1.5, 1), ([1], [], 0.5, -1)],
    )
    def test_outcomes_are_checked(self, memory, followed, others, reward, latency_ms):
        with pytest.raises(ProtocolError):
            memory.record_outcomes(followed, others, reward, latency_ms)
        assert memory.stats()["last_sequence"] == 0

    def test_utility_is_as_defined(self, memory):
        for number in range(20):
            merge(memory, number)
            memory.record_outcome(number, True, (number % 7) / 6, 9000 * number)
            memory.record_outcome(number, False, (number % 3) / 2, 9000 * number)
        found = memory.recall_by_utility(unit(4), 100)
        assert len(found) == 20
        for item in found:
            number = item.pattern.pattern_id
            uplift = (number % 7) / 6 - (number % 3) / 2
            latency = min(9000 * number / 180_000, 1)
            assert item.utility == pytest.approx(0.7 * cosine(4, number) + 0.2 * uplift - 0.1 * latency, abs=0.01)
        assert [item.utility for item in found] == sorted((item.utility for item in found), reverse=True)
        assert memory.recall_by_utility(unit(4), 3) == found[:3]

    def test_beyond_the_limit_the_weakest_goes_and_a_weaker_one_is_not_taken(self, tmp_path):
        with open_memory(tmp_path, max_reasoning=3) as memory:
            for number, rate in ((1, 0.9), (2, 0.5), (3, 0.7)):
                assert merge(memory, number, rate=rate)
            assert not merge(memory, 4, rate=0.4)
            assert merge(memory, 5, rate=0.6)
            assert [item.pattern_id for item in memory.patterns()] == [1, 3, 5]
            assert not merge(memory, 2, rate=0.5)
            removed = [change.key for change in memory.get_changes_since(0) if change.deleted]
            assert removed == [2]
            assert merge(memory, 2, rate=1.0)
            alive = {(change.key, change.deleted) for change in memory.get_changes_since(0)}
            assert alive == {(1, False), (2, False), (3, False), (5, True)}
        with open_memory(tmp_path, max_reasoning=3) as memory:
            assert {(change.key, change.deleted) for change in memory.get_changes_since(0)} == alive

    def test_what_was_tried_here_outlives_what_was_not(self, tmp_path):
        with open_memory(tmp_path, max_reasoning=2) as memory:
            merge(memory, 1, rate=0.5)
            merge(memory, 2, rate=0.6)
            memory.record_outcome(1, True, 1.0, 1000)
            memory.record_outcome(1, False, 0.0, 1000)
            assert merge(memory, 3, rate=0.9)
            assert [item.pattern_id for item in memory.patterns()] == [1, 3]


class TestChanges:
    def test_only_what_changed_after_a_version_and_each_record_once(self, memory):
        memory.record(event(1))
        memory.record(event(9))
        first = memory.local_version
        assert memory.get_changes_since(0) == [Change(1, Tier.EPISODES, 1, False), Change(2, Tier.EPISODES, 2, False)]
        assert memory.get_changes_since(first) == []
        memory.record(event(17))
        found = memory.get_changes_since(first)
        assert sorted((change.tier.value, change.key) for change in found) == [
            ("episodes", 1), ("episodes", 2), ("episodes", 3), ("skills", 1)
        ]  # fmt: skip
        assert [change.version for change in found] == list(range(first + 1, memory.local_version + 1))
        merge(memory, 5)
        assert memory.get_changes_since(first + 4) == [Change(first + 5, Tier.REASONING, 5, False)]

    def test_the_oldest_tombstones_are_dropped_and_a_reader_from_before_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setattr(changes_module, "MAX_TOMBSTONES", 40)
        monkeypatch.setattr(changes_module, "_DROPPED_AT_ONCE", 10)
        with open_memory(tmp_path, max_episodes=15, checkpoint_events=5) as memory:
            for number in range(100):
                memory.record(event(number % CLUSTERS, 0.5, START_MS + number))
            memory.checkpoint()
            with pytest.raises(ConfigError, match="read everything from 0"):
                memory.get_changes_since(1)
            everything = memory.get_changes_since(0)
            kept = {change.key for change in everything if change.tier is Tier.EPISODES and not change.deleted}
            assert kept == {episode.sequence for episode in memory.episodes()}
            tombstones = [change for change in everything if change.deleted]
            assert 30 <= len(tombstones) <= 40
            assert memory.get_changes_since(tombstones[0].version - 1) == [
                change for change in everything if change.version >= tombstones[0].version
            ]
