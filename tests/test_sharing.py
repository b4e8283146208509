"""What the one place composes, in each mode, and what it remembers of it through crashes, resets, copies and forgets."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.errors import ProtocolError, StoreError, StoreReadOnlyError
from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    DAY_MS,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    ViewingEvent,
)
from omega_edge.sharing import DeltaComposer
from tests.brains import EVENING, Clock, bytes_in, viewing, watch
from tests.model_shard import ModelShard
from tests.synthetic import NOW_MS


def all_fit(delta: PatternDelta) -> int:
    return len(delta.titles_finished)


def request_of(brain: OmegaBrain) -> SyncRequest:
    return brain.collective.request(all_fit)


def sync(brain: OmegaBrain, shard: ModelShard) -> SyncRequest:
    """One request and its answer."""
    request = request_of(brain)
    received = brain.collective.receive(request, shard.answer(request))
    assert received.told.fault is None
    return request


def told(request: SyncRequest) -> list[str]:
    return [] if request.delta is None else [title.content_id for title in request.delta.titles_finished]


def copied(tmp_path: Path, name: str) -> str:
    """The store as a killed process leaves it, or as a copied disk has it: another folder."""
    shutil.copytree(tmp_path / "store", tmp_path / name)
    return name


class Tripwire:
    """A memory of which only what is named may be touched."""

    def __init__(self, memory: AgentMemory, *allowed: str) -> None:
        self._memory, self._allowed = memory, allowed

    def __getattr__(self, name: str) -> object:
        assert name in self._allowed, f"{name} reads what was watched"
        return getattr(self._memory, name)


class TestReceive:
    def test_a_request_is_two_numbers_and_composing_it_reads_nothing(self, opened) -> None:
        brain = opened()
        watch(brain, [1, 2, 5])
        wire = Tripwire(brain._memory, "get_state", "set_sharing_titles")
        composer = DeltaComposer(brain.collective.titles, wire, "receive", Clock(), Random(1))
        composer._memory = Tripwire(brain._memory)
        assert composer.quiet_request(77) == composer.request(77, all_fit) == SyncRequest(global_version_seen=77)

    def test_it_waits_for_nobody_who_watches(self, opened) -> None:
        """The lock is held by this thread's observe; the request is made by another one."""
        from concurrent.futures import ThreadPoolExecutor

        brain = opened()
        with ThreadPoolExecutor(1) as other, brain._write_lock:
            assert other.submit(request_of, brain).result(timeout=20) == SyncRequest()

    def test_nothing_of_it_is_stored(self, opened, tmp_path: Path) -> None:
        brain = opened()
        watch(brain, [1, 2])
        for _ in range(3):
            sync(brain, ModelShard())
        assert brain._memory.get_state("sync") is None


