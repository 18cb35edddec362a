"""The trial profile, run here: its containers as processes with their own commands and environment, and its
serveConfigV2 on a local Ray, over a real PostgreSQL, the MLflow that the chart starts and the controller.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from mlflow import MlflowClient

from registry.net import free_port
from serving.cluster.secrets import secret_manifest
from serving.local.cluster import ray_environment
from serving.local.home import Home
from tests.chart.local_pods import Local
from tests.chart.rendering import CHART, NAMESPACE, Manifest, helm, of_kind
from tests.postgres import PostgresServer
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a machine that does other things takes minutes

APP = {
    "name": "teas",
    "example_query": "green tea",
    "items": {"source": "items.jsonl", "text": ["name"]},
    "retrieve": {"sources": {"lexical": {"engine": "lexical"}}},
    "rollout": {"guards": {"reward": None}},
}
ITEMS = [{"id": f"t{n}", "fields": {"name": name}} for n, name in enumerate(("green tea", "black tea", "mint leaves"))]


@dataclass
class Trial:
    local: Local
    manifests: list[Manifest]
    url: str
    mlflow_url: str
    controller_url: str

    def container(self, kind: str, name: str) -> dict[str, Any]:
        (manifest,) = of_kind(self.manifests, kind, name)
        found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
        return found

    def worker(self) -> dict[str, Any]:
        (service,) = of_kind(self.manifests, "RayService")
        group: dict[str, Any] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        return group


def rendered_with_a_small_app(folder: Path) -> list[Manifest]:
    values = yaml.safe_load((CHART / "profiles" / "trial.yaml").read_text())
    values["apps"] = {"teas": {"folder": "/opt/palate/examples/teas"}}
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "palate", str(CHART), "-n", NAMESPACE, "-f", str(folder / "values.yaml"))
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def write_app(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "app.yaml").write_text(yaml.safe_dump(APP))
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))


def write_secret(folder: Path, postgres: PostgresServer) -> dict[str, str]:
    """The one that the tool makes, filled in; and its files where pods have them."""
    secret: dict[str, str] = yaml.safe_load(secret_manifest("palate"))["stringData"]
    secret["database-url"] = postgres.create()
    secret["mlflow-database-url"] = postgres.create().replace("postgresql://", "postgresql+psycopg://")
    secret |= {"mlflow-username": "palate", "mlflow-password": "a long made-up password"}
    folder.mkdir()
    for key in ("trace-secret", "webhook-secret", "people-secret", "api-key"):
        (folder / key).write_text(secret[key])
    return secret


@pytest.fixture(scope="module")
def trial(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("trial")
    manifests = rendered_with_a_small_app(folder)
    write_app(folder / "examples" / "teas")
    secret = write_secret(folder / "secrets", postgres)
    port, mlflow_port, controller_port = free_port(), free_port(), free_port()
    for name in ("home", "metrics", "mlflow-run", "mlflow"):
        (folder / name).mkdir()
    instead = {
        "/opt/palate/examples": str(folder / "examples"),
        "/etc/palate/secrets": str(folder / "secrets"),
        "/var/lib/palate": str(folder / "home"),
        "/run/palate/metrics": str(folder / "metrics"),
        "/run/mlflow": str(folder / "mlflow-run"),
        "/var/lib/mlflow": str(folder / "mlflow"),
        "palate-mlflow.search.svc:5000": f"localhost:{mlflow_port}",
        "--port=5000": f"--port={mlflow_port}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "palate-serve-svc.search.svc:8000": f"localhost:{port}",
        "8081": str(controller_port),
    }
    local = Local(folder, secret, instead)
    urls = [f"http://localhost:{one}" for one in (port, mlflow_port, controller_port)]
    made = Trial(local, manifests, *urls)
    try:
        start_stores(made)
        start_endpoint(made, port)
        yield made
    finally:
        local.end()
        shutil.rmtree(Home(folder / "ray").sockets, ignore_errors=True)


def start_stores(trial: Trial) -> None:
    (mlflow,) = of_kind(trial.manifests, "Deployment", "palate-mlflow")
    (init,) = mlflow["spec"]["template"]["spec"]["initContainers"]
    trial.local.run(init)
    trial.local.start(trial.container("Deployment", "palate-mlflow"), "mlflow")
    (migrate,) = [job for job in of_kind(trial.manifests, "Job") if "migrate" in job["metadata"]["name"]]
    trial.local.run(migrate["spec"]["template"]["spec"]["containers"][0])
    wait_for(lambda: answers(f"{trial.mlflow_url}/health"), 90, "MLflow's start")
    (seed,) = [job for job in of_kind(trial.manifests, "Job") if "seed" in job["metadata"]["name"]]
    trial.local.run(seed["spec"]["template"]["spec"]["containers"][0])


def start_endpoint(trial: Trial, port: int) -> None:
    """Ray as a worker pod has it, and what KubeRay would deploy there."""
    local = trial.local
    container = trial.worker()["template"]["spec"]["containers"][0]
    home = Home(local.folder / "ray")
    home.prepare()
    home.secret("ray")
    private = ray_environment(home, local.folder / "unused.jsonl")  # sockets and ports of its own
    environment = {**private, "PALATE_LOG": "stderr", **local.environment(container)}
    environment |= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
    (service,) = of_kind(trial.manifests, "RayService")
    config = local.folder / "serve.yaml"
    config.write_text(service["spec"]["serveConfigV2"])
    (resources,) = shlex.split(trial.worker()["rayStartParams"]["resources"])
    command = [
        sys.executable,
        "-m",
        "tests.chart.local_ray",
        str(config),
        resources,
        str(port),
        str(home.sockets / "ray"),
    ]
    process = local.start_process(command, environment, "ray")
    local.start(trial.container("Deployment", "palate-controller"), "controller")

    def ready() -> bool:
        said = local.log("ray").read_text(errors="replace")
        assert process.poll() is None, said
        return "ready" in said and answers(f"{trial.url}/readyz")

    wait_for(ready, 240, "the deployment of serveConfigV2")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


def ask(trial: Trial, **headers: str) -> httpx.Response:
    authorization = {"authorization": f"Bearer {trial.local.secret['api-key']}"}
    body = {"query": "green tea", "user": "somebody"}
    return httpx.post(f"{trial.url}/v1/apps/teas/query", json=body, headers={**authorization, **headers}, timeout=30)


def test_the_deployed_serve_config_is_ready_and_answers_with_the_first_key(trial: Trial) -> None:
    assert httpx.get(f"{trial.url}/readyz").json() == {"ready": True, "problems": {}}
    answer = ask(trial)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["id"] == "t0"
    assert httpx.post(f"{trial.url}/v1/apps/teas/query", json={"query": "x"}).status_code == 401


def test_mlflow_asks_who_is_there_and_by_what_name_it_is_called(trial: Trial) -> None:
    search = f"{trial.mlflow_url}/api/2.0/mlflow/registered-models/search"
    who = (trial.local.secret["mlflow-username"], trial.local.secret["mlflow-password"])
    assert httpx.get(search).status_code == 401
    assert httpx.get(search, auth=who).is_success
    assert httpx.get(search, auth=who, headers={"host": "elsewhere.example.com"}).status_code == 403


def test_the_controller_leads_and_a_canary_that_a_person_sets_gets_an_arm(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: answers(f"{trial.controller_url}/readyz"), 60, "the controller's readiness")
    wait_for(lambda: "palate_controller_leads 1.0" in httpx.get(f"{trial.controller_url}/metrics").text, 60, "its lead")
    environment = trial.local.environment(trial.container("Deployment", "palate-controller"))
    derive = [sys.executable, "-m", "serving.cli", "derive", "teas", "--set", "retrieve.fusion.abstain_below=0.01"]
    done = subprocess.run([*derive, "--canary"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: ask(trial, **{"x-palate-release": "canary"}).status_code == 200, 120, "the canary's first answer")
    assert ask(trial, **{"x-palate-release": "canary"}).json()["release"] == "2"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, environment[name])
    MlflowClient(trial.mlflow_url).delete_registered_model_alias("teas", "canary")
    # Said by webhook or seen by polling: the arm goes, and stable goes on
    wait_for(lambda: ask(trial, **{"x-palate-release": "canary"}).status_code != 200, 60, "the end of the canary")
    assert ask(trial).json()["release"] == "1"


def test_the_exporter_shows_what_the_endpoint_counted(trial: Trial) -> None:
    ask(trial)
    exporter = trial.worker()["template"]["spec"]["containers"][1]
    port = free_port()
    environment = {**trial.local.environment(exporter), "PALATE_EXPORTER_PORT": str(port)}
    trial.local.start_process([sys.executable, *exporter["command"][1:]], environment, "exporter")
    wait_for(lambda: answers(f"http://127.0.0.1:{port}/metrics"), 60, "the exporter's start")
    assert 'palate_requests_total{app="teas"' in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_the_doctor_finds_nothing_wrong(trial: Trial) -> None:
    (pod,) = of_kind(trial.manifests, "Pod")
    container = pod["spec"]["containers"][0]
    # What a rendered cluster has, and this machine lacks, is not the doctor's to find here
    environment = {k: v for k, v in trial.local.environment(container).items() if k != "PALATE_CHROMA_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", *container["command"][1:]],
        env={**environment, "PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
