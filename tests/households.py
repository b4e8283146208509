"""A made-up household for tests of memory: titles with vectors in clusters, events, and a plain model of it all."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    FeedbackKind,
    Profile,
    TimeOfDay,
    ViewContext,
    ViewingEvent,
)

START_MS = 1_700_000_000_000
TITLES = 40
CLUSTERS = 8
SNOOZE_MS = 14 * 86_400_000
_CENTRES = np.random.default_rng(11).normal(size=(CLUSTERS, 384))
"""Independent directions: the cosine between two clusters is about 0, within one about 0.8 (noise of half the norm)."""


def content_id(number: int) -> str:
    """Ids that occur in no other bytes of a store."""
    return f"tt{number:07d}"


def title(number: int) -> str:
    """A name with letters of several scripts."""
    return f"Prüfung {number:04d} 試験"


def code_of(number: int) -> tuple[np.ndarray, float]:
    """The int8[384] code and scale of a title: its cluster's direction with noise of its own."""
    noise = np.random.default_rng(1000 + number).normal(size=384)
    vector = _CENTRES[number % CLUSTERS] + 0.5 * noise
    code = np.rint(vector * (127 / np.abs(vector).max())).astype(np.int8)
    return code, float(1 / np.linalg.norm(code.astype(np.float64)))


_CODES: dict[str, tuple[np.ndarray, float]] = {}


def look_up(name: str, _title: str = "") -> tuple[np.ndarray, float]:
    """vector_lookup and catalogue_lookup of the household's titles."""
    if name not in _CODES:
        _CODES[name] = code_of(int(name[2:]))
    return _CODES[name]


def unit(number: int) -> np.ndarray:
    """The unit vector float32[384] that a title's code stands for."""
    code, scale = look_up(content_id(number))
    return (code * np.float32(scale)).astype(np.float32)


def event(
    number: int,
    watched: float = 1.0,
    at_ms: int = START_MS,
    profile: str = DEFAULT_PROFILE,
    time: TimeOfDay = TimeOfDay.EVENING,
    day: int = 2,
) -> ViewingEvent:
    """A viewing of a title."""
    return ViewingEvent(
        content_id(number), title(number), watched, 5400, at_ms, ViewContext(time, day, profile=profile)
    )


