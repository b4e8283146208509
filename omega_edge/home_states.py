"""What the brain keeps in memory's states of its own household: favourites picked at the start, lists that explored.

State `favourites`: {"picked": [{"profile", "content_id"}]}. A favourite counts as liked, and is not offered, because the
home knows it. State `exploration`: see exploration.state_of. Both are forgotten and exported like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from omega_edge.errors import ProtocolError, StoreError, StoreReadOnlyError
from omega_edge.exploration import Exposure, ExposureLog, ShownList, ShownSlot, exposures_of, lists_of
from omega_edge.memory import AgentMemory
from omega_edge.protocol import Recommendation, check_content_id, check_profile_id
from omega_edge.validation import refuse

FAVOURITES, EXPLORATION = "favourites", "exploration"
MAX_FAVOURITES = 1_000
"""Of all profiles; the oldest go first."""


class HomeStates:
    """Favourites and explored lists of one household. Callers hold the brain's write lock, but for note_shown."""

    def __init__(self, memory: AgentMemory) -> None:
        self._memory = memory
        self._log = ExposureLog()
        self._picked: tuple[tuple[str, str], ...] = ()
        self.fault: str | None = None
        self.reload()

    def reload(self) -> None:
        """Read the stored states again. What cannot be read counts as never kept, and fault says so."""
        self.fault = None
        try:
            self._picked = _favourites_of(self._memory.get_state(FAVOURITES))
            self._log.replace(lists_of(self._memory.get_state(EXPLORATION)))
        except ProtocolError as unreadable:
            self.fault = f"favourites or explored lists cannot be read: {unreadable}"
            self._picked = ()
            self._log.replace(())

    def favourites(self, profile: str) -> tuple[str, ...]:
        """Content ids that a profile picked, oldest first."""
        return tuple(content_id for owner, content_id in self._picked if owner == profile)

    def pick(self, profile: str, content_ids: Sequence[str]) -> None:
        """Keep more favourites of a profile, durably; one that is kept already stays where it is. If it raises, none is."""
        new = [(profile, content_id) for content_id in content_ids if (profile, content_id) not in self._picked]
        picked = (*self._picked, *new)[-MAX_FAVOURITES:]
        self._memory.set_state(FAVOURITES, _plain(picked))
        try:
            # The likes that follow outlive a killed process in the journal; without this, what they are likes of would be
            # offered again.
            self._memory.flush()
        except StoreError:
            self._memory.set_state(FAVOURITES, _plain(self._picked))
            raise
        self._picked = picked

    def note_shown(self, profile: str, shown: Sequence[Recommendation], now_ms: int) -> None:
        """A list was shown. It is logged if it could have been another one."""
        slots = [
            ShownSlot(position, each.content_id, each.propensity)
            for position, each in enumerate(shown, start=1)
            if each.propensity is not None
        ]
        if slots:
            self._log.note(ShownList(profile, now_ms, tuple(slots)))

    def exposures(self, history_limit: int) -> list[Exposure]:
        """Every logged slot with what was watched of it within 6 hours, oldest list first."""
        # A list that was made while its profile was being forgotten may be noted after that.
        known = {profile.id for profile in self._memory.profiles()}
        lists = tuple(shown for shown in self._log.lists() if shown.profile in known)
        watched: dict[tuple[str, str], list[tuple[int, float]]] = {}
        oldest = min((shown.shown_at for shown in lists), default=0)
        for profile in {shown.profile for shown in lists}:
            for item in self._memory.history(profile, history_limit):
                if oldest <= item.timestamp and item.watch_percentage > 0:
                    watched.setdefault((profile, item.content_id), []).append((item.timestamp, item.watch_percentage))
        return exposures_of(lists, watched)

    def save(self) -> None:
        """Hand what is new to memory, which stores it with its next write. One that is read-only takes nothing: then what
        is new stays in RAM, and fault says so, since neither reading nor closing may fail for it."""
        state = self._log.take_unsaved()
        if state is None:
            return
        try:
            self._memory.set_state(EXPLORATION, state)
        except StoreReadOnlyError as fault:
            self._log.save_again()
            self.fault = str(fault)


def check_exported_home_states(exported: object) -> None:
    """ProtocolError where an export holds favourites or explored lists that reload() could not read."""
    states = exported.get("states") if isinstance(exported, dict) else None
    if isinstance(states, dict):
        _favourites_of(states.get(FAVOURITES))
        lists_of(states.get(EXPLORATION))


def _plain(picked: Sequence[tuple[str, str]]) -> dict:
    return {"picked": [{"profile": owner, "content_id": content_id} for owner, content_id in picked]}


def _favourites_of(state: object) -> tuple[tuple[str, str], ...]:
    if state is None:
        return ()
    if not isinstance(state, dict) or state.keys() != {"picked"} or not isinstance(state["picked"], list):
        raise refuse("favourites state", "an object with the list `picked`", state)
    if len(state["picked"]) > MAX_FAVOURITES:
        raise refuse("favourites state: picked", f"at most {MAX_FAVOURITES}", len(state["picked"]))
    picked = []
    for item in state["picked"]:
        if not isinstance(item, dict) or item.keys() != {"profile", "content_id"}:
            raise refuse("favourites state: picked", "objects with profile and content_id", item)
        check_profile_id("favourites state: profile", item["profile"])
        picked.append((item["profile"], check_content_id("favourites state: content_id", item["content_id"])))
    return tuple(picked)
