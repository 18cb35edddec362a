"""Rollouts on KServe: the real controller and the real follower, over an API server and a KServe that tests play."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from registry.kserve_traffic import KserveTraffic, KubernetesApi, Settings
from registry.kserve_traffic.mapping import applied_of, split_of
from tests.api_server import Fault, Reply, over_http
from tests.kserve_story import STABLE, KserveWorld
from tests.kserve_story import world as world
from tests.kserve_world import NAMESPACE, WHERE
from tests.rollout_world import QUICK
from tests.waiting import wait_for

TRIED = {"v1": 90, "v2": 10}
BUSY = Fault(Reply(429, {"message": "busy"}, {"retry-after": "7"}))


def test_a_canary_earns_its_traffic_and_is_promoted_without_a_restart(world: KserveWorld) -> None:
    controller = world.begun()
    splits: list[dict[str, int]] = []
    for _ in range(80):
        world.pass_time(controller, 0.5, outcomes="aaaa")
        if (split := world.kserve.split()) not in splits[-1:]:
            splits.append(split)
    assert splits == [{"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, {"v2": 95, "v1": 5}, {"v2": 100}]
    assert world.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]
    assert world.kserve.started == ["", "v1", "v2"], "each predictor's pods were started once"
    assert world.memory.aliases("wines")["stable"] == 2


def test_requests_go_nowhere_before_a_pod_is_ready(world: KserveWorld) -> None:
    world.kserve.broken.add("v2")
    controller = world.begun()
    world.pass_time(controller, 5)
    assert world.kserve.split() == {"v1": 100, "v2": 0}
    world.kserve.broken.clear()
    world.pass_time(controller, 2)
    assert world.kserve.split() == {"v1": 90, "v2": 10}


def test_a_canary_that_crashes_is_gone_in_a_second(world: KserveWorld) -> None:
    controller = world.begun()
    world.kserve.broken.add("v2")
    world.pass_time(controller, 1)
    assert world.kserve.split() == STABLE
    assert world.last()[0] == "rolled-back"
    assert "no ready pod any more" in world.last()[2]


def test_a_canary_that_answers_badly(world: KserveWorld) -> None:
    controller = world.begun()
    world.pass_time(controller, 10, outcomes="eeae")
    assert world.last()[0] == "rolled-back"
    assert world.kserve.split() == STABLE


def test_a_bad_release_is_taken_back_in_its_bake(world: KserveWorld) -> None:
    controller = world.begun()
    for _ in range(60):
        world.pass_time(controller, 0.5, outcomes="aaaa")
        if "promoted" in world.kinds():
            break
    world.pass_time(controller, 1, outcomes="aaaa")
    assert world.kserve.split() == {"v2": 95, "v1": 5}
    world.pass_time(controller, 2, outcomes="eeee")
    assert world.kserve.split() == STABLE
    assert world.last()[0] == "rolled-back"


def test_an_alias_taken_away(world: KserveWorld) -> None:
    controller = world.begun()
    world.memory.delete_alias("wines", "canary")
    world.pass_time(controller, 3)
    assert (world.last()[0], world.kserve.split()) == ("aborted", STABLE)


def test_a_plan_that_kserve_cannot_follow_is_refused_at_once(world: KserveWorld) -> None:
    world.publish("c", plan={**QUICK, "steps_percent": [0.5, 5]})
    controller = world.controller()
    world.pass_time(controller, 10)
    world.memory.set_alias("wines", "canary", 3)
    world.pass_time(controller, 3)
    assert world.last()[0] == "refused"
    assert "whole percents" in world.last()[2]
    assert world.kserve.split() == STABLE


def test_an_api_server_that_is_away_holds_the_rollout(world: KserveWorld) -> None:
    controller = world.begun()
    world.pass_time(controller, 1)
    before = world.kserve.split()
    world.follower = _cut_off(world)
    for _ in range(40):
        world.now += 0.25
        world.follower.reconcile()
        world.saw("canary", "aaaa")
        world.saw("control", "aaaa")
        controller.tick(world.now)
    assert world.kserve.split() == before
    world.follower = world.new_follower()
    world.pass_time(controller, 30, outcomes="aaaa")
    assert world.kinds()[-1] == "baked"


def _cut_off(world: KserveWorld) -> KserveTraffic:
    api = KubernetesApi("http://127.0.0.1:9", WHERE)
    clock = lambda: world.now  # noqa: E731
    return KserveTraffic(api, world.board, world.journal, Settings(NAMESPACE), wall=clock, monotonic=clock)


def test_a_busy_server_is_left_alone(world: KserveWorld) -> None:
    controller = world.begun()
    world.pass_time(controller, 10)
    world.cluster.faults.append(BUSY)
    world.now += 10  # what is known is too old by now
    world.follower.reconcile()
    asked = len(world.cluster.requests)
    for _ in range(6):
        world.now += 1
        world.follower.reconcile()
    assert len(world.cluster.requests) == asked
    world.now += 1.5
    world.follower.reconcile()
    assert len(world.cluster.requests) > asked


def test_a_conflict_is_met_by_reading_again(world: KserveWorld) -> None:
    controller = world.begun()
    world.follower = world.new_follower(look_s=60)
    world.pass_time(controller, 1)
    assert world.kserve.split() == {"v1": 90, "v2": 10}
    world.kserve.edit(lambda spec: spec["predictor"].update(maxReplicas=9))  # the follower has not heard of it
    world.memory.delete_alias("wines", "canary")
    world.pass_time(controller, 3)
    assert world.kserve.split() == STABLE
    assert world.kserve.get()["spec"]["predictor"]["maxReplicas"] == 9


def test_a_controller_that_was_replaced_does_not_write_any_more(world: KserveWorld) -> None:
    """It has read the traffic before it was; the object says that a newer one was written."""
    controller = world.begun()
    old, stale = world.new_follower(), dict(world.board.traffic())
    world.pass_time(controller, 1)
    world.memory.delete_alias("wines", "canary")
    world.pass_time(controller, 3)
    assert world.kserve.split() == STABLE
    current = dict(world.tables.traffic)
    world.tables.traffic.update(stale)
    old.reconcile()
    world.tables.traffic.update(current)
    assert world.kserve.split() == STABLE


def test_a_database_that_was_restored_is_followed_again(world: KserveWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Its generations begin from what they were; the object says that a newer traffic was written."""
    controller = world.idle()
    dump = copy.deepcopy((world.tables.states, world.tables.traffic))
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 4)
    assert world.kserve.split() == TRIED
    world.memory.delete_alias("wines", "canary")
    world.tables.states, world.tables.traffic = dump
    restored = world.controller()
    world.pass_time(restored, 25)
    (report,) = world.board.routers("wines", world.now - 1)
    assert "a newer traffic was written" in report.problem
    assert world.kserve.split() == TRIED
    world.follower.active = lambda: False
    world.pass_time(restored, 10)
    world.follower.active = restored.holds_lease
    world.pass_time(restored, 29)
    assert world.kserve.split() == TRIED, "who did not lead has not seen it all the time"
    world.pass_time(restored, 5)
    assert world.kserve.split() == STABLE
    (report,) = world.board.routers("wines", world.now - 1)
    assert (report.generation, report.problem) == (world.traffic().generation, "")
    (said,) = [r for r in caplog.records if r.getMessage() == "kserve.behind"]
    assert "restored from a dump" in said.__dict__["fields"]["cause"]
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(restored, 8, outcomes="aaaa")
    assert "v2" in world.kserve.split()


