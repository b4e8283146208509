"""What a shard takes from its folders, and what of them it hands on."""

from __future__ import annotations

import asyncio

from aiohttp import ClientSession, web

from cloud import collective as collectives
from cloud.collective import Collective
from cloud.downloads import Downloads
from cloud.knowledge_files import KnowledgeFiles
from cloud.replies import response_frame
from cloud.storage import SyncOutcome
from omega_edge.protocol import MAX_DOWNLOAD_BYTES, U32_MAX
from omega_edge.signing import public_key, seal
from omega_edge.wire import RESPONSE_BYTES
from tests.shard_processes import SIGNING_KEY, write_bundle

TRUSTED = (public_key(SIGNING_KEY),)


class TestBundles:
    def test_one_that_comes_after_its_manifest_is_taken(self, tmp_path):
        lineage = write_bundle(tmp_path / "bundles").lineage
        knowledge = KnowledgeFiles(None, tmp_path / "bundles", TRUSTED)
        write_bundle(tmp_path / "new", titles=61, version=2, sequence=2)
        there, new = tmp_path / "bundles" / lineage, tmp_path / "new" / lineage
        (new / "manifest").replace(there / "manifest")
        for _ in range(2):
            knowledge.refresh()
            assert knowledge.catalog_version == 1 and "bundle-2.omega" in knowledge.stats()["refused_files"]["manifest"]
        whole = (new / "bundle-2.omega").read_bytes()
        (there / "bundle-2.omega").write_bytes(whole[:-1])
        knowledge.refresh()
        assert knowledge.catalog_version == 1 and "manifest" in knowledge.stats()["refused_files"]
        (there / "bundle-2.omega").write_bytes(whole)
        knowledge.refresh()
        assert knowledge.catalog_version == 2 and len(knowledge.catalog) == 61
        assert knowledge.stats()["refused_files"] == {}


class TestCollective:
    def test_one_that_no_response_has_room_for_is_refused(self, tmp_path):
        fullest = SyncOutcome((1 << 64) - 1, (1 << 64) - 1, True, True, True, True)
        knowledge = KnowledgeFiles(tmp_path, None, TRUSTED)
        most = MAX_DOWNLOAD_BYTES - RESPONSE_BYTES
        for version, size in ((1, most), (2, most + 1), (3, MAX_DOWNLOAD_BYTES)):
            payload = collectives.encode(Collective(version, "00" * 8, 1, bytes(size), 0))
            (tmp_path / "new").write_bytes(seal("collective", payload, SIGNING_KEY))
            (tmp_path / "new").replace(tmp_path / "collective")
            knowledge.refresh()
            assert knowledge.collective.version == 1
            assert ("collective" in knowledge.stats()["refused_files"]) == (size > most)
        frame = knowledge.collective.frame
        assert response_frame(fullest, 255, (1 << 64) - 1, 86_400, U32_MAX, frame).endswith(b"\x0c\xf5")


def test_of_a_publication_only_signed_objects_are_handed_out(tmp_path):
    names = {"index": 200, "counts.0123456789abcdef": 200, "collective": 200, "shard.key": 404, "store": 404, "reserve": 404}
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 65)

    async def run():
        downloads = Downloads(None, tmp_path)
        server = web.Server(lambda request: downloads.federation(request, request.path.rpartition("/")[2]))
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            for name, status in names.items():
                async with session.get(f"/{name}") as answer:
                    assert answer.status == status, name
        await runner.cleanup()

    asyncio.run(run())
