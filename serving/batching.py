"""Batches concurrent calls without ever waiting for a batch to fill.

While one batch runs, the next one gathers; a lone call starts at once. The router has one per release; the pipeline
only ever sees batches. It is ours and not `serve.batch` because it also admits (a full queue refuses at once), drops
calls whose deadline passed before they ran, and keeps one bad call from failing its neighbours.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from serving.errors import DeadlineExceeded, Overloaded, PalateError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Call(Generic[T, R]):
    value: T
    deadline: float
    future: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """`submit` values one by one, `run` gets up to `max_batch` of them and answers in order.

    `concurrency` batches run at a time. Deadlines are seconds of `clock`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_queue: int,
        concurrency: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._concurrency = concurrency
        self._clock = clock
        self._waiting: deque[_Call[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._rate = 0.0

    @property
    def depth(self) -> int:
        """Calls that wait for a batch."""
        return len(self._waiting)

    async def submit(self, value: T, deadline: float) -> R:
        """Raises Overloaded at once when the queue is full, DeadlineExceeded when `deadline` passes first."""
        if len(self._waiting) >= self._max_queue:
            retry_after_s = max(0.1, len(self._waiting) / self._rate if self._rate else 1.0)
            raise Overloaded(f"{len(self._waiting)} queries wait already", retry_after_s=round(retry_after_s, 1))
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(value, deadline, future))
        if len(self._running) < self._concurrency:
            task = asyncio.create_task(self._drain())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return await future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None

    async def close(self) -> None:
        """Wait until everything that was submitted is answered."""
        while self._running:
            await asyncio.wait(self._running)

    async def _drain(self) -> None:
        try:
            while batch := self._take():
                started = self._clock()
                await self._answer(batch)
                self._rate = len(batch) / max(self._clock() - started, 1e-6)
        finally:
            # Here and not only in its callback, which runs a turn of the loop later: a call that came in between
            # would believe that this task still takes it.
            self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> list[_Call[T, R]]:
        batch: list[_Call[T, R]] = []
        now = self._clock()
        while self._waiting and len(batch) < self._max_batch:
            call = self._waiting.popleft()
            # Done already: its caller left or timed out. Running it would only delay the others.
            if not call.future.done() and call.deadline > now:
                batch.append(call)
        return batch

    async def _answer(self, batch: list[_Call[T, R]]) -> None:
        try:
            results = await self._run([call.value for call in batch])
        except PalateError as error:
            if len(batch) == 1:
                if not batch[0].future.done():
                    batch[0].future.set_exception(error)
                return
            # One of them is at fault: alone, only that one fails.
            for call in batch:
                await self._answer([call])
        except BaseException as error:
            for call in batch:
                if not call.future.done():
                    call.future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
        else:
            for call, result in zip(batch, results, strict=True):
                if not call.future.done():
                    call.future.set_result(result)
