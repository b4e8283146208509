"""Text to a unit vector of 384 numbers, on the television, by all-MiniLM-L6-v2 in int8 through onnxruntime.

onnxruntime is an optional extra and is imported only when an engine is made. Whatever is missing or wrong (no runtime,
no model, a damaged or foreign file) raises ModelUnavailable with the fault and the remedy; nothing is ever made up.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from omega_edge.errors import ConfigError, ModelUnavailable
from omega_edge.tokenizer import WordPieceTokenizer

if TYPE_CHECKING:
    import onnxruntime

DIMENSIONS = 384
MAX_TOKENS = 128
"""Longest sequence the model was trained on, [CLS] and [SEP] counted; what is over is cut off."""
MAX_TEXT_BYTES = 16_384
"""Longer text is refused. 128 tokens are some 600 characters, so no honest title or sentence comes near."""
DEFAULT_CACHE_ENTRIES = 512
"""About 1 MB of cached vectors with their texts."""

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT_VERSION = 1
GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.data"
VOCABULARY_FILE = "vocab.txt"
INPUT_NAME = "token_ids"
OUTPUT_NAME = "embedding"

_REQUIRED_FILES = (GRAPH_FILE, WEIGHTS_FILE, VOCABULARY_FILE)
_MANIFEST_LIMIT_BYTES = 1 << 16
_HASH_BLOCK_BYTES = 1 << 18
_UNIT_NORM_TOLERANCE = 1e-4
_REMEDY = "build the model with `python -m toolchain.export_model --out DIRECTORY` or restore the folder"


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """What manifest.json of a verified model says."""

    model_version: str
    exporter_version: int
    files: dict[str, tuple[int, str]]
    """Size in bytes and SHA-256 (hex) by file name."""


def _file_fault(path: Path, error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"{path}: expected a readable file of the model: {error.strerror}; {_REMEDY}")


def read_manifest(model_dir: Path) -> ModelManifest:
    """manifest.json of a model folder, checked for form and version but not against the files.

    Raises ModelUnavailable if it is missing, not a manifest, or of a version that this program does not read.
    """
    path = Path(model_dir) / MANIFEST_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise _file_fault(path, error) from error
    try:
        if len(content) > _MANIFEST_LIMIT_BYTES:
            raise ValueError(f"more than {_MANIFEST_LIMIT_BYTES} bytes")
        fields = json.loads(content)
        found_version = (fields["format_version"], fields["dimensions"], fields["max_tokens"])
        files = {name: (int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in fields["files"].items()}
        manifest = ModelManifest(str(fields["model_version"]), int(fields["exporter_version"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnavailable(
            f"{path}: expected a model manifest, got something else ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    expected_version = (MANIFEST_FORMAT_VERSION, DIMENSIONS, MAX_TOKENS)
    if found_version != expected_version:
        raise ModelUnavailable(
            f"{path}: expected format version, dimensions and max_tokens {expected_version}, got {found_version}; "
            "the model is of another version of Omega Edge: " + _REMEDY
        )
    for name in _REQUIRED_FILES:
        if name not in files:
            raise ModelUnavailable(f"{path}: expected an entry for {name}, found none; {_REMEDY}")
    return manifest


def verify_model(model_dir: Path) -> ModelManifest:
    """read_manifest, and every file it names has the size and SHA-256 it states.

    Raises ModelUnavailable naming the first file that is missing, truncated or changed.
    """
    manifest = read_manifest(model_dir)
    for name, (size_bytes, expected_digest) in manifest.files.items():
        path = Path(model_dir) / name
        if path.name != name:
            raise ModelUnavailable(f"{path}: expected a plain file name in the manifest, got {name!r}; {_REMEDY}")
        digest = hashlib.sha256()
        try:
            found_bytes = path.stat().st_size
            if found_bytes != size_bytes:
                raise ModelUnavailable(f"{path}: expected {size_bytes} bytes, found {found_bytes}; {_REMEDY}")
            with path.open("rb", buffering=0) as file:
                while block := file.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise _file_fault(path, error) from error
        if digest.hexdigest() != expected_digest:
            raise ModelUnavailable(
                f"{path}: expected SHA-256 {expected_digest}, found {digest.hexdigest()}: the file is damaged; {_REMEDY}"
            )
    return manifest


def _open_session(graph_path: Path) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelUnavailable(
            f"embedding text needs onnxruntime, which cannot be imported ({error}); "
            "install it: pip install 'omega-edge[model]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors

    try:
        return onnxruntime.InferenceSession(graph_path, options, providers=["CPUExecutionProvider"])
    except (runtime_errors.Fail, runtime_errors.InvalidGraph, runtime_errors.InvalidProtobuf,
            runtime_errors.NotImplemented, runtime_errors.RuntimeException) as error:
        raise ModelUnavailable(
            f"{graph_path}: onnxruntime {onnxruntime.__version__} cannot load the model ({error}); {_REMEDY}"
        ) from error


class InferenceEngine:
    """Embeds text with the model in one folder.

    model_dir: a folder written by toolchain.export_model. cache_entries: vectors kept by text, least recently used
    first out; 0 for none. Verifies every file, loads the model and the vocabulary; raises ModelUnavailable.
    Thread-safe; one text is computed at a time, on the calling thread, so memory and cores stay bounded.
    """

    def __init__(self, model_dir: str | Path, cache_entries: int = DEFAULT_CACHE_ENTRIES) -> None:
        if cache_entries < 0:
            raise ConfigError(f"cache_entries: expected 0 or more, got {cache_entries}")
        model_dir = Path(model_dir)
        self._manifest = verify_model(model_dir)
        self._tokenizer = WordPieceTokenizer(model_dir / VOCABULARY_FILE)
        self._session: onnxruntime.InferenceSession | None = _open_session(model_dir / GRAPH_FILE)
        self._session_lock = threading.Lock()
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._cache_entries = cache_entries
        self._cache_lock = threading.Lock()

    @property
    def model_version(self) -> str:
        """Name of the model's exact content: equal versions give equal vectors on one type of CPU."""
        return self._manifest.model_version

    def embed(self, text: str) -> np.ndarray:
        """Unit float32[384] of the text, read-only; from the cache where the text was embedded before.

        Raises ConfigError if the text is empty or blank, over MAX_TEXT_BYTES, or not valid Unicode;
        ModelUnavailable after close().
        """
        with self._cache_lock:
            vector = self._cache.get(text)
            if vector is not None:
                self._cache.move_to_end(text)
                return vector
        vector = self.embed_uncached(text)
        with self._cache_lock:
            if self._cache_entries:
                self._cache[text] = vector
                if len(self._cache) > self._cache_entries:
                    self._cache.popitem(last=False)
        return vector

    def embed_uncached(self, text: str) -> np.ndarray:
        """Like embed, but always computed, and not kept."""
        token_ids = np.array(self._tokenizer.encode(_checked_text(text), MAX_TOKENS), np.int64)
        with self._session_lock:
            if self._session is None:
                raise ModelUnavailable("the inference engine is closed; open a new one")
            vector = self._session.run([OUTPUT_NAME], {INPUT_NAME: token_ids})[0]
        norm = float(np.linalg.norm(vector))
        if vector.shape != (DIMENSIONS,) or not abs(norm - 1.0) <= _UNIT_NORM_TOLERANCE:
            raise ModelUnavailable(
                f"model {self.model_version}: expected a unit vector of {DIMENSIONS} numbers, "
                f"got shape {vector.shape} and norm {norm}; {_REMEDY}"
            )
        vector.flags.writeable = False
        return vector

    def clear_cache(self) -> None:
        """Forget every cached text and vector."""
        with self._cache_lock:
            self._cache.clear()

    def close(self) -> None:
        """Release the model's memory and the cache. Closing twice is allowed."""
        with self._session_lock:
            self._session = None
        self.clear_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _checked_text(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"text to embed: expected text that is not blank, got {text!r:.60}")
    if len(text) > MAX_TEXT_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise ConfigError(f"text to embed: expected at most {MAX_TEXT_BYTES} bytes of UTF-8, got {len(text)} characters")
    return text
