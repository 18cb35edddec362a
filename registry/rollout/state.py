"""What the controller knows of one app, and what can happen to it. Plain values: they are stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from registry.analysis.verdict import Verdict
from registry.plan import RolloutPlan
from registry.traffic import ArmReport, Command, RouterReport, TrialArm

Phase = Literal["loading", "shadow", "step", "baking"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A canary on its way. `base` is the release it is compared with: stable when it began.

    loading: its arms start, no user sees them. shadow: requests are mirrored to it. step: step number `step` of the
    plan. baking: it is stable now, and `base` stays warm. `since_s` is when the phase (the step) began. `alarm_only`:
    a person moved `stable`; the bake watches and says what it sees, but the machine undoes nothing.
    """

    id: int
    version: int
    base: int
    phase: Phase
    plan: RolloutPlan
    started_s: float
    since_s: float
    who: str
    why: str
    step: int = 0
    paused: bool = False
    alarm_only: bool = False
    alarmed: bool = False
    requests_before: int = 0
    """Canary answers seen before this step began."""


@dataclass(frozen=True, slots=True)
class AliasWrite:
    """An alias still to be written in MLflow: to `version`, None to delete it. Only where it stands at one of
    `replaces` (None: at nothing): anywhere else a person has moved it meanwhile, and the person wins."""

    alias: Literal["stable", "canary", "previous"]
    version: int | None
    replaces: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class TagWrite:
    """Tags still to be written on a version in MLflow."""

    version: int
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AppState:
    """`seen_stable` and `seen_canary` are the aliases as last acted upon: one that differs, and that no pending write
    of our own explains, was moved by a person. `quarantined`: version -> why it was rolled back."""

    app: str
    generation: int = 0
    stable: int | None = None
    previous: int | None = None
    rollout: Rollout | None = None
    rollouts: int = 0
    """How many rollouts there were; they are numbered from 1."""
    seen_stable: int | None = None
    seen_canary: int | None = None
    quarantined: Mapping[int, str] = field(default_factory=dict)
    alias_writes: tuple[AliasWrite, ...] = ()
    tag_writes: tuple[TagWrite, ...] = ()


@dataclass(frozen=True, slots=True)
class AliasesSeen:
    """The aliases as MLflow has them now. `plans` holds the rollout plan of each version named that can be tried;
    `refused` says of each that cannot why not."""

    stable: int | None
    canary: int | None
    plans: Mapping[int, RolloutPlan] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed:
    """What runs, and what the evidence says of the current rollout."""

    arms: Mapping[TrialArm, ArmReport] = field(default_factory=dict)
    routers: tuple[RouterReport, ...] = ()
    """The live ones; one that no longer reports is not waited for."""
    verdict: Verdict | None = None
    lost: bool = False
    """A router lost a replica of the canary arm."""


@dataclass(frozen=True, slots=True)
class Written:
    """Writes that MLflow has now; `dropped` are those a person overtook."""

    aliases: tuple[AliasWrite, ...] = ()
    tags: tuple[TagWrite, ...] = ()
    dropped: tuple[AliasWrite, ...] = ()


Event = AliasesSeen | Command | Observed | Written
