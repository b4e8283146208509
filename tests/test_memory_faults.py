"""Memory after faults: what was lost is named, what was set stays as strict as it was, what was begun is finished."""

from __future__ import annotations

import copy
import json
import os

import cbor2
import pytest

from omega_edge import forgetting
from omega_edge.errors import ProtocolError, StoreError, StoreFullError
from omega_edge.journal import HEADER_BYTES, Journal
from omega_edge.protocol import DEFAULT_PROFILE, MAX_TIMESTAMP_MS, Profile
from omega_edge.store import DATABASE_NAME, JOURNAL_NAME, Store
from tests.households import START_MS, content_id, event, open_memory, title

HOME = DEFAULT_PROFILE


def damage(path, change) -> None:
    image = bytearray(path.read_bytes())
    change(image)
    path.write_bytes(image)


def flip_name(image: bytearray) -> None:
    at = image.find(b"Kids")
    assert at > 0
    while at > 0:
        image[at] ^= 1
        at = image.find(b"Kids")


def clear_meta_pages(image: bytearray) -> None:
    image[: 2 * 4096] = bytes(2 * 4096)


def holds(folder, number: int) -> bool:
    wanted = (content_id(number).encode(), title(number).encode())
    return any(name in path.read_bytes() for path in folder.iterdir() for name in wanted)


class TestProfilesLost:
    @pytest.mark.parametrize("change", [flip_name, clear_meta_pages])
    @pytest.mark.parametrize("kept_aside", [True, False])
    def test_the_default_profile_comes_back_restricted_until_it_is_set_again(self, tmp_path, change, kept_aside):
        with open_memory(tmp_path) as memory:
            memory.set_profile(Profile(HOME, "Kids", 6))
            memory.record(event(1))
            memory.checkpoint()
        damage(tmp_path / DATABASE_NAME, change)
        for _again in range(2):
            with open_memory(tmp_path) as memory:
                assert [(profile.id, profile.max_age_rating) for profile in memory.profiles()] == [(HOME, 0)]
                assert any(f"profile {HOME}: its record was damaged" in text for text in memory.stats()["degraded"])
                if kept_aside:
                    memory.checkpoint()
        with open_memory(tmp_path) as memory:
            memory.record(event(2))
            memory.checkpoint()
        with open_memory(tmp_path) as memory:
            assert any("restricted until it is set again" in text for text in memory.stats()["degraded"])
            memory.set_profile(Profile(HOME, "Home", 12))
            assert not any("restricted" in text for text in memory.stats()["degraded"])
        with open_memory(tmp_path) as memory:
            assert memory.profiles() == (Profile(HOME, "Home", 12),)
            assert not any("restricted" in text for text in memory.stats()["degraded"])

    def test_a_lost_database_beside_a_journal_is_no_new_store(self, tmp_path):
        with open_memory(tmp_path) as memory:
            memory.set_profile(Profile(HOME, "Kids", 6))
            memory.record(event(1))
        (tmp_path / DATABASE_NAME).unlink()
        with open_memory(tmp_path) as memory:
            assert memory.profiles()[0].max_age_rating == 0 and memory.event_count(HOME) == 1

    def test_a_new_store_that_was_never_checkpointed_has_no_limit(self, tmp_path):
        memory = open_memory(tmp_path)
        memory.record(event(1))
        memory._keeper.store.close()  # as a killed process would leave it
        with open_memory(tmp_path) as memory:
            assert memory.profiles() == (Profile(HOME, "Household"),) and memory.stats()["degraded"] == []
            memory.forget(everything=True)
        with open_memory(tmp_path) as memory:
            assert memory.profiles() == (Profile(HOME, "Household"),) and memory.stats()["degraded"] == []


