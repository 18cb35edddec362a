"""Every store of ours on real PostgreSQL (and SQLite): many writers at once, the server restarted under them, and the
schema taken down and up again. What was acknowledged is there afterwards, once where the store promises once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

import registry.journal  # noqa: F401 - declares its tables
import training.runs  # noqa: F401 - declares its table
from registry.database import Database, metadata, migrate, migrate_down, open_database, schema_versions
from registry.errors import DatabaseRefused, RegistryUnavailable
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.traffic import Command, Evidence, RouterReport
from serving.errors import StoreUnavailable
from serving.keys import ApiKeys
from serving.schema import FeedbackEvent, Item, Trace, Turn
from serving.store import SqlExpansions, SqlFeedbackStore, SqlItemStore
from serving.store.people import SqlPeople
from serving.store.sessions import SqlSessionStore
from tests.postgres import PostgresServer
from tests.rollout_sample import evidence
from training.runs import Ask, RunBusy, Runs

WRITERS, ROUNDS = 3, 8


@dataclass(frozen=True)
class StoreCase:
    """`write` writes what (writer, round) name; `read` gives back the names of all that is there; `once`: a write that
    is tried again, since nobody heard of its commit, is kept once."""

    write: Callable[[Database, int, int], object]
    read: Callable[[Database], Collection[str]]
    once: bool = True


def name_of(writer: int, n: int) -> str:
    return f"{writer}-{n}"


def a_run(database: Database, writer: int, n: int) -> None:
    runs = Runs(database)
    try:
        run = runs.begin(Ask(f"app-{writer}", {"n": n}, fresh=True))
    except RunBusy:  # its commit came through, but nobody heard of it
        run = runs.of(f"app-{writer}", 1)[0]
        assert run.request == {"n": n}
    runs.finish(run, "finished")


def block(writer: int, n: int) -> Evidence:
    sample = evidence()[0]
    return Evidence("a", 1, f"router-{writer}", n + 1, sample.arm, sample.block)


def turn(n: int) -> Turn:
    return Turn(f"q{n}", "t", at_s=1000.0 + n)


CASES: dict[str, StoreCase] = {
    "items": StoreCase(
        lambda db, w, n: SqlItemStore(db).upsert("a", [Item(name_of(w, n), {"x": 1}), Item("shared", {"by": w})]),
        lambda db: {item.id for item in SqlItemStore(db).scan("a")} - {"shared"},
    ),
    "feedback": StoreCase(
        lambda db, w, n: SqlFeedbackStore(db).record(FeedbackEvent(name_of(w, n), "t", "a", "1", "select", 1.0)),
        lambda db: [event.event_id for _, event in SqlFeedbackStore(db).events("a", 0, 1000)],
    ),
    "traces": StoreCase(
        lambda db, w, n: SqlFeedbackStore(db).record_traces([Trace(name_of(w, n), "a", "1", 1.0, "q", [])]),
        lambda db: SqlFeedbackStore(db).traces([name_of(w, n) for w in range(WRITERS) for n in range(ROUNDS)]).keys(),
    ),
    "taught words": StoreCase(
        lambda db, w, n: SqlExpansions(db).learn("a", name_of(w, n), {"lc": "lake"}),
        lambda db: SqlExpansions(db).all("a").keys(),
    ),
    "people": StoreCase(
        lambda db, w, n: SqlPeople(db).add_forgotten("a", name_of(w, n)), lambda db: SqlPeople(db).forgotten("a")
    ),
    "keys": StoreCase(
        lambda db, w, n: ApiKeys(db).create(name_of(w, n), ["query"]),
        lambda db: [key.name for key in ApiKeys(db).entries()],
        once=False,
    ),
    "sessions": StoreCase(
        lambda db, w, n: SqlSessionStore(db).append("a", f"s{w}", "u", turn(n)),
        lambda db: [
            f"{w}-{found.query[1:]}"
            for w in range(WRITERS)
            for found in SqlSessionStore(db).turns("a", f"s{w}", "u", 99, 0)
        ],
        once=False,
    ),
    "training runs": StoreCase(
        a_run,
        lambda db: [f"{w}-{run.request['n']}" for w in range(WRITERS) for run in Runs(db).of(f"app-{w}")],
        once=False,
    ),
    "commands": StoreCase(
        lambda db, w, n: SqlJournal(db).submit(Command("a", "pause", name_of(w, n), "why", 1.0)),
        lambda db: [command.who for command in SqlJournal(db).commands()],
        once=False,
    ),
    "evidence": StoreCase(
        lambda db, w, n: SqlEvidence(db).add([block(w, n)]),
        lambda db: [f"{each.router[7:]}-{each.seq - 1}" for each in SqlEvidence(db).after("a", 1, {}, 1000)],
    ),
    "routers": StoreCase(
        lambda db, w, n: SqlBoard(db).report_router(RouterReport(name_of(w, n), "a", 1, 1, "", 1.0)),
        lambda db: [report.router for report in SqlBoard(db).routers("a", 0.0)],
    ),
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'p.db'}"
    return str(request.getfixturevalue("postgres_url"))


def patiently(write: Callable[[], object], until: float) -> None:
    """As our own callers do: what says that the database is away is tried again."""
    while True:
        try:
            write()
        except (StoreUnavailable, RegistryUnavailable):
            assert time.monotonic() < until, "the database did not come back"
            time.sleep(0.05)
        else:
            return


def write_all(url: str, progress: threading.Semaphore) -> list[BaseException]:
    """All cases, WRITERS of each, ROUNDS each, every writer with connections of its own. Returns what they raised."""
    raised: list[BaseException] = []

    def writer(case: StoreCase, number: int) -> None:
        database = open_database(url, lock_timeout_s=60)
        try:
            for n in range(ROUNDS):
                patiently(lambda n=n: case.write(database, number, n), time.monotonic() + 120)  # type: ignore[misc]
                progress.release()
        except BaseException as error:  # noqa: BLE001 - of a thread; the test fails with it
            raised.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=writer, args=(case, n)) for case in CASES.values() for n in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def check_all(url: str, exactly: bool) -> None:
    expected = {name_of(w, n) for w in range(WRITERS) for n in range(ROUNDS)}
    database = open_database(url)
    for name, case in CASES.items():
        found = list(case.read(database))
        assert set(found) == expected, name
        if exactly or case.once:
            assert len(found) == len(expected), name
    database.close()


def test_many_writers_of_every_store(url: str) -> None:
    migrate(url)
    assert write_all(url, threading.Semaphore(0)) == []
    check_all(url, exactly=True)


def test_a_restart_under_load_loses_nothing(postgres: PostgresServer, postgres_url: str) -> None:
    migrate(postgres_url)
    progress, raised = threading.Semaphore(0), list[BaseException]()
    load = threading.Thread(target=lambda: raised.extend(write_all(postgres_url, progress)))
    load.start()
    for _ in range(2 * len(CASES)):  # under way, and far from done
        assert progress.acquire(timeout=120)
    postgres.stop()
    time.sleep(0.3)
    postgres.start()
    load.join()
    assert raised == []
    check_all(postgres_url, exactly=False)


def test_the_schema_goes_down_step_by_step_and_up_again(url: str) -> None:
    migrate(url)
    newest, head = schema_versions(url)
    assert newest == head
    for version in range(int(head) - 1, 0, -1):
        migrate_down(url, f"{version:04}")
        assert schema_versions(url)[0] == f"{version:04}"
    migrate_down(url, "base")
    database = open_database(url)
    with database.reading() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    with pytest.raises(DatabaseRefused):
        migrate_down(url, "9999")
    migrate(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_one_version_down_keeps_what_older_ones_hold(url: str) -> None:
    migrate(url)
    database = open_database(url)
    SqlItemStore(database).upsert("a", [Item("kept", {"x": 1})])
    migrate_down(url, "0001")
    migrate(url)
    assert [item.id for item in SqlItemStore(database).scan("a")] == ["kept"]
    database.close()
