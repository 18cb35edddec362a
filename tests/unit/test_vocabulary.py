"""New words for a model that cannot read a script: it understands them before its first step, and forgets nothing."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from registry.content import digest_folder
from serving.retrieve.onnx_embedder import OnnxEmbedder
from tests.tiny_embedder import UNSEEN, korean, make_model, make_task, names
from training.contrastive.options import VocabularyOptions
from training.contrastive.pairs import Pair
from training.contrastive.trainer import EXTENDED_FOLDER, TRAINER
from training.contrastive.vocabulary import extend, find_words
from training.export import export_embedder
from training.job.loop import PlainLoop

OPTIONS = VocabularyOptions(least=2)
SEEN = [name for n, name in enumerate(names()) if n % UNSEEN]
SEEN_PAIRS = [Pair(korean(name), name) for name in SEEN]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("app") / "tiny-model")


@pytest.fixture(scope="module")
def extended(model: Path) -> Path:
    made = model.with_name("extended")
    assert extend(model, SEEN_PAIRS, OPTIONS, 0, made) > 16
    return made


def read(folder: Path) -> Any:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    return np.asarray(read(folder).encode(texts, normalize_embeddings=True, show_progress_bar=False))


def found_first(folder: Path) -> float:
    """Share of the combinations that no pair held whose item is the nearest to its query."""
    unseen = names()[::UNSEEN]
    scores = vectors(folder, list(map(korean, unseen))) @ vectors(folder, names()).T
    return float(np.mean([names()[best] == name for best, name in zip(scores.argmax(1), unseen, strict=True)]))


def test_pieces_are_whole_words_where_they_come_often() -> None:
    words = find_words(["파일을 변환", "파일 변환기", "파일로 pdf 파일", "Файл"] * 3, OPTIONS)
    assert {"파일", "변환", "파", "일"} <= set(words)
    assert words == sorted(words, key=lambda word: (-len(word), word))
    assert not [word for word in words if not all("가" <= letter <= "힣" for letter in word)]
    assert find_words([unicodedata.normalize("NFD", "파일을 변환")] * 3, OPTIONS) == find_words(
        ["파일을 변환"] * 3, OPTIONS
    )
    assert "файл" in find_words(["файл"] * 3, VocabularyOptions(script="Cyrillic"))
    assert len(find_words(["파일을 변환"] * 3, VocabularyOptions(size=5))) <= 5
    assert find_words(["only English"], OPTIONS) == []


def test_combinations_it_never_saw_are_found_before_the_first_step(model: Path, extended: Path) -> None:
    assert found_first(model) < 0.3
    assert found_first(extended) > 0.9
    read_as = read(extended).tokenizer.tokenize(korean("red wine"))
    assert read_as[:2] == ["빨간", "포도주를"]
    assert "[UNK]" not in read_as


def test_texts_without_the_script_are_read_as_before(model: Path, extended: Path) -> None:
    np.testing.assert_allclose(vectors(extended, names()), vectors(model, names()), atol=1e-6)


def test_a_model_that_has_the_words_gets_only_others(extended: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert extend(extended, SEEN_PAIRS, OPTIONS, 0, again) == 0, "it has these words"
    other = [*SEEN_PAIRS, *(Pair(f"{pair.query} 주세요", pair.text) for pair in SEEN_PAIRS)]
    assert extend(extended, other, OPTIONS, 0, tmp_path / "more") > 0
    assert found_first(tmp_path / "more") > 0.9


def test_a_training_begins_with_the_words_and_serving_reads_them(model: Path, tmp_path: Path) -> None:
    made = {}
    for name in ("one", "same"):
        task = make_task(model, tmp_path / name, ask=korean, epochs=1, vocabulary={"least": 2})
        TRAINER.prepare(task)
        reports: list[dict[str, Any]] = []
        loop = PlainLoop(task.work / "checkpoints", on=lambda event, to=reports: to.append(dict(event)))
        TRAINER.loop(task, loop)
        assert next(r for r in reports if r["kind"] == "report")["metrics"]["validation_recall_at_1"] > 0.7
        trained = TRAINER.finish(task, loop.restore() or tmp_path)
        made[name] = digest_folder(trained.models["tiny-model"])
    assert made["one"] == made["same"]
    export_embedder(trained.models["tiny-model"], tmp_path / "out", [*names(), *map(korean, names())])
    asked = list(map(korean, names()))
    served = OnnxEmbedder(tmp_path / "out", "float32", threads=1).embed(asked)
    np.testing.assert_allclose(served, vectors(trained.models["tiny-model"], asked), atol=1e-4)


def test_a_killed_extension_is_made_again_and_a_whole_one_kept(model: Path, tmp_path: Path) -> None:
    task = make_task(model, tmp_path / "task", ask=korean, vocabulary={"least": 2})
    (task.work / f"{EXTENDED_FOLDER}.partial" / "half").mkdir(parents=True)
    TRAINER.prepare(task)
    made = task.work / EXTENDED_FOLDER
    before = (digest_folder(made), made.stat().st_mtime_ns)
    TRAINER.prepare(task)
    assert (digest_folder(made), made.stat().st_mtime_ns) == before
    assert not (made / "half").exists()
