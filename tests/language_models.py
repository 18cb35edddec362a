"""What every language model has to do, whatever runs it: the contract of `serving.ports.LanguageModel`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from serving.errors import BadRequest, DeadlineExceeded
from serving.ports import LanguageModel, LanguageRequest, Message, Piece

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["fruit", "vegetable"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
QUESTION = LanguageRequest(messages=(Message("system", "Be brief."), Message("user", "Which shops are open?")))
LONG = LanguageRequest(prompt="Tell a long story about the red shop.", max_tokens=300, temperature=1.0, seed=3)
SHORT_S = 30.0


@dataclass(frozen=True)
class Case:
    """A model that answers QUESTION with words, what has SCHEMA with JSON, and LONG for at least a tenth of a second.
    `running`: how many requests its engine works on now. `too_long`: words of a prompt that it cannot read."""

    model: LanguageModel
    running: Callable[[], Awaitable[int]]
    too_long: int


async def told(
    model: LanguageModel, request: LanguageRequest, within_s: float = SHORT_S, into: list[Piece] | None = None
) -> list[Piece]:
    """The pieces; they are added to `into` as they come, so that they are there when an error ends them."""
    pieces: list[Piece] = [] if into is None else into
    async for piece in model.stream(request, time.monotonic() + within_s):
        pieces.append(piece)
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def until_running(case: Case, count: int) -> None:
    async with asyncio.timeout(10):
        while await case.running() != count:
            await asyncio.sleep(0.01)


class LanguageModelContract:
    """Test classes inherit it and give a fixture `case`."""

    async def test_the_last_piece_says_why_it_ended_and_what_it_took(self, case: Case) -> None:
        pieces = await told(case.model, QUESTION)
        assert text_of(pieces).strip()
        assert [piece.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
        assert pieces[-1].finish_reason in ("stop", "length")
        usage = pieces[-1].usage
        assert usage is not None
        assert usage.prompt_tokens > 0
        assert 0 < usage.completion_tokens <= QUESTION.max_tokens

    async def test_no_answer_is_longer_than_asked_for(self, case: Case) -> None:
        pieces = await told(case.model, LanguageRequest(prompt=LONG.prompt, max_tokens=3))
        assert pieces[-1].finish_reason == "length"
        assert pieces[-1].usage is not None
        assert pieces[-1].usage.completion_tokens == 3

    async def test_a_stop_word_ends_the_answer_before_it(self, case: Case) -> None:
        whole = text_of(await told(case.model, QUESTION))
        stop = whole[len(whole) // 2 :][:2]
        pieces = await told(case.model, LanguageRequest(messages=QUESTION.messages, stop=(stop,)))
        assert text_of(pieces) == whole.partition(stop)[0]
        assert pieces[-1].finish_reason == "stop"

    async def test_the_same_question_at_temperature_0_gets_the_same_answer(self, case: Case) -> None:
        assert text_of(await told(case.model, QUESTION)) == text_of(await told(case.model, QUESTION))

    async def test_an_answer_with_a_schema_satisfies_it(self, case: Case) -> None:
        pieces = await told(case.model, LanguageRequest(prompt="An apple, as JSON.", max_tokens=128, schema=SCHEMA))
        jsonschema.validate(json.loads(text_of(pieces)), SCHEMA)

    async def test_many_are_answered_at_once(self, case: Case) -> None:
        found = await asyncio.gather(*(told(case.model, QUESTION) for _ in range(8)))
        assert len({text_of(pieces) for pieces in found}) == 1

    async def test_closing_the_stream_ends_the_work(self, case: Case) -> None:
        async with aclosing(case.model.stream(LONG, time.monotonic() + SHORT_S)) as pieces:
            await anext(pieces)
            await until_running(case, 1)
        await until_running(case, 0)

    async def test_cancelling_who_reads_ends_the_work(self, case: Case) -> None:
        began = asyncio.Event()

        async def read() -> None:
            async for _ in case.model.stream(LONG, time.monotonic() + SHORT_S):
                began.set()

        reader = asyncio.create_task(read())
        await began.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await until_running(case, 0)

    async def test_a_deadline_ends_the_answer_in_its_middle(self, case: Case) -> None:
        pieces: list[Piece] = []
        with pytest.raises(DeadlineExceeded):
            await told(case.model, LONG, 0.05, pieces)
        assert not any(piece.finish_reason for piece in pieces)
        await until_running(case, 0)

    async def test_a_deadline_that_has_passed_starts_nothing(self, case: Case) -> None:
        with pytest.raises(DeadlineExceeded):
            await told(case.model, QUESTION, within_s=-1.0)
        assert await case.running() == 0

    async def test_a_prompt_that_does_not_fit_is_the_callers_fault(self, case: Case) -> None:
        with pytest.raises(BadRequest):
            await told(case.model, LanguageRequest(prompt="red " * case.too_long))

    async def test_it_is_ready(self, case: Case) -> None:
        await case.model.ready()
