"""The controller's loop when MLflow, the database or another controller gets in its way: nobody acts twice."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from registry.controller import run
from registry.errors import RegistryUnavailable
from tests.rollout_world import World, started
from tests.waiting import wait_for


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1 is stable, version 2 is there to be tried."""
    world = World(tmp_path)
    world.publish("one")
    world.publish("two")
    world.memory.set_alias("wines", "stable", 1)
    return world


def test_while_mlflow_is_away_judgement_goes_on_and_the_writes_follow(world: World) -> None:
    controller = started(world)
    world.store.away = True
    world.pass_time(controller, 30, outcomes="aaaaa")
    assert "promoted" in world.kinds()
    assert world.traffic().stable == 2
    assert world.memory.aliases("wines") == {"stable": 1, "canary": 2}
    assert world.state().alias_writes != ()
    world.store.away = False
    world.pass_time(controller, 10)
    assert world.memory.aliases("wines") == {"stable": 2, "previous": 1}
    assert world.state().alias_writes == ()
    assert world.state().rollouts == 1


def test_a_hanging_mlflow_stops_nothing_but_itself(world: World) -> None:
    controller = started(world)
    world.jobs = []
    world.pass_time(controller, 3)
    world.pass_time(controller, 10, outcomes="eeeee")
    assert world.kinds()[-1] == "rolled-back"
    assert len(world.jobs) == 1  # one visit at a time
    jobs, world.jobs = world.jobs, None
    jobs[0]()
    world.pass_time(controller, 2)
    assert world.memory.aliases("wines") == {"stable": 1}


def test_mlflow_away_is_asked_ever_less(world: World) -> None:
    controller = world.controller()
    world.pass_time(controller, 1)
    world.store.away = True
    world.store.calls.clear()
    world.pass_time(controller, 60)
    assert 6 <= len(world.store.calls) <= 12


def test_a_controller_killed_before_it_wrote_is_finished_by_the_next(world: World) -> None:
    controller = started(world)
    world.store.away = True  # so that nothing is written before the end
    world.pass_time(controller, 3)
    world.pass_time(controller, 5, outcomes="eeeee")
    assert world.kinds()[-1] == "rolled-back"
    assert world.memory.aliases("wines") == {"stable": 1, "canary": 2}
    world.store.away = False
    world.pass_time(world.controller("two"), 14)  # `controller` ticks no more: its lease runs out
    assert world.memory.aliases("wines") == {"stable": 1}
    assert world.kinds().count("rolled-back") == 1


def test_a_controller_killed_after_it_wrote_and_before_it_said_so(world: World) -> None:
    controller = started(world)
    world.memory.set_alias("wines", "stable", 1)
    world.pass_time(controller, 3)
    world.jobs = []
    world.pass_time(controller, 12, outcomes="eeeee")
    for job in world.jobs:
        job()  # it writes, and dies before its next tick
    assert world.memory.aliases("wines") == {"stable": 1}
    assert world.state().alias_writes != ()
    writes = list(world.store.writes)
    world.jobs = None
    world.pass_time(world.controller("two"), 14)
    assert [w for w in world.store.writes[len(writes) :] if w[0] != "set_tags"] == []  # it was there already
    assert world.state().alias_writes == ()
    assert world.state().rollouts == 1
    assert world.kinds()[-1] == "rolled-back"


def test_a_second_controller_waits_for_the_lease(world: World) -> None:
    first, second = started(world), world.controller("two")
    for _ in range(80):
        world.pass_time(first, 0.25)
        assert not second.tick(world.now)
    assert world.journal.holder() == "one"
    world.pass_time(second, 12)
    assert world.journal.holder() == "two"
    assert not first.holds_lease()
    assert not first.tick(world.now)


def test_the_lease_is_given_back(world: World) -> None:
    first, second = started(world), world.controller("two")
    first.close()
    first.close()
    world.now += 0.25
    assert second.tick(world.now)


