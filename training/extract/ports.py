"""What is extracted (`Form`), what comes out (`Extraction`), and who does it (the port `Extractor`).

`training.extract.job` drives an extractor over a file; `rules` and `model` are its adapters. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from registry.content import digest_json


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of extraction. `prompt` tells a language model what to do with a text; `answer` is the shape of what
    comes out, checked for models and rules alike: give it `extra="forbid"` and no defaults, which is what servers with
    strict structured output want."""

    name: str
    prompt: str
    answer: type[BaseModel]

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer."""
        return self.answer.model_json_schema()

    def fingerprint(self, identity: Mapping[str, Any]) -> str:
        """SHA-256 hex over all that decides the values: the prompt, the schema and who extracts."""
        return digest_json({"prompt": self.prompt, "schema": self.schema(), "by": dict(identity)})


@dataclass(frozen=True, slots=True)
class Extraction:
    """`values` fit the form's schema. `by`: who found them. `asked`: how often a model was asked, 0 for rules alone."""

    values: Mapping[str, Any]
    by: Literal["model", "rules"]
    asked: int = 0


class Extractor(Protocol):
    """Safe to call many times at once; it bounds what it does at a time by itself."""

    @property
    def form(self) -> Form: ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that say who extracts: two extractors with the same identity may continue each other's file.
        Never a key."""

    @property
    def at_once(self) -> int:
        """How many texts it works on at a time."""

    async def extract(self, text: str) -> Extraction:
        """Exactly one extraction for any text, the empty one too. Raises BatchStopped where going on with other
        texts makes no sense either."""
