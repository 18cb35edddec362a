"""What the controller asks of whoever follows its traffic, Ray's routers and deployer (here their stand-in, which
tests/e2e/test_arms.py holds to the real ones) or KServe: the same rollouts end the same way."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.controller import Controller
from tests.kserve_story import KserveWorld
from tests.rollout_world import World


class OnRay(World):
    """Its arms are ready, crash, or do not start, as the test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.publish("a")
        self.publish("b")
        self.memory.set_alias("wines", "stable", 1)
        self.canary_up = True

    def report(self, phase: str = "ready") -> None:
        super().report("ready" if self.canary_up else "failed" if self.was_up() else "deploying")

    def was_up(self) -> bool:
        traffic = self.board.traffic().get("wines")
        return traffic is not None and any(a.phase != "deploying" for a in self.board.arms("wines", traffic.rollout))

    def set_canary(self, up: bool) -> None:
        self.canary_up = up


class OnKserve(KserveWorld):
    def set_canary(self, up: bool) -> None:
        (self.kserve.broken.discard if up else self.kserve.broken.add)("v2")


Followed = OnRay | OnKserve


@pytest.fixture(params=[OnRay, OnKserve])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Followed:
    made: Followed = request.param(tmp_path)
    return made


def begun(world: Followed) -> Controller:
    controller = world.controller()
    world.pass_time(controller, 10)
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 4)
    return controller


def test_it_says_of_every_traffic_that_it_follows_it(world: Followed) -> None:
    controller = begun(world)
    for outcomes in ("", "aaaa", "aaaa"):
        world.pass_time(controller, 2, outcomes=outcomes)
        for _ in range(3):  # what is written now is followed by the look after next
            world.report()
        (report,) = world.board.routers("wines", world.now - 1)
        traffic = world.traffic()
        assert (report.generation, report.stable, report.problem) == (traffic.generation, traffic.stable, "")


def test_what_is_good_is_promoted(world: Followed) -> None:
    controller = begun(world)
    world.pass_time(controller, 30, outcomes="aaaa")
    assert world.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]


def test_what_does_not_start_is_refused_and_never_had_a_request(world: Followed) -> None:
    world.set_canary(False)
    controller = begun(world)
    assert world.traffic().canary_percent == 0
    world.pass_time(controller, 25)
    assert world.kinds()[-1] == "refused"


def test_what_crashes_is_rolled_back(world: Followed) -> None:
    controller = begun(world)
    assert world.traffic().canary_percent == 10
    world.set_canary(False)
    world.pass_time(controller, 1)
    assert world.kinds()[-1] == "rolled-back"
    assert world.traffic().canary is None


def test_what_answers_badly_is_rolled_back(world: Followed) -> None:
    controller = begun(world)
    world.pass_time(controller, 8, outcomes="eeee")
    assert world.kinds()[-1] == "rolled-back"


def test_where_nobody_reports_nothing_goes_on(world: Followed) -> None:
    controller = world.controller()
    world.pass_time(controller, 10)
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 10, ready=False)
    rollout = world.state().rollout
    assert rollout is not None
    assert rollout.phase == "loading"
