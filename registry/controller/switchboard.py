"""`Switchboard`: the controller's side of MLflow. Reads aliases, accepts versions, and writes what is owed.

MLflow may be slow, hang or be away for hours, and the judgement of a rollout must not wait for it: each visit to it
runs in a thread of its own, at most one per app, and the loop collects what it brought. Within a visit writes come
before the reading, so what is read always holds every write of ours, and none that the state does not know of.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from registry.errors import RegistryError, RegistryUnavailable, ReleaseNotFound, ReleaseRefused
from registry.manifest import check_release
from registry.plan import RolloutPlan, plan_of
from registry.ports import ReleaseStore
from registry.rollout import AliasesSeen, AliasWrite, AppState, TagWrite, Written
from registry.schema import ReleaseVersion

log = logging.getLogger(__name__)

BACKOFF_FACTOR = 2.0
BACKOFF_LIMIT_S = 8.0
"""Longest pause between two tries while MLflow is away: when it is back, polling acts in under 10 s."""

Start = Callable[[Callable[[], None]], None]


def in_a_thread(job: Callable[[], None]) -> None:
    threading.Thread(target=job, name="switchboard", daemon=True).start()


@dataclass(frozen=True, slots=True)
class Visit:
    """What one visit to MLflow brought. `seen` is None, and `problem` says why, when the visit did not get that far;
    `written` holds what had been written until then."""

    written: Written
    seen: AliasesSeen | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A version: its release and plan when it is sound, why not when it is refused, nothing when there is none."""

    release: ReleaseVersion | None = None
    plan: RolloutPlan | None = None
    refused: str | None = None


@dataclass(slots=True)
class _Line:
    """Where the switchboard stands with one app. The loop owns it but for `finished`, which the visit's thread sets."""

    state: AppState
    due_s: float = 0.0
    again: bool = False
    failures: int = 0
    visiting: bool = False
    finished: Visit | None = None
    asked: set[int] = field(default_factory=set)
    forgotten: bool = False


class Switchboard:
    """`now` is a monotonic clock, `may_write` says whether the lease is still ours, `start` runs a job elsewhere."""

    def __init__(
        self,
        store: ReleaseStore,
        now: Callable[[], float],
        *,
        poll_s: float = 2.0,
        may_write: Callable[[], bool] = lambda: True,
        start: Start = in_a_thread,
    ) -> None:
        self.may_write = may_write
        self._store = store
        self._now = now
        self._poll_s = poll_s
        self._start = start
        self._lines: dict[str, _Line] = {}
        self._accepted: dict[tuple[str, int], Found] = {}
        self._answers: dict[tuple[str, int], Found] = {}

    # --- called by the loop ---

    def nudge(self, app: str) -> None:
        """Its aliases moved: visit at once, and once more if a visit is under way that may have read them before."""
        if app in self._lines:
            self._lines[app].again = True

    def look_up(self, app: str, version: int) -> Found | None:
        """What is known of a version that no alias names. None: not known yet, a visit was asked to find out."""
        found = self._accepted.get((app, version)) or self._answers.pop((app, version), None)
        if found is None and app in self._lines and version not in self._lines[app].asked:
            self._lines[app].asked.add(version)
            self._lines[app].again = True
        return found

    def visit(self, state: AppState) -> None:
        """Tell the state as it is now; starts a visit when one is due."""
        line = self._lines.setdefault(state.app, _Line(state))
        owes = state.alias_writes != line.state.alias_writes or state.tag_writes != line.state.tag_writes
        line.state = state
        line.again = line.again or (owes and bool(state.alias_writes or state.tag_writes))
        if line.visiting or line.finished is not None or not (line.again or self._now() >= line.due_s):
            return
        line.visiting, line.again = True, False
        self._start(lambda: self._run(line))

    def take(self, app: str) -> Visit | None:
        """The visit that ended, once; the next is then planned."""
        line = self._lines.get(app)
        if line is None or line.finished is None:
            return None
        visit, line.finished = line.finished, None
        if line.failures and not visit.problem:
            log.info("mlflow.back", extra={"fields": {"app": app}})
        line.failures = line.failures + 1 if visit.problem else 0
        pause_s = min(self._poll_s * BACKOFF_FACTOR**line.failures, max(BACKOFF_LIMIT_S, self._poll_s))
        line.due_s = self._now() + (pause_s if visit.problem else self._poll_s)
        if visit.problem and line.failures == 1:
            log.warning("mlflow.away", extra={"fields": {"app": app, "detail": visit.problem}})
        return visit

    def accepted(self, app: str) -> list[ReleaseVersion]:
        """Every version of the app that was found sound."""
        return [found.release for (name, _), found in list(self._accepted.items()) if name == app and found.release]

    def forget(self) -> None:
        """Drop what is known; a visit under way writes no more and ends unheard."""
        for line in self._lines.values():
            line.forgotten = True
        self._lines = {}

    # --- runs in the visit's thread ---

    def _run(self, line: _Line) -> None:
        app = line.state.app
        writing = _Writing(self._store, line, self.may_write)
        seen, problem = None, ""
        try:
            writing.write_all()
            seen = self._read(app, line)
        except RegistryError as error:
            problem = str(error)
        except Exception as error:  # the outermost frame of a thread: the loop must hear of it
            log.exception("switchboard.visit", extra={"fields": {"app": app}})
            problem = repr(error)
        line.finished = Visit(writing.written(), seen, problem)
        line.visiting = False

    def _read(self, app: str, line: _Line) -> AliasesSeen:
        aliases = self._store.aliases(app)
        named = {alias: aliases.get(alias) for alias in ("stable", "canary")}
        plans: dict[int, RolloutPlan] = {}
        refused: dict[int, str] = {}
        for version in sorted({v for v in named.values() if v is not None}):
            found = self._find(app, version)
            if found.plan is not None:
                plans[version] = found.plan
            elif found.refused is not None:
                refused[version] = found.refused
        for version in list(line.asked):
            self._answers[app, version] = self._find(app, version)
            line.asked.discard(version)
        return AliasesSeen(named["stable"], named["canary"], plans, refused)

    def _find(self, app: str, version: int) -> Found:
        """A release is immutable: what was accepted once stays so; what was refused is looked at again."""
        found = self._accepted.get((app, version))
        if found is not None:
            return found
        try:
            release = self._store.get(app, version)
            check_release(release.release)
            if release.release.app != app:
                raise ReleaseRefused(f"version {version} of {app} holds a release of {release.release.app}")
            found = Found(release, plan_of(release.release.spec))
        except ReleaseRefused as error:
            return Found(refused=str(error))
        except ReleaseNotFound:
            return Found()
        self._accepted[app, version] = found
        return found


