"""The controller's loop over stand-ins: what is seen is recorded, what is owed is written, and nobody acts twice."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from registry.analysis import LiveVerdict
from registry.errors import RegistryUnavailable
from registry.fakes import MemoryBoard, MemoryJournal
from registry.manifest import release_digest
from registry.schema import ComponentRef, Release, ReleaseVersion
from registry.traffic import ArmReport
from tests.rollout_world import QUICK, World, started


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1 is stable, version 2 is there to be tried."""
    world = World(tmp_path)
    world.publish("one")
    world.publish("two")
    world.memory.set_alias("wines", "stable", 1)
    return world


def test_stable_is_adopted_and_its_release_is_on_the_board(world: World) -> None:
    world.pass_time(world.controller(), 1)
    assert world.traffic().stable == 1
    assert world.board.release("wines", 1).release == world.memory.get("wines", 1).release
    assert world.kinds() == ["adopted"]


def test_a_good_canary_is_promoted_and_baked_and_mlflow_has_it(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 30, outcomes="aaaaa")
    assert world.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]
    assert world.state().stable == 2
    assert world.memory.aliases("wines") == {"stable": 2, "previous": 1}
    assert world.memory.get("wines", 2).tags["palate.rollout"] == "promoted"
    assert world.state().alias_writes == ()
    assert world.state().tag_writes == ()
    assert world.board.release("wines", 2).version == 2


def test_a_bad_canary_is_rolled_back_and_latched(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 3)
    world.pass_time(controller, 15, outcomes="eeeee")
    assert world.kinds()[-1] == "rolled-back"
    assert world.traffic().canary is None
    assert world.memory.aliases("wines") == {"stable": 1}
    assert world.memory.get("wines", 2).tags["palate.rollout"] == "rolled back"
    before = world.kinds()
    world.pass_time(controller, 30)
    assert world.kinds() == before
    world.memory.set_alias("wines", "canary", 2)  # a person insists
    world.pass_time(controller, 3)
    assert world.kinds()[len(before)] == "started"


def test_a_crash_of_the_canary_rolls_back_within_a_tick(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 1)
    world.board.report_arm(ArmReport("wines", 1, "canary", "failed", "killed", world.now))
    world.now += 0.25
    controller.tick(world.now)
    assert world.kinds()[-1] == "rolled-back"
    assert world.traffic().canary_percent == 0


def test_a_replica_that_a_router_lost_rolls_back(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 1)
    world.saw("canary", "aac")
    world.pass_time(controller, 0.25)
    assert world.kinds()[-1] == "rolled-back"


def test_what_was_decided_is_written_at_once(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 1)
    world.saw("canary", "aac")
    world.pass_time(controller, 0.5)
    assert world.memory.aliases("wines") == {"stable": 1}


def test_its_own_writes_start_nothing(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 30, outcomes="aaaaa")
    rollouts, entries = world.state().rollouts, world.entries()
    for _ in range(20):
        world.journal.nudge("wines", f"delivery-{world.now}", world.now)
        world.pass_time(controller, 1)
    assert world.state().rollouts == rollouts == 1
    assert world.entries() == entries


def test_the_alias_removed_by_a_person_aborts(world: World) -> None:
    controller = started(world)
    world.memory.delete_alias("wines", "canary")
    world.pass_time(controller, 3)
    assert world.kinds()[-1] == "aborted"


