"""What the hour and the viewer are worth: `python -m bench.context --dataset NAME --path DIR [--json]`.

No public data set in use holds local time or says who of a home watched, so both are tested on a stated simulation, and
the gate of the model job on the data as they are.

The simulation: households of the data set with 20 events or more are taken as members, two or three to a home: a first one
by lot, and beside it, of 40 drawn, those whose genres are least like the home's so far; so members of a home have
different real tastes. A member keeps its first 60 events in their real order and watches them one at a time, one to three
days apart, in hours of its own: the first by day on workdays, the second in the evening, the third at night and at
weekends in the afternoon; one viewing in five is at any hour. Homes begin evenly over 120 days.

The model job learns from the events before 60 and before 80 % of them; the fusion is fitted between and judged after, on
the product's ranking features. The same viewings are judged under all methods: one shared profile or one for each
member, with the context feature, with its weight held at 0, and with weights forced on it, the best of which is more
than any fit could gain. The data as they are (hours by UTC) are judged likewise, and judging.Gate says what the gate would
do ("context_pays"). Intervals resample homes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.dataset_titles import title_data
from bench.onboarding import catalog_of
from cloud.bootstrap import paired_interval
from cloud.fusion_fit import LIST_LENGTH, FitSet, discounted_gain, fit_weights
from cloud.judging import Gate
from cloud.model import ModelSettings, TitleData, train
from cloud.replay import Blocks, Query, Timeline, replay
from cloud.signals import DAY_MS, HOUR_MS, slots_of
from omega_edge.datasets import Events, read_dataset
from omega_edge.errors import OmegaError
from omega_edge.ranking import CONTEXT, genre_membership

SEED = 17
MIN_EVENTS, EVENTS_KEPT = 20, 60
START_DAYS = 120
PARTNERS_DRAWN = 40
PUNCTUAL = 0.8
MONDAY_MS = 1_704_067_200_000
HOURS = (8, 14, 19, 23)
"""Of a morning, an afternoon, an evening and a night; up to an hour is added."""
OWN_HOURS = (((8, False), (14, False)), ((19, False), (19, True)), ((23, False), (14, True)))
"""Of the first, second and third member: (hour, whether at the weekend)."""
FIT_START, TEST_START = 0.6, 0.8
FIT_QUERIES = 400
FORCED = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Context weights tried whatever the fit says, in units of the bucket's largest weight: would any have helped?"""


def simulated_homes(events: Events, shares: np.ndarray, seed: int = SEED) -> tuple[Events, np.ndarray]:
    """(events of simulated homes in time order, int32[e] the member of each): household is the home.

    shares: float32[n, g], each title's share in each genre."""
    random = np.random.default_rng(seed)
    tastes = np.zeros((int(events.household.max(initial=0)) + 1, shares.shape[1]))
    np.add.at(tastes, events.household, shares[events.title])
    tastes -= tastes.sum(axis=1, keepdims=True) * (tastes.sum(axis=0) / max(tastes.sum(), 1.0))
    members = np.flatnonzero(np.bincount(events.household) >= MIN_EVENTS)
    homes = _grouped(random.permutation(members).tolist(), tastes, random)
    columns: list[list] = [[], [], [], [], []]
    for home, people in enumerate(homes):
        start = home * START_DAYS // max(len(homes), 1)
        for person, member in enumerate(people):
            mine = np.flatnonzero(events.household == member)[:EVENTS_KEPT]
            times = _viewing_times(random, start, len(mine), OWN_HOURS[person])
            values = (np.full(len(mine), home), events.title[mine], events.watch_percentage[mine], times)
            for column, value in zip(columns, (*values, np.full(len(mine), member)), strict=True):
                column.append(value)
    household, title, watched, times, member = (np.concatenate(column) for column in columns)
    order = np.argsort(times, kind="stable")
    made = Events(
        household[order].astype(np.int32), title[order].astype(np.int32), watched[order], times[order].astype(np.int64)
    )
    return made, member[order].astype(np.int32)


def _grouped(members: list[int], tastes: np.ndarray, random: np.random.Generator) -> list[list[int]]:
    """Members in homes of two or three whose tastes, float64[h, g] less what is usual, point away from one another."""
    unit = tastes / np.maximum(np.linalg.norm(tastes, axis=1, keepdims=True), 1e-9)
    homes = []
    while members:
        home = [members.pop()]
        for _ in range(int(random.integers(1, 3))):
            if members:
                drawn = members[-PARTNERS_DRAWN:]
                likeness = unit[drawn] @ unit[home].sum(axis=0)
                chosen = drawn[int(np.argmin(likeness))]
                members.remove(chosen)
                home.append(chosen)
        homes.append(home)
    return homes


def _viewing_times(random: np.random.Generator, day: int, count: int, own: tuple) -> np.ndarray:
    """int64[count], ascending Unix ms: one viewing at a time, one to three days or, for its kind of day, more apart."""
    times = np.empty(count, np.int64)
    for index in range(count):
        day += int(random.integers(1, 4))
        if random.random() < PUNCTUAL:
            hour, weekend = own[int(random.integers(len(own)))]
            while (day % 7 >= 5) != weekend:
                day += 1
        else:
            hour = HOURS[int(random.integers(len(HOURS)))]
        times[index] = MONDAY_MS + day * DAY_MS + hour * HOUR_MS + int(random.integers(HOUR_MS))
    return times


