"""bench.beauty without encoders: its searches are exact, and its tables tell what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bench.beauty import (
    BM25,
    POPULARITY,
    UNTUNED,
    World,
    by_popularity,
    by_words,
    measured,
    nearest,
    render,
    write_candidates,
)
from serving.schema import Item, load_app_spec
from training.cases import Case
from training.evaluate import RankedAnswer

EXAMPLE = Path(__file__).parents[2] / "examples" / "beauty-finder"
TEXTS = ["[Title] calm cream", "[Title] curl wand", "[Title] nail lamp", "[Title] wand case"]


def world() -> World:
    items = [Item(f"i{n}", {"text": text, "reviews": n}) for n, text in enumerate(TEXTS)]
    cases = [Case("my wand", frozenset({"i1"}), "seen items"), Case("lamp", frozenset({"i2"}), "new items")]
    return World(load_app_spec(EXAMPLE), EXAMPLE, items, TEXTS, cases)


def test_nearest_is_exact_and_of_equals_takes_the_first() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    vectors[31] = vectors[7]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[[7, 40]]
    wanted = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    assert nearest(queries, vectors, 10).tolist() == wanted[:, :10].tolist()
    assert nearest(queries, vectors, 10)[0, :2].tolist() == [7, 31]
    assert nearest(queries, vectors[:3], 10).shape == (2, 3)


def test_the_table_tells_each_systems_recall_and_the_difference(tmp_path: Path) -> None:
    made = world()
    outcomes = {
        POPULARITY: measured(POPULARITY, lambda: by_popularity(made.items), made),
        BM25: measured(BM25, lambda: by_words(made, tmp_path), made),
        UNTUNED: measured(UNTUNED, lambda: lambda queries: [RankedAnswer(("i2",))] * len(queries), made),
    }
    assert outcomes[POPULARITY].answers[0].ids == ("i3", "i2", "i1", "i0")
    assert set(outcomes[BM25].answers[0].ids) == {"i1", "i3"}
    told = {line.split("  ")[0]: line.split()[-3:] for line in render("valid", outcomes, 4).splitlines()}
    assert told["Recall@1"] == ["0.0000", "1.0000", "0.5000"]
    assert told["Recall@100"] == ["1.0000", "1.0000", "0.5000"]
    assert told["MRR"][0] == f"{(1 / 3 + 1 / 2) / 2:.4f}"
    assert told["Recall@100, new items"] == ["1.0000", "1.0000", "1.0000"]
    assert "Recall@100, untuned - BM25: -0.5000 [" in render("valid", outcomes, 4)
    write_candidates(tmp_path / "c.jsonl", made.cases, outcomes[UNTUNED].answers)
    first = json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])
    assert first == {"query": "my wand", "accept": ["i1"], "candidates": ["i2"]}
