"""A codebook for tests: trained in a second on made-up vectors that have, like real ones, few directions that matter."""

from __future__ import annotations

from functools import cache

import numpy as np

from cloud.quantiser_fit import train_quantiser
from omega_edge.quantiser import Quantiser

_RANK = 24
_BASIS = np.linalg.qr(np.random.default_rng(5).normal(size=(384, _RANK)))[0].astype(np.float32)
_CENTRES = np.random.default_rng(6).normal(size=(12, _RANK))


def vectors(count: int, seed: int) -> np.ndarray:
    """Unit vectors float32[count, 384] around twelve centres; within a centre the cosine is about .8."""
    random = np.random.default_rng(seed)
    points = _CENTRES[np.arange(count) % len(_CENTRES)] + 0.5 * random.normal(size=(count, _RANK))
    made = (points @ _BASIS.T).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@cache
def sections(seed: int = 1) -> dict[str, np.ndarray]:
    """A codebook's arrays."""
    return train_quantiser(vectors(1200, seed), lambda _what: None)


@cache
def quantiser(seed: int = 1) -> Quantiser:
    """The codebook."""
    return Quantiser(sections(seed))
