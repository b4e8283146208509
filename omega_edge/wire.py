"""Messages ⇄ bytes. The frame is frame.py's, the columns are columns.py's, the format is written down in wire.cddl.

Every message is a map with integer keys; a reader ignores keys it does not know, so that fields can be added. Many
values of one kind lie in one column. Encoding raises ProtocolError where the bytes would exceed the direction's cap
and says what to leave out; decoding raises ProtocolError, and nothing else, for whatever bytes come.

What a message loses on the way:

- times of finished titles and patterns are rounded down to a quarter-hour (STEP_MS); the order of titles is kept;
- success rates move by at most 1/500 (steps of 1/250, in which 0.7 is exact: no rate crosses the threshold downwards);
- reference weights move by at most 1/510, and a weight above 0 stays above 0 (then by less than 1/255);
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
from omega_edge.columns import (
    LINEAGE_BYTES,
    TitleNumbering,
    TitlePacker,
    TitleReader,
    pack_times,
    pack_varints,
    read_times,
    read_varints,
)
from omega_edge.errors import ProtocolError
from omega_edge.protocol import (
    DEFAULT_PROFILE,
    EMBEDDING_BYTES,
    MAX_DOWNLOAD_BYTES,
    MAX_PATTERNS_PER_DELTA,
    MAX_RECENT_WATCHES,
    MAX_REFERENCES_PER_PATTERN,
    MAX_SIMILAR_PATTERNS,
    MAX_TITLES_FINISHED_PER_PAGE,
    MAX_TREND_SIGNALS,
    MAX_UPLOAD_BYTES,
    FinishedTitle,
    GlobalPatterns,
    PatternDelta,
    SyncRequest,
    SyncResponse,
    TimeOfDay,
    TitleReference,
    TrendSignal,
    ViewContext,
    ViewingEvent,
    ViewingPattern,
)

KIND_REQUEST, KIND_RESPONSE, KIND_DELTA, KIND_GLOBAL_PATTERNS, KIND_EVENT = 1, 2, 3, 4, 5

RATE_STEPS = 250
WEIGHT_STEPS = 255
SCORE_STEPS = 65_535
USUAL_TITLE_GAP_STEPS = 48
"""Twelve hours: a title from 4 hours before to 27:45 hours after the last one takes one byte of time."""
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
_U32_MAX = (1 << 32) - 1
_REQUIRED = object()


class _Fields:
    """The fields of one map of a message, taken by key with their type checked."""

    def __init__(self, name: str, fields: object) -> None:
        # A key of true or 1.0 equals 1 in Python; only integers are keys here.
        if type(fields) is not dict or not all(type(key) is int for key in fields):
            raise ProtocolError(f"{name}: expected a map with integer keys, got another {type(fields).__name__}")
        self._name = name
        self._fields = fields

    def take(self, key: int, field: str, *kinds: type, default: object = _REQUIRED) -> object:
        """The value of a key, of exactly one of these types; the default, if there is one, for an absent key."""
        if key not in self._fields:
            if default is _REQUIRED:
                raise ProtocolError(f"{self._name}.{field}: expected key {key}, which is missing")
            return default
        value = self._fields[key]
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ProtocolError(f"{self._name}.{field}: expected {expected}, got {type(value).__name__}")
        return value

    def reader(self, key: int, titles: TitleNumbering | None) -> TitleReader:
        """The reader of the map's title columns, from the lineage under this key."""
        lineage = self.take(key, "lineage", bytes, default=None)
        if lineage is not None and len(lineage) != LINEAGE_BYTES:
            raise ProtocolError(f"{self._name}.lineage: expected {LINEAGE_BYTES} bytes, got {len(lineage)}")
        return TitleReader(lineage, titles)


def _steps(share: float, steps: int) -> int:
    """A share (0 to 1) in whole steps; one above 0 is never rounded to 0."""
    return max(round(share * steps), 1 if share > 0 else 0)


