"""The Open Inference Protocol v2 (KServe, Triton and others speak it), with the app as the model.

A translation in front of the query route, which admits, routes, records and protects as for any other caller. Errors
are problem bodies with one member more, `error`, which is where clients of this protocol look.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.types import Message

from serving.errors import PalateError, StoreUnavailable
from serving.ingress import tensors
from serving.ingress.access import PIN_PARAMETER, admit, read_body, services_of
from serving.ingress.problems import problem
from serving.ingress.query import query
from serving.ingress.tensors import Inference

routes = APIRouter()
Read = Callable[[bytes], Inference]


@routes.get("/v2", response_class=Response, tags=["inference v2"])
async def server() -> Response:
    """The server's name, version and extensions of the protocol."""
    return _json({"name": "palate", "version": version("palate"), "extensions": ["binary_tensor_data"]})


@routes.get("/v2/health/live", response_class=Response, tags=["inference v2"])
async def live() -> Response:
    """The process answers."""
    return _json({"live": True})


@routes.get("/v2/health/ready", response_class=Response, tags=["inference v2"])
async def ready(request: Request) -> Response:
    """200 when every app's stable release has answered a real query here, else 503."""
    problems = services_of(request).router.problems()
    return _json({"ready": not problems}, 503 if problems else 200)


@routes.get("/v2/models/{app}", response_class=Response, tags=["inference v2"])
async def model(app: str, request: Request) -> Response:
    """Inputs and outputs of an app, and the release that is stable."""
    try:
        await admit(request, "query", app)
        return _json(tensors.metadata(app, services_of(request).router.served(app).version))
    except PalateError as error:
        return v2_problem(request, error)


@routes.get("/v2/models/{app}/ready", response_class=Response, tags=["inference v2"])
async def model_ready(app: str, request: Request) -> Response:
    """200 when the app's stable release has answered a real query here, 503 while not, 404 for no such app."""
    try:
        services_of(request).router.served(app)
    except StoreUnavailable:
        return _json({"name": app, "ready": False}, 503)
    except PalateError as error:
        return v2_problem(request, error)
    return _json({"name": app, "ready": True})


@routes.post(
    "/v2/models/{app}/infer",
    response_class=Response,
    tags=["inference v2"],
    openapi_extra={"parameters": [PIN_PARAMETER]},
)
async def infer(app: str, request: Request) -> Response:
    """Search an app's catalogue: the input `query` holds texts, `ids`, `scores` and `fields` come back."""
    kept: list[Inference] = []

    def read(body: bytes) -> Inference:
        kept.append(tensors.read(body, request.headers.get(tensors.SIZE_HEADER)))
        return kept[0]

    try:
        answered = await ask(app, request, read)
    except PalateError as error:
        return v2_problem(request, error)
    body, json_bytes = tensors.response(kept[0], orjson.loads(answered.body))
    headers = {"x-trace-id": answered.headers["x-trace-id"]}
    if json_bytes is None:
        return Response(body, headers=headers, media_type="application/json")
    headers[tensors.SIZE_HEADER] = str(json_bytes)
    return Response(body, headers=headers, media_type="application/octet-stream")


async def ask(app: str, request: Request, read: Read) -> Response:
    """What the query route answers to this request of the protocol; `read` makes sense of its body.

    The body is read when that route asks for it, which is after it has let the caller in. Raises PalateError.
    """

    async def receive() -> Message:
        return {"type": "http.request", "body": tensors.query_body(read(await read_body(request)))}

    request.scope.setdefault("state", {})  # shared: the trace id that the query route sets there is this request's
    return await query(app, Request({**request.scope, "headers": _without_length(request)}, receive))


def v2_problem(request: Request, error: PalateError) -> Response:
    """The problem body, as JSON with a member `error`."""
    answered = problem(request, error)
    body = orjson.loads(answered.body)
    answered.body = orjson.dumps({**body, "error": error.detail})
    answered.headers["content-length"] = str(len(answered.body))
    answered.headers["content-type"] = "application/json"
    return answered


def _without_length(request: Request) -> list[tuple[bytes, bytes]]:
    """The body that the query route gets has another length."""
    return [(name, value) for name, value in request.scope["headers"] if name != b"content-length"]


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
