"""What every SessionStore does: the SQL one on SQLite and PostgreSQL, and its stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from registry.database import migrate, open_database
from serving.errors import BadRequest
from serving.fakes import MemorySessionStore
from serving.ports import SessionStore
from serving.schema import Turn
from serving.store import SqlSessionStore
from serving.store.codec import MOST_TURN_CHARS, MOST_TURN_ITEMS, MOST_TURNS


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SessionStore]:
    if request.param == "memory":
        yield MemorySessionStore()
        return
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = open_database(url)
    yield SqlSessionStore(database)
    database.close()


def turn(number: int) -> Turn:
    return Turn(f"q{number}", f"가나 {number}", (f"s{number}",), {"entities": {"food": ["치킨"]}}, float(number))


def said(
    store: SessionStore, session: str = "s", app: str = "a", limit: int = 100, after_s: float = -1.0, user: str = ""
) -> list[str]:
    return [one.query for one in store.turns(app, session, user, limit, after_s)]


def test_keeps_turns_as_they_were_in_their_order(store: SessionStore) -> None:
    assert said(store) == []
    for number in range(3):
        store.append("a", "s", "ann", turn(number))
    assert store.turns("a", "s", "ann", 10, -1.0) == [turn(0), turn(1), turn(2)]
    assert store.apps() == ["a"]


def test_gives_the_newest_that_did_not_expire(store: SessionStore) -> None:
    for number in range(5):
        store.append("a", "s", "", turn(number))
    assert said(store, limit=2) == ["q3", "q4"]
    assert said(store, after_s=3.0) == ["q4"]
    assert said(store, limit=0) == []


def test_sessions_and_apps_are_apart(store: SessionStore) -> None:
    store.append("a", "s", "", turn(1))
    store.append("a", "t", "", turn(2))
    store.append("b", "s", "", turn(3))
    assert (said(store), said(store, "t"), said(store, app="b")) == (["q1"], ["q2"], ["q3"])


def test_people_who_name_the_same_session_are_apart(store: SessionStore) -> None:
    store.append("a", "s", "ann", turn(0))
    for number in range(1, MOST_TURNS + 2):
        store.append("a", "s", "bob", turn(number))
    assert (said(store, user="ann"), said(store)) == (["q0"], [])
    assert said(store, user="bob", limit=2) == [f"q{MOST_TURNS}", f"q{MOST_TURNS + 1}"]
    assert len(said(store, user="bob", limit=2 * MOST_TURNS)) == MOST_TURNS


def test_what_is_too_long_is_cut(store: SessionStore) -> None:
    many = tuple(f"s{n}" for n in range(MOST_TURN_ITEMS + 10))
    store.append("a", "s", "", Turn("가" * 9000, "나" * 9000, many, {"rest": "x" * 9000}, 1.0))
    [kept] = store.turns("a", "s", "", 1, 0.0)
    assert (len(kept.query), len(kept.text), len(kept.items)) == (MOST_TURN_CHARS, MOST_TURN_CHARS, MOST_TURN_ITEMS)
    assert kept.understood == {}


def test_a_session_keeps_its_newest_turns(store: SessionStore) -> None:
    for number in range(MOST_TURNS + 3):
        store.append("a", "s", "", turn(number))
    store.append("a", "t", "", turn(0))
    kept = said(store, limit=2 * MOST_TURNS)
    assert (len(kept), kept[0]) == (MOST_TURNS, "q3")
    assert said(store, "t") == ["q0"]


def test_sessions_that_fell_silent_are_purged_whole(store: SessionStore) -> None:
    for number in (1, 2):
        store.append("a", "old", "", turn(number))
    for number in (1, 9):
        store.append("a", "new", "", turn(number))
    store.append("b", "old", "", turn(1))
    assert store.purge("a", 5.0) == 2
    assert store.purge("a", 5.0) == 0
    assert (said(store, "old"), said(store, "new"), said(store, "old", "b")) == ([], ["q1", "q9"], ["q1"])


def test_forgets_the_sessions_of_a_person(store: SessionStore) -> None:
    store.append("a", "s1", "", turn(0))  # said before the client told who it is
    store.append("a", "s1", "ann", turn(1))
    store.append("a", "s2", "bob", turn(2))
    store.append("a", "ann", "", turn(3))  # a session named after its person
    store.append("b", "s3", "ann", turn(4))
    assert store.forget("a", lambda name: name == "ann") == 3
    assert store.forget("a", lambda name: name == "ann") == 0
    assert said(store, "s1") == said(store, "s1", user="ann") == []
    assert (said(store, "s2", user="bob"), said(store, "s3", "b", user="ann")) == (["q2"], ["q4"])


@pytest.mark.parametrize("session", ["", "x" * 257, "a\nb"])
def test_refuses_ids_that_are_none(store: SessionStore, session: str) -> None:
    with pytest.raises(BadRequest, match="session"):
        store.append("a", session, "", turn(1))


def test_takes_turns_from_several_threads(store: SessionStore) -> None:
    threads = [Thread(target=store.append, args=("a", f"s{n % 2}", "", turn(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said(store, "s0") + said(store, "s1")) == [f"q{n}" for n in range(8)]
