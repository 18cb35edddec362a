"""A server that speaks the OpenAI protocol as streams, over real HTTP, in a thread: `FakeLanguageModel` answers. It
misbehaves as it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from registry.net import free_port
from serving.errors import STATUS, PalateError
from serving.fakes import FakeLanguageModel
from serving.ports import LanguageRequest, Message
from tests.waiting import wait_for


@dataclass
class StreamingServer:
    """`refusals`: (status, headers) of the next requests, in order. `cut_after`: so many pieces, then the connection
    ends. `bodies`, `keys`: of the requests so far."""

    model: FakeLanguageModel
    url: str = ""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut_after: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        @app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            body = await request.json()
            self.bodies.append(body)
            self.keys.append(request.headers.get("authorization", ""))
            if self.refusals:
                status, headers = self.refusals.pop(0)
                return JSONResponse({"error": {"message": "not now"}}, status, headers)
            messages = tuple(Message(m["role"], m["content"]) for m in body.get("messages", []))
            stop = tuple(body.get("stop", ()))
            asked = LanguageRequest(messages, body.get("prompt", ""), max_tokens=body["max_tokens"], stop=stop,
                                    schema=body.get("response_format"))  # fmt: skip
            pieces = self.model.stream(asked, time.monotonic() + 60)
            try:
                first = await anext(pieces)
            except PalateError as error:
                return JSONResponse({"error": {"message": error.detail}}, STATUS[type(error)])
            return StreamingResponse(self._events(first, pieces, bool(messages)), media_type="text/event-stream")

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "fake", "object": "model", "created": 0, "owned_by": "us"}]}

        return app

    async def _events(self, first: Any, rest: AsyncGenerator[Any, None], chat: bool) -> AsyncGenerator[str, None]:
        count, piece = 0, first
        try:
            while piece is not None:
                if count == self.cut_after:
                    return
                count += 1
                text = {"delta": {"content": piece.text}} if chat else {"text": piece.text}
                yield self._event([{"index": 0, "finish_reason": piece.finish_reason or None, **text}])
                if piece.usage:
                    usage = {"prompt_tokens": piece.usage.prompt_tokens,
                             "completion_tokens": piece.usage.completion_tokens, "total_tokens": 0}  # fmt: skip
                    yield self._event([], usage)
                piece = await anext(rest, None)
            yield "data: [DONE]\n\n"
        finally:
            await rest.aclose()

    @staticmethod
    def _event(choices: list[Any], usage: Any = None) -> str:
        chunk = {"id": "1", "object": "chunk", "created": 0, "model": "fake", "choices": choices, "usage": usage}
        return f"data: {json.dumps(chunk)}\n\n"


@contextmanager
def streaming_server(model: FakeLanguageModel) -> Iterator[StreamingServer]:
    about = StreamingServer(model)
    port = free_port()
    about.url = f"http://127.0.0.1:{port}/v1"
    server = uvicorn.Server(uvicorn.Config(about.app(), port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_for(lambda: server.started, what="the server")
    try:
        yield about
    finally:
        server.should_exit = True
        thread.join(timeout=10)
