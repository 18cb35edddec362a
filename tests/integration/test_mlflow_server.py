"""The local MLflow server: starts, says why it cannot, keeps what it was given, delivers webhooks, ends cleanly."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from registry.cli import commands
from registry.errors import RegistryUnavailable
from registry.manifest import release_digest
from registry.mlflow_server import MlflowServer, mlflow_command, start_mlflow
from registry.mlflow_store import MlflowStore
from registry.net import free_port
from registry.schema import Release
from tests.mlflow_fixture import component, make_release


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a home 집")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[MlflowServer]:
    with start_mlflow(home, free_port(), home / "logs" / "mlflow.log") as running:
        yield running


def test_a_release_survives_a_restart_and_no_process_survives_a_stop(tmp_path: Path) -> None:
    port = free_port()
    release, folders = make_release(tmp_path / "files", "wines", "one")
    with start_mlflow(tmp_path, port, tmp_path / "log") as server:
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        store = MlflowStore(server.uri)
        store.publish(release, folders)
        store.set_alias("wines", "stable", 1)
    server.stop()
    assert len(processes) > 1
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    with start_mlflow(tmp_path, port, tmp_path / "log") as server:
        assert MlflowStore(server.uri).get("wines", "stable").release == release


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RegistryUnavailable, match=f"port {port}"):
            start_mlflow(tmp_path, port, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_server_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"this is no database, but long enough to be looked at" * 100)
    with pytest.raises(RegistryUnavailable, match="file is not a database"):
        start_mlflow(tmp_path, free_port(), tmp_path / "log")


def test_the_webhook_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = mlflow_command(tmp_path, 5000)[1]["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]
    again = mlflow_command(tmp_path, 5001)[1]["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]
    assert first == again
    assert (tmp_path / "mlflow" / "webhook.key").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in (tmp_path / "mlflow").iterdir()] == ["webhook.key"]


def test_a_large_component_goes_up_and_comes_back(server: MlflowServer, tmp_path: Path) -> None:
    part, folder = component(tmp_path / "big", "vectors", "rules", {"vectors.npy": os.urandom(100 * 2**20)})
    release = Release("large", {}, (part,), 0, release_digest({}, (part,)))
    store = MlflowStore(server.uri)
    store.publish(release, {part.digest: folder})
    fetched = store.fetch(part, tmp_path / "cache")
    assert (fetched / "vectors.npy").stat().st_size == 100 * 2**20


def test_moving_an_alias_calls_a_webhook_on_this_machine(server: MlflowServer, tmp_path: Path) -> None:
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    calls: queue.Queue[dict[str, object]] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    store = MlflowStore(server.uri)
    store.publish(*make_release(tmp_path, "hooked", "one"))
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    try:
        store._client.create_webhook(
            name="made-up",
            url=f"http://127.0.0.1:{receiver.server_port}/",
            events=[WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)],
            secret="made-up-secret",
        )
        store.set_alias("hooked", "canary", 1)
        call = calls.get(timeout=30)
    finally:
        receiver.shutdown()
        receiver.server_close()
    assert call["data"] == {"name": "hooked", "alias": "canary", "version": "1"}


def run(uri: str, *args: str) -> tuple[int, str, str]:
    result = CliRunner(env={"PALATE_MLFLOW_URI": uri, "COLUMNS": "200"}).invoke(commands, ["releases", *args])
    return result.exit_code, result.stdout, result.stderr


def test_the_commands_show_what_was_published(server: MlflowServer, tmp_path: Path) -> None:
    store = MlflowStore(server.uri)
    release, folders = make_release(tmp_path, "shown", "one")
    store.publish(release, folders)
    store.set_alias("shown", "stable", 1)
    code, out, _ = run(server.uri, "shown")
    assert code == 0
    for part in ("stable", release.digest[:12], "retrieve.dense", "recall@10 0.5"):
        assert part in out
    code, out, _ = run(server.uri, "shown", "--json")
    assert [(v["version"], v["aliases"], v["digest"]) for v in json.loads(out)] == [(1, ["stable"], release.digest)]
    code, out, _ = run(server.uri, "show", "shown", "stable", "--json")
    assert json.loads(out)["release"]["spec"] == release.spec
    code, out, _ = run(server.uri, "show", "shown", "1")
    assert code == 0
    assert '"dataset": "예시"' in out


@pytest.mark.parametrize(
    ("uri", "args", "says"),
    [
        (None, ["nobody"], "palate index nobody"),
        (None, ["show", "nobody", "3"], "no version or alias 3"),
        ("http://127.0.0.1:1", ["shown"], "MLflow at http://127.0.0.1:1"),
        ("nowhere", ["shown"], "PALATE_MLFLOW_URI='nowhere'"),
    ],
)
def test_a_command_that_fails_says_why_in_one_line(
    server: MlflowServer, uri: str | None, args: list[str], says: str
) -> None:
    code, out, err = run(uri or server.uri, *args)
    assert (code, out) == (1, "")
    assert says in err
    assert len(err.splitlines()) == 1
