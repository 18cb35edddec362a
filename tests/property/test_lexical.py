"""Lexical search against BM25F written out plainly, on generated catalogues, with and without live rows."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.components.lexical import build_lexical, terms, words
from serving.retrieve.lexical import LexicalSource
from serving.schema import Item, Query

WEIGHTS = {"name": 2.0, "short": 3.0, "long": 1.0}
K1, B = 1.2, 0.75

vocabulary = st.sampled_from(
    ["edit", "editor", "photos", "pdf", "PDF를", "편집기", "문서편집", "mp3-player", "the", "at", "C++", "libfoo2", "x"]
)
texts = st.lists(vocabulary, max_size=8).map(" ".join)
# Names of letters alone, and none of the vocabulary, so that the name bonus stays out of the plain comparison.
catalogues = st.lists(st.tuples(texts, texts), max_size=12).map(
    lambda rows: [
        Item(f"i{n}", {"name": f"qq{chr(97 + n)}", "short": short, "long": long})
        for n, (short, long) in enumerate(rows)
    ]
)


def analysed(text: str) -> list[str]:
    return [term for word in words(text) for term in terms(word)]


def plain_bm25f(snapshot: Sequence[Item], item: Item, query: str) -> float:
    """BM25F of `item`, with the document frequencies and mean lengths of `snapshot`."""
    n = len(snapshot)
    total = 0.0
    for term in sorted(set(analysed(query))):
        frequency = 0.0
        for field, weight in WEIGHTS.items():
            found = analysed(item.fields[field])
            lengths = [len(analysed(other.fields[field])) for other in snapshot]
            mean = (sum(lengths) / n if n else 0.0) or 1.0
            frequency += weight * Counter(found)[term] / (1 - B + B * len(found) / mean)
        df = sum(any(term in analysed(other.fields[f]) for f in WEIGHTS) for other in snapshot)
        total += math.log(1 + (n - df + 0.5) / (df + 0.5)) * (K1 + 1) * frequency / (K1 + frequency)
    return total


def built(items: Sequence[Item]) -> LexicalSource:
    with tempfile.TemporaryDirectory() as folder:
        build_lexical(Path(folder), items, WEIGHTS, {"k1": K1, "b": B})
        return LexicalSource.load(Path(folder))


@settings(deadline=None)
@given(catalogues, st.integers(0, 12), texts)
def test_scores_are_bm25f_of_the_snapshot_for_old_and_new_rows(items: list[Item], cut: int, query: str) -> None:
    snapshot, added = items[:cut], items[cut:]
    source = built(snapshot)
    source.add(len(snapshot), added)
    (hits,) = source.search([Query(query)], [None], 100)
    expected = {row: plain_bm25f(snapshot, item, query) for row, item in enumerate(items)}
    assert set(hits.rows.tolist()) == {row for row, score in expected.items() if score > 0}
    assert hits.scores.tolist() == pytest.approx([expected[row] for row in hits.rows.tolist()], rel=1e-4)
    assert hits.scores.tolist() == sorted(hits.scores.tolist(), reverse=True)


@settings(deadline=None)
@given(catalogues, st.lists(st.integers(0, 12), max_size=4), texts)
def test_rows_added_in_any_batches_answer_alike(items: list[Item], cuts: list[int], query: str) -> None:
    base = items[: len(items) // 2]
    at_once, by_parts = built(base), built(base)
    at_once.add(len(base), items[len(base) :])
    edges = sorted({len(base), len(items), *(c for c in cuts if len(base) < c < len(items))})
    for start, end in pairwise(edges):
        by_parts.add(start, items[start:end])
    (one,), (two,) = (s.search([Query(query)], [None], 100) for s in (at_once, by_parts))
    assert one.rows.tolist() == two.rows.tolist()
    assert one.scores.tolist() == two.scores.tolist()


@settings(deadline=None)
@given(catalogues, st.integers(0, 12), texts, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(1, 12))
def test_a_mask_and_top_k_give_the_best_allowed_rows(
    items: list[Item], cut: int, query: str, bits: list[bool], top_k: int
) -> None:
    source = built(items[:cut])
    source.add(len(items[:cut]), items[cut:])
    mask = np.array(bits[: len(items)], np.bool_)
    (free,) = source.search([Query(query)], [None], 100)
    (hits,) = source.search([Query(query)], [mask], top_k)
    allowed = [(r, s) for r, s in zip(free.rows.tolist(), free.scores.tolist(), strict=True) if mask[r]]
    assert list(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True)) == allowed[:top_k]


names = st.lists(st.lists(vocabulary, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=8, unique=True)


@settings(deadline=None)
@given(names, st.lists(texts, min_size=8, max_size=8), st.integers(0, 8))
def test_an_item_is_first_for_its_own_name(names: list[str], longs: list[str], cut: int) -> None:
    items = [Item(str(n), {"name": name, "short": "", "long": longs[n]}) for n, name in enumerate(names)]
    source = built(items[:cut])
    source.add(len(items[:cut]), items[cut:])
    for name in names:
        (hits,) = source.search([Query(name)], [None], 1)
        assert names[int(hits.rows[0])] == name
