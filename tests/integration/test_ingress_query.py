"""POST /v1/apps/{app}/query as the contract says it, over real HTTP, and what it says of every bad request."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from serving.config import Limits
from serving.pipeline import Pipeline
from serving.router import LoadedRelease
from serving.schema import AppSpec, Candidate, Query, Result, Understood
from tests.endpoint import Endpoint, Setup, bare_release, made_up_spec, serve
from tests.problem import assert_problem
from tests.waiting import wait_for

QUERY = "/v1/apps/teas/query"


def ask(endpoint: Endpoint, body: Any, path: str = QUERY, **headers: str) -> httpx.Response:
    with endpoint.client(**headers) as client:
        return client.post(path, json=body)


def send_raw(endpoint: Endpoint, content: Any, **headers: str) -> httpx.Response:
    with endpoint.client(**{"content-type": "application/json", **headers}) as client:
        return client.post(QUERY, content=content)


def test_one_text_is_answered_as_the_contract_says(shared_endpoint: Endpoint) -> None:
    answer = ask(shared_endpoint, {"query": "blue hill green tea", "top_k": 3, "user": "u", "session": "s"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"trace_id", "app", "release", "results", "abstained", "timings_ms"}
    assert (body["app"], body["release"], body["abstained"]) == ("teas", "1", False)
    assert answer.headers["x-trace-id"] == body["trace_id"]
    assert 1 <= len(body["results"]) <= 3
    first = body["results"][0]
    assert set(first) == {"id", "score", "source", "fields"}
    assert (first["id"], first["source"]) == ("TEA000", "rules")
    assert first["fields"] == {"ko": "푸른 언덕 녹차", "en": "Blue Hill green tea"}
    assert 0.7 <= first["score"] <= 1
    assert set(body["timings_ms"]) == {"understand", "retrieve", "total"}
    assert all(ms >= 0 for ms in body["timings_ms"].values())


def test_korean_and_noise_find_the_item(shared_endpoint: Endpoint) -> None:
    assert shared_endpoint.ids("teas", "은빛강 홍차")[0] == "TEA011"
    assert shared_endpoint.ids("teas", "TEA034")[0] == "TEA034"


def test_several_texts_are_answered_in_order_with_trace_ids_of_their_own(shared_endpoint: Endpoint) -> None:
    texts = [f"{maker} {thing}" for maker in ("blue hill", "red rock") for thing in ("teacup", "kettle")] * 16
    body = ask(shared_endpoint, {"queries": texts, "top_k": 1}).json()
    assert set(body) == {"trace_id", "app", "release", "answers"}
    assert [a["results"][0]["id"] for a in body["answers"]] == ["TEA004", "TEA003", "TEA044", "TEA043"] * 16
    assert len({a["trace_id"] for a in body["answers"]}) == 64
    assert body["trace_id"] == body["answers"][0]["trace_id"]
    assert all(set(a) == {"trace_id", "app", "release", "results", "abstained", "timings_ms"} for a in body["answers"])


def test_order_lines_are_answered_line_by_line(shared_endpoint: Endpoint) -> None:
    text = "blue hill green tea 24병\n은빛 강 홍차 2015 3박스"
    body = ask(shared_endpoint, {"query": text}, "/v1/apps/tea-orders/query").json()
    lines = body["lines"]
    assert [set(line) for line in lines] == [{"text", "quantity", "unit", "vintage", "results", "abstained"}] * 2
    assert [(line["quantity"], line["unit"], line["vintage"]) for line in lines] == [
        (24, "bottle", None),
        (3, "box", 2015),
    ]
    assert [line["results"][0]["id"] for line in lines] == ["TEA000", "TEA011"]
    assert body["results"] == lines[0]["results"]


def test_filters_of_every_kind(shared_endpoint: Endpoint) -> None:
    def found(filters: dict[str, Any]) -> set[str]:
        return set(shared_endpoint.ids("teas", "tea", top_k=100, filters=filters))

    # The lexical source proposes ten.
    assert {i[5] for i in found({"category": "ware"})} <= {"3", "4"}
    assert {i[5] for i in found({"category": ["coffee", "ware"]})} <= {"2", "3", "4"}
    assert all(int(i[3:5]) % 2 == 0 for i in found({"organic": True, "category": "tea"}))
    assert found({"price": {"gte": 9_000, "lt": 9_200}}) == {"TEA000", "TEA010"}
    assert found({"price": 9_000}) == {"TEA000"}
    assert found({"category": "no such"}) == set()
    nothing = ask(shared_endpoint, {"query": "tea", "filters": {"category": []}}).json()
    assert (nothing["results"], nothing["abstained"]) == ([], True)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, None),
        ({"query": "a", "queries": ["b"]}, 400, None),
        ({"query": ""}, 400, "query"),
        ({"query": " \n\t"}, 400, "query"),
        ({"query": 5}, 400, "query"),
        ({"query": None}, 400, None),
        ({"query": "x" * 20_001}, 400, "query"),
        ({"queries": []}, 400, "queries"),
        ({"queries": ["ok", ""]}, 400, "queries.1"),
        ({"queries": ["ok", 3]}, 400, "queries.1"),
        ({"queries": "text"}, 400, "queries"),
        ({"queries": ["q"] * 65}, 413, "queries"),
        ({"query": "a", "top_k": 0}, 400, "top_k"),
        ({"query": "a", "top_k": -1}, 400, "top_k"),
        ({"query": "a", "top_k": 101}, 400, "top_k"),
        ({"query": "a", "top_k": 10**30}, 400, "top_k"),
        ({"query": "a", "top_k": 1.5}, 400, "top_k"),
        ({"query": "a", "top_k": True}, 400, "top_k"),
        ({"query": "a", "top_k": "many"}, 400, "top_k"),
        ({"query": "a", "topk": 3}, 400, "topk"),
        ({"query": "a", "user": ""}, 400, "user"),
        ({"query": "a", "user": "u" * 257}, 400, "user"),
        ({"query": "a", "session": 4}, 400, "session"),
        ({"query": "a", "filters": []}, 400, "filters"),
        ({"query": "a", "filters": {"colour": "red"}}, 400, "filters.colour"),
        ({"query": "a", "filters": {"category": 3}}, 400, "filters.category"),
        ({"query": "a", "filters": {"category": None}}, 400, "filters.category"),
        ({"query": "a", "filters": {"category": {"gte": 3}}}, 400, "filters.category"),
        ({"query": "a", "filters": {"category": [["tea"]]}}, 400, "filters.category"),
        ({"query": "a", "filters": {"organic": "yes"}}, 400, "filters.organic"),
        ({"query": "a", "filters": {"organic": 1}}, 400, "filters.organic"),
        ({"query": "a", "filters": {"price": "cheap"}}, 400, "filters.price"),
        ({"query": "a", "filters": {"price": True}}, 400, "filters.price"),
        ({"query": "a", "filters": {"price": {"between": 3}}}, 400, "filters.price"),
        ({"query": "a", "filters": {"price": {"lte": "3"}}}, 400, "filters.price.lte"),
        ({"query": "a", "filters": {"price": {"lte": 10**400}}}, 400, "filters.price.lte"),
        ({"query": "a", "filters": {"price": [1, None]}}, 400, "filters.price"),
        ([], 400, None),
        ("text", 400, None),
        (None, 400, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_body_is_refused_and_the_field_named(
    shared_endpoint: Endpoint, body: Any, status: int, field: str | None
) -> None:
    assert_problem(ask(shared_endpoint, body), status, field=field)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"not json",
        b'{"query": "a"} trailing',
        b'{"query": "\xff\xfe"}',
        b'{"query": "\\ud800"}',
        b'{"query": "a", "filters": {"category": "\\udfff"}}',
        b'{"query": "a", "filters": {"price": NaN}}',
        b'{"query": "a", "filters": {"price": 1e999}}',
        b'{"query": "a", "filters": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\x00",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_json_is_refused(shared_endpoint: Endpoint, content: bytes) -> None:
    assert_problem(send_raw(shared_endpoint, content), 400)


@pytest.mark.parametrize(
    "text", ["\u0000", "a\u0000b", "\u202e", "🍵" * 300, "ㅂㅈㄷ" * 50, "%s{}[]<>&;'\"\\", "1" * 5000]
)
def test_odd_text_is_only_text(shared_endpoint: Endpoint, text: str) -> None:
    for path in (QUERY, "/v1/apps/tea-orders/query"):
        answer = ask(shared_endpoint, {"query": text, "user": text[:10]}, path)
        assert answer.status_code == 200, answer.text


def test_a_long_body_is_refused_whether_announced_or_not(fresh_home: tuple[Path, MemoryStore]) -> None:
    with serve(*fresh_home, apps=["teas"], setup=Setup(limits=Limits(max_body_bytes=2048))) as endpoint:
        body = json.dumps({"query": "x" * 5000}).encode()
        assert "5013" in assert_problem(send_raw(endpoint, body), 413)["detail"]

        def pieces() -> Iterator[bytes]:  # sent chunked: no content-length
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        assert_problem(send_raw(endpoint, pieces()), 413)
        assert ask(endpoint, {"query": "x" * 1000}).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"), [("0.000001", 504), ("0", 504), ("-5", 504), ("nan", 504), ("soon", 400), ("", 400)]
)
def test_a_deadline_that_cannot_be_kept(shared_endpoint: Endpoint, header: str, status: int) -> None:
    answer = ask(shared_endpoint, {"query": "tea"}, **{"x-request-timeout-ms": header})
    assert_problem(answer, status)


def test_a_longer_deadline_than_the_apps_is_cut_to_it(shared_endpoint: Endpoint) -> None:
    for header in ("60000", "inf", "1e300"):
        assert ask(shared_endpoint, {"query": "tea"}, **{"x-request-timeout-ms": header}).status_code == 200


def test_what_does_not_exist(shared_endpoint: Endpoint) -> None:
    unknown = ask(shared_endpoint, {"query": "tea"}, "/v1/apps/nothing/query")
    assert "tea-orders" in assert_problem(unknown, 404, field="app")["detail"]
    assert (
        "palate index not-ready"
        in assert_problem(ask(shared_endpoint, {"query": "tea"}, "/v1/apps/not-ready/query"), 503)["detail"]
    )
    with shared_endpoint.client() as client:
        assert_problem(client.get("/v1/nothing"), 404)
        wrong = client.get(QUERY)
        assert_problem(wrong, 405)
        assert wrong.headers["allow"] == "POST"
        assert_problem(client.post("/healthz"), 405)
        assert_problem(client.post("/v1/apps/a%2F..%00b/query", json={"query": "tea"}), 404)


def test_a_client_that_hangs_up_costs_nobody_else(shared_endpoint: Endpoint) -> None:
    host, port = shared_endpoint.url.removeprefix("http://").split(":")
    head = (
        f"POST {QUERY} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {shared_endpoint.key}\r\ncontent-length: 99\r\n\r\n"
    )
    for sent in (head[:20], head, head + '{"query": "t'):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent.encode())
    assert shared_endpoint.ids("teas", "red rock kettle")[0] == "TEA043"


class Gate:
    """Queries that are under way until `open` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = 0

    def load(self, version: ReleaseVersion) -> LoadedRelease:
        async def understand(queries: Sequence[Query]) -> list[list[Understood]]:
            return [[Understood(query, query.text)] for query in queries]

        async def retrieve(queries: Sequence[Query]) -> list[Result]:
            if queries[0].text == "slow":
                self.begun += 1
                await asyncio.to_thread(self.open.wait)
            return [Result([Candidate("A", 1.0, "rules")]) for _ in queries]

        spec = AppSpec.model_validate(version.release.spec)
        return LoadedRelease(spec, Pipeline(understand, retrieve), close=lambda: None, concurrency=1)


