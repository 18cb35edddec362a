"""The cache never changes a vector and never outgrows its bound, whatever is asked in whatever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.components.onnx_encoder import Progress
from serving.errors import BadRequest
from serving.fakes import FakeEmbedder
from serving.ports import Vectors
from serving.retrieve.embedding_cache import CachedEmbedder, CacheStats

BATCHES = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=12)


class Recording:
    """A fake that remembers what it was asked."""

    def __init__(self) -> None:
        self._fake = FakeEmbedder(16)
        self.fingerprint, self.dimension = self._fake.fingerprint, self._fake.dimension
        self.asked: list[list[str]] = []

    def embed(self, texts: list[str]) -> Vectors:
        self.asked.append(list(texts))
        return self._fake.embed(texts)

    def embed_documents(self, texts: list[str], progress: Progress | None = None) -> Vectors:
        return self._fake.embed_documents(texts, progress)


@given(batches=BATCHES, max_entries=st.integers(0, 5))
def test_vectors_are_those_of_the_embedder_and_the_bound_holds(batches: list[list[str]], max_entries: int) -> None:
    plain, cached = FakeEmbedder(16), CachedEmbedder(FakeEmbedder(16), max_entries)
    for batch in batches:
        np.testing.assert_array_equal(cached.embed(batch), plain.embed(batch))
        assert len(cached) <= max_entries


@given(batches=BATCHES, max_entries=st.integers(1, 5))
def test_it_behaves_as_a_least_recently_used_list(batches: list[list[str]], max_entries: int) -> None:
    inner = Recording()
    cached = CachedEmbedder(inner, max_entries)
    kept: list[str] = []  # the model: least recently used first
    hits = misses = 0
    for batch in batches:
        inner.asked.clear()
        cached.embed(batch)
        missing = [text for text in dict.fromkeys(batch) if text not in kept]
        assert inner.asked == ([missing] if missing else [])
        hits, misses = hits + len(batch) - len(missing), misses + len(missing)
        for text in [*(t for t in batch if t not in missing), *missing]:
            kept = [k for k in kept if k != text] + [text]
        kept = kept[-max_entries:]
    assert cached.stats == CacheStats(hits, misses)


def test_zero_disables_it() -> None:
    inner = Recording()
    cached = CachedEmbedder(inner, 0)
    cached.embed(["a", "a"])
    cached.embed(["a"])
    assert inner.asked == [["a", "a"], ["a"]]
    assert cached.stats == CacheStats(0, 0)


def test_stats_are_taken_once() -> None:
    cached = CachedEmbedder(FakeEmbedder(), 4)
    cached.embed(["a", "a", "b"])
    assert cached.take_stats() == CacheStats(1, 2)
    cached.embed(["a"])
    assert cached.take_stats() == CacheStats(1, 0)
    assert cached.take_stats() == CacheStats(0, 0)
    assert cached.stats == CacheStats(2, 2)


def test_documents_do_not_drive_queries_out() -> None:
    cached = CachedEmbedder(FakeEmbedder(), 2)
    cached.embed(["a"])
    cached.embed_documents(["x", "y", "z"])
    cached.embed(["a"])
    assert cached.stats == CacheStats(1, 1)


def test_a_caller_may_write_into_what_it_got() -> None:
    cached = CachedEmbedder(FakeEmbedder(), 2)
    wanted = cached.embed(["a"]).copy()
    cached.embed(["a"])[:] = 0
    np.testing.assert_array_equal(cached.embed(["a"]), wanted)


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(BadRequest, match="max_entries"):
        CachedEmbedder(FakeEmbedder(), -1)
