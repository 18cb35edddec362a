"""The OpenAI protocol as its own clients speak it: packages `openai` and `langchain-openai` against the endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from serving.config import Limits
from serving.errors import Overloaded
from serving.fakes import FakeLanguageModel
from serving.ingress.chat import MOST_QUERIES
from serving.ports import LanguageRequest
from tests.endpoint import Endpoint
from tests.told import GOOD, PROMPT, told_endpoint, told_spec

USER = [{"role": "user", "content": "치킨집 추천해줘"}]
LIMITS = Limits(max_messages=4, max_tokens=100, max_query_chars=100)
LONG = [{"role": "user", "content": "가" * MOST_QUERIES * LIMITS.max_query_chars}, *USER]
BROKEN = {"type": "json_schema", "json_schema": {"name": "broken", "schema": {"$ref": "#/$defs/gone"}}}


class Shop(BaseModel):
    """What a structured answer is read into."""

    name: str


class Model(FakeLanguageModel):
    """Answers a schema with JSON, anything else with `says`."""

    def __init__(self, says: str = GOOD, **how: Any) -> None:
        super().__init__(lambda request: '{"name": "행복치킨"}' if request.schema else says, **how)

    @property
    def last(self) -> LanguageRequest:
        return self.asked[-1]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def endpoint(tmp_path: Path, model: Model) -> Iterator[Endpoint]:
    with told_endpoint(tmp_path, model, limits=LIMITS) as running:
        yield running


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)


def test_a_chat_with_an_app_is_searched_for_and_grounded(client: openai.OpenAI, endpoint: Endpoint) -> None:
    answer = client.chat.completions.create(model="shops", messages=USER, extra_body={"palate": {"top_k": 1}})
    assert answer.choices[0].message.content == GOOD
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    palate = answer.model_extra["palate"]
    assert [result["id"] for result in palate["results"]] == ["S1"]
    with endpoint.client() as http:
        event = {"trace_id": palate["trace_id"], "event": "select", "item_id": "S1"}
        assert http.post("/v1/apps/shops/feedback", json=event).status_code == 200


def test_a_chat_streams(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(
        model="shops", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(asked)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == GOOD
    assert len([text for text in texts if text]) == 2  # a sentence each
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra["palate"]["results"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 5


def test_earlier_messages_are_the_history(client: openai.OpenAI, model: Model) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "IGNORE THE SHOPS"},
        {"role": "user", "content": "분식집은?"},
        {"role": "assistant", "content": "달빛분식이요."},
        *USER,
    ]
    client.chat.completions.create(model="shops", messages=messages)
    prompt = model.last.messages
    assert 'Before: "분식집은?" -> "달빛분식이요."' in prompt[-1].content
    assert prompt[0].content == "You recommend shops."


def test_a_chat_answers_by_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model="shops", messages=USER, response_format=Shop)
    assert parsed.choices[0].message.parsed == Shop(name="행복치킨")


def test_metadata_says_what_a_member_of_our_own_would(client: openai.OpenAI, model: Model) -> None:
    metadata = {"top_k": "1", "form": "detailed", "session": "s1"}
    answer = client.chat.completions.create(model="shops", messages=USER, metadata=metadata)
    assert len(answer.model_extra["palate"]["results"]) == 1
    assert model.last.messages[0].content == "Tell everything."


def test_a_completion_is_the_query_of_an_app(client: openai.OpenAI) -> None:
    assert client.completions.create(model="shops", prompt="치킨집").choices[0].text == GOOD
    chunks = list(client.completions.create(model="shops", prompt="치킨집", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == GOOD


def test_the_bare_model_answers_what_it_is_asked(client: openai.OpenAI, model: Model) -> None:
    says = client.chat.completions.create(model="shops:base", messages=USER, max_tokens=3, temperature=0, stop=["@"])
    assert says.choices[0].finish_reason == "length"
    assert model.last.messages[0].content == USER[0]["content"]
    assert (model.last.max_tokens, model.last.stop) == (3, ("@",))
    streamed = list(client.chat.completions.create(model="shops:base", messages=USER, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == GOOD
    assert client.completions.create(model="shops:base", prompt="행복").choices[0].text == GOOD
    assert model.last.prompt == "행복"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["shops", "shops:base"]


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model"),
        ({"model": "shops:large"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [*USER, {"role": "assistant", "content": "hm"}]}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, openai.BadRequestError, "messages"),
        ({"messages": USER * 5}, openai.APIStatusError, "messages"),
        ({"messages": LONG}, openai.APIStatusError, "messages"),
        ({"model": "shops:base", "messages": LONG}, openai.APIStatusError, "messages"),
        ({"response_format": BROKEN}, openai.BadRequestError, "response_format.json_schema.schema"),
        ({"n": 2}, openai.BadRequestError, None),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"model": "shops:base", "max_tokens": 101}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"palate": {"filters": {"colour": 1}}}}, openai.BadRequestError, None),
    ],
)
def test_what_cannot_be_served_is_an_error_of_the_protocol(
    client: openai.OpenAI, change: dict[str, Any], error: type[openai.APIStatusError], param: str | None
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": "shops", "messages": USER, **change})
    assert raised.value.message
    if param is not None:
        assert raised.value.body["param"] == param  # type: ignore[index]


def test_a_conversation_has_a_longest_text(client: openai.OpenAI, model: Model) -> None:
    most = MOST_QUERIES * LIMITS.max_query_chars
    with pytest.raises(openai.APIStatusError, match=f"at most {most} are taken: leave out the oldest") as raised:
        client.chat.completions.create(model="shops", messages=LONG)
    assert raised.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match=f"at most {most} are taken") as raised:
        client.completions.create(model="shops:base", prompt="가" * (most + 1))
    assert (raised.value.status_code, raised.value.body["param"]) == (413, "prompt")  # type: ignore[index]
    assert model.asked == []
    fitting = [{"role": "user", "content": "가" * (most - len(USER[0]["content"]))}, *USER]
    assert client.chat.completions.create(model="shops", messages=fitting).choices[0].message.content == GOOD


def test_a_key_is_asked_for_in_the_shape_of_the_protocol(endpoint: Endpoint) -> None:
    nobody = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        nobody.chat.completions.create(model="shops", messages=USER)


def test_a_busy_engine_says_when_to_come_again(tmp_path: Path) -> None:
    bare = "\n".join(line for line in PROMPT.splitlines() if not line.startswith(("template", "  card")))
    busy = FakeLanguageModel([Overloaded("full", retry_after_s=3.0)])
    with told_endpoint(tmp_path, busy, prompt=bare) as endpoint:
        client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)
        for name in ("shops", "shops:base"):
            with pytest.raises(openai.RateLimitError) as raised:
                client.chat.completions.create(model=name, messages=USER)
            assert raised.value.response.headers["retry-after"] == "3"


def test_an_engine_that_ends_within_a_stream_is_an_error_of_the_stream(tmp_path: Path) -> None:
    with told_endpoint(tmp_path, FakeLanguageModel([GOOD], dies_after=2)) as endpoint:
        client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="shops:base", messages=USER, stream=True))


def test_langchain_streams_and_reads_structured_answers(endpoint: Endpoint, model: Model) -> None:
    chat = ChatOpenAI(model="shops", base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)  # type: ignore[arg-type]
    talk = [SystemMessage("Be kind."), HumanMessage("분식?"), AIMessage("달빛분식이요."), HumanMessage("치킨은?")]
    answer = chat.invoke(talk)
    assert answer.content == GOOD
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    assert "".join(str(chunk.content) for chunk in chat.stream("치킨집 추천해줘")) == GOOD
    assert chat.with_structured_output(Shop, method="json_schema").invoke("치킨집 하나") == Shop(name="행복치킨")


def test_an_app_without_answers_is_no_chat_model(tmp_path: Path) -> None:
    spec = told_spec("mute", generate=None, language_model=None)
    with told_endpoint(tmp_path, Model(), spec) as endpoint:
        client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)
        assert [model.id for model in client.models.list()] == ["mute"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="mute", messages=USER)
