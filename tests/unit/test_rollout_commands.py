"""What a person asks for, and the answer where it cannot be done."""

from __future__ import annotations

import pytest

from registry.rollout import AppState, CommandSeen, advance
from registry.traffic import Command, Verb
from tests.rollout_story import PLAN, Story


def refused(story: Story, verb: Verb, version: int | None = None, refused: str | None = None) -> str:
    """Why the command was refused; it must have changed nothing else."""
    before = story.state
    (entry,) = story.command(verb, version, refused)
    assert entry.kind == "refused-command"
    assert (entry.who, entry.details["command"]) == ("kim", 7)
    assert story.state is before
    return entry.why


def test_start_sets_the_alias_and_tells_who_and_why() -> None:
    story = Story()
    (entry,) = story.command("start", 2)
    assert (entry.kind, entry.who, entry.why, entry.version) == ("started", "kim", "kim wants start", 2)
    assert (story.rollout.who, story.rollout.why) == ("kim", "kim wants start")
    assert story.settle()["canary"] == 2
    assert story.tags[2]["palate.rollout.reason"] == "kim wants start (kim)"


def test_start_supersedes_the_one_on_trial_and_its_alias_moves_over() -> None:
    story = Story().stepping()
    story.sync()
    story.command("start", 3)
    assert story.kinds() == ["superseded", "started"]
    assert story.entries[0].who == "kim"
    assert story.settle()["canary"] == 3


def test_start_during_a_bake_keeps_the_new_stable() -> None:
    story = Story().baking()
    story.command("start", 3)
    assert story.kinds() == ["superseded", "started"]
    assert story.settle() == {"stable": 2, "canary": 3, "previous": 1}
    assert story.rollout.base == 2


def test_every_entry_that_a_command_caused_names_it() -> None:
    story = Story().stepping()
    story.command("start", 3)
    story.command("pause", 1)
    story.command("switch", 1)
    assert story.kinds() == ["superseded", "started", "refused-command", "refused-command"]
    story.command("switch", 4)
    assert story.kinds()[4:] == ["aborted", "switched"]
    assert {entry.details["command"] for entry in story.entries} == {7}
    story.told().observe(100)
    assert story.entries
    assert all("command" not in entry.details for entry in story.entries)


def test_start_lifts_a_quarantine() -> None:
    story = Story().stepping()
    story.observe(says="Fail")
    story.command("start", 2)
    assert story.state.quarantined == {}
    assert story.settle()["canary"] == 2


def test_what_cannot_be_started() -> None:
    assert "no stable release" in refused(Story(stable=None), "start", 2)
    story = Story()
    assert "name the version" in refused(story, "start")
    assert "nothing to try" in refused(story, "start", 1)
    assert "no version 100" in refused(story, "start", 100)
    assert refused(story, "start", 2, "altered") == "start: altered"
    story.stepping()
    assert "on its way already" in refused(story, "start", 2)


def test_a_bare_command_knows_no_version() -> None:
    state = AppState("shop", stable=1, seen_stable=1)
    after, (entry,) = advance(state, Command("shop", "start", "kim", "", 0.0, 2), 0.0)
    assert after is state
    assert entry.kind == "refused-command"


def test_pause_and_resume_only_where_there_is_something_to_pause() -> None:
    story = Story()
    assert "no rollout" in refused(story, "pause")
    assert "no rollout" in refused(story, "resume")
    story.stepping()
    assert "not paused" in refused(story, "resume")
    assert "is of version 2" in refused(story, "pause", 3)
    story.command("pause")
    assert "paused already" in refused(story, "pause")
    assert "resume it" in refused(story, "start", 2)
    story.command("resume", 2)
    assert story.kinds()[-1] == "resumed"


@pytest.mark.parametrize("paused", [False, True])
def test_promote_needs_no_evidence_and_its_bake_only_alarms(paused: bool) -> None:
    story = Story().stepping()
    if paused:
        story.command("pause")
    story.command("promote")
    assert (story.state.stable, story.rollout.phase, story.rollout.alarm_only) == (2, "baking", True)
    assert not story.rollout.paused
    assert (story.traffic.canary_percent, story.traffic.warm) == (5, (1,))
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_promote_waits_for_the_arms_and_is_not_done_twice() -> None:
    story = Story()
    assert "no rollout" in refused(story, "promote")
    story.on_trial()
    assert "being loaded" in refused(story, "promote")
    story.observe()
    assert "is of version 2" in refused(story, "promote", 3)
    story.command("promote", 2)
    assert "stable already" in refused(story, "promote", 2)