class TestForgetsThatFail:
    def fail_after_rebuild(self, memory, monkeypatch) -> None:
        def full(_store, _rows):
            raise StoreFullError("no space left")

        rebuild = Store.rebuild

        def rebuild_then_full(store, rows):
            rebuild(store, rows)
            monkeypatch.setattr(Store, "write", full)

        monkeypatch.setattr(Store, "rebuild", rebuild_then_full)
        with pytest.raises(StoreFullError):
            memory.forget(content_id=content_id(9))

    def test_what_is_recorded_after_one_is_there_after_a_crash(self, tmp_path, monkeypatch):
        memory = open_memory(tmp_path)
        for number in (1, 9, 17):
            memory.record(event(number))
        with monkeypatch.context() as patched:
            self.fail_after_rebuild(memory, patched)
            for number in range(20, 25):
                memory.record(event(number))
            memory.flush()
            assert any(text.startswith("forget:") for text in memory.stats()["degraded"])
        memory._keeper.store.close()  # as a killed process would leave it
        with open_memory(tmp_path) as memory:
            recent = [item.content_id for item in memory.history(HOME, 9)]
            assert recent == [content_id(number) for number in (24, 23, 22, 21, 20, 17, 1)]
            assert memory.stats()["pending_records"] == 0 and memory.stats()["degraded"] == []
        with open_memory(tmp_path) as memory:
            assert memory.event_count(HOME) == 7
        assert not holds(tmp_path, 9)

    def test_a_disk_that_stays_full_opens_with_everything(self, tmp_path, monkeypatch):
        memory = open_memory(tmp_path)
        memory.record(event(9))
        with monkeypatch.context() as patched:
            self.fail_after_rebuild(memory, patched)
            memory.record(event(20))
            memory.flush()
            memory._keeper.store.close()
            with open_memory(tmp_path) as reopened:
                assert reopened.event_count(HOME) == 1
                assert any(text.startswith("forget:") for text in reopened.stats()["degraded"])
        with open_memory(tmp_path) as memory:
            assert memory.event_count(HOME) == 1 and memory.stats()["degraded"] == []

    @pytest.mark.parametrize("then", ["record", "checkpoint", "both", "reopen"])
    def test_a_wipe_that_failed_is_done_with_the_next_write(self, tmp_path, monkeypatch, then):
        with open_memory(tmp_path) as memory:
            for number in (1, 9, 9, 9):
                memory.record(event(number))
            with monkeypatch.context() as patched:

                def broken(_journal):
                    raise StoreError("Input/output error")

                patched.setattr(Journal, "wipe", broken)
                with pytest.raises(StoreError):
                    memory.forget(content_id=content_id(9))
                if then == "both":
                    memory.record(event(2))
            if then == "record":
                memory.record(event(2))
            if then in ("checkpoint", "both"):
                memory.checkpoint()
            if then != "reopen":
                assert not holds(tmp_path, 9) and memory.stats()["degraded"] == []
        with open_memory(tmp_path) as memory:
            assert memory.event_count(HOME) == (2 if then in ("record", "both") else 1)
        assert not holds(tmp_path, 9)

    def test_a_folder_that_cannot_be_synced_at_the_end_is_a_named_error_and_tried_again(self, tmp_path, monkeypatch):
        with open_memory(tmp_path) as memory:
            memory.record(event(9))
            synced = []

            def third_fails(descriptor):
                synced.append(descriptor)
                if len(synced) > 2:
                    raise OSError(5, os.strerror(5))

            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", third_fails)
                with pytest.raises(StoreError, match="Input/output error"):
                    memory.forget(content_id=content_id(9))
                memory.record(event(1))
                assert any(text.startswith("forget:") for text in memory.stats()["degraded"])
            memory.checkpoint()
            assert memory.stats()["degraded"] == [] and memory.event_count(HOME) == 1

    @pytest.mark.parametrize("call", [{"content_id": content_id(9)}, {"profile": HOME}])
    def test_an_error_on_the_way_leaves_nothing_half_forgotten(self, tmp_path, monkeypatch, call):
        with open_memory(tmp_path) as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            before = memory.export_records()
            with monkeypatch.context() as patched:

                def broken(_keeper):
                    raise cbor2.CBORDecodeError("nested too deep")

                patched.setattr(forgetting, "_states", broken)
                with pytest.raises(cbor2.CBORDecodeError):
                    memory.forget(**call)
            assert memory.export_records() == before

    def test_a_title_that_a_skill_counts_without_naming_it_is_taken_out(self, tmp_path):
        """60 near titles, the first half finished, the others left: of the finished ones a skill names but a few."""
        near = [8 * place for place in range(60)]
        with open_memory(tmp_path / "all") as memory:
            for place, number in enumerate(near):
                memory.record(event(number, 1.0 if place < 30 else 0.1))
            (skill,) = memory.skills()
            assert (skill.successes, skill.failures) == (30, 30) and len(skill.titles) == 24
            for number in near[:30]:
                memory.forget(content_id=content_id(number))
            (left,) = memory.skills()
        with open_memory(tmp_path / "without") as memory:
            for number in near[30:]:
                memory.record(event(number, 0.1))
            (expected,) = memory.skills()
        assert (left.successes, left.failures) == (0, 30) and left.reward_micro == expected.reward_micro
        ours, theirs = (memoryview(one.code).cast("b").tolist() for one in (left, expected))
        cosine = sum(a * b for a, b in zip(ours, theirs, strict=True)) * left.scale * expected.scale
        assert cosine > 0.999 and left.code != skill.code


