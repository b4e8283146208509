"""Exploration: now and then one position of a list shows a title that the ranking would not have put there.

Off unless BrainConfig.exploration says otherwise. With that chance, one position from the fourth on, drawn uniformly,
shows a title drawn uniformly from the spare ones: of the candidates, the fusion's best 100 that policy allows, those
that the list does not hold. So the chances are known exactly. For a list of k titles with s = k - 3 positions that may
explore and m spare titles, a position shows its own title with 1 - exploration / s, and each spare title with
exploration / (s * m). The chance that a title stood where it did is its propensity; it lets what was watched be weighed
afterwards as if the list had been made another way (cloud/off_policy.py).

A profile with an age limit never explores: a child is not experimented on, and what it was shown is not logged.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from omega_edge.protocol import check_content_id, check_profile_id, check_timestamp
from omega_edge.validation import check_integer, refuse

NEVER_EXPLORED = 3
"""Positions at the head of a list that always show the ranking's own choice."""
MAX_EXPLORATION = 0.2
LISTS_KEPT = 32
SLOTS_KEPT_PER_LIST = 47
"""Positions logged of one list: those of a list of 50 that may explore."""
ANSWER_LIFE_MS = 6 * 3600 * 1000
"""A viewing counts as an answer to a list for this long after the list was shown."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one list was filled: the candidate (index, best first) at each position, and its propensity."""

    chosen: list[int]
    propensity: list[float]
    explored: int | None
    """The position, from 0, that explored."""


def draw(candidates: int, k: int, exploration: float, randomness: Random) -> Draw:
    """Fill a list of k positions from so many candidates, the first k of which are the ranking's own choice."""
    length = min(k, candidates)
    chosen, propensity = list(range(length)), [1.0] * length
    places, spare = length - NEVER_EXPLORED, candidates - length
    if exploration <= 0.0 or places < 1 or spare < 1:
        return Draw(chosen, propensity, None)
    propensity[NEVER_EXPLORED:] = [1.0 - exploration / places] * places
    if randomness.random() >= exploration:
        return Draw(chosen, propensity, None)
    position = NEVER_EXPLORED + randomness.randrange(places)
    chosen[position] = length + randomness.randrange(spare)
    propensity[position] = exploration / (places * spare)
    return Draw(chosen, propensity, position)


@dataclass(frozen=True, slots=True)
class ShownSlot:
    """One position of a list that could have shown another title. position: from 1."""

    position: int
    content_id: str
    propensity: float


@dataclass(frozen=True, slots=True)
class ShownList:
    """The positions of one shown list that may explore."""

    profile: str
    shown_at: int
    slots: tuple[ShownSlot, ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """A logged slot and what came of it. reward: the share of the title watched by that profile within 6 hours, 0 if
    none."""

    profile: str
    shown_at: int
    position: int
    content_id: str
    propensity: float
    reward: float


class ExposureLog:
    """The newest LISTS_KEPT lists that could explore, in RAM until saved. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: deque[ShownList] = deque(maxlen=LISTS_KEPT)
        self._unsaved = False

    def note(self, shown: ShownList) -> None:
        """A list was shown. One without a slot that could have been otherwise teaches nothing and is not kept."""
        slots = tuple(slot for slot in shown.slots if slot.propensity < 1.0)[:SLOTS_KEPT_PER_LIST]
        if slots:
            with self._lock:
                self._lists.append(ShownList(shown.profile, shown.shown_at, slots))
                self._unsaved = True

    def lists(self) -> tuple[ShownList, ...]:
        """What is kept, oldest first."""
        with self._lock:
            return tuple(self._lists)

    def replace(self, lists: Iterable[ShownList]) -> None:
        """Put what was stored in the place of what is held."""
        with self._lock:
            self._lists = deque(lists, maxlen=LISTS_KEPT)
            self._unsaved = False

    def take_unsaved(self) -> dict | None:
        """The state to store, or None when nothing is new since it was last taken."""
        with self._lock:
            if not self._unsaved:
                return None
            self._unsaved = False
            return state_of(self._lists)

    def save_again(self) -> None:
        """What was taken could not be stored: the next take gives it again."""
        with self._lock:
            self._unsaved = True


def state_of(lists: Iterable[ShownList]) -> dict:
    """Lists as plain values. Within a list all propensities but at most one are alike, so each is [base, slots]: slots
    [position, content id], with the propensity as a third item where it is not the base."""
    return {"lists": [_plain(shown) for shown in lists]}


def _plain(shown: ShownList) -> dict:
    base = max(slot.propensity for slot in shown.slots)
    slots = [
        [slot.position, slot.content_id] + ([] if slot.propensity == base else [slot.propensity]) for slot in shown.slots
    ]
    return {"profile": shown.profile, "at": shown.shown_at, "base": base, "slots": slots}


def lists_of(state: object) -> tuple[ShownList, ...]:
    """Lists from a stored or imported state, None for no state. Raises ProtocolError."""
    if state is None:
        return ()
    if not isinstance(state, dict) or state.keys() != {"lists"} or not isinstance(state["lists"], list):
        raise refuse("exploration state", "an object with the list `lists`", state)
    if len(state["lists"]) > LISTS_KEPT:
        raise refuse("exploration state: lists", f"at most {LISTS_KEPT}", len(state["lists"]))
    # Of a list whose last logged title was forgotten there is nothing left to tell.
    return tuple(shown for shown in map(_shown_list, state["lists"]) if shown.slots)


def _shown_list(value: object) -> ShownList:
    if not isinstance(value, dict) or value.keys() != {"profile", "at", "base", "slots"}:
        raise refuse("exploration state: list", "an object with profile, at, base and slots", value)
    if not isinstance(value["slots"], list) or len(value["slots"]) > SLOTS_KEPT_PER_LIST:
        raise refuse("exploration state: slots", f"a list of at most {SLOTS_KEPT_PER_LIST}", value["slots"])
    base = _propensity(value["base"])
    slots = []
    for slot in value["slots"]:
        if not isinstance(slot, list) or len(slot) not in (2, 3):
            raise refuse("exploration state: slot", "[position, content id] or [position, content id, propensity]", slot)
        slots.append(
            ShownSlot(
                check_integer("exploration state: position", slot[0], NEVER_EXPLORED + 1, 1_000),
                check_content_id("exploration state: content id", slot[1]),
                _propensity(slot[2]) if len(slot) == 3 else base,
            )
        )
    return ShownList(
        check_profile_id("exploration state: profile", value["profile"]),
        check_timestamp("exploration state: at", value["at"]),
        tuple(slots),
    )


def _propensity(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
        raise refuse("exploration state: propensity", "a number above 0, at most 1", value)
    return float(value)


def exposures_of(lists: Iterable[ShownList], watched: dict[tuple[str, str], list[tuple[int, float]]]) -> list[Exposure]:
    """Every logged slot joined with what was watched: (profile, content id) to (timestamp, share watched) pairs.

    A viewing answers the newest list before it that shows its title; of several within the time the largest share
    counts.
    """
    answered: set[tuple[str, str, int]] = set()
    told = []
    for shown in reversed(tuple(lists)):
        for slot in reversed(shown.slots):
            reward = 0.0
            for at, share in watched.get((shown.profile, slot.content_id), ()):
                viewing = (shown.profile, slot.content_id, at)
                if 0 <= at - shown.shown_at <= ANSWER_LIFE_MS and viewing not in answered:
                    answered.add(viewing)
                    reward = max(reward, share)
            told.append(
                Exposure(shown.profile, shown.shown_at, slot.position, slot.content_id, slot.propensity, reward)
            )
    return told[::-1]

