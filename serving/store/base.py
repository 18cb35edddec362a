"""What every SQL store shares: transactions that raise serving's errors, and counters that number changes.

A change takes its number from the app's counter row inside its own transaction, and the row stays locked until the
commit. So numbers become visible in order, and whoever reads "everything after n" never misses a late commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Literal, TypeVar

from sqlalchemy import Connection, select, update

from registry.database import Database
from registry.database.dialect import insert
from registry.errors import RegistryUnavailable
from serving.errors import StoreUnavailable
from serving.store.tables import counters

Counter = Literal["items", "live_items", "feedback", "expansions"]
T = TypeVar("T")

KEYS_PER_QUERY = 500
"""Most ids in one IN (…): well under every driver's limit of bound values."""


class SqlStore:
    """`clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _serving_errors(), self._database.reading() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _serving_errors(), self._database.writing() as connection:
            yield connection


@contextmanager
def _serving_errors() -> Iterator[None]:
    try:
        yield
    except RegistryUnavailable as error:
        # The cause names the host and the driver's reason: for the log, not for the caller
        raise StoreUnavailable("the database cannot be used now: wait, then send it again") from error


def lock_counter(connection: Connection, app: str, name: Counter) -> int:
    """The counter's value; nobody else can lock it before this transaction ends."""
    query = (
        select(counters.c.value).where(counters.c.app == app, counters.c.name == name).with_for_update()
    )  # SQLite has no row locks: its write transaction holds the only lock from the start
    value = connection.scalar(query)
    if value is None:
        row = {"app": app, "name": name, "value": 0}
        connection.execute(insert(connection, counters).values(row).on_conflict_do_nothing())
        value = connection.scalar(query)
    return int(value or 0)


def set_counter(connection: Connection, app: str, name: Counter, value: int) -> None:
    connection.execute(update(counters).where(counters.c.app == app, counters.c.name == name).values(value=value))


def read_counter(connection: Connection, app: str, name: Counter) -> int:
    value = connection.scalar(select(counters.c.value).where(counters.c.app == app, counters.c.name == name))
    return int(value or 0)


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
