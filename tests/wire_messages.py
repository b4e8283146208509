"""Messages for the wire tests: a numbering, the golden messages, and hypothesis strategies for all types."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from hypothesis import strategies as st

from omega_edge.protocol import (
    COUNT_CATEGORIES,
    DAY_MS,
    EMBEDDING_DIMENSIONS,
    MAX_TIMESTAMP_MS,
    CountReport,
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

VECTORS = Path(__file__).parent / "vectors" / "wire" / "1"
LINEAGE = "0123456789abcdef"


class Numbering:
    """Titles by number, for encoding and decoding."""

    def __init__(self, rows: dict[str, int], lineage: str = LINEAGE) -> None:
        self.lineage = lineage
        self._rows = rows
        self._titles = {row: content_id for content_id, row in rows.items()}

    def row_of(self, content_id: str) -> int:
        return self._rows.get(content_id, -1)

    def content_id(self, row: int) -> str:
        if row not in self._titles:
            raise IndexError(f"expected a row of the numbering, got {row}")
        return self._titles[row]


NUMBERING = Numbering({"tt0000001": 0, "tt0068646": 258, "tt2543164": 513})
QUARTER_HOUR_MS = 900_000
GOLDEN_MS = 1_699_999_200_000
GOLDEN_WEEK_MS = 2810 * 7 * DAY_MS
FIRST_AXIS = struct.pack(f"<{EMBEDDING_DIMENSIONS}f", 1.0, *[0.0] * (EMBEDDING_DIMENSIONS - 1))

DEVICE = {"device_id": bytes(range(16)), "epoch": 0x0102030405060708}
ANSWER = {"global_version": 7, "next_sync_secs": 300, "server_time": 1_700_000_000_000}

GOLDEN = {
    "request_receive": SyncRequest(version=1, global_version_seen=7),
    "request_titles": SyncRequest(
        version=1,
        global_version_seen=7,
        device_id=bytes(range(16)),
        epoch=0x0102030405060708,
        server_time_seen=1_700_000_000_000,
        delta=PatternDelta(
            local_version=300,
            titles_finished=(
                FinishedTitle("tt0068646", GOLDEN_MS),
                FinishedTitle("local-film", GOLDEN_MS + 8 * QUARTER_HOUR_MS),
                FinishedTitle("tt2543164", GOLDEN_MS + 104 * QUARTER_HOUR_MS),
            ),
            patterns_added=(
                ViewingPattern(
                    id=5,
                    success_rate=0.8,
                    sample_count=300,
                    created_at=GOLDEN_MS,
                    updated_at=GOLDEN_MS + 8 * QUARTER_HOUR_MS,
                    references=(TitleReference("tt0068646", 1.0), TitleReference("tt0000001", 0.2)),
                ),
            ),
            patterns_removed=(9, 200),
            more_pages=True,
        ),
    ),
    "request_unknown_keys": SyncRequest(version=1, global_version_seen=7),
    "delta_text": PatternDelta(local_version=1, titles_finished=(FinishedTitle("tt0068646", GOLDEN_MS),)),
    "response": SyncResponse(
        version=1,
        global_version=7,
        next_sync_secs=300,
        server_time=1_700_000_000_000,
        acknowledged_local_version=300,
        patterns=GlobalPatterns(
            global_version=7,
            similar=(
                ViewingPattern(
                    id=(1 << 32) - 1,
                    success_rate=1.0,
                    sample_count=1,
                    created_at=0,
                    updated_at=QUARTER_HOUR_MS,
                    references=(TitleReference("a", 1.0),),
                ),
            ),
            trending=(TrendSignal("tt0068646", 2.5, 48), TrendSignal("tt2543164", 0.5, 336)),
        ),
    ),
    "global_patterns": GlobalPatterns(global_version=(1 << 64) - 1),
    "event": ViewingEvent(
        content_id="tt0068646",
        content_title="The Godfather",
        watch_percentage=0.75,
        duration_seconds=10_500,
        timestamp=1_700_000_000_123,
        context=ViewContext(TimeOfDay.EVENING, 6, ("tt0000001", "local-film"), "Drama", "child"),
    ),
    "embedding_zstd": GlobalPatterns(
        global_version=7, similar=(ViewingPattern(3, 0.7, 100, 0, 0, embedding=FIRST_AXIS),)
    ),
    "request_patterns": SyncRequest(
        global_version_seen=7,
        **DEVICE,
        delta=PatternDelta(
            local_version=301,
            patterns_added=(
                ViewingPattern(
                    id=5,
                    success_rate=0.8,
                    sample_count=12,
                    created_at=GOLDEN_WEEK_MS,
                    updated_at=GOLDEN_WEEK_MS + 21 * DAY_MS,
                    references=(TitleReference("tt0068646", 1.0), TitleReference("tt0000001", 0.2)),
                ),
                ViewingPattern(
                    id=9,
                    success_rate=1.0,
                    sample_count=3,
                    created_at=GOLDEN_WEEK_MS + 7 * DAY_MS,
                    updated_at=GOLDEN_WEEK_MS + 7 * DAY_MS,
                    references=(TitleReference("tt2543164", 1.0),),
                ),
            ),
            shared_set_hash=0x0102030405060708,
        ),
    ),
    "request_count": SyncRequest(
        global_version_seen=7, **DEVICE, count_report=CountReport(day=19_675, seed=(1 << 32) - 1, value=55)
    ),
    "request_erase": SyncRequest(global_version_seen=7, **DEVICE, erase=True),
    "delta_snapshot": PatternDelta(local_version=301, snapshot=True, shared_set_hash=0),
    "global_patterns_code": GlobalPatterns(
        global_version=7, similar=(ViewingPattern(9, 0.5, 1, 0, 0, code=bytes(range(48)), codebook=5),)
    ),
    "response_frame": SyncResponse(
        **ANSWER,
        acknowledged_local_version=300,
        patterns=GlobalPatterns(global_version=7),
        catalog_version=3,
        snapshot_wanted=True,
    ),
    "response_told": SyncResponse(**ANSWER, erased=True, counted=True),
    "response_reset": SyncResponse(**ANSWER, reset=True),
    "embedding_dictionary": GlobalPatterns(
        global_version=7, similar=(ViewingPattern(3, 0.7, 96, 0, 0, embedding=FIRST_AXIS),)
    ),
}
"""The message of each golden file, written out from its README."""
NUMBERED = {"request_titles", "request_patterns", "event"}
"""Golden messages with title numbers."""

WIDE_NUMBERING = Numbering(
    {f"w{row}": row for row in (0, 1, 255, 256, 65_533, 65_534, 65_535, 65_536, 70_000, (1 << 24) - 2)}
)

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda text: not text.isspace() and len(text.encode()) <= 60
)
content_ids = st.one_of(
    st.sampled_from([f"w{row}" for row in (0, 255, 65_534, 65_535, 65_536, (1 << 24) - 2)]), texts
)
moments = st.integers(0, MAX_TIMESTAMP_MS)
shares = st.floats(0, 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)


@st.composite
def embeddings(draw: st.DrawFn) -> bytes:
    """A unit vector with a few places that are not 0."""
    places = draw(st.dictionaries(st.integers(0, EMBEDDING_DIMENSIONS - 1), st.floats(-9, 9), min_size=1, max_size=5))
    places = {place: number for place, number in places.items() if abs(number) > 1e-3} or {0: 1.0}
    norm = math.hypot(*places.values())
    return struct.pack(
        f"<{EMBEDDING_DIMENSIONS}f", *(places.get(place, 0.0) / norm for place in range(EMBEDDING_DIMENSIONS))
    )


@st.composite
def references(draw: st.DrawFn) -> tuple[TitleReference, ...]:
    cited = draw(st.lists(content_ids, min_size=1, max_size=8, unique=True))
    weights = [draw(shares) for _ in cited]
    weights[0] = weights[0] or 1.0
    return tuple(map(TitleReference, cited, weights))


def patterns(pattern_id: int, lowest_rate: float = 0.0) -> st.SearchStrategy[ViewingPattern]:
    """A pattern of this id, with references or, less often, a code or an embedding."""
    common = {
        "id": st.just(pattern_id),
        "success_rate": st.floats(lowest_rate, 1),
        "sample_count": st.integers(1, (1 << 32) - 1),
        "created_at": moments,
        "updated_at": moments,
    }
    return st.one_of(
        st.builds(ViewingPattern, **common, references=references()),
        st.builds(ViewingPattern, **common, references=references()),
        st.builds(ViewingPattern, **common, code=st.binary(min_size=48, max_size=48), codebook=st.integers(0, 2) | u32),
        st.builds(ViewingPattern, **common, embedding=embeddings()),
    )


@st.composite
def deltas(draw: st.DrawFn) -> PatternDelta:
    ids = draw(st.lists(u32, max_size=6, unique=True))
    snapshot = draw(st.booleans())
    added, updated = (6, 0) if snapshot else (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    return PatternDelta(
        local_version=draw(u64),
        titles_finished=tuple(draw(st.lists(st.builds(FinishedTitle, content_ids, moments), max_size=12))),
        patterns_added=tuple(draw(patterns(pattern_id, 0.7)) for pattern_id in ids[:added]),
        patterns_updated=tuple(draw(patterns(pattern_id, 0.7)) for pattern_id in ids[added : added + updated]),
        patterns_removed=tuple(ids[added + updated :]),
        more_pages=draw(st.booleans()),
        snapshot=snapshot,
        shared_set_hash=draw(st.none() | u64),
    )


@st.composite
def global_patterns(draw: st.DrawFn) -> GlobalPatterns:
    ids = draw(st.lists(u32, max_size=5, unique=True))
    signals = st.builds(TrendSignal, content_ids, st.floats(0, 1e300), st.integers(1, 24 * 366))
    return GlobalPatterns(
        global_version=draw(u64),
        similar=tuple(draw(patterns(pattern_id)) for pattern_id in ids),
        trending=tuple(
            draw(st.lists(signals, max_size=12, unique_by=lambda signal: (signal.content_id, signal.window_hours)))
        ),
    )


count_reports = st.builds(
    CountReport, st.integers(0, MAX_TIMESTAMP_MS // DAY_MS), u32, st.integers(0, COUNT_CATEGORIES - 1)
)


@st.composite
def requests(draw: st.DrawFn) -> SyncRequest:
    versions = {"version": draw(st.integers(1, 255)), "global_version_seen": draw(u64)}
    told = draw(st.sampled_from(["nothing", "no delta", "delta", "delta", "delta", "count report", "erasure"]))
    if told == "nothing":
        return SyncRequest(**versions)
    device = versions | {"device_id": draw(st.binary(min_size=16, max_size=16)), "epoch": draw(u64)}
    if told == "count report":
        return SyncRequest(**device, count_report=draw(count_reports))
    if told == "erasure":
        return SyncRequest(**device, erase=True)
    return SyncRequest(
        **device,
        server_time_seen=draw(st.none() | moments),
        delta=draw(deltas()) if told == "delta" else None,
    )


acknowledgements = st.one_of(
    st.just({"reset": True}),
    st.fixed_dictionaries(
        {"acknowledged_local_version": st.none() | u64},
        optional={field: st.booleans() for field in ("snapshot_wanted", "erased", "counted")},
    ),
)


@st.composite
def responses(draw: st.DrawFn) -> SyncResponse:
    patterns = draw(st.none() | global_patterns())
    return SyncResponse(
        version=draw(st.integers(1, 255)),
        global_version=patterns.global_version if patterns else draw(u64),
        next_sync_secs=draw(st.integers(60, 86_400)),
        server_time=draw(moments),
        patterns=patterns,
        catalog_version=draw(st.none() | u32),
        **draw(acknowledgements),
    )


contexts = st.builds(
    ViewContext,
    st.sampled_from(TimeOfDay),
    st.integers(0, 6),
    st.lists(content_ids, max_size=5).map(tuple),
    st.none() | texts,
    st.sampled_from(["household", "child", "a.b-c_d"]),
)
events = st.builds(ViewingEvent, content_ids, texts, shares, st.integers(0, 604_800), moments, contexts)
