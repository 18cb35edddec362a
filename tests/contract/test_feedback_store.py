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
from serving.store.feedback import ROWS_PER_LOOK, TRACES_PER_PURGE
from serving.store.people import EVERY_APP, SqlPeople


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


def test_traces_are_found_by_their_ids(store: FeedbackStore) -> None:
    traces = {f"t{n}": Trace(f"t{n}", "a", "3", 1.0, "q", ()) for n in range(1200)}
    store.record_traces(traces.values())
    assert store.traces([*traces, "none", "t0"]) == traces
    assert store.traces([]) == {}


def test_apps_with_traces_or_feedback_are_named(store: FeedbackStore) -> None:
    assert store.apps() == []
    store.record_traces([Trace("t", "traced", "3", 1.0, "q", ())])
    store.record(event("e", app="judged"))
    assert store.apps() == ["judged", "traced"]


def test_a_person_is_forgotten_with_everything_said_about_their_traces(store: FeedbackStore) -> None:
    gone = "가나\0"
    store.record_traces(
        [
            Trace("hers", "a", "3", 1.0, "q", (), user=gone),
            Trace("nobodys", "a", "3", 1.0, "q", ()),
            Trace("about-her", "a", "3", 1.0, "q", ()),
            Trace("his", "a", "3", 1.0, "q", (), user="u"),
            Trace("elsewhere", "b", "3", 1.0, "q", (), user=gone),
        ]
    )
    stays = [event("e1", trace_id="his", user="u"), event("e2", trace_id="nobodys")]
    goes = [
        event("e3", trace_id="hers", user="u"),
        event("e4", trace_id="his", user=gone),
        event("e5", trace_id="about-her", user=gone),
        event("e6", trace_id="about-her"),
    ]
    store.record_many([stays[0], *goes, stays[1], event("e7", app="b", trace_id="elsewhere", user=gone)])
    assert store.forget("a", lambda user: user == gone) == (2, 4)
    assert store.events("a", 0, 10) == [(1, stays[0]), (6, stays[1])]
    assert [i for i in ("hers", "nobodys", "about-her", "his", "elsewhere") if store.trace(i)] == [
        "nobodys",
        "his",
        "elsewhere",
    ]
    assert store.forget("a", lambda user: user == gone) == (0, 0)
    store.record(event("e8"))
    assert [seq for seq, _ in store.events("a", 6, 10)] == [7], "numbers are not given twice"
    assert len(store.events("b", 0, 10)) == 1


def test_forgetting_goes_through_every_page(store: FeedbackStore) -> None:
    users = ("ann", "bob")
    store.record_traces(Trace(f"t{n}", "a", "3", 1.0, "q", (), user=users[n % 2]) for n in range(2 * ROWS_PER_LOOK + 1))
    store.record_many([event(f"e{n}", trace_id=f"x{n}", user=users[n % 2]) for n in range(2 * ROWS_PER_LOOK + 1)])
    assert store.forget("a", lambda user: user == "ann") == (ROWS_PER_LOOK + 1, ROWS_PER_LOOK + 1)
    assert {one.user for _, one in store.events("a", 0, 5000)} == {"bob"}


def test_who_is_forgotten_is_kept_by_pseudonym(database: Database) -> None:
    people = SqlPeople(database, clock=lambda: 5.0)
    people.add_forgotten("a", "p1")
    people.add_forgotten("a", "p1")
    people.add_forgotten(EVERY_APP, "p2")
    assert (people.forgotten("a"), people.forgotten("b")) == ({"p1", "p2"}, {"p2"})


def test_whom_a_data_set_held_is_kept(database: Database) -> None:
    people = SqlPeople(database)
    people.record_trained("a", "f2", [f"p{n}" for n in range(1200)])
    people.record_trained("a", "f1", ["p1"])
    people.record_trained("a", "f1", ["p1", "p2"])
    people.record_trained("b", "f3", [])
    assert people.trained("p1") == {"a": ["f1", "f2"]}
    assert people.trained("p2") == {"a": ["f1", "f2"]}
    assert people.trained("p1199") == {"a": ["f2"]}
    assert people.trained("none") == {}


def test_what_a_client_taught_is_unlearnt(database: Database) -> None:
    taught, people = SqlExpansions(database), SqlPeople(database)
    taught.learn("a", "ann", {"lc": "레이크", "mb": "말보로"})
    taught.learn("a", "bob", {"lc": "라크로스"})
    taught.learn("b", "ann", {"lc": "레이크"})
    before = taught.version("a")
    assert people.apps_with_words() == ["a", "b"]
    assert people.forget_words("a", lambda user: user == "ann") == 2
    assert taught.all("a") == {"bob": {"lc": "라크로스"}}
    assert taught.version("a") > before, "replicas follow the version"
    after = taught.version("a")
    assert people.forget_words("a", lambda user: user == "ann") == 0
    assert (taught.version("a"), taught.all("b")) == (after, {"ann": {"lc": "레이크"}})
