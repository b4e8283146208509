"""The rules of sync, by what they promise: devices over a network that loses, repeats, delays and reorders, wiped, cloned and
erased, an eavesdropper who plays requests again, and a clock that jumps; all of it random, by seed, against the real store.
"""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cloud.lmdb_storage import LmdbStorage
from cloud.storage import DeviceState, StoredPattern, SyncChange, SyncOutcome
from cloud.sync_rules import REPORT_DAYS_KEPT, clamp_finished, report_is_due, with_report
from omega_edge.protocol import DAY_MS, U64_MAX

NOW_MS = 1_700_000_000_000


@dataclass
class Home:
    """A television by itself: what it finished, what it knows to be acknowledged, its shared set."""

    device_id: bytes
    epoch: int
    version: int = 0
    acknowledged: int = 0
    seen: int | None = None
    finished: list[tuple[int, int]] = field(default_factory=list)
    """(version, row)."""
    patterns: dict[int, int] = field(default_factory=dict)
    """Id → mark."""
    shared: dict[int, int] = field(default_factory=dict)
    """As of the last acknowledgement."""
    snapshot: bool = False
    told: set[int] = field(default_factory=set)
    """Rows that were acknowledged."""

    def live(self, chosen: random.Random, next_row: list[int]) -> None:
        """Watch something, and let the shared set drift."""
        for _ in range(chosen.randrange(4)):
            self.version += 1
            next_row[0] += 1
            self.finished.append((self.version, next_row[0]))
        if chosen.random() < 0.3:
            self.version += 1
            self.patterns[chosen.randrange(6)] = chosen.getrandbits(64)
            if chosen.random() < 0.3:
                self.patterns.pop(chosen.choice(list(self.patterns)))

    def request(self, now_ms: int) -> SyncChange:
        """Everything since the last acknowledgement."""
        rows = [row for version, row in self.finished if version > self.acknowledged]
        changed = {number: mark for number, mark in self.patterns.items() if self.shared.get(number) != mark}
        if self.snapshot:
            changed = self.patterns
        return SyncChange(
            self.device_id, self.epoch, now_ms, self.seen, self.version, rows, [now_ms] * len(rows),
            tuple(StoredPattern(number, 0.8, 3, 0, 0, ((1, 255),), mark=mark) for number, mark in changed.items()),
            () if self.snapshot else tuple(self.shared.keys() - self.patterns.keys()),
            self.snapshot, sum(self.patterns.values()) & U64_MAX,
        )  # fmt: skip

    def take(self, request: SyncChange, outcome: SyncOutcome, patterns: dict[int, int]) -> None:
        """The reply to a request of this home arrived."""
        assert not outcome.reset, "a home that is alone with its identity was told to reset"
        assert outcome.acknowledged_local_version == request.local_version
        assert self.seen is None or outcome.server_time > self.seen
        self.seen, self.acknowledged, self.shared = outcome.server_time, request.local_version, patterns
        self.told.update(request.rows)
        self.snapshot = outcome.snapshot_wanted