def gains(timeline: Timeline, titles: TitleData, testing: np.ndarray) -> Iterator[tuple[float, ...]]:
    """(event, NDCG@10 with the context feature, without it, with each forced weight) of each wanted success of the last
    fifth."""
    total = len(timeline.events)
    fit_start, test_start = int(total * FIT_START), int(total * TEST_START)
    events, settings = timeline.events, ModelSettings()

    def catalog_before(end: int):
        before = Events(
            events.household[:end], events.title[:end], events.watch_percentage[:end], events.timestamp[:end]
        )
        return catalog_of(titles, train(titles, before, settings))

    wanted = np.concatenate((timeline.queries(fit_start, test_start, FIT_QUERIES), testing))
    blocks = Blocks((fit_start, test_start), catalog_before)
    sets, weights = (FitSet(), FitSet()), None
    for query in replay(timeline, wanted, blocks, settings.trend_window_hours, settings.parameters):
        if query.event < test_start:
            sets[0].add(query)
            sets[1].add(without_context(query))
            continue
        if weights is None:
            weights = [fit_weights(one) for one in sets]
            for share in FORCED:
                forced = weights[1].copy()
                forced[:, CONTEXT] = share * forced.max(axis=1)
                weights.append(forced)
            say(f"context weight by length of history: {weights[0][:, CONTEXT].round(4).tolist()}")
        if query.success:
            yield (query.event, *(gain_of(query, one) for one in weights))


def without_context(query: Query) -> Query:
    """The query as a television sees it that does not know the hour."""
    matrix = query.matrix.copy()
    matrix[CONTEXT] = 0.0
    return replace(query, matrix=matrix)


def gain_of(query: Query, weights: np.ndarray) -> float:
    """NDCG@10 of the one title watched, among all unseen ones; ties at their mean rank."""
    scores = weights[query.bucket] @ query.matrix
    target = scores[query.title]
    scores[query.seen] = -np.inf
    rank = 1.0 + np.count_nonzero(scores > target) + 0.5 * (np.count_nonzero(scores == target) - 1)
    return float(discounted_gain(rank)) if rank <= LIST_LENGTH else 0.0


def measure(path: Path, model_folder: Path, work: Path, name: str) -> Iterator[dict]:
    """Every line."""
    dataset = read_dataset(path)
    titles = title_data(dataset, model_folder, work)
    shares = genre_membership(titles.sections["genre_masks"], len(titles.genres))
    events, member = simulated_homes(dataset.events, shares)
    slots = slots_of(events.timestamp)
    shared = Timeline.of(events, slots)
    alone = Timeline.of(replace(events, household=member), slots)
    test_start = int(len(events) * TEST_START)
    testing = shared.queries(test_start, len(events))
    testing = testing[shared.success[testing]]
    say(f"{name}: {len(events)} viewings of {events.household.max() + 1} homes, {len(testing)} to foresee")
    found = {}
    for method, timeline in (("shared_profile", shared), ("member_profiles", alone)):
        say(f"replaying with {method}")
        found[method] = np.array(list(gains(timeline, titles, testing)))
    home = events.household[testing]
    without, with_context = 2, 1
    for method, values in found.items():
        yield line(name, "simulated", "ndcg_at_10", f"{method}_without_context", values[:, without], home)
        yield line(name, "simulated", "ndcg_at_10", f"{method}_with_context", values[:, with_context], home)
        gain = values[:, with_context] - values[:, without]
        yield line(name, "simulated", "ndcg_at_10_gain_of_context", method, gain, home)
        for column, share in enumerate(FORCED, start=3):
            gain = values[:, column] - values[:, without]
            yield line(name, "simulated", f"ndcg_at_10_gain_of_context_forced_to_{share}", method, gain, home)
    for method, column in (("without_context", without), ("with_context", with_context)):
        gain = found["member_profiles"][:, column] - found["shared_profile"][:, column]
        yield line(name, "simulated", "ndcg_at_10_gain_of_profiles", method, gain, home)
    say("replaying the data as they are")
    real = Timeline.of(dataset.events, slots_of(dataset.events.timestamp))
    testing = real.queries(int(len(dataset.events) * TEST_START), len(dataset.events))
    values = np.array(list(gains(real, titles, testing[real.success[testing]])))
    home = dataset.events.household[values[:, 0].astype(np.int64)]
    told = line(name, "as it is, hours by UTC", "ndcg_at_10_gain_of_context", "one_profile", values[:, 1] - values[:, 2], home)
    yield told | {"context_pays": Gate.of(values[:, 1], values[:, 2], home).ships}


def line(dataset: str, data: str, metric: str, method: str, values: np.ndarray, home: np.ndarray) -> dict:
    """One metric's line with its interval."""
    mean, low, high = (round(bound, 4) for bound in paired_interval(values, home))
    return {
        "metric": metric, "dataset": dataset, "data": data, "method": method, "value": mean, "low": low, "high": high,
        "queries": len(values), "homes": len(np.unique(home)),
    }


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.context", description=__doc__.splitlines()[0])
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
                interval = f"[{told['low']:+.4f}, {told['high']:+.4f}]"
                print(f"{told['metric']:28} {told['method']:32} {told['value']:+.4f} {interval}", flush=True)
    except (OmegaError, OSError) as error:
        print(f"bench.context: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
