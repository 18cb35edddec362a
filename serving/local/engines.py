"""Keeps the engines of language models, and their adapters, what the releases in use need: an engine starts with the
first release that names it and goes after the last; an adapter is loaded before its arm starts and unloaded after it.

The `Deployer` tells it the releases and asks it whether an arm may start; `palate up` asks how the engines come along.
Level-triggered, in a thread with an event loop of its own: a model that takes a minute to load stops nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from registry.errors import RegistryError
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from serving.config import ServingConfig
from serving.errors import BadRequest, Overloaded, PalateError, PhaseFailed
from serving.generate.adapters import WantedEngine, adapter_of, changes, engine_of, served_name, wanted_engines
from serving.generate.engine import deploy_engine
from serving.generate.engine_spec import ENGINE_NAME, engine_application_name
from serving.generate.vllm_model import VllmModel
from serving.local.arm_state import root_cause
from serving.logs import get_log

log = get_log(__name__)

EVERY_S = 0.5
SETTLED_EVERY_S = 2.0
"""How often an engine that has what it needs is asked what it holds: it may have started anew."""
ADAPTER_LINGER_S = 10.0
ENGINE_LINGER_S = 60.0
"""What no release names any more stays this long: routers follow, and a person may change their mind."""
AGAIN_S = 15.0
"""An engine that could not start is deployed again after this long."""

UP_WITHIN_S = 300.0
"""How long `palate up` waits for engines."""
NAMED_WITHIN_S = 10.0
"""What no release has named by then is not coming: app.yaml names an engine that its release did not know."""

Running = Mapping[str, ApplicationStatusOverview]
Phase = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Standing:
    """One engine now. `refused`: adapters that it does not take, and why."""

    model: str
    phase: Phase
    reason: str = ""
    since_s: float = 0.0
    adapters: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)


class Engines:
    """`start` keeps them until `close`. `standings` may be read from any thread."""

    def __init__(
        self,
        store: ReleaseStore,
        config: ServingConfig,
        adapter_linger_s: float = ADAPTER_LINGER_S,
        engine_linger_s: float = ENGINE_LINGER_S,
    ) -> None:
        self._store = store
        self._config = config
        self._adapter_linger_s = adapter_linger_s
        self._engine_linger_s = engine_linger_s
        self._versions: tuple[ReleaseVersion, ...] = ()
        self._standings: dict[str, Standing] = {}
        self._models: dict[str, VllmModel] = {}
        self._unwanted_since: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._told = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="engines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop looking; what runs goes on."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    # --- for the deployer, from its thread

    def follow(self, versions: Iterable[ReleaseVersion]) -> None:
        """These releases are in use, or about to be."""
        self._versions = tuple(versions)
        self._told = True

    def missing(self, version: ReleaseVersion) -> str:
        """What a release still waits for, "" when its engine is up and has its adapter."""
        spec, adapter = engine_of(version.release), adapter_of(version.release)
        if spec is None:
            return ""
        standing = self._standings.get(engine_application_name(spec))
        if standing is None or standing.phase != "ready":
            return standing.reason if standing and standing.reason else f"the engine of {spec.model} starts"
        if adapter is not None and served_name(version.release.app, adapter.digest) not in standing.adapters:
            return f"the engine of {spec.model} loads its adapter"
        return ""

    def refusal(self, version: ReleaseVersion) -> str:
        """Why a release can never be served, "" when it may be."""
        spec, adapter = engine_of(version.release), adapter_of(version.release)
        if spec is None or adapter is None:
            return ""
        standing = self._standings.get(engine_application_name(spec))
        return standing.refused.get(served_name(version.release.app, adapter.digest), "") if standing else ""

    @property
    def wanted(self) -> frozenset[str]:
        """Applications of the engines that the releases in use need."""
        return frozenset(wanted_engines(self._versions))

    @property
    def standings(self) -> Mapping[str, Standing]:
        """Application -> how it stands."""
        return dict(self._standings)

    # --- the loop

    async def _run(self) -> None:
        while not await asyncio.to_thread(self._stop.wait, EVERY_S):
            try:
                if self._told:
                    await self.reconcile()
            except Exception as error:  # outermost: the next pass tries again
                log.error("engines.failed", error=repr(error), exc_info=True)
        for model in self._models.values():
            await model.close()

    async def reconcile(self) -> None:
        """One pass."""
        wanted = wanted_engines(self._versions)
        now = time.monotonic()
        due = [name for name in wanted if now - self._looked_at.get(name, -SETTLED_EVERY_S) >= self._pause_s(name)]
        idle = set(self._standings) - set(wanted)
        if due or idle:
            running = (await asyncio.to_thread(serve.status)).applications
            for name in due:
                self._looked_at[name] = now
                await self._keep(name, wanted[name], running.get(name))
            await self._delete_unwanted(set(wanted), running, now)

    def _pause_s(self, name: str) -> float:
        standing = self._standings.get(name)
        if standing is None or standing.phase == "starting":
            return EVERY_S
        return SETTLED_EVERY_S if standing.phase == "ready" else AGAIN_S

    async def _keep(self, name: str, wanted: WantedEngine, running: ApplicationStatusOverview | None) -> None:
        before = self._standings.get(name)
        if running is None or running.status == "DEPLOY_FAILED":
            await self._deploy(name, wanted, running)
        elif running.status == "RUNNING":
            await self._keep_adapters(name, wanted)
        elif before is None or before.phase == "ready":  # it was lost, and Serve starts it again
            self._stand(name, Standing(wanted.spec.model, "starting", since_s=time.monotonic()))

    async def _deploy(self, name: str, wanted: WantedEngine, failed: ApplicationStatusOverview | None) -> None:
        before = self._standings.get(name)
        if failed is not None and (before is None or before.phase == "starting"):
            causes = [root_cause(unit.message) for unit in failed.deployments.values()]
            reason = f"the engine of {wanted.spec.model} could not start: {next(filter(None, causes), failed.message)}"
            self._stand(name, Standing(wanted.spec.model, "failed", reason))
            return  # a pause first
        try:
            await asyncio.to_thread(deploy_engine, wanted.spec, self._config.home, self._config.log)
        except BadRequest as error:
            self._stand(name, Standing(wanted.spec.model, "failed", error.detail))
        else:
            self._stand(name, Standing(wanted.spec.model, "starting", since_s=time.monotonic()))

    async def _keep_adapters(self, name: str, wanted: WantedEngine) -> None:
        model = self._models.setdefault(name, VllmModel(wanted.spec.model, name, threaded=True))
        before = self._standings.get(name) or Standing(wanted.spec.model, "starting", since_s=time.monotonic())
        try:
            loaded = set(await model.adapters())
            todo = changes(
                wanted.adapters.keys() - before.refused.keys(), loaded, self._unwanted_s(name, wanted, loaded),
                wanted.spec.max_adapters, self._adapter_linger_s,
            )  # fmt: skip
            refused = {adapter: why for adapter, why in before.refused.items() if adapter in wanted.adapters}
            for adapter in todo.unload:
                await model.unload_adapter(adapter)
                loaded.discard(adapter)
            for adapter in todo.load:
                why = await self._load(model, adapter, wanted)
                if why is None:
                    loaded.add(adapter)
                elif why:
                    refused[adapter] = why
        except (PalateError, RegistryError) as error:  # away: the next pass asks again
            reason = getattr(error, "detail", str(error))
            self._stand(name, replace(before, reason=reason, phase="starting" if not before.adapters else before.phase))
            return
        since_s = before.since_s if before.phase == "ready" else time.monotonic()
        self._stand(name, Standing(wanted.spec.model, "ready", "", since_s, frozenset(loaded), refused))

    async def _load(self, model: VllmModel, adapter: str, wanted: WantedEngine) -> str | None:
        """None: it is loaded. "": it has to wait for a place. Else why the engine will never take it. Raises
        PalateError, RegistryError where one of them is away."""
        component = wanted.adapters[adapter]
        folder = await asyncio.to_thread(self._store.fetch, component, self._config.component_cache)
        try:
            await model.load_adapter(adapter, folder)
        except PhaseFailed as error:
            log.warning("engine.adapter.refused", adapter=adapter, reason=error.detail)
            return error.detail
        except Overloaded as error:
            log.warning("engine.adapter.waits", adapter=adapter, reason=error.detail)
            return ""
        return None

    def _unwanted_s(self, name: str, wanted: WantedEngine, loaded: set[str]) -> dict[str, float]:
        """How long nobody has wanted each adapter on this engine."""
        now = time.monotonic()
        keys = {adapter: f"{name}/{adapter}" for adapter in loaded - wanted.adapters.keys()}
        gone = [key for key in self._unwanted_since if key.startswith(f"{name}/") and key not in keys.values()]
        for key in gone:
            del self._unwanted_since[key]
        return {adapter: now - self._unwanted_since.setdefault(key, now) for adapter, key in keys.items()}

    async def _delete_unwanted(self, wanted: set[str], running: Running, now: float) -> None:
        ours = {name for name in running if ENGINE_NAME.fullmatch(name)} | set(self._standings)
        for name in ours & wanted:
            self._unwanted_since.pop(name, None)
        for name in ours - wanted:
            since = self._unwanted_since.setdefault(name, now)
            if now - since < self._engine_linger_s:
                continue
            if name in running and running[name].status != "DELETING":
                log.info("engine.deleted", application=name)
                await asyncio.to_thread(serve.delete, name, False)
            self._standings.pop(name, None)
            self._models.pop(name, None)
            self._unwanted_since.pop(name, None)

    def _stand(self, name: str, now: Standing) -> None:
        before = self._standings.get(name)
        if before is None or (before.phase, before.reason) != (now.phase, now.reason):
            log.info("engine.stands", application=name, phase=now.phase, reason=now.reason)
        self._standings[name] = now


def tell_engines(engines: Engines, say: Callable[[str], None], check: Callable[[], None]) -> None:
    """Say how the engines come along, until they are up. One that cannot start, or takes too long, is not waited for:
    what needs no answer in words is served without it. `check` raises to give up."""
    say("Starting the engine of the language model; this takes about a minute")
    began, told = time.monotonic(), dict[str, Phase]()
    while (took_s := time.monotonic() - began) < UP_WITHIN_S:
        check()
        wanted = engines.wanted
        for name, standing in engines.standings.items():
            if standing.phase != "starting" and told.get(name) != standing.phase:
                told[name], model = standing.phase, Path(standing.model).name
                up = f"The engine of {model} is up after {took_s:.0f} s"
                say(up if standing.phase == "ready" else f"No engine for {model}: {standing.reason}")
        if wanted <= told.keys() and (wanted or took_s > NAMED_WITHIN_S):
            return
        time.sleep(0.2)
    say(f"The engine of the language model is not up after {UP_WITHIN_S:.0f} s; serving begins without it")
