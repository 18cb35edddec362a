"""A board that a test steers: it plays the controller, which sets traffic, and reads what routers report and record."""

from __future__ import annotations

from typing import Any

from registry.fakes import MemoryBoard, MemoryEvidence, MemoryTables
from registry.memory_store import MemoryStore
from registry.traffic import Evidence, RouterReport, Traffic


class Desk:
    """`board` and `evidence` are what a router is given; `tables.away` takes both away."""

    def __init__(self, releases: MemoryStore) -> None:
        self.tables = MemoryTables()
        self.board = MemoryBoard(self.tables)
        self.evidence = MemoryEvidence(self.tables)
        self._releases = releases

    def steer(self, app: str, stable: int, **changes: Any) -> Traffic:
        """Set the app's traffic, a generation on; the versions it names are accepted with it."""
        before = self.tables.traffic.get(app)
        traffic = Traffic(app, 1 if before is None else before.generation + 1, stable, **changes)
        for version in {traffic.stable, traffic.canary, traffic.control, *traffic.warm} - {None}:
            self.tables.releases[app, int(version or 0)] = self._releases.get(app, int(version or 0))
        self.tables.traffic[app] = traffic
        return traffic

    def trial(self, app: str, percent: float = 50.0, **changes: Any) -> Traffic:
        """A rollout of version 2 against version 1, at this weight."""
        wanted = {"canary": 2, "control": 1, "canary_percent": percent, "control_percent": percent, "rollout": 1}
        return self.steer(app, **{"stable": 1, **wanted, **changes})

    def recorded(self, app: str, rollout: int = 1) -> list[Evidence]:
        """Every block, in the order of each router."""
        return self.evidence.after(app, rollout, {}, 100_000)

    def outcomes(self, app: str, arm: str, rollout: int = 1) -> str:
        """The letters recorded for an arm."""
        return "".join(e.block.outcomes for e in self.recorded(app, rollout) if e.arm == arm)

    def reports(self, app: str) -> list[RouterReport]:
        return self.board.routers(app, 0.0)

    def followed(self, app: str) -> bool:
        """A router follows the newest traffic in full."""
        newest = self.tables.traffic[app].generation
        return any(report.generation == newest for report in self.reports(app))
