"""What holds of an app's state at any time, and of any step from one to the next."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from registry.rollout import AppState, traffic_of


def check_generation(before: AppState, after: AppState) -> None:
    old, new = traffic_of(before), traffic_of(after)
    if new is None or old is None:
        assert old is None, "there is a stable release for ever"
        assert after.generation - before.generation == (new is not None)
        return
    same = replace(new, generation=old.generation) == old
    assert new.generation - old.generation == (0 if same else 1)


def check_state(state: AppState, latched: Set[int]) -> None:
    """`latched`: the versions that were taken back, and that no person has asked for since."""
    traffic, rollout = traffic_of(state), state.rollout
    if traffic is None:
        assert rollout is None
        return
    weights = [traffic.canary_percent, traffic.control_percent, traffic.stable_percent]
    assert sum(weights) == 100
    assert all(0 <= weight <= 100 for weight in (*weights, traffic.shadow_percent))
    assert traffic.canary_percent == traffic.control_percent <= 50
    assert traffic.rollout == (0 if rollout is None else rollout.id)
    assert not latched & {traffic.stable, traffic.canary, traffic.control, *traffic.warm}
    assert set(state.quarantined) == latched
    assert state.previous not in (traffic.stable, *latched)
    if rollout is not None:
        assert rollout.version != rollout.base
        assert state.stable == (rollout.base if rollout.trial else rollout.version)
        assert 1 <= rollout.id <= state.rollouts
        assert rollout.ready or traffic.canary_percent == 0
