"""Generated answers through the query route: whole and in parts, grounded, with their traces, sessions and faults."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.errors import Overloaded, ReplicaLost
from serving.fakes import FakeLanguageModel
from serving.generate.generator import Generator
from tests.endpoint import Endpoint
from tests.problem import assert_problem
from tests.told import GOOD, MADE_UP, PROMPT, told_endpoint, told_spec
from tests.waiting import wait_for

TEMPLATE = "행복치킨은 9000원이에요."


def ask(endpoint: Endpoint, **body: Any) -> httpx.Response:
    with endpoint.client() as client:
        return client.post("/v1/apps/shops/query", json={"query": "치킨집 추천해줘", **body})


def events(endpoint: Endpoint, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each server-sent event."""
    request = {"query": "치킨집 추천해줘", "stream": True, **body}
    with endpoint.client() as client, client.stream("POST", "/v1/apps/shops/query", json=request) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_an_answer_comes_with_what_was_found(tmp_path: Path) -> None:
    with told_endpoint(tmp_path, FakeLanguageModel([GOOD])) as endpoint:
        answer = ask(endpoint)
        body = answer.json()
        assert [result["id"] for result in body["results"]] == ["S1", "S2"]
        assert body["answer"]["text"] == GOOD
        assert body["answer"]["fallback"] == ""
        assert {check["name"]: check["passed"] for check in body["answer"]["checks"]} == {
            "grounded": True,
            "length": True,
        }
        assert body["answer"]["usage"]["completion_tokens"] == 5
        assert {"understand", "retrieve", "generate", "total"} <= body["timings_ms"].keys()
        assert endpoint.services.traces.flush()
        trace = endpoint.stores.feedback.trace(body["trace_id"])
        assert trace is not None
        assert trace.answer["text"] == GOOD
        assert trace.answer["model"] == "fake"
        assert trace.answer["measures"]["failed_grounded"] == 0


def test_results_alone_ask_no_model(tmp_path: Path) -> None:
    model = FakeLanguageModel([GOOD])
    with told_endpoint(tmp_path, model) as endpoint:
        assert "answer" not in ask(endpoint, generate=False).json()
        with endpoint.client() as client:
            several = client.post("/v1/apps/shops/query", json={"queries": ["a", "b"]}).json()
        assert all("answer" not in one for one in several["answers"])
    assert model.asked == []


def test_an_answer_that_names_what_was_not_found_is_repaired(tmp_path: Path) -> None:
    model = FakeLanguageModel([MADE_UP, GOOD])
    with told_endpoint(tmp_path, model) as endpoint:
        answer = ask(endpoint).json()["answer"]
    assert (answer["text"], answer["repaired"]) == (GOOD, 1)
    assert "황금올리브" in model.asked[1].messages[-1].content  # it was told what was wrong


def test_the_template_answers_where_no_try_passes(tmp_path: Path) -> None:
    model = FakeLanguageModel([MADE_UP])
    with told_endpoint(tmp_path, model) as endpoint:
        answer = ask(endpoint).json()["answer"]
    assert answer["text"] == TEMPLATE
    assert "황금올리브" in answer["fallback"]
    assert len(model.asked) == 3


def test_a_stream_sends_sentences_that_passed_and_no_others(tmp_path: Path) -> None:
    with told_endpoint(tmp_path, FakeLanguageModel([f"행복치킨을 추천해요. {MADE_UP}"])) as endpoint:
        got = events(endpoint)
    assert [name for name, _ in got] == ["results", "text", "text", "done"]
    assert [data["text"] for name, data in got if name == "text"] == ["행복치킨을 추천해요. ", TEMPLATE]
    assert got[-1][1]["answer"]["text"] == f"행복치킨을 추천해요. {TEMPLATE}"
    assert "황금올리브" not in json.dumps([data for _, data in got[:-1]], ensure_ascii=False)


def test_a_form_with_a_schema_is_json_and_sent_whole(tmp_path: Path) -> None:
    model = FakeLanguageModel(['{"name": 5}', '{"name": "행복치킨"}'])
    with told_endpoint(tmp_path, model) as endpoint:
        got = events(endpoint, generate="card")
    assert [name for name, _ in got] == ["results", "text", "done"]
    assert got[-1][1]["answer"]["data"] == {"name": "행복치킨"}
    assert got[-1][1]["answer"]["repaired"] == 1
    assert model.asked[0].schema is not None


