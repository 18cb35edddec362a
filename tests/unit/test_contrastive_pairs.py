"""Examples to batches: no false negatives, weights as frequencies, the same batches every time. No torch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.contrastive.options import ContrastiveOptions
from training.contrastive.pairs import (
    Batch,
    Batching,
    Pair,
    draw,
    epoch_batches,
    read_items,
    read_pairs,
    step_count,
    steps,
)
from training.dataset.example import Example, write_examples


@st.composite
def pair_sets(draw_from: st.DrawFn) -> list[Pair]:
    """Few queries and texts, so that nearly everything collides."""
    answers: dict[str, set[str]] = {}
    names = st.integers(0, 9)
    for query, text in draw_from(st.lists(st.tuples(names, names), min_size=1, max_size=40)):
        answers.setdefault(f"q{query}", set()).add(f"t{text}")
    wrong = tuple((f"t{n}", 1.0 + n) for n in draw_from(st.lists(names, max_size=4, unique=True)))
    return [
        Pair(query, text, 1.0, frozenset(texts), tuple((w, x) for w, x in wrong if w not in texts))
        for query, texts in answers.items()
        for text in sorted(texts)
    ]


@given(pair_sets(), st.integers(2, 8), st.integers(0, 3))
def test_no_batch_holds_a_false_negative(pairs: list[Pair], size: int, hard: int) -> None:
    how = Batching([len(pair.query + pair.text) for pair in pairs], size, hard)
    for batch in epoch_batches(pairs, how, 0, 0):
        inside = [pairs[row] for row in batch.rows]
        assert 2 <= len(inside) <= size
        assert len({pair.query for pair in inside}) == len({pair.text for pair in inside}) == len(inside)
        for pair in inside:
            assert pair.rights & {*(other.text for other in inside), *batch.wrongs} == {pair.text}
        assert len(set(batch.wrongs)) == len(batch.wrongs) <= hard * len(inside)


def unlike(count: int) -> list[Pair]:
    return [Pair(f"q{n}", f"t{n}", 1.0, frozenset({f"t{n}"})) for n in range(count)]


def test_an_epoch_without_collisions_asks_every_pair_once() -> None:
    pairs = unlike(70)
    batches = epoch_batches(pairs, Batching([n % 7 for n in range(70)], 8), 3, 0)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(70))
    assert sorted(len(batch.rows) for batch in batches) == [6, *[8] * 8]


def test_texts_of_like_length_share_a_batch() -> None:
    batches = epoch_batches(unlike(64), Batching([n % 8 for n in range(64)], 8), 0, 0)
    assert all(len({row % 8 for row in batch.rows}) == 1 for batch in batches)
    assert [batch.rows[0] % 8 for batch in batches] != sorted((b.rows[0] % 8 for b in batches), reverse=True)


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    pairs, how = unlike(40), Batching([1] * 40, 4)
    assert epoch_batches(pairs, how, 1, 2) == epoch_batches(pairs, how, 1, 2)
    assert epoch_batches(pairs, how, 1, 2) != epoch_batches(pairs, how, 1, 3)
    assert epoch_batches(pairs, how, 1, 2) != epoch_batches(pairs, how, 2, 2)


def test_a_pair_is_drawn_in_proportion_to_its_weight() -> None:
    pairs = [Pair(f"q{n}", f"t{n}", 3.0 if n == 5 else 0.5) for n in range(11)]
    drawn: Counter[int] = Counter()
    for epoch in range(400):
        once = draw(pairs, Random(epoch))
        assert len(once) == len(pairs)
        drawn.update(once)
    assert drawn[5] / drawn[0] == pytest.approx(6, rel=0.15)


def test_hard_negatives_of_more_weight_come_more_often() -> None:
    pairs = [
        Pair("a", "right", 1.0, frozenset({"right"}), (("heavy", 4.0), ("light", 1.0))),
        Pair("b", "other", 1.0, frozenset({"other"})),
    ]
    seen = Counter(w for epoch in range(500) for b in epoch_batches(pairs, Batching([1, 1], 2, 1), 0, epoch)
                   for w in b.wrongs)  # fmt: skip
    assert seen["heavy"] / seen["light"] == pytest.approx(4, rel=0.3)


def test_workers_share_a_batch_evenly() -> None:
    batch = Batch(tuple(range(7)), ("a", "b", "c"))
    first, second = batch.share(0, 2), batch.share(1, 2)
    assert sorted([*first.rows, *second.rows]) == [0, 1, 2, 3, 4, 5]
    assert {*first.wrongs, *second.wrongs} == {"a", "b"}
    assert batch.share(0, 1) == batch


def test_steps_go_on_over_epochs_and_are_counted() -> None:
    pairs, how = unlike(20), Batching([1] * 20, 4)
    assert step_count(pairs, how, 0, 2, 2) == 6  # five batches an epoch, two a step
    stream = steps(pairs, how, 0, 2)
    assert [len(next(stream)) for _ in range(6)] == [2, 2, 1, 2, 2, 1]
    assert list(steps(pairs[:1], how, 0, 1)) == []


def test_pairs_are_read_once_each_with_what_is_wrong_for_them(tmp_path: Path) -> None:
    items = [{"id": i, "fields": {"a": a, "b": b}} for i, a, b in
             [("x", "one", "two"), ("y", "one", "two"), ("z", "three", None), ("empty", "", None)]]  # fmt: skip
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    texts = read_items(tmp_path / "items.jsonl", ("b", "a"))
    assert texts == {"x": "two. one", "y": "two. one", "z": "three", "empty": ""}
    examples = [
        Example("q", "x", 1, 1.0), Example(" q ", "y", 1, 2.0), Example("q", "z", 0, 1.5), Example("q", "z", 0, 1.0),
        Example("q", "gone", 1), Example("p", "z", 1), Example("p", "empty", 0), Example("r", "z", 0),
        Example(" ", "z", 1),
    ]  # fmt: skip
    write_examples(tmp_path / "train.jsonl", examples)
    found = read_pairs(tmp_path / "train.jsonl", texts)
    assert found.pairs == [
        Pair("q", "two. one", 2.0, frozenset({"two. one"}), (("three", 1.5),)),
        Pair("p", "three", 1.0, frozenset({"three"})),
    ]
    assert found.missing == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"matryoshka": (16, 16)}, "different dimensions"),
        ({"dimension": 8, "matryoshka": (16,)}, "does not train"),
        ({"lora": {}, "train_layers": 1}, "its own weights only"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"steps": 3}, "Extra inputs"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ContrastiveOptions.model_validate(options)
