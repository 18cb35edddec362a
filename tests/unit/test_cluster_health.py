"""What a cluster's probes and Prometheus are told: of the controller, of a pod's processes, and of an endpoint that
starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from registry.database import migrate, open_database
from registry.errors import RegistryUnavailable, ReleaseNotFound
from serving.cluster import drain
from serving.cluster.deployer import LEASE_S, RENEW_S, DatabaseLease
from serving.cluster.drain import left_on, replicas_on, wait_until_empty
from serving.cluster.exporter import PodMetrics
from serving.health import HUNG_S, Watched, serve_health
from serving.ingress import Services, startup

WRITE = """
from prometheus_client import Counter, Gauge
Counter("made_up_total", "x").inc(3)
Gauge("made_up_now", "x", multiprocess_mode="livesum").set(5)
"""


class Script:
    """A controller whose turns come out as told."""

    def __init__(self, *outcomes: bool | Exception) -> None:
        self._outcomes = list(outcomes)
        self.closed = False

    def tick(self, now: float) -> bool:
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        self.closed = True


def test_a_controller_is_ready_while_its_turns_get_through() -> None:
    clock = [100.0]
    watched = Watched(Script(True, RegistryUnavailable("away"), False), lambda: clock[0])
    assert (watched.alive, watched.ready) == (True, False)
    assert watched.tick(1.0)
    assert watched.ready
    with pytest.raises(RegistryUnavailable):
        watched.tick(2.0)
    assert (watched.alive, watched.ready) == (True, False)
    assert not watched.tick(3.0)  # another leads: this one is ready to take over
    assert watched.ready
    clock[0] += HUNG_S
    assert (watched.alive, watched.ready) == (False, False)


def test_the_kubelet_and_prometheus_are_answered() -> None:
    watched = Watched(Script(True))
    server = serve_health(watched, 0, "127.0.0.1")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_address[1]}") as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            watched.tick(1_800_000_000.0)
            assert client.get("/readyz").status_code == 200
            text = client.get("/metrics").text
            assert client.get("/else").status_code == 404
    finally:
        server.shutdown()
        server.server_close()
    assert "palate_controller_leads 1.0" in text
    assert 'palate_controller_turns_total{outcome="done"} 1.0' in text
    assert "palate_controller_last_turn_timestamp_seconds 1.8e+09" in text


def test_gauges_of_processes_that_ended_are_dropped_and_counters_stay(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WRITE], env=environment, check=True)

    def values(alive: bool) -> dict[str, float]:
        found = PodMetrics(tmp_path, lambda pid: alive).collect()
        return {sample.name: sample.value for metric in found for sample in metric.samples}

    assert values(alive=True) == {"made_up_total": 6.0, "made_up_now": 10.0}
    assert values(alive=False) == {"made_up_total": 6.0}


def test_one_deployer_holds_the_lease_and_the_next_takes_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'p.db'}"
    migrate(url)
    database, clock = open_database(url), [0.0]
    first, second = (DatabaseLease(database, "deployer:made-up", lambda: clock[0]) for _ in range(2))
    assert first.held()
    assert not second.held()
    clock[0] += RENEW_S
    assert first.held()
    first.give_back()
    assert not first.held()
    assert second.held()
    clock[0] += LEASE_S + 1  # by its own clock it must not act on a lease it did not renew
    assert second.held()
    database.close()


def test_replicas_of_a_node_are_found_in_what_serve_says() -> None:
    deployment = {"replicas": [{"replica_id": "r2", "node_id": "n1"}, {"replica_id": "r1", "node_id": "n1"},
                               {"replica_id": "r3", "node_id": "n2"}, {"replica_id": "r4"}]}  # fmt: skip
    details = {"applications": {"palate": {"deployments": {"Router": deployment}}}}
    assert replicas_on(details, "n1") == ["r1", "r2"]
    assert replicas_on({}, "n1") == []


def serve_says(replica_on: str, proxies: dict[str, str]) -> dict[str, Any]:
    """Its REST answer about one unit that is nobody's ingress."""
    unit = {"replicas": [{"replica_id": "retrieve", "state": "RUNNING", "node_id": replica_on}]}
    told = {node: {"node_id": node, "status": status, "actor_name": f"SERVE_PROXY_ACTOR-{node}"}
            for node, status in proxies.items()}  # fmt: skip
    return {"proxies": told, "applications": {"wines-v1": {"deployments": {"retrieve": unit}}}}


def test_a_node_is_empty_once_its_proxy_has_drained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit is elsewhere within seconds, and the proxy still carries requests to routers elsewhere."""
    monkeypatch.setattr(drain, "LOOK_EVERY_S", 0.0)
    answers = [
        serve_says("n1", {"n1": "HEALTHY", "n2": "HEALTHY"}),
        serve_says("n2", {"n1": "DRAINING", "n2": "HEALTHY"}),
        serve_says("n2", {"n1": "DRAINING", "n2": "HEALTHY"}),
        serve_says("n2", {"n2": "HEALTHY"}),
    ]
    assert [left_on(answer, "n1") for answer in answers] == [
        ["retrieve", "the node's proxy"], ["the node's proxy"], ["the node's proxy"], []
    ]  # fmt: skip
    seen = iter(answers)
    assert wait_until_empty(lambda: next(seen), "n1", time.monotonic() + 60) == []
    assert next(seen, None) is None
    assert wait_until_empty(lambda: answers[1], "n1", time.monotonic() + 0.01) == ["the node's proxy"]


def test_a_proxy_is_waited_for_in_each_state_that_ray_knows_but_one() -> None:
    from ray.serve.schema import ProxyDetails, ProxyStatus

    told = {one: {"proxies": {"n1": ProxyDetails(node_id="n1", status=one).model_dump()}} for one in ProxyStatus}
    assert [one for one, details in told.items() if not left_on(details, "n1")] == [ProxyStatus.DRAINED]


class Starting:
    """The services of an endpoint whose apps load after so many looks; None: it has no release."""

    def __init__(self, looks: dict[str, int | None], away: bool = False) -> None:
        self._looks = looks
        self._away = away
        self.seen = 0
        self.router = SimpleNamespace(problems=self.problems, traffic=lambda app: None)
        self.steering = SimpleNamespace(releases=SimpleNamespace(get=self.get))

    def problems(self) -> dict[str, str]:
        self.seen += 1
        return {app: "not yet" for app, after in self._looks.items() if after is None or self.seen < after}

    def get(self, app: str, alias: str) -> object:
        if self._away:
            raise RegistryUnavailable("away")
        if self._looks[app] is None:
            raise ReleaseNotFound(f"{app} has no {alias}")
        return object()


async def test_an_endpoint_waits_for_the_releases_there_are() -> None:
    starting = Starting({"a": 3, "new": None})
    await startup.hold(cast("Services", starting), within_s=60.0)
    assert starting.seen == 3


async def test_an_endpoint_starts_in_the_end_without_a_release_that_does_not_load() -> None:
    starting = Starting({"a": 10_000}, away=True)
    await startup.hold(cast("Services", starting), within_s=0.5)
    assert starting.seen < 10
    await startup.hold(cast("Services", starting), within_s=0.0)
