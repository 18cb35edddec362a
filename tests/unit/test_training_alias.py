"""What a candidate that passed its gates gets, by aliases and the controller's state."""

from __future__ import annotations

import pytest

from registry.plan import RolloutPlan
from registry.rollout import AppState
from registry.rollout.state import AliasWrite, Rollout
from training.publish import Give, choose_alias

ROLLOUT = Rollout(1, 3, 1, "step", RolloutPlan(), 0.0, 0.0, "", "")


@pytest.mark.parametrize(
    ("aliases", "state", "give", "why"),
    [
        ({"stable": 1}, None, "canary", "given"),
        ({"stable": 1}, AppState("a", stable=1), "canary", "given"),
        ({"stable": 1, "canary": 5}, None, "canary", "given"),
        ({"stable": 1, "canary": 3}, AppState("a", stable=1, rollout=ROLLOUT), "later", "version 3 is on trial"),
        ({"stable": 1}, AppState("a", stable=1, rollout=ROLLOUT), "later", "rollout"),
        ({"stable": 1}, AppState("a", stable=1, alias_writes=(AliasWrite("stable", 3, (1,)),)), "later", "rollout"),
        ({"stable": 1}, AppState("a", stable=3), "none", "stable is 3 now"),
        ({"stable": 3}, AppState("a", stable=1), "none", "stable is 3 now"),
        ({"stable": 3}, None, "none", "stable is 3 now"),
        ({}, None, "none", "stable is gone now"),
        ({}, AppState("a", stable=1), "none", "stable is gone now"),
        ({"stable": 5}, None, "none", "stable already"),
        (
            {"stable": 1},
            AppState("a", stable=1, quarantined={5: "too slow"}),
            "none",
            r"rolled back before \(too slow\)",
        ),
    ],
)
def test_choice(aliases: dict[str, int], state: AppState | None, give: Give, why: str) -> None:
    """Version 5, which was compared with version 1."""
    import re

    chosen, told = choose_alias(5, 1, aliases, state)
    assert chosen == give
    assert re.search(why, told), told
