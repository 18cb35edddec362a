"""`SqlExpansions`: the abbreviations each client taught by choosing, counted, so that one slip does not unteach them.

The feedback recorder's `learn` writes; the rules of every replica poll `version` and read `all` when it moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from registry.database.dialect import insert
from serving.errors import BadRequest
from serving.ports import Expansions
from serving.store.base import SqlStore, lock_counter, read_counter, set_counter
from serving.store.tables import expansions

MAX_CHARS = 256


class SqlExpansions(SqlStore):
    """Raises StoreUnavailable when the database cannot be used."""

    def learn(self, app: str, user: str, words_of: Mapping[str, str]) -> int:
        """Count each token -> words once more for this user; the app's version after it.

        Raises BadRequest for an empty text, one of more than MAX_CHARS characters, or one with a NUL.
        """
        for text in (user, *words_of, *words_of.values()):
            if not 0 < len(text) <= MAX_CHARS or "\0" in text:
                raise BadRequest(f"{text[:40]!r} cannot be learnt: give 1 to {MAX_CHARS} characters", field="user")
        with self._writing() as connection:
            version = lock_counter(connection, app, "expansions")
            if not words_of:
                return version
            version += 1
            statement = insert(connection, expansions)
            statement = statement.on_conflict_do_update(
                index_elements=["app", "client", "token", "words"],
                set_={"count": expansions.c.count + 1, "updated_seq": statement.excluded.updated_seq},
            )
            rows = [
                {"app": app, "client": user, "token": token, "words": words, "count": 1, "updated_seq": version}
                for token, words in words_of.items()
            ]
            connection.execute(statement, rows)
            set_counter(connection, app, "expansions", version)
            return version

    def all(self, app: str) -> Expansions:
        """Per user and token the words learnt most often; of equals, the latest."""
        query = (
            select(expansions.c.client, expansions.c.token, expansions.c.words)
            .where(expansions.c.app == app)
            .order_by(expansions.c.count, expansions.c.updated_seq, expansions.c.words)
        )
        learnt: dict[str, dict[str, str]] = {}
        with self._reading() as connection:
            for client, token, words in connection.execute(query):
                learnt.setdefault(client, {})[token] = words
        return learnt

    def version(self, app: str) -> int:
        """Moves whenever something was learnt; 0 before the first time. One row is read."""
        with self._reading() as connection:
            return read_counter(connection, app, "expansions")
