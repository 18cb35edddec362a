"""A `Database`: one SQLAlchemy engine, SQLite in WAL mode or PostgreSQL, with one way to read and one to write.

The stores of serving (and the journal) call it. It turns what a driver raises when the database cannot be reached,
is locked or full into RegistryUnavailable, so that no caller has to know a driver.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from registry.errors import DatabaseRefused, RegistryUnavailable

metadata = MetaData()
"""Every table of the database is declared on it."""

LOCK_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 5

WRITE = "palate_write"
"""Execution option that makes a SQLite transaction take the write lock at its start, so that it never has to upgrade
a read lock, which SQLite refuses at once instead of waiting."""

UNAVAILABLE_SQLITE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


class Database:
    """The engine and its two kinds of transaction. Safe to share between threads; not across a fork."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with; each statement sees what was committed before it. Raises RegistryUnavailable."""
        with translated(self.engine), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed and durable when the block ends, rolled back when it raises. On SQLite it holds
        the only write lock from its start. Raises RegistryUnavailable; nothing was written then."""
        with (
            translated(self.engine),
            self.engine.connect().execution_options(**{WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def check(self) -> None:
        """Raises RegistryUnavailable when the database does not answer."""
        with self.reading() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Database:
    """Prepare the database at `url` (sqlite:///FILE or postgresql://…); the first use connects.

    A SQLite file and its folder are made when missing. A statement waits `lock_timeout_s` for another's lock before
    the database counts as unavailable. Raises DatabaseRefused for any other kind of URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise DatabaseRefused(
            f"the database URL cannot be read ({error}): give sqlite:///FILE or postgresql://…"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return Database(_sqlite(parsed, lock_timeout_s))
    if backend in ("postgresql", "postgres"):
        return Database(_postgresql(parsed, lock_timeout_s))
    raise DatabaseRefused(f"the database URL names {backend!r}: give sqlite:///FILE or postgresql://…")


def _sqlite(url: URL, lock_timeout_s: float) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise DatabaseRefused("a SQLite database needs a file, which all processes share: give sqlite:///FILE")
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseRefused(f"the folder of the database cannot be made: {error}") from None
    engine = create_engine(url.set(drivername="sqlite"), connect_args={"timeout": lock_timeout_s})

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        # FULL: a commit that was acknowledged survives a loss of power, not only of the process
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITE):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL, lock_timeout_s: float) -> Engine:
    # A peer that vanished is noticed in seconds, not after the kernel's hours of retries
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 10_000, "keepalives_idle": 10}
    defaults = {name: value for name, value in timeouts.items() if name not in url.query}
    try:
        engine = create_engine(url.set(drivername="postgresql+psycopg"), connect_args=defaults, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        raise DatabaseRefused(f"the database URL cannot be used: {error}") from None

    @event.listens_for(engine, "connect")
    def prepare(connection: psycopg.Connection[Any], _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(lock_timeout_s * 1000)}")
            cursor.execute(f"SET statement_timeout = {int(STATEMENT_TIMEOUT_S * 1000)}")
        connection.commit()

    return engine


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Raise RegistryUnavailable for what says that the database cannot serve now; leave programming errors alone."""
    try:
        yield
    except PoolTimeout:
        raise RegistryUnavailable(f"every connection to {_name(engine)} is in use: try again") from None
    except DBAPIError as error:
        if not _unavailable(error):
            raise
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        raise RegistryUnavailable(f"{_name(engine)} cannot be used now: {reason}") from error


def _unavailable(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code; the rest says more about it
        code = getattr(cause, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in UNAVAILABLE_SQLITE
    # A standby that took over is read-only until it is promoted
    return isinstance(cause, psycopg.OperationalError | psycopg.errors.ReadOnlySqlTransaction)


def _name(engine: Engine) -> str:
    """The database without its password."""
    return f"the database {engine.url.render_as_string(hide_password=True)}"