class TestTitles:
    def test_the_number_is_stored_before_it_is_sent(self, opened, tmp_path: Path) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1, 2])
        request = request_of(brain)
        assert len(request.device_id) == 16 and request.server_time_seen is None and request.delta is not None
        after_the_kill = request_of(opened(copied(tmp_path, "killed"), sharing="titles"))
        assert (after_the_kill.device_id, after_the_kill.epoch) == (request.device_id, request.epoch)
        assert told(after_the_kill) == told(request)

    @pytest.mark.parametrize("lost", [1, 2, 5])
    def test_lost_answers_cost_nothing_but_a_repetition(self, opened, lost) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        sync(brain, shard)
        for number in range(lost):
            brain.observe(viewing(12 + 4 * number, minute=10 + number))
            shard.answer(request_of(brain))
        sync(brain, shard)
        assert shard.titles_of_all() == ["t001", "t002", *(f"t{12 + 4 * number:03d}" for number in range(lost))]
        assert request_of(brain).delta is None and len(shard.devices) == 1

    def test_killed_between_the_answer_and_its_storing(self, opened, tmp_path: Path) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        shard.answer(request_of(brain))
        again = opened(copied(tmp_path, "killed"), sharing="titles")
        sync(again, shard)
        assert shard.titles_of_all() == ["t001", "t002"] and request_of(again).delta is None

    def test_the_two_counters_never_meet(self, opened) -> None:
        """The classic fault takes the cloud's counter for the home's own: far ahead, it says that all was sent."""
        brain, shard = opened(sharing="titles"), ModelShard()
        for round_number in range(4):
            version = 10**15 + round_number
            shard.global_version, shard.patterns = version, GlobalPatterns(version)
            watch(brain, [4 * round_number + 1])
            request = sync(brain, shard)
            assert told(request) == [f"t{4 * round_number + 1:03d}"]
            assert request.delta.local_version < 10**9
        assert brain.stats()["global_version"] == 10**15 + 3
        assert len(shard.titles_of_all()) == 4

    def test_a_shard_that_mixes_the_counters_gets_the_same_again(self, opened) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1, 2])
        request = request_of(brain)
        mixed = SyncResponse(10**15, 300, NOW_MS, acknowledged_local_version=10**15)
        assert "another version" in brain.collective.receive(request, mixed).told.fault
        assert told(request_of(brain)) == ["t001", "t002"]

    def test_an_answer_to_another_request_acknowledges_nothing(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1])
        first = request_of(brain)
        answer = shard.answer(first)
        watch(brain, [2])
        second = request_of(brain)
        assert brain.collective.receive(first, answer).told.fault is not None
        assert brain.collective.receive(second, answer).told.fault is not None
        assert told(request_of(brain)) == ["t001", "t002"]
        third = sync(brain, shard)
        assert brain.collective.receive(third, shard.answer(third)).told.fault is not None, "a second acknowledgement"
        assert request_of(brain).delta is None

    def test_what_was_not_asked_for_is_a_fault_without_effect(self, opened) -> None:
        brain = opened()
        watch(brain, [1])
        for answer in ({"acknowledged_local_version": 7}, {"erased": True}, {"counted": True}):
            assert brain.collective.receive(request_of(brain), SyncResponse(0, 300, NOW_MS, **answer)).told.fault
        assert brain.collective.receive(request_of(brain), SyncResponse(0, 300, NOW_MS, reset=True)).told.fault

    def test_pages_carry_titles_alone_and_the_last_one_the_patterns(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [row for row in range(40) if row % 4 != 3])
        pages = []
        while True:
            request = brain.collective.request(lambda delta: min(len(delta.titles_finished), 7))
            if request.delta is None:
                break
            pages.append(request.delta)
            more = brain.collective.receive(request, shard.answer(request)).told.more
            assert more == request.delta.more_pages
        assert [len(page.titles_finished) for page in pages] == [7, 7, 7, 7, 2]
        assert all(not page.patterns_added for page in pages[:-1])
        assert shard.titles_of_all() == [f"t{row:03d}" for row in range(40) if row % 4 != 3]

    def test_patterns_that_do_not_fit_are_shared_as_far_as_they_do(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        for repeat in range(4):
            watch(brain, [1, 2, 5, 9, 13, 17, 21] * 2)
        assert len(brain._memory.shared_skills()) > 0

        def no_pattern_fits(delta: PatternDelta) -> int:
            return -1 if delta.patterns_added else len(delta.titles_finished)

        request = brain.collective.request(no_pattern_fits)
        assert not request.delta.patterns_added and len(request.delta.titles_finished) > 0
        brain.collective.receive(request, shard.answer(request))
        assert brain._memory.acknowledged_shared_set() == {}
        assert sync(brain, shard).delta.patterns_added

    def test_a_snapshot_is_sent_when_wanted_once_a_day(self, opened) -> None:
        clock = Clock()
        brain, shard = opened(sharing="titles", clock=clock), ModelShard()
        for repeat in range(4):
            watch(brain, [1, 2, 5, 9, 13, 17, 21] * 2)
        sync(brain, shard)
        patterns = dict(next(iter(shard.devices.values())).patterns)
        assert patterns
        next(iter(shard.devices.values())).patterns.clear()
        shard.snapshot_wanted = True
        brain.observe(viewing(25))
        assert not sync(brain, shard).delta.snapshot
        request = sync(brain, shard)
        assert request.delta.snapshot and not request.delta.patterns_updated
        assert set(next(iter(shard.devices.values())).patterns) == set(patterns)
        brain.observe(viewing(26))
        shard.snapshot_wanted = True
        sync(brain, shard)
        assert request_of(brain).delta is None, "one a day, however often it is wanted"
        clock.now_ms += DAY_MS
        assert sync(brain, shard).delta.snapshot


class TestReset:
    def test_a_reset_takes_a_new_number_and_shares_everything_again(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2, 3, 5])
        first = sync(brain, shard)
        shard.devices.clear()
        watch(brain, [6])
        request = request_of(brain)
        taken = brain.collective.receive(request, shard.answer(request)).told
        assert taken.more and taken.fault is None
        assert sync(brain, shard).erase and shard.erased == [first.device_id]
        again = sync(brain, shard)
        assert again.device_id != first.device_id and again.epoch != first.epoch and again.server_time_seen is None
        assert told(again) == ["t001", "t002", "t005", "t006"]
        assert list(shard.devices) == [again.device_id]

    def test_a_shard_that_always_resets_gets_one_new_number_a_day(self, opened) -> None:
        clock = Clock()
        brain = opened(sharing="titles", clock=clock)
        watch(brain, [1, 2])
        numbers = set()
        for _ in range(20):
            request = request_of(brain)
            reset = not request.erase
            brain.collective.receive(request, SyncResponse(0, 300, NOW_MS, reset=reset, erased=not reset))
            numbers |= {request.device_id}
        assert len(numbers) == 2 and told(request_of(brain)) == ["t001", "t002"]
        assert brain.stats()["sync"]["numbers_to_erase"] == 0
        clock.now_ms += DAY_MS
        request = request_of(brain)
        assert brain.collective.receive(request, SyncResponse(0, 300, NOW_MS, reset=True)).told.more

    def test_what_was_watched_before_sharing_began_stays_at_home_after_a_reset_too(self, opened) -> None:
        brain, shard = opened(), ModelShard()
        watch(brain, [1, 2])
        brain.close()
        brain = opened(sharing="titles")
        watch(brain, [5])
        assert told(sync(brain, shard)) == ["t005"]
        shard.devices.clear()
        watch(brain, [6])
        request = request_of(brain)
        brain.collective.receive(request, shard.answer(request))
        assert sync(brain, shard).erase
        assert told(sync(brain, shard)) == ["t005", "t006"]

    def test_two_copies_of_a_home_end_up_as_two_homes(self, opened, tmp_path: Path) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        sync(brain, shard)
        copy = opened(copied(tmp_path, "clone"), sharing="titles")
        watch(brain, [5])
        watch(copy, [6])
        sync(brain, shard)
        for _ in range(8):
            for home in (copy, brain):
                request = request_of(home)
                home.collective.receive(request, shard.answer(request))
            watch(brain, [8])
            watch(copy, [9])
        assert len(shard.devices) == 2
        titles = sorted({title for title, _at in device.titles} - {"t008", "t009"} for device in shard.devices.values())
        assert sorted(map(sorted, titles)) == [["t001", "t002", "t005"], ["t001", "t002", "t006"]]


