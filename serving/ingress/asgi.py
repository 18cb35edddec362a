"""Assembles the HTTP app: routes, error bodies, the OpenAPI document. `Services` is all it needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from fastapi import FastAPI

from serving.arms import Arms
from serving.compute import make_room_for_waiting
from serving.config import ServingConfig
from serving.evidence import EvidenceRecorder
from serving.feedback import FeedbackRecorder
from serving.ingress import (
    catalogue,
    chat,
    embeddings,
    feedback,
    inference_v2,
    openapi,
    operations,
    problems,
    query,
    rollouts,
    startup,
    webhooks,
)
from serving.ingress.memory import Memory
from serving.ingress.recent import RecentTraces
from serving.ingress.rollouts import Steering
from serving.keys import ApiKeys, RateLimiter
from serving.periodic import Periodic
from serving.ports import FeedbackStore, ItemStore
from serving.router import Router
from serving.trace import TraceWriter

GAUGES_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call. `wall_clock` gives Unix seconds; `close` is called when the server stops."""

    config: ServingConfig
    router: Router
    arms: Arms
    evidence: EvidenceRecorder
    keys: ApiKeys
    limiter: RateLimiter
    items: ItemStore
    feedback: FeedbackRecorder
    feedback_store: FeedbackStore
    traces: TraceWriter
    recent: RecentTraces
    memory: Memory
    trace_secret: bytes
    steering: Steering
    wall_clock: Callable[[], float]
    close: Callable[[], None]


def build_ingress(services: Services) -> FastAPI:
    """The FastAPI app; its lifespan loads what is to serve and keeps following that."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        make_room_for_waiting()
        await services.router.refresh()
        services.router.start(services.config.traffic_poll_s, services.config.refresh_s)
        gauges = Periodic("gauges", GAUGES_EVERY_S, lambda: operations.note_gauges(services))
        await startup.hold(services, services.config.ready_within_s)
        yield
        await asyncio.to_thread(gauges.close)
        await services.arms.close()
        await services.router.close()
        services.close()

    api = FastAPI(
        title="Palate",
        version=version("palate"),
        description="Search, ranking and generation over a company's own catalogue.",
        docs_url=None,  # the page would load its scripts from a CDN, which an air-gapped cluster has not
        redoc_url=None,
        lifespan=lifespan,
    )
    api.state.services = services
    for module in (query, chat, inference_v2, feedback, catalogue, embeddings, operations, rollouts, webhooks):
        api.include_router(module.routes)
    problems.install(api)
    openapi.install(api)
    return api
