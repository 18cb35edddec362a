"""Named faults of a rollout, with real processes: users see no error, the end state is right, the story is told.

One platform serves them all, one after another: what a fault leaves behind would be found by the next. The drills are
releases that misbehave on purpose (`serving.retrieve.drill`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from bench.rollouts import QUICK, Rollouts
from bench.traffic import LiveTraffic, load_cases
from registry.mlflow_store import MlflowStore
from tests.platform import EXAMPLES, Platform
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

APP = "wine-orders"
HOLDING = {**QUICK, "rollout.steps_percent": [25], "rollout.step": {"min_requests": 1_000_000, "deadline_s": 600}}
"""A plan whose only step nothing passes: the rollout lasts until something ends it."""


@dataclass
class Drilled:
    """The platform under traffic, and what a test needs of it."""

    platform: Platform
    rollouts: Rollouts
    store: MlflowStore
    traffic: LiveTraffic

    def candidate(self, plan: dict[str, Any], about: str, **drill: float) -> int:
        return self.rollouts.publish({**plan, "description": f"{about} {time.time_ns()}"}, drill or None)

    def begin(self, version: int, phase: str = "step") -> int:
        """Set the alias and wait for the phase: the number of the rollout."""
        self.rollouts.start(version)
        return self.rollouts.wait_for_phase(version, phase)

    def tags(self, version: int) -> dict[str, str]:
        return dict(self.store.get(APP, version).tags)

    def processes(self, word: str) -> list[psutil.Process]:
        """The platform's processes whose command line has the word."""
        running_ = self.platform.home.running()
        assert running_ is not None
        below = psutil.Process(running_.pid).children(recursive=True)
        found = []
        for process in below:
            try:
                if any(word in part for part in process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="module")
def platform_under_traffic(wine_platform: Platform) -> Iterator[Drilled]:
    cases = load_cases(EXAMPLES / APP / "evaluation" / "test.jsonl")
    store = MlflowStore(wine_platform.mlflow_url)
    rollouts = Rollouts(wine_platform.url, wine_platform.key, store, APP)
    with LiveTraffic(wine_platform.url, wine_platform.key, APP, cases) as traffic:
        yield Drilled(wine_platform, rollouts, store, traffic)


@pytest.fixture
def drilled(platform_under_traffic: Drilled) -> Iterator[Drilled]:
    """Whatever a test did: afterwards no rollout runs, no user saw an error, one release is stable."""
    platform_under_traffic.traffic.samples.clear()
    stable = platform_under_traffic.rollouts.stable()
    yield platform_under_traffic
    platform_under_traffic.rollouts.wait_for_end(120)
    time.sleep(0.5)
    traffic = platform_under_traffic.traffic
    assert len(traffic.samples) > 20, "the traffic stopped: nothing was proven"
    assert not traffic.failed
    assert platform_under_traffic.rollouts.stable() == stable


def kinds(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["kind"] for entry in entries]


def test_canary_that_fails_to_load(drilled: Drilled):
    version = drilled.candidate(QUICK, "does not load", refuse=1)
    before = drilled.rollouts.last()
    drilled.rollouts.start(version)
    wait_for(lambda: drilled.rollouts.last() > before and not drilled.rollouts.current(), 60)
    number = drilled.rollouts.last()
    assert "does not load" in drilled.rollouts.story(number)
    assert "ready" not in kinds(drilled.rollouts.entries(number))
    wait_for(lambda: "does not load" in drilled.tags(version).get("palate.rollout.reason", ""), 20)
    wait_for(lambda: "canary" not in drilled.store.get(APP, version).aliases, 20)


def test_canary_that_fails_after_200_requests(drilled: Drilled):
    version = drilled.candidate(HOLDING, "fails after 200", fail_ratio=1, after=200)
    number = drilled.begin(version)
    drilled.rollouts.wait_for_end(120)
    assert "rolled-back" in kinds(drilled.rollouts.entries(number))
    [end] = [e for e in drilled.rollouts.entries(number) if e["kind"] == "rolled-back"]
    assert end["details"]["verdict"]["canary_requests"] > 100
    wait_for(lambda: drilled.tags(version).get("palate.rollout") == "rolled back", 20)


def test_canary_that_leaks_memory_until_it_is_killed(drilled: Drilled):
    version = drilled.candidate(HOLDING, "leaks", leak_mb=20, after=30)
    number = drilled.begin(version)
    drilled.rollouts.wait_for_end(180)
    assert "rolled-back" in kinds(drilled.rollouts.entries(number))


def test_canary_whose_replica_is_killed(drilled: Drilled):
    number = drilled.begin(drilled.candidate(HOLDING, "killed"))
    time.sleep(2)
    victims = drilled.rollouts.arm_processes(number)
    assert victims
    for process in victims:
        process.kill()
    drilled.rollouts.wait_for_end(60)
    assert "rolled-back" in kinds(drilled.rollouts.entries(number))


