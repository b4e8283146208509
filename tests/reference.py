"""The kernels' contract in plain numpy: the readable specification that every instruction set must equal bit for bit.

Every float operation is one numpy float32 operation, rounded by itself, in the order the contract states. Nothing here
uses the C core.
"""

from __future__ import annotations

import math

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


def count_greater(values: np.ndarray, of_count: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    for line, own in enumerate(values.tolist()):
        for place, value in enumerate(own):
            out[line, place] = of_count[sum(other > value for other in own)]
    return out


def sum_trees(roots, feature, threshold, children, leaves, values) -> np.ndarray:
    sums = np.zeros(values.shape[1], np.float32)
    for candidate in range(values.shape[1]):
        for root in roots.tolist():
            at = root
            while at >= 0:
                at = int(children[at, 0 if values[feature[at], candidate] <= threshold[at] else 1])
            sums[candidate] = sums[candidate] + leaves[~at]
    return sums


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


def halve(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two planes, 16 bytes for 32 codes, and ceil(||low - 7.5||)."""
    n, d = codes.shape
    raised = (codes.astype(np.int64) + 128).reshape(n, d // 32, 2, 16)
    planes = [half[:, :, 0] + 16 * half[:, :, 1] for half in (raised // 16, raised % 16)]
    squares = ((2 * (raised % 16) - 15) ** 2).sum(axis=(1, 2, 3))
    # The least s with (2s)^2 >= the sum of (2 low - 15)^2.
    spread = np.array([math.isqrt((total - 1) // 4) + 1 for total in squares.tolist()], np.uint8)
    high, low = (plane.reshape(n, d // 2).astype(np.uint8) for plane in planes)
    return high, low, spread


def sign_blocks(codes: np.ndarray) -> np.ndarray:
    """The bits of kernels.h's omega_signs, rows past the last one zero."""
    n, d = codes.shape
    bits = np.zeros((-(-n // 32) * 32, d), np.int64)
    bits[:n] = codes >= 0
    nibbles = (bits.reshape(-1, d // 4, 4) << np.arange(4)).sum(axis=2).reshape(-1, 2, 16, d // 4)
    return (nibbles[:, 0] + 16 * nibbles[:, 1]).transpose(0, 2, 1).reshape(-1, 4 * d).astype(np.uint8)


def sign_scores(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The first stage's integer score of each row."""
    n, d = codes.shape
    groups = query.astype(np.int64).reshape(d // 4, 4)
    most = max(1, int(np.abs(groups).sum(axis=1).max()))
    factor = 63 * 65536 // (2 * most)
    signed = np.where(codes.reshape(n, d // 4, 4) >= 0, groups, -groups).sum(axis=2)
    return ((signed + most) * factor >> 16).sum(axis=1)


def search_two_stage(codes, scale, query, query_scale, filter, candidates: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    allowed = allowed_rows(filter, len(codes))
    chosen, _ = best_rows(sign_scores(codes, query).astype(np.float64), allowed, candidates)
    return best_rows(cosines(codes, scale, query, query_scale), np.sort(chosen), k)


def rescore(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight running sums, added in pairs four, two and one apart."""
    factor = np.float32(1 / math.sqrt((query.astype(np.float64) ** 2).sum()))
    scores = np.full(len(vectors), -np.inf, np.float32)
    for row in rows:
        x = vectors[row].astype(np.float32)
        dots, squares = np.zeros(8, np.float32), np.zeros(8, np.float32)
        for j in range(0, len(x), 8):
            dots = dots + query[j : j + 8] * x[j : j + 8]
            squares = squares + x[j : j + 8] * x[j : j + 8]
        totals = [((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])) for s in (dots, squares)]
        with np.errstate(invalid="ignore", divide="ignore"):
            scores[row] = totals[0] / np.sqrt(totals[1]) * factor + ZERO
    return best_rows(scores, np.sort(rows), k)


def fresh(time: np.ndarray, now: int, half_life: float) -> np.ndarray:
    """2^-age in float32 by the contract's polynomial."""
    coefficients = ("1.0", "-0x1.62e38ap-1", "0x1.ebdf66p-3", "-0x1.c4d9fap-5", "0x1.2d17a8p-7", "-0x1.ec32p-11")
    age = np.maximum(now - time.astype(np.int64), 0).astype(np.float32) * np.float32(1 / half_life)
    whole = np.minimum(age, 126).astype(np.int64)
    part = age - whole.astype(np.float32)
    power = np.full(len(time), float.fromhex(coefficients[-1]), np.float32)
    for coefficient in coefficients[-2::-1]:
        power = power * part + np.float32(float.fromhex(coefficient))
    return np.where(age < 126, power * np.float32(2.0) ** -whole.astype(np.float32), ZERO)


def rank(codes, scale, query, query_scale, success, time, trend, weights, limits, filter, k: int):
    now, half_life, least = limits
    cosine = cosines(codes, scale, query, query_scale)
    score = weights[0] * cosine + weights[1] * success
    score = score + weights[2] * fresh(time, now, half_life)
    score = score + weights[3] * trend + ZERO
    rows = allowed_rows(filter, len(codes))
    return best_rows(score, rows[cosine[rows] >= np.float32(least)], k)
