"""`palate controller` as it runs: a real process, a real MLflow, SQLite. Routers and arms are played by the test."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from registry.errors import DeliveryRefused, RegistryError, RegistryUnavailable
from registry.mlflow_store import MlflowStore
from registry.webhook import WEBHOOK_NAME, ensure_webhook, verify
from serving.local.controller import ControllerProcess
from serving.local.home import Home
from tests.rollout_world import ControllerSet, quick_release
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def controllers(mlflow_uri: str, tmp_path: Path) -> Iterator[ControllerSet]:
    """Versions 1 and 2 are published, 1 is stable; nothing runs yet."""
    app = f"wines-{uuid.uuid4().hex[:8]}"
    store = MlflowStore(mlflow_uri)
    for mark in ("one", "two"):
        store.publish(*quick_release(tmp_path / "files", app, mark))
    store.set_alias(app, "stable", 1)
    made = ControllerSet(tmp_path, app, mlflow_uri)
    yield made
    made.close()


def aliases(controllers: ControllerSet, mlflow_uri: str) -> dict[str, int]:
    return MlflowStore(mlflow_uri).aliases(controllers.app)


def test_an_alias_set_in_mlflow_becomes_a_rollout_that_is_promoted(controllers: ControllerSet, mlflow_uri: str) -> None:
    controllers.start()
    controllers.wait_until(lambda: controllers.kinds() == ["adopted"], "stable taken on")
    MlflowClient(mlflow_uri).set_registered_model_alias(controllers.app, "canary", "2")
    controllers.wait_until(lambda: "started" in controllers.kinds(), "the rollout's start", 10)
    assert controllers.board.release(controllers.app, 2).version == 2
    controllers.cast.outcomes = "aaaaa"
    controllers.wait_until(lambda: "baked" in controllers.kinds(), "the end of the bake")
    assert controllers.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]
    controllers.wait_until(lambda: not controllers.state().tag_writes, "the tags in MLflow", 10)
    assert aliases(controllers, mlflow_uri) == {"stable": 2, "previous": 1}
    assert MlflowStore(mlflow_uri).get(controllers.app, 2).tags["palate.rollout"] == "promoted"
    time.sleep(2)  # several polls: its own writes start nothing
    assert controllers.state().rollouts == 1
    assert controllers.kinds()[-1] == "baked"


def test_a_failing_canary_ends_and_mlflow_says_why(controllers: ControllerSet, mlflow_uri: str) -> None:
    MlflowStore(mlflow_uri).set_alias(controllers.app, "canary", 2)
    controllers.cast.outcomes = "eeeee"
    controllers.start()
    controllers.wait_until(lambda: "rolled-back" in controllers.kinds(), "the rollback")
    controllers.wait_until(lambda: not controllers.state().tag_writes, "the tags in MLflow", 10)
    assert aliases(controllers, mlflow_uri) == {"stable": 1}
    tags = MlflowStore(mlflow_uri).get(controllers.app, 2).tags
    assert tags["palate.rollout"] == "rolled back"
    assert "canary_requests" in tags["palate.rollout.evidence"]


def test_the_second_controller_acts_when_the_first_is_killed(controllers: ControllerSet, mlflow_uri: str) -> None:
    first = controllers.start()
    controllers.wait_until(lambda: controllers.journal.holder() is not None, "the lease")
    holder = controllers.journal.holder()
    assert holder is not None
    assert f":{first.pid}:" in holder
    second = controllers.start()
    controllers.wait_until(lambda: "controller.started" in controllers.logs().split("\n", 3)[-1], "the second")
    time.sleep(1.5)
    assert controllers.journal.holder() == holder
    first.kill()
    MlflowStore(mlflow_uri).set_alias(controllers.app, "canary", 2)
    controllers.wait_until(lambda: "started" in controllers.kinds(), "the rollout's start by the second", 30)
    assert f":{second.pid}:" in str(controllers.journal.holder())


def test_it_gives_the_lease_back_when_it_is_told_to_stop(controllers: ControllerSet) -> None:
    process = controllers.start()
    controllers.wait_until(lambda: controllers.journal.holder() is not None, "the lease")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert controllers.journal.holder() is None


def test_palate_up_keeps_one_running(controllers: ControllerSet) -> None:
    child = ControllerProcess(Home(controllers.home), controllers.environment)
    child.stop()  # nothing yet
    try:
        assert child.keep()
        assert not child.keep()
        first = child.pid
        assert first is not None
        controllers.wait_until(lambda: controllers.journal.holder() is not None, "the lease")
        psutil.Process(first).kill()
        wait_for(child.keep, 30, "the next one")
        assert child.pid != first
        assert b"controller.started" in child.log.read_bytes()
    finally:
        last = child.pid
        child.stop()
    assert last is not None
    assert not psutil.pid_exists(last)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PALATE_APPS", "", "PALATE_APPS"),
        ("PALATE_POLL_S", "often", "PALATE_POLL_S"),
        ("PALATE_DATABASE_URL", "mysql://here", "mysql"),
        ("PALATE_DATABASE_URL", "sqlite:///{home}/empty.db", "migration"),
    ],
)
def test_what_is_set_up_wrongly_is_one_line(tmp_path: Path, name: str, value: str, says: str) -> None:
    environment = {"PALATE_APPS": "wines", "PALATE_HOME": str(tmp_path), name: value.format(home=tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "controller"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# --- webhooks ---


class Receiver:
    """An HTTP server that keeps what is posted to it."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.got.put((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silence."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/webhooks/mlflow"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self) -> tuple[dict[str, str], bytes]:
        return self.got.get(timeout=30)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_what_mlflow_signs_is_genuine(
    controllers: ControllerSet, mlflow_uri: str, receiver: Receiver, tmp_path: Path
) -> None:
    first = ensure_webhook(mlflow_uri, "http://127.0.0.1:9/elsewhere", "an older secret")
    assert ensure_webhook(mlflow_uri, receiver.url, "made-up") == first
    client = MlflowClient(mlflow_uri)
    ours = [w for w in client.list_webhooks() if w.name == WEBHOOK_NAME]
    assert [(w.url, len(w.events)) for w in ours] == [(receiver.url, 2)]

    def delivered() -> bool:
        """MLflow keeps for seconds what it knew of its webhooks."""
        client.set_registered_model_alias(controllers.app, "canary", "2")
        return not receiver.got.empty() or time.sleep(0.5) or False

    wait_for(delivered, 30, "a delivery")
    headers, body = receiver.next()
    delivery = verify("made-up", headers, body, time.time())
    assert (delivery.app, delivery.alias, delivery.version) == (controllers.app, "canary", 2)
    with pytest.raises(DeliveryRefused):
        verify("an older secret", headers, body, time.time())


