"""Whether int8 may stand in for float32: both embedders search a sample of the app's own items, and must agree.

`training.export` runs it and records the figures; `precision: auto` obeys. It judges retrieval, not single vectors,
because the error of int8 matters only where it changes what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.components.embedder import Int8Gate

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]

MAX_DOCUMENTS = 500
MAX_QUERIES = 100
QUERY_WORDS = 8
K = 10
MIN_DOCUMENTS = 50
"""Fewer sampled items say nothing about the neighbours of ten: the gate fails and float32 serves."""

MIN_OVERLAP_RATIO = 0.85
MIN_MEAN_COSINE = 0.98
"""MiniLM quantised per channel has 0.99 and 0.9 of its neighbours over package descriptions. Quantised per tensor it
has 0.955 and 0.78, which is what these limits must refuse."""


def sample(texts: Sequence[str], size: int) -> list[str]:
    """At most `size` distinct texts, evenly spaced in the order given."""
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(distinct) <= size:
        return distinct
    return [distinct[i * len(distinct) // size] for i in range(size)]


def run_gate(texts: Sequence[str], float32: tuple[Encode, Encode], int8: tuple[Encode, Encode]) -> Int8Gate:
    """`float32` and `int8` are (encode queries, encode documents). The first words of sampled items are the queries."""
    documents = sample(texts, MAX_DOCUMENTS)
    queries = sample([" ".join(text.split()[:QUERY_WORDS]) for text in sample(documents, MAX_QUERIES)], MAX_QUERIES)
    k = min(K, len(documents))
    (queries32, documents32), (queries8, documents8) = (
        (encode_queries(queries), encode_documents(documents)) for encode_queries, encode_documents in (float32, int8)
    )
    wanted = _nearest(queries32, documents32, k)
    overlap = _overlap(wanted, _nearest(queries8, documents8, k))
    mixed = _overlap(wanted, _nearest(queries32, documents8, k))
    cosines = np.concatenate([_cosines(queries32, queries8), _cosines(documents32, documents8)])
    mean_cosine = float(cosines.mean()) if len(cosines) else 0.0
    enough = len(documents) >= MIN_DOCUMENTS
    return Int8Gate(
        documents=len(documents),
        queries=len(queries),
        k=k,
        overlap_ratio=round(overlap, 3),
        mixed_overlap_ratio=round(mixed, 3),
        mean_cosine=round(mean_cosine, 3),
        min_overlap_ratio=MIN_OVERLAP_RATIO,
        min_mean_cosine=MIN_MEAN_COSINE,
        passed=enough and min(overlap, mixed) >= MIN_OVERLAP_RATIO and mean_cosine >= MIN_MEAN_COSINE,
    )


def _nearest(queries: Vectors, documents: Vectors, k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]


def _overlap(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Share of the wanted neighbours that were found; 0 without any."""
    if not wanted.size:
        return 0.0
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(wanted, found, strict=True)]))


def _cosines(a: Vectors, b: Vectors) -> NDArray[np.float32]:
    return np.asarray((a * b).sum(axis=1), np.float32)