def _pack_patterns(patterns: Sequence[ViewingPattern], packer: TitlePacker) -> dict[int, object]:
    references = [reference for pattern in patterns for reference in pattern.references]
    fields: dict[int, object] = {
        1: pack_varints(pattern.id for pattern in patterns),
        2: bytes(round(pattern.success_rate * RATE_STEPS) for pattern in patterns),
        3: pack_varints(pattern.sample_count for pattern in patterns),
        4: pack_times([pattern.created_at for pattern in patterns]),
        5: pack_times([pattern.updated_at for pattern in patterns]),
        6: bytes(len(pattern.references) for pattern in patterns),
    }
    if references:
        fields[7] = packer.pack([reference.content_id for reference in references])
        fields[8] = bytes(_steps(reference.weight, WEIGHT_STEPS) for reference in references)
    if any(pattern.embedding is not None for pattern in patterns):
        fields[9] = b"".join(pattern.embedding or b"" for pattern in patterns)
    return fields


def _read_patterns(name: str, value: object, reader: TitleReader, max_count: int) -> tuple[ViewingPattern, ...]:
    fields = _Fields(name, value)
    ids = read_varints(f"{name}.id", fields.take(1, "id", bytes), max_count, _U32_MAX)
    counts = fields.take(6, "reference_counts", bytes)
    if any(count > MAX_REFERENCES_PER_PATTERN for count in counts):
        raise ProtocolError(f"{name}.references: expected at most {MAX_REFERENCES_PER_PATTERN} a pattern, got more")
    weights = fields.take(8, "weights", bytes, default=b"")
    cited = reader.read(f"{name}.references", fields.take(7, "references", list, default=[]), len(weights))
    embeddings = fields.take(9, "embeddings", bytes, default=b"")
    columns = {
        "success_rate": fields.take(2, "success_rate", bytes),
        "sample_count": read_varints(
            f"{name}.sample_count", fields.take(3, "sample_count", bytes), max_count, _U32_MAX
        ),
        "created_at": read_times(f"{name}.created_at", fields.take(4, "created_at", bytes), max_count),
        "updated_at": read_times(f"{name}.updated_at", fields.take(5, "updated_at", bytes), max_count),
        "reference_counts": counts,
    }
    for column, values in columns.items():
        _check_length(f"{name}.{column}", values, len(ids))
    _check_length(f"{name}.references", cited, sum(counts))
    _check_length(f"{name}.weights", weights, sum(counts))
    _check_length(f"{name}.embeddings", embeddings, counts.count(0) * EMBEDDING_BYTES)
    patterns, reference, vector = [], 0, 0
    for place, count in enumerate(counts):
        patterns.append(
            ViewingPattern(
                id=ids[place],
                success_rate=columns["success_rate"][place] / RATE_STEPS,
                sample_count=columns["sample_count"][place],
                created_at=columns["created_at"][place],
                updated_at=columns["updated_at"][place],
                embedding=None if count else embeddings[vector : vector + EMBEDDING_BYTES],
                references=tuple(
                    TitleReference(cited[index], weights[index] / WEIGHT_STEPS)
                    for index in range(reference, reference + count)
                ),
            )
        )
        reference += count
        vector += 0 if count else EMBEDDING_BYTES
    return tuple(patterns)


def _check_length(name: str, values: Sequence, expected: int) -> None:
    if len(values) != expected:
        raise ProtocolError(f"{name}: expected {expected} values or bytes in the column, got {len(values)}")


def _pack_delta(delta: PatternDelta, titles: TitleNumbering | None) -> dict[int, object]:
    packer = TitlePacker(titles)
    fields: dict[int, object] = {1: delta.local_version}
    if delta.titles_finished:
        fields[2] = packer.pack([title.content_id for title in delta.titles_finished])
        fields[3] = pack_times([title.finished_at for title in delta.titles_finished], USUAL_TITLE_GAP_STEPS)
    if delta.patterns_added:
        fields[4] = _pack_patterns(delta.patterns_added, packer)
    if delta.patterns_updated:
        fields[5] = _pack_patterns(delta.patterns_updated, packer)
    if delta.patterns_removed:
        fields[6] = pack_varints(delta.patterns_removed)
    if delta.more_pages:
        fields[7] = True
    if packer.numbered:
        fields[8] = packer.lineage()
    return fields