def test_copies_of_the_webhook_are_removed(mlflow_uri: str) -> None:
    client = MlflowClient(mlflow_uri)
    for _ in range(2):
        client.create_webhook(WEBHOOK_NAME, "http://127.0.0.1:9/copy", ["model_version_alias.created"], secret="x")
    ensure_webhook(mlflow_uri, "http://127.0.0.1:9/", "made-up")
    assert len([w for w in client.list_webhooks() if w.name == WEBHOOK_NAME]) == 1


def test_a_url_that_mlflow_refuses_and_an_mlflow_that_is_away(mlflow_uri: str) -> None:
    with pytest.raises(RegistryError, match="ALLOWED_SCHEMES") as refused:
        ensure_webhook(mlflow_uri, "ftp://127.0.0.1/", "made-up")
    assert not isinstance(refused.value, RegistryUnavailable)
    with pytest.raises(RegistryUnavailable):
        ensure_webhook("http://127.0.0.1:9", "http://127.0.0.1:9/", "made-up")


def test_the_controller_registers_the_webhook_with_the_secret_of_its_home(
    controllers: ControllerSet, mlflow_uri: str, receiver: Receiver
) -> None:
    controllers.start(PALATE_WEBHOOK_URL=receiver.url)
    secret = controllers.home / "webhook-secret"
    client = MlflowClient(mlflow_uri)
    controllers.wait_until(lambda: any(w.url == receiver.url for w in client.list_webhooks()), "the registration", 30)

    def delivered() -> bool:
        client.set_registered_model_alias(controllers.app, "canary", "2")
        return not receiver.got.empty() or time.sleep(0.5) or False

    wait_for(delivered, 30, "a delivery")
    headers, body = receiver.next()
    assert verify(secret.read_text().strip(), headers, body, time.time()).app == controllers.app
