"""AgentMemory against a plain model of it, over sequences of calls that hypothesis makes up, reopening among them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omega_edge.changes import Tier
from omega_edge.protocol import FeedbackKind, Profile, TimeOfDay, TitleReference, ViewingPattern
from tests.households import START_MS, Clock, PlainMemory, code_of, content_id, event, look_up, open_memory, title

NUMBERS = st.integers(0, 23)
PROFILES = st.sampled_from(["household", "ada", "bob"])


class MemoryMachine(RuleBasedStateMachine):
    """Rules call the memory and the model alike; after each, both must agree."""

    @initialize(catalogued=st.booleans())
    def open(self, catalogued):
        self.folder = Path(tempfile.mkdtemp(prefix="memory-model-"))
        self.stores = 0
        self.clock = Clock()
        self.options = {"checkpoint_events": 6, "catalogue_lookup": look_up if catalogued else None}
        self.plain = PlainMemory()
        self.replica: set[tuple[Tier, int]] = set()
        self.replica_version = 0
        self.memory = open_memory(self._store(), self.clock, **self.options)

    def _store(self) -> Path:
        return self.folder / f"store-{self.stores}"

    def teardown(self):
        if hasattr(self, "memory"):
            self.memory.close()
            shutil.rmtree(self.folder)

    def _known(self, profile: str) -> str:
        return profile if profile in self.plain.viewers else "household"

    @rule(
        number=NUMBERS,
        tenths=st.integers(0, 10),
        profile=PROFILES,
        late=st.booleans(),
        passed_ms=st.integers(0, 400_000),
    )
    def record(self, number, tenths, profile, late, passed_ms):
        self.clock.now_ms += passed_ms
        profile = self._known(profile)
        time = TimeOfDay.EVENING if late else TimeOfDay.MORNING
        before = self.memory.stats()["last_sequence"]
        recorded = self.memory.record(event(number, tenths / 10, self.clock.now_ms, profile, time))
        assert recorded.sequence == before + 1
        self.plain.record(number, tenths / 10, self.clock.now_ms, profile)

    @rule(number=NUMBERS, kind=st.sampled_from(FeedbackKind), profile=PROFILES)
    def feedback(self, number, kind, profile):
        profile = self._known(profile)
        self.memory.feedback(profile, content_id(number), title(number), kind, self.clock.now_ms)
        self.plain.feedback(number, kind, self.clock.now_ms, profile)

    @rule(profile=PROFILES, limit=st.none() | st.integers(0, 21))
    def set_profile(self, profile, limit):
        self.memory.set_profile(Profile(profile, profile.title(), limit))
        self.plain.set_profile(Profile(profile, profile.title(), limit))

    @rule(jump_ms=st.integers(-(10**9), 10**9))
    def maintain(self, jump_ms):
        self.clock.now_ms = max(START_MS + jump_ms, 0)
        self.memory.maintain()

    @rule()
    def flush(self):
        self.memory.flush()
        assert self.memory.stats()["unsynced_records"] == 0

    @rule(number=NUMBERS, version=st.integers(0, 3), rate=st.integers(0, 4))
    def merge(self, number, version, rate):
        pattern = ViewingPattern(
            number,
            rate / 4,
            10 + version,
            START_MS,
            START_MS + version,
            references=(TitleReference(content_id(number), 1.0),),
        )
        self.memory.merge_global_pattern(pattern, *code_of(number))
        assert not self.memory.merge_global_pattern(pattern, *code_of(number))

    @rule(number=NUMBERS, followed=st.booleans(), tenths=st.integers(0, 10))
    def record_outcome(self, number, followed, tenths):
        self.memory.record_outcome(number, followed, tenths / 10, 60_000)

    @rule()
    def reopen(self):
        self.memory.close()
        self.memory = open_memory(self._store(), self.clock, **self.options)

    @rule()
    def crash(self):
        """What a killed process leaves is what is in the files; a copy of them shows it."""
        former, self.stores = self._store(), self.stores + 1
        patterns = [pattern.pattern_id for pattern in self.memory.patterns()]
        shutil.copytree(former, self._store())
        self.memory.close()
        self.memory = open_memory(self._store(), self.clock, **self.options)
        assert {pattern.pattern_id for pattern in self.memory.patterns()} <= set(patterns)

    @rule()
    def move_by_export(self):
        exported = json.loads(json.dumps(self.memory.export_records()))
        self.memory.close()
        self.stores += 1
        self.memory = open_memory(self._store(), self.clock, **self.options)
        self.memory.import_records(exported)
        assert self.memory.export_records() == exported

    @rule(number=NUMBERS)
    def forget_title(self, number):
        self.memory.forget(content_id=content_id(number))
        self.plain.forget_title(number)
        self._check_no_trace(number)

    @rule(profile=PROFILES)
    def forget_profile(self, profile):
        profile = self._known(profile)
        self.memory.forget(profile=profile)
        self.plain.forget_profile(profile)

    def _check_no_trace(self, number):
        for file in self._store().iterdir():
            content = file.read_bytes()
            assert content_id(number).encode() not in content
            assert title(number).encode() not in content

    @rule()
    def follow_changes(self):
        """Whoever applies get_changes_since() to what it knows, knows all, whatever happened in between."""
        changes = self.memory.get_changes_since(self.replica_version)
        versions = [change.version for change in changes]
        assert versions == sorted(set(versions)) and all(version > self.replica_version for version in versions)
        assert len({(change.tier, change.key) for change in changes}) == len(changes)
        for change in changes:
            (self.replica.discard if change.deleted else self.replica.add)((change.tier, change.key))
        self.replica_version = self.memory.local_version
        assert not versions or versions[-1] <= self.replica_version
        live = {(Tier.EPISODES, episode.sequence) for episode in self.memory.episodes()}
        live |= {(Tier.SKILLS, skill.skill_id) for skill in self.memory.skills()}
        live |= {(Tier.REASONING, pattern.pattern_id) for pattern in self.memory.patterns()}
        assert self.replica == live

    @invariant()
    def agrees(self):
        if hasattr(self, "memory"):
            self.plain.check(self.memory)

    @rule()
    def skills_count_each_episode_once(self):
        episodes = self.memory.episodes()
        for skill in self.memory.skills():
            counted = [episode for episode in episodes if episode.skill_id == skill.skill_id]
            assert skill.sample_count == len(counted) >= 3
            assert skill.successes == sum(episode.success for episode in counted)
            assert skill.reward_micro == sum(round(episode.reward * 1_000_000) for episode in counted)
            assert skill.members == {
                name: sum(episode.content_id == name for episode in counted) for name in {e.content_id for e in counted}
            }


MemoryMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestMemoryModel = MemoryMachine.TestCase
