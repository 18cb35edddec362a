"""Answers in words that people liked, as instruction examples for a language model.

An answer is kept when its user said so (the event `rating` with a `value` from 1 to 5, at least SATISFIED), chose
something of it, and did not have to wait: what was slow or unhelpful is not worth imitating. `training.lora` reads the
JSON lines, `{"prompt", "answer", "weight"}`. `conversations` is pure; `write_conversations` reads the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from serving.schema import FeedbackEvent, Trace
from serving.schema.pseudonym import pseudonym
from training.dataset.request import DatasetRequest
from training.dataset.weigh import RATING, rating_verdict

SATISFIED = 4.0
PATIENCE_MS = 3000.0
PAGE = 500

AnswerOf = Callable[[Trace, FeedbackEvent], str | None]
"""The words that an answer gave to the line its user chose something of; None: there were none."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """To `prompt`, `answer` was good; `weight` 0.5 for a rating of 4, 1 for 5."""

    prompt: str
    answer: str
    weight: float = 1.0


@dataclass(slots=True)
class _Said:
    """Of one trace: the latest rating, and the latest choice."""

    rating: FeedbackEvent | None = None
    choice: FeedbackEvent | None = None


def generated_text(trace: Trace, choice: FeedbackEvent) -> str | None:
    """The `answer` that the generate phase left in the trace's line."""
    if choice.line >= len(trace.lines):
        return None
    text = trace.lines[choice.line].get("answer")
    return text if isinstance(text, str) and text.strip() else None


class Conversations:
    """Takes events in any order, then says of each trace what is kept. `counts` says why others were not."""

    def __init__(self, negative_events: Iterable[str] = (), answer_of: AnswerOf = generated_text) -> None:
        self.counts: Counter[str] = Counter()
        self._negative = frozenset(negative_events)
        self._answer_of = answer_of
        self._said: dict[str, _Said] = {}

    def hear(self, event: FeedbackEvent) -> None:
        rating = event.event == RATING and event.value is not None
        choice = event.selected is not None and not rating and event.event not in self._negative
        if rating or choice:
            said = self._said.setdefault(event.trace_id, _Said())
            if rating and _later(event, said.rating):
                said.rating = event
            if choice and _later(event, said.choice):
                said.choice = event

    def rated(self) -> list[str]:
        """Ids of the traces whose rating is high enough, in order."""
        return sorted(i for i, said in self._said.items() if said.rating and (said.rating.value or 0) >= SATISFIED)

    def instruction(self, trace: Trace) -> Instruction | None:
        """None, counted by reason, for an answer that is not to be imitated."""
        said = self._said.get(trace.trace_id, _Said())
        rating = said.rating.value if said.rating is not None else None
        verdict = rating_verdict(rating, 1.0) if rating is not None and rating >= SATISFIED else None
        took_ms = trace.timings_ms.get("total")
        answer = self._answer_of(trace, said.choice) if said.choice is not None else None
        if verdict is None:
            reason = "not_satisfied"
        elif said.choice is None:
            reason = "nothing_chosen"
        elif took_ms is None or took_ms >= PATIENCE_MS:
            reason = "slow"
        elif answer is None:
            reason = "without_words"
        else:
            self.counts["kept"] += 1
            line = trace.lines[said.choice.line] if said.choice.line < len(trace.lines) else {}
            return Instruction(str(line.get("raw") or trace.query), answer, verdict.weight)
        self.counts[reason] += 1
        return None


def conversations(
    traces: Mapping[str, Trace],
    events: Iterable[FeedbackEvent],
    negative_events: Iterable[str] = (),
    answer_of: AnswerOf = generated_text,
) -> list[Instruction]:
    """The instruction examples of these traces, in the order of their ids."""
    heard = Conversations(negative_events, answer_of)
    for event in events:
        heard.hear(event)
    made = (heard.instruction(traces[trace_id]) for trace_id in sorted(traces))
    return [one for one in made if one is not None]


def write_conversations(request: DatasetRequest, path: Path, answer_of: AnswerOf = generated_text) -> Counter[str]:
    """Write those of the app's feedback to `path`, without the people who are forgotten; returns the counts. Holds two
    events per rated trace in memory. Raises StoreUnavailable, OSError."""
    heard = Conversations(request.data.negative_events, answer_of)
    for event in _events(request):
        if not _forgotten(request, event.user):
            heard.hear(event)
    store = request.feedback
    with path.open("wb") as file:
        rated = heard.rated()
        for start in range(0, len(rated), PAGE):
            found = store.traces(rated[start : start + PAGE]) if store is not None else {}
            for trace_id in rated[start : start + PAGE]:
                trace = found.get(trace_id)
                if trace is None:
                    heard.counts["without_trace"] += 1
                elif _forgotten(request, trace.user):
                    heard.counts["forgotten"] += 1
                elif (one := heard.instruction(trace)) is not None:
                    file.write(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE))
    return heard.counts


def _events(request: DatasetRequest) -> Iterator[FeedbackEvent]:
    after = 0
    while request.feedback is not None and (page := request.feedback.events(request.app, after, PAGE)):
        for seq, event in page:
            if request.until_seq is None or seq <= request.until_seq:
                yield event
        after = page[-1][0]


def _forgotten(request: DatasetRequest, user: str | None) -> bool:
    return user is not None and pseudonym(request.secret, user) in request.forgotten


def _later(event: FeedbackEvent, other: FeedbackEvent | None) -> bool:
    return other is None or (event.at_s, event.event_id) > (other.at_s, other.event_id)
