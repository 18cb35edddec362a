"""`palate kserve-server`: one release in the container of a KServe InferenceService.

The release is loaded by `serving.inline` and answers behind the routes of the ordinary ingress, so keys, limits, traces
and feedback are what they are on Ray; `serving.kserve_model` puts KServe's server around it. KServe splits the traffic,
so there is nothing to route here: the process only has to know whose evidence its answers are, which the controller's
traffic says (`registry.kserve_traffic` makes KServe follow the same).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI, Request, Response

from registry.errors import RegistryError
from registry.ports import ReleaseStore, TrafficBoard
from registry.schema import ReleaseVersion, version_or_alias
from registry.traffic import TIMED_OUT, ArmReport, RouterReport, Traffic, TrialArm
from serving.arms import CALLERS, Arms, Asked, R, Trial, failure_of
from serving.compute import make_room_for_waiting
from serving.config import ServingConfig
from serving.errors import PalateError
from serving.evidence import EvidenceRecorder
from serving.ingress import (
    Services,
    catalogue,
    chat,
    embeddings,
    feedback,
    operations,
    problems,
    query,
    rollouts,
    webhooks,
)
from serving.ingress.inference_v2 import v2_problem
from serving.inline import load_inline
from serving.periodic import Periodic
from serving.router import LoadedRelease, Route, Router
from serving.schema import AppSpec
from serving.split import BUCKETS, bucket
from serving.stores import Stores, build_services

STABLE = "stable"
ROUTES = (query, chat, feedback, catalogue, embeddings, operations, rollouts, webhooks)
"""Those of the ingress, but for `/v2`, which kserve's server brings."""
OPENAI = (embeddings, chat)


class PinnedBoard:
    """The `TrafficBoard` of a process that serves one release for as long as it lives, and reports to nobody."""

    def __init__(self, version: ReleaseVersion) -> None:
        self._version = version

    def traffic(self) -> Mapping[str, Traffic]:
        app = self._version.release.app
        return {app: Traffic(app, 1, self._version.version)}

    def release(self, app: str, version: int) -> ReleaseVersion:  # noqa: ARG002 - there is but one
        return self._version

    def report_router(self, report: RouterReport) -> None: ...

    def report_arm(self, report: ArmReport) -> None: ...

    def routers(self, app: str, since_s: float) -> list[RouterReport]:  # noqa: ARG002
        return []

    def arms(self, app: str, rollout: int) -> list[ArmReport]:  # noqa: ARG002
        return []


def arm_of(traffic: Traffic | None, version: int, token: str) -> TrialArm | None:
    """Whose evidence an answer of `version` is, None for nobody's.

    The arm that is not stable has pods of its own, and all of their answers count. The other one runs in stable's pods:
    of their answers a part counts that is as large as what the first arm gets, drawn by the request's token.
    """
    if traffic is None or not traffic.rollout or not traffic.canary_percent:
        return None
    for arm in _ARMS:
        if traffic.version_of(arm) != version:
            continue
        if version != traffic.stable:
            return arm
        share = traffic.canary_percent / (100 - traffic.canary_percent)
        return arm if bucket(traffic.app, traffic.rollout, f"sample/{token}") < share * BUCKETS else None
    return None


_ARMS: tuple[TrialArm, ...] = ("canary", "control")


class PinnedArms(Arms):
    """Answers by the one release there is. Nobody stands in for it: what it fails at, its caller sees."""

    protects = False

    def __init__(self, router: Router, evidence: EvidenceRecorder, traffic: Callable[[], Traffic | None]) -> None:
        super().__init__(router, evidence)
        self._traffic = traffic

    def _trial(self, asked: Asked, route: Route) -> Trial | None:
        traffic = self._traffic()
        arm = arm_of(traffic, int(route.served.version), asked.token)
        return None if traffic is None or arm is None else Trial(asked, route.served, traffic, arm, False)

    def _until(self, trial: Trial, began: float) -> float:  # noqa: ARG002 - nobody else needs a share of the time
        return trial.asked.deadline

    async def _by_arm(
        self,
        trial: Trial,
        attempt: Callable[[Trial, float], Awaitable[R]],
        instead: Callable[[Asked, str, str], Awaitable[R]],  # noqa: ARG002
    ) -> R:
        """Raises PalateError. A request that is bad in itself is no evidence: there is nobody to ask for a second
        opinion."""
        began = self._monotonic()
        try:
            return await attempt(trial, began)
        except asyncio.CancelledError:
            self._record(trial, TIMED_OUT, self._monotonic() - began)
            raise
        except CALLERS:
            raise
        except PalateError as error:
            self._record(trial, failure_of(error), self._monotonic() - began)
            raise


class Followed:
    """The app's traffic, as last read; while the database is away it stays what it was."""

    def __init__(self, board: TrafficBoard, app: str, every_s: float) -> None:
        self._board = board
        self._app = app
        self.traffic: Traffic | None = None
        self._reader = Periodic("kserve-traffic", every_s, self._read)

    def close(self) -> None:
        self._reader.close()

    def _read(self) -> None:
        self.traffic = self._board.traffic().get(self._app)


def find_release(app: str, named: str, board: TrafficBoard, releases: ReleaseStore) -> ReleaseVersion:
    """The version or alias. Raises ReleaseNotFound, RegistryUnavailable. A version that has traffic is found without
    MLflow."""
    wanted = version_or_alias(named or STABLE)
    if isinstance(wanted, int):
        try:
            return board.release(app, wanted)
        except RegistryError:
            pass  # never accepted, or the database is away: MLflow knows
    return releases.get(app, wanted)


def build_pinned(config: ServingConfig, stores: Stores, version: ReleaseVersion) -> tuple[Services, Followed]:
    """What the routes need, with the threads running; the release is loaded once the router is started."""
    app = version.release.app

    async def load(found: ReleaseVersion) -> LoadedRelease:
        spec = AppSpec.model_validate(found.release.spec)
        return await asyncio.to_thread(load_inline, spec, found, stores, config)

    config = config.model_copy(update={"apps": (app,)})
    services = build_services(config, replace(stores, board=PinnedBoard(version)), load)
    followed = Followed(stores.board, app, config.traffic_poll_s)
    arms = PinnedArms(services.router, services.evidence, lambda: followed.traffic)
    # Admin routes speak of the app's real traffic
    return replace(services, arms=arms, steering=replace(services.steering, board=stores.board)), followed


def install(api: FastAPI, services: Services, followed: Followed) -> None:
    """Put the ingress's routes, its errors and its life into kserve's app, which adds `/v2` when it starts."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        make_room_for_waiting()
        # Not waited for: the process is alive while it loads, and ready when it has answered a real query
        services.router.start(services.config.traffic_poll_s, services.config.refresh_s)
        yield
        await services.arms.close()
        await services.router.close()
        followed.close()
        services.close()

    async def on_palate_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, PalateError)
        v2 = request.url.path.startswith("/v2/")
        return v2_problem(request, error) if v2 else problems.problem(request, error)

    api.state.services = services
    api.router.lifespan_context = lifespan
    for module in ROUTES:
        api.include_router(module.routes)
    for module in OPENAI:  # where KServe's clients look for the OpenAI protocol
        api.include_router(module.routes, prefix="/openai", include_in_schema=False)
    api.add_exception_handler(PalateError, on_palate_error)
