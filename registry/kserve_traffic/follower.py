"""`KserveTraffic`: makes InferenceServices what the traffic says, and reports what they are. Level-triggered: each pass
begins from what stands there, so a pass that fails, a process that dies and a write that is lost need no care.

The wiring of the controller runs it beside the controller's loop, in the process that holds the lease. Nothing in the
controller waits for it: while the API server is away the reports stop, and a rollout without reports holds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from registry.errors import (
    ClusterConflict,
    ClusterRefused,
    RegistryError,
    RegistryUnavailable,
    ReleaseNotFound,
)
from registry.kserve_traffic import mapping
from registry.kserve_traffic.api import Expired, KubernetesApi, Object, Throttled
from registry.plan import RolloutPlan, plan_of
from registry.ports import TrafficBoard
from registry.traffic import ArmReport, Command, RouterReport, Traffic

log = logging.getLogger(__name__)


class Commands(Protocol):
    """What it needs of the `Journal`: to say what a person did."""

    def submit(self, command: Command) -> int: ...

    def handled(self, command_id: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """`services`: app -> its InferenceService, where that is not named after it. `watch_s`: how long one watch lasts;
    `again_s`: pause after a watch that broke off; `look_s`: how old what the watch said may be before the object is
    asked for; `command_s`: how long what a person did keeps us from writing while no controller deals with it;
    `newer_s`: how long an object that says it was written for a newer traffic is left alone."""

    namespace: str
    services: Mapping[str, str] = field(default_factory=dict)
    every_s: float = 0.5
    watch_s: float = 60.0
    again_s: float = 1.0
    look_s: float = 5.0
    command_s: float = 10.0
    newer_s: float = 30.0


@dataclass(slots=True)
class _Line:
    """Where it stands with one app. `generation`: the newest traffic that KServe follows. `waits`: a command of a
    person that the controller has not dealt with, and until when it is waited for. `newer`: the generation that the
    object was written for, where the board has an older one, and until when the board's is waited for."""

    generation: int = 0
    waits: tuple[int, float] | None = None
    newer: tuple[int, float] | None = None
    problem: str = ""


