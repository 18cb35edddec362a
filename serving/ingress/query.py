"""POST /v1/apps/{app}/query: the hot path. JSON is validated in one call and written in one call, documents spliced in
as the bytes they are stored as."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving.arms import Asked, Given
from serving.components.catalogue import Columns
from serving.components.record import check_record
from serving.config import Limits
from serving.errors import BadRequest, PalateError, TooLarge
from serving.generate.generator import Wish
from serving.ingress import replies
from serving.ingress.access import PIN_HEADER, PIN_PARAMETER, admit, allowed_time_s, pin_of, read_body, services_of
from serving.ingress.answers import answer_json, to_ms, trace_of
from serving.ingress.models import AnswerModel, AnswersModel, QueryRequest, parse
from serving.ingress.problems import problem_json, status_of
from serving.ingress.replies import Call, ClientLeft, EventStream, Reply
from serving.logs import get_log
from serving.router import Router
from serving.schema import AppSpec, Query
from serving.trace import Origin, new_token, stamp

routes = APIRouter()
log = get_log(__name__)


@routes.post(
    "/v1/apps/{app}/query",
    response_class=Response,
    responses={200: {"model": AnswerModel | AnswersModel}},
    tags=["query"],
    openapi_extra={"parameters": [PIN_PARAMETER]},
)
async def query(app: str, request: Request) -> Response:
    """Search an app's catalogue with one text, or with several; and answer in words, where the app does."""
    services = services_of(request)
    pin = pin_of(request, await admit(request, "query", app))
    call = Call.begin(request, app, "query", pin)
    stable, release = call.stable, call.stable.version
    status = 500  # unless it ends in one of the ways below
    generating = False
    try:
        wanted = parse(QueryRequest, await read_body(request))
        queries = queries_of(wanted, stable.spec, services.config.limits)
        deadline = call.started + allowed_time_s(request, stable.spec.deadline_s)
        wish = _wish(wanted, stable.spec)
        if wish is not None:
            generating = True  # and counts itself
            return await _generated(call, queries[0], wish, deadline)
        recalled = True
        remembers = stable.spec.understand.memory is not None and wanted.session is not None and wanted.queries is None
        if remembers:
            queries[0], recalled = await services.memory.recall(stable.spec, queries[0])
        # Checked by stable's spec for every arm: what stable takes is a good request
        asked = Asked(app, wanted.user or wanted.session, call.token, queries, deadline)
        given = await (services.arms.answer(asked) if pin is None else _pinned(services.router, pin, asked))
        release = given.served.version
        status = 200
    except PalateError as error:
        status = status_of(error)
        raise
    finally:
        if not generating:
            elapsed_s = call.count(release, status)
    bodies = _kept(call, given, queries, elapsed_s)
    trace_id: str = request.state.trace_id
    if wanted.queries is not None:
        return _json({"trace_id": trace_id, "app": app, "release": release, "answers": bodies}, trace_id)
    if remembers:
        kept = await services.memory.remember(stable.spec, queries[0], given.answers[0], "")
        bodies[0]["session"] = {"turns": len(queries[0].history), "recalled": recalled, "kept": kept}
    return _json(bodies[0], trace_id)


def _kept(call: Call, given: Given, queries: Sequence[Query], elapsed_s: float) -> list[dict[str, Any]]:
    """The answers as JSON, once their traces are on their way to the store; the first's id is the request's."""
    services, secret = call.services, call.services.trace_secret
    if given.origin != Origin(call.stable.version):
        call.request.state.trace_id = stamp(secret, call.app, call.token, given.origin)
    first_id: str = call.request.state.trace_id
    bodies = []
    for number, (one, answer) in enumerate(zip(queries, given.answers, strict=True)):
        its_id = first_id if number == 0 else stamp(secret, call.app, new_token(call.now), given.origin)
        trace = trace_of(its_id, given, one, answer, (call.now, elapsed_s))
        services.traces.record(trace)
        services.recent.remember(trace)
        bodies.append(answer_json(given.served, answer, trace))
    log.info("query", trace_id=first_id, app=call.app, release=given.served.version, texts=len(queries),
             ms=to_ms(elapsed_s))  # fmt: skip
    return bodies


