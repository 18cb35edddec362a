"""`Router`: all apps of one serving process, and the threads that tell them what to do.

The ingress asks it where a request goes; `serving.stores` makes it. It follows the traffic that the controller sets,
and for apps that no controller has taken on, what `stable` points at in the registry. One thread asks the database, one
the registry and one reports, so none of them waits for another, and no answer for any of them. What cannot be asked
now changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from registry.errors import RegistryError, ReleaseNotFound
from registry.ports import ReleaseStore
from registry.schema import ReleaseVersion
from registry.traffic import RouterReport, Traffic
from serving.errors import NotFound, StoreUnavailable
from serving.logs import get_log
from serving.periodic import Periodic
from serving.router.app import AppRouter, Means, Standing
from serving.router.release import ServedRelease
from serving.router.routes import Route

log = get_log(__name__)

HEARTBEAT_S = 1.0


class Router:
    """One per process; `id` is its own, and no other process's, ever."""

    def __init__(self, apps: Sequence[str], store: ReleaseStore, means: Means) -> None:
        self.id = secrets.token_hex(8)
        self.spooled: Callable[[], int] = lambda: 0
        """How many feedback events of this process wait for the database: goes into its reports."""
        self._store = store
        self._board = means.board
        self._apps = {app: AppRouter(app, means, lambda app=app: self._changed(app)) for app in apps}  # type: ignore[misc]
        self._standings: dict[str, Standing] = {}
        self._reported: dict[str, tuple[Standing, float]] = {}
        self._threads: list[Periodic] = []
        self._reporter: Periodic | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def served(self, app: str) -> ServedRelease:
        """The stable release. Raises NotFound for an unknown app, StoreUnavailable for one that is not ready."""
        served = self._app(app).served
        if served is None:
            raise StoreUnavailable(f"{app} is not ready: {self._apps[app].problem}")
        return served

    def route(self, app: str, who: str | None, token: str) -> Route:
        """Where a request goes: `who` is its user or session, None where it names neither, `token` its own id. Act on
        it at once, it holds only now. Raises as `served`."""
        return self._app(app).route(who, token)

    def pinned(self, app: str, name: str, field: str) -> ServedRelease:
        """The release with this version, or of the arm with this name. Raises NotFound that says what there is."""
        return self._app(app).pinned(name, field)

    def lost(self, app: str, served: ServedRelease) -> None:
        """This release of an arm lost its replica: nothing is sent there until it answers again."""
        self._app(app).lost(served)

    def problems(self) -> Mapping[str, str]:
        """App -> why it does not serve. Empty when all do."""
        return {name: app.problem for name, app in self._apps.items() if app.served is None}

    def problem(self, app: str) -> str:
        """Why an app does not serve the release that is to be stable, though an older one may; "" when it does."""
        return self._apps[app].problem

    def traffic(self, app: str) -> Traffic | None:
        """The newest traffic set for an app; None while no controller has taken it on."""
        return self._apps[app].traffic

    def apps(self) -> Mapping[str, ServedRelease | None]:
        return {name: app.served for name, app in self._apps.items()}

    async def refresh(self) -> None:
        """Ask for everything now, and wait until each app's stable release is loaded or could not be."""
        self._loop = asyncio.get_running_loop()
        for app in self._apps.values():
            app.retry()
        try:
            await asyncio.to_thread(self._ask_board)
        except Exception as error:  # noqa: BLE001 - whatever it is: what serves must start, and the thread asks again
            log.warning("router.board.away", detail=repr(error))
        await asyncio.to_thread(self._ask_registry)
        await asyncio.gather(*(app.settled() for app in self._apps.values()))

    def start(self, traffic_poll_s: float, refresh_s: float) -> None:
        """Go on asking, from threads, until `close`."""
        self._loop = asyncio.get_running_loop()
        self._reporter = Periodic("router-reports", HEARTBEAT_S / 2, self._report)
        self._threads = [
            Periodic("router-traffic", traffic_poll_s, self._ask_board),
            Periodic("router-alias", refresh_s, self._ask_registry),
            self._reporter,
        ]

    async def close(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(thread.close) for thread in self._threads))
        await asyncio.gather(*(app.close() for app in self._apps.values()))

    def _app(self, name: str) -> AppRouter:
        app = self._apps.get(name)
        if app is None:
            raise NotFound(f"there is no app {name!r}; there are {sorted(self._apps)}", field="app")
        return app

    # --- on the threads

    def _ask_board(self) -> None:
        traffic: Mapping[str, Traffic] = {}
        try:
            traffic = self._board.traffic()
        finally:  # away or not, it is time for another turn: something may be due to be tried again
            self._post(lambda: self._follow(traffic))

    def _ask_registry(self) -> None:
        for name, app in self._apps.items():
            if app.steered:
                continue
            alias: ReleaseVersion | str
            try:
                alias = self._store.get(name, "stable")
            except ReleaseNotFound:
                alias = f"it has no release aliased `stable`; build one with: palate index {name}"
            except RegistryError as error:
                alias = f"the registry does not say which release is `stable`: {error}"
            self._post(lambda app=app, alias=alias: app.point(alias))  # type: ignore[misc]

    def _report(self) -> None:
        for name, standing in list(self._standings.items()):
            reported = self._reported.get(name)
            # The monotonic clock paces, the wall clock is what the controller compares with
            if reported is not None and reported[0] == standing and time.monotonic() - reported[1] < HEARTBEAT_S * 0.9:
                continue
            generation, stable, problem = standing
            self._board.report_router(
                RouterReport(self.id, name, generation, stable, problem, time.time(), self.spooled())
            )
            self._reported[name] = (standing, time.monotonic())

    # --- on the event loop

    def _post(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call)

    def _follow(self, traffic: Mapping[str, Traffic]) -> None:
        for name, app in self._apps.items():
            app.follow(traffic.get(name))

    def _changed(self, name: str) -> None:
        app = self._apps[name]
        if not app.steered:
            return
        standing = app.standing
        if self._standings.get(name) != standing:
            self._standings[name] = standing
            if self._reporter is not None:
                self._reporter.wake()
