"""Whatever a device that can sign sends, the shard answers by a status code of its own, and its store stays sound."""

from __future__ import annotations

import asyncio
import random

import cbor2
import pytest

from cloud.admission import DeviceBuckets
from cloud.commit import GroupCommit
from cloud.knowledge_files import KnowledgeFiles
from cloud.lmdb_storage import LmdbStorage
from cloud.metrics import SharedCounters
from cloud.shard import ShardConfig, ShardManager
from omega_edge import wire
from omega_edge.protocol import (
    CountReport,
    FinishedTitle,
    PatternDelta,
    SyncRequest,
    TitleReference,
    ViewingPattern,
)
from omega_edge.signing import public_key
from omega_edge.sync_identity import authorization, device_token
from tests.shard_processes import DEVICE_KEY, SIGNING_KEY, write_bundle

NOW_MS = 1_700_000_000_000
STATUSES = {200, 400, 401, 409, 426, 503}
VALUES = (0, 1, -1, 255, 2**32, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf"), True, False, None, b"", b"\xff" * 40, "t001", "", [], {}, [b"\x02\x01\x00"])


def messages(device_id: bytes) -> list[SyncRequest]:
    """One of every kind."""
    mixture = tuple(TitleReference(f"t{row:03}", 0.5) for row in range(4))
    patterns = (
        ViewingPattern(1, 0.9, 5, NOW_MS, NOW_MS, references=mixture),
        ViewingPattern(2, 0.8, 500, NOW_MS, NOW_MS, code=bytes(48), codebook=1),
    )
    deltas = (
        PatternDelta(5, (FinishedTitle("t001", NOW_MS), FinishedTitle("not in the catalogue", NOW_MS))),
        PatternDelta(6, patterns_added=patterns, patterns_removed=(9,), shared_set_hash=7),
        PatternDelta(7, patterns_added=patterns, snapshot=True, shared_set_hash=7),
        PatternDelta(8),
    )
    identity = {"device_id": device_id, "epoch": 3}
    return [
        SyncRequest(),
        SyncRequest(**identity),
        SyncRequest(**identity, count_report=CountReport(NOW_MS // 86_400_000, 1, 2)),
        SyncRequest(**identity, erase=True),
        *(SyncRequest(**identity, delta=delta) for delta in deltas),
        *(SyncRequest(**identity, server_time_seen=NOW_MS, delta=delta) for delta in deltas),
    ]


def mutated_fields(chosen: random.Random, fields: dict) -> dict:
    """The fields with one of them, at any depth, exchanged for something else, left out, or joined by another."""
    fields = dict(fields)
    key = chosen.choice(list(fields))
    if isinstance(fields[key], dict) and fields[key] and chosen.random() < 0.8:
        fields[key] = mutated_fields(chosen, fields[key])
        return fields
    kind = chosen.randrange(4)
    if kind == 0:
        del fields[key]
    elif kind == 1:
        fields[chosen.randrange(-3, 30)] = chosen.choice(VALUES)
    elif kind == 2 and isinstance(fields[key], bytes) and fields[key]:
        changed = bytearray(fields[key])
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        fields[key] = bytes(changed)
    else:
        fields[key] = chosen.choice(VALUES)
    return fields


def mutated(chosen: random.Random, body: bytes) -> bytes:
    """A frame changed in its fields, or in its bytes."""
    if body[2] == 0 and chosen.random() < 0.7:
        return body[:4] + cbor2.dumps(mutated_fields(chosen, cbor2.loads(body[4:])))
    changed = bytearray(body)
    for _ in range(chosen.randrange(1, 5)):
        place = chosen.randrange(len(changed))
        if chosen.random() < 0.5:
            changed[place] = chosen.randrange(256)
        else:
            changed[place : place + chosen.randrange(4)] = chosen.randbytes(chosen.randrange(4))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_of_the_documented_kinds(tmp_path, seed):
    chosen = random.Random(seed)
    catalog = write_bundle(tmp_path / "bundles")
    storage = LmdbStorage(
        tmp_path / "store", clock=lambda: NOW_MS, lineage=catalog.lineage, max_devices=20, map_bytes=1 << 26, reserve_bytes=4_096
    )
    knowledge = KnowledgeFiles(None, tmp_path / "bundles", (public_key(SIGNING_KEY),))
    config = ShardConfig(1, "default", f"lmdb://{tmp_path / 'store'}")

    async def run() -> dict[int, int]:
        commit = GroupCommit(storage, asyncio.get_running_loop())
        manager = ShardManager(
            config, storage, commit, knowledge, DEVICE_KEY, lambda: NOW_MS, SharedCounters(1).row(0), DeviceBuckets(burst=1 << 30)
        )
        seen: dict[int, int] = {}

        async def send(body: bytes, device_id: bytes) -> None:
            proof = authorization(device_id, device_token(DEVICE_KEY, device_id), body)
            reply = await manager.handle_sync(body, None if chosen.random() < 0.05 else proof)
            seen[reply.status] = seen.get(reply.status, 0) + 1
            if reply.status == 200:
                wire.decode_response(reply.body)
            else:
                assert reply.body and (reply.retry_after is not None) == (reply.status == 503)

        for _ in range(40):
            device_id = bytes((chosen.randrange(30),)) * 16
            bodies = [wire.encode_request(message, catalog) for message in messages(device_id)]
            await asyncio.gather(*(send(mutated(chosen, chosen.choice(bodies)), device_id) for _ in range(40)))
            await send(chosen.choice(bodies), device_id)
        await commit.close()
        return seen

    try:
        statuses = asyncio.run(run())
        assert statuses.keys() <= STATUSES, statuses
        assert statuses[200] > 100 and statuses[400] > 100
        assert storage.facts().damaged_records == 0 and storage.facts().devices <= 20
        sequence = 0
        while pages := storage.pages_after(sequence, 100):
            assert all((page.rows < len(catalog)).all() for page in pages)
            sequence = pages[-1].sequence
    finally:
        storage.close()
