"""The flow of a query through its phases: understand, retrieve, rank. Pure of placement. What `generate` makes of the
answer comes after it and does not run in batches: `serving.generate.generator`.

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
Rank = Callable[[Sequence[Understood], Sequence[Result]], Awaitable[list[Result]]]
"""Per line its candidates in a new order, with the ranker's scores; it may leave some out and adds none."""


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


@dataclass(frozen=True, slots=True)
class Ranking:
    """The phase rank: `candidates` of retrieval go in at most, `top_k` results come out at most."""

    rank: Rank
    candidates: int
    top_k: int


class Pipeline:
    """`ranking` is None for an app that has no ranker: the order of retrieval stands."""

    def __init__(self, understand: Understand, retrieve: Retrieve, ranking: Ranking | None = None) -> None:
        self._understand = understand
        self._retrieve = retrieve
        self._ranking = ranking

    async def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One Answer per query, in order. Raises PalateError; any other fault of a phase becomes PhaseFailed."""
        timings: dict[str, float] = {}
        understood = await _timed("understand", self._understand(queries), timings)
        if self._ranking is None:
            flat = [entry.query for entries in understood for entry in entries]
            found = iter(await _timed("retrieve", self._retrieve(flat), timings))
        else:
            found = iter(await self._ranked(self._ranking, [e for entries in understood for e in entries], timings))
        return [
            Answer(
                [Line(entry, _shorten(next(found), query.top_k)) for entry in entries],
                timings,
            )
            for query, entries in zip(queries, understood, strict=True)
        ]

    async def _ranked(self, ranking: Ranking, lines: Sequence[Understood], timings: dict[str, float]) -> list[Result]:
        """Per line what the ranker leaves of what retrieval found."""
        wide = [dataclasses.replace(line.query, top_k=max(line.query.top_k, ranking.candidates)) for line in lines]
        found = await _timed("retrieve", self._retrieve(wide), timings)
        found = [_shorten(result, ranking.candidates) for result in found]
        ranked = await _timed("rank", ranking.rank(lines, found), timings)
        return [_shorten(result, ranking.top_k) for result in ranked]


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
