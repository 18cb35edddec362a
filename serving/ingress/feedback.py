"""POST /v1/apps/{app}/feedback: what a user did with an answer, durable before it is acknowledged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serving import metrics
from serving.errors import BadRequest, StoreUnavailable
from serving.ingress.access import admit, read_body, services_of
from serving.ingress.models import FeedbackRequest, parse
from serving.logs import get_log
from serving.schema import AppSpec, FeedbackEvent, Trace
from serving.trace import Origin, verify

routes = APIRouter()
log = get_log(__name__)


@routes.post("/v1/apps/{app}/feedback", response_class=Response, tags=["feedback"])
async def feedback(app: str, request: Request) -> Response:
    """Record a selection, click, order, rejection or rating. Answers once it cannot be lost any more."""
    services = services_of(request)
    await admit(request, "feedback", app)
    served = services.router.served(app)
    wanted = parse(FeedbackRequest, await read_body(request))
    origin = verify(services.trace_secret, app, wanted.trace_id)
    request.state.trace_id = wanted.trace_id
    _check_event(wanted, served.spec)
    trace = services.recent.get(wanted.trace_id)
    if trace is None:
        try:
            trace = await asyncio.to_thread(services.feedback_store.trace, wanted.trace_id)
        except StoreUnavailable:
            trace = None  # the event is kept all the same; it is joined by its trace id when examples are built
    event_id = wanted.event_id or request.headers.get("idempotency-key") or uuid.uuid4().hex
    event = _event(wanted, app, origin, event_id, services.wall_clock(), trace)
    recorded = await asyncio.to_thread(services.feedback.record, event)
    metrics.FEEDBACK.labels(app, event.event, recorded.stored).inc()
    log.info("feedback", trace_id=event.trace_id, app=app, release=origin.release, feedback=event.event,
             event_id=event_id, stored=recorded.stored)  # fmt: skip
    body = {"event_id": event_id, "trace_id": event.trace_id, "release": origin.release, "stored": recorded.stored}
    return Response(orjson.dumps(body), headers={"x-trace-id": event.trace_id}, media_type="application/json")


def _check_event(wanted: FeedbackRequest, spec: AppSpec) -> None:
    if wanted.event not in spec.feedback.reward:
        raise BadRequest(
            f"event {wanted.event!r} is not one of {spec.name}'s: {sorted(spec.feedback.reward)}", field="event"
        )
    if wanted.item_id is None and not wanted.rejected and wanted.value is None:
        raise BadRequest("say what it is about: item_id, rejected or value", field="item_id")


def _event(
    wanted: FeedbackRequest, app: str, origin: Origin, event_id: str, now: float, trace: Trace | None
) -> FeedbackEvent:
    """Join the request with its trace. Raises BadRequest where they contradict each other."""
    line: Mapping[str, Any] = {}
    if trace is not None:
        if wanted.line >= len(trace.lines):
            raise BadRequest(
                f"line is {wanted.line}, but the answer has {len(trace.lines)} lines, from 0", field="line"
            )
        line = trace.lines[wanted.line]
    scores: dict[str, dict[str, float]] = {}
    for item_id, score, source, by_source in line.get("shown", ()):
        for name, value in (by_source or {source: score}).items():
            scores.setdefault(name, {})[item_id] = value
    return FeedbackEvent(
        event_id=event_id,
        trace_id=wanted.trace_id,
        app=app,
        release=origin.release,
        event=wanted.event,
        at_s=now,
        user=wanted.user or (trace.user if trace else None),
        line=wanted.line,
        raw=line.get("raw"),
        selected=wanted.item_id,
        rejected=tuple(wanted.rejected),
        value=wanted.value,
        scores=scores,
        rollout=origin.rollout,
        arm=origin.arm,
    )
