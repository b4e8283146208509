"""Bundle updates: how a television comes to the newest bundle of its lineage.

The signed manifest says which that is. If there is a delta from the bundle held, and it is smaller, it is fetched; else, or
if the delta turns out damaged, the whole file. A transfer that was cut goes on where it ended, now or at the next try. What
was fetched is what the manifest says by its SHA-256, is opened, compared with the old bundle, put to the ranking code, and
only then takes the old one's place (see sync_held_bundle.py).

Nothing here depends on what is watched: requests are made of the lineage, the version held and how far a transfer came.
The validator sent with the manifest's request is computed from its bytes, never echoed from a reply, so no server can
mark one television by it.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import hashlib
import mmap
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from omega_edge.bundle_delta import MAX_BUNDLE_BYTES, apply_delta
from omega_edge.catalog import Catalog
from omega_edge.errors import CatalogError, OmegaError, SignatureError
from omega_edge.manifest import KIND, MAX_MANIFEST_BYTES, DeltaFile, Manifest, read_manifest
from omega_edge.sync_held_bundle import HeldBundle, digest_of

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

TIMEOUT_SECONDS = 30.0
"""Without a byte, until a transfer counts as cut."""
RESUMES = 4
"""Of one transfer in one call; the next call goes on from there."""
ROOM_LEFT_BYTES = 1 << 20
"""Of the disk, that an update never takes."""
TAG_DIGITS = 32
"""Of a manifest's SHA-256 in hexadecimal: the ETag that a shard gives it."""
_BLOCK_BYTES = 1 << 16
_CHECK_FAULTS = (OmegaError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
"""What a bundle that does not fit this program can lead its ranking code to."""

Check = Callable[[Catalog], None]


class Outcome(str, enum.Enum):
    """How an update went. INSTALLED: a newer bundle is in its place, to be opened. CURRENT: there is none. OFFLINE: not
    reached, or cut; try again at the next sync. REFUSED: a manifest that is not the operator's, foreign, or older than one seen.
    NO_SPACE: the disk is too full. FAILED: the new bundle is damaged or fails the self-check. KNOWN_BAD: it did before, and
    nothing was fetched. BUSY: another process updates."""

    INSTALLED = "installed"
    CURRENT = "current"
    OFFLINE = "offline"
    REFUSED = "refused"
    NO_SPACE = "no space"
    FAILED = "failed"
    KNOWN_BAD = "known bad"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Updated:
    """What update() did. version: of the bundle that is held now; detail: in words, for the log; downloaded_bytes: bodies of
    all replies; by_delta: whether the new bundle came as a delta."""

    outcome: Outcome
    version: int
    detail: str = ""
    downloaded_bytes: int = 0
    by_delta: bool = False


class _Ended(Exception):
    """An update that ends here. Never leaves this module."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome, self.detail = outcome, detail


class _AnotherAnswer(_Ended):
    """A reply that is not the file asked for: a page of somebody in between, or a publication that is not whole."""


class _DamagedFile(Exception):
    """A whole transfer that is not what the manifest says. Never leaves this module."""


class UpdateClient:
    """Keeps the bundle at a path up to date.

    base_url: of the shard, without a path. trusted: Ed25519 public keys, 32 bytes each, of which one must have signed the
    manifest. check: is given the new catalogue and raises where this program cannot rank by it. max_bundle_bytes: what is
    larger is refused.
    """

    def __init__(
        self,
        base_url: str,
        trusted: tuple[bytes, ...],
        bundle_path: Path,
        check: Check = lambda catalog: None,
        max_bundle_bytes: int = MAX_BUNDLE_BYTES,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._trusted = trusted
        self._held = HeldBundle(bundle_path)
        self._check = check
        self._max_bundle_bytes = max_bundle_bytes
        self._timeout_seconds = timeout_seconds
        self._downloaded = 0

    async def update(self, session: ClientSession | None = None) -> Updated:
        """Fetch, check and install the newest bundle, if it is newer. Raises CatalogError where the bundle held is damaged."""
        self._downloaded = 0
        with ExitStack() as stack:
            mine, fault = False, ""
            try:
                mine = stack.enter_context(self._held.locked())
            except OSError as error:
                fault = f"writing: {error.strerror}"
            held = stack.enter_context(Catalog.open(self._held.path))
            version = held.version
            if fault:
                return Updated(Outcome.FAILED, version, fault)
            if not mine:
                return Updated(Outcome.BUSY, version, "another process updates the bundle")
            try:
                async with _session(session) as connected:
                    version, by_delta = await self._updated(connected, held)
            except _Ended as end:
                return Updated(end.outcome, version, end.detail, self._downloaded)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    return Updated(Outcome.FAILED, version, f"writing: {error.strerror}", self._downloaded)
                self._held.clear()
                return Updated(Outcome.NO_SPACE, version, str(error.strerror), self._downloaded)
        return Updated(Outcome.INSTALLED, version, "", self._downloaded, by_delta)

    async def _updated(self, session: ClientSession, held: Catalog) -> tuple[int, bool]:
        """(version, whether by a delta) of the bundle that was installed."""
        manifest, seal = await self._manifest(session, held)
        if manifest.version <= held.version:
            self._held.remember(manifest_sha256=seal)
            raise _Ended(Outcome.CURRENT, f"the newest bundle is version {manifest.version}")
        if self._held.is_bad(manifest.version):
            self._held.remember(manifest_sha256=seal)
            raise _Ended(Outcome.KNOWN_BAD, f"version {manifest.version} failed here before; waiting for a newer one")
        if manifest.size > self._max_bundle_bytes:
            raise _Ended(Outcome.REFUSED, f"expected at most {self._max_bundle_bytes} bytes, the bundle has {manifest.size}")
        delta = await self._delta_for(manifest)
        made, by_delta = None, False
        self._held.clear(*(self._partial(sha256) for sha256 in (manifest.sha256, delta.sha256 if delta else "")))
        if delta is not None:
            made = await self._made_by(session, delta, manifest)
            by_delta = made is not None
        if made is None:
            made = await self._whole(session, manifest)
        await self._install(made, manifest, held)
        self._held.clear()
        self._held.remember(manifest_sha256=seal)
        return manifest.version, by_delta

    async def _manifest(self, session: ClientSession, held: Catalog) -> tuple[Manifest, str]:
        """The manifest of the lineage held, verified and no older than any before, and the SHA-256 of the signed object."""
        state = self._held.state
        settled = state.manifest_sha256 and (held.version >= state.version or self._held.is_bad(state.version))
        headers = {"If-None-Match": f'"{state.manifest_sha256[:TAG_DIGITS]}"'} if settled else {}
        async with self._reply(session, f"{held.lineage}/manifest", headers) as reply:
            if reply.status == 304 and settled:
                if self._held.is_bad(state.version):
                    raise _Ended(Outcome.KNOWN_BAD, f"version {state.version} failed here before; waiting for a newer one")
                raise _Ended(Outcome.CURRENT, "the manifest is the one seen before")
            if reply.status != 200:
                raise _Ended(Outcome.OFFLINE, f"the manifest: expected status 200, got {reply.status}")
            signed = await self._read_at_most(reply, MAX_MANIFEST_BYTES)
        from omega_edge.signing import unseal

        try:
            manifest = read_manifest(unseal(signed, KIND, self._trusted, MAX_MANIFEST_BYTES))
        except (SignatureError, CatalogError) as error:
            raise _Ended(Outcome.REFUSED, str(error)) from None
        if manifest.lineage != held.lineage:
            raise _Ended(Outcome.REFUSED, f"manifest: expected lineage {held.lineage}, got {manifest.lineage}")
        if manifest.sequence < state.sequence or manifest.version < state.version:
            raise _Ended(
                Outcome.REFUSED,
                f"manifest: expected sequence {state.sequence} and version {state.version} or later, got "
                f"{manifest.sequence} and {manifest.version}, which is older",
            )
        if (manifest.sequence, manifest.version) != (state.sequence, state.version):
            self._held.remember(sequence=manifest.sequence, version=manifest.version)
        return manifest, hashlib.sha256(signed).hexdigest()

    async def _delta_for(self, manifest: Manifest) -> DeltaFile | None:
        """The delta from the bundle held, if there is one that is smaller than the whole."""
        smaller = [delta for delta in manifest.deltas if delta.size < manifest.size]
        if not smaller:
            return None
        digest = await asyncio.to_thread(self._held.digest)
        return next((delta for delta in smaller if delta.from_sha256 == digest), None)

    async def _made_by(self, session: ClientSession, delta: DeltaFile, manifest: Manifest) -> Path | None:
        """The new bundle by a delta, at a path of its own; None where the delta is not sound."""
        try:
            file = await self._fetched(session, manifest.lineage, delta.file, delta.size, delta.sha256, manifest.size)
            made = self._held.beside("made")
            await asyncio.to_thread(_apply, self._held.path, file, made, manifest.size)
            file.unlink()
            return made if await asyncio.to_thread(digest_of, made) == manifest.sha256 else None
        except (_DamagedFile, _AnotherAnswer, CatalogError):
            self._partial(delta.sha256).unlink(missing_ok=True)
            return None

    async def _whole(self, session: ClientSession, manifest: Manifest) -> Path:
        try:
            return await self._fetched(session, manifest.lineage, manifest.file, manifest.size, manifest.sha256, 0)
        except _DamagedFile as fault:
            self._held.condemn(manifest.version)
            raise _Ended(Outcome.FAILED, f"version {manifest.version}: {fault}") from None

    def _partial(self, sha256: str) -> Path:
        return self._held.beside(f"{sha256[:16]}.part")

    async def _fetched(
        self, session: ClientSession, lineage: str, name: str, size: int, sha256: str, more_bytes: int
    ) -> Path:
        """A file of the manifest, whole and checked. more_bytes: that the disk must have room for beside it.

        Raises _DamagedFile where all its bytes are there and are not the ones promised.
        """
        partial = self._partial(sha256)
        resumed = False
        for _ in range(1 + RESUMES):
            begin = partial.stat().st_size if partial.exists() else 0
            resumed |= begin > 0
            if begin < size:
                _check_room(partial.parent, size - begin + more_bytes)
                await self._transfer(session, f"{lineage}/{name}", partial, begin, size)
            if partial.exists() and partial.stat().st_size >= size:
                if await asyncio.to_thread(digest_of, partial) == sha256:
                    return partial
                partial.unlink()
                if not resumed:
                    raise _DamagedFile(f"{name}: expected the SHA-256 of the manifest, got another")
                resumed = False  # parts of two answers; once more from the beginning
        raise _Ended(Outcome.OFFLINE, f"{name}: the transfer was cut; it goes on at the next try")

    async def _transfer(self, session: ClientSession, path: str, partial: Path, begin: int, size: int) -> None:
        """Append to the partial file from `begin` on until it has `size` bytes or the connection is cut."""
        import aiohttp

        headers = {"Range": f"bytes={begin}-"} if begin else {}
        async with self._reply(session, path, headers) as reply:
            if begin and reply.status in (200, 416):
                partial.unlink()
                begin = 0
                if reply.status == 416:
                    return
            expected = (206, f"bytes {begin}-{size - 1}/{size}") if begin else (200, None)
            if (reply.status, reply.headers.get("Content-Range")) != expected:
                raise _AnotherAnswer(Outcome.OFFLINE, f"{path}: expected status {expected[0]}, got {reply.status}")
            if reply.headers.get("Content-Length") != str(size - begin):
                stated = reply.headers.get("Content-Length")
                raise _AnotherAnswer(Outcome.OFFLINE, f"{path}: expected {size - begin} bytes, the reply has {stated}")
            with _appended(partial) as file:
                # What came before a cut is kept.
                with suppress(aiohttp.ClientError, TimeoutError):
                    async for block in reply.content.iter_chunked(_BLOCK_BYTES):
                        self._downloaded += len(block)
                        file.write(block[: size - begin])
                        begin += len(block)
                        if begin >= size:
                            break
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())

    async def _install(self, made: Path, manifest: Manifest, held: Catalog) -> None:
        """Check a new bundle and let it take its place."""
        if not self._held.begin_trial(manifest.sha256, manifest.version):
            raise _Ended(Outcome.FAILED, f"version {manifest.version} ended this program more than once; it stays out")
        try:
            await asyncio.to_thread(self._self_check, made, manifest, held)
        except _CHECK_FAULTS as fault:
            self._held.condemn(manifest.version)
            self._held.clear()
            raise _Ended(Outcome.FAILED, f"version {manifest.version} fails the self-check: {fault}") from None
        self._held.install(made)

    def _self_check(self, made: Path, manifest: Manifest, held: Catalog) -> None:
        with Catalog.open(made) as catalog:
            for fault in catalog.faults.values():
                raise CatalogError(fault)
            if (catalog.version, catalog.lineage) != (manifest.version, manifest.lineage):
                raise CatalogError(f"expected version {manifest.version}, the bundle says {catalog.version}")
            if not catalog.continues(held):
                raise CatalogError("expected the titles of the old bundle under their numbers, and further ones after them")
            self._check(catalog)

    @asynccontextmanager
    async def _reply(self, session: ClientSession, path: str, headers: dict[str, str]) -> AsyncIterator[ClientResponse]:
        """The reply to a request below the bundles; _Ended where none comes."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=self._timeout_seconds, sock_read=self._timeout_seconds)
        url = f"{self._base_url}/api/v1/bundles/{path}"
        try:
            async with session.get(
                url, headers={"Accept-Encoding": "identity"} | headers, timeout=timeout, allow_redirects=False
            ) as reply:
                yield reply
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Ended(Outcome.OFFLINE, f"{path}: {type(error).__name__}") from None

    async def _read_at_most(self, reply: ClientResponse, most: int) -> bytes:
        body = bytearray()
        async for block in reply.content.iter_chunked(_BLOCK_BYTES):
            self._downloaded += len(block)
            body += block
            if len(body) > most:
                raise _Ended(Outcome.REFUSED, f"manifest: expected at most {most} bytes, got more")
        return bytes(body)


@asynccontextmanager
async def _session(given: ClientSession | None) -> AsyncIterator[ClientSession]:
    """The session given, or one of its own."""
    if given is not None:
        yield given
        return
    import aiohttp

    async with aiohttp.ClientSession() as session:
        yield session


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + ROOM_LEFT_BYTES:
        raise _Ended(Outcome.NO_SPACE, f"expected {needed_bytes + ROOM_LEFT_BYTES} bytes free in {folder}, there are {free}")


def _apply(base: Path, delta: Path, made: Path, size: int) -> None:
    with open(delta, "rb") as file:
        # Unmapped when the last view of it goes: an error still holds some, under which it could not be closed.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    apply_delta(base, mapped, made, size)


@contextmanager
def _appended(path: Path) -> Iterator[BinaryIO]:
    """A file to write to at its end, made where there is none."""
    with open(path, "ab") as file:
        yield file