def test_abort_ends_the_trial_and_holds_nothing_against_it() -> None:
    story = Story().stepping()
    story.sync()
    story.command("abort")
    assert story.kinds() == ["aborted"]
    assert story.state.quarantined == {}
    assert story.settle()["canary"] is None
    assert "no rollout" in refused(story, "abort")


def test_a_bake_is_not_aborted_but_rolled_back() -> None:
    assert "roll back to return to version 1" in refused(Story().baking(), "abort")


@pytest.mark.parametrize("stage", [Story.on_trial, Story.stepping])
def test_rollback_of_a_trial_quarantines(stage) -> None:  # type: ignore[no-untyped-def]
    story = stage(Story())
    story.command("rollback")
    assert story.kinds()[-1] == "rolled-back"
    assert story.state.quarantined == {2: "kim wants rollback"}
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}


def test_rollback_of_a_bake_returns_even_where_the_machine_would_not() -> None:
    story = Story().stepping()
    story.command("promote")
    story.command("rollback")
    assert (story.state.stable, story.state.rollout, list(story.state.quarantined)) == (1, None, [2])
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}


def test_rollback_long_after_returns_to_previous_and_asked_twice_stays_there() -> None:
    story = Story().baking()
    story.observe(30)
    assert story.state.rollout is None
    assert "version 2 is stable" in refused(story, "rollback", 1)
    story.command("rollback")
    assert (story.state.stable, story.state.previous, list(story.state.quarantined)) == (1, None, [2])
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}
    assert "no previous release" in refused(story, "rollback")
    assert story.state.stable == 1


def test_a_previous_release_that_fails_a_new_trial_is_nothing_to_return_to() -> None:
    story = Story().baking()
    story.observe(30)
    story.stepping(1)
    story.observe(says="Fail")
    assert (story.state.stable, story.state.previous) == (2, None)
    assert story.settle() == {"stable": 2, "canary": None, "previous": None}
    assert "no previous release" in refused(story, "rollback")


def test_a_rollback_that_comes_just_after_the_machines_own_leaves_stable_alone() -> None:
    story = Story().baking()
    story.observe(30)
    story.stepping(3)
    story.observe(says="Fail")
    story.now += 5
    assert "to leave that one too, name it" in refused(story, "rollback")
    story.command("rollback", 2)
    assert story.state.stable == 1
    story = Story().baking()
    story.observe(30)
    story.stepping(3).command("abort")
    story.now += 60
    story.command("rollback")
    assert story.state.stable == 1


def test_switch_is_moving_stable() -> None:
    story = Story().stepping()
    story.command("switch", 3)
    assert story.kinds() == ["aborted", "switched"]
    assert (story.state.stable, story.rollout.alarm_only) == (3, True)
    assert story.settle() == {"stable": 3, "canary": None, "previous": 1}
    assert "stable already" in refused(story, "switch", 3)


def test_rollback_of_a_switch_restores_what_was_previous() -> None:
    story = Story()
    story.command("switch", 2)
    story.command("rollback")
    assert (story.state.stable, story.state.previous) == (1, None)
    story.command("switch", 3)
    story.command("switch", 4)
    story.command("rollback")
    assert (story.state.stable, story.state.previous) == (3, 1)
    assert story.settle() == {"stable": 3, "canary": None, "previous": 1}


def test_switch_to_the_canary_promotes_it() -> None:
    story = Story().stepping()
    story.command("switch", 2)
    assert story.kinds() == ["promoted"]
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_switch_lifts_a_quarantine() -> None:
    story = Story().stepping()
    story.observe(says="Fail")
    story.command("switch", 2)
    assert story.state.quarantined == {}
    assert story.entries[-1].details["quarantine_lifted"]


def test_switch_where_nothing_serves_yet() -> None:
    story = Story(stable=None)
    story.command("switch", 2)
    assert (story.state.stable, story.state.previous, story.state.rollout) == (2, None, None)
    assert story.settle()["stable"] == 2


def test_switch_to_what_serves_brings_the_alias_back() -> None:
    story = Story(refused={3: "altered"})
    story.person("stable", 3)
    story.told().command("switch", 1)
    assert story.kinds() == ["note"]
    assert story.settle()["stable"] == 1


def test_what_cannot_be_switched_to() -> None:
    story = Story()
    assert "name the version" in refused(story, "switch")
    assert "no version 100" in refused(story, "switch", 100)
    assert refused(story, "switch", 2, "altered") == "switch: altered"


def test_nobody_but_the_command_says_who() -> None:
    story = Story().stepping()
    event = CommandSeen(Command("shop", "abort", "lee", "wrong file", 1.0), PLAN)
    (entry,) = story.event(event)
    assert (entry.who, entry.why, entry.rollout) == ("lee", "wrong file", 1)
