"""Time in a rollout: watched time counts, and a clock that is set does no harm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry.rollout import Observed
from registry.traffic import RouterReport
from tests.rollout_story import Story, verdict


@pytest.mark.parametrize("step_s", [-1e9, -3600.0, -0.1])
def test_a_clock_that_is_set_back_expires_nothing_and_stops_nothing(step_s: float) -> None:
    story = Story().stepping()
    story.observe(50)
    story.now += step_s
    story.observe(0)
    assert story.rollout.elapsed_s == 50
    story.observe(49)
    assert story.state.rollout is not None
    story.observe(1)
    assert story.kinds() == ["rolled-back"]


def test_a_clock_that_is_set_forward_or_a_controller_that_was_away_counts_as_one_gap() -> None:
    story = Story().stepping()
    story.observe(86_400)
    assert (story.rollout.phase, story.rollout.elapsed_s) == ("step", 60)
    story.observe(39)
    assert story.state.rollout is not None
    story.observe(1)
    assert story.kinds() == ["rolled-back"]


def test_time_that_passes_is_not_written_down_at_each_look() -> None:
    story = Story().stepping()
    before = story.state
    for _ in range(9):
        story.observe(0.5)
        assert story.state is before
    story.observe(0.5)
    assert story.state is not before
    assert story.state.generation == before.generation


def test_a_pause_stops_advance_and_deadline_and_a_resume_starts_the_step_anew() -> None:
    story = Story().stepping()
    story.observe(50)
    story.command("pause")
    for _ in range(9):
        story.observe(50, says="Pass", more=10)
    assert (story.rollout.step, story.rollout.phase) == (0, "step")
    story.command("resume")
    assert story.rollout.since_s == story.now
    story.observe(1, says="Pass")
    assert story.rollout.step == 0
    story.observe(1, says="Pass")
    assert story.rollout.step == 1


def test_a_pause_holds_loading_and_the_bake_too() -> None:
    story = Story().on_trial()
    story.command("pause")
    for _ in range(5):
        story.observe(50)
    assert story.rollout.phase == "loading"
    story = Story().baking()
    story.command("pause")
    for _ in range(5):
        story.observe(50)
    assert story.rollout.phase == "baking"
    story.observe(canary="failed")
    assert story.state.stable == 1


def test_without_a_rollout_an_observation_is_nothing() -> None:
    story = Story()
    before = story.state
    report = RouterReport("r1", "shop", 1, 1, "", 0.0)
    assert story.event(Observed({}, (report,), verdict("Fail"), lost=True)) == ()
    assert story.state is before


def test_the_generation_rises_by_one_exactly_when_traffic_changes() -> None:
    story = Story()
    seen = [story.traffic]

    def check() -> None:
        before, after = seen[-1], story.traffic
        same = replace(after, generation=before.generation) == before
        assert after.generation == before.generation + (0 if same else 1)
        seen.append(after)

    story.on_trial()
    check()
    story.command("pause")
    check()
    story.command("resume")
    check()
    for _ in range(8):
        story.observe(5, says="Pass", more=10)
        check()
    assert seen[-1].stable == 2
    assert [t.generation for t in seen] == sorted(t.generation for t in seen)
