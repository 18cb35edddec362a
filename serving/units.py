"""What of a release runs in Serve deployments of its own, and how they are deployed.

A stable release placed `split` is one Serve application of its units; an arm of a rollout is one too: of those units
where its release is split, of one deployment `arm`, the whole pipeline in a process of its own, where it is inline.
`serving.local.deployments` deploys them, `serving.far` reaches them; the phases are built by `serving.build`, so every
placement runs the same code and gives the same answers.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from registry.schema import ReleaseVersion
from registry.traffic import Traffic, TrialArm
from serving import build
from serving.batching import Batcher
from serving.components.catalogue import Catalogue
from serving.config import ServingConfig
from serving.errors import PhaseFailed
from serving.far import ARM, EMBED, RANK, RETRIEVE, UNDERSTAND, far_embeddings
from serving.inline import load_inline, people_secret, tune_interpreter
from serving.items import Followers, ItemFollower
from serving.logs import configure_logs, get_log
from serving.pipeline import Answer
from serving.ports import Vectors
from serving.retrieve.retrieval import Retrieval
from serving.schema import AppSpec, Query, Result, Understood, UnitPlacement
from serving.stores import open_stores

log = get_log(__name__)
Embed = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]

ARM_CPUS = 0.2
"""What an arm takes of Ray's CPUs: two apps, each with two arms of two replicas, fit beside a laptop's endpoint."""
ARM_ONGOING = 16
ARM_QUEUED = 64
"""Batches an arm's replica works on, and batches that may wait in a router before more are refused as overloaded."""
GIVEN_UP = 3
"""Batches in a row that were cancelled unanswered, past what any caller waits, before an arm counts as hung."""
LIVENESS = {
    # A killed replica is noticed at the next check, one that hangs after three checks of a second. Leaving, a replica
    # may finish what it began.
    "health_check_period_s": 0.5,
    "health_check_timeout_s": 1.0,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 3.0,
}


class Arm:
    """Every phase of a release in one process. Ready means: it has answered a real query."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: ServingConfig, spec: AppSpec, version: ReleaseVersion, answer_within_s: float
    ) -> None:
        configure_logs(config.log)
        self._answer_within_s = answer_within_s
        self._began: dict[asyncio.Task[Any] | None, float] = {}
        self._given_up = 0
        self._limited = False
        tune_interpreter()
        stores = open_stores(config)
        # One thread: the arms must not take the cores from the endpoint they run beside.
        own = config.model_copy(update={"threads": 1})
        self._release = await asyncio.to_thread(load_inline, spec, version, stores, own, generating=False)
        await self([Query(spec.example_query or spec.name)])
        self._limited = limit_memory(config.arm_memory_mb)

    async def __call__(self, queries: Sequence[Query]) -> list[Answer]:
        call = asyncio.current_task()
        self._began[call] = began = time.monotonic()
        try:
            answers = await self._release.pipeline.answer(queries)
        except asyncio.CancelledError:
            self._given_up += time.monotonic() - began > self._answer_within_s
            raise
        except PhaseFailed as error:
            if self._limited and isinstance(error.__cause__, MemoryError):
                log.error("arm.out_of_memory", app=self._release.spec.name)
                os._exit(1)  # every later batch would fail too: a lost replica says so at once
            self._given_up = 0
            raise
        finally:
            del self._began[call]
        self._given_up = 0
        return answers

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """(len(texts), dimension), of a release with a dense source."""
        assert self._release.embed is not None
        return await self._release.embed(texts)

    async def check_health(self) -> None:
        """Runs on the loop that answers, so it does not return while that hangs. Raises PhaseFailed when what computes
        hangs: a batch is worked on for longer than any caller waits, or several in a row were given up after that."""
        longest_s = time.monotonic() - min(self._began.values(), default=time.monotonic())
        if longest_s > self._answer_within_s or self._given_up >= GIVEN_UP:
            raise PhaseFailed(f"batches run for {self._answer_within_s:g} s and longer", phase=ARM)


class UnderstandUnit:
    """`downstream` is not called: holding it makes Serve deploy a release's units as one application."""

    def __init__(
        self, config: ServingConfig, spec: AppSpec, version: ReleaseVersion, downstream: Sequence[DeploymentHandle]
    ) -> None:
        configure_logs(config.log)
        folders = build.fetch_components(version, open_stores(config).releases, config.component_cache, [UNDERSTAND])
        self._understand = build.build_understand(spec, folders, build.connect_model(spec))
        self._downstream = downstream

    async def __call__(self, queries: Sequence[Query]) -> list[list[Understood]]:
        return await self._understand(queries)


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
        embeddings = {} if embed is None else await far_embeddings(embed, spec.deadline_s)
        self._retrieval, self._followers = await asyncio.to_thread(self._load, config, spec, version, embeddings)

    @staticmethod
    def _load(
        config: ServingConfig, spec: AppSpec, version: ReleaseVersion, embeddings: Mapping[str, build.Embedding]
    ) -> tuple[Retrieval, Followers]:
        stores = open_stores(config)
        folders = build.fetch_components(version, stores.releases, config.component_cache, ["catalogue", "retrieve."])
        retrieval = build.build_retrieval(spec, folders, embeddings, people_secret=people_secret(spec, config))
        followers = build.build_followers(version, spec, retrieval, stores.items, stores.expansions, config.follow_s)
        followers.start()
        return retrieval, followers

    async def __call__(self, queries: Sequence[Query]) -> list[Result]:
        return await self._retrieval(queries)

    def __del__(self) -> None:
        self._followers.close()


