"""Trains the sequence encoder that a television runs (see omega_edge/sequence.py), from what households finished next.

After SASRec (Kang and McAuley, 2018), with the full softmax over titles instead of sampled negatives, one block, a bias
by distance instead of positions, and the newest event alone asking. Titles that the household had seen do not compete;
only a success is a target, but failures are seen. Stretches of sequences are drawn in proportion to the weight of their
age. Needs jax (the extra `model`).

Deterministic for a seed on one type of CPU: one thread, no clock. Memory: the stretches, 1.3 KB an event at most, and
a batch's scores, BATCH * TARGETS * titles * 4 bytes a few times over: 60 MB at 5,000 titles.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from cloud.sequence_sections import DIMENSIONS, FEED_DIMENSIONS, HEADS, WINDOW

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
INPUT_SCALE = 4.0
NEW_EVENTS = 64
"""Of a stretch of at most twice as many; those before are only looked back at."""
BATCH, TARGETS = 32, 24
"""Stretches a step, and targets drawn in each: those of one stretch say nearly the same."""
DROPOUT = 0.4
FIRST_STEPS, FURTHER_STEPS = 700, 180
"""Of a training from nothing, and of one that goes on from another: so that its time does not grow with the stream."""
FIRST_RATE, FURTHER_RATE = 3e-3, 2e-3
WARM_UP_SHARE = 0.05
REPORTED_STEPS = 200
START_SHARE = 0.2
"""Weight of the loss of first events, with no history, beside that of the others."""
COLUMN_STEP = 256
"""Titles are padded to a multiple of this, so that a few more titles do not compile the step anew."""
MAX_TITLES = 8_192
LEAST_TARGETS = 500
"""Below so many targets there is nothing to learn an encoder from."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Encoder:
    """What training found, in float32. columns: int64[n], the place of each title among the trained, -1 outside.
    parameters: by the names of sequence_sections, but E and B by column."""

    columns: np.ndarray
    parameters: dict[str, np.ndarray]

    def by_title(self) -> dict[str, np.ndarray]:
        """The parameters that sequence_sections takes: E [n, 64] and B [n] by title.

        A title that was not trained has no embedding, and the bias with which a seldom watched one scores on average.
        """
        trained = np.flatnonzero(self.columns >= 0)
        placed = self.columns[trained]
        embedding, bias = self.parameters["E"], self.parameters["B"]
        level = bias[placed] + embedding[placed] @ self.parameters["start"]
        by_title = {name: array for name, array in self.parameters.items() if name not in ("E", "B")}
        by_title["E"] = np.zeros((len(self.columns), DIMENSIONS), np.float32)
        by_title["E"][trained] = embedding[placed]
        by_title["B"] = np.full(len(self.columns), np.percentile(level, 10) if len(level) else 0.0, np.float32)
        by_title["B"][trained] = bias[placed]
        return by_title | {"input_scale": np.array([INPUT_SCALE], np.float32)}


