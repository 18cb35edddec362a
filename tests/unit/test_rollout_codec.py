"""States in the journal outlive the version of Palate that wrote them."""

from __future__ import annotations

import json

from registry.plan import Guards, RateGuard, RolloutPlan
from registry.rollout import AliasesSeen, AppState, advance, state_from_json, state_to_json


def test_what_a_newer_version_wrote_is_read() -> None:
    plan = RolloutPlan(guards=Guards(error=RateGuard(margin=0.1, pass_margin=None), p50=None))
    state, _ = advance(AppState("shop"), AliasesSeen(1, 2, {1: plan, 2: plan}), 5.0)
    data = json.loads(json.dumps(state_to_json(state)))
    data["new"] = 1
    data["rollout"]["new"] = {"a": 1}
    data["rollout"]["plan"]["new"] = 1
    data["rollout"]["plan"]["step"]["new"] = 1
    data["rollout"]["plan"]["guards"]["new"] = {"margin": 1}
    data["rollout"]["plan"]["guards"]["error"]["new"] = 1
    data["tag_writes"][0]["new"] = 1
    assert state_from_json(data) == state


def test_what_an_older_version_wrote_is_read() -> None:
    state, _ = advance(AppState("shop"), AliasesSeen(1, None, {1: RolloutPlan()}), 5.0)
    assert state.stable == 1
    data = {k: v for k, v in state_to_json(state).items() if k in ("app", "generation", "stable", "seen_stable")}
    assert state_from_json(data) == state
