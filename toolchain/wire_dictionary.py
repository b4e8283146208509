"""Trains the zstd dictionary of the wire format: `python -m toolchain.wire_dictionary FILE`.

It learns from made-up messages whose small numbers are distributed as those of real homes (how often skills come with how
many samples and titles, how long lists are), and whose titles, numbers of devices and codes are random: of these there is
nothing to learn that would hold for another catalogue. The same zstd library gives the same file.

A dictionary that messages were written with is never trained again: a better one gets the next number (see frame.py).
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import cbor2
import zstandard

from omega_edge import wire
from omega_edge.protocol import (
    DAY_MS,
    PATTERN_CODE_BYTES,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)
from omega_edge.wire_patterns import pack_global_patterns

DICTIONARY_BYTES = 4096
MESSAGES = 2400
NOW_MS = 1_800_000_000_000
TITLES = 60_000


class RandomTitles:
    """A numbering in which title "t5" has number 5. lineage: 16 hexadecimal digits."""

    def __init__(self, lineage: str) -> None:
        self.lineage = lineage

    def row_of(self, content_id: str) -> int:
        """See TitleNumbering."""
        return int(content_id[1:])

    def content_id(self, row: int) -> str:
        """See TitleNumbering."""
        return f"t{row}"


def made_patterns(count: int, coded: bool, rng: random.Random) -> tuple[ViewingPattern, ...]:
    """Patterns as a home shares them."""
    patterns, number, book = [], 0, rng.getrandbits(32)
    for _ in range(count):
        number += rng.choice((1, 1, 1, 2, 3, 5, 9))
        updated = NOW_MS - int(rng.expovariate(1 / 60)) * DAY_MS
        samples = 3 + int(rng.expovariate(1 / 6))
        rate = 1.0 if rng.random() < 0.45 else rng.uniform(0.7, 1)
        titles = rng.choice((4, 4, 4, 4, 4, 8, 8, 3, 2, 5))
        content = (
            {"code": rng.randbytes(PATTERN_CODE_BYTES), "codebook": book}
            if coded
            else {"references": made_references(titles, rng)}
        )
        created = updated - int(rng.uniform(0, 130)) * DAY_MS
        patterns.append(ViewingPattern(number, rate, samples, created, updated, **content))
    return tuple(patterns)


def made_references(count: int, rng: random.Random) -> tuple[TitleReference, ...]:
    """References as skills have them: nearly all weigh 1."""
    rows = rng.sample(range(TITLES), count)
    light = rng.choice((1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.67, 0.75))
    heavy = rng.randint(1, count)
    return tuple(TitleReference(f"t{row}", 1.0 if place < heavy else light) for place, row in enumerate(rows))


def made_delta(rng: random.Random) -> PatternDelta:
    """A delta: titles, changed patterns, or a whole shared set."""
    titles = tuple(
        FinishedTitle(f"t{rng.randrange(TITLES)}", NOW_MS - back * DAY_MS + rng.randrange(DAY_MS // 6))
        for back in range(rng.choice((0, 1, 1, 1, 2, 3, 8, 25)), 0, -1)
    )
    patterns = made_patterns(rng.choice((0, 1, 2, 3, 5, 20, 20)), rng.random() < 0.3, rng)
    kept = rng.choice((0, 0, len(patterns)))
    return PatternDelta(
        rng.randrange(1, 9_000),
        titles,
        patterns[kept:],
        patterns[:kept],
        tuple(range(900, 900 + rng.choice((0, 0, 0, 1)))),
        shared_set_hash=rng.getrandbits(64),
    )


def made_global_patterns(rng: random.Random) -> GlobalPatterns:
    """Patterns and trends of one or two windows, the highest score first."""
    trending = []
    for hours in rng.choice(((48,), (48, 336))):
        scores = sorted((rng.random() ** 2 for _ in range(rng.choice((20, 50, 100)))), reverse=True)
        rows = rng.sample(range(TITLES), len(scores))
        trending += [TrendSignal(f"t{row}", score, hours) for row, score in zip(rows, scores, strict=True)]
    patterns = made_patterns(rng.choice((10, 30, 60)), rng.random() < 0.3, rng)
    return GlobalPatterns(rng.getrandbits(24), patterns, tuple(trending))


def made_bodies(seed: int) -> list[bytes]:
    """The bodies of made-up messages, before they are deflated."""
    rng = random.Random(seed)
    bodies = []
    for _ in range(MESSAGES):
        titles = RandomTitles(rng.randbytes(8).hex())
        device = {"device_id": rng.randbytes(16), "epoch": rng.getrandbits(64), "server_time_seen": NOW_MS + rng.getrandbits(34)}
        kind = rng.choice(("request", "request", "request", "patterns", "response"))
        if kind == "request":
            message = SyncRequest(1, rng.getrandbits(24), **device, delta=made_delta(rng))
            fields = wire.pack_request(message, titles)
        elif kind == "patterns":
            fields = pack_global_patterns(made_global_patterns(rng), titles)
        else:
            response = SyncResponse(rng.getrandbits(24), 300, NOW_MS + rng.getrandbits(34), acknowledged_local_version=5)
            fields = wire.pack_response(response)
        bodies.append(cbor2.dumps(fields, canonical=True))
    return bodies


def trained(seed: int = 1) -> bytes:
    """The dictionary."""
    samples = made_bodies(seed)
    return zstandard.train_dictionary(DICTIONARY_BYTES, samples, level=19, dict_id=1).as_bytes()


def main(arguments: list[str] | None = None) -> int:
    """Write the dictionary; 1 where the file is there already."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.wire_dictionary", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.file.exists():
        print(f"{options.file}: expected no such file; messages may have been written with it", file=sys.stderr)
        return 1
    options.file.write_bytes(trained())
    return 0


if __name__ == "__main__":
    sys.exit(main())
