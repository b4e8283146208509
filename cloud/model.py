"""The model job: from many households' viewings to what a catalogue bundle knows beyond its titles.

The stream is walked through in blocks. Before each block everything is trained that its past teaches (knowledge.py, the
sequence encoder), and the block's viewings become queries, with the features that a television would have had. What is
learned from queries is learned on older blocks and judged on the two after them, twice (FOLDS): the sequence encoder,
the time of day and the second stage ship only if each beats what it replaces there, the lower bound of its gain in
NDCG@10 above zero (see judging.Gate); their quality beside that of plain lists goes into the meta. The weights that ship
are then fitted on all blocks, and everything else is trained once more on all events.

Blocks begin at multiples of a power of two of events. So a job that runs again on a longer stream finds its earlier
blocks as they were; EarlierWork keeps what it made of them.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cloud import ease
from cloud.fusion_fit import FitSet, fit_calibration, fit_weights
from cloud.judging import Gate, alone, calibration_report, fused, gains_of, summary
from cloud.knowledge import TitleData, fusion_meta, knowledge_before, recency, unfitted_catalog
from cloud.onboarding import onboarding_titles
from cloud.replay import Blocks, Timeline, replay
from cloud.second_stage_fit import stage_lists, stage_sections, staged_gains, train_trees
from cloud.sequence_sections import sequence_sections
from cloud.sequence_training import Encoder, train_encoder
from cloud.settings import ModelSettings
from cloud.signals import slots_of
from cloud.tuning import tuned
from omega_edge.catalog import Catalog
from omega_edge.catalog_checks import BUCKETS, stage_input_names
from omega_edge.datasets import Events
from omega_edge.ranking import CONTEXT, FEATURES, POPULARITY, ROWS, SEQUENCE, TREND_LONG, TREND_SHORT

__all__ = ["EarlierWork", "Model", "ModelSettings", "TitleData", "train"]

Progress = Callable[[str], None]

LEAST_BLOCKS_OF_STREAM = 8
"""A block is at most this share of the stream."""
BLOCKS = 6
JUDGED_BLOCKS = 2
FOLDS = 2
"""Each judges the blocks before those of the next: the last JUDGED_BLOCKS, and the JUDGED_BLOCKS before them."""
ENCODER_HALF_LIVES = 2.0
"""The encoder forgets more slowly than the rows: of 1, 2 and 4 times their half-life, 2 was best on MovieLens 100K."""
QUERIES_PER_HOUSEHOLD = 40
"""In a block."""
BUCKET_NAMES = ("0", "1-4", "5-19", "20+")


@dataclass(frozen=True, slots=True)
class Model:
    """What the job learned. sections: the bundle's sections beside those of the titles. meta: the bundle's meta keys
    that describe them. report: measured quality, also in the meta under "held_out"."""

    sections: dict[str, np.ndarray]
    meta: dict
    report: dict


@dataclass(slots=True)
class EarlierWork:
    """What runs of the job on shorter beginnings of one stream left behind: only what lay before each cut made it. For
    one stream, one set of titles and one ModelSettings; the job grows it."""

    settings: ModelSettings | None = None
    encoders: dict[int, Encoder | None] = field(default_factory=dict)
    queries: dict[tuple[int, int], FitSet] = field(default_factory=dict)


def train(
    titles: TitleData,
    events: Events,
    settings: ModelSettings,
    progress: Progress = lambda what: None,
    earlier: EarlierWork | None = None,
) -> Model:
    """Run the job over events (title: row of the catalogue). Deterministic with one BLAS thread on one type of CPU.

    Memory: about 0.5 GB and 8 bytes a pair of the titles with enough events, at most ease.MAX_MODEL_TITLES of them, five
    times over. earlier: grown by what can be used again.
    """
    return _Job(titles, events, settings, progress, earlier or EarlierWork()).run()


def block_starts(total: int) -> tuple[int, ...]:
    """Where the blocks of a stream of so many events begin; none of a stream too short for two."""
    if total < 2 * LEAST_BLOCKS_OF_STREAM:
        return ()
    step = 1 << ((total // LEAST_BLOCKS_OF_STREAM).bit_length() - 1)
    last = (total - 1) // step
    return tuple(step * place for place in range(max(last - BLOCKS + 1, 1), last + 1))


@dataclass(frozen=True, slots=True)
class _Tried:
    """Both stages under some features. left_out: features without weight; weights float32[4, 11]; gains, staged: NDCG@10
    float64[q] of the judged viewings by the fusion, and as the second stage leaves them; gate, serves: of that stage."""

    left_out: frozenset[int]
    weights: np.ndarray
    gains: np.ndarray
    staged: np.ndarray
    gate: Gate
    serves: list[bool] | None


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What ships. left_out: features without weight; sequence: whether the encoder does; serves: the history buckets of the
    second stage, None without one."""

    left_out: frozenset[int]
    sequence: bool
    serves: list[bool] | None


def _unread(sequence: bool) -> tuple[str, ...]:
    """Inputs that the trees may not ask for: those of an encoder that is not there."""
    return () if sequence else ("value:sequence", "rank:sequence")


