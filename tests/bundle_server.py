"""A real HTTP server for bundles, as a shard has one, and a proxy before it that cuts connections after some bytes."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Self

from aiohttp import web

MANIFEST = "manifest"


class BundleServer:
    """Serves the files of a folder below /api/v1/bundles/{lineage}/, the manifest with an ETag by its content. A thread of its
    own runs it, so that tests and other processes can ask it. requests: (path, headers) of each one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._runner, self.url = self._run(self._started())
        return self

    def __exit__(self, *exception: object) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _started(self) -> tuple[web.AppRunner, str]:
        application = web.Application()
        application.router.add_get("/api/v1/bundles/{lineage}/{file}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.match_info["file"], dict(request.headers)))
        path = self.folder / request.match_info["lineage"] / request.match_info["file"]
        if not path.is_file():
            raise web.HTTPNotFound
        if path.name != MANIFEST:
            return web.FileResponse(path)
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()[:32]
        if request.headers.get("If-None-Match") == f'"{tag}"':
            raise web.HTTPNotModified(headers={"ETag": f'"{tag}"'})
        return web.Response(body=content, headers={"ETag": f'"{tag}"'})

    def asked_for(self) -> list[str]:
        """Files asked for, in order."""
        return [path for path, _headers in self.requests]


class CuttingProxy:
    """Forwards connections to a server and cuts each one after so many bytes of its reply; the numbers are used up in order,
    None and what follows the last one cut nothing."""

    def __init__(self, url: str) -> None:
        self._target = url.removeprefix("http://").split(":")
        self.cuts: list[int | None] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.cuts.pop(0) if self.cuts else None
        upstream, upward = await asyncio.open_connection(self._target[0], int(self._target[1]))
        asking = asyncio.create_task(self._forward(reader, upward))
        try:
            while block := await upstream.read(4096 if left is None else min(left, 4096)):
                writer.write(block)
                await writer.drain()
                if left is not None and (left := left - len(block)) <= 0:
                    break
        except OSError:
            pass  # the client went away first
        finally:
            asking.cancel()
            upward.transport.abort()
            writer.transport.abort() if left == 0 else writer.close()

    @staticmethod
    async def _forward(reader: asyncio.StreamReader, upward: asyncio.StreamWriter) -> None:
        while block := await reader.read(4096):
            upward.write(block)
