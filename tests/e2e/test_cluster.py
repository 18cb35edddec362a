"""Palate as Kubernetes runs it: `ray start` for each pod, a serve config put to Ray's REST API, PostgreSQL, an MLflow
with releases, mounted secrets. What KubeRay and the kubelet do is done here by hand; the rest is real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve.schema import ServeDeploySchema

from registry.net import free_port
from tests.cluster import Cluster, cluster_of, serve_config, start_head, start_worker
from tests.platform import EXAMPLES
from tests.postgres import PostgresServer
from tests.postgres import postgres as postgres
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUERY = {"query": "말보로 소비뇽 2병", "top_k": 2}
APP = """
name: wines
description: The wines of an example, found by rules alone, which need no model.
example_query: "말보로 소비뇽 2병"
items:
  source: items.jsonl
  text: [name_ko, name_en]
  attributes: {vintage: number, price: number, volume_ml: number, grape: keyword, region: keyword, country: keyword,
               color: keyword}
understand: {engine: order_lines}
retrieve:
  sources: {rules: {engine: rules, aliases: aliases.yaml}}
placement:
  default: split
  units: {understand: {num_cpus: 0.1}, retrieve: {num_cpus: 0.2}}
"""
UNITS = "wines-v1"


@pytest.fixture(scope="module")
def cluster(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    app = tmp_path_factory.mktemp("wines")
    for file in ("items.jsonl", "aliases.yaml"):
        shutil.copy(EXAMPLES / "wine-orders" / file, app / file)
    (app / "app.yaml").write_text(APP, encoding="utf-8")
    with cluster_of(postgres, "wines") as (made, _):
        for command in (("migrate",), ("seed", str(app))):
            done = made.palate(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        start_head(made)
        start_worker(made)
        made.serve("PUT", serve_config(made.http_port))
        made.wait_running("palate", "palate-deployer")
        yield made


def replica(cluster: Cluster, application: str, deployment: str) -> dict[str, Any]:
    """The one that runs. Raises StopIteration while none does."""
    replicas = cluster.serve("GET")["applications"][application]["deployments"][deployment]["replicas"]
    return next(dict(one) for one in replicas if one["state"] == "RUNNING")


def test_the_serve_config_is_one_that_ray_accepts() -> None:
    assert ServeDeploySchema.model_validate(serve_config(8000)).applications[0].name == "palate"


def test_running_means_that_stable_answers(cluster: Cluster) -> None:
    """Not a moment later: the endpoint counts as started once it has answered a real query."""
    with cluster.client() as client:
        assert client.get("/readyz").json() == {"ready": True, "problems": {}}
        answer = client.post("/v1/apps/wines/query", json=QUERY)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 2


def test_the_doctor_finds_nothing_to_mend(cluster: Cluster) -> None:
    variables = {"PALATE_URL": cluster.url, "PALATE_RAY_DASHBOARD": f"http://127.0.0.1:{cluster.dashboard_port}"}
    done = cluster.run(sys.executable, "-m", "serving.cli", "doctor", "--in-cluster", "--json", **variables)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, findings
    assert {name for name, finding in findings.items() if finding["state"] == "skipped"} == set()
    assert findings["Ray"]["detail"] == "3 Serve applications run"


def test_the_exporter_answers_for_the_pod(cluster: Cluster) -> None:
    port = free_port()
    environment = {**cluster.environment, "PALATE_EXPORTER_PORT": str(port)}
    exporter = subprocess.Popen([sys.executable, "-m", "serving.cluster.exporter"], env=environment)
    try:

        def told() -> bool:
            try:
                text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            except httpx.TransportError:
                return False
            return 'palate_release_serving{app="wines"' in text and "palate_traces_dropped 0.0" in text

        wait_for(told, 60, "the pod's metrics name the release that serves")
    finally:
        exporter.send_signal(signal.SIGTERM)
    assert exporter.wait(30) == 0


def test_a_killed_deployer_comes_back_and_does_its_work(cluster: Cluster) -> None:
    """The release is placed split, so its units are the deployer's work: they are deleted while there is none."""
    killed, units = replica(cluster, "palate-deployer", "Deployer"), replica_ids(cluster, UNITS)
    os.kill(killed["pid"], signal.SIGKILL)
    # Without waiting for the end of them: a deployer that is quick has them back before they are seen gone.
    delete = f"import ray; from ray import serve; ray.init(namespace='serve'); serve.delete({UNITS!r}, _blocking=False)"
    done = cluster.run(sys.executable, "-c", delete, RAY_ADDRESS=f"127.0.0.1:{cluster.gcs_port}")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: back(cluster, killed["replica_id"]), 120, "another deployer runs")
    wait_for(lambda: units.isdisjoint(replica_ids(cluster, UNITS)), 120, "the units that were deleted are gone")
    cluster.wait_running(UNITS)
    with cluster.client() as client:
        wait_for(lambda: client.post("/v1/apps/wines/query", json=QUERY).is_success, 60, "queries are answered")


