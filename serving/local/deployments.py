"""The Serve applications of this machine beside the endpoint: keeps split releases and the arms of rollouts what the
traffic says they should be, reports the arms, and says what runs.

`palate up` runs a `Deployer`: it reads the traffic several times a second and does what is missing (level-triggered,
in a thread of its own, so that nothing it waits for stops the others). What the Serve controller says of an arm is
judged by `serving.local.arm_state`.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from registry.errors import RegistryError, ReleaseNotFound
from registry.ports import ReleaseStore, TrafficBoard
from registry.schema import ReleaseVersion
from registry.traffic import ArmReport, Traffic, TrialArm
from serving.config import ServingConfig
from serving.local.arm_state import Judged, judge
from serving.local.engines import Engines
from serving.logs import get_log
from serving.units import arm_application_name, deploy, split_application_name

log = get_log(__name__)

EVERY_S = 0.25
KEEP = 2
"""Split releases of an app without traffic: the stable one and the one before it, until routers moved on."""
ARM_LINGER_S = 1.0
"""An arm that no traffic names any more stays this long: every router has read that by then."""
SPLIT_LINGER_S = 5.0
"""A split release stays this long, and for as long as a router has not followed."""
ROUTER_ALIVE_S = 5.0
REPORT_AGAIN_S = 2.0
LOOK_AGAIN_S = 2.0
"""How often Serve is asked what runs while no arm does and nothing else is wanted than before: each answer costs its
controller, and so the queries, some milliseconds."""
ALIAS_EVERY_S = 2.0
ARM_NAME = re.compile(r"(?P<app>.+)-r\d+-(canary|control)")
SPLIT_NAME = re.compile(r"(?P<app>.+)-v(?P<version>\d+)")

Running = Mapping[str, ApplicationStatusOverview]


@dataclass(frozen=True, slots=True)
class WantedArm:
    traffic: Traffic
    arm: TrialArm
    version: int

    @property
    def name(self) -> str:
        return arm_application_name(self.traffic, self.arm)


def wanted_arms(traffic: Mapping[str, Traffic]) -> dict[str, WantedArm]:
    """Application name -> the arm that shall run."""
    arms: tuple[TrialArm, ...] = ("canary", "control")
    found = [
        WantedArm(row, arm, version)
        for row in traffic.values()
        for arm in arms
        if row.rollout and (version := row.version_of(arm)) is not None
    ]
    return {wanted.name: wanted for wanted in found}


def wanted_split(named: Sequence[ReleaseVersion]) -> dict[str, ReleaseVersion]:
    """Application name -> the release, of those that are placed `split`."""
    return {
        split_application_name(version.release.app, version.version): version
        for version in named
        if version.release.spec.get("placement", {}).get("default") == "split"
    }


def _serves(traffic: Traffic, split: Mapping[str, ReleaseVersion], running: Running) -> bool:
    """Whether the app's stable release runs, as far as that is up to applications of its own."""
    name = split_application_name(traffic.app, traffic.stable)
    return name not in split or (name in running and running[name].status == "RUNNING")


