"""A controller whose traffic KServe follows: `World` with the follower and a played KServe in place of its routers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from registry.controller import Controller
from registry.kserve_traffic import KserveTraffic, KubernetesApi, Settings
from registry.traffic import ArmPhase
from tests.kserve_world import NAMESPACE, WHERE, Kserve, server
from tests.rollout_world import World

URL = "http://cluster"
STABLE = {"v1": 100}


class KserveWorld(World):
    """`wines` has version 1 as stable and 2 published; the chart has installed its InferenceService."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.cluster = server()
        self.kserve = Kserve(httpx.Client(base_url=URL, transport=self.cluster.transport()))
        self.kserve.create()
        self.follower = self.new_follower()
        self.publish("a")
        self.publish("b")
        self.memory.set_alias("wines", "stable", 1)

    def new_follower(self, look_s: float = 0.0) -> KserveTraffic:
        """As after a restart of the controller; no watch tells it anything."""
        api = KubernetesApi(URL, WHERE, transport=self.cluster.transport())
        clock = lambda: self.now  # noqa: E731
        return KserveTraffic(
            api, self.board, self.journal, Settings(NAMESPACE, look_s=look_s), wall=clock, monotonic=clock
        )

    def report(self, phase: ArmPhase = "ready") -> None:
        self.kserve.step()
        self.follower.reconcile()

    def idle(self) -> Controller:
        """A controller that has served version 1 for a while."""
        controller = self.controller()
        self.pass_time(controller, 10)
        assert self.kserve.split() == STABLE
        return controller

    def begun(self, *, ready: bool = True) -> Controller:
        """It has version 2 as its canary, too."""
        controller = self.idle()
        self.memory.set_alias("wines", "canary", 2)
        self.pass_time(controller, 3.5, ready=ready)
        return controller

    def last(self) -> tuple[str, str, str]:
        """(kind, who, why) of the newest entry."""
        entry = self.entries()[-1]
        return entry.kind, entry.who, entry.why


@pytest.fixture
def world(tmp_path: Path) -> Iterator[KserveWorld]:
    made = KserveWorld(tmp_path)
    yield made
    made.kserve.client.close()