class TestLeaving:
    @pytest.mark.parametrize("mode", ["receive", "counts"])
    def test_leaving_titles_asks_to_erase_until_it_is_done_then_says_nothing(self, opened, mode) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        number = sync(brain, shard).device_id
        brain.close()
        brain = opened(sharing=mode)
        for _ in range(3):  # answers are lost
            request = request_of(brain)
            assert request.erase and request.device_id == number
        brain.close()
        brain = opened(sharing=mode)
        refused = SyncResponse(0, 300, NOW_MS)
        assert brain.collective.receive(request_of(brain), refused).told.fault == "it did not erase what it was asked to"
        sync(brain, shard)
        assert shard.devices == {} and shard.erased == [number]
        assert mode == "counts" or request_of(brain) == SyncRequest()
        brain.close()
        brain = opened(sharing=mode)
        assert request_of(brain).device_id != number
        assert number.hex() not in str(brain._memory.get_state("sync"))

    def test_a_home_that_never_told_anything_has_nothing_to_erase(self, opened) -> None:
        opened(sharing="titles").close()
        assert request_of(opened()) == SyncRequest()

    def test_coming_back_to_titles_is_another_number_and_tells_only_what_is_new(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1])
        first = sync(brain, shard)
        brain.close()
        brain = opened()
        watch(brain, [2])
        brain.close()
        brain = opened(sharing="titles")
        watch(brain, [5])
        assert sync(brain, shard).erase
        second = sync(brain, shard)
        assert told(second) == ["t005"] and second.device_id != first.device_id


