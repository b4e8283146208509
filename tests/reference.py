"""The kernels' contract in plain numpy: the readable specification that every instruction set must equal bit for bit.

Every float operation is one numpy float32 operation, rounded by itself, in the order the contract states. Nothing here
uses the C core.
"""

from __future__ import annotations

import numpy as np

ZERO = np.float32(0)


def allowed_rows(filter: np.ndarray | None, n: int) -> np.ndarray:
    """Rows that the bitmap allows: bit r & 7 of byte r >> 3."""
    return np.array([r for r in range(n) if filter is None or filter[r >> 3] >> (r & 7) & 1], np.int64)


def best_rows(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the rows by score descending, then row ascending, NaN and -infinity left out, and their scores."""
    rows = rows[scores[rows] > -np.inf]
    best = rows[np.lexsort((rows, -scores[rows].astype(np.float64)))][:k]
    return best, scores[best]


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales; numpy's rint rounds half to even."""
    exact = vectors.astype(np.float64)
    codes = np.rint(exact * (127.0 / np.abs(exact).max(axis=1, keepdims=True))).astype(np.int8)
    squares = (codes.astype(np.int64) ** 2).sum(axis=1)
    return codes, (1.0 / np.sqrt(squares.astype(np.float64))).astype(np.float32)


def cosines(codes: np.ndarray, scale: np.ndarray, query: np.ndarray, query_scale: float) -> np.ndarray:
    """((float)dot * scale[row]) * query_scale + 0, float32[n]."""
    dots = codes.astype(np.int64) @ query.astype(np.int64)
    return dots.astype(np.float32) * scale * np.float32(query_scale) + ZERO


def search(
    codes: np.ndarray, scale: np.ndarray, query: np.ndarray, query_scale: float, filter: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    return best_rows(cosines(codes, scale, query, query_scale), allowed_rows(filter, len(codes)), k)


def row_scatter_add(offsets, columns, values, row_scale, rows, weights, out: np.ndarray) -> np.ndarray:
    sums = out.copy()
    for row, weight in zip(rows, weights, strict=True):
        factor = np.float32(weight) * row_scale[row]
        for entry in range(offsets[row], offsets[row + 1]):
            sums[columns[entry]] += factor * np.float32(values[entry])
    return sums


def row_lookup(offsets, columns, values, row_scale, rows, targets) -> np.ndarray:
    out = np.zeros((len(rows), len(targets)), np.float32)
    for e, row in enumerate(rows):
        entries = range(offsets[row], offsets[row + 1])
        at = {int(columns[entry]): np.float32(values[entry]) * row_scale[row] for entry in entries}
        out[e] = [at.get(int(target), ZERO) for target in targets]
    return out


def genre_means(masks: np.ndarray, per_genre: np.ndarray) -> np.ndarray:
    means = np.zeros(len(masks), np.float32)
    for r, mask in enumerate(masks.tolist()):
        total = ZERO
        for first in range(0, 64, 8):
            byte_sum = ZERO
            for genre in range(first, first + 8):
                if mask >> genre & 1:
                    byte_sum = byte_sum + per_genre[genre]
            total = total + byte_sum
        if mask:
            means[r] = total / np.float32(mask.bit_count())
    return means


def left_out_sums(codes, scale, weights, growth: float, left: int) -> np.ndarray:
    vectors = (weights * scale)[:, None] * codes.astype(np.float32)
    out = np.empty((left, codes.shape[1]), np.float32)
    for i in range(left):
        newer = older = np.zeros(codes.shape[1], np.float32)
        for vector in vectors[:i]:
            newer = newer + vector
        for vector in vectors[:i:-1]:
            older = older + vector
        out[i] = newer + older * np.float32(growth)
    return out


def fuse(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    sums = np.zeros(features.shape[1], np.float32)
    for feature, weight in zip(features, weights, strict=True):
        sums = sums + weight * feature
    return sums


def fuse_top_k(features: np.ndarray, weights: np.ndarray, filter: np.ndarray | None, k: int):
    return best_rows(fuse(features, weights), allowed_rows(filter, features.shape[1]), k)


def diversify(codes, scale, rows, values, trade_off: float, k: int) -> list[int]:
    trade_off = np.float32(trade_off)
    remaining, order = list(range(len(rows))), []
    nearest = np.zeros(len(rows), np.float32)
    while remaining and len(order) < k:
        gains = trade_off * values - (np.float32(1) - trade_off) * nearest
        pick = max(remaining, key=lambda i: (gains[i], -i))
        remaining.remove(pick)
        similarity = cosines(codes[rows], scale[rows], codes[rows[pick]], scale[rows[pick]])
        nearest = np.maximum(nearest, similarity) if order else similarity
        order.append(pick)
    return order
