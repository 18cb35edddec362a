"""The fake and the OpenAI adapter keep the contract of language models; what is the adapter's own is tested below it.
The engine's adapter keeps it in tests/integration/test_vllm_engine.py."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    Overloaded,
    PalateError,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.fakes import FakeLanguageModel
from serving.generate.connect import connect_language_model
from serving.generate.openai_model import OpenaiModel, _told_s
from serving.ports import LanguageRequest, Piece, Usage
from serving.schema import LanguageModelSpec
from tests.language_models import LONG, QUESTION, SCHEMA, Case, LanguageModelContract, text_of, told
from tests.openai_stream import StreamingServer, streaming_server


def answer(request: LanguageRequest) -> str:
    if request.schema is not None:
        return '{"name": "apple", "kind": "fruit"}'
    return "word " * 400 if request.prompt == LONG.prompt else "The red one and the green one are open now."


def fake(**changes: Any) -> FakeLanguageModel:
    return FakeLanguageModel(answer, **{"piece_s": 0.001, **changes})


class TestFake(LanguageModelContract):
    @pytest.fixture
    def case(self) -> Case:
        model = fake()

        async def running() -> int:
            return model.running

        return Case(model, running, too_long=3_000)


@pytest.fixture(scope="module")
def module_server() -> Iterator[StreamingServer]:
    with streaming_server(fake()) as server:
        yield server


@pytest.fixture
def server(module_server: StreamingServer) -> StreamingServer:
    module_server.refusals.clear()
    module_server.bodies.clear()
    module_server.keys.clear()
    module_server.cut_after = None
    return module_server


def model_of(server: StreamingServer, env: dict[str, str] | None = None, **changes: Any) -> OpenaiModel:
    spec = LanguageModelSpec(engine="openai", model="fake", base_url=server.url, **changes)
    model = connect_language_model(spec, env)
    assert isinstance(model, OpenaiModel)
    return model


class TestOpenai(LanguageModelContract):
    @pytest.fixture
    def case(self, server: StreamingServer) -> Case:
        async def running() -> int:
            return server.model.running

        return Case(model_of(server), running, too_long=3_000)


async def test_the_key_comes_from_the_environment(server: StreamingServer) -> None:
    await told(model_of(server, {"SOME_KEY": "sk-1"}, key_env="SOME_KEY"), QUESTION)
    assert server.keys == ["Bearer sk-1"]
    with pytest.raises(BadRequest, match="SOME_KEY"):
        model_of(server, {}, key_env="SOME_KEY")


async def test_a_schema_is_sent_as_response_format(server: StreamingServer) -> None:
    await told(model_of(server), LanguageRequest(messages=QUESTION.messages, schema=SCHEMA))
    assert server.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_tried_again(server: StreamingServer, status: int) -> None:
    server.refusals = [(status, {"retry-after-ms": "1"}), (status, {"retry-after-ms": "1"})]
    assert text_of(await told(model_of(server, retries=2), QUESTION))
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, Overloaded), (500, StoreUnavailable), (503, StoreUnavailable), (400, BadRequest), (401, PhaseFailed)],
)
async def test_what_a_server_refuses_says_what_to_do(
    server: StreamingServer, status: int, error: type[PalateError]
) -> None:
    server.refusals = [(status, {"retry-after": "7"})]
    with pytest.raises(error) as raised:
        await told(model_of(server, retries=0), QUESTION)
    assert len(server.bodies) == 1
    if isinstance(raised.value, Overloaded):
        assert raised.value.retry_after_s == 7.0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_wait_that_is_too_long_is_told_at_once(server: StreamingServer, status: int) -> None:
    server.refusals = [(status, {"retry-after": "20"})] * 3
    began = time.monotonic()
    with pytest.raises((Overloaded, StoreUnavailable)) as raised:
        await told(model_of(server), QUESTION, within_s=10)
    assert time.monotonic() - began < 5
    assert len(server.bodies) == 1
    assert isinstance(raised.value, Overloaded if status == 429 else StoreUnavailable)
    if isinstance(raised.value, Overloaded):
        assert raised.value.retry_after_s == 20.0


async def test_tries_that_are_used_up_say_what_the_last_one_was_told(server: StreamingServer) -> None:
    server.refusals = [(503, {"retry-after-ms": "1"}), (429, {"retry-after-ms": "1"}), (429, {"retry-after": "7"})]
    with pytest.raises(Overloaded) as raised:
        await told(model_of(server, retries=2), QUESTION)
    assert (len(server.bodies), raised.value.retry_after_s) == (3, 7.0)


def test_what_a_server_says_of_waiting_is_understood() -> None:
    def told_s(**headers: str) -> float | None:
        return _told_s(httpx2.Response(429, headers={name.replace("_", "-"): told for name, told in headers.items()}))

    assert told_s(retry_after="2.5") == 2.5
    assert told_s(retry_after_ms="1500", retry_after="9") == 1.5
    in_a_minute = told_s(retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 55 < in_a_minute <= 60
    assert [told_s(), *(told_s(retry_after=told) for told in ("soon", "-3", "0", "nan", "inf"))] == [None] * 6


@pytest.mark.parametrize("asked", [QUESTION, LanguageRequest(prompt="Which shops are open?")])
async def test_what_a_content_filter_ends_is_the_inputs_fault(
    server: StreamingServer, asked: LanguageRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def filtered(*_: object) -> AsyncGenerator[Piece, None]:
        yield Piece("The ")
        yield Piece("", "content_filter", Usage(3, 1))

    monkeypatch.setattr(server.model, "stream", filtered)
    with pytest.raises(PhaseFailed, match="content_filter") as raised:
        await told(model_of(server), asked)
    assert raised.value.field == ("messages" if asked.messages else "prompt")


async def test_an_answer_that_breaks_off_is_not_repeated(server: StreamingServer) -> None:
    server.cut_after = 3
    pieces: list[Piece] = []
    with pytest.raises(ReplicaLost):
        await told(model_of(server), QUESTION, into=pieces)
    assert len(pieces) == 3
    assert len(server.bodies) == 1


async def test_the_spec_bounds_the_wait(server: StreamingServer) -> None:
    with pytest.raises(DeadlineExceeded):
        await told(model_of(server, timeout_s=0.05), LONG)


async def test_a_server_that_is_away() -> None:
    spec = LanguageModelSpec(engine="openai", model="fake", base_url="http://127.0.0.1:9/v1", retries=0)
    model = OpenaiModel(spec, {})
    with pytest.raises(StoreUnavailable):
        await model.ready()
    with pytest.raises(StoreUnavailable):
        await told(model, QUESTION)
    await model.close()


async def test_it_takes_no_adapters(server: StreamingServer, tmp_path: Path) -> None:
    model = model_of(server)
    with pytest.raises(PhaseFailed, match="engine `vllm`"):
        await model.load_adapter("a@1", tmp_path)
    assert list(await model.adapters()) == []


async def test_the_fake_plays_every_part(tmp_path: Path) -> None:
    scripted = FakeLanguageModel(["one two", Overloaded("full", retry_after_s=2.0), "last"])
    assert text_of(await told(scripted, QUESTION)) == "one two"
    with pytest.raises(Overloaded):
        await told(scripted, QUESTION)
    assert [text_of(await told(scripted, QUESTION)) for _ in range(2)] == ["last", "last"]
    dying = fake(dies_after=2)
    with pytest.raises(ReplicaLost):
        await told(dying, QUESTION)
    (tmp_path / "adapter_config.json").write_text("{}")
    await scripted.load_adapter("shop@1", tmp_path)
    assert await scripted.adapters() == ["shop@1"]
    with pytest.raises(StoreUnavailable):
        await told(scripted, LanguageRequest(prompt="x", adapter="shop@2"))