def test_a_flipped_bit_in_the_journal_costs_one_viewing_and_is_named(tmp_path):
    with open_memory(tmp_path) as memory:
        for number in range(10):
            memory.record(event(number, 1.0, START_MS + number))
        memory.flush()

    def flip_third(image: bytearray) -> None:
        image[image.find(title(2).encode(), HEADER_BYTES)] ^= 1

    damage(tmp_path / JOURNAL_NAME, flip_third)
    with open_memory(tmp_path) as memory:
        seen = [item.content_id for item in memory.history(HOME, 99)]
        assert seen == [content_id(number) for number in (9, 8, 7, 6, 5, 4, 3, 1, 0)]
        assert memory.stats()["damaged_records"] == 1
        assert any("journal damaged: 1" in text for text in memory.stats()["degraded"])
        assert memory.record(event(30)).sequence == 11
    with open_memory(tmp_path) as memory:
        assert memory.event_count(HOME) == 10


def nested(depth: int) -> dict:
    state: dict = {}
    for _ in range(depth):
        state = {"a": state}
    return state


class TestImportsThatWouldBreakTheStore:
    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("counters", "next_skill_id"), (1 << 32) - 1, "next_skill_id"),
            (("counters", "next_skill_id"), 1 << 22, "next_skill_id"),
            (("counters", "last_sequence"), (1 << 53) - 1, "last_sequence"),
            (("counters", "local_version"), (1 << 53) - 1, "local_version"),
            (("states",), {"deep": nested(33)}, "at most 32 deep"),
            (("states",), {"deep": nested(100_000)}, "at most 32 deep"),
            (("states",), {"number": {"x": float("nan")}}, "finite"),
            (("states",), {"number": {"x": 10**400}}, "an integer from"),
            (("states",), {"text": {"x": ["\ud800"]}}, "lone surrogates"),
            (("states",), {"text": {"\ud800": 1}}, "lone surrogates"),
            (("states",), {"\ud800": {}}, "lone surrogates"),
            (("sharing", "acknowledged"), {"1" * 5000: None}, "ids of patterns"),
            (("sharing", "acknowledged"), {"01": None}, "ids of patterns"),
            (("skills", 0, "titles", 0, "successes"), 1 << 40, "skill.title.successes"),
            (("skills", 0, "titles", 0, "reward_micro"), 1 << 50, "skill.title.reward_micro"),
            (("skills", 0, "titles", 0, "episodes"), 9, "skill: failures of its titles"),
            (("skills", 0, "reward_micro"), (1 << 53) - 1, "reward_micro"),
            (("skills", 0, "reward_micro"), 3_000_001, "skill.reward_micro"),
            (("skills", 0, "reward_micro"), 2_999_999, "reward_micro of its titles"),
            (("episodes", 0, "watch_percentage"), None, "a number for a title that was watched"),
            (("profiles", 0, "hidden"), {"a": {"kind": "like", "until": None}}, "hidden"),
            (("profiles", 0, "hidden"), {"a": {"kind": "not_now", "until": None}}, "hidden"),
            (("profiles", 0, "event_count"), (1 << 53) - 1, "event_count"),
        ],
    )
    def test_it_is_refused_and_nothing_has_changed(self, tmp_path, path, value, message):
        with open_memory(tmp_path) as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            before = memory.export_records()
            exported = copy.deepcopy(before)
            target = exported
            for step in path[:-1]:
                target = target[step]
            assert path[-1] in target or isinstance(target, list)
            target[path[-1]] = value
            with pytest.raises(ProtocolError, match=message):
                memory.import_records(exported, replace=True)
            assert memory.export_records() == before

    def test_the_largest_counters_allowed_can_be_gone_on_from(self, tmp_path):
        with open_memory(tmp_path / "one") as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            exported = memory.export_records()
            exported["counters"]["next_skill_id"] = 1 << 20
            exported["counters"]["last_sequence"] = exported["counters"]["local_version"] = (1 << 52) - 1000
            exported["states"] = {"deep": nested(31)}
            memory.import_records(exported, replace=True)
            for number in (2, 10, 18):
                memory.record(event(number))
            memory.forget(content_id=content_id(1))
            again = json.loads(json.dumps(memory.export_records(), allow_nan=False))
        with open_memory(tmp_path / "two") as memory:
            memory.import_records(again)
            assert memory.export_records() == again

    def test_not_now_at_the_end_of_time_can_be_imported_again(self, tmp_path):
        with open_memory(tmp_path / "one") as memory:
            memory.feedback(HOME, content_id(1), title(1), "not_now", MAX_TIMESTAMP_MS - 5)
            exported = memory.export_records()
        with open_memory(tmp_path / "two") as memory:
            memory.import_records(exported)
            assert memory.hidden(HOME)[content_id(1)][1] == MAX_TIMESTAMP_MS


def test_a_folder_whose_name_is_not_utf_8_is_a_folder(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with open_memory(folder) as memory:
        memory.record(event(1))
        memory.checkpoint()
        memory.forget(content_id=content_id(2))
    with open_memory(folder) as memory:
        assert memory.event_count(HOME) == 1
