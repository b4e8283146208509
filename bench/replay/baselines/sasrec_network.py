"""The network of SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018) and its loss.

Two blocks of causal self-attention over the titles of a history. The loss is the cross-entropy over all titles that the
household has not seen, not over sampled ones (Klenitskiy and Vasilev, "Turning Dross Into Gold Loss", RecSys 2023).
"""

from __future__ import annotations

import os

# Read when jax starts. With one thread the order of every sum, and so each bit of the weights, is the same every time.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

DIMENSIONS, BLOCKS, HEADS = 64, 2, 8
DROPOUTS = 1 + 2 * BLOCKS
"""Places where dropout applies: the input and what each half of a block adds."""
NEVER = 1_000_000
"""Place of the first viewing of a title that the household has not seen."""

Parameters = dict[str, jax.Array]


@dataclass(frozen=True, slots=True)
class Batch:
    """Stretches of histories, each filled up with -1 at its end. b: stretches, t: places in each, n: titles.

    titles: int32[b, t], what was watched. seen_before: bool[b, n], watched before the stretch. places: int32[k], flat
    indices of the places (row * t + column) whose next viewing is to be learnt; targets: int32[k], that viewing;
    weights: float32[k], 0 for those that fill up.
    """

    titles: np.ndarray
    seen_before: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def first_parameters(popularity: np.ndarray, window: int, seed: int) -> Parameters:
    """Small random numbers; biases that say how often each title was watched (popularity: float[n], above 0)."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(0.0, 0.02, shape), jnp.float32)

    share = np.log(popularity / popularity.sum())
    parameters = {
        "titles": normal(len(popularity), DIMENSIONS),
        "positions": normal(window, DIMENSIONS),
        "bias": jnp.asarray(share - share.mean(), jnp.float32),
        "last_scale": jnp.ones(DIMENSIONS),
        "last_shift": jnp.zeros(DIMENSIONS),
    }
    for block in range(BLOCKS):
        for name in ("query", "key", "value", "out", "inner", "outer"):
            parameters[f"{name}{block}"] = normal(DIMENSIONS, DIMENSIONS)
        for name in ("attention", "feed"):
            parameters[f"{name}_scale{block}"] = jnp.ones(DIMENSIONS)
            parameters[f"{name}_shift{block}"] = jnp.zeros(DIMENSIONS)
        parameters[f"inner_shift{block}"] = jnp.zeros(DIMENSIONS)
        parameters[f"outer_shift{block}"] = jnp.zeros(DIMENSIONS)
    return parameters


def _normalised(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * scale + shift


def _dropped(x: jax.Array, noise: jax.Array | None, rate: float) -> jax.Array:
    if noise is None:
        return x
    return jnp.where(noise >= round(rate * 256), x / (1.0 - rate), 0.0)


def _attended(p: Parameters, block: int, x: jax.Array) -> jax.Array:
    """Causal attention of every place to itself and those before it. x: float32[b, t, d]."""
    b, t, d = x.shape
    heads = (b, t, HEADS, d // HEADS)
    query, key, value = ((x @ p[f"{name}{block}"]).reshape(heads) for name in ("query", "key", "value"))
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / (d // HEADS) ** 0.5
    causal = jnp.tril(jnp.ones((t, t), bool))
    shares = jax.nn.softmax(jnp.where(causal, logits, -1e9), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(b, t, d) @ p[f"out{block}"]


def encoded(p: Parameters, titles: jax.Array, noise: jax.Array | None, rate: float) -> jax.Array:
    """float32[b, t, d]: what each place of the histories says of the next viewing.

    titles: int32[b, t], -1: none. noise: uint8[DROPOUTS, b, t, d], uniform, of which dropout takes the share `rate`, or
    None for no dropout.
    """
    t = titles.shape[1]
    noises = [None] * DROPOUTS if noise is None else noise
    x = p["titles"][jnp.maximum(titles, 0)] * DIMENSIONS**0.5 + p["positions"][:t]
    x = _dropped(x, noises[0], rate)
    for block in range(BLOCKS):
        x1 = _normalised(x, p[f"attention_scale{block}"], p[f"attention_shift{block}"])
        x = x + _dropped(_attended(p, block, x1), noises[1 + 2 * block], rate)
        x2 = _normalised(x, p[f"feed_scale{block}"], p[f"feed_shift{block}"])
        inner = jax.nn.relu(x2 @ p[f"inner{block}"] + p[f"inner_shift{block}"])
        x = x + _dropped(inner @ p[f"outer{block}"] + p[f"outer_shift{block}"], noises[2 + 2 * block], rate)
    return _normalised(x, p["last_scale"], p["last_shift"])


def loss(p: Parameters, titles, seen_before, places, targets, weights, noise, rate: float) -> jax.Array:
    """Mean cross-entropy of the targets among the titles not seen up to each place. See Batch and encoded."""
    b, t = titles.shape
    states = encoded(p, titles, noise, rate).reshape(b * t, DIMENSIONS)[places]
    logits = states @ p["titles"].T + p["bias"]
    # A filled-up place is after every real one, so the title 0 that stands in for it hides nothing from a real target.
    order = jnp.where(titles >= 0, jnp.arange(t)[None, :], NEVER)
    first = jnp.full(seen_before.shape, NEVER).at[jnp.arange(b)[:, None], jnp.maximum(titles, 0)].min(order)
    first = jnp.where(seen_before, -1, first)
    logits = jnp.where(first[places // t] <= (places % t)[:, None], -1e9, logits)
    of_target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    cost = jax.nn.logsumexp(logits, axis=-1) - of_target
    return jnp.sum(jnp.where(weights > 0, cost * weights, 0.0)) / jnp.maximum(weights.sum(), 1.0)


@partial(jax.jit, static_argnames=("rate",), donate_argnums=(0, 1, 2))
def train_step(p, mean, square, step, titles, seen_before, places, targets, weights, noise, speed, rate: float):
    """One step of Adam (Kingma and Ba, ICLR 2015): (parameters, running mean, running square, loss)."""
    cost, gradient = jax.value_and_grad(loss)(p, titles, seen_before, places, targets, weights, noise, rate)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
    square = jax.tree.map(lambda s, g: 0.98 * s + 0.02 * g * g, square, gradient)

    def moved(value, m, s):
        return value - speed * (m / (1 - 0.9**step)) / (jnp.sqrt(s / (1 - 0.98**step)) + 1e-8)

    return jax.tree.map(moved, p, mean, square), mean, square, cost


@jax.jit
def next_scores(p: Parameters, titles: jax.Array, last: jax.Array) -> jax.Array:
    """float32[n] for a history: int32[t], filled up with -1 behind its place `last`."""
    return encoded(p, titles[None], None, 0.0)[0, last] @ p["titles"].T + p["bias"]
