"""`SqlBoard`: what the routers of every app shall do, and what they and the deployer of arms report.

Routers, the deployer and the admin routes call it; `SqlJournal` writes the traffic that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from registry.database import Database
from registry.database.dialect import insert
from registry.errors import ReleaseNotFound
from registry.journal.codec import clipped_arm, clipped_router, decode_release, decode_traffic
from registry.journal.tables import accepted_releases, app_states, arm_reports, router_reports
from registry.schema import ReleaseVersion
from registry.traffic import ArmReport, RouterReport, Traffic


class SqlBoard:
    """Satisfies `registry.ports.TrafficBoard`. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._decoded: dict[str, tuple[str, Traffic]] = {}
        """Of each app the text last read and what it says: it changes seldom and is read often."""

    def traffic(self) -> Mapping[str, Traffic]:
        query = select(app_states.c.app, app_states.c.traffic).where(app_states.c.traffic.is_not(None))
        known = self._decoded
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        decoded = {}
        for app, text in rows:
            before = known.get(app)
            decoded[app] = before if before and before[0] == text else (text, decode_traffic(text))
        self._decoded = decoded
        return {app: traffic for app, (_, traffic) in decoded.items()}

    def release(self, app: str, version: int) -> ReleaseVersion:
        query = select(accepted_releases.c.body).where(
            accepted_releases.c.app == app, accepted_releases.c.version == version
        )
        with self._database.reading() as connection:
            body = connection.scalar(query)
        if body is None:
            raise ReleaseNotFound(f"version {version} of {app} was never accepted for traffic")
        return decode_release(body)

    def report_router(self, report: RouterReport) -> None:
        report = clipped_router(report)
        changed = {
            "generation": report.generation,
            "stable": report.stable,
            "problem": report.problem,
            "at_s": report.at_s,
            "spooled": report.spooled,
        }
        with self._database.writing() as connection:
            connection.execute(
                insert(connection, router_reports)
                .values(app=report.app, router=report.router, **changed)
                .on_conflict_do_update(index_elements=["app", "router"], set_=changed)
            )

    def report_arm(self, report: ArmReport) -> None:
        report = clipped_arm(report)
        changed = {"phase": report.phase, "reason": report.reason, "at_s": report.at_s}
        with self._database.writing() as connection:
            connection.execute(
                insert(connection, arm_reports)
                .values(app=report.app, rollout=report.rollout, arm=report.arm, **changed)
                .on_conflict_do_update(index_elements=["app", "rollout", "arm"], set_=changed)
            )

    def routers(self, app: str, since_s: float) -> list[RouterReport]:
        t = router_reports.c
        query = (
            select(t.router, t.app, t.generation, t.stable, t.problem, t.at_s, t.spooled)
            .where(t.app == app, t.at_s >= since_s)
            .order_by(t.router)
        )
        with self._database.reading() as connection:
            return [RouterReport(*row) for row in connection.execute(query)]

    def arms(self, app: str, rollout: int) -> list[ArmReport]:
        t = arm_reports.c
        query = (
            select(t.app, t.rollout, t.arm, t.phase, t.reason, t.at_s)
            .where(t.app == app, t.rollout == rollout)
            .order_by(t.arm)
        )
        with self._database.reading() as connection:
            return [ArmReport(*row) for row in connection.execute(query)]
