"""Which encoding a vector is to have: by use, with hysteresis, from the entries of the journal alone.

    score = 0.5 * recency + 0.3 * frequency + 0.2 * popularity, 0 to 1
    recency     2^(-age / 256), age: events recorded since the last use
    frequency   1 - 2^(-heat / 4), heat: sum over all uses of 2^(-age of the use / 1024), the combined recency and
                frequency of LRFU (Lee et al., "LRFU: a spectrum of policies", IEEE Transactions on Computers, 2001),
                which one number and the time of its last update hold
    popularity  min(log(1 + uses) / log(1 + 1000), 1), uses: all that ever were

A vector moves up at PROMOTE and down below DEMOTE, which lie apart, one step at a time and not before it has stayed
MINIMUM_STAY events. A use brings a coarse vector to int8 at once, whatever its score. From one_bit to pq48 there is no
way: nothing would be gained.

Time is counted in events, as everywhere in memory: clocks jump. A use is an entry of the journal, a viewing or a
rating; reading is none, so what the tiers hold does not depend on who looked, nor on when maintenance ran.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omega_edge.compression import Encoding

RECENCY_WEIGHT, FREQUENCY_WEIGHT, POPULARITY_WEIGHT = 0.5, 0.3, 0.2
RECENCY_HALF_LIFE, HEAT_HALF_LIFE = 256, 1024
"""Events. A household of four viewings a day records 256 in two months."""
FULL_HEAT = 4
FULL_USES = 1000
MINIMUM_STAY = 128
PROMOTE = {Encoding.FLOAT16: 0.80, Encoding.INT8: 0.68, Encoding.PQ48: 0.42, Encoding.ONE_BIT: 0.42}
"""At this score a vector leaves the encoding for the one above, a coarse one for int8."""
DEMOTE = {Encoding.FLOAT32: 0.66, Encoding.FLOAT16: 0.50, Encoding.INT8: 0.30, Encoding.PQ48: 0.12}
"""Below this score a vector leaves the encoding for the one below."""

_HEAT_UNITS, _FIDELITY_UNITS = 1000, 10_000
"""Both are kept in whole units, so that what is read back is what was written."""


@dataclass(slots=True)
class Standing:
    """What the policy knows of one vector. since: the event at which it came into its encoding. last_use: the event of
    its last use. heat: see the module, as of last_use. fidelity: cosine to what it was before it became coarse.
    next_fidelity: the same if it went one step down from pq48, measured while the original was at hand.
    """

    encoding: Encoding
    since: int
    last_use: int
    heat: float = 1.0
    fidelity: float = 1.0
    next_fidelity: float = 1.0

    @staticmethod
    def new(sequence: int) -> Standing:
        """Of a vector first used at this event."""
        return Standing(Encoding.INT8, sequence, sequence)

    def use(self, now: int) -> None:
        """Count a use at event `now`."""
        self.heat = round((self.heat_at(now) + 1.0) * _HEAT_UNITS) / _HEAT_UNITS
        self.last_use = max(now, self.last_use)

    def heat_at(self, now: int) -> float:
        """The heat as of event `now`."""
        return self.heat * 2.0 ** (-max(now - self.last_use, 0) / HEAT_HALF_LIFE)

    def enter(self, encoding: Encoding, now: int) -> None:
        """Note that the vector has the encoding from event `now` on."""
        self.encoding, self.since = encoding, now
        if not encoding.coarse:
            self.next_fidelity = 1.0

    def note_fidelity(self, fidelity: float, next_fidelity: float = 1.0) -> None:
        """Note what the vector is true to; rounded down, as it is stored."""
        self.fidelity = math.floor(fidelity * _FIDELITY_UNITS) / _FIDELITY_UNITS
        self.next_fidelity = math.floor(next_fidelity * _FIDELITY_UNITS) / _FIDELITY_UNITS

    def packed(self) -> list[int]:
        """Six integers for a record."""
        fidelities = (round(value * _FIDELITY_UNITS) for value in (self.fidelity, self.next_fidelity))
        return [int(self.encoding), self.since, self.last_use, round(self.heat * _HEAT_UNITS), *fidelities]

    @staticmethod
    def unpacked(values: list) -> Standing:
        """The standing of packed()."""
        encoding, since, last_use, heat, fidelity, next_fidelity = values[:6]
        units = (heat / _HEAT_UNITS, fidelity / _FIDELITY_UNITS, next_fidelity / _FIDELITY_UNITS)
        return Standing(Encoding(encoding), since, last_use, *units)


def score(standing: Standing, uses: int, now: int) -> float:
    """How much a vector is in use at event `now`, 0 to 1. uses: all that ever were."""
    recency = 2.0 ** (-max(now - standing.last_use, 0) / RECENCY_HALF_LIFE)
    frequency = 1.0 - 2.0 ** (-standing.heat_at(now) / FULL_HEAT)
    popularity = min(math.log1p(max(uses, 0)) / math.log1p(FULL_USES), 1.0)
    return RECENCY_WEIGHT * recency + FREQUENCY_WEIGHT * frequency + POPULARITY_WEIGHT * popularity


def wanted_encoding(standing: Standing, value: float, now: int, *, used: bool = False) -> Encoding:
    """The encoding that a vector of score `value` is to have next: its own, the one below, or the one above.

    used: whether this is at a use, which takes a coarse vector to int8 at once.
    """
    encoding = standing.encoding
    if used and encoding.coarse:
        return Encoding.INT8
    if now - standing.since < MINIMUM_STAY:
        return encoding
    if encoding in PROMOTE and value >= PROMOTE[encoding]:
        return Encoding.INT8 if encoding.coarse else Encoding(encoding - 1)
    if encoding in DEMOTE and value < DEMOTE[encoding]:
        return Encoding(encoding + 1)
    return encoding
