"""Routes: paths and methods → what answers them. Thin; what a sync does is shard.py's."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from cloud.admission import Gate
from cloud.connections import Written, error_reply
from cloud.downloads import Downloads
from cloud.enrolment import Enrolment
from cloud.logs import log
from cloud.metrics import Counters, exposition
from cloud.openapi import document
from cloud.shard import RETRY_AFTER_SECONDS, ShardManager
from omega_edge.protocol import DEVICE_ID_BYTES, MAX_UPLOAD_BYTES

SYNC_PATH = "/api/v1/sync"
DEVICES_PATH = "/api/v1/devices"
READ_METHODS = ("GET", "HEAD")
Reply = Written | web.StreamResponse
JSON = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


class ShardApplication:
    """Answers the requests of one worker."""

    def __init__(
        self, manager: ShardManager, gate: Gate, downloads: Downloads, enrolment: Enrolment, counters: Counters
    ) -> None:
        self.manager, self.gate, self.downloads, self.counters = manager, gate, downloads, counters
        self.enrolment = enrolment
        self.workers_ready: Callable[[], int] = lambda: counters.shared.total("ready")
        self._simple: dict[str, Callable[[], Written]] = {
            "/api/v1/stats": lambda: _json(200, manager.stats()),
            "/api/v1/health": self._health,
            "/api/v1/health/live": lambda: _json(200, {"live": True}),
            "/api/v1/health/ready": self._ready,
            "/api/v1/openapi.json": lambda: _json(200, document()),
            "/metrics": self._metrics,
        }

    async def handle(self, request: web.BaseRequest) -> Reply:
        """The reply to any request. A fault of the shard's own is logged by its kind and raised."""
        path = request.rel_url.raw_path
        try:
            if path == SYNC_PATH:
                return await self._sync(request)
            route, reply = await self._other(request, path)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as fault:
            log("a request met a fault", logging.ERROR, kind=type(fault).__name__)
            raise
        self.counters.answered(route, reply.status)
        return reply

    async def _sync(self, request: web.BaseRequest) -> Reply:
        """POST /api/v1/sync. Nothing of the body is read before the gate and its length have been asked.

        What has not come whole yet is not in hand: a few hundred slow bodies would keep everybody out.
        """
        gate = self.gate
        refused = self._refused(request, MAX_UPLOAD_BYTES)
        if refused is None:
            body = await request.read()
            request.protocol.arrived()
            refused = self._closed(request)
        if refused is not None:
            self.counters.answered("sync", refused.status)
            return refused
        began = time.monotonic()
        gate.enter()
        try:
            reply = await self.manager.handle_sync(body, request.headers.get("Authorization"))
        finally:
            gate.leave()
        self.counters.answered("sync", reply.status)
        if reply.status == 200:
            self.counters.took((time.monotonic() - began) * 1000.0)
            return Written(200, reply.body, keep_alive=not gate.draining)
        words = reply.body.decode("utf-8", "replace")
        return error_reply(reply.status, words, reply.retry_after, keep_alive=not gate.draining)

    def _refused(self, request: web.BaseRequest, max_bytes: int) -> Written | None:
        """The refusal of a POST whose body is not worth reading, or None."""
        if request.method != "POST":
            return _method_not_allowed("POST")
        if (closed := self._closed(request)) is not None:
            return closed
        length = request.headers.get("Content-Length")
        if length is None or not length.isascii() or not length.isdigit():
            return error_reply(411, "expected Content-Length, got none", keep_alive=False)
        if len(length) > 9 or int(length) > max_bytes:
            return error_reply(413, f"expected a body of at most {max_bytes} bytes, got more", keep_alive=False)
        return None

    def _closed(self, request: web.BaseRequest) -> Written | None:
        """The refusal of a POST while the gate is closed. One that has come whole leaves the connection to those behind it."""
        if not self.gate.closed:
            return None
        words = "the shard is stopping" if self.gate.stopped else "the shard is overloaded; come back later"
        whole = request.content.is_eof()
        return error_reply(503, words, RETRY_AFTER_SECONDS, keep_alive=whole and not self.gate.draining)

    async def _devices(self, request: web.BaseRequest) -> Written:
        """POST /api/v1/devices."""
        refused = self._refused(request, DEVICE_ID_BYTES)
        if refused is not None:
            return refused
        reply = self.enrolment.answer(await request.read())
        request.protocol.arrived()
        if reply.status == HTTPStatus.CREATED:
            return Written(reply.status, reply.body, (("Cache-Control", "no-store"),), keep_alive=not self.gate.draining)
        return error_reply(reply.status, reply.body.decode(), reply.retry_after, keep_alive=not self.gate.draining)

    async def _other(self, request: web.BaseRequest, path: str) -> tuple[str, Reply]:
        """Route, for counting, and reply."""
        if path == DEVICES_PATH:
            return "devices", await self._devices(request)
        if request.method not in READ_METHODS:
            known = path in self._simple or path.startswith(("/api/v1/bundles/", "/api/v1/federation/"))
            return "other", _method_not_allowed("GET, HEAD") if known else _not_found()
        simple = self._simple.get(path)
        if simple is not None:
            return "other", simple()
        parts = path.split("/")
        if parts[:4] == ["", "api", "v1", "bundles"] and len(parts) == 6:
            return "bundles", await self.downloads.bundle(request, parts[4], parts[5])
        if parts[:4] == ["", "api", "v1", "federation"] and len(parts) == 5:
            return "federation", await self.downloads.federation(request, parts[4])
        return "other", _not_found()

    def _health(self) -> Written:
        ready = not self.gate.draining
        return _json(200, {"live": True, "ready": ready, "overloaded": self.gate.closed and ready, "workers": self.workers_ready()})

    def _ready(self) -> Written:
        if self.gate.draining:
            return _json(503, {"ready": False, "error": "the shard is stopping"}, (("Retry-After", "5"),))
        return _json(200, {"ready": True})

    def _metrics(self) -> Written:
        headers = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"), ("Cache-Control", "no-store"))
        return Written(200, exposition(self.counters.shared, self.manager), headers)


def _json(status: int, value: object, headers: tuple[tuple[str, str], ...] = ()) -> Written:
    return Written(status, json.dumps(value, ensure_ascii=False).encode(), (*JSON, *headers))


def _method_not_allowed(allowed: str) -> Written:
    return Written(405, b'{"error":"expected another method, see Allow"}', (*JSON, ("Allow", allowed)))


def _not_found() -> Written:
    return error_reply(404, "expected a path of /api/v1/openapi.json, got another")