def test_a_full_queue_refuses_at_once_and_the_others_are_answered(tmp_path: Path) -> None:
    gate, releases = Gate(), MemoryStore()
    bare_release(releases, made_up_spec("teas"))
    limits = Limits(max_queue=2, max_batch=1)
    answers: list[httpx.Response] = []
    with serve(tmp_path, releases, ["teas"], Setup(limits=limits, load=gate.load)) as endpoint:
        try:
            threads = [
                threading.Thread(target=lambda: answers.append(ask(endpoint, {"query": "slow"}))) for _ in range(3)
            ]
            for n, thread in enumerate(threads):
                thread.start()
                wait_for(lambda n=n: gate.begun == 1 and waiting(endpoint) == n)  # type: ignore[misc]
            refused = ask(endpoint, {"query": "slow"})
            assert_problem(refused, 429)
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            gate.open.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3


def waiting(endpoint: Endpoint) -> int:
    with endpoint.client("") as client:
        text = client.get("/metrics").text
    [depth] = [line for line in text.splitlines() if line.startswith('palate_queue_depth{app="teas"}')]
    return int(float(depth.split()[-1]))


def test_a_deadline_that_passes_under_way_is_504(tmp_path: Path) -> None:
    gate, releases = Gate(), MemoryStore()
    bare_release(releases, made_up_spec("teas", deadline_s=0.2))
    with serve(tmp_path, releases, ["teas"], Setup(load=gate.load)) as endpoint:
        try:
            assert_problem(ask(endpoint, {"query": "slow"}), 504)
        finally:
            gate.open.set()
        assert ask(endpoint, {"query": "quick"}).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FILTERS = st.dictionaries(st.sampled_from(["category", "price", "organic", "other"]), JSON, max_size=3)
BODIES = JSON | st.fixed_dictionaries(
    {},
    optional={
        "query": st.text(max_size=60) | JSON,
        "queries": st.lists(st.text(max_size=20) | JSON, max_size=5),
        "top_k": st.integers(-2, 120) | JSON,
        "filters": FILTERS | JSON,
        "user": st.text(max_size=10) | JSON,
        "session": JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, app=st.sampled_from(["teas", "tea-orders"]))
def test_no_json_body_makes_the_server_fail(shared_endpoint: Endpoint, body: Any, app: str) -> None:
    with shared_endpoint.client(**{"content-type": "application/json"}) as client:
        answer = client.post(f"/v1/apps/{app}/query", content=json.dumps(body))
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.status_code != 200:
        assert_problem(answer, answer.status_code)
    else:
        answer.json()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(shared_endpoint: Endpoint, content: bytes) -> None:
    assert send_raw(shared_endpoint, content).status_code == 400
