"""One app in one router: brings what its traffic names, and routes by what it has.

`serving.router.Router` tells it the newest traffic several times a second. It is level-triggered: each turn begins what
is missing, uses what is there and lets go of what nobody wants, so it may run at any time, any number of times. All of
it runs on the event loop, and nothing waits between reading new traffic and acting on it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from registry.errors import RegistryUnavailable, ReleaseNotFound
from registry.ports import TrafficBoard
from registry.schema import ReleaseVersion
from registry.traffic import Arm, Traffic, TrialArm
from serving import metrics
from serving.config import Limits
from serving.errors import DeadlineExceeded, NotFound, StoreUnavailable
from serving.logs import get_log
from serving.router.release import ConnectArm, Load, LoadedRelease, ServedRelease
from serving.router.routes import Key, Route, Routes, arms_of, wanted, without_arms_but

log = get_log(__name__)

PASSING = (RegistryUnavailable, ReleaseNotFound, StoreUnavailable, DeadlineExceeded, OSError, MemoryError)
"""Why a release may not load now, and load a moment later."""

ARM_RETRY_S = 0.5
"""How soon an arm that did not answer is asked again: its processes may start, or come back, at any moment."""

ARM_WARM_S = 5.0
ARM_ANSWER_S = 60.0
LOADING = "its release is being loaded"


@dataclass(frozen=True, slots=True)
class Means:
    """How an app gets its releases. `connect` is None where no arms run; `retry_s` is the pace of what failed."""

    board: TrafficBoard
    load: Load
    connect: ConnectArm | None
    limits: Limits
    retry_s: float


class Standing(NamedTuple):
    """What the router reports: `generation` was followed in full, `stable` answers, `problem` keeps it from more."""

    generation: int
    stable: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class _Failure:
    """`retry_at`: seconds of `time.monotonic`; infinite for what trying again would not change."""

    problem: str
    retry_at: float


class AppRouter:
    def __init__(self, app: str, means: Means, changed: Callable[[], None]) -> None:
        """`changed` is called when `standing` may have."""
        self.app = app
        self._means = means
        self._changed = changed
        self._traffic: Traffic | None = None
        self._alias: ReleaseVersion | None = None
        self._alias_problem = LOADING
        self._routes: Routes | None = None
        self._ready: dict[Key, ServedRelease] = {}
        self._bringing: dict[Key, asyncio.Task[None]] = {}
        self._failed: dict[Key, _Failure] = {}
        self._reviving: dict[Key, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._followed = 0
        self._weights: dict[tuple[str, Arm], float] = {}

    # --- what the request side asks

    @property
    def served(self) -> ServedRelease | None:
        """The release that answers plain requests."""
        return None if self._routes is None else self._routes.stable

    @property
    def traffic(self) -> Traffic | None:
        """The newest traffic there is for the app."""
        return self._traffic

    @property
    def steered(self) -> bool:
        """A controller has taken the app on: its traffic decides, and not the alias."""
        return self._traffic is not None

    @property
    def problem(self) -> str:
        """Why the release that is to be stable does not serve, though an older one may; "" when it does."""
        target = self._target()
        if target is None:
            return self._alias_problem
        failure = self._failed.get(Key(target))
        if failure is not None:
            return failure.problem
        return LOADING if self._routes is None else self._alias_problem

    @property
    def standing(self) -> Standing:
        """The first thing that is wanted and could not be had is the problem; what is on its way is none."""
        keys = () if self._traffic is None else wanted(self._traffic)
        problem = next((self._failed[key].problem for key in keys if key in self._failed), "")
        if not problem and self._reviving:
            problem = f"{next(iter(self._reviving))} lost its replica"
        return Standing(self._followed, int(self.served.version) if self.served else None, problem)

    def route(self, who: str | None, token: str) -> Route:
        """Raises StoreUnavailable while nothing is ready."""
        if self._routes is None:
            raise StoreUnavailable(f"{self.app} is not ready: {self.problem}")
        return self._routes.route(who, token)

    def pinned(self, name: str, field: str) -> ServedRelease:
        """The release of a version or an arm, by its name. Raises NotFound that says what there is."""
        there: dict[str, ServedRelease] = {}
        for key, served in self._ready.items():
            if key.arm is None:
                there[served.version] = served
        if self._routes is not None:
            there["stable"] = self._routes.stable
            for arm, served in self._routes.arms.items():
                there[arm] = served
                there.setdefault(served.version, served)
        if name not in there:
            known = ", ".join(f"{n} ({s.version})" if n != s.version else n for n, s in sorted(there.items()))
            raise NotFound(
                f"release {name!r} of {self.app} is not loaded here; there is {known or 'none'}", field=field
            )
        return there[name]

    def lost(self, served: ServedRelease) -> None:
        """An arm lost its replica: send nothing there until it answers a warm query again."""
        key = next((key for key, ready in self._ready.items() if ready is served and key.arm), None)
        if key is not None and key not in self._reviving and not self._closed:
            log.warning("arm.lost", app=self.app, arm=key.arm, rollout=key.rollout, release=key.version)
            self._reviving[key] = asyncio.create_task(self._revive(key, served))
            self.turn()

    # --- what the router tells it

    def follow(self, traffic: Traffic | None) -> None:
        """The newest traffic; None: not known now, so the last one stands."""
        if traffic is not None:
            self._traffic = traffic
            self._alias_problem = ""
        self.turn()

    def point(self, alias: ReleaseVersion | str) -> None:
        """What `stable` points at in the registry, or why that is not known. Heeded until there is traffic."""
        if self._traffic is not None:
            return
        if isinstance(alias, str):
            self._alias_problem = alias
        else:
            self._alias, self._alias_problem = alias, ""
        self.turn()

    def retry(self) -> None:
        """Try again at once what may pass."""
        self._failed = {key: failure for key, failure in self._failed.items() if failure.retry_at == math.inf}

    async def settled(self) -> None:
        """Wait until stable is loaded, or could not be."""
        target = self._target()
        task = None if target is None else self._bringing.get(Key(target))
        if task is not None:
            await asyncio.wait([task])

    async def close(self, within_s: float = 5.0) -> None:
        """Finish what is under way, as far as it ends in time, and free everything."""
        self._closed = True
        for task in self._reviving.values():
            task.cancel()
        if bringing := [*self._bringing.values()]:
            await asyncio.wait(bringing, timeout=within_s)
        for served in self._ready.values():
            self._let_go(served)
        self._ready = {}
        if self._closing:
            _, hanging = await asyncio.wait([*self._closing], timeout=within_s)
            for task in hanging:
                task.cancel()
        await asyncio.gather(*self._closing, *self._reviving.values(), return_exceptions=True)

    # --- the turn

    def turn(self) -> None:
        if self._closed:
            return
        keys = self._wanted()
        before = self._routes
        self._settle()
        now = time.monotonic()
        for key in keys:
            failure = self._failed.get(key)
            urgent = key.arm is not None or key == keys[0] or keys[0] in self._ready
            due = failure is None or now >= failure.retry_at
            if urgent and due and key not in self._ready and key not in self._bringing:
                self._bringing[key] = asyncio.create_task(self._bring(key))
        self._drop_unwanted(frozenset(keys))
        if self._traffic is not None and all(k in self._ready and k not in self._reviving for k in keys):
            self._followed = self._traffic.generation
        if self._routes != before:
            self._show(before)
        self._changed()

    def _target(self) -> int | None:
        """The version that is to be stable."""
        if self._traffic is not None:
            return self._traffic.stable
        return None if self._alias is None else self._alias.version

    def _wanted(self) -> list[Key]:
        if self._traffic is not None:
            return list(wanted(self._traffic))
        return [] if self._alias is None else [Key(self._alias.version)]

    def _settle(self) -> None:
        """Route by what is there. While the new stable is being loaded the old one goes on, as do those of its arms
        that are still wanted, at the weights they had: users move once, when all is there."""
        target = self._target()
        if target is None:
            return
        stable, traffic = self._ready.get(Key(target)), self._traffic
        if stable is None:
            if self._routes is None:
                return
            stable, old = self._routes.stable, self._routes.traffic
            keep = frozenset(arms_of(traffic)) if traffic is not None else frozenset()
            traffic = None if old is None else without_arms_but(old, keep)
        keys = () if traffic is None else tuple(arms_of(traffic))
        arms: dict[TrialArm, ServedRelease] = {k.arm: self._ready[k] for k in keys if k.arm and k in self._ready}
        lost = frozenset(key.arm for key in keys if key.arm and key in self._reviving)
        self._routes = Routes(stable, traffic, arms, lost)

    def _drop_unwanted(self, keys: Collection[Key]) -> None:
        in_use = set() if self._routes is None else {id(self._routes.stable), *map(id, self._routes.arms.values())}
        for key in [k for k in self._ready if k not in keys and id(self._ready[k]) not in in_use]:
            self._let_go(self._ready.pop(key))
            if reviving := self._reviving.pop(key, None):
                reviving.cancel()
        self._failed = {k: f for k, f in self._failed.items() if k in keys or f.retry_at == math.inf}

    def _let_go(self, served: ServedRelease) -> None:
        task = asyncio.create_task(served.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _show(self, before: Routes | None) -> None:
        """In metrics and log."""
        routes = self._routes
        assert routes is not None
        weights = routes.weights()
        gone = dict.fromkeys(self._weights, 0.0)
        for (release, arm), percent in (gone | weights).items():
            metrics.TRAFFIC_PERCENT.labels(self.app, release, arm).set(percent)
        self._weights = weights
        if before is not None and before.stable is routes.stable:
            return
        metrics.RELEASE_INFO.labels(self.app, routes.stable.version).set(1)
        if before is not None:
            metrics.RELEASE_INFO.labels(self.app, before.stable.version).set(0)
        replaced = None if before is None else before.stable.version
        log.info("release.serving", app=self.app, release=routes.stable.version, replaced=replaced)

    # --- bringing a release

    def _tell_failure(self, key: Key, error: Exception) -> None:
        told = {"app": self.app, "release": key.version, "arm": key.arm, "error": repr(error)}
        if isinstance(error, PASSING):  # an arm that still starts, a store that is away
            log.info("release.waits", **told)
            return
        metrics.RELEASE_FAILURES.labels(self.app).inc()
        log.error("release.refused", **told, exc_info=error)

    async def _bring(self, key: Key) -> None:
        problem, retry_s = "", math.inf
        try:
            self._ready[key] = await self._prepared(key)
        except Exception as error:  # noqa: BLE001 - outermost: whatever a release does, it must not stop those that serve
            what = "could not be loaded" if key.arm is None else "does not answer"
            problem = f"{key} {what}: {error}"
            if key.arm is not None:
                retry_s = ARM_RETRY_S
            elif isinstance(error, PASSING):
                retry_s = self._means.retry_s
            known = self._failed.get(key)
            if known is None or known.problem != problem:
                self._tell_failure(key, error)
        finally:
            del self._bringing[key]
        if problem:
            self._failed[key] = _Failure(problem, time.monotonic() + retry_s)
        else:
            self._failed.pop(key, None)
        self.turn()

    async def _prepared(self, key: Key) -> ServedRelease:
        """Loaded, and it has answered a real query. Raises what loading and answering raise, and leaves nothing."""
        means, alias = self._means, self._alias
        if alias is not None and alias.version == key.version:
            version = alias
        else:
            version = await asyncio.to_thread(means.board.release, self.app, key.version)
        fresh = ServedRelease(key.version, await self._loaded(key, version), means.limits)
        try:
            await (fresh.warm() if key.arm is None else fresh.warm(ARM_WARM_S))
            if key.arm is not None:  # stable's results are worth having while its engine is not up
                await fresh.warm_answer(ARM_ANSWER_S)
        except BaseException:
            await fresh.close()
            raise
        return fresh

    async def _loaded(self, key: Key, version: ReleaseVersion) -> LoadedRelease:
        if key.arm is None:
            return await self._means.load(version)
        if self._means.connect is None or self._traffic is None:
            raise StoreUnavailable("this router connects to no arms")
        return await self._means.connect(version, self._traffic, key.arm)

    async def _revive(self, key: Key, served: ServedRelease) -> None:
        """Until the arm answers a warm query, or nobody wants it any more."""
        while True:
            await asyncio.sleep(ARM_RETRY_S)
            try:
                await served.warm(ARM_WARM_S)
            except Exception as error:  # noqa: BLE001 - whatever it does is a reason to go on waiting
                log.info("arm.still_lost", app=self.app, arm=key.arm, error=repr(error))
            else:
                break
        self._reviving.pop(key, None)
        log.info("arm.back", app=self.app, arm=key.arm, rollout=key.rollout, release=key.version)
        self.turn()
