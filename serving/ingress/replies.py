"""A generated answer, from the request to the last byte: what the query route and the OpenAI routes share.

`begin` returns once there is something to send, so that what goes wrong before has its own status code; a client that
leaves before or after ends the work in the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serving import metrics
from serving.arms import Asked, Told
from serving.errors import PalateError, PhaseFailed
from serving.generate.generator import Generated, Wish
from serving.ingress.access import PIN_HEADER, services_of
from serving.ingress.answers import answer_json, generated_json, to_ms, trace_of
from serving.ingress.problems import status_of
from serving.logs import get_log
from serving.router import ServedRelease
from serving.schema import Query, Trace
from serving.trace import Origin, new_token, stamp

if TYPE_CHECKING:
    from serving.ingress.asgi import Services

log = get_log(__name__)
T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request for an app: who serves it, since when (`time.monotonic`), and the first part of its trace id."""

    request: Request
    services: Services
    app: str
    route: str
    stable: ServedRelease
    pin: str | None
    started: float
    now: float
    token: str

    @classmethod
    def begin(cls, request: Request, app: str, route: str, pin: str | None) -> Call:
        """Gives the request its trace id. Raises NotFound, StoreUnavailable."""
        services = services_of(request)
        started, now = time.monotonic(), services.wall_clock()
        stable = services.router.served(app)
        token = new_token(now)
        request.state.trace_id = stamp(services.trace_secret, app, token, Origin(stable.version))
        return cls(request, services, app, route, stable, pin, started, now, token)

    def count(self, release: str, status: int) -> float:
        """The request in the metrics, once it ended; the seconds it took."""
        elapsed_s = time.monotonic() - self.started
        metrics.REQUESTS.labels(self.app, release, self.route, status).inc()
        metrics.REQUEST_SECONDS.labels(self.app, release, self.route).observe(elapsed_s)
        return elapsed_s


class Reply:
    """An answer whose first part is there. Iterate `texts`, then `finish`; and `close` it in any case."""

    def __init__(self, call: Call, query: Query, told: Told, recalled: bool) -> None:
        self.call = call
        self.query = query
        self.given = told.given
        self.trace_id = stamp(call.services.trace_secret, call.app, call.token, told.given.origin)
        call.request.state.trace_id = self.trace_id
        self._events = told.events
        self._recalled = recalled
        self._counted = False

    @property
    def generated(self) -> Generated:
        """The whole, after the last text."""
        assert self._events.generated is not None
        return self._events.generated

    async def texts(self) -> AsyncIterator[str]:
        """The parts of the answer's text, as they may be sent."""
        async for event in self._events:
            if isinstance(event, str):
                yield event

    def found(self) -> dict[str, Any]:
        """The answer without what is generated."""
        trace = trace_of(self.trace_id, self.given, self.query, self.given.answers[0], (self.call.now, 0.0))
        return answer_json(self.given.served, self.given.answers[0], trace)

    async def finish(self) -> dict[str, Any]:
        """Keep the trace and the session's turn; the whole answer as JSON."""
        call, answer, generated = self.call, self.given.answers[0], self.generated
        kept = await call.services.memory.remember(call.stable.spec, self.query, answer, generated.text)
        elapsed_s = call.count(self.given.served.version, 200)
        self._counted = True
        trace = trace_of(self.trace_id, self.given, self.query, answer, (call.now, elapsed_s), generated)
        self._keep(trace)
        log.info(
            call.route,
            trace_id=self.trace_id,
            app=call.app,
            release=self.given.served.version,
            ms=to_ms(elapsed_s),
            tokens=generated.usage.completion_tokens,
            fallback=generated.fallback,
        )
        body = {**answer_json(self.given.served, answer, trace), "answer": generated_json(generated)}
        if call.stable.spec.understand.memory is not None and self.query.session is not None:
            body["session"] = {"turns": len(self.query.history), "recalled": self._recalled, "kept": kept}
        return body

    def failed(self, error: Exception) -> PalateError:
        """What went wrong after the first text, as the caller may hear it."""
        told = error if isinstance(error, PalateError) else PhaseFailed("an internal error", phase="ingress")
        log.error("request.failed", trace_id=self.trace_id, error=repr(error), exc_info=told is not error)
        self.call.count(self.given.served.version, status_of(told))
        self._counted = True
        return told

    async def close(self) -> None:
        """Ends the work in the engine, if it goes on."""
        await self._events.aclose()
        if not self._counted:  # its reader left, and may still say what it thinks of the results
            elapsed_s = self.call.count(self.given.served.version, 499)
            self._keep(
                trace_of(self.trace_id, self.given, self.query, self.given.answers[0], (self.call.now, elapsed_s))
            )
            self._counted = True

    def _keep(self, trace: Trace) -> None:
        self.call.services.traces.record(trace)
        self.call.services.recent.remember(trace)


async def begin(call: Call, query: Query, wish: Wish, deadline: float) -> Reply:
    """Raises PalateError, as everything before the first text; ClientLeft."""
    services = call.services
    try:
        query, recalled = await services.memory.recall(call.stable.spec, query)
        asked = Asked(call.app, query.user or query.session, call.token, [query], deadline, wish)
        if call.pin is None:
            telling = services.arms.tell(asked)
        else:
            telling = services.arms.tell_pinned(asked, services.router.pinned(call.app, call.pin, PIN_HEADER))
        told = await unless_left(call.request, telling)
    except PalateError as error:
        call.count(call.stable.version, status_of(error))
        raise
    except ClientLeft:
        call.count(call.stable.version, 499)
        raise
    except Exception:
        call.count(call.stable.version, 500)
        raise
    return Reply(call, query, told, recalled)


async def whole(reply: Reply) -> dict[str, Any]:
    """The finished answer. Raises PalateError, ClientLeft."""
    try:
        async for _ in reply.texts():
            pass
        return await reply.finish()
    except Exception as error:  # noqa: BLE001 - what is no PalateError is logged there, and told as one
        raise reply.failed(error) from None
    finally:
        await reply.close()


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled when the client leaves. Raises ClientLeft then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client is gone; its body was read before."""
    message = await request.receive()
    if message["type"] != "http.disconnect":
        await asyncio.Event().wait()  # a caller within this process, that cannot leave


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called however the sending ends."""

    media_type = "text/event-stream"

    def __init__(self, trace_id: str, events: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        # Neither kept nor collected on the way
        headers = {"x-trace-id": trace_id, "cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
