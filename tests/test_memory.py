"""AgentMemory from outside: what it answers, when it is durable, and what it does on bad disks."""

from __future__ import annotations

import errno
import os
import subprocess
import threading

import pytest

from omega_edge.errors import ConfigError, ProtocolError, StoreError, StoreFullError, StoreReadOnlyError
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    FeedbackKind,
    FinishedTitle,
    Profile,
    TimeOfDay,
    TitleReference,
    ViewingPattern,
)
from omega_edge.store import DATABASE_NAME
from tests.households import SNOOZE_MS, START_MS, Clock, code_of, content_id, event, open_memory, title, unit

HOME = DEFAULT_PROFILE


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def memory(tmp_path, clock):
    with open_memory(tmp_path / "store", clock) as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def like(memory, number, at_ms=START_MS):
    return memory.feedback(HOME, content_id(number), title(number), "like", at_ms)


class TestEpisodes:
    @pytest.mark.parametrize(
        ("watched", "reward", "success"),
        [(0.0, 0.0, False), (0.5, 0.5, False), (0.69, 0.69, False), (0.7, 0.7, True), (1.0, 1.0, True)],
    )
    def test_a_plain_viewing_is_rewarded_by_what_was_watched(self, memory, watched, reward, success):
        memory.record(event(1, watched, START_MS + 5, time=TimeOfDay.NIGHT, day=6))
        item = memory.history(HOME, 10)[0]
        assert item.reward == pytest.approx(reward) and item.success is success
        assert (item.content_id, item.content_title, item.timestamp) == (content_id(1), title(1), START_MS + 5)
        assert (item.watch_percentage, item.kind) == (watched, "watched")
        assert (item.time_of_day, item.day_of_week) == (TimeOfDay.NIGHT, 6)
        assert (item.code == code_of(1)[0]).all() and item.scale == code_of(1)[1]

    def test_watching_again_what_was_finished_is_engagement_and_resuming_is_not(self, memory):
        for watched in (0.4, 0.9, 0.2):
            memory.record(event(1, watched))
        rewards = [item.reward for item in memory.history(HOME, 3)]
        assert rewards == pytest.approx([0.7 * 0.2 + 0.3 * 1, 0.9, 0.4])

    @pytest.mark.parametrize(
        ("kind", "reward", "success", "shown"),
        [
            ("like", 0.7 * 0.8 + 0.3, True, "liked"),
            ("dislike", 0.7 * 0.8, False, "disliked"),
            ("never", 0.7 * 0.8, False, "disliked"),
            ("not_now", 0.8, True, "watched"),
        ],
    )
    def test_feedback_changes_the_newest_episode_of_the_title(self, memory, kind, reward, success, shown):
        memory.record(event(1, 0.8))
        memory.record(event(2, 0.8))
        memory.feedback(HOME, content_id(1), title(1), kind, START_MS)
        newest, item = memory.history(HOME, 5)
        assert item.reward == pytest.approx(reward) and item.success is success and item.kind == shown
        assert newest.reward == pytest.approx(0.8)
        assert memory.event_count(HOME) == 2

    def test_feedback_on_a_title_not_watched_is_an_episode_of_its_own(self, memory):
        like(memory, 3)
        memory.feedback(HOME, content_id(4), title(4), FeedbackKind.NEVER, START_MS)
        never, liked = memory.history(HOME, 5)
        assert (liked.kind, liked.reward, liked.success, liked.watch_percentage) == ("liked", 1.0, True, 0.0)
        assert (never.kind, never.reward, never.success) == ("disliked", 0.0, False)
        assert memory.event_count(HOME) == 2 and dict(memory.seen(HOME)) == {}

    @pytest.mark.parametrize(
        ("watched", "kind", "critique"),
        [
            (0.1, None, "abandoned early, at 10%"),
            (0.4, None, "abandoned halfway, at 40%"),
            (0.6, None, "abandoned late, at 60%"),
            (0.9, None, ""),
            (0.9, "dislike", "disliked after 90%"),
            (None, "never", "disliked"),
        ],
    )
    def test_the_critique_says_why_it_failed(self, memory, watched, kind, critique):
        if watched is not None:
            memory.record(event(1, watched))
        if kind is not None:
            memory.feedback(HOME, content_id(1), title(1), kind, START_MS)
        assert [episode.critique for episode in memory.episodes()] == [critique]

    def test_order_is_that_of_recording_whatever_the_clock_said(self, memory):
        for number, at_ms in enumerate((START_MS, 0, START_MS + 10, 5)):
            memory.record(event(number, 1.0, at_ms))
        assert [item.content_id for item in memory.history(HOME, 9)] == [content_id(number) for number in (3, 2, 1, 0)]

    def test_history_goes_back_beyond_what_is_held_ready(self, memory):
        for number in range(100):
            memory.record(event(number % 40, 1.0, START_MS + number))
        assert [item.timestamp - START_MS for item in memory.history(HOME, 1000)] == list(range(99, -1, -1))
        assert len(memory.history(HOME, 7)) == 7 and memory.history(HOME, 0) == []


