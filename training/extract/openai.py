"""Extraction by a language model behind any server that speaks OpenAI's chat protocol: vLLM, Ollama, a hosted one.

A server that batches, as vLLM does, does so with the requests that are under way at once: `concurrency` is the size of
the batch. The answer's shape is asked for as structured output and checked again here. An answer that does not fit is
asked for again, with the fault, at most twice; then the rules answer. What is the server's fault (overload, a cut
connection, 5xx) is retried with growing waits, then ends the job: a job that went on with rules alone because a server
was restarting would look as if it had succeeded.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from pydantic import ValidationError

from training.errors import ExtractionStopped
from training.extract.ports import Extraction, Extractor, Form

REPAIRS = 2
REFUSED = frozenset({400, 413, 422})
"""The server does not take this text (too long, filtered): the rules answer for it."""
RETRIED = frozenset({408, 409, 425, 429})
REFUSALS_IN_A_ROW = 20
CONNECT_TIMEOUT_S = 10.0
TEXT_LIMIT = 4000
"""Characters of a text that a model is shown: the longest reviews run to pages, and say the same again."""


@dataclass(frozen=True, slots=True)
class Server:
    """`url` ends where /chat/completions begins, usually in /v1. `tries`: how often one request is sent before the
    server counts as away. Waits grow from `backoff_s` to `longest_wait_s`, which also bounds a Retry-After."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    concurrency: int = 32
    timeout_s: float = 120.0
    tries: int = 8
    backoff_s: float = 0.5
    longest_wait_s: float = 60.0
    max_tokens: int = 256
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"


def read_key(variable: str = "", file: Path | None = None) -> str:
    """A key from a file or an environment variable, "" where neither is named. Raises ExtractionStopped where what is
    named holds none."""
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ExtractionStopped(f"the key file {file} cannot be read: {error.strerror}") from None
        if not key:
            raise ExtractionStopped(f"the key file {file} is empty")
        return key
    if variable and not os.environ.get(variable):
        raise ExtractionStopped(f"the environment variable {variable} that should hold the key is not set")
    return os.environ[variable] if variable else ""


class OpenAiExtractor:
    """Use as `async with`. `fallback` answers for texts that the model cannot."""

    def __init__(self, form: Form, server: Server, fallback: Extractor) -> None:
        self._form = form
        self._server = server
        self._fallback = fallback
        self._slots = asyncio.Semaphore(server.concurrency)
        self._jitter = random.Random(0)
        self._not_before = 0.0
        self._refused_in_a_row = 0
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {server.key}"} if server.key else {},
            timeout=httpx.Timeout(server.timeout_s, connect=min(CONNECT_TIMEOUT_S, server.timeout_s)),
            limits=httpx.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    @property
    def form(self) -> Form:
        return self._form

    @property
    def identity(self) -> Mapping[str, Any]:
        server = self._server
        return {"engine": "openai", "model": server.model, "max_tokens": server.max_tokens,
                "structured": server.structured, "fallback": dict(self._fallback.identity)}  # fmt: skip

    @property
    def at_once(self) -> int:
        return self._server.concurrency

    async def extract(self, text: str) -> Extraction:
        shown = text[:TEXT_LIMIT].encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
        asked = [{"role": "system", "content": self._form.prompt}, {"role": "user", "content": shown}]
        async with self._slots:
            messages, count = asked, 0
            while text.strip() and count <= REPAIRS:
                answer = await self._complete(messages)
                count += 1
                if answer is None:
                    break
                try:
                    values = self._form.answer.model_validate_json(json_in(answer)).model_dump(mode="json")
                except ValidationError as error:
                    messages = [*asked, *_repair(answer, error)]
                else:
                    return Extraction(values, "model", count)
        return Extraction((await self._fallback.extract(text)).values, "rules", count)

    async def _complete(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """What the model says; None where the server does not take this text."""
        fault = ""
        for attempt in range(self._server.tries):
            await self._pause()
            try:
                response = await self._http.post(f"{self._server.url.rstrip('/')}/chat/completions",
                                                 json=self._body(messages))  # fmt: skip
            except (httpx.TransportError, httpx.InvalidURL) as error:
                fault, wait = f"{type(error).__name__} {error}".strip(), None
            else:
                status = response.status_code
                if status in REFUSED:
                    self._refused(response)
                    return None
                content = _content(response) if status == 200 else None
                if content is not None:
                    self._refused_in_a_row = 0
                    return content
                fault, wait = f"status {status}: {response.text[:200].strip()}", _retry_after_s(response)
                if status != 200 and status not in RETRIED and status < 500:
                    raise ExtractionStopped(f"{self._server.url} answers {fault}; check the address, model and key")
            self._hold(attempt, wait)
        raise ExtractionStopped(
            f"{self._server.url} did not answer in {self._server.tries} tries, at last: {fault}. What was extracted is "
            "kept: run it again when the server is back"
        )

    def _body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        server = self._server
        body = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": server.max_tokens}
        if server.structured == "json_schema":
            schema = {"name": self._form.name, "schema": self._form.schema(), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif server.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _refused(self, response: httpx.Response) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS_IN_A_ROW:
            raise ExtractionStopped(
                f"{self._server.url} refused {self._refused_in_a_row} texts in a row, at last with status "
                f"{response.status_code}: {response.text[:200].strip()}; where it knows no response_format "
                "json_schema, ask for json_object or none"
            )

    def _hold(self, attempt: int, told_s: float | None) -> None:
        """All requests wait: what one was told about the server holds for the others."""
        wait_s = self._server.backoff_s * 2**attempt if told_s is None else told_s
        wait_s = min(wait_s, self._server.longest_wait_s) * self._jitter.uniform(1.0, 1.3)
        self._not_before = max(self._not_before, time.monotonic() + wait_s)

    async def _pause(self) -> None:
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)


def json_in(answer: str) -> str:
    """The JSON object within an answer that wraps it in a fence, in thoughts or in small talk."""
    _, _, said = answer.rpartition("</think>")
    first, last = said.find("{"), said.rfind("}")
    return said[first : last + 1] if 0 <= first < last else said


def _repair(answer: str, error: ValidationError) -> list[dict[str, str]]:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the answer"
    order = f"That answer does not fit: {place}: {fault['msg']}. Answer again, with the JSON object alone."
    return [{"role": "assistant", "content": answer[:1000]}, {"role": "user", "content": order}]


def _content(response: httpx.Response) -> str | None:
    """The text of a chat completion; None where the body is none, as of a proxy in the way."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else ""


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds or a date, as RFC 9110 has it; None where there is none that can be read."""
    told = response.headers.get("Retry-After", "")
    if told.strip().isdigit():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time()) if told else None
    except ValueError:
        return None
