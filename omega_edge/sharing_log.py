"""What left the home, for the household to read: the last syncs, and totals of all. It names no title.

Kept in memory's state `sync_log`. What is new waits in RAM until memory is saved for another reason: a record of every
idle sync would wear the flash more than all that is watched.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from omega_edge.errors import ProtocolError, StoreError
from omega_edge.memory import AgentMemory
from omega_edge.protocol import check_timestamp
from omega_edge.sharing_state import SYNC_LOG_STATE
from omega_edge.validation import check_integer, check_text

MAX_LOGGED = 50
MAX_OUTCOME_BYTES = 200
_COUNT_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class LoggedSync:
    """One sync. at: Unix ms. bytes_up, bytes_down: of the bodies. titles: finished titles that the cloud now holds;
    patterns: of the shared set, told, changed or taken back; reports: falsified titles. outcome: "done", or what went wrong.
    """

    at: int
    mode: str
    bytes_up: int
    bytes_down: int
    titles: int
    patterns: int
    reports: int
    outcome: str

    def __post_init__(self) -> None:
        check_timestamp("LoggedSync.at", self.at)
        check_text("LoggedSync.mode", self.mode, MAX_OUTCOME_BYTES)
        for name in ("bytes_up", "bytes_down", "titles", "patterns", "reports"):
            check_integer(f"LoggedSync.{name}", getattr(self, name), 0, _COUNT_MAX)
        check_text("LoggedSync.outcome", self.outcome, MAX_OUTCOME_BYTES)


_TOTALS = ("syncs", "failures", "bytes_up", "bytes_down", "titles", "patterns", "reports")


class SyncLog:
    """The last MAX_LOGGED syncs and the totals. Callers hold the brain's write lock."""

    def __init__(self, memory: AgentMemory) -> None:
        self._memory = memory
        self._unsaved = False
        self.fault: str | None = None
        self.reload()

    def reload(self) -> None:
        """Read the stored log again; one that cannot be read counts as empty, and fault says so."""
        self.fault = None
        self._unsaved = False
        self._entries: tuple[LoggedSync, ...] = ()
        self._totals = dict.fromkeys(_TOTALS, 0)
        state = self._memory.get_state(SYNC_LOG_STATE)
        if state is None:
            return
        try:
            self._entries = tuple(LoggedSync(*entry) for entry in state["entries"])[-MAX_LOGGED:]
            self._totals = {name: check_integer(name, state["totals"][name], 0, _COUNT_MAX) for name in _TOTALS}
        except (ProtocolError, TypeError, KeyError) as unreadable:
            self.fault = f"the log of syncs cannot be read and begins anew: {unreadable}"

    def note(self, entry: LoggedSync) -> None:
        """Add a sync."""
        self._entries = (*self._entries, entry)[-MAX_LOGGED:]
        self._totals["syncs"] += 1
        self._totals["failures"] += entry.outcome != "done"
        for name in _TOTALS[2:]:
            self._totals[name] += getattr(entry, name)
        self._unsaved = True

    def save(self) -> None:
        """Hand what is new to memory, which stores it with its next write; where it takes nothing, it stays in RAM."""
        if not self._unsaved:
            return
        try:
            self._memory.set_state(SYNC_LOG_STATE, self._plain())
        except StoreError as fault:
            self.fault = str(fault)
        else:
            self._unsaved = False

    def stats(self) -> dict[str, object]:
        """Totals, and the last syncs, newest first."""
        return {"totals": dict(self._totals), "log": [asdict(entry) for entry in reversed(self._entries)]}

    @property
    def last(self) -> LoggedSync | None:
        """The newest sync."""
        return self._entries[-1] if self._entries else None

    def _plain(self) -> dict[str, object]:
        names = [field.name for field in fields(LoggedSync)]
        return {
            "totals": dict(self._totals),
            "entries": [[getattr(entry, name) for name in names] for entry in self._entries],
        }