def test_a_nudge_is_acted_upon_at_once(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    world.memory.set_alias("wines", "canary", 2)
    world.journal.nudge("wines", "d-1", world.now)
    world.pass_time(controller, 0.5)
    assert world.state().rollout is not None


def test_without_a_nudge_polling_finds_it(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    world.store.calls.clear()
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 10)
    assert world.state().rollout is not None
    assert 4 <= world.store.calls.count("aliases") <= 12


def test_commands_are_dealt_with_once(world: World) -> None:
    controller = started(world)
    pause = world.ask("pause")
    world.pass_time(controller, 1)
    assert world.journal.handled(pause)
    assert world.kinds()[-1] == "paused"
    assert world.journal.commands() == []


def test_a_version_that_no_alias_names_is_looked_up(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    start = world.ask("start", 2)
    world.pass_time(controller, 1)
    assert world.journal.handled(start)
    rollout = world.state().rollout
    assert rollout is not None
    assert (rollout.version, rollout.plan.steps_percent) == (2, tuple(QUICK["steps_percent"]))
    world.pass_time(controller, 3)
    assert world.memory.aliases("wines")["canary"] == 2
    assert world.board.release("wines", 2).version == 2


def test_a_version_that_does_not_exist_is_refused(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    world.ask("start", 9)
    world.pass_time(controller, 1)
    assert world.entries()[-1].kind == "refused-command"
    assert "no version 9" in world.entries()[-1].why


def test_a_known_version_can_be_switched_to_while_mlflow_is_away(world: World) -> None:
    controller = started(world)
    world.store.away = True
    unknown = world.publish("three")
    waits, goes = world.ask("start", unknown), world.ask("switch", 2)
    controller = world.controller("one")  # which has seen nothing of it before
    world.pass_time(controller, 5)
    assert world.traffic().stable == 2
    assert world.journal.handled(goes)
    assert not world.journal.handled(waits)
    world.store.away = False
    world.pass_time(controller, 12)
    assert world.journal.handled(waits)


def test_a_command_for_an_app_of_nobody_is_answered(world: World) -> None:
    controller = world.controller()
    command = world.ask("pause", app="cheese")
    world.pass_time(controller, 1)
    assert world.journal.handled(command)
    assert "wines" in world.entries("cheese")[-1].why


def test_a_release_that_is_not_sound_is_refused_in_its_tags(world: World) -> None:
    index = ComponentRef("index.dense", "index", "a" * 64, 1, fingerprint="f2")
    sound = world.memory.get("wines", 2).release
    spoilt = Release("wines", sound.spec, (index,), 0, release_digest(sound.spec, (index,)))
    world.store.altered[2] = ReleaseVersion(2, spoilt)
    controller = world.controller()
    world.memory.set_alias("wines", "canary", 2)
    world.pass_time(controller, 5)
    assert "refused" in world.kinds()
    assert "embedder" in world.memory.get("wines", 2).tags["palate.rollout"]
    assert world.traffic().stable == 1
    assert world.state().rollout is None


def test_a_plan_that_cannot_be_followed_is_refused(world: World) -> None:
    version = world.publish("bad", plan={"steps_percent": [50, 10]})
    controller = world.controller()
    world.memory.set_alias("wines", "canary", version)
    world.pass_time(controller, 5)
    assert "steps_percent" in world.memory.get("wines", version).tags["palate.rollout"]


def test_two_apps_roll_out_at_once_and_the_fault_of_one_is_its_own(tmp_path: Path) -> None:
    class Broken(MemoryBoard):
        def arms(self, app: str, rollout: int) -> list[ArmReport]:
            if app == "cheese":
                raise ZeroDivisionError
            return super().arms(app, rollout)

    world = World(tmp_path, ("cheese", "wines"))
    world.board = Broken(world.tables)
    for app in world.apps:
        world.publish("one", app)
        world.publish("two", app)
        world.memory.set_alias(app, "stable", 1)
        world.memory.set_alias(app, "canary", 2)
    controller = world.controller()
    world.pass_time(controller, 3)
    assert [world.state(app).rollout is not None for app in world.apps] == [True, True]
    world.pass_time(controller, 10, outcomes="eeeee")
    assert world.kinds("wines")[-1] == "rolled-back"
    assert world.kinds("cheese") == ["adopted", "started"]


def test_people_see_what_the_evidence_says_during_a_long_step(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 2)
    world.saw("shadow", "aaz")
    world.saw("canary", "aaae")
    world.saw("control", "aaaa")
    world.pass_time(controller, 1.5)
    live = world.journal.verdict("wines")
    assert live is not None
    assert (live.rollout, live.verdict.canary_requests, live.shadow.requests) == (1, 4, 3)
    assert "error" in live.verdict.sentence
    world.pass_time(controller, 3)
    assert world.journal.verdict("wines") == live, "nothing was seen since"


def test_people_see_it_at_most_once_a_second(world: World) -> None:
    controller = started(world)
    seen = set()
    for _ in range(20):
        world.pass_time(controller, 0.25, outcomes="a")
        if (live := world.journal.verdict("wines")) is not None:
            seen.add(live.at_s)
    times = sorted(seen)
    assert len(times) >= 4
    assert all(later - before >= 1.0 for before, later in itertools.pairwise(times))


def test_a_verdict_that_cannot_be_shown_stops_no_judging(world: World) -> None:
    class Blind(MemoryJournal):
        def show_verdict(self, holder: str, live: LiveVerdict) -> None:
            raise RegistryUnavailable("the disk is full")

    world.journal = Blind(world.tables)
    controller = started(world)
    world.pass_time(controller, 3)
    world.pass_time(controller, 15, outcomes="eeeee")
    assert world.kinds()[-1] == "rolled-back"
    assert world.traffic().canary is None


def test_a_lost_traffic_row_is_written_again(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    world.tables.traffic.clear()
    world.pass_time(controller, 0.25)
    assert world.traffic().stable == 1
