"""What the controller knows of one app, and what can happen to it. Plain values: they are stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from registry.analysis.verdict import Verdict
from registry.plan import RolloutPlan
from registry.traffic import ArmReport, Command, RouterReport, TrialArm

Phase = Literal["loading", "shadow", "step", "baking"]
AliasName = Literal["stable", "canary", "previous"]
EntryKind = Literal[
    "adopted",
    "started",
    "ready",
    "step",
    "paused",
    "resumed",
    "promoted",
    "baked",
    "rolled-back",
    "aborted",
    "superseded",
    "refused",
    "refused-command",
    "alarm",
    "switched",
    "note",
]
"""`Entry.kind` of what `advance` tells."""


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
    elapsed_s: float = 0.0
    """How long the phase (the step) was watched: the sum of the times between two `Observed`, none counted as negative
    or as more than MAX_GAP_S. Deadlines and minimum times count by it, so neither a clock that is set nor a controller
    that was away expires anything."""
    observed_s: float = 0.0
    """The clock when `elapsed_s` was last brought up to date."""
    generation: int = 0
    """Of the traffic that named its arms first: a router at an older one has not heard of them."""
    ready: bool = False
    """Both arms ran, and every live router knew them: from then on they may get users."""
    control_failed: bool = False
    """The control arm is down, and the journal says so."""
    previous: int | None = None
    """What was `previous` before this release became stable; it is so again when the release is taken back."""

    @property
    def trial(self) -> bool:
        """Not stable yet: the alias `canary` belongs to it."""
        return self.phase != "baking"


@dataclass(frozen=True, slots=True)
class AliasWrite:
    """An alias still to be written in MLflow: to `version`, None to delete it. Only where it stands at one of
    `replaces` (None: at nothing): anywhere else a person has moved it meanwhile, and the person wins."""

    alias: AliasName
    version: int | None
    replaces: tuple[int | None, ...]

    def applies_to(self, current: int | None) -> bool:
        """Whether to write it where the alias stands at `current`. `previous` is the machine's own, and always is."""
        return self.alias == "previous" or current == self.version or current in self.replaces


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
    ended_s: float | None = None
    """When a trial last ended, or stable last went back: who rolls back right after that may mean what is over."""


@dataclass(frozen=True, slots=True)
class AliasesSeen:
    """The aliases as MLflow has them now. `plans` holds the rollout plan of each version named that can be tried;
    `refused` says of each that cannot why not (one that is in neither is left for the next look).

    Readings come in the order they were taken, and before anything else is written to MLflow: an older one would look
    like a person who moves the alias back."""

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
    shadow_requests: int = 0
    """Requests mirrored to the canary in this rollout; `shadow_failures` of them had no answer."""
    shadow_failures: int = 0
    rollout: int = 0
    """The rollout that was looked at: of another than the current one nothing is believed. 0: the current one."""


@dataclass(frozen=True, slots=True)
class CommandSeen:
    """A person's command, with what is known of the version it names: its `plan` when it can be tried or served,
    `refused` when it cannot; neither: there is no such version. A bare Command names no version."""

    command: Command
    plan: RolloutPlan | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """Writes that MLflow has now; `dropped` are those a person overtook."""

    aliases: tuple[AliasWrite, ...] = ()
    tags: tuple[TagWrite, ...] = ()
    dropped: tuple[AliasWrite, ...] = ()


Event = AliasesSeen | Command | CommandSeen | Observed | Written

MAX_GAP_S = 60.0
"""Time between two observations counts as no more than this."""
