"""Who may call the endpoint, and how often."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from registry.memory_store import MemoryStore
from serving.config import Limits
from tests.endpoint import Endpoint, Setup, serve
from tests.problem import assert_problem

ROUTES = [
    ("POST", "/v1/apps/teas/query", "query"),
    ("POST", "/v1/apps/teas/feedback", "feedback"),
    ("GET", "/v1/apps/teas/items", "items"),
    ("PUT", "/v1/apps/teas/items", "items"),
    ("DELETE", "/v1/apps/teas/items", "items"),
    ("POST", "/v1/embeddings", "query"),
    ("GET", "/v1/models", "query"),
    ("GET", "/v1/apps", "query"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_every_route_wants_a_key_with_its_scope(shared_endpoint: Endpoint, method: str, path: str, scope: str) -> None:
    def send(authorization: str | None) -> httpx.Response:
        headers = {} if authorization is None else {"authorization": authorization}
        with shared_endpoint.client("") as client:
            return client.request(method, path, json={}, headers=headers)

    unknown = f"Bearer pk_{'0' * 12}_{'0' * 48}"
    good = shared_endpoint.key
    wrong = (None, "", "Bearer", "Basic eDp5", unknown, good, f"Bearer {good}x", f"Bearer {good[:-1]}")
    for authorization in wrong:
        refused = send(authorization)
        body = assert_problem(refused, 401)
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert good not in body["detail"]
    others = {"query", "feedback", "items", "admin"} - {scope}
    _, without = shared_endpoint.new_key(others)
    assert repr(scope) in assert_problem(send(f"Bearer {without}"), 403)["detail"]
    _, with_it = shared_endpoint.new_key({scope})
    assert send(f"bearer {with_it}").status_code not in (401, 403)


def test_a_key_for_one_app_sees_no_other(shared_endpoint: Endpoint) -> None:
    _, key = shared_endpoint.new_key(apps=["tea-orders"])
    with shared_endpoint.client(key) as client:
        assert client.post("/v1/apps/tea-orders/query", json={"query": "tea"}).status_code == 200
        assert_problem(client.post("/v1/apps/teas/query", json={"query": "tea"}), 403, field="app")
        assert_problem(client.get("/v1/apps/teas/items"), 403, field="app")
        assert_problem(client.post("/v1/embeddings", json={"model": "teas", "input": "tea"}), 403, field="app")
        # Whether an app exists is nobody's business either.
        assert_problem(client.post("/v1/apps/nothing/query", json={"query": "tea"}), 403, field="app")
        assert [app["name"] for app in client.get("/v1/apps").json()["apps"]] == ["tea-orders"]
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tea-orders"]


def test_a_revoked_key_is_refused(shared_endpoint: Endpoint) -> None:
    key_id, key = shared_endpoint.new_key()
    with shared_endpoint.client(key) as client:
        assert client.get("/v1/apps").status_code == 200
        shared_endpoint.services.keys.revoke(key_id)
        assert "revoked" in assert_problem(client.get("/v1/apps"), 401)["detail"]


def test_a_key_that_asks_too_often_is_told_when_to_come_back(shared_endpoint: Endpoint) -> None:
    _, key = shared_endpoint.new_key(rate_per_s=0.01, burst=3)
    with shared_endpoint.client(key) as client:
        assert [client.get("/v1/apps").status_code for _ in range(3)] == [200] * 3
        refused = client.post("/v1/apps/teas/query", json={"query": "tea"})
        assert_problem(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert shared_endpoint.ids("teas", "blue hill teacup")[0] == "TEA004"  # other keys go on


def test_the_default_rate_holds_for_keys_without_one(fresh_home: tuple[Path, MemoryStore]) -> None:
    with serve(*fresh_home, apps=["teas"], setup=Setup(limits=Limits(rate_per_s=0.01))) as endpoint:
        with endpoint.client() as client:
            assert client.get("/v1/models").status_code == 200
            assert_problem(client.get("/v1/models"), 429)
        _, fast = endpoint.new_key(rate_per_s=1000)
        with endpoint.client(fast) as client:
            assert {client.get("/v1/models").status_code for _ in range(20)} == {200}


def test_liveness_readiness_and_metrics_need_no_key(shared_endpoint: Endpoint) -> None:
    with shared_endpoint.client("") as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/metrics").status_code == 200
        assert client.get("/openapi.json").status_code == 200
        ready = client.get("/readyz")
    assert ready.status_code == 503  # `not-ready` has no release
    assert set(ready.json()["problems"]) == {"not-ready"}
