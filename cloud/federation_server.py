"""A region's or hub's publication over HTTP: objects, bundles, stats, health and metrics, from a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading

from aiohttp import web

from cloud.connections import Written, error_reply
from cloud.downloads import Downloads, Reply
from cloud.federation import FederationConfig, FederationCoordinator
from omega_edge.errors import ConfigError

KEEP_ALIVE_SECONDS = 15.0
_JSON = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_TEXT = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"), ("Cache-Control", "no-store"))


class FederationServer:
    """Serves while it is entered; entering gives host:port."""

    def __init__(self, coordinator: FederationCoordinator, config: FederationConfig, host: str, port: int) -> None:
        self._coordinator, self._config, self._host, self._port = coordinator, config, host, port
        self._downloads = Downloads(config.bundles, config.publication_dir)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="federation-server", daemon=True)

    def __enter__(self) -> str:
        """Begin. Raises ConfigError where the port cannot be had."""
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except OSError as error:
            self._end()
            raise ConfigError(f"PORT: expected to listen on {self._host}:{self._port}, got {error.strerror}") from None
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._end()

    async def _start(self) -> int:
        server = web.Server(self._handle, keepalive_timeout=KEEP_ALIVE_SECONDS, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        return self._runner.addresses[0][1]

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _handle(self, request: web.BaseRequest) -> Reply:
        parts = request.rel_url.raw_path.split("/")
        if request.method not in ("GET", "HEAD"):
            return Written(405, b'{"error":"expected GET"}', (*_JSON, ("Allow", "GET, HEAD")))
        if parts[:4] == ["", "api", "v1", "federation"] and len(parts) == 5:
            return await self._downloads.federation(request, parts[4])
        if parts[:4] == ["", "api", "v1", "bundles"] and len(parts) == 6:
            return await self._downloads.bundle(request, parts[4], parts[5])
        return self._told(request.rel_url.raw_path)

    def _told(self, path: str) -> Reply:
        if path == "/api/v1/health/live":
            return _json(200, {"live": True})
        if path in ("/api/v1/health", "/api/v1/health/ready"):
            ready = self._coordinator.ready
            return _json(200 if ready or path == "/api/v1/health" else 503, {"live": True, "ready": ready})
        if path == "/api/v1/stats":
            return _json(200, self._coordinator.stats())
        if path == "/metrics":
            return Written(200, exposition(self._coordinator.stats()).encode(), _TEXT)
        return error_reply(404, "expected /api/v1/federation/NAME, stats, health or /metrics, got another path")


def exposition(stats: dict[str, object]) -> str:
    """The numbers of FederationCoordinator.stats() in Prometheus' text format. No title and no address is a label."""
    sources = stats["sources"]
    numbers = {
        "passes_total": stats["passes"],
        "published_objects": stats["published"],
        "sources": len(sources),
        "sources_with_faults": sum(bool(source["faults"]) for source in sources),
        "refusals_total": sum(source["refusals"] for source in sources),
        "titles_held_back": stats["held_back"],
    }
    return "".join(
        f"# TYPE omega_federation_{name} {'counter' if name.endswith('_total') else 'gauge'}\n"
        f"omega_federation_{name} {value}\n"
        for name, value in numbers.items()
    )


def _json(status: int, value: object) -> Written:
    return Written(status, json.dumps(value, ensure_ascii=False).encode(), _JSON)
