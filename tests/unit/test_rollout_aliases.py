"""What a person does in MLflow, and what our own writes must not do."""

from __future__ import annotations

import pytest

from registry.explain import summarize
from registry.rollout import AliasesSeen, AppState, Written, advance, traffic_of
from tests.rollout_story import PLAN, Story


def test_the_first_stable_is_adopted_without_a_rollout() -> None:
    story = Story(stable=None)
    assert traffic_of(story.state) is None
    story.person("stable", 1)
    assert story.kinds() == ["adopted"]
    assert story.state.rollout is None
    assert (story.traffic.stable, story.traffic.generation, story.traffic.stable_percent) == (1, 1, 100)
    assert story.state.alias_writes == ()


def test_a_canary_that_is_set_before_any_stable_waits_for_one() -> None:
    story = Story(stable=None)
    assert story.person("canary", 2) == ()
    story.person("stable", 1)
    assert story.kinds() == ["adopted", "started"]
    assert (story.rollout.version, story.rollout.base) == (2, 1)


def test_setting_canary_starts_a_rollout_that_no_user_sees_yet() -> None:
    story = Story()
    story.person("canary", 2)
    assert story.kinds() == ["started"]
    assert story.entries[0].rollout == 1
    traffic = story.traffic
    assert (traffic.stable, traffic.canary, traffic.control, traffic.rollout) == (1, 2, 1, 1)
    assert (traffic.canary_percent, traffic.control_percent, traffic.shadow_percent) == (0, 0, 0)
    assert traffic.generation == story.rollout.generation == 2
    story.sync()
    assert story.tags[2]["palate.rollout"] == "running"
    assert story.tags[2]["palate.rollout.id"] == "1"


def test_looking_twice_changes_nothing() -> None:
    story = Story().on_trial()
    before = story.state
    assert story.look() == ()
    assert story.state is before


def test_a_canary_that_is_stable_already_is_refused_and_the_alias_removed() -> None:
    story = Story()
    story.person("canary", 1)
    assert story.kinds() == ["refused"]
    assert "nothing to try" in story.entries[0].why
    assert story.settle()["canary"] is None
    assert story.tags == {}


def test_a_canary_that_cannot_be_loaded_is_refused_with_the_reason_in_its_tags() -> None:
    story = Story(refused={2: "the embedder does not match the index"})
    generation = story.state.generation
    story.person("canary", 2)
    assert story.kinds() == ["refused"]
    assert story.settle() == {"stable": 1, "canary": None, "previous": None}
    assert story.tags[2]["palate.rollout"] == "refused: the embedder does not match the index"
    assert story.state.generation == generation


def test_a_canary_of_which_nothing_is_known_yet_is_left_for_the_next_look() -> None:
    story = Story()
    before = story.state
    assert story.event(AliasesSeen(1, 2)) == ()
    assert story.state is before
    assert [e.kind for e in story.event(AliasesSeen(1, 2, {2: PLAN}))] == ["started"]


def test_a_newer_canary_supersedes_the_one_on_trial() -> None:
    story = Story().stepping()
    story.person("canary", 3)
    assert story.kinds() == ["superseded", "started"]
    assert (story.entries[0].version, story.entries[0].rollout, story.entries[1].rollout) == (2, 1, 2)
    assert (story.rollout.version, story.rollout.phase, story.state.quarantined) == (3, "loading", {})
    assert story.settle()["canary"] == 3
    assert story.tags[2]["palate.rollout"] == "superseded"


def test_a_refused_canary_ends_the_trial_it_was_set_over() -> None:
    story = Story(refused={3: "altered"}).stepping()
    story.person("canary", 3)
    assert story.kinds() == ["superseded", "refused"]
    assert story.state.rollout is None
    assert story.settle()["canary"] is None


def test_removing_canary_aborts() -> None:
    story = Story().stepping()
    story.person("canary", None)
    assert story.kinds() == ["aborted"]
    assert (story.state.rollout, story.state.quarantined) == (None, {})
    assert story.traffic.canary is None


def test_setting_the_alias_again_lifts_the_quarantine_and_the_entry_says_so() -> None:
    story = Story().stepping()
    story.observe(says="Fail")
    assert 2 in story.state.quarantined
    assert story.settle()["canary"] is None
    story.told().person("canary", 2)
    assert story.kinds() == ["started"]
    assert story.entries[0].details["quarantine_lifted"] == "the evidence says Fail"
    assert story.state.quarantined == {}


def test_a_canary_that_was_rolled_back_is_not_started_by_its_alias_that_still_stands() -> None:
    story = Story().stepping()
    story.observe(says="Fail")
    story.told()
    for _ in range(3):
        assert story.look() == ()  # MLflow is slow: the alias has not gone yet
    assert story.state.rollout is None


