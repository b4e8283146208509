"""Files for televisions and regions: bundles, their manifests, and the federation's objects. Whole or one range, with ETag.

A name is checked against its form before any path is made of it, so no path leads out of the folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from cloud.connections import Written, error_reply
from omega_edge.signing import KINDS

CHUNK_BYTES = 64 * 1024
MAX_DOWNLOADS = 64
"""At once in a worker; a bundle has a few megabytes, and whoever comes later retries."""
STALL_SECONDS = 30.0
"""In which a client has to take a chunk."""
MAX_KNOWN_ETAGS = 4_096
SMALL_BYTES = 64 * 1024
"""Up to this size a file is read at once and written in one piece."""
IMMUTABLE = "public, max-age=31536000, immutable"
MUST_ASK = "no-cache"

_LINEAGE = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[A-Za-z0-9_-]{1,100}){0,6}")
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")

Reply = Written | web.StreamResponse


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start to end (exclusive) of a file; whole: all of it."""

    start: int
    end: int
    whole: bool


def asked_span(header: str | None, size: int) -> Span | None:
    """What a Range header asks of a file of this size; None where it lies outside. What is no single range is ignored."""
    found = None if header is None else _RANGE.fullmatch(header.strip())
    if found is None or found[1] == found[2] == "":
        return Span(0, size, True)
    if found[1] == "":
        length = min(int(found[2]), size)
        return Span(size - length, size, False) if length else None
    start = int(found[1])
    end = size if found[2] == "" else min(int(found[2]) + 1, size)
    if found[2] != "" and int(found[2]) < start:
        return Span(0, size, True)
    return Span(start, end, False) if start < size else None


class Downloads:
    """Serves two folders. Either may be None: then nothing is found in it."""

    def __init__(self, bundles: Path | None, publication: Path | None) -> None:
        self._bundles, self._publication = bundles, publication
        self._etags: dict[tuple[Path, int, int, int], str] = {}
        self._active = 0

    async def bundle(self, request: web.BaseRequest, lineage: str, name: str) -> Reply:
        """BUNDLE_DIR/lineage/name. The manifest changes; every other file has its content in its name and never does."""
        if self._bundles is None or not _LINEAGE.fullmatch(lineage) or not _FILE.fullmatch(name):
            return error_reply(404, "expected a bundle's file, found none of this name")
        return await self._served(request, self._bundles / lineage / name, MUST_ASK if name == "manifest" else IMMUTABLE)

    async def federation(self, request: web.BaseRequest, name: str) -> Reply:
        """PUBLICATION_DIR/name, if that is called like a signed object: nothing else of the folder is for others."""
        if self._publication is None or not _FILE.fullmatch(name) or name.partition(".")[0] not in KINDS:
            return error_reply(404, "expected a published object, found none of this name")
        return await self._served(request, self._publication / name, MUST_ASK)

    async def _served(self, request: web.BaseRequest, path: Path, caching: str) -> Reply:
        if self._active >= MAX_DOWNLOADS:
            return error_reply(503, "too many downloads at once; come back later", 60)
        self._active += 1
        try:
            return await self._sent(request, path, caching)
        finally:
            self._active -= 1

    async def _sent(self, request: web.BaseRequest, path: Path, caching: str) -> Reply:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return error_reply(404, "expected a published file, found none of this name")
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            return error_reply(404, "expected a published file, found none of this name")
        with os.fdopen(descriptor, "rb") as file:
            etag = await self._etag(path, file.fileno(), facts)
            if etag is None:
                return error_reply(404, "expected a published file, found none of this name")
            headers = {"ETag": etag, "Cache-Control": caching, "Accept-Ranges": "bytes"}
            if etag in (request.headers.get("If-None-Match") or "").replace("W/", "").split(", "):
                return Written(304, b"", tuple(headers.items()))
            asked = request.headers.get("Range")
            if request.headers.get("If-Range", etag) != etag:
                asked = None
            span = asked_span(asked, facts.st_size)
            if span is None:
                return Written(416, b"", (("Content-Range", f"bytes */{facts.st_size}"),))
            headers["Content-Type"] = "application/octet-stream"
            if not span.whole:
                headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{facts.st_size}"
            status = 200 if span.whole else 206
            if span.end - span.start <= SMALL_BYTES:
                return Written(status, os.pread(file.fileno(), span.end - span.start, span.start), tuple(headers.items()))
            return await self._streamed(request, file.fileno(), span, status, headers)

    async def _streamed(
        self, request: web.BaseRequest, descriptor: int, span: Span, status: int, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = span.end - span.start
        await response.prepare(request)
        position = span.start
        while request.method != "HEAD" and position < span.end:
            chunk = os.pread(descriptor, min(CHUNK_BYTES, span.end - position), position)
            if not chunk:
                raise ConnectionResetError("the file has become shorter")
            position += len(chunk)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(chunk)
            except TimeoutError:
                raise ConnectionResetError("the client takes nothing") from None
        return response

    async def _etag(self, path: Path, descriptor: int, facts: os.stat_result) -> str | None:
        """From the content, so that every worker and shard says the same; None for what is no plain file."""
        if not os.path.isfile(path):
            return None
        key = (path, facts.st_mtime_ns, facts.st_size, facts.st_ino)
        known = self._etags.get(key)
        if known is None:
            if len(self._etags) >= MAX_KNOWN_ETAGS:
                self._etags.clear()
            known = self._etags[key] = await asyncio.to_thread(_digest, descriptor, facts.st_size)
        return known


def _digest(descriptor: int, size: int) -> str:
    digest, position = hashlib.sha256(), 0
    while position < size:
        chunk = os.pread(descriptor, 1 << 20, position)
        if not chunk:
            break
        digest.update(chunk)
        position += len(chunk)
    return f'"{digest.hexdigest()[:32]}"'
