"""A release that is ready to answer: loaded in this process or connected to, and behind a batcher.

`serving.app` (or a test) gives the functions that load and connect; `serving.router` calls them and wraps what they
return.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from registry.schema import ReleaseVersion
from registry.traffic import Traffic, TrialArm
from serving import metrics
from serving.batching import Batcher
from serving.config import Limits
from serving.errors import NotFound, PalateError
from serving.generate.generator import Event, Generated, Generator, Wish
from serving.pipeline import Answer, Line, Pipeline
from serving.ports import LanguageModel, LanguageRequest, Piece, Vectors
from serving.schema import AppSpec, Query

Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
CountTokens = Callable[[Sequence[str]], int]

CLOSE_S = 60.0
"""How long a release that goes may finish what it began: far more than any deadline, so only what hangs is left."""


@dataclass(slots=True)
class LoadedRelease:
    """A release whose phases are ready. `close` frees them; `embed` is None where no source is dense; `concurrency` is
    how many batches may be under way: three here, so that some are embedded while another is read and answered;
    `count_tokens` says what `embed` reads of texts, None where that is not known here; `model` is the app's language
    model and `generator` the phase generate, which runs here wherever the others do."""

    spec: AppSpec
    pipeline: Pipeline
    close: Callable[[], None]
    embed: Embed | None = None
    concurrency: int = 3
    count_tokens: CountTokens | None = None
    model: LanguageModel | None = None
    generator: Generator | None = None


Load = Callable[[ReleaseVersion], Awaitable[LoadedRelease]]
"""For stable and warm versions. Raises ReleaseRefused, or one of `serving.router.app.PASSING`."""

ConnectArm = Callable[[ReleaseVersion, Traffic, TrialArm], Awaitable[LoadedRelease]]
"""To the arm's processes, which somebody else starts. Raises StoreUnavailable while they do not run."""


