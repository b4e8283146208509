"""SASRec alone: a self-attentive network over the household's history that says what comes next (see sasrec_network)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from bench.replay.baselines.evidence import check_positive
from bench.replay.baselines.sasrec_network import (
    DIMENSIONS,
    DROPOUTS,
    Batch,
    Parameters,
    first_parameters,
    next_scores,
    train_step,
)
from bench.replay.method import Past, TrendEvents
from cloud.ease import eligible_titles
from omega_edge.datasets import Events
from omega_edge.protocol import SUCCESS_THRESHOLD

WINDOW_EVENTS = 100
LENGTHS = (8, 32, WINDOW_EVENTS)
"""A stretch is filled up to the next of these; each is compiled once."""
PLACES_A_BATCH = 3_200
TARGETS_OF_PLACES = 5 / 8
"""Share of a batch's places that may have a target, which bounds the softmax: failures and second viewings are none."""
TITLES_STEP = 256
"""The network's titles are filled up to a multiple, so that a later block seldom has to compile it anew."""
MIN_EVENTS = 5
"""Titles with fewer events are left out of the network, which bounds the softmax."""
SEED = 20_260_101
EPOCHS, SPEED = 12, 3e-3
DROPOUT_RATES = (0.2, 0.4)


@dataclass(frozen=True, slots=True)
class Histories:
    """Households one after another. titles: int32[e], places in the network. learnt: bool[e], a success and its first viewing.

    starts: int64[h + 1]. title_count: how many places have a title; those behind them fill the network up.
    """

    titles: np.ndarray
    learnt: np.ndarray
    starts: np.ndarray
    title_count: int


def histories_of(events: Events, place: np.ndarray) -> Histories:
    """The events of known titles (place: int64[n], -1: unknown), those of a household together in time order."""
    known = np.flatnonzero(place[events.title] >= 0)
    order = known[np.argsort(events.household[known], kind="stable")]
    owner = events.household[order]
    titles = place[events.title[order]].astype(np.int32)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    title_count = int(place.max(initial=-1)) + 1
    first = np.zeros(len(order), bool)
    first[np.unique(owner.astype(np.int64) * max(title_count, 1) + titles, return_index=True)[1]] = True
    success = events.watch_percentage[order] >= SUCCESS_THRESHOLD
    return Histories(titles, first & success, np.append(starts, len(order)), title_count)


def batches(
    histories: Histories, rows: int, random: np.random.Generator, places_a_batch: int = PLACES_A_BATCH
) -> Iterator[Batch]:
    """One epoch: every history in stretches whose borders are drawn anew, stretches of like length together.

    rows: of the network; those that have no title count as seen.
    """
    stretches: dict[int, list[tuple[int, int, int]]] = {length: [] for length in LENGTHS}
    for start, end in zip(histories.starts[:-1].tolist(), histories.starts[1:].tolist()):
        if end - start < 2:
            continue
        border = start if end - start <= WINDOW_EVENTS + 1 else start - int(random.integers(WINDOW_EVENTS))
        while border < end - 1:
            first, last = max(border, start), min(border + WINDOW_EVENTS, end - 1)
            stretches[next(length for length in LENGTHS if length >= last - first)].append((start, first, last))
            border += WINDOW_EVENTS
    together = []
    for length, found in stretches.items():
        order = random.permutation(len(found)).tolist()
        together += [(length, group) for group in _groups(histories, length, places_a_batch, [found[k] for k in order])]
    for index in random.permutation(len(together)):
        yield _batch(histories, rows, places_a_batch, *together[index])


