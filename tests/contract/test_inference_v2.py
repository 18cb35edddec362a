"""The Open Inference Protocol v2, asked of both servers that speak it: the router's `/v2`, and the container of a
KServe InferenceService (`palate kserve-server`, a process of its own). The `kserve` client and a client made by hand
from the protocol's text pass the same tests."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import kserve
import numpy as np
import orjson
import pytest

from registry.mlflow_store import MlflowStore
from registry.net import free_port
from tests.endpoint import Endpoint, made_up_spec, publish, serve
from tests.waiting import wait_for

APP = "teas"
TEXTS = ["blue hill green tea", "은빛 강 홍차"]
FIRST = ["TEA000", "TEA011"]


class Server(NamedTuple):
    url: str
    key: str
    stranger: str
    """A key that may not query."""
    version: str


@pytest.fixture(scope="module")
def router(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Server]]:
    home = tmp_path_factory.mktemp("v2") / "home"
    releases = MlflowStore(mlflow_uri)
    version = publish(home, releases, made_up_spec(APP))
    with serve(home, releases, [APP]) as endpoint:
        _, stranger = endpoint.new_key(["feedback"])
        yield endpoint, Server(endpoint.url, endpoint.key, stranger, str(version.version))


@pytest.fixture(scope="module")
def container(
    router: tuple[Endpoint, Server], mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with started(*router, mlflow_uri, tmp_path_factory.mktemp("container")) as (server, _):
        yield server


@contextmanager
def started(
    endpoint: Endpoint, server: Server, mlflow_uri: str, folder: Path, *arguments: str
) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """The container once it is ready."""
    port = free_port()
    env = {
        **os.environ,
        "PALATE_HOME": str(endpoint.config.home),
        "PALATE_MLFLOW_URI": mlflow_uri,
        "PALATE_LOG": str(folder / "log.jsonl"),
        "PALATE_THREADS": "1",
        "PALATE_TRAFFIC_POLL_S": "0.05",
    }
    command = [sys.executable, "-m", "serving.cli", "kserve-server", "--app", APP, "--port", str(port), *arguments]
    with (
        (folder / "output").open("wb") as output,
        subprocess.Popen(command, env=env, stdout=output, stderr=output) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: process.poll() is not None or _is_ready(url), 240)
            assert process.poll() is None, (folder / "output").read_text()
            yield server._replace(url=url), process
        finally:
            process.terminate()
            assert process.wait(120) in (0, -15), (folder / "output").read_text()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(params=["router", "container"])
def server(request: pytest.FixtureRequest, router: tuple[Endpoint, Server]) -> Server:
    return router[1] if request.param == "router" else request.getfixturevalue("container")


class Answer(NamedTuple):
    id: str
    trace_id: str
    outputs: dict[str, np.ndarray[Any, Any]]


Client = Callable[..., Answer]


def by_kserve(server: Server, texts: list[str], *, binary: bool = False, **parameters: Any) -> Answer:
    """With the client that KServe ships."""
    tensor = kserve.InferInput("query", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object), binary_data=binary)
    asked = kserve.InferRequest(APP, [tensor], request_id="r1", parameters={**parameters, "binary_data_output": binary})

    async def ask() -> Any:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        return await client.infer(server.url, asked, APP, headers={"authorization": f"Bearer {server.key}"})

    got = asyncio.run(ask())
    return Answer(
        got.id,
        got.parameters["trace_id"],
        {output.name: output.as_numpy() for output in got.outputs},
    )


def by_hand(server: Server, texts: list[str], *, binary: bool = False, **parameters: Any) -> Answer:
    """With the protocol's text in one hand and a socket in the other."""
    tensor: dict[str, Any] = {"name": "query", "datatype": "BYTES", "shape": [len(texts)]}
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    if binary:
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        tensor["data"] = texts
    head = orjson.dumps({"id": "r1", "parameters": {**parameters, "binary_data_output": binary}, "inputs": [tensor]})
    headers = {"content-type": "application/octet-stream" if binary else "application/json"}
    if binary:
        headers["inference-header-content-length"] = str(len(head))
    status, sent, body = exchange(server, f"/v2/models/{APP}/infer", head + (raw if binary else b""), headers)
    assert status == 200, body
    size = int(sent.get("inference-header-content-length", len(body)))
    said, rest = orjson.loads(body[:size]), body[size:]
    outputs = {}
    for output in said["outputs"]:
        data = output.get("data")
        if data is None:
            length = output["parameters"]["binary_data_size"]
            data, rest = _decoded(output["datatype"], rest[:length]), rest[length:]
        kind = {"BYTES": object, "FP32": np.float32, "BOOL": bool}[output["datatype"]]
        outputs[output["name"]] = np.array(data, dtype=kind).reshape(output["shape"])
    assert not rest
    return Answer(said["id"], said["parameters"]["trace_id"], outputs)


