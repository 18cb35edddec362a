"""A release that is let go finishes what it began, over real HTTP to a server that speaks the OpenAI protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from serving.config import Limits
from serving.fakes import FakeLanguageModel
from serving.generate.connect import connect_language_model
from serving.generate.generator import Event, Generator, Wish
from serving.ports import LanguageRequest, Piece
from serving.router import LoadedRelease, ServedRelease, release
from serving.schema import LanguageModelSpec, Query
from tests.openai_stream import StreamingServer, streaming_server
from tests.told import told_pipeline, told_prompt, told_spec

SAID = "the red shop is open and the green one closes soon"


@pytest.fixture(scope="module")
def server() -> Iterator[StreamingServer]:
    with streaming_server(FakeLanguageModel([SAID], piece_s=0.05)) as server:
        yield server


@pytest.fixture
async def served(server: StreamingServer) -> AsyncIterator[ServedRelease]:
    model = connect_language_model(LanguageModelSpec(engine="openai", model="fake", base_url=server.url))
    spec = told_spec(generate={"prompt": "prompt.yaml", "max_tokens": 64})
    assert spec.generate is not None
    generator = Generator(spec.generate, told_prompt(), model)
    yield ServedRelease(
        1, LoadedRelease(spec, told_pipeline(), lambda: None, model=model, generator=generator), Limits()
    )
    await model.close()


async def generated(served: ServedRelease) -> AsyncGenerator[Event, None]:
    deadline = time.monotonic() + 20
    found = await served.answer([Query("open")], deadline)
    async with aclosing(served.generate(Query("open"), found[0].lines, Wish(stream=True), deadline)) as events:
        async for event in events:
            yield event


async def test_an_answer_that_is_being_generated_is_finished(served: ServedRelease) -> None:
    text, closing = "", None
    async with aclosing(generated(served)) as events:
        async for event in events:
            text += event if isinstance(event, str) else ""
            closing = closing or asyncio.create_task(served.close())
    assert text == SAID
    assert closing is not None
    await closing


async def test_so_is_one_of_the_bare_model(served: ServedRelease) -> None:
    pieces: list[Piece] = []
    closing = None
    async for piece in served.model.stream(LanguageRequest(prompt="open"), time.monotonic() + 20):
        pieces.append(piece)
        closing = closing or asyncio.create_task(served.close())
    assert "".join(piece.text for piece in pieces) == SAID
    assert closing is not None
    await closing


async def test_one_that_hangs_does_not_hold_it_for_ever(served: ServedRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "CLOSE_S", 0.05)
    async with aclosing(served.model.stream(LanguageRequest(prompt="open"), time.monotonic() + 20)) as pieces:
        await anext(pieces)
        async with asyncio.timeout(5):
            await served.close()
