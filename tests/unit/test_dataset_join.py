"""What one feedback event says of the answer it is about, and what several say of the same pair."""

from __future__ import annotations

from collections import Counter

import pytest

from serving.schema import DataSpec, FeedbackEvent, Trace
from tests.feedback_log import NOW, PLAIN, event, trace
from training.dataset import Example
from training.dataset.join import examples_of, line_of
from training.dataset.resolve import resolve


def joined(one: FeedbackEvent, of: Trace | None, data: DataSpec = PLAIN) -> tuple[list[Example], Counter[str]]:
    counts: Counter[str] = Counter()
    return list(examples_of(one, line_of(one, of), "ann", data, counts)), counts


@pytest.mark.parametrize(("name", "weight"), [("order", 2.0), ("select", 2.0), ("favorite", 1.5), ("click", 1.0)])
def test_a_choice_is_a_positive_weighed_by_its_event(name: str, weight: float) -> None:
    examples, _ = joined(event(name), trace())
    first = examples[0]
    assert (first.item, first.label, first.weight, first.rank, first.score, first.event) == (
        "b", 1, weight, 2, 0.85, name,
    )  # fmt: skip


def test_what_was_shown_beside_a_choice_is_negative_and_weighs_more_above_the_hard_score() -> None:
    examples, _ = joined(event(), trace())
    assert [(e.item, e.label, e.weight, e.event) for e in examples[1:]] == [
        ("a", 0, 1.5, "shown"), ("c", 0, 1.0, "shown"), ("d", 0, 1.0, "shown"),
    ]  # fmt: skip


def test_only_as_many_of_a_long_answer_as_can_be_needed_are_taken_and_the_rest_is_counted() -> None:
    shown = [[str(n), 0.5 - n / 100] for n in range(20)]
    examples, counts = joined(event(selected="b"), trace(shown=shown), DataSpec(negatives_per_positive=2))
    assert [e.item for e in examples] == ["b", "0", "1", "2", "3"]
    assert counts["shown_not_needed"] == 16


def test_rejections_are_negatives_of_their_own_and_nothing_else_is_said_by_them() -> None:
    examples, _ = joined(event("reject", "a", rejected=("c",)), trace())
    assert {(e.item, e.label, e.weight, e.event) for e in examples} == {
        ("c", 0, 1.0, "reject"),
        ("a", 0, 1.5, "reject"),
    }
    chosen, _ = joined(event("order", "b", rejected=("a",)), trace())
    assert [(e.item, e.label, e.event) for e in chosen[:2]] == [("b", 1, "order"), ("a", 0, "reject")]


@pytest.mark.parametrize(("value", "said"), [(5.0, (1, 1.0)), (4.0, (1, 0.5)), (2.0, (0, 0.5)), (1.0, (0, 1.0))])
def test_a_rating_says_right_or_wrong_by_its_value(value: float, said: tuple[int, float]) -> None:
    examples, _ = joined(event("rating", "c", value=value), trace())
    assert (examples[0].item, examples[0].label, examples[0].weight) == ("c", *said)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (event("rating", "c", value=3.0), "ratings_without_verdict"),
        (event("rating", "c", value=9.0), "ratings_without_verdict"),
        (event("look", "c"), "events_without_weight"),
        (event("order", None, value=2.0), "events_without_item"),
    ],
)
def test_what_says_nothing_is_counted(one: FeedbackEvent, reason: str) -> None:
    examples, counts = joined(one, trace())
    assert (examples, counts[reason]) == ([], 1)


def test_an_event_tells_itself_what_a_purged_trace_no_longer_can() -> None:
    one = event(raw="red wine", scores={"dense": {"a": 0.4, "b": 0.3}, "rules": {"a": 0.9}})
    examples, _ = joined(one, None)
    assert [(e.query, e.item, e.label, e.rank, e.score, e.weight) for e in examples] == [
        ("red wine", "b", 1, None, 0.3, 2.0), ("red wine", "a", 0, None, 0.9, 1.5),
    ]  # fmt: skip
    assert joined(event(), None) == ([], Counter(events_without_query=1))


def test_the_line_that_was_chosen_for_is_the_query() -> None:
    lines = [{"raw": q, "shown": [[i, 0.5, "rules", {}]]} for q, i in (("first", "a"), ("second", "b"))]
    two = Trace("t", "shop", "1", NOW, "first\nsecond", lines)
    examples, _ = joined(event("order", "c", line=1), two)
    assert [(e.query, e.item, e.rank) for e in examples] == [("second", "c", None), ("second", "b", 1)]


def said(label: int, weight: float, at_s: float, user: str = "", name: str = "order") -> Example:
    return Example("q", "a", label, weight, at_s, user, event=name)


def test_a_choice_outweighs_what_was_only_shown() -> None:
    kept = resolve([said(0, 1.5, 9, "bob", "shown"), said(1, 1, 1, "ann", "click")])
    assert (kept.kept.label, kept.dropped, kept.contradicted) == (1, 1, False)


def test_the_strongest_then_the_latest_is_kept() -> None:
    rows = [said(1, 2, 5, "ann"), said(1, 1, 9, "bob", "click"), said(1, 2, 7, "cy")]
    assert resolve(rows).kept == rows[2]


def test_each_person_has_one_voice_their_latest() -> None:
    rows = [said(0, 1, t, "ann", "reject") for t in range(5)] + [said(1, 2, 3, "bob")]
    assert (resolve(rows).kept.label, resolve(rows).contradicted) == (1, True)
    assert resolve([said(1, 2, 1, "ann"), said(0, 1, 2, "ann", "reject")]).kept.label == 0


def test_contradicting_people_are_added_up_and_equals_go_to_the_latest() -> None:
    two_against_one = [said(0, 1.5, 1, "ann", "reject"), said(0, 1.5, 2, "bob", "reject"), said(1, 2, 9, "cy")]
    assert resolve(two_against_one).kept.label == 0
    assert resolve([said(1, 1, 1, "ann"), said(0, 1, 2, "bob")]).kept.label == 0
    assert resolve([said(1, 1, 3, "ann"), said(0, 1, 2, "bob")]).kept.label == 1
