"""The wiring of `palate controller`: the registry's controller over the SQL database, MLflow and stored feedback."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import DBAPIError

from registry.analysis import Analysis
from registry.config import RegistryConfig
from registry.controller import Controller, Ports, Switchboard, run
from registry.database import Database, open_database
from registry.errors import DatabaseRefused, RegistryUnavailable, ReleaseNotFound
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.kserve_traffic import KserveTraffic, KubernetesApi, Settings
from registry.kserve_traffic.mapping import collection
from registry.mlflow_store import MlflowStore
from registry.plan import reward_weights
from registry.ports import Journal, TrafficBoard
from registry.scoreboard import Scoreboard
from registry.webhook import ensure_webhook, keep_webhook
from serving.config import ServingConfig
from serving.errors import BadRequest
from serving.health import Watched, serve_health
from serving.logs import configure_logs, get_log
from serving.periodic import Periodic
from serving.rewards import SqlRewards
from serving.schema import AppSpec, MemorySpec
from serving.secret_files import ensure_webhook_secret
from serving.store import SqlFeedbackStore, SqlSessionStore

PURGE_EVERY_S = 3600.0


def run_controller(config: ServingConfig) -> None:
    """Until SIGTERM or SIGINT. Raises BadRequest or a RegistryError for what is set up wrongly."""
    if not config.apps:
        raise BadRequest("PALATE_APPS is empty: name the apps to look after, separated by commas", field="PALATE_APPS")
    mlflow_uri = config.mlflow_uri or RegistryConfig.from_env().mlflow_uri
    database = open_database(config.database)
    _check_schema(database)
    configure_logs(config.log)
    _log_through_structlog()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    made = build_controller(config, database, mlflow_uri)
    if config.webhook_url:
        secret = config.webhook_secret or ensure_webhook_secret(config.home, config.secrets)
        keep_webhook(lambda: ensure_webhook(mlflow_uri, config.webhook_url, secret), stop)
    get_log(__name__).info("controller.started", holder=made.holder, apps=config.apps, mlflow=mlflow_uri)
    retention = Periodic("trace-retention", PURGE_EVERY_S, lambda: purge(config, database, made))
    kserve = follow_kserve(config, database, made) if config.kserve_namespace else None
    watched = Watched(made)
    health = serve_health(watched, config.controller_port) if config.controller_port else None
    run(watched, stop, wall=time.time)
    if kserve is not None:
        kserve.close()
    retention.close()
    if health is not None:
        health.shutdown()
    get_log(__name__).info("controller.stopped", holder=made.holder)
    database.close()


def purge_traces(config: ServingConfig, database: Database, controller: Controller) -> None:
    """Forget the traces that are older than the configuration keeps them; the controller that holds the lease does."""
    if config.trace_retention_days and controller.holds_lease():
        gone = SqlFeedbackStore(database).purge(time.time() - config.trace_retention_days * 86_400)
        get_log(__name__).info("traces.purged", count=gone)


def purge(config: ServingConfig, database: Database, controller: Controller) -> None:
    purge_traces(config, database, controller)
    purge_sessions(config, database, controller)


def purge_sessions(config: ServingConfig, database: Database, controller: Controller) -> None:
    """Forget the sessions that were silent for longer than the release that serves remembers them: until then nobody
    sees them either. The controller that holds the lease does."""
    if not controller.holds_lease():
        return
    sessions, journal, board = SqlSessionStore(database), SqlJournal(database), SqlBoard(database)
    for app in set(sessions.apps()) & set(config.apps):
        spec = spec_of(app, journal, board)
        if spec is not None:
            memory = AppSpec.model_validate(spec).understand.memory or MemorySpec()
            gone = sessions.purge(app, time.time() - memory.expire_s)
            get_log(__name__).info("sessions.purged", app=app, turns=gone)


def build_controller(config: ServingConfig, database: Database, mlflow_uri: str) -> Controller:
    """The controller over the database and MLflow."""
    journal, board, evidence = SqlJournal(database), SqlBoard(database), SqlEvidence(database)
    rewards = SqlRewards(database, lambda app: weights_of(app, journal, board))
    return Controller(
        config.apps,
        Ports(journal, board, evidence),
        Scoreboard(evidence, rewards, Analysis),
        Switchboard(MlflowStore(mlflow_uri), time.monotonic, poll_s=config.poll_s),
    )


def follow_kserve(config: ServingConfig, database: Database, controller: Controller) -> KserveTraffic:
    """Makes InferenceServices what the controller decides, in threads of this process, while it holds the lease. Raises
    RegistryError where there is no API server to talk to."""
    where, server = collection(config.kserve_namespace), config.kubernetes_api
    api = KubernetesApi(server, where) if server else KubernetesApi.in_cluster(where)
    made = KserveTraffic(api, SqlBoard(database), SqlJournal(database), Settings(config.kserve_namespace))
    made.active = controller.holds_lease
    made.start()
    return made


def weights_of(app: str, journal: Journal, board: TrafficBoard) -> Mapping[str, float]:
    """What each event is worth in the app's rollout: by the release it is compared with, for both arms alike."""
    spec = spec_of(app, journal, board)
    return {} if spec is None else reward_weights(spec)


def spec_of(app: str, journal: Journal, board: TrafficBoard) -> Mapping[str, Any] | None:
    """Of the release that serves, beside a canary too; None where there is none."""
    state = journal.states().get(app)
    base = None if state is None else state.stable if state.rollout is None else state.rollout.base
    try:
        return None if base is None else board.release(app, base).release.spec
    except ReleaseNotFound:
        return None


def _check_schema(database: Database) -> None:
    """Raises DatabaseRefused for one that was not brought up to date. One that is away may come back."""
    try:
        SqlJournal(database).states()
        SqlBoard(database).traffic()
    except RegistryUnavailable:
        return
    except DBAPIError as error:
        raise DatabaseRefused(
            f"the database lacks the tables of rollouts ({error.orig}): start `palate up`, or run the migration, first"
        ) from error


class _ToStructlog(logging.Handler):
    """What registry (and libraries, where it is a warning) logs goes into the same file, one JSON object a line."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        get_log(record.name).log(record.levelno, record.getMessage(), **fields)


def _log_through_structlog() -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)
    logging.getLogger("registry").setLevel(logging.INFO)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # of each retry; the switchboard says it once
