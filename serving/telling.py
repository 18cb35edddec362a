"""An answer that is being generated, as the query route reads it: its first event is there before anything is sent, and
whoever has to know hears how it ended. Made by `serving.arms`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

from serving.generate.generator import Event, Generated


class Telling:
    """Iterate it, and close it, read to its end or not: that ends the work in the engine.

    `generated` is the whole answer once it is there; `busy_s` the time that events took to come, without the time
    that their reader took.
    """

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        ended: Ended | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` is called once, with the error that ended it; None where it came to its end or its reader left. Not
        called where `begin` fails."""
        self.generated: Generated | None = None
        self.busy_s = 0.0
        self._events = events
        self._ended = ended
        self._clock = clock
        self._first: Event | None = None

    async def begin(self) -> None:
        """Wait for the first event. Raises what the events raise."""
        try:
            self._first = await self._next()
        except BaseException:
            await self._events.aclose()
            raise

    def __aiter__(self) -> Telling:
        return self

    async def __anext__(self) -> Event:
        if self._first is not None:
            event, self._first = self._first, None
        else:
            try:
                event = await self._next()
            except StopAsyncIteration:
                raise
            except Exception as error:
                self._end(error)
                raise
        if isinstance(event, Generated):
            self.generated = event
            self._end(None)
        return event

    async def aclose(self) -> None:
        await self._events.aclose()
        self._end(None)

    async def _next(self) -> Event:
        began = self._clock()
        try:
            return await anext(self._events)
        finally:
            self.busy_s += self._clock() - began

    def _end(self, error: Exception | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, error)


Ended = Callable[[Telling, Exception | None], None]
