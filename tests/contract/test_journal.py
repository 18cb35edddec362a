"""What every journal of rollouts keeps: the lease, the record, commands and deliveries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from registry.errors import BadInput, LeaseLost, RegistryUnavailable, ReleaseNotFound
from registry.fakes import MemoryBoard, MemoryEvidence, MemoryJournal, MemoryTables
from registry.ports import Journal
from registry.traffic import ArmReport, RouterReport
from tests.rollout_stores import (
    DAY_S,
    FULL_STATE,
    FULL_TRAFFIC,
    HOUR_S,
    Stores,
    command,
    entry,
    evidence,
    live_verdict,
    release,
)
from tests.waiting import wait_for


def test_a_release_accepted_again_replaces_what_was_known_of_it(stores: Stores, journal: Journal) -> None:
    for tags in ({"note": "하나"}, {"note": "둘"}):
        journal.record("me", FULL_STATE, None, [], [release(7, tags=tags), release(8), release(7, app="bar")])
    assert stores.board.release("shop", 7).tags == {"note": "둘"}
    assert stores.board.release("bar", 7).release.app == "bar"
    for app, version in (("shop", 9), ("none", 7)):
        with pytest.raises(ReleaseNotFound, match=f"{version} of {app}"):
            stores.board.release(app, version)


# --- reports


def test_one_holds_the_lease(stores: Stores) -> None:
    assert stores.journal.holder() is None
    assert stores.journal.take_lease("a", 600) is True
    assert stores.other.take_lease("b", 600) is False
    assert stores.journal.take_lease("a", 600) is True
    assert stores.other.holder() == "a"
    stores.other.release_lease("b")
    assert stores.journal.holder() == "a"
    stores.journal.release_lease("a")
    assert stores.journal.holder() is None
    assert stores.other.take_lease("b", 600) is True
    assert stores.journal.take_lease("a", 600) is False


def test_a_holder_that_was_overtaken_writes_nothing(stores: Stores) -> None:
    """Fencing: what the first decided before it stalled must not overwrite what the second did since."""
    assert stores.journal.take_lease("first", 0.05)
    stores.journal.submit(command())
    stores.wait(0.06)
    wait_for(lambda: stores.other.take_lease("second", 600))
    second = replace(FULL_STATE, generation=10)
    stores.other.record("second", second, FULL_TRAFFIC, [entry("step")])
    stale = replace(FULL_TRAFFIC, canary_percent=0.0)
    with pytest.raises(LeaseLost, match="second"):
        stores.journal.record("first", FULL_STATE, stale, [entry("lost")], [release()], [1])
    assert stores.journal.states() == {"shop": second}
    assert stores.board.traffic() == {"shop": FULL_TRAFFIC}
    assert [e.kind for e in stores.journal.entries("shop")] == ["step"]
    assert [c.verb for c in stores.journal.commands()] == ["pause"]
    with pytest.raises(ReleaseNotFound):
        stores.board.release("shop", 7)


def test_a_lease_that_ran_out_is_none_even_when_nobody_took_it(stores: Stores) -> None:
    assert stores.journal.take_lease("a", 0.01)
    stores.wait(0.02)
    wait_for(lambda: stores.journal.holder() is None)
    with pytest.raises(LeaseLost):
        stores.journal.record("a", FULL_STATE, FULL_TRAFFIC, [entry()])
    assert stores.journal.states() == {}
    assert stores.journal.take_lease("a", 600)
    stores.journal.record("a", FULL_STATE, FULL_TRAFFIC, [entry()])
    assert stores.journal.states() == {"shop": FULL_STATE}


def test_nobody_writes_without_a_lease(stores: Stores) -> None:
    with pytest.raises(LeaseLost):
        stores.journal.record("", FULL_STATE, FULL_TRAFFIC, [entry()])
    assert stores.journal.states() == {}


# --- the journal


def test_entries_come_oldest_first_the_newest_of_them(stores: Stores, journal: Journal) -> None:
    for n in range(6):
        journal.record("me", FULL_STATE, None, [entry(str(n), rollout=n % 2), entry("x", app="bar")])
    assert [e.kind for e in stores.other.entries("shop")] == ["0", "1", "2", "3", "4", "5"]
    assert [e.kind for e in stores.other.entries("shop", limit=2)] == ["4", "5"]
    assert [e.kind for e in stores.other.entries("shop", rollout=1)] == ["1", "3", "5"]
    assert [e.kind for e in stores.other.entries("shop", rollout=0, limit=1)] == ["4"]
    assert stores.other.entries("none") == []
    ids = [e.id for e in stores.other.entries("shop")]
    assert ids == sorted(set(ids))
    with pytest.raises(BadInput, match="limit"):
        journal.entries("shop", limit=0)


def test_an_entry_is_recorded_whatever_its_text_holds(stores: Stores, journal: Journal) -> None:
    odd = entry(who="w" * 300, why="because\0\ud800 " + "x" * 3000, details={"e": math.inf, "t": (1, 2)})
    journal.record("me", FULL_STATE, None, [odd])
    [kept] = stores.other.entries("shop")
    assert (len(kept.who), len(kept.why)) == (200, 2000)
    assert kept.why.startswith("because? xxx")
    assert kept.details == {"e": None, "t": [1, 2]}


def test_details_that_are_not_json_are_refused_and_nothing_is_written(stores: Stores, journal: Journal) -> None:
    with pytest.raises(BadInput, match="details"):
        journal.record("me", FULL_STATE, FULL_TRAFFIC, [entry(), entry(details={"x": object()})])
    assert journal.states() == {}
    assert journal.entries("shop") == []


@pytest.mark.parametrize(
    "secret",
    [
        "postgresql://palate:{}@db:5432/palate",
        "Authorization: Bearer {}",
        "password={}",
        "PALATE_SECRET: '{}'",
        "pk_0011aabb_{}",
    ],
)
def test_no_secret_reaches_the_journal(stores: Stores, journal: Journal, secret: str) -> None:
    word = "0123456789abcdef0123456789abcdef"
    text = f"failed with {secret.format(word)} at once"
    journal.submit(command(why=text))
    details = {"error": text, "list": [text], "webhook_secret": word, "deep": {"api_key": {"value": word}}}
    journal.record("me", FULL_STATE, None, [entry(who=text, why=text, details=details)])
    [kept], [submitted] = stores.other.entries("shop"), stores.other.commands()
    assert word not in f"{kept} {submitted}"
    assert kept.why.startswith("failed with ")
    assert kept.why.endswith(" at once")


def test_plain_words_are_left_alone(stores: Stores, journal: Journal) -> None:
    why = "p95 at 120 ms: basic checks passed, see https://wiki/x?id=3 (token 0123abcd, secretly better)"
    journal.record("me", FULL_STATE, None, [entry(why=why, details={"tokens": "0123abcd", "limit": [1, None, True]})])
    [kept] = stores.other.entries("shop")
    assert kept.why == why
    assert kept.details == {"tokens": "0123abcd", "limit": [1, None, True]}


# --- what the evidence says now


def test_the_last_verdict_shown_is_kept_whole(stores: Stores, journal: Journal) -> None:
    assert stores.other.verdict("shop") is None
    for live in (live_verdict(2), live_verdict(3, 99.5), live_verdict(1, app="bar")):
        journal.show_verdict("me", live)
    assert stores.other.verdict("shop") == live_verdict(3, 99.5)
    assert stores.other.verdict("bar") == live_verdict(1, app="bar")
    assert journal.entries("shop") == []


def test_only_the_holder_shows_verdicts(stores: Stores, journal: Journal) -> None:
    journal.show_verdict("me", live_verdict(2))
    journal.release_lease("me")
    assert stores.other.take_lease("second", 600)
    with pytest.raises(LeaseLost):
        journal.show_verdict("me", live_verdict(3))
    assert stores.other.verdict("shop") == live_verdict(2)


# --- commands


def test_commands_wait_until_they_are_handled(stores: Stores, journal: Journal) -> None:
    first, second = command(), command(verb="switch", version=5, app="bar", why="")
    ids = [stores.other.submit(first), stores.other.submit(second)]
    assert journal.commands() == [replace(first, id=ids[0]), replace(second, id=ids[1])]
    assert not journal.handled(ids[0])
    journal.record("me", FULL_STATE, None, [], handled=[ids[0], ids[0] + 1000])
    assert [c.id for c in stores.other.commands()] == [ids[1]]
    assert [stores.other.handled(n) for n in (*ids, ids[1] + 1000)] == [True, False, False]
    journal.record("me", FULL_STATE, None, [], handled=ids)
    assert journal.commands() == []
    assert stores.other.submit(first) > ids[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("who", ""), ("who", "a\nb"), ("who", "x" * 201), ("why", "x" * 2001), ("why", "a\0"), ("why", "\ud800")],
)
def test_a_command_that_cannot_be_kept_is_refused(stores: Stores, field: str, value: str) -> None:
    with pytest.raises(BadInput, match=field) as refused:
        stores.journal.submit(command(**{field: value}))
    assert refused.value.field == field
    assert stores.journal.commands() == []


# --- webhooks


def test_a_delivery_nudges_once(stores: Stores) -> None:
    assert stores.journal.take_nudges() == set()
    assert stores.journal.nudge("shop", "d1", 1.0) is True
    assert stores.other.nudge("shop", "d1", 1.0) is False
    assert stores.other.nudge("bar", "d1", 1.0) is False
    assert stores.other.nudge("bar", "d2", 1.0) is True
    assert stores.other.take_nudges() == {"shop", "bar"}
    assert stores.journal.take_nudges() == set()
    assert stores.journal.nudge("shop", "d1", 1.0) is False, "known still, though its nudge was taken"
    assert stores.journal.take_nudges() == set()
    assert stores.journal.nudge("shop", "d3", 1.0) is True
    assert stores.journal.take_nudges() == {"shop"}
    for bad in ("", "a\nb", "x" * 257):
        with pytest.raises(BadInput, match="delivery_id"):
            stores.journal.nudge("shop", bad, 1.0)


# --- purging


def test_what_is_past_is_purged_but_the_journal(stores: Stores, journal: Journal) -> None:
    now_s = stores.now_s()
    old_s, fresh_s = now_s - 2 * DAY_S, now_s - HOUR_S
    done, waiting = journal.submit(command()), journal.submit(command())
    journal.record("me", FULL_STATE, None, [entry(at_s=old_s)], handled=[done])
    for router, at_s in (("gone", old_s), ("here", fresh_s)):
        stores.board.report_router(RouterReport(router, "shop", 1, 6, "", at_s))
    for rollout_id, at_s in ((1, old_s), (2, fresh_s), (3, old_s)):  # rollout 3 is on its way
        stores.board.report_arm(ArmReport("shop", rollout_id, "canary", "ready", "", at_s))
    journal.nudge("shop", "old", old_s)
    journal.nudge("shop", "fresh", fresh_s)
    journal.purge(7 * DAY_S)
    assert journal.handled(done)
    assert [r.router for r in stores.board.routers("shop", 0.0)] == ["here"]
    assert [len(stores.board.arms("shop", n)) for n in (1, 2, 3)] == [0, 1, 1]
    assert journal.nudge("shop", "fresh", now_s) is False
    assert journal.nudge("shop", "old", now_s) is True, "forgotten: far outside the time a signature is good for"
    journal.purge(-1.0)
    assert not journal.handled(done)
    assert [c.id for c in journal.commands()] == [waiting]
    assert len(journal.entries("shop")) == 1
    assert journal.states() == {"shop": FULL_STATE}


def test_stand_ins_can_be_away() -> None:
    tables = MemoryTables()
    board, journal, store = MemoryBoard(tables), MemoryJournal(tables), MemoryEvidence(tables)
    tables.away = True
    calls: list[Callable[[], object]] = [
        board.traffic, journal.states, journal.commands, journal.take_nudges, journal.holder,
        lambda: journal.take_lease("a", 1), lambda: store.add([evidence(1)]), lambda: journal.nudge("shop", "d", 1.0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RegistryUnavailable):
            call()
    tables.away = False
    assert journal.holder() is None
    assert store.after("shop", 3, {}, 10) == []
    assert journal.take_nudges() == set()