@pytest.mark.parametrize("stage", [Story.on_trial, Story.stepping])
def test_moving_stable_ends_the_trial_switches_at_once_and_only_watches(stage) -> None:  # type: ignore[no-untyped-def]
    story = stage(Story()).told()
    story.person("stable", 3)
    assert story.kinds() == ["aborted", "switched"]
    assert story.entries[0].why == "stable was moved to version 3"
    assert (story.state.stable, story.state.previous, story.state.quarantined) == (3, 1, {})
    assert (story.rollout.phase, story.rollout.alarm_only, story.rollout.id) == ("baking", True, 2)
    assert (story.rollout.version, story.rollout.base) == (3, 1)
    assert (story.traffic.stable, story.traffic.warm, story.traffic.canary_percent) == (3, (1,), 0)
    assert story.settle() == {"stable": 3, "canary": None, "previous": 1}


def test_a_bake_after_a_switch_gives_its_arms_users_only_when_they_are_ready() -> None:
    story = Story()
    story.person("stable", 2)
    story.observe(canary="deploying")
    assert story.traffic.canary_percent == 0
    story.observe()
    assert (story.traffic.canary_percent, story.traffic.control_percent) == (5, 5)
    story.observe(29)
    assert story.state.rollout is not None
    story.observe(1)
    assert story.state.rollout is None
    assert story.kinds() == ["switched", "ready", "baked"]


def test_a_bake_after_a_switch_whose_arms_never_run_is_given_up_and_stable_stays() -> None:
    story = Story()
    story.person("stable", 2)
    for _ in range(5):
        story.observe(5, control="deploying")
    assert story.kinds() == ["switched", "baked"]
    assert "not compared" in story.entries[-1].why
    assert (story.state.stable, story.state.rollout) == (2, None)


def test_stable_on_the_canarys_version_is_a_promotion_by_a_person() -> None:
    story = Story().stepping()
    story.person("stable", 2)
    assert story.kinds() == ["promoted"]
    assert (story.state.stable, story.state.previous, story.rollout.id) == (2, 1, 1)
    assert (story.rollout.phase, story.rollout.alarm_only) == ("baking", True)
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_a_return_to_the_previous_release_is_not_compared_with_the_one_that_was_left() -> None:
    story = Story().baking()
    story.person("stable", 1)
    assert (story.state.stable, story.state.previous, story.state.rollout) == (1, 2, None)
    assert story.kinds() == ["aborted", "switched"]
    assert story.settle() == {"stable": 1, "canary": None, "previous": 2}


def test_a_bake_time_of_zero_means_no_bake() -> None:
    plan = PLAN.model_copy(update={"bake_s": 0.0})
    story = Story(plan=plan)
    story.person("stable", 2)
    assert story.state.rollout is None
    story.stepping(3)
    story.command("promote")
    assert (story.state.stable, story.state.previous, story.state.rollout) == (3, 2, None)
    assert story.traffic.canary is None
    of_it = [entry for entry in story.entries if entry.rollout == 1]
    assert of_it[-1].kind == "promoted"
    assert summarize(of_it).outcome == "promoted"


def test_without_a_release_to_compare_with_there_is_no_bake() -> None:
    story = Story()
    story.event(AliasesSeen(2, None, {2: PLAN}, {1: "its files are gone"}))
    assert (story.state.stable, story.state.rollout) == (2, None)


def test_stable_on_a_refused_version_keeps_what_serves_and_leaves_the_alias() -> None:
    story = Story(refused={3: "altered"}).stepping()
    story.person("stable", 3)
    assert story.kinds() == ["refused", "aborted"]
    assert (story.state.stable, story.state.rollout) == (1, None)
    assert story.settle() == {"stable": 3, "canary": None, "previous": None}
    assert story.tags[3]["palate.rollout"] == "refused: altered"
    assert story.person("stable", 1) == ()
    assert story.state.stable == 1


def test_stable_on_a_refused_version_during_a_bake_leaves_the_bake_to_alarm_only() -> None:
    story = Story(refused={3: "altered"}).baking()
    story.person("stable", 3)
    story.observe(says="Fail")
    assert story.kinds() == ["refused", "alarm"]
    assert story.settle()["stable"] == 3
    assert story.state.stable == 2


def test_a_canary_after_a_refused_stable_may_take_its_place() -> None:
    story = Story(refused={3: "altered"})
    story.person("stable", 3)
    story.stepping(2).command("promote")
    assert story.settle() == {"stable": 2, "canary": None, "previous": 1}


def test_a_first_stable_that_is_refused_is_not_adopted() -> None:
    story = Story(stable=None, refused={1: "altered"})
    story.person("stable", 1)
    assert story.look() == ()
    assert story.kinds() == ["refused"]
    assert traffic_of(story.state) is None


