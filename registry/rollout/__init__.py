"""The state machine of rollouts: one pure function, `advance`, over an app's state. Called by `registry.controller`."""

from registry.rollout.state import (
    AliasesSeen,
    AliasWrite,
    AppState,
    Event,
    Observed,
    Phase,
    Rollout,
    TagWrite,
    Written,
)

__all__ = [
    "AliasWrite",
    "AliasesSeen",
    "AppState",
    "Event",
    "Observed",
    "Phase",
    "Rollout",
    "TagWrite",
    "Written",
]
