"""What every FeedbackStore does: the SQL one on SQLite and PostgreSQL, and its stand-in; and what clients taught."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.database import Database, migrate, open_database
from serving.errors import BadRequest
from serving.fakes import MemoryFeedbackStore
from serving.ports import FeedbackStore
from serving.schema import FeedbackEvent, Trace
from serving.store import SqlExpansions, SqlFeedbackStore
from serving.store.feedback import TRACES_PER_PURGE


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = open_database(url)
    yield database
    database.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeedbackStore]:
    if request.param == "memory":
        yield MemoryFeedbackStore()
        return
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    migrate(url)
    database = open_database(url)
    yield SqlFeedbackStore(database)
    database.close()


def event(event_id: str, app: str = "a", **changes: object) -> FeedbackEvent:
    values = {"trace_id": "t1", "release": "1", "event": "select", "at_s": 1.5, **changes}
    return FeedbackEvent(event_id=event_id, app=app, **values)  # type: ignore[arg-type]


FULL = event(
    "full",
    user="가나\0",
    line=2,
    raw="lc 말보로\n3병",
    selected="3A24401",
    rejected=("x", "y"),
    value=0.25,
    scores={"rules": {"3A24401": 0.5, "x": 0.25}, "dense": {}},
)


def test_keeps_events_as_they_were_in_their_order(store: FeedbackStore) -> None:
    assert store.record(FULL) is True
    assert store.record(event("e2")) is True
    assert store.events("a", 0, 10) == [(1, FULL), (2, event("e2"))]
    assert store.events("a", 1, 10) == [(2, event("e2"))]
    assert store.events("a", 0, 1) == [(1, FULL)]
    assert store.events("a", 2, 10) == []


def test_the_same_event_is_stored_once(store: FeedbackStore) -> None:
    assert store.record(event("e")) is True
    assert store.record(event("e", value=9.0)) is False
    assert store.events("a", 0, 10) == [(1, event("e"))]


def test_the_same_id_in_another_app_is_another_event(store: FeedbackStore) -> None:
    assert store.record(event("e")) is True
    assert store.record(event("e", app="b")) is True
    assert store.events("b", 0, 10) == [(1, event("e", app="b"))]


def test_several_at_once_say_which_were_new(store: FeedbackStore) -> None:
    store.record(event("old"))
    batch = [event("x", app="b"), event("old"), event("n1"), event("n1", value=2.0), event("n2")]
    assert store.record_many(batch) == [True, False, True, False, True]
    assert store.events("a", 0, 10) == [(1, event("old")), (2, event("n1")), (3, event("n2"))]
    assert store.record_many([]) == []


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 257])
def test_an_unusable_id_stores_nothing_of_its_batch(store: FeedbackStore, bad: str) -> None:
    with pytest.raises(BadRequest) as refused:
        store.record_many([event("good"), event(bad)])
    assert refused.value.field == "event_id"
    assert store.events("a", 0, 10) == []


def test_traces_are_kept_and_found(store: FeedbackStore) -> None:
    trace = Trace(
        "t1", "a", "3", 12.5, "lc 3병\n", ({"raw": "lc", "shown": [["x", 0.5]]},), "u", None, "ok", {"total": 1.5}
    )
    other = Trace("t2", "a", "3", 12.5, "q", ())
    store.record_traces([trace, other])
    store.record_traces([Trace("t1", "a", "4", 13.0, "changed", ())])
    store.record_traces([])
    assert store.trace("t1") == trace
    assert store.trace("t2") == other
    assert store.trace("none") is None


def test_old_traces_are_forgotten_and_feedback_is_not(store: FeedbackStore) -> None:
    old = [Trace(f"{app}{n}", app, "3", float(n), "q", ()) for app in ("a", "b") for n in range(TRACES_PER_PURGE + 1)]
    new = [Trace(f"new-{app}", app, "3", 1000.0, "q", ()) for app in ("a", "c")]
    store.record_traces(old + new)
    store.record(event("e", trace_id="a0"))
    assert store.purge(0.0) == 0
    assert store.purge(1.0) == 2
    assert [store.trace(i) is None for i in ("a0", "b0", "a1", "b1")] == [True, True, False, False]
    assert store.purge(1000.0) == len(old) - 2
    assert store.purge(1000.0) == 0
    assert [store.trace(t.trace_id) for t in new] == new
    assert store.events("a", 0, 10) == [(1, event("e", trace_id="a0"))]


def test_clients_teach_their_words(database: Database) -> None:
    taught = SqlExpansions(database)
    assert (taught.version("a"), taught.all("a")) == (0, {})
    taught.learn("a", "u1", {"lc": "레이크 찰리스", "mb": "말보로"})
    before = taught.version("a")
    taught.learn("a", "u2", {"lc": "라크로스"})
    assert taught.version("a") > before
    assert taught.version("b") == 0
    assert taught.all("a") == {"u1": {"lc": "레이크 찰리스", "mb": "말보로"}, "u2": {"lc": "라크로스"}}


def test_one_slip_does_not_unteach_a_word(database: Database) -> None:
    taught = SqlExpansions(database)
    for _ in range(2):
        taught.learn("a", "u", {"lc": "right"})
    taught.learn("a", "u", {"lc": "slip"})
    assert taught.all("a") == {"u": {"lc": "right"}}
    taught.learn("a", "u", {"lc": "slip"})  # as often as the other, and later
    assert taught.all("a") == {"u": {"lc": "slip"}}


def test_learning_nothing_moves_nothing(database: Database) -> None:
    taught = SqlExpansions(database)
    assert taught.learn("a", "u", {}) == 0
    assert taught.version("a") == 0
    with pytest.raises(BadRequest):
        taught.learn("a", "u", {"a\0b": "words"})
