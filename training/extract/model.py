"""Extraction by a language model, behind the port `serving.ports.LanguageModel`: an engine, or any OpenAI-compatible
server.

The answer's shape is asked for as structured output and checked again here. An answer that does not fit is asked for
again, with the fault, at most twice; then the rules answer, as they do for a text that the model does not take. What is
the model's fault ends the job (`training.batch.ask`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serving.ports import LanguageRequest, Message
from training.batch.ask import Asker
from training.extract.ports import Extraction, Extractor, Form

REPAIRS = 2
TEXT_LIMIT = 4000
"""Characters of a text that a model is shown: the longest reviews run to pages, and say the same again."""
MAX_TOKENS = 256


class ModelExtractor:
    """`fallback` answers for texts that the model cannot. `guided`: the schema guides the model's decoding; without it,
    for servers that know none, the prompt alone asks for JSON."""

    def __init__(self, form: Form, asker: Asker, fallback: Extractor, guided: bool = True) -> None:
        self._form = form
        self._asker = asker
        self._fallback = fallback
        self._guided = guided

    @property
    def form(self) -> Form:
        return self._form

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"engine": "model", "model": self._asker.model.model, "max_tokens": MAX_TOKENS, "guided": self._guided,
                "fallback": dict(self._fallback.identity)}  # fmt: skip

    @property
    def at_once(self) -> int:
        return self._asker.at_once

    async def extract(self, text: str) -> Extraction:
        shown = text[:TEXT_LIMIT].encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
        asked = (Message("system", self._form.prompt), Message("user", shown))
        messages: tuple[Message, ...] = asked
        count = 0
        while text.strip() and count <= REPAIRS:
            answer = await self._asker.ask(self._request(messages))
            count += 1
            if answer.refusal:
                break
            try:
                values = self._form.answer.model_validate_json(json_in(answer.text)).model_dump(mode="json")
            except ValidationError as error:
                messages = (*asked, *_repair(answer.text, error))
            else:
                return Extraction(values, "model", count)
        return Extraction((await self._fallback.extract(text)).values, "rules", count)

    def _request(self, messages: tuple[Message, ...]) -> LanguageRequest:
        schema = self._form.schema() if self._guided else None
        return LanguageRequest(messages, max_tokens=MAX_TOKENS, schema=schema)


def json_in(answer: str) -> str:
    """The JSON object within an answer that wraps it in a fence, in thoughts or in small talk."""
    _, _, said = answer.rpartition("</think>")
    first, last = said.find("{"), said.rfind("}")
    return said[first : last + 1] if 0 <= first < last else said


def _repair(answer: str, error: ValidationError) -> tuple[Message, Message]:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the answer"
    order = f"That answer does not fit: {place}: {fault['msg']}. Answer again, with the JSON object alone."
    return Message("assistant", answer[:1000]), Message("user", order)
