"""What the machine does by itself: only on evidence, and never because nobody looked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from registry.rollout import Observed
from registry.traffic import ArmReport
from tests.rollout_story import PLAN, Story, verdict


def test_a_canary_that_passes_every_step_is_promoted_and_then_kept() -> None:
    story = Story().on_trial().told()
    story.observe()
    assert (story.rollout.phase, story.rollout.step, story.traffic.canary_percent) == ("step", 0, 1)
    story.observe(2, says="Pass", more=10)
    assert (story.rollout.step, story.traffic.canary_percent, story.traffic.stable_percent) == (1, 50, 0)
    story.observe(2, says="Pass", more=10)
    assert (story.state.stable, story.state.previous, story.rollout.phase) == (2, 1, "baking")
    traffic = story.traffic
    assert (traffic.stable, traffic.canary, traffic.control, traffic.warm) == (2, 2, 1, (1,))
    assert (traffic.canary_percent, traffic.control_percent, traffic.rollout) == (5, 5, 1)
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}
    story.observe(30, says="Inconclusive")
    assert story.kinds() == ["ready", "step", "step", "promoted", "baked"]
    assert (story.state.rollout, story.traffic.warm, story.traffic.canary) == (None, (), None)
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_evidence_stands_in_the_journal_and_in_the_tags_as_plain_json() -> None:
    story = Story().baking()
    tags = story.tags[2]
    assert tags["palate.rollout"] == "promoted"
    assert tags["palate.rollout.at"].startswith("1970-01-12T")
    evidence = json.loads(tags["palate.rollout.evidence"])
    assert (evidence["state"], evidence["canary_requests"], evidence["guards"]["error"]["canary"]) == ("Pass", 20, 0.1)
    story.observe(says="Fail")
    entry = story.entries[-1]
    assert entry.who == "controller"
    assert entry.details["verdict"]["guards"][0]["evidence"] is None  # infinity is no JSON
    assert (entry.details["phase"], entry.details["percent"]) == ("baking", 5)
    json.dumps(dict(entry.details), allow_nan=False)


def test_many_guards_still_make_a_tag_that_mlflow_takes() -> None:
    story = Story().stepping()
    guard = verdict("Fail").guards[0]
    guards = tuple(replace(guard, name=f"guard {i}") for i in range(90))
    story.event(Observed(verdict=replace(verdict("Fail"), guards=guards, sentence="x" * 9000)))
    story.sync()
    assert all(len(value) < 5_000 for value in story.tags[2].values())


# --- loading ---


@pytest.mark.parametrize(
    "arms",
    [
        {"canary": "deploying"},
        {"control": "deploying"},
        {"canary": None},
        {"control": None},
        {"control": "failed"},
        {"routers": ()},
    ],
)
def test_loading_waits_for_both_arms_and_a_router(arms) -> None:  # type: ignore[no-untyped-def]
    story = Story().on_trial().told()
    story.observe(**arms)
    assert story.rollout.phase == "loading"
    assert story.kinds() == []


def test_loading_waits_for_every_live_router() -> None:
    story = Story().on_trial()
    good = story.router()
    story.observe(routers=(good, story.router(lag=1)))
    assert story.rollout.phase == "loading"
    story.observe(routers=(good, story.router(problem="disk full")))
    assert story.rollout.phase == "loading"
    story.observe(routers=(good, good))
    assert story.traffic.canary_percent == 1


def test_reports_on_the_arms_of_another_rollout_say_nothing() -> None:
    story = Story().stepping()
    story.person("canary", 3)
    ready = {arm: ArmReport("shop", 1, arm, "ready") for arm in ("canary", "control")}
    story.event(Observed(ready, (story.router(),)))  # type: ignore[arg-type]
    assert story.rollout.phase == "loading"
    story.event(Observed(lost=True, verdict=verdict("Fail"), rollout=1))
    assert story.rollout.version == 3
    story.event(Observed(lost=True, verdict=verdict("Fail"), rollout=2))  # nothing was sent to it yet
    assert story.rollout.version == 3


def test_a_canary_that_fails_to_load_is_refused_at_once() -> None:
    story = Story().on_trial().told()
    story.observe(canary="failed")
    assert story.kinds() == ["refused"]
    assert story.entries[0].why == "could not be loaded: why"
    assert story.state.quarantined == {2: "could not be loaded: why"}
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}
    assert story.tags[2]["palate.rollout"] == "refused: could not be loaded: why"


def test_a_canary_that_is_not_ready_by_the_deadline_is_refused() -> None:
    story = Story().on_trial().told()
    for _ in range(4):
        assert story.state.rollout is not None
        story.observe(5, canary="deploying")
    assert story.kinds() == ["refused"]
    assert "within 20 s: the canary is not ready" in story.entries[0].why
    assert 2 in story.state.quarantined


@pytest.mark.parametrize("fault", [{"control": "failed"}, {"control": "deploying"}, {"routers": ()}])
def test_what_is_not_the_canarys_fault_ends_it_without_quarantine(fault) -> None:  # type: ignore[no-untyped-def]
    story = Story().on_trial().told()
    for _ in range(4):
        story.observe(5, **fault)
    assert story.kinds() == ["aborted"]
    assert (story.state.rollout, story.state.quarantined) == (None, {})
    assert story.settle()["canary"] is None


# --- shadow ---

SHADOWED = PLAN.model_copy(update={"shadow_percent": 20.0})


def test_shadow_comes_before_the_first_step_and_asks_for_answers() -> None:
    story = Story(plan=SHADOWED).on_trial().told()
    story.observe()
    assert (story.rollout.phase, story.traffic.shadow_percent, story.traffic.canary_percent) == ("shadow", 20, 0)
    story.observe(5, shadow_requests=12, shadow_failures=3)
    assert story.rollout.phase == "shadow"
    story.observe(5, shadow_requests=13, shadow_failures=3)
    assert (story.rollout.phase, story.traffic.shadow_percent, story.traffic.canary_percent) == ("step", 0, 1)


def test_shadow_takes_its_time() -> None:
    story = Story(plan=SHADOWED).on_trial()
    story.observe()
    story.observe(1, shadow_requests=50)
    assert story.rollout.phase == "shadow"
    story.observe(1, shadow_requests=50)
    assert story.traffic.canary_percent == 1


def test_a_canary_that_answers_few_mirrored_requests_is_rolled_back() -> None:
    story = Story(plan=SHADOWED).on_trial()
    story.observe()
    story.observe(shadow_requests=15, shadow_failures=10)
    assert story.kinds()[-1] == "rolled-back"
    assert story.state.quarantined == {2: "10 of 15 mirrored requests had no answer"}


def test_shadow_without_answers_ends_at_the_deadline() -> None:
    story = Story(plan=SHADOWED).on_trial()
    story.observe()
    for _ in range(2):
        story.observe(50)
    assert "no verdict by the deadline: 0 mirrored answers of 10" in story.entries[-1].why


# --- steps ---


def test_a_step_asks_for_a_pass_and_requests_of_its_own_and_time() -> None:
    story = Story().stepping()
    story.observe(3, says="Pass", more=9)
    assert story.rollout.step == 0
    story.observe(0, says="Inconclusive", more=1)
    assert story.rollout.step == 0
    story.observe(0)
    assert story.rollout.step == 0
    story.observe(0, says="Pass")
    assert story.rollout.step == 1
    story.observe(3, says="Pass", more=9)  # those of the first step do not count
    assert story.rollout.trial
    story.observe(0, says="Pass", more=1)
    assert not story.rollout.trial


def test_a_step_takes_its_time() -> None:
    story = Story().stepping()
    story.observe(1.5, says="Pass", more=100)
    assert story.rollout.step == 0
    story.observe(0.5, says="Pass")
    assert story.rollout.step == 1


@pytest.mark.parametrize("state", ["Inconclusive", "Error"])
def test_what_is_not_a_pass_holds_until_the_deadline_rolls_back(state) -> None:  # type: ignore[no-untyped-def]
    story = Story().stepping()
    story.observe(50, says=state, more=1000)
    story.observe(49, says=state)
    assert story.rollout.step == 0
    story.observe(1, says=state)
    assert story.kinds() == ["rolled-back"]
    assert story.entries[0].why == f"no verdict by the deadline: the evidence says {state}"
    assert 2 in story.state.quarantined


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"says": "Fail"}, "the evidence says Fail"),
        ({"canary": "failed"}, "the canary's process failed: why"),
        ({"lost": True}, "a router lost a replica of the canary"),
    ],
)
@pytest.mark.parametrize("paused", [False, True])
def test_a_fault_rolls_back_at_once_paused_or_not(fault, why, paused) -> None:  # type: ignore[no-untyped-def]
    story = Story().stepping()
    if paused:
        story.command("pause")
    story.told().observe(0, **fault)
    assert story.kinds() == ["rolled-back"]
    assert story.state.quarantined == {2: why}
    assert (story.traffic.stable, story.traffic.canary, story.traffic.stable_percent) == (1, None, 100)
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}
    assert story.tags[2]["palate.rollout"] == "rolled back"
    assert story.tags[2]["palate.rollout.reason"] == f"{why} (controller)"


def test_a_control_that_fails_holds_is_told_once_and_not_held_against_the_canary() -> None:
    story = Story().stepping()
    for _ in range(3):
        story.observe(5, control="failed", says="Pass", more=10)
    assert story.kinds() == ["note"]
    assert story.rollout.step == 0
    story.observe(1)
    story.observe(1, control="failed")
    assert story.kinds() == ["note", "note"]
    story.observe(60, control="failed")
    story.observe(60, control="failed")
    assert story.kinds()[2:] == ["aborted"]
    assert story.state.quarantined == {}


@pytest.mark.parametrize("arm", ["canary", "control"])
def test_an_arm_that_is_deployed_anew_holds(arm) -> None:  # type: ignore[no-untyped-def]
    story = Story().stepping()
    story.observe(5, says="Pass", more=10, **{arm: "deploying"})  # type: ignore[arg-type]
    assert (story.rollout.step, story.kinds()) == (0, [])


# --- the bake ---


@pytest.mark.parametrize("fault", [{"says": "Fail"}, {"canary": "failed"}, {"lost": True}])
def test_a_bake_that_fails_returns_to_the_previous_release(fault) -> None:  # type: ignore[no-untyped-def]
    story = Story().baking()
    story.observe(**fault)
    assert story.kinds() == ["rolled-back"]
    assert (story.state.stable, story.state.previous, story.state.rollout) == (1, None, None)
    assert 2 in story.state.quarantined
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}


def test_a_bake_that_fails_restores_what_was_previous() -> None:
    story = Story().baking(2)
    story.observe(30)
    story.baking(3)
    assert story.state.previous == 2
    story.observe(says="Fail")
    assert (story.state.stable, story.state.previous) == (2, 1)
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_a_release_that_is_taken_back_is_not_previous_either() -> None:
    story = Story().baking(2)
    story.person("stable", 1)  # previous is 2
    story.baking(2)
    story.observe(says="Fail")
    assert (story.state.stable, story.state.previous) == (1, None)


def test_a_bake_that_a_person_began_only_alarms_and_once() -> None:
    story = Story().stepping()
    story.command("promote")
    story.told()
    for _ in range(3):
        story.observe(1, says="Fail")
        story.observe(1, canary="failed")
    assert story.kinds() == ["alarm"]
    assert story.settle()["stable"] == 2
    assert story.tags[2]["palate.rollout"] == "alarm"
    story.observe(30)
    assert story.kinds() == ["alarm", "baked"]
    story.sync()
    assert story.tags[2]["palate.rollout"] == "alarm"


def test_a_control_that_fails_in_the_bake_is_told_once_and_changes_nothing() -> None:
    story = Story().baking()
    for _ in range(3):
        story.observe(1, control="failed")
    assert story.kinds() == ["note"]
    assert story.state.stable == 2
