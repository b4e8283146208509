"""Text to a unit vector of 384 numbers, on the television, by all-MiniLM-L6-v2 in int8 through onnxruntime.

onnxruntime is an optional extra, imported only when an engine is made, and with its telemetry off. Whatever is missing
or wrong (no runtime, no model, a damaged or foreign file) raises ModelUnavailable with the fault and the remedy;
nothing is ever made up.
"""

from __future__ import annotations

import hashlib
import json
import os
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
MAX_TEXT_BYTES = 4096
"""Longer text is refused. 128 tokens are some 600 characters, so nothing honest comes near."""
DEFAULT_CACHE_ENTRIES = 512
"""Vectors of 1.5 KB and their texts: about 1 MB."""

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
_LOG_FATAL_ONLY = 4
_REMEDY = "restore the model folder or build it with `python -m toolchain.export_model --out DIRECTORY`"


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """What manifest.json of a model folder says. files: size in bytes and SHA-256 (hex) by file name."""

    model_version: str
    files: dict[str, tuple[int, str]]


def _file_fault(path: Path, error: OSError) -> ModelUnavailable:
    return ModelUnavailable(f"{path}: expected a readable file of the model: {error.strerror}; {_REMEDY}")


def _read_manifest(path: Path) -> ModelManifest:
    try:
        with path.open("rb") as file:
            content = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise _file_fault(path, error) from error
    try:
        if len(content) > _MANIFEST_LIMIT_BYTES:
            raise ValueError(f"more than {_MANIFEST_LIMIT_BYTES} bytes")
        fields = json.loads(content)
        if fields["format_version"] != MANIFEST_FORMAT_VERSION:
            raise ModelUnavailable(
                f"{path}: expected format version {MANIFEST_FORMAT_VERSION}, got {fields['format_version']!r:.40}: "
                f"the model belongs to another version of Omega Edge; {_REMEDY}"
            )
        shape = (fields["dimensions"], fields["max_tokens"])
        files = {name: (int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in fields["files"].items()}
        manifest = ModelManifest(str(fields["model_version"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnavailable(
            f"{path}: expected a model manifest, got something else ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    if shape != (DIMENSIONS, MAX_TOKENS):
        raise ModelUnavailable(
            f"{path}: expected a model of {DIMENSIONS} dimensions and {MAX_TOKENS} tokens, got {shape}; {_REMEDY}"
        )
    for name in _REQUIRED_FILES:
        if name not in files:
            raise ModelUnavailable(f"{path}: expected an entry for {name}, found none; {_REMEDY}")
    return manifest


def verify_model(model_dir: str | Path) -> ModelManifest:
    """The manifest of a model folder, after every file it names was found to have its size and SHA-256.

    Raises ModelUnavailable if the manifest is missing, damaged or of another version, and otherwise for the first
    file that is missing, truncated or changed. Reads the whole model (23 MB).
    """
    model_dir = Path(model_dir)
    manifest = _read_manifest(model_dir / MANIFEST_FILE)
    for name, (expected_bytes, expected_digest) in manifest.files.items():
        path = model_dir / name
        if path.name != name:
            raise ModelUnavailable(f"{path}: expected a plain file name in the manifest, got {name!r:.40}; {_REMEDY}")
        digest = hashlib.sha256()
        try:
            found_bytes = path.stat().st_size
            if found_bytes != expected_bytes:
                raise ModelUnavailable(f"{path}: expected {expected_bytes} bytes, found {found_bytes}; {_REMEDY}")
            with path.open("rb", buffering=0) as file:
                while block := file.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise _file_fault(path, error) from error
        if digest.hexdigest() != expected_digest:
            raise ModelUnavailable(
                f"{path}: expected SHA-256 {expected_digest}, found {digest.hexdigest()}: the file is damaged; "
                + _REMEDY
            )
    return manifest


class _Session:
    """The graph in onnxruntime: token ids in, vector out. onnxruntime's own errors become ModelUnavailable."""

    def __init__(self, graph_path: Path) -> None:
        # onnxruntime from 1.29 on reports its use to its maker, from the moment of its import, unless this is set
        # before: with it there is no uploader, no thread of it, no device id and no database in the user's cache.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError as error:
            raise ModelUnavailable(
                f"embedding text needs onnxruntime, which cannot be imported ({error}); "
                "install it: pip install 'omega-edge[embed]'"
            ) from error
        # onnxruntime's exceptions share no base of their own.
        self._errors = (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
            state.NotImplemented,
            state.RuntimeException,
        )
        # Where the host program imported onnxruntime earlier, the variable came too late and this stops the rest.
        onnxruntime.disable_telemetry_events()
        self._graph_path = graph_path
        self._runtime_version = onnxruntime.__version__
        try:
            self._session = onnxruntime.InferenceSession(
                graph_path, _session_options(onnxruntime), providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise self._fault("load the model", error) from error

    def run(self, token_ids: np.ndarray) -> np.ndarray:
        try:
            return self._session.run([OUTPUT_NAME], {INPUT_NAME: token_ids})[0]
        except self._errors as error:
            raise self._fault("run the model", error) from error

    def _fault(self, deed: str, error: Exception) -> ModelUnavailable:
        return ModelUnavailable(
            f"{self._graph_path}: onnxruntime {self._runtime_version} cannot {deed} ({error}); {_REMEDY}"
        )


def _session_options(runtime: onnxruntime) -> onnxruntime.SessionOptions:
    """One thread, and the settings that keep resident memory least.

    Measured over texts of 3 to 128 tokens: without the memory patterns kept for each length 2 MB less at equal speed;
    without the arena 5 MB more. Weights stay pre-packed: unpacked they save 10 MB of private memory, but each text
    takes 1.8 times as long.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False
    # What goes wrong is raised, with its text; on stderr it would be a second, unasked-for report.
    options.log_severity_level = _LOG_FATAL_ONLY
    return options


class InferenceEngine:
    """Embeds text with the model in one folder.

    model_dir: a folder written by toolchain.export_model. cache_entries: vectors kept by text, least recently used
    first out; 0 for none. Verifies every file, then loads the vocabulary and the model; raises ModelUnavailable.
    Thread-safe; one text is computed at a time, on the calling thread, so memory and cores stay bounded.
    """

    def __init__(self, model_dir: str | Path, cache_entries: int = DEFAULT_CACHE_ENTRIES) -> None:
        if cache_entries < 0:
            raise ConfigError(f"cache_entries: expected 0 or more, got {cache_entries}")
        model_dir = Path(model_dir)
        self._manifest = verify_model(model_dir)
        self._tokenizer = WordPieceTokenizer(model_dir / VOCABULARY_FILE)
        self._session: _Session | None = _Session(model_dir / GRAPH_FILE)
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

        Text beyond MAX_TOKENS tokens has no influence. Raises ConfigError if the text is not a str, has nothing to
        embed (empty, blank, control characters only), is longer than MAX_TEXT_BYTES of UTF-8 or holds a lone
        surrogate; ModelUnavailable after close().
        """
        _check_text(text)
        with self._cache_lock:
            vector = self._cache.get(text)
            if vector is not None:
                self._cache.move_to_end(text)
                return vector
        vector = self.embed_uncached(text)
        with self._cache_lock:
            if self._session is not None:
                self._cache[text] = vector
            while len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        return vector

    def embed_uncached(self, text: str) -> np.ndarray:
        """Like embed, but always computed, and not kept."""
        _check_text(text)
        token_ids = np.array(self._tokenizer.encode(text, MAX_TOKENS), np.int64)
        if token_ids.size == 2:  # [CLS] and [SEP] alone
            raise ConfigError(f"text to embed: expected at least one visible character, got {text!r:.60}")
        with self._session_lock:
            if self._session is None:
                raise ModelUnavailable("the inference engine is closed; open a new one")
            vector = self._session.run(token_ids)
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
        with self._session_lock, self._cache_lock:
            self._session = None
            self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"text to embed: expected a str, got {type(text).__name__}")
    # "surrogatepass" only so that the size can be told: the tokenizer names a lone surrogate as what it is.
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_TEXT_BYTES:
        raise ConfigError(f"text to embed: expected at most {MAX_TEXT_BYTES} bytes of UTF-8, got {size_bytes}")
