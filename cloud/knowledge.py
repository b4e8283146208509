"""What a stream of viewings teaches of each title, beside the learned weights: the sections of a bundle by formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloud import ease
from cloud.directed import directed_weights
from cloud.factors import factor_sections
from cloud.replay import Timeline
from cloud.settings import ModelSettings
from cloud.signals import DAY_MS, context_shares, popularity, trend
from cloud.sparse_rows import Finished, rows_beyond
from omega_edge.catalog import Catalog, RowSet
from omega_edge.catalog_checks import BUCKETS
from omega_edge.ranking import FEATURES


@dataclass(frozen=True, slots=True)
class TitleData:
    """The titles that the model is about: their sections of the bundle (see catalog.title_sections), with codes and
    code_scale, and the names of the genres."""

    sections: dict[str, np.ndarray]
    genres: tuple[str, ...]
    lineage: str

    @property
    def count(self) -> int:
        """How many titles there are."""
        return len(self.sections["code_scale"])


def knowledge_before(titles: TitleData, timeline: Timeline, end: int, settings: ModelSettings) -> dict[str, np.ndarray]:
    """The sections that the first `end` events teach; trends are those at the last of them."""
    events, count = timeline.events, titles.count
    household, title, timestamp = events.household[:end], events.title[:end], events.timestamp[:end]
    success = timeline.success[:end]
    finished, finished_at = title[success], timestamp[success]
    now_ms = int(timestamp[-1]) + 1 if end else 0
    chosen = ease.eligible_titles(title, count, settings.min_events)
    together = co_watching_before(timeline, end, chosen, count, settings.half_life_days)
    factors = factor_sections(together, chosen, count)
    rows = _rows(timeline, end, ease.item_weights(together, settings.ridge), chosen, count, settings)
    evidence = np.where(success, 1.0, max(settings.parameters["failure_weight"], 0.0))
    directed = directed_weights(
        household, title, evidence, recency(timestamp, now_ms, settings.half_life_days), chosen, count, settings.directed_ridge
    )
    following = ease.strongest_rows(directed, chosen, count, settings.row_budget_bytes)
    prior, overall = context_shares(
        titles.sections["genre_masks"], len(titles.genres), title, events.watch_percentage[:end], timeline.slots[:end]
    )
    return {
        "popularity": _popularity(finished, finished_at, now_ms, count, settings),
        "trend_scores": np.stack(
            [trend(finished, finished_at, now_ms, hours, count) for hours in settings.trend_window_hours]
        ),
        "context_prior": prior,
        "context_overall": overall,
        **row_sections("row", rows),
        **row_sections("slist", following),
        **factors,
    }


def _popularity(
    finished: np.ndarray, finished_at: np.ndarray, now_ms: int, count: int, settings: ModelSettings
) -> np.ndarray:
    if not settings.popularity_days:
        return popularity(finished, count)
    recent = finished[np.searchsorted(finished_at, now_ms - settings.popularity_days * DAY_MS) :]
    return popularity(recent, count)


def recency(timestamp: np.ndarray, now_ms: int, half_life_days: float) -> np.ndarray:
    """float64[e], 0 to 1: the weight of events (Unix ms, none after now_ms) by their age."""
    return 0.5 ** ((now_ms - timestamp) / (DAY_MS * half_life_days))


def co_watching_before(
    timeline: Timeline, end: int, chosen: np.ndarray, count: int, half_life_days: float
) -> np.ndarray:
    """G (see ease.co_watching) of the successes among the first `end` events, weighed by age."""
    finished = _finished_before(timeline, end, half_life_days)
    return ease.co_watching(finished.household, finished.title, finished.weight, chosen, count)


def _finished_before(timeline: Timeline, end: int, half_life_days: float) -> Finished:
    success = timeline.success[:end]
    finished_at = timeline.events.timestamp[:end][success]
    now_ms = int(timeline.events.timestamp[end - 1]) + 1 if end else 0
    # G holds products of two weights, so each takes half of the exponent.
    weight = recency(finished_at, now_ms, 2.0 * half_life_days)
    return Finished(timeline.events.household[:end][success], timeline.events.title[:end][success], weight)


def _rows(
    timeline: Timeline, end: int, weights: np.ndarray, chosen: np.ndarray, count: int, settings: ModelSettings
) -> RowSet:
    """The strongest of EASE's weights, and rows of the titles that it has no room for."""
    beyond = ease.eligible_beyond(timeline.events.title[:end], count, settings.min_events)
    if not len(beyond):
        return ease.strongest_rows(weights, chosen, count, settings.row_budget_bytes)
    finished = _finished_before(timeline, end, settings.half_life_days)
    return rows_beyond(finished, weights, chosen, beyond, count, settings.row_budget_bytes)


def row_sections(prefix: str, rows: RowSet) -> dict[str, np.ndarray]:
    """Rows as the four sections of a prefix."""
    return {
        f"{prefix}_offsets": rows.offsets,
        f"{prefix}_columns": rows.columns,
        f"{prefix}_values": rows.values,
        f"{prefix}_scale": rows.scale,
    }


def fusion_meta(settings: ModelSettings) -> dict:
    """The bundle's meta keys that say what the fusion reads and how."""
    return {
        "trend_window_hours": list(settings.trend_window_hours),
        "fusion_features": list(FEATURES),
        "fusion_parameters": settings.parameters,
    }


def unfitted_catalog(titles: TitleData, sections: dict[str, np.ndarray], settings: ModelSettings) -> Catalog:
    """A catalogue whose fusion is not fitted yet, to compute features by."""
    weights = {
        "fusion_weights": np.zeros((BUCKETS, len(FEATURES)), np.float32),
        "fusion_calibration": np.zeros((BUCKETS, 2), np.float32),
    }
    if "sequence_codes" in sections:
        weights |= {f"sequence_{name}": array for name, array in weights.items()}
    meta = fusion_meta(settings) | {
        "name": "training block",
        "version": 0,
        "built_at": 0,
        "lineage": titles.lineage,
        "genres": list(titles.genres),
    }
    return Catalog.from_sections(titles.sections | sections | weights, meta)
