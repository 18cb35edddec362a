"""The only place that knows Ray Serve: hosts the ingress, and each unit of a release placed `split`.

`palate up` and the chart deploy `ingress_application` once; `deploy_split` once per release that is not inline. The
phases themselves are built by `serving.build`, so both placements run the same code and give the same answers.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from registry.schema import ReleaseVersion
from serving import build
from serving.batching import Batcher
from serving.config import ServingConfig
from serving.errors import StoreUnavailable
from serving.ingress import build_ingress
from serving.items import Followers
from serving.logs import configure_logs
from serving.pipeline import Pipeline
from serving.ports import Vectors
from serving.retrieve.retrieval import Retrieval
from serving.router import LoadedRelease
from serving.schema import AppSpec, Query, Result, Understood, UnitPlacement
from serving.stores import Stores, build_services, open_stores

INGRESS = "palate"
Embed = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]
FAR_CONCURRENCY = 64
"""Batches in flight per router replica to a split release: its replicas batch and scale by themselves."""


@serve.deployment
@serve.ingress()
class Ingress:
    """The router's replica: HTTP, and the phases of every inline release."""

    def __init__(self, config: ServingConfig) -> None:
        configure_logs(config.log)
        _tune_interpreter()
        self._config = config
        self._stores = open_stores(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_ingress(build_services(self._config, self._stores, self._load))

    async def _load(self, version: ReleaseVersion) -> LoadedRelease:
        spec = AppSpec.model_validate(version.release.spec)
        if spec.placement.default == "split":
            return await connect_split(spec, version)
        return await asyncio.to_thread(load_inline, spec, version, self._stores, self._config)


def _tune_interpreter() -> None:
    """For a process whose event loop and compute threads share one interpreter lock."""
    # A thread that comes back from ONNX Runtime waits this long for the lock, while a core stands idle: the default of
    # 5 ms is most of a batch's time.
    sys.setswitchinterval(0.0005)
    # Each request makes a few hundred objects, nearly all freed by count: look for cycles less often than every 700.
    gc.set_threshold(20_000, 20, 20)


def ingress_application(config: ServingConfig, replicas: int = 1) -> Application:
    options = {"num_cpus": 0.5}
    limit = config.limits.max_queue
    return Ingress.options(  # type: ignore[attr-defined]  # Serve made it a Deployment
        name="Router", num_replicas=replicas, max_ongoing_requests=limit, ray_actor_options=options
    ).bind(config)


def load_inline(spec: AppSpec, version: ReleaseVersion, stores: Stores, config: ServingConfig) -> LoadedRelease:
    """Every phase in this process. Raises ReleaseRefused, RegistryUnavailable, OSError."""
    folders = build.fetch_components(version, stores.releases, config.component_cache)
    embedders = build.build_embedders(spec, folders, config)
    embeddings = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
    retrieval = build.build_retrieval(spec, folders, embeddings)
    followers = build.build_followers(version, spec, retrieval, stores.items, stores.expansions, config.follow_s)
    followers.start()
    pipeline = build.build_pipeline(build.build_understander(spec), retrieval)
    first = next(iter(embeddings.values()), None)
    if first is None:
        return LoadedRelease(spec, pipeline, followers.close)
    return LoadedRelease(spec, pipeline, followers.close, first.embed, count_tokens=first.count_tokens)


# --- split placement: a deployment per unit ---------------------------------------------------------------------------


class UnderstandUnit:
    """`downstream` is not called: holding it makes Serve deploy a release's units as one application."""

    def __init__(self, config: ServingConfig, spec: AppSpec, downstream: DeploymentHandle) -> None:
        configure_logs(config.log)
        self._understander = build.build_understander(spec)
        self._downstream = downstream

    async def __call__(self, queries: Sequence[Query]) -> list[list[Understood]]:
        return self._understander.understand(queries)


class EmbedUnit:
    """Embedders, by name; texts of concurrent calls are embedded together."""

    def __init__(self, config: ServingConfig, spec: AppSpec, version: ReleaseVersion) -> None:
        configure_logs(config.log)
        stores = open_stores(config)
        folders = build.fetch_components(version, stores.releases, config.component_cache, ["embedder."])
        embedders = build.build_embedders(spec, folders, config)
        self._embeddings = {name: build.near(spec.name, embedder) for name, embedder in embedders.items()}
        limits = config.limits
        # The rows of (n, dimension) vectors are the batch's results, one per text.
        self._batchers: dict[str, Batcher[str, Any]] = {
            name: Batcher(cast("Embed", embedding.embed), max_batch=limits.max_batch, max_queue=limits.max_queue)
            for name, embedding in self._embeddings.items()
        }
        self._deadline_s = spec.deadline_s

    async def __call__(self, name: str, texts: Sequence[str]) -> Vectors:
        batcher = self._batchers[name]
        deadline = time.monotonic() + self._deadline_s
        return np.stack(await asyncio.gather(*(batcher.submit(text, deadline) for text in texts)))

    async def documents(self, name: str, texts: Sequence[str]) -> Vectors:
        """As `__call__`, for texts of items."""
        return await asyncio.to_thread(self._embeddings[name].embed_now, texts)

    async def fingerprints(self) -> dict[str, str]:
        return {name: embedding.fingerprint for name, embedding in self._embeddings.items()}


class RetrieveUnit:
    """Catalogue and sources; query vectors come from the embed unit."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it: handles need the replica's loop
        self, config: ServingConfig, spec: AppSpec, version: ReleaseVersion, embed: DeploymentHandle | None
    ) -> None:
        configure_logs(config.log)
        embeddings = {} if embed is None else await _far_embeddings(embed)
        self._retrieval, self._followers = await asyncio.to_thread(self._load, config, spec, version, embeddings)

    @staticmethod
    def _load(
        config: ServingConfig, spec: AppSpec, version: ReleaseVersion, embeddings: Mapping[str, build.Embedding]
    ) -> tuple[Retrieval, Followers]:
        stores = open_stores(config)
        folders = build.fetch_components(version, stores.releases, config.component_cache, ["catalogue", "retrieve."])
        retrieval = build.build_retrieval(spec, folders, embeddings)
        followers = build.build_followers(version, spec, retrieval, stores.items, stores.expansions, config.follow_s)
        followers.start()
        return retrieval, followers

    async def __call__(self, queries: Sequence[Query]) -> list[Result]:
        return await self._retrieval(queries)

    def __del__(self) -> None:
        self._followers.close()


def split_application_name(app: str, version: int) -> str:
    return f"{app}-v{version}"


def deploy_split(spec: AppSpec, version: ReleaseVersion, config: ServingConfig) -> None:
    """Deploy a release's units as one Serve application; returns at once, safe to repeat."""
    dense = any(source.engine == "dense" for source in spec.retrieve.sources.values())
    embed = _unit(EmbedUnit, spec, "embed").bind(config, spec, version) if dense else None
    retrieve = _unit(RetrieveUnit, spec, "retrieve").bind(config, spec, version, embed)
    understand = _unit(UnderstandUnit, spec, "understand").bind(config, spec, retrieve)
    name = split_application_name(spec.name, version.version)
    serve.run(understand, name=name, route_prefix=None, blocking=False)


async def connect_split(spec: AppSpec, version: ReleaseVersion) -> LoadedRelease:
    """Handles to the units of a deployed release. Raises StoreUnavailable while they do not run yet."""
    name = split_application_name(spec.name, version.version)
    status = (await asyncio.to_thread(serve.status)).applications.get(name)
    if status is None or status.status != "RUNNING":
        raise StoreUnavailable(f"Serve application {name} is {status.status if status else 'not deployed yet'}")
    try:
        understand = _handle("understand", name)
        retrieve = _handle("retrieve", name)
        dense = [s.embedder for s in spec.retrieve.sources.values() if s.engine == "dense"]
        embed = _far_embedding(_handle("embed", name), dense[0]).embed if dense else None
    except RayServeException as error:
        raise StoreUnavailable(f"Serve application {name}: {error}") from None

    async def far_understand(queries: Sequence[Query]) -> list[list[Understood]]:
        return await understand.remote(list(queries))  # type: ignore[no-any-return]

    async def far_retrieve(queries: Sequence[Query]) -> list[Result]:
        return await retrieve.remote(list(queries))  # type: ignore[no-any-return]

    return LoadedRelease(spec, Pipeline(far_understand, far_retrieve), lambda: None, embed, FAR_CONCURRENCY)


def _unit(target: type, spec: AppSpec, unit: str) -> Any:
    placement = spec.placement.units.get(unit, UnitPlacement())  # type: ignore[call-overload]
    options: dict[str, Any] = {"num_cpus": placement.num_cpus, "num_gpus": placement.num_gpus}
    if placement.resources:
        options["resources"] = dict(placement.resources)
    scale: dict[str, Any] = {"num_replicas": placement.replicas}
    if placement.autoscaling is not None:
        scale = {"autoscaling_config": AutoscalingConfig(**placement.autoscaling.model_dump())}
    return serve.deployment(target).options(
        name=unit, max_ongoing_requests=placement.max_ongoing_requests, ray_actor_options=options, **scale
    )


def _handle(unit: str, application: str) -> DeploymentHandle:
    # By value: small batches, for which the object store only adds a trip.
    return serve.get_deployment_handle(unit, application).options(_by_reference=False)


async def _far_embeddings(handle: DeploymentHandle) -> dict[str, build.Embedding]:
    by_value = handle.options(_by_reference=False)
    names: dict[str, str] = await by_value.fingerprints.remote()
    return {name: _far_embedding(by_value, name, fingerprint) for name, fingerprint in names.items()}


def _far_embedding(handle: DeploymentHandle, name: str, fingerprint: str = "") -> build.Embedding:
    loop = asyncio.get_running_loop()

    async def embed(texts: Sequence[str]) -> Vectors:
        return await handle.remote(name, list(texts))  # type: ignore[no-any-return]

    async def embed_documents(texts: Sequence[str]) -> Vectors:
        return await handle.documents.remote(name, list(texts))  # type: ignore[no-any-return]

    def embed_now(texts: Sequence[str]) -> Vectors:
        return asyncio.run_coroutine_threadsafe(embed_documents(texts), loop).result()

    return build.Embedding(embed, embed_now, fingerprint)
