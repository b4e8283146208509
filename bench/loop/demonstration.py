"""Two televisions and a shard, shown: `python -m bench.loop.demonstration --data DIR --bundle FILE --household ID`, JSON.

A whole shard runs as `python -m cloud` runs it, under the data's own time. Television A agreed to `titles` some days ago,
television B stays in `receive`; all further homes share too, as one television alone backs no
trend; these are requests without a brain behind them. What A finished
goes up, the shard counts, a hub sums and tells the trends, B gets them with a sync that tells nothing. All have a
catalogue that is some weeks old, trained on what came before it. What B watched in the days after the sync is in the
data and was told to nobody: where it stood in B's list before and after is the gain, for B and some other receivers.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from bench.loop.clock import SharedClock
from bench.loop.cloud_side import Keys, place_first_bundle
from bench.loop.earlier import earlier_bundle
from bench.loop.homes import Clock
from bench.loop.meter import Passed, Relay
from bench.machine import ROOT
from bench.replay.measures import LIST_LENGTH, ndcg_at_10
from bench.viewing import Watched
from cloud.federation import FederationConfig, FederationCoordinator
from cloud.publication import read_lists
from omega_edge import signing, wire
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import SHARING_WORDS, BrainConfig
from omega_edge.datasets import Dataset, Events, read_dataset
from omega_edge.errors import DatasetError, OmegaError
from omega_edge.protocol import (
    DAY_MS,
    DEVICE_ID_BYTES,
    MAX_TITLES_FINISHED_PER_PAGE,
    SUCCESS_THRESHOLD,
    FinishedTitle,
    PatternDelta,
    Recommendation,
    SyncRequest,
)
from omega_edge.sync import DONE, SyncClient, SyncConfig, SyncReport
from omega_edge.sync_identity import authorization, device_token

SCHEMA = "omega-edge-demo-loop/1"
CATALOG_DAYS, SHARED_DAYS, LATER_DAYS = 56, 14, 3
"""How old the catalogue is, how long ago A agreed to share, and how many of the data's last days are left to see what was
watched then. In short data the first two are at most a half and a quarter of its days."""
RECEIVING_HOMES, REQUESTS_AT_ONCE = 20, 16
MIN_DEVICES = 5
"""Distinct televisions without which nothing is told of a title; the product's 50 is for shards of 100,000."""
LISTED, SHOWN_TITLES = 100, 5
WAIT_SECONDS = 60.0
OVERLOADED, BACK_SECONDS = 503, 0.25
"""What a shard answers on a machine that is busy with other things, and after how long it is asked again here."""
ORDINARY = (20, 90)
"""Viewings of an ordinary home: fewer say little of it, more are mostly whole libraries rated in an evening."""


