"""How many candidates a two-stage search needs for a stated recall, measured on the store's own vectors.

The first stage sees one bit a dimension; how well that orders neighbours depends on the data. So vectors of the store are
looked for among the others, both exactly and in two stages, and the least number of candidates on a ladder whose recall,
less two standard errors, reaches the one stated is taken. Where none does, as on uniform data, searches stay exact.

That recall is one for queries that lie among the vectors as these lie among each other. Measured at 10,000 and 100,000
rows from real titles: where .99 is stated, titles held out reach .994 and .992, sums of eight titles that resemble each
other, as a taste is, .997 and .998; what resembles nothing stored needs more (sums of two random titles .985, of eight
.96). So one search in 128, and more often at first, is answered exactly as well, and where the searches looked at, the
latest 64 or, by more, the latest 16, stay below the recall stated, the candidates become half as many again, up to exact
searches.

Cost: a sample takes an exact search and some two-stage ones, together about three exact ones. A write takes as many samples
as it changes vectors, until 64 are taken; then none until a quarter of the vectors has changed.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omega_edge.vector_rows import Bits, Codes, FoundRows, Snapshot

CALIBRATED_K = 50
TWO_STAGE_MIN_VECTORS = 4096
SAMPLES = 64
LEAST_CANDIDATES = 128
_LADDER_STEP = 1.2
# Candidates are at most a tenth of the rows: with AVX2, two stages then cost what an exact search does at 100,000 rows,
# where candidates lie far apart in memory (.085 us each), and half of it at 10,000.
_GREATEST_SHARE = 10
_RECALIBRATED_SHARE = 4  # anew after changes of 1 / 4 of the vectors
_AUDITED = 128  # one search in so many is looked at, so that it stays outside the 99th percentile
_FIRST_AUDITS = 16  # of which so many at once, every other search
_LEAST_AUDITS = 8
_LONG_LOOK, _SHORT_LOOK = 64, 16  # audits judged together; the few show soon that other things are asked for
_AUDIT_STEP = 1.5
_FIRST_LOOK = 8  # samples after which rungs, or all of them, are given up

EXACT_SMALL = f"fewer than {TWO_STAGE_MIN_VECTORS:,} vectors"
EXACT_ASKED = "a recall of 1 was asked for"
EXACT_WAITING = "not calibrated yet"
EXACT_OUTSIDE = "the searches asked for need more candidates than a tenth of the vectors"
EXACT_UNREACHED = "no number of candidates up to a tenth of the vectors reaches the recall"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to search: exactly where candidates is 0, for the reason named."""

    candidates: int = 0
    recall: float = 1.0  # at 50, measured on the samples
    reason: str = EXACT_SMALL
    vectors: int = 0  # in the store when it was measured

    def candidates_for(self, k: int, passing: int) -> int:
        """Candidates for a search of k among so many rows; 0 where an exact one is due.

        Beyond k = 50 they grow in proportion: measured at 10,000 real titles, k = 100 needs 1.3 to 1.9 times as many.
        """
        wanted = self.candidates if k <= CALIBRATED_K else -(-self.candidates * k // CALIBRATED_K)
        return wanted if wanted * _GREATEST_SHARE <= passing else 0


class Calibration:
    """The plan in force, and the measurement under way. The writer alone calls note, readers audit; plan is replaced
    whole.
    """

    def __init__(self, recall: float, plan: Plan | None = None) -> None:
        """recall: to reach at k = 50, above 0; 1 for exact searches only. plan: one that was measured before."""
        self._recall = recall
        self.plan = plan or Plan(reason=EXACT_ASKED if recall == 1 else EXACT_SMALL)
        self._changes = 0
        self._round: _Round | None = None
        self._searches = 0
        self._auditing = threading.Lock()
        self._audits: deque[float] = deque(maxlen=_LONG_LOOK)

    def note(self, snapshot: Snapshot, changes: int) -> None:
        """So many vectors changed: where that makes a measurement due, takes as many samples of it, at least one."""
        self._changes += changes
        if snapshot.count < TWO_STAGE_MIN_VECTORS or self._recall == 1 or snapshot.arrays.signs is None:
            if self._recall < 1 and (self._round is not None or self.plan.vectors):
                self._adopt(Plan())
            return
        if self._round is None:
            if self.plan.vectors and self._changes * _RECALIBRATED_SHARE < self.plan.vectors:
                return
            if not self.plan.vectors:
                self.plan = Plan(reason=EXACT_WAITING)
            self._round = _Round(self._recall, snapshot.count)
            self._changes = 0
        for _ in range(changes):
            plan = self._round.take_sample(snapshot)
            if plan is not None:
                self._adopt(plan)
                return

    def finish(self, snapshot: Snapshot) -> None:
        """Takes all the samples of a new measurement now."""
        self._round, self.plan = None, Plan(reason=self.plan.reason)
        self.note(snapshot, SAMPLES)

    def audits_next(self) -> bool:
        """Whether the search that is about to be made is to be audited. Counts lost between threads only shift that."""
        self._searches += 1
        first = self._searches <= 2 * _FIRST_AUDITS and self._searches % 2 == 0
        return first or self._searches % _AUDITED == 0

    def audit(
        self, snapshot: Snapshot, code: Codes, scale: float, allowed: Bits | None, passing: int, rows: FoundRows
    ) -> None:
        """Answers a reader's query exactly at k = 50, and takes more candidates where that shows that they are due.

        rows: the answer that the reader got; where it has fewer than 50, another is found.
        """
        plan = self.plan
        candidates = plan.candidates_for(CALIBRATED_K, passing)
        if not candidates or not self._auditing.acquire(blocking=False):
            return
        try:
            true = _nearest(snapshot, code, scale, allowed, 0, CALIBRATED_K)
            found = rows[:CALIBRATED_K].tolist()
            if len(found) < len(true):
                found = _nearest(snapshot, code, scale, allowed, candidates, CALIBRATED_K)
            self._audits.append(len(set(true) & set(found)) / len(true))
            if not self._falls_short():
                return
            self._audits.clear()
            if self.plan is plan:
                candidates = int(plan.candidates * _AUDIT_STEP)
                outside = candidates * _GREATEST_SHARE > plan.vectors
                self.plan = (
                    Plan(0, 1.0, EXACT_OUTSIDE, plan.vectors) if outside else replace(plan, candidates=candidates)
                )
                self._searches = 0
        finally:
            self._auditing.release()

    def _falls_short(self) -> bool:
        """Whether the searches looked at stay below the recall stated by more than chance."""
        recalls = np.array(self._audits)
        if len(recalls) < _LEAST_AUDITS:
            return False
        latest = recalls[-_SHORT_LOOK:]
        return _bound(recalls, 1) < self._recall or _bound(latest, 2) < self._recall

    def _adopt(self, plan: Plan) -> None:
        with self._auditing:
            self.plan, self._round, self._searches = plan, None, 0
            self._audits.clear()


class _Round:
    """One measurement: the recall of every sample on every rung of the ladder."""

    def __init__(self, recall: float, vectors: int) -> None:
        self._recall = recall
        self._vectors = vectors
        self._ladder: list[int] = []
        candidates = float(LEAST_CANDIDATES)
        while candidates * _GREATEST_SHARE <= vectors:
            self._ladder.append(int(candidates))
            candidates *= _LADDER_STEP
        self._lowest = 0  # rungs below it cannot reach the recall
        self._recalls: list[list[float]] = []

    def take_sample(self, snapshot: Snapshot) -> Plan | None:
        """Answers one more query both ways; the plan, once it is known."""
        self._recalls.append(self._recall_by_rung(snapshot, _sampled_row(snapshot, len(self._recalls))))
        if len(self._recalls) == SAMPLES:
            return self._plan(margin=-2)
        if len(self._recalls) == _FIRST_LOOK:
            self._lowest = self._first_rung(margin=3)
            if self._lowest == len(self._ladder):
                return self._plan(margin=3)
        return None

    def _recall_by_rung(self, snapshot: Snapshot, row: int) -> list[float]:
        """The share of a row's true 50 nearest others that each rung's candidates hold."""
        listed = np.array([row], np.uint32)
        code, scale = snapshot.codes_of(listed)[0], snapshot.scales_of(listed).item()
        true = _nearest_others(snapshot, row, code, scale, 0)
        recalls = [0.0] * self._lowest
        for candidates in self._ladder[self._lowest :]:
            found = _nearest_others(snapshot, row, code, scale, candidates)
            recalls.append(len(true & found) / len(true))
            if recalls[-1] == 1:  # more candidates hold these too
                break
        return recalls + [1.0] * (len(self._ladder) - len(recalls))

    def _first_rung(self, margin: float) -> int:
        """The first rung whose mean recall, with so many standard errors, reaches the one stated."""
        bounds = _bound(np.array(self._recalls), margin)
        reaching = np.flatnonzero(bounds[self._lowest :] >= self._recall)
        return self._lowest + int(reaching[0]) if reaching.size else len(self._ladder)

    def _plan(self, margin: float) -> Plan:
        rung = self._first_rung(margin)
        if rung == len(self._ladder):
            return Plan(0, 1.0, EXACT_UNREACHED, self._vectors)
        recall = sum(sample[rung] for sample in self._recalls) / len(self._recalls)
        return Plan(self._ladder[rung], recall, "", self._vectors)


def _bound(recalls: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """The mean over the first axis, with so many standard errors."""
    return recalls.mean(0) + margin * recalls.std(0) / math.sqrt(len(recalls))


def _sampled_row(snapshot: Snapshot, number: int) -> int:
    """A live row, spread over the table by the golden ratio: the first live one from there on."""
    start = ((number + 1) * 0x9E3779B1 & 0xFFFFFFFF) * snapshot.rows >> 32
    byte = start >> 3
    while not snapshot.live[byte]:
        byte = byte + 1 if byte + 1 < len(snapshot.live) else 0
    live = np.flatnonzero(np.unpackbits(snapshot.live[byte : byte + 1], bitorder="little"))
    return 8 * byte + int(live[number % len(live)])


def _nearest_others(snapshot: Snapshot, row: int, code: Codes, scale: float, candidates: int) -> set[int]:
    """The 50 best rows but for the one whose code is looked for."""
    allowed = None if snapshot.count == snapshot.rows else snapshot.live
    found = _nearest(snapshot, code, scale, allowed, candidates, CALIBRATED_K + 1)
    return set([other for other in found if other != row][:CALIBRATED_K])


def _nearest(
    snapshot: Snapshot, code: Codes, scale: float, allowed: Bits | None, candidates: int, k: int
) -> list[int]:
    """The k best rows, exactly or among so many candidates where not 0."""
    rows = np.empty(k, np.uint32)
    return rows[: snapshot.search(code, scale, allowed, candidates, rows, np.empty(k, np.float32))].tolist()
