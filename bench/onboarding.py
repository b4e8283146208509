"""What the first picks of a new home are worth: `python -m bench.onboarding --dataset NAME --path DIR [--json]`.

At three moments (40, 60 and 80 % of the events) the model job learns from what came before. Homes that begin in the next
fifth and finish 20 titles or more are shown 24 titles and pick the first five of them that they finished later; the
product's ranking features and fusion rank the catalogue for a home that has just picked, with the trends of the midnight
before it began. Judged on the first 20 of the rest of what it finished, Recall@10 and NDCG@10. Titles picked from any of
the compared lists are neither to be foreseen nor in the way, so all methods answer the same questions. Intervals are
household bootstraps of the difference to picks from the most popular titles.

Lines: recall_at_10 and ndcg_at_10 by method (no_picks, popular, informative, shipped), with low and high of the mean, and
recall_at_10_minus_popular. "informative" is the greedy list whatever the job's rule says; "shipped" is what it ships.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.dataset_titles import title_data
from cloud import onboarding
from cloud.bootstrap import paired_interval
from cloud.fusion_fit import LIST_LENGTH, discounted_gain
from cloud.model import Model, ModelSettings, TitleData, train
from cloud.replay import Timeline
from cloud.signals import DAY_MS, slots_of, trend
from omega_edge.catalog import Catalog
from omega_edge.datasets import Events, read_dataset
from omega_edge.errors import OmegaError
from omega_edge.ranking import History, Moment, features, raw_scores

MOMENTS = (0.4, 0.6, 0.8)
NEXT_SHARE = 0.2
MIN_LATER = 20
JUDGED = 20
METHODS = ("no_picks", "popular", "informative", "shipped")


def catalog_of(titles: TitleData, model: Model) -> Catalog:
    """The catalogue that a bundle of this model would hold."""
    meta = model.meta | {
        "name": "new homes", "version": 0, "built_at": 0, "lineage": titles.lineage, "genres": list(titles.genres)
    }
    return Catalog.from_sections(titles.sections | model.sections, meta)


def shown_lists(timeline: Timeline, end: int, titles: int, model: Model) -> dict[str, np.ndarray]:
    """By method, the titles shown: learned from the successes before an event."""
    success = timeline.success[:end]
    household, title = timeline.events.household[:end][success], timeline.events.title[:end][success]
    popular = np.argsort(-np.bincount(title, minlength=titles), kind="stable")[: onboarding.SHOWN]
    informative = onboarding.informative_titles(household, title, titles)[: onboarding.SHOWN]
    shipped = model.sections["onboarding"][: onboarding.SHOWN].astype(np.int64)
    return {"popular": popular, "informative": informative, "shipped": shipped}


def new_homes(timeline: Timeline, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first event, titles finished in order) of the homes that begin in [start, end) and finish MIN_LATER or more."""
    events = timeline.events
    for first in (start + np.flatnonzero(timeline.before[start:end] == 0)).tolist():
        finished = events.title[timeline.success & (events.household == events.household[first])]
        titles = finished[np.sort(np.unique(finished, return_index=True)[1])]
        if len(titles) >= MIN_LATER:
            yield first, titles


