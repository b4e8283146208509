"""What a vector store accepts: ids, codes, counts. Anything else is a ConfigError that says what was expected."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from omega_edge.errors import ConfigError
from omega_edge.vector_rows import Codes, Scales

MAX_ID = (1 << 64) - 1
RECALL, RECALL_WITH_VECTORS = 0.99, 0.999


def as_ids(filter: Iterable[int]) -> NDArray[np.uint64]:
    """The numbers of a filter that can be ids; what else it names is not present."""
    if isinstance(filter, np.ndarray) and filter.ndim == 1 and filter.dtype.kind in "iu":
        return filter[filter >= 0].astype(np.uint64)
    ids = list(filter)
    if set(map(type, ids)) == {int}:
        with suppress(OverflowError):  # of a number below 0 or above 2^64 - 1
            return np.array(ids, np.uint64)
    return np.array([operator.index(id) for id in ids if is_id(id)], np.uint64)


def described(value: object) -> str:
    """What came, for an error."""
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def is_id(id: object) -> bool:
    """Whether it is an integer (not a bool) from 0 to 2^64 - 1."""
    if type(id) is int:
        return 0 <= id <= MAX_ID
    return not isinstance(id, (bool, np.bool_)) and hasattr(id, "__index__") and 0 <= operator.index(id) <= MAX_ID


def check_id(id: int, name: str = "id") -> int:
    """The number as a Python int if it is an id."""
    if not is_id(id):
        raise ConfigError(f"{name}: expected an integer from 0 to 2^64 - 1, got {id!r}")
    return operator.index(id)


def check_k(k: int) -> int:
    """The number as a Python int if it is an integer of 1 or more."""
    if isinstance(k, (bool, np.bool_)) or not hasattr(k, "__index__") or operator.index(k) < 1:
        raise ConfigError(f"k: expected an integer of 1 or more, got {k!r}")
    return operator.index(k)


def check_recall(recall: float | None, keep_vectors: bool) -> float:
    """The recall asked for, above 0, at most 1; where it is None, the one that suits the store."""
    if recall is None:
        return RECALL_WITH_VECTORS if keep_vectors else RECALL
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise ConfigError(f"recall: expected a number above 0, at most 1, got {recall!r}")
    return float(recall)


def check_codes(codes: Codes, scale: Scales, dimensions: int) -> None:
    """int8[n, dimensions] without -128, which is no code, and float32[n] above 0, at most 1."""
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.shape[1:] != (dimensions,):
        raise ConfigError(f"codes: expected int8[n, {dimensions}], got {described(codes)}")
    if not isinstance(scale, np.ndarray) or scale.dtype != np.float32 or scale.shape != codes.shape[:1]:
        raise ConfigError(f"scale: expected float32[{len(codes)}], one for each code, got {described(scale)}")
    if codes.size and codes.min() < -127:
        raise ConfigError("codes: expected values from -127 to 127, got -128")
    if not ((scale > 0) & (scale <= 1)).all():
        raise ConfigError("scale: expected 1 / ||codes||: above 0, at most 1")
