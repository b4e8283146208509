"""Sequence encoders for tests: parameters from a seed, and the encoder in float64, written from its definition alone."""

from __future__ import annotations

import numpy as np

from bench.complete_bundle import encoder_parameters
from cloud.sequence_sections import sequence_sections as quantised
from omega_edge.ranking import FEATURES, SEQUENCE

__all__ = ["encode", "encoder_sections", "float_parameters", "model_of", "quantised"]


def float_parameters(count: int, seed: int) -> dict[str, np.ndarray]:
    """float32 parameters of an encoder over `count` titles, of a trained one's size, as sequence_sections wants them."""
    return encoder_parameters(count, np.random.default_rng(seed))


def encoder_sections(count: int, seed: int) -> dict[str, np.ndarray]:
    """All sections of an encoder over `count` titles, every ninth without an embedding, and a fusion that it weighs in."""
    rng, parameters = np.random.default_rng(seed), float_parameters(count, seed)
    parameters["E"][8::9] = 0
    weights = rng.standard_normal((4, len(FEATURES))).astype(np.float32)
    weights[:, SEQUENCE] = 0.5
    calibration = np.array([[1.5, -0.1 * bucket] for bucket in range(4)], np.float32)
    return quantised(parameters) | {"sequence_fusion_weights": weights, "sequence_fusion_calibration": calibration}


def model_of(sections: dict[str, np.ndarray]) -> tuple:
    """The sections as the kernels take them."""
    parts = "codes scale success distance norms attention attention_scale feed_in feed_in_scale feed_in_bias feed_out"
    arrays = [sections[f"sequence_{part}"] for part in (*parts.split(), "feed_out_scale", "feed_out_bias")]
    return (*arrays, float(sections["sequence_input_scale"][0]))


def rms(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """x over its root mean square, times a gain."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * gain


def heads(flat: np.ndarray) -> np.ndarray:
    """float64[event, dimension, head] of float64[event, 64]."""
    return flat.reshape(-1, 8, 8)


def encode(sections: dict[str, np.ndarray], rows: np.ndarray, success: np.ndarray) -> np.ndarray:
    """float64[64]: the state after events, newest first, of titles `rows` with flags `success`; the first 64 count."""
    part = {name.removeprefix("sequence_"): array.astype(np.float64) for name, array in sections.items()}
    rows, success = np.asarray(rows)[:64], np.asarray(success)[:64].astype(int)
    query, key, value, out = (w * s for w, s in zip(part["attention"], part["attention_scale"]))
    embedding = part["codes"][rows] * part["scale"][rows, None]
    x = part["input_scale"][0] * (embedding + part["success"][success])
    y = rms(x, part["norms"][0])
    logits = (heads(y[:1] @ query) * heads(y @ key)).sum(axis=1) / np.sqrt(8) + part["distance"][: len(rows)]
    power = np.exp(logits - logits.max(axis=0))
    mixed = (power[:, None, :] * heads(y @ value)).sum(axis=0) / power.sum(axis=0)
    z = x[0] + mixed.ravel() @ out
    inner = np.maximum(rms(z, part["norms"][1]) @ (part["feed_in"] * part["feed_in_scale"]) + part["feed_in_bias"], 0)
    z = z + inner @ (part["feed_out"] * part["feed_out_scale"]) + part["feed_out_bias"]
    return rms(z, part["norms"][2])
