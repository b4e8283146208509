"""Export, import and forget: nothing is left out, nothing invalid comes in, nothing forgotten stays."""

from __future__ import annotations

import base64
import copy
import json
import os

import numpy as np
import pytest
import zstandard

from omega_edge.errors import ConfigError, ProtocolError, StoreError
from omega_edge.protocol import DEFAULT_PROFILE, Profile, TimeOfDay, TitleReference, ViewingPattern
from tests.households import START_MS, code_of, content_id, event, open_memory, title, unit

HOME = DEFAULT_PROFILE
NAMED = 9
"""The title that is forgotten below; it belongs to one cluster with 1, 17, 25 and 33."""


def fill(memory) -> None:
    """Leave title 9 wherever a title can be named: every table, the journal, free pages."""
    memory.set_sharing_titles(True)
    memory.set_profile(Profile("kid", "Kind 子", 6))
    for place, number in enumerate((1, 9, 17, 25, 9, 2, 10, 18, 3)):
        memory.record(event(number, (0.9, 0.2, 1.0)[place % 3], START_MS + place))
        memory.record(event(number, 0.8, START_MS + place, "kid", TimeOfDay.MORNING))
    for number in (NAMED, 4):
        memory.feedback(HOME, content_id(number), title(number), "never", START_MS)
        memory.feedback("kid", content_id(number), title(number), "not_now", START_MS)
    for number, references in ((1, (9, 1)), (2, (9,)), (3, (4,))):
        weights = tuple(TitleReference(content_id(reference), 0.5) for reference in references)
        pattern = ViewingPattern(number, 0.8, 9, START_MS, START_MS, references=weights)
        memory.merge_global_pattern(pattern, *code_of(number))
        memory.record_outcome(number, True, 0.75, 60_000)
    shared = ViewingPattern(1, 0.8, 9, START_MS, START_MS, references=(TitleReference(content_id(NAMED), 1.0),))
    memory.checkpoint()
    memory.acknowledge(memory.local_version, 1, {1: shared, 2: ViewingPattern(
        2, 0.9, 9, START_MS, START_MS, references=(TitleReference(content_id(4), 1.0),))})  # fmt: skip
    memory.set_state("trends", {"signals": [[content_id(NAMED), 0.5, 48], [content_id(4), 0.4, 48]], "version": 3})
    memory.record(event(NAMED, 1.0, START_MS + 100))
    memory.feedback(HOME, content_id(NAMED), title(NAMED), "dislike", START_MS + 101)
    memory.flush()


@pytest.fixture
def memory(tmp_path):
    with open_memory(tmp_path / "store") as opened:
        fill(opened)
        yield opened


def traces(folder, number: int) -> list[str]:
    """Files that hold a title's id or name, as they are or inside a zstd frame."""
    wanted = [content_id(number).encode(), title(number).encode(), base64.b64encode(title(number).encode())]
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            parts, at = [content], content.find(zstandard.FRAME_HEADER)
            while at >= 0:
                try:
                    parts.append(zstandard.ZstdDecompressor().stream_reader(content[at:]).read(1 << 20))
                except zstandard.ZstdError:
                    pass
                at = content.find(zstandard.FRAME_HEADER, at + 1)
            found += [path.name for part in parts if any(name in part for name in wanted)]
    return found


