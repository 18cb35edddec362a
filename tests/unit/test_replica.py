"""Adapters of a replica come and go beside the requests that use them. vLLM is played: which tokens there are does not
matter here; tests/integration/test_vllm_engine.py has a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.errors import Overloaded
from serving.generate import replica
from serving.generate.admission import KvRoom
from serving.generate.replica import AdapterMissing, Adapters, EngineReplica
from serving.ports import LanguageRequest, Piece, Usage

RED = LanguageRequest(prompt="The shop", adapter="red@1")
FILES = {"adapter_config.json": b"{}"}


class Replica(EngineReplica):
    """Answers end when `go_on` is set. `removed`: numbers of the adapters that vLLM was told to forget."""

    def __init__(self, copies: Path) -> None:
        self._model_len = 100
        self._room = KvRoom(100, 16, time.monotonic)
        self._adapters = Adapters(most=1)
        self._copies = copies
        self._engine = SimpleNamespace(remove_lora=self._forget)
        self.removed: list[int] = []
        self.go_on = asyncio.Event()

    async def _forget(self, number: int) -> None:
        self.removed.append(number)

    async def _prompt(self, request: LanguageRequest) -> Any:
        return {"prompt_token_ids": [1, 2, 3]}

    async def _pieces(self, prompt: Any, params: Any, lora: Any, deadline: float) -> AsyncGenerator[Piece, None]:
        yield Piece("red ")
        await self.go_on.wait()
        assert lora.lora_int_id not in self.removed, "vLLM would load it again, from files that are gone"
        yield Piece("door", "stop", Usage(3, 2))

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self._copies.iterdir())


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replica:
    pytest.importorskip("vllm")
    monkeypatch.setattr(replica, "sampling", lambda *_: None)
    engine = Replica(tmp_path / "copies")

    async def add_lora(_: Any) -> None: ...

    engine._engine.add_lora = add_lora
    assert await engine.load_adapter("red@1", "nowhere", FILES)
    return engine


async def begun(engine: Replica) -> asyncio.Task[str]:
    """An answer of which the first piece has come."""
    first = asyncio.Event()

    async def read() -> str:
        text = ""
        async with aclosing(engine.generate(RED, 30.0)) as told:
            async for one in told:
                if isinstance(one, Piece):
                    text += one.text
                    first.set()
        return text

    task = asyncio.create_task(read())
    await first.wait()
    return task


async def test_an_adapter_stays_until_the_answers_that_use_it_are_through(engine: Replica) -> None:
    answer = await begun(engine)
    unloads = [asyncio.create_task(engine.unload_adapter("red@1")) for _ in range(2)]
    await asyncio.sleep(0.1)
    assert (engine.removed, engine.files) == ([], ["red@1"])
    assert await engine.adapters() == []
    with pytest.raises(AdapterMissing):
        await anext(engine.generate(RED, 30.0))
    with pytest.raises(Overloaded):  # its place is not free yet
        await engine.load_adapter("blue@1", "nowhere", FILES)
    engine.go_on.set()
    assert await answer == "red door"
    await asyncio.gather(*unloads)
    assert engine.removed == [1], "once, though two asked for it"
    assert "red@1" not in engine.files
    assert await engine.load_adapter("blue@1", "nowhere", FILES)


async def test_who_is_loaded_again_while_it_is_about_to_go_stays(engine: Replica) -> None:
    answer = await begun(engine)
    unload = asyncio.create_task(engine.unload_adapter("red@1"))
    await asyncio.sleep(0.05)
    assert await engine.load_adapter("red@1", "nowhere", FILES)
    await unload
    later = await begun(engine)
    engine.go_on.set()
    assert [await answer, await later] == ["red door", "red door"]
    assert (engine.removed, engine.files) == ([], ["red@1"])


async def test_who_does_not_wait_for_it_does_not_stop_it(engine: Replica) -> None:
    answer = await begun(engine)
    unload = asyncio.create_task(engine.unload_adapter("red@1"))
    await asyncio.sleep(0.05)
    unload.cancel()
    engine.go_on.set()
    await answer
    await engine.unload_adapter("red@1")
    assert engine.removed == [1]


async def test_a_reader_that_leaves_lets_go_of_the_adapter(engine: Replica) -> None:
    answer = await begun(engine)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    async with asyncio.timeout(5):
        await engine.unload_adapter("red@1")
    assert engine.removed == [1]


async def test_no_answer_keeps_an_adapter_for_ever(engine: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "LEAVES_S", 0.05)
    answer = await begun(engine)
    await engine.unload_adapter("red@1")
    assert engine.removed == [1]
    answer.cancel()
