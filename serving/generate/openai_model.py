"""A language model behind any server that speaks the OpenAI protocol: Ollama, vLLM of somebody else's, a hosted model.

`serving.generate.connect` makes it. The `openai` client does the talking. Until the first piece has come, a request
that was refused for load, failed in the server or never reached it is sent again here: the client would wait for as
long as a server asks for, whatever time is left.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import openai

from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    Overloaded,
    PalateError,
    PhaseFailed,
    ReplicaLost,
    StoreUnavailable,
)
from serving.ports import LanguageRequest, Piece, Usage
from serving.schema import LanguageModelSpec

PHASE = "generate"
CONNECT_S = 5.0
READY_S = 5.0
NO_KEY = "none"
"""Servers without keys take any; the client wants one."""
AWAY = frozenset({500, 502, 503, 504})
CALLERS = frozenset({400, 413, 422})
PASSING = frozenset({408, 409, 429})
"""With those from 500 on: worth another try."""
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0


class OpenaiModel:
    """Implements `LanguageModel`, but for adapters: what such a server holds is its own business."""

    def __init__(self, spec: LanguageModelSpec, env: Mapping[str, str] | None = None) -> None:
        """Raises BadRequest where the key is not in `env` (default: `os.environ`)."""
        self.model = spec.model
        self._spec = spec
        self._client = openai.AsyncOpenAI(
            api_key=key_of(spec, os.environ if env is None else env),
            base_url=spec.base_url,
            max_retries=0,
            timeout=openai.Timeout(spec.timeout_s, connect=min(CONNECT_S, spec.timeout_s)),
        )

    async def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        deadline = min(deadline, time.monotonic() + self._spec.timeout_s)
        chunks = await self._begin(request, deadline)
        reason, usage = "", None
        try:
            # The chunk that ends the text comes before the one that counts the tokens.
            while (chunk := await self._next(chunks, deadline)) is not None:
                usage = _usage(chunk) or usage
                for choice in chunk.choices[:1]:
                    reason = choice.finish_reason or reason
                    if text := _text(choice):
                        yield Piece(text)
        finally:
            await chunks.close()
        if not reason:
            raise ReplicaLost(f"{self._spec.base_url} ended the answer in its middle")
        if reason not in ("stop", "length"):
            raise self._broken_off(request, reason)
        yield Piece("", reason, usage)

    def _broken_off(self, request: LanguageRequest, reason: str) -> PhaseFailed:
        fault = PhaseFailed(f"{self.model} ended its answer: {reason}", phase=PHASE)
        if reason == "content_filter":  # no BadRequest: to who searches, a template may still answer
            fault.field = "messages" if request.messages else "prompt"
        return fault

    async def _begin(self, request: LanguageRequest, deadline: float) -> Any:
        """Raises PalateError: at once where the wait for another try would be too long."""
        tried = 0
        while True:
            try:
                return await _in_time(self._create(request), deadline)
            except (TimeoutError, openai.APIError, httpx2.HTTPError) as error:
                wait_s = _wait_s(error, tried)
                if wait_s is None or tried == self._spec.retries or time.monotonic() + wait_s >= deadline:
                    raise self._fault(error) from None
            tried += 1
            await asyncio.sleep(wait_s)

    async def _create(self, request: LanguageRequest) -> Any:
        if request.adapter:
            raise PhaseFailed(f"{self.model} runs on {self._spec.base_url}, which takes no adapters", phase=PHASE)
        given: dict[str, Any] = {
            "model": self.model, "max_tokens": request.max_tokens, "temperature": request.temperature,
            "top_p": request.top_p, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if request.stop:
            given["stop"] = list(request.stop)
        if request.seed is not None:
            given["seed"] = request.seed
        if request.schema is not None:
            schema = {"name": "answer", "schema": dict(request.schema), "strict": True}
            given["extra_body"] = {"response_format": {"type": "json_schema", "json_schema": schema}}
        if request.prompt:
            return await self._client.completions.create(prompt=request.prompt, **given)
        messages: Any = [{"role": message.role, "content": message.content} for message in request.messages]
        return await self._client.chat.completions.create(messages=messages, **given)

    async def _next(self, chunks: Any, deadline: float) -> Any:
        try:
            return await self._within(anext(chunks, None), deadline)
        except StoreUnavailable as error:  # it had begun
            raise ReplicaLost(error.detail) from None

    async def _within(self, waited: Any, deadline: float) -> Any:
        """Raises PalateError."""
        try:
            return await _in_time(waited, deadline)
        except (TimeoutError, openai.APIError, httpx2.HTTPError) as error:
            raise self._fault(error) from None

    def _fault(self, error: TimeoutError | openai.APIError | httpx2.HTTPError) -> PalateError:
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return DeadlineExceeded(f"{self.model} did not answer in time")
        where = f"{self._spec.base_url}: "
        if not isinstance(error, openai.APIStatusError):
            if isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
                return StoreUnavailable(f"{where}{error.__cause__ or error!r}")
            return PhaseFailed(f"{where}{error}", phase=PHASE)
        if error.status_code in CALLERS:
            return BadRequest(f"{self.model}: {error.message}")
        if error.status_code == 429:
            return Overloaded(f"{where}{error.message}", retry_after_s=max(0.1, _told_s(error.response) or 1.0))
        if error.status_code in (401, 403):
            key = f"the key in {self._spec.key_env}" if self._spec.key_env else "no key: name one in `key_env`"
            return PhaseFailed(f"{where}it refuses {key}", phase=PHASE)
        if error.status_code in AWAY:
            return StoreUnavailable(f"{where}{error.message}")
        return PhaseFailed(f"{where}{error.message}", phase=PHASE)

    async def load_adapter(self, name: str, folder: Path) -> None:  # noqa: ARG002 - there is nowhere to load it to
        raise PhaseFailed(f"{name}: adapters need a language_model of engine `vllm`", phase=PHASE)

    async def unload_adapter(self, name: str) -> None:
        """There is none."""

    async def adapters(self) -> Sequence[str]:
        return ()

    async def ready(self) -> None:
        try:
            await self._within(self._client.models.list(), time.monotonic() + READY_S)
        except (DeadlineExceeded, Overloaded) as error:
            raise StoreUnavailable(error.detail) from None
        except BadRequest:
            return  # it has no list of models, but it is there

    async def close(self) -> None:
        await self._client.close()


def key_of(spec: LanguageModelSpec, env: Mapping[str, str]) -> str:
    """Raises BadRequest that names the variable."""
    if not spec.key_env:
        return NO_KEY
    key = env.get(spec.key_env, "").strip()
    if not key:
        raise BadRequest(
            f"language_model.key_env names {spec.key_env}, which is not set: put the key of {spec.base_url} in it",
            field="language_model.key_env",
        )
    return key


def _text(choice: Any) -> str:
    """Of a chunk of a chat, or of a completion."""
    delta = getattr(choice, "delta", None)
    return (choice.text if delta is None else delta.content) or ""


def _usage(chunk: Any) -> Usage | None:
    return Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens) if chunk.usage else None


async def _in_time(waited: Any, deadline: float) -> Any:
    """Raises TimeoutError."""
    async with asyncio.timeout(deadline - time.monotonic()):
        return await waited


def _wait_s(error: Exception, tried: int) -> float | None:
    """Until another try, `tried` more having been made; None where it makes no sense."""
    told_s = None
    if isinstance(error, openai.APIStatusError):
        should = error.response.headers.get("x-should-retry", "")
        passes = error.status_code in PASSING or error.status_code >= 500
        if should == "false" or not (passes or should == "true"):
            return None
        told_s = _told_s(error.response)
    elif not isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
        return None
    return told_s or min(BACKOFF_S * 2**tried, LONGEST_BACKOFF_S) * random.uniform(0.75, 1.0)


def _told_s(response: httpx2.Response) -> float | None:
    """How long the server says to wait; None where it says nothing that can be waited for."""
    told = response.headers.get("retry-after", "")
    try:
        if in_ms := response.headers.get("retry-after-ms"):
            seconds = float(in_ms) / 1000
        elif told[:1].isalpha():  # a date
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        else:
            seconds = float(told)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
