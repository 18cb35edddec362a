"""`SqlEvidence`: what the routers saw of the arms, block by block.

Routers add about four times a second; the scoreboard and the reports read what is new to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, exists, select, text, tuple_

from registry.database import Database
from registry.database.dialect import clock_s, insert
from registry.journal.codec import checked_limit, decode_block, encode_block
from registry.journal.tables import app_states, evidence
from registry.traffic import Evidence

PURGED_AT_ONCE = 5_000
"""Blocks deleted in one transaction: routers wait for it on SQLite."""

# From router to router by the primary key's index: the cost goes with the routers, not with their blocks
_HEADS = text(
    """
    WITH RECURSIVE routers(router) AS (
        SELECT min(router) FROM evidence WHERE app = :app AND rollout = :rollout
        UNION ALL
        SELECT (SELECT min(e.router) FROM evidence e
                WHERE e.app = :app AND e.rollout = :rollout AND e.router > r.router)
        FROM routers r WHERE r.router IS NOT NULL
    )
    SELECT router, (SELECT max(e.seq) FROM evidence e
                    WHERE e.app = :app AND e.rollout = :rollout AND e.router = routers.router)
    FROM routers WHERE router IS NOT NULL ORDER BY router
    """
)

_t = evidence.c
_BLOCKS = (
    select(_t.app, _t.rollout, _t.router, _t.seq, _t.arm, _t.at_s, _t.body)
    .where(
        _t.app == bindparam("app"),
        _t.rollout == bindparam("rollout"),
        _t.router == bindparam("router"),
        _t.seq > bindparam("after"),
    )
    .order_by(_t.seq)
    .limit(bindparam("most"))
)


class SqlEvidence:
    """Satisfies `registry.ports.EvidenceStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, evidence_: Sequence[Evidence]) -> None:
        rows = [
            {
                "app": e.app,
                "rollout": e.rollout,
                "router": e.router,
                "seq": e.seq,
                "arm": e.arm,
                "at_s": e.block.at_s,
                "body": encode_block(e.block),
            }
            for e in evidence_
        ]
        if rows:
            with self._database.writing() as connection:
                connection.execute(insert(connection, evidence).on_conflict_do_nothing(), rows)

    def after(self, app: str, rollout: int, cursor: Mapping[str, int], limit: int) -> list[Evidence]:
        """Router by router. Fewer than `limit` means that nothing more was there."""
        checked_limit(limit)
        found: list[Evidence] = []
        with self._database.reading() as connection:
            for router, newest in _heads(connection, app, rollout):
                after = cursor.get(router, 0)
                if newest <= after or len(found) == limit:
                    continue
                which = {"app": app, "rollout": rollout, "router": router}
                rows = connection.execute(_BLOCKS, {**which, "after": after, "most": limit - len(found)})
                found.extend(Evidence(*row[:5], decode_block(row.at_s, row.body)) for row in rows)
        return found

    def purge(self, older_than_s: float) -> int:
        """Delete the evidence of rollouts that ended and whose newest block is older; how many blocks went. In small
        transactions: what went before a RegistryUnavailable is gone."""
        with self._database.reading() as connection:
            before_s = clock_s(connection) - older_than_s
            ended = [which for which in _rollouts(connection) if _is_over(connection, *which, before_s)]
            routers = [(*which, router) for which in ended for router, _ in _heads(connection, *which)]
        return sum(self._delete(*which) for which in routers)

    def _delete(self, app: str, rollout: int, router: str) -> int:
        of_router = (_t.app == app, _t.rollout == rollout, _t.router == router)
        beyond = select(_t.seq).where(*of_router).order_by(_t.seq).offset(PURGED_AT_ONCE).limit(1)
        deleted = 0
        while True:
            with self._database.writing() as connection:
                rest = connection.scalar(beyond)
                some = of_router if rest is None else (*of_router, _t.seq < rest)
                deleted += connection.execute(delete(evidence).where(*some)).rowcount
            if rest is None:
                return deleted


def _heads(connection: Connection, app: str, rollout: int) -> list[tuple[str, int]]:
    """(router, its newest seq) of every router that wrote, in order of their names."""
    return [(router, seq) for router, seq in connection.execute(_HEADS, {"app": app, "rollout": rollout})]


def _rollouts(connection: Connection) -> Iterator[tuple[str, int]]:
    """Every (app, rollout) that has evidence, found by the primary key's index."""
    last: tuple[str, int] | None = None
    while True:
        query = select(_t.app, _t.rollout).order_by(_t.app, _t.rollout).limit(1)
        if last is not None:
            query = query.where(tuple_(_t.app, _t.rollout) > last)
        row = connection.execute(query).first()
        if row is None:
            return
        last = (row.app, row.rollout)
        yield last


def _is_over(connection: Connection, app: str, rollout: int, before_s: float) -> bool:
    """Whether the rollout is not on its way and its newest block of each router is from before `before_s`."""
    running = exists().where(app_states.c.app == app, app_states.c.rollout == rollout)
    if connection.scalar(select(running)):
        return False
    of_rollout = (_t.app == app, _t.rollout == rollout)
    for router, seq in _heads(connection, app, rollout):
        at_s = connection.scalar(select(_t.at_s).where(*of_rollout, _t.router == router, _t.seq == seq))
        if at_s is not None and at_s >= before_s:
            return False
    return True
