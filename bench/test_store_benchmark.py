"""Micro-benchmarks of the store: ``python -m pytest bench/test_store_benchmark.py``.

What recording costs without and with a sync of its own, what a checkpoint, an open, a retrieval and a forget cost with
1,000 episodes, and the same event by a database commit for comparison. Each timed call is followed by a check of what
it did. Titles have random vectors around 60 centres, so that skills come together.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omega_edge.memory import AgentMemory
from omega_edge.protocol import DEFAULT_PROFILE, TimeOfDay, ViewContext, ViewingEvent
from omega_edge.store import Store

START_MS = 1_700_000_000_000
TITLES = 2000
EPISODES = 1000
_RANDOM = np.random.default_rng(7)
_VECTORS = _RANDOM.normal(size=(60, 384))[np.arange(TITLES) % 60] + 0.6 * _RANDOM.normal(size=(TITLES, 384))
_CODES = np.rint(_VECTORS * (127 / np.abs(_VECTORS).max(axis=1, keepdims=True))).astype(np.int8)
_SCALES = (1 / np.linalg.norm(_CODES.astype(np.float64), axis=1)).tolist()


def look_up(content_id: str, _content_title: str = "") -> tuple[np.ndarray, float]:
    number = int(content_id)
    return _CODES[number], _SCALES[number]


def event(number: int) -> ViewingEvent:
    context = ViewContext(TimeOfDay.EVENING, number % 7)
    watched = (number * 7 % 11) / 10
    return ViewingEvent(
        str(number % TITLES), f"Title {number % TITLES} of the benchmark", watched, 5400, START_MS + number, context
    )


def open_memory(folder, **options) -> AgentMemory:
    options.setdefault("catalogue_lookup", look_up)
    return AgentMemory(folder, lambda: START_MS, vector_lookup=look_up, **options)


@pytest.fixture
def memory(tmp_path):
    """With 1,000 episodes in the database and nothing waiting."""
    with open_memory(tmp_path / "store") as opened:
        for number in range(EPISODES):
            opened.record(event(number))
        opened.checkpoint()
        yield opened


def test_record_queued(benchmark, memory):
    """What observe() pays: appended, counted, not synced. Checkpoints fall among the calls."""
    benchmark.group = "one event"
    numbers = itertools.count(EPISODES)
    recorded = benchmark.pedantic(lambda: memory.record(event(next(numbers))), rounds=3000)
    assert recorded.sequence == EPISODES + 3000 and not recorded.durable


def test_record_durable(benchmark, tmp_path):
    """The same with durability_window_secs=0: one fdatasync each."""
    benchmark.group = "one event"
    numbers = itertools.count()
    with open_memory(tmp_path / "store", durability_window_secs=0) as memory:
        recorded = benchmark.pedantic(lambda: memory.record(event(next(numbers))), rounds=200)
        assert recorded.sequence == 200 and recorded.durable


def test_commit_one_record(benchmark, tmp_path):
    """For comparison: the event as a database transaction of its own."""
    benchmark.group = "one event"
    store = Store(tmp_path / "store")
    numbers = itertools.count()

    def commit():
        number = next(numbers)
        store.write([("episodes", number.to_bytes(8, "big"), {1: str(number), 2: "Title of the benchmark", 3: 0.5})])

    benchmark.pedantic(commit, rounds=100)
    assert store.count("episodes") == 100
    store.close()


@pytest.mark.parametrize("events", [256, 1024])
def test_checkpoint(benchmark, memory, events):
    """Into the tiers and the database, from the journal."""
    benchmark.group = f"checkpoint of {events} events"
    numbers = itertools.count(EPISODES)

    def fill():
        for _ in range(events - 1):
            memory.record(event(next(numbers)))

    benchmark.pedantic(memory.checkpoint, setup=fill, rounds=8)
    assert memory.stats()["pending_records"] == 0 and memory.stats()["episodes"] == EPISODES


@pytest.mark.parametrize("waiting", [0, 1000])
def test_open(benchmark, tmp_path, waiting):
    """Open and the history that ranking reads; with so many events left in the journal by a killed process."""
    benchmark.group = f"open, {waiting} events in the journal"
    folder = tmp_path / "store"
    memory = open_memory(folder)
    for number in range(EPISODES):
        memory.record(event(number))
    memory.checkpoint()
    for number in range(EPISODES, EPISODES + waiting):
        memory.record(event(number))
    memory._keeper.store.close()
    opened = []

    def close():
        while opened:
            opened.pop()._keeper.store.close()

    def open_and_read():
        opened.append(open_memory(folder))
        return opened[-1].history(DEFAULT_PROFILE, 65)

    items = benchmark.pedantic(open_and_read, setup=close, rounds=20)
    close()
    assert [item.timestamp - START_MS for item in items[:2]] == [EPISODES + waiting - 1, EPISODES + waiting - 2]


def test_retrieve(benchmark, memory):
    query = (_CODES[5] * np.float32(_SCALES[5])).astype(np.float32)
    memory.retrieve(query, 10)
    found = benchmark(memory.retrieve, query, 10, successes_only=True)
    assert len(found) == 10 and all(item.episode.success for item in found)


def test_rank_skills(benchmark, memory):
    query = (_CODES[5] * np.float32(_SCALES[5])).astype(np.float32)
    memory.rank_skills(query, 10)
    found = benchmark(memory.rank_skills, query, 10)
    assert len(found) == 10 and found[0].rank == max(item.rank for item in found)


def test_forget_a_title(benchmark, memory):
    """The whole database is written anew."""
    numbers = itertools.count()
    benchmark.pedantic(lambda: memory.forget(content_id=str(next(numbers))), rounds=10)
    assert not any(str(number) in memory.seen(DEFAULT_PROFILE) for number in range(10))
    assert memory.stats()["episodes"] == EPISODES - 10
