"""The stores and services one serving process opens, from its configuration. Called by the Serve replicas and tests."""

from __future__ import annotations

import time
from dataclasses import dataclass

from registry.config import RegistryConfig
from registry.database import Database, open_database
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.mlflow_store import MlflowStore
from registry.ports import EvidenceStore, Journal, ReleaseStore, TrafficBoard
from serving.arms import Arms
from serving.config import ServingConfig
from serving.evidence import EvidenceRecorder
from serving.feedback import FeedbackRecorder
from serving.ingress import Services
from serving.ingress.memory import Memory
from serving.ingress.recent import RecentTraces
from serving.ingress.rollouts import Steering
from serving.keys import ApiKeys, RateLimiter
from serving.ports import SessionStore
from serving.retrieve.rules import learn_expansions
from serving.router import ConnectArm, Load, Means, Router
from serving.schema import AppSpec, FeedbackEvent
from serving.secret_files import ensure_trace_secret, ensure_webhook_secret
from serving.store import SqlExpansions, SqlFeedbackStore, SqlItemStore, SqlSessionStore
from serving.store.people import ensure_people_secret
from serving.trace import TraceWriter


@dataclass(frozen=True, slots=True)
class Stores:
    database: Database
    releases: ReleaseStore
    items: SqlItemStore
    feedback: SqlFeedbackStore
    expansions: SqlExpansions
    board: TrafficBoard
    evidence: EvidenceStore
    journal: Journal
    sessions: SessionStore


def open_stores(config: ServingConfig) -> Stores:
    """Opens lazily: a database or registry that is away raises on use, not here."""
    database = open_database(config.database)
    uri = config.mlflow_uri or RegistryConfig.from_env().mlflow_uri
    return stores_over(database, MlflowStore(uri))


def stores_over(database: Database, releases: ReleaseStore) -> Stores:
    """All that lives in the one database, beside the releases."""
    return Stores(
        database=database,
        releases=releases,
        items=SqlItemStore(database),
        feedback=SqlFeedbackStore(database),
        expansions=SqlExpansions(database),
        board=SqlBoard(database),
        evidence=SqlEvidence(database),
        journal=SqlJournal(database),
        sessions=SqlSessionStore(database),
    )


def build_services(
    config: ServingConfig, stores: Stores, load: Load, connect_arm: ConnectArm | None = None
) -> Services:
    """What the ingress needs, with its threads running. Without `connect_arm` stable answers for every arm."""
    means = Means(stores.board, load, connect_arm, config.limits, config.refresh_s)
    router = Router(config.apps, stores.releases, means)
    evidence = EvidenceRecorder(stores.evidence, router.id)
    traces = TraceWriter(stores.feedback)
    recorder = FeedbackRecorder(
        stores.feedback, config.home / "spool", learn=lambda event: _learn(event, router, stores)
    )
    router.spooled = lambda: recorder.pending

    def close() -> None:
        evidence.close()
        traces.close()
        recorder.close()
        stores.database.close()

    return Services(
        config=config,
        router=router,
        arms=Arms(router, evidence),
        evidence=evidence,
        keys=ApiKeys(stores.database),
        limiter=RateLimiter(config.limits.rate_per_s),
        items=stores.items,
        feedback=recorder,
        feedback_store=stores.feedback,
        traces=traces,
        recent=RecentTraces(),
        memory=Memory(stores.sessions, lambda: ensure_people_secret(config.home, config.secrets), time.time),
        trace_secret=ensure_trace_secret(config.home, config.secrets),
        steering=Steering(
            stores.journal,
            stores.board,
            stores.evidence,
            stores.releases,
            config.webhook_secret or ensure_webhook_secret(config.home, config.secrets),
        ),
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
