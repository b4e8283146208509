"""What counting and federating cost: `python -m bench.federation [--titles N] [--json]`.

A real store is filled by the shard's own apply(): 2 million finished titles of 100,000 devices, on average four to a page,
over the last 35 days. Then a process of its own, on one core, counts all of it from nothing and publishes counts and lists,
signed and encrypted, as a shard that starts does. The published numbers are compared with what was put in; a run whose
numbers differ counts for nothing.

    aggregate_seconds_per_2m          CPU of the whole pass, reading, counting, publishing (limit: 10)
    aggregate_peak_mb                 highest memory of that process's own, all of Python in it (limit: 200); pages of the
                                      store's file that it has mapped, which it shares with the workers, come on top
    aggregate_step_seconds            a second pass that finds 1,000 new titles
    counts_kb, lists_bytes_per_title  what is published
    support_seconds_per_100k_reports  falsified reports against 9,000 titles
    merge_seconds                     the sum of 100 shards' counts
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.machine import MEGABYTE, commit_facts, machine_facts, resident_memory
from bench.metrics import judged
from cloud import counts as counts_
from cloud.counts import Counts, DayVotes
from cloud.estimates import support
from cloud.lmdb_storage import LmdbStorage
from cloud.publication import Publication, read_counts, read_lists
from cloud.shard_counter import CountingSettings, ShardCounter
from cloud.storage import SyncChange
from omega_edge.protocol import COUNT_CATEGORIES, DAY_MS
from omega_edge.signing import SigningKey, public_key

SECRET, KEY = bytes(range(32)), SigningKey(bytes(range(32)))
CATALOGUE_TITLES = 9_000
DEVICES = 100_000
TODAY = 20_000
NOW_MS = TODAY * DAY_MS + DAY_MS // 2
BATCH = 4_000


class NumberedTitles:
    """What counting asks of a catalogue: its titles' ids, its lineage, and no trends of its own."""

    lineage, count, trends = "0123456789abcdef", CATALOGUE_TITLES, ()

    @staticmethod
    def content_ids(rows: range) -> list[str]:
        """Ids by row."""
        return [f"t{row}" for row in rows]


def fill(folder: Path, titles: int, seed: int) -> None:
    """A store with so many finished titles, a page a sync, in order of receipt; devices send one page a day at most."""
    rng = np.random.default_rng(seed)
    now = [0]
    storage = LmdbStorage(folder, clock=lambda: now[0], lineage=NumberedTitles.lineage, max_devices=DEVICES)
    weights = np.cumsum(1 / np.arange(1, CATALOGUE_TITLES + 1))
    issued: dict[int, tuple[int, int]] = {}
    pages = titles // 4
    days = 35
    for day in range(days):
        here = pages // days + (day < pages % days)
        devices = rng.choice(DEVICES, here, replace=False)
        for start in range(0, here, BATCH):
            now[0] = NOW_MS - (days - 1 - day) * DAY_MS + start
            batch = []
            for device in devices[start : start + BATCH].tolist():
                size = int(rng.integers(1, 8))
                rows = np.searchsorted(weights, rng.random(size) * weights[-1]).tolist()
                finished = (now[0] - rng.integers(0, 20 * 3_600_000, size)).tolist()
                version, seen = issued.get(device, (0, None))
                batch.append(
                    SyncChange(
                        device.to_bytes(16, "big"), 1, now[0], server_time_seen=seen, local_version=version + 1, rows=rows,
                        finished_ms=finished,
                    )
                )  # fmt: skip
            outcomes = storage.apply(batch)
            assert not any(outcome.reset for outcome in outcomes), "the store refused a page"
            for change, outcome in zip(batch, outcomes, strict=True):
                issued[int.from_bytes(change.device_id, "big")] = change.local_version, outcome.server_time
    storage.close()


