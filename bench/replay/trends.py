"""What a cloud would send a television each midnight: the titles watched most in its two windows, within one message."""

from __future__ import annotations

import numpy as np

from bench.replay.method import TrendEvents
from cloud.signals import DAY_MS, log_share
from omega_edge.catalog import Catalog
from omega_edge.errors import ProtocolError
from omega_edge.paging import largest
from omega_edge.protocol import MAX_TREND_SIGNALS, GlobalPatterns, TrendSignal
from omega_edge.wire import encode_global_patterns


def trend_message(catalog: Catalog, trend_events: TrendEvents) -> bytes:
    """The patterns of a sync as bytes, counted up to the midnight of trend_events.

    As many signals as the message may have and its bytes allow; each window gets half of them, and what the other
    does not need.
    """
    found = [_strongest(catalog, trend_events, trend.window_hours) for trend in catalog.trends]

    def patterns(count: int) -> GlobalPatterns:
        short, long = found
        first = min(len(short), max(count // 2, count - len(long)))
        signals = tuple(short[:first] + long[: count - first])
        return GlobalPatterns(trend_events.midnight_ms // DAY_MS, (), signals)

    def fits(count: int) -> bool:
        try:
            encode_global_patterns(patterns(count), catalog)
        except ProtocolError:
            return False
        return True

    most = min(MAX_TREND_SIGNALS, sum(map(len, found)))
    return encode_global_patterns(patterns(most if fits(most) else largest(most, fits)), catalog)


def _strongest(catalog: Catalog, trend_events: TrendEvents, window_hours: int) -> list[TrendSignal]:
    """Signals of one window, strongest first; of equal ones the title watched last comes first, which no id decides."""
    counts = trend_events.counts(trend_events.midnight_ms, window_hours)
    last = int(np.searchsorted(trend_events.timestamp, trend_events.midnight_ms))
    watched_last = np.full(len(counts), -1, np.int64)
    np.maximum.at(watched_last, trend_events.titles[:last], np.arange(last))
    rows = np.lexsort((-watched_last, -counts))[: min(np.count_nonzero(counts), MAX_TREND_SIGNALS)]
    scores = log_share(counts)[rows].tolist()
    names = catalog.content_ids(rows.tolist())
    return [TrendSignal(name, score, window_hours) for name, score in zip(names, scores, strict=True)]
