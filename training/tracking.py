"""What a run tells the people who watch it: parameters, metrics, tags and files, seen in the MLflow UI.

`training.run` makes one per job, `training.job` writes the metrics of its loops and the trials of a search into it.
`MlflowTracking` never stops or slows a training: calls only fill a buffer, a thread sends it, an MLflow that is away is
tried again, and what could not be sent by the end is counted and dropped. `training.fakes.MemoryTracking` stands in.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from registry.config import bound_mlflow_client
from registry.files import replace_file
from registry.mlflow_layout import mlflow_key

BATCH = 100
"""Parameters, tags or metrics in one request: MLflow's limit for the first two."""
MAX_METRICS = 100_000
MAX_VALUE_CHARS = 5000
STATUS_TAG = "palate.status"

log = logging.getLogger(__name__)


class Tracking(Protocol):
    """One run. Every call returns at once but `finish` and `fail` of the first run, and none of them raises."""

    @property
    def run_id(self) -> str:
        """In MLflow; "" as long as it has not been reached."""

    def params(self, values: Mapping[str, object]) -> None:
        """Set once; a value that changes later is dropped and counted."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def status(self, text: str) -> None:
        """What the run is doing, for people: the tag `palate.status`."""

    def artifact(self, path: Path, under: str = "") -> None:
        """A file, or a folder's content, which has to stay where it is until the run ends."""

    def child(self, name: str) -> Tracking:
        """A nested run; the same name gives the same run, also after a restart."""

    def finish(self) -> int:
        """End well; the number of values that were dropped. The first run waits until all is sent, bounded."""

    def fail(self, why: str) -> int:
        """As `finish`, with the reason in `palate.status`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often is sent, how long a failing server is left alone at most, how long the end waits."""

    flush_s: float = 1.0
    retry_s: float = 15.0
    finish_s: float = 30.0


@dataclass(slots=True)
class _Run:
    """What is to be sent. `id` is known once the server has made the run; `end` is its last status."""

    key: str
    name: str
    parent: _Run | None = None
    id: str = ""
    reopen: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # name, value, milliseconds, step
    files: list[tuple[Path, str]] = field(default_factory=list)
    end: str = ""
    ended: bool = False
    dropped: int = 0

    @property
    def waiting(self) -> int:
        values = len(self.params) + len(self.tags) + len(self.metrics) + len(self.files)
        return values + (bool(self.end) and not self.ended)


class MlflowRun:
    """A handle on a run of a sender."""

    def __init__(self, sender: _Sender, run: _Run) -> None:
        self._sender = sender
        self._run = run

    @property
    def run_id(self) -> str:
        return self._run.id

    def params(self, values: Mapping[str, object]) -> None:
        with self._sender.lock:
            self._run.params |= {mlflow_key(k): str(v)[:MAX_VALUE_CHARS] for k, v in values.items()}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now_ms = int(time.time() * 1000)
        with self._sender.lock:
            self._run.metrics += [(mlflow_key(k), float(v), now_ms, step) for k, v in values.items()]
            if (over := len(self._run.metrics) - MAX_METRICS) > 0:
                del self._run.metrics[:over]
                self._run.dropped += over

    def tags(self, values: Mapping[str, str]) -> None:
        with self._sender.lock:
            self._run.tags |= {mlflow_key(k): str(v)[:MAX_VALUE_CHARS] for k, v in values.items()}

    def status(self, text: str) -> None:
        self.tags({STATUS_TAG: text})

    def artifact(self, path: Path, under: str = "") -> None:
        with self._sender.lock:
            self._run.files.append((path, under))

    def child(self, name: str) -> MlflowRun:
        key = f"{self._run.key}/{name}"
        return MlflowRun(self._sender, self._sender.run(key, name, self._run))

    def finish(self) -> int:
        return self._end("FINISHED")

    def fail(self, why: str) -> int:
        self.status(why)
        return self._end("FAILED")

    def _end(self, status: str) -> int:
        with self._sender.lock:
            self._run.end = status
        if self._run.parent is None:
            self._sender.close()
        return self._run.dropped


class MlflowTracking(MlflowRun):
    """The run `name` in the experiment `palate/APP`. `state` is a file that keeps the run's id: with the same file, a
    job that was killed goes on in the same run."""

    def __init__(self, uri: str, app: str, name: str, state: Path, patience: Patience = Patience()) -> None:
        sender = _Sender(uri, f"palate/{app}", state, patience)
        super().__init__(sender, sender.run("", name, None))
        sender.start()