class RankUnit:
    """The ranker, over a catalogue of its own that follows the changes."""

    def __init__(self, config: ServingConfig, spec: AppSpec, version: ReleaseVersion) -> None:
        configure_logs(config.log)
        stores = open_stores(config)
        folders = build.fetch_components(version, stores.releases, config.component_cache, ["catalogue", RANK])
        catalogue = Catalogue.load(folders["catalogue"])
        secret = people_secret(spec, config)
        self._ranking = build.build_ranking(spec, folders, catalogue, secret, config.compute_threads)
        follower = ItemFollower(stores.items, spec.name, version.release.items_seq, catalogue.apply)
        self._followers = Followers(spec.name, [follower], config.follow_s)
        self._followers.start()

    async def __call__(self, lines: Sequence[Understood], found: Sequence[Result]) -> list[Result]:
        return list(found) if self._ranking is None else await self._ranking.rank(lines, found)

    def __del__(self) -> None:
        self._followers.close()


def split_application_name(app: str, version: int) -> str:
    return f"{app}-v{version}"


def arm_application_name(traffic: Traffic, arm: TrialArm) -> str:
    return f"{traffic.app}-r{traffic.rollout}-{arm}"


def deploy(name: str, version: ReleaseVersion, config: ServingConfig, trial: Traffic | None = None) -> None:
    """Deploy a release as one Serve application and return at once; safe to repeat.

    `trial`: as an arm of that traffic's rollout, with its replicas of each deployment; None: as a split release, with
    those of its spec.
    """
    spec = AppSpec.model_validate(version.release.spec)
    if trial is not None and spec.placement.default == "inline":
        answer_within_s = spec.deadline_s * trial.answer_within_ratio
        target = _arm(trial.replicas).bind(config, spec, version, answer_within_s)
    else:
        target = _units(spec, version, config, trial.replicas if trial else None)
    serve.run_many(
        [RunTarget(target, name=name, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _arm(replicas: int) -> Any:
    return serve.deployment(Arm).options(
        name=ARM,
        num_replicas=replicas,
        max_ongoing_requests=ARM_ONGOING,
        max_queued_requests=ARM_QUEUED,
        ray_actor_options={"num_cpus": ARM_CPUS},
        **LIVENESS,
    )


def _units(spec: AppSpec, version: ReleaseVersion, config: ServingConfig, arm_replicas: int | None) -> Application:
    dense = any(source.engine == "dense" for source in spec.retrieve.sources.values())
    embed = _unit(EmbedUnit, spec, EMBED, arm_replicas).bind(config, spec, version) if dense else None
    downstream = [_unit(RetrieveUnit, spec, RETRIEVE, arm_replicas).bind(config, spec, version, embed)]
    if any(part.name == RANK for part in version.release.components):
        downstream.append(_unit(RankUnit, spec, RANK, arm_replicas).bind(config, spec, version))
    return _unit(UnderstandUnit, spec, UNDERSTAND, arm_replicas).bind(config, spec, version, downstream)


def _unit(target: type, spec: AppSpec, unit: str, arm_replicas: int | None) -> Any:
    placement = spec.placement.units.get(unit, UnitPlacement())  # type: ignore[call-overload]
    actor: dict[str, Any] = {"num_cpus": placement.num_cpus, "num_gpus": placement.num_gpus}
    if placement.resources:
        actor["resources"] = dict(placement.resources)
    options: dict[str, Any] = {"num_replicas": placement.replicas}
    if arm_replicas is not None:
        options = {"num_replicas": arm_replicas, "max_queued_requests": ARM_QUEUED, **LIVENESS}
    elif placement.autoscaling is not None:
        options = {"autoscaling_config": AutoscalingConfig(**placement.autoscaling.model_dump())}
    return serve.deployment(target).options(
        name=unit, max_ongoing_requests=placement.max_ongoing_requests, ray_actor_options=actor, **options
    )


def limit_memory(megabytes: int) -> bool:
    """Let this process take so much memory beyond what it has now, 0: no limit; True when there is one. What asks for
    more gets MemoryError: a release that leaks ends alone, before the machine is short of memory."""
    if not megabytes:
        return False
    status = Path("/proc/self/status").read_text(encoding="ascii")
    now_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    limit = (now_kb // 1024 + megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return True
