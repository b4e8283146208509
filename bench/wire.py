"""Bytes of the wire format on real viewing, one JSON line a metric: `python -m bench.wire`.

The catalogue's numbering is the demonstration bundle's. Lists are what the busiest households finished last, on one
evening after another; a pattern's references are titles that one household finished.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.machine import ROOT, machine_facts
from omega_edge import wire
from omega_edge.catalog import Catalog
from omega_edge.datasets import read_dataset
from omega_edge.protocol import (
    SUCCESS_THRESHOLD,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TitleReference,
    TrendSignal,
    ViewingPattern,
)

NOW_MS = 1_400_000_000_000
DAY_MS = 24 * 3600 * 1000
LIST_LENGTHS = (1, 2, 4, 10, 18, 27, 50)
TRENDS = 50
REPEATS = 200


def finished_by_household(data: Path) -> list[list[str]]:
    """Content ids of what each household finished, in order, the busiest household first."""
    dataset = read_dataset(data)
    events = dataset.events
    finished: dict[int, list[str]] = {}
    for household, title, share in zip(events.household, events.title, events.watch_percentage, strict=True):
        if share >= SUCCESS_THRESHOLD:
            finished.setdefault(int(household), []).append(dataset.titles[title].content_id)
    return sorted(finished.values(), key=len, reverse=True)


def evening_list(content_ids: list[str], rng: random.Random) -> tuple[FinishedTitle, ...]:
    """The titles as finished on successive evenings, within three hours of each other."""
    return tuple(
        FinishedTitle(content_id, NOW_MS + day * DAY_MS + rng.randrange(DAY_MS // 8))
        for day, content_id in enumerate(content_ids)
    )


def patterns_of(homes: list[list[str]], count: int, references: int, rng: random.Random) -> tuple[ViewingPattern, ...]:
    """Patterns of the last three months, each from another household."""
    patterns = []
    for number, home in zip(range(1, count + 1), homes, strict=False):
        cited = rng.sample(sorted(set(home)), references)
        updated = NOW_MS - rng.randrange(30 * DAY_MS)
        patterns.append(
            ViewingPattern(
                id=number,
                success_rate=rng.uniform(0.7, 1),
                sample_count=rng.randrange(3, 200),
                created_at=updated - rng.randrange(60 * DAY_MS),
                updated_at=updated,
                references=tuple(TitleReference(content_id, rng.uniform(0.1, 1)) for content_id in cited),
            )
        )
    return tuple(patterns)


def request_of(delta: PatternDelta, rng: random.Random) -> SyncRequest:
    """A request as a television sends it, of a random device."""
    return SyncRequest(1, 12_345, rng.randbytes(16), rng.getrandbits(64), NOW_MS, delta)


def median_ms(act: Callable[[], object]) -> float:
    """The middle one of REPEATS timings of a call."""
    timings = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        act()
        timings.append(time.perf_counter() - started)
    return sorted(timings)[REPEATS // 2] * 1e3


def figures(homes: list[list[str]], catalog: Catalog) -> Iterator[tuple[str, float, str, bool]]:
    """(metric, value, unit, correct): what was encoded decodes to the same titles in the same order."""
    rng = random.Random(1)
    empty = wire.encode_request(SyncRequest(global_version_seen=12_345), catalog)
    yield "sync_up_receive_bytes", len(empty), "B", wire.decode_request(empty, catalog).delta is None
    for count in LIST_LENGTHS:
        sent = request_of(PatternDelta(5_000, evening_list(homes[0][:count], rng)), rng)
        data = wire.encode_request(sent, catalog)
        yield f"sync_up_list_of_{count}_bytes", len(data), "B", same_titles(sent, wire.decode_request(data, catalog))
    for references in (4, 8):
        delta = PatternDelta(5_000, patterns_added=patterns_of(homes, 20, references, rng))
        data = wire.compress_delta(delta, catalog)
        correct = cited(wire.decompress_delta(data, catalog).patterns_added) == cited(delta.patterns_added)
        yield f"delta_20_patterns_of_{references}_bytes", len(data), "B", correct
    popular = list(dict.fromkeys(content_id for home in homes for content_id in home))[:TRENDS]
    for references in (4, 8):
        patterns = GlobalPatterns(
            12_345,
            patterns_of(homes, 100, references, rng),
            tuple(TrendSignal(content_id, 1 / (rank + 1), 48) for rank, content_id in enumerate(popular)),
        )
        data = wire.encode_response(SyncResponse(12_345, 300, NOW_MS, patterns=patterns), catalog)
        received = wire.decode_response(data, catalog).patterns
        correct = cited(received.similar) == cited(patterns.similar)
        yield f"sync_down_100_patterns_of_{references}_and_{TRENDS}_trends_bytes", len(data), "B", correct
        timing = median_ms(lambda data=data: wire.decode_response(data, catalog))
        yield f"decode_100_patterns_of_{references}_ms_p50", round(timing, 3), "ms", correct


def same_titles(sent: SyncRequest, received: SyncRequest) -> bool:
    """Whether the finished titles are the same in the same order."""
    return [title.content_id for title in sent.delta.titles_finished] == [
        title.content_id for title in received.delta.titles_finished
    ]


def cited(patterns: tuple[ViewingPattern, ...]) -> list[list[str]]:
    """The titles of each pattern's references."""
    return [[reference.content_id for reference in pattern.references] for pattern in patterns]


def main() -> None:
    """Measure and print; nothing is appended to the results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire", description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=Path, default=ROOT / "build" / "demo.bundle", help="bundle to number by")
    parser.add_argument("--data", type=Path, default=ROOT / "bench" / "data" / "movietweetings-70k", help="data set")
    options = parser.parse_args()
    homes, catalog, machine = finished_by_household(options.data), Catalog.open(options.catalog), machine_facts()
    for metric, value, unit, correct in figures(homes, catalog):
        print(json.dumps({"metric": metric, "value": value, "unit": unit, "correct": correct, "machine": machine}))
    catalog.close()


if __name__ == "__main__":
    main()
