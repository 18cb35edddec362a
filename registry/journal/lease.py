"""Leases: a row each that says who may act, by the database's clock alone. The controller's guards the states of
rollouts; `training.runs` has one per app that learns.

Called inside the caller's transactions. The row stays locked until they end (SQLite has one writer anyway), so nobody
takes the lease between the moment it is checked and the commit of what was written under it.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, select, update

from registry.database.dialect import clock_s, insert
from registry.errors import LeaseLost
from registry.journal.tables import leases

CONTROLLER = "controller"


class Lease(NamedTuple):
    holder: str
    expires_s: float
    now_s: float

    @property
    def runs(self) -> bool:
        return self.now_s < self.expires_s


def take(connection: Connection, holder: str, for_s: float, name: str = CONTROLLER) -> bool:
    """Needs a writing transaction. A clock set back cannot keep a lease longer than it was taken for."""
    lease = _locked(connection, name)
    if lease.runs and lease.holder != holder:
        return False
    _write(connection, name, holder=holder, for_s=for_s, expires_s=lease.now_s + for_s)
    return True


def give_back(connection: Connection, holder: str, name: str = CONTROLLER) -> None:
    if _locked(connection, name).holder == holder:
        _write(connection, name, expires_s=0.0)


def require(connection: Connection, holder: str, name: str = CONTROLLER) -> None:
    """Raises LeaseLost unless `holder` holds the lease, and keeps it so until the transaction ends."""
    lease = _locked(connection, name)
    if lease.holder != holder:
        raise LeaseLost(f"{holder} does not hold the lease `{name}`, {lease.holder or 'nobody'} does")
    if not lease.runs:
        raise LeaseLost(f"the lease `{name}` of {holder} ran out {lease.now_s - lease.expires_s:.1f} s ago")


def lock(connection: Connection, name: str) -> None:
    """Nobody else takes, or locks, the lease until the transaction ends; whoever holds it goes on holding it."""
    _locked(connection, name)


def current(connection: Connection, name: str = CONTROLLER) -> str | None:
    """Who holds a lease that has not run out."""
    row = connection.execute(select(leases.c.holder, leases.c.expires_s).where(leases.c.name == name)).first()
    return row.holder if row and clock_s(connection) < row.expires_s else None


def _locked(connection: Connection, name: str) -> Lease:
    query = select(leases).where(leases.c.name == name).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        none = {"name": name, "holder": "", "for_s": 0.0, "expires_s": 0.0}
        connection.execute(insert(connection, leases).values(none).on_conflict_do_nothing())
        row = connection.execute(query).one()
    # Asked after the lock was granted: the wait for it may have been long
    now_s = clock_s(connection)
    if row.expires_s > now_s + row.for_s:
        _write(connection, name, expires_s=now_s + row.for_s)
    return Lease(row.holder, min(row.expires_s, now_s + row.for_s), now_s)


def _write(connection: Connection, name: str, **values: object) -> None:
    connection.execute(update(leases).where(leases.c.name == name).values(**values))
