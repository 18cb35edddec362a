"""What the controller, the routers and people were told is kept is kept, whoever dies, stalls or goes away."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from registry.database import Database, migrate, open_database
from registry.errors import LeaseLost, RegistryUnavailable
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.rollout.state import AppState
from registry.traffic import ArmReport, Block, Command, Entry, Evidence, RouterReport, Traffic
from tests.fault.rollout_programs import FILL_THE_DISK, STEAL_AND_WRITE, WRITE_UNTIL_KILLED
from tests.postgres import PostgresServer
from tests.waiting import wait_for


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a migrated database."""
    path = f"sqlite:///{tmp_path / 'p.db'}"
    url = path if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    migrate(url)
    return url


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """A migrated SQLite database in a folder of its own."""
    migrate(f"sqlite:///{tmp_path / 'home' / 'p.db'}")
    return tmp_path / "home" / "p.db"


@contextmanager
def opened(url: str, lock_timeout_s: float = 60.0) -> Iterator[Database]:
    database = open_database(url, lock_timeout_s=lock_timeout_s)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def go(*children: subprocess.Popen[str]) -> None:
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[list[object]]:
    """Runs it beside the block; at the end the list holds what it returned or raised."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except (LeaseLost, RegistryUnavailable) as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join()


def evidence(seq: int) -> Evidence:
    return Evidence("a", 1, "r", seq, "canary", Block(1.0, (1.0,), "a"))


def every_call(database: Database) -> list[Callable[[], object]]:
    """Each method of each store that touches the database."""
    board, store, journal = SqlBoard(database), SqlEvidence(database), SqlJournal(database)
    reads: list[Callable[[], object]] = [
        board.traffic,
        lambda: board.release("a", 1),
        lambda: board.routers("a", 0.0),
        lambda: board.arms("a", 1),
        lambda: store.after("a", 1, {}, 10),
        lambda: store.purge(1.0),
        journal.holder,
        journal.states,
        lambda: journal.entries("a"),
        journal.commands,
        lambda: journal.handled(1),
        journal.take_nudges,
    ]
    return [*reads, *every_write(database)]


def every_write(database: Database) -> list[Callable[[], object]]:
    board, store, journal = SqlBoard(database), SqlEvidence(database), SqlJournal(database)
    return [
        lambda: board.report_router(RouterReport("r", "a", 1, 1, "", 1.0)),
        lambda: board.report_arm(ArmReport("a", 1, "canary", "ready")),
        lambda: store.add([evidence(1)]),
        lambda: journal.take_lease("me", 600),
        lambda: journal.release_lease("me"),
        lambda: journal.record("me", AppState("a"), Traffic("a", 1, 1), [Entry("a", 1, 1.0, "note", "me", "")]),
        lambda: journal.submit(Command("a", "pause", "me", "", 1.0)),
        lambda: journal.nudge("a", "d", 1.0),
        lambda: journal.purge(1.0),
    ]


# --- processes that die


def test_killed_while_it_writes(url: str) -> None:
    """Everything it was told is kept is there; what it was at when it died is there whole or not at all."""
    with process(WRITE_UNTIL_KILLED, url) as child:
        assert child.stdout
        for _ in range(40):
            told = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        told = int(rest[-1]) if rest and rest[-1].isdecimal() else told
        assert child.wait() == -signal.SIGKILL
    with opened(url) as database:
        board, journal = SqlBoard(database), SqlJournal(database)
        recorded = journal.states()["a"].generation
        assert recorded in (told, told + 1)
        assert board.traffic()["a"].generation == recorded
        entries = journal.entries("a", limit=100_000)
        assert [(e.rollout, e.why) for e in entries] == [
            (n, f"entry {k}") for n in range(1, recorded + 1) for k in range(3)
        ]
        assert [board.release("a", n).release.items_seq for n in range(1, recorded + 1)] == [*range(1, recorded + 1)]
        blocks = SqlEvidence(database).after("a", 1, {}, 1_000_000)
        assert [b.seq for b in blocks] == [*range(1, len(blocks) + 1)]
        assert len(blocks) in (3 * recorded, 3 * recorded + 3)
        assert all(b.block == Block(b.block.at_s, (1.0,) * 50, "a" * 50, b.block.tokens) for b in blocks)
        open_commands = [c.why for c in journal.commands()]
        assert open_commands in ([], [f"number {recorded + 1}"])
        # The dead one's lease still runs: nobody takes it before its time, then anybody may
        assert journal.take_lease("me", 600) is False
        journal.release_lease("child")
        assert journal.take_lease("me", 600) is True


def test_two_controllers_that_stall_never_overwrite_each_other(url: str) -> None:
    """Each takes the lease, reads, sometimes stalls for longer than the lease, and records what follows from what it
    read: without fencing, a number would come twice. A reader beside them never sees an entry come in late."""
    with (
        process(STEAL_AND_WRITE, url, "w1", 20) as one,
        process(STEAL_AND_WRITE, url, "w2", 20) as two,
        opened(url) as database,
    ):
        journal = SqlJournal(database)
        go(one, two)
        seen: list[Entry] = []
        while one.poll() is None or two.poll() is None:
            now = journal.entries("a")
            assert now[: len(seen)] == seen
            seen = now
        told = [[int(n) for n in child.communicate()[0].split()] for child in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0]
        entries = journal.entries("a")
        written = sum(count for count, _ in told)
        assert [e.version for e in entries] == [*range(1, written + 1)]
        assert journal.states()["a"].generation == written
        assert SqlBoard(database).traffic()["a"].generation == written
        assert all(refused > 0 for _, refused in told), "nobody ever stalled: the test showed nothing"


def test_the_lease_is_not_taken_from_under_a_record(postgres_url: str) -> None:
    """PostgreSQL has many writers: a record that passed the check of its lease, and then waits for so long that the
    lease runs out, is committed before another controller can take over and read states."""
    migrate(postgres_url)
    with (
        opened(postgres_url) as database,
        opened(postgres_url, lock_timeout_s=0.2) as impatient,
        psycopg.connect(postgres_url) as blocker,
    ):
        first, second = SqlJournal(database), SqlJournal(impatient)
        blocker.execute("LOCK TABLE journal IN EXCLUSIVE MODE")
        assert first.take_lease("first", 1.0)
        entry = Entry("a", 1, 1.0, "note", "first", "")
        with in_thread(lambda: first.record("first", AppState("a", 1), Traffic("a", 1, 1), [entry])) as outcome:
            wait_for(lambda: waiting_for_locks(database) == 1)
            wait_for(lambda: second.holder() is None)
            with pytest.raises(RegistryUnavailable):
                second.take_lease("second", 600)
            assert second.states() == {}
            blocker.rollback()
        assert outcome == [None]
        assert second.take_lease("second", 600) is True
        assert second.states() == {"a": AppState("a", 1)}


def waiting_for_locks(database: Database) -> int:
    with database.reading() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return int(connection.scalar(text(query)) or 0)


def test_a_clock_set_back_does_not_keep_a_dead_holders_lease(url: str) -> None:
    with opened(url) as database:
        journal = SqlJournal(database)
        assert journal.take_lease("dead", 0.05)
        with database.writing() as connection:
            # What the row looks like after the database's clock was set back by an hour
            connection.execute(text("UPDATE leases SET expires_s = expires_s + 3600"))
        assert journal.take_lease("me", 600) is False
        wait_for(lambda: journal.take_lease("me", 600))
        assert journal.holder() == "me"


# --- databases that go away


def test_with_the_file_away_every_call_says_so(sqlite_file: Path) -> None:
    with opened(f"sqlite:///{sqlite_file}") as database:
        shutil.rmtree(sqlite_file.parent)
        for call in every_call(database):
            with pytest.raises(RegistryUnavailable):
                call()


def test_a_file_that_can_only_be_read_refuses_every_write_and_serves_reads(sqlite_file: Path) -> None:
    with opened(f"sqlite:///{sqlite_file}") as database:
        journal = SqlJournal(database)
        assert journal.take_lease("me", 600)
        journal.record("me", AppState("a", 1), Traffic("a", 1, 1), [])
        with opened(f"sqlite:///file:{sqlite_file}?mode=ro&uri=true") as read_only:
            for call in every_write(read_only):
                with pytest.raises(RegistryUnavailable):
                    call()
            assert SqlBoard(read_only).traffic() == {"a": Traffic("a", 1, 1)}
            assert SqlJournal(read_only).holder() == "me"
            assert SqlJournal(read_only).take_nudges() == set()


def test_while_another_process_holds_the_write_lock_traffic_is_still_read(sqlite_file: Path) -> None:
    with opened(f"sqlite:///{sqlite_file}") as database:
        journal = SqlJournal(database)
        assert journal.take_lease("me", 600)
        journal.record("me", AppState("a", 1), Traffic("a", 1, 1), [])
        journal.nudge("a", "d1", 1.0)
    other = sqlite3.connect(sqlite_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with opened(f"sqlite:///{sqlite_file}", lock_timeout_s=0.02) as database:
        board, journal = SqlBoard(database), SqlJournal(database)
        assert board.traffic() == {"a": Traffic("a", 1, 1)}
        assert journal.nudge("a", "d1", 1.0) is False, "a repeat needs no lock"
        with pytest.raises(RegistryUnavailable):
            journal.record("me", AppState("a", 2), Traffic("a", 2, 1), [])
        other.close()
        assert journal.states() == {"a": AppState("a", 1)}
        journal.record("me", AppState("a", 2), Traffic("a", 2, 1), [])
        assert board.traffic()["a"].generation == 2


def test_a_full_disk_leaves_the_last_whole_record(sqlite_file: Path) -> None:
    url = f"sqlite:///{sqlite_file}"
    with process(FILL_THE_DISK, url) as child:
        out = child.communicate()[0].split()
        assert child.returncode == 0
    n = int(out[2])
    assert out == ["full", "at", str(n), "went", "on", str(n)]
    assert n > 1
    with opened(url) as database:
        assert [e.rollout for e in SqlJournal(database).entries("a", limit=100_000)] == [
            k for k in range(1, n + 1) for _ in range(3)
        ]


def test_postgresql_stops_and_comes_back(postgres: PostgresServer, postgres_url: str) -> None:
    migrate(postgres_url)
    with opened(postgres_url) as database:
        board, journal = SqlBoard(database), SqlJournal(database)
        assert journal.take_lease("me", 600)
        journal.record("me", AppState("a", 1), Traffic("a", 1, 1), [Entry("a", 1, 1.0, "note", "me", "")])
        postgres.stop()
        try:
            for call in every_call(database):
                with pytest.raises(RegistryUnavailable):
                    call()
        finally:
            postgres.start()
        assert journal.holder() == "me"
        assert board.traffic() == {"a": Traffic("a", 1, 1)}
        journal.record("me", AppState("a", 2), None, [Entry("a", 1, 2.0, "note", "me", "")])
        assert [e.at_s for e in journal.entries("a")] == [1.0, 2.0]


# --- storms


def test_a_storm_of_webhooks_is_one_nudge(url: str) -> None:
    """Four receivers, each delivery sent by two of them, while the controller takes what is there."""
    with opened(url) as database:
        journal = SqlJournal(database)
        old_s = time.time() - 2 * 86_400
        new: list[bool] = []
        taken: list[set[str]] = []

        def receive(first: int) -> None:
            new.extend([journal.nudge(f"app{n % 2}", f"d{n}", old_s) for n in range(first, first + 200)])

        receivers = [threading.Thread(target=receive, args=(n,)) for n in (0, 0, 200, 200)]
        for thread in receivers:
            thread.start()
        while any(thread.is_alive() for thread in receivers):
            taken.append(journal.take_nudges())
        taken.append(journal.take_nudges())
        assert (len(new), sum(new)) == (800, 400)
        assert set().union(*taken) == {"app0", "app1"}
        assert journal.take_nudges() == set()
        journal.purge(86_400.0)
        with database.reading() as connection:
            assert connection.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 0


def test_much_evidence_is_purged_in_small_transactions_while_routers_write(url: str) -> None:
    with opened(url) as database:
        store = SqlEvidence(database)
        old = [evidence(n) for n in range(1, 12_001)]
        store.add(old)
        store.add([replace(e, router="r2") for e in old[:10]])
        live = [replace(evidence(n), rollout=2, block=Block(time.time(), (1.0,), "a")) for n in range(1, 51)]
        with in_thread(lambda: store.purge(86_400.0)) as outcome:
            for e in live:
                store.add([e])
        assert outcome == [12_010]
        assert store.after("a", 1, {}, 10) == []
        assert store.after("a", 2, {}, 100) == live