def test_a_database_that_was_restored_is_followed_where_the_split_is_the_same(world: KserveWorld) -> None:
    controller = world.idle()
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 5)
    world.memory.delete_alias("wines", "canary")
    world.pass_time(controller, 5)
    before = world.traffic()
    world.tables.traffic["wines"] = replace(before, generation=before.generation - 2)
    for _ in range(140):
        world.now += 0.25
        world.report()
    (report,) = world.board.routers("wines", world.now - 1)
    assert (report.generation, report.problem) == (before.generation - 2, "")
    applied = applied_of(world.kserve.get())
    assert applied is not None
    assert applied[1] == before.generation - 2


def test_who_does_not_hold_the_lease_does_nothing(world: KserveWorld) -> None:
    controller = world.controller()
    world.pass_time(controller, 1, ready=False)
    asked = len(world.cluster.requests)
    world.follower.active = lambda: False
    world.follower.reconcile()
    assert len(world.cluster.requests) == asked


def test_an_app_without_an_inference_service(world: KserveWorld) -> None:
    controller = world.controller()
    world.pass_time(controller, 1, ready=False)
    world.kserve.client.delete(f"{WHERE}/wines")
    world.follower.reconcile()
    (report,) = world.board.routers("wines", 0)
    assert "there is no InferenceService palate/wines" in report.problem


def test_the_watch_tells_at_once_and_survives_what_servers_do_to_it(world: KserveWorld) -> None:
    """In real time, over HTTP: an event is acted upon long before the next look; so it is after the watch was cut, and
    after the server forgot where it was."""
    controller = world.begun()
    with over_http(world.cluster) as url:
        never = Settings(NAMESPACE, every_s=60, look_s=1e9, again_s=0.05, watch_s=5)
        follower = KserveTraffic(KubernetesApi(url, WHERE), world.board, world.journal, never, wall=lambda: world.now)
        follower.start()
        try:
            for n, harm in enumerate((lambda: None, world.cluster.cut_watches, world.cluster.forget)):
                world.cluster.wait_for_watch()
                harm()
                image = f"palate:{n}"
                world.kserve.edit(partial(_set_image, image=image))
                wait_for(partial(_has_image, world, image), what="the canary with the image of stable")
        finally:
            world.cluster.cut_watches()
            follower.close()
    assert controller.holds_lease()
    assert split_of(world.kserve.get()).predictor == "v1"


def _set_image(spec: Any, image: str) -> None:
    spec["predictor"]["model"]["image"] = image


def _has_image(world: KserveWorld, image: str) -> bool:
    return bool(world.kserve.get()["spec"]["canary"][0]["predictor"]["model"].get("image") == image)
