"""The one database under several processes and through an outage: real SQLite, and real PostgreSQL where it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

import registry.journal  # noqa: F401 - declares its tables
import training.runs  # noqa: F401 - declares its table
from registry.database import metadata, migrate, open_database
from serving.errors import StoreUnavailable
from serving.feedback import FeedbackRecorder
from serving.keys import ApiKeys
from serving.schema import FeedbackEvent, Item
from serving.store import SqlFeedbackStore, SqlItemStore
from tests.postgres import PostgresServer
from tests.waiting import wait_for

MIGRATE = "import sys; from registry.database import migrate; sys.stdin.readline(); migrate(sys.argv[1])"

WRITE = """
import sys
from registry.database import open_database
from serving.schema import FeedbackEvent, Item
from serving.store import SqlFeedbackStore, SqlItemStore

url, writer, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = open_database(url, lock_timeout_s=60)
items, feedback = SqlItemStore(database), SqlFeedbackStore(database)
sys.stdin.readline()
for n in range(rounds):
    shared = [Item(f"shared-{k}", {"by": writer, "round": n}) for k in range(5)]
    items.upsert("a", [*shared, Item(f"{writer}-{n}", {"by": writer})])
    items.delete("a", [f"{writer}-{n - 1}"])
    feedback.record(FeedbackEvent(f"{writer}-{n}", "t", "a", "1", "select", 1.0))
    feedback.record(FeedbackEvent(f"both-{n}", "t", "a", "1", "select", 1.0))
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'p.db'}"
    return str(request.getfixturevalue("postgres_url"))


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that waits for a line before it goes."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, text=True)


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_processes_that_start_together_migrate_once(url: str, processes: list[subprocess.Popen[str]]) -> None:
    processes += [start(MIGRATE, url) for _ in range(3)]
    go(processes)
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    database = open_database(url)
    assert SqlItemStore(database).upsert("a", [Item("x", {})]) == 1
    database.close()


def test_the_migrations_make_the_tables_the_stores_declare(url: str) -> None:
    migrate(url)
    database = open_database(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    database.close()


def test_a_follower_of_two_writers_misses_nothing(url: str, processes: list[subprocess.Popen[str]]) -> None:
    migrate(url)
    database = open_database(url)
    items, feedback = SqlItemStore(database), SqlFeedbackStore(database)
    processes += [start(WRITE, url, writer, 40) for writer in ("w1", "w2")]
    go(processes)
    followed: dict[str, Item] = {}
    events: list[str] = []
    after = after_event = 0
    while (running := any(p.poll() is None for p in processes)) or after < items.sequence("a"):
        upserted, deleted, seq = items.changes("a", after, 7)
        assert seq >= after
        followed.update((i.id, i) for i in upserted)
        for item_id in deleted:
            followed.pop(item_id, None)
        after = seq
        for number, event in feedback.events("a", after_event, 7):
            assert number == after_event + 1, "a number was skipped, or came late"
            after_event = number
            events.append(event.event_id)
        assert running or after <= items.sequence("a")
    events += [event.event_id for _, event in feedback.events("a", after_event, 1000)]
    assert [p.returncode for p in processes] == [0, 0]
    assert followed == {i.id: i for i in items.scan("a")}
    assert set(followed) == {*(f"shared-{k}" for k in range(5)), "w1-39", "w2-39"}
    assert items.count("a") == 7
    assert sorted(events) == sorted(f"{w}-{n}" for w in ("w1", "w2", "both") for n in range(40))
    database.close()


def test_postgresql_stops_and_comes_back(postgres: PostgresServer, postgres_url: str, tmp_path: Path) -> None:
    migrate(postgres_url)
    database = open_database(postgres_url)
    items, store, keys = SqlItemStore(database), SqlFeedbackStore(database), ApiKeys(database)
    key = keys.create("shop", ["query"])
    items.upsert("a", [Item("x", {})])
    recorder = FeedbackRecorder(store, tmp_path / "spool", bound_s=30, retry_s=0.05)
    assert recorder.record(event("before")).stored == "database"
    postgres.stop()
    try:
        with pytest.raises(StoreUnavailable):
            items.upsert("a", [Item("y", {})])
        with pytest.raises(StoreUnavailable):
            items.page("a", 5, None)
        assert [recorder.record(event(f"during-{n}")).stored for n in range(3)] == ["spool"] * 3
    finally:
        postgres.start()
    wait_for(lambda: recorder.pending == 0 and not recorder.away)
    assert recorder.record(event("during-1")).stored == "duplicate"
    assert [e.event_id for _, e in store.events("a", 0, 10)] == ["before", "during-0", "during-1", "during-2"]
    assert items.page("a", 5, None) == ([Item("x", {})], None)
    assert keys.authenticate(f"Bearer {key.plaintext}").id == key.id
    recorder.close()
    database.close()


def event(event_id: str) -> FeedbackEvent:
    return FeedbackEvent(event_id, "t", "a", "1", "select", 1.0)
