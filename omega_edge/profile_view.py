"""One profile as ranking and policy see it: an immutable snapshot, replaced after each event.

Readers take the snapshot that stands and never wait; the writer builds the next one and swaps it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from omega_edge.catalog import Catalog
from omega_edge.memory import HistoryItem
from omega_edge.policy import Household, Policy
from omega_edge.protocol import MAX_RECENT_WATCHES, MAX_TIMESTAMP_MS, Profile
from omega_edge.ranking import HISTORY_HELD, History, slot_of
from omega_edge.reasons import NamedEvent

EVENTS_AT_ONCE = 2 * MAX_RECENT_WATCHES
"""Newest events among which the last titles watched are nearly always found."""


@dataclass(frozen=True, slots=True)
class ProfileView:
    """Snapshot of one profile: its events newest first, as reasons name them and as ranking reads them, and what
    policy needs."""

    events: tuple[NamedEvent, ...]
    history: History
    household: Household

    @staticmethod
    def build(
        catalog: Catalog,
        profile: Profile,
        items: Iterable[HistoryItem],
        event_count: int,
        seen: Iterable[str],
        hidden: Mapping[str, tuple[object, int | None]],
    ) -> ProfileView:
        """A snapshot from memory. items: newest first; seen: content ids; hidden: id to (kind, until or None)."""
        kept = tuple(items)[:HISTORY_HELD]
        history = History.empty()
        for item in reversed(kept):
            history = _pushed(catalog, history, item)
        history = replace(history, count=max(event_count, len(kept)))
        seen_mask = np.zeros(catalog.count, bool)
        seen_mask[[row for row in map(catalog.row_of, seen) if row >= 0]] = True
        hidden_until = np.zeros(catalog.count, np.int64)
        outside_hidden = {}
        for content_id, (_kind, until_ms) in hidden.items():
            until = MAX_TIMESTAMP_MS if until_ms is None else until_ms
            row = catalog.row_of(content_id)
            if row >= 0:
                hidden_until[row] = until
            else:
                outside_hidden[content_id] = until
        household = Household(profile, seen_mask, hidden_until, outside_hidden)
        return ProfileView(tuple(map(_named, kept)), history, household)

    def with_event(self, catalog: Catalog, item: HistoryItem) -> ProfileView:
        """The snapshot after one more event."""
        household = self.household
        row = catalog.row_of(item.content_id)
        if row >= 0 and not household.seen[row]:
            seen = household.seen.copy()
            seen[row] = True
            household = replace(household, seen=seen)
        events = (_named(item), *self.events[: HISTORY_HELD - 1])
        return ProfileView(events, _pushed(catalog, self.history, item), household)

    def nameable(self, policy: Policy, events: int, now_ms: int) -> np.ndarray:
        """bool[e]: which of the newest events a reason may name to this profile."""
        content_ids = [event.content_id for event in self.events[:events]]
        named = policy.may_name(self.household, content_ids, self.history.rows[:events], now_ms)
        return named & ~self.history.rejected[:events]

    def viewings(
        self, catalog: Catalog, policy: Policy, items: Sequence[HistoryItem], now_ms: int
    ) -> list[dict[str, object]]:
        """Those of the profile's episodes that it may see, as plain values for showing."""
        rows = np.array([catalog.row_of(item.content_id) for item in items], np.int32)
        named = policy.may_name(self.household, [item.content_id for item in items], rows, now_ms)
        return [
            {
                "content_id": item.content_id,
                "content_title": item.content_title,
                "timestamp": item.timestamp,
                "watch_percentage": item.watch_percentage,
                "kind": item.kind,
            }
            for item, shown in zip(items, named, strict=True)
            if shown
        ]

    def recent_ids(self, policy: Policy, now_ms: int) -> tuple[str, ...]:
        """The last few titles watched that the profile may see, newest last, as a ViewContext carries them."""
        watched: list[str] = []
        for first in range(0, len(self.events), EVENTS_AT_ONCE):
            events = self.events[first : first + EVENTS_AT_ONCE]
            ids, rows = [event.content_id for event in events], self.history.rows[first : first + len(events)]
            named = policy.may_name(self.household, ids, rows, now_ms).tolist()
            watched += [event.content_id for event, shown in zip(events, named, strict=True) if event.watched and shown]
            if len(watched) >= MAX_RECENT_WATCHES:
                break
        return tuple(reversed(watched[:MAX_RECENT_WATCHES]))


def _named(item: HistoryItem) -> NamedEvent:
    watched = item.kind == "watched" or item.watch_percentage > 0
    return NamedEvent(item.content_id, item.content_title, item.timestamp, item.kind, item.success, watched)


def _pushed(catalog: Catalog, history: History, item: HistoryItem) -> History:
    row = catalog.row_of(item.content_id)
    code, scale = (catalog.codes[row], catalog.scale[row]) if row >= 0 else (item.code, item.scale)
    slot = slot_of(item.time_of_day, item.day_of_week)
    return history.push(row, code, scale, item.success, slot, rejected=item.kind == "disliked")
