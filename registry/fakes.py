"""Stand-ins for the stores of rollouts, in this process's memory: for tests and for trying things out.

They pass the contract suite of `registry.journal`. Those that share a `MemoryTables` see each other's writes, as
adapters of one database do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from registry.analysis.verdict import LiveVerdict
from registry.errors import LeaseLost, RegistryUnavailable, ReleaseNotFound
from registry.journal.codec import (
    checked_command,
    checked_delivery,
    checked_limit,
    clipped_arm,
    clipped_entry,
    clipped_router,
    decode_block,
    decode_details,
    decode_verdict,
    encode_block,
    encode_details,
    encode_verdict,
)
from registry.rollout.state import AppState
from registry.schema import ReleaseVersion
from registry.traffic import ArmReport, Command, Entry, Evidence, Reward, RouterReport, Traffic

DAY_S = 86_400.0


@dataclass
class MemoryTables:
    """What a database would hold. `clock` gives its Unix seconds; with `away` set every call of every store over it
    raises RegistryUnavailable and does nothing."""

    clock: Callable[[], float] = time.time
    away: bool = False
    states: dict[str, AppState] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    releases: dict[tuple[str, int], ReleaseVersion] = field(default_factory=dict)
    routers: dict[tuple[str, str], RouterReport] = field(default_factory=dict)
    arms: dict[tuple[str, int, str], ArmReport] = field(default_factory=dict)
    evidence: dict[tuple[str, int], dict[tuple[str, int], Evidence]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    commands: dict[int, Command] = field(default_factory=dict)
    verdicts: dict[str, LiveVerdict] = field(default_factory=dict)
    last_command: int = 0
    handled: dict[int, float] = field(default_factory=dict)
    deliveries: dict[str, float] = field(default_factory=dict)
    nudged: set[str] = field(default_factory=set)
    holder: str = ""
    expires_s: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def using(self) -> Iterator[None]:
        """One transaction at a time; what it does must not raise half way."""
        with self.lock:
            if self.away:
                raise RegistryUnavailable("the memory database is away: set `away` to False")
            yield

    def runs(self, app: str, rollout: int) -> bool:
        state = self.states.get(app)
        return state is not None and state.rollout is not None and state.rollout.id == rollout


class MemoryBoard:
    """Satisfies `registry.ports.TrafficBoard`. `MemoryJournal.record` sets its traffic."""

    def __init__(self, tables: MemoryTables | None = None) -> None:
        self.tables = tables or MemoryTables()

    def traffic(self) -> Mapping[str, Traffic]:
        with self.tables.using():
            return dict(self.tables.traffic)

    def release(self, app: str, version: int) -> ReleaseVersion:
        with self.tables.using():
            if (app, version) not in self.tables.releases:
                raise ReleaseNotFound(f"version {version} of {app} was never accepted for traffic")
            return self.tables.releases[app, version]

    def report_router(self, report: RouterReport) -> None:
        report = clipped_router(report)
        with self.tables.using():
            self.tables.routers[report.app, report.router] = report

    def report_arm(self, report: ArmReport) -> None:
        report = clipped_arm(report)
        with self.tables.using():
            self.tables.arms[report.app, report.rollout, report.arm] = report

    def routers(self, app: str, since_s: float) -> list[RouterReport]:
        with self.tables.using():
            found = [r for r in self.tables.routers.values() if r.app == app and r.at_s >= since_s]
        return sorted(found, key=lambda r: r.router)

    def arms(self, app: str, rollout: int) -> list[ArmReport]:
        with self.tables.using():
            found = [r for r in self.tables.arms.values() if (r.app, r.rollout) == (app, rollout)]
        return sorted(found, key=lambda r: r.arm)


class MemoryEvidence:
    """Satisfies `registry.ports.EvidenceStore`."""

    def __init__(self, tables: MemoryTables | None = None) -> None:
        self.tables = tables or MemoryTables()

    def add(self, evidence: Sequence[Evidence]) -> None:
        kept = [replace(e, block=decode_block(e.block.at_s, encode_block(e.block))) for e in evidence]
        with self.tables.using():
            for e in kept:
                self.tables.evidence.setdefault((e.app, e.rollout), {}).setdefault((e.router, e.seq), e)

    def after(self, app: str, rollout: int, cursor: Mapping[str, int], limit: int) -> list[Evidence]:
        checked_limit(limit)
        with self.tables.using():
            blocks = sorted(self.tables.evidence.get((app, rollout), {}).items())
        return [e for (router, seq), e in blocks if seq > cursor.get(router, 0)][:limit]

    def purge(self, older_than_s: float) -> int:
        with self.tables.using():
            before_s = self.tables.clock() - older_than_s
            gone = [
                which
                for which, blocks in self.tables.evidence.items()
                if not self.tables.runs(*which) and all(e.block.at_s < before_s for e in blocks.values())
            ]
            return sum(len(self.tables.evidence.pop(which)) for which in gone)


class MemoryJournal:
    """Satisfies `registry.ports.Journal`."""

    def __init__(self, tables: MemoryTables | None = None) -> None:
        self.tables = tables or MemoryTables()

    def take_lease(self, holder: str, for_s: float) -> bool:
        with self.tables.using():
            if self.holder() not in (None, holder):
                return False
            self.tables.holder, self.tables.expires_s = holder, self.tables.clock() + for_s
            return True

    def release_lease(self, holder: str) -> None:
        with self.tables.using():
            if self.tables.holder == holder:
                self.tables.expires_s = 0.0

    def holder(self) -> str | None:
        with self.tables.using():
            return self.tables.holder if self.tables.clock() < self.tables.expires_s else None

    def states(self) -> Mapping[str, AppState]:
        with self.tables.using():
            return dict(self.tables.states)

    def record(
        self,
        holder: str,
        state: AppState,
        traffic: Traffic | None,
        entries: Sequence[Entry],
        releases: Sequence[ReleaseVersion] = (),
        handled: Sequence[int] = (),
    ) -> None:
        kept = [replace(clipped_entry(e), details=decode_details(encode_details(e.details))) for e in entries]
        tables = self.tables
        with tables.using():
            self._require(holder)
            tables.states[state.app] = state
            if traffic is not None:
                tables.traffic[state.app] = traffic
            for r in releases:
                tables.releases[r.release.app, r.version] = replace(r, aliases=frozenset())
            for e in kept:
                tables.entries.append(replace(e, id=len(tables.entries) + 1))
            for command_id in handled:
                if tables.commands.pop(command_id, None) is not None:
                    tables.handled[command_id] = tables.clock()

    def entries(self, app: str, rollout: int | None = None, limit: int = 1000) -> list[Entry]:
        checked_limit(limit)
        with self.tables.using():
            return [e for e in self.tables.entries if e.app == app and rollout in (None, e.rollout)][-limit:]

    def show_verdict(self, holder: str, live: LiveVerdict) -> None:
        kept = decode_verdict(live.app, live.rollout, live.at_s, encode_verdict(live))
        with self.tables.using():
            self._require(holder)
            if kept is not None:
                self.tables.verdicts[live.app] = kept

    def verdict(self, app: str) -> LiveVerdict | None:
        with self.tables.using():
            return self.tables.verdicts.get(app)

    def submit(self, command: Command) -> int:
        command = checked_command(command)
        with self.tables.using():
            self.tables.last_command += 1
            self.tables.commands[self.tables.last_command] = replace(command, id=self.tables.last_command)
            return self.tables.last_command

    def commands(self) -> list[Command]:
        with self.tables.using():
            return list(self.tables.commands.values())

    def handled(self, command_id: int) -> bool:
        with self.tables.using():
            return command_id in self.tables.handled

    def nudge(self, app: str, delivery_id: str, at_s: float) -> bool:
        checked_delivery(delivery_id)
        with self.tables.using():
            if delivery_id in self.tables.deliveries:
                return False
            self.tables.deliveries[delivery_id] = at_s
            self.tables.nudged.add(app)
            return True

    def take_nudges(self) -> set[str]:
        with self.tables.using():
            taken, self.tables.nudged = self.tables.nudged, set()
            return taken

    def purge(self, older_than_s: float) -> None:
        t = self.tables
        with t.using():
            now_s = t.clock()
            t.handled = {n: at_s for n, at_s in t.handled.items() if at_s >= now_s - older_than_s}
            t.deliveries = {n: at_s for n, at_s in t.deliveries.items() if at_s >= now_s - DAY_S}
            t.routers = {n: r for n, r in t.routers.items() if r.at_s >= now_s - DAY_S}
            t.arms = {n: r for n, r in t.arms.items() if r.at_s >= now_s - DAY_S or t.runs(r.app, r.rollout)}

    def _require(self, holder: str) -> None:
        if self.holder() != holder:
            raise LeaseLost(f"{holder} does not hold the controller's lease, {self.holder() or 'nobody'} does")


class MemoryRewards:
    """Satisfies `registry.ports.RewardSource`. `events` are (app, reward), in the order of their `seq`."""

    def __init__(self, tables: MemoryTables | None = None) -> None:
        self.tables = tables or MemoryTables()
        self.events: list[tuple[str, Reward]] = []

    def start(self, app: str, answered_s: float) -> int:
        with self.tables.using():
            seqs = [reward.seq for name, reward in self.events if name == app and reward.answered_s >= answered_s]
            return min(seqs) - 1 if seqs else self._last(app)

    def rewards(self, app: str, after: int, limit: int) -> tuple[list[Reward], int]:
        checked_limit(limit)
        with self.tables.using():
            found = [r for name, r in self.events if name == app and r.seq > after and r.rollout][:limit]
            return found, found[-1].seq if len(found) == limit else max(after, self._last(app))

    def _last(self, app: str) -> int:
        return max((reward.seq for name, reward in self.events if name == app), default=0)
