"""How many candidates a two-stage search needs for a stated recall, measured on the store's own vectors.

The first stage sees one bit a dimension; how well that orders neighbours depends on the data. So sample queries are
answered both ways, and the least number of candidates on a ladder whose recall reaches the one stated, less a standard
error, is taken. Where none does, as on uniform data, searches stay exact.

Half of the samples are vectors of the store, looked for among the others; half are sums of two of them, which lie
farther from everything. Measured at 10,000 real titles, recall at 50 of held-out titles and of vectors of the store
agree within .001 for 128 to 768 candidates; sums of two need a third more, so a number that serves both errs to the safe
side for queries that resemble what is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omega_edge._simd import kernels
from omega_edge.vector_rows import Codes, FoundRows, Snapshot

CALIBRATED_K = 50
TWO_STAGE_MIN_VECTORS = 4096
SAMPLES = 64
_LEAST_CANDIDATES = 128
_LADDER_STEP = 1.5
_GREATEST_SHARE = 8  # candidates are at most 1 / 8 of the rows: above, an exact search reads as much
_RECALIBRATED_SHARE = 4  # anew after changes of 1 / 4 of the vectors
_FIRST_LOOK = 16  # samples after which rungs, or all of them, are given up

EXACT_SMALL = f"fewer than {TWO_STAGE_MIN_VECTORS:,} vectors"
EXACT_ASKED = "a recall of 1 was asked for"
EXACT_WAITING = "not calibrated yet"
EXACT_UNREACHED = "no number of candidates up to an eighth of the vectors reaches the recall"


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
    """The plan in force, and the measurement under way. The writer alone calls note; plan is replaced whole."""

    def __init__(self, recall: float, plan: Plan | None = None) -> None:
        """recall: to reach at k = 50, above 0; 1 for exact searches only. plan: one that was measured before."""
        self._recall = recall
        self.plan = plan or Plan(reason=EXACT_ASKED if recall == 1 else EXACT_SMALL)
        self._changes = 0
        self._round: _Round | None = None

    def note(self, snapshot: Snapshot, changes: int) -> None:
        """So many vectors changed: where that makes a measurement due, takes as many samples of it, at least one."""
        self._changes += changes
        if snapshot.count < TWO_STAGE_MIN_VECTORS or self._recall == 1 or snapshot.arrays.signs is None:
            self._round = None
            if self._recall < 1:
                self.plan = Plan()
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
                self.plan, self._round = plan, None
                return

    def finish(self, snapshot: Snapshot) -> None:
        """Takes all the samples of a new measurement now."""
        self._round, self.plan = None, Plan(reason=self.plan.reason)
        self.note(snapshot, SAMPLES)


class _Round:
    """One measurement: the recall of every sample on every rung of the ladder."""

    def __init__(self, recall: float, vectors: int) -> None:
        self._recall = recall
        self._vectors = vectors
        self._ladder: list[int] = []
        candidates = float(_LEAST_CANDIDATES)
        while candidates * _GREATEST_SHARE <= vectors:
            self._ladder.append(int(candidates))
            candidates *= _LADDER_STEP
        self._lowest = 0  # rungs below it cannot reach the recall
        self._recalls: tuple[list[list[float]], list[list[float]]] = ([], [])

    def take_sample(self, snapshot: Snapshot) -> Plan | None:
        """Answers one more query both ways; the plan, once it is known."""
        kind = min(range(2), key=lambda kind: len(self._recalls[kind]))
        number = len(self._recalls[kind])
        code, scale, without = _query(snapshot, kind, number)
        self._recalls[kind].append(self._recall_by_rung(snapshot, code, scale, without))
        if kind == 0:
            return None
        if number + 1 >= SAMPLES // 2:
            return self._plan(margin=-1)
        if 2 * (number + 1) == _FIRST_LOOK:
            self._lowest = self._first_rung(margin=3)
            if self._lowest == len(self._ladder):
                return self._plan(margin=3)
        return None

    def _recall_by_rung(self, snapshot: Snapshot, code: Codes, scale: float, without: int) -> list[float]:
        """The share of the true 50 that each rung's candidates hold; without: a row that counts as absent, or -1."""
        allowed = None if snapshot.count == snapshot.rows else snapshot.live
        true = _found(snapshot, code, scale, allowed, 0, without)
        recalls = [0.0] * self._lowest
        for candidates in self._ladder[self._lowest :]:
            found = _found(snapshot, code, scale, allowed, candidates, without)
            recalls.append(len(true & found) / len(true))
            if recalls[-1] == 1:  # more candidates hold these too
                break
        return recalls + [1.0] * (len(self._ladder) - len(recalls))

    def _first_rung(self, margin: float) -> int:
        """The first rung whose mean recall, for both kinds of queries, with so many standard errors reaches the one
        stated."""
        for rung in range(self._lowest, len(self._ladder)):
            if all(self._bound(recalls, rung, margin) >= self._recall for recalls in self._recalls):
                return rung
        return len(self._ladder)

    @staticmethod
    def _bound(recalls: list[list[float]], rung: int, margin: float) -> float:
        values = np.array([sample[rung] for sample in recalls])
        return float(values.mean() + margin * values.std() / math.sqrt(len(values)))

    def _plan(self, margin: float) -> Plan:
        rung = self._first_rung(margin)
        if rung == len(self._ladder):
            return Plan(0, 1.0, EXACT_UNREACHED, self._vectors)
        recall = min(self._bound(recalls, rung, 0) for recalls in self._recalls)
        return Plan(self._ladder[rung], recall, "", self._vectors)


def _query(snapshot: Snapshot, kind: int, number: int) -> tuple[Codes, float, int]:
    """Sample query: the code and scale of a vector of the store, with its row, or of a sum of two, with -1."""
    rows = np.array([_sampled_row(snapshot, 2 * number), _sampled_row(snapshot, 2 * number + 1)], np.uint32)
    codes, scales = snapshot.codes_of(rows), snapshot.scales_of(rows)
    if kind == 0:
        return codes[0], float(scales[0]), int(rows[0])
    total = (codes * scales[:, None]).sum(0, dtype=np.float32)
    if not total.any():  # opposite vectors
        return codes[0], float(scales[0]), int(rows[0])
    code, scale = np.empty((1, len(total)), np.int8), np.empty(1, np.float32)
    kernels.quantise(total[None], code, scale)
    return code[0], float(scale[0]), -1


def _sampled_row(snapshot: Snapshot, number: int) -> int:
    """A live row, spread over the table by the golden ratio: the first live one from there on."""
    start = ((number + 1) * 0x9E3779B1 & 0xFFFFFFFF) * snapshot.rows >> 32
    byte = start >> 3
    while not snapshot.live[byte]:
        byte = byte + 1 if byte + 1 < len(snapshot.live) else 0
    live = np.flatnonzero(np.unpackbits(snapshot.live[byte : byte + 1], bitorder="little"))
    return 8 * byte + int(live[number % len(live)])


def _found(
    snapshot: Snapshot, code: Codes, scale: float, allowed: NDArray[np.uint8] | None, candidates: int, without: int
) -> set[int]:
    """The best 50 rows, as a set, one row left out where it is not -1."""
    rows: FoundRows = np.empty(CALIBRATED_K + (without >= 0), np.uint32)
    count = snapshot.search(code, scale, allowed, candidates, rows, np.empty(len(rows), np.float32))
    found = rows[:count].tolist()
    if without in found:
        found.remove(without)
    return set(found[:CALIBRATED_K])
