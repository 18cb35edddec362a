"""What the routers of an app shall do with its requests, what they saw, and what they report. Plain values, no effects.

The controller writes `Traffic`; routers and the deployer of arms follow it and write the rest. `registry.ports` says
through what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Arm = Literal["stable", "canary", "control"]
TrialArm = Literal["canary", "control"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Weights of one app. Of 10,000 buckets the canary has the lowest, the control the highest, stable the rest.

    Canary and control are arms: releases in processes of their own, of the same size and placement. In a rollout the
    canary arm runs the release on trial and the control arm stable's; in the bake after it, the new stable's and the
    previous one's. `generation` rises with every change. `rollout` is the number of the app's rollout that the arms
    belong to, and with the app's name the salt of the split; 0: there are none. `warm` are versions that each router
    keeps loaded, to return to in one poll.
    """

    app: str
    generation: int
    stable: int
    canary: int | None = None
    control: int | None = None
    canary_percent: float = 0.0
    control_percent: float = 0.0
    shadow_percent: float = 0.0
    warm: tuple[int, ...] = ()
    rollout: int = 0
    replicas: int = 1
    answer_within_ratio: float = 0.5

    @property
    def stable_percent(self) -> float:
        return 100.0 - self.canary_percent - self.control_percent

    def version_of(self, arm: Arm) -> int | None:
        return {"stable": self.stable, "canary": self.canary, "control": self.control}[arm]


# One letter per request, in `Block.outcomes`.
ANSWERED, ABSTAINED, EMPTY, RAISED, TIMED_OUT, OVERLOADED, LOST = "anzetoc"
"""a: answered; n: abstained; z: answered, nothing found; e: raised; t: ran past its share of the deadline;
o: refused, overloaded; c: its replica was lost. The last four were answered by stable."""

FAILURES = frozenset({RAISED, TIMED_OUT, OVERLOADED, LOST})
TOKEN_CHARS = 8


@dataclass(frozen=True, slots=True)
class Block:
    """Requests of one arm that ended since the router's last block, in that order, an entry per request in each field.

    `latencies_ms` from dispatch to answer (to giving up, for failures). `tokens` holds TOKEN_CHARS characters per
    request: the last hex digits of the trace id's first part, by which feedback is joined. `agreed` is for shadow
    traffic: "1" where the mirrored answer had the same first result as the one given, "0" where not, "" otherwise.
    `measures` are further numbers by name, None for a request that has none of that name: what was generated, say.
    """

    at_s: float
    latencies_ms: tuple[float, ...]
    outcomes: str
    tokens: str = ""
    agreed: str = ""
    measures: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


def columns(measures: Sequence[Mapping[str, float]]) -> dict[str, tuple[float | None, ...]]:
    """`Block.measures` of requests that have these each."""
    names = dict.fromkeys(name for one in measures for name in one)
    return {name: tuple(one.get(name) for one in measures) for name in names}


EvidenceArm = Literal["canary", "control", "shadow"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A block as a router wrote it: `seq` counts the router's blocks, so that one written twice counts once."""

    app: str
    rollout: int
    router: str
    seq: int
    arm: EvidenceArm
    block: Block


@dataclass(frozen=True, slots=True)
class Reward:
    """One feedback event about an answer of an arm. `seq` is its place in the app's feedback; `at_s` when it came."""

    seq: int
    rollout: int
    arm: TrialArm
    token: str
    answered_s: float
    value: float
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What one router replica does now. `generation`: the newest traffic it follows in full; `stable`: the version
    that answers; `problem`: what keeps it from following the newest, "" when nothing does; `spooled`: feedback events
    it acknowledged that wait for the database."""

    router: str
    app: str
    generation: int
    stable: int | None
    problem: str
    at_s: float
    spooled: int = 0


ArmPhase = Literal["deploying", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ArmReport:
    """What runs for one arm. `failed` after `ready` is a crash; `reason` says why."""

    app: str
    rollout: int
    arm: TrialArm
    phase: ArmPhase
    reason: str = ""
    at_s: float = 0.0


Verb = Literal["start", "pause", "resume", "promote", "abort", "rollback", "switch"]


@dataclass(frozen=True, slots=True)
class Command:
    """What a person asked for, from the shell or the admin routes. `switch` moves `stable` to `version` at once."""

    app: str
    verb: Verb
    who: str
    why: str
    at_s: float
    version: int | None = None
    id: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal: what was decided, by whom, why, and on what evidence. Never changed."""

    app: str
    rollout: int
    at_s: float
    kind: str
    who: str
    why: str
    version: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
