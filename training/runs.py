"""`Runs`: the record of training runs, and the lease per app that keeps two of them from publishing over each other.

`training.run` begins, renews and finishes; `palate runs` and `training.learner` read. Times are the database's clock. A
run that was killed keeps the status `running` until its lease ran out and somebody resumes it (the same request) or
begins another. What a run does to the outside of the database, it does inside `holding`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import BigInteger, Column, Connection, Float, Index, Integer, Row, Table, Text, select, update

from registry.database import Database, metadata
from registry.database.dialect import clock_s, insert
from registry.journal import lease
from training.errors import RunFenced, TrainingRefused

Status = Literal[
    "running", "published", "waiting", "superseded", "gates-failed", "unchanged", "finished", "failed", "abandoned"
]
"""published: passed its gates (and has `canary` where the app allows it). waiting: passed, and gets `canary` when the
trial before it is over. superseded: a newer candidate passed, or stable moved, before its turn came. gates-failed:
registered, no alias. unchanged: the candidate is stable itself. finished: was not to publish. failed: see `error`;
the same command goes on with it. abandoned: was killed, and another run began in its place."""

LEASE_S = 60.0
MAX_ATTEMPTS = 10
"""A run that was killed or failed so often is not resumed any more: what stops it may be in its data."""
MAX_ERROR_CHARS = 4_000

runs = Table(
    "training_runs",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("app", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("request", Text, nullable=False, comment="what it was asked to do, as JSON"),
    Column("why", Text, nullable=False, comment="why it was started"),
    Column("who", Text, nullable=False),
    Column("holder", Text, nullable=False, comment="of the lease train:APP; one process"),
    Column("attempts", BigInteger, nullable=False, comment="1 for a run that was never resumed"),
    Column("started_s", Float, nullable=False, comment="times are by the database's clock"),
    Column("heartbeat_s", Float, nullable=False),
    Column("ended_s", Float, nullable=True),
    Column("fingerprint", Text, nullable=False, comment="of its data sets"),
    Column("feedback_seq", BigInteger, nullable=False, comment="the last feedback event it learnt from"),
    Column("version", BigInteger, nullable=True, comment="the candidate"),
    Column("outcome", Text, nullable=False, comment="gates and alias, as JSON"),
    Column("error", Text, nullable=False),
    Column("mlflow_run", Text, nullable=False),
    Index("training_runs_by_app", "app", "id"),
    sqlite_autoincrement=True,
)


class RunBusy(TrainingRefused):
    """Another run of this app holds the lease; the message says which."""


@dataclass(frozen=True, slots=True)
class Run:
    """`live`: it is running, and its lease has not run out. `now_s`: the database's clock when this was read."""

    id: int
    app: str
    status: Status
    request: Mapping[str, Any]
    why: str
    who: str
    holder: str
    attempts: int
    started_s: float
    heartbeat_s: float
    ended_s: float | None
    fingerprint: str
    feedback_seq: int
    version: int | None
    outcome: Mapping[str, Any]
    error: str
    mlflow_run: str
    live: bool
    now_s: float

    def resumable(self, request: Mapping[str, Any]) -> bool:
        """Whether a run that is asked for `request` goes on with this one, if it is the app's newest."""
        return self.status in ("running", "failed") and self.request == request and self.attempts < MAX_ATTEMPTS

    @property
    def shown_status(self) -> str:
        return "interrupted" if self.status == "running" and not self.live else self.status


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run is asked to do (`request`, plain JSON), why, and by whom. `holder` is one process's only."""

    app: str
    request: Mapping[str, Any]
    why: str = "by hand"
    who: str = ""
    fresh: bool = False
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")


LEARNER_LEASE = "learner"


def _canary(app: str) -> str:
    return f"canary:{app}"


def lease_name(app: str) -> str:
    return f"train:{app}"