class TestSeenAndHidden:
    def test_seen_keeps_the_last_time_for_each_profile_apart(self, memory):
        memory.set_profile(Profile("ada", "Ada"))
        memory.record(event(1, 0.1, START_MS + 1))
        memory.record(event(1, 1.0, START_MS + 9))
        memory.record(event(2, 1.0, START_MS + 3, profile="ada"))
        assert dict(memory.seen(HOME)) == {content_id(1): START_MS + 9}
        assert dict(memory.seen("ada")) == {content_id(2): START_MS + 3}

    def test_what_hides_and_for_how_long(self, memory):
        for number, kind in enumerate(FeedbackKind):
            memory.feedback(HOME, content_id(number), title(number), kind, START_MS + number)
        kinds = list(FeedbackKind)
        assert dict(memory.hidden(HOME)) == {
            content_id(kinds.index(FeedbackKind.DISLIKE)): (FeedbackKind.DISLIKE, None),
            content_id(kinds.index(FeedbackKind.NEVER)): (FeedbackKind.NEVER, None),
            content_id(2): (FeedbackKind.NOT_NOW, START_MS + 2 + SNOOZE_MS),
        }

    def test_not_now_does_not_shorten_never_and_like_shows_again(self, memory):
        memory.feedback(HOME, content_id(1), title(1), "never", START_MS)
        memory.feedback(HOME, content_id(1), title(1), "not now", START_MS)
        assert memory.hidden(HOME)[content_id(1)] == (FeedbackKind.NEVER, None)
        like(memory, 1)
        assert dict(memory.hidden(HOME)) == {}

    def test_both_outlive_every_episode(self, tmp_path, clock):
        with open_memory(tmp_path, clock, max_episodes=30) as memory:
            memory.feedback(HOME, content_id(39), title(39), "never", START_MS)
            for number in range(39):
                memory.record(event(number))
            assert len(memory.episodes()) == 30
        with open_memory(tmp_path, clock, max_episodes=30) as memory:
            assert len(memory.seen(HOME)) == 39 and memory.event_count(HOME) == 40
            assert memory.hidden(HOME)[content_id(39)] == (FeedbackKind.NEVER, None)


class TestProfiles:
    def test_the_default_profile_is_there_and_others_are_added_or_changed(self, tmp_path):
        with open_memory(tmp_path) as memory:
            assert [profile.id for profile in memory.profiles()] == [HOME]
            memory.set_profile(Profile("kid", "Kid", 6))
            memory.set_profile(Profile("ada", "Ada"))
            memory.set_profile(Profile("kid", "Child", 12))
        with open_memory(tmp_path) as memory:
            assert memory.profiles()[1:] == (Profile("kid", "Child", 12), Profile("ada", "Ada"))

    def test_an_unknown_profile_is_an_error_and_nothing_is_recorded(self, memory):
        for call in (
            lambda: memory.record(event(1, profile="ada")),
            lambda: memory.feedback("ada", content_id(1), title(1), "like", START_MS),
            lambda: memory.history("ada", 5),
            lambda: memory.seen("ada"),
            lambda: memory.hidden("ada"),
            lambda: memory.event_count("ada"),
            lambda: memory.forget(profile="ada"),
            lambda: memory.retrieve(unit(1), 3, profile="ada"),
        ):
            with pytest.raises(ConfigError, match="expected one of household, got 'ada'; set_profile adds one"):
                call()
        assert memory.stats()["last_sequence"] == 0

    def test_there_are_at_most_fifteen(self, memory):
        for number in range(14):
            memory.set_profile(Profile(f"p{number}", "P"))
        with pytest.raises(ConfigError, match="at most 15 profiles"):
            memory.set_profile(Profile("one-more", "P"))

    def test_a_profile_whose_record_is_lost_comes_back_restricted(self, tmp_path):
        with open_memory(tmp_path) as memory:
            memory.set_profile(Profile("kid", "Kid", 6))
            memory.record(event(1, profile="kid"))
            memory.checkpoint()
            memory._keeper.store.write([("profiles", b"kid", None)])
        with open_memory(tmp_path) as memory:
            assert memory.profiles()[1] == Profile("kid", "kid", max_age_rating=0)
            assert dict(memory.seen("kid")) == {content_id(1): START_MS}
            assert any("profile kid" in fault for fault in memory.stats()["degraded"])


