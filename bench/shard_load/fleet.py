"""Simulated televisions: who they are, what they send next, what was acknowledged. Requests are cheap to make.

A request's frame is encoded once for each list of titles, by the product's own encoder, around placeholders of fixed width;
for a device its id, epoch, version and the server time of its last reply are put in their place, and the whole is signed.
So the bytes on the wire are those that a television sends, at the cost of a join and two hashes.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from omega_edge import wire
from omega_edge.columns import STEP_MS, TitleNumbering
from omega_edge.protocol import DAY_MS, DEVICE_ID_BYTES, PROTOCOL_VERSION, FinishedTitle, PatternDelta, SyncRequest
from omega_edge.sync_identity import authorization, device_token

LIST_LOG_SPREAD = math.log(27) / 2.326
"""Titles in a list: the exponential of a normal number of mean 0 and this spread: a median of 1, and 27 at the 99th
percentile, as the lists have that households finish between two syncs.
"""
MAX_LIST = 50
FIRST_VERSION = 70_000
"""Local versions start here, so that each is five bytes of CBOR."""
NEWEST_DAYS = 90
STALE_ONE_IN = 3

_DEVICE = bytes.fromhex("a14f83c95be2706d12d8f43b960ec57a")
_EPOCH, _SERVER_TIME, _VERSION = 0x9D3A51E7C2846FB0, 0x01815A7C93E2, 0x5B1D93C6
_U64, _U32 = struct.Struct(">Q").pack, struct.Struct(">I").pack
_PLACEHOLDERS = (_DEVICE, _U64(_EPOCH), _U64(_SERVER_TIME), _U32(_VERSION))
_PATH = "/api/v1/sync"


@dataclass(frozen=True, slots=True)
class Page:
    """A list of finished titles, and the frames that carry it, cut at what differs between devices, without the first piece.

    first: the pieces of the frame of a device that has not seen a server time; later: those for all others. The first piece
    is the same for all lists (see Fleet). Both are empty where the encoder deflates the frame, as it does with the longest
    lists: such a request is encoded anew each time.
    """

    rows: tuple[int, ...]
    finished_ms: tuple[int, ...]
    finished: tuple[FinishedTitle, ...]
    first: tuple[bytes, ...]
    later: tuple[bytes, ...]


def list_length(chosen: random.Random) -> int:
    """How many titles a sync tells of, 1 to MAX_LIST."""
    return min(MAX_LIST, max(1, round(math.exp(chosen.gauss(0.0, LIST_LOG_SPREAD)))))


def draw_pages(titles: TitleNumbering, title_count: int, count: int, now_ms: int, seed: int) -> list[Page]:
    """Pages of random titles, the popular ones (low numbers) more often, finished in the NEWEST_DAYS before now_ms."""
    chosen = random.Random(seed)
    pages: list[Page] = []
    for _ in range(count):
        length, rows = list_length(chosen), {}
        while len(rows) < length:
            rows[int((title_count + 1) ** chosen.random()) - 1] = None
        newest = (now_ms - chosen.randrange(NEWEST_DAYS * DAY_MS)) // STEP_MS
        finished_ms = tuple((newest - 8 * back) * STEP_MS for back in reversed(range(length)))
        finished = tuple(map(FinishedTitle, map(titles.content_id, rows), finished_ms))
        delta = PatternDelta(_VERSION, finished)
        first, later = (
            wire.encode_request(
                SyncRequest(device_id=_DEVICE, epoch=_EPOCH, server_time_seen=seen, delta=delta), titles
            )
            for seen in (None, _SERVER_TIME)
        )
        raw = _is_raw(first) and _is_raw(later)
        pieces = (_cut(first)[1:], _cut(later)[1:]) if raw else ((), ())
        pages.append(Page(tuple(rows), finished_ms, finished, *pieces))
    return pages


def _is_raw(frame: bytes) -> bool:
    return frame[2] == 0


def _cut(frame: bytes) -> tuple[bytes, ...]:
    """The pieces of a frame around the placeholders that it has, in their order."""
    pieces = []
    for placeholder in _PLACEHOLDERS:
        before, found, after = frame.partition(placeholder)
        if found:
            pieces.append(before)
            frame = after
    return (*pieces, frame)


def _head(global_version: int, server_time: int | None) -> bytes:
    """The first piece of every request that shows this global version, with or without a server time."""
    request = SyncRequest(
        global_version_seen=global_version,
        device_id=_DEVICE,
        epoch=_EPOCH,
        server_time_seen=server_time,
        delta=PatternDelta(_VERSION),
    )
    head, found, _ = wire.encode_request(request).partition(_DEVICE)
    assert found
    return head


class Fleet:
    """Devices by number, 0 to count - 1, each with the page that it sends next.

    A device's request stays the same bytes until it is acknowledged, as a television's does. global_version: the shard's; a
    device's first sync and each STALE_ONE_IN-th after it shows an older one, as televisions do that sync three times in the
    quarter-hour after which a hub may publish.
    """

    def __init__(
        self,
        count: int,
        pages: list[Page],
        titles: TitleNumbering,
        device_key: bytes,
        seed: int,
        global_version: int = 0,
    ) -> None:
        chosen = random.Random(seed)
        self.pages, self._titles = pages, titles
        self.device_ids = [chosen.randbytes(DEVICE_ID_BYTES) for _ in range(count)]
        self.versions = [FIRST_VERSION] * count
        """The highest version acknowledged."""
        self.acknowledged = [0] * count
        """How many pages of the device were acknowledged; with its number that says which."""
        self.server_times = [0] * count
        self._tokens = [device_token(device_key, device_id) for device_id in self.device_ids]
        self._epochs = [chosen.getrandbits(64) | 1 << 63 for _ in range(count)]
        self._requests: list[bytes | None] = [None] * count
        self.global_version = global_version
        self._heads = {
            (seen, shown): _head(seen, shown) for seen in (0, global_version) for shown in (None, _SERVER_TIME)
        }

    def __len__(self) -> int:
        return len(self.device_ids)

    def page_number(self, device: int, sent_before: int) -> int:
        """Which page a device sends after so many others."""
        return (device * 7_919 + sent_before * 104_729) % len(self.pages)

    def next_page(self, device: int) -> Page:
        """The page that the device sends next."""
        return self.pages[self.page_number(device, self.acknowledged[device])]

    def shows_old_version(self, device: int) -> bool:
        """Whether the device's next request shows an older global version than the shard's."""
        return self.global_version > 0 and self.acknowledged[device] % STALE_ONE_IN == 0

    def next_version(self, device: int) -> int:
        """The local version that the next acknowledgement must name: one more for each title."""
        return self.versions[device] + len(self.next_page(device).rows)

    def request(self, device: int) -> bytes:
        """The whole HTTP request that the device sends next."""
        made = self._requests[device]
        if made is None:
            made = self._requests[device] = self._make_request(device)
        return made

    def _make_request(self, device: int) -> bytes:
        body = self._body(device)
        device_id = self.device_ids[device]
        signed = authorization(device_id, self._tokens[device], body)
        return b"POST %b HTTP/1.1\r\nHost: shard\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            _PATH.encode(), signed.encode(), len(body), body,
        )  # fmt: skip

    def _body(self, device: int) -> bytes:
        page, device_id, server_time = self.next_page(device), self.device_ids[device], self.server_times[device]
        version, epoch = self.next_version(device), self._epochs[device]
        seen = 0 if self.shows_old_version(device) else self.global_version
        if not page.later:
            delta = PatternDelta(version, page.finished)
            sent = SyncRequest(PROTOCOL_VERSION, seen, device_id, epoch, server_time or None, delta)
            return wire.encode_request(sent, self._titles)
        if server_time:
            head = self._heads[seen, _SERVER_TIME]
            to_epoch, to_time, to_version, rest = page.later
            shown = to_time + _U64(server_time)
        else:
            head, shown = self._heads[seen, None], b""
            to_epoch, to_version, rest = page.first
        return b"".join((head, device_id, to_epoch, _U64(epoch), shown, to_version, _U32(version), rest))

    def acknowledge(self, device: int, server_time: int) -> None:
        """The shard has made the device's page durable and said so at this time of its clock."""
        self.versions[device] = self.next_version(device)
        self.acknowledged[device] += 1
        self.server_times[device] = server_time
        self._requests[device] = None

    def acknowledged_pages(self, device: int) -> Iterator[Page]:
        """The pages of a device that were acknowledged, in the order of sending."""
        return (self.pages[self.page_number(device, sent)] for sent in range(self.acknowledged[device]))
