"""When a television syncs: spread at the start, jittered, never in a hurry, and as late as the shard wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

import pytest

from omega_edge.brain import OmegaBrain
from omega_edge.sync import RetryPolicy, SyncClient, SyncConfig, SyncReport
from omega_edge.sync_http import retry_after_secs
from tests.model_shard import ModelShard, handler_of, http_answer, served
from tests.synthetic import NOW_MS


class Ended(Exception):
    """The test has seen enough."""


class Timetable:
    """A clock that only sleeping moves. moments: when each sync began, in seconds from the start."""

    def __init__(self, syncs: int) -> None:
        self.now, self.syncs, self.moments = 1_000_000.0, syncs, []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if len(self.moments) == self.syncs:
            raise Ended
        self.moments.append(self.now - 1_000_000.0)


def timetable(
    brain: OmegaBrain, answers: Sequence[bytes | None], seed: int = 1, shard: ModelShard | None = None, **options: object
) -> tuple[list[float], list[SyncReport]]:
    """The moments of len(answers) syncs, each answered so; None: by the shard; b"": hung up on."""
    table, reports = Timetable(len(answers)), []
    answer = handler_of(shard or ModelShard(), brain.collective.titles)

    async def run() -> None:
        def handle(head: bytes, body: bytes) -> bytes:
            given = answers[len(table.moments) - 1]
            return answer(head, body) if given is None else given

        async with served(handle) as traffic:
            client = SyncClient(
                brain, SyncConfig(traffic.url, timeout_secs=20.0, **options), randomness=Random(seed), clock=lambda: NOW_MS,
                monotonic=table.monotonic, sleep=table.sleep,
            )  # fmt: skip
            with pytest.raises(Ended):
                await client.run(reports.append)

    asyncio.run(run())
    return table.moments, reports


def gaps(moments: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(moments)]


REFUSED = http_answer(b"{}", "503 Service Unavailable")


def test_the_first_sync_is_spread_over_five_minutes(opened: Callable[..., OmegaBrain]) -> None:
    brain = opened()
    first = [timetable(brain, [None], seed)[0][0] for seed in range(40)]
    assert min(first) < 30 and max(first) > 270 and all(0 <= moment < 300 for moment in first)


def test_the_shards_interval_holds_within_a_fifth(opened: Callable[..., OmegaBrain]) -> None:
    moments, _reports = timetable(opened(), [None] * 60, shard=ModelShard(next_sync_secs=600))
    waits = gaps(moments)
    assert all(480 <= wait <= 720 for wait in waits) and min(waits) < 500 and max(waits) > 700


def test_without_a_shard_two_quick_tries_and_then_the_interval_within_a_half(opened: Callable[..., OmegaBrain]) -> None:
    brain = opened()
    moments, reports = timetable(brain, [b""] * 60, sync_interval_secs=400)
    assert not any(report.connected for report in reports)
    first, second, *steady = gaps(moments)
    assert 0.5 <= first <= 1.0 and 1.0 <= second <= 2.0
    assert all(200 <= wait <= 600 for wait in steady) and min(steady) < 230 and max(steady) > 570
    assert len(brain.stats()["sync"]["log"]) == 50 and brain.stats()["sync"]["totals"]["failures"] == 60


def test_once_connected_no_retry_is_quick(opened: Callable[..., OmegaBrain]) -> None:
    moments, _reports = timetable(opened(), [None, b"", b"", None, b"", REFUSED, b""])
    assert min(gaps(moments)) >= 150


def test_a_refusal_is_an_answer_after_which_nobody_hurries(opened: Callable[..., OmegaBrain]) -> None:
    moments, _reports = timetable(opened(), [REFUSED] * 4)
    assert min(gaps(moments)) >= 150


def test_the_mean_load_during_an_outage_is_that_of_every_other_time(opened: Callable[..., OmegaBrain]) -> None:
    moments, _reports = timetable(opened(), [None] + [REFUSED] * 200)
    assert sum(gaps(moments)) / 200 == pytest.approx(300, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_retry_after_is_waited_for(opened: Callable[..., OmegaBrain], seed: int) -> None:
    later = http_answer(b"{}", "429 Too Many Requests", "Retry-After: 3000\r\n")
    moments, _reports = timetable(opened(), [None, later, None], seed)
    assert 3000 <= gaps(moments)[1] <= 3600


def test_a_retry_after_shorter_than_the_interval_does_not_hurry(opened: Callable[..., OmegaBrain]) -> None:
    sooner = http_answer(b"{}", "503 Service Unavailable", "Retry-After: 1\r\n")
    moments, _reports = timetable(opened(), [None, sooner, None])
    assert gaps(moments)[1] >= 150


def test_the_same_random_source_makes_the_same_timetable(opened: Callable[..., OmegaBrain]) -> None:
    answers = [None, b"", None, REFUSED, None]
    assert timetable(opened("a"), answers)[0] == timetable(opened("b"), answers)[0] != timetable(opened("c"), answers, 2)[0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("0", 0.0), ("120", 120.0), (" 7 ", 7.0), ("999999999", 86_400.0), ("-1", None), ("1.5", None),
        ("9" * 5000, None), ("soon", None), ("", None), ("٣", None),
        ("Fri, 31 May 2013 11:35:20 GMT", 120.0), ("Fri, 31 May 2013 11:33:00 GMT", 0.0),
        ("Sun, 31 May 2093 11:33:20 GMT", 86_400.0), ("Fri, 99 May 2013 11:35:20 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_comes_as_a_number_or_a_date_and_is_capped(header: str | None, seconds: float | None) -> None:
    assert retry_after_secs(header, NOW_MS) == seconds


def test_delays_before_the_first_connection_double_up_to_a_minute() -> None:
    policy, random = RetryPolicy(), Random(3)
    longest = [max(policy.delay_secs(failed, random) for _ in range(200)) for failed in range(1, 10)]
    assert [round(each) for each in longest] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(policy.delay_secs(3, random) >= 2.0 for _ in range(200))


def test_one_sync_by_hand_tries_three_times(opened: Callable[..., OmegaBrain]) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> SyncReport:
        async with served(lambda head, body: b"") as traffic:
            return await SyncClient(opened(), SyncConfig(traffic.url), sleep=sleep, randomness=Random(1)).first_sync()

    assert not asyncio.run(run()).connected and len(slept) == 2
