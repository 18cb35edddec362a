"""The JSON of the OpenAI routes: what a request must look like, and the shapes of answers and their chunks.

Clients of this protocol send more than anybody reads, so unknown members are ignored; what would change the answer and
is not served (tools, several choices, log probabilities) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serving.errors import BadRequest
from serving.generate.generator import Wish
from serving.generate.prompt import checked_schema
from serving.ingress.models import Form, ItemId, QueryRequest, Who
from serving.ports import Usage

Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda v: () if v is None else (v,) if isinstance(v, str) else v, json_schema_input_type=str | list[str]
    ),
    Field(max_length=8),
]


class Part(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """`content` is text, or parts of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def schema_of(self) -> Mapping[str, Any] | None:
        """Raises BadRequest for what is no JSON schema."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise BadRequest("response_format.json_schema is missing", field="response_format")
            return checked_schema(self.json_schema.schema_, "response_format.json_schema.schema")
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False


class Extra(BaseModel):
    """What the query route takes beside the text, for clients that can send a member `palate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: Who | None = None
    session: Who | None = None
    top_k: int = Field(10, ge=1)
    filters: dict[str, Any] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
    like: list[ItemId] = Field(default_factory=list, max_length=100)
    form: Form | None = None


class OpenaiRequest(BaseModel):
    """What chats and completions share. `model`: an app, whose answers are searched for and grounded, or `APP:base`,
    the bare language model of an app."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stops = ()
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    n: int | None = Field(None, description="Only 1.")
    user: Who | None = None
    metadata: dict[str, str] | None = Field(
        None,
        description="Members of `palate` for clients that send no others: user, session, top_k, filters (JSON), form.",
    )
    palate: Extra | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> OpenaiRequest:
        if self.n not in (None, 1):
            raise ValueError(f"n is {self.n}: one choice is made")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def counts(self) -> bool:
        """Whether a stream ends with the tokens used."""
        return self.stream_options is not None and self.stream_options.include_usage

    def extra(self) -> Extra:
        """`palate`, or what `metadata` says. Raises BadRequest."""
        if self.palate is not None:
            return self.palate
        said: dict[str, Any] = {k: v for k, v in (self.metadata or {}).items() if k in Extra.model_fields}
        try:
            for name in ("top_k", "filters", "record", "like"):
                if name in said:
                    said[name] = orjson.loads(said[name])
            return Extra.model_validate(said)
        except ValueError as error:
            raise BadRequest(f"metadata: {error}", field="metadata") from None

    def wish(self, schema: Mapping[str, Any] | None = None) -> Wish:
        return Wish(
            form=self.extra().form or "",
            max_tokens=self.most_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=self.stop,
            seed=self.seed,
            schema=schema,
            stream=self.stream,
        )

    def query(self, text: str) -> QueryRequest:
        """As a body of the query route."""
        extra = self.extra()
        return QueryRequest(
            query=text,
            top_k=extra.top_k,
            filters=extra.filters,
            user=extra.user or self.user,
            session=extra.session,
            record=extra.record,
            like=extra.like,
        )


class ChatRequest(OpenaiRequest):
    """The chat completions request. With an app as the model the last message is the query, and the earlier ones of
    user and assistant its history; the app's own system prompt stands, those of the request are left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "meal-card", "messages": [{"role": "user", "content": "치킨집 추천해줘"}], "stream": True}
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="None: answers call no tools.")
    functions: list[Any] | None = Field(None, max_length=0, description="None.")
    logprobs: Literal[False] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(OpenaiRequest):
    """The completions request: one prompt. With an app as the model it is the query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "meal-card", "prompt": "치킨집 추천해줘", "max_tokens": 64}]}
    )

    prompt: Annotated[
        str, BeforeValidator(lambda v: v[0] if isinstance(v, list) and len(v) == 1 else v, json_schema_input_type=str)
    ] = Field(min_length=1)
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None


class OpenaiFault(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenaiError(BaseModel):
    """What goes wrong on the OpenAI routes."""

    error: OpenaiFault


class UsageModel(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: str


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: str


class Completion(BaseModel):
    """`palate`: what the query route answers, but for the text; absent for a bare model."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageModel
    palate: dict[str, Any] | None = None


class ChatCompletion(Completion):
    choices: list[ChatChoice]


class TextCompletion(Completion):
    choices: list[TextChoice]


class Shape:
    """The bodies of one answer: of chats, or of completions."""

    def __init__(self, request: OpenaiRequest, answer_id: str, created_s: int, fingerprint: str) -> None:
        self._chat = isinstance(request, ChatRequest)
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{answer_id}",
            "created": created_s,
            "model": request.model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, text: str, finish_reason: str, usage: Usage, palate: Mapping[str, Any] | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._body(kind, [choice], palate), "usage": usage_json(usage)}

    def first(self) -> dict[str, Any] | None:
        """What opens a stream; None where nothing does."""
        return self._chunk({"role": "assistant", "content": ""}, None, None) if self._chat else None

    def text(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text} if self._chat else text, None, None)

    def last(self, finish_reason: str, palate: Mapping[str, Any] | None) -> dict[str, Any]:
        return self._chunk({} if self._chat else "", finish_reason, palate)

    def used(self, usage: Usage) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._body(kind, [], None), "usage": usage_json(usage)}

    def _chunk(
        self, delta: Mapping[str, Any] | str, finish_reason: str | None, palate: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        choice["delta" if self._chat else "text"] = delta
        return self._body("chat.completion.chunk" if self._chat else "text_completion", [choice], palate)

    def _body(
        self, kind: str, choices: Sequence[Mapping[str, Any]], palate: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        body = {**self._head, "object": kind, "choices": list(choices)}
        return body if palate is None else {**body, "palate": palate}


def usage_json(usage: Usage) -> dict[str, int]:
    return {**usage._asdict(), "total_tokens": sum(usage)}