class _Writing:
    """The writes of one visit, in order. Each is looked up in the newest state first: what the loop has decided
    otherwise meanwhile is not written any more."""

    def __init__(self, store: ReleaseStore, line: _Line, may_write: Callable[[], bool]) -> None:
        self._store = store
        self._line = line
        self._may_write = may_write
        self._aliases: list[AliasWrite] = []
        self._dropped: list[AliasWrite] = []
        self._tags: list[TagWrite] = []

    def written(self) -> Written:
        return Written(tuple(self._aliases), tuple(self._tags), tuple(self._dropped))

    def write_all(self) -> None:
        """Raises RegistryError where MLflow, or the lease, does not allow to go on."""
        app = self._line.state.app
        for write in self._line.state.alias_writes:
            if write in self._line.state.alias_writes:
                self._write_alias(app, write, self._store.aliases(app))
        for tags in self._line.state.tag_writes:
            if tags in self._line.state.tag_writes:
                self._write_tags(app, tags)

    def _write_alias(self, app: str, write: AliasWrite, aliases: Mapping[str, int]) -> None:
        current = aliases.get(write.alias)
        if current == write.version:
            self._aliases.append(write)  # by the controller before this one, which was killed before it could say so
            return
        if not write.applies_to(current):
            self._dropped.append(write)
            return
        self._check_lease()
        try:
            if write.version is None:
                self._store.delete_alias(app, write.alias)
            else:
                self._store.set_alias(app, write.alias, write.version)
        except (ReleaseNotFound, ReleaseRefused) as error:
            # A person deleted the version meanwhile
            log.warning("mlflow.alias.refused", extra={"fields": {"app": app, "alias": write.alias, "why": str(error)}})
            self._dropped.append(write)
        else:
            self._aliases.append(write)

    def _write_tags(self, app: str, write: TagWrite) -> None:
        self._check_lease()
        try:
            self._store.set_tags(app, write.version, write.tags)
        except (ReleaseNotFound, ReleaseRefused) as error:
            # Nothing can be written on a version that is gone; the journal has it all the same
            fields = {"app": app, "version": write.version, "why": str(error)}
            log.warning("mlflow.tags.refused", extra={"fields": fields})
        self._tags.append(write)

    def _check_lease(self) -> None:
        if self._line.forgotten or not self._may_write():
            raise RegistryUnavailable("the lease ran out: another controller may write now")
