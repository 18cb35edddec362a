"""Stores of rollouts, in memory, on SQLite and on PostgreSQL, and values to put in them: for the contract tests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.analysis import GuardResult, LiveVerdict, ShadowCounts, Verdict
from registry.database import migrate, open_database
from registry.fakes import MemoryBoard, MemoryEvidence, MemoryJournal, MemoryTables
from registry.journal import SqlBoard, SqlEvidence, SqlJournal
from registry.plan import RolloutPlan
from registry.ports import EvidenceStore, Journal, TrafficBoard
from registry.rollout.state import AliasWrite, AppState, Rollout, TagWrite
from registry.schema import ComponentRef, Release, ReleaseVersion
from registry.traffic import Block, Command, Entry, Evidence, Traffic

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@dataclass
class Stores:
    """Over the same data: `other` is what another process would have."""

    board: TrafficBoard
    evidence: EvidenceStore
    journal: Journal
    other: Journal
    now_s: Callable[[], float]
    wait: Callable[[float], None]


def memory_stores() -> Stores:
    now_s = [1_000_000_000.0]
    tables = MemoryTables(clock=lambda: now_s[0])

    def wait(seconds: float) -> None:
        now_s[0] += seconds

    return Stores(
        MemoryBoard(tables),
        MemoryEvidence(tables),
        MemoryJournal(tables),
        MemoryJournal(tables),
        lambda: now_s[0],
        wait,
    )


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    if request.param == "memory":
        yield memory_stores()
        return
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database, other = open_database(url), open_database(url)
    yield Stores(
        SqlBoard(database), SqlEvidence(database), SqlJournal(database), SqlJournal(other), time.time, time.sleep
    )
    database.close()
    other.close()


@pytest.fixture
def journal(stores: Stores) -> Journal:
    """Its lease is held by "me"."""
    assert stores.journal.take_lease("me", 600)
    return stores.journal


def rollout(rollout_id: int = 3) -> Rollout:
    return Rollout(
        rollout_id,
        7,
        6,
        "step",
        RolloutPlan(steps_percent=(0.01, 12.5)),
        1.5,
        2.5,
        "김",
        "더 낫다",
        step=1,
        paused=True,
    )


FULL_STATE = AppState(
    "shop",
    generation=9,
    stable=6,
    previous=5,
    rollout=rollout(),
    rollouts=3,
    seen_stable=6,
    seen_canary=7,
    quarantined={4: "error rate 0.2\nof 0.1", 5: "느림"},
    alias_writes=(AliasWrite("canary", None, (7, None)), AliasWrite("stable", 7, (6,))),
    tag_writes=(TagWrite(4, {"palate.rollback": "error rate"}),),
)
FULL_TRAFFIC = Traffic("shop", 9, 6, 7, 6, 12.5, 12.5, 1.0, (5, 4), 3, 2, 0.25)


def release(version: int = 7, app: str = "shop", **changes: object) -> ReleaseVersion:
    index = ComponentRef("index.dense", "index", "a" * 64, 12, "f1", {"retrieve.dense": "b" * 64})
    spec = {"name": app, "rollout": {"steps_percent": [1, 50]}}
    body = Release(app, spec, (index,), 17, "c" * 64, {"recall@10": 0.5}, {"commit": "made-up"})
    values = {"tags": {"note": "하나"}, "created_s": 12.25, **changes}
    return ReleaseVersion(version, body, **values)  # type: ignore[arg-type]


def entry(kind: str = "note", app: str = "shop", **changes: object) -> Entry:
    values = {"rollout": 3, "at_s": 1.5, "who": "controller", "why": "made up", **changes}
    return Entry(app=app, kind=kind, **values)  # type: ignore[arg-type]


def evidence(seq: int, router: str = "r1", rollout_id: int = 3, **changes: object) -> Evidence:
    values = {"at_s": 10.0 + seq, "latencies_ms": (1.0, 2.5), "outcomes": "az", "tokens": "0123456789abcdef"}
    block = Block(**{**values, **changes})  # type: ignore[arg-type]
    return Evidence("shop", rollout_id, router, seq, "canary", block)


def live_verdict(rollout_id: int = 3, at_s: float = 12.5, app: str = "shop") -> LiveVerdict:
    error = GuardResult("error", "Fail", "오류: 30 %", 0.3, 0.2, 0.4, 0.0, 0.0, 0.01, math.inf, 400.0, None, 31)
    reward = GuardResult("reward", "Inconclusive", "reward: no answers yet")
    verdict = Verdict("Fail", error.sentence, (error, reward), 120, 118)
    return LiveVerdict(app, rollout_id, at_s, verdict, ShadowCounts(50, 1, 49, 47))


def command(**changes: object) -> Command:
    values = {"app": "shop", "verb": "pause", "who": "민지", "why": "look\nfirst", "at_s": 1.5, **changes}
    return Command(**values)  # type: ignore[arg-type]


# --- states, traffic, releases
