"""Palate as a cluster runs it, on this machine: a Ray of several nodes that were started like pods, PostgreSQL, MLflow,
mounted secrets, and a serve config that is put to Ray's REST API, which is what KubeRay does with serveConfigV2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import yaml

from registry.mlflow_server import MlflowServer, start_mlflow
from registry.net import free_port
from serving.cluster.secrets import secret_manifest
from serving.local.cluster import haproxy_environment
from tests.postgres import PostgresServer
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
MOST_RESTARTS = 4
NEEDED_OF_SECRET = ("trace-secret", "people-secret", "webhook-secret", "api-key")


@dataclass
class Cluster:
    """`environment` is what every pod gets; `nodes` the Ray processes, head first."""

    folder: Path
    environment: dict[str, str]
    http_port: int
    dashboard_port: int
    gcs_port: int
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    restarts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def key(self) -> str:
        return (self.folder / "secrets" / "api-key").read_text().strip()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def run(self, *command: str, limit_s: float = 600, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command as in a pod of its own."""
        return subprocess.run(
            command, env={**self.environment, **variables}, cwd=self.folder / "home", timeout=limit_s,
            capture_output=True, text=True,
        )  # fmt: skip

    def palate(self, *arguments: str, limit_s: float = 600) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "serving.cli", *arguments, limit_s=limit_s)

    def start_node(self, *arguments: str) -> None:
        """`ray start`, head first; each is its own process group, which ends with the test."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
                   "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", *arguments]  # fmt: skip
        self.nodes.append(self._spawn(command))

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "nodes.log").open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, cwd=self.folder / "home", stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def restart_ended(self) -> None:
        """As the kubelet does: on a loaded machine a raylet may not be up within Ray's 30 s, and `ray start` ends."""
        for number, node in enumerate(self.nodes):
            if node.poll() is not None:
                self.restarts += 1
                assert self.restarts <= MOST_RESTARTS, (self.folder / "nodes.log").read_text()[-4000:]
                self.nodes[number] = self._spawn(list(map(str, cast("list[str]", node.args))))

    def serve(self, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ray's REST API, with the token."""
        answer = httpx.request(
            method, f"http://127.0.0.1:{self.dashboard_port}/api/serve/applications/", json=body, timeout=60,
            headers={"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}, trust_env=False,
        )  # fmt: skip
        answer.raise_for_status()
        return dict(answer.json()) if answer.content else {}

    def statuses(self) -> dict[str, str]:
        return {name: app["status"] for name, app in self.serve("GET")["applications"].items()}

    def wait_running(self, *applications: str, limit_s: float = 300) -> None:
        def there() -> bool:
            self.restart_ended()
            found = self.statuses()
            assert "DEPLOY_FAILED" not in found.values(), self.serve("GET")["applications"]
            return all(found.get(name) == "RUNNING" for name in applications)

        wait_for(there, limit_s, f"{applications} run")

    def close(self) -> None:
        for node in reversed(self.nodes):
            end_tree(node)


def end_tree(process: subprocess.Popen[bytes], within_s: float = 10.0) -> None:
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(tree, timeout=within_s)
    for one in left:
        one.kill()
    process.wait()


def serve_config(http_port: int, **router: Any) -> dict[str, Any]:
    """As the chart renders it for a small installation; on one machine only one node can have the proxy's port."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "applications": [
            {
                "name": "palate",
                "route_prefix": "/",
                "import_path": "serving.cluster.applications:endpoint",
                "deployments": [{"name": "Router", "ray_actor_options": {"num_cpus": 1}, **router}],
            },
            {
                "name": "palate-deployer",
                "route_prefix": None,
                "import_path": "serving.cluster.applications:deployer",
            },
        ],
    }


def mount_secrets(folder: Path) -> Path:
    """A Secret as a mounted folder that nobody can write to."""
    folder.mkdir()
    values = yaml.safe_load(secret_manifest("palate"))["stringData"]
    for name in NEEDED_OF_SECRET:
        (folder / name).write_text(values[name])
        (folder / name).chmod(0o444)
    folder.chmod(0o555)
    return folder


@contextmanager
def cluster_of(postgres: PostgresServer, apps: str, **variables: str) -> Iterator[tuple[Cluster, MlflowServer]]:
    """PostgreSQL, MLflow and the environment of pods; `start_node` and `serve` bring up the rest."""
    folder = Path(tempfile.mkdtemp(prefix="palate-k-"))  # short: Ray's sockets lie below it
    (folder / "home").mkdir()
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PALATE_", "RAY_", "PROMETHEUS_"))}
    with start_mlflow(folder / "mlflow", free_port(), folder / "mlflow.log", timeout_s=180) as mlflow:
        environment = {
            **outside,
            "PYTHONPATH": str(ROOT),
            "PALATE_APPS": apps,
            "PALATE_HOME": str(folder / "home"),
            "PALATE_SECRETS": str(mount_secrets(folder / "secrets")),
            "PALATE_DATABASE_URL": postgres.create(),
            "PALATE_MLFLOW_URI": mlflow.uri,
            "PALATE_READY_WITHIN_S": "120",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "made-up-token-made-up-token-made-up",
            **haproxy_environment(folder / "ha"),
            "RAY_worker_niceness": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
            **variables,
        }
        (folder / "metrics").mkdir()
        made = Cluster(folder, environment, free_port(), free_port(), free_port())
        try:
            yield made, mlflow
        finally:
            made.close()
            (folder / "secrets").chmod(0o700)
            shutil.rmtree(folder, ignore_errors=True)


def start_head(cluster: Cluster, num_cpus: int = 0) -> None:
    """The head as KubeRay starts it: no work of its own unless it is given CPUs."""
    cluster.start_node(
        "--head", f"--port={cluster.gcs_port}", f"--num-cpus={num_cpus}", f"--temp-dir={cluster.folder / 'ray'}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={cluster.dashboard_port}",
        f"--ray-client-server-port={free_port()}",
    )  # fmt: skip

    def answers() -> bool:
        cluster.restart_ended()
        try:
            cluster.serve("GET")
        except (httpx.HTTPError, ValueError):
            time.sleep(0.5)
            return False
        return True

    wait_for(answers, 180, "the dashboard answers")


def start_worker(cluster: Cluster, num_cpus: int = 2) -> None:
    cluster.start_node(f"--address=127.0.0.1:{cluster.gcs_port}", f"--num-cpus={num_cpus}")
