"""The OpenAI protocol for answers: POST /v1/chat/completions and /v1/completions.

The model is an app, and then the answer is searched for, grounded and checked as by the query route, with a trace that
takes feedback; or `APP:base`, the app's language model as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving import metrics
from serving.config import Limits
from serving.errors import BadRequest, NotFound, PalateError, PhaseFailed, TooLarge
from serving.ingress import replies
from serving.ingress.access import (
    PIN_PARAMETER,
    admit,
    allowed_time_s,
    pin_of,
    read_body,
    require_app,
)
from serving.ingress.models import parse
from serving.ingress.openai_models import (
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    OpenaiRequest,
    Shape,
    TextCompletion,
)
from serving.ingress.problems import openai_error, status_of, trace_id_of
from serving.ingress.query import queries_of
from serving.ingress.replies import Call, ClientLeft, EventStream, Reply
from serving.logs import get_log
from serving.ports import LanguageModel, LanguageRequest, Message, Usage
from serving.router import ServedRelease
from serving.schema import Query, Turn

routes = APIRouter()
log = get_log(__name__)

BASE = "base"
"""`APP:base` is the language model of an app."""
DONE = b"data: [DONE]\n\n"
MOST_QUERIES = 32
"""So many times the longest query (`limits.max_query_chars`) is read: of all messages of a chat together, and of the
prompt of a bare model."""


@routes.post(
    "/v1/chat/completions",
    response_class=Response,
    responses={200: {"model": ChatCompletion}},
    tags=["openai"],
    openapi_extra={"parameters": [PIN_PARAMETER]},
)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation: by an app, search included, or by the bare language model `APP:base`."""
    return await _answered(request, ChatRequest)


@routes.post(
    "/v1/completions",
    response_class=Response,
    responses={200: {"model": TextCompletion}},
    tags=["openai"],
    openapi_extra={"parameters": [PIN_PARAMETER]},
)
async def completions(request: Request) -> Response:
    """Answer one prompt: by an app, whose query it is, or by the bare language model `APP:base`, which goes on."""
    return await _answered(request, CompletionRequest)


async def _answered(request: Request, kind: type[ChatRequest] | type[CompletionRequest]) -> Response:
    key = await admit(request, "query")
    wanted: OpenaiRequest = parse(kind, await read_body(request))
    app, _, which = wanted.model.partition(":")
    require_app(key, app)
    pin = pin_of(request, key)
    if which not in ("", BASE):
        raise NotFound(f"{wanted.model!r}: the model is an app, or APP:{BASE}", field="model")
    try:
        call = Call.begin(request, app, "chat" if kind is ChatRequest else "completions", pin)
    except NotFound as error:
        raise NotFound(error.detail, field="model") from None
    deadline = call.started + allowed_time_s(request, call.stable.spec.deadline_s)
    try:
        return await (_by_model if which else _by_app)(call, wanted, deadline)
    except ClientLeft:
        return Response(status_code=499)


# --- the model is an app


async def _by_app(call: Call, wanted: OpenaiRequest, deadline: float) -> Response:
    if call.stable.spec.generate is None:
        raise NotFound(f"{call.app} generates no answers: it has no section `generate`", field="model")
    query, schema = _asked(call, wanted)
    reply = await replies.begin(call, query, wanted.wish(schema), deadline)
    shape = Shape(wanted, call.token, int(call.now), f"release-{reply.given.served.version}")
    if wanted.stream:
        return EventStream(reply.trace_id, _chunks(reply, wanted, shape), reply.close)
    body = await replies.unless_left(call.request, replies.whole(reply))
    generated = reply.generated
    answer = shape.whole(generated.text, generated.finish_reason, generated.usage, _palate(body))
    return _json(answer, reply.trace_id, reply.given.served)


def _asked(call: Call, wanted: OpenaiRequest) -> tuple[Query, Any]:
    """The query, with the turns that the request brings, and the schema it asks for. Raises BadRequest, TooLarge."""
    limits, schema = call.services.config.limits, None
    history: tuple[Turn, ...] = ()
    if isinstance(wanted, ChatRequest):
        schema = wanted.response_format.schema_of() if wanted.response_format is not None else None
        text, history = _conversation(wanted.messages, limits)
    else:
        assert isinstance(wanted, CompletionRequest)
        text = wanted.prompt
    try:
        query = queries_of(wanted.query(text), call.stable.spec, limits)[0]
    except BadRequest as error:
        raise type(error)(error.detail, field="messages" if error.field == "query" else error.field) from None
    return replace(query, history=history), schema


def _conversation(messages: Sequence[ChatMessage], limits: Limits) -> tuple[str, tuple[Turn, ...]]:
    """The query and its history: what the user said, each with what was answered. Raises BadRequest, TooLarge."""
    _check(messages, limits)
    said = [message for message in messages if message.role in ("user", "assistant")]
    if not said or said[-1].role != "user":
        raise BadRequest("messages: the last one has to be the user's: it is what is searched for", field="messages")
    turns: list[Turn] = []
    for message in said[:-1]:
        if message.role == "user":
            turns.append(Turn(message.text, ""))
        elif turns:
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text}\n{message.text}".strip())
    return said[-1].text, tuple(turns)


def _check(messages: Sequence[ChatMessage], limits: Limits) -> None:
    if len(messages) > limits.max_messages:
        raise TooLarge(f"{len(messages)} messages; at most {limits.max_messages} are taken", field="messages")
    chars, most = sum(len(message.text) for message in messages), MOST_QUERIES * limits.max_query_chars
    if chars > most:
        raise TooLarge(
            f"the messages have {chars} characters together; at most {most} are taken: leave out the oldest ones",
            field="messages",
        )


