"""`SqlSessionStore`: the turns of conversations.

The ingress reads a session's turns before it asks the pipeline and appends one after its answer; `palate forget`
removes those of a person (`training.people`), the controller those that expired (`serving.controller`).
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import ColumnElement, delete, func, select

from serving.schema import Turn
from serving.store.base import KEYS_PER_QUERY, SqlStore, chunks
from serving.store.codec import MOST_TURNS, check_id, decode_turn, encode_turn
from serving.store.tables import session_turns

SESSIONS_AT_ONCE = 500
"""Sessions removed in one transaction, so that nobody waits long for the lock."""


def _said(app: str, session: str, user: str) -> tuple[ColumnElement[bool], ...]:
    turns = session_turns.c
    return turns.app == app, turns.session == session, turns.person == user


class SqlSessionStore(SqlStore):
    """Satisfies `serving.ports.SessionStore`. Raises StoreUnavailable when the database cannot be used."""

    def turns(self, app: str, session: str, user: str, limit: int, after_s: float) -> list[Turn]:
        if limit < 1:
            return []
        query = (
            select(session_turns.c.body)
            .where(*_said(app, session, user), session_turns.c.at_s > after_s)
            .order_by(session_turns.c.id.desc())
            .limit(limit)
        )
        with self._reading() as connection:
            return [decode_turn(body) for body in connection.scalars(query)][::-1]

    def append(self, app: str, session: str, user: str, turn: Turn) -> None:
        """Durable when it returns. Raises BadRequest for a session id that cannot be one."""
        check_id(session, "session")
        row = {"app": app, "session": session, "person": user, "at_s": turn.at_s, "body": encode_turn(turn)}
        oldest_kept = (
            select(session_turns.c.id)
            .where(*_said(app, session, user))
            .order_by(session_turns.c.id.desc())
            .offset(MOST_TURNS - 1)
            .limit(1)
            .scalar_subquery()
        )
        with self._writing() as connection:
            connection.execute(session_turns.insert().values(row))
            connection.execute(
                delete(session_turns).where(*_said(app, session, user), session_turns.c.id < oldest_kept)
            )

    def purge(self, app: str, before_s: float) -> int:
        """As the port, in small transactions: killed half way, or done twice at once, it does no harm."""
        silent = (
            select(session_turns.c.session)
            .where(session_turns.c.app == app)
            .group_by(session_turns.c.session)
            .having(func.max(session_turns.c.at_s) < before_s)
            .limit(SESSIONS_AT_ONCE)
        )
        purged = 0
        while True:
            # Removed by time as well: a session may speak again between the look and the removal.
            theirs = delete(session_turns).where(
                session_turns.c.app == app, session_turns.c.at_s < before_s, session_turns.c.session.in_(silent)
            )
            with self._writing() as connection:
                gone = connection.execute(theirs).rowcount
            purged += gone
            if not gone:
                return purged

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> int:
        """As the port. Sessions are short-lived: all of an app's are looked at."""
        query = select(session_turns.c.session, session_turns.c.person).where(session_turns.c.app == app).distinct()
        with self._reading() as connection:
            rows = connection.execute(query).all()
        gone = sorted({row.session for row in rows if is_gone(row.session) or (row.person and is_gone(row.person))})
        removed = 0
        for sessions in chunks(gone, KEYS_PER_QUERY):
            theirs = delete(session_turns).where(session_turns.c.app == app, session_turns.c.session.in_(sessions))
            with self._writing() as connection:
                removed += connection.execute(theirs).rowcount
        return removed

    def apps(self) -> list[str]:
        with self._reading() as connection:
            return sorted(connection.scalars(select(session_turns.c.app).distinct()))