class KserveTraffic:
    """`active` says whether this process may write; `wall` gives Unix seconds. `reconcile` is for one thread only."""

    def __init__(
        self,
        api: KubernetesApi,
        board: TrafficBoard,
        commands: Commands,
        settings: Settings,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active: Callable[[], bool] = lambda: True
        self._api = api
        self._board = board
        self._commands = commands
        self._settings = settings
        self._wall = wall
        self._monotonic = monotonic
        self._lines: dict[str, _Line] = {}
        self._plans: dict[tuple[str, int], RolloutPlan] = {}
        self._not_before = 0.0
        self._seen: dict[str, tuple[Object | None, float]] = {}
        """Name -> what is known (None: there is none) and since when, in seconds of `monotonic`."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="kserve", daemon=True),
            threading.Thread(target=self._watch_on, name="kserve-watch", daemon=True),
        ]

    def start(self) -> None:
        """Follow until `close`, from threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Follow no more; what runs goes on."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=self._settings.again_s + 5)
        self._api.close()

    # --- a pass ---

    def reconcile(self) -> None:
        """One pass over all apps. Raises RegistryUnavailable where the traffic cannot be read."""
        if not self.active():
            for line in self._lines.values():
                line.newer = None  # counted anew by who holds the lease
            return
        for app, traffic in self._board.traffic().items():
            line = self._lines.setdefault(app, _Line())
            try:
                problem = self._follow(traffic, line)
            except (ClusterConflict, RegistryUnavailable) as error:
                if isinstance(error, Throttled):
                    self._not_before = self._wall() + error.retry_after_s
                self._say(app, line, str(error))
                continue  # nothing is known now, so nothing is reported
            except ClusterRefused as error:
                problem = str(error)
            self._say(app, line, problem)
            self._board.report_router(self._report(traffic, line, problem))

    def _follow(self, traffic: Traffic, line: _Line) -> str:
        """Write what is to be written, report the arms; why KServe does not follow, "" where it does or soon will."""
        service = self._service(traffic.app)
        if service is None:
            return f"there is no InferenceService {self._path(traffic.app)}: install it with the chart"
        if self._outdated(traffic, service, line):
            return "a newer traffic was written than the one read here"
        if self._waits(line):
            return ""
        if edit := mapping.edited(service):
            self._tell(traffic, service, edit, line)
            return ""
        problem = mapping.obstacle(traffic, self._plan(traffic))
        if not problem:
            changed = mapping.towards(service, mapping.wanted(traffic), traffic.generation)
            if changed is not None:
                service = self._write(changed)
        self._report_arms(traffic, service, problem)
        want = mapping.wanted(traffic)
        if not problem and mapping.followed(service, want) and mapping.split_of(service) == _split(want, service):
            line.generation = traffic.generation
        return problem

    def _outdated(self, traffic: Traffic, service: Object, line: _Line) -> bool:
        """Whether a controller after this one has written: the traffic read here is old then, and nothing is done. A
        board that stays behind has lost what came later, and what it says is all there is to follow."""
        applied = mapping.applied_of(service)
        if applied is None or applied[1] <= traffic.generation:
            line.newer = None
            return False
        now = self._monotonic()
        if line.newer is None or line.newer[0] != applied[1]:
            line.newer = applied[1], now + self._settings.newer_s
        if now < line.newer[1] or not self.active():
            return True
        if line.newer[1] > -math.inf:
            cause = "the database has been behind for long: was it restored from a dump?"
            fields = {"app": traffic.app, "written": applied[1], "now": traffic.generation, "cause": cause}
            log.warning("kserve.behind", extra={"fields": fields})
        line.newer = applied[1], -math.inf  # said once
        line.generation = 0
        return False

    def _tell(self, traffic: Traffic, service: Object, edit: str, line: _Line) -> None:
        """A person changed the split: that ends a trial, as the alias moved would. Where the version on trial, or
        another, was made the predictor, it is what stable is moved to; in a bake it confirms what is stable. A canary
        added while nothing runs is tried. What is none of these the controller refuses, in the journal."""
        why = f"{edit} in InferenceService {self._path(traffic.app)}"
        now = mapping.split_of(service).predictor
        applied = mapping.applied_of(service)
        renamed = applied is not None and applied[0].predictor != now
        promoted = mapping.version_of(now) if renamed else None
        trial = traffic.rollout and traffic.canary != traffic.stable
        who, at_s = mapping.editor_of(service), self._wall()
        command: Command | None = None
        if promoted is not None:
            command = Command(traffic.app, "switch", who, why, at_s, promoted)
        elif trial:
            command = Command(traffic.app, "abort", who, why, at_s, traffic.canary)
        elif traffic.rollout:
            command = Command(traffic.app, "switch", who, why, at_s, traffic.stable)
        elif added := mapping.added(service):
            command = Command(traffic.app, "start", who, why, at_s, added[0] if len(added) == 1 else None)
        elif renamed and now:  # without a name it is as the chart makes it, which asks for nothing
            command = Command(traffic.app, "switch", who, why, at_s)
        if command is not None:
            line.waits = self._commands.submit(command), self._wall() + self._settings.command_s
        log.warning("kserve.edited", extra={"fields": {"app": traffic.app, "who": who, "why": why}})
        # After the command is durable: a process that dies in between tells it twice, which does no harm
        self._write(mapping.acknowledged(service, traffic.generation))

    def _waits(self, line: _Line) -> bool:
        """Also in the pass that hears of the end of it, whose traffic may be from before."""
        waits = line.waits
        if waits is not None and (self._wall() >= waits[1] or self._commands.handled(waits[0])):
            line.waits = None
        return waits is not None

    def _report_arms(self, traffic: Traffic, service: Object, problem: str) -> None:
        """A plan that KServe cannot follow fails the canary at once: waiting would not help. Nothing is said of what
        KServe has not looked at yet."""
        if not problem and not mapping.is_current(service):
            return
        known = {report.arm: report for report in self._board.arms(traffic.app, traffic.rollout)}
        for arm, version in mapping.arms_of(traffic):
            last = known.get(arm)
            if arm == "canary" and last is not None and last.phase == "failed":
                continue  # it is not tried again in this rollout
            phase, reason = mapping.phase_of(service, version, last.phase if last else None)
            if problem and arm == "canary":
                phase, reason = "failed", problem
            elif phase == "deploying" and last is not None and last.phase == "failed":
                phase, reason = last.phase, last.reason
            self._board.report_arm(ArmReport(traffic.app, traffic.rollout, arm, phase, reason, self._wall()))

    def _report(self, traffic: Traffic, line: _Line, problem: str) -> RouterReport:
        router = f"kserve/{self._path(traffic.app)}"
        return RouterReport(router, traffic.app, line.generation, traffic.stable, problem, self._wall())

    def _plan(self, traffic: Traffic) -> RolloutPlan | None:
        """Of the rollout that the arms belong to."""
        if not traffic.rollout or traffic.canary is None:
            return None
        key = traffic.app, traffic.canary
        if key not in self._plans:
            try:
                self._plans[key] = plan_of(self._board.release(*key).release.spec)
            except ReleaseNotFound:
                return None
        return self._plans[key]

    def _path(self, app: str) -> str:
        return f"{self._settings.namespace}/{self._settings.services.get(app, app)}"

    # --- objects ---

    def _service(self, app: str) -> Object | None:
        """As last heard of, or asked for: a watch may hang without breaking off."""
        if (left_s := self._not_before - self._wall()) > 0:
            raise RegistryUnavailable(f"the API server wants to be left alone for {left_s:.0f} s")
        name = self._settings.services.get(app, app)
        with self._lock:
            seen, at = self._seen.get(name, (None, -math.inf))
        return seen if self._monotonic() - at < self._settings.look_s else self._ask(name)

    def _ask(self, name: str) -> Object | None:
        found = self._api.get(name)
        self._remember(name, found)
        return found

    def _write(self, changed: Object) -> Object:
        name = changed["metadata"]["name"]
        try:
            written = self._api.replace(changed)
        except ClusterConflict:
            self._ask(name)  # the next pass begins from what there is now
            raise
        self._remember(name, written)
        log.info("kserve.written", extra={"fields": {"service": name, "split": str(mapping.split_of(written))}})
        return written

    def _remember(self, name: str, found: Object | None) -> None:
        with self._lock:
            known = self._seen.get(name, (None, 0.0))[0]
            if found is None or known is None or _newer(found, known):
                self._seen[name] = found, self._monotonic()

    # --- the watch ---

    def watch_once(self) -> None:
        """List, and follow what happens until the watch breaks off or cannot go on from where it was. Raises
        RegistryUnavailable, ClusterRefused, Expired."""
        objects, version = self._api.list()
        with self._lock:
            gone = set(self._seen) - {found["metadata"]["name"] for found in objects}
            for name in gone:
                del self._seen[name]
        for found in objects:
            self._remember(found["metadata"]["name"], found)
        self._wake.set()
        while not self._stop.is_set():
            with self._api.watch(version, self._settings.watch_s) as events:
                for event in events:
                    version = event.version
                    if event.kind != "BOOKMARK":
                        deleted = event.kind == "DELETED"
                        self._remember(event.object["metadata"]["name"], None if deleted else event.object)
                        self._wake.set()
                    if self._stop.is_set():
                        return

    def _watch_on(self) -> None:
        while not self._stop.is_set():
            pause_s = self._settings.again_s
            try:
                if self.active():
                    self.watch_once()
            except Expired:
                pause_s = 0.0  # the list begins a new one
            except Throttled as error:
                pause_s = max(pause_s, error.retry_after_s)
            except RegistryError as error:
                log.warning("kserve.watch", extra={"fields": {"detail": str(error)}})
            except Exception:  # outermost: the watch begins anew
                log.exception("kserve.watch")
            self._stop.wait(pause_s)

    # --- the loop ---

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.reconcile()
            except RegistryUnavailable as error:
                log.warning("kserve.waits", extra={"fields": {"detail": str(error)}})
            except Exception:  # outermost: the next pass tries again
                log.exception("kserve.failed")
            self._wake.wait(self._settings.every_s)
            self._wake.clear()

    def _say(self, app: str, line: _Line, problem: str) -> None:
        """Once, not each time."""
        if problem and problem != line.problem:
            log.warning("kserve.problem", extra={"fields": {"app": app, "problem": problem}})
        line.problem = problem


def _split(want: mapping.Wanted, service: Object) -> mapping.Split:
    """What is wanted, beside predictors of other people."""
    foreign = {n: p for n, p in mapping.split_of(service).canary.items() if mapping.version_of(n) is None}
    ours = {mapping.name_of(version): percent for version, percent in want.others.items()}
    return mapping.Split(mapping.name_of(want.stable), {**ours, **foreign})


def _newer(found: Object, known: Object) -> bool:
    """Whether it is not from before what is known: the watch tells of our own write, and of what was before it, after
    the write. Versions of an object are numbers that rise, wherever etcd keeps them."""
    if known["metadata"].get("uid") != found["metadata"].get("uid"):
        return True
    old, new = known["metadata"]["resourceVersion"], found["metadata"]["resourceVersion"]
    return not (old.isdecimal() and new.isdecimal()) or int(new) >= int(old)