def _decoded(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "FP32":
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    if datatype == "BOOL":
        return [byte == 1 for byte in raw]
    texts = []
    while raw:
        (length,) = struct.unpack("<I", raw[:4])
        texts.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return texts


def exchange(server: Server, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """One POST over a socket, written and read by hand."""
    host, port = server.url.removeprefix("http://").split(":")
    sent = {"host": host, "connection": "close", "content-length": str(len(body)), **headers}
    sent.setdefault("authorization", f"Bearer {server.key}")
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items() if value), "", ""]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = received.partition(b"\r\n\r\n")
    first, *others = head.decode().split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in others)
    content = _unchunked(rest) if found.get("transfer-encoding") == "chunked" else rest
    return int(first.split()[1]), found, content


def _unchunked(rest: bytes) -> bytes:
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(chunks)


def texts_of(tensor: np.ndarray[Any, Any]) -> list[Any]:
    """A BYTES tensor as texts, nested as it is."""
    return [
        texts_of(value) if isinstance(value, np.ndarray) else value.decode() if isinstance(value, bytes) else value
        for value in tensor
    ]


CLIENTS = pytest.mark.parametrize("client", [by_kserve, by_hand])
BINARY = pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])


@CLIENTS
@BINARY
def test_texts_are_answered_in_order(server: Server, client: Client, binary: bool) -> None:
    answer = client(server, TEXTS, binary=binary, top_k=3)
    assert answer.id == "r1"
    assert set(answer.outputs) == {"ids", "scores", "fields", "abstained", "trace_ids"}
    ids = texts_of(answer.outputs["ids"])
    assert [row[0] for row in ids] == FIRST
    rows, columns = answer.outputs["scores"].shape
    assert rows == 2
    assert 1 <= columns <= 3
    assert np.all(np.diff(answer.outputs["scores"][0]) <= 0)
    assert orjson.loads(texts_of(answer.outputs["fields"])[0][0]) == {
        "ko": "푸른 언덕 녹차",
        "en": "Blue Hill green tea",
    }
    assert answer.outputs["abstained"].tolist() == [False, False]
    assert texts_of(answer.outputs["trace_ids"])[0] == answer.trace_id


@CLIENTS
def test_parameters_are_those_of_a_query(server: Server, client: Client) -> None:
    answer = client(server, ["blue hill"], top_k=2, filters='{"category": "coffee"}', user="u1")
    assert 1 <= answer.outputs["ids"].shape[1] <= 2
    assert all(id_.endswith("2") for id_ in texts_of(answer.outputs["ids"])[0])  # the coffees


@CLIENTS
def test_rows_are_as_long_as_the_longest(server: Server, client: Client) -> None:
    answer = client(server, ["TEA034", "zzzzqqq"], top_k=5, filters='{"category": "ware"}')
    ids, scores = texts_of(answer.outputs["ids"]), answer.outputs["scores"]
    assert len(ids[0]) == len(ids[1]) == scores.shape[1]
    short = ids[1].index("")  # what nothing is like has fewer results
    assert all(score == 0 for score in scores[1][short:])


def test_the_trace_takes_feedback(server: Server, router: tuple[Endpoint, Server]) -> None:
    trace_id = by_hand(server, TEXTS[:1]).trace_id
    body = {"trace_id": trace_id, "event": "select", "item_id": "TEA000"}
    answer = httpx.post(
        f"{server.url}/v1/apps/{APP}/feedback", json=body, headers={"authorization": f"Bearer {server.key}"}
    )
    assert answer.status_code < 300, answer.text
    traces = router[0].stores.feedback
    wait_for(lambda: traces.trace(trace_id) is not None)
    trace = traces.trace(trace_id)
    assert trace is not None
    assert (trace.release, trace.query) == (server.version, TEXTS[0])


def test_outputs_are_chosen_by_name(server: Server) -> None:
    tensor = {"name": "query", "datatype": "BYTES", "shape": [1], "data": TEXTS[:1]}
    asked = {"inputs": [tensor], "outputs": [{"name": "answers"}, {"name": "ids", "parameters": {"binary_data": True}}]}
    status, sent, body = exchange(
        server, f"/v2/models/{APP}/infer", orjson.dumps(asked), {"content-type": "application/json"}
    )
    assert status == 200, body
    said = orjson.loads(body[: int(sent["inference-header-content-length"])])
    assert (said["model_name"], said["model_version"]) == (APP, server.version)
    answers, ids = said["outputs"]
    assert orjson.loads(answers["data"][0])["results"][0]["id"] == "TEA000"
    assert "data" not in ids
    assert ids["parameters"]["binary_data_size"] == len(body) - int(sent["inference-header-content-length"])


