"""The lease of an app's training runs, on both databases: with real processes, killed and paused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.database import Database, migrate, open_database
from registry.errors import LeaseLost
from tests.platform import ROOT
from tests.waiting import wait_for
from training.errors import RunFenced
from training.runs import Ask, Run, RunBusy, Runs

LEASE_S = 1.5
REQUEST = {"trainings": ["taste"], "spec": "digest"}

HOLD = """
import os, signal, sys, time
from registry.database import open_database
from training.errors import RunFenced
from training.runs import Ask, Runs

runs = Runs(open_database(sys.argv[1]), lease_s=float(sys.argv[2]))
run = runs.begin(Ask("teas", {"trainings": ["taste"], "spec": "digest"}, "a process", "test"))
runs.note(run, feedback_seq=7)
pauses = []
signal.signal(signal.SIGUSR1, lambda *_: pauses.append(1))
print(run.id, flush=True)
while True:
    if pauses:
        pauses.clear()
        os.kill(os.getpid(), signal.SIGSTOP)  # between two transactions: in one, it would hold SQLite's lock
    try:
        runs.renew(run)
    except RunFenced:
        print("fenced", flush=True)
        break
    time.sleep(0.1)
try:
    with runs.holding(run):
        print("published", flush=True)
except RunFenced:
    print("published nothing", flush=True)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'palate.db'}"
    else:
        made = str(request.getfixturevalue("postgres_url"))
    migrate(made)
    return made


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def holder_process(url: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds a run and renews its lease; the run's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, str(LEASE_S)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def begin(runs: Runs, **changes: object) -> Run:
    return runs.begin(Ask("teas", REQUEST, "by hand", "me", **changes))  # type: ignore[arg-type]


def begun(runs: Runs) -> Run | None:
    try:
        return begin(runs)
    except RunBusy:
        return None


def test_a_second_run_is_refused_with_who_runs_what(url: str) -> None:
    with opened(url) as database, holder_process(url) as (process, run_id):
        runs = Runs(database, LEASE_S)
        with pytest.raises(
            RunBusy, match=rf"run {run_id} of teas.*started by test, a process.*:{process.pid}:.*--wait"
        ):
            begin(runs)
        assert [run.shown_status for run in runs.of("teas")] == ["running"]
        assert runs.begin(Ask("coffee", REQUEST)).id != run_id, "another app has a lease of its own"


def test_a_killed_run_is_resumed_once_its_lease_ran_out(url: str) -> None:
    with opened(url) as database, holder_process(url) as (process, run_id):
        runs = Runs(database, LEASE_S)
        process.kill()
        resumed: list[Run] = []
        wait_for(lambda: bool(resumed.extend([run] if (run := begun(runs)) else []) or resumed))
        run = resumed[0]
        assert (run.id, run.attempts, run.feedback_seq, run.why) == (run_id, 2, 7, "a process")
        runs.finish(run, "published", version=3, outcome={"why": "better"})
        kept = runs.get(run_id)
        assert kept is not None
        assert (kept.status, kept.version, kept.outcome, kept.live) == ("published", 3, {"why": "better"}, False)
        assert begin(runs).id != run_id, "the next one is new"


def test_a_paused_run_that_was_taken_over_publishes_nothing(url: str) -> None:
    with opened(url) as database, holder_process(url) as (process, run_id):
        runs = Runs(database, LEASE_S)
        os.kill(process.pid, signal.SIGUSR1)
        wait_for(lambda: not runs.of("teas")[0].live)
        assert runs.of("teas")[0].shown_status == "interrupted"
        mine = begin(runs)
        assert mine.id == run_id
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["fenced", "published nothing"]
        with runs.holding(mine):
            pass


def test_a_lease_that_ran_out_is_still_ours_while_nobody_wants_it(url: str) -> None:
    with opened(url) as database:
        runs = Runs(database, 0.05)
        run = begin(runs)
        wait_for(lambda: not runs.of("teas")[0].live)
        runs.renew(run)
        patient = Runs(database, 600)
        patient.renew(run)
        with pytest.raises(RunBusy):
            begin(runs)


def test_another_request_abandons_what_was_killed(url: str) -> None:
    with opened(url) as database:
        runs = Runs(database, 0.05)
        killed = begin(runs)
        wait_for(lambda: not runs.of("teas")[0].live)
        other = runs.begin(Ask("teas", {**REQUEST, "spec": "another"}))
        assert other.id != killed.id
        before = runs.get(killed.id)
        assert before is not None
        assert before.status == "abandoned"
        for write in (lambda: runs.renew(killed), lambda: runs.finish(killed, "published"), lambda: runs.note(killed)):
            with pytest.raises(RunFenced):
                write()


def test_a_failed_run_goes_on_unless_it_is_to_be_fresh(url: str) -> None:
    with opened(url) as database:
        runs = Runs(database, 600)
        first = begin(runs)
        runs.finish(first, "failed", error="the disk is full")
        again = begin(runs)
        assert (again.id, again.attempts, again.error, again.ended_s) == (first.id, 2, "", None)
        runs.finish(again, "failed", error="still full")
        fresh = begin(runs, fresh=True)
        assert fresh.id != first.id
        runs.finish(fresh, "gates-failed")
        assert begin(runs).id > fresh.id


def test_what_fails_again_and_again_is_begun_anew(url: str) -> None:
    with opened(url) as database:
        runs = Runs(database, 600)
        ids = []
        for _ in range(11):
            run = begin(runs)
            ids.append(run.id)
            runs.finish(run, "failed", error="always")
        assert len(set(ids[:10])) == 1
        assert ids[10] != ids[0]


def test_only_the_learner_that_holds_the_lease_moves_candidates(url: str) -> None:
    with opened(url) as database:
        runs = Runs(database, 600)
        assert runs.take_learner("one")
        assert not runs.take_learner("two")
        with runs.moving_candidates("teas", "one"):
            pass
        with pytest.raises(LeaseLost), runs.moving_candidates("teas", "two"):
            pass
        runs.release_learner("one")
        assert runs.take_learner("two")


def test_run_and_learner_move_candidates_one_after_the_other(url: str) -> None:
    """Both look at the aliases and then write one: what one looks at cannot change before it has written."""
    with opened(url) as database, opened(url) as other_database:
        runs, others = Runs(database, 600), Runs(other_database, 600)
        run = begin(runs)
        assert others.take_learner("learner")
        with runs.holding(run):
            impatient = open_database(url, lock_timeout_s=0.2)
            with (
                pytest.raises(Exception, match="cannot be used now"),
                Runs(impatient).moving_candidates("teas", "learner"),
            ):
                pass
            impatient.close()
        with others.moving_candidates("teas", "learner"):
            pass
