"""The brain's side of a sync: the next request, what its answer means, and the log of what left the home.

Made by the brain, which lends its lock. Everything that is sent is composed in sharing.py; this only passes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError, ConfigError, ProtocolError, StoreError
from omega_edge.knowledge import CollectiveKnowledge
from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    COUNT_EPSILON,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
)
from omega_edge.ranker import Ranker
from omega_edge.ranking import History, Moment
from omega_edge.sharing import DeltaComposer, Taken, TitlesThatFit
from omega_edge.sharing_log import LoggedSync, SyncLog

REPORTS_A_YEAR = 365.25
RANKED_AT_TRIAL = 20


@dataclass(frozen=True, slots=True)
class Received:
    """What came of a response. told: what it meant to what was sent; changed: patterns and trends that are new here."""

    told: Taken
    changed: int


def check_ranks(catalog: Catalog) -> None:
    """Rank by a catalogue that was never used; raises whatever goes wrong."""
    allowed = np.full(-(-catalog.count // 8), 255, np.uint8)
    ranked = Ranker(catalog).rank(History.empty(), Moment(slot=0), allowed, min(catalog.count, RANKED_AT_TRIAL), 0.1)
    if len(set(ranked.rows.tolist())) != min(catalog.count, RANKED_AT_TRIAL):
        raise CatalogError(f"expected a list of {RANKED_AT_TRIAL} titles, got {len(ranked.rows)}")


class Collective:
    """What one home gives to the collective and takes from it. Thread-safe, like the brain."""

    def __init__(
        self,
        lock: threading.RLock,
        require_open: Callable[[], None],
        clock: Callable[[], int],
        titles: Catalog,
        memory: AgentMemory,
        knowledge: CollectiveKnowledge,
        mode: str,
        secrecy: Random,
    ) -> None:
        """lock, require_open, clock: the brain's. titles: the numbering that messages travel in. secrecy: what device ids and falsified reports are drawn from."""
        self._lock = lock
        self._require_open = require_open
        self._clock = clock
        self._knowledge = knowledge
        self._composer = DeltaComposer(titles, memory, mode, clock, secrecy)
        self._log = SyncLog(memory)
        self.titles = titles
        self.mode = mode

    # A sync --------------------------------------------------------------------------------------

    def request(self, titles_that_fit: TitlesThatFit) -> SyncRequest:
        """The request to send next. titles_that_fit: wire.titles_that_fit with the numbering that it will travel in.

        Ask again after every response; what was lost is composed anew. A request without a device id tells nothing.
        """
        self._require_open()
        quiet = self._composer.quiet_request(self._knowledge.global_version)
        if quiet is not None:
            return quiet
        with self._lock:
            self._require_open()
            return self._composer.request(self._knowledge.global_version, titles_that_fit)

    def receive(self, request: SyncRequest, response: SyncResponse) -> Received:
        """Note what the response says of the request, which was the last one made, and take in what it brings."""
        with self._lock:
            self._require_open()
            try:
                told = self._composer.take(request, response)
            except StoreError as fault:
                told = Taken(fault=f"the answer could not be stored: {fault}")
            changed = 0
            if response.patterns is not None:
                try:
                    changed = self._knowledge.apply(response.patterns, self._clock())
                except StoreError as fault:
                    told = told if told.fault else Taken(fault=f"what the cloud told could not be stored: {fault}")
            return Received(told, changed)

    def token_of(self, device_id: bytes) -> bytes | None:
        """See DeltaComposer.token_of."""
        with self._lock:
            self._require_open()
            return self._composer.token_of(device_id)

    def keep_token(self, device_id: bytes, token: bytes) -> None:
        """See DeltaComposer.keep_token."""
        with self._lock:
            self._require_open()
            self._composer.keep_token(device_id, token)

    def disown(self, device_id: bytes) -> None:
        """See DeltaComposer.disown."""
        with self._lock:
            self._require_open()
            self._composer.disown(device_id)

    def note_sync(
        self, at: int, bytes_up: int, bytes_down: int, titles: int, patterns: int, reports: int, outcome: str
    ) -> None:
        """Add a sync to the log that stats() shows; see LoggedSync."""
        entry = LoggedSync(at, self.mode, bytes_up, bytes_down, titles, patterns, reports, outcome)
        with self._lock:
            self._require_open()
            self._log.note(entry)
            if titles or patterns or reports:
                self._log.save()

    def prepare(self, max_titles: int) -> PatternDelta | None:
        """See OmegaBrain.prepare_sync_delta."""
        with self._lock:
            self._require_open()
            return self._composer.prepare(max_titles)

    def acknowledge(self, local_version: int) -> None:
        """See OmegaBrain.acknowledge_sync."""
        with self._lock:
            self._require_open()
            self._composer.acknowledge(local_version)

    def apply(self, patterns: GlobalPatterns) -> int:
        """See OmegaBrain.apply_global_patterns."""
        if not isinstance(patterns, GlobalPatterns):
            raise ConfigError(f"patterns: expected GlobalPatterns, got {type(patterns).__name__}")
        with self._lock:
            self._require_open()
            return self._knowledge.apply(patterns, self._clock())

    # For the brain, which holds the lock ---------------------------------------------------------

    @contextmanager
    def rewriting(self, imported: bool = False) -> Iterator[None]:
        """Around an import or a forget; see DeltaComposer.before_rewrite. An import that is refused changes nothing."""
        before = self._composer.before_rewrite(imported)
        try:
            yield
        except (ProtocolError, ConfigError):
            self._composer.keep(before)
            raise

    def restart(self) -> None:
        """Memory was rewritten."""
        self._composer.restart()
        self._knowledge.reload()
        self._log.reload()

    def save(self) -> None:
        """Hand the log to memory."""
        self._log.save()

    def faults(self) -> dict[str, str | None]:
        """What does not work, by name, None for what does."""
        last = self._log.last
        return {
            "sharing": self._composer.fault,
            "global patterns and trends": self._knowledge.fault,
            "log of syncs": self._log.fault,
            "sync": None if last is None or last.outcome == "done" else last.outcome,
        }

    def stats(self) -> dict[str, object]:
        """What left the home and under which mode; holds no title."""
        privacy = {}
        if self.mode == "counts":
            privacy = {
                "epsilon_per_report": COUNT_EPSILON,
                "epsilon_per_year": COUNT_EPSILON * REPORTS_A_YEAR,
            }
        return {"mode": self.mode, **privacy, **self._composer.stats(), **self._log.stats()}
