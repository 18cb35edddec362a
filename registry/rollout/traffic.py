"""What the routers of an app shall do in a given state. `advance` compares it before and after; the controller
stores it."""

from __future__ import annotations

from registry.rollout.state import AppState, Rollout
from registry.traffic import Traffic


def percent_of(rollout: Rollout) -> float:
    """The share of requests, 0..50, that each of the two arms gets."""
    if not rollout.ready:
        return 0.0
    if rollout.phase == "step":
        return rollout.plan.steps_percent[rollout.step]
    return rollout.plan.bake_percent if rollout.phase == "baking" else 0.0


def traffic_of(state: AppState) -> Traffic | None:
    """None until a stable release is known."""
    if state.stable is None:
        return None
    rollout = state.rollout
    if rollout is None:
        return Traffic(state.app, state.generation, state.stable)
    percent = percent_of(rollout)
    return Traffic(
        app=state.app,
        generation=state.generation,
        stable=state.stable,
        canary=rollout.version,
        control=rollout.base,
        canary_percent=percent,
        control_percent=percent,
        shadow_percent=rollout.plan.shadow_percent if rollout.phase == "shadow" else 0.0,
        warm=() if rollout.trial else (rollout.base,),
        rollout=rollout.id,
        replicas=rollout.plan.replicas,
        answer_within_ratio=rollout.plan.answer_within_ratio,
    )