def _palate(body: dict[str, Any]) -> dict[str, Any]:
    """The query route's answer, but for the text, as the member `palate`."""
    answer = {name: value for name, value in body["answer"].items() if name not in ("text", "usage")}
    return {**body, "answer": answer}


async def _chunks(reply: Reply, wanted: OpenaiRequest, shape: Shape) -> AsyncIterator[bytes]:
    try:
        if (first := shape.first()) is not None:
            yield _chunk(first)
        async for text in reply.texts():
            yield _chunk(shape.text(text))
        body = await reply.finish()
        yield _chunk(shape.last(reply.generated.finish_reason, _palate(body)))
        if wanted.counts:
            yield _chunk(shape.used(reply.generated.usage))
        yield DONE
    except Exception as error:  # noqa: BLE001 - outermost: the status is sent, so what went wrong is a chunk
        told = reply.failed(error)
        yield _chunk(openai_error(status_of(told), told.detail, told.field))


# --- the model is a language model


async def _by_model(call: Call, wanted: OpenaiRequest, deadline: float) -> Response:
    served = call.stable if call.pin is None else call.services.router.pinned(call.app, call.pin, "model")
    bare = _Bare(call, served.model, _request(wanted, call.services.config.limits), deadline)
    shape = Shape(wanted, call.token, int(call.now), f"release-{served.version}")
    try:
        await replies.unless_left(call.request, bare.begin())
        if wanted.stream:
            return EventStream(trace_id_of(call.request), _bare_chunks(bare, wanted, shape), bare.close)
        text = await replies.unless_left(call.request, bare.rest())
    except PalateError as error:
        call.count(BASE, status_of(error))
        raise
    except ClientLeft:
        call.count(BASE, 499)
        raise
    call.count(BASE, 200)
    return _json(shape.whole(text, bare.finish_reason, bare.usage, None), trace_id_of(call.request), served)


def _request(wanted: OpenaiRequest, limits: Limits) -> LanguageRequest:
    most = wanted.most_tokens or min(256, limits.max_tokens)
    if most > limits.max_tokens:
        raise BadRequest(f"max_tokens is {most}; at most {limits.max_tokens} are written", field="max_tokens")
    request = LanguageRequest(
        max_tokens=most,
        temperature=1.0 if wanted.temperature is None else wanted.temperature,
        top_p=1.0 if wanted.top_p is None else wanted.top_p,
        stop=wanted.stop,
        seed=wanted.seed,
    )
    if isinstance(wanted, ChatRequest):
        _check(wanted.messages, limits)
        schema = wanted.response_format.schema_of() if wanted.response_format is not None else None
        roles = {"developer": "system"}
        messages = tuple(Message(roles.get(one.role, one.role), one.text) for one in wanted.messages)
        return replace(request, messages=messages, schema=schema)
    assert isinstance(wanted, CompletionRequest)
    most_chars = MOST_QUERIES * limits.max_query_chars
    if len(wanted.prompt) > most_chars:
        raise TooLarge(
            f"the prompt has {len(wanted.prompt)} characters; at most {most_chars} are taken: send a shorter one",
            field="prompt",
        )
    return replace(request, prompt=wanted.prompt)


class _Bare:
    """A request to a language model on its way; iterate it after `begin`, and `close` it."""

    def __init__(self, call: Call, model: LanguageModel, request: LanguageRequest, deadline: float) -> None:
        self.call = call
        self.finish_reason = "stop"
        self.usage = Usage(0, 0)
        self._pieces = model.stream(request, deadline)
        self._first: str | None = None

    async def begin(self) -> None:
        """Wait for the first piece. Raises PalateError."""
        try:
            self._first = await self._next()
        except BaseException:
            await self._pieces.aclose()
            raise

    async def rest(self) -> str:
        async with aclosing(self._pieces):
            return "".join([text async for text in self.texts()])

    async def texts(self) -> AsyncIterator[str]:
        text = self._first
        while text is not None:
            if text:
                yield text
            text = await self._next()
        metrics.ANSWER_TOKENS.labels(self.call.app, BASE, "prompt").inc(self.usage.prompt_tokens)
        metrics.ANSWER_TOKENS.labels(self.call.app, BASE, "completion").inc(self.usage.completion_tokens)

    async def close(self) -> None:
        await self._pieces.aclose()

    async def _next(self) -> str | None:
        piece = await anext(self._pieces, None)
        if piece is None:
            return None
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage
        return piece.text


async def _bare_chunks(bare: _Bare, wanted: OpenaiRequest, shape: Shape) -> AsyncIterator[bytes]:
    status = 499
    try:
        if (first := shape.first()) is not None:
            yield _chunk(first)
        async for text in bare.texts():
            yield _chunk(shape.text(text))
        yield _chunk(shape.last(bare.finish_reason, None))
        if wanted.counts:
            yield _chunk(shape.used(bare.usage))
        yield DONE
        status = 200
    except Exception as error:
        told = error if isinstance(error, PalateError) else PhaseFailed("an internal error", phase="generate")
        log.error("request.failed", app=bare.call.app, error=repr(error), exc_info=told is not error)
        status = status_of(told)
        yield _chunk(openai_error(status, told.detail, told.field))
    finally:
        bare.call.count(BASE, status)


def _chunk(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _json(body: dict[str, Any], trace_id: str, served: ServedRelease) -> Response:
    headers = {"x-trace-id": trace_id, "x-palate-release": served.version}
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")