def _groups(
    histories: Histories, length: int, places_a_batch: int, found: list[tuple[int, int, int]]
) -> Iterator[list[tuple[int, int, int]]]:
    """Stretches cut into groups that fit into a batch: by their rows, and by the targets to be learnt."""
    group: list[tuple[int, int, int]] = []
    targets, most = 0, int(places_a_batch * TARGETS_OF_PLACES)
    for stretch in found:
        more = int(np.count_nonzero(histories.learnt[stretch[1] + 1 : stretch[2] + 1]))
        if group and (len(group) == places_a_batch // length or targets + more > most):
            yield group
            group, targets = [], 0
        group.append(stretch)
        targets += more
    if group:
        yield group


def _batch(
    histories: Histories, rows: int, places_a_batch: int, length: int, stretches: list[tuple[int, int, int]]
) -> Batch:
    size, most = places_a_batch // length, int(places_a_batch * TARGETS_OF_PLACES)
    titles = np.full((size, length), -1, np.int32)
    seen_before = np.zeros((size, rows), bool)
    seen_before[:, histories.title_count :] = True
    places, targets = [], []
    for row, (start, first, last) in enumerate(stretches):
        titles[row, : last - first] = histories.titles[first:last]
        seen_before[row, histories.titles[start:first]] = True
        learnt = first + 1 + np.flatnonzero(histories.learnt[first + 1 : last + 1])
        places.append(row * length + learnt - 1 - first)
        targets.append(histories.titles[learnt])
    weights = np.zeros(most, np.float32)
    count = sum(map(len, places))
    weights[:count] = 1.0
    filled = np.zeros((2, most), np.int32)
    filled[0, :count], filled[1, :count] = np.concatenate(places), np.concatenate(targets)
    return Batch(titles, seen_before, filled[0], filled[1], weights)


def train(
    histories: Histories, parameters: Parameters, epochs: int, speed: float, dropout: float, places_a_batch: int, seed: int
) -> Parameters:
    """The parameters after some epochs of Adam, its speed falling to zero by half a cosine."""
    random = np.random.default_rng(seed)
    rows = len(parameters["bias"])
    mean = jax.tree.map(jnp.zeros_like, parameters)
    square = jax.tree.map(jnp.zeros_like, parameters)
    step = 0
    for epoch in range(epochs):
        epoch_batches = list(batches(histories, rows, random, places_a_batch))
        for index, batch in enumerate(epoch_batches):
            done = (epoch + index / len(epoch_batches)) / epochs
            step += 1
            # Drawn here: the random numbers of jax would take a third of a step on a processor.
            noise = random.integers(0, 256, (DROPOUTS, *batch.titles.shape, DIMENSIONS), np.uint8)
            parameters, mean, square, _ = train_step(
                parameters, mean, square, float(step), batch.titles, batch.seen_before, batch.places, batch.targets,
                batch.weights, noise, speed * min(1.0, step / 50) * (1 + math.cos(math.pi * done)) / 2, dropout,
            )  # fmt: skip
    return parameters


@dataclass(slots=True)
class SelfAttentive:
    """score = the network's logit; titles with few events get the lowest of all, households without history the bias."""

    epochs: int
    dropout: float
    speed: float = SPEED
    places_a_batch: int = PLACES_A_BATCH
    name: str = field(init=False)
    _chosen: np.ndarray | None = field(init=False, default=None)
    _place: np.ndarray | None = field(init=False, default=None)
    _parameters: Parameters | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, speed=self.speed)
        if self.places_a_batch < 2 * WINDOW_EVENTS:
            raise ValueError(f"places_a_batch: expected at least {2 * WINDOW_EVENTS}, got {self.places_a_batch!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected from 0 to below 1, got {self.dropout!r}")
        self.name = f"sasrec epochs={self.epochs} dropout={self.dropout:g} speed={self.speed:g}"

    def fit(self, events: Events, title_count: int, cut_ms: int) -> None:
        """Train from first parameters that depend on the events alone."""
        self._chosen = eligible_titles(events.title, title_count, MIN_EVENTS)
        self._place = np.full(title_count, -1, np.int64)
        self._place[self._chosen] = np.arange(len(self._chosen))
        histories = histories_of(events, self._place)
        rows = max(math.ceil(len(self._chosen) / TITLES_STEP), 1) * TITLES_STEP
        popularity = np.bincount(histories.titles[histories.learnt], minlength=rows) + 1.0
        first = first_parameters(popularity, WINDOW_EVENTS, SEED)
        self._parameters = train(histories, first, self.epochs, self.speed, self.dropout, self.places_a_batch, SEED)

    def scores(self, past: Past, trend_events: TrendEvents) -> np.ndarray:
        """float32[n]."""
        assert self._place is not None and self._chosen is not None and self._parameters is not None, "fit comes first"
        titles = self._place[past.titles]
        titles = titles[titles >= 0][-WINDOW_EVENTS:]
        if len(titles) == 0:
            logits = np.asarray(self._parameters["bias"])
        else:
            length = next(length for length in LENGTHS if length >= len(titles))
            filled = np.full(length, -1, np.int32)
            filled[: len(titles)] = titles
            logits = np.asarray(next_scores(self._parameters, filled, len(titles) - 1))
        logits = logits[: len(self._chosen)]
        out = np.full(len(self._place), logits.min(initial=0.0) - 1.0, np.float32)
        out[self._chosen] = logits
        return out


def candidates() -> list[SelfAttentive]:
    """The grid: a training takes most of a minute, so only the dropout varies."""
    return [SelfAttentive(EPOCHS, dropout) for dropout in DROPOUT_RATES]
