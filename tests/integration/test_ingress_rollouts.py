"""Rollouts over HTTP, on real SQLite with the real state machine: what people ask is checked, kept and answered; what
was decided can be read; MLflow's webhooks are believed only when signed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.fakes import MemoryJournal, MemoryTables
from registry.memory_store import MemoryStore
from registry.traffic import Block, Command, Evidence
from registry.webhook import WEBHOOK_PATH, signature
from serving.stores import Stores
from tests.endpoint import Endpoint, Setup, bare_release, made_up_spec, serve
from tests.problem import assert_problem
from tests.rollout_desk import desk, past
from tests.rollout_sample import entries, evidence
from tests.rollout_stores import entry, live_verdict

SECRET = "made-up-webhook-secret"


def no_loading(_: Any) -> Any:
    raise OSError("nothing is loaded here")


def setup(**changes: Any) -> Setup:
    return Setup(load=no_loading, config={"webhook_secret": SECRET}, **changes)


@pytest.fixture
def releases() -> MemoryStore:
    """Two versions of `teas`, 1 stable; and one of `coffees`."""
    store = MemoryStore()
    for mark in ("first", "second"):
        bare_release(store, made_up_spec("teas"), mark)
    store.set_alias("teas", "stable", 1)
    bare_release(store, made_up_spec("coffees"))
    return store


@pytest.fixture
def endpoint(tmp_path: Path, releases: MemoryStore) -> Iterator[Endpoint]:
    with serve(tmp_path, releases, ["teas", "coffees"], setup()) as running:
        yield running


def ask(endpoint: Endpoint, **body: Any) -> httpx.Response:
    with endpoint.client() as client:
        return client.post("/v1/apps/teas/rollout", json={"why": "because", **body})


def get(endpoint: Endpoint, path: str, key: str | None = None) -> httpx.Response:
    with endpoint.client(key) as client:
        return client.get(f"/v1/apps/{path}")


def test_only_admin_keys_of_the_app_may(endpoint: Endpoint) -> None:
    _, query = endpoint.new_key({"query", "feedback", "items", "pin"})
    _, other = endpoint.new_key({"admin"}, ["coffees"])
    for path in ("releases", "rollout", "rollouts", "rollouts/1", "rollouts/1/report"):
        assert_problem(get(endpoint, f"teas/{path}", ""), 401)
        assert_problem(get(endpoint, f"teas/{path}", query), 403)
        assert_problem(get(endpoint, f"teas/{path}", other), 403, field="app")
        assert_problem(get(endpoint, f"nothing/{path}"), 404, field="app")
    for key in (query, other):
        with endpoint.client(key) as client:
            body = {"action": "start", "version": 2, "why": "because"}
            assert_problem(client.post("/v1/apps/teas/rollout", json=body), 403)
    assert endpoint.stores.journal.commands() == []


def test_releases_with_aliases_and_tags(endpoint: Endpoint, releases: MemoryStore) -> None:
    releases.set_tags("teas", 2, {"palate.rollout": "rolled back"})
    body = get(endpoint, "teas/releases").json()
    assert [(r["version"], r["aliases"]) for r in body["releases"]] == [(2, []), (1, ["stable"])]
    assert body["releases"][0]["tags"]["palate.rollout"] == "rolled back"
    assert body["serving"] is None
    with desk(endpoint.stores, "teas"):
        assert get(endpoint, "teas/releases").json()["serving"] == {"stable": 1, "percent": {"1": 100.0}}


def test_before_any_controller_there_is_nothing_and_commands_are_kept(endpoint: Endpoint) -> None:
    body = get(endpoint, "teas/rollout").json()
    assert (body["controller"], body["serving"], body["rollout"], body["last"]) == (None, None, None, None)
    answer = ask(endpoint, action="start", version=2)
    assert answer.status_code == 202
    assert answer.json()["handled"] is False
    assert "no controller is running" in answer.json()["note"]
    [waiting] = get(endpoint, "teas/rollout").json()["waiting"]["commands"]
    assert (waiting["verb"], waiting["version"], waiting["why"]) == ("start", 2, "because")
    assert get(endpoint, "coffees/rollout").json()["waiting"]["commands"] == []
    with desk(endpoint.stores, "teas"):
        wait_until(lambda: get(endpoint, "teas/rollout").json()["rollout"] is not None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"action": "start", "version": 2, "why": None}, 400, "why"),
        ({"action": "start", "version": 2, "why": "  "}, 400, "why"),
        ({"action": "start", "version": 2, "why": "x" * 1001}, 400, "why"),
        ({"action": "start", "version": 2, "why": "a\x1b[2Jb"}, 400, "why"),
        ({"action": "start", "version": 2, "by": "x" * 81}, 400, "by"),
        ({"action": "start", "version": 2, "by": ""}, 400, "by"),
        ({"action": "start", "version": 2, "by": "kim\nann"}, 400, "by"),
        ({"action": "start", "version": 2, "by": "kim\0"}, 400, "by"),
        ({"action": "start", "version": 2, "why": "because\0"}, 400, "why"),
        ({"action": "start"}, 400, "version"),
        ({"action": "switch"}, 400, "version"),
        ({"action": "start", "version": 0}, 400, "version"),
        ({"action": "start", "version": "second"}, 400, "version"),
        ({"action": "start", "version": 99}, 404, "version"),
        ({"action": "explode"}, 400, "action"),
        ({"action": "pause", "when": "now"}, 400, "when"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_bad_commands_are_refused_and_not_kept(
    endpoint: Endpoint, body: dict[str, Any], status: int, field: str
) -> None:
    problem = assert_problem(ask(endpoint, **body), status, field=field)
    if status == 404:
        assert "palate releases teas" in problem["detail"]
    assert endpoint.stores.journal.commands() == []


def test_a_rollout_from_start_to_abort(endpoint: Endpoint) -> None:
    with desk(endpoint.stores, "teas"):
        started = ask(endpoint, action="start", version=2, why="new synonyms", by="kim").json()
        assert started["handled"] is True
        [entry] = started["entries"]
        assert (entry["kind"], entry["version"], entry["why"]) == ("started", 2, "new synonyms")
        assert entry["who"].startswith("kim (key test ")

        endpoint.stores.evidence.add([Evidence("teas", 1, "r", 1, "canary", Block(time.time(), (5.0, 9.0), "ae"))])
        body = get(endpoint, "teas/rollout").json()
        assert body["controller"] == "desk"
        rollout = body["rollout"]
        assert (rollout["number"], rollout["version"], rollout["base"], rollout["phase"]) == (1, 2, 1, "loading")
        assert (rollout["step"], rollout["percent"], rollout["paused"]) == (None, 0.0, False)
        assert rollout["requests"] == {"canary": {"requests": 2, "failed": 1}}
        assert {w["alias"]: w["version"] for w in body["waiting"]["aliases"]}["canary"] == 2

        problem = assert_problem(ask(endpoint, action="start", version=2), 409)
        assert "on its way already" in problem["detail"]
        assert_problem(ask(endpoint, action="pause", version=1), 409)
        assert ask(endpoint, action="pause").json()["entries"][0]["kind"] == "paused"
        assert get(endpoint, "teas/rollout").json()["rollout"]["paused"] is True
        assert ask(endpoint, action="resume").json()["entries"][0]["kind"] == "resumed"
        assert ask(endpoint, action="abort", why="changed our minds").status_code == 200
        assert get(endpoint, "teas/rollout").json()["rollout"] is None

        [summary] = get(endpoint, "teas/rollouts").json()["rollouts"]
        assert (summary["number"], summary["outcome"], summary["reason"]) == (1, "aborted", "changed our minds")
        story = get(endpoint, "teas/rollouts/1").json()
        assert story["story"].splitlines()[0].startswith("teas, rollout 1: version 2 was aborted after")
        # What was asked of version 1 is no part of this rollout.
        kinds = ["started", "refused-command", "paused", "resumed", "aborted"]
        assert [e["kind"] for e in story["entries"]] == kinds


def test_the_verdict_is_the_one_of_now(endpoint: Endpoint) -> None:
    journal = endpoint.stores.journal

    def rollout() -> dict[str, Any]:
        return dict(get(endpoint, "teas/rollout").json()["rollout"])

    with desk(endpoint.stores, "teas"):
        ask(endpoint, action="start", version=2)
        assert (rollout()["verdict"], rollout()["shadow"]) == (None, None)
        journal.show_verdict("desk", live_verdict(9, app="teas"))
        assert rollout()["verdict"] is None, "another rollout's"

        told = entry("note", "teas", rollout=1, details={"verdict": {"state": "Pass", "sentence": "as decided"}})
        journal.record("desk", journal.states()["teas"], None, [told])
        assert rollout()["verdict"]["sentence"] == "as decided"

        journal.show_verdict("desk", live_verdict(1, time.time() - 40, app="teas"))
        verdict = rollout()["verdict"]
        assert (verdict["state"], verdict["canary_requests"]) == ("Fail", 120)
        assert 40 <= verdict["age_s"] < 4000
        assert [(g["name"], g["evidence"]) for g in verdict["guards"]] == [("error", None), ("reward", 1.0)]
        assert rollout()["shadow"] == {"requests": 50, "failures": 1, "compared": 49, "agreed": 47}


def test_a_switch_and_back(endpoint: Endpoint) -> None:
    with desk(endpoint.stores, "teas"):
        assert ask(endpoint, action="switch", version=2).json()["entries"][-1]["kind"] == "switched"
        body = get(endpoint, "teas/rollout").json()
        assert (body["stable"], body["previous"], body["rollout"]["phase"]) == (2, 1, "baking")
        back = ask(endpoint, action="rollback", version=2, why="wrong vintages")
        assert back.json()["entries"][-1]["kind"] == "rolled-back"
        body = get(endpoint, "teas/rollout").json()
        assert body["serving"] == {"stable": 1, "percent": {"1": 100.0}}
        assert body["quarantined"] == {"2": "wrong vintages"}
        # The same command once more, as a script sends it that heard no answer, undoes nothing.
        assert_problem(ask(endpoint, action="rollback", version=2, why="wrong vintages"), 409)


def test_past_rollouts_their_story_and_report(endpoint: Endpoint) -> None:
    past(endpoint.stores, entries(), evidence())
    [summary] = get(endpoint, "teas/rollouts").json()["rollouts"]
    assert (summary["number"], summary["version"], summary["outcome"]) == (3, 7, "rolled back")
    assert "Time" not in get(endpoint, "teas/rollouts/3").json()["story"].splitlines()[0]
    page = get(endpoint, "teas/rollouts/3/report")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "version 7 was rolled back" in page.text
    assert "Time to zero" in page.text
    for path in ("teas/rollouts/99", "teas/rollouts/99/report", "coffees/rollouts/3"):
        assert "palate rollout list" in assert_problem(get(endpoint, path), 404, field="number")["detail"]
    for number in ("x", "0", "-1", "1" * 30):
        assert_problem(get(endpoint, f"teas/rollouts/{number}"), 400, field="number")
    for limit in ("0", "501", "many"):
        assert_problem(get(endpoint, f"teas/rollouts?limit={limit}"), 400, field="limit")
    assert len(get(endpoint, "teas/rollouts?limit=1").json()["rollouts"]) == 1
    assert get(endpoint, "coffees/rollouts").json() == {"app": "coffees", "rollouts": []}


def test_the_document_tells_the_rollout_routes(endpoint: Endpoint) -> None:
    with endpoint.client("") as client:
        api = client.get("/openapi.json").json()
    for path, operations in api["paths"].items():
        if "/rollout" in path or path.endswith("/releases"):
            for operation in operations.values():
                [content] = operation["responses"]["200"]["content"].values()
                assert content["example"], path
    assert "security" not in api["paths"][WEBHOOK_PATH]["post"]
    for path, name in (("teas/rollout", "rollout"), ("teas/releases", "releases"), ("teas/rollouts", "rollouts")):
        answer = get(endpoint, path).json()
        example = api["paths"][f"/v1/apps/{{app}}/{name}"]["get"]["responses"]["200"]["content"]["application/json"]
        assert set(answer) == set(example["example"])


def deliver(endpoint: Endpoint, delivery_id: str = "d1", **changes: Any) -> httpx.Response:
    """A delivery as MLflow signs it; `changes` replace what is sent after it was signed."""
    event = {"entity": "model_version_alias", "action": "created", "timestamp": "x",
             "data": {"name": changes.pop("app", "teas"), "alias": "canary", "version": "2"}}  # fmt: skip
    body = json.dumps(event).encode()
    at = str(int(time.time() - changes.pop("age_s", 0)))
    headers = {"x-mlflow-delivery-id": delivery_id, "x-mlflow-timestamp": at,
               "x-mlflow-signature": signature(changes.pop("secret", SECRET), delivery_id, at, body)}  # fmt: skip
    with endpoint.client("") as client:
        return client.post(WEBHOOK_PATH, content=changes.get("body", body), headers=headers)


def test_a_signed_delivery_nudges_once(endpoint: Endpoint) -> None:
    journal = endpoint.stores.journal
    assert deliver(endpoint).status_code == 204
    assert journal.take_nudges() == {"teas"}
    assert deliver(endpoint).status_code == 204
    assert journal.take_nudges() == set()
    assert deliver(endpoint, "d2").status_code == 204
    assert journal.take_nudges() == {"teas"}


def test_deliveries_that_are_not_mlflows_are_refused(endpoint: Endpoint) -> None:
    for change in ({"secret": "another"}, {"age_s": 3600}, {"age_s": -3600}, {"body": b'{"entity": "forged"}'}):
        assert_problem(deliver(endpoint, **change), 401)
    with endpoint.client("") as client:
        assert_problem(client.post(WEBHOOK_PATH, content=b"{}"), 401)
    assert_problem(deliver(endpoint, body=b"x" * 100_000), 413)
    assert_problem(deliver(endpoint, "d" * 257), 400, field="delivery_id")
    assert endpoint.stores.journal.take_nudges() == set()


def test_a_delivery_about_another_model_is_passed_over(endpoint: Endpoint) -> None:
    assert deliver(endpoint, app="somebody-elses-model").status_code == 204
    assert endpoint.stores.journal.take_nudges() == set()


def test_with_the_database_away_everything_says_so(tmp_path: Path, releases: MemoryStore) -> None:
    tables = MemoryTables()

    def with_memory_journal(stores: Stores) -> Stores:
        return replace(stores, journal=MemoryJournal(tables))

    with serve(tmp_path, releases, ["teas"], setup(stores=with_memory_journal)) as endpoint:
        tables.away = True
        for path in ("rollout", "rollouts", "rollouts/1", "rollouts/1/report"):
            assert_problem(get(endpoint, f"teas/{path}"), 503)
        assert_problem(ask(endpoint, action="pause"), 503)
        assert_problem(deliver(endpoint), 503)
        tables.away = False
        assert deliver(endpoint).status_code == 204  # MLflow tries again: the first try left nothing behind
        assert endpoint.stores.journal.take_nudges() == {"teas"}


def test_a_slow_controller_is_waited_for_only_so_long(endpoint: Endpoint) -> None:
    assert endpoint.stores.journal.take_lease("asleep", 60)
    began = time.monotonic()
    answer = ask(endpoint, action="pause")
    assert answer.status_code == 202
    assert time.monotonic() - began > 2
    assert "has not dealt with it yet" in answer.json()["note"]
    assert [c.verb for c in endpoint.stores.journal.commands()] == ["pause"]


def test_a_person_gets_no_answer_to_another_command_of_theirs(endpoint: Endpoint) -> None:
    """The same person asks twice at the same time; of each command only what it caused is told."""
    with desk(endpoint.stores, "teas", every_s=0.5):
        ask(endpoint, action="start", version=2)
        with ThreadPoolExecutor(2) as pool:
            wrong = pool.submit(ask, endpoint, action="promote")
            right = pool.submit(ask, endpoint, action="pause")
            assert_problem(wrong.result(), 409)
            assert [e["kind"] for e in right.result().json()["entries"]] == ["paused"]


def test_people_do_not_get_each_others_answers(endpoint: Endpoint) -> None:
    """Another person's command, handled at the same time, is not in the answer."""
    with desk(endpoint.stores, "teas", every_s=0.5):
        ask(endpoint, action="start", version=2)
        endpoint.stores.journal.submit(Command("teas", "pause", "somebody else", "hm", time.time()))
        problem = assert_problem(ask(endpoint, action="promote"), 409)
        assert "being loaded" in problem["detail"]
        kinds = [(e["kind"], e["who"]) for e in get(endpoint, "teas/rollouts/1").json()["entries"]]
        assert ("paused", "somebody else") in kinds