class TestExport:
    def test_an_export_goes_through_json_and_restores_all(self, memory, tmp_path):
        exported = memory.export_records()
        text = json.dumps(exported, allow_nan=False)
        with open_memory(tmp_path / "other") as other:
            other.import_records(json.loads(text))
            assert other.export_records() == exported
        with open_memory(tmp_path / "other") as other:
            assert other.export_records() == exported
            assert other.epoch != memory.epoch
            assert other.history("kid", 65) == memory.history("kid", 65)
            assert other.get_changes_since(0) == memory.get_changes_since(0)
            assert other.titles_finished_since_acknowledged(99) == memory.titles_finished_since_acknowledged(99)
            assert other.acknowledged_shared_set() == memory.acknowledged_shared_set()
            ranked = [(item.skill, item.rank) for item in memory.rank_skills(unit(1), 9)]
            assert [(item.skill, item.rank) for item in other.rank_skills(unit(1), 9)] == ranked
            # Both go on in the same way.
            for place in range(5):
                for one in (memory, other):
                    one.record(event(33, 0.9, START_MS + 200 + place))
            assert other.export_records() == memory.export_records()

    def test_everything_that_was_recorded_is_in_it(self, memory):
        text = json.dumps(memory.export_records(), ensure_ascii=False)
        for number in (1, 9, 17, 25, 2, 10, 18, 3, 4):
            assert content_id(number) in text and title(number) in text
        assert "Kind 子" in text

    def test_it_is_refused_where_something_is_unless_that_may_go(self, memory, tmp_path):
        exported = memory.export_records()
        with open_memory(tmp_path / "other") as other:
            other.record(event(39))
            with pytest.raises(ConfigError, match="expected an empty memory; pass replace=True"):
                other.import_records(exported)
            assert content_id(39) in other.seen(HOME)
            other.import_records(exported, replace=True)
            assert content_id(39) not in other.seen(HOME)
            assert traces(tmp_path / "other", 39) == []
            assert other.record(event(39)).sequence > max(item["sequence"] for item in exported["episodes"])

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("format",), "other", "export.format: expected 'omega-edge-memory'"),
            (("version",), 2, "export.version: expected 1"),
            (("surplus",), 1, "unknown field 'surplus'"),
            (("counters", "last_sequence"), -1, "last_sequence: expected an integer"),
            (("counters", "local_version"), 3, "expected an integer from"),
            (("counters", "next_skill_id"), 1, "skill_id: expected an integer"),
            (("profiles",), [], "export.profiles"),
            (("profiles", 0, "id"), "kid", "expected each one once"),
            (("profiles", 1, "max_age_rating"), 99, "max_age_rating"),
            (("profiles", 0, "finished"), ["unseen"], "only titles that are seen"),
            (("profiles", 0, "hidden", content_id(4), "kind"), "hate", "expected one of like"),
            (("episodes", 0, "watch_percentage"), 1.5, "a number from 0 to 1"),
            (("episodes", 0, "watch_percentage"), float("nan"), "a number from 0 to 1"),
            (("episodes", 0, "content_title"), "a\nb", "without control characters"),
            (("episodes", 0, "content_id"), "x" * 65, "at most 64 bytes"),
            (("episodes", 0, "profile"), "nobody", "expected one of household, kid"),
            (("episodes", 0, "sequence"), True, "sequence: expected an integer"),
            (("episodes", 0, "version"), 2, "expected each one once"),
            (("episodes", 0, "vector", "code"), "AAAA", "base64 of 384 bytes"),
            (("episodes", 0, "vector", "scale"), 0.5, "whose scale is 1 / its norm"),
            (("episodes", 0, "time_of_day"), "noon", "expected one of morning"),
            (("skills", 0, "titles"), [], "skill: titles"),
            (("skills", 0, "part_of_day"), "noon", "day or late"),
            (("patterns", 0, "references", 0, "weight"), 2, "a number from 0 to 1"),
            (("removed",), [{"version": 1, "tier": "moods", "key": 1}], "expected one of episodes"),
            (("sharing", "acknowledged"), {"one": None}, "ids of patterns, as decimal text"),
            (("sharing", "titles"), 1, "true or false"),
            (("states", "trends"), [1], "an object"),
            ((), [], "export: expected an object"),
        ],
    )  # fmt: skip
    def test_an_invalid_one_is_refused_with_the_field_named_and_changes_nothing(
        self, memory, tmp_path, path, value, message
    ):
        exported = copy.deepcopy(memory.export_records())
        if not path:
            exported = value
        else:
            target = exported
            for step in path[:-1]:
                target = target[step]
            target[path[-1]] = value
        before = memory.export_records()
        with pytest.raises(ProtocolError, match=message):
            memory.import_records(exported, replace=True)
        assert memory.export_records() == before

    def test_a_missing_field_is_named(self, memory):
        exported = memory.export_records()
        del exported["episodes"][3]["kind"]
        with pytest.raises(ProtocolError, match="episode.kind: expected it, it is missing"):
            memory.import_records(exported, replace=True)