class Runs:
    """Every method raises RegistryUnavailable when the database cannot be used; nothing is half done then."""

    def __init__(self, database: Database, lease_s: float = LEASE_S) -> None:
        self._database = database
        self.lease_s = lease_s

    # --- the run itself

    def begin(self, ask: Ask) -> Run:
        """The app's newest run, resumed, when it did not get to its end and was asked the same; else a new one. Its
        lease of LEASE_S comes with it. Raises RunBusy."""
        with self._database.writing() as connection:
            if not lease.take(connection, ask.holder, self.lease_s, lease_name(ask.app)):
                raise RunBusy(self._busy(connection, ask.app))
            now = clock_s(connection)
            newest = next(iter(self._rows(connection, runs.c.app == ask.app, limit=1)), None)
            goes_on = newest is not None and newest.resumable(ask.request) and not ask.fresh
            for old in self._rows(connection, runs.c.app == ask.app, runs.c.status == "running"):
                if not (goes_on and newest is not None and old.id == newest.id):
                    self._end(connection, old.id, "abandoned", now, {"error": "killed; another run began"})
            if goes_on and newest is not None:
                change = {"status": "running", "holder": ask.holder, "attempts": newest.attempts + 1, "error": "",
                          "heartbeat_s": now, "ended_s": None}  # fmt: skip
                connection.execute(update(runs).where(runs.c.id == newest.id).values(**change))
                run_id: int | None = newest.id
            else:
                row = {
                    "app": ask.app, "status": "running", "request": _to_json(ask.request), "why": ask.why,
                    "who": ask.who, "holder": ask.holder, "attempts": 1, "started_s": now, "heartbeat_s": now,
                    "fingerprint": "", "feedback_seq": 0, "outcome": "{}", "error": "", "mlflow_run": "",
                }  # fmt: skip
                run_id = connection.scalar(insert(connection, runs).values(row).returning(runs.c.id))
            return self._rows(connection, runs.c.id == run_id)[0]

    def renew(self, run: Run) -> None:
        """Hold the lease for another LEASE_S. Raises RunFenced when the run is no longer this process's."""
        with self._holding(run) as connection:
            values = {"heartbeat_s": clock_s(connection)}
            connection.execute(update(runs).where(runs.c.id == run.id).values(**values))

    @contextmanager
    def holding(self, run: Run) -> Iterator[None]:
        """Nobody takes the app's lease, or moves its candidates, until the block ends: what it writes elsewhere is
        written by the one run that may. SQLite has no other writer meanwhile: keep it to a short request. Raises
        RunFenced."""
        with self._holding(run) as connection:
            lease.lock(connection, _canary(run.app))
            yield

    def note(self, run: Run, **values: object) -> None:
        """Write columns of the run's row. Raises RunFenced."""
        with self._holding(run) as connection:
            connection.execute(update(runs).where(runs.c.id == run.id).values(**_columns(values)))

    def finish(self, run: Run, status: Status, **values: object) -> None:
        """The end of a run, and of its lease. Raises RunFenced."""
        with self._holding(run) as connection:
            self._end(connection, run.id, status, clock_s(connection), _columns(values))
            lease.give_back(connection, run.holder, lease_name(run.app))

    # --- whoever looks on

    def get(self, run_id: int) -> Run | None:
        with self._database.reading() as connection:
            return next(iter(self._rows(connection, runs.c.id == run_id)), None)

    def of(self, app: str, limit: int = 50) -> list[Run]:
        """Newest first."""
        with self._database.reading() as connection:
            return self._rows(connection, runs.c.app == app, limit=limit)

    def waiting(self, app: str) -> list[Run]:
        """Those whose candidate waits for the alias `canary`, newest first."""
        with self._database.reading() as connection:
            return self._rows(connection, runs.c.app == app, runs.c.status == "waiting")

    def settle(self, run: Run, status: Status, **values: object) -> None:
        """Of a run that waits: its turn came, or will not come."""
        with self._database.writing() as connection:
            waits = (runs.c.id == run.id, runs.c.status == "waiting")
            connection.execute(update(runs).where(*waits).values(status=status, **_columns(values)))

    def running(self) -> list[Run]:
        """Those of any app whose process lives."""
        with self._database.reading() as connection:
            return [run for run in self._rows(connection, runs.c.status == "running") if run.live]

    # --- the learner

    def take_learner(self, holder: str) -> bool:
        """One learner acts for all apps of a database; the others wait."""
        with self._database.writing() as connection:
            return lease.take(connection, holder, self.lease_s, LEARNER_LEASE)

    def release_learner(self, holder: str) -> None:
        with self._database.writing() as connection:
            lease.give_back(connection, holder, LEARNER_LEASE)

    @contextmanager
    def moving_candidates(self, app: str, holder: str) -> Iterator[None]:
        """As `holding`, for the learner. Raises LeaseLost."""
        with self._database.writing() as connection:
            lease.require(connection, holder, LEARNER_LEASE)
            lease.lock(connection, _canary(app))
            yield

    # ---

    @contextmanager
    def _holding(self, run: Run) -> Iterator[Connection]:
        """A writing transaction in which the run is ours, with its lease renewed."""
        with self._database.writing() as connection:
            # A lease that ran out while nobody wanted it is still ours, unless the run's row says otherwise
            free = lease.take(connection, run.holder, self.lease_s, lease_name(run.app))
            row = connection.execute(select(runs.c.holder, runs.c.status).where(runs.c.id == run.id)).first()
            if not free or row is None or row.holder != run.holder or row.status != "running":
                raise RunFenced(f"another process took over from run {run.id} of {run.app}: nothing was published")
            yield connection

    def _busy(self, connection: Connection, app: str) -> str:
        found = self._rows(connection, runs.c.app == app, runs.c.status == "running", limit=1)
        if not found:
            return f"another process is about to train {app}: wait for it with --wait"
        run = found[0]
        return (
            f"run {run.id} of {app} is on its way (started by {run.who or 'somebody'}, {run.why}, "
            f"{run.now_s - run.started_s:.0f} s ago, process {run.holder}): wait for it with --wait"
        )

    def _end(self, connection: Connection, run_id: int, status: Status, now: float, values: Mapping[str, Any]) -> None:
        row = {"status": status, "ended_s": now, "heartbeat_s": now, **values}
        connection.execute(update(runs).where(runs.c.id == run_id).values(**row))

    def _rows(self, connection: Connection, *where: Any, limit: int = 1000) -> list[Run]:
        rows = connection.execute(select(runs).where(*where).order_by(runs.c.id.desc()).limit(limit)).all()
        now = clock_s(connection)
        holders = {app: lease.current(connection, lease_name(app)) for app in {row.app for row in rows}}
        return [_run(row, now, holders[row.app]) for row in rows]


def _run(row: Row[Any], now: float, holder: str | None) -> Run:
    values = dict(row._mapping)
    values["request"], values["outcome"] = json.loads(values["request"]), json.loads(values["outcome"])
    return Run(**values, live=values["status"] == "running" and holder == values["holder"], now_s=now)


def _columns(values: Mapping[str, object]) -> dict[str, object]:
    row = dict(values)
    if "outcome" in row:
        row["outcome"] = _to_json(row["outcome"])
    if "error" in row:
        row["error"] = str(row["error"])[:MAX_ERROR_CHARS]
    return row


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
