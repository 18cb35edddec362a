"""What a rollout survives: its controller killed at the worst moment, MLflow away or hanging, the database down."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry.mlflow_server import MlflowServer, start_mlflow
from registry.mlflow_store import MlflowStore
from registry.net import free_port
from tests.postgres import PostgresServer, postgres, postgres_url  # noqa: F401 - fixtures
from tests.rollout_world import ControllerSet, quick_release

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    home = tmp_path_factory.mktemp("mlflow")
    with start_mlflow(home, free_port(), home / "mlflow.log") as running:
        yield running


@pytest.fixture
def make(server: MlflowServer, tmp_path: Path) -> Iterator[Callable[..., ControllerSet]]:
    """Controllers over an app whose version 1 is stable and version 2 its canary."""
    made: list[ControllerSet] = []

    def one(url: str = "") -> ControllerSet:
        app = f"wines-{uuid.uuid4().hex[:8]}"
        store = MlflowStore(server.uri)
        for mark in ("one", "two"):
            store.publish(*quick_release(tmp_path / "files", app, mark))
        store.set_alias(app, "stable", 1)
        store.set_alias(app, "canary", 2)
        made.append(ControllerSet(tmp_path, app, server.uri, url))
        return made[-1]

    yield one
    for controllers in made:
        controllers.close()


@contextmanager
def hanging(server: MlflowServer) -> Iterator[None]:
    """MLflow takes connections and answers nothing; what was asked of it, it does when it goes on."""
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def in_first_step(controllers: ControllerSet) -> bool:
    return "step" in controllers.kinds()


def test_a_controller_killed_between_record_and_apply_is_finished_by_the_next(
    make: Callable[..., ControllerSet], server: MlflowServer
) -> None:
    controllers = make()
    first = controllers.start()
    controllers.wait_until(lambda: in_first_step(controllers), "the first step")
    with hanging(server):
        controllers.cast.outcomes = "eeeee"
        controllers.wait_until(lambda: "rolled-back" in controllers.kinds(), "the rollback while MLflow hangs", 20)
        first.kill()
        first.wait(10)
        assert [write.alias for write in controllers.state().alias_writes] == ["canary"]
    controllers.start()
    controllers.wait_until(lambda: not controllers.state().alias_writes, "what the dead one owed", 40)
    store = MlflowStore(server.uri)
    assert store.aliases(controllers.app) == {"stable": 1}
    controllers.wait_until(lambda: not controllers.state().tag_writes, "the tags", 10)
    assert store.get(controllers.app, 2).tags["palate.rollout"] == "rolled back"
    assert controllers.kinds() == ["adopted", "started", "ready", "step", "rolled-back"]


def test_mlflow_is_away_for_the_rest_of_the_rollout(make: Callable[..., ControllerSet], server: MlflowServer) -> None:
    controllers = make()
    controllers.start()
    controllers.wait_until(lambda: in_first_step(controllers), "the first step")
    with hanging(server):
        controllers.cast.outcomes = "aaaaa"
        controllers.wait_until(lambda: "baked" in controllers.kinds(), "the promotion and its bake while MLflow hangs")
        assert controllers.board.traffic()[controllers.app].stable == 2
        assert controllers.state().alias_writes != ()
    controllers.wait_until(lambda: not controllers.state().alias_writes, "the aliases, once MLflow is back", 40)
    assert MlflowStore(server.uri).aliases(controllers.app) == {"stable": 2, "previous": 1}
    assert controllers.state().rollouts == 1
    assert controllers.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]


def test_a_controller_killed_again_and_again_comes_to_the_same_end(
    make: Callable[..., ControllerSet], server: MlflowServer
) -> None:
    controllers = make()
    for kind in ("started", "step", "promoted"):
        process = controllers.start()
        controllers.wait_until(lambda kind=kind: kind in controllers.kinds(), kind)  # type: ignore[misc]
        process.kill()
        process.wait(10)
        controllers.cast.outcomes = "aaaaa"
    controllers.start()
    controllers.wait_until(lambda: "baked" in controllers.kinds(), "the end")
    controllers.wait_until(lambda: not controllers.state().alias_writes, "the aliases", 20)
    assert MlflowStore(server.uri).aliases(controllers.app) == {"stable": 2, "previous": 1}
    assert controllers.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]


def test_the_database_goes_down_and_comes_back(
    make: Callable[..., ControllerSet],
    server: MlflowServer,
    postgres: PostgresServer,  # noqa: F811
    postgres_url: str,  # noqa: F811
) -> None:
    controllers = make(postgres_url)
    process = controllers.start()
    controllers.wait_until(lambda: in_first_step(controllers), "the first step")
    postgres.stop()
    try:
        controllers.wait_until(lambda: "database.away" in controllers.logs(), "the controller's notice", 30)
    finally:
        postgres.start()
    controllers.cast.outcomes = "aaaaa"
    controllers.wait_until(lambda: "baked" in controllers.kinds(), "the end")
    assert process.poll() is None
    assert "database.back" in controllers.logs()
    assert controllers.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]
