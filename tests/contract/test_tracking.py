"""`MlflowTracking` against a real server, and the stand-in: one contract. Then what only MLflow can do: be away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from registry.net import free_port
from tests.waiting import wait_for
from training.fakes import MemoryTracking
from training.tracking import MlflowTracking, Patience, Tracking

QUICK = Patience(flush_s=0.05, retry_s=0.2, finish_s=20.0)


@dataclass
class Read:
    """What an observer sees of a run."""

    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    files: list[str]
    state: str
    children: list[str]


Reader = Callable[[Tracking], Read]


@pytest.fixture(params=["memory", "mlflow"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[], Tracking], Reader]:
    """(makes the tracking of one run, reads it)."""
    if request.param == "memory":
        tracking = MemoryTracking()
        return lambda: tracking, read_memory
    uri = request.getfixturevalue("mlflow_uri")
    app = f"app-{uuid4().hex[:8]}"
    return lambda: MlflowTracking(uri, app, "run", tmp_path / "run.json", QUICK), lambda t: read_mlflow(uri, t)


def read_memory(tracking: Tracking) -> Read:
    assert isinstance(tracking, MemoryTracking)
    metrics: dict[str, list[tuple[int, float]]] = {}
    for name, value, step in tracking.logged:
        metrics.setdefault(name, []).append((step, value))
    files = sorted("/".join(part for part in artifact if part) for artifact in tracking.artifacts)
    return Read(tracking.set_params, tracking.set_tags, metrics, files, tracking.state, sorted(tracking.children))


def read_mlflow(uri: str, tracking: Tracking) -> Read:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(tracking.run_id)
    metrics = {
        name: [(m.step, m.value) for m in client.get_metric_history(tracking.run_id, name)] for name in run.data.metrics
    }
    query = f"tags.`mlflow.parentRunId` = '{tracking.run_id}'"
    children = client.search_runs([run.info.experiment_id], query)
    return Read(
        dict(run.data.params),
        {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
        metrics,
        sorted(files_below(client, tracking.run_id, "")),
        run.info.status,
        sorted(child.info.run_name for child in children),
    )


def files_below(client: Any, run_id: str, path: str) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, path):
        if entry.is_dir:
            yield from files_below(client, run_id, entry.path)
        else:
            yield entry.path


def test_what_is_told_can_be_read(made: tuple[Callable[[], Tracking], Reader], tmp_path: Path) -> None:
    make, read = made
    report = tmp_path / "out" / "report.txt"
    report.parent.mkdir()
    report.write_text("made up")
    tracking = make()
    tracking.params({"rate": 0.1, "한글": True} | {f"p{i}": i for i in range(150)})
    tracking.tags({"palate.app": "tiny"})
    tracking.status("training")
    tracking.status("evaluating")
    for step in range(1, 301):
        tracking.metrics({"loss": 1 / step, "recall@10": 0.5} if step == 300 else {"loss": 1 / step}, step)
    tracking.artifact(report)
    tracking.artifact(report.parent, "folder")
    child = tracking.child("trial 1")
    child.params({"rate": 0.2})
    child.metrics({"validation_loss": 2.0}, 7)
    assert child.finish() == 0
    assert tracking.child("trial 1").fail("it is worse") == 0
    assert tracking.finish() == 0
    seen = read(tracking)
    assert len(seen.params) == 152
    assert seen.params["rate"] == "0.1"
    assert seen.tags == {"palate.app": "tiny", "palate.status": "evaluating"}
    assert seen.metrics["loss"] == [(step, 1 / step) for step in range(1, 301)]
    assert seen.files == ["folder/report.txt", "report.txt"]
    assert (seen.state, seen.children) == ("FINISHED", ["trial 1"])
    below = read(child)
    assert (below.params, below.metrics) == ({"rate": "0.2"}, {"validation_loss": [(7, 2.0)]})
    assert (below.state, below.tags["palate.status"]) == ("FAILED", "it is worse")


def test_a_failure_says_why(made: tuple[Callable[[], Tracking], Reader]) -> None:
    make, read = made
    tracking = make()
    tracking.metrics({"loss": 1.0})
    assert tracking.fail("no GPU") == 0
    seen = read(tracking)
    assert (seen.state, seen.tags["palate.status"]) == ("FAILED", "no GPU")


def test_what_cannot_be_kept_is_counted(made: tuple[Callable[[], Tracking], Reader], tmp_path: Path) -> None:
    make, read = made
    tracking = make()
    tracking.params({"rate": 1})
    if tracking.run_id == "":
        wait_for(lambda: tracking.run_id != "" and read(tracking).params == {"rate": "1"}, 20)
    tracking.params({"rate": 2})
    tracking.artifact(tmp_path / "never written")
    tracking.metrics({"loss": 1.0})
    assert tracking.finish() == 2
    assert read(tracking).params == {"rate": "1"}
    assert read(tracking).metrics == {"loss": [(0, 1.0)]}


def test_a_restarted_job_goes_on_in_the_same_run(mlflow_uri: str, tmp_path: Path) -> None:
    state = tmp_path / "run.json"
    app = f"app-{uuid4().hex[:8]}"
    first = MlflowTracking(mlflow_uri, app, "run", state, QUICK)
    first.metrics({"loss": 3.0}, 1)
    first.child("trial 0").metrics({"validation_loss": 1.0}, 1)
    first.fail("killed, say")
    second = MlflowTracking(mlflow_uri, app, "run", state, QUICK)
    second.metrics({"loss": 2.0}, 2)
    wait_for(lambda: read_mlflow(mlflow_uri, second).state == "RUNNING", 20)
    child = second.child("trial 0")
    child.finish()
    assert second.finish() == 0
    assert second.run_id == first.run_id
    assert read_mlflow(mlflow_uri, second).metrics == {"loss": [(1, 3.0), (2, 2.0)]}
    assert read_mlflow(mlflow_uri, second).children == ["trial 0"]


def test_an_mlflow_that_is_away_is_tried_again(mlflow_uri: str, tmp_path: Path) -> None:
    port = free_port()
    tracking = MlflowTracking(f"http://127.0.0.1:{port}", f"app-{uuid4().hex[:8]}", "run", tmp_path / "run.json", QUICK)
    for step in range(50):
        tracking.metrics({"loss": float(step)}, step)
    tracking.params({"rate": 1})
    assert tracking.run_id == ""
    with Forwarder(port, mlflow_uri):
        wait_for(lambda: tracking.run_id != "", 30)
        assert tracking.finish() == 0
    seen = read_mlflow(mlflow_uri, tracking)
    assert seen.metrics["loss"] == [(step, float(step)) for step in range(50)]
    assert (seen.params, seen.state) == ({"rate": "1"}, "FINISHED")


def test_an_mlflow_that_stays_away_costs_a_bounded_wait_and_is_counted(tmp_path: Path) -> None:
    patience = Patience(flush_s=0.05, retry_s=0.2, finish_s=1.0)
    tracking = MlflowTracking(f"http://127.0.0.1:{free_port()}", "app", "run", tmp_path / "run.json", patience)
    tracking.metrics({"loss": 1.0, "other": 2.0}, 1)
    tracking.child("trial").tags({"a": "b"})
    assert tracking.finish() >= 2
    assert tracking.run_id == ""


class Forwarder:
    """Hands every connection to `port` on to the server at `uri`."""

    def __init__(self, port: int, uri: str) -> None:
        parts = urlsplit(uri)
        self._to = (parts.hostname or "", parts.port or 0)
        self._server = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
