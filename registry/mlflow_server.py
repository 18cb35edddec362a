"""The MLflow server of a single machine: SQLite and a folder under PALATE_HOME, on 127.0.0.1, in its own process group.

Called by `palate up` and by tests. A supervisor with its own way to run processes takes `mlflow_command`; the others
take `start_mlflow`. In a cluster MLflow is installed by the chart and none of this runs.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from registry.config import uri_file
from registry.errors import RegistryUnavailable
from registry.net import LOOPBACK as HOST
from registry.net import port_fault

POLL_S = 0.1


def mlflow_command(home: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """(argv, complete environment) of the server. Creates `home/mlflow` and, once, the key that keeps webhook secrets
    readable over restarts."""
    folder = home.absolute() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", HOST, "--port", str(port)),
        *("--workers", "1"),  # 250 MB each; one serves a machine's few clients, from threads
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", (folder / "artifacts").as_uri()),
    ]
    return argv, {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # evaluation jobs would bring more processes; we use none
        # The controller's webhook is plain HTTP on this machine, which MLflow refuses unless told.
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_CACHE_TTL": "5",  # seconds until a webhook that was just registered is delivered to
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": _webhook_key(folder / "webhook.key"),
    }


def _webhook_key(path: Path) -> str:
    """A Fernet key, made once and readable by its owner only."""
    if not path.exists():
        # Written aside and linked, so that of two writers the first wins and nobody reads half a key.
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.touch(mode=0o600)
        try:
            aside.write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
            os.link(aside, path)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
    return path.read_text(encoding="ascii")


@dataclass(frozen=True, slots=True)
class MlflowServer:
    """A running server. As a context manager it stops the server at the end."""

    process: subprocess.Popen[bytes]
    uri: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the server and its workers: asked first, killed after `timeout_s`. Safe to call twice."""
        stop_group(self.process, timeout_s)

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def start_mlflow(home: Path, port: int, log: Path, timeout_s: float = 60.0) -> MlflowServer:
    """Start the server and return when it answers. `log` is appended to.

    Raises RegistryUnavailable, with nothing left running, when the port is taken, the server dies (the message ends
    with its last log lines) or does not answer within `timeout_s`.
    """
    _check_port(port)
    argv, env = mlflow_command(home, port)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = MlflowServer(process, f"http://{HOST}:{port}", log)
    ready = False
    try:
        _wait_until_ready(server, timeout_s)
        uri_file(home).write_text(f"{server.uri}\n", encoding="utf-8")
        ready = True
    finally:
        if not ready:
            server.stop()
    return server


def _check_port(port: int) -> None:
    if fault := port_fault(port):
        raise RegistryUnavailable(
            f"port {port} for MLflow cannot be used ({fault}): stop what holds it or choose another port"
        )


def _wait_until_ready(server: MlflowServer, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RegistryUnavailable(f"MLflow ended with status {server.poll()}: {_last_lines(server.log)}")
        try:
            # A proxy of the environment must not be asked for this machine's own address.
            if httpx.get(f"{server.uri}/health", timeout=2.0, trust_env=False).is_success and server.poll() is None:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise RegistryUnavailable(f"MLflow did not answer within {timeout_s:.0f} s: {_last_lines(server.log)}")


def _last_lines(log: Path, lines: int = 12, tail_bytes: int = 16_384) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - tail_bytes))
        tail = stream.read().decode(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the end of {log}:", *tail])


def stop_group(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End a process that leads its own group, and everything in the group."""
    try:
        members = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        members = []
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    psutil.wait_procs(members, timeout=timeout_s)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