def truth_of(folder: Path) -> tuple[np.ndarray, int, int]:
    """(votes by title uint64[titles], titles stored, distinct devices and titles), counted by plain sets of numbers."""
    storage = LmdbStorage(folder, clock=lambda: NOW_MS)
    votes, listed, sequence, stored = [], [], 0, 0
    while batch := storage.pages_after(sequence, 50_000):
        sequence = batch[-1].sequence
        device = np.repeat([int.from_bytes(page.device_id, "big") for page in batch], [len(page.rows) for page in batch])
        rows = np.concatenate([page.rows for page in batch]).astype(np.int64)
        day = np.concatenate([page.finished_ms for page in batch]) // DAY_MS
        stored += len(rows)
        votes.append((rows * DEVICES + device) * 64 + (TODAY - day))
        listed.append(rows * DEVICES + device)
    storage.close()
    distinct = np.unique(np.concatenate(votes))
    distinct = distinct[distinct % 64 < 36]
    by_title = np.bincount(distinct // 64 // DEVICES, minlength=CATALOGUE_TITLES)
    return by_title, stored, len(np.unique(np.concatenate(listed)))


class OwnMemory(threading.Thread):
    """Looks 50 times a second how much anonymous memory this process has; most: the highest, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0
        self._ending = threading.Event()

    def run(self) -> None:
        """Until end()."""
        while not self._ending.wait(0.02):
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.most = max(self.most, int(fields["RssAnon"].split()[0]) * 1024 / MEGABYTE)

    def end(self) -> float:
        """The highest."""
        self._ending.set()
        self.join()
        return self.most


def counted(folder: Path) -> dict[str, float]:
    """In a process of its own: count the store from nothing, then 1,000 titles more."""
    before = resident_memory()["resident"]
    storage = LmdbStorage(folder / "store", clock=lambda: NOW_MS, max_devices=2 * DEVICES)
    publication = Publication(folder / "publication", "shard-1", KEY, SECRET)
    memory = OwnMemory()
    memory.start()
    began = time.process_time()
    counter = ShardCounter(storage, publication, CountingSettings(), NumberedTitles(), lambda: NOW_MS)
    counter.run_once()
    seconds = time.process_time() - began
    peak, resident = memory.end(), resident_memory()["peak"]
    changes = [
        SyncChange(bytes([255]) + number.to_bytes(15, "big"), 1, NOW_MS, local_version=1, rows=[5], finished_ms=[NOW_MS])
        for number in range(1_000)
    ]
    outcomes = storage.apply(changes)
    assert all(outcome.changed for outcome in outcomes), "the store refused a page"
    began = time.process_time()
    counter.run_once()
    step = time.process_time() - began
    return {"seconds": seconds, "peak_mb": peak, "resident_mb": resident, "imported_mb": before, "step": step}


def aggregate(folder: Path, titles: int) -> Iterator[dict]:
    """Lines of counting."""
    fill(folder / "store", titles, seed=1)
    truth, stored, pairs = truth_of(folder / "store")
    command = [sys.executable, "-m", "bench.federation", "--counted", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    trusted = (public_key(KEY),)
    counts, lists = read_counts(folder / "publication", trusted, SECRET), read_lists(folder / "publication", trusted, SECRET)
    told = np.zeros(CATALOGUE_TITLES, np.int64)
    for day in counts.days.values():
        told[day.rows] += day.votes
    told[5] -= 1_000
    right = np.array_equal(told, truth) and len(lists.row) == pairs + 1_000
    fault = None if right else f"expected {truth.sum()} votes and {pairs} listed titles, got {told.sum()} and {len(lists.row)}"
    facts = {"titles": stored, "devices": DEVICES, "catalogue_titles": CATALOGUE_TITLES}
    scaled = found["seconds"] * 2_000_000 / stored
    yield judged("aggregate_seconds_per_2m", scaled, "s", fault, 10.0) | facts
    memory = {"imported_mb": round(found["imported_mb"], 1), "resident_with_mapped_mb": round(found["resident_mb"], 1)}
    yield judged("aggregate_peak_mb", found["peak_mb"], "MB", fault, 200.0) | facts | memory
    yield judged("aggregate_step_seconds", found["step"], "s", fault) | facts
    sizes = {kind: [p.stat().st_size for p in (folder / "publication").glob(f"{kind}.*")] for kind in ("counts", "lists")}
    yield judged("counts_kb", sum(sizes["counts"]) / 1000, "kB", fault) | facts
    yield judged("lists_bytes_per_title", sum(sizes["lists"]) / (stored + 1_000), "B", fault) | facts


def reports() -> dict:
    """The line of supporting titles by reports."""
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 1 << 64, CATALOGUE_TITLES, dtype=np.uint64)
    seeds = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    values = rng.integers(0, COUNT_CATEGORIES, 20_000).astype(np.uint8)
    began = time.process_time()
    found = support(hashes, seeds, values)
    seconds = (time.process_time() - began) * 100_000 / len(seeds)
    mean = found.mean() * COUNT_CATEGORIES / len(seeds)
    fault = None if abs(mean - 1) < 0.01 else f"expected each title supported by one of {COUNT_CATEGORIES}, got {mean:.3f}"
    return judged("support_seconds_per_100k_reports", seconds, "s", fault) | {"catalogue_titles": CATALOGUE_TITLES}


def merging() -> dict:
    """The line of a region's sum of 100 shards, 35 days each."""
    rng = np.random.default_rng(4)
    rows = np.arange(CATALOGUE_TITLES, dtype=np.uint32)
    shards = []
    for number in range(100):
        votes = rng.integers(0, 500, CATALOGUE_TITLES).astype(np.uint32)
        day = DayVotes(rows, votes, votes // 9, 500, 60)
        shards.append(Counts(f"shard-{number}", 1, "0" * 16, CATALOGUE_TITLES, 0, {TODAY - back: day for back in range(35)}))
    began = time.process_time()
    total = counts_.merged("hub", 1, 0, shards)
    seconds = time.process_time() - began
    expected = sum(shard.days[TODAY].votes.astype(np.int64) for shard in shards)
    fault = None if np.array_equal(total.days[TODAY].votes, expected) else "expected the sum, got another"
    return judged("merge_seconds", seconds, "s", fault) | {"shards": 100, "days": 35, "catalogue_titles": CATALOGUE_TITLES}


def main(arguments: list[str] | None = None) -> int:
    """Print the lines; 1 if a number is wrong or a limit not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.federation", description=__doc__.split("\n")[0])
    parser.add_argument("--titles", type=int, default=2_000_000, help="finished titles to store (2000000)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--counted", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.counted is not None:
        print(json.dumps(counted(options.counted)))
        return 0
    facts = commit_facts() | {"machine": machine_facts()}
    failed = False
    with tempfile.TemporaryDirectory(prefix="omega-federation-") as folder:
        for line in (*aggregate(Path(folder), options.titles), reports(), merging()):
            failed |= not line["correct"] or line.get("met") is False
            text = f"{line['metric']:34} {line['value']:>12.4f} {line['unit']}" + ("" if line["correct"] else f"  {line['fault']}")
            print(json.dumps(line | facts) if options.json else text, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
