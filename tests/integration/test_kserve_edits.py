"""People who edit an InferenceService beside the controller: what they did is found out, told and answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from registry.controller import Controller
from registry.kserve_traffic.mapping import CONTAINER, NOT_ON_A_CANARY
from tests.kserve_story import STABLE, KserveWorld
from tests.kserve_story import world as world


def set_weight(spec: Any) -> None:
    spec["canary"][0]["trafficPercent"] = 40


def remove(spec: Any) -> None:
    del spec["canary"]


@pytest.mark.parametrize(("change", "says"), [(set_weight, "from 10 to 40"), (remove, "v2 was removed")])
def test_a_person_who_edits_the_canary_ends_it(world: KserveWorld, change: Callable[[Any], None], says: str) -> None:
    controller = world.begun()
    world.pass_time(controller, 1)
    world.kserve.edit(change)
    world.pass_time(controller, 2)
    kind, who, why = world.last()
    assert (kind, who) == ("aborted", "kubectl-edit (Kubernetes)")
    assert says in why
    assert world.kserve.split() == STABLE
    world.pass_time(controller, 5)
    assert world.kinds().count("aborted") == 1


def test_a_person_who_promotes_by_hand(world: KserveWorld) -> None:
    """As KServe's documentation says: the canary's name for the predictor, and the entry dropped."""
    controller = world.begun()
    world.pass_time(controller, 1)

    def promote(spec: Any) -> None:
        spec["predictor"]["name"] = "v2"
        spec["predictor"]["labels"]["palate.dev/release"] = "2"
        del spec["canary"]

    world.kserve.edit(promote)
    world.pass_time(controller, 3)
    assert ("promoted", "kubectl-edit (Kubernetes)") in [(e.kind, e.who) for e in world.entries()]
    assert world.memory.aliases("wines")["stable"] == 2
    assert world.kserve.split() == {"v2": 95, "v1": 5}


def add(*canaries: tuple[str, int]) -> Callable[[Any], None]:
    """Canaries as a person writes them, with what the predictor has."""

    def change(spec: Any) -> None:
        kept = {key: value for key, value in spec["predictor"].items() if key not in NOT_ON_A_CANARY}
        model = {**kept["model"], "name": CONTAINER}
        spec["canary"] = [
            {"predictor": {**kept, "name": name, "model": model}, "trafficPercent": percent}
            for name, percent in canaries
        ]

    return change


def test_a_canary_that_a_person_adds_is_tried_as_the_alias_would(world: KserveWorld) -> None:
    controller = world.idle()
    world.kserve.edit(add(("v2", 10)))
    splits: list[dict[str, int]] = []
    for _ in range(80):
        world.pass_time(controller, 0.5, outcomes="aaaa")
        if (split := world.kserve.split()) not in splits[-1:]:
            splits.append(split)
    assert STABLE not in splits
    assert splits[-1] == {"v2": 100}
    assert world.kinds() == ["adopted", "started", "ready", "step", "step", "promoted", "baked"]
    started = world.entries()[1]
    assert (started.who, started.version) == ("kubectl-edit (Kubernetes)", 2)
    assert started.why == "canary v2 was added with 10 percent in InferenceService palate/wines"
    assert world.memory.aliases("wines")["stable"] == 2


def rename(spec: Any) -> None:
    spec["predictor"]["name"] = "mine"


@pytest.mark.parametrize(
    ("change", "why", "asked"),
    [
        (add(("v9", 10)), "start: there is no version 9", "canary v9 was added with 10 percent"),
        (add(("v2", 5), ("v9", 10)), "start: name the version", "canary v2 was added with 5 percent"),
        (rename, "switch: name the version", "from 'v1' to 'mine'"),
    ],
)
def test_an_edit_that_cannot_be_followed_is_refused_in_the_journal(
    world: KserveWorld, change: Callable[[Any], None], why: str, asked: str
) -> None:
    controller = world.idle()
    world.kserve.edit(change)
    world.pass_time(controller, 5)
    kind, who, reason = world.last()
    assert (kind, who) == ("refused-command", "kubectl-edit (Kubernetes)")
    assert reason.startswith(why)
    assert asked in world.entries()[-1].details["asked"]
    assert world.kinds().count("refused-command") == 1
    assert world.kserve.split() == STABLE


def test_a_manifest_without_a_name_asks_for_nothing(world: KserveWorld) -> None:
    """Somebody applies the chart's: it is put right, and the journal, which is kept for ever, does not grow."""
    controller = world.idle()
    world.kserve.edit(lambda spec: spec["predictor"].pop("name"), manager="helm")
    world.pass_time(controller, 5)
    assert world.kserve.split() == STABLE
    assert world.kinds() == ["adopted"]


def test_a_command_that_is_handled_in_the_middle_of_a_pass(world: KserveWorld) -> None:
    """The pass has read the traffic from before it: nothing that the person wrote is undone for a moment."""
    controller = world.idle()
    world.kserve.edit(add(("v2", 10)))
    world.follower.reconcile()
    (command,) = world.journal.commands()
    world.follower._commands = _Meanwhile(world, controller)
    world.follower.reconcile()
    assert world.journal.handled(command.id)
    assert "v2" in world.kserve.split()
    world.follower.reconcile()
    assert world.kserve.split() == {"v1": 100, "v2": 0}


class _Meanwhile:
    """Before it answers, the controller has got on with it."""

    def __init__(self, world: KserveWorld, controller: Controller) -> None:
        self._world = world
        self._controller = controller
        self.submit = world.journal.submit

    def handled(self, command_id: int) -> bool:
        while not self._world.journal.handled(command_id):
            self._world.now += 0.25
            self._controller.tick(self._world.now)
        return True


def test_an_edit_of_anything_else_is_kept_and_reaches_the_canary(world: KserveWorld) -> None:
    controller = world.begun()
    world.kserve.edit(lambda spec: spec["predictor"]["model"].update(image="palate:2"))
    world.pass_time(controller, 1)
    spec = world.kserve.get()["spec"]
    assert spec["predictor"]["model"]["image"] == "palate:2"
    assert spec["canary"][0]["predictor"]["model"]["image"] == "palate:2"
    assert world.state().rollout is not None