class ServedRelease:
    """A loaded release behind its batchers. Its `version` is stamped on every answer."""

    def __init__(self, version: int, loaded: LoadedRelease, limits: Limits) -> None:
        self.version = str(version)
        self.spec = loaded.spec
        self._loaded = loaded
        self._generating = _UnderWay()
        self._batcher: Batcher[Query, Answer] = Batcher(
            self._answer_batch,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            concurrency=loaded.concurrency,
        )

    @property
    def waiting(self) -> int:
        """Queries that wait for a batch now."""
        return self._batcher.depth

    async def answer(self, queries: Sequence[Query], deadline: float) -> list[Answer]:
        """In order. `deadline` is in seconds of `time.monotonic`. Raises PalateError of the first that fails."""
        if len(queries) == 1:
            return [await self._batcher.submit(queries[0], deadline)]
        async with _gathered([self._batcher.submit(query, deadline) for query in queries]) as answers:
            return answers

    @property
    def generator(self) -> Generator:
        """Raises NotFound for an app that generates no answers."""
        if self._loaded.generator is None:
            raise NotFound(f"{self.spec.name} generates no answers: it has no section `generate`", field="generate")
        return self._loaded.generator

    async def generate(
        self, query: Query, lines: Sequence[Line], wish: Wish, deadline: float, *, last_resort: bool = True
    ) -> AsyncGenerator[Event, None]:
        """What the phase generate makes of `lines`; see `Generator.answer`. Closing it ends the work."""
        try:
            answer = self.generator.answer(query, lines, wish, deadline, last_resort=last_resort)
            with self._generating:
                async with aclosing(answer) as events:
                    async for event in events:
                        if isinstance(event, Generated):
                            self._note(event)
                        yield event
        except PalateError:
            metrics.ANSWERS.labels(self.spec.name, self.version, "failed").inc()
            raise

    def _note(self, generated: Generated) -> None:
        of = (self.spec.name, self.version)
        outcome = "template" if generated.fallback else "repaired" if generated.repaired else "first_try"
        metrics.ANSWERS.labels(*of, outcome).inc()
        for check in generated.checks:
            metrics.ANSWER_CHECKS.labels(*of, check.name, "yes" if check.passed else "no").inc()
        metrics.ANSWER_TOKENS.labels(*of, "prompt").inc(generated.usage.prompt_tokens)
        metrics.ANSWER_TOKENS.labels(*of, "completion").inc(generated.usage.completion_tokens)
        metrics.FIRST_TEXT_SECONDS.labels(*of).observe(generated.first_ms / 1000)
        metrics.ANSWER_SECONDS.labels(*of).observe(generated.total_ms / 1000)
        if "ms_per_token" in generated.measures:
            metrics.TOKEN_SECONDS.labels(*of).observe(generated.measures["ms_per_token"] / 1000)

    @property
    def model(self) -> LanguageModel:
        """Raises NotFound for an app without one."""
        if self._loaded.model is None:
            raise NotFound(f"{self.spec.name} has no language model", field="model")
        return _Counted(self._loaded.model, self._generating)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension). Raises NotFound for an app without an embedder."""
        if self._loaded.embed is None:
            raise NotFound(f"{self.spec.name} has no dense source, so it has no embedder", field="model")
        return await self._loaded.embed(texts)

    async def count_tokens(self, texts: Sequence[str]) -> int | None:
        """Tokens that `embed` reads of them all, None where that is not known here."""
        count = self._loaded.count_tokens
        return None if count is None else await asyncio.to_thread(count, texts)

    async def warm(self, within_s: float = 60.0) -> None:
        """Answer a real query. Raises what the pipeline raises."""
        await self.answer([self._example()], time.monotonic() + within_s)

    async def warm_answer(self, within_s: float) -> None:
        """Generate a real answer, where the app does: the engine is up and has the adapter. Raises what either
        raises."""
        if self._loaded.generator is None:
            return
        deadline = time.monotonic() + within_s
        query = self._example()
        found = (await self.answer([query], deadline))[0]
        answer = self._loaded.generator.answer(query, found.lines, Wish(), deadline, last_resort=False)
        async with aclosing(answer) as events:
            async for _ in events:
                pass

    def _example(self) -> Query:
        return Query(self.spec.example_query or self.spec.name)

    async def close(self) -> None:
        """Finish what was begun, then free it. Cancelling it ends the wait, and frees it all the same."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._batcher.close()
                await self._generating.ended()
        except (TimeoutError, asyncio.CancelledError):
            pass  # what hangs: every request in it was answered, or refused, at its deadline
        if self._loaded.model is not None:
            await self._loaded.model.close()
        await asyncio.to_thread(self._loaded.close)

    async def _answer_batch(self, queries: Sequence[Query]) -> list[Answer]:
        app = self.spec.name
        metrics.QUEUE_DEPTH.labels(app).set(self._batcher.depth)
        metrics.BATCH_SIZE.labels(app).observe(len(queries))
        answers = await self._loaded.pipeline.answer(queries)
        for phase, milliseconds in answers[0].timings_ms.items():
            metrics.PHASE_SECONDS.labels(app, self.version, phase).observe(milliseconds / 1000)
        return answers


class _UnderWay:
    """Enter it for each piece of work that closing has to wait for."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        while self._count:
            await self._none.wait()


class _Counted:
    """Implements `LanguageModel`: another one, whose answers count as work under way."""

    def __init__(self, model: LanguageModel, under_way: _UnderWay) -> None:
        self.model = model.model
        self._model = model
        self._under_way = under_way
        self.load_adapter = model.load_adapter
        self.unload_adapter = model.unload_adapter
        self.adapters = model.adapters
        self.ready = model.ready
        self.close = model.close

    async def stream(self, request: LanguageRequest, deadline: float) -> AsyncGenerator[Piece, None]:
        with self._under_way:
            async with aclosing(self._model.stream(request, deadline)) as pieces:
                async for piece in pieces:
                    yield piece


class _gathered:
    """Awaits calls together; when one fails the others are cancelled, so none runs on for nobody."""

    def __init__(self, calls: Sequence[Awaitable[Answer]]) -> None:
        self._tasks = [asyncio.ensure_future(call) for call in calls]

    async def __aenter__(self) -> list[Answer]:
        try:
            return await asyncio.gather(*self._tasks)
        except BaseException:
            for task in self._tasks:
                task.cancel()
            raise

    async def __aexit__(self, *_: object) -> None:
        return None