class _Job:
    """One run of the model job."""

    def __init__(
        self, titles: TitleData, events: Events, settings: ModelSettings, progress: Progress, earlier: EarlierWork
    ) -> None:
        self._titles = titles
        self._timeline = Timeline.of(events, slots_of(events.timestamp))
        self._total = len(events)
        self._starts = block_starts(self._total)
        self._progress = progress
        self._earlier = earlier
        self._settings = self._tuned(settings)
        self._no_sequence = self._missing("jax") if settings.sequence else "switched off"
        self._no_second_stage = self._missing("lightgbm") if settings.second_stage else "switched off"

    @staticmethod
    def _missing(library: str) -> str:
        return "" if importlib.util.find_spec(library) else f"{library} is not installed (pip install omega-edge[model])"

    def _tuned(self, settings: ModelSettings) -> ModelSettings:
        if not settings.tune or len(self._starts) <= JUDGED_BLOCKS:
            return settings
        if self._earlier.settings is None:
            self._progress("choosing the settings")
            unjudged = (*self._starts, self._total)[: -JUDGED_BLOCKS]
            span = unjudged[0], unjudged[-1]
            self._earlier.settings = tuned(
                self._timeline, self._titles.count, span, unjudged[-2], settings, self._progress
            )
        return self._earlier.settings

    def run(self) -> Model:
        """All of it, as the module's first lines say."""
        settings = self._settings
        blocks = [self._queries(start, end) for start, end in zip(self._starts, (*self._starts[1:], self._total))]
        ends = [len(blocks) - JUDGED_BLOCKS * fold for fold in range(FOLDS, -1, -1)]
        folds = [
            (FitSet.of(blocks[:start]), FitSet.of(blocks[start:end]))
            for start, end in itertools.pairwise(ends)
            if start > 0
        ]
        chosen, report = self._chosen(folds or [(FitSet(), FitSet())])
        every = FitSet.of(blocks)
        self._progress(f"fitting the fusion on {len(every)} viewings")
        plain = fit_weights(every, chosen.left_out | {SEQUENCE})
        learned = {"fusion_weights": plain, "fusion_calibration": fit_calibration(every, plain)}
        weights, meta = plain, fusion_meta(settings)
        if chosen.sequence:
            weights = fit_weights(every, chosen.left_out)
            learned |= {
                "sequence_fusion_weights": weights,
                "sequence_fusion_calibration": fit_calibration(every, weights),
            }
        if chosen.serves is not None:
            self._progress("training the second stage")
            trees = train_trees(stage_lists(every, weights, self._catalog), _unread(chosen.sequence))
            assert trees is not None, "fewer lists than the trial had"
            learned |= stage_sections(trees, chosen.serves)
            meta |= {"second_stage_inputs": stage_input_names(FEATURES)}
        self._progress("training on all events")
        sections = knowledge_before(self._titles, self._timeline, self._total, settings) | learned
        if chosen.sequence:
            sections |= self._encoder_sections(self._total)
        self._progress("choosing what a new home is shown")
        events, success = self._timeline.events, self._timeline.success
        shown = onboarding_titles(events.household[success], events.title[success], self._titles.count)
        sections["onboarding"] = shown.rows
        report |= {"onboarding": shown.report()}
        report["settings"] = {"half_life_days": settings.half_life_days, "ridge": settings.ridge}
        return Model(sections, meta | {"held_out": report}, report)

    def _queries(self, start: int, end: int) -> FitSet:
        """The viewings of a block, as televisions with what was known at its start would have met them."""
        found = self._earlier.queries.get((start, end))
        if found is None:
            self._progress(f"replaying viewings {start} to {end}")
            found = FitSet()
            blocks = Blocks((start,), self._catalog_before)
            wanted = self._timeline.queries(start, end, self._settings.queries_per_bucket, QUERIES_PER_HOUSEHOLD)
            for query in replay(
                self._timeline, wanted, blocks, self._settings.trend_window_hours, self._settings.parameters
            ):
                found.add(query)
            self._earlier.queries[start, end] = found
        return found

    def _catalog_before(self, end: int) -> Catalog:
        sections = knowledge_before(self._titles, self._timeline, end, self._settings) | self._encoder_sections(end)
        return unfitted_catalog(self._titles, sections, self._settings)

    @property
    def _catalog(self) -> Catalog:
        """A catalogue of the titles alone."""
        return unfitted_catalog(
            self._titles, knowledge_before(self._titles, self._timeline, 0, self._settings), self._settings
        )

    def _encoder_sections(self, end: int) -> dict[str, np.ndarray]:
        """Sections sequence_* but the fusion's, trained on the first `end` events; none where there is no encoder."""
        if self._no_sequence:
            return {}
        if end not in self._earlier.encoders:
            before = [cut for cut in self._earlier.encoders if cut < end]
            previous = self._earlier.encoders[max(before)] if before else None
            timeline, events = self._timeline, self._timeline.events
            self._progress(f"training the sequence encoder on {end} events")
            self._earlier.encoders[end] = train_encoder(
                events.household[:end],
                events.title[:end],
                timeline.success[:end],
                recency(events.timestamp[:end], int(events.timestamp[end - 1]), ENCODER_HALF_LIVES * self._settings.half_life_days),
                ease.eligible_titles(events.title[:end], self._titles.count, self._settings.min_events),
                self._titles.count,
                previous,
                seed=end,
                progress=self._progress,
            )
        encoder = self._earlier.encoders[end]
        return sequence_sections(encoder.by_title()) if encoder is not None else {}

    def _chosen(self, folds: list[tuple[FitSet, FitSet]]) -> tuple[_Chosen, dict]:
        """What ships, learned on the older viewings of each fold and judged on its newer ones, and the report."""
        judging = FitSet.of(judged for _, judged in folds)
        households = np.array(judging.households, np.int64)
        best = self._tried(folds, frozenset((SEQUENCE, CONTEXT)))
        gates = {"sequence": Gate.closed(self._no_sequence)}
        if not self._no_sequence:
            encoded = self._tried(folds, frozenset((CONTEXT,)))
            gates["sequence"] = Gate.of(encoded.staged, best.staged, households)
            best = encoded if gates["sequence"].ships else best
        timed = [gains_of(fused(judged, fit_weights(fitting, best.left_out - {CONTEXT}))) for fitting, judged in folds]
        gates["context"] = Gate.of(np.concatenate(timed), best.gains, households)
        left_out = best.left_out - {CONTEXT} if gates["context"].ships else best.left_out
        fitting, judged = folds[-1]
        report = self._report(judging, best, calibration_report(judged, best.weights, fit_calibration(fitting, best.weights)))
        gates["second_stage"] = best.gate
        report["gates"] = {name: gate.report() for name, gate in gates.items()}
        return _Chosen(left_out - {SEQUENCE}, gates["sequence"].ships, best.serves), report

    def _tried(self, folds: list[tuple[FitSet, FitSet]], left_out: frozenset[int]) -> _Tried:
        """Both stages without some features, and what they are worth on the judged viewings."""
        told = "without the encoder" if SEQUENCE in left_out else "with the encoder"
        fitted, gains, staged = [], [], []
        for fitting, judged in folds:
            self._progress(f"{told}: fitting on {len(fitting)} viewings, judging on {len(judged)}")
            fitted.append(fit_weights(fitting, left_out))
            gains.append(gains_of(fused(judged, fitted[-1])))
            staged.append(self._staged(fitting, judged, fitted[-1], SEQUENCE not in left_out))
        known = [part for part in staged if part is not None]
        plain = np.concatenate(gains)
        if self._no_second_stage or len(known) < len(staged):
            why = self._no_second_stage or "too few lists to learn from"
            return _Tried(left_out, fitted[-1], plain, plain, Gate.closed(why), None)
        reordered = np.concatenate(known)
        buckets = np.concatenate([judged.list_buckets() for _, judged in folds])
        households = np.concatenate([np.array(judged.households, np.int64) for _, judged in folds])
        gate = Gate.of(reordered, plain, households)
        each = [
            Gate.of(reordered[mine], plain[mine], households[mine])
            for mine in (buckets == bucket for bucket in range(BUCKETS))
        ]
        if not gate.ships:
            return _Tried(left_out, fitted[-1], plain, plain, gate, None)
        # Good for all together, it serves all but those whom it surely harms. A bucket judged alone would ship on noise.
        serves = [one.high >= 0.0 for one in each]
        served = np.where(np.array(serves)[buckets], reordered, plain)
        return _Tried(left_out, fitted[-1], plain, served, gate, serves)

    def _staged(self, fitting: FitSet, judged: FitSet, weights: np.ndarray, sequence: bool) -> np.ndarray | None:
        """NDCG@10 float64[q] of the judged viewings in the order of a second stage; None where none can be learned."""
        if self._no_second_stage:
            return None
        trees = train_trees(stage_lists(fitting, weights, self._catalog), _unread(sequence))
        return None if trees is None else staged_gains(stage_lists(judged, weights, self._catalog), trees)

    def _report(self, judging: FitSet, best: _Tried, calibration: dict) -> dict:
        """Quality of every list, of trend and fusion by history, and of the calibration; for the bundle's meta."""
        short, long = self._settings.trend_window_hours
        plain = {
            "popularity": POPULARITY,
            f"trend_{short}_hours": TREND_SHORT,
            f"trend_{long}_hours": TREND_LONG,
            "rows": ROWS,
        }
        lists = {name: gains_of(alone(judging, feature)) for name, feature in plain.items()}
        lists |= {"fusion": best.gains, "second_stage": best.staged}
        buckets = judging.list_buckets()
        shown = (f"trend_{short}_hours", "fusion", "second_stage")
        return {
            "queries": len(best.gains),
            "lists": {name: summary(found) for name, found in lists.items()},
            "by_history": {
                label: {"queries": int(np.count_nonzero(buckets == bucket))}
                | {name: summary(lists[name][buckets == bucket]) for name in shown}
                for bucket, label in enumerate(BUCKET_NAMES)
            },
            "calibration": calibration,
        }
