"""Processor time of the wire format, one JSON line a metric: `python -m bench.wire`. Its bytes: `python -m bench.sync_bytes`.

What a shard does for each sync: decode a request, with as many finished titles as syncs usually have, and write a response
around patterns that were deflated before. What a television does now and then: encode, and decode 100 patterns.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from bench.machine import ROOT, machine_facts
from bench.metrics import judged
from bench.timing import percentile
from cloud.shard_titles import ShardTitles
from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.protocol import (
    DAY_MS,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)

NOW_MS = 1_790_000_000_123
LIST_LENGTHS = (0, 1, 2, 4, 10)
DECODE_LIMIT_US, RESPONSE_LIMIT_US = 25, 10
"""Of the 100 µs that a shard has for a sync."""
ROUNDS, CALLS_A_ROUND = 60, 200


def microseconds(act: Callable[[], object]) -> tuple[float, float]:
    """Processor time of one call: the middle one and the least of ROUNDS means over CALLS_A_ROUND."""
    means = []
    for _ in range(ROUNDS):
        started = time.thread_time_ns()
        for _ in range(CALLS_A_ROUND):
            act()
        means.append((time.thread_time_ns() - started) / CALLS_A_ROUND / 1_000)
    return percentile(means, 0.5), min(means)


def line(metric: str, act: Callable[[], object], correct: bool, limit: float | None = None) -> dict:
    """A measured line."""
    middle, least = microseconds(act)
    return judged(metric, middle, "us", None if correct else "it came back otherwise", limit) | {"least": round(least, 2)}


def request_of(length: int, catalog: Catalog, chosen: Random) -> SyncRequest:
    """A request with so many finished titles, one an evening."""
    rows = chosen.sample(range(catalog.count), length)
    finished = tuple(FinishedTitle(catalog.content_id(row), NOW_MS + day * DAY_MS) for day, row in enumerate(rows))
    delta = PatternDelta(5_000, finished, shared_set_hash=chosen.getrandbits(64))
    return SyncRequest(1, 29_833_333, chosen.randbytes(16), chosen.getrandbits(64), NOW_MS, delta)


def patterns_of(catalog: Catalog, chosen: Random) -> GlobalPatterns:
    """100 patterns of four titles, and 50 trends."""
    similar = tuple(
        ViewingPattern(
            number, chosen.uniform(0.7, 1), chosen.randrange(3, 9_000), NOW_MS, NOW_MS,
            references=tuple(
                TitleReference(catalog.content_id(row), 1.0) for row in chosen.sample(range(catalog.count), 4)
            ),
        )
        for number in range(1, 101)
    )  # fmt: skip
    trending = tuple(TrendSignal(catalog.content_id(row), 1 / (row + 1), 48) for row in range(min(50, catalog.count)))
    return GlobalPatterns(29_833_333, similar, trending)


def figures(catalog: Catalog) -> Iterator[dict]:
    """The lines."""
    chosen, titles = Random(1), ShardTitles(catalog)
    for length in LIST_LENGTHS:
        request = request_of(length, catalog, chosen)
        body = wire.encode_request(request, catalog)
        same = len(wire.decode_request(body, titles).delta.titles_finished) == length
        limit = DECODE_LIMIT_US if 1 <= length <= 4 else None
        yield line("decode_request_us", lambda body=body: wire.decode_request(body, titles), same, limit) | {
            "titles": length, "bytes": len(body),
        }  # fmt: skip
    patterns = patterns_of(catalog, chosen)
    frame = wire.encode_global_patterns(patterns, catalog)
    response = SyncResponse(29_833_333, 300, NOW_MS, acknowledged_local_version=5_000, catalog_version=3)
    body = wire.encode_response_with(response, frame)
    same = len(wire.decode_response(body, catalog).patterns.similar) == 100
    yield line("encode_response_with_us", lambda: wire.encode_response_with(response, frame), same, RESPONSE_LIMIT_US)
    yield line("encode_request_us", lambda: wire.encode_request(request, catalog), same) | {"titles": LIST_LENGTHS[-1]}
    yield line("decode_100_patterns_us", lambda: wire.decode_response(body, catalog), same) | {"bytes": len(body)}


def main() -> None:
    """Measure and print; nothing is appended to the results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire", description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle", help="bundle to number by")
    options, machine = parser.parse_args(), machine_facts()
    with Catalog.open(options.catalog) as catalog:
        for made in figures(catalog):
            print(json.dumps(made | {"machine": machine, "load_average": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    main()
