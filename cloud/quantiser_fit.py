"""Trains the codebooks of omega_edge.quantiser on title vectors. Same vectors, same codebook: numpy, seeded, one thread.

A fifth of the titles is held out of the training, chosen by their content ids, so that what a shipped codebook does to
vectors that it has not seen can be measured by whoever has the bundle.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from omega_edge.protocol import EMBEDDING_DIMENSIONS
from omega_edge.quantiser import CENTROIDS, PRODUCT_BYTES, SIGNS, SUBSPACE, Quantiser

MINIMUM_VECTORS = 4 * CENTROIDS
"""Fewer make no codebook: a centroid would be the mean of one or two titles."""
HELD_OUT_OF = 5
_ROUNDS = 12
_SEED = 48
_LEAST_SCALE = 1e-6


def held_out(content_ids: Sequence[str]) -> np.ndarray:
    """bool[n]: the titles that codebooks are not trained on, one in five, whatever else the catalogue holds."""
    return np.array([zlib.crc32(content_id.encode()) % HELD_OUT_OF == 0 for content_id in content_ids], bool)


def train_quantiser(vectors: np.ndarray, progress: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The sections of a codebook for unit vectors float32[n, 384]; none for fewer than 1,024 vectors."""
    if len(vectors) < MINIMUM_VECTORS:
        progress(f"codebooks: {len(vectors)} vectors to train on, {MINIMUM_VECTORS} needed; left out")
        return {}
    progress(f"codebooks: principal directions of {len(vectors)} vectors")
    mean = vectors.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(np.cov((vectors - mean).T))
    order = _balanced(values[::-1])
    directions = _signed(directions[:, ::-1][:, order])
    rotation, rotation_scale = _as_int8(directions, axis=0)
    mean = mean.astype(np.float32)
    coordinates = ((vectors - mean) @ rotation.astype(np.float32)) * rotation_scale[0]
    centroids = np.empty((PRODUCT_BYTES, CENTROIDS, SUBSPACE), np.float32)
    random = np.random.default_rng(_SEED)
    for place in range(PRODUCT_BYTES):
        if place % 12 == 0:
            progress(f"codebooks: subspace {place} of {PRODUCT_BYTES}")
        centroids[place] = _clustered(coordinates[:, SUBSPACE * place : SUBSPACE * (place + 1)], random)
    centroid_values, centroid_scale = _as_int8(centroids, axis=(1, 2))
    sign_directions, sign_steps = _shared_out(coordinates)
    sections = {
        "quantiser_mean": mean,
        "quantiser_rotation": rotation,
        "quantiser_rotation_scale": rotation_scale[0],
        "quantiser_centroids": centroid_values,
        "quantiser_centroid_scale": centroid_scale[:, 0, 0],
        "quantiser_sign_directions": sign_directions,
        "quantiser_sign_steps": sign_steps,
    }
    sections = {name: np.ascontiguousarray(array) for name, array in sections.items()}
    Quantiser(sections)  # raises where the arrays make no codebook
    return sections


def _balanced(variances: np.ndarray) -> np.ndarray:
    """Which principal direction, largest variance first, lies at which place: each to the subspace with room whose
    product of variances is the least so far."""
    groups: list[list[int]] = [[] for _ in range(PRODUCT_BYTES)]
    filled = np.zeros(PRODUCT_BYTES)
    # Scaled so that every factor is above 1: an empty subspace is then the least.
    logarithms = np.log(np.maximum(variances, 1e-12) / 1e-13)
    for direction in range(EMBEDDING_DIMENSIONS):
        room = [place for place in range(PRODUCT_BYTES) if len(groups[place]) < SUBSPACE]
        place = min(room, key=lambda group: (filled[group], group))
        groups[place].append(direction)
        filled[place] += logarithms[direction]
    return np.array([direction for group in groups for direction in group])


def _signed(directions: np.ndarray) -> np.ndarray:
    """Each column with its largest entry positive: an eigenvector's sign is the library's whim."""
    largest = np.abs(directions).argmax(axis=0)
    return directions * np.sign(directions[largest, np.arange(directions.shape[1])])


def _as_int8(values: np.ndarray, axis: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and float32 scales over these axes, which are kept with length 1."""
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / 127, _LEAST_SCALE).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale


def _clustered(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """256 centroids float32[256, 8] of points float32[n, 8] by Lloyd's algorithm, from points chosen at random.

    A centroid that loses all its points goes to the point that is served worst.
    """
    centroids = points[random.choice(len(points), CENTROIDS, replace=False)].copy()
    for _ in range(_ROUNDS):
        distances = (centroids * centroids).sum(axis=1) - 2 * points @ centroids.T
        nearest = distances.argmin(axis=1)
        counts = np.bincount(nearest, minlength=CENTROIDS)
        for dimension in range(SUBSPACE):
            sums = np.bincount(nearest, points[:, dimension], CENTROIDS)
            centroids[:, dimension] = np.where(counts, sums / np.maximum(counts, 1), centroids[:, dimension])
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            errors = distances[np.arange(len(points)), nearest] + (points * points).sum(axis=1)
            centroids[empty] = points[np.argsort(-errors, kind="stable")[: len(empty)]]
    return centroids


def _shared_out(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions uint16[320] and steps float32[320] of the signs: each goes where it takes away the most error.

    A sign of step s along a direction takes n * s^2 off the squared error if s is the mean magnitude of what is left.
    """
    missing = coordinates.astype(np.float32).copy()
    gain = np.abs(missing).mean(axis=0)
    directions, steps = np.empty(SIGNS, np.uint16), np.empty(SIGNS, np.float32)
    for place in range(SIGNS):
        direction = int(gain.argmax())
        step = np.float32(max(gain[direction], _LEAST_SCALE))
        directions[place], steps[place] = direction, step
        missing[:, direction] -= np.where(missing[:, direction] >= 0, step, -step)
        gain[direction] = np.abs(missing[:, direction]).mean()
    return directions, steps
