"""`SqlPeople`: who asked to be forgotten and whom data sets held, both by pseudonym; and the secret behind pseudonyms.

`palate forget` and every training run call it (`training.people`); serving itself only makes the secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import delete, select

from registry.database.dialect import insert
from serving.schema import FeedbackEvent
from serving.secret_files import ensure_secret, mounted_bytes
from serving.spool import DAMAGED, SUFFIX, SpoolFile
from serving.store.base import KEYS_PER_QUERY, SqlStore, chunks, lock_counter, set_counter
from serving.store.codec import decode_event
from serving.store.tables import expansions, forgotten_people, trained_people

SECRET_FILE = "people.secret"
MOUNTED_SECRET = "people-secret"
EVERY_APP = ""


def ensure_people_secret(home: Path, mounted: Path | None = None) -> bytes:
    """The 32 bytes that pseudonyms are keyed with: `mounted`, or this home's own, made on the first use. Machines that
    train or rank need the same; with another one, nobody who was forgotten is recognised. Raises BadRequest for a file
    that holds something else, OSError for one that cannot be used."""
    if mounted is not None:
        return mounted_bytes(mounted, MOUNTED_SECRET)
    return ensure_secret(home / SECRET_FILE)


class SqlPeople(SqlStore):
    """Raises StoreUnavailable when the database cannot be used."""

    def add_forgotten(self, app: str, pseudonym: str) -> None:
        """`app` EVERY_APP: in every app, also in those to come. Durable when it returns; again does nothing."""
        row = {"app": app, "pseudonym": pseudonym, "at_s": self._clock()}
        with self._writing() as connection:
            connection.execute(insert(connection, forgotten_people).values(row).on_conflict_do_nothing())

    def forgotten(self, app: str) -> frozenset[str]:
        """The pseudonyms of those who are forgotten in this app."""
        query = select(forgotten_people.c.pseudonym).where(forgotten_people.c.app.in_([app, EVERY_APP]))
        with self._reading() as connection:
            return frozenset(connection.scalars(query))

    def record_trained(self, app: str, fingerprint: str, pseudonyms: Iterable[str]) -> None:
        """The data set `fingerprint` holds these people, and a model is made of it. Again does nothing."""
        with self._writing() as connection:
            statement = insert(connection, trained_people).on_conflict_do_nothing()
            for chunk in chunks(pseudonyms, KEYS_PER_QUERY):
                rows = [{"app": app, "fingerprint": fingerprint, "pseudonym": one} for one in chunk]
                connection.execute(statement, rows)

    def trained(self, pseudonym: str) -> dict[str, list[str]]:
        """App -> the fingerprints, in order, of the data sets that held this person."""
        query = select(trained_people.c.app, trained_people.c.fingerprint).where(
            trained_people.c.pseudonym == pseudonym
        )
        found: dict[str, list[str]] = {}
        with self._reading() as connection:
            for app, fingerprint in sorted(map(tuple, connection.execute(query))):
                found.setdefault(app, []).append(fingerprint)
        return found

    def forget_words(self, app: str, is_gone: Callable[[str], bool]) -> int:
        """Unlearn what these clients taught; the version moves, so that every replica follows. How many words."""
        removed = 0
        query = select(expansions.c.client).where(expansions.c.app == app).distinct()
        with self._reading() as connection:
            clients = [client for client in connection.scalars(query) if is_gone(client)]
        if clients:
            with self._writing() as connection:
                version = lock_counter(connection, app, "expansions")
                for chunk in chunks(clients, KEYS_PER_QUERY):
                    theirs = delete(expansions).where(expansions.c.app == app, expansions.c.client.in_(chunk))
                    removed += connection.execute(theirs).rowcount
                set_counter(connection, app, "expansions", version + 1)
        return removed

    def apps_with_words(self) -> list[str]:
        with self._reading() as connection:
            return sorted(connection.scalars(select(expansions.c.app).distinct()))


def forget_spooled(folder: Path, is_theirs: Callable[[FeedbackEvent], bool]) -> tuple[int, int]:
    """Remove their events from the spool files of processes that ended; (events removed, files that are in use by
    processes that live: what those hold reaches the database later). Raises OSError; no file is left half written."""
    removed = in_use = 0
    for path in sorted([*folder.glob(f"*{SUFFIX}"), *folder.glob(f"*{DAMAGED}")]):
        file = SpoolFile.adopt(path)
        if file is None:
            in_use += path.exists()
            continue
        try:
            lines = list(file.lines())
            kept = [line for line in lines if not _matches(line, is_theirs)]
            if len(kept) < len(lines):
                file.replace(kept)
                removed += len(lines) - len(kept)
        finally:
            file.close()
    return removed, in_use


def _matches(line: bytes, is_theirs: Callable[[FeedbackEvent], bool]) -> bool:
    try:
        return is_theirs(decode_event(line))
    except ValueError:
        return False  # a damaged line names nobody that could be read