class Deployer:
    """`start` runs `reconcile` again and again until `close`. Only one may run per Ray cluster."""

    def __init__(self, board: TrafficBoard, store: ReleaseStore, config: ServingConfig) -> None:
        self._board = board
        self._store = store
        self._config = config
        self.engines = Engines(store, config)
        self._releases: dict[tuple[str, int], ReleaseVersion] = {}
        self._aliased: dict[str, ReleaseVersion] = {}
        self._asked_at = -ALIAS_EVERY_S
        self._asking = threading.Thread()
        self._judged: dict[str, Judged] = {}
        self._reported: dict[str, ArmReport] = {}
        self._unwanted_since: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._busy_at = self._looked_at = -math.inf
        self._problem = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployer", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.engines.start()

    def close(self) -> None:
        """Stop looking; what runs goes on."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self.engines.close()

    def reconcile(self) -> None:
        """One pass. Raises RegistryUnavailable when the traffic cannot be read: everything stays as it is then."""
        traffic = self._board.traffic()
        named, arms = self._named(traffic), wanted_arms(traffic)
        split = wanted_split(named)
        self.engines.follow([*named, *self._on_trial(arms)])
        if not self._due({*arms, *split}, bool(arms)):
            return
        self._looked_at = time.monotonic()
        running = serve.status().applications
        for name, version in split.items():
            if name not in running:
                deploy(name, version, self._config)
        for arm in arms.values():
            # What serves users comes first: an arm must not take the GPU that a new stable release waits for.
            if arm.name in running or (_serves(arm.traffic, split, running) and self._engine_is_up(arm)):
                self._follow(arm, running)
        self._delete_unwanted(running, traffic, {*arms, *split})
        for gone in set(self._judged) - set(arms):
            del self._judged[gone]
            self._reported.pop(gone, None)

    def _due(self, wanted: set[str], arms: bool) -> bool:
        """Whether it is time to look at what runs: always, but where nothing has changed for a while."""
        now = time.monotonic()
        if arms or wanted != self._wanted or self._unwanted_since:
            self._wanted, self._busy_at = wanted, now
        return now - self._busy_at <= LOOK_AGAIN_S or now - self._looked_at >= LOOK_AGAIN_S

    # --- arms ---

    def _follow(self, wanted: WantedArm, running: Running) -> None:
        """Deploy the arm, judge it, and report. A canary that failed is deleted and stays so: it is not tried again in
        this rollout. A control is stable's release, known to be sound: Serve starts it again and it may recover."""
        before = self._judged.get(wanted.name, Judged())
        status = running.get(wanted.name)
        now = before if before.final else judge(status, before)
        if now.final and status is not None and status.status != "DELETING":
            serve.delete(wanted.name, _blocking=False)
        elif status is None or now.again:
            now = self._deploy(wanted, now)
        if now.phase == "failed" and wanted.arm == "canary":
            now = replace(now, final=True)
        self._judged[wanted.name] = now
        self._report(wanted, now)

    def _deploy(self, wanted: WantedArm, judged: Judged) -> Judged:
        if judged.final:
            return judged
        try:
            version = self._release(wanted.traffic.app, wanted.version)
        except ReleaseNotFound as error:
            return Judged("failed", str(error), final=True)
        if refusal := self.engines.refusal(version):
            return Judged("failed", refusal, final=True)
        deploy(wanted.name, version, self._config, wanted.traffic)
        return judged

    def _report(self, wanted: WantedArm, judged: Judged) -> None:
        report = ArmReport(
            wanted.traffic.app, wanted.traffic.rollout, wanted.arm, judged.phase, judged.reason, time.time()
        )
        last = self._reported.get(wanted.name)
        changed = last is None or (last.phase, last.reason) != (report.phase, report.reason)
        if changed:
            log.info("arm.reported", application=wanted.name, phase=report.phase, reason=report.reason)
        if changed or last is None or report.at_s - last.at_s >= REPORT_AGAIN_S:
            self._board.report_arm(report)
            self._reported[wanted.name] = report

    def _on_trial(self, arms: Mapping[str, WantedArm]) -> list[ReleaseVersion]:
        found = []
        for arm in arms.values():
            with contextlib.suppress(ReleaseNotFound):  # `_deploy` says so
                found.append(self._release(arm.traffic.app, arm.version))
        return found

    def _engine_is_up(self, wanted: WantedArm) -> bool:
        """An arm starts once the engine that answers for it has its adapter: no request finds it half there."""
        try:
            version = self._release(wanted.traffic.app, wanted.version)
        except ReleaseNotFound:
            return True
        missing = self.engines.missing(version)
        if missing and not self.engines.refusal(version):
            self._report(wanted, Judged("deploying", missing))
            return False
        return True

    # --- split releases ---

    def _named(self, traffic: Mapping[str, Traffic]) -> list[ReleaseVersion]:
        """The stable release of each app, and those that are kept warm."""
        named = self._by_alias([app for app in self._config.apps if app not in traffic])
        for row in traffic.values():
            for number in (row.stable, *row.warm):
                try:
                    named.append(self._release(row.app, number))
                except ReleaseNotFound as error:
                    self._say(str(error))
        return named

    def _release(self, app: str, version: int) -> ReleaseVersion:
        if (app, version) not in self._releases:
            self._releases[app, version] = self._board.release(app, version)
        return self._releases[app, version]

    def _by_alias(self, apps: Sequence[str]) -> list[ReleaseVersion]:
        """What `stable` pointed at when last asked, of apps that no controller has taken on yet."""
        if apps and not self._asking.is_alive() and time.monotonic() - self._asked_at >= ALIAS_EVERY_S:
            self._asked_at = time.monotonic()
            # MLflow may take long to say that it is away; arms must not wait for that.
            self._asking = threading.Thread(target=self._ask, args=(apps,), name="deployer-alias", daemon=True)
            self._asking.start()
        return [self._aliased[app] for app in apps if app in self._aliased]

    def _ask(self, apps: Sequence[str]) -> None:
        for app in apps:
            try:
                self._aliased[app] = self._store.get(app, "stable")
            except ReleaseNotFound:
                self._aliased.pop(app, None)
            except RegistryError as error:  # what ran goes on
                log.info("deployer.alias_unknown", app=app, problem=str(error))

    # --- what goes ---

    def _delete_unwanted(self, running: Running, traffic: Mapping[str, Traffic], wanted: set[str]) -> None:
        now = time.monotonic()
        ours = {name for name in running if ARM_NAME.fullmatch(name) or SPLIT_NAME.fullmatch(name)}
        unwanted = {name: self._unwanted_since.get(name, now) for name in ours - wanted}
        self._unwanted_since = unwanted
        for name, since in unwanted.items():
            if running[name].status != "DELETING" and self._may_go(name, now - since, running, traffic):
                serve.delete(name, _blocking=False)

    def _may_go(self, name: str, unwanted_s: float, running: Running, traffic: Mapping[str, Traffic]) -> bool:
        if ARM_NAME.fullmatch(name):
            return unwanted_s >= ARM_LINGER_S
        app = SPLIT_NAME.fullmatch(name)["app"]  # type: ignore[index]
        row = traffic.get(app)
        if row is None:
            found = (SPLIT_NAME.fullmatch(other) for other in running)
            newest = sorted(int(match["version"]) for match in found if match and match["app"] == app)[-KEEP:]
            return all(name != split_application_name(app, version) for version in newest)
        routers = self._board.routers(app, time.time() - ROUTER_ALIVE_S)
        return unwanted_s >= SPLIT_LINGER_S and all(router.generation >= row.generation for router in routers)

    # --- the loop ---

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.reconcile()
            except RegistryError as error:
                self._say(str(error))
            except Exception as error:  # outermost: the next pass tries again
                log.error("deployer.failed", error=repr(error), exc_info=True)
            else:
                self._problem = ""

    def _say(self, problem: str) -> None:
        """Once, not each time."""
        if problem != self._problem:
            log.warning("deployer.waits", problem=problem)
            self._problem = problem


def describe() -> dict[str, Any]:
    """Serve application -> deployment -> its replicas by state, and what of Ray's resources is in use."""
    applications = {
        name: {
            deployment: {str(getattr(state, "value", state)): count for state, count in status.replica_states.items()}
            for deployment, status in application.deployments.items()
        }
        for name, application in serve.status().applications.items()
    }
    total, free = ray.cluster_resources(), ray.available_resources()
    used = {
        name: [round(total[name] - free.get(name, 0.0), 2), total[name]] for name in ("CPU", "GPU") if name in total
    }
    return {"deployments": applications, "resources_used": used}