def judge(timeline: Timeline, first: int, finished: np.ndarray, lists: dict[str, np.ndarray], catalog: Catalog) -> dict:
    """By method (Recall@10, NDCG@10, picks) of one home; empty if its picks leave nothing to foresee."""
    finished_at_all = np.zeros(catalog.count, bool)
    finished_at_all[finished] = True
    picks = {name: onboarding.first_picks(shown, finished_at_all) for name, shown in lists.items()}
    picks["no_picks"] = np.empty(0, np.int64)
    picked = np.unique(np.concatenate(list(picks.values())))
    rest = finished[~np.isin(finished, picked)][:JUDGED]
    if not len(rest):
        return {}
    events, midnight = timeline.events, int(timeline.events.timestamp[first]) // DAY_MS * DAY_MS
    past = timeline.success[:first]
    windows = [one.window_hours for one in catalog.trends]
    moment = Moment(
        slot=int(timeline.slots[first]),
        trends=tuple(
            trend(events.title[:first][past], events.timestamp[:first][past], midnight, hours, catalog.count)
            for hours in windows
        ),
    )
    told = {}
    for name, chosen in picks.items():
        history = History.empty()
        for row in chosen[::-1].tolist():
            history = history.push(row, catalog.codes[row], catalog.scale[row], True, moment.slot)
        matrix = features(catalog, history, moment, catalog.fusion.parameters)
        scores = raw_scores(matrix, catalog.fusion, history.count, moment)
        scores[picked] = -np.inf
        ahead = (scores[None, :] > scores[rest, None]).sum(axis=1)
        beside = (scores[None, :] == scores[rest, None]).sum(axis=1) - 1
        rank = 1.0 + ahead + 0.5 * beside
        hit = rank <= LIST_LENGTH
        told[name] = (hit.mean(), np.where(hit, discounted_gain(rank), 0.0).mean(), len(chosen))
    return told


def measure(path: Path, model_folder: Path, work: Path, name: str) -> list[dict]:
    """Every line."""
    dataset = read_dataset(path)
    titles = title_data(dataset, model_folder, work)
    timeline = Timeline.of(dataset.events, slots_of(dataset.events.timestamp))
    found: dict[str, list] = {method: [] for method in METHODS}
    rules, total = [], len(dataset.events)
    for moment in MOMENTS:
        end = int(total * moment)
        print(f"learning from the first {end} events", file=sys.stderr, flush=True)
        arrays = dataset.events
        before = Events(
            arrays.household[:end], arrays.title[:end], arrays.watch_percentage[:end], arrays.timestamp[:end]
        )
        model = train(titles, before, ModelSettings())
        rules.append(model.report["onboarding"])
        catalog = catalog_of(titles, model)
        lists = shown_lists(timeline, end, titles.count, model)
        for first, finished in new_homes(timeline, end, min(int(total * (moment + NEXT_SHARE) + 0.5), total)):
            for method, values in judge(timeline, first, finished, lists, catalog).items():
                found[method].append(values)
    return lines(name, {method: np.array(values) for method, values in found.items()}, rules)


def lines(name: str, found: dict[str, np.ndarray], rules: list[dict]) -> list[dict]:
    """Metrics of what was found by method: float64[h, 3], a home in each row."""
    homes = len(found["popular"])
    told: list[dict] = [{"metric": "rule_at_each_moment", "dataset": name, "value": rules}]
    for column, metric in enumerate(("recall_at_10", "ndcg_at_10")):
        for method in METHODS:
            for suffix, values in (
                ("", found[method][:, column]),
                ("_minus_popular", found[method][:, column] - found["popular"][:, column]),
            ):
                mean, low, high = (round(bound, 4) for bound in paired_interval(values, np.arange(homes)))
                told.append(
                    {"metric": metric + suffix, "dataset": name, "method": method, "value": mean, "low": low,
                     "high": high, "homes": homes, "picks": round(float(found[method][:, 2].mean()), 2)}
                )
    return told


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.onboarding", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="its name, for the lines")
    parser.add_argument("--path", required=True, type=Path, help="its folder")
    parser.add_argument("--model", type=Path, default=Path("build/model"), help="folder of the text model")
    parser.add_argument("--work", type=Path, default=Path("build"), help="where title vectors are kept")
    parser.add_argument("--json", action="store_true", help="JSON lines")
    options = parser.parse_args(arguments)
    try:
        told = measure(options.path, options.model, options.work, options.dataset)
    except (OmegaError, OSError) as error:
        print(f"bench.onboarding: {error}", file=sys.stderr)
        return 1
    for line in told:
        if options.json:
            print(json.dumps(line))
        elif "method" in line:
            print(f"{line['metric']:28} {line['method']:12} {line['value']:8.4f} [{line['low']:+.4f}, {line['high']:+.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