class World:
    """Homes, the store, and all requests that ever went over the network."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chosen = random.Random(seed)
        self.now_ms = NOW_MS
        self.store = LmdbStorage(folder, clock=lambda: self.now_ms, map_bytes=64 << 20, reserve_bytes=4_096)
        self.next_row = [0]
        self.homes = [self.new_home() for _ in range(6)]
        self.captured: list[SyncChange] = []
        self.sent: dict[bytes, set[int]] = {}
        self.erased: set[int] = set()

    def new_home(self) -> Home:
        return Home(self.chosen.randbytes(16), self.chosen.getrandbits(64))

    def apply(self, request: SyncChange) -> SyncOutcome:
        """What the shard does with a request, by the way that needs no write where there is one."""
        request = replace(request, received_ms=self.now_ms)
        self.captured.append(request)
        self.sent.setdefault(request.device_id, set()).update(request.rows)
        spared = self.store.unchanged(request)
        (outcome,) = self.store.apply([request])
        if spared is not None:
            assert spared == outcome and not outcome.changed
        return outcome

    def sync(self, home: Home) -> None:
        """One exchange; the network may lose or repeat either half of it."""
        request, patterns = home.request(self.now_ms), dict(home.patterns)
        fate = self.chosen.random()
        if fate < 0.15:
            return  # lost on the way up
        outcome = self.apply(request)
        if fate < 0.3:
            return  # the reply is lost; the next request shows the same time
        if fate < 0.4:
            again = self.apply(request)  # repeated by the network
            assert again.acknowledged_local_version == outcome.acknowledged_local_version and not again.reset
        home.take(request, outcome, patterns)

    def eavesdropper(self) -> None:
        """Plays an old request again: nothing of the store may change but by the owner's own latest, unheard request."""
        old = self.chosen.choice(self.captured)
        before = (self.store.device(old.device_id), self.rows(), self.store.patterns_of(old.device_id))
        (outcome,) = self.store.apply([replace(old, received_ms=self.now_ms)])
        after = (self.store.device(old.device_id), self.rows(), self.store.patterns_of(old.device_id))
        if before != after:
            state = after[0]
            assert before[0] is not None and replace(state, snapshot_day=0) == replace(before[0], snapshot_day=0)
            assert before[1:] == after[1:] and outcome.snapshot_wanted

    def wipe(self, home: Home) -> None:
        """A factory reset that keeps the device id, as a restored backup of the identity alone would."""
        number = self.homes.index(home)
        self.homes[number] = Home(home.device_id, self.chosen.getrandbits(64), told=home.told)

    def erase(self, home: Home) -> None:
        """Leave, and come back as somebody new."""
        (outcome,) = self.store.apply([SyncChange(home.device_id, home.epoch, self.now_ms, erase=True)])
        assert outcome.erased
        self.erased |= self.sent.get(home.device_id, set())
        self.homes[self.homes.index(home)] = self.new_home()

    def rows(self) -> set[tuple[bytes, int]]:
        found, sequence = set(), 0
        while pages := self.store.pages_after(sequence, 500):
            found |= {(page.device_id, row) for page in pages for row in page.rows.tolist()}
            sequence = pages[-1].sequence
        return found

    def check(self) -> None:
        """Everything acknowledged is there; nothing else is but what was sent; nothing of who left is."""
        stored = self.rows()
        for home in self.homes:
            assert {(home.device_id, row) for row in home.told} <= stored, "an acknowledged title is missing"
            if home.acknowledged == home.version and home.seen is not None and not home.snapshot:
                marks = {pattern.id: pattern.mark for pattern in self.store.patterns_of(home.device_id)}
                # After a lost reply the sets may differ; that is noticed, and healed by a snapshot, at most once a day.
                asked = self.store.device(home.device_id).snapshot_day
                assert marks == home.shared or asked, "the shared sets differ and nobody noticed"
        assert all(row in self.sent[device] for device, row in stored)
        assert not {row for _, row in stored} & self.erased

    def step(self) -> None:
        home = self.chosen.choice(self.homes)
        home.live(self.chosen, self.next_row)
        kind = self.chosen.random()
        if kind < 0.75:
            self.sync(home)
        elif kind < 0.93 and self.captured:
            self.eavesdropper()
        elif kind < 0.96:
            self.wipe(home)
        elif kind < 0.98:
            self.erase(home)
        self.now_ms += self.chosen.choice((0, 1, 300_000, DAY_MS, -3_600_000))


@pytest.mark.parametrize("seed", range(6))
def test_nothing_acknowledged_is_lost_and_nothing_else_is_taken(tmp_path, seed):
    world = World(tmp_path / "store", seed)
    try:
        for turn in range(150):
            world.step()
            if turn % 25 == 24:
                world.check()
        assert len(world.rows()) > 50
    finally:
        world.store.close()


