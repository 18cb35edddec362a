"""Holds what serves: per app the release that `stable` points at, loaded, warmed and behind a batcher.

The ingress asks it for the release of an app; `serving.app` gives it the function that loads one (inline in this
process, or as handles to Ray Serve deployments) and starts its refresh loop. It never serves half a release: a new
version is loaded and has answered a real query before it replaces the old one, which then finishes what it began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from registry.errors import RegistryError, RegistryUnavailable, ReleaseNotFound
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from serving import metrics
from serving.batching import Batcher
from serving.config import Limits
from serving.errors import DeadlineExceeded, NotFound, StoreUnavailable
from serving.logs import get_log
from serving.pipeline import Answer, Pipeline
from serving.ports import Vectors
from serving.schema import AppSpec, Query

log = get_log(__name__)
Embed = Callable[[Sequence[str]], Awaitable[Vectors]]
CountTokens = Callable[[Sequence[str]], int]


@dataclass(slots=True)
class LoadedRelease:
    """A release whose phases are ready. `close` frees them; `embed` is None where no source is dense; `concurrency` is
    how many batches may be under way: three here, so that some are embedded while another is read and answered;
    `count_tokens` says what `embed` reads of texts, None where that is not known here."""

    spec: AppSpec
    pipeline: Pipeline
    close: Callable[[], None]
    embed: Embed | None = None
    concurrency: int = 3
    count_tokens: CountTokens | None = None


Load = Callable[[ReleaseVersion], Awaitable[LoadedRelease]]

PASSING = (RegistryUnavailable, StoreUnavailable, DeadlineExceeded, OSError, MemoryError)
"""Why a release may not load now, and load a moment later."""


class ServedRelease:
    """A loaded release behind its batchers. Its `version` is stamped on every answer."""

    def __init__(self, version: int, loaded: LoadedRelease, limits: Limits) -> None:
        self.version = str(version)
        self.spec = loaded.spec
        self._loaded = loaded
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

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension). Raises NotFound for an app without an embedder."""
        if self._loaded.embed is None:
            raise NotFound(f"{self.spec.name} has no dense source, so it has no embedder", field="model")
        return await self._loaded.embed(texts)

    async def count_tokens(self, texts: Sequence[str]) -> int | None:
        """Tokens that `embed` reads of them all, None where that is not known here."""
        count = self._loaded.count_tokens
        return None if count is None else await asyncio.to_thread(count, texts)

    async def warm(self) -> None:
        """Answer a real query. Raises what the pipeline raises."""
        text = self.spec.example_query or self.spec.name
        await self.answer([Query(text)], time.monotonic() + 60)

    async def close(self) -> None:
        await self._batcher.close()
        await asyncio.to_thread(self._loaded.close)

    async def _answer_batch(self, queries: Sequence[Query]) -> list[Answer]:
        app = self.spec.name
        metrics.QUEUE_DEPTH.labels(app).set(self._batcher.depth)
        metrics.BATCH_SIZE.labels(app).observe(len(queries))
        answers = await self._loaded.pipeline.answer(queries)
        for phase, milliseconds in answers[0].timings_ms.items():
            metrics.PHASE_SECONDS.labels(app, self.version, phase).observe(milliseconds / 1000)
        return answers


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


@dataclass(slots=True)
class _Slot:
    """`problem`: why what `stable` points at does not serve, "" when it does; `refused`: version -> why."""

    served: ServedRelease | None = None
    problem: str = "its release is being loaded"
    refused: dict[int, str] = field(default_factory=dict)


class Router:
    """One per replica. `refresh` is level-triggered: it may run at any time, any number of times."""

    def __init__(self, apps: Sequence[str], store: ReleaseStore, load: Load, limits: Limits) -> None:
        self._store = store
        self._load = load
        self._limits = limits
        self._slots: dict[str, _Slot] = {app: _Slot() for app in apps}
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    def served(self, app: str) -> ServedRelease:
        """Raises NotFound for an unknown app, StoreUnavailable for one whose release is not ready."""
        slot = self._slots.get(app)
        if slot is None:
            raise NotFound(f"there is no app {app!r}; there are {sorted(self._slots)}", field="app")
        if slot.served is None:
            raise StoreUnavailable(f"{app} is not ready: {slot.problem}")
        return slot.served

    def problems(self) -> Mapping[str, str]:
        """App -> why it does not serve. Empty when all do."""
        return {app: slot.problem for app, slot in self._slots.items() if slot.served is None}

    def problem(self, app: str) -> str:
        """Why an app does not serve the release that `stable` points at, though an older one may; "" when it does."""
        return self._slots[app].problem

    def apps(self) -> Mapping[str, ServedRelease | None]:
        return {app: slot.served for app, slot in self._slots.items()}

    async def refresh(self) -> None:
        """Bring every app to the release that `stable` points at now."""
        for app, slot in self._slots.items():
            try:
                version = await asyncio.to_thread(self._store.get, app, "stable")
            except ReleaseNotFound:
                slot.problem = f"it has no release aliased `stable`; build one with: palate index {app}"
                continue
            except RegistryError as error:
                slot.problem = f"the registry does not say which release is `stable`: {error}"
                continue
            if slot.served is None or slot.served.version != str(version.version):
                await self._bring(app, slot, version)
            else:
                slot.problem = ""

    def start(self, every_s: float) -> None:
        self._loop = asyncio.create_task(self._refresh_forever(every_s))

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.gather(*self._closing, return_exceptions=True)
        for slot in self._slots.values():
            if slot.served is not None:
                await slot.served.close()

    async def _bring(self, app: str, slot: _Slot, version: ReleaseVersion) -> None:
        if version.version in slot.refused:
            slot.problem = slot.refused[version.version]
            return
        try:
            fresh = await self._ready(version)
        except Exception as error:  # outermost: whatever a release does, it must not stop those that serve
            slot.problem = f"release {version.version} could not be loaded: {error}"
            metrics.RELEASE_FAILURES.labels(app).inc()
            log.error("release.refused", app=app, release=version.version, error=repr(error), exc_info=True)
            if not isinstance(error, PASSING):
                slot.refused[version.version] = slot.problem  # its content is at fault: trying again changes nothing
            return
        old, slot.served, slot.problem = slot.served, fresh, ""
        metrics.RELEASE_INFO.labels(app, fresh.version).set(1)
        log.info("release.serving", app=app, release=fresh.version, replaced=old.version if old else None)
        if old is not None:
            metrics.RELEASE_INFO.labels(app, old.version).set(0)
            task = asyncio.create_task(old.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _ready(self, version: ReleaseVersion) -> ServedRelease:
        """Loaded, and it has answered a real query. Raises what loading and answering raise, and leaves nothing."""
        fresh = ServedRelease(version.version, await self._load(version), self._limits)
        try:
            await fresh.warm()
        except BaseException:
            await fresh.close()
            raise
        return fresh

    async def _refresh_forever(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.refresh()
            except Exception as error:
                log.error("router.refresh.failed", error=repr(error), exc_info=True)
