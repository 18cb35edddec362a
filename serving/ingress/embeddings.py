"""The OpenAI protocol: POST /v1/embeddings and GET /v1/models, with the app as the model."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from serving.errors import BadRequest, NotFound, TooLarge
from serving.ingress.access import (
    PIN_HEADER,
    PIN_PARAMETER,
    admit,
    may_use,
    pin_of,
    read_body,
    require_app,
    services_of,
)
from serving.ingress.models import EmbeddingsRequest, parse
from serving.ingress.problems import trace_id_of

routes = APIRouter()


@routes.post("/v1/embeddings", response_class=Response, tags=["openai"], openapi_extra={"parameters": [PIN_PARAMETER]})
async def embeddings(request: Request) -> Response:
    """Embed texts with an app's embedder. Vectors have unit length."""
    services = services_of(request)
    key = await admit(request, "query")
    wanted = parse(EmbeddingsRequest, await read_body(request))
    require_app(key, wanted.model)
    pin = pin_of(request, key)
    try:
        served = services.router.served(wanted.model)
    except NotFound as error:
        raise NotFound(error.detail, field="model") from None
    if pin is not None:
        served = services.router.pinned(wanted.model, pin, PIN_HEADER)
    texts = wanted.input
    limit = services.config.limits.max_items
    if not texts:
        raise BadRequest("input is empty: send a text or a list of texts", field="input")
    if len(texts) > limit:
        raise TooLarge(f"{len(texts)} inputs; at most {limit} are taken at once", field="input")
    vectors = await served.embed(texts)
    if wanted.dimensions is not None and wanted.dimensions != vectors.shape[1]:
        raise BadRequest(
            f"dimensions is {wanted.dimensions}, but {wanted.model}'s vectors have {vectors.shape[1]}",
            field="dimensions",
        )
    data = [
        {"object": "embedding", "index": i, "embedding": _encode(vector, wanted.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    body: dict[str, Any] = {"object": "list", "data": data, "model": wanted.model}
    if (tokens := await served.count_tokens(texts)) is not None:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    headers = {"x-trace-id": trace_id_of(request), "x-palate-release": served.version}
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type="application/json"
    )


@routes.get("/v1/models", response_class=Response, tags=["openai"])
async def models(request: Request) -> Response:
    """The apps, as the models of the OpenAI protocol, and their bare language models."""
    key = await admit(request, "query")
    names: list[str] = []
    for name, served in services_of(request).router.apps().items():
        if may_use(key, name):
            names.append(name)
            names += [f"{name}:base"] if served is not None and served.spec.language_model is not None else []
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "palate"} for name in names]
    headers = {"x-trace-id": trace_id_of(request)}
    return Response(orjson.dumps({"object": "list", "data": data}), headers=headers, media_type="application/json")


def _encode(vector: np.ndarray[Any, np.dtype[np.float32]], encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return np.ascontiguousarray(vector)