def _read_delta(value: object, titles: TitleNumbering | None) -> PatternDelta:
    fields = _Fields("PatternDelta", value)
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
    _check_length("PatternDelta.titles_finished", finished, len(finished_at))
    removed = fields.take(6, "patterns_removed", bytes, default=b"")
    patterns = {}
    for key, name in ((4, "patterns_added"), (5, "patterns_updated")):
        columns = fields.take(key, name, dict, default=None)
        patterns[name] = (
            _read_patterns(f"PatternDelta.{name}", columns, reader, MAX_PATTERNS_PER_DELTA) if columns is not None else ()
        )
    return PatternDelta(
        local_version=fields.take(1, "local_version", int),
        titles_finished=tuple(map(FinishedTitle, finished, finished_at)),
        patterns_removed=tuple(
            read_varints("PatternDelta.patterns_removed", removed, MAX_PATTERNS_PER_DELTA, _U32_MAX)
        ),
        more_pages=fields.take(7, "more_pages", bool, default=False),
        **patterns,
    )


def _pack_global_patterns(patterns: GlobalPatterns, titles: TitleNumbering | None) -> dict[int, object]:
    packer = TitlePacker(titles)
    fields: dict[int, object] = {1: patterns.global_version}
    if patterns.similar:
        fields[2] = _pack_patterns(patterns.similar, packer)
    if patterns.trending:
        highest = max(signal.score for signal in patterns.trending)
        steps = [round(signal.score / highest * SCORE_STEPS) if highest else 0 for signal in patterns.trending]
        fields[3] = packer.pack([signal.content_id for signal in patterns.trending])
        fields[4] = highest
        fields[5] = b"".join(step.to_bytes(2, "little") for step in steps)
        fields[6] = pack_varints(signal.window_hours for signal in patterns.trending)
    if packer.numbered:
        fields[7] = packer.lineage()
    return fields


def _read_global_patterns(value: object, titles: TitleNumbering | None) -> GlobalPatterns:
    fields = _Fields("GlobalPatterns", value)
    reader = fields.reader(7, titles)
    similar = fields.take(2, "similar", dict, default=None)
    trending = reader.read("GlobalPatterns.trending", fields.take(3, "trending", list, default=[]), MAX_TREND_SIGNALS)
    highest = fields.take(4, "highest_score", float, int) if trending else 0.0
    steps = fields.take(5, "scores", bytes, default=b"")
    windows = read_varints(
        "GlobalPatterns.window_hours", fields.take(6, "window_hours", bytes, default=b""), MAX_TREND_SIGNALS, _U32_MAX
    )
    _check_length("GlobalPatterns.scores", steps, 2 * len(trending))
    _check_length("GlobalPatterns.window_hours", windows, len(trending))
    shares = (int.from_bytes(steps[at : at + 2], "little") / SCORE_STEPS for at in range(0, len(steps), 2))
    return GlobalPatterns(
        global_version=fields.take(1, "global_version", int),
        similar=(
            _read_patterns("GlobalPatterns.similar", similar, reader, MAX_SIMILAR_PATTERNS) if similar is not None else ()
        ),
        trending=tuple(
            TrendSignal(content_id, highest * share, window)
            for content_id, share, window in zip(trending, shares, windows, strict=True)
        ),
    )


