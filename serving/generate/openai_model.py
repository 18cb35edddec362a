"""A language model behind any server that speaks the OpenAI protocol: Ollama, vLLM of somebody else's, a hosted model.

`serving.generate.connect` makes it. The `openai` client does the talking, and the tries that are safe to repeat: until
the first piece has come, a request that was refused for load, failed in the server or never reached it is sent again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
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
AWAY = frozenset({502, 503, 504})
CALLERS = frozenset({400, 413, 422})


class OpenaiModel:
    """Implements `LanguageModel`, but for adapters: what such a server holds is its own business."""

    def __init__(self, spec: LanguageModelSpec, env: Mapping[str, str] | None = None) -> None:
        """Raises BadRequest where the key is not in `env` (default: `os.environ`)."""
        self.model = spec.model
        self._spec = spec
        self._client = openai.AsyncOpenAI(
            api_key=key_of(spec, os.environ if env is None else env),
            base_url=spec.base_url,
            max_retries=spec.retries,
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
            raise PhaseFailed(f"{self.model} ended its answer: {reason}", phase=PHASE)
        yield Piece("", reason, usage)

    async def _begin(self, request: LanguageRequest, deadline: float) -> Any:
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
            return await self._within(self._client.completions.create(prompt=request.prompt, **given), deadline)
        messages: Any = [{"role": message.role, "content": message.content} for message in request.messages]
        return await self._within(self._client.chat.completions.create(messages=messages, **given), deadline)

    async def _next(self, chunks: Any, deadline: float) -> Any:
        try:
            return await self._within(anext(chunks, None), deadline)
        except StoreUnavailable as error:  # it had begun
            raise ReplicaLost(error.detail) from None

    async def _within(self, waited: Any, deadline: float) -> Any:
        """Raises PalateError."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await waited
        except (TimeoutError, openai.APITimeoutError):
            raise DeadlineExceeded(f"{self.model} did not answer in time") from None
        except (openai.APIError, httpx2.HTTPError) as error:
            raise self._fault(error) from None

    def _fault(self, error: openai.APIError | httpx2.HTTPError) -> PalateError:
        where = f"{self._spec.base_url}: "
        if not isinstance(error, openai.APIStatusError):
            if isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
                return StoreUnavailable(f"{where}{error.__cause__ or error!r}")
            return PhaseFailed(f"{where}{error}", phase=PHASE)
        if error.status_code in CALLERS:
            return BadRequest(f"{self.model}: {error.message}")
        if error.status_code == 429:
            return Overloaded(f"{where}{error.message}", retry_after_s=_retry_after_s(error.response))
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
            await self._within(self._client.with_options(max_retries=0).models.list(), time.monotonic() + READY_S)
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


def _retry_after_s(response: httpx2.Response) -> float:
    try:
        return max(0.1, float(response.headers.get("retry-after", "")))
    except ValueError:
        return 1.0
