"""What leaves the home, and nothing else: the one place that composes what a television sends.

`receive`: the version of the protocol and of what the cloud told last; nothing else. `counts`: the same, and once a UTC day
one falsified title. `titles`: the titles finished, in order, and the shared set of patterns; with nothing new the same as
`receive`, so that only what tells something tells who says it. A mode that is left leaves a request to erase behind, sent
until it is acknowledged.

What is sent under a number is stored before it is sent: the number, and a count report. So a crash never makes a second
draw for a day, nor loses a number that is to be erased one day. Where nothing can be stored nothing is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from omega_edge.catalog import Catalog
from omega_edge.codes import set_hash
from omega_edge.errors import ConfigError, ProtocolError, StoreError
from omega_edge.memory import AgentMemory
from omega_edge.protocol import (
    DAY_MS,
    DEVICE_ID_BYTES,
    MAX_TITLES_FINISHED_PER_PAGE,
    CountReport,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    ViewingPattern,
)
from omega_edge.randomised import NOTHING_FINISHED, falsified, title_hash
from omega_edge.sharing_identity import SECRET_BYTES, SharingIdentity, identity_of, plain_of
from omega_edge.sharing_patterns import pattern_of, says_the_same
from omega_edge.sharing_state import IDENTITY_STATE, is_finished

SHARED_SET_SIZES = (20, 12, 6, 2, 0)
"""How many patterns are shared: as many of these as fit beside no title. Titles outside the catalogue make them long."""

TitlesThatFit = Callable[[PatternDelta], int]
"""How many of a delta's finished titles fit into one request beside its patterns, -1 if those alone do not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a response meant to what was sent.

    titles, patterns: how many the cloud now holds; reported: it holds the day's report. more: there is more to send at once.
    fault: what is wrong with the response, or None.
    """

    titles: int = 0
    patterns: int = 0
    reported: bool = False
    more: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A delta that awaits its acknowledgement. shared: the shared set once it is applied, None where it is not told."""

    delta: PatternDelta
    shared: dict[int, ViewingPattern] | None


