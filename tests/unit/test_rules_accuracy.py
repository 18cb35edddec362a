"""The bar of the rules engine on the wine example's dev split: far above word search, and honest about the unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.components.rules import read_aliases
from serving.retrieve.rules import RulesSource
from serving.schema import Item, Query
from serving.understand.order_lines import OrderLines

EXAMPLE = Path(__file__).parents[2] / "examples" / "wine-orders"
PLAIN = {"jamo": 0, "aliases": 0, "expansions": 0, "keyboard": 0, "phonetic": 0}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


CATALOGUE = [Item(i["id"], i["fields"], i["attributes"]) for i in lines(EXAMPLE / "items.jsonl")]
CASES = lines(EXAMPLE / "evaluation" / "dev.jsonl")


def answers(options: dict[str, float]) -> list[tuple[str | None, float]]:
    source = RulesSource(CATALOGUE, {"name_ko": 1.0, "name_en": 1.0}, read_aliases(EXAMPLE / "aliases.yaml"), options)
    queries = [one[0].query for one in OrderLines().understand([Query(case["query"]) for case in CASES])]
    found = source.search(queries, [None] * len(queries), 1)
    return [(CATALOGUE[h.rows[0]].id, float(h.scores[0])) if len(h.rows) else (None, 0.0) for h in found]


def accuracy(found: list[tuple[str | None, float]]) -> float:
    hits = [item in case["accept"] for (item, _), case in zip(found, CASES, strict=True) if case["accept"]]
    return sum(hits) / len(hits)


@pytest.fixture(scope="module")
def full() -> list[tuple[str | None, float]]:
    return answers({})


def test_top_1_is_right_and_far_above_word_search(full: list[tuple[str | None, float]]) -> None:
    assert accuracy(full) >= 0.97
    assert accuracy(full) >= accuracy(answers(PLAIN)) + 0.15


def test_sure_answers_are_right_and_the_unknown_is_not_sure(full: list[tuple[str | None, float]]) -> None:
    sure = [item in case["accept"] for (item, score), case in zip(full, CASES, strict=True) if score >= 0.7]
    assert sum(sure) / len(sure) >= 0.98
    unknown = [score for (_, score), case in zip(full, CASES, strict=True) if not case["accept"]]
    assert sum(score < 0.5 for score in unknown) / len(unknown) >= 0.9
