"""Feedback that was acknowledged is stored exactly once, whatever dies or goes away in between."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.database import migrate, open_database
from serving.errors import BadRequest, StoreUnavailable
from serving.fakes import MemoryFeedbackStore
from serving.feedback import FeedbackRecorder
from serving.schema import FeedbackEvent
from serving.spool import SpoolFile
from serving.store import SqlFeedbackStore
from tests.waiting import wait_for

HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""

RECORD = """
import resource, sys
from pathlib import Path
from registry.database import open_database
from serving.errors import StoreUnavailable
from serving.feedback import FeedbackRecorder
from serving.schema import FeedbackEvent
from serving.store import SqlFeedbackStore

database, spool, count, most_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = SqlFeedbackStore(open_database(f"sqlite:///{database}", lock_timeout_s=0.05))
recorder = FeedbackRecorder(store, spool, bound_s=30, retry_s=0.05)
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
for n in range(count):
    try:
        event = FeedbackEvent(f"child-{n}", "t", "a", "1", "select", 1.0, raw="x" * 100)
        print("recorded", recorder.record(event).stored, n, flush=True)
    except StoreUnavailable:
        print("recorded refused", n, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("done", flush=True)
sys.stdin.read()
"""


def event(event_id: str, **changes: object) -> FeedbackEvent:
    return FeedbackEvent(event_id, "t", "a", "1", "select", 1.0, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A migrated SQLite database."""
    migrate(f"sqlite:///{tmp_path / 'p.db'}")
    return tmp_path / "p.db"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the only write lock of the database."""
    with process(HOLD_LOCK, path) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield


def recorded_by(child: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """(event id, where it was stored) of all it printed until it was done."""
    assert child.stdout
    lines = []
    while (line := child.stdout.readline().split()) != ["done"]:
        assert line, "the child died"
        if line[0] == "recorded":  # else it is a log line
            lines.append((f"child-{line[2]}", line[1]))
    return lines


@contextmanager
def recorder_on(path: Path, spool: Path, **options: object) -> Iterator[tuple[FeedbackRecorder, SqlFeedbackStore]]:
    database = open_database(f"sqlite:///{path}", lock_timeout_s=0.05)
    store = SqlFeedbackStore(database)
    recorder = FeedbackRecorder(store, spool, retry_s=0.05, **{"bound_s": 30.0, **options})  # type: ignore[arg-type]
    try:
        yield recorder, store
    finally:
        recorder.close()
        database.close()


def ids(store: SqlFeedbackStore | MemoryFeedbackStore) -> list[str]:
    return [e.event_id for _, e in store.events("a", 0, 10_000)]


def test_with_the_database_there_nothing_is_spooled(path: Path, spool: Path) -> None:
    with recorder_on(path, spool) as (recorder, store):
        assert recorder.record(event("e")) == ("e", "database")
        assert recorder.record(event("e")) == ("e", "duplicate")
        assert ids(store) == ["e"]
        assert list(spool.iterdir()) == []
        assert (recorder.counters.stored, recorder.counters.duplicate) == (1, 1)
        with pytest.raises(BadRequest):
            recorder.record(event("a\nb"))


def test_killed_after_the_acknowledgement_with_the_database_away(path: Path, spool: Path) -> None:
    with locked(path), process(RECORD, path, spool, 5, 0) as child:
        recorded = recorded_by(child)
        assert recorded == [(f"child-{n}", "spool") for n in range(5)]
        child.kill()
        child.wait()
    with recorder_on(path, spool) as (recorder, store):
        wait_for(lambda: not list(spool.iterdir()))
        assert ids(store) == [f"child-{n}" for n in range(5)]
        assert recorder.counters.replayed == 5
        assert recorder.record(event("child-3")).stored == "duplicate"


def test_killed_half_way_through_a_replay(path: Path, spool: Path) -> None:
    """Its file is there still, though part of it is stored: replaying it all again stores nothing twice."""
    with locked(path), process(RECORD, path, spool, 3, 0) as child:
        recorded_by(child)
    database = open_database(f"sqlite:///{path}")
    SqlFeedbackStore(database).record(event("child-1"))
    database.close()
    with recorder_on(path, spool) as (recorder, store):
        wait_for(lambda: not list(spool.iterdir()))
        assert ids(store) == ["child-1", "child-0", "child-2"]
        assert recorder.counters.replayed == 2


def test_the_database_comes_back_to_the_same_process(path: Path, spool: Path) -> None:
    with recorder_on(path, spool) as (recorder, store):
        with locked(path):
            assert [recorder.record(event(f"e{n}")).stored for n in range(3)] == ["spool"] * 3
            assert recorder.record(event("e1")).stored == "spool"  # nobody can know yet that it is a duplicate
            assert (recorder.pending, recorder.away, len(list(spool.iterdir()))) == (4, True, 1)
        wait_for(lambda: recorder.pending == 0 and not recorder.away)
        assert ids(store) == ["e0", "e1", "e2"]
        assert (recorder.counters.spooled, recorder.counters.replayed) == (4, 3)
        assert recorder.record(event("e9")).stored == "database"
        assert list(spool.iterdir()) == []


def test_a_living_process_keeps_its_file_and_a_dead_ones_is_adopted(path: Path, spool: Path) -> None:
    with locked(path), process(RECORD, path, spool, 1, 0) as child:
        recorded_by(child)
        (file,) = spool.iterdir()
        assert SpoolFile.adopt(file) is None
        child.kill()
        child.wait()
        adopted = SpoolFile.adopt(file)
        assert adopted is not None
        assert adopted.pending == 1
        assert SpoolFile.adopt(file) is None  # it has one owner again
        adopted.close()


def test_a_running_process_takes_over_from_one_that_dies(path: Path, spool: Path) -> None:
    with recorder_on(path, spool) as (_, store):
        with locked(path), process(RECORD, path, spool, 4, 0) as child:
            recorded_by(child)
        wait_for(lambda: len(ids(store)) == 4)
        wait_for(lambda: not list(spool.iterdir()))


def test_a_torn_last_line_is_skipped(path: Path, spool: Path) -> None:
    with locked(path), process(RECORD, path, spool, 2, 0) as child:
        recorded_by(child)
    (file,) = spool.iterdir()
    with file.open("ab") as stream:
        stream.write(b'{"event_id":"torn","trace_id":"t","ap')
    with recorder_on(path, spool) as (recorder, store):
        wait_for(lambda: not list(spool.iterdir()))
        assert ids(store) == ["child-0", "child-1"]
        assert recorder.counters.damaged == 0


def test_a_damaged_line_is_kept_aside_and_the_others_are_stored(path: Path, spool: Path) -> None:
    with locked(path), process(RECORD, path, spool, 3, 0) as child:
        recorded_by(child)
    (file,) = spool.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"\0" * 20 + b"\n", lines[2]]))
    with recorder_on(path, spool) as (recorder, store):
        wait_for(lambda: not list(spool.glob("*.jsonl")))
        wait_for(lambda: recorder.counters.damaged == 1)
        assert ids(store) == ["child-0", "child-2"]
        assert [kept.name for kept in spool.iterdir()] == [file.with_suffix(".damaged").name]


def test_a_full_disk_refuses_and_keeps_what_it_acknowledged_before_and_after(path: Path, spool: Path) -> None:
    """The disk takes half of a line; once there is room again, the next line must not be glued to that half."""
    with locked(path), process(RECORD, path, spool, 8, 1000) as child:
        recorded = dict(recorded_by(child))
    assert list(recorded.values()).count("refused") == 1
    kept = [event_id for event_id, stored in recorded.items() if stored == "spool"]
    assert kept[0] == "child-0"
    assert kept[-1] == "child-7"
    assert len(list(spool.iterdir())) == 1
    with recorder_on(path, spool) as (recorder, store):
        wait_for(lambda: not list(spool.iterdir()))
        assert ids(store) == kept
        assert recorder.counters.damaged == 0


def test_a_spool_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="spool"):
        FeedbackRecorder(MemoryFeedbackStore(), tmp_path / "file" / "spool")


class Slow(MemoryFeedbackStore):
    """Does not answer until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def record_many(self, events: Sequence[FeedbackEvent]) -> list[bool]:
        self.go.wait()
        return super().record_many(events)


def test_a_store_slower_than_the_bound_does_not_hold_up_the_caller(spool: Path) -> None:
    store, learnt = Slow(), list[str]()
    recorder = FeedbackRecorder(store, spool, lambda e: learnt.append(e.event_id), bound_s=0.05, retry_s=0.05)
    chosen = {"user": "u", "raw": "lc", "selected": "x"}
    assert recorder.record(event("e0", **chosen)).stored == "spool"
    assert recorder.record(event("e1", **chosen)).stored == "spool"
    store.go.set()
    wait_for(lambda: recorder.pending == 0 and not recorder.away)
    assert sorted(ids(store)) == ["e0", "e1"]
    wait_for(lambda: sorted(learnt) == ["e0", "e1"])
    recorder.close()
    assert list(spool.iterdir()) == []


def test_each_new_selection_teaches_once(path: Path, spool: Path) -> None:
    learnt = list[str]()

    def learn(chosen: FeedbackEvent) -> None:
        if chosen.event_id == "unlucky":
            raise StoreUnavailable("away")
        learnt.append(chosen.event_id)

    with recorder_on(path, spool, learn=learn) as (recorder, _):
        chosen = {"user": "u", "raw": "lc", "selected": "x"}
        recorder.record(event("unlucky", **chosen))
        recorder.record(event("yes", **chosen))
        recorder.record(event("yes", **chosen))
        for missing in chosen:
            recorder.record(event(f"no-{missing}", **{**chosen, missing: None}))
        with locked(path):
            assert recorder.record(event("later", **chosen)).stored == "spool"
            assert recorder.record(event("later", **chosen)).stored == "spool"
        wait_for(lambda: recorder.pending == 0)
        recorder.record(event("last", **chosen))
    assert learnt == ["yes", "later", "last"]
    assert recorder.counters.learn_failed == 1


def test_callers_at_once_are_each_told_of_their_own(path: Path, spool: Path) -> None:
    told: dict[str, str] = {}
    with recorder_on(path, spool) as (recorder, store):
        recorder.record(event("e0"))

        def record(event_id: str) -> None:
            told[event_id] = recorder.record(event(event_id)).stored

        threads = [threading.Thread(target=record, args=(f"e{n}",)) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ids(store)) == sorted(told)
    assert told == {"e0": "duplicate", **{f"e{n}": "database" for n in range(1, 40)}}


def test_closing_leaves_the_spool_for_the_next_start(path: Path, spool: Path) -> None:
    with locked(path), recorder_on(path, spool) as (recorder, _):
        recorder.record(event("e"))
        recorder.close()
        assert recorder.record(event("late")).stored == "spool"
    with recorder_on(path, spool) as (_, store):
        wait_for(lambda: ids(store) == ["e"] or sorted(ids(store)) == ["e", "late"])
