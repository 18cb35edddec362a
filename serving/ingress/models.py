"""The JSON of the HTTP API: what requests must look like, and what answers look like (for /openapi.json)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.errors import BadRequest

ItemId = Annotated[str, Field(min_length=1, max_length=256)]
Form = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]
Who = Annotated[str, Field(min_length=1, max_length=256)]
Texts = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]
"""One text or several, as several."""

M = TypeVar("M", bound=BaseModel)


class Request(BaseModel):
    """Strict: "3" and true are no numbers, so that a slip is told and not guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class QueryRequest(Request):
    """One text (`query`) or up to 64 (`queries`). A `query` may come with a `record`, or be one of them alone, and so
    with `like`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "레이크 찰리스 말보로 24병", "top_k": 3, "user": "client-01025"}]}
    )

    query: str | None = Field(None, description="What to search for; an order text may hold several lines.")
    queries: list[str] | None = Field(None, min_length=1, description="Several texts, answered together.")
    top_k: int = Field(10, ge=1, description="Most results per text.")
    filters: dict[str, Any] = Field(
        default_factory=dict,
        description='Attribute -> a value, a list of values, or a range: {"price": {"lte": 30000}}.',
    )
    user: Who | None = Field(None, description="Who asks; keeps them on one release and teaches their abbreviations.")
    session: Who | None = None
    record: dict[str, Any] = Field(
        default_factory=dict,
        description='Measurements and moments, as app.yaml declares them: {"metrics": {...}, "context": [{...}]}.',
    )
    like: list[ItemId] = Field(
        default_factory=list,
        max_length=100,
        description="Items that the results should resemble (they are left out); ids that are no items are ignored.",
    )

    generate: bool | Form | None = Field(
        None, description="An answer in words, or one of the app's forms of it. Default: where the app has one."
    )
    stream: bool = Field(False, description="The answer as server-sent events: results, text ..., done or error.")
    max_tokens: int | None = Field(None, ge=1, description="Shorter answers than the app's.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="The same seed, the same answer.")

    @model_validator(mode="after")
    def _one_of_both(self) -> QueryRequest:
        if self.record or self.like:
            if self.queries is not None:
                raise ValueError("`record` and `like` go with one `query`, not with `queries`")
        elif (self.query is None) == (self.queries is None):
            raise ValueError("send exactly one of `query` and `queries`")
        return self

    @property
    def texts(self) -> list[str]:
        return [self.query or ""] if self.queries is None else list(self.queries)


class FeedbackRequest(Request):
    """What a user did with an answer; `trace_id` is the answer's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"trace_id": "…", "event": "select", "item_id": "3A24401", "rejected": ["3A23402"]}]
        }
    )

    trace_id: str = Field(min_length=1, max_length=200)
    event: str = Field(description="One of the app's events: select, click, order, reject, … (feedback.reward).")
    item_id: ItemId | None = Field(None, description="The item chosen, clicked, ordered or rejected.")
    rejected: list[ItemId] = Field(default_factory=list, max_length=200, description="Items shown and turned down.")
    line: int = Field(0, ge=0, description="Which line of an order text, from 0.")
    value: float | None = Field(None, description="A rating, where the event carries one.", allow_inf_nan=False)
    user: Who | None = Field(None, description="Default: the user of the query.")
    event_id: str | None = Field(
        None, min_length=1, max_length=100, description="Makes a retry harmless: the same id is stored once."
    )


class ItemModel(Request):
    id: ItemId
    fields: dict[str, Any]
    attributes: dict[str, Any] = Field(default_factory=dict)


class ItemsRequest(Request):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "id": "3A24401",
                            "fields": {"name_ko": "레이크 찰리스 말보로 소비뇽 블랑"},
                            "attributes": {"vintage": 2023, "country": "뉴질랜드"},
                        }
                    ]
                }
            ]
        }
    )

    items: list[ItemModel] = Field(min_length=1)


class DeleteRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["3A24401"]}]})

    ids: list[ItemId] = Field(min_length=1)


class EmbeddingsRequest(BaseModel):
    """The OpenAI embeddings request; `model` is the app."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"model": "wine-orders", "input": ["Lake Chalice"]}]}
    )

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class ResultModel(BaseModel):
    id: str
    score: float
    source: str
    fields: dict[str, Any]


class LineModel(BaseModel):
    text: str
    quantity: int | None
    unit: str | None
    vintage: int | None
    results: list[ResultModel]
    abstained: bool


class UnderstoodModel(BaseModel):
    """What was made of the query. `filters` hold beside those of the request; `confidence` is 0..1."""

    text: str
    intent: str
    entities: dict[str, Any]
    filters: dict[str, Any]
    confidence: float
    engine: str


class CheckModel(BaseModel):
    name: str
    passed: bool
    score: float
    reason: str


class GeneratedModel(BaseModel):
    """`data` is the JSON of a structured answer. `checks` are those of the model's last try; `repaired`: how many more
    tries it took; `fallback`: why a template answers in the model's place, "" where it does not."""

    text: str
    data: Any = None
    form: str
    finish_reason: str
    checks: list[CheckModel]
    repaired: int
    fallback: str
    usage: dict[str, int]
    model: str
    adapter: str
    first_ms: float
    tokens_per_s: float


class SessionModel(BaseModel):
    """`turns` that were remembered; `recalled`, `kept`: false where the store was away."""

    turns: int
    recalled: bool
    kept: bool


class AnswerModel(BaseModel):
    """`results` are those of the first line; `abstained`: none is good enough to be acted on without a person."""

    trace_id: str
    app: str
    release: str
    results: list[ResultModel]
    abstained: bool
    timings_ms: dict[str, float]
    lines: list[LineModel] | None = None
    understood: UnderstoodModel | None = None
    answer: GeneratedModel | None = None
    session: SessionModel | None = None


class AnswersModel(BaseModel):
    """The answers to `queries`, in order. Each has a trace id of its own, for feedback."""

    trace_id: str
    app: str
    release: str
    answers: list[AnswerModel]


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    trace_id: str
    field: str | None = None


def parse(model: type[M], body: bytes) -> M:
    """Validate a JSON body. Raises BadRequest that names the field and what is wrong with it."""
    try:
        return model.model_validate_json(body or b"null")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
            if len(first["loc"]) == 1:
                message += f"; there are {sorted(model.model_fields)}"
        raise BadRequest(f"{field}: {message}" if field else message, field=field or None) from None
