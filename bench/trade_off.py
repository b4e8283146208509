"""What variety costs: `python -m bench.trade_off --dataset NAME --path DIR [--json]`.

The model job learns from the first 80 % of the events; the product's ranker makes lists of ten for up to 1,000 first
viewings of the rest, evenly drawn, under each setting of its two knobs: diversity (maximal marginal relevance) and novelty
(a discount for popular titles). A line each: Recall@10 and NDCG@10 with intervals, coverage (share of the catalogue that
is on any list), novelty (mean self-information of the listed titles by their share of past viewings, bits) and
intra-list diversity (1 - mean cosine of two titles of a list).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.dataset_titles import title_data
from bench.onboarding import catalog_of
from cloud.bootstrap import paired_interval
from cloud.fusion_fit import LIST_LENGTH, discounted_gain
from cloud.model import ModelSettings, train
from cloud.replay import Timeline
from cloud.signals import DAY_MS, slots_of, trend
from omega_edge.catalog import Catalog
from omega_edge.datasets import Events, read_dataset
from omega_edge.errors import OmegaError
from omega_edge.ranker import Ranker
from omega_edge.ranking import History, Moment

SETTINGS = tuple((step / 10, 0.0) for step in range(0, 10, 2)) + ((0.1, 0.0),) + tuple(
    (diversity, novelty) for diversity in (0.0, 0.1) for novelty in (0.05, 0.1, 0.2, 0.3, 0.5)
)
"""(diversity, novelty)."""
TEST_START = 0.8
QUERIES = 1_000


@dataclass(slots=True)
class Outcome:
    """What came of one setting, a value a query."""

    hits: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    information: list[float] = field(default_factory=list)
    variety: list[float] = field(default_factory=list)
    listed: set[int] = field(default_factory=set)

    def add(self, rows: np.ndarray, watched: int, catalog: Catalog, bits: np.ndarray) -> None:
        """Count one list. rows: uint32[k]; bits: float64[n], self-information of each title."""
        place = np.flatnonzero(rows == watched)
        self.hits.append(float(len(place) > 0))
        self.gains.append(float(discounted_gain(1.0 + place[0])) if len(place) else 0.0)
        self.information.append(float(bits[rows].mean()))
        vectors = catalog.codes[rows].astype(np.float32) * catalog.scale[rows, None]
        cosines = vectors @ vectors.T
        pairs = len(rows) * (len(rows) - 1)
        self.variety.append(1.0 - float((cosines.sum() - np.trace(cosines)) / max(pairs, 1)))
        self.listed.update(rows.tolist())


def sweep(
    timeline: Timeline, catalog: Catalog, start: int, settings: tuple[tuple[float, float], ...] = SETTINGS
) -> Iterator[tuple[tuple[float, float], Outcome, np.ndarray]]:
    """((diversity, novelty), outcome, household of each query) over first viewings from event `start` on.

    catalog: trained on the events before `start`."""
    events, ranker = timeline.events, Ranker(catalog)
    counts = np.bincount(events.title[:start], minlength=catalog.count)
    bits = -np.log2((counts + 1.0) / (counts.sum() + catalog.count))
    queries = start + np.flatnonzero((timeline.first & timeline.success)[start:])
    queries = queries[np.arange(min(QUERIES, len(queries))) * len(queries) // max(min(QUERIES, len(queries)), 1)]
    outcomes = {setting: Outcome() for setting in settings}
    finished, finished_at = events.title[timeline.success], events.timestamp[timeline.success]
    for query in queries.tolist():
        history, seen = _past(timeline, catalog, query)
        midnight = int(events.timestamp[query]) // DAY_MS * DAY_MS
        trends = tuple(
            trend(finished, finished_at, midnight, one.window_hours, catalog.count) for one in catalog.trends
        )
        moment = Moment(slot=int(timeline.slots[query]), trends=trends)
        allowed = np.ones(catalog.count, bool)
        allowed[seen] = False
        bitmap = np.packbits(allowed, bitorder="little")
        for (diversity, novelty), outcome in outcomes.items():
            ranked = ranker.rank(history, moment, bitmap, LIST_LENGTH, diversity, novelty)
            outcome.add(ranked.rows, int(events.title[query]), catalog, bits)
    for setting, outcome in outcomes.items():
        yield setting, outcome, events.household[queries]


def _past(timeline: Timeline, catalog: Catalog, query: int) -> tuple[History, np.ndarray]:
    """The history of a viewing's household before it, and the rows that it had seen."""
    events = timeline.events
    mine = np.flatnonzero(events.household[:query] == events.household[query])
    history = History.empty()
    for event in mine.tolist():
        row = int(events.title[event])
        slot = int(timeline.slots[event])
        history = history.push(row, catalog.codes[row], catalog.scale[row], bool(timeline.success[event]), slot)
    return history, events.title[mine]


def measure(path: Path, model_folder: Path, work: Path, name: str) -> Iterator[dict]:
    """A line for each setting."""
    dataset = read_dataset(path)
    titles = title_data(dataset, model_folder, work)
    timeline = Timeline.of(dataset.events, slots_of(dataset.events.timestamp))
    start = int(len(dataset.events) * TEST_START)
    events = dataset.events
    before = Events(
        events.household[:start], events.title[:start], events.watch_percentage[:start], events.timestamp[:start]
    )
    catalog = catalog_of(titles, train(titles, before, ModelSettings()))
    for (diversity, novelty), outcome, household in sweep(timeline, catalog, start):
        told: dict = {"dataset": name, "diversity": diversity, "novelty_knob": novelty, "queries": len(household)}
        for metric, values in (("recall_at_10", outcome.hits), ("ndcg_at_10", outcome.gains)):
            mean, low, high = paired_interval(np.array(values), household)
            told[metric] = round(mean, 4)
            told[f"{metric}_interval"] = [round(low, 4), round(high, 4)]
        told["coverage"] = round(len(outcome.listed) / catalog.count, 4)
        told["novelty"] = round(float(np.mean(outcome.information)), 3)
        told["intra_list_diversity"] = round(float(np.mean(outcome.variety)), 4)
        yield told


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.trade_off", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="its name, for the lines")
    parser.add_argument("--path", required=True, type=Path, help="its folder")
    parser.add_argument("--model", type=Path, default=Path("build/model"), help="folder of the text model")
    parser.add_argument("--work", type=Path, default=Path("build"), help="where title vectors are kept")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    options = parser.parse_args(arguments)
    try:
        for told in measure(options.path, options.model, options.work, options.dataset):
            if options.json:
                print(json.dumps(told), flush=True)
            else:
                figures = "  ".join(f"{key} {told[key]}" for key in ("ndcg_at_10", "coverage", "novelty", "intra_list_diversity"))
                print(f"diversity {told['diversity']:.2f} novelty {told['novelty_knob']:.2f}  {figures}", flush=True)
    except (OmegaError, OSError) as error:
        print(f"bench.trade_off: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
