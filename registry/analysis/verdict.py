"""What the evidence says now: a verdict, its numbers, and a sentence that a person understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GuardState = Literal["Pass", "Fail", "Inconclusive", "Error"]


@dataclass(frozen=True, slots=True)
class GuardResult:
    """One guard. `canary` and `control` are its estimates (a share, milliseconds, a mean reward), with confidence
    limits that hold at all times together. `evidence` is the e-value against "no worse than the margin", and fails the
    guard at `fails_at`."""

    name: str
    state: GuardState
    sentence: str
    canary: float | None = None
    canary_low: float | None = None
    canary_high: float | None = None
    control: float | None = None
    control_low: float | None = None
    control_high: float | None = None
    evidence: float = 1.0
    fails_at: float = 100.0
    superior: bool | None = None
    failed_after: int | None = None
    """After how many pairs of a canary and a control request the evidence first reached `fails_at`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst of the guards: Fail, then Error, then Inconclusive, then Pass."""

    state: GuardState
    sentence: str
    guards: tuple[GuardResult, ...] = ()
    canary_requests: int = 0
    control_requests: int = 0
