"""What the two databases spell differently: an INSERT with ON CONFLICT, and the database's own clock.

Called by the stores that write rows which may be there already, or that must not trust a process's clock.
"""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.schema import Table

_CLOCK = {
    "postgresql": text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"),
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400.0"),
}


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that has ON CONFLICT, which the two databases spell alike but SQLAlchemy keeps per dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def clock_s(connection: Connection) -> float:
    """Unix time by the database's clock at this moment, not at the transaction's start."""
    return float(connection.scalar(_CLOCK[connection.dialect.name]) or 0.0)
