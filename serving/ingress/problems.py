"""Every error as one JSON problem body (RFC 9457), by the one table in `serving.errors`."""

from __future__ import annotations

import math
import uuid
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from serving.errors import STATUS, Overloaded, PalateError, PhaseFailed, Unauthorized
from serving.logs import get_log

log = get_log(__name__)

OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions")
"""Where errors have the shape of the OpenAI protocol; a server may put them behind a prefix."""
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def trace_id_of(request: Request) -> str:
    """The id of this request: set once the release is known, else made here so that errors carry one too."""
    if not hasattr(request.state, "trace_id"):
        request.state.trace_id = uuid.uuid4().hex
    return str(request.state.trace_id)


def status_of(error: PalateError) -> int:
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def problem(request: Request, error: PalateError) -> Response:
    status = status_of(error)
    headers = {"retry-after": str(math.ceil(error.retry_after_s))} if isinstance(error, Overloaded) else {}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="palate"'
    if status >= 500:
        log.error("request.failed", trace_id=trace_id_of(request), path=request.url.path, error=error.detail)
    return _body(request, status, error.title, error.detail, error.field, headers)


def install(api: FastAPI) -> None:
    async def on_palate_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, PalateError)
        return problem(request, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what there is"
        return _body(request, error.status_code, str(error.detail), detail, None, dict(error.headers or {}))

    async def on_anything_else(request: Request, error: Exception) -> Response:
        log.error("request.crashed", trace_id=trace_id_of(request), path=request.url.path, exc_info=error)
        return problem(request, PhaseFailed("an internal error; the log has it under this trace id", phase="ingress"))

    api.add_exception_handler(PalateError, on_palate_error)
    api.add_exception_handler(HTTPException, on_http_exception)
    api.add_exception_handler(Exception, on_anything_else)


def _body(
    request: Request, status: int, title: str, detail: str, field: str | None, headers: dict[str, str]
) -> Response:
    trace_id = trace_id_of(request)
    headers["x-trace-id"] = trace_id
    if request.url.path.endswith(OPENAI_PATHS):
        return Response(
            orjson.dumps(openai_error(status, detail, field)), status, headers, media_type="application/json"
        )
    body = _problem(status, title, detail, field, trace_id)
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def problem_json(error: PalateError, trace_id: str) -> dict[str, Any]:
    """The problem body, for what goes wrong after the status was sent."""
    return _problem(status_of(error), error.title, error.detail, error.field, trace_id)


def _problem(status: int, title: str, detail: str, field: str | None, trace_id: str) -> dict[str, Any]:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "trace_id": trace_id}
    return {**body, "field": field} if field else body


def openai_error(status: int, detail: str, field: str | None) -> dict[str, Any]:
    """The error body of the OpenAI protocol."""
    code = "model_not_found" if status == 404 and field == "model" else None
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": detail, "type": kind, "param": field, "code": code}}