class _Sender:
    """The thread that sends, and the only one that talks to MLflow."""

    def __init__(self, uri: str, experiment: str, state: Path, patience: Patience) -> None:
        self.lock = threading.Lock()
        self._uri = uri
        self._experiment = experiment
        self._experiment_id = ""
        self._state = state
        self._patience = patience
        self._runs: dict[str, _Run] = {}
        self._ids = _read_ids(state)
        self._client: Any = None
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self, key: str, name: str, parent: _Run | None) -> _Run:
        with self.lock:
            if key not in self._runs:
                known = self._ids.get(key, "")
                self._runs[key] = _Run(key, name, parent, known, reopen=known != "")
            return self._runs[key]

    def close(self) -> None:
        """Waits until all is sent or patience ends; then what is left is dropped."""
        self._closing.set()
        self._thread.join(self._patience.finish_s)
        with self.lock:
            for run in self._runs.values():
                left, run.dropped = run.waiting, run.dropped + run.waiting
                if left:
                    log.warning("MLflow at %s: %d values of the run %r were not sent", self._uri, left, run.name)
                run.params, run.tags, run.metrics, run.files, run.ended = {}, {}, [], [], True

    def _work(self) -> None:
        wait_s = self._patience.flush_s
        deadline = None
        while True:
            closing = self._closing.wait(wait_s)
            if closing and deadline is None:
                deadline = time.monotonic() + self._patience.finish_s
            sent = self._send_all()
            if closing and (sent or (deadline is not None and time.monotonic() >= deadline)):
                return
            if sent:
                wait_s = self._patience.flush_s
            else:
                wait_s = min(2 * wait_s, self._patience.retry_s)
                if closing:
                    time.sleep(min(0.5, self._patience.flush_s))

    def _send_all(self) -> bool:
        """Whether nothing is left. Parents come before their children."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        with self.lock:
            runs = list(self._runs.values())
        try:
            for run in runs:
                self._open(run)
                while self._send_batch(run):
                    pass
            for run in reversed(runs):
                self._send_end(run)
        except (MlflowException, RequestException, OSError) as error:
            if not self._warned:
                log.warning("MLflow at %s cannot be reached; training goes on: %s", self._uri, _one_line(error))
            self._warned = True
            return False
        self._warned = False
        with self.lock:
            return all(run.waiting == 0 for run in self._runs.values())

    def _open(self, run: _Run) -> None:
        from mlflow.entities import RunStatus
        from mlflow.exceptions import MlflowException

        client = self._connect()
        if run.reopen:
            try:
                client.update_run(run.id, status=RunStatus.to_string(RunStatus.RUNNING))
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                run.id = ""  # somebody deleted it
            run.reopen = False
        if run.id:
            return
        tags = {"mlflow.parentRunId": run.parent.id} if run.parent is not None else {}
        run.id = str(client.create_run(self._experiment_id, run_name=run.name, tags=tags).info.run_id)
        self._ids[run.key] = run.id
        _write_ids(self._state, self._ids)

    def _connect(self) -> Any:
        if self._client is None:
            bound_mlflow_client()
            from mlflow import MlflowClient

            self._client = MlflowClient(self._uri)
        if not self._experiment_id:
            found = self._client.get_experiment_by_name(self._experiment)
            self._experiment_id = (
                self._client.create_experiment(self._experiment) if found is None else str(found.experiment_id)
            )
        return self._client

    def _send_batch(self, run: _Run) -> bool:
        """One request of each kind; whether more is left. What the server refuses for good is dropped."""
        from mlflow.entities import Metric, Param, RunTag

        with self.lock:
            params = dict(list(run.params.items())[:BATCH])
            tags = dict(list(run.tags.items())[:BATCH])
            metrics, run.metrics = run.metrics[: 10 * BATCH], run.metrics[10 * BATCH :]
            files = run.files[:1]
        client, run_id = self._client, run.id
        if params and self._accepted(
            run, len(params), client.log_batch, run_id, params=[Param(k, v) for k, v in params.items()]
        ):
            with self.lock:
                run.params = {k: v for k, v in run.params.items() if params.get(k) != v}
        if tags and self._accepted(
            run, len(tags), client.log_batch, run_id, tags=[RunTag(k, v) for k, v in tags.items()]
        ):
            with self.lock:
                run.tags = {k: v for k, v in run.tags.items() if tags.get(k) != v}
        if metrics:
            sent = False
            try:
                sent = self._accepted(
                    run, len(metrics), client.log_batch, run_id, metrics=[Metric(*metric) for metric in metrics]
                )
            finally:
                if not sent:
                    with self.lock:
                        run.metrics[:0] = metrics
        for path, under in files:
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            self._accepted(run, 1, send, run_id, str(path), under or None)
            with self.lock:
                run.files.remove((path, under))
        with self.lock:
            return bool(run.params or run.tags or run.metrics or run.files)

    def _accepted(self, run: _Run, count: int, send: Any, *arguments: Any, **named: Any) -> bool:
        """True once it is done with: sent, or refused for good and counted. Raises when it is worth another try."""
        from mlflow.exceptions import MlflowException

        try:
            send(*arguments, **named)
        except FileNotFoundError as error:
            log.warning("tracking: %s is not there to be sent", error.filename)
            run.dropped += count
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"):
                raise
            log.warning("MLflow at %s refused %d values: %s", self._uri, count, _one_line(error))
            run.dropped += count
        return True

    def _send_end(self, run: _Run) -> None:
        if run.end and not run.ended:
            self._client.set_terminated(run.id, run.end)
            run.ended = True


def _read_ids(state: Path) -> dict[str, str]:
    try:
        return dict(json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_ids(state: Path, ids: Mapping[str, str]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    replace_file(state, json.dumps(ids))


def _one_line(error: Exception, limit: int = 300) -> str:
    return " ".join(str(error).split())[:limit]
