"""The endpoint as a Ray Serve application: HTTP, the router, and the phases of every inline stable release.

`palate up` and the chart deploy `ingress_application` once. What runs beside it, split releases and the arms of
rollouts, is in `serving.units`; the phases themselves are built by `serving.build`, so every placement runs the same
code and gives the same answers.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from registry.schema import ReleaseVersion
from registry.traffic import Traffic, TrialArm
from serving.config import ServingConfig
from serving.far import connect
from serving.ingress import build_ingress
from serving.inline import add_generation, load_inline, tune_interpreter
from serving.logs import configure_logs
from serving.router import LoadedRelease
from serving.schema import AppSpec
from serving.stores import build_services, open_stores
from serving.units import arm_application_name, split_application_name

INGRESS = "palate"
FAR_CONCURRENCY = 64
"""Batches in flight per router replica to a split release: its replicas batch and scale by themselves."""
ARM_CONCURRENCY = 3
"""The same, per replica of an arm whose release is inline: as many as it would have beside the router."""
SPLIT_LIMIT_S = 60.0
"""A call to a split release that takes longer is given up; queries have their own, shorter deadlines."""


@serve.deployment
@serve.ingress()
class Ingress:
    """The router's replica: HTTP, the phases of every inline release, and the phase generate of all."""

    def __init__(self, config: ServingConfig) -> None:
        configure_logs(config.log)
        tune_interpreter()
        self._config = config
        self._stores = open_stores(config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_ingress(build_services(self._config, self._stores, self._load, self._connect_arm))

    async def _load(self, version: ReleaseVersion) -> LoadedRelease:
        spec = AppSpec.model_validate(version.release.spec)
        if spec.placement.default == "split":
            return await self._generating(await connect_split(spec, version), version)
        return await asyncio.to_thread(load_inline, spec, version, self._stores, self._config)

    async def _connect_arm(self, version: ReleaseVersion, traffic: Traffic, arm: TrialArm) -> LoadedRelease:
        return await self._generating(await connect_arm(version, traffic, arm), version)

    async def _generating(self, loaded: LoadedRelease, version: ReleaseVersion) -> LoadedRelease:
        """A release that runs elsewhere, but for what is generated."""
        if loaded.spec.language_model is None:
            return loaded
        return await asyncio.to_thread(add_generation, loaded, version, self._stores, self._config)


def ingress_application(config: ServingConfig, replicas: int = 1) -> Application:
    options = {"num_cpus": 0.5}
    limit = config.limits.max_queue
    return Ingress.options(  # type: ignore[attr-defined]  # Serve made it a Deployment
        name="Router", num_replicas=replicas, max_ongoing_requests=limit, ray_actor_options=options
    ).bind(config)


async def connect_split(spec: AppSpec, version: ReleaseVersion) -> LoadedRelease:
    """A stable release placed `split`. Raises StoreUnavailable while its units do not run yet."""
    return await connect(
        split_application_name(spec.name, version.version), spec, limit_s=SPLIT_LIMIT_S, concurrency=FAR_CONCURRENCY
    )


async def connect_arm(version: ReleaseVersion, traffic: Traffic, arm: TrialArm) -> LoadedRelease:
    """An arm of a rollout, that runs `version`. Raises StoreUnavailable while it is not ready.

    Its pipeline raises what the release raises, ReplicaLost, Overloaded, or DeadlineExceeded after the app's deadline.
    """
    spec = AppSpec.model_validate(version.release.spec)
    split = spec.placement.default == "split"
    concurrency = FAR_CONCURRENCY if split else ARM_CONCURRENCY * traffic.replicas
    return await connect(arm_application_name(traffic, arm), spec, limit_s=spec.deadline_s, concurrency=concurrency)
