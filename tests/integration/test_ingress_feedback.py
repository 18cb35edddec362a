"""Feedback over HTTP: durable when it is acknowledged, stored once, joined to its trace, and learnt from."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from registry.memory_store import MemoryStore
from serving.trace import mint
from tests.endpoint import Endpoint, serve
from tests.problem import assert_problem
from tests.waiting import wait_for


def post(endpoint: Endpoint, path: str, body: Any, **headers: str) -> httpx.Response:
    with endpoint.client(**headers) as client:
        return client.post(path, json=body)


def query(endpoint: Endpoint, text: str, app: str = "teas", **body: Any) -> dict[str, Any]:
    answer = post(endpoint, f"/v1/apps/{app}/query", {"query": text, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def feedback(endpoint: Endpoint, body: Any, app: str = "teas", **headers: str) -> httpx.Response:
    return post(endpoint, f"/v1/apps/{app}/feedback", body, **headers)


def stored(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The events in the database, read by a connection of our own."""
    with closing(sqlite3.connect(endpoint.config.home / "palate.db")) as connection:
        return [orjson.loads(row[0]) for row in connection.execute("SELECT body FROM feedback ORDER BY app, seq")]


def test_what_was_acknowledged_is_in_the_database(endpoint: Endpoint) -> None:
    answer = query(endpoint, "bluehil green tea", user="kim")
    shown = answer["results"][0]
    body = {"trace_id": answer["trace_id"], "event": "select", "item_id": shown["id"], "rejected": ["TEA010"]}
    reply = feedback(endpoint, body)
    assert reply.status_code == 200, reply.text
    [event] = stored(endpoint)
    assert reply.json() == {
        "event_id": event["event_id"],
        "trace_id": answer["trace_id"],
        "release": "1",
        "stored": "database",
    }
    assert reply.headers["x-trace-id"] == answer["trace_id"]
    expected = {"app": "teas", "event": "select", "release": "1", "user": "kim", "raw": "bluehil green tea"}
    assert {name: event[name] for name in expected} == expected
    assert (event["selected"], event["rejected"], event["line"]) == ("TEA000", ["TEA010"], 0)
    assert event["scores"]["rules"]["TEA000"] == pytest.approx(shown["score"], abs=1e-3)


def test_a_trace_of_an_earlier_process_is_joined_too(fresh_home: tuple[Path, MemoryStore]) -> None:
    with serve(*fresh_home, apps=["tea-orders"]) as first:
        answer = query(first, "red rock kettle 2병\nblue hill teacup 5", "tea-orders", user="lee")
    with serve(*fresh_home, apps=["tea-orders"]) as second:
        body = {"trace_id": answer["trace_id"], "event": "order", "item_id": "TEA004", "line": 1}
        assert feedback(second, body, "tea-orders").status_code == 200
        [event] = stored(second)
    assert (event["raw"], event["user"], event["line"]) == ("blue hill teacup 5", "lee", 1)


def test_each_answer_of_several_queries_takes_feedback(endpoint: Endpoint) -> None:
    answers = post(endpoint, "/v1/apps/teas/query", {"queries": ["red rock kettle", "blue hill teacup"]}).json()[
        "answers"
    ]
    for answer in answers:
        body = {"trace_id": answer["trace_id"], "event": "click", "item_id": answer["results"][0]["id"]}
        assert feedback(endpoint, body).status_code == 200
    assert [(e["raw"], e["selected"]) for e in stored(endpoint)] == [
        ("red rock kettle", "TEA043"),
        ("blue hill teacup", "TEA004"),
    ]