def _json(body: dict[str, Any], trace_id: str) -> Response:
    return Response(orjson.dumps(body), headers={"x-trace-id": trace_id}, media_type="application/json")


def _wish(wanted: QueryRequest, spec: AppSpec) -> Wish | None:
    """What is to be generated, None for nothing. Raises BadRequest."""
    if wanted.generate is False or (wanted.generate is None and (spec.generate is None or wanted.queries is not None)):
        if wanted.stream:
            raise BadRequest("stream: nothing is generated here that could come in parts", field="stream")
        return None
    if spec.generate is None:
        raise BadRequest(f"{spec.name} generates no answers: it has no section `generate`", field="generate")
    if wanted.queries is not None:
        raise BadRequest("generate: send one `query`; several are searched, not answered", field="generate")
    form = wanted.generate if isinstance(wanted.generate, str) else ""
    return Wish(form, max_tokens=wanted.max_tokens, seed=wanted.seed, stream=wanted.stream)


async def _generated(call: Call, query: Query, wish: Wish, deadline: float) -> Response:
    try:
        reply = await replies.begin(call, query, wish, deadline)
        if wish.stream:
            return EventStream(reply.trace_id, _events(reply), reply.close)
        body = await replies.unless_left(call.request, replies.whole(reply))
    except ClientLeft:
        return Response(status_code=499)
    return _json(body, reply.trace_id)


async def _events(reply: Reply) -> AsyncIterator[bytes]:
    """Server-sent events: `results` (the answer but for its words), `text` again and again, then `done` (the whole) or
    `error` (a problem)."""
    try:
        yield _event("results", reply.found())
        async for text in reply.texts():
            yield _event("text", {"text": text})
        yield _event("done", await reply.finish())
    except Exception as error:  # noqa: BLE001 - outermost: the status is sent, so what went wrong is an event
        yield _event("error", problem_json(reply.failed(error), reply.trace_id))


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


async def _pinned(router: Router, pin: str, asked: Asked) -> Given:
    """By the release that the request names: no evidence, and nothing stands in for it. Raises PalateError."""
    served = router.pinned(asked.app, pin, PIN_HEADER)
    return Given(served, await served.answer(asked.queries, asked.deadline), Origin(served.version))


def queries_of(wanted: QueryRequest, spec: AppSpec, limits: Limits) -> list[Query]:
    """The validated queries of a request. Raises BadRequest or TooLarge that names the field."""
    texts = wanted.texts
    if len(texts) > limits.max_queries:
        raise TooLarge(f"{len(texts)} queries; at most {limits.max_queries} are taken at once", field="queries")
    if wanted.top_k > limits.max_top_k:
        raise BadRequest(f"top_k is {wanted.top_k}; at most {limits.max_top_k} are given", field="top_k")
    for number, text in enumerate(texts):
        field = "query" if wanted.queries is None else f"queries.{number}"
        if not text.strip() and not (wanted.record or wanted.like):
            raise BadRequest(f"{field} is empty: send the text to search for", field=field)
        if len(text) > limits.max_query_chars:
            raise BadRequest(f"{field} has {len(text)} characters; at most {limits.max_query_chars}", field=field)
    if wanted.filters:
        # Over no rows: says what is wrong with a filter before the query shares a batch with others.
        Columns(spec.items.attributes).mask(wanted.filters, 0)
    check_record(wanted.record, spec.record)
    if wanted.like and not any(source.engine == "dense" for source in spec.retrieve.sources.values()):
        raise BadRequest("like: this app has no dense source, which is what compares items", field="like")
    beside = (wanted.top_k, wanted.filters, wanted.user, wanted.session, wanted.record, tuple(wanted.like))
    return [Query(text, *beside) for text in texts]
