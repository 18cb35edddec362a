"""What operators and orchestrators ask: alive, ready, metrics, which apps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request, Response

from serving import metrics
from serving.ingress.access import admit, may_use, services_of
from serving.ingress.problems import trace_id_of

if TYPE_CHECKING:
    from serving.ingress.asgi import Services

routes = APIRouter()


def note_gauges(services: Services) -> None:
    """Set the gauges of this process. Whoever answers for all processes of a node cannot ask them for it."""
    metrics.TRACES_DROPPED.set(services.traces.dropped)
    metrics.SPOOLED.set(services.feedback.pending)
    metrics.EVIDENCE_WAITING.set(services.evidence.waiting)
    for app, served in services.router.apps().items():
        metrics.QUEUE_DEPTH.labels(app).set(served.waiting if served is not None else 0)


@routes.get("/healthz", tags=["operations"])
async def healthz() -> dict[str, str]:
    """The process answers. Says nothing of its apps: restarting it would not help them."""
    return {"status": "ok"}


@routes.get("/readyz", tags=["operations"])
async def readyz(request: Request) -> Response:
    """200 when every app's stable release has answered a real query here, else 503 with why not."""
    problems = dict(services_of(request).router.problems())
    body = {"ready": not problems, "problems": problems}
    return Response(orjson.dumps(body), 503 if problems else 200, media_type="application/json")


@routes.get("/metrics", tags=["operations"])
async def prometheus(request: Request) -> Response:
    """Prometheus text format, for all processes of this node."""
    note_gauges(services_of(request))
    text = await asyncio.to_thread(metrics.render)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@routes.get("/v1/apps", response_class=Response, tags=["operations"])
async def apps(request: Request) -> Response:
    """The apps this endpoint serves, with the release of each, the rollout that runs, and what keeps one from serving
    its `stable`."""
    services = services_of(request)
    key = await admit(request, "query")
    listed = []
    for name, served in services.router.apps().items():
        if not may_use(key, name):
            continue
        entry: dict[str, Any] = {"name": name, "ready": served is not None}
        if problem := services.router.problem(name):
            entry["problem"] = problem
        traffic = services.router.traffic(name)
        if traffic is not None and traffic.canary is not None:
            entry["rollout"] = {
                "number": traffic.rollout,
                "canary": str(traffic.canary),
                "percent": traffic.canary_percent,
            }
        if served is not None:
            entry |= {
                "release": served.version,
                "description": served.spec.description,
                "items": await asyncio.to_thread(services.items.count, name),
                "example_query": served.spec.example_query,
            }
        listed.append(entry)
    headers = {"x-trace-id": trace_id_of(request)}
    return Response(orjson.dumps({"apps": listed}), headers=headers, media_type="application/json")
