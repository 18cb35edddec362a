"""What every route does first: who is it, may they, how much did they send."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import Request

from serving.errors import BadRequest, DeadlineExceeded, Forbidden, TooLarge

if TYPE_CHECKING:
    from serving.ingress.asgi import Services
    from serving.keys import ApiKey

DEADLINE_HEADER = "x-request-timeout-ms"
PIN_HEADER = "x-palate-release"
PIN_PARAMETER = {
    "name": "X-Palate-Release",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "A version, `stable`, `canary` or `control`: who answers, for keys with the scope `pin`.",
}
"""For /openapi.json."""


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def admit(request: Request, scope: str, app: str | None = None, cost: float = 1.0) -> ApiKey:
    """The key of a request that may do this now. Raises Unauthorized, Forbidden, Overloaded, StoreUnavailable."""
    services = services_of(request)
    header = request.headers.get("authorization")
    # Most requests find their key here; only one in some seconds asks the database, and not on the event loop.
    cached = services.keys.cached(header)
    key = cached if cached is not None else await asyncio.to_thread(services.keys.authenticate, header)
    if scope not in key.scopes:
        raise Forbidden(f"this route needs the scope {scope!r}; key {key.id!r} has {sorted(key.scopes)}")
    if app is not None:
        require_app(key, app)
    services.limiter.take(key, cost)
    return key


def may_use(key: ApiKey, app: str) -> bool:
    return key.apps is None or app in key.apps


def require_app(key: ApiKey, app: str) -> None:
    """Raises Forbidden when the key is not for this app."""
    if not may_use(key, app):
        raise Forbidden(f"key {key.id!r} is for {sorted(key.apps or ())}, not for {app!r}", field="app")


def pin_of(request: Request, key: ApiKey) -> str | None:
    """The release a request names for itself: a version, `stable`, `canary` or `control`. Raises Forbidden."""
    pin = request.headers.get(PIN_HEADER)
    if pin is not None and "pin" not in key.scopes:
        raise Forbidden(
            f"{PIN_HEADER} needs the scope 'pin'; key {key.id!r} has {sorted(key.scopes)}", field=PIN_HEADER
        )
    return pin


async def read_body(request: Request, most: int | None = None) -> bytes:
    """The whole body, `most` bytes (default: as configured). Raises TooLarge as soon as it is known to be, whatever
    content-length says."""
    limit = services_of(request).config.limits.max_body_bytes if most is None else most
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge(f"the body has {announced} bytes; at most {limit} are taken: send less at once")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes: send less at once")
        chunks.append(chunk)
    return b"".join(chunks)


def allowed_time_s(request: Request, default_s: float) -> float:
    """Seconds this request may take: the app's deadline, or less where the caller's header says so."""
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return default_s
    try:
        milliseconds = float(text)
    except ValueError:
        raise BadRequest(f"{DEADLINE_HEADER} must be milliseconds, not {text!r}", field=DEADLINE_HEADER) from None
    if not milliseconds > 0:
        raise DeadlineExceeded(f"{DEADLINE_HEADER} is {text}: no time is left")
    return min(milliseconds / 1000, default_s)
