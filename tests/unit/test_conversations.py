"""Which answers in words are worth imitating, and which hard negatives worth learning from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.fakes import MemoryFeedbackStore
from serving.schema import AppSpec, DataSpec, FeedbackEvent, Query, Trace
from serving.schema.pseudonym import pseudonym
from training.dataset import DatasetRequest
from training.dataset.asked import asked_of
from training.dataset.conversations import (
    CONVERSATIONS,
    Conversations,
    Instruction,
    build_conversations,
    conversations,
)
from training.dataset.example import PEOPLE_FILE, load_info
from training.dataset.mining import Mined, MiningQuery
from training.lora.instructions import read_instructions
from training.lora.options import LoraOptions
from training.negatives import BATCH, MOST, PipelineMiner, choose
from training.ports import Task

SECRET = b"s" * 32


def trace(
    trace_id: str = "t", took_ms: float | None = 2999.0, answer: str | None = "a dry one", **changes: Any
) -> Trace:
    line = {"raw": "something for fish", "shown": [["w1", 0.9, "words", {}], ["gone", 0.8, "words", {}]]}
    timings = {} if took_ms is None else {"total": took_ms}
    told = {"text": answer, "form": "short"} if answer is not None else {}
    return Trace(trace_id, "chat", "1", 5.0, "something for fish", [line], timings_ms=timings, answer=told, **changes)


def rating(value: float, at_s: float = 1.0, trace_id: str = "t", user: str | None = None) -> FeedbackEvent:
    return FeedbackEvent(f"r{at_s}{trace_id}", trace_id, "chat", "1", "rating", at_s, user, value=value)


def choice(event: str = "order", trace_id: str = "t") -> FeedbackEvent:
    return FeedbackEvent(f"{event}{trace_id}", trace_id, "chat", "1", event, 1.0, selected="x")


GOOD = [Instruction("something for fish", "a dry one", 1.0)]


def kept(one: Trace, *events: FeedbackEvent) -> list[Instruction]:
    return conversations({one.trace_id: one}, events, negative_events=("reject",))


def test_a_liked_quick_answer_of_which_something_was_chosen_is_kept() -> None:
    assert kept(trace(), rating(5), choice()) == GOOD
    assert kept(trace(), choice(), rating(4)) == [Instruction("something for fish", "a dry one", 0.5)]


@pytest.mark.parametrize(
    ("one", "events", "reason"),
    [
        (trace(), [rating(3.9), choice()], "not_satisfied"),
        (trace(), [rating(6), choice()], "not_satisfied"),
        (trace(), [choice()], "not_satisfied"),
        (trace(), [rating(5)], "nothing_chosen"),
        (trace(), [rating(5), choice("reject")], "nothing_chosen"),
        (trace(took_ms=3000.0), [rating(5), choice()], "slow"),
        (trace(took_ms=None), [rating(5), choice()], "slow"),
        (trace(answer=None), [rating(5), choice()], "without_words"),
        (trace(answer=" "), [rating(5), choice()], "without_words"),
        (
            replace(trace(), answer={"text": "by the book", "fallback": "grounded: ..."}),
            [rating(5), choice()],
            "without_words",
        ),
    ],
)
def test_others_are_dropped_and_counted_by_reason(one: Trace, events: list[FeedbackEvent], reason: str) -> None:
    heard = Conversations(["reject"])
    for event in events:
        heard.hear(event)
    assert heard.instruction(one) is None
    assert heard.counts == {reason: 1}


def test_the_latest_rating_counts() -> None:
    assert kept(trace(), rating(5, 2.0), rating(1, 1.0), choice()) == GOOD
    assert kept(trace(), rating(1, 2.0), rating(5, 1.0), choice()) == []


def liked(*traces: Trace) -> MemoryFeedbackStore:
    store = MemoryFeedbackStore()
    store.record_traces(traces)
    store.record_many(
        [e for t in traces for e in (rating(5, trace_id=t.trace_id, user=t.user), choice(trace_id=t.trace_id))]
    )
    return store


def test_they_are_a_data_set_without_who_is_forgotten(tmp_path: Path) -> None:
    store = liked(trace("t1"), trace("t2", user="ann"), trace("t3", user="bob"))
    store.record(rating(5, trace_id="t9"))
    request = DatasetRequest("chat", DataSpec(), (), SECRET, 9.0, store, forgotten={pseudonym(SECRET, "ann")})
    info = build_conversations(request, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / CONVERSATIONS).read_text().splitlines()]
    asked = {"role": "user", "content": "something for fish"}
    assert lines == [{"messages": [asked, {"role": "assistant", "content": "a dry one"}], "weight": 1.0}] * 2
    assert (tmp_path / PEOPLE_FILE).read_text().split() == [pseudonym(SECRET, "bob")]
    assert load_info(tmp_path) == info
    assert info.counts["kept"] == 2
    assert info.feedback_seq == 7
    assert build_conversations(request, tmp_path / "again").fingerprint == info.fingerprint


def test_what_was_asked_is_the_prompt_that_serving_sends_and_lora_reads_it(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "w0", "fields": {}}\n{"id": "w1", "fields": {"name": "Riesling"}}\n')
    (tmp_path / "prompt.yaml").write_text(
        'system: Recommend.\nforms: {short: {}}\nuser: "{% for i in items %}{{ i.name | plain }}{% endfor %}: '
        '{{ query | plain }} ({{ form | plain }})"'
    )
    spec = AppSpec.model_validate({
        "name": "chat", "items": {"text": ["name"]}, "retrieve": {"sources": {"words": {"engine": "lexical"}}},
        "language_model": {"model": "tiny"}, "generate": {"prompt": "prompt.yaml"},
        "train": {"words": {"trainer": "lora", "options": {"model": "tiny"}}},
    })  # fmt: skip
    request = DatasetRequest("chat", DataSpec(), (), SECRET, 9.0, liked(trace()))
    build_conversations(request, tmp_path / "set", asked_of(spec, tmp_path, tmp_path / "items.jsonl"))
    options = LoraOptions.model_validate(spec.train["words"].options)
    task = Task(spec, "words", tmp_path, tmp_path / "set", tmp_path / "items.jsonl", None, tmp_path, options)
    [taught] = read_instructions(task)
    assert [m.content for m in taught.history] == ["Recommend.", "Riesling: something for fish (short)"]
    assert taught.answer == "a dry one"


# ---- Hard negatives

RANKING = [Mined("near", 0.97), Mined("right", 1.0), Mined("close", 0.951), Mined("hard", 0.94), Mined("easy", 0.1)]


def test_hard_negatives_are_the_highest_below_the_margin() -> None:
    assert choose(RANKING, {"right"}, 10) == [Mined("hard", 0.94), Mined("easy", 0.1)]
    assert choose(RANKING, {"right"}, 1) == [Mined("hard", 0.94)]
    assert choose(RANKING, {"right", "hard"}, 5) == [Mined("easy", 0.1)]


def test_without_a_right_item_in_the_ranking_nothing_is_known_to_be_wrong() -> None:
    assert choose(RANKING, {"elsewhere"}, 5) == []


def test_the_margin_lies_below_a_negative_score_too() -> None:
    assert choose([Mined("right", -0.2), Mined("near", -0.205), Mined("hard", -0.3)], {"right"}, 5) == [
        Mined("hard", -0.3)
    ]


def test_ten_at_most() -> None:
    ranking = [Mined("right", 9.0), *(Mined(str(n), 1 - n / 100) for n in range(30))]
    assert len(choose(ranking, {"right"}, 100)) == MOST


def test_the_pipeline_is_asked_in_batches_and_answers_in_order() -> None:
    sizes = []

    def rank(queries: Sequence[Query]) -> list[list[Mined]]:
        sizes.append(len(queries))
        return [[Mined("right", 1.0), Mined(query.text, 0.5)] for query in queries]

    asked = [MiningQuery(f"q{n}", frozenset(["right"])) for n in range(2 * BATCH + 1)]
    found = PipelineMiner(rank).mine(asked, 3)
    assert found == [[Mined(f"q{n}", 0.5)] for n in range(2 * BATCH + 1)]
    assert sizes == [BATCH, BATCH, 1]