class TestForgettingAndCopies:
    @pytest.mark.parametrize("what", [{"everything": True}, {"content_id": "t001"}, {"profile": "household"}])
    def test_what_is_forgotten_here_is_erased_there(self, opened, what) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        number = sync(brain, shard).device_id
        brain.forget(**what)
        assert sync(brain, shard).erase and shard.devices == {} and shard.erased == [number]
        brain.close()
        brain = opened(sharing="titles")
        watch(brain, [6])
        assert told(sync(brain, shard)) == (["t002", "t006"] if "content_id" in what else ["t006"])

    def test_the_number_is_neither_exported_nor_imported(self, opened, tmp_path: Path) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        number = sync(brain, shard).device_id
        watch(brain, [5])
        exported = brain.export()
        assert "sync" not in exported["states"] and number.hex() not in str(exported)
        other = opened("other", sharing="titles")
        other.import_export(exported)
        request = sync(other, shard)
        assert request.device_id != number and told(request) == ["t005"]
        with pytest.raises(ProtocolError, match="stay in their home"):
            other.import_export({**exported, "states": {"sync": {}}}, replace_existing=True)
        other.import_export(exported, replace_existing=True)
        assert sync(other, shard).erase
        assert sync(other, shard).device_id not in (number, request.device_id)

    def test_a_refused_import_changes_nothing(self, opened) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        number = sync(brain, shard).device_id
        with pytest.raises(ProtocolError):
            brain.import_export({"format": "omega-edge-memory"}, replace_existing=True)
        watch(brain, [5])
        request = sync(brain, shard)
        assert request.device_id == number and told(request) == ["t005"]

    def test_a_home_that_only_receives_imports_as_before(self, opened) -> None:
        brain = opened("other")
        sync(brain, ModelShard(global_version=3))
        brain.collective.note_sync(NOW_MS, 9, 20, 0, 0, 0, "done")
        brain.checkpoint()
        source = opened(sharing="titles")
        watch(source, [1])
        brain.import_export(source.export())  # what it knows of its syncs does not make a home inhabited


