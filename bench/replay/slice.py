"""A small data set cut out of a large one, for a replay that only has to show that it works."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from omega_edge.datasets import Dataset, Events


def busiest(dataset: Dataset, households: int, titles: int, events: int) -> Dataset:
    """A slice of a data set: its newest `events` viewings of the most watched titles by the busiest households there.

    Titles and households are numbered anew, in the order they had.
    """
    every = dataset.events
    kept_titles = _most_frequent(every.title, titles)
    kept = np.flatnonzero(np.isin(every.title, kept_titles))
    kept_households = _most_frequent(every.household[kept], households)
    kept = kept[np.isin(every.household[kept], kept_households)][-events:]
    return replace(
        dataset,
        name=f"{dataset.name}, a slice",
        titles=tuple(dataset.titles[title] for title in kept_titles.tolist()),
        households=tuple(dataset.households[household] for household in kept_households.tolist()),
        events=Events(
            household=np.searchsorted(kept_households, every.household[kept]).astype(np.int32),
            title=np.searchsorted(kept_titles, every.title[kept]).astype(np.int32),
            watch_percentage=every.watch_percentage[kept],
            timestamp=every.timestamp[kept],
        ),
    )


def _most_frequent(values: np.ndarray, count: int) -> np.ndarray:
    """int64[m], ascending: the `count` values that occur most often; of equally frequent ones the lower."""
    found, times = np.unique(values, return_counts=True)
    return np.sort(found[np.argsort(-times, kind="stable")[:count]]).astype(np.int64)
