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
NO_DIRECTION = "codes: expected some that are not zero; a vector needs a direction"
_NUMBERS = (float, int, np.floating)
_LEAST_SCALE = 1 / 4096  # no code is longer than 127 * sqrt(1024) = 4064


def as_ids(filter: Iterable[int]) -> NDArray[np.uint64]:
    """The numbers of a filter that can be ids; what else it names is not present. An array of another kind than
    integers, a mask say, can only be a mistake."""
    if isinstance(filter, np.ndarray) and filter.ndim == 1 and filter.dtype.kind in "iu":
        return filter[filter >= 0].astype(np.uint64)
    if isinstance(filter, np.ndarray) and filter.size and (filter.ndim != 1 or filter.dtype != object):
        raise ConfigError(f"filter: expected ids, as integers in one dimension, got {described(filter)}")
    if not isinstance(filter, Iterable):
        raise ConfigError(f"filter: expected ids, got {described(filter)}")
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
    return 0 <= _integer(id) <= MAX_ID


def _integer(value: object) -> int:
    """The number, if it is an integer and not a bool, else -1."""
    if not isinstance(value, (bool, np.bool_)):
        with suppress(TypeError):  # an array of several numbers has __index__ too
            return operator.index(value)
    return -1


def check_id(id: int, name: str = "id") -> int:
    """The number as a Python int if it is an id."""
    if not is_id(id):
        raise ConfigError(f"{name}: expected an integer from 0 to 2^64 - 1, got {id!r}")
    return operator.index(id)


def check_k(k: int) -> int:
    """The number as a Python int if it is an integer of 1 or more."""
    if _integer(k) < 1:
        raise ConfigError(f"k: expected an integer of 1 or more, got {k!r}")
    return operator.index(k)


def check_recall(recall: float | None, keep_vectors: bool) -> float:
    """The recall asked for, above 0, at most 1; where it is None, the one that suits the store."""
    if recall is None:
        return RECALL_WITH_VECTORS if keep_vectors else RECALL
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise ConfigError(f"recall: expected a number above 0, at most 1, got {recall!r}")
    return float(recall)


def check_code(code: Codes, scale: float, dimensions: int) -> Codes:
    """One code, int8[dimensions], contiguous; it and its scale under the conditions of check_codes and
    check_directions."""
    code = np.asarray(code)
    if code.dtype != np.int8 or code.shape != (dimensions,):
        raise ConfigError(f"codes: expected int8[{dimensions}], got {described(code)}")
    if not (isinstance(scale, _NUMBERS) and _LEAST_SCALE <= scale <= 1):
        raise ConfigError(f"scale: expected 1 / ||code||, which is from 1 / 4064 to 1, got {scale!r}")
    content = code.tobytes()  # looked through at a third of the cost of numpy's functions
    if b"\x80" in content:
        raise ConfigError("codes: expected values from -127 to 127, got -128")
    if not content.strip(b"\0"):
        raise ConfigError(NO_DIRECTION)
    return code if code.flags.c_contiguous else np.ascontiguousarray(code)


def check_directions(codes: Codes) -> None:
    """That no row of int8[n, dimensions] is zero throughout."""
    if not codes.any(1).all():
        raise ConfigError(NO_DIRECTION)


def check_codes(codes: Codes, scale: Scales, dimensions: int) -> None:
    """int8[n, dimensions] without -128, which is no code, and float32[n] from 1 / 4096 to 1."""
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.shape[1:] != (dimensions,):
        raise ConfigError(f"codes: expected int8[n, {dimensions}], got {described(codes)}")
    if not isinstance(scale, np.ndarray) or scale.dtype != np.float32 or scale.shape != codes.shape[:1]:
        raise ConfigError(f"scale: expected float32[{len(codes)}], one for each code, got {described(scale)}")
    if codes.size and codes.min() < -127:
        raise ConfigError("codes: expected values from -127 to 127, got -128")
    if not ((scale >= _LEAST_SCALE) & (scale <= 1)).all():
        raise ConfigError("scale: expected 1 / ||codes||, which is from 1 / 4064 to 1")