def test_a_controller_that_lost_its_lease_writes_nothing_more_to_mlflow(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 3)
    world.jobs = []
    world.pass_time(controller, 10, outcomes="eeeee")
    assert world.state().alias_writes != ()
    writes = list(world.store.writes)
    world.now += 11  # it was stopped for that long; its visit to MLflow comes back only now
    for job in world.jobs:
        job()
    assert world.store.writes == writes


def test_one_that_slept_through_its_lease_starts_over(world: World) -> None:
    first, second = started(world), world.controller("two")
    world.now += 11
    world.pass_time(second, 3)
    world.ask("abort")
    world.pass_time(second, 1)
    second.close()
    assert world.kinds()[-1] == "aborted"
    entries = world.entries()
    world.pass_time(first, 5)
    assert world.journal.holder() == "one"
    assert world.entries() == entries


def test_the_alias_is_left_where_a_person_put_it(world: World) -> None:
    world.publish("three")
    controller = started(world)
    world.pass_time(controller, 3)
    world.store.away = True
    world.pass_time(controller, 10, outcomes="eeeee")
    world.memory.set_alias("wines", "canary", 3)  # while the removal is owed
    world.store.away = False
    world.pass_time(controller, 10)
    assert world.memory.aliases("wines")["canary"] == 3
    rollout = world.state().rollout
    assert rollout is not None
    assert rollout.version == 3


def test_what_is_decided_otherwise_meanwhile_is_not_written(world: World) -> None:
    controller = started(world)
    world.pass_time(controller, 3)
    world.jobs = []
    world.pass_time(controller, 1)
    world.ask("promote")
    for job in world.jobs:
        job()
    world.jobs = []
    world.pass_time(controller, 1)  # a visit that shall write `stable` -> 2 stands ready
    world.ask("rollback")
    world.pass_time(controller, 0.5)
    world.store.writes.clear()
    jobs, world.jobs = world.jobs, None
    for job in jobs:
        job()
    world.pass_time(controller, 3)
    assert ("set_alias", "wines", "stable", 2) not in world.store.writes
    assert world.memory.aliases("wines") == {"stable": 1}
    assert world.kinds()[-1] == "rolled-back"


def test_rollback_while_promoting(world: World) -> None:
    """The rollback is recorded between two writes of the promotion."""
    controller = started(world)
    world.pass_time(controller, 3)
    once = [True]

    def roll_back() -> None:
        if world.state().stable == 2 and once:
            once.clear()
            world.ask("rollback")
            world.now += 0.25
            controller.tick(world.now)

    world.store.before_write = roll_back
    world.pass_time(controller, 30, outcomes="aaaaa")
    assert once == []
    assert ("set_alias", "wines", "previous", 1) not in world.store.writes  # the rest of the promotion was let go
    assert world.kinds()[-1] == "rolled-back"
    assert world.memory.aliases("wines")["stable"] == 1
    assert world.traffic().stable == 1
    assert world.state().rollouts == 1
    assert world.state().alias_writes == ()


def test_a_database_that_is_away_is_waited_for(world: World) -> None:
    controller = started(world)
    world.tables.away = True
    world.now += 0.25
    with pytest.raises(RegistryUnavailable):
        controller.tick(world.now)
    world.now += 60
    world.tables.away = False
    world.pass_time(controller, 30, outcomes="aaaaa")
    assert world.state().stable == 2


def test_the_loop_ends_when_told_and_survives_what_goes_wrong(world: World) -> None:
    stop, controller = threading.Event(), world.controller()
    world.tables.away = True
    thread = threading.Thread(target=run, args=(controller, stop), kwargs={"tick_s": 0.01, "wall": lambda: world.now})
    thread.start()
    world.tables.away = False
    wait_for(lambda: "wines" in world.board.traffic(), 20, "the first traffic")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert world.journal.holder() is None
