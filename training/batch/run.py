"""Works through inputs and writes one line for each, in their order: `run_batch`.

`training.batch.generate` and `training.extract.job` call it with a `Worker`. Memory is bounded by the inputs under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from training.batch.file import About, Entry, Writer, begin, digest_of, locked, read_lines, skip_done
from training.errors import BatchStopped

AHEAD = 8
"""Inputs under way or waiting for their turn to be written, per input a worker has under way."""
ERROR = "error"
"""A line with this key says why its input has no answer; it is one all the same."""


class Worker(Protocol):
    """Safe to call many times at once; it bounds what it does at a time by itself."""

    @property
    def about(self) -> About: ...

    @property
    def at_once(self) -> int:
        """How many inputs it works on at a time."""

    async def work(self, entry: Entry) -> Mapping[str, Any]:
        """The fields of the line, `{"error": why}` where there is no answer. Raises BatchStopped where going on with
        other inputs makes no sense either."""


Told = Callable[[Entry, Mapping[str, Any]], None]


async def run_batch(
    inputs: Iterable[Entry], out: Path, worker: Worker, restart: bool = False, told: Told = lambda *_: None
) -> int:
    """Goes on with `out`, or begins it; returns how many lines earlier runs had written. `told` hears of every line of
    this run. Raises BatchStopped: the worker gave up (what it had done is written), `out` was made of other inputs or
    by something else, or another process writes it."""
    with locked(out) as file:
        begin(file, out, worker.about, restart)
        source = iter(inputs)
        before = skip_done(file, out, source)
        writer = Writer(file)
        try:
            async with aclosing(_worked(source, worker)) as lines:
                async for entry, fields in lines:
                    writer.add(entry, fields)
                    told(entry, fields)
        finally:
            writer.sync()
    return before


async def run_again(inputs: Iterable[Entry], out: Path, worker: Worker, told: Told = lambda *_: None) -> int:
    """As `run_batch`, but asks anew for the lines of `out` that are errors. The new file takes the place of the old one
    once it is whole; killed before that, it is gone on with. Returns how many lines were not written by this run."""
    aside = out.with_name(f"{out.name}.again")
    with locked(out) as file:
        begin(file, out, worker.about, False)
        done = await run_batch(_with_known(inputs, out), aside, worker, told=told)
        aside.replace(out)
    return done


def _with_known(inputs: Iterable[Entry], out: Path) -> Iterator[Entry]:
    lines = read_lines(out)
    for entry in inputs:
        line = next(lines, None)
        if line is not None and (line["id"] != entry.id or line["of"] != digest_of(entry.content)):
            raise BatchStopped(f"{out} has a line of {line['id']} where the input is {entry.id}: it is of other inputs")
        good = line is not None and ERROR not in line
        yield entry._replace(known={k: v for k, v in line.items() if k not in ("id", "of")}) if line and good else entry


async def _worked(source: Iterator[Entry], worker: Worker) -> AsyncGenerator[tuple[Entry, Mapping[str, Any]], None]:
    """In the order of the inputs, with as many under way as keep the worker busy while the first is late."""
    ahead: deque[tuple[Entry, asyncio.Task[Mapping[str, Any]]]] = deque()
    try:
        for entry in source:
            ahead.append((entry, asyncio.create_task(_work(entry, worker))))
            if len(ahead) >= AHEAD * worker.at_once:
                first, task = ahead[0]
                yield first, await task
                ahead.popleft()
        while ahead:
            first, task = ahead[0]
            yield first, await task
            ahead.popleft()
    finally:
        for _, task in ahead:
            task.cancel()
        await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)


async def _work(entry: Entry, worker: Worker) -> Mapping[str, Any]:
    return entry.known if entry.known is not None else await worker.work(entry)
