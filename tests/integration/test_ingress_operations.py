"""What operators and OpenAI clients ask of the endpoint: readiness, metrics, the document, models and embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry.memory_store import MemoryStore
from registry.schema import ReleaseVersion
from serving.fakes import FakeEmbedder
from serving.pipeline import Pipeline
from serving.ports import Vectors
from serving.router import LoadedRelease
from serving.schema import AppSpec, Query, Result, Understood
from tests.endpoint import Endpoint, Setup, bare_release, made_up_spec, serve
from tests.problem import assert_problem

ROUTES = {
    "/v2": {"get"},
    "/v2/health/live": {"get"},
    "/v2/health/ready": {"get"},
    "/v2/models/{app}": {"get"},
    "/v2/models/{app}/ready": {"get"},
    "/v2/models/{app}/infer": {"post"},
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/apps/{app}/query": {"post"},
    "/v1/apps/{app}/feedback": {"post"},
    "/v1/apps/{app}/items": {"get", "put", "delete"},
    "/v1/apps": {"get"},
    "/v1/embeddings": {"post"},
    "/v1/models": {"get"},
    "/v1/apps/{app}/releases": {"get"},
    "/v1/apps/{app}/rollout": {"get", "post"},
    "/v1/apps/{app}/rollouts": {"get"},
    "/v1/apps/{app}/rollouts/{number}": {"get"},
    "/v1/apps/{app}/rollouts/{number}/report": {"get"},
    "/v1/webhooks/mlflow": {"post"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}
OPEN = (
    "/healthz", "/readyz", "/metrics", "/v1/webhooks/mlflow",
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{app}/ready",
)  # fmt: skip
"""Routes without a key; the webhook is signed."""


def embed(endpoint: Endpoint, body: Any) -> httpx.Response:
    with endpoint.client() as client:
        return client.post("/v1/embeddings", json=body)


def test_embeddings_in_the_openai_protocol(dense_endpoint: Endpoint) -> None:
    texts = ["blue hill green tea", "푸른 언덕 녹차", ""]
    answer = embed(dense_endpoint, {"model": "dense-teas", "input": texts, "user": "ignored by the protocol"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-trace-id"]
    assert answer.headers["x-palate-release"] == dense_endpoint.release("dense-teas")
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", "dense-teas")
    assert [(d["object"], d["index"]) for d in body["data"]] == [("embedding", n) for n in range(3)]
    vectors = np.array([d["embedding"] for d in body["data"]], np.float32)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)

    coded = embed(dense_endpoint, {"model": "dense-teas", "input": texts, "encoding_format": "base64"}).json()["data"]
    decoded = np.array([np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in coded])
    assert np.array_equal(decoded, vectors)  # the second time from the cache
    one = embed(dense_endpoint, {"model": "dense-teas", "input": texts[0], "dimensions": 384}).json()["data"]
    assert np.array_equal(np.array(one[0]["embedding"], np.float32), vectors[0])


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"model": "nothing"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"input": []}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": 3}, 400, "input"),
        ({"input": [1, 2]}, 400, "input.0"),
        ({"input": ["ok", None]}, 400, "input.1"),
        ({"input": ["x"] * 1001}, 413, "input"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"dimensions": 100}, 400, "dimensions"),
        ({"dimensions": 0}, 400, "dimensions"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_embedding_requests_are_refused(
    dense_endpoint: Endpoint, change: dict[str, Any], status: int, field: str
) -> None:
    assert_problem(embed(dense_endpoint, {"model": "dense-teas", "input": "tea", **change}), status, field=field)


def test_an_app_without_a_dense_source_embeds_nothing(shared_endpoint: Endpoint) -> None:
    assert_problem(embed(shared_endpoint, {"model": "teas", "input": "tea"}), 404, field="model")
    assert_problem(embed(shared_endpoint, {"model": "not-ready", "input": "tea"}), 503)


class Embeds:
    """Loads a release that embeds with the fake, and knows its tokens only if told to count."""

    def __init__(self, counts: bool) -> None:
        self._embedder = FakeEmbedder()
        self._counts = counts

    def load(self, version: ReleaseVersion) -> LoadedRelease:
        async def understand(queries: Sequence[Query]) -> list[list[Understood]]:
            return [[Understood(query, query.text)] for query in queries]

        async def retrieve(queries: Sequence[Query]) -> list[Result]:
            return [Result([], abstained=True) for _ in queries]

        async def embed(texts: Sequence[str]) -> Vectors:
            return await asyncio.to_thread(self._embedder.embed, texts)

        spec = AppSpec.model_validate(version.release.spec)
        count = self._embedder.count_tokens if self._counts else None
        return LoadedRelease(spec, Pipeline(understand, retrieve), lambda: None, embed, count_tokens=count)


@pytest.mark.parametrize("counts", [True, False])
def test_usage_is_true_or_absent(tmp_path: Path, counts: bool) -> None:
    releases = MemoryStore()
    bare_release(releases, made_up_spec("teas"))
    with serve(tmp_path, releases, ["teas"], Setup(load=Embeds(counts).load)) as endpoint:
        body = embed(endpoint, {"model": "teas", "input": ["tea", "cup"]}).json()
    assert body.get("usage") == ({"prompt_tokens": 8, "total_tokens": 8} if counts else None)


def test_apps_and_models(shared_endpoint: Endpoint) -> None:
    with shared_endpoint.client() as client:
        apps = client.get("/v1/apps")
        models = client.get("/v1/models")
    assert apps.headers["x-trace-id"]
    assert models.headers["x-trace-id"]
    assert {m["id"] for m in models.json()["data"]} == {"teas", "tea-orders", "not-ready"}
    by_name = {app["name"]: app for app in apps.json()["apps"]}
    assert by_name["teas"] == {
        "name": "teas",
        "ready": True,
        "release": "1",
        "description": "Made-up teas.",
        "items": 60,
        "example_query": "blue hill green tea",
    }
    assert by_name["not-ready"]["ready"] is False
    assert "palate index not-ready" in by_name["not-ready"]["problem"]


def test_ready_when_every_app_serves(dense_endpoint: Endpoint) -> None:
    with dense_endpoint.client("") as client:
        ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "problems": {}})


def samples(endpoint: Endpoint) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with endpoint.client("") as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_move_with_what_happens(dense_endpoint: Endpoint) -> None:
    app = {"app": "dense-teas"}
    release = {**app, "release": dense_endpoint.release("dense-teas")}
    before = samples(dense_endpoint)
    for text in ("winter garden teacup", "winter garden teacup", "round pebble kettle"):
        dense_endpoint.ids("dense-teas", text)
    with dense_endpoint.client() as client:
        assert client.post("/v1/apps/dense-teas/query", json={"query": ""}).status_code == 400
    after = samples(dense_endpoint)

    def grew(name: str, labels: Mapping[str, str]) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before.get(key, 0.0)

    query = {**release, "route": "query"}
    assert grew("palate_requests_total", {**query, "status": "200"}) == 3
    assert grew("palate_requests_total", {**query, "status": "400"}) == 1
    assert grew("palate_request_seconds_count", query) == 4
    for phase in ("understand", "retrieve"):
        assert grew("palate_phase_seconds_count", {**release, "phase": phase}) == 3
    assert grew("palate_batch_size_sum", app) == 3
    assert grew("palate_embedding_cache_total", {**app, "outcome": "miss"}) == 2
    assert grew("palate_embedding_cache_total", {**app, "outcome": "hit"}) == 1
    assert after["palate_queue_depth", frozenset(app.items())] == 0
    assert after["palate_release_serving", frozenset(release.items())] == 1
    decided = [
        v for (name, labels), v in after.items() if name == "palate_lines_decided_total" and set(app.items()) <= labels
    ]
    assert sum(decided) >= 3


def document(endpoint: Endpoint) -> dict[str, Any]:
    with endpoint.client("") as client:
        return dict(client.get("/openapi.json").json())


def test_the_document_has_every_route_with_its_security(shared_endpoint: Endpoint) -> None:
    api = document(shared_endpoint)
    assert api["openapi"].startswith("3.1")
    assert {path: set(operations) for path, operations in api["paths"].items()} == ROUTES
    for path, operations in api["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in OPEN), path
            assert "422" not in operation["responses"]
            kind = "json" if path.endswith("completions") else "problem+json"
            assert f"application/{kind}" in operation["responses"]["default"]["content"]
            assert operation["summary"]
            names = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert names == set(re.findall(r"{(\w+)}", path))
    listing = api["paths"]["/v1/apps/{app}/items"]
    assert {p["name"] for p in listing["get"]["parameters"]} == {"app", "limit", "cursor", "id"}
    assert {p["name"] for p in listing["delete"]["parameters"]} == {"app", "id"}


def test_the_documents_references_and_examples_hold(shared_endpoint: Endpoint) -> None:
    api = document(shared_endpoint)
    schemas = api["components"]["schemas"]
    references = [part.split('"')[0] for part in json.dumps(api).split('"#/components/schemas/')[1:]]
    assert set(references) <= set(schemas)
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        whole = {**schema, "components": api["components"]}
        for example in schema.get("examples", ()):
            jsonschema.validate(example, whole)
        if name.endswith("Request"):
            assert schema.get("examples"), f"{name} has no example"


def test_answers_are_what_the_document_says(shared_endpoint: Endpoint) -> None:
    api = document(shared_endpoint)

    def check(answer: httpx.Response, path: str, method: str) -> None:
        responses = api["paths"][path][method]["responses"]
        response = responses.get(str(answer.status_code), responses["default"])
        kind = answer.headers["content-type"]
        jsonschema.validate(answer.json(), {**response["content"][kind]["schema"], "components": api["components"]})

    path = "/v1/apps/{app}/query"
    with shared_endpoint.client() as client:
        for app, body in [
            ("teas", {"query": "tea"}),
            ("teas", {"queries": ["tea", "cup"]}),
            ("tea-orders", {"query": "blue hill teacup 3병"}),
            ("teas", {"query": ""}),
            ("nothing", {"query": "a"}),
        ]:
            check(client.post(path.format(app=app), json=body), path, "post")
