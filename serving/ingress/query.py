"""POST /v1/apps/{app}/query: the hot path. JSON is validated in one call and written in one call, documents spliced in
as the bytes they are stored as."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving import metrics
from serving.arms import Asked, Given
from serving.components.catalogue import Columns
from serving.components.record import check_record
from serving.config import Limits
from serving.errors import BadRequest, PalateError, TooLarge
from serving.ingress.access import PIN_HEADER, PIN_PARAMETER, admit, allowed_time_s, pin_of, read_body, services_of
from serving.ingress.models import AnswerModel, AnswersModel, QueryRequest, parse
from serving.ingress.problems import status_of
from serving.logs import get_log
from serving.pipeline import Answer, Line
from serving.router import Router, ServedRelease
from serving.schema import AppSpec, Candidate, Query, Trace
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
    """Search an app's catalogue with one text, or with several."""
    started = time.monotonic()
    services = services_of(request)
    pin = pin_of(request, await admit(request, "query", app))
    stable = services.router.served(app)
    now, secret = services.wall_clock(), services.trace_secret
    token = new_token(now)
    origin, release = Origin(stable.version), stable.version
    trace_id = request.state.trace_id = stamp(secret, app, token, origin)
    status = 500  # unless it ends in one of the ways below
    try:
        wanted = parse(QueryRequest, await read_body(request))
        queries = _queries(wanted, stable.spec, services.config.limits)
        deadline = started + allowed_time_s(request, stable.spec.deadline_s)
        # Checked by stable's spec for every arm: what stable takes is a good request
        asked = Asked(app, wanted.user or wanted.session, token, queries, deadline)
        given = await (services.arms.answer(asked) if pin is None else _pinned(services.router, pin, asked))
        release = given.served.version
        status = 200
    except PalateError as error:
        status = status_of(error)
        raise
    finally:
        elapsed_s = time.monotonic() - started
        metrics.REQUESTS.labels(app, release, "query", status).inc()
        metrics.REQUEST_SECONDS.labels(app, release, "query").observe(elapsed_s)
    if given.origin != origin:
        trace_id = request.state.trace_id = stamp(secret, app, token, given.origin)
    bodies = []
    for number, (one, answer) in enumerate(zip(queries, given.answers, strict=True)):
        its_id = trace_id if number == 0 else stamp(secret, app, new_token(now), given.origin)
        trace = _trace(its_id, given, one, answer, (now, elapsed_s))
        services.traces.record(trace)
        services.recent.remember(trace)
        bodies.append(_answer_json(given.served, answer, trace))
    log.info("query", trace_id=trace_id, app=app, release=release, texts=len(queries), ms=_ms(elapsed_s))
    if wanted.queries is None:
        body = bodies[0]
    else:
        body = {"trace_id": trace_id, "app": app, "release": release, "answers": bodies}
    return Response(orjson.dumps(body), headers={"x-trace-id": trace_id}, media_type="application/json")


async def _pinned(router: Router, pin: str, asked: Asked) -> Given:
    """By the release that the request names: no evidence, and nothing stands in for it. Raises PalateError."""
    served = router.pinned(asked.app, pin, PIN_HEADER)
    return Given(served, await served.answer(asked.queries, asked.deadline), Origin(served.version))


def _queries(wanted: QueryRequest, spec: AppSpec, limits: Limits) -> list[Query]:
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


def _answer_json(served: ServedRelease, answer: Answer, trace: Trace) -> dict[str, Any]:
    app = served.spec.name
    first = answer.lines[0]
    body: dict[str, Any] = {
        "trace_id": trace.trace_id,
        "app": app,
        "release": served.version,
        "results": [_result_json(c) for c in first.result.candidates],
        "abstained": first.result.abstained,
        "timings_ms": trace.timings_ms,
    }
    if served.spec.understand.engine == "order_lines":
        body["lines"] = [_line_json(line) for line in answer.lines]
    for line in answer.lines:
        if line.result.abstained:
            metrics.ABSTAINED.labels(app, served.version).inc()
        elif line.result.candidates:
            metrics.SOURCE_DECIDED.labels(app, served.version, line.result.candidates[0].source).inc()
    return body


def _result_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "id": candidate.id,
        "score": round(candidate.score, 4),
        "source": candidate.source,
        "fields": orjson.Fragment(candidate.document),
    }


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "text": line.understood.raw,
        "quantity": line.understood.quantity,
        "unit": line.understood.unit,
        "vintage": line.understood.vintage,
        "results": [_result_json(c) for c in line.result.candidates],
        "abstained": line.result.abstained,
    }


def _trace(trace_id: str, given: Given, query: Query, answer: Answer, when: tuple[float, float]) -> Trace:
    """`when`: Unix time, and the seconds it took."""
    now, elapsed_s = when
    timings: Mapping[str, float] = {
        **{phase: round(ms, 3) for phase, ms in answer.timings_ms.items()},
        "total": _ms(elapsed_s),
    }
    beside: dict[str, Any] = {"record": query.record} if query.record else {}
    if query.like:
        beside["like"] = query.like
    lines = [
        {
            **beside,
            "raw": line.understood.raw,
            "abstained": line.result.abstained,
            "shown": [[c.id, round(c.score, 4), c.source, dict(c.scores)] for c in line.result.candidates],
        }
        for line in answer.lines
    ]
    return Trace(
        trace_id=trace_id,
        app=given.served.spec.name,
        release=given.served.version,
        at_s=now,
        query=query.text,
        lines=lines,
        user=query.user,
        session=query.session,
        status="replayed" if given.replayed else "ok",
        timings_ms=timings,
        rollout=given.origin.rollout,
        arm=given.origin.arm,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