class TestDurability:
    @pytest.fixture
    def syncs(self, monkeypatch):
        """The calls of fdatasync, which are let through."""
        called, real = [], os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda descriptor: (called.append(descriptor), real(descriptor)))
        return called

    def test_without_a_window_each_record_is_synced_before_record_returns(self, tmp_path, clock, syncs):
        with open_memory(tmp_path, clock, durability_window_secs=0) as memory:
            for number in range(3):
                recorded = memory.record(event(number))
                assert recorded.durable and recorded.sequence == number + 1
                assert len(syncs) == number + 1

    def test_within_the_window_nothing_is_synced_and_after_it_all_is(self, memory, clock, syncs):
        assert not memory.record(event(1)).durable
        clock.now_ms += 299_999
        assert not memory.record(event(2)).durable
        memory.maintain()
        assert syncs == [] and memory.stats()["unsynced_records"] == 2
        clock.now_ms += 1
        memory.maintain()
        assert len(syncs) == 1 and memory.stats()["unsynced_records"] == 0
        clock.now_ms += 300_000
        memory.maintain()
        assert len(syncs) == 1, "there was nothing to sync"
        assert not memory.record(event(3)).durable
        clock.now_ms += 300_000
        assert memory.record(event(4)).durable and len(syncs) == 2

    def test_flush_makes_all_durable(self, memory, syncs):
        memory.record(event(1))
        memory.flush()
        memory.flush()
        assert len(syncs) == 1 and memory.stats()["unsynced_records"] == 0

    @pytest.mark.parametrize("jump_ms", [-1, -86_400_000, -START_MS, 10 * 365 * 86_400_000])
    def test_a_clock_that_jumps_syncs_at_once_and_breaks_nothing(self, memory, clock, syncs, jump_ms):
        memory.record(event(1))
        clock.now_ms += jump_ms
        memory.maintain()
        assert len(syncs) == 1
        assert not memory.record(event(2)).durable
        clock.now_ms += 300_000
        memory.maintain()
        assert len(syncs) == 2

    def test_a_checkpoint_comes_with_enough_events_and_readers_write_no_database(self, tmp_path, clock):
        with open_memory(tmp_path, clock, checkpoint_events=10) as memory:
            memory.checkpoint()
            before = (tmp_path / DATABASE_NAME).read_bytes()
            for number in range(9):
                memory.record(event(number))
                memory.retrieve(unit(1), 5)
                memory.rank_skills(unit(1), 5)
                assert memory.get_changes_since(0) and memory.shared_skills() == []
            assert memory.stats()["pending_records"] == 9
            assert (tmp_path / DATABASE_NAME).read_bytes() == before
            memory.record(event(9))
            assert memory.stats()["pending_records"] == 0
            assert (tmp_path / DATABASE_NAME).read_bytes() != before

    def test_closing_syncs_the_journal_and_writes_no_database(self, tmp_path, clock, syncs):
        with open_memory(tmp_path, clock) as memory:
            memory.record(event(0))
            memory.checkpoint()
            before, called = (tmp_path / DATABASE_NAME).read_bytes(), len(syncs)
            for number in range(1, 10):
                memory.record(event(number, 1.0, START_MS + number))
        assert len(syncs) == called + 1 and (tmp_path / DATABASE_NAME).read_bytes() == before
        with open_memory(tmp_path, clock, checkpoint_events=12) as memory:
            assert memory.event_count(HOME) == 10 and memory.stats()["pending_records"] == 9
            for number in range(10, 13):
                memory.record(event(number))
            assert memory.stats()["pending_records"] == 0, "events of former sessions count towards the checkpoint"

    def test_a_sync_that_fails_is_told_and_mended(self, memory, clock, monkeypatch):
        def failing(_descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", failing)
            memory.record(event(1))
            clock.now_ms += 400_000
            recorded = memory.record(event(2))
            assert not recorded.durable and memory.event_count(HOME) == 2
            assert any("journal" in fault for fault in memory.stats()["degraded"])
            with pytest.raises(StoreError, match="Input/output error"):
                memory.flush()
        memory.flush()
        assert memory.stats()["unsynced_records"] == 0 and memory.stats()["degraded"] == []

    def test_events_of_many_threads_are_all_there_once(self, tmp_path):
        with open_memory(tmp_path, checkpoint_events=20) as memory:
            sequences: list[int] = []

            def work(thread):
                for number in range(40):
                    sequences.append(memory.record(event(number, 1.0, START_MS + 1000 * thread + number)).sequence)
                    memory.history(HOME, 65)
                    memory.get_changes_since(0)

            threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(sequences) == list(range(1, 161))
        with open_memory(tmp_path) as memory:
            stamps = sorted(item.timestamp - START_MS for item in memory.history(HOME, 1000))
            assert stamps == [1000 * thread + number for thread in range(4) for number in range(40)]

    def test_a_closed_memory_says_so(self, tmp_path):
        memory = open_memory(tmp_path)
        memory.close()
        memory.close()
        for call in (lambda: memory.record(event(1)), memory.flush, memory.stats, memory.maintain, memory.profiles):
            with pytest.raises(StoreError, match="closed"):
                call()


class TestBadDisks:
    def test_a_full_disk_fills_the_journal_then_refuses_and_readers_go_on(self, small_disk, clock):
        folder, ballast = small_disk / "store", small_disk / "ballast"
        with open_memory(folder, clock, checkpoint_events=50) as memory:
            for number in range(60):
                memory.record(event(number % 40))
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(4096))
            taken = 60
            with pytest.raises(StoreFullError):
                while True:
                    memory.record(event(taken % 40, 0.9, START_MS + taken))
                    taken += 1
            assert taken > 2000, "the journal was allocated before the disk was full"
            assert memory.event_count(HOME) == taken
            assert memory.history(HOME, 1)[0].timestamp == START_MS + taken - 1
            assert memory.retrieve(unit(3), 3, successes_only=True) and memory.rank_skills(unit(3), 1)
            assert any(fault.startswith("checkpoint:") for fault in memory.stats()["degraded"])
            with pytest.raises(StoreFullError):
                memory.forget(content_id=content_id(3))
            assert content_id(3) in memory.seen(HOME) and memory.event_count(HOME) == taken
            ballast.unlink()
            assert memory.record(event(1, 0.9, START_MS + taken)).sequence == taken + 1
            memory.checkpoint()
            assert memory.stats()["degraded"] == []
        with open_memory(folder, clock) as memory:
            assert memory.event_count(HOME) == taken + 1

    def test_what_a_full_disk_left_in_the_journal_is_there_at_the_next_open(self, small_disk, clock):
        folder, ballast = small_disk / "store", small_disk / "ballast"
        with open_memory(folder, clock) as memory:
            for number in range(1000):
                memory.record(event(number % 40, 0.9, START_MS + number))
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(4096))
        with open_memory(folder, clock) as memory:
            assert memory.event_count(HOME) == 1000
            ballast.unlink()

    def test_a_read_only_file_system_is_read_with_what_the_journal_holds(self, small_disk, clock):
        folder = small_disk / "store"
        memory = open_memory(folder, clock)
        for number in range(12):
            memory.record(event(number * 8, 1.0, START_MS + number))
        memory.checkpoint()
        memory.record(event(1, 0.2))
        memory._keeper.store.close()  # as a killed process would leave it
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with open_memory(folder, clock) as reader:
            assert reader.event_count(HOME) == 13 and reader.history(HOME, 1)[0].content_id == content_id(1)
            assert reader.retrieve(unit(1), 1)[0].episode.content_id == content_id(1)
            assert reader.skills() and reader.get_changes_since(0) and reader.export_records()
            for write in (
                lambda: reader.record(event(1)),
                lambda: like(reader, 1),
                lambda: reader.forget(everything=True),
                lambda: reader.set_profile(Profile("ada", "Ada")),
                lambda: reader.set_sharing_titles(True),
                reader.checkpoint,
            ):
                with pytest.raises(StoreReadOnlyError):
                    write()
            reader.flush()
            reader.maintain()
            assert reader.stats()["read_only"] and any("read-only" in fault for fault in reader.stats()["degraded"])

    def test_a_damaged_database_costs_records_not_the_memory(self, tmp_path, clock):
        with open_memory(tmp_path, clock) as memory:
            for number in range(200):
                memory.record(event(number % 40, 1.0, START_MS + number))
            memory.checkpoint()
        image = bytearray((tmp_path / DATABASE_NAME).read_bytes())
        for page in range(2, len(image) // 4096, 3):
            image[page * 4096 + 2000] ^= 0x40
        (tmp_path / DATABASE_NAME).write_bytes(image)
        with open_memory(tmp_path, clock) as memory:
            stats = memory.stats()
            assert stats["damaged_records"] > 0 and any("store damaged" in fault for fault in stats["degraded"])
            assert memory.record(event(1)).sequence > 200 - stats["damaged_records"]
        with open_memory(tmp_path, clock) as memory:
            assert memory.stats()["damaged_records"] == 0


class TestSharing:
    def test_finished_titles_are_logged_only_while_shared_and_dropped_when_acknowledged(self, tmp_path, clock):
        with open_memory(tmp_path, clock) as memory:
            memory.record(event(1))
            assert memory.titles_finished_since_acknowledged(10) == []
            memory.set_sharing_titles(True)
            for number, watched in ((2, 0.9), (3, 0.3), (4, 0.7), (5, 1.0)):
                memory.record(event(number, watched, START_MS + number))
            like(memory, 6)
            expected = [FinishedTitle(content_id(number), START_MS + number) for number in (2, 4, 5)]
            assert memory.titles_finished_since_acknowledged(10) == expected
            assert memory.titles_finished_since_acknowledged(2) == expected[:2]
            sent_at = memory.local_version
            memory.record(event(7, 1.0, START_MS + 7))
            memory.acknowledge(sent_at, 2, {})
            assert memory.titles_finished_since_acknowledged(10) == [
                *expected[2:],
                FinishedTitle(content_id(7), START_MS + 7),
            ]
            assert memory.local_version > sent_at
        with open_memory(tmp_path, clock) as memory:
            assert len(memory.titles_finished_since_acknowledged(10)) == 2
            memory.set_sharing_titles(False)
            memory.set_sharing_titles(True)
            assert memory.titles_finished_since_acknowledged(10) == []

    def test_an_acknowledgement_never_reaches_beyond_its_version(self, memory):
        memory.set_sharing_titles(True)
        memory.record(event(1))
        sent_at = memory.local_version
        memory.record(event(2))
        memory.acknowledge(sent_at, 50, {})
        assert [finished.content_id for finished in memory.titles_finished_since_acknowledged(9)] == [content_id(2)]

    def test_the_acknowledged_set_is_kept(self, tmp_path, clock):
        pattern = ViewingPattern(4, 0.8, 5, START_MS, START_MS + 1, references=(TitleReference(content_id(1), 1.0),))
        with open_memory(tmp_path, clock) as memory:
            memory.acknowledge(memory.local_version, 0, {4: pattern})
        with open_memory(tmp_path, clock) as memory:
            assert memory.acknowledged_shared_set() == {4: pattern}
            memory.forget(content_id=content_id(1))
            assert memory.acknowledged_shared_set() == {4: None}

    def test_no_version_is_used_twice_over_a_crash(self, tmp_path, clock):
        memory = open_memory(tmp_path, clock)
        memory.record(event(1))
        told = memory.local_version
        memory._keeper.store.close()  # as a killed process would leave it
        with open_memory(tmp_path, clock) as memory:
            memory.record(event(2))
            fresh = {change.version for change in memory.get_changes_since(told)}
            assert len(fresh) == 2 and min(fresh) > told


class TestStates:
    def test_states_are_kept_and_not_shared_with_the_caller(self, tmp_path, clock):
        with open_memory(tmp_path, clock) as memory:
            state = {"numbers": [1, 2.5], "text": "é", "none": None}
            memory.set_state("one", state)
            state["numbers"].append(3)
            assert memory.get_state("one")["numbers"] == [1, 2.5] and memory.get_state("two") is None
        with open_memory(tmp_path, clock) as memory:
            assert memory.get_state("one") == {"numbers": [1, 2.5], "text": "é", "none": None}


@pytest.mark.parametrize(
    "options",
    [
        {"durability_window_secs": -1},
        {"checkpoint_events": 0},
        {"max_episodes": 0},
        {"max_skills": True},
        {"max_reasoning": 1.5},
    ],
)
def test_options_are_checked(tmp_path, options):
    with pytest.raises(ProtocolError, match="expected an integer"):
        open_memory(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
