"""The reference vectors of the text model: tests/vectors/minilm_fp32.json tells how they were computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_VECTORS = Path(__file__).resolve().parent / "vectors"


def reference_embeddings() -> tuple[list[str], np.ndarray]:
    """The texts, and their unit vectors as float32[texts, 384]."""
    texts = json.loads((_VECTORS / "minilm_fp32.json").read_text(encoding="utf-8"))["texts"]
    vectors = np.load(_VECTORS / "minilm_fp32.npy")
    assert vectors.shape == (len(texts), 384)
    return texts, vectors
