"""The threads that compute: embedding and search. What waits (for a database, a disk, MLflow) has the event loop's
default pool, so that requests which wait for a store that is away never keep a query from its turn.

Called by `serving.build` and `serving.retrieve`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

WAITING_THREADS = 64

_pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 4, thread_name_prefix="compute")


async def compute(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `work` returns, from a thread that computes."""
    return await asyncio.get_running_loop().run_in_executor(_pool, lambda: work(*arguments, **named))


def make_room_for_waiting() -> None:
    """Give the running loop's `asyncio.to_thread` enough threads for many that wait."""
    waiting = ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="waiting")
    asyncio.get_running_loop().set_default_executor(waiting)
