"""`SqlItemStore`: the catalogue in SQL, with a number for every change so that replicas can follow it.

The items routes and `palate items load` write; `serving.items` follows `changes`; the index build reads `scan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, false, select, true, update

from registry.database.dialect import insert
from serving.schema import Item
from serving.store.base import (
    KEYS_PER_QUERY,
    SqlStore,
    chunks,
    lock_counter,
    read_counter,
    set_counter,
)
from serving.store.codec import ItemRow, check_limit, decode_cursor, decode_item, encode_cursor, encode_item
from serving.store.tables import items

ITEMS_PER_TRANSACTION = 2000
"""A longer write is committed in parts, so that nobody waits long for the lock; killed half way, it is sent again."""

SCAN_PAGE = 1000


class SqlItemStore(SqlStore):
    """Satisfies `serving.ports.ItemStore`. Every method raises StoreUnavailable when the database cannot be used."""

    def upsert(self, app: str, items: Sequence[Item]) -> int:
        """As the port. An item that is stored just so already takes no number; of one id the last wins.

        Raises BadRequest for an id or a value that cannot be stored; nothing is written then.
        """
        rows = list({row.id: row for row in map(encode_item, items)}.values())
        for chunk in chunks(rows, ITEMS_PER_TRANSACTION):
            with self._writing() as connection:
                self._write(connection, app, chunk)
        return self.sequence(app)

    def delete(self, app: str, ids: Sequence[str]) -> int:
        for chunk in chunks(list(dict.fromkeys(ids)), ITEMS_PER_TRANSACTION):
            with self._writing() as connection:
                self._remove(connection, app, chunk)
        return self.sequence(app)

    def get(self, app: str, ids: Sequence[str]) -> list[Item | None]:
        with self._reading() as connection:
            stored = _stored(connection, app, list(dict.fromkeys(ids)))
        live = {i: decode_item(i, row.fields, row.attributes) for i, row in stored.items() if not row.deleted}
        return [live.get(i) for i in ids]

    def page(self, app: str, limit: int, cursor: str | None) -> tuple[list[Item], str | None]:
        """As the port. Raises BadRequest for a cursor no page returned, or a limit below 1."""
        check_limit(limit)
        found = self._after(app, decode_cursor(cursor), limit + 1)
        more = len(found) > limit
        return found[:limit], encode_cursor(found[limit - 1].id) if more else None

    def changes(self, app: str, after_seq: int, limit: int) -> tuple[list[Item], list[str], int]:
        """As the port: at most `limit` changes; the last number is `after_seq` when there are none.

        An item that changed again since is told once, at its newest number. `sequence` below `after_seq` means that
        the database was restored from an older copy: follow anew from a scan.
        """
        check_limit(limit)
        query = (
            select(items.c.id, items.c.fields, items.c.attributes, items.c.deleted, items.c.seq)
            .where(items.c.app == app, items.c.seq > after_seq)
            .order_by(items.c.seq)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        upserted = [decode_item(row.id, row.fields, row.attributes) for row in rows if not row.deleted]
        return upserted, [row.id for row in rows if row.deleted], rows[-1].seq if rows else after_seq

    def scan(self, app: str) -> Iterator[Item]:
        """As the port. No snapshot: writes during the scan may or may not be in it, so take `sequence` before it and
        follow `changes` from there."""
        last = ""
        while found := self._after(app, last, SCAN_PAGE):
            yield from found
            last = found[-1].id

    def count(self, app: str) -> int:
        with self._reading() as connection:
            return read_counter(connection, app, "live_items")

    def sequence(self, app: str) -> int:
        with self._reading() as connection:
            return read_counter(connection, app, "items")

    def _after(self, app: str, last_id: str, limit: int) -> list[Item]:
        query = (
            select(items.c.id, items.c.fields, items.c.attributes)
            .where(items.c.app == app, items.c.id > last_id, items.c.deleted == false())
            .order_by(items.c.id)
            .limit(limit)
        )
        with self._reading() as connection:
            return [decode_item(*row) for row in connection.execute(query)]

    def _write(self, connection: Connection, app: str, rows: Sequence[ItemRow]) -> None:
        seq = lock_counter(connection, app, "items")
        stored = _stored(connection, app, [row.id for row in rows])
        changed = [
            row
            for row in rows
            if (old := stored.get(row.id)) is None
            or old.deleted
            or (old.fields, old.attributes) != (row.fields, row.attributes)
        ]
        if not changed:
            return
        now = self._clock()
        statement = insert(connection, items)
        written = ("fields", "attributes", "seq", "deleted", "updated_at")
        statement = statement.on_conflict_do_update(
            index_elements=["app", "id"], set_={name: statement.excluded[name] for name in written}
        )
        connection.execute(
            statement,
            [
                {"app": app, **row._asdict(), "seq": seq + n, "deleted": False, "updated_at": now}
                for n, row in enumerate(changed, 1)
            ],
        )
        set_counter(connection, app, "items", seq + len(changed))
        revived = sum(row.id not in stored or bool(stored[row.id].deleted) for row in changed)
        set_counter(connection, app, "live_items", lock_counter(connection, app, "live_items") + revived)

    def _remove(self, connection: Connection, app: str, ids: Sequence[str]) -> None:
        seq = lock_counter(connection, app, "items")
        stored = _stored(connection, app, ids)
        gone = [item_id for item_id in ids if item_id in stored and not stored[item_id].deleted]
        if not gone:
            return
        # The row stays, emptied, to tell followers of the deletion
        statement = (
            update(items)
            .where(items.c.app == app, items.c.id == bindparam("gone_id"))
            .values(fields="{}", attributes="{}", deleted=true(), seq=bindparam("new_seq"), updated_at=self._clock())
        )
        connection.execute(statement, [{"gone_id": i, "new_seq": seq + n} for n, i in enumerate(gone, 1)])
        set_counter(connection, app, "items", seq + len(gone))
        set_counter(connection, app, "live_items", lock_counter(connection, app, "live_items") - len(gone))


def _stored(connection: Connection, app: str, ids: Sequence[str]) -> dict[str, Any]:
    """The stored rows (id, fields, attributes, deleted) of these ids, deleted ones included, by id."""
    query = select(items.c.id, items.c.fields, items.c.attributes, items.c.deleted)
    found: dict[str, Any] = {}
    for chunk in chunks(ids, KEYS_PER_QUERY):
        rows = connection.execute(query.where(items.c.app == app, items.c.id.in_(chunk)))
        found.update((row.id, row) for row in rows)
    return found
