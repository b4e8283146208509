"""Timed calls of recommend, observe and the text model. Every list and vector is checked after the clock stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from bench.footprint import read_facts
from bench.full_store import LISTED, build
from bench.machine import MEGABYTE, ROOT
from bench.metrics import line
from bench.trace import measure_trace
from bench.truth import PatternTruth, Truth, slot_of_context
from bench.viewing import Watched, changed_contexts, context_at, read_viewing
from omega_edge.brain import OmegaBrain
from omega_edge.catalog import Catalog
from omega_edge.config import BrainConfig
from omega_edge.datasets import read_dataset
from omega_edge.inference import VOCABULARY_FILE, InferenceEngine
from omega_edge.protocol import Recommendation, ViewContext, title_embedding_text
from omega_edge.tokenizer import WordPieceTokenizer

WARM_UP_CALLS = 20
LISTS_CHECKED = 20
REASONS_CHECKED = 3
TOKENS = range(15, 18)
"""Lengths of the texts embedded, [CLS] and [SEP] counted: about 16."""
WARM_UP_TEXTS = 5
MIN_COSINE = 0.99
NEVER_EVICTED = 60
"""The newest episodes, which memory keeps whatever their value."""
TRUTH_TEXTS = ROOT / "tests/vectors/minilm_fp32.json"


@dataclass(frozen=True, slots=True)
class Taken:
    """What one call took, in milliseconds: by the wall's clock, and of the processor on the calling thread.

    The second is what the call costs by itself; on a machine that others use, the first holds their work too.
    """

    wall_ms: float
    processor_ms: float


class Stopwatch:
    """Times the body of a with statement."""

    def __enter__(self) -> Self:
        self._processor_ns = time.thread_time_ns()
        self._wall_ns = time.perf_counter_ns()
        return self

    def __exit__(self, *exception: object) -> None:
        wall_ns = time.perf_counter_ns() - self._wall_ns
        self.taken = Taken(wall_ns / 1e6, (time.thread_time_ns() - self._processor_ns) / 1e6)


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed: nearest rank, so one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def wall(calls: Sequence[Taken], share: float) -> float:
    """Percentile of the wall's clock in ms, rounded to 0.1 µs."""
    return round(percentile((call.wall_ms for call in calls), share), 4)


def processor(calls: Sequence[Taken], share: float) -> float:
    """Percentile of the processor time in ms, rounded to 0.1 µs."""
    return round(percentile((call.processor_ms for call in calls), share), 4)


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as it was shown. known: how many viewings came before it."""

    known: int
    context: ViewContext
    now_ms: int
    listed: list[Recommendation]


class Clock:
    """A clock that stands where it is set. Unix milliseconds, UTC."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def measure_recommend(settings: dict, options: dict) -> dict:
    """Half of the timed calls follow a new viewing; the other half ask with another context than the call before."""
    scale, facts = settings["scale"], read_facts(settings)
    viewing = read_viewing(Path(settings["data"]), scale["episodes"], scale["observes"])
    clock = Clock(facts["clock_ms"])
    config = BrainConfig(options["storage"], settings["catalog"], background_maintenance=False)
    lists: list[Shown] = []
    taken: dict[str, list[Taken]] = {"after_a_viewing": [], "after_a_changed_context": []}
    stream = iter(viewing.stream)
    watched: list[Watched] = list(viewing.stored)
    with OmegaBrain.open(config, clock) as brain:
        contexts = iter(changed_contexts(facts["genres"], seed=1) * 10)
        for call in range(-WARM_UP_CALLS, scale["recommends"]):
            context = None
            if call % 2 == 0:
                newest = next(stream)
                clock.now_ms = newest.at_ms
                brain.observe(newest.event())
                brain.maintain()
                watched.append(newest)
            else:
                context = next(contexts)
            with Stopwatch() as stopwatch:
                listed = brain.recommend(context, k=LISTED)
            if call >= 0:
                taken["after_a_viewing" if context is None else "after_a_changed_context"].append(stopwatch.taken)
            lists.append(Shown(len(watched), context or context_at(clock.now_ms), clock.now_ms, listed))
    fault = fault_in_lists(settings, facts, watched, lists, config.diversity)
    every = [one for calls in taken.values() for one in calls]
    by_kind = {f"p50_{kind}": wall(calls, 0.5) for kind, calls in taken.items()}
    common = {
        "calls": len(every),
        "titles": facts["titles"],
        "episodes": scale["episodes"],
        "k": LISTED,
        "lists_recomputed": min(LISTS_CHECKED, len(lists)),
    }
    return {
        "lines": [
            line("recommend_ms_p50", wall(every, 0.5), fault) | {"cpu": processor(every, 0.5)} | common | by_kind,
            line("recommend_ms_p99", wall(every, 0.99), fault)
            | {"cpu": processor(every, 0.99), "highest": wall(every, 1.0)}
            | common,
        ]
    }