def test_a_form_that_there_is_not_is_named(tmp_path: Path) -> None:
    with told_endpoint(tmp_path, FakeLanguageModel([GOOD])) as endpoint:
        problem = assert_problem(ask(endpoint, generate="premium"), 400, field="generate")
        assert "detailed" in problem["detail"]
        assert_problem(ask(endpoint, generate=False, stream=True), 400, field="stream")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_away_leaves_the_template(tmp_path: Path, stream: bool) -> None:
    with told_endpoint(tmp_path, FakeLanguageModel([ReplicaLost("the engine ended")])) as endpoint:
        body = events(endpoint)[-1][1] if stream else ask(endpoint).json()
    assert body["answer"]["text"] == TEMPLATE
    assert "ReplicaLost" in body["answer"]["fallback"]


def test_without_a_template_a_busy_model_is_said(tmp_path: Path) -> None:
    bare = "\n".join(line for line in PROMPT.splitlines() if not line.startswith(("template", "  card")))
    model = FakeLanguageModel([Overloaded("64 requests are under way", retry_after_s=2.0)])
    with told_endpoint(tmp_path, model, prompt=bare) as endpoint:
        answer = ask(endpoint, stream=True)
    assert_problem(answer, 429)
    assert answer.headers["retry-after"] == "2"


def test_a_client_that_leaves_ends_the_work(tmp_path: Path) -> None:
    model = FakeLanguageModel(["행복치킨을 추천해요. " * 200], piece_s=0.02)
    with told_endpoint(tmp_path, model) as endpoint, endpoint.client() as client:
        with client.stream("POST", "/v1/apps/shops/query", json={"query": "치킨", "stream": True}) as answer:
            next(answer.iter_raw())
        wait_for(lambda: model.running == 0)
        assert model.cancelled == 1
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/apps/shops/query", json={"query": "치킨"}, timeout=0.3)
        wait_for(lambda: model.running == 0)
        assert model.cancelled == 2


def test_a_session_remembers_and_a_store_that_is_away_is_said(tmp_path: Path) -> None:
    memory = {"understand": {"memory": {"turns": 3}}}
    model = FakeLanguageModel([GOOD])
    with told_endpoint(tmp_path, model, told_spec(**memory)) as endpoint:
        first = ask(endpoint, session="s1", user="u1").json()
        assert first["session"] == {"turns": 0, "recalled": True, "kept": True}
        assert ask(endpoint, session="s1").json()["session"]["turns"] == 0, "another person's"
        second = ask(endpoint, session="s1", user="u1", query="더 싼 데는?").json()
        assert second["session"]["turns"] == 1
        assert "치킨집 추천해줘" in model.asked[-1].messages[-1].content
        assert_problem(ask(endpoint, session="a\nb"), 400, field="session")
        assert ask(endpoint, session="s2").json()["session"]["turns"] == 0
        assert ask(endpoint, session="s1", user="u1", generate=False).json()["session"]["turns"] == 2
        (tmp_path / "palate.db").rename(tmp_path / "gone.db")
        (tmp_path / "palate.db").mkdir()  # no database, and none can be made in its place
        endpoint.stores.database.close()
        away = ask(endpoint, session="s1", user="u1")
        assert away.status_code == 200, away.text
        assert away.json()["session"] == {"turns": 0, "recalled": False, "kept": False}


def test_the_metrics_tell_how_answers_came_about(tmp_path: Path) -> None:
    model = FakeLanguageModel([MADE_UP, GOOD])
    with told_endpoint(tmp_path, model, told_spec("counted")) as endpoint, endpoint.client() as client:
        client.post("/v1/apps/counted/query", json={"query": "치킨"})
        told = client.get("/metrics").text
    assert 'palate_generated_answers_total{app="counted",outcome="repaired",release="1"} 1.0' in told
    assert 'palate_first_text_seconds_count{app="counted",release="1"} 1.0' in told


@pytest.mark.parametrize("sent", [0, 1])
def test_an_answer_that_breaks_is_counted_as_the_platforms_fault(
    sent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any, **__: Any) -> AsyncGenerator[str, None]:
        for _ in range(sent):
            yield GOOD
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(Generator, "answer", breaks)
    name = f"broken{sent}"
    with told_endpoint(tmp_path, FakeLanguageModel(), told_spec(name)) as endpoint:
        with endpoint.client() as client:
            assert_problem(client.post(f"/v1/apps/{name}/query", json={"query": "치킨"}), 500)
        with endpoint.client() as client:  # the server closes the connection of the one that broke
            told = client.get("/metrics").text
    counted = [line for line in told.splitlines() if f'palate_requests_total{{app="{name}"' in line]
    assert len(counted) == 1
    assert 'status="500"' in counted[0]
