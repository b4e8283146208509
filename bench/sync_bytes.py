"""Bytes of syncs on real histories: `python -m bench.sync_bytes [--json] [--quick]`.

One JSON line a metric (a table without --json):

    upload_bytes     the body of a request with 20 patterns, as references (up to 4 titles each) and as codes; the most of
                     all samples. Every field that such a request can have is there
    download_bytes   the body of a response with 100 patterns and 50 trends, likewise
    list_bytes_p50, list_bytes_p99, list_bytes_max
                     bodies of the requests that carry the titles finished since the last one, over all syncs of all households
                     that have any: at an interval of 300 s, and of a day
    page_bytes_max   the longest request of those that carry each household's whole history at once, in pages
    idle_sync_bytes  a sync with nothing new, both ways at the socket, HTTP included: a real SyncClient over its real brain and a
                     real shard, in the modes `receive` and `titles`; and `with_device`: a request that names its device and tells
                     nothing

A line's `correct` says whether what was encoded came back as it was sent, or the sync was answered as it should be; the exit
code is 1 if any line is not correct. Lines are appended to bench/results.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from bench.brain import RESULTS, append_result, say, table_row
from bench.loop.meter import Passed, Relay
from bench.machine import ROOT, commit_facts, machine_facts
from bench.metrics import judged
from bench.shard_load.shard import DEVICE_KEY, Served, Shard, ShardFailed
from bench.sync_histories import TRENDS, Skills, coded, global_patterns, lists, watched_by_household, with_references
from bench.timing import percentile
from bench.viewing import Watched
from omega_edge import wire
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.codes import set_hash
from omega_edge.config import BrainConfig
from omega_edge.datasets import read_dataset
from omega_edge.patterns import rounded
from omega_edge.protocol import (
    MAX_UPLOAD_BYTES,
    FinishedTitle,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    ViewingPattern,
)
from omega_edge.sync import DONE, SyncClient, SyncConfig
from omega_edge.sync_http import ShardConnection
from omega_edge.sync_identity import authorization, device_token

NOW_MS = 1_790_000_000_123
GLOBAL_VERSION = 29_833_333
"""Minutes since 1970, as a hub counts."""
UP, DOWN, REFERENCES = 20, 100, 4
UP_LIMITS = {"references": 400, "codes": 1_100}
DOWN_LIMIT, LIST_LIMIT, IDLE_LIMIT = 5_400, 150, 350
INTERVALS = {"300 s": 300_000, "1 day": 24 * 3_600_000}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. homes: brains of one household, and of twelve; samples of each message; listed: households whose
    lists are written."""

    homes: tuple[int, int]
    samples: int
    listed: int | None


FULL, QUICK = Scale((120, 10), 200, None), Scale((12, 1), 10, 300)


@dataclass(frozen=True, slots=True)
class Measured:
    """The data of a run."""

    catalog: Catalog
    bundle: Path
    households: list[list[Watched]]
    scale: Scale


def request_of(delta: PatternDelta, chosen: Random) -> SyncRequest:
    """A request as a television sends it in the middle of its life, of a random device."""
    return SyncRequest(1, GLOBAL_VERSION, chosen.randbytes(16), chosen.getrandbits(64), NOW_MS, delta)


def sent_and_received(delta: PatternDelta, chosen: Random, catalog: Catalog) -> tuple[int, bool]:
    """Bytes of the request of a delta, and whether the reader gets what the wire promises to keep."""
    request = request_of(delta, chosen)
    body = wire.encode_request(request, catalog)
    received = wire.decode_request(body, catalog)
    same = replace(received, delta=None) == replace(request, delta=None)
    same &= received.delta.patterns_added == tuple(map(rounded, delta.patterns_added))
    same &= received.delta.shared_set_hash == set_hash(received.delta.patterns_added) if delta.patterns_added else True
    same &= [title.content_id for title in received.delta.titles_finished] == [
        title.content_id for title in delta.titles_finished
    ]
    return len(body), same


