"""Randomised response to "what was finished here today?": optimised local hashing, television side and hash.

Each report names a hash function by its seed and one of COUNT_CATEGORIES values: that of the true title with
keep_probability(), any other alike otherwise. So whatever a home finished, each report is at most e^COUNT_EPSILON times
as likely as for any other title (Wang, Blocki, Li, Jha, "Locally Differentially Private Protocols for Frequency
Estimation", 2017). Who estimates counts asks category() for every title under every report's seed; it is integer
arithmetic modulo 2^64, so numpy.uint64 gives the same. Nothing here imports numpy.
"""

from __future__ import annotations

import hashlib
import math
from random import Random

from omega_edge.terms import COUNT_CATEGORIES, COUNT_EPSILON

_MASK_64 = (1 << 64) - 1
GOLDEN_64 = 0x9E3779B97F4A7C15
MIX_FIRST_64, MIX_SECOND_64 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of splitmix64 (Steele, Lea, Flood, 2014), whose output function mixed() is."""


def title_hash(content_id: str) -> int:
    """u64 of a title: the first 8 bytes, little-endian, of BLAKE2b-64 of the content id in UTF-8."""
    return int.from_bytes(hashlib.blake2b(content_id.encode(), digest_size=8).digest(), "little")


NOTHING_FINISHED = title_hash("")
"""What stands for a day on which nothing was finished; no content id is empty."""


def mixed(number: int) -> int:
    """u64 -> u64, one to one, every bit of the input moving about half of the output's."""
    number = (number ^ number >> 30) * MIX_FIRST_64 & _MASK_64
    number = (number ^ number >> 27) * MIX_SECOND_64 & _MASK_64
    return number ^ number >> 31


def category(seed: int, hashed: int) -> int:
    """Value 0 to COUNT_CATEGORIES - 1 of a title_hash (u64) under the hash function of a seed (u32)."""
    key = mixed((seed + 1) * GOLDEN_64 & _MASK_64)
    return (mixed(hashed ^ key) >> 32) * COUNT_CATEGORIES >> 32


def keep_probability() -> float:
    """The chance that a report tells the truth: e^eps / (e^eps + COUNT_CATEGORIES - 1), 0.498 at eps = 4."""
    return math.exp(COUNT_EPSILON) / (math.exp(COUNT_EPSILON) + COUNT_CATEGORIES - 1)


def falsified(hashed: int, random: Random) -> tuple[int, int]:
    """One report of a title_hash or NOTHING_FINISHED: seed (u32) and value.

    random: where the privacy comes from: random.SystemRandom() on a television, a seeded one in simulations only. Each
    call draws anew, so each costs COUNT_EPSILON: what was drawn is to be kept and sent again, never drawn again.
    """
    seed = random.getrandbits(32)
    true = category(seed, hashed)
    if random.random() < keep_probability():
        return seed, true
    other = random.randrange(COUNT_CATEGORIES - 1)
    return seed, other + (other >= true)
