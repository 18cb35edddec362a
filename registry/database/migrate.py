"""Bring a database's schema up to date: called by every process that opens one, before it uses it.

All pending migrations run in one transaction that holds a lock, so processes that start together are safe, and a
process killed half way leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import text

from registry.database.engine import open_database
from registry.errors import DatabaseRefused

LOCK_TIMEOUT_S = 60.0
ADVISORY_LOCK = 0x70616C617465
"""Any number that no other application takes: "palate" in ASCII."""

_one_at_a_time = threading.Lock()
"""Alembic keeps its context in a module global."""


def migrate(url: str) -> None:
    """Upgrade the schema at `url` to the newest version; nothing happens when it is there already.

    Raises RegistryUnavailable when the database cannot be reached or another process migrates for longer than
    LOCK_TIMEOUT_S, DatabaseRefused when a newer Palate made the schema.
    """
    with _migrating(url) as config:
        command.upgrade(config, "head")


def migrate_down(url: str, to: str) -> None:
    """Take the schema back to the version `to` ("base": nothing is left), and what only newer ones hold is lost: for
    going back to an older Palate. Raises as `migrate`, and DatabaseRefused for a version that is not below."""
    with _migrating(url) as config:
        command.downgrade(config, to)


def schema_versions(url: str) -> tuple[str, str]:
    """(the version of the schema at `url`, "" for none; the newest this Palate knows). Raises RegistryUnavailable."""
    head = ScriptDirectory.from_config(_config()).get_current_head() or ""
    database = open_database(url)
    try:
        with database.reading() as connection:
            return MigrationContext.configure(connection).get_current_revision() or "", head
    finally:
        database.close()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@contextmanager
def _migrating(url: str) -> Iterator[Config]:
    """Alembic's configuration with a connection in a transaction that holds the lock."""
    database = open_database(url, lock_timeout_s=LOCK_TIMEOUT_S)
    config = _config()
    try:
        with _one_at_a_time, database.writing() as connection:
            if database.dialect == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            config.attributes["connection"] = connection
            yield config
    except CommandError as error:
        raise DatabaseRefused(
            f"the database's schema is not one this Palate knows ({error}): run the newer version that made it"
        ) from error
    finally:
        database.close()
