"""What a request of a device does to what the shard knows of that device: pure functions, the same for every engine.

Server times tell who speaks. Each reply to a change carries a new one, and the next request of the device shows it. The
device's state keeps the last one issued and the one that the device had shown when it got that (its base). So a request
that shows

- the base has lost the reply: the device repeats itself, or goes on without having heard;
- the last one issued, or a later one, which replies that changed nothing carry, is the device going on;
- anything else is another copy of the device, or an old request played again: it is told to reset, and nothing is taken.

Two copies of one device cannot both go on: after the first one's change, the other shows a time before the last issued
that is not the base. Whoever plays a captured request again meets its version, which is not above what is stored, or its
epoch among the past ones.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from cloud.storage import DeviceState, SyncChange, SyncOutcome
from omega_edge.protocol import DAY_MS

MAX_PAST_EPOCHS = 8
"""Epochs remembered of a device. After more wipes than that, the oldest epoch's requests could be played again."""
REPORT_DAYS_BEFORE, REPORT_DAYS_AFTER = 2, 1
"""A count report's day lies between these many days before and after today (UTC)."""
REPORT_DAYS_KEPT = 8
MAX_FINISHED_AGE_MS = 400 * DAY_MS


def epoch_mark(epoch: int) -> int:
    """CRC32 of an epoch, by which a past one is remembered."""
    return zlib.crc32(epoch.to_bytes(8, "big"))


def next_server_time(state: DeviceState | None, change: SyncChange) -> int:
    """A server time for a reply: now, but above the last one issued and the one shown, whatever the clock says."""
    seen = change.server_time_seen
    if seen is None or not _may_be_ours(state, change):
        seen = 0
    return max(change.received_ms, seen + 1, 0 if state is None else state.time_issued + 1)


def _may_be_ours(state: DeviceState | None, change: SyncChange) -> bool:
    """Whether the time shown is one that this shard can have told, a clock set back by a day allowed for."""
    issued = 0 if state is None else state.time_issued
    return (change.server_time_seen or 0) <= max(issued, change.received_ms + DAY_MS)


def admitted(state: DeviceState | None, past_epochs: tuple[int, ...], change: SyncChange) -> DeviceState | None:
    """The state that a request builds on, or None where the device has to reset.

    state: None for an unknown device; past_epochs: of one that was erased. The returned state has the request's epoch; a
    fresh one has issued nothing yet (time_issued 0).
    """
    seen, epoch = change.server_time_seen or 0, change.epoch
    if state is not None and state.epoch == epoch:
        # A count report shows no time; there is one a day, so playing it again changes nothing.
        known = seen == state.time_base or (seen >= state.time_issued and _may_be_ours(state, change))
        return state if change.report or known else None
    if seen or epoch_mark(epoch) in (past_epochs if state is None else state.past_epochs):
        return None
    if state is None:
        return DeviceState(epoch, 0, 0, 0, past_epochs=past_epochs)
    past = (*state.past_epochs, epoch_mark(state.epoch))[-MAX_PAST_EPOCHS:]
    return replace(state, epoch=epoch, local_version=0, time_issued=0, time_base=0, shared_set_hash=0, past_epochs=past)


def reset_outcome(state: DeviceState | None, change: SyncChange) -> SyncOutcome:
    """The outcome of a request that nothing is taken of."""
    return SyncOutcome(next_server_time(state, change), reset=True)


def report_is_due(day: int, now_ms: int) -> bool:
    """Whether a report of this day may come now."""
    today = now_ms // DAY_MS
    return today - REPORT_DAYS_BEFORE <= day <= today + REPORT_DAYS_AFTER


def with_report(state: DeviceState, day: int) -> DeviceState | None:
    """The state after a report of this day, or None where the day is reported already (or too old to know)."""
    if day > state.report_day:
        days = (state.report_days << (day - state.report_day) | 1) & ((1 << REPORT_DAYS_KEPT) - 1)
        return replace(state, report_day=day, report_days=days if state.report_day else 1)
    age = state.report_day - day
    if age >= REPORT_DAYS_KEPT or state.report_days >> age & 1:
        return None
    return replace(state, report_days=state.report_days | 1 << age)


def snapshot_is_due(state: DeviceState, change: SyncChange) -> bool:
    """Whether a device is to be asked for its whole shared set: it says another hash, and was not asked today."""
    asked = change.shared_set_hash
    return asked is not None and asked != state.shared_set_hash and state.snapshot_day != change.received_ms // DAY_MS


def clamp_finished(finished_ms: int, received_ms: int) -> int:
    """When a title was finished, kept within 400 days before its receipt: clocks of televisions jump."""
    return min(max(finished_ms, received_ms - MAX_FINISHED_AGE_MS, 0), received_ms)
