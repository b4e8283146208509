"""A trained sequence encoder as sections of a bundle: matrices and title embeddings in 8 bits, the rest as it is.

Symmetric absmax quantisation: code = round(127 * x / largest |x|), ties to even, of each title's embedding and of each
matrix's output column; scale = largest |x| / 127.
"""

from __future__ import annotations

import numpy as np

from omega_edge.catalog_checks import SEQUENCE_DIMENSIONS as DIMENSIONS
from omega_edge.catalog_checks import SEQUENCE_FEED as FEED_DIMENSIONS
from omega_edge.catalog_checks import SEQUENCE_HEADS as HEADS
from omega_edge.catalog_checks import SEQUENCE_WINDOW as WINDOW

_SHAPES: dict[str, tuple[str | int, ...]] = {
    "E": ("n", DIMENSIONS),
    "B": ("n",),
    "S": (2, DIMENSIONS),
    "R": (WINDOW, HEADS),
    "norms": (3, DIMENSIONS),
    "Wq": (DIMENSIONS, DIMENSIONS),
    "Wk": (DIMENSIONS, DIMENSIONS),
    "Wv": (DIMENSIONS, DIMENSIONS),
    "Wo": (DIMENSIONS, DIMENSIONS),
    "W1": (DIMENSIONS, FEED_DIMENSIONS),
    "b1": (FEED_DIMENSIONS,),
    "W2": (FEED_DIMENSIONS, DIMENSIONS),
    "b2": (DIMENSIONS,),
    "input_scale": (1,),
    "start": (DIMENSIONS,),
}


def sequence_sections(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sections sequence_* of an encoder, but for its fusion's (see omega_edge/sequence.py for what each means).

    parameters, finite floats: E [n, 64] title embeddings (a row of zeros: none), B [n] their biases, S [2, 64] of an
    event that failed and one that succeeded, R [64, 8] bias by distance and head, norms [3, 64] of attention, feed and
    output, Wq, Wk, Wv [64, 64] from input to output 8 * dimension + head, Wo [64, 64] from those, W1 [64, 128], b1 [128],
    W2 [128, 64], b2 [64], input_scale [1] or a number, start [64] the state without events. ValueError names what is missing, unknown, misshapen or not finite.
    """
    given = _checked(parameters)
    codes, scale = _rows_in_bytes(given["E"])
    attention = [_columns_in_bytes(given[name]) for name in ("Wq", "Wk", "Wv", "Wo")]
    feed_in, feed_in_scale = _columns_in_bytes(given["W1"])
    feed_out, feed_out_scale = _columns_in_bytes(given["W2"])
    return {
        "sequence_codes": codes,
        "sequence_scale": scale,
        "sequence_bias": given["B"],
        "sequence_success": given["S"],
        "sequence_distance": given["R"],
        "sequence_norms": given["norms"],
        "sequence_attention": np.stack([matrix for matrix, _ in attention]),
        "sequence_attention_scale": np.stack([columns for _, columns in attention]),
        "sequence_feed_in": feed_in,
        "sequence_feed_in_scale": feed_in_scale,
        "sequence_feed_in_bias": given["b1"],
        "sequence_feed_out": feed_out,
        "sequence_feed_out_scale": feed_out_scale,
        "sequence_feed_out_bias": given["b2"],
        "sequence_input_scale": given["input_scale"],
        "sequence_start": given["start"],
    }


def _checked(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 copies, C-contiguous, of parameters that have the shapes of _SHAPES."""
    for name in sorted(parameters.keys() ^ _SHAPES.keys()):
        raise ValueError(f"parameters: {name} is {'missing' if name in _SHAPES else 'unknown'}")
    count = np.shape(parameters["E"])[:1]
    given = {}
    for name, shape in _SHAPES.items():
        expected = count + shape[1:] if shape[0] == "n" else shape
        array = np.array(parameters[name], "<f4", order="C")
        if name == "input_scale" and array.ndim == 0:
            array = array.reshape(1)
        if array.shape != expected:
            raise ValueError(f"parameters: expected {name} of shape {expected}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"parameters: expected finite numbers in {name}, got a NaN or infinity")
        given[name] = array
    return given


def _rows_in_bytes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 and one scale float32 for each row of float32[n, d]; a row of zeros has scale 0."""
    scale = np.abs(values).max(axis=1, initial=0.0) / np.float32(127)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    return np.rint(np.clip(values / divisor[:, None], -127, 127)).astype(np.int8), scale


def _columns_in_bytes(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = _rows_in_bytes(matrix.T)
    return np.ascontiguousarray(codes.T), scale
