"""What the evidence says now: a verdict, its numbers, and a sentence that a person understands.

The journal keeps verdicts as JSON (`verdict_to_json`, `verdict_from_json`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

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


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Mirrored requests: how many, how many of them failed, and of those compared how many agreed with the answer."""

    requests: int = 0
    failures: int = 0
    compared: int = 0
    agreed: int = 0


@dataclass(frozen=True, slots=True)
class LiveVerdict:
    """What the evidence says of a running rollout, for people to look at; `at_s` (Unix time) is when it became so."""

    app: str
    rollout: int
    at_s: float
    verdict: Verdict
    shadow: ShadowCounts = ShadowCounts()


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain JSON values; what is not finite is null."""
    plain = asdict(verdict)
    plain["guards"] = [{name: _finite(value) for name, value in guard.items()} for guard in plain["guards"]]
    return plain


def verdict_from_json(raw: Any) -> Verdict | None:
    """None where it is no verdict that can be read."""
    if not isinstance(raw, Mapping) or "state" not in raw:
        return None
    try:
        guards = tuple(_guard(guard) for guard in raw.get("guards", ()))
        return Verdict(**{**_known(Verdict, raw), "guards": guards})
    except (TypeError, AttributeError):
        return None


def _guard(raw: Mapping[str, Any]) -> GuardResult:
    """What is not finite was stored as null; evidence without end is the only number that may be so."""
    known = _known(GuardResult, raw)
    if known.get("evidence", 1.0) is None:
        known["evidence"] = math.inf
    return GuardResult(**known)


def _known(kind: type[GuardResult | Verdict], raw: Mapping[str, Any]) -> dict[str, Any]:
    """An older or newer version of Palate may have written fields that this one has not."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