class Clock:
    """A clock that tests set."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def open_memory(folder, clock=None, **options) -> AgentMemory:
    """A memory whose titles have the vectors above."""
    options.setdefault("vector_lookup", look_up)
    return AgentMemory(folder, clock or Clock(), **options)


@dataclass
class Kept:
    """One episode as the plain model has it."""

    number: int
    watched: float | None
    engagement: float
    kind: str
    at_ms: int


@dataclass
class PlainViewer:
    """One profile in plain containers, newest episode last."""

    episodes: list[Kept] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    hidden: dict[str, tuple[FeedbackKind, int | None]] = field(default_factory=dict)


class PlainMemory:
    """What AgentMemory promises of profiles, history, seen and hidden, said again in the plainest way."""

    def __init__(self, recent: int = 65) -> None:
        self.recent = recent
        self.viewers = {DEFAULT_PROFILE: PlainViewer()}

    def record(self, number: int, watched: float, at_ms: int, profile: str) -> None:
        viewer, name = self.viewers[profile], content_id(number)
        engagement = 1.0 if name in viewer.finished else watched
        viewer.episodes.append(Kept(number, watched, engagement, "watched", at_ms))
        viewer.seen[name] = at_ms
        if watched >= 0.7:
            viewer.finished.add(name)

    def feedback(self, number: int, kind: FeedbackKind, at_ms: int, profile: str) -> None:
        viewer, name = self.viewers[profile], content_id(number)
        for_ever = viewer.hidden.get(name, (None, 0))[1] is None
        if kind is FeedbackKind.NOT_NOW:
            if not for_ever:
                viewer.hidden[name] = (kind, at_ms + SNOOZE_MS)
            return
        if kind is FeedbackKind.LIKE:
            viewer.hidden.pop(name, None)
        else:
            viewer.hidden[name] = (kind, None)
        liked = kind is FeedbackKind.LIKE
        for kept in reversed(viewer.episodes[-self.recent :]):
            if kept.number == number:
                kept.engagement, kept.kind = float(liked), "liked" if liked else "disliked"
                return
        viewer.episodes.append(Kept(number, None, float(liked), "liked" if liked else "disliked", at_ms))

    def set_profile(self, profile: Profile) -> None:
        self.viewers.setdefault(profile.id, PlainViewer())

    def forget_title(self, number: int) -> None:
        for viewer in self.viewers.values():
            viewer.episodes = [kept for kept in viewer.episodes if kept.number != number]
            viewer.seen.pop(content_id(number), None)
            viewer.finished.discard(content_id(number))
            viewer.hidden.pop(content_id(number), None)

    def forget_profile(self, profile: str) -> None:
        if profile == DEFAULT_PROFILE:
            self.viewers[profile] = PlainViewer()
        else:
            del self.viewers[profile]

    def forget_everything(self) -> None:
        self.viewers = {DEFAULT_PROFILE: PlainViewer()}

    def check(self, memory: AgentMemory) -> None:
        """AssertionError unless the memory answers as this model does. Only for fewer episodes than tier 1 keeps."""
        assert [profile.id for profile in memory.profiles()] == list(self.viewers)
        for profile, viewer in self.viewers.items():
            assert dict(memory.seen(profile)) == viewer.seen
            assert dict(memory.hidden(profile)) == viewer.hidden
            assert memory.event_count(profile) == len(viewer.episodes)
            found = memory.history(profile, len(viewer.episodes) + 1)
            assert [item.content_id for item in found] == [content_id(kept.number) for kept in viewer.episodes[::-1]]
            for item, kept in zip(found, viewer.episodes[::-1], strict=True):
                watch = kept.engagement if kept.watched is None else kept.watched
                success = kept.kind == "liked" if kept.watched is None else kept.watched >= 0.7
                assert item.kind == kept.kind
                assert item.timestamp == kept.at_ms
                assert item.reward == 0.7 * watch + 0.3 * kept.engagement
                assert item.success == (success and kept.kind != "disliked")


Step = tuple
"""("record", title, watched, at_ms), ("feedback", title, kind, at_ms), or a name of what else was called."""


def steps_of(seed: int, count: int) -> list[Step]:
    """A fixed sequence of calls, most of them viewings."""
    chosen = random.Random(seed)
    steps: list[Step] = []
    for place in range(count):
        number, at_ms = chosen.randrange(TITLES), START_MS + 60_000 * place
        kind = chosen.choices(("record", "feedback", "flush", "checkpoint", "forget"), (70, 15, 8, 5, 2))[0]
        if kind == "record":
            steps.append((kind, number, chosen.randrange(11) / 10, at_ms))
        elif kind == "feedback":
            steps.append((kind, number, chosen.choice(list(FeedbackKind)), at_ms))
        elif kind == "forget" and steps:
            steps.append((kind, steps[-1][1]))  # of late, so that the journal names it
        else:
            steps.append((kind, number))
    return steps


def take_step(memory: AgentMemory, step: Step) -> bool | None:
    """Make one call on a memory. Returns whether everything so far is durable, None if it is not said."""
    match step:
        case "record", number, watched, at_ms:
            return memory.record(event(number, watched, at_ms)).durable
        case "feedback", number, kind, at_ms:
            return memory.feedback(DEFAULT_PROFILE, content_id(number), title(number), kind, at_ms).durable
        case "flush", _:
            memory.flush()
        case "checkpoint", _:
            memory.checkpoint()
        case "forget", number:
            memory.forget(content_id=content_id(number))
    return True


def take_plain_step(plain: PlainMemory, step: Step) -> bool:
    """The same on the model. Returns whether the step is one that a sequence is given to."""
    match step:
        case "record", number, watched, at_ms:
            plain.record(number, watched, at_ms, DEFAULT_PROFILE)
            return True
        case "feedback", number, kind, at_ms:
            plain.feedback(number, kind, at_ms, DEFAULT_PROFILE)
            return True
        case "forget", number:
            plain.forget_title(number)
    return False
