"""Answers that people liked, as instruction examples for a language model.

An answer is kept when its user said so (the event `rating` with a `value` from 1 to 5, at least SATISFIED), chose
something of it, and did not have to wait: what was slow or unhelpful is not worth imitating. So is what a template
said in the model's place. `conversations` is pure. `build_conversations` makes a data set of them, as `training.wiring`
asks for where a trainer learns from conversations; `training.lora` reads its JSON lines, `{"messages", "weight"}`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from serving.ports import Message
from serving.schema import FeedbackEvent, Trace
from serving.schema.pseudonym import pseudonym
from training.dataset.example import PARTS, PEOPLE_FILE, DatasetInfo, save_info
from training.dataset.request import DatasetRequest
from training.dataset.weigh import RATING, rating_verdict

SATISFIED = 4.0
PATIENCE_MS = 3000.0
PAGE = 500
CONVERSATIONS = "conversations.jsonl"

AnswerOf = Callable[[Trace, FeedbackEvent], str | None]
"""The words that an answer gave to the line its user chose something of; None: there were none."""

AskedOf = Callable[[Trace, int], Sequence[Message]]
"""What the model was asked, with this line of the trace."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """To `prompt`, `answer` was good; `weight` 0.5 for a rating of 4, 1 for 5. `line` of the trace is asked."""

    prompt: str
    answer: str
    weight: float = 1.0
    line: int = 0


@dataclass(slots=True)
class _Said:
    """Of one trace: the latest rating, and the latest choice."""

    rating: FeedbackEvent | None = None
    choice: FeedbackEvent | None = None


def generated_text(trace: Trace, choice: FeedbackEvent) -> str | None:
    """What the model wrote, where no template took its place."""
    text = trace.answer.get("text")
    own = choice.line < len(trace.lines) and not trace.answer.get("fallback")
    return text if own and isinstance(text, str) and text.strip() else None


def plain_question(trace: Trace, line: int) -> Sequence[Message]:
    """The user's words alone, for an app without a prompt."""
    told = trace.lines[line] if line < len(trace.lines) else {}
    return (Message("user", str(told.get("raw") or trace.query)),)


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
            return Instruction(str(line.get("raw") or trace.query), answer, verdict.weight, said.choice.line)
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


def build_conversations(
    request: DatasetRequest, folder: Path, asked_of: AskedOf = plain_question, answer_of: AnswerOf = generated_text
) -> DatasetInfo:
    """Write the data set of a trainer that learns from conversations into `folder`, as `build_dataset` does that of the
    others; its parts are empty, since such a trainer splits by itself. Without the people who are forgotten. Holds two
    events per rated trace in memory. Raises StoreUnavailable, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    for part in PARTS:
        (folder / f"{part}.jsonl").write_bytes(b"")
    heard, feedback_seq = Conversations(request.data.negative_events, answer_of), 0
    for seq, event in _events(request):
        feedback_seq = seq
        heard.counts["events"] += 1
        if not _forgotten(request, event.user):
            heard.hear(event)
    people, digest = set[str](), hashlib.sha256()
    with (folder / CONVERSATIONS).open("wb") as file:
        for trace in _rated(request, heard):
            one = heard.instruction(trace)
            if one is not None:
                line = orjson.dumps(_line(one, asked_of(trace, one.line)), option=orjson.OPT_APPEND_NEWLINE)
                digest.update(line)
                file.write(line)
                people |= {pseudonym(request.secret, trace.user)} if trace.user is not None else set()
    (folder / PEOPLE_FILE).write_text("".join(f"{one}\n" for one in sorted(people)), encoding="ascii")
    info = DatasetInfo(digest.hexdigest(), {name: int(n) for name, n in sorted(heard.counts.items())}, feedback_seq)
    save_info(folder, info)
    return info


def _line(one: Instruction, asked: Sequence[Message]) -> dict[str, object]:
    messages = [*asked, Message("assistant", one.answer)]
    return {"messages": [message._asdict() for message in messages], "weight": one.weight}


def _rated(request: DatasetRequest, heard: Conversations) -> Iterator[Trace]:
    """The traces that were rated well, of people who are not forgotten."""
    store, rated = request.feedback, heard.rated()
    for start in range(0, len(rated), PAGE):
        found = store.traces(rated[start : start + PAGE]) if store is not None else {}
        for trace_id in rated[start : start + PAGE]:
            trace = found.get(trace_id)
            if trace is None:
                heard.counts["without_trace"] += 1
            elif _forgotten(request, trace.user):
                heard.counts["forgotten"] += 1
            else:
                yield trace


def _events(request: DatasetRequest) -> Iterator[tuple[int, FeedbackEvent]]:
    after = 0
    while request.feedback is not None and (page := request.feedback.events(request.app, after, PAGE)):
        for seq, event in page:
            if request.until_seq is None or seq <= request.until_seq:
                yield seq, event
        after = page[-1][0]


def _forgotten(request: DatasetRequest, user: str | None) -> bool:
    return user is not None and pseudonym(request.secret, user) in request.forgotten


def _later(event: FeedbackEvent, other: FeedbackEvent | None) -> bool:
    return other is None or (event.at_s, event.event_id) > (other.at_s, other.event_id)