class DeltaComposer:
    """Composes what the cloud has not acknowledged yet. Callers hold the brain's write lock, but for quiet_request."""

    def __init__(
        self, catalog: Catalog, memory: AgentMemory, sharing: str, clock: Callable[[], int], randomness: Random
    ) -> None:
        """randomness: what device ids, epochs and falsified reports are drawn from; the system's, but in simulations."""
        self._catalog = catalog
        self._memory = memory
        self._sharing = sharing
        self._clock = clock
        self._randomness = randomness
        self._prepared: _Prepared | None = None
        self._clock_offset_ms = 0
        self._identity = SharingIdentity(sharing, bytes(SECRET_BYTES))
        self.fault: str | None = None
        self.restart()

    # Standing ------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin anew, at the open and after an import or a forget: what was prepared is void, and the log of finished titles
        is kept exactly if titles are shared, whatever the memory says. fault: why nothing can be shared, or None."""
        self._prepared = None
        self.fault = None
        try:
            stored = self._stored_identity()
            identity = stored or SharingIdentity(self._sharing, self._randomness.randbytes(SECRET_BYTES))
            if identity.mode != self._sharing:
                identity = replace(identity.without_number(), mode=self._sharing, shared_from=None, share_anew=False)
            if self._sharing == "titles" and identity.shared_from is None:
                identity = replace(identity, shared_from=self._memory.stats()["last_sequence"])
            anew_since = identity.shared_from if identity.share_anew and self._sharing == "titles" else None
            identity = replace(identity, share_anew=False)
            self._identity = identity
            changed = identity != stored and (stored is not None or self._sharing != "receive")
            if changed:
                self._memory.set_state(IDENTITY_STATE, plain_of(identity))
            self._memory.set_sharing_titles(self._sharing == "titles", anew_since)
            if changed:
                self._memory.flush()
        except StoreError as fault:
            self.fault = str(fault)

    def before_rewrite(self, imported: bool) -> SharingIdentity:
        """Memory is about to be rewritten by an import or a forget: take a new number, durably, and share anew under it.

        Of what is imported nothing counts as shared: nobody knows under which mode it was watched. Returns the identity
        before, for keep() where the rewrite was refused. Raises StoreError; then the rewrite must not be done.
        """
        identity = self._identity
        if identity.device_id is not None or (imported and self._sharing == "titles"):
            shared_from = None if imported else identity.shared_from
            self.keep(replace(identity.without_number(), share_anew=True, shared_from=shared_from))
        return identity

    def token_of(self, device_id: bytes) -> bytes | None:
        """The token that a shard gave for a number of this home, None if there is none yet."""
        return self._identity.tokens.get(device_id)

    def keep_token(self, device_id: bytes, token: bytes) -> None:
        """Store the token of a number, before anything is told under it. Raises StoreError."""
        self.keep(self._identity.with_token(device_id, token))

    def disown(self, device_id: bytes) -> None:
        """Give up a number whose token cannot be had, as after the shards' key was taken away from the television: it can
        neither be spoken under nor erased, and its titles end with their retention. At most once a day, like a reset."""
        now_ms, identity = self._clock(), self._identity
        if device_id != identity.device_id:
            self.keep(identity.erased(device_id))
        elif not self._was_reset_today(now_ms):
            numberless = replace(identity.without_number(), to_erase=identity.to_erase)
            self.keep(replace(numberless, share_anew=self._sharing == "titles", reset_at=now_ms))
            self.restart()

    def stats(self) -> dict[str, object]:
        """How this home stands with the cloud; nothing by which it could be recognised."""
        identity = self._identity
        return {
            "numbers_to_erase": len(identity.to_erase),
            "known_to_the_cloud": identity.device_id is not None,
            "reports_drawn_of_late": len(identity.days_drawn),
        }

    def _stored_identity(self) -> SharingIdentity | None:
        state = self._memory.get_state(IDENTITY_STATE)
        try:
            return None if state is None else identity_of(state)
        except ProtocolError:
            # Which days had their report is not known any more: today gets none.
            day = self._clock() // DAY_MS
            return SharingIdentity("", self._randomness.randbytes(SECRET_BYTES), days_drawn=(day,))

    def keep(self, identity: SharingIdentity, durable: bool = True) -> None:
        """Make this the identity; if it raises, the one before it stands."""
        if identity == self._identity:
            return
        self._memory.set_state(IDENTITY_STATE, plain_of(identity))
        if durable:
            try:
                self._memory.flush()
            except StoreError:
                self._memory.set_state(IDENTITY_STATE, plain_of(self._identity))
                raise
        self._identity = identity

    def _numbered(self) -> SharingIdentity:
        """The identity with a number, stored before it is first used."""
        if self._identity.device_id is None:
            device_id, epoch = self._randomness.randbytes(DEVICE_ID_BYTES), self._randomness.getrandbits(64)
            self.keep(replace(self._identity, device_id=device_id, epoch=epoch))
        return self._identity

    # Requests ------------------------------------------------------------------------------------

    def quiet_request(self, global_version_seen: int) -> SyncRequest | None:
        """The request of a home that shares nothing and owes nothing; None of any other. It reads nothing and takes no lock,
        so that neither its bytes nor its moment depend on what is watched."""
        if self._sharing != "receive" or self._identity.to_erase:
            return None
        return SyncRequest(global_version_seen=global_version_seen)

    def request(self, global_version_seen: int, titles_that_fit: TitlesThatFit) -> SyncRequest:
        """The next request. Nothing of it counts as sent until take() with the response."""
        nothing = SyncRequest(global_version_seen=global_version_seen)
        self._prepared = None
        if self.fault is not None:
            self.restart()
        if self._identity.to_erase:
            device_id, epoch = self._identity.to_erase[0]
            return replace(nothing, device_id=device_id, epoch=epoch, erase=True)
        if self._sharing == "receive" or self.fault is not None:
            return nothing
        try:
            if self._sharing == "counts":
                return self._count_request(nothing)
            return self._titles_request(nothing, titles_that_fit)
        except StoreError as fault:
            self.fault = str(fault)
            return nothing

    def _count_request(self, nothing: SyncRequest) -> SyncRequest:
        """The day's report, from the day's moment on, until it is acknowledged or the day is over."""
        now_ms = self._clock()
        day, moment = divmod(now_ms, DAY_MS)
        identity = self._identity
        if identity.report is None or identity.report.day != day:
            unwanted = day in identity.days_drawn or moment < self._moment_of(day) or abs(self._clock_offset_ms) > DAY_MS
            if unwanted:
                return nothing
            report = CountReport(day, *falsified(self._hash_of_the_day(now_ms), self._randomness))
            self.keep(self._numbered().with_report(report))
        identity = self._identity
        return replace(nothing, device_id=identity.device_id, epoch=identity.epoch, count_report=identity.report)

    def _moment_of(self, day: int) -> int:
        """Milliseconds of a UTC day before its report: drawn per home and day, whatever is watched, and the same after a
        restart."""
        drawn = hashlib.blake2b(day.to_bytes(8, "big"), key=self._identity.secret, digest_size=8).digest()
        return int.from_bytes(drawn, "big") * DAY_MS >> 64

    def _hash_of_the_day(self, now_ms: int) -> int:
        """The hash of one of the titles finished within a day, any with the same chance; that of nothing if there is none.

        It draws one number from the randomness, however many titles there are.
        """
        finished = {
            episode.content_id
            for episode in self._memory.episodes()
            if is_finished(episode) and now_ms - DAY_MS < episode.timestamp <= now_ms
        }
        place = int(self._randomness.random() * max(len(finished), 1))
        return title_hash(sorted(finished)[place]) if finished else NOTHING_FINISHED

    def _titles_request(self, nothing: SyncRequest, titles_that_fit: TitlesThatFit) -> SyncRequest:
        delta = self._compose(MAX_TITLES_FINISHED_PER_PAGE, titles_that_fit)
        if delta.empty:
            return nothing
        identity = self._numbered()
        return replace(
            nothing, device_id=identity.device_id, epoch=identity.epoch, server_time_seen=identity.server_time_seen, delta=delta
        )

    def prepare(self, max_titles: int) -> PatternDelta | None:
        """The next delta with at most so many titles, for a caller that sends it by itself; None unless titles are shared."""
        if self._sharing != "titles" or self.fault is not None:
            return None
        return self._compose(max_titles, lambda delta: len(delta.titles_finished))

    def _compose(self, max_titles: int, titles_that_fit: TitlesThatFit) -> PatternDelta:
        """All that is new, if it fits; else a page of titles alone, which carries the version of its last one.

        Patterns travel with the last page, under the version of all: a page that is sent twice, its answer lost, is the
        same page, or has another version. So no acknowledgement stands for what was not in it.
        """
        log = self._memory.finished_log(max_titles + 1)
        version = self._memory.local_version
        page = log[:max_titles]
        if len(log) <= max_titles:
            delta, shared = self._with_patterns(version, [title for _version, title in page], titles_that_fit)
            if titles_that_fit(delta) == len(page):
                self._prepared = _Prepared(delta, shared)
                return delta
        bare = PatternDelta(page[-1][0], tuple(title for _version, title in page), more_pages=True)
        count = max(1, min(titles_that_fit(bare), len(page)))
        delta = replace(bare, local_version=page[count - 1][0], titles_finished=bare.titles_finished[:count])
        self._prepared = _Prepared(delta, None)
        return delta

    def _with_patterns(
        self, version: int, titles: Sequence, titles_that_fit: TitlesThatFit
    ) -> tuple[PatternDelta, dict[int, ViewingPattern]]:
        """The delta of these titles and what changed in the shared set, and that set: the largest that fits."""
        before = self._memory.acknowledged_shared_set()
        skills = self._memory.shared_skills()
        snapshot = self._snapshot_is_due()
        for size in SHARED_SET_SIZES:
            shared = {skill.skill_id: pattern_of(skill, self._catalog) for skill in skills[:size]}
            known = {} if snapshot else before
            delta = PatternDelta(
                local_version=version,
                titles_finished=tuple(titles),
                patterns_added=tuple(pattern for key, pattern in sorted(shared.items()) if key not in known),
                patterns_updated=tuple(
                    pattern
                    for key, pattern in sorted(shared.items())
                    if key in known and not says_the_same(known[key], pattern)
                ),
                patterns_removed=tuple(sorted(known.keys() - shared.keys())),
                snapshot=snapshot,
                shared_set_hash=set_hash(shared.values()),
            )
            if titles_that_fit(replace(delta, titles_finished=())) == 0:
                break
        return delta, shared

    def _snapshot_is_due(self) -> bool:
        """Whether the whole shared set is wanted, and was not sent within a day."""
        last = self._identity.snapshot_at
        return self._identity.snapshot_wanted and not (last is not None and 0 <= self._clock() - last < DAY_MS)

    # Responses -----------------------------------------------------------------------------------

    def take(self, request: SyncRequest, response: SyncResponse) -> Taken:
        """Note what the cloud answered to a request of this composer. Raises StoreError where that cannot be stored: then a
        crash has the same sent again. The cloud's own counter (global_version) has no part in any of this."""
        self._clock_offset_ms = response.server_time - self._clock()
        if request.erase:
            return self._erased(request, response)
        if response.reset:
            return self._reset(request)
        if request.count_report is not None:
            return self._counted(request, response)
        if request.delta is not None:
            return self._acknowledged(request, response)
        told = response.acknowledged_local_version is not None or response.erased or response.counted
        return Taken(fault="it acknowledges what was not sent" if told else None)

    def _erased(self, request: SyncRequest, response: SyncResponse) -> Taken:
        if not response.erased:
            return Taken(fault="it did not erase what it was asked to")
        self.keep(self._identity.erased(request.device_id))
        return Taken(more=self._sharing == "titles")

    def _counted(self, request: SyncRequest, response: SyncResponse) -> Taken:
        if not response.counted:
            return Taken(fault="it did not count the day's report")
        if self._identity.report == request.count_report:
            # Not made durable by itself: a crash has the same report sent once more, and the cloud counts it once.
            self.keep(replace(self._identity, report=None), durable=False)
        return Taken(reported=True)

    def _acknowledged(self, request: SyncRequest, response: SyncResponse) -> Taken:
        prepared, delta = self._prepared, request.delta
        if prepared is None or prepared.delta is not delta:
            return Taken(fault="it answers what is not prepared any more")
        if response.acknowledged_local_version != delta.local_version:
            return Taken(fault="it acknowledges another version than the one sent")
        now_ms = self._clock()
        before = self._identity
        self.keep(
            replace(
                before,
                server_time_seen=response.server_time,
                snapshot_at=now_ms if delta.snapshot else before.snapshot_at,
                snapshot_wanted=response.snapshot_wanted or (before.snapshot_wanted and not delta.snapshot),
            ),
            durable=False,
        )
        # One transaction with the identity. If it fails both wait in RAM for the next: after a crash before that the same is
        # sent again, and the cloud knows it.
        self.acknowledge(delta.local_version)
        patterns = len(delta.patterns_added) + len(delta.patterns_updated) + len(delta.patterns_removed)
        return Taken(len(delta.titles_finished), patterns, more=delta.more_pages)

    def acknowledge(self, local_version: int) -> None:
        """The cloud holds the delta prepared last. Raises ConfigError for any other version."""
        prepared = self._prepared
        if prepared is None or type(local_version) is not int or local_version != prepared.delta.local_version:
            raise ConfigError(
                f"local_version: expected that of the delta prepared last, got {local_version!r}; prepare another"
            )
        shared = self._memory.acknowledged_shared_set() if prepared.shared is None else prepared.shared
        self._memory.acknowledge(local_version, len(prepared.delta.titles_finished), shared)
        self._prepared = None

    def _was_reset_today(self, now_ms: int) -> bool:
        last = self._identity.reset_at
        return last is not None and 0 <= now_ms - last < DAY_MS

    def _reset(self, request: SyncRequest) -> Taken:
        """A new number, and everything that the home still has is shared anew: the episodes kept that were finished since
        sharing began. At most once a day, so that a cloud that always says reset gets nothing but one more request."""
        if request.delta is None and request.count_report is None:
            return Taken(fault="it resets what was not sent")
        now_ms = self._clock()
        if self._was_reset_today(now_ms):
            return Taken(fault="it resets this home more than once a day")
        identity = replace(self._identity.without_number(), share_anew=self._sharing == "titles", reset_at=now_ms)
        self.keep(identity)
        self.restart()
        return Taken(more=self._sharing == "titles", fault=self.fault)
