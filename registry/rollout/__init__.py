"""The state machine of rollouts: one pure function, `advance`, over an app's state. Called by `registry.controller`."""

from registry.rollout.advance import advance
from registry.rollout.codec import state_from_json, state_to_json
from registry.rollout.state import (
    AliasesSeen,
    AliasWrite,
    AppState,
    CommandSeen,
    EntryKind,
    Event,
    Observed,
    Phase,
    Rollout,
    TagWrite,
    Written,
)
from registry.rollout.traffic import traffic_of

__all__ = [
    "AliasWrite",
    "AliasesSeen",
    "AppState",
    "CommandSeen",
    "EntryKind",
    "Event",
    "Observed",
    "Phase",
    "Rollout",
    "TagWrite",
    "Written",
    "advance",
    "state_from_json",
    "state_to_json",
    "traffic_of",
]
