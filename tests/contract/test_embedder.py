"""What every embedder promises, the fake and the real ones alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from serving.fakes import FakeEmbedder
from serving.ports import DocumentEmbedder
from serving.retrieve.embedding_cache import CachedEmbedder
from serving.retrieve.onnx_embedder import OnnxEmbedder
from serving.retrieve.torch_embedder import TorchEmbedder
from tests.conftest import made_up_descriptions

TEXTS = [
    "a dry red wine from Portugal",
    "레이크 찰리스 말보로 소비뇽 블랑",
    "plays music",
    "",
    " ",
    "🍷🍷 naïve Ångström \u200b\n\t",
    "text editor",
    *made_up_descriptions()[:40],
]


@dataclass(frozen=True)
class Subject:
    """`min_cosine`: how near a text's vectors in two batches are. int8 shares one activation scale per batch and layer,
    so its vectors move with their company: seen here 0.98 and more, for a text without words 0.967. The others may
    differ only in the order of additions."""

    embedder: DocumentEmbedder
    min_cosine: float
    knows_meaning: bool


@pytest.fixture(scope="module", params=["fake", "cached-fake", "onnx-float32", "onnx-int8", "torch-cpu"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "fake":
        return Subject(FakeEmbedder(), 0.99999, False)
    if request.param == "cached-fake":
        return Subject(CachedEmbedder(FakeEmbedder(), 8), 0.99999, False)
    folder: Path = request.getfixturevalue("minilm_component")
    if request.param == "torch-cpu":
        return Subject(TorchEmbedder(folder, "cpu"), 0.99999, True)
    precision = request.param.removeprefix("onnx-")
    return Subject(OnnxEmbedder(folder, precision, threads=2), 0.95 if precision == "int8" else 0.99999, True)


def assert_near(a: np.ndarray, b: np.ndarray, min_cosine: float) -> None:
    assert a.shape == b.shape
    assert (a * b).sum(axis=1).min(initial=1.0) >= min_cosine


@pytest.mark.parametrize("method", ["embed", "embed_documents"])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 16, 17, len(TEXTS)])
def test_rows_have_the_shape_type_and_length_of_the_port(subject: Subject, method: str, count: int) -> None:
    vectors = getattr(subject.embedder, method)(TEXTS[:count])
    assert vectors.shape == (count, subject.embedder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("method", ["embed", "embed_documents"])
def test_no_texts_give_no_rows(subject: Subject, method: str) -> None:
    vectors = getattr(subject.embedder, method)([])
    assert vectors.shape == (0, subject.embedder.dimension)
    assert vectors.dtype == np.float32


def test_order_is_kept_and_company_does_not_matter(subject: Subject) -> None:
    alone = np.concatenate([subject.embedder.embed([text]) for text in TEXTS])
    assert_near(alone, subject.embedder.embed(TEXTS), subject.min_cosine)
    assert_near(alone, subject.embedder.embed_documents(TEXTS), subject.min_cosine)
    assert_near(alone, subject.embedder.embed(TEXTS[::-1])[::-1], subject.min_cosine)


def test_distinct_texts_have_distinct_rows(subject: Subject) -> None:
    vectors = subject.embedder.embed(TEXTS[:3])
    cosines = vectors @ vectors.T
    assert cosines[np.triu_indices(3, 1)].max() < 0.9


def test_a_very_long_text_is_cut_and_does_not_disturb_its_neighbours(subject: Subject) -> None:
    long = "cherry and tobacco " * 50_000
    vectors = subject.embedder.embed([TEXTS[0], long])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert_near(vectors[:1], subject.embedder.embed([TEXTS[0]]), subject.min_cosine)


def test_the_same_call_gives_the_same_vectors(subject: Subject) -> None:
    np.testing.assert_array_equal(subject.embedder.embed(TEXTS[:8]), subject.embedder.embed(TEXTS[:8]))


def test_many_threads_get_what_one_gets(subject: Subject) -> None:
    wanted = subject.embedder.embed(TEXTS)
    with ThreadPoolExecutor(6) as pool:
        for vectors in pool.map(lambda _: subject.embedder.embed(TEXTS), range(12)):
            assert_near(vectors, wanted, subject.min_cosine)


def test_progress_ends_at_all(subject: Subject) -> None:
    told: list[tuple[int, int]] = []
    subject.embedder.embed_documents(TEXTS, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(TEXTS), len(TEXTS))
    assert told == sorted(told)


def test_a_fingerprint_is_a_digest(subject: Subject) -> None:
    assert len(subject.embedder.fingerprint) == 64


def test_shared_spelling_is_nearer_than_none(subject: Subject) -> None:
    query, near, far = subject.embedder.embed(["coffee grinders", "grinder for coffee", "zip archive tool"])
    assert query @ near > query @ far + 0.2


def test_meaning_is_nearer_than_spelling(subject: Subject) -> None:
    if not subject.knows_meaning:
        pytest.skip("trigrams know no meaning")
    query, near, far = subject.embedder.embed(["a beverage made of grapes", "red wine", "a bridge made of planks"])
    assert query @ near > query @ far + 0.1


def test_tokens_are_counted_one_text_at_a_time_or_together(subject: Subject) -> None:
    alone = [subject.embedder.count_tokens([text]) for text in TEXTS]
    assert subject.embedder.count_tokens(TEXTS) == sum(alone)
    assert min(alone) >= 1
    assert subject.embedder.count_tokens(["editor editor editor"]) > subject.embedder.count_tokens(["editor"])
    assert subject.embedder.count_tokens([]) == 0


def test_tokens_that_are_cut_off_are_not_counted(minilm_component: Path) -> None:
    for embedder in (OnnxEmbedder(minilm_component, max_tokens=16), TorchEmbedder(minilm_component, "cpu", "auto", 16)):
        assert embedder.count_tokens(["word " * 600]) == 16
        assert embedder.count_tokens(["one two"]) == 4  # with the two special ones