def _pack_request(request: SyncRequest, titles: TitleNumbering | None) -> dict[int, object]:
    fields: dict[int, object] = {
        1: request.version,
        2: request.global_version_seen,
        3: request.device_id,
        4: request.epoch,
        5: request.server_time_seen,
        6: None if request.delta is None else _pack_delta(request.delta, titles),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _pack_response(response: SyncResponse, titles: TitleNumbering | None) -> dict[int, object]:
    fields: dict[int, object] = {
        1: response.version,
        2: response.global_version,
        3: response.next_sync_secs,
        4: response.server_time,
        5: response.acknowledged_local_version,
        6: None if response.patterns is None else _pack_global_patterns(response.patterns, titles),
    }
    return {key: value for key, value in fields.items() if value is not None}


def encode_request(request: SyncRequest, titles: TitleNumbering | None = None) -> bytes:
    """A SyncRequest as at most MAX_UPLOAD_BYTES; ProtocolError saying what to leave out where it takes more."""

    def packed(delta: PatternDelta | None) -> bytes | None:
        return frame.pack(KIND_REQUEST, _pack_request(replace(request, delta=delta), titles), MAX_UPLOAD_BYTES)

    data = packed(request.delta)
    if data is None:
        raise paging.delta_too_large(
            "SyncRequest", request.delta, MAX_UPLOAD_BYTES, lambda delta: packed(delta) is not None
        )
    return data


def decode_request(data: bytes, titles: TitleNumbering | None = None) -> SyncRequest:
    """The SyncRequest of these bytes; ProtocolError for any others."""
    fields = _Fields("SyncRequest", frame.unpack(data, KIND_REQUEST, MAX_UPLOAD_BYTES))
    device_id = fields.take(3, "device_id", bytes, default=None)
    delta = fields.take(6, "delta", dict, default=None)
    return SyncRequest(
        version=fields.take(1, "version", int),
        global_version_seen=fields.take(2, "global_version_seen", int),
        device_id=device_id,
        epoch=fields.take(4, "epoch", int, default=None),
        server_time_seen=fields.take(5, "server_time_seen", int, default=None),
        delta=None if delta is None else _read_delta(delta, titles),
    )


def encode_response(response: SyncResponse, titles: TitleNumbering | None = None) -> bytes:
    """A SyncResponse as at most MAX_DOWNLOAD_BYTES; ProtocolError saying what to leave out where it takes more."""

    def packed(patterns: GlobalPatterns | None) -> bytes | None:
        fields = _pack_response(replace(response, patterns=patterns), titles)
        return frame.pack(KIND_RESPONSE, fields, MAX_DOWNLOAD_BYTES)

    data = packed(response.patterns)
    if data is None:
        raise paging.global_patterns_too_large(
            "SyncResponse", response.patterns, MAX_DOWNLOAD_BYTES, lambda patterns: packed(patterns) is not None
        )
    return data


def decode_response(data: bytes, titles: TitleNumbering | None = None) -> SyncResponse:
    """The SyncResponse of these bytes; ProtocolError for any others."""
    fields = _Fields("SyncResponse", frame.unpack(data, KIND_RESPONSE, MAX_DOWNLOAD_BYTES))
    patterns = fields.take(6, "patterns", dict, default=None)
    return SyncResponse(
        version=fields.take(1, "version", int),
        global_version=fields.take(2, "global_version", int),
        next_sync_secs=fields.take(3, "next_sync_secs", int),
        server_time=fields.take(4, "server_time", int),
        acknowledged_local_version=fields.take(5, "acknowledged_local_version", int, default=None),
        patterns=None if patterns is None else _read_global_patterns(patterns, titles),
    )


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
    fields = _pack_request(replace(_FULLEST_REQUEST, delta=delta), titles)
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
        return frame.pack(KIND_GLOBAL_PATTERNS, _pack_global_patterns(patterns, titles), MAX_DOWNLOAD_BYTES)

    data = packed(patterns)
    if data is None:
        raise paging.global_patterns_too_large(
            "GlobalPatterns", patterns, MAX_DOWNLOAD_BYTES, lambda patterns: packed(patterns) is not None
        )
    return data


def decode_global_patterns(data: bytes, titles: TitleNumbering | None = None) -> GlobalPatterns:
    """The GlobalPatterns of these bytes; ProtocolError for any others."""
    return _read_global_patterns(frame.unpack(data, KIND_GLOBAL_PATTERNS, MAX_DOWNLOAD_BYTES), titles)


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
    fields = _Fields("ViewingEvent", frame.unpack(data, KIND_EVENT, MAX_UPLOAD_BYTES))
    reader = fields.reader(7, titles)
    content_ids = reader.read("ViewingEvent.content_id", fields.take(1, "content_id", list), 1)
    _check_length("ViewingEvent.content_id", content_ids, 1)
    context = _Fields("ViewContext", fields.take(6, "context", dict))
    part = context.take(1, "time_of_day", int)
    if not 0 <= part < len(_TIMES_OF_DAY):
        raise ProtocolError(f"ViewContext.time_of_day: expected 0 to {len(_TIMES_OF_DAY) - 1}, got another")
    recent = context.take(3, "recent_watches", list, default=[])
    return ViewingEvent(
        content_id=content_ids[0],
        content_title=fields.take(2, "content_title", str),
        watch_percentage=fields.take(3, "watch_percentage", float, int),
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
