"""Who this home is when it shares: a random number, never one of the television's own, and what it owes the cloud.

Kept in memory's state `sync`, which is never exported and names no title. A copy of a home would speak under the same
number, so import, forget and a mode's end take a new one. A number under which titles were shared goes on the list of
those to be erased, and is forgotten when the cloud has done so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from omega_edge.errors import ProtocolError
from omega_edge.protocol import DAY_MS, DEVICE_ID_BYTES, U64_MAX, CountReport, check_timestamp
from omega_edge.sync_identity import TOKEN_BYTES
from omega_edge.validation import check_integer, check_optional, check_type, refuse

SECRET_BYTES = 16
MAX_TO_ERASE = 32
MAX_DAYS_DRAWN = 32


@dataclass(frozen=True, slots=True)
class SharingIdentity:
    """How this home stands with the cloud.

    mode: the sharing mode that all this belongs to. secret: 16 random bytes, from which the moments of reports are drawn.
    device_id, epoch: None while nothing was to be sent under them. server_time_seen: of the last acknowledgement under this
    device id. shared_from: the sequence after which what was watched is shared; None: after the last one that there is.
    to_erase: device ids and epochs, oldest first. share_anew: nothing was acknowledged under this device id yet, and memory
    does not say so. reset_at: when the cloud last made this home take a new id (its own clock, Unix ms). snapshot_wanted,
    snapshot_at: the cloud asked for the whole shared set; when the last one was acknowledged. days_drawn: UTC days for which
    a count report was drawn, newest last. report: one that was drawn and is not acknowledged. tokens: by device id, as far
    as a shard gave them.
    """

    mode: str
    secret: bytes
    device_id: bytes | None = None
    epoch: int | None = None
    server_time_seen: int | None = None
    shared_from: int | None = None
    to_erase: tuple[tuple[bytes, int], ...] = ()
    share_anew: bool = False
    reset_at: int | None = None
    snapshot_wanted: bool = False
    snapshot_at: int | None = None
    days_drawn: tuple[int, ...] = ()
    report: CountReport | None = None
    tokens: Mapping[bytes, bytes] = field(default_factory=dict)

    def with_token(self, device_id: bytes, token: bytes) -> SharingIdentity:
        """The same home with what proves that a number is its own. Tokens of numbers that it does not need go."""
        needed = {self.device_id, *(owed for owed, _epoch in self.to_erase)}
        return replace(self, tokens={one: kept for one, kept in {**self.tokens, device_id: token}.items() if one in needed})

    def without_number(self) -> SharingIdentity:
        """The same home before it takes a device id; one under which titles were shared is to be erased."""
        to_erase = self.to_erase
        if self.mode == "titles" and self.device_id is not None:
            to_erase = (*to_erase, (self.device_id, self.epoch))[-MAX_TO_ERASE:]
        return replace(
            self, device_id=None, epoch=None, server_time_seen=None, to_erase=to_erase, snapshot_wanted=False,
            snapshot_at=None, report=None,
        )  # fmt: skip

    def erased(self, device_id: bytes) -> SharingIdentity:
        """The same home once the cloud has erased what it had of a device id."""
        tokens = {one: token for one, token in self.tokens.items() if one != device_id}
        return replace(self, to_erase=tuple(owed for owed in self.to_erase if owed[0] != device_id), tokens=tokens)

    def with_report(self, report: CountReport) -> SharingIdentity:
        """The same home with the one report that is drawn for its day."""
        days = (*self.days_drawn, report.day)[-MAX_DAYS_DRAWN:]
        return replace(self, report=report, days_drawn=days)


def plain_of(identity: SharingIdentity) -> dict[str, object]:
    """The state that memory keeps."""
    report = identity.report
    return {
        "mode": identity.mode,
        "secret": identity.secret,
        "device_id": identity.device_id,
        "epoch": identity.epoch,
        "server_time_seen": identity.server_time_seen,
        "shared_from": identity.shared_from,
        "to_erase": [list(owed) for owed in identity.to_erase],
        "share_anew": identity.share_anew,
        "reset_at": identity.reset_at,
        "snapshot_wanted": identity.snapshot_wanted,
        "snapshot_at": identity.snapshot_at,
        "days_drawn": list(identity.days_drawn),
        "report": None if report is None else [report.day, report.seed, report.value],
        "tokens": [list(pair) for pair in identity.tokens.items()],
    }


def identity_of(state: dict) -> SharingIdentity:
    """The identity of a stored state; ProtocolError for a state that plain_of() did not make."""
    try:
        report = state["report"]
        found = SharingIdentity(
            **{
                **state,
                "to_erase": tuple((device_id, epoch) for device_id, epoch in state["to_erase"]),
                "days_drawn": tuple(state["days_drawn"]),
                "report": None if report is None else CountReport(*report),
                "tokens": dict(state["tokens"]),
            }
        )
    except (KeyError, TypeError, ValueError) as unreadable:
        raise ProtocolError(f"sync state: expected what this version keeps, got something else ({unreadable})") from None
    for pair in found.tokens.items():
        if not all(type(part) is bytes for part in pair) or len(pair[1]) != TOKEN_BYTES:
            raise refuse("sync state: tokens", f"{TOKEN_BYTES} bytes for a device id", pair)
    numbers = [*found.to_erase] if found.device_id is None else [*found.to_erase, (found.device_id, found.epoch)]
    for device_id, epoch in numbers:
        if type(device_id) is not bytes or len(device_id) != DEVICE_ID_BYTES:
            raise refuse("sync state: device_id", f"{DEVICE_ID_BYTES} bytes", device_id)
        check_integer("sync state: epoch", epoch, 0, U64_MAX)
    if type(found.secret) is not bytes or len(found.secret) != SECRET_BYTES:
        raise refuse("sync state: secret", f"{SECRET_BYTES} bytes", found.secret)
    for name in ("server_time_seen", "reset_at", "snapshot_at"):
        if getattr(found, name) is not None:
            check_timestamp(f"sync state: {name}", getattr(found, name))
    check_type("sync state: mode", found.mode, str)
    check_optional("sync state: shared_from", found.shared_from, int)
    for day in found.days_drawn:
        check_integer("sync state: days_drawn", day, 0, U64_MAX // DAY_MS)
    return found