GOOD: dict[str, Any] = {"name": "query", "datatype": "BYTES", "shape": [1], "data": ["tea"]}
BAD: list[tuple[str, Any, str]] = [
    ("no json", b"{", ""),
    ("no inputs", {}, "inputs"),
    ("another input", {"inputs": [{**GOOD, "name": "text"}]}, "query"),
    ("two inputs", {"inputs": [GOOD, GOOD]}, "one input"),
    ("another datatype", {"inputs": [{**GOOD, "datatype": "FP32", "data": [1.0]}]}, ""),
    ("another shape", {"inputs": [{**GOOD, "shape": [2]}]}, "shape"),
    ("an unknown parameter", {"inputs": [GOOD], "parameters": {"topk": 3}}, "topk"),
    ("an unknown output", {"inputs": [GOOD], "outputs": [{"name": "vectors"}]}, "vectors"),
    ("filters that are no json", {"inputs": [GOOD], "parameters": {"filters": "{"}}, "filters"),
    ("a filter on nothing", {"inputs": [GOOD], "parameters": {"filters": '{"colour": 1}'}}, "colour"),
    ("top_k that is no number", {"inputs": [GOOD], "parameters": {"top_k": "3"}}, "top_k"),
    ("an empty text", {"inputs": [{**GOOD, "data": [" "]}]}, "empty"),
]


@pytest.mark.parametrize(("body", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_wrong_is_said_in_error(server: Server, body: Any, says: str) -> None:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    status, _, answer = exchange(server, f"/v2/models/{APP}/infer", content, {"content-type": "application/json"})
    assert status in (400, 422), answer
    assert says in answer.decode()
    if status == 400:
        assert isinstance(orjson.loads(answer)["error"], str)


@pytest.mark.parametrize(("key", "status"), [("nonsense", 401), ("stranger", 403)])
def test_a_key_is_needed(server: Server, key: str, status: int) -> None:
    given = server.stranger if key == "stranger" else key
    content = orjson.dumps({"inputs": [GOOD]})
    headers = {"content-type": "application/json", "authorization": f"Bearer {given}"}
    got, _, body = exchange(server, f"/v2/models/{APP}/infer", content, headers)
    assert got == status
    assert "error" in orjson.loads(body)


def test_an_app_that_is_not_there(server: Server) -> None:
    content = orjson.dumps({"inputs": [GOOD]})
    status, _, body = exchange(server, "/v2/models/nothing/infer", content, {"content-type": "application/json"})
    assert status == 404
    assert "nothing" in orjson.loads(body)["error"]
    assert httpx.get(f"{server.url}/v2/models/nothing/ready").status_code == 404


def test_health_and_metadata(server: Server) -> None:
    async def ask() -> tuple[Any, ...]:
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
        return (
            await client.is_server_live(server.url),
            await client.is_server_ready(server.url),
            await client.is_model_ready(server.url, APP),
        )

    assert asyncio.run(ask()) == (True, True, True)
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}) as client:
        said = client.get("/v2").json()
        assert {"name", "version", "extensions"} <= set(said)
        model = client.get(f"/v2/models/{APP}").json()
    assert model["name"] == APP
    assert model["inputs"] == [{"name": "query", "datatype": "BYTES", "shape": [-1]}]
    assert {output["name"]: output["datatype"] for output in model["outputs"]}["scores"] == "FP32"


def test_the_container_speaks_the_other_protocols_too(container: Server) -> None:
    with httpx.Client(base_url=container.url, headers={"authorization": f"Bearer {container.key}"}) as client:
        answer = client.post(f"/v1/apps/{APP}/query", json={"query": TEXTS[0]}).json()
        assert answer["results"][0]["id"] == "TEA000"
        assert [model["id"] for model in client.get("/openai/v1/models").json()["data"]] == [APP]
        assert "palate_requests" in client.get("/metrics").text


def test_what_is_in_flight_at_sigterm_has_the_time_that_was_said(
    router: tuple[Endpoint, Server], mlflow_uri: str, tmp_path: Path
) -> None:
    """kserve's own are 30 s, whatever the pod is given. A request whose body does not end is in flight."""
    with started(*router, mlflow_uri, tmp_path, "--drain-s", "3") as (server, process):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as caller:
            head = f"POST /v1/apps/{APP}/query HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.key}\r\n"
            caller.sendall(f"{head}content-type: application/json\r\ncontent-length: 999\r\n\r\n{{".encode())
            time.sleep(1)  # until it is read: nothing tells the caller
            process.terminate()
            began = time.monotonic()
            process.wait(60)
            assert 2.5 < time.monotonic() - began < 20