def test_a_retry_is_stored_once(endpoint: Endpoint) -> None:
    trace_id = query(endpoint, "red rock kettle")["trace_id"]
    body = {"trace_id": trace_id, "event": "click", "item_id": "TEA043"}
    for sent in ({**body, "event_id": "once"}, {**body, "event_id": "once"}):
        reply = feedback(endpoint, sent).json()
    assert (reply["event_id"], reply["stored"]) == ("once", "duplicate")
    replies = [feedback(endpoint, body, **{"idempotency-key": "twice"}).json()["stored"] for _ in range(2)]
    assert replies == ["database", "duplicate"]
    # The body wins over the header; without either, each is an event of its own.
    assert feedback(endpoint, {**body, "event_id": "once"}, **{"idempotency-key": "x"}).json()["stored"] == "duplicate"
    assert {feedback(endpoint, body).json()["stored"] for _ in range(2)} == {"database"}
    assert len(stored(endpoint)) == 4


def test_feedback_that_cannot_be_right_is_refused(endpoint: Endpoint) -> None:
    good = {"trace_id": query(endpoint, "red rock kettle")["trace_id"], "event": "select", "item_id": "TEA043"}
    for change, status, field in [
        ({"event": "adore"}, 400, "event"),
        ({"event": None}, 400, "event"),
        ({"item_id": None}, 400, "item_id"),
        ({"item_id": ""}, 400, "item_id"),
        ({"item_id": "x" * 257}, 400, "item_id"),
        ({"line": 1}, 400, "line"),
        ({"line": -1}, 400, "line"),
        ({"line": "0"}, 400, "line"),
        ({"rejected": "TEA000"}, 400, "rejected"),
        ({"rejected": ["x"] * 201}, 400, "rejected"),
        ({"value": "5"}, 400, "value"),
        ({"event_id": ""}, 400, "event_id"),
        ({"event_id": "a\nb"}, 400, "event_id"),
        ({"user": ""}, 400, "user"),
        ({"colour": 1}, 400, "colour"),
        ({"trace_id": "nonsense"}, 400, "trace_id"),
        ({"trace_id": good["trace_id"][:-1] + "~"}, 404, "trace_id"),
        ({"trace_id": mint(bytes(32), "teas", "1", 1.0)}, 404, "trace_id"),
    ]:
        assert_problem(feedback(endpoint, {**good, **change}), status, field=field)
    for body in ([], None, "x", {}):
        assert_problem(feedback(endpoint, body), 400)
    assert_problem(feedback(endpoint, good, "tea-orders"), 404, field="trace_id")  # another app's trace
    assert_problem(feedback(endpoint, good, "nothing"), 404, field="app")
    assert_problem(feedback(endpoint, good, **{"idempotency-key": "k" * 300}), 400, field="event_id")
    assert stored(endpoint) == []
    assert feedback(endpoint, {**good, "value": float(4)}).status_code == 200


def test_feedback_survives_a_database_that_is_away(endpoint: Endpoint) -> None:
    trace_id = query(endpoint, "red rock kettle")["trace_id"]
    with closing(sqlite3.connect(endpoint.config.home / "palate.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")  # nobody else can write
        body = {"trace_id": trace_id, "event": "click", "item_id": "TEA043", "event_id": "away"}
        assert feedback(endpoint, body).json()["stored"] == "spool"
        assert endpoint.ids("teas", "blue hill teacup")[0] == "TEA004"  # queries go on
        holder.execute("ROLLBACK")
    wait_for(lambda: [e["event_id"] for e in stored(endpoint)] == ["away"])
    assert feedback(endpoint, body).json()["stored"] == "duplicate"


def test_a_selection_teaches_its_user_an_abbreviation(endpoint: Endpoint) -> None:
    def first(user: str) -> tuple[str, str]:
        best = query(endpoint, "ㅍㅇ 홍차", user=user)["results"][0]
        return best["id"], best["source"]

    before = first("kim")
    assert before[1] == "lexical"  # two consonants could be many makers: the rules are not sure enough
    answer = query(endpoint, "ㅍㅇ 녹차", user="kim")
    body = {"trace_id": answer["trace_id"], "event": "select", "item_id": "TEA000"}
    assert feedback(endpoint, body).status_code == 200
    wait_for(lambda: first("kim") == ("TEA001", "rules"), 5)
    assert first("park") == before