def train_encoder(
    household: np.ndarray,
    title: np.ndarray,
    success: np.ndarray,
    weight: np.ndarray,
    chosen: np.ndarray,
    title_count: int,
    before: Encoder | None = None,
    seed: int = 0,
    progress: Progress = lambda what: None,
) -> Encoder | None:
    """An encoder of the chosen titles (int64[t]), or None where there are too few targets to learn from.

    household, title: integer[e] in time order; success: bool[e]; weight: float64[e], 0 to 1, of each event as a target.
    before: one trained on fewer events, to go on from. Raises ImportError without jax.
    """
    if len(chosen) > MAX_TITLES:
        counts = np.bincount(title, weight, title_count)[chosen]
        chosen = np.sort(chosen[np.argsort(-counts, kind="stable")[:MAX_TITLES]])
    # Numbered as the stream brings them, so that other numbers of the same titles and homes train the same encoder.
    columns = np.full(title_count, -1, np.int64)
    columns[chosen[np.argsort(_first_places(title, title_count)[chosen], kind="stable")]] = np.arange(len(chosen))
    met = _first_places(household, int(household.max(initial=0)) + 1)[household]
    stretches = _Stretches.of(met, columns[title], success, weight)
    if stretches.target_count < LEAST_TARGETS:
        return None
    jax = _jax()
    parameters = _parameters(-(-len(chosen) // COLUMN_STEP) * COLUMN_STEP, seed)
    if before is not None:
        _take_over(parameters, columns, before)
    steps, rate = (FIRST_STEPS, FIRST_RATE) if before is None else (FURTHER_STEPS, FURTHER_RATE)
    trained = _descend(jax, parameters, len(chosen), stretches, steps, rate, seed, progress)
    return Encoder(columns, trained)


def _first_places(values: np.ndarray, count: int) -> np.ndarray:
    """int64[count]: the place of the first of each value 0 to count - 1 among values, len(values) where there is none."""
    places = np.full(count, len(values), np.int64)
    places[values[::-1]] = np.arange(len(values))[::-1]
    return places


def _jax() -> ModuleType:
    # Read when jax is first imported: results must not depend on how many cores there are.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    return jax


def _parameters(width: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)

    def normal(*shape: int, deviation: float | None = None) -> np.ndarray:
        spread = shape[0] ** -0.5 if deviation is None else deviation
        return (spread * generator.standard_normal(shape)).astype(np.float32)

    square = (DIMENSIONS, DIMENSIONS)
    return {
        "E": normal(width, DIMENSIONS, deviation=0.05),
        "B": np.zeros(width, np.float32),
        "start": np.zeros(DIMENSIONS, np.float32),
        "S": normal(2, DIMENSIONS, deviation=0.02),
        "R": np.tile(-0.02 * np.arange(WINDOW, dtype=np.float32)[:, None], (1, HEADS)),
        "norms": np.ones((3, DIMENSIONS), np.float32),
        "Wq": normal(*square),
        "Wk": normal(*square),
        "Wv": normal(*square),
        "Wo": normal(*square),
        "W1": normal(DIMENSIONS, FEED_DIMENSIONS),
        "b1": np.zeros(FEED_DIMENSIONS, np.float32),
        "W2": normal(FEED_DIMENSIONS, DIMENSIONS),
        "b2": np.zeros(DIMENSIONS, np.float32),
    }


def _take_over(parameters: dict[str, np.ndarray], columns: np.ndarray, before: Encoder) -> None:
    """Begin where another training ended; titles new to it keep their random beginning."""
    both = np.flatnonzero((columns >= 0) & (before.columns >= 0))
    for name, array in before.parameters.items():
        if name in ("E", "B"):
            parameters[name][columns[both]] = array[before.columns[both]]
        else:
            parameters[name] = array


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Stretches of households' sequences, s of them, events of chosen titles only, padded at the end.

    titles, success: integer[s, 128]; length: int32[s]. targets: int32[s, 64], the titles to predict, wanted: bool[s, 64]
    which of them count; offset: int32[s], the place of the event before the first target. seen: int32[s, m], titles
    watched before the stretch, -1 for none. weight: float64[s], how likely to be drawn. first_titles: int32[h] and
    first_weight: float64[h], the first successes of households.
    """

    titles: np.ndarray
    success: np.ndarray
    length: np.ndarray
    targets: np.ndarray
    wanted: np.ndarray
    offset: np.ndarray
    seen: np.ndarray
    weight: np.ndarray
    first_titles: np.ndarray
    first_weight: np.ndarray

    @property
    def target_count(self) -> int:
        """How many targets there are."""
        return int(np.count_nonzero(self.wanted))

    @staticmethod
    def of(household: np.ndarray, column: np.ndarray, success: np.ndarray, weight: np.ndarray) -> _Stretches:
        """Of events in time order. column: int64[e], -1 outside the chosen titles."""
        known = np.flatnonzero(column >= 0)
        order = known[np.argsort(household[known], kind="stable")]
        owner, titles, success, weight = household[order], column[order], success[order], weight[order]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        ends = np.append(starts[1:], len(order))[: len(starts)]  # none of nothing
        spans = [
            (start, max(start, first - NEW_EVENTS), first, min(first + NEW_EVENTS, end))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for first in range(start + 1, end, NEW_EVENTS)
        ]
        new = _first_of_each(owner, titles) & success
        places = 2 * NEW_EVENTS
        shown = {"titles": np.zeros((len(spans), places), np.int32), "success": np.zeros((len(spans), places), np.int8)}
        targets, wanted = np.zeros((len(spans), NEW_EVENTS), np.int32), np.zeros((len(spans), NEW_EVENTS), bool)
        length, offset, likely = np.zeros(len(spans), np.int32), np.zeros(len(spans), np.int32), np.zeros(len(spans))
        seen = [np.unique(titles[start:begin]) for start, begin, _, _ in spans]
        # A power of two, so that another stream seldom compiles the step anew.
        earlier = np.full((len(spans), 1 << max(map(len, seen), default=0).bit_length()), -1, np.int32)
        for line, (_, begin, first, end) in enumerate(spans):
            length[line], offset[line] = end - 1 - begin, first - 1 - begin
            shown["titles"][line, : length[line]] = titles[begin : end - 1]
            shown["success"][line, : length[line]] = success[begin : end - 1]
            targets[line, : end - first] = titles[first:end]
            wanted[line, : end - first] = new[first:end]
            likely[line] = weight[first:end][new[first:end]].sum() / NEW_EVENTS
            earlier[line, : len(seen[line])] = seen[line]
        kept = np.flatnonzero(likely > 0)
        begins = starts[success[starts]] if len(starts) else starts
        return _Stretches(
            shown["titles"][kept], shown["success"][kept], length[kept], targets[kept], wanted[kept], offset[kept],
            earlier[kept], likely[kept], titles[begins].astype(np.int32), weight[begins],
        )


def _first_of_each(owner: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """bool[e]: the household's first event of the title."""
    first = np.zeros(len(owner), bool)
    pair = owner.astype(np.int64) * (int(titles.max(initial=0)) + 1) + titles
    first[np.unique(pair, return_index=True)[1]] = True
    return first


def _descend(
    jax: ModuleType, parameters: dict[str, np.ndarray], title_count: int, stretches: _Stretches, steps: int, rate: float,
    seed: int, progress: Progress,
) -> dict[str, np.ndarray]:
    """The parameters after Adam (Kingma and Ba, 2015) with warm-up and a cosine fall of the rate."""
    generator = np.random.default_rng(seed)
    step = _step(jax)
    held = jax.tree.map(jax.numpy.asarray, parameters)
    state = (held, jax.tree.map(jax.numpy.zeros_like, held), jax.tree.map(jax.numpy.zeros_like, held))
    likely = stretches.weight / stretches.weight.sum()
    key = jax.random.PRNGKey(seed)
    for index in range(steps):
        drawn = generator.choice(len(likely), BATCH, p=likely)
        batch = {
            name: getattr(stretches, name)[drawn]
            for name in ("titles", "success", "length", "targets", "wanted", "offset", "seen")
        }
        batch["first_titles"] = _drawn_firsts(stretches, generator)
        warm = min(1.0, (index + 1) / max(1.0, WARM_UP_SHARE * steps))
        fall = 0.05 + 0.95 * 0.5 * (1.0 + np.cos(np.pi * index / steps))
        key, dropped = jax.random.split(key)
        numbers = np.float32(rate * warm * fall), np.float32(index + 1), np.int32(title_count)
        state, loss = step(state, batch, dropped, *numbers)
        if (index + 1) % REPORTED_STEPS == 0:
            progress(f"sequence encoder: step {index + 1} of {steps}, loss {float(loss):.3f}")
    return {name: np.asarray(array) for name, array in state[0].items()}


def _drawn_firsts(stretches: _Stretches, generator: np.random.Generator) -> np.ndarray:
    """int32[BATCH]: first successes of households, drawn by weight; -1 where there is none."""
    total = stretches.first_weight.sum()
    if not total > 0:
        return np.full(BATCH, -1, np.int32)
    return generator.choice(stretches.first_titles, BATCH, p=stretches.first_weight / total)


@functools.lru_cache(maxsize=1)
def _step(jax: ModuleType) -> Callable:
    """One step of training, as a compiled function of (state, batch, key, rate, step number, titles). It is compiled once
    for each shape."""
    numpy = jax.numpy

    def step(state, batch, key, rate, number, title_count):
        held, mean, square = state
        loss, gradient = jax.value_and_grad(lambda given: _loss(jax, given, batch, key, title_count))(held)
        mean = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, mean, gradient)
        square = jax.tree.map(lambda old, new: 0.98 * old + 0.02 * new * new, square, gradient)

        def moved(value, first, second):
            return value - rate * (first / (1 - 0.9**number)) / (numpy.sqrt(second / (1 - 0.98**number)) + 1e-9)

        return (jax.tree.map(moved, held, mean, square), mean, square), loss

    return jax.jit(step, donate_argnums=(0,))


def _loss(jax: ModuleType, held: dict, batch: dict, key, title_count):
    """Mean cross entropy of the drawn targets, titles already seen left out of the softmax."""
    numpy = jax.numpy
    drawing, dropping = jax.random.split(key)
    lines = numpy.arange(BATCH)[:, None]
    chance = numpy.where(batch["wanted"], jax.random.uniform(drawing, batch["wanted"].shape), -1.0)
    drawn, at = jax.lax.top_k(chance, TARGETS)
    target = numpy.take_along_axis(batch["targets"], at, 1)
    place = at + batch["offset"][:, None]
    width = held["E"].shape[0]
    positions = numpy.arange(2 * NEW_EVENTS)[None]
    inside = positions < batch["length"][:, None]
    never = 4 * NEW_EVENTS
    # The place at which each title is first seen; the last column takes what is padding.
    first_seen = numpy.full((BATCH, width + 1), never)
    first_seen = first_seen.at[lines, numpy.where(inside, batch["titles"], width)].min(numpy.where(inside, positions, never))
    first_seen = first_seen.at[lines, numpy.where(batch["seen"] < 0, width, batch["seen"])].min(-1)[:, :width]
    state = _asked(jax, held, batch["titles"], batch["success"].astype(numpy.int32), inside, place, dropping)
    barred = numpy.where(numpy.arange(width) < title_count, 0.0, -1e9)
    scores = state @ held["E"].T + held["B"] + barred
    told = numpy.take_along_axis(scores, target[..., None], 2)[..., 0]
    scores = numpy.where(first_seen[:, None, :] <= place[..., None], -1e9, scores)
    counted = drawn >= 0
    loss = numpy.where(counted, jax.nn.logsumexp(scores, -1) - told, 0.0).sum() / numpy.maximum(counted.sum(), 1)
    begun = held["E"] @ held["start"] + held["B"] + barred
    firsts = batch["first_titles"]
    begins = numpy.where(firsts >= 0, jax.nn.logsumexp(begun) - begun[numpy.maximum(firsts, 0)], 0.0).mean()
    return loss + START_SHARE * begins


def _asked(jax: ModuleType, held: dict, titles, success, inside, place, key):
    """float32[b, p, 64]: the household's direction at each asked place, with dropout. See omega_edge/sequence.py."""
    numpy = jax.numpy
    keys = jax.random.split(key, 3)

    def thinned(values, key):
        return values * jax.random.bernoulli(key, 1 - DROPOUT, values.shape) / (1 - DROPOUT)

    def normed(values, gain):
        return values * jax.lax.rsqrt(numpy.mean(values * values, -1, keepdims=True) + 1e-6) * gain

    each = thinned((held["E"][titles] + held["S"][success]) * INPUT_SCALE, keys[0])
    calm = normed(each, held["norms"][0])
    asking = numpy.take_along_axis(calm, place[..., None], 1)
    shape = (*titles.shape, DIMENSIONS // HEADS, HEADS)
    wanted = (asking @ held["Wq"]).reshape(*place.shape, DIMENSIONS // HEADS, HEADS)
    offered, carried = (calm @ held["Wk"]).reshape(shape), (calm @ held["Wv"]).reshape(shape)
    distance = place[..., None] - numpy.arange(titles.shape[1])[None, None]
    near = (distance >= 0) & (distance < WINDOW) & inside[:, None]
    bias = numpy.moveaxis(held["R"][numpy.clip(distance, 0, WINDOW - 1)], 3, 1)
    logits = numpy.einsum("bpeh,bseh->bhps", wanted, offered) * (DIMENSIONS // HEADS) ** -0.5 + bias
    attention = jax.nn.softmax(numpy.where(near[:, None], logits, -1e9), -1)
    heard = numpy.einsum("bhps,bseh->bpeh", attention, carried).reshape(*place.shape, DIMENSIONS)
    state = numpy.take_along_axis(each, place[..., None], 1) + thinned(heard @ held["Wo"], keys[1])
    fed = jax.nn.relu(normed(state, held["norms"][1]) @ held["W1"] + held["b1"]) @ held["W2"] + held["b2"]
    return normed(state + thinned(fed, keys[2]), held["norms"][2])
