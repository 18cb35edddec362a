"""The embedder component: loading, choosing a precision, the fingerprint, the gate, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.components.embedder import EmbedderInfo, Int8Gate, fingerprint
from serving.errors import BadRequest, PhaseFailed
from serving.retrieve.make_embedder import make_embedder
from serving.retrieve.onnx_embedder import OnnxEmbedder
from serving.retrieve.torch_embedder import TorchEmbedder

GATE = Int8Gate(500, 100, 10, 0.9, 0.9, 0.99, 0.85, 0.98, True)
INFO = EmbedderInfo(4, "mean", True, 128, 0, "", "", GATE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A component whose files are only looked at, never run."""
    at = tmp_path / "embedder"
    at.mkdir()
    for name in ("model.onnx", "model.int8.onnx", "tokenizer.json"):
        (at / name).write_bytes(name.encode())
    INFO.save(at)
    return at


def edit(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
    (folder / "embedder.json").write_text(json.dumps({**about, **changes}), encoding="utf-8")


def test_info_survives_a_round_trip(folder: Path) -> None:
    assert EmbedderInfo.load(folder) == INFO


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\ufeff{"])
def test_info_that_cannot_be_read_names_the_fix(folder: Path, content: str) -> None:
    (folder / "embedder.json").write_text(content, encoding="utf-8")
    with pytest.raises(PhaseFailed, match="export the embedder again"):
        EmbedderInfo.load(folder)


def test_auto_follows_the_gate(folder: Path) -> None:
    assert INFO.resolve("auto") == "int8"
    edit(folder, int8={**json.loads((folder / "embedder.json").read_text())["int8"], "passed": False})
    assert EmbedderInfo.load(folder).resolve("auto") == "float32"
    assert fingerprint(folder, "auto") == fingerprint(folder, "float32")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "model.int8.onnx").write_bytes(b"other weights"),
        lambda f: (f / "tokenizer.json").write_bytes(b"other tokens"),
        lambda f: edit(f, pooling="cls"),
        lambda f: edit(f, normalise=False),
        lambda f: edit(f, dimension=5),
        lambda f: edit(f, query_prompt="query: "),
        lambda f: edit(f, document_prompt="passage: "),
        lambda f: edit(f, max_tokens=64),
        lambda f: edit(f, pad_token_id=1),
    ],
)
def test_the_fingerprint_changes_with_all_that_decides_a_vector(folder: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(folder, "int8")
    change(folder)
    assert fingerprint(folder, "int8") != before


def test_the_fingerprint_knows_precision_and_token_limit(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "model.int8.onnx")
    found = {fingerprint(folder, p, t) for p in ("float32", "int8") for t in (16, 64, None)}
    assert len(found) == 6
    assert fingerprint(folder, "int8", 128) == fingerprint(folder, "int8", 4096) == fingerprint(folder, "int8")


def test_the_fingerprint_does_not_know_times_places_and_other_files(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    (copy / "notes.txt").write_text("more", encoding="utf-8")
    assert fingerprint(copy, "int8") == fingerprint(folder, "int8")


@pytest.mark.parametrize("name", ["model.int8.onnx", "tokenizer.json", "embedder.json"])
def test_a_missing_file_is_named_with_the_fix(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PhaseFailed, match=rf"{name}.*export the embedder again"):
        OnnxEmbedder(folder)


def test_broken_weights_are_named_with_the_fix(folder: Path) -> None:
    with pytest.raises(PhaseFailed, match=r"model\.int8\.onnx.*export the embedder again"):
        OnnxEmbedder(folder)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"precision": "float16"}, "precision"), ({"threads": -1}, "threads"), ({"max_tokens": 2}, "max_tokens")],
)
def test_an_option_that_makes_no_sense_is_named(folder: Path, options: dict[str, object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        OnnxEmbedder(folder, **options)
    assert caught.value.field == field


def test_torch_without_weights_names_the_fix(folder: Path) -> None:
    with pytest.raises(PhaseFailed, match="torch_weights=True"):
        TorchEmbedder(folder, "cpu")


def test_texts_are_cut_at_max_tokens(minilm_component: Path) -> None:
    embedder = OnnxEmbedder(minilm_component, "float32", threads=1, max_tokens=8)
    a, b, c = embedder.embed(
        ["one two three four five six seven eight", "one two three four five six", "one two three"]
    )
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert a @ c < 0.99


def test_torch_and_onnx_agree(minilm_component: Path) -> None:
    texts = ["a dry red wine", "레이크 찰리스", "", "word " * 300]
    torch_vectors = TorchEmbedder(minilm_component, "cpu", "float32").embed(texts)
    np.testing.assert_allclose(torch_vectors, OnnxEmbedder(minilm_component, "float32").embed(texts), atol=1e-4)


def test_adapters_of_one_component_share_a_fingerprint(minilm_component: Path) -> None:
    made = make_embedder(minilm_component, "auto", threads=1, max_tokens=64)
    assert made.fingerprint == fingerprint(minilm_component, "auto", 64)
    assert made.fingerprint == TorchEmbedder(minilm_component, "cpu", "auto", 64).fingerprint
    assert made.fingerprint != make_embedder(minilm_component, "auto", threads=1, max_tokens=32).fingerprint


def test_serving_imports_neither_torch_nor_transformers(minilm_component: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from serving.retrieve.onnx_embedder import OnnxEmbedder; "
        "OnnxEmbedder(Path(sys.argv[1]), threads=1).embed(['wine']); "
        "sys.exit(' '.join({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(minilm_component)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
