"""`palate learner`: starts training runs by themselves, and gives candidates that waited their turn on trial.

A level-triggered loop like the controller's: every few seconds it looks at feedback, runs and aliases anew and does
what is due. Of several learners one acts (a lease). A run is a child process, `palate train`, of low priority; one at a
time on a machine, held by a lock that the child inherits: a learner that is killed leaves its child running, and the
next one waits for it. `palate up` starts it; `training.triggers` says what is due.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.database import Database
from registry.database.dialect import clock_s
from registry.errors import LeaseLost, RegistryError, ReleaseNotFound
from registry.files import replace_file
from registry.journal import SqlJournal
from registry.ports import ReleaseStore
from serving.errors import PalateError
from serving.schema import AppSpec
from serving.store.base import read_counter
from training.errors import TrainingError
from training.publish import TAG_CANARY, give_canary
from training.runs import Run, Runs
from training.triggers import LEARNER, Due, Seen, due, pause_s, told

NICENESS = 10
RUNS_SEEN = 20
GATES_FAILED = 3
"""Exit status of `palate train` for a candidate that did not pass: the run itself came to its end."""

log = logging.getLogger(__name__)

Start = Callable[[str, Due, int], "subprocess.Popen[bytes]"]
"""(app, what is due, the lock's descriptor to hand on) -> the child."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`holder` names this process in the lease: no other ever has it."""

    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
    tick_s: float = 5.0


@dataclass(slots=True)
class _Child:
    app: str
    process: subprocess.Popen[bytes]
    lock: int


class Learner:
    """`folders`: app -> the folder with its app.yaml. `tick` is safe to repeat, and to kill anywhere."""

    def __init__(
        self,
        folders: Mapping[str, Path],
        home: Path,
        database: Database,
        releases: ReleaseStore,
        *,
        start: Start | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._folders = folders
        self._home = home
        self._database = database
        self._runs = Runs(database)
        self._releases = releases
        self._journal = SqlJournal(database)
        self._start = start or self._start_command
        self.settings = settings or Settings()
        self._child: _Child | None = None
        self._failures: dict[str, tuple[int, float]] = {}
        self._said: dict[str, str] = {}

    # --- one look

    def tick(self) -> bool:
        """Whether this learner holds the lease. Raises RegistryError when the database or MLflow is away."""
        self._collect()
        if not self._runs.take_learner(self.settings.holder):
            self._tell(dict.fromkeys(self._folders, "another learner acts"))
            return False
        says: dict[str, str] = {}
        for app in self._folders:
            try:
                says[app] = self._turn(app)
            except ReleaseNotFound:
                says[app] = "no stable release yet"
            except (PalateError, TrainingError) as error:
                says[app] = str(error)
        self._tell(says)
        return True

    def close(self, timeout_s: float = 20.0) -> None:
        """End the child, which can be resumed, and let another learner act."""
        if self._child is not None:
            self._child.process.terminate()
            try:
                self._child.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._child.process.kill()
                self._child.process.wait()
            self._collect()
        try:
            self._runs.release_learner(self.settings.holder)
        except RegistryError as error:
            log.warning("lease.kept", extra={"fields": {"detail": str(error)}})

    @property
    def training(self) -> int | None:
        """The process of the run that this learner started and that still works."""
        return None if self._child is None else self._child.process.pid

    def _turn(self, app: str) -> str:
        self._move_candidates(app)
        if self._child is not None and self._child.app == app:
            return f"training (process {self._child.process.pid})"
        seen = self._see(app)
        now = due(seen)
        if now is None:
            live = next((run for run in seen.runs if run.live), None)
            return told(seen) if live is None else f"run {live.id} is on its way"
        failures, until_s = self._failures.get(app, (0, 0.0))
        if time.monotonic() < until_s:
            return f"{now.why}; `palate train` ended {failures} times without a run: waiting"
        if self._child is not None or not self._try_start(app, now):
            return f"{now.why}; waiting for another run on this machine"
        return f"started: {now.why}"

    def _see(self, app: str) -> Seen:
        stable = self._releases.get(app, "stable")
        with self._database.reading() as connection:
            events, now_s = read_counter(connection, app, "feedback"), clock_s(connection)
        spec = AppSpec.model_validate(stable.release.spec)
        return Seen(spec.train, self._runs.of(app, RUNS_SEEN), events, stable.created_s, now_s)

    # --- candidates that wait

    def _move_candidates(self, app: str) -> None:
        """The newest that waits gets the alias as soon as it is free; those before it never will."""
        waiting = self._runs.waiting(app)
        if not waiting:
            return
        newest, *older = waiting
        for run in older:
            self._settle(run, f"superseded: version {newest.version} passed its gates since")
        if newest.version is None:
            return
        version = self._releases.get(app, newest.version)
        against = int(newest.outcome.get("gates", {}).get("compared_with", 0))
        lease = self._runs.moving_candidates(app, self.settings.holder)
        give, why = give_canary(self._releases, self._journal, version, against, lease)
        if give == "canary":
            self._runs.settle(newest, "published", outcome={**newest.outcome, "alias": {"give": give, "why": why}})
            log.info("canary.given", extra={"fields": {"app": app, "version": newest.version}})
        elif give == "none":
            self._settle(newest, why)

    def _settle(self, run: Run, why: str) -> None:
        self._runs.settle(run, "superseded", outcome={**run.outcome, "alias": {"give": "none", "why": why}})
        if run.version is not None:
            self._releases.set_tags(run.app, run.version, {TAG_CANARY: why})

    # --- the child

    def _try_start(self, app: str, now: Due) -> bool:
        path = self._home / "training" / "one-at-a-time.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._child = _Child(app, self._start(app, now, lock), lock)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)  # the child has its own descriptor of it: the lock goes when the child does
        log.info("run.started", extra={"fields": {"app": app, "why": now.why, "pid": self._child.process.pid}})
        return True

    def _start_command(self, app: str, now: Due, lock: int) -> subprocess.Popen[bytes]:
        file = self._home / "logs" / f"train-{app}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        only = [part for name in now.names for part in ("--only", name)]
        command = [sys.executable, "-m", "serving.cli", "train", str(self._folders[app]), *only]
        with file.open("ab") as stream:
            return subprocess.Popen(
                [*command, "--as-stable", "--why", now.why, "--who", LEARNER],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, pass_fds=(lock,),
                env={**os.environ, "PALATE_HOME": str(self._home)}, preexec_fn=_nice,
            )  # fmt: skip

    def _collect(self) -> None:
        """Note how the child ended."""
        child = self._child
        if child is None or child.process.poll() is None:
            return
        self._child = None
        status = child.process.returncode
        log.info("run.ended", extra={"fields": {"app": child.app, "status": status}})
        if status in (0, GATES_FAILED):
            self._failures.pop(child.app, None)
        else:
            failures = self._failures.get(child.app, (0, 0.0))[0] + 1
            self._failures[child.app] = (failures, time.monotonic() + pause_s(failures))

    def _tell(self, says: Mapping[str, str]) -> None:
        """For `palate status`, and in the log what is new."""
        for app, text in says.items():
            if self._said.get(app, "").partition(":")[0] != text.partition(":")[0]:
                log.info("learner", extra={"fields": {"app": app, "says": text}})
        if says != self._said:
            self._said = dict(says)
            write_status(self._home, says)


def _nice() -> None:
    os.nice(NICENESS)


def write_status(home: Path, says: Mapping[str, str]) -> None:
    """Whole or not at all."""
    (home / "run").mkdir(parents=True, exist_ok=True)
    replace_file(home / "run" / "learner.json", json.dumps({"pid": os.getpid(), "apps": dict(says)}))


def run_learner(learner: Learner, stop: threading.Event) -> None:
    """Tick until `stop` is set. Nothing but `stop` ends it."""
    away = ""
    while not stop.is_set():
        try:
            learner.tick()
            if away:
                log.info("back")
            away = ""
        except (RegistryError, LeaseLost, OSError) as error:
            if not away:
                log.warning("away", extra={"fields": {"detail": str(error)}})
            away = str(error)
        except Exception:  # the outermost loop of the process
            log.exception("learner.tick")
        stop.wait(learner.settings.tick_s)
    learner.close()