class TestSnapshots:
    @staticmethod
    def request(now_ms: int, version: int, seen: int | None, *patterns: StoredPattern, **others) -> SyncChange:
        return SyncChange(bytes(16), 1, now_ms, seen, version, patterns=patterns, **others)

    def test_another_hash_asks_once_a_day_and_the_snapshot_heals_it(self, tmp_path):
        store = LmdbStorage(tmp_path / "store", clock=lambda: NOW_MS, map_bytes=1 << 24, reserve_bytes=4_096)
        one, two = (StoredPattern(number, 0.9, 3, 0, 0, ((number, 255),), mark=number * 11) for number in (1, 2))
        (first,) = store.apply([self.request(NOW_MS, 1, None, one, shared_set_hash=11)])
        assert not first.snapshot_wanted
        lost = self.request(NOW_MS + 1, 1, first.server_time, shared_set_hash=33)
        assert store.unchanged(lost) is None
        (asked,) = store.apply([lost])
        assert asked.snapshot_wanted and asked.acknowledged_local_version == 1
        again = self.request(NOW_MS + 2, 1, asked.server_time, shared_set_hash=33)
        assert store.apply([again])[0].snapshot_wanted is False
        tomorrow = replace(again, received_ms=NOW_MS + DAY_MS)
        (asked,) = store.apply([tomorrow])
        assert asked.snapshot_wanted
        whole = self.request(NOW_MS + DAY_MS + 1, 2, asked.server_time, one, two, snapshot=True, shared_set_hash=33)
        assert store.apply([whole])[0].snapshot_wanted is False
        assert [pattern.id for pattern in store.patterns_of(bytes(16))] == [1, 2]
        assert store.device(bytes(16)).shared_set_hash == 33
        store.close()


class TestCopies:
    """Two copies of one device that heard the same last reply."""

    @pytest.mark.parametrize("version", [4, 5])
    def test_a_copy_under_a_version_already_taken_is_told_to_reset(self, tmp_path, version):
        with closing(LmdbStorage(tmp_path, clock=lambda: NOW_MS, map_bytes=1 << 24, reserve_bytes=4_096)) as store:
            first = SyncChange(b"d" * 16, 1, NOW_MS, None, 3, [1], [NOW_MS])
            seen = store.apply([first])[0].server_time
            original = SyncChange(b"d" * 16, 1, NOW_MS, seen, 5, [2, 3], [NOW_MS] * 2)
            copy = SyncChange(b"d" * 16, 1, NOW_MS, seen, version, [4], [NOW_MS])
            assert store.apply([original])[0].acknowledged_local_version == 5
            refused = store.apply([copy])[0]
            assert refused.reset and refused.acknowledged_local_version is None
            repeated = store.apply([original])[0]
            assert repeated.acknowledged_local_version == 5 and not repeated.reset
            assert [page.rows.tolist() for page in store.pages_after(0, 10)] == [[1], [2, 3]]


class TestReports:
    state = DeviceState(1, 0, 0, 0)

    def test_each_day_counts_once_in_any_order(self):
        today = NOW_MS // DAY_MS
        chosen = random.Random(4)
        days = [today + chosen.randrange(-3, 4) for _ in range(60)]
        state, counted = self.state, set()
        for day in days:
            after = with_report(state, day)
            assert (after is None) == (day in counted)
            state = after or state
            counted.add(day)

    def test_a_day_too_far_back_is_not_counted_twice(self):
        state = with_report(self.state, 1_000)
        assert with_report(state, 1_000 - REPORT_DAYS_KEPT) is None
        assert with_report(with_report(state, 1_100), 1_000) is None

    def test_which_days_may_come(self):
        today = NOW_MS // DAY_MS
        assert [report_is_due(today + days, NOW_MS) for days in range(-3, 3)] == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("finished", "kept"),
    [(0, NOW_MS - 400 * DAY_MS), (NOW_MS - 5, NOW_MS - 5), (NOW_MS + 5, NOW_MS), (1 << 46, NOW_MS)],
)
def test_times_are_kept_within_400_days_before_receipt(finished, kept):
    assert clamp_finished(finished, NOW_MS) == kept
    assert clamp_finished(finished, 1_000) <= 1_000
