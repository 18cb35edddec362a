"""The flow of a query through its phases: understand, retrieve, answer. Pure of placement.

The router calls it with a batch; a phase is an async function of a batch, and whether it runs in a thread of this
process or in a Ray Serve deployment is decided where it was built (`serving.build`, `serving.app`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from serving.errors import PalateError, PhaseFailed
from serving.schema import Query, Result, Understood

T = TypeVar("T")
Understand = Callable[[Sequence[Query]], Awaitable[list[list[Understood]]]]
Retrieve = Callable[[Sequence[Query]], Awaitable[list[Result]]]


@dataclass(frozen=True, slots=True)
class Line:
    """One understood line and what was found for it."""

    understood: Understood
    result: Result


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pipeline makes of one query: its lines (at least one) and the milliseconds each phase took.

    Phases run on batches, so a phase's time is that of the batch the query was in.
    """

    lines: Sequence[Line]
    timings_ms: Mapping[str, float] = field(default_factory=dict)


class Pipeline:
    def __init__(self, understand: Understand, retrieve: Retrieve) -> None:
        self._understand = understand
        self._retrieve = retrieve

    async def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One Answer per query, in order. Raises PalateError; any other fault of a phase becomes PhaseFailed."""
        timings: dict[str, float] = {}
        understood = await _timed("understand", self._understand(queries), timings)
        flat = [entry.query for entries in understood for entry in entries]
        found = iter(await _timed("retrieve", self._retrieve(flat), timings))
        return [
            Answer(
                [Line(entry, _shorten(next(found), query.top_k)) for entry in entries],
                timings,
            )
            for query, entries in zip(queries, understood, strict=True)
        ]


def _shorten(result: Result, top_k: int) -> Result:
    if len(result.candidates) <= top_k:
        return result
    return dataclasses.replace(result, candidates=result.candidates[:top_k])


async def _timed(phase: str, work: Awaitable[T], timings: dict[str, float]) -> T:
    started = time.perf_counter()
    try:
        return await work
    except PalateError:
        raise
    except Exception as error:
        raise PhaseFailed(f"{phase}: {type(error).__name__}: {error}", phase=phase) from error
    finally:
        timings[phase] = (time.perf_counter() - started) * 1000
