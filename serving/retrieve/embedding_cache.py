"""Keeps the vectors of recent queries: people and retries ask the same things again.

`build` puts it around the embedder of a release; its counters go to the metrics.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.components.onnx_encoder import Progress
from serving.errors import BadRequest
from serving.ports import DocumentEmbedder, Vectors


class CacheStats(NamedTuple):
    """Texts looked up. A text that comes twice in a batch misses once and hits once."""

    hits: int
    misses: int


class CachedEmbedder:
    """Implements `DocumentEmbedder`; thread-safe. Least recently used first out, at `max_entries`; 0: no cache.

    An entry is a vector of 4 * dimension bytes and its text. Documents pass by: they would drive the queries out.
    """

    def __init__(self, embedder: DocumentEmbedder, max_entries: int) -> None:
        if max_entries < 0:
            raise BadRequest(f"max_entries is {max_entries}; use 0 for no cache, or a count", field="max_entries")
        self._embedder = embedder
        self._max_entries = max_entries
        self.fingerprint = embedder.fingerprint
        self.dimension = embedder.dimension
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0
        self._taken = CacheStats(0, 0)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def stats(self) -> CacheStats:
        """Since the start."""
        with self._lock:
            return CacheStats(self._hits, self._misses)

    def take_stats(self) -> CacheStats:
        """Since this was last called."""
        with self._lock:
            new = CacheStats(self._hits - self._taken.hits, self._misses - self._taken.misses)
            self._taken = CacheStats(self._hits, self._misses)
            return new

    def embed(self, texts: Sequence[str]) -> Vectors:
        if not self._max_entries:
            return self._embedder.embed(texts)
        found = self._look_up(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            # Outside the lock: two callers that miss the same text both embed it, and neither waits for the other.
            new = dict(zip(missing, self._embedder.embed(missing), strict=True))
            found |= new
            self._keep(new)
        with self._lock:
            self._hits += len(texts) - len(missing)
            self._misses += len(missing)
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, self.dimension), np.float32)

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        return self._embedder.embed_documents(texts, progress)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._embedder.count_tokens(texts)

    def _look_up(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        found = {}
        with self._lock:
            for text in texts:
                key = (self.fingerprint, text)
                if key in self._vectors:
                    self._vectors.move_to_end(key)
                    found[text] = self._vectors[key]
        return found

    def _keep(self, new: dict[str, NDArray[np.float32]]) -> None:
        with self._lock:
            for text, vector in new.items():
                self._vectors[self.fingerprint, text] = vector.copy()  # a view would keep its whole batch in memory
            while len(self._vectors) > self._max_entries:
                self._vectors.popitem(last=False)
