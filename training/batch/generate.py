"""`palate generate-batch`: an answer for each line of a file of prompts.

An input line is a JSON object with `prompt` (one message of the user) or `messages`, and perhaps an `id` (else the
number of the line), `schema`, `max_tokens`. Its output line has `text` (or, with a schema, `data`), `finish_reason` and
`usage`; or `error`, for an input that is none, that the model does not take, or whose answer does not fit the schema
after `repairs` more tries. Called by `training.commands.batch`; calls `training.batch.run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from registry.content import digest_json
from serving.errors import BadRequest
from serving.generate.prompt import checked_schema, validator_of
from serving.ports import LanguageRequest, Message
from training.batch.ask import Answer, Asker
from training.batch.file import About, Entry
from training.batch.run import ERROR
from training.errors import BatchStopped

FORMAT = 1
ROLES = ("system", "user", "assistant")
REPAIR_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Wish:
    """What holds for every line that says nothing else."""

    system: str = ""
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    repairs: int = 2


def read_inputs(file: Path) -> Iterator[Entry]:
    """A line each, as it is; what is wrong with one is found when it is worked on. Raises BatchStopped for a file that
    cannot be read."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Entry(_id(line) or str(number), line.decode("utf-8", "replace").strip())
    except OSError as error:
        raise BatchStopped(f"the input {file} cannot be read: {error.strerror}") from None


def count_inputs(file: Path) -> int:
    """Raises BatchStopped."""
    try:
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise BatchStopped(f"the input {file} cannot be read: {error.strerror}") from None


def _id(line: bytes) -> str:
    try:
        given = orjson.loads(line)["id"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return ""
    return str(given) if isinstance(given, str | int) else ""


class BadLine(Exception):
    """What is wrong with an input."""


class PromptWorker:
    """Implements `training.batch.run.Worker`."""

    def __init__(self, asker: Asker, wish: Wish) -> None:
        self._asker, self._wish = asker, wish
        by = {"engine": "model", "model": asker.model.model}
        told = {"by": by, "system": wish.system, "schema": wish.schema, "max_tokens": wish.max_tokens,
                "temperature": wish.temperature, "seed": wish.seed, "repairs": wish.repairs}  # fmt: skip
        self.about: About = {"format": FORMAT, "form": "answers", "by": by, "fingerprint": digest_json(told)}
        self.at_once = asker.at_once

    async def work(self, entry: Entry) -> Mapping[str, Any]:
        try:
            request = request_of(entry.content, self._wish)
        except BadLine as error:
            return {ERROR: str(error)}
        fault = ""
        for number in range(1 + self._wish.repairs):
            answer = await self._asker.ask(request if number == 0 else _again(request, number))
            if answer.refusal:
                return {ERROR: answer.refusal}
            if request.schema is None:
                return {"text": answer.text, **_told(answer)}
            data, fault = _checked(answer, request.schema)
            if not fault:
                return {"data": data, **_told(answer)}
        return {ERROR: fault, "text": answer.text, **_told(answer)}


def request_of(line: str, wish: Wish) -> LanguageRequest:
    """Raises BadLine."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine(f"it is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadLine("it is no JSON object with `prompt` or `messages`")
    schema = raw.get("schema", wish.schema)
    most = raw.get("max_tokens", wish.max_tokens)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise BadLine("`max_tokens` has to be a whole number above 0")
    try:
        schema = None if schema is None else checked_schema(schema, "`schema`")
    except BadRequest as error:
        raise BadLine(str(error)) from None
    messages = _messages(raw)
    if wish.system and messages[0].role != "system":
        messages = (Message("system", wish.system), *messages)
    return LanguageRequest(
        messages, max_tokens=most, temperature=wish.temperature, seed=wish.seed, schema=schema
    )  # fmt: skip


def _messages(raw: Mapping[str, Any]) -> tuple[Message, ...]:
    given = raw.get("messages", [{"role": "user", "content": raw.get("prompt")}])
    if not isinstance(given, list) or not given:
        raise BadLine("`messages` has to be a list that is not empty")
    for one in given:
        fits = isinstance(one, dict) and one.get("role") in ROLES and isinstance(one.get("content"), str)
        if not fits or not one["content"].strip():
            raise BadLine(f"it needs `prompt`, a text, or `messages` whose `role` is one of {list(ROLES)} and whose "
                          "`content` is a text")  # fmt: skip
    return tuple(Message(one["role"], one["content"]) for one in given)


def _again(request: LanguageRequest, number: int) -> LanguageRequest:
    """The same, drawn differently: greedy decoding would say the same again."""
    return LanguageRequest(
        request.messages, max_tokens=request.max_tokens, temperature=max(request.temperature, REPAIR_TEMPERATURE),
        seed=(request.seed or 0) + number, schema=request.schema,
    )  # fmt: skip


def _checked(answer: Answer, schema: Mapping[str, Any]) -> tuple[Any, str]:
    """(the data, what is wrong with them)."""
    try:
        data = _parsed(answer.text)
    except (ValueError, orjson.JSONEncodeError) as error:
        cut = " (it was cut off at max_tokens)" if answer.finish_reason == "length" else ""
        return None, f"the answer cannot be kept as JSON: {error}{cut}"
    found = next(validator_of(schema).iter_errors(data), None)
    return (
        data,
        "" if found is None else f"the answer does not fit the schema: {found.json_path}: {found.message[:200]}",
    )


def _parsed(text: str) -> Any:
    """Only what can be written as it was read. Raises ValueError, orjson.JSONEncodeError."""
    data = orjson.loads(text)
    orjson.dumps({"data": data})  # it nests less deeply than what is read may
    if data != json.loads(text):
        raise ValueError("it has a whole number of more than 64 bits, which would be rounded")
    return data


def _told(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    counts = {} if usage is None else {"usage": usage._asdict()}
    return {"finish_reason": answer.finish_reason, **counts}