def measure_patterns(measured: Measured) -> Iterator[dict]:
    """upload_bytes and download_bytes."""
    single, joined = measured.scale.homes
    skills = Skills.of_homes(measured.households, measured.bundle, single, joined)
    say(f"{len(skills.patterns)} skills of {skills.homes} homes")
    if not skills.patterns or measured.catalog.quantiser is None:
        fault = "the homes form no skill" if not skills.patterns else "the bundle has no codebook"
        yield judged("upload_bytes", None, "B", fault) | {"patterns": UP}
        return
    made = {"skills": len(skills.patterns), "homes": skills.homes, "samples": measured.scale.samples}
    forms: dict[str, Callable[[tuple[ViewingPattern, ...]], tuple[ViewingPattern, ...]]] = {
        "references": lambda patterns: with_references(patterns, REFERENCES),
        "codes": lambda patterns: coded(patterns, measured.catalog),
    }
    for encoding, form in forms.items():
        chosen = Random(encoding)
        sizes, correct = zip(*(_upload(form(skills.drawn(UP, chosen)), chosen, measured) for _ in range(made["samples"])))
        told = {"patterns": UP, "encoding": encoding}
        yield _largest("upload_bytes", sizes, all(correct), UP_LIMITS[encoding]) | told | made
        sizes, correct = zip(*(_download(form(skills.drawn(DOWN, chosen)), chosen, measured) for _ in range(made["samples"])))
        told = {"patterns": DOWN, "encoding": encoding, "trends": TRENDS}
        yield _largest("download_bytes", sizes, all(correct), DOWN_LIMIT) | told | made


def _upload(patterns: tuple[ViewingPattern, ...], chosen: Random, measured: Measured) -> tuple[int, bool]:
    delta = PatternDelta(chosen.randrange(1_000, 30_000), patterns_added=patterns, shared_set_hash=set_hash(patterns))
    return sent_and_received(delta, chosen, measured.catalog)


def _download(patterns: tuple[ViewingPattern, ...], chosen: Random, measured: Measured) -> tuple[int, bool]:
    sent = global_patterns(GLOBAL_VERSION, patterns, measured.catalog, chosen)
    frame = wire.encode_global_patterns(sent, measured.catalog)
    response = SyncResponse(GLOBAL_VERSION, 300, NOW_MS, acknowledged_local_version=30_000, catalog_version=7)
    body = wire.encode_response_with(response, frame)
    received = wire.decode_response(body, measured.catalog)
    same = received.patterns.similar == tuple(map(rounded, sent.similar))
    same &= [one.content_id for one in received.patterns.trending] == [one.content_id for one in sent.trending]
    return len(body), same and replace(received, patterns=None) == response


def _largest(metric: str, sizes: tuple[int, ...], correct: bool, limit: int | None) -> dict:
    fault = None if correct else "a message came back otherwise than it was sent"
    made = judged(metric, max(sizes), "B", fault, limit)
    return made | {"p50": percentile(sizes, 0.5), "lowest": min(sizes)}