def fault_in_lists(
    settings: dict, facts: dict, watched: Sequence[Watched], lists: Sequence[Shown], diversity: float
) -> str | None:
    """Why one of the lists is wrong, or None. Every list: 20 titles, all different, none watched before. Some
    lists: equal to an independent recomputation, with reasons proved by deleting each event."""
    catalog = Catalog.open(settings["catalog"])
    patterns = PatternTruth([(success_rate, references) for success_rate, references in facts["patterns"]])
    truth = Truth(catalog)
    # An odd step takes lists of both kinds.
    step = max(1, len(lists) // LISTS_CHECKED) | 1
    for index, shown in enumerate(lists):
        for item in watched[len(truth.viewings) : shown.known]:
            truth.watched(item.content_id, item.watch_percentage >= 0.7, slot_of_context(context_at(item.at_ms)))
            patterns.watched(item.content_id, item.watch_percentage, item.at_ms)
        patterns.shown(shown.listed, shown.now_ms)
        ids = [item.content_id for item in shown.listed]
        if len(set(ids)) != LISTED:
            return f"list {index}: expected {LISTED} different titles, got {len(set(ids))} of {len(ids)}"
        seen = {viewing.content_id for viewing in truth.viewings}
        if not seen.isdisjoint(ids):
            return f"list {index}: {min(seen.intersection(ids))} is listed though it was watched"
        if index % step == 0:
            truth.votes = patterns.votes(catalog)
            fault = truth.fault_in_list(shown.listed, LISTED, shown.context, shown.now_ms, diversity)
            if fault is None and index < REASONS_CHECKED * step:
                fault = truth.fault_in_reasons(shown.listed, shown.context)
            if fault is not None:
                return f"list {index}: {fault}"
    return None


def measure_observe(settings: dict, options: dict) -> dict:
    """Each viewing follows a list, as it does on a television; the timed work is done between, as the timer does."""
    scale, facts = settings["scale"], read_facts(settings)
    viewing = read_viewing(Path(settings["data"]), scale["episodes"], scale["observes"])
    clock = Clock(facts["clock_ms"])
    config = BrainConfig(options["storage"], settings["catalog"], background_maintenance=False)
    taken, maintained, sequences = [], [], []
    with OmegaBrain.open(config, clock) as brain:
        for watched in viewing.stream[: scale["observes"]]:
            brain.recommend(k=LISTED)
            clock.now_ms = watched.at_ms
            event = watched.event()
            with Stopwatch() as stopwatch:
                recorded = brain.observe(event)
            taken.append(stopwatch.taken)
            sequences.append(recorded.sequence)
            with Stopwatch() as stopwatch:
                brain.maintain()
            maintained.append(stopwatch.taken)
    fault = _fault_after_observing(config, clock, viewing.stream[: scale["observes"]], sequences)
    common = {"calls": len(taken), "episodes": scale["episodes"]}
    return {
        "lines": [
            line("observe_ms_p50", wall(taken, 0.5), fault) | {"cpu": processor(taken, 0.5)} | common,
            line("observe_ms_p99", wall(taken, 0.99), fault)
            | {"cpu": processor(taken, 0.99), "highest": wall(taken, 1.0), "maintain_highest": wall(maintained, 1.0)}
            | common,
        ]
    }


def _fault_after_observing(
    config: BrainConfig, clock: Clock, watched: Sequence[Watched], sequences: Sequence[int]
) -> str | None:
    if any(second <= first for first, second in pairwise(sequences)):
        return "sequence numbers do not rise"
    with OmegaBrain.open(config, clock) as brain:
        expected = [(item.content_id, item.at_ms) for item in reversed(watched)][:NEVER_EVICTED]
        newest = brain.export(profile="household")["viewings"][: len(expected)]
        if [(item["content_id"], item["timestamp"]) for item in newest] != expected:
            return "after reopening, the newest viewings are not those observed last"
        listed = {item.content_id for item in brain.recommend(k=100)}
        if not listed.isdisjoint(item.content_id for item in watched):
            return "after reopening, a title is listed that was observed"
    return None


def measure_embedding(settings: dict, options: dict) -> dict:
    """Texts of titles, each embedded once; then the texts with a known fp32 vector, for the cosine."""
    texts = texts_of_length(settings, settings["scale"]["texts"] + WARM_UP_TEXTS, TOKENS)
    with InferenceEngine(settings["model"]) as engine:
        taken = []
        for text in texts:
            with Stopwatch() as stopwatch:
                engine.embed(text)
            taken.append(stopwatch.taken)
        cosines = _cosines_to_truth(engine)
    del taken[:WARM_UP_TEXTS]
    cosine_mean, cosine_lowest = float(cosines.mean()), float(cosines.min())
    fault = None
    if cosine_mean < MIN_COSINE:
        fault = f"mean cosine to the fp32 vectors is {cosine_mean:.4f}, below {MIN_COSINE}"
    return {
        "lines": [
            line("embed_ms_p50", wall(taken, 0.5), fault)
            | {
                "cpu": processor(taken, 0.5),
                "p99": wall(taken, 0.99),
                "texts": len(taken),
                "tokens": f"{TOKENS.start}-{TOKENS.stop - 1}",
                "cosine_mean": round(cosine_mean, 5),
                "cosine_lowest": round(cosine_lowest, 5),
                "cosines": len(cosines),
            }
        ]
    }


def texts_of_length(settings: dict, count: int, lengths: Container[int]) -> list[str]:
    """Different texts of titles of the data set whose number of tokens is in lengths, none with a known vector."""
    tokenizer = WordPieceTokenizer(Path(settings["model"]) / VOCABULARY_FILE)
    known = set(json.loads(TRUTH_TEXTS.read_text(encoding="utf-8"))["texts"])
    texts: dict[str, None] = {}
    for title in read_dataset(settings["data"]).titles:
        text = title_embedding_text(title.bare_name, title.year, title.genres)
        if text not in known and len(tokenizer.encode(text)) in lengths:
            texts[text] = None
            if len(texts) == count:
                return list(texts)
    raise ValueError(f"{settings['data']}: expected {count} titles of {lengths} tokens, found {len(texts)}")


def _cosines_to_truth(engine: InferenceEngine) -> np.ndarray:
    """float64[texts]: cosine of each known text's vector to its fp32 reference."""
    texts = json.loads(TRUTH_TEXTS.read_text(encoding="utf-8"))["texts"]
    vectors = np.load(TRUTH_TEXTS.with_suffix(".npy"))
    return np.array([float(engine.embed(text) @ vector) for text, vector in zip(texts, vectors, strict=True)])


def measure_bundle(settings: dict, options: dict) -> dict:
    """The catalogue's file, which must open and hold every title of the data set."""
    path = Path(settings["catalog"])
    catalog = Catalog.open(path)
    titles = read_dataset(settings["data"]).titles
    missing = [title.content_id for title in titles if catalog.row_of(title.content_id) < 0]
    fault = f"{len(missing)} titles of the data set are not in the catalogue, first {missing[0]}" if missing else None
    return {"lines": [line("bundle_mb", path.stat().st_size / MEGABYTE, fault) | {"titles": catalog.count}]}


def make_store(settings: dict, options: dict) -> dict:
    """Not a measurement: builds the full store."""
    return {"built": build(settings)}


TASKS = {
    "store": make_store,
    "recommend": measure_recommend,
    "observe": measure_observe,
    "embed": measure_embedding,
    "bundle": measure_bundle,
    "trace": measure_trace,
}
"""What bench.probe can be asked for, beside opening and memory."""
