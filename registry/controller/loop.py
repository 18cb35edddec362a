"""`Controller`: one turn per app and tick. `run` ticks until it is told to stop.

Everything it needs to know stands in the journal and is read anew in each tick, so a tick that fails half way, a commit
whose answer was lost and a controller that took over need no care of their own. What is kept in memory (the evidence
folded so far, the releases found sound) can be found out again.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from registry.analysis.verdict import LiveVerdict
from registry.controller.switchboard import Found, Switchboard
from registry.errors import LeaseLost, RegistryError, RegistryUnavailable, ReleaseNotFound
from registry.plan import plan_of
from registry.ports import EvidenceStore, Journal, TrafficBoard
from registry.rollout import AppState, CommandSeen, Event, Observed, advance, traffic_of
from registry.scoreboard import Score, Scoreboard
from registry.traffic import Command, Entry, Traffic

log = logging.getLogger(__name__)

NEEDS_RELEASE = frozenset({"start", "switch"})
"""Commands that bring a release in, which must be found sound first."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`holder` names this process in the lease: no other ever has it. `show_s`: a verdict that changed is shown no more
    often. `live_s`: a router that has not reported for longer is not waited for. `keep_evidence_s`: how long
    evidence outlives its rollout, and commands their handling."""

    holder: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
    lease_s: float = 5.0
    renew_s: float = 1.0
    tick_s: float = 0.25
    show_s: float = 1.0
    live_s: float = 3.0
    purge_every_s: float = 3600.0
    keep_evidence_s: float = 30 * 86_400.0


class Ticks(Protocol):
    """What `run` runs: a controller, or something around one."""

    def tick(self, now: float) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Ports:
    journal: Journal
    board: TrafficBoard
    evidence: EvidenceStore


class Controller:
    """`monotonic` times the lease; the time of day comes with each tick. Not safe to share between threads."""

    def __init__(
        self,
        apps: Sequence[str],
        ports: Ports,
        scoreboard: Scoreboard,
        switchboard: Switchboard,
        *,
        settings: Settings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings = settings or Settings()
        self.holder = settings.holder
        self._apps = tuple(apps)
        self._journal = ports.journal
        self._board = ports.board
        self._evidence = ports.evidence
        self._scoreboard = scoreboard
        self._switchboard = switchboard
        self._monotonic = monotonic
        self._held_until = 0.0
        self._ask_lease_at = 0.0
        self._purge_at = monotonic() + settings.purge_every_s
        self._traffic: Mapping[str, Traffic] = {}
        self._known: set[tuple[str, int]] = set()
        self._specs: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._shown: dict[str, tuple[float, LiveVerdict | None]] = {}
        switchboard.may_write = self.holds_lease

    def holds_lease(self) -> bool:
        """By this process's own clock, which started before the database's did."""
        return self._monotonic() < self._held_until

    def tick(self, now: float) -> bool:
        """One turn for each app, if this controller holds the lease; whether it does. `now` is Unix time.

        Raises RegistryUnavailable when the database cannot be used: nothing was decided that was not recorded.
        """
        if not self._keep_lease():
            return False
        states = self._journal.states()
        self._traffic = self._board.traffic()
        commands = self._journal.commands()
        for app in self._journal.take_nudges():
            self._switchboard.nudge(app)
        try:
            for app in self._apps:
                self._try_turn(states.get(app) or AppState(app), [c for c in commands if c.app == app], now)
            self._refuse_strangers([c for c in commands if c.app not in self._apps], states, now)
        except LeaseLost as error:
            log.warning("lease.lost", extra={"fields": {"detail": str(error)}})
            self._step_down()
            return False
        self._purge()
        return True

    def close(self) -> None:
        """Give the lease back, so that another controller need not wait for its end. Never raises."""
        if self.holds_lease():
            with suppress(RegistryError):
                self._journal.release_lease(self.holder)
        self._step_down()

    # --- the lease ---

    def _keep_lease(self) -> bool:
        at = self._monotonic()
        held = at < self._held_until
        if at < self._ask_lease_at:
            return held
        if not held:
            self._step_down()  # another may have decided otherwise since
        taken = self._journal.take_lease(self.holder, self._settings.lease_s)
        if taken and not held:
            log.info("lease.taken", extra={"fields": {"holder": self.holder}})
        if held and not taken:
            log.warning("lease.lost", extra={"fields": {"holder": self.holder}})
            self._step_down()
        # From before it was asked: the database's clock may have started any time since
        self._held_until = at + self._settings.lease_s if taken else 0.0
        self._ask_lease_at = at + (self._settings.renew_s if taken else min(1.0, self._settings.renew_s))
        return self.holds_lease()

    def _step_down(self) -> None:
        self._held_until = self._ask_lease_at = 0.0
        self._switchboard.forget()
        for app in self._apps:
            self._scoreboard.forget(app)
        self._shown.clear()

    # --- a turn ---

    def _try_turn(self, state: AppState, commands: Sequence[Command], now: float) -> None:
        try:
            self._turn(state, commands, now)
        except (LeaseLost, RegistryUnavailable):
            raise
        except Exception:  # outermost: one app's fault must not stop the others
            log.exception("controller.turn", extra={"fields": {"app": state.app}})

    def _turn(self, state: AppState, commands: Sequence[Command], now: float) -> None:
        app = state.app
        for command in commands:
            if (event := self._command(command)) is not None:
                state = self._advance(state, event, now, handled=(command.id,))
        visit = self._switchboard.take(app)
        if visit is not None:
            if visit.written.aliases or visit.written.tags or visit.written.dropped:
                state = self._advance(state, visit.written, now)
            if visit.seen is not None:
                state = self._advance(state, visit.seen, now)
        observed, live = self._observe(state, now)
        if observed is not None:
            state = self._advance(state, observed, now)
        if traffic_of(state) != self._traffic.get(app):
            self._record(state, (), ())
        self._switchboard.visit(state)
        if live is not None:
            self._show(live)

    def _advance(self, state: AppState, event: Event, now: float, handled: Sequence[int] = ()) -> AppState:
        """The state after the event, recorded."""
        new, entries = advance(state, event, now)
        if new is not state or entries or handled:
            self._record(new, entries, handled)
        return new

    def _record(self, state: AppState, entries: Sequence[Entry], handled: Sequence[int]) -> None:
        app = state.app
        traffic = traffic_of(state)
        changed = traffic if traffic != self._traffic.get(app) else None
        releases = [r for r in self._switchboard.accepted(app) if (app, r.version) not in self._known]
        self._journal.record(self.holder, state, changed, entries, releases, handled)
        self._known.update((app, r.version) for r in releases)
        if changed is not None:
            self._traffic = {**self._traffic, app: changed}
        for entry in entries:
            fields = {
                "app": app,
                "rollout": entry.rollout,
                "who": entry.who,
                "why": entry.why,
                "version": entry.version,
            }
            log.info("decided.%s", entry.kind, extra={"fields": fields})

    # --- what is seen ---

    def _command(self, command: Command) -> Command | CommandSeen | None:
        """None: wait until MLflow says what the version is; what stops or steers a rollout never waits for it."""
        if command.version is None or command.verb not in NEEDS_RELEASE:
            return command
        found = self._switchboard.look_up(command.app, command.version) or self._accepted_before(command)
        if found is None:
            return None
        return CommandSeen(command, found.plan, found.refused)

    def _accepted_before(self, command: Command) -> Found | None:
        """A version that had traffic once can have it again without MLflow."""
        try:
            release = self._board.release(command.app, command.version or 0)
        except ReleaseNotFound:
            return None
        return Found(release, plan_of(release.release.spec))

    def _observe(self, state: AppState, now: float) -> tuple[Observed | None, LiveVerdict | None]:
        """None when there is no rollout to look at, or its evidence is not all folded yet; and what to show of it."""
        rollout = state.rollout
        if rollout is None:
            self._scoreboard.forget(state.app)
            return None, None
        score: Score | None = None
        routers = tuple(self._board.routers(state.app, now - self._settings.live_s))
        if rollout.phase != "loading":
            complete = bool(routers) and not any(router.spooled for router in routers)
            spec = self._spec(state.app, rollout.base)
            score = self._scoreboard.update(state.app, rollout, spec, now, feedback_complete=complete)
            if score is None:
                return None, None
        observed = Observed(
            arms={report.arm: report for report in self._board.arms(state.app, rollout.id)},
            routers=routers,
            rollout=rollout.id,
        )
        if score is None:
            return observed, None
        observed = replace(
            observed,
            verdict=score.verdict,
            lost=score.lost_at_s is not None and score.lost_at_s >= rollout.since_s,
            shadow_requests=score.shadow.requests,
            shadow_failures=score.shadow.failures,
        )
        return observed, LiveVerdict(state.app, rollout.id, now, score.verdict, score.shadow)

    def _spec(self, app: str, version: int) -> Mapping[str, Any]:
        """The app spec of a release that has traffic; {} for one that the board has lost."""
        found = self._specs.get((app, version))
        if found is None:
            try:
                found = self._specs[app, version] = self._board.release(app, version).release.spec
            except ReleaseNotFound:
                return {}
        return found

    # --- the rest ---

    def _show(self, live: LiveVerdict) -> None:
        """Let people see what the evidence says, where it changed. No decision waits for it, so it may fail."""
        at = self._monotonic()
        not_before, last = self._shown.get(live.app, (at, None))
        if at < not_before or (last is not None and replace(last, at_s=live.at_s) == live):
            return
        try:
            self._journal.show_verdict(self.holder, live)
        except RegistryUnavailable as error:
            log.warning("verdict.not_shown", extra={"fields": {"app": live.app, "detail": str(error)}})
        else:
            last = live
        self._shown[live.app] = (at + self._settings.show_s, last)

    def _refuse_strangers(self, commands: Sequence[Command], states: Mapping[str, AppState], now: float) -> None:
        for c in commands:
            why = f"{c.verb}: this controller looks after {', '.join(self._apps) or 'no app'}, not {c.app}"
            entry = Entry(
                c.app, 0, now, "refused-command", "controller", why, c.version, {"asked_by": c.who, "command": c.id}
            )
            self._journal.record(self.holder, states.get(c.app) or AppState(c.app), None, [entry], (), (c.id,))

    def _purge(self) -> None:
        if self._monotonic() < self._purge_at:
            return
        self._purge_at = self._monotonic() + self._settings.purge_every_s
        self._journal.purge(self._settings.keep_evidence_s)
        self._evidence.purge(self._settings.keep_evidence_s)


def run(controller: Ticks, stop: threading.Event, *, tick_s: float = 0.25, wall: Callable[[], float]) -> None:
    """Tick until `stop` is set, then give the lease back. Nothing but `stop` ends it."""
    away = False
    while not stop.is_set():
        started = time.monotonic()
        try:
            controller.tick(wall())
            if away:
                log.info("database.back")
            away = False
        except RegistryUnavailable as error:
            if not away:
                log.warning("database.away", extra={"fields": {"detail": str(error)}})
            away = True
        except Exception:  # the outermost loop of the process
            log.exception("controller.tick")
        stop.wait(max(0.05, tick_s - (time.monotonic() - started)))
    controller.close()