def test_mlflow_is_down_for_the_whole_rollout(drilled: Drilled):
    """Stopped, not ended: `palate up` would start it again. What is decided meanwhile is written down later."""
    version = drilled.candidate(QUICK, "while MLflow is down")
    drilled.rollouts.start(version)
    drilled.rollouts.wait(lambda r: r.get("version") == version, "the start", 30)
    stopped = drilled.processes("mlflow")
    assert stopped
    try:
        for process in stopped:
            process.suspend()
        drilled.rollouts.wait_for_phase(version, "baking", 240)
        assert drilled.rollouts.stable() == version
        drilled.rollouts.act("rollback")
        drilled.rollouts.wait_for_end(30)
    finally:
        for process in stopped:
            process.resume()
    wait_for(lambda: drilled.tags(version).get("palate.rollout") == "rolled back", 60)
    assert drilled.store.get(APP, "stable").version == drilled.rollouts.stable()


def test_controller_is_killed_again_and_again(drilled: Drilled):
    # Longer than a look at it every eight seconds can miss
    version = drilled.candidate({**QUICK, "rollout.bake_s": 60}, "the controller dies")
    drilled.rollouts.start(version)
    deadline = time.monotonic() + 300
    while drilled.rollouts.current().get("phase") != "baking":
        for process in drilled.processes("controller"):
            process.kill()
        assert time.monotonic() < deadline
        time.sleep(8)
    number = drilled.rollouts.last()
    drilled.rollouts.act("rollback")
    drilled.rollouts.wait_for_end(60)
    told = kinds(drilled.rollouts.entries(number))
    assert told.count("started") == told.count("promoted") == told.count("rolled-back") == 1


def test_webhook_storm(drilled: Drilled):
    secret = (drilled.platform.home.root / "webhook-secret").read_text().strip()
    number = drilled.begin(drilled.candidate(HOLDING, "in a storm"))
    deliveries = [signed_delivery(secret, f"storm-{n % 500}") for n in range(1000)]
    forged = [signed_delivery("not the secret", f"forged-{n}") for n in range(100)]
    with httpx.Client(base_url=drilled.platform.url, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        post = lambda delivery: client.post("/v1/webhooks/mlflow", **delivery).status_code  # noqa: E731
        accepted = list(pool.map(post, deliveries))
        refused = list(pool.map(post, forged))
    assert set(accepted) <= {204, 429}
    assert set(refused) == {401}
    assert drilled.rollouts.current()["phase"] == "step"
    drilled.store.delete_alias(APP, "canary")
    drilled.rollouts.wait_for_end(15)
    assert kinds(drilled.rollouts.entries(number)).count("aborted") == 1


def test_alias_is_flapped_ten_times_in_ten_seconds(drilled: Drilled):
    version = drilled.candidate(HOLDING, "flapped")
    for _ in range(10):
        drilled.rollouts.start(version)
        time.sleep(0.5)
        drilled.store.delete_alias(APP, "canary")
        time.sleep(0.5)
    drilled.rollouts.wait_for_end(30)
    told = kinds(drilled.rollouts.entries(drilled.rollouts.last()))
    assert "aborted" in told
    assert str(version) not in drilled.rollouts.overview()["quarantined"], "a person took it back: that is no verdict"


def test_rollback_while_promoting(drilled: Drilled):
    version = drilled.candidate(HOLDING, "promoted and taken back")
    number = drilled.begin(version)
    stable = drilled.rollouts.stable()
    assert drilled.rollouts.act("promote").is_success
    assert drilled.rollouts.act("rollback").is_success
    drilled.rollouts.wait_for_end(60)
    assert drilled.rollouts.stable() == stable
    wait_for(lambda: drilled.store.get(APP, "stable").version == stable, 30)
    assert {"promoted", "rolled-back"} <= set(kinds(drilled.rollouts.entries(number)))


def signed_delivery(secret: str, delivery_id: str) -> dict[str, Any]:
    """A delivery as MLflow signs it."""
    body = json.dumps({"entity": "model_version_alias", "action": "created", "timestamp": "2026-01-01T00:00:00Z",
                       "data": {"name": APP, "alias": "canary", "version": "1"}}).encode()  # fmt: skip
    stamp = str(int(time.time()))
    signature = hmac.new(secret.encode(), f"{delivery_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "content-type": "application/json",
        "x-mlflow-delivery-id": delivery_id,
        "x-mlflow-timestamp": stamp,
        "x-mlflow-signature": f"v1,{base64.b64encode(signature).decode()}",
    }
    return {"content": body, "headers": headers}
