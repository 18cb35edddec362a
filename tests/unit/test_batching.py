"""The batcher: gathers without waiting, admits, drops what is late, isolates what is bad."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from serving.batching import Batcher
from serving.errors import BadRequest, DeadlineExceeded, Overloaded


def soon() -> float:
    return time.monotonic() + 30


class Doubler:
    """Doubles numbers; the first batch waits for `release`, so that a test can let others gather behind it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.release = asyncio.Event()

    async def __call__(self, values: Sequence[int]) -> list[int]:
        self.batches.append(list(values))
        await self.release.wait()
        if -1 in values:
            raise BadRequest("-1 is not welcome")
        return [2 * value for value in values]


def make(run: Doubler, *, max_batch: int = 4, max_queue: int = 100) -> Batcher[int, int]:
    return Batcher(run, max_batch=max_batch, max_queue=max_queue)


async def test_a_lone_call_runs_alone_and_those_behind_it_together() -> None:
    run = Doubler()
    batcher = make(run)
    calls = [asyncio.create_task(batcher.submit(n, soon())) for n in range(6)]
    await asyncio.sleep(0)
    run.release.set()
    assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10]
    assert [len(batch) for batch in run.batches] == [4, 2]
    first = Doubler()
    first.release.set()
    assert await make(first).submit(7, soon()) == 14
    assert first.batches == [[7]]


async def test_a_call_that_comes_just_as_the_last_batch_ends_is_taken() -> None:
    run = Doubler()
    run.release.set()
    batcher = make(run)

    async def a_turn_later() -> int:
        await asyncio.sleep(0)
        return await batcher.submit(2, time.monotonic() + 2)

    assert await asyncio.gather(batcher.submit(1, soon()), a_turn_later()) == [2, 4]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    run = Doubler()
    batcher = make(run, max_batch=1, max_queue=2)
    running = asyncio.create_task(batcher.submit(1, soon()))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(batcher.submit(n, soon())) for n in (2, 3)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as refused:
        await batcher.submit(4, soon())
    assert refused.value.retry_after_s > 0
    run.release.set()
    assert await asyncio.gather(running, *waiting) == [2, 4, 6]


async def test_a_call_past_its_deadline_is_told_so_and_never_runs() -> None:
    run = Doubler()
    batcher = make(run, max_batch=1)
    running = asyncio.create_task(batcher.submit(1, soon()))
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(2, time.monotonic() + 0.02)
    run.release.set()
    assert await running == 2
    await batcher.close()
    assert run.batches == [[1]]


async def test_one_bad_call_does_not_fail_its_neighbours() -> None:
    run = Doubler()
    run.release.set()
    batcher = make(run)
    calls = [batcher.submit(n, soon()) for n in (1, -1, 3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] == 2
    assert isinstance(results[1], BadRequest)
    assert results[2] == 6


async def test_a_caller_who_leaves_does_not_stop_the_batcher() -> None:
    run = Doubler()
    batcher = make(run)
    leaving = asyncio.create_task(batcher.submit(1, soon()))
    await asyncio.sleep(0.01)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    run.release.set()
    assert await batcher.submit(5, soon()) == 10


async def test_a_bug_in_a_batch_reaches_every_caller_and_the_next_batch_runs() -> None:
    calls = 0

    async def broken_once(values: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return list(values)

    batcher: Batcher[int, int] = Batcher(broken_once, max_batch=8, max_queue=8)
    results = await asyncio.gather(*(batcher.submit(n, soon()) for n in (1, 2)), return_exceptions=True)
    assert [type(r) for r in results] == [RuntimeError, RuntimeError]
    assert await batcher.submit(3, soon()) == 3
