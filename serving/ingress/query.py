"""POST /v1/apps/{app}/query: the hot path. JSON is validated in one call and written in one call, documents spliced in
as the bytes they are stored as."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving import metrics
from serving.components.catalogue import Columns
from serving.config import Limits
from serving.errors import BadRequest, PalateError, TooLarge
from serving.ingress.access import admit, allowed_time_s, read_body, services_of
from serving.ingress.models import AnswerModel, AnswersModel, QueryRequest, parse
from serving.ingress.problems import status_of
from serving.logs import get_log
from serving.pipeline import Answer, Line
from serving.router import ServedRelease
from serving.schema import AppSpec, Candidate, Query, Trace
from serving.trace import mint

routes = APIRouter()
log = get_log(__name__)


@routes.post(
    "/v1/apps/{app}/query",
    response_class=Response,
    responses={200: {"model": AnswerModel | AnswersModel}},
    tags=["query"],
)
async def query(app: str, request: Request) -> Response:
    """Search an app's catalogue with one text, or with several."""
    started = time.monotonic()
    services = services_of(request)
    await admit(request, "query", app)
    served = services.router.served(app)
    now = services.wall_clock()
    trace_id = request.state.trace_id = mint(services.trace_secret, app, served.version, now)
    status = 500  # unless it ends in one of the ways below
    try:
        wanted = parse(QueryRequest, await read_body(request))
        queries = _queries(wanted, served.spec, services.config.limits)
        answers = await served.answer(queries, started + allowed_time_s(request, served.spec.deadline_s))
        status = 200
    except PalateError as error:
        status = status_of(error)
        raise
    finally:
        elapsed_s = time.monotonic() - started
        metrics.REQUESTS.labels(app, served.version, "query", status).inc()
        metrics.REQUEST_SECONDS.labels(app, served.version, "query").observe(elapsed_s)
    bodies = []
    for number, (one, answer) in enumerate(zip(queries, answers, strict=True)):
        its_id = trace_id if number == 0 else mint(services.trace_secret, app, served.version, now)
        trace = _trace(its_id, served, one, answer, now, elapsed_s)
        services.traces.record(trace)
        services.recent.remember(trace)
        bodies.append(_answer_json(served, answer, trace))
    log.info("query", trace_id=trace_id, app=app, release=served.version, texts=len(queries), ms=_ms(elapsed_s))
    if wanted.query is not None:
        body = bodies[0]
    else:
        body = {"trace_id": trace_id, "app": app, "release": served.version, "answers": bodies}
    return Response(orjson.dumps(body), headers={"x-trace-id": trace_id}, media_type="application/json")


def _queries(wanted: QueryRequest, spec: AppSpec, limits: Limits) -> list[Query]:
    """The validated queries of a request. Raises BadRequest or TooLarge that names the field."""
    texts = wanted.texts
    if len(texts) > limits.max_queries:
        raise TooLarge(f"{len(texts)} queries; at most {limits.max_queries} are taken at once", field="queries")
    if wanted.top_k > limits.max_top_k:
        raise BadRequest(f"top_k is {wanted.top_k}; at most {limits.max_top_k} are given", field="top_k")
    for number, text in enumerate(texts):
        field = "query" if wanted.query is not None else f"queries.{number}"
        if not text.strip():
            raise BadRequest(f"{field} is empty: send the text to search for", field=field)
        if len(text) > limits.max_query_chars:
            raise BadRequest(f"{field} has {len(text)} characters; at most {limits.max_query_chars}", field=field)
    if wanted.filters:
        # Over no rows: says what is wrong with a filter before the query shares a batch with others.
        Columns(spec.items.attributes).mask(wanted.filters, 0)
    return [Query(text, wanted.top_k, wanted.filters, wanted.user, wanted.session) for text in texts]


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


def _trace(trace_id: str, served: ServedRelease, query: Query, answer: Answer, now: float, elapsed_s: float) -> Trace:
    timings: Mapping[str, float] = {
        **{phase: round(ms, 3) for phase, ms in answer.timings_ms.items()},
        "total": _ms(elapsed_s),
    }
    lines = [
        {
            "raw": line.understood.raw,
            "abstained": line.result.abstained,
            "shown": [[c.id, round(c.score, 4), c.source, dict(c.scores)] for c in line.result.candidates],
        }
        for line in answer.lines
    ]
    return Trace(
        trace_id=trace_id,
        app=served.spec.name,
        release=served.version,
        at_s=now,
        query=query.text,
        lines=lines,
        user=query.user,
        session=query.session,
        timings_ms=timings,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