class TestFaults:
    def test_where_no_number_can_be_stored_nothing_is_told(self, opened, tmp_path: Path, monkeypatch) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1, 2])
        brain.flush()
        write = brain._memory._keeper.store.write

        def full(rows: object) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(brain._memory._keeper.store, "write", full)
        for _ in range(3):
            assert request_of(brain) == SyncRequest()
        assert any("sharing: the disk is full" in fault for fault in brain.stats()["degraded"])
        monkeypatch.setattr(brain._memory._keeper.store, "write", write)
        request = request_of(brain)
        assert told(request) == ["t001", "t002"]
        assert not any("sharing" in fault for fault in brain.stats()["degraded"])

    def test_an_acknowledgement_that_cannot_be_stored_costs_a_repetition_after_a_crash(
        self, opened, monkeypatch, tmp_path: Path
    ) -> None:
        brain, shard = opened(sharing="titles"), ModelShard()
        watch(brain, [1, 2])
        request = request_of(brain)
        answer = shard.answer(request)

        def full(rows: object) -> None:
            raise StoreError("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(brain._memory._keeper.store, "write", full)
            assert "could not be stored" in brain.collective.receive(request, answer).told.fault
        crashed = opened(copied(tmp_path, "crashed"), sharing="titles")
        assert told(request_of(crashed)) == ["t001", "t002"]
        watch(brain, [5])
        assert told(sync(brain, shard)) == ["t005"]
        watch(crashed, [6])
        assert sync(crashed, ModelShard()).device_id == request.device_id
        assert shard.titles_of_all() == ["t001", "t002", "t005"]

    def test_a_read_only_home_receives_and_tells_nothing(self, opened, tmp_path: Path) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1, 2])
        brain.close()
        with AgentMemory(tmp_path / "store", Clock(), vector_lookup=lambda *_: None, read_only=True) as memory:
            for mode in ("titles", "counts"):
                composer = DeltaComposer(brain._catalog, memory, mode, Clock(), Random(1))
                assert composer.request(3, all_fit) == SyncRequest(global_version_seen=3)
                assert "read-only" in composer.fault
            with pytest.raises(StoreReadOnlyError):
                memory.set_state("x", {})

    def test_a_state_that_cannot_be_read_begins_anew(self, opened) -> None:
        brain = opened(sharing="titles")
        watch(brain, [1])
        sync(brain, ModelShard())
        brain._memory.set_state("sync", {"from": "a later version"})
        brain.close()
        brain = opened(sharing="titles")
        watch(brain, [2])
        assert told(request_of(brain)) == ["t002"]

    def test_a_home_that_never_syncs_stays_bounded(self, opened, monkeypatch) -> None:
        from omega_edge import sharing_state

        monkeypatch.setattr(sharing_state, "MAX_FINISHED", 10)
        brain, shard = opened(sharing="titles"), ModelShard()
        for first in range(0, 40, 8):
            watch(brain, [row for row in range(first, first + 8) if row % 4 != 3])
            brain.checkpoint()
        for number in range(200):
            brain.collective.note_sync(NOW_MS + number, 9, 0, 0, 0, 0, "no connection")
        assert brain._memory._keeper.store.count("finished") == 10
        sync_stats = brain.stats()["sync"]
        assert len(sync_stats["log"]) == 50 and sync_stats["totals"]["failures"] == 200
        assert len(told(sync(brain, shard))) == 10

    def test_clocks_that_jump_by_ten_years_lose_nothing(self, opened) -> None:
        clock = Clock()
        brain, shard = opened(sharing="titles", clock=clock), ModelShard()
        expected = []
        for step, (own, server) in enumerate([(0, 0), (3650, 0), (-3650, -3650), (3650, 3650), (0, -1)]):
            clock.now_ms, shard.now_ms = NOW_MS + own * DAY_MS, NOW_MS + server * DAY_MS
            title = f"t{4 * step + 1:03d}"
            brain.observe(ViewingEvent(title, title, 0.9, 60, clock.now_ms, EVENING))
            sync(brain, shard)
            expected.append(title)
        assert shard.titles_of_all() == expected and len(shard.devices) == 1


class TestLog:
    def test_it_outlives_a_restart_and_names_no_title(self, opened, tmp_path: Path) -> None:
        brain = opened(sharing="titles")
        brain.collective.note_sync(NOW_MS, 100, 24, 3, 1, 0, "done")
        brain.collective.note_sync(NOW_MS + 1, 9, 0, 0, 0, 0, "no connection: it rains")
        assert "sync: no connection: it rains" in brain.stats()["degraded"]
        brain.close()
        told_log = opened(sharing="titles").stats()["sync"]
        assert told_log["totals"] == {
            "syncs": 2, "failures": 1, "bytes_up": 109, "bytes_down": 24, "titles": 3, "patterns": 1, "reports": 0
        }  # fmt: skip
        assert [entry["outcome"] for entry in told_log["log"]] == ["no connection: it rains", "done"]

    def test_forgetting_everything_forgets_it(self, opened) -> None:
        brain = opened(sharing="titles")
        brain.collective.note_sync(NOW_MS, 100, 24, 3, 1, 0, "done")
        brain.forget(everything=True)
        assert brain.stats()["sync"]["log"] == [] and brain.stats()["sync"]["totals"]["syncs"] == 0

    def test_one_that_cannot_be_read_begins_anew_and_says_so(self, opened) -> None:
        brain = opened()
        brain._memory.set_state("sync_log", {"entries": [[1]], "totals": {}})
        brain.close()
        brain = opened()
        assert any("log of syncs" in fault for fault in brain.stats()["degraded"])


def test_no_title_is_in_what_is_kept_for_sharing(opened, tmp_path: Path) -> None:
    brain, shard = opened(sharing="titles"), ModelShard()
    brain.observe(ViewingEvent("secret-id-7", "Zebra Crossing 1999", 0.9, 60, NOW_MS, EVENING))
    sync(brain, shard)
    brain.forget(content_id="secret-id-7")
    assert not bytes_in(tmp_path, b"secret-id-7")
