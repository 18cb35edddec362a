"""`SqlFeedbackStore`: what each request did and what its user did next.

`serving.trace.TraceWriter` and `serving.feedback.FeedbackRecorder` write; training reads `events` and joins `trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, delete, select

from registry.database.dialect import insert
from serving.ports import Forgotten
from serving.schema import FeedbackEvent, Trace
from serving.store.base import KEYS_PER_QUERY, SqlStore, chunks, lock_counter, set_counter
from serving.store.codec import check_limit, decode_event, decode_trace, encode_event, encode_trace
from serving.store.tables import counters, feedback, traces

TRACES_PER_PURGE = 500
"""Traces forgotten in one transaction, so that nobody waits long for the lock."""
ROWS_PER_LOOK = 1000
"""Rows read at once where all of them are looked at."""


class SqlFeedbackStore(SqlStore):
    """Satisfies `serving.ports.FeedbackStore`. Raises StoreUnavailable when the database cannot be used."""

    def record_traces(self, traces_: Iterable[Trace]) -> None:
        """A trace id that is stored already is left as it is."""
        rows = [
            {"trace_id": t.trace_id, "app": t.app, "release": t.release, "at_s": t.at_s, "body": encode_trace(t)}
            for t in traces_
        ]
        if rows:
            with self._writing() as connection:
                connection.execute(insert(connection, traces).on_conflict_do_nothing(), rows)

    def trace(self, trace_id: str) -> Trace | None:
        with self._reading() as connection:
            body = connection.scalar(select(traces.c.body).where(traces.c.trace_id == trace_id))
        return None if body is None else decode_trace(body)

    def traces(self, trace_ids: Sequence[str]) -> dict[str, Trace]:
        found: dict[str, Trace] = {}
        with self._reading() as connection:
            for chunk in chunks(dict.fromkeys(trace_ids), KEYS_PER_QUERY):
                query = select(traces.c.trace_id, traces.c.body).where(traces.c.trace_id.in_(chunk))
                found.update((row.trace_id, decode_trace(row.body)) for row in connection.execute(query))
        return found

    def purge(self, before_s: float) -> int:
        """As the port. In small transactions: one that is killed half way, or runs twice at once, does no harm."""
        purged = 0
        app = self._next_app("")
        while app is not None:
            oldest = (
                select(traces.c.trace_id)
                .where(traces.c.app == app, traces.c.at_s < before_s)
                .order_by(traces.c.at_s)
                .limit(TRACES_PER_PURGE)
            )
            with self._writing() as connection:
                gone = connection.execute(delete(traces).where(traces.c.trace_id.in_(oldest))).rowcount
            purged += gone
            if gone < TRACES_PER_PURGE:
                app = self._next_app(app)
        return purged

    def _next_app(self, after: str) -> str | None:
        """The first app with traces after `after` in name order: a look into the index, however many traces."""
        query = select(traces.c.app).where(traces.c.app > after).order_by(traces.c.app).limit(1)
        with self._reading() as connection:
            return connection.scalar(query)

    def record(self, event: FeedbackEvent) -> bool:
        return self.record_many([event])[0]

    def record_many(self, events: Sequence[FeedbackEvent]) -> list[bool]:
        """`record` for several in one transaction: all are durable when it returns, none when it raises."""
        bodies = [encode_event(event) for event in events]
        new = [False] * len(events)
        with self._writing() as connection:
            # Counters are locked in one order, so that two batches over the same apps cannot deadlock
            for app in sorted({event.app for event in events}):
                for n in self._record_app(connection, app, events, bodies):
                    new[n] = True
        return new

    def _record_app(
        self, connection: Connection, app: str, events: Sequence[FeedbackEvent], bodies: Sequence[str]
    ) -> list[int]:
        """Store the app's events among `events`; the positions of those that were new."""
        first: dict[str, int] = {}
        for n, event in enumerate(events):
            if event.app == app:
                first.setdefault(event.event_id, n)
        seq = lock_counter(connection, app, "feedback")
        known = _known_ids(connection, app, list(first))
        fresh = [n for event_id, n in first.items() if event_id not in known]
        if fresh:
            rows = [_row(events[n], bodies[n], seq + k) for k, n in enumerate(fresh, 1)]
            connection.execute(insert(connection, feedback), rows)
            set_counter(connection, app, "feedback", seq + len(fresh))
        return fresh

    def events(self, app: str, after: int, limit: int) -> list[tuple[int, FeedbackEvent]]:
        check_limit(limit)
        query = (
            select(feedback.c.seq, feedback.c.body)
            .where(feedback.c.app == app, feedback.c.seq > after)
            .order_by(feedback.c.seq)
            .limit(limit)
        )
        with self._reading() as connection:
            return [(row.seq, decode_event(row.body)) for row in connection.execute(query)]

    def apps(self) -> list[str]:
        found: set[str] = set()
        app = self._next_app("")
        while app is not None:
            found.add(app)
            app = self._next_app(app)
        with self._reading() as connection:
            found.update(connection.scalars(select(counters.c.app).where(counters.c.name == "feedback")))
        return sorted(found)

    def forget(self, app: str, is_gone: Callable[[str], bool]) -> Forgotten:
        """As the port. Reads every trace and event of the app, a page at a time: no index names people."""
        gone = Forgotten(0, 0)
        answers = select(traces.c.trace_id.label("key"), traces.c.body).where(traces.c.app == app)
        for page in self._pages(answers.order_by(traces.c.trace_id), traces.c.trace_id, ""):
            ids = [row.key for row in page if _is_gone(row.body, is_gone)]
            gone = _sum(gone, self._remove(app, ids, []))
        said = select(feedback.c.seq.label("key"), feedback.c.trace_id, feedback.c.body).where(feedback.c.app == app)
        for page in self._pages(said.order_by(feedback.c.seq), feedback.c.seq, 0):
            theirs = [row for row in page if _is_gone(row.body, is_gone)]
            about = self.traces([row.trace_id for row in theirs])
            nobodys = [trace_id for trace_id, trace in about.items() if trace.app == app and trace.user is None]
            gone = _sum(gone, self._remove(app, nobodys, [row.key for row in theirs]))
        return gone

    def _pages(self, query: Select[Any], key: ColumnElement[Any], after: Any) -> Iterator[Sequence[Row[Any]]]:
        """The rows in pages, each read in a transaction of its own."""
        while True:
            with self._reading() as connection:
                page = connection.execute(query.where(key > after).limit(ROWS_PER_LOOK)).all()
            if not page:
                return
            yield page
            after = page[-1].key

    def _remove(self, app: str, trace_ids: Sequence[str], seqs: Sequence[int]) -> Forgotten:
        """Remove traces with every event about them, and events by their numbers."""
        removed_traces = removed_events = 0
        if not trace_ids and not seqs:
            return Forgotten(0, 0)
        with self._writing() as connection:
            for keys in chunks(trace_ids, KEYS_PER_QUERY):
                theirs = delete(feedback).where(feedback.c.app == app, feedback.c.trace_id.in_(keys))
                removed_events += connection.execute(theirs).rowcount
                removed_traces += connection.execute(delete(traces).where(traces.c.trace_id.in_(keys))).rowcount
            for numbers in chunks(seqs, KEYS_PER_QUERY):
                theirs = delete(feedback).where(feedback.c.app == app, feedback.c.seq.in_(numbers))
                removed_events += connection.execute(theirs).rowcount
        return Forgotten(removed_traces, removed_events)


def _is_gone(body: str, is_gone: Callable[[str], bool]) -> bool:
    user = orjson.loads(body).get("user")
    return isinstance(user, str) and is_gone(user)


def _sum(one: Forgotten, other: Forgotten) -> Forgotten:
    return Forgotten(one.traces + other.traces, one.events + other.events)


def _row(event: FeedbackEvent, body: str, seq: int) -> dict[str, object]:
    return {
        "app": event.app,
        "event_id": event.event_id,
        "seq": seq,
        "trace_id": event.trace_id,
        "at_s": event.at_s,
        "body": body,
    }


def _known_ids(connection: Connection, app: str, ids: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for chunk in chunks(ids, KEYS_PER_QUERY):
        query = select(feedback.c.event_id).where(feedback.c.app == app, feedback.c.event_id.in_(chunk))
        known.update(connection.scalars(query))
    return known
