"""`SqlJournal`: the controller's memory, its lease, what people ask of it, and the record of every decision.

The controller is the only one to write states; the shell, the admin routes and the webhook receiver submit and nudge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from sqlalchemy import Connection, delete, exists, select, update

from registry.analysis.verdict import LiveVerdict
from registry.database import Database
from registry.database.dialect import clock_s, insert
from registry.journal import lease
from registry.journal.codec import (
    checked_command,
    checked_delivery,
    checked_limit,
    clipped_entry,
    decode_details,
    decode_verdict,
    encode_details,
    encode_release,
    encode_traffic,
    encode_verdict,
    to_json,
)
from registry.journal.tables import (
    accepted_releases,
    app_states,
    arm_reports,
    commands,
    journal,
    nudges,
    router_reports,
    verdicts,
    webhook_deliveries,
)
from registry.rollout.codec import state_from_json, state_to_json
from registry.rollout.state import AppState
from registry.schema import ReleaseVersion
from registry.traffic import Command, Entry, Traffic

DAY_S = 86_400.0


class SqlJournal:
    """Satisfies `registry.ports.Journal`. A holder's name must be one process's only: it is what fences the others."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_lease(self, holder: str, for_s: float) -> bool:
        with self._database.writing() as connection:
            return lease.take(connection, holder, for_s)

    def release_lease(self, holder: str) -> None:
        with self._database.writing() as connection:
            lease.give_back(connection, holder)

    def holder(self) -> str | None:
        with self._database.reading() as connection:
            return lease.current(connection)

    def states(self) -> Mapping[str, AppState]:
        with self._database.reading() as connection:
            rows = connection.execute(select(app_states.c.app, app_states.c.state)).all()
        return {app: state_from_json(orjson.loads(text)) for app, text in rows}

    def record(
        self,
        holder: str,
        state: AppState,
        traffic: Traffic | None,
        entries: Sequence[Entry],
        releases: Sequence[ReleaseVersion] = (),
        handled: Sequence[int] = (),
    ) -> None:
        """Texts of entries that are too long are shortened, and lose what looks like a secret."""
        row: dict[str, object] = {
            "rollout": state.rollout.id if state.rollout else None,
            "state": to_json(state_to_json(state), "state"),
        }
        if traffic is not None:
            row["traffic"] = encode_traffic(traffic)
        entry_rows = [_entry_row(entry) for entry in entries]
        release_rows = [{"app": r.release.app, "version": r.version, "body": encode_release(r)} for r in releases]
        with self._database.writing() as connection:
            # The lock on the lease also makes the ids of entries rise in the order of their commits
            lease.require(connection, holder)
            connection.execute(
                insert(connection, app_states)
                .values(app=state.app, **row)
                .on_conflict_do_update(index_elements=["app"], set_=row)
            )
            if release_rows:
                statement = insert(connection, accepted_releases)
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["app", "version"], set_={"body": statement.excluded.body}
                    ),
                    release_rows,
                )
            if entry_rows:
                connection.execute(insert(connection, journal), entry_rows)
            _handle(connection, handled)

    def entries(self, app: str, rollout: int | None = None, limit: int = 1000) -> list[Entry]:
        query = select(journal).where(journal.c.app == app)
        if rollout is not None:
            query = query.where(journal.c.rollout == rollout)
        with self._database.reading() as connection:
            newest_first = query.order_by(journal.c.id.desc()).limit(checked_limit(limit))
            rows = connection.execute(newest_first).mappings().all()
        return [Entry(**{**row, "details": decode_details(row["details"])}) for row in reversed(rows)]

    def show_verdict(self, holder: str, live: LiveVerdict) -> None:
        row = {"rollout": live.rollout, "at_s": live.at_s, "body": encode_verdict(live)}
        with self._database.writing() as connection:
            lease.require(connection, holder)
            connection.execute(
                insert(connection, verdicts)
                .values(app=live.app, **row)
                .on_conflict_do_update(index_elements=["app"], set_=row)
            )

    def verdict(self, app: str) -> LiveVerdict | None:
        with self._database.reading() as connection:
            row = connection.execute(select(verdicts).where(verdicts.c.app == app)).first()
        return None if row is None else decode_verdict(*row)

    def submit(self, command: Command) -> int:
        """Raises BadInput for a `who` or a `why` that cannot be kept."""
        c = checked_command(command)
        row = {"app": c.app, "verb": c.verb, "who": c.who, "why": c.why, "at_s": c.at_s, "version": c.version}
        with self._database.writing() as connection:
            return int(connection.scalar(insert(connection, commands).values(row).returning(commands.c.id)) or 0)

    def commands(self) -> list[Command]:
        t = commands.c
        query = (
            select(t.app, t.verb, t.who, t.why, t.at_s, t.version, t.id).where(t.handled_at.is_(None)).order_by(t.id)
        )
        with self._database.reading() as connection:
            return [Command(*row) for row in connection.execute(query)]

    def handled(self, command_id: int) -> bool:
        done = exists().where(commands.c.id == command_id, commands.c.handled_at.is_not(None))
        with self._database.reading() as connection:
            return bool(connection.scalar(select(done)))

    def nudge(self, app: str, delivery_id: str, at_s: float) -> bool:
        seen = exists().where(webhook_deliveries.c.delivery_id == checked_delivery(delivery_id))
        with self._database.reading() as connection:
            if connection.scalar(select(seen)):
                return False  # a storm of repeats never takes the write lock
        with self._database.writing() as connection:
            delivery = insert(connection, webhook_deliveries).values(delivery_id=delivery_id, at_s=at_s)
            new = delivery.on_conflict_do_nothing().returning(webhook_deliveries.c.delivery_id)
            if connection.scalar(new) is None:
                return False
            connection.execute(insert(connection, nudges).values(app=app).on_conflict_do_nothing())
            return True

    def take_nudges(self) -> set[str]:
        with self._database.reading() as connection:
            if connection.execute(select(nudges.c.app).limit(1)).first() is None:
                return set()
        with self._database.writing() as connection:
            return set(connection.scalars(delete(nudges).returning(nudges.c.app)))

    def purge(self, older_than_s: float) -> None:
        """Delete commands that were handled longer ago; and, after a day, what is known of webhook deliveries, reports
        of routers that no longer report, and reports on arms of rollouts that ended. Entries are kept for ever."""
        with self._database.writing() as connection:
            now_s = clock_s(connection)
            day_ago_s = now_s - DAY_S
            running = exists().where(
                app_states.c.app == arm_reports.c.app, app_states.c.rollout == arm_reports.c.rollout
            )
            connection.execute(delete(commands).where(commands.c.handled_at < now_s - older_than_s))
            connection.execute(delete(webhook_deliveries).where(webhook_deliveries.c.at_s < day_ago_s))
            connection.execute(delete(router_reports).where(router_reports.c.at_s < day_ago_s))
            connection.execute(delete(arm_reports).where(arm_reports.c.at_s < day_ago_s, ~running))


def _entry_row(entry: Entry) -> dict[str, object]:
    entry = clipped_entry(entry)
    return {
        "app": entry.app,
        "rollout": entry.rollout,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "who": entry.who,
        "why": entry.why,
        "version": entry.version,
        "details": encode_details(entry.details),
    }


def _handle(connection: Connection, ids: Sequence[int]) -> None:
    if ids:
        done = update(commands).where(commands.c.id.in_(ids), commands.c.handled_at.is_(None))
        connection.execute(done.values(handled_at=clock_s(connection)))