def test_the_controller_tells_the_kubelet_and_prometheus(cluster: Cluster) -> None:
    controller = subprocess.Popen(
        [sys.executable, "-m", "serving.cli", "controller"], cwd=cluster.folder / "home",
        env={**cluster.environment, "PALATE_CONTROLLER_PORT": str(port := free_port())},
    )  # fmt: skip
    try:
        wait_for(lambda: ready(port), 90, "the controller is ready")
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "palate_controller_leads 1.0" in text
    finally:
        controller.send_signal(signal.SIGTERM)
    assert controller.wait(30) == 0


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx.TransportError:
        return False


def replica_ids(cluster: Cluster, application: str) -> set[str]:
    deployments = cluster.serve("GET")["applications"].get(application, {}).get("deployments", {})
    return {one["replica_id"] for deployment in deployments.values() for one in deployment["replicas"]}


def back(cluster: Cluster, before: str) -> bool:
    try:
        return bool(replica(cluster, "palate-deployer", "Deployer")["replica_id"] != before)
    except (StopIteration, KeyError):
        return False


def test_a_drained_worker_loses_no_request(cluster: Cluster) -> None:
    """The last test: it takes a node away."""
    before = replica(cluster, "palate", "Router")
    start_worker(cluster)
    stop, seen = threading.Event(), list[int]()

    def ask() -> None:
        with cluster.client() as client:
            while not stop.wait(0.05):
                seen.append(client.post("/v1/apps/wines/query", json=QUERY).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    done = cluster.run(
        sys.executable, "-m", "serving.cluster.drain", "--within-s", "150", "--node-id", before["node_id"],
        RAY_ADDRESS=f"127.0.0.1:{cluster.gcs_port}",
    )  # fmt: skip
    stop.set()
    asking.join()
    assert done.returncode == 0, done.stderr
    assert replica(cluster, "palate", "Router")["node_id"] != before["node_id"]
    assert len(seen) > 10
    assert set(seen) == {200}


def test_what_a_cluster_lacks_is_named(tmp_path: Path) -> None:
    """What Serve shows of an application whose environment is incomplete."""
    from serving.cluster.applications import cluster_config
    from serving.errors import BadRequest

    whole = {
        "PALATE_APPS": "wines",
        "PALATE_DATABASE_URL": "postgresql://palate@db/palate",
        "PALATE_MLFLOW_URI": "http://mlflow:5000",
        "PALATE_SECRETS": str(tmp_path),
    }
    (tmp_path / "webhook-secret").write_text("made up")
    for missing in whole:
        with pytest.raises(BadRequest) as refused:
            cluster_config({name: value for name, value in whole.items() if name != missing})
        assert refused.value.field == missing
    with pytest.raises(BadRequest, match="trace-secret"):
        cluster_config(whole)
    (tmp_path / "trace-secret").write_text("0" * 64)
    assert cluster_config(whole).apps == ("wines",)