def measure_lists(measured: Measured) -> Iterator[dict]:
    """list_bytes_* at each interval, and page_bytes_max."""
    households = measured.households[:: max(1, len(measured.households) // measured.scale.listed)] if (
        measured.scale.listed
    ) else measured.households  # fmt: skip
    for interval, interval_ms in INTERVALS.items():
        chosen, sizes, lengths, correct = Random(interval), [], [], True
        for finished in lists(households, interval_ms):
            delta = PatternDelta(chosen.randrange(1, 30_000), finished, shared_set_hash=chosen.getrandbits(64))
            for page in wire.split_delta(delta, range(delta.local_version - len(finished) + 1, delta.local_version + 1)) if (
                len(finished) > 300
            ) else (delta,):
                size, same = sent_and_received(page, chosen, measured.catalog)
                sizes.append(size)
                lengths.append(len(page.titles_finished))
                correct &= same
        told = {"interval": interval, "syncs": len(sizes), "households": len(households)}
        fault = None if correct else "a list came back otherwise than it was sent"
        for share, name, limit in ((0.5, "p50", None), (0.99, "p99", LIST_LIMIT), (1.0, "max", MAX_UPLOAD_BYTES)):
            titles = {"titles": percentile(lengths, share)}
            yield judged(f"list_bytes_{name}", percentile(sizes, share), "B", fault, limit) | told | titles
    yield _pages(households, measured.catalog)


def _pages(households: list[list[Watched]], catalog: Catalog) -> dict:
    chosen, sizes, correct = Random("pages"), [], True
    for finished in lists(households, 1 << 60):
        versions = range(1, len(finished) + 1)
        for page in wire.split_delta(PatternDelta(len(finished), finished), tuple(versions), catalog):
            size, same = sent_and_received(page, chosen, catalog)
            sizes.append(size)
            correct &= same
    made = _largest("page_bytes_max", tuple(sizes), correct, MAX_UPLOAD_BYTES)
    return made | {"p99": percentile(sizes, 0.99), "pages": len(sizes), "households": len(households)}


def measure_idle(measured: Measured) -> Iterator[dict]:
    """idle_sync_bytes in each mode."""
    served = Served.from_bundle(measured.bundle, seed=1)
    try:
        with tempfile.TemporaryDirectory(prefix="omega-idle-") as folder, Shard(Path(folder), served) as shard:
            for mode in ("receive", "titles"):
                yield _idle(mode, *asyncio.run(_idle_sync(mode, Path(folder) / mode, shard.port, measured)))
            yield _idle("with_device", *asyncio.run(_idle_exchange(shard.port)))
    except ShardFailed as failed:
        yield judged("idle_sync_bytes", None, "B", str(failed), IDLE_LIMIT)
    finally:
        served.catalog.close()


def _idle(mode: str, passed: Passed, fault: str | None) -> dict:
    made = judged("idle_sync_bytes", passed.up + passed.down, "B", fault, IDLE_LIMIT)
    return made | {"mode": mode, "up": passed.up, "down": passed.down}


async def _idle_sync(mode: str, storage: Path, port: int, measured: Measured) -> tuple[Passed, str | None]:
    """A second sync of a home, when all is told and all is here."""
    relay = await Relay(port).start()
    storage.mkdir()
    config = BrainConfig(storage, measured.bundle, sharing=mode, background_maintenance=False)
    try:
        with OmegaBrain.open(config) as brain:
            for one in measured.households[0][:30]:
                brain.observe(one.event())
            client = SyncClient(brain, SyncConfig(f"http://127.0.0.1:{relay.port}"))
            first = await client.sync_once()
            before = relay.passed
            second = await client.sync_once()
            passed = relay.passed - before
        told = (first.titles > 0) == (mode == "titles") and first.changed > 0
        idle = second.outcome == DONE and second.requests == 1 and not (second.titles or second.patterns or second.changed)
        fault = None if first.outcome == DONE and told and idle else f"{first.outcome}; {second.outcome}: something was told"
        return passed, fault
    finally:
        await relay.stop()


async def _idle_exchange(port: int) -> tuple[Passed, str | None]:
    """A request of a known device whose delta is empty."""
    relay, chosen = await Relay(port).start(), Random(1)
    device_id, epoch = chosen.randbytes(16), chosen.getrandbits(64) | 1 << 63
    token = device_token(DEVICE_KEY, device_id)
    try:
        async with ShardConnection(f"http://127.0.0.1:{relay.port}", 30, None) as connection:

            async def told(request: SyncRequest) -> SyncResponse:
                body = wire.encode_request(request)
                reply = await connection.exchange("api/v1/sync", body, authorization(device_id, token, body), NOW_MS)
                return wire.decode_response(reply.body) if reply.status == 200 else SyncResponse(0, 300, 0, reset=True)

            finished = (FinishedTitle("tt0000001", NOW_MS),)
            first = await told(SyncRequest(1, 70_000, device_id, epoch, None, PatternDelta(70_000, finished)))
            before = relay.passed
            idle = PatternDelta(70_000, shared_set_hash=0)
            second = await told(SyncRequest(1, 70_000, device_id, epoch, first.server_time, idle))
            passed = relay.passed - before
        acknowledged = first.acknowledged_local_version == second.acknowledged_local_version == 70_000
        return passed, None if acknowledged and second.patterns is None else "the empty delta was not acknowledged"
    finally:
        await relay.stop()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m bench.sync_bytes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON line a metric")
    parser.add_argument("--quick", action="store_true", help="few homes and samples; no figure to quote")
    parser.add_argument("--catalog", type=Path, default=ROOT / "build/movietweetings-70k.bundle")
    parser.add_argument("--data", type=Path, default=ROOT / "bench/data/movietweetings-70k")
    parser.add_argument("--results", type=Path, help="record to append to (bench/results.jsonl; none if --quick)")
    parser.add_argument("--no-append", action="store_true", help="do not append to the record")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: measured and correct; 1: a result was not correct; 2: it could not be measured."""
    options = parse_arguments(arguments)
    for name in ("catalog", "data"):
        if not getattr(options, name).exists():
            say(f"--{name}: expected {getattr(options, name)} to exist; ./run builds what is missing")
            return 2
    results = options.results or (None if options.quick else RESULTS)
    facts, commit, all_correct = machine_facts(), commit_facts(), True
    with Catalog.open(options.catalog) as catalog:
        households = watched_by_household(read_dataset(options.data))
        measured = Measured(catalog, options.catalog.resolve(), households, QUICK if options.quick else FULL)
        for measure in (measure_idle, measure_lists, measure_patterns):
            for made in measure(measured):
                made = made | {"machine": facts, "load_average": round(os.getloadavg()[0], 2)}
                made |= {"quick": True} if options.quick else {}
                all_correct &= made["correct"]
                print(json.dumps(made, ensure_ascii=False) if options.json else table_row(made), flush=True)
                if results is not None and not options.no_append:
                    append_result(results, made, commit)
    return 0 if all_correct else 1


if __name__ == "__main__":
    sys.exit(main())
