"""What every TrafficBoard, EvidenceStore and Journal does: over SQLite, over PostgreSQL, and their stand-ins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from registry.errors import BadInput
from registry.ports import Journal
from registry.rollout.state import AppState
from registry.traffic import ArmReport, RouterReport, Traffic
from tests.rollout_stores import (
    DAY_S,
    FULL_STATE,
    FULL_TRAFFIC,
    Stores,
    entry,
    evidence,
    release,
)


def test_what_was_recorded_reads_back_as_it_was(stores: Stores, journal: Journal) -> None:
    assert journal.states() == {}
    assert stores.board.traffic() == {}
    accepted = release(aliases=frozenset({"canary"}))
    entries = [entry("started", version=7, details={"plan": {"steps": [1, 2.5]}, "왜": None}), entry("step")]
    journal.record("me", FULL_STATE, FULL_TRAFFIC, entries, [accepted])
    journal.record("me", AppState("plain"), None, [])
    assert stores.other.states() == {"shop": FULL_STATE, "plain": AppState("plain")}
    assert stores.board.traffic() == {"shop": FULL_TRAFFIC}
    assert stores.board.release("shop", 7) == replace(accepted, aliases=frozenset())
    kept = stores.other.entries("shop")
    assert [replace(e, id=0) for e in kept] == entries
    assert 0 < kept[0].id < kept[1].id


def test_traffic_stays_until_there_is_a_new_one(stores: Stores, journal: Journal) -> None:
    journal.record("me", FULL_STATE, FULL_TRAFFIC, [])
    before = stores.board.traffic()
    journal.record("me", replace(FULL_STATE, generation=10), None, [])
    assert stores.board.traffic() == before == {"shop": FULL_TRAFFIC}
    changed = replace(FULL_TRAFFIC, generation=10, canary_percent=25.0)
    journal.record("me", FULL_STATE, changed, [])
    journal.record("me", AppState("bar"), Traffic("bar", 1, 1), [])
    assert stores.board.traffic() == {"shop": changed, "bar": Traffic("bar", 1, 1)}
    assert before == {"shop": FULL_TRAFFIC}, "what was read does not change under its reader"


def test_a_report_replaces_the_last_one_of_its_router(stores: Stores) -> None:
    board = stores.board
    old, other = RouterReport("r1", "shop", 1, None, "loading", 10.0), RouterReport("r2", "shop", 2, 6, "", 20.0, 7)
    new = replace(old, generation=2, stable=6, problem="", at_s=30.0)
    for report in (old, other, replace(other, app="bar"), new):
        board.report_router(report)
    assert board.routers("shop", 0.0) == [new, other]
    assert board.routers("shop", 20.0) == [new, other]
    assert board.routers("shop", 20.5) == [new]
    assert board.routers("none", 0.0) == []


def test_a_report_replaces_the_last_one_of_its_arm(stores: Stores) -> None:
    board = stores.board
    canary, control = ArmReport("shop", 3, "canary", "deploying"), ArmReport("shop", 3, "control", "ready", "", 2.0)
    crashed = ArmReport("shop", 3, "canary", "failed", "out of memory", 4.0)
    for report in (control, canary, replace(canary, rollout=2), crashed):
        board.report_arm(report)
    assert board.arms("shop", 3) == [crashed, control]
    assert board.arms("shop", 2) == [replace(canary, rollout=2)]
    assert board.arms("bar", 3) == []


def test_a_report_is_taken_whatever_its_text_holds(stores: Stores) -> None:
    """A reason comes from an exception: it is cut to what can be kept, and its secrets go."""
    text = "cannot reach postgresql://palate:hunter2@db/x\0\ud800" + "x" * 5000
    stores.board.report_arm(ArmReport("shop", 3, "canary", "failed", text, 1.0))
    stores.board.report_router(RouterReport("r1", "shop", 1, None, text, 1.0))
    for kept in (stores.board.arms("shop", 3)[0].reason, stores.board.routers("shop", 0.0)[0].problem):
        assert kept.startswith("cannot reach postgresql://palate:***@db/x?x")
        assert len(kept) == 2000
        assert kept.endswith("…")


# --- evidence


def test_evidence_is_read_on_from_a_cursor(stores: Stores) -> None:
    store = stores.evidence
    blocks = {(r, n): evidence(n, r) for r in ("r1", "R2", "r3") for n in range(1, 6)}
    store.add([blocks["r1", 1], blocks["R2", 1], blocks["r1", 2]])
    store.add([blocks[r, n] for n in range(1, 6) for r in ("r3", "r1", "R2")])
    store.add([])
    store.add([evidence(1, rollout_id=4), replace(evidence(1), app="bar")])
    for limit in (1, 2, 4, 100):
        cursor: dict[str, int] = {}
        read = []
        while found := store.after("shop", 3, cursor, limit):
            assert len(found) <= limit
            for e in found:
                assert e.seq == cursor.get(e.router, 0) + 1
                cursor[e.router] = e.seq
            read += found
        assert {(e.router, e.seq): e for e in read} == blocks
        assert len(read) == len(blocks)
    assert store.after("shop", 3, {"r1": 4, "R2": 5, "r3": 9}, 10) == [blocks["r1", 5]]
    assert store.after("shop", 4, {"r2": 1}, 10) == [evidence(1, rollout_id=4)]
    assert store.after("shop", 5, {}, 10) == []


def test_the_limit_holds_back_nothing_but_the_rest(stores: Stores) -> None:
    stores.evidence.add([evidence(n, r) for r in ("a", "b") for n in (1, 2, 3)])
    assert len(stores.evidence.after("shop", 3, {}, 5)) == 5
    assert len(stores.evidence.after("shop", 3, {"a": 3}, 5)) == 3
    with pytest.raises(BadInput, match="limit"):
        stores.evidence.after("shop", 3, {}, 0)


def test_a_block_written_twice_counts_once_and_stays_as_it_was(stores: Stores) -> None:
    stores.evidence.add([evidence(1)])
    stores.evidence.add([evidence(1, outcomes="ee"), evidence(2), evidence(2, outcomes="ee")])
    assert stores.evidence.after("shop", 3, {}, 10) == [evidence(1), evidence(2)]


def test_a_block_keeps_what_it_says(stores: Stores) -> None:
    whole = evidence(1, latencies_ms=(0.125, 1234.5678, 3.0), outcomes="ato", tokens="0" * 24, agreed="10?")
    bare = evidence(2, latencies_ms=(), outcomes="", tokens="")
    stores.evidence.add([whole, bare])
    kept, empty = stores.evidence.after("shop", 3, {}, 10)
    assert kept == replace(whole, block=replace(whole.block, latencies_ms=(0.12, 1234.57, 3.0)))
    assert empty == bare


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("outcomes", {"outcomes": "a"}),
        ("tokens", {"tokens": "0123"}),
        ("agreed", {"agreed": "1"}),
        ("latencies_ms", {"latencies_ms": (1.0, math.nan)}),
        ("latencies_ms", {"latencies_ms": (1.0, -0.5)}),
    ],
)
def test_a_block_that_does_not_add_up_stores_nothing_of_its_batch(stores: Stores, field: str, changes: object) -> None:
    with pytest.raises(BadInput) as refused:
        stores.evidence.add([evidence(1), evidence(2, **changes)])  # type: ignore[arg-type]
    assert refused.value.field == field
    assert stores.evidence.after("shop", 3, {}, 10) == []


def test_only_old_evidence_of_ended_rollouts_is_purged(stores: Stores, journal: Journal) -> None:
    old_s, now_s = stores.now_s() - 8 * DAY_S, stores.now_s()
    journal.record("me", FULL_STATE, None, [])  # rollout 3 is on its way
    stores.evidence.add([evidence(n, r, rollout_id=k, at_s=old_s) for n in (1, 2) for r in "ab" for k in (1, 2, 3)])
    stores.evidence.add([evidence(3, "b", rollout_id=2, at_s=now_s)])
    stores.evidence.add([replace(evidence(1, at_s=old_s), app="bar")])
    assert stores.evidence.purge(7 * DAY_S) == 5
    assert [len(stores.evidence.after("shop", k, {}, 10)) for k in (1, 2, 3)] == [0, 5, 4]
    assert stores.evidence.after("bar", 3, {}, 10) == []
    assert stores.evidence.purge(7 * DAY_S) == 0
    journal.record("me", replace(FULL_STATE, rollout=None), None, [])
    assert stores.evidence.purge(7 * DAY_S) == 4


# --- the lease