def test_a_stable_alias_that_is_gone_is_told_once_and_nothing_else_happens() -> None:
    story = Story().stepping()
    story.person("stable", None)
    assert story.look() == ()
    assert [(e.kind, "gone" in e.why) for e in story.entries] == [("note", True)]
    assert (story.state.stable, story.rollout.phase) == (1, "step")
    assert story.person("stable", 1) == ()


def test_a_person_who_sets_stable_to_what_bakes_leaves_the_bake_to_alarm_only() -> None:
    story = Story().baking()
    story.person("stable", None)
    story.person("stable", 2)
    story.observe(says="Fail")
    assert story.kinds() == ["note", "alarm"]
    assert story.settle()["stable"] == 2


def test_a_canary_set_during_a_bake_keeps_the_new_stable_and_starts() -> None:
    story = Story().baking()
    story.person("canary", 3)
    assert story.kinds() == ["superseded", "started"]
    assert (story.state.stable, story.state.previous) == (2, 1)
    assert (story.rollout.version, story.rollout.base, story.traffic.warm) == (3, 2, ())
    assert story.settle() == {"stable": 2, "canary": 3, "previous": 1}


def test_a_refused_canary_leaves_a_bake_alone() -> None:
    story = Story(refused={3: "altered"}).baking()
    story.person("canary", 3)
    assert story.kinds() == ["refused"]
    assert story.rollout.phase == "baking"


# --- our own writes ---


def test_our_writes_start_nothing_before_while_and_after_they_are_made() -> None:
    story = Story()
    story.command("start", 2)
    story.told()
    assert story.look() == ()  # before
    written = story.put()
    assert story.look() == ()  # made, not yet known to be made
    story.event(written)
    assert story.look() == ()  # after
    assert story.state.alias_writes == ()
    assert story.state.seen_canary == 2
    assert story.rollout.id == 1


def test_every_write_of_a_promotion_starts_nothing_in_whatever_order_it_is_made() -> None:
    story = Story().stepping()
    story.command("promote")
    story.told()
    for write in (*story.state.alias_writes, *story.state.alias_writes):
        story.aliases[write.alias] = write.version
        assert story.look() == ()
    assert story.kinds() == []
    assert {w.alias for w in story.state.alias_writes} == {"previous"}  # which is not looked at


def test_written_twice_or_late_says_nothing() -> None:
    story = Story()
    story.command("start", 2)
    written = story.put()
    story.event(written)
    story.command("abort")
    before = story.state
    assert story.event(written) == ()
    assert story.state is before


def test_a_write_that_replaces_a_pending_one_applies_where_either_left_the_alias() -> None:
    story = Story()
    story.command("start", 2)
    story.put()  # made, and the controller died before it was recorded
    story.command("abort")
    assert story.look() == ()
    assert story.state.rollout is None
    assert story.settle()["canary"] is None


def test_a_person_who_overtakes_a_write_wins() -> None:
    story = Story().stepping()
    story.command("promote")
    story.told()
    story.aliases["stable"] = 3
    written = story.put()
    assert [w.alias for w in written.dropped] == ["stable"]
    story.event(written)
    story.look()
    assert story.kinds() == ["aborted", "switched"]
    assert story.settle()["stable"] == 3
    assert story.state.stable == 3


def test_a_person_who_overtakes_a_write_and_goes_back_wins_too() -> None:
    story = Story().stepping()
    story.command("promote")
    story.aliases["stable"] = 3
    story.event(story.put())
    story.person("stable", 1)  # where it stood when we last acted: and yet it is a person's
    assert story.state.stable == 1
    assert story.settle()["stable"] == 1


def test_a_person_who_is_seen_before_the_write_is_made_wins() -> None:
    story = Story().stepping()
    story.observe(says="Fail")
    story.person("canary", 3)
    assert story.rollout.version == 3
    assert story.settle()["canary"] == 3


def test_previous_is_the_machines_own_and_written_wherever_it_stands() -> None:
    story = Story()
    story.aliases["previous"] = 9
    story.stepping().command("promote")
    assert story.settle()["previous"] == 1


def test_tags_of_one_version_are_one_write_and_the_newest_wins() -> None:
    state = AppState("shop")
    seen = AliasesSeen(1, 2, {1: PLAN, 2: PLAN})
    state, _ = advance(state, seen, 0.0)
    early = state.tag_writes
    state, _ = advance(state, AliasesSeen(1, None, {1: PLAN}), 1.0)
    assert [(w.version, w.tags["palate.rollout"]) for w in state.tag_writes] == [(2, "aborted")]
    state, _ = advance(state, Written(tags=early), 2.0)
    assert len(state.tag_writes) == 1  # what was written is outdated
    state, _ = advance(state, Written(tags=state.tag_writes), 2.0)
    assert state.tag_writes == ()
