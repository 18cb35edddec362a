"""A feedback event and the answer it is about, made into examples. Pure; `training.dataset.build` calls it per event.

A choice makes a positive of the item and negatives of what was shown beside it; a rejection makes a negative; a rating
either. What the trace no longer tells (traces are kept for a while, events for good) the event tells itself: the line
and each source's scores of the items shown. Answers of arms, pinned answers, and those that stable gave in an arm's
place were all shown to a person, and so was an abstained answer: all of them teach alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.schema import DataSpec, FeedbackEvent, Trace
from training.dataset.example import Example
from training.dataset.weigh import RATING, Verdict, negative_weight, rating_verdict

SHOWN = "shown"
REJECT = "reject"
SPARE = 2
"""So many times the negatives that a positive may keep are taken of its answer: some turn out as duplicates."""


class Place(NamedTuple):
    """Where an item was shown."""

    rank: int | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """What was asked and shown; `shown` in order."""

    query: str
    shown: Mapping[str, Place]
    record: Mapping[str, Any] = field(default_factory=dict)
    abstained: bool = False


NOT_SHOWN = Place(None, None)


def line_of(event: FeedbackEvent, trace: Trace | None) -> Line:
    if trace is None or event.line >= len(trace.lines):
        scores: dict[str, float] = {}
        for by_item in event.scores.values():
            for item, score in by_item.items():
                scores[item] = max(score, scores.get(item, -math.inf))
        return Line(event.raw or "", {item: Place(None, score) for item, score in scores.items()})
    line = trace.lines[event.line]
    shown = {entry[0]: Place(rank, float(entry[1])) for rank, entry in enumerate(line.get("shown", ()), 1)}
    text = line.get("raw")
    record = line.get("record") or {}
    return Line(trace.query if text is None else text, shown, record, bool(line.get("abstained")))


def examples_of(event: FeedbackEvent, line: Line, user: str, data: DataSpec, counts: Counter[str]) -> Iterator[Example]:
    """The examples of one event; `user` is a pseudonym. What is left out is counted by reason."""
    if not (line.query.strip() or line.record):
        counts["events_without_query"] += 1
        return
    verdict = _verdict(event, data, counts)
    chosen = event.selected if verdict is not None and verdict.label else None
    rejected = dict.fromkeys(event.rejected)
    if event.selected is not None and verdict is not None and not verdict.label:
        rejected[event.selected] = None

    def example(item: str, verdict: Verdict, name: str) -> Example:
        place = line.shown.get(item, NOT_SHOWN)
        return Example(
            line.query, item, verdict.label, verdict.weight, event.at_s, user, place.rank, place.score, name,
            record=line.record,
        )  # fmt: skip

    if chosen is not None and verdict is not None:
        yield example(chosen, verdict, event.event)
    for item in rejected:
        if item != chosen:
            strength = verdict.weight if item == event.selected and verdict is not None else 1.0
            hard = negative_weight(line.shown.get(item, NOT_SHOWN).score, data)
            yield example(item, Verdict(0, strength * hard), event.event if item == event.selected else REJECT)
    if chosen is not None:
        others = [item for item in line.shown if item != chosen and item not in rejected]
        others.sort(key=lambda item: (-(line.shown[item].score or 0.0), item))
        needed = SPARE * math.ceil(data.negatives_per_positive)
        counts["shown_not_needed"] += max(len(others) - needed, 0)
        for item in others[:needed]:
            yield example(item, Verdict(0, negative_weight(line.shown[item].score, data)), SHOWN)


def _verdict(event: FeedbackEvent, data: DataSpec, counts: Counter[str]) -> Verdict | None:
    """What the event says of its `selected` item; None: nothing."""
    if event.selected is None:
        if not event.rejected:
            counts["events_without_item"] += 1
        return None
    if event.event in data.negative_events:
        return Verdict(0, 1.0)
    if event.event == RATING and event.value is not None:
        verdict = rating_verdict(event.value, data.event_weights.get(RATING, 1.0))
        counts["ratings_without_verdict"] += verdict is None
        return verdict
    weight = data.event_weights.get(event.event)
    if weight is None or not weight > 0:
        counts["events_without_weight"] += 1
        return None
    return Verdict(1, weight)
