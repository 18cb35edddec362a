"""The stores and services one serving process opens, from its configuration. Called by the Serve replicas and tests."""

from __future__ import annotations

import time
from dataclasses import dataclass

from registry.config import RegistryConfig
from registry.database import Database, open_database
from registry.mlflow_store import MlflowStore
from registry.ports import ReleaseStore
from serving.config import ServingConfig
from serving.feedback import FeedbackRecorder
from serving.ingress import Services
from serving.ingress.recent import RecentTraces
from serving.keys import ApiKeys, RateLimiter, ensure_trace_secret
from serving.retrieve.rules import learn_expansions
from serving.router import Load, Router
from serving.schema import AppSpec, FeedbackEvent
from serving.store import SqlExpansions, SqlFeedbackStore, SqlItemStore
from serving.trace import TraceWriter


@dataclass(frozen=True, slots=True)
class Stores:
    database: Database
    releases: ReleaseStore
    items: SqlItemStore
    feedback: SqlFeedbackStore
    expansions: SqlExpansions


def open_stores(config: ServingConfig) -> Stores:
    """Opens lazily: a database or registry that is away raises on use, not here."""
    database = open_database(config.database)
    uri = config.mlflow_uri or RegistryConfig.from_env().mlflow_uri
    return Stores(
        database, MlflowStore(uri), SqlItemStore(database), SqlFeedbackStore(database), SqlExpansions(database)
    )


def build_services(config: ServingConfig, stores: Stores, load: Load) -> Services:
    """What the ingress needs, with its background threads running."""
    router = Router(config.apps, stores.releases, load, config.limits)
    traces = TraceWriter(stores.feedback)
    recorder = FeedbackRecorder(
        stores.feedback, config.home / "spool", learn=lambda event: _learn(event, router, stores)
    )

    def close() -> None:
        traces.close()
        recorder.close()
        stores.database.close()

    return Services(
        config=config,
        router=router,
        keys=ApiKeys(stores.database),
        limiter=RateLimiter(config.limits.rate_per_s),
        items=stores.items,
        feedback=recorder,
        feedback_store=stores.feedback,
        traces=traces,
        recent=RecentTraces(),
        trace_secret=ensure_trace_secret(config.home),
        wall_clock=time.time,
        close=close,
    )


def _learn(event: FeedbackEvent, router: Router, stores: Stores) -> None:
    """A selection teaches the abbreviations of the user who made it, where the app wants that."""
    if event.user is None or event.raw is None or event.selected is None:
        return
    served = router.apps().get(event.app)
    # What an outage spooled is replayed at the start, maybe before the app is loaded.
    spec = served.spec if served else AppSpec.model_validate(stores.releases.get(event.app, "stable").release.spec)
    if not spec.feedback.learn_expansions:
        return
    item = stores.items.get(event.app, [event.selected])[0]
    if item is not None and (learnt := learn_expansions(event.raw, item, spec.items.text)):
        stores.expansions.learn(event.app, event.user, learnt)
