"""Messages ⇄ bytes. The frame is frame.py's, the columns are columns.py's, the format is written down in wire.cddl.

Every message is a map with integer keys; a reader ignores keys it does not know, so that fields can be added. Many
values of one kind lie in one column. Encoding raises ProtocolError where the bytes would exceed the direction's cap
and says what to leave out; decoding raises ProtocolError, and nothing else, for whatever bytes come.

What a message loses on the way:

- times of finished titles are rounded down to a quarter-hour (STEP_MS); the order of titles is kept;
- patterns become patterns.rounded(): times in weeks, counts and lives in steps of two to a doubling, success rates moved by
  at most 1/100 (0.7 is exact: no rate crosses the threshold downwards), weights by at most 1/30, one above 0 never to 0;
- trend scores move by at most 1/131070 of the message's highest, which is exact; order is never reversed.

Nothing else: embeddings are little-endian float32, a ViewingEvent comes back equal.

Titles. With `titles` (a TitleNumbering, such as a Catalog) titles travel as its numbers beside its lineage; without,
as text. A reader needs the same lineage to read numbers. A title outside the numbering travels as text.

Pages. The shard keeps, per device epoch, the highest local_version it has made durable, and takes a delta only above
that; its acknowledgement means "everything up to this version". So a page of finished titles carries the local version
of its last title, and more_pages; the patterns, being a difference of whole sets, come with the last page, which
carries the delta's own local version. Pages go one after the other, each after the acknowledgement of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omega_edge import frame, paging
from omega_edge.columns import TitleNumbering, TitlePacker, pack_times, pack_varints, read_times, read_varints
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    MAX_DOWNLOAD_BYTES,
    MAX_PATTERNS_PER_DELTA,
    MAX_RECENT_WATCHES,
    MAX_TITLES_FINISHED_PER_PAGE,
    MAX_UPLOAD_BYTES,
    U32_MAX,
    CountReport,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TimeOfDay,
    ViewContext,
    ViewingEvent,
)
from omega_edge.wire_fields import Fields, check_length
from omega_edge.wire_patterns import pack_global_patterns, pack_patterns, read_global_patterns, read_patterns
from omega_edge.wire_versions import REQUEST_FIELDS, RESPONSE_FIELDS, pack_plain, read_plain

KIND_REQUEST, KIND_RESPONSE, KIND_DELTA, KIND_GLOBAL_PATTERNS, KIND_EVENT = 1, 2, 3, 4, 5

HASH_BYTES = 8
USUAL_TITLE_GAP_STEPS = 48
"""Twelve hours: a title from 4 hours before to 27:45 hours after the last one takes one byte of time."""
RESPONSE_BYTES = 64
"""More than the fullest response takes beside a frame of patterns."""
PAGE_SLACK_BYTES = 32
"""Left free in pages: zstd does a little better or worse with the request that a page will really travel in."""

_FULLEST_REQUEST = SyncRequest(
    version=255,
    global_version_seen=0xB7E151628AED2A6A,
    device_id=bytes.fromhex("243f6a8885a308d313198a2e03707344"),
    epoch=0x9E3779B97F4A7C15,
    server_time_seen=0x6A09E667F3BC,
)
"""The request that pages are tried in: every field at its full width, and digits that zstd finds no pattern in."""

_TIMES_OF_DAY = (TimeOfDay.MORNING, TimeOfDay.AFTERNOON, TimeOfDay.EVENING, TimeOfDay.NIGHT)


def _pack_delta(delta: PatternDelta, titles: TitleNumbering | None) -> dict[int, object]:
    packer = TitlePacker(titles)
    fields: dict[int, object] = {1: delta.local_version}
    if delta.titles_finished:
        fields[2] = packer.pack([title.content_id for title in delta.titles_finished])
        fields[3] = pack_times([title.finished_at for title in delta.titles_finished], USUAL_TITLE_GAP_STEPS)
    if delta.patterns_added:
        fields[4] = pack_patterns(delta.patterns_added, packer)
    if delta.patterns_updated:
        fields[5] = pack_patterns(delta.patterns_updated, packer)
    if delta.patterns_removed:
        fields[6] = pack_varints(delta.patterns_removed)
    if delta.more_pages:
        fields[7] = True
    if packer.numbered:
        fields[8] = packer.lineage()
    if delta.snapshot:
        fields[9] = True
    if delta.shared_set_hash is not None:
        fields[10] = delta.shared_set_hash.to_bytes(HASH_BYTES, "little")
    return fields


def _read_delta(value: object, titles: TitleNumbering | None) -> PatternDelta:
    fields = Fields("PatternDelta", value)
    reader = fields.reader(8, titles)
    finished_at = read_times(
        "PatternDelta.finished_at",
        fields.take(3, "finished_at", bytes, default=b""),
        MAX_TITLES_FINISHED_PER_PAGE,
        USUAL_TITLE_GAP_STEPS,
    )
    finished = reader.read(
        "PatternDelta.titles_finished", fields.take(2, "titles_finished", list, default=[]), MAX_TITLES_FINISHED_PER_PAGE
    )
    check_length("PatternDelta.titles_finished", finished, len(finished_at))
    removed = fields.take(6, "patterns_removed", bytes, default=b"")
    patterns = {
        name: read_patterns(f"PatternDelta.{name}", fields.take(key, name, dict), reader, MAX_PATTERNS_PER_DELTA)
        for key, name in ((4, "patterns_added"), (5, "patterns_updated"))
        if key in fields
    }
    return PatternDelta(
        local_version=fields.take(1, "local_version", int),
        titles_finished=tuple(map(FinishedTitle, finished, finished_at)),
        patterns_removed=tuple(
            read_varints("PatternDelta.patterns_removed", removed, MAX_PATTERNS_PER_DELTA, U32_MAX)
        ),
        more_pages=fields.take(7, "more_pages", bool, default=False),
        snapshot=fields.take(9, "snapshot", bool, default=False),
        shared_set_hash=_read_hash(fields.take(10, "shared_set_hash", bytes, default=None)),
        **patterns,
    )


def _read_hash(value: bytes | None) -> int | None:
    if value is None:
        return None
    check_length("PatternDelta.shared_set_hash", value, HASH_BYTES)
    return int.from_bytes(value, "little")


def _read_count_report(value: object) -> CountReport:
    fields = Fields("CountReport", value)
    return CountReport(fields.take(1, "day", int), fields.take(2, "seed", int), fields.take(3, "value", int))


def pack_request(request: SyncRequest, titles: TitleNumbering | None) -> dict[int, object]:
    """The fields of a request."""
    fields = pack_plain(REQUEST_FIELDS, request)
    if request.delta is not None:
        fields[6] = _pack_delta(request.delta, titles)
    if request.count_report is not None:
        report = request.count_report
        fields[7] = {1: report.day, 2: report.seed, 3: report.value}
    return fields


def pack_response(response: SyncResponse) -> dict[int, object]:
    """The fields of a response but its patterns."""
    return pack_plain(RESPONSE_FIELDS, response)


def encode_request(request: SyncRequest, titles: TitleNumbering | None = None) -> bytes:
    """A SyncRequest as at most MAX_UPLOAD_BYTES; ProtocolError saying what to leave out where it takes more."""

    def packed(delta: PatternDelta | None) -> bytes | None:
        return frame.pack(KIND_REQUEST, pack_request(replace(request, delta=delta), titles), MAX_UPLOAD_BYTES)

    data = packed(request.delta)
    if data is None:
        raise paging.delta_too_large(
            "SyncRequest", request.delta, MAX_UPLOAD_BYTES, lambda delta: packed(delta) is not None
        )
    return data


def decode_request(data: bytes, titles: TitleNumbering | None = None) -> SyncRequest:
    """The SyncRequest of these bytes; ProtocolError for any others."""
    fields = Fields("SyncRequest", frame.unpack(data, KIND_REQUEST, MAX_UPLOAD_BYTES))
    told = {}
    if 6 in fields:
        if 3 not in fields:  # said before a thousand titles are read that nobody has proven to have sent
            raise ProtocolError("SyncRequest: expected device_id beside delta, which is missing")
        told["delta"] = _read_delta(fields.take(6, "delta", dict), titles)
    if 7 in fields:
        told["count_report"] = _read_count_report(fields.take(7, "count_report", dict))
    return SyncRequest(**read_plain(REQUEST_FIELDS, fields), **told)


def encode_response(response: SyncResponse, titles: TitleNumbering | None = None) -> bytes:
    """A SyncResponse as at most MAX_DOWNLOAD_BYTES; ProtocolError saying what to leave out where it takes more."""

    def packed(patterns: GlobalPatterns | None) -> bytes | None:
        fields = pack_response(response)
        if patterns is not None:
            fields[6] = pack_global_patterns(patterns, titles)
        return frame.pack(KIND_RESPONSE, fields, MAX_DOWNLOAD_BYTES)

    data = packed(response.patterns)
    if data is None:
        raise paging.global_patterns_too_large(
            "SyncResponse", response.patterns, MAX_DOWNLOAD_BYTES, lambda patterns: packed(patterns) is not None
        )
    return data


def encode_response_with(response: SyncResponse, patterns_frame: bytes) -> bytes:
    """A SyncResponse without patterns and, unchanged, the frame that encode_global_patterns made of some.

    The frame's global_version is to be the response's: a television refuses another. Nothing is deflated here, so this
    is cheap. ProtocolError where both together exceed MAX_DOWNLOAD_BYTES; RESPONSE_BYTES are enough for the rest.
    """
    if response.patterns is not None:
        raise ProtocolError("SyncResponse.patterns: expected None beside a frame of patterns, got patterns too")
    data = frame.pack_raw(KIND_RESPONSE, pack_response(response) | {7: patterns_frame}, MAX_DOWNLOAD_BYTES)
    if data is None:
        raise ProtocolError(
            f"SyncResponse: expected a frame of patterns of at most {MAX_DOWNLOAD_BYTES - RESPONSE_BYTES} bytes, "
            f"got {len(patterns_frame)}; make one with fewer patterns"
        )
    return data


def decode_response(data: bytes, titles: TitleNumbering | None = None) -> SyncResponse:
    """The SyncResponse of these bytes; ProtocolError for any others."""
    fields = Fields("SyncResponse", frame.unpack(data, KIND_RESPONSE, MAX_DOWNLOAD_BYTES))
    if 6 in fields and 7 in fields:
        raise ProtocolError("SyncResponse: expected patterns as a map or as a frame, got both")
    patterns = None
    if 6 in fields:
        patterns = read_global_patterns(fields.take(6, "patterns", dict), titles)
    elif 7 in fields:
        patterns = decode_global_patterns(fields.take(7, "patterns_frame", bytes), titles)
    return SyncResponse(**read_plain(RESPONSE_FIELDS, fields), patterns=patterns)


def titles_that_fit(delta: PatternDelta, titles: TitleNumbering | None = None) -> int:
    """How many of the delta's finished titles fit into one SyncRequest beside all its patterns.

    For a caller that can prepare a shorter delta itself; -1 where the patterns alone are too many.
    """
    return paging.titles_that_fit(delta, lambda page: _fits_request(page, titles))


def split_delta(
    delta: PatternDelta, title_versions: Sequence[int], titles: TitleNumbering | None = None
) -> tuple[PatternDelta, ...]:
    """The delta as pages that each fit into a SyncRequest, in the order to send them.

    title_versions: the local version of each finished title, rising, none above the delta's own. All pages but the
    last carry titles only, more_pages and the version of their last title; the last one carries the remaining titles,
    all patterns, and the delta's own local_version and more_pages. An acknowledgement of a page's version covers that
    page and all before it, so whatever is interrupted goes on after the last acknowledged page. ProtocolError where
    the patterns do not fit beside one title, or the versions are not as described.
    """
    max_bytes = MAX_UPLOAD_BYTES - PAGE_SLACK_BYTES
    return paging.split(delta, title_versions, max_bytes, lambda page: _fits_request(page, titles))


def _fits_request(delta: PatternDelta, titles: TitleNumbering | None) -> bool:
    fields = pack_request(replace(_FULLEST_REQUEST, delta=delta), titles)
    return frame.pack(KIND_REQUEST, fields, MAX_UPLOAD_BYTES - PAGE_SLACK_BYTES) is not None


def compress_delta(delta: PatternDelta, titles: TitleNumbering | None = None) -> bytes:
    """A PatternDelta as at most MAX_UPLOAD_BYTES; ProtocolError saying what to leave out where it takes more."""

    def packed(delta: PatternDelta) -> bytes | None:
        return frame.pack(KIND_DELTA, _pack_delta(delta, titles), MAX_UPLOAD_BYTES)

    data = packed(delta)
    if data is None:
        raise paging.delta_too_large("PatternDelta", delta, MAX_UPLOAD_BYTES, lambda delta: packed(delta) is not None)
    return data


def decompress_delta(data: bytes, titles: TitleNumbering | None = None) -> PatternDelta:
    """The PatternDelta of these bytes; ProtocolError for any others."""
    return _read_delta(frame.unpack(data, KIND_DELTA, MAX_UPLOAD_BYTES), titles)


def encode_global_patterns(patterns: GlobalPatterns, titles: TitleNumbering | None = None) -> bytes:
    """GlobalPatterns as at most MAX_DOWNLOAD_BYTES; ProtocolError saying what to leave out where they take more."""

    def packed(patterns: GlobalPatterns) -> bytes | None:
        return frame.pack(KIND_GLOBAL_PATTERNS, pack_global_patterns(patterns, titles), MAX_DOWNLOAD_BYTES)

    data = packed(patterns)
    if data is None:
        raise paging.global_patterns_too_large(
            "GlobalPatterns", patterns, MAX_DOWNLOAD_BYTES, lambda patterns: packed(patterns) is not None
        )
    return data


def decode_global_patterns(data: bytes, titles: TitleNumbering | None = None) -> GlobalPatterns:
    """The GlobalPatterns of these bytes; ProtocolError for any others."""
    return read_global_patterns(frame.unpack(data, KIND_GLOBAL_PATTERNS, MAX_DOWNLOAD_BYTES), titles)


def encode_event(event: ViewingEvent, titles: TitleNumbering | None = None) -> bytes:
    """A ViewingEvent, exactly; the fullest takes about 1,100 bytes."""
    packer = TitlePacker(titles)
    context: dict[int, object] = {
        1: _TIMES_OF_DAY.index(event.context.time_of_day),
        2: event.context.day_of_week,
    }
    if event.context.recent_watches:
        context[3] = packer.pack(event.context.recent_watches)
    if event.context.mood_hint is not None:
        context[4] = event.context.mood_hint
    if event.context.profile != DEFAULT_PROFILE:
        context[5] = event.context.profile
    fields: dict[int, object] = {
        1: packer.pack([event.content_id]),
        2: event.content_title,
        3: event.watch_percentage,
        4: event.duration_seconds,
        5: event.timestamp,
        6: context,
    }
    if packer.numbered:
        fields[7] = packer.lineage()
    data = frame.pack(KIND_EVENT, fields, MAX_UPLOAD_BYTES)
    assert data is not None, "the limits of ViewingEvent keep its frame far below MAX_UPLOAD_BYTES"
    return data


def decode_event(data: bytes, titles: TitleNumbering | None = None) -> ViewingEvent:
    """The ViewingEvent of these bytes; ProtocolError for any others."""
    fields = Fields("ViewingEvent", frame.unpack(data, KIND_EVENT, MAX_UPLOAD_BYTES))
    reader = fields.reader(7, titles)
    content_ids = reader.read("ViewingEvent.content_id", fields.take(1, "content_id", list), 1)
    check_length("ViewingEvent.content_id", content_ids, 1)
    context = Fields("ViewContext", fields.take(6, "context", dict))
    part = context.take(1, "time_of_day", int)
    if not 0 <= part < len(_TIMES_OF_DAY):
        raise ProtocolError(f"ViewContext.time_of_day: expected 0 to {len(_TIMES_OF_DAY) - 1}, got another")
    recent = context.take(3, "recent_watches", list, default=[])
    return ViewingEvent(
        content_id=content_ids[0],
        content_title=fields.take(2, "content_title", str),
        watch_percentage=fields.take_number(3, "watch_percentage"),
        duration_seconds=fields.take(4, "duration_seconds", int),
        timestamp=fields.take(5, "timestamp", int),
        context=ViewContext(
            time_of_day=_TIMES_OF_DAY[part],
            day_of_week=context.take(2, "day_of_week", int),
            recent_watches=tuple(reader.read("ViewContext.recent_watches", recent, MAX_RECENT_WATCHES)),
            mood_hint=context.take(4, "mood_hint", str, default=None),
            profile=context.take(5, "profile", str, default=DEFAULT_PROFILE),
        ),
    )
