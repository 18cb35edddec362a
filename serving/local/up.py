"""`palate up`: MLflow, Ray and the endpoint on this machine, from nothing to a first answer.

Runs as one process that the others end with: it starts MLflow, the controller of rollouts and, where an app learns by
itself, the learner as children, Ray as its own cluster, and watches them.
First starts also fill the catalogue and build each app's first release, in a process of their own (`palate index`),
so that what only building needs does not stay in memory.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
from filelock import FileLock, Timeout

from registry.config import bound_mlflow_client
from registry.database import migrate, open_database
from registry.errors import RegistryError, RegistryUnavailable, ReleaseNotFound
from registry.mlflow_server import MlflowServer, start_mlflow
from registry.ports import ReleaseStore
from registry.webhook import WEBHOOK_PATH
from serving.config import ServingConfig
from serving.errors import PalateError
from serving.generate.engine_spec import model_source
from serving.keys import ApiKeys
from serving.local import cluster
from serving.local.controller import ControllerProcess, KeptProcess, LearnerProcess
from serving.local.home import Home, Running, SetupError, check_port
from serving.schema import AppSpec, load_app_spec
from serving.store import SqlItemStore
from serving.store.seed import seed_items

if TYPE_CHECKING:  # Ray is imported once its environment is set
    from serving.local.deployments import Deployer

READY_TIMEOUT_S = 60.0
WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    home: Home
    apps: Sequence[Path]
    port: int
    mlflow_port: int
    num_cpus: int | None = None
    num_gpus: int | None = None
    replicas: int = 1
    learner: bool = True


Say = Callable[[str], None]


class Platform:
    """What runs. `start` brings it up or raises SetupError with nothing left running; `watch` returns at a signal."""

    def __init__(self, options: UpOptions, say: Say) -> None:
        self._options = options
        self._home = options.home
        self._say = say
        self._mlflow: MlflowServer | None = None
        self._deployer: Deployer | None = None
        self._kept: dict[str, KeptProcess] = {}
        self._state: Running | None = None
        self._stop = threading.Event()
        self._specs: dict[str, AppSpec] = {}
        self._lock = FileLock(self._home.lock_file)

    def start(self) -> Running:
        self._home.prepare()
        self._take_lock()
        check_port(self._options.port, "--port")
        check_port(self._options.mlflow_port, "--mlflow-port")
        self._specs = {spec.name: spec for spec in map(load_app_spec, self._options.apps)}
        models = self._models()
        environment = cluster.ray_environment(self._home, self._home.logs / "serving.jsonl")
        os.environ.update(environment)
        bound_mlflow_client()
        cluster.clear_metrics(environment)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: self._stop.set())
        state = Running(
            os.getpid(), psutil.Process().create_time(), self._options.port, self._options.mlflow_port,
            tuple(self._specs),
        )  # fmt: skip
        state = replace(state, new_key=not self._home.api_key_file.exists())
        self._home.write_state(state)
        self._prepare_data()
        self._check_stopped()
        webhook = {"PALATE_WEBHOOK_URL": f"{state.url}{WEBHOOK_PATH}"}
        self._keep("controller", ControllerProcess(self._home, {**self._environment(), **webhook}))
        self._start_serve()
        if models:
            self._tell_engines()
        learning = [f for f, spec in zip(self._options.apps, self._specs.values(), strict=True) if learns(spec)]
        if learning and self._options.learner:
            self._keep("learner", LearnerProcess(self._home, learning, self._environment()))
        self._state = state = replace(state, ready=True, children=_descendants())
        self._home.write_state(state)
        return state

    def watch(self) -> None:
        """Until SIGTERM or SIGINT: keep MLflow, the controller and the learner running, and note what runs."""
        from serving.local import deployments

        while not self._stop.wait(WATCH_S):
            if self._mlflow is not None and self._mlflow.poll() is not None:
                self._say("MLflow ended; starting it again (serving goes on meanwhile)")
                self._try_start_mlflow()
            for name, process in self._kept.items():
                if process.keep():
                    self._say(f"The {name} ended and was started again; {process.log} says why")
                    self._note_children()
            self._home.write_deployments(deployments.describe())

    def stop(self) -> None:
        """End everything this started, newest first. Safe to call at any point of a failed start."""
        if not self._lock.is_locked:
            return  # the home is another's: nothing in it is ours
        for name in ("learner", "controller"):  # first: it must not judge what is being taken down
            if name in self._kept:
                self._kept[name].stop()
        if self._deployer is not None:
            self._deployer.close()
        if "ray" in sys.modules:
            cluster.stop_ray()
        if self._mlflow is not None:
            self._mlflow.stop()
        self._home.state_file.unlink(missing_ok=True)
        self._lock.release()

    def _keep(self, name: str, process: KeptProcess) -> None:
        self._kept[name] = process
        process.keep()

    def _note_children(self) -> None:
        """So that `palate down` finds them even after this process was killed."""
        if self._state is not None:
            self._state = replace(self._state, children=_descendants())
            self._home.write_state(self._state)

    # --- steps ---

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            running = self._home.running()
            where = f" (pid {running.pid}, {running.url})" if running else ""
            raise SetupError(
                f"palate runs already in {self._home.root}{where}: stop it with `palate down`, or use another --home"
            ) from None

    def _prepare_data(self) -> None:
        migrate(self._config().database)
        database = open_database(self._config().database)
        ApiKeys(database).ensure_local_key(self._home.root)
        self._say("Starting MLflow")
        self._try_start_mlflow(must=True)
        items = SqlItemStore(database)
        for folder in self._options.apps:
            seed_items(load_app_spec(folder), folder, items, self._say)
            self._check_stopped()
        database.close()
        store = self._releases()
        for folder, spec in zip(self._options.apps, self._specs.values(), strict=True):
            self._first_release(folder, spec, store)

    def _try_start_mlflow(self, must: bool = False) -> None:
        try:
            self._mlflow = start_mlflow(self._home.root, self._options.mlflow_port, self._home.logs / "mlflow.log")
        except RegistryUnavailable as error:
            if must:
                raise SetupError(str(error)) from None
            self._say(f"MLflow does not start: {error}")

    def _first_release(self, folder: Path, spec: AppSpec, store: ReleaseStore) -> None:
        try:
            stable = store.get(spec.name, "stable")
        except ReleaseNotFound:
            pass
        else:
            if AppSpec.model_validate(stable.release.spec) != spec:
                self._say(f"{spec.name}: app.yaml changed since release {stable.version}; `palate index {folder} "
                          "--promote` builds and serves one with the new file")  # fmt: skip
            return
        self._say(f"{spec.name}: building its first release")
        environment = {**os.environ, **self._environment()}
        command = [sys.executable, "-m", "serving.cli", "index", str(folder), "--promote"]
        done = subprocess.Popen(command, env=environment)
        while done.poll() is None:
            if self._stop.wait(0.1):
                done.terminate()
                done.wait(timeout=30)
                self._check_stopped()
        if done.returncode:
            raise SetupError(f"{spec.name}: its release could not be built; the lines above say why")

    def _start_serve(self) -> None:
        self._say("Starting Ray")
        cpus = self._options.num_cpus or max(4, 2 * (os.cpu_count() or 1))
        cluster.start_ray(self._home, cpus, self._options.num_gpus)
        from ray import serve

        from serving.app import INGRESS, ingress_application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._say("Starting the endpoint")
        serve.start(http_options={"host": "127.0.0.1", "port": self._options.port})
        self._start_deployer()
        serve.run(ingress_application(self._config(), self._options.replicas), name=INGRESS, route_prefix="/")
        self._wait_until_ready()

    def _models(self) -> list[str]:
        """What engines have to load for the apps. Raises BadRequest where it is missing."""
        named = [spec.language_model for spec in self._specs.values() if spec.language_model is not None]
        return [model_source(spec, self._home.root) for spec in named if spec.engine == "vllm"]

    def _tell_engines(self) -> None:
        from serving.local.engines import tell_engines

        assert self._deployer is not None
        tell_engines(self._deployer.engines, self._say, self._check_stopped)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        problem = "no answer"
        while time.monotonic() < deadline:
            self._check_stopped()
            try:
                answer = httpx.get(f"http://127.0.0.1:{self._options.port}/readyz", timeout=5)
                if answer.is_success:
                    return
                problem = str(answer.json().get("problems", answer.text))
            except (httpx.TransportError, ValueError):
                pass
            time.sleep(0.2)
        raise SetupError(f"the endpoint is not ready after {READY_TIMEOUT_S:.0f} s: {problem}")

    def _start_deployer(self) -> None:
        """From now on what the traffic names runs beside the endpoint: split releases, and the arms of rollouts."""
        from registry.journal import SqlBoard
        from serving.local.deployments import Deployer

        config = self._config()
        self._deployer = Deployer(SqlBoard(open_database(config.database)), self._releases(), config)
        self._deployer.start()

    def _releases(self) -> ReleaseStore:
        from registry.mlflow_store import MlflowStore

        return MlflowStore(f"http://127.0.0.1:{self._options.mlflow_port}")

    def _environment(self) -> dict[str, str]:
        return {
            "PALATE_HOME": str(self._home.root),
            "PALATE_MLFLOW_URI": f"http://127.0.0.1:{self._options.mlflow_port}",
            "PALATE_APPS": ",".join(self._specs),
        }

    def _config(self) -> ServingConfig:
        return ServingConfig.from_env({**os.environ, **self._environment()})

    def _check_stopped(self) -> None:
        if self._stop.is_set():
            raise SetupError("stopped while starting")


def learns(spec: AppSpec) -> bool:
    """Whether something of the app happens by itself: a run starts, or a candidate waits for its turn on trial."""
    return any(t.trigger.new_events or t.trigger.every_s or t.canary for t in spec.train.values())


def _descendants() -> tuple[tuple[int, float], ...]:
    """Every process below this one, so that `palate down` can end them even after this one was killed."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            found.append((child.pid, child.create_time()))
        except psutil.NoSuchProcess:
            continue
    return tuple(found)


def run_up(options: UpOptions, say: Say, ready: Callable[[Running], None]) -> None:
    """Run in the foreground until stopped. Raises SetupError, PalateError or RegistryError if it cannot start."""
    platform = Platform(options, say)
    try:
        ready(platform.start())
        platform.watch()
        say("Stopping")
    except (PalateError, RegistryError) as error:
        raise SetupError(str(error)) from error
    finally:
        platform.stop()
