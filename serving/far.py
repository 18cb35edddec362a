"""Reaches a release that runs in Serve deployments of its own (`serving.units`): a pipeline of handles, which the
router calls as it calls one of its own process.

Every call ends: with the answer, with the error of the release, or with an error that says what became of its replica;
and one that nobody waits for any more is cancelled where it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serving import build
from serving.errors import DeadlineExceeded, Overloaded, PalateError, PhaseFailed, ReplicaLost, StoreUnavailable
from serving.pipeline import Answer, Pipeline, Ranking
from serving.ports import Vectors
from serving.router import LoadedRelease
from serving.schema import AppSpec, Query, Result, Understood

ARM, UNDERSTAND, EMBED, RETRIEVE, RANK = "arm", "understand", "embed", "retrieve", "rank"
"""Names of deployments."""


class Far:
    """One deployment. Calls that take longer than `limit_s` are given up and cancelled."""

    def __init__(self, handle: DeploymentHandle, limit_s: float) -> None:
        # By value: small batches, for which the object store only adds a trip.
        self._handle = handle.options(_by_reference=False)
        self._limit_s = limit_s
        self._unit = handle.deployment_name

    async def __call__(self, *arguments: Any) -> Any:
        return await self.call("__call__", *arguments)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Raises the PalateError that the method raised; PhaseFailed for any other error of it; ReplicaLost when the
        process ended before it answered, Overloaded when too many calls wait, DeadlineExceeded after `limit_s`."""
        response = getattr(self._handle, method).remote(*arguments)
        try:
            async with asyncio.timeout(self._limit_s):
                return await response
        except RayTaskError as error:
            raise self._raised(error) from None
        except BackPressureError as error:
            raise Overloaded(f"{self._unit}: {error}", retry_after_s=1.0) from None
        except (RayError, RayServeException) as error:
            raise self._lost(error) from None
        except TimeoutError:
            response.cancel()
            raise DeadlineExceeded(f"{self._unit} did not answer within {self._limit_s:g} s") from None
        except asyncio.CancelledError as error:
            response.cancel()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._lost(error) from None  # Serve gave the call up, not our caller

    def _raised(self, error: RayTaskError) -> PalateError:
        cause: BaseException = getattr(error, "cause", error)
        if isinstance(cause, PalateError):
            return cause
        return PhaseFailed(f"{self._unit}: {type(cause).__name__}: {cause}", phase=self._unit)

    def _lost(self, error: BaseException) -> ReplicaLost:
        reason = (str(error).strip().splitlines() or [""])[0]
        return ReplicaLost(f"{self._unit}: {type(error).__name__}: {reason}")


class ArmPipeline(Pipeline):
    """A pipeline that runs as a whole in another process: one hop."""

    def __init__(self, arm: Far) -> None:
        super().__init__(arm, arm)
        self._arm = arm

    async def answer(self, queries: Sequence[Query]) -> list[Answer]:
        return await self._arm(list(queries))  # type: ignore[no-any-return]


async def connect(application: str, spec: AppSpec, limit_s: float, concurrency: int) -> LoadedRelease:
    """Handles to the deployments of a release's application. Raises StoreUnavailable while they do not run yet."""
    status = (await asyncio.to_thread(serve.status)).applications.get(application)
    if status is None or status.status != "RUNNING":
        raise StoreUnavailable(f"Serve application {application} is {status.status if status else 'not deployed yet'}")
    try:
        units = {unit: Far(serve.get_deployment_handle(unit, application), limit_s) for unit in status.deployments}
    except RayServeException as error:
        raise StoreUnavailable(f"Serve application {application}: {error}") from None
    dense = [source.embedder for source in spec.retrieve.sources.values() if source.engine == "dense"]

    async def embed(texts: Sequence[str]) -> Vectors:
        if ARM in units:
            return await units[ARM].call("embed", list(texts))  # type: ignore[no-any-return]
        return await units[EMBED](dense[0], list(texts))  # type: ignore[no-any-return]

    pipeline = ArmPipeline(units[ARM]) if ARM in units else split_pipeline(spec, units)
    return LoadedRelease(spec, pipeline, lambda: None, embed if dense else None, concurrency)


def split_pipeline(spec: AppSpec, units: Mapping[str, Callable[..., Awaitable[Any]]]) -> Pipeline:
    """Of a release whose phases are these calls."""

    async def understood(queries: Sequence[Query]) -> Any:
        return await units[UNDERSTAND](list(queries))

    async def found(queries: Sequence[Query]) -> Any:
        return await units[RETRIEVE](list(queries))

    async def ranked(lines: Sequence[Understood], results: Sequence[Result]) -> Any:
        return await units[RANK](list(lines), list(results))

    if spec.rank is None or RANK not in units:
        return Pipeline(understood, found)
    return Pipeline(understood, found, Ranking(ranked, spec.rank.candidates, spec.rank.top_k))


async def far_embeddings(handle: DeploymentHandle, limit_s: float) -> dict[str, build.Embedding]:
    """The embedders of an embed unit, by name. Called in a replica, on its event loop."""
    unit = Far(handle, limit_s)
    names: dict[str, str] = await unit.call("fingerprints")
    return {name: _far_embedding(unit, handle, name, fingerprint) for name, fingerprint in names.items()}


def _far_embedding(unit: Far, handle: DeploymentHandle, name: str, fingerprint: str) -> build.Embedding:
    loop = asyncio.get_running_loop()
    # Many documents of one change may take longer than a query is given.
    patient = Far(handle, 600.0)

    async def embed(texts: Sequence[str]) -> Vectors:
        return await unit(name, list(texts))  # type: ignore[no-any-return]

    def embed_now(texts: Sequence[str]) -> Vectors:
        call = asyncio.run_coroutine_threadsafe(patient.call("documents", name, list(texts)), loop)
        return call.result()  # type: ignore[no-any-return]

    return build.Embedding(embed, embed_now, fingerprint)
