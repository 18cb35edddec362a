"""Controllers with the routers, arms and people around them played by the test: over stand-ins, where time is the
test's too (`World`), or as real processes (`ControllerSet`)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.analysis import Analysis
from registry.controller import Controller, Ports, Settings, Switchboard
from registry.database import migrate, open_database
from registry.errors import RegistryUnavailable
from registry.fakes import MemoryBoard, MemoryEvidence, MemoryJournal, MemoryRewards, MemoryTables
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.manifest import release_digest
from registry.memory_store import MemoryStore
from registry.ports import ReleaseStore
from registry.rollout import AppState
from registry.schema import Release, ReleaseVersion
from registry.scoreboard import Scoreboard
from registry.traffic import (
    ArmPhase,
    ArmReport,
    Block,
    Command,
    Entry,
    Evidence,
    EvidenceArm,
    RouterReport,
    Traffic,
    TrialArm,
    Verb,
)
from tests.mlflow_fixture import make_release
from tests.waiting import wait_for

QUICK: Mapping[str, Any] = {
    "steps_percent": [10, 50],
    "step": {"min_requests": 20, "min_s": 2, "deadline_s": 60},
    "bake_s": 5,
    "load_deadline_s": 20,
    "guards": {
        "error": {"margin": 0.02, "pass_margin": 0.6},
        "p50": None, "p95": None, "p99": None, "abstained": None, "empty": None, "reward": None,
    },
}  # fmt: skip


def quick_release(
    folder: Path, app: str, mark: str, plan: Mapping[str, Any] = QUICK
) -> tuple[Release, dict[str, Path]]:
    """A release whose rollout takes seconds."""
    release, folders = make_release(folder, app, mark)
    spec = {**release.spec, "rollout": dict(plan)}
    return replace(release, spec=spec, digest=release_digest(spec, release.components)), folders


class FlakyStore:
    """A store as seen through a network that the test cuts (`away`), that lets it look in before each write, and that
    shows it some versions (`altered`) otherwise than they were published."""

    def __init__(self, store: ReleaseStore) -> None:
        self.store = store
        self.away = False
        self.altered: dict[int, ReleaseVersion] = {}
        self.calls: list[str] = []
        self.writes: list[tuple[Any, ...]] = []
        self.before_write: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.away:
                raise RegistryUnavailable("MLflow is away")
            if name in ("set_alias", "delete_alias", "set_tags"):
                self.before_write()
                self.writes.append((name, *arguments))
            if name == "get" and arguments[1] in self.altered:
                return self.altered[arguments[1]]
            return getattr(self.store, name)(*arguments)

        return call


class World:
    def __init__(self, folder: Path, apps: tuple[str, ...] = ("wines",)) -> None:
        self.folder = folder
        self.apps = apps
        self.now = 1_800_000_000.0
        self.tables = MemoryTables(clock=lambda: self.now)
        self.journal = MemoryJournal(self.tables)
        self.board = MemoryBoard(self.tables)
        self.evidence = MemoryEvidence(self.tables)
        self.rewards = MemoryRewards(self.tables)
        self.memory = MemoryStore()
        self.store = FlakyStore(self.memory)
        self.seq = 0
        self.jobs: list[Callable[[], None]] | None = None

    def publish(self, mark: str, app: str = "wines", plan: Mapping[str, Any] = QUICK) -> int:
        return self.memory.publish(*quick_release(self.folder, app, f"{app}-{mark}", plan)).version

    def controller(self, holder: str = "one") -> Controller:
        def start(job: Callable[[], None]) -> None:
            """At once, or, where the test keeps `jobs`, when it says."""
            job() if self.jobs is None else self.jobs.append(job)

        clock = lambda: self.now  # noqa: E731
        board = Scoreboard(self.evidence, self.rewards, Analysis)
        switchboard = Switchboard(self.store, clock, start=start)
        ports = Ports(self.journal, self.board, self.evidence)
        return Controller(self.apps, ports, board, switchboard, settings=Settings(holder=holder), monotonic=clock)

    # --- time and the others ---

    def pass_time(self, controller: Controller, seconds: float, *, ready: bool = True, outcomes: str = "") -> None:
        """Tick every 0.25 s, while routers and arms report and both arms answer with `outcomes`."""
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            if ready:
                self.report()
            if outcomes:
                self.saw("canary", outcomes)
                self.saw("control", "a" * len(outcomes))
            controller.tick(self.now)

    def report(self, phase: ArmPhase = "ready") -> None:
        for app, traffic in self.board.traffic().items():
            self.board.report_router(RouterReport("r1", app, traffic.generation, traffic.stable, "", self.now))
            if traffic.rollout:
                for arm in ("canary", "control"):
                    self.board.report_arm(ArmReport(app, traffic.rollout, arm, phase, "", self.now))  # type: ignore[arg-type]

    def saw(self, arm: EvidenceArm, outcomes: str, app: str = "wines") -> None:
        self.seq += 1
        block = Block(self.now, (5.0,) * len(outcomes), outcomes)
        rollout = self.state(app).rollout
        if rollout is not None:
            self.evidence.add([Evidence(app, rollout.id, "r1", self.seq, arm, block)])

    def ask(self, verb: Verb, version: int | None = None, app: str = "wines") -> int:
        return self.journal.submit(Command(app, verb, "ann", "because", self.now, version))

    # --- what came of it ---

    def state(self, app: str = "wines") -> AppState:
        return self.journal.states().get(app) or AppState(app)

    def traffic(self, app: str = "wines") -> Traffic:
        return self.board.traffic()[app]

    def entries(self, app: str = "wines") -> list[Entry]:
        return self.journal.entries(app)

    def kinds(self, app: str = "wines") -> list[str]:
        return [entry.kind for entry in self.entries(app)]


def started(world: World) -> Controller:
    """A controller that has version 2 as its canary, in loading."""
    controller = world.controller()
    world.pass_time(controller, 1)
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 3, ready=False)
    rollout = world.state().rollout
    assert rollout is not None
    assert rollout.phase == "loading"
    return controller


class Cast(threading.Thread):
    """Plays the router and both arms of one app in real time, over a real database. `outcomes` is what the canary
    answers with, in each block; "": nobody asks anything."""

    def __init__(self, url: str, app: str) -> None:
        super().__init__(daemon=True)
        self.outcomes = ""
        self.crashed = ""
        self._app = app
        self._database = open_database(url)
        self._done = threading.Event()
        self._seq = 0

    def run(self) -> None:
        while not self._done.wait(0.1):
            with suppress(RegistryUnavailable):
                self._play(SqlBoard(self._database), time.time())
        self._database.close()

    def _play(self, board: SqlBoard, now: float) -> None:
        traffic = board.traffic().get(self._app)
        if traffic is None:
            return
        board.report_router(RouterReport("r1", self._app, traffic.generation, traffic.stable, "", now))
        if not traffic.rollout:
            return
        board.report_arm(ArmReport(self._app, traffic.rollout, "control", "ready", "", now))
        phase: ArmPhase = "failed" if self.crashed else "ready"
        board.report_arm(ArmReport(self._app, traffic.rollout, "canary", phase, self.crashed, now))
        arms: dict[TrialArm, str] = {"canary": self.outcomes, "control": "a" * len(self.outcomes)}
        for arm, outcomes in arms.items():
            if outcomes:
                self._seq += 1
                block = Block(now, (5.0,) * len(outcomes), outcomes)
                evidence = Evidence(self._app, traffic.rollout, "r1", self._seq, arm, block)
                SqlEvidence(self._database).add([evidence])

    def close(self) -> None:
        self._done.set()
        self.join(10)


class ControllerSet:
    """Real controller processes of one home over one app, and what the database says of it."""

    def __init__(self, home: Path, app: str, mlflow_uri: str, url: str = "") -> None:
        self.home = home
        self.app = app
        self.url = url or f"sqlite:///{home / 'palate.db'}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PALATE_")} | {
            "PALATE_HOME": str(home), "PALATE_APPS": app, "PALATE_MLFLOW_URI": mlflow_uri,
            "PALATE_DATABASE_URL": self.url, "PALATE_POLL_S": "0.5",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }  # fmt: skip
        migrate(self.url)
        self._database = open_database(self.url)
        self.journal = SqlJournal(self._database)
        self.board = SqlBoard(self._database)
        self.cast = Cast(self.url, app)
        self.cast.start()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        log = self.home / f"controller-{len(self.processes)}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", "controller"],
            env=self.environment | {"PALATE_LOG": str(log)} | environment, stderr=log.open("ab"),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def logs(self) -> str:
        return "".join(f.read_text() for f in sorted(self.home.glob("controller-*.jsonl")))

    def state(self) -> AppState:
        return self.journal.states().get(self.app) or AppState(self.app)

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.journal.entries(self.app)]

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        def holds() -> bool:
            try:
                return condition()
            except RegistryUnavailable:
                return False

        try:
            wait_for(holds, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.kinds()} {self.state()}\n{self.logs()[-4000:]}") from None

    def close(self) -> None:
        self.cast.close()
        for process in self.processes:
            process.kill()
            process.wait(10)
        self._database.close()