class TestForget:
    def test_the_fixture_names_the_title_everywhere(self, memory, tmp_path):
        assert set(traces(tmp_path / "store", NAMED)) == {"memory.mdb", "memory.journal"}
        text = json.dumps(memory.export_records())
        assert text.count(content_id(NAMED)) > 10

    def test_a_title_leaves_no_byte_and_no_count(self, memory, tmp_path):
        before = {skill.skill_id: skill for skill in memory.skills()}
        counted = {
            skill.skill_id: [
                e for e in memory.episodes() if e.skill_id == skill.skill_id and e.content_id == content_id(NAMED)
            ]
            for skill in before.values()
        }
        memory.forget(content_id=content_id(NAMED))
        assert traces(tmp_path / "store", NAMED) == []
        assert content_id(NAMED) not in json.dumps(memory.export_records())
        for viewer in (HOME, "kid"):
            assert content_id(NAMED) not in memory.seen(viewer) and content_id(NAMED) not in memory.hidden(viewer)
            assert all(item.content_id != content_id(NAMED) for item in memory.history(viewer, 99))
        assert any(counted.values())
        for skill_id, episodes in counted.items():
            after = next((skill for skill in memory.skills() if skill.skill_id == skill_id), None)
            left = before[skill_id].sample_count - len(episodes)
            assert (after.sample_count if after else 0) == (left if left >= 3 else 0)
        assert [pattern.pattern_id for pattern in memory.patterns()] == [1, 3]
        assert [reference.content_id for reference in memory.patterns()[0].references] == [content_id(1)]
        assert memory.patterns()[0].followed == 1
        assert memory.acknowledged_shared_set()[1] is None and memory.acknowledged_shared_set()[2] is not None
        assert memory.get_state("trends") == {"signals": [[content_id(4), 0.4, 48]], "version": 3}
        assert title(4) in json.dumps(memory.export_records(), ensure_ascii=False)

    def test_the_centroid_of_what_is_left_is_that_of_the_titles_left(self, tmp_path):
        with open_memory(tmp_path) as memory:
            for number in (1, 9, 17, 25, 9):
                memory.record(event(number))
            memory.forget(content_id=content_id(9))
            (skill,) = memory.skills()
            assert skill.members == {content_id(number): 1.0 for number in (1, 17, 25)}
        with open_memory(tmp_path / "without") as other:
            for number in (1, 17, 25):
                other.record(event(number))
            (expected,) = other.skills()
        ours, theirs = (np.frombuffer(item.code, np.int8).astype(int) for item in (skill, expected))
        assert abs(ours - theirs).max() <= 2

    def test_what_is_left_of_a_skill_below_three_waits_again(self, tmp_path):
        with open_memory(tmp_path) as memory:
            for number in (1, 9, 17):
                memory.record(event(number))
            memory.forget(content_id=content_id(9))
            assert memory.skills() == [] and [episode.skill_id for episode in memory.episodes()] == [0, 0]
            memory.record(event(25))
            assert [skill.members for skill in memory.skills()] == [{content_id(n): 1.0 for n in (1, 17, 25)}]

    def test_a_profile_leaves_no_byte(self, memory, tmp_path):
        for number in (30, 31):
            memory.record(event(number, 1.0, START_MS, "kid"))
        memory.forget(profile="kid")
        assert [profile.id for profile in memory.profiles()] == [HOME]
        for number in (30, 31):
            assert traces(tmp_path / "store", number) == []
        assert all("Kind 子".encode() not in path.read_bytes() for path in (tmp_path / "store").iterdir())
        assert {skill.profile for skill in memory.skills()} <= {HOME}
        assert {episode.profile for episode in memory.episodes()} == {HOME}
        finished = [finished.content_id for finished in memory.titles_finished_since_acknowledged(99)]
        assert content_id(30) not in finished and content_id(NAMED) in finished

    def test_the_default_profile_is_emptied_and_stays(self, memory):
        kid = memory.history("kid", 99)
        memory.set_profile(Profile(HOME, "Home", 16))
        memory.forget(profile=HOME)
        assert memory.profiles()[0] == Profile(HOME, "Household", 16)
        assert memory.history(HOME, 9) == [] and memory.event_count(HOME) == 0 and not memory.seen(HOME)
        assert memory.history("kid", 99) == kid

    def test_everything(self, memory, tmp_path):
        sequence, version, epoch = memory.stats()["last_sequence"], memory.local_version, memory.epoch
        memory.forget(everything=True)
        for number in range(40):
            assert traces(tmp_path / "store", number) == []
        assert [profile.id for profile in memory.profiles()] == [HOME]
        assert memory.patterns() == () and memory.skills() == [] and memory.episodes() == []
        assert memory.get_state("trends") is None and memory.acknowledged_shared_set() == {}
        assert memory.epoch != epoch and memory.local_version > version
        assert memory.record(event(1)).sequence == sequence + 1
        with open_memory(tmp_path / "new") as new:
            new.import_records(memory.export_records())

    def test_forgotten_stays_forgotten_and_the_rest_stays_after_reopening(self, memory, tmp_path):
        memory.forget(content_id=content_id(NAMED))
        expected = memory.export_records()
        memory.close()
        with open_memory(tmp_path / "store") as reopened:
            assert reopened.export_records() == expected
            reopened.record(event(NAMED, 1.0))
            assert reopened.event_count(HOME) == len(reopened.history(HOME, 99))

    @pytest.mark.parametrize(
        "what",
        [{}, {"content_id": "a", "profile": HOME}, {"content_id": "a", "everything": True}, {"everything": False}],
    )
    def test_exactly_one_is_named(self, memory, what):
        with pytest.raises(ConfigError, match="exactly one of content_id, profile and everything"):
            memory.forget(**what)

    def test_a_title_never_heard_of_is_no_error(self, memory):
        before = memory.export_records()
        memory.forget(content_id="unheard-of")
        assert memory.export_records() == before

    @pytest.mark.parametrize("call", ["fsync", "replace", "fdatasync"])
    def test_an_error_on_the_way_leaves_it_whole_or_done(self, memory, tmp_path, monkeypatch, call):
        before = memory.export_records()
        called = []

        def failing(*arguments):
            called.append(arguments)
            raise OSError(5, os.strerror(5))

        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            with pytest.raises(StoreError, match="Input/output error"):
                memory.forget(content_id=content_id(NAMED))
        assert called
        after = memory.export_records()
        assert (content_id(NAMED) not in json.dumps(after)) or after == before
        memory.close()
        with open_memory(tmp_path / "store") as reopened:
            assert reopened.export_records() == after
        assert after == before or traces(tmp_path / "store", NAMED) == []

    def test_a_damaged_file_that_was_kept_goes_too(self, tmp_path):
        folder = tmp_path / "store"
        with open_memory(folder) as memory:
            for number in range(40):
                memory.record(event(number, 1.0, START_MS + number))
            memory.checkpoint()
        image = bytearray((folder / "memory.mdb").read_bytes())
        for page in range(2, len(image) // 4096, 4):
            image[page * 4096 + 3000] ^= 1
        (folder / "memory.mdb").write_bytes(image)
        with open_memory(folder) as memory:
            assert (folder / "memory.mdb.damaged").exists() and traces(folder, NAMED)
            memory.forget(content_id=content_id(NAMED))
            assert traces(folder, NAMED) == [] and not (folder / "memory.mdb.damaged").exists()