class NotShown(Exception):
    """A part of the demonstration did not come about; the text says which."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part and when. at_ms: the moment of the syncs, a midnight. Households of the data set: first is A's, receiving
    are those that only receive, the first of them B."""

    dataset: Dataset
    at_ms: int
    catalog_days: int
    shared_days: int
    first: int
    further: tuple[int, ...]
    receiving: tuple[int, ...]

    @staticmethod
    def of(dataset: Dataset, first: int) -> Cast:
        """By rule: of homes with as many viewings as an ordinary one has (ORDINARY; of all, if none of those), the ones that
        finish something new to them on most of the data's last LATER_DAYS receive; ties go to the lower number. The further ones are all others that finished
        anything in the SHARED_DAYS before. Raises DatasetError where nobody is left to receive."""
        events, count = dataset.events, len(dataset.households)
        at_ms = (int(events.timestamp[-1]) // DAY_MS + 1 - LATER_DAYS) * DAY_MS
        days = max((at_ms - int(events.timestamp[0])) // DAY_MS, 4)
        shared_days = min(SHARED_DAYS, days // 4)
        finished, past = events.watch_percentage >= SUCCESS_THRESHOLD, events.timestamp < at_ms
        viewings = np.bincount(events.household[past], minlength=count)
        ordinary = (viewings >= ORDINARY[0]) & (viewings <= ORDINARY[1])
        ordinary[first] = False
        pair = events.household.astype(np.int64) * len(dataset.titles) + events.title
        new = np.zeros(len(events), bool)
        new[np.unique(pair, return_index=True)[1]] = True
        active = _active_days(events, new & finished & ~past, count)
        active[first] = 0
        later = np.where(ordinary, active, 0) if active[ordinary].any() else active
        receiving = np.argsort(-later, kind="stable")[:RECEIVING_HOMES]
        receiving = receiving[later[receiving] > 0]
        if not len(receiving):
            raise DatasetError(
                f"{dataset.name}: expected a home that finishes something new in its last {LATER_DAYS} days, found none"
            )
        recent = past & finished & (events.timestamp >= at_ms - shared_days * DAY_MS)
        further = np.setdiff1d(events.household[recent], [first, *receiving])
        catalog_days = min(CATALOG_DAYS, days // 2)
        return Cast(dataset, at_ms, catalog_days, shared_days, first, tuple(further.tolist()), tuple(receiving.tolist()))

    def finished_of(self, homes: Sequence[int]) -> dict[int, tuple[FinishedTitle, ...]]:
        """What homes finished since they agreed to share, in order, at most a page each."""
        events, titles = self.dataset.events, self.dataset.titles
        recent = (events.timestamp >= self.agreed_ms) & (events.timestamp < self.at_ms)
        recent &= (events.watch_percentage >= SUCCESS_THRESHOLD) & np.isin(events.household, homes)
        found: dict[int, list[FinishedTitle]] = {}
        for event in np.flatnonzero(recent).tolist():
            title = FinishedTitle(titles[int(events.title[event])].content_id, int(events.timestamp[event]))
            found.setdefault(int(events.household[event]), []).append(title)
        return {home: tuple(finished[:MAX_TITLES_FINISHED_PER_PAGE]) for home, finished in found.items()}

    def watched_next(self, household: int) -> list[Watched]:
        """What a home finished in the days after, each title that was new to it once."""
        seen = {watched.content_id for watched in self.watched(household, 0, self.at_ms)}
        later: dict[str, Watched] = {}
        for watched in self.watched(household, self.at_ms, self.at_ms + LATER_DAYS * DAY_MS):
            if watched.watch_percentage >= SUCCESS_THRESHOLD and watched.content_id not in seen:
                later.setdefault(watched.content_id, watched)
        return list(later.values())

    @property
    def agreed_ms(self) -> int:
        """When the homes that share agreed to."""
        return self.at_ms - self.shared_days * DAY_MS

    def watched(self, household: int, begin_ms: int, end_ms: int) -> list[Watched]:
        """What a home watched from one moment to another."""
        events = self.dataset.events
        mine = (events.household == household) & (events.timestamp >= begin_ms) & (events.timestamp < end_ms)
        return [
            Watched(
                self.dataset.titles[int(events.title[event])].content_id, self.dataset.titles[int(events.title[event])].name,
                float(events.watch_percentage[event]), int(events.timestamp[event]),
            )
            for event in np.flatnonzero(mine).tolist()
        ]  # fmt: skip


def _active_days(events: Events, chosen: np.ndarray, count: int) -> np.ndarray:
    """int64[count]: on how many days each household has one of some viewings, bool[e]."""
    days = np.unique(np.stack((events.household[chosen].astype(np.int64), events.timestamp[chosen] // DAY_MS)), axis=1)
    return np.bincount(days[0], minlength=count)


class Television:
    """A brain on a store of its own, behind a relay that counts its bytes."""

    def __init__(self, cast: Cast, household: int, sharing: str, folder: Path, bundle: Path) -> None:
        self.clock, self.sharing = Clock(cast.at_ms), sharing
        agreed_ms = cast.agreed_ms
        config = {"storage_path": folder, "catalog_path": bundle, "background_maintenance": False}
        with OmegaBrain.open(BrainConfig(**config), self.clock) as brain:
            self._observe(brain, cast.watched(household, 0, agreed_ms))
            self.clock.now_ms = agreed_ms
        self.brain = OmegaBrain.open(BrainConfig(**config, sharing=sharing), self.clock)
        self._observe(self.brain, cast.watched(household, agreed_ms, cast.at_ms))
        self.clock.now_ms = cast.at_ms
        self.brain.maintain()

    def _observe(self, brain: OmegaBrain, viewings: Sequence[Watched]) -> None:
        for watched in viewings:
            self.clock.now_ms = watched.at_ms
            brain.observe(watched.event())

    async def sync(self, port: int) -> tuple[SyncReport, Passed]:
        """Sync once; what came of it, and the bytes that passed the socket. Raises NotShown."""
        relay = await Relay(port).start()
        try:
            config = SyncConfig(f"http://127.0.0.1:{relay.port}")
            report = await SyncClient(self.brain, config, clock=self.clock).sync_once()
        finally:
            await relay.stop()
        if report.outcome != DONE:
            raise NotShown(f"a sync: {report.outcome}")
        return report, relay.passed

    def listed(self) -> list[Recommendation]:
        """The best titles now, many of them."""
        return self.brain.recommend(self.brain.now_context(), LISTED)


@contextmanager
def running_shard(folder: Path, keys: Keys, clock: Path, bundle: Path) -> Iterator[int]:
    """A shard's processes; the port."""
    place_first_bundle(folder / "bundles", bundle, keys)
    environment = os.environ | {
        "DATABASE_URL": f"lmdb://{folder / 'store'}",
        "DEVICE_KEY": keys.device_key,
        "PORT": "0",
        "BUNDLE_DIR": str(folder / "bundles"),
        "PUBLICATION_DIR": str(folder / "publication"),
        "SIGNING_KEY_FILE": str(keys.folder / "shard-1"),
        "TRUSTED_KEYS": keys.trusted_text,
        "FEDERATION_URL": str(folder.parent / "hub"),
        "FEDERATION_SECRET": keys.federation_secret,
        "COUNTING_INTERVAL_SECONDS": "1",
        "LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "bench.loop.shard_entry", str(clock)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise NotShown(f"the shard did not start (exit code {process.wait(WAIT_SECONDS)})")
        yield int(line.rsplit(" ", 1)[1])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def hub_of(folder: Path, keys: Keys, bundle: Path, clock: SharedClock) -> FederationCoordinator:
    """The hub above the one shard."""
    place_first_bundle(folder / "hub" / "bundles", bundle, keys)
    config = FederationConfig(
        role="hub", name="hub", sources=(str(folder / "shard" / "publication"),), publication_dir=folder / "hub",
        key=signing.read_signing_key(keys.folder / "hub"), secret=bytes.fromhex(keys.federation_secret),
        trusted=keys.trusted, min_devices=MIN_DEVICES, settle_seconds=0,
    )  # fmt: skip
    return FederationCoordinator(config, clock)


async def until(holds: object, what: str) -> None:
    """Wait until a condition holds. Raises NotShown after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise NotShown(f"{what}: waited {WAIT_SECONDS:.0f} s for it")
        await asyncio.sleep(0.05)


def row_told(rank: int, row: Recommendation) -> dict[str, object]:
    """A line of a list."""
    return {
        "rank": rank, "content_id": row.content_id, "content_title": row.content_title, "score": row.score,
        "reason": row.reason,
    }  # fmt: skip


async def share(cast: Cast, bundle: Path, port: int, device_key: bytes) -> set[tuple[int, str]]:
    """Send the lists of the further homes, each under a number of its own; (household, content id) of what the shard took.

    Their requests are what a television's would be, byte for byte, but no brain composes them. Raises NotShown.
    """
    draw, free = random.Random("further homes"), asyncio.Semaphore(REQUESTS_AT_ONCE)
    by_home = cast.finished_of(cast.further)
    with Catalog.open(bundle) as titles:
        async with aiohttp.ClientSession() as session:

            async def send(device_id: bytes, epoch: int, finished: tuple[FinishedTitle, ...]) -> None:
                request = SyncRequest(device_id=device_id, epoch=epoch, delta=PatternDelta(1, finished))
                body = wire.encode_request(request, titles)
                proof = {"Authorization": authorization(device_id, device_token(device_key, device_id), body)}
                url, deadline = f"http://127.0.0.1:{port}/api/v1/sync", time.monotonic() + WAIT_SECONDS
                async with free:
                    while True:
                        async with session.post(url, data=body, headers=proof) as reply:
                            await reply.read()
                        if reply.status == 200:
                            return
                        if reply.status != OVERLOADED or time.monotonic() > deadline:
                            raise NotShown(f"a further home's sync: status {reply.status}")
                        await asyncio.sleep(BACK_SECONDS)

            await asyncio.gather(
                *(send(draw.randbytes(DEVICE_ID_BYTES), draw.getrandbits(64), finished) for finished in by_home.values())
            )
    return {(home, title.content_id) for home, finished in by_home.items() for title in finished}


def ranks_of(rows: Sequence[Recommendation]) -> dict[str, int]:
    """Places from 1 by content id."""
    return {row.content_id: rank for rank, row in enumerate(rows, start=1)}


@dataclass(frozen=True, slots=True)
class Receiver:
    """A home that only receives: its lists before and after, and its sync."""

    household: int
    before: list[Recommendation]
    after: list[Recommendation]
    report: SyncReport
    passed: Passed

    def told(self, cast: Cast) -> dict[str, object]:
        """Its lists, and where in them stood what it watched in the days that followed."""
        before, after = ranks_of(self.before), ranks_of(self.after)
        return {
            "household": cast.dataset.households[self.household],
            "sharing": "receive",
            "sharing_in_words": SHARING_WORDS["receive"],
            "sync": told_of_sync(self.report, self.passed),
            "before": [row_told(rank, row) for rank, row in enumerate(self.before[:SHOWN_TITLES], start=1)],
            "after": [
                row_told(rank, row) | {"rank_before": before.get(row.content_id)}
                for rank, row in enumerate(self.after[:SHOWN_TITLES], start=1)
            ],
            "compared": LISTED,
            "watched_next": [
                {
                    "content_id": one.content_id, "content_title": one.title, "at": one.at_ms,
                    "rank_before": before.get(one.content_id), "rank_after": after.get(one.content_id),
                }
                for one in cast.watched_next(self.household)
            ],
        }


def gain_of(cast: Cast, receivers: Sequence[Receiver]) -> dict[str, object]:
    """Of all homes that only receive: which of the titles watched next came into the first ten and left them, and NDCG@10."""
    titles: list[dict[str, object]] = []
    for receiver in receivers:
        before, after = ranks_of(receiver.before), ranks_of(receiver.after)
        titles += [
            {
                "household": cast.dataset.households[receiver.household], "content_title": one.title,
                "rank_before": before.get(one.content_id), "rank_after": after.get(one.content_id),
            }
            for one in cast.watched_next(receiver.household)
        ]
    told: dict[str, object] = {"homes": len(receivers), "titles": len(titles)}
    shown = {}
    for name in ("before", "after"):
        ranks = np.array([math.inf if one[f"rank_{name}"] is None else one[f"rank_{name}"] for one in titles])
        shown[name] = ranks <= LIST_LENGTH
        told[f"in_first_ten_{name}"] = int(shown[name].sum())
        told[f"ndcg_at_10_{name}"] = round(float(ndcg_at_10(ranks).mean()), 4)
    for name, moved in (("entered", shown["after"] & ~shown["before"]), ("left", shown["before"] & ~shown["after"])):
        told[name] = [titles[place] for place in np.flatnonzero(moved).tolist()]
    return told


def told_of_sync(report: SyncReport, passed: Passed) -> dict[str, object]:
    """A sync in figures."""
    return {
        "titles": report.titles, "patterns": report.patterns, "changed": report.changed, "requests": report.requests,
        "body_bytes_up": report.bytes_up, "body_bytes_down": report.bytes_down,
        "socket_bytes_up": passed.up, "socket_bytes_down": passed.down,
    }  # fmt: skip


@dataclass(slots=True)
class Show:
    """The demonstration as it goes on, in a folder."""

    cast: Cast
    bundle: Path
    folder: Path

    async def run(self) -> dict[str, object]:
        """Everything; ready for JSON."""
        keys = Keys.make(self.folder / "keys", ("shard-1", "hub", "model"))
        clock = SharedClock.make(self.folder / "clock", self.cast.at_ms)
        shard = self.folder / "shard"
        shard.mkdir()
        hub = hub_of(self.folder, keys, self.bundle, clock)
        with running_shard(shard, keys, self.folder / "clock", self.bundle) as port:
            told = await self._told(shard / "publication", keys, hub, port)
        clock.close()
        return told

    def _television(self, household: int, sharing: str) -> Television:
        return Television(self.cast, household, sharing, self.folder / f"home-{household}", self.bundle)

    async def _told(self, publication: Path, keys: Keys, hub: FederationCoordinator, port: int) -> dict[str, object]:
        device_key, cast = bytes.fromhex(keys.device_key), self.cast
        first = self._television(cast.first, "titles")
        delta = first.brain.prepare_sync_delta()
        sent, passed = await first.sync(port)
        listed = {(cast.first, title.content_id) for title in delta.titles_finished}
        listed |= await share(cast, self.bundle, port, device_key)
        receiving = [self._television(household, "receive") for household in cast.receiving]
        before = [each.listed() for each in receiving]
        secret = bytes.fromhex(keys.federation_secret)
        await until(lambda: len(read_lists(publication, keys.trusted, secret).row) == len(listed), "the shard's counting")
        hub.run_once()
        await until((publication / "collective").exists, "the collective at the shard")
        await self._until_told(port)
        receivers = []
        for household, each, rows in zip(cast.receiving, receiving, before, strict=True):
            synced = await each.sync(port)
            receivers.append(Receiver(household, rows, each.listed(), *synced))
            each.brain.close()
        again, passed_again = await first.sync(port)
        log = first.brain.stats()["sync"]
        first.brain.close()
        return {
            "at": cast.at_ms,
            "television_a": {
                "household": cast.dataset.households[cast.first],
                "sharing": "titles",
                "sharing_in_words": SHARING_WORDS["titles"],
                "titles": [
                    {"content_id": title.content_id, "content_title": name_of(cast, title.content_id), "finished_at": title.finished_at}
                    for title in delta.titles_finished
                ],
                "sync": told_of_sync(sent, passed),
                "next_sync": told_of_sync(again, passed_again),
                "log": log,
            },
            "further_homes": {"homes": len(cast.further), "titles": len(listed) - len(delta.titles_finished)},
            "television_b": receivers[0].told(cast),
            "receiving_homes": gain_of(cast, receivers),
        }

    async def _until_told(self, port: int) -> None:
        """Wait until the shard's worker has seen the collective's file, which it looks for each two seconds."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            answered = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
            answered.request("GET", "/api/v1/stats")
            told = json.loads(answered.getresponse().read())
            answered.close()
            if told["global_version"] is not None:
                return
            await asyncio.sleep(0.1)
        raise NotShown("the collective at the shard's worker: waited in vain")


def name_of(cast: Cast, content_id: str) -> str:
    """A title's name."""
    return next(title.name for title in cast.dataset.titles if title.content_id == content_id)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Print the demonstration as JSON. Exit code 1: a part of it did not come about, or the data set cannot show it."""
    parser = argparse.ArgumentParser(prog="python -m bench.loop.demonstration", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--bundle", type=Path, required=True, help="catalogue of the data set")
    parser.add_argument("--model", type=Path, required=True, help="folder of the text model")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the catalogue of some days ago, which is made once")
    parser.add_argument("--household", required=True, help="id of television A's household")
    options = parser.parse_args(arguments)
    try:
        dataset = read_dataset(options.data)
        cast = Cast.of(dataset, dataset.households.index(options.household))
        with tempfile.TemporaryDirectory(prefix="omega-edge-loop-") as name:
            earlier = earlier_bundle(
                options.bundle, dataset, cast.at_ms - cast.catalog_days * DAY_MS, options.model, options.cache, say
            )
            began = time.monotonic()
            told = asyncio.run(Show(cast, earlier, Path(name)).run())
    except (NotShown, OmegaError) as fault:
        print(str(fault), file=sys.stderr)
        return 1
    facts = {
        "schema": SCHEMA,
        "catalog_days": cast.catalog_days,
        "shared_days": cast.shared_days,
        "later_days": LATER_DAYS,
        "min_devices": MIN_DEVICES,
        "min_devices_of_product": FederationConfig.__dataclass_fields__["min_devices"].default,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(facts | told, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
