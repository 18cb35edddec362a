"""A change in the making: the next state of one app and what the journal shall say of it. Mutable inside, so that
`advance` stays pure outside. Every transition of this package takes one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from registry.analysis.verdict import Verdict, verdict_to_json
from registry.rollout import outbox
from registry.rollout.state import AliasName, AppState, EntryKind, Rollout
from registry.rollout.traffic import percent_of
from registry.traffic import Entry

CONTROLLER = "controller"
IN_MLFLOW = "a person, in MLflow"
"""Who moved an alias: MLflow does not say it more precisely."""

MAX_TAG_CHARS = 1_000
MAX_EVIDENCE_CHARS = 4_000
"""MLflow refuses tags of more than 5,000 characters in some versions; the journal has everything."""


@dataclass(frozen=True, slots=True)
class By:
    """Who decided, why (a sentence), and on what evidence."""

    who: str
    why: str
    verdict: Verdict | None = None

    @property
    def person(self) -> bool:
        return self.who != CONTROLLER


@dataclass(slots=True)
class Draft:
    state: AppState
    now: float
    entries: list[Entry] = field(default_factory=list)
    command: int | None = None
    """The id of the command that is dealt with: every entry says that it was caused by it."""

    def set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

    def set_rollout(self, rollout: Rollout, **changes: Any) -> Rollout:
        changed = replace(rollout, **changes)
        self.state = replace(self.state, rollout=changed)
        return changed

    def enter(self, rollout: Rollout, **changes: Any) -> Rollout:
        """Begin a phase or a step: its time counts from now."""
        return self.set_rollout(rollout, since_s=self.now, observed_s=self.now, elapsed_s=0.0, paused=False, **changes)

    def write_alias(self, alias: AliasName, version: int | None) -> None:
        self.state = outbox.with_alias(self.state, alias, version)

    def tell(self, kind: EntryKind, by: By, version: int | None, **details: Any) -> None:
        """An entry of the journal. It belongs to the rollout of `version` and says where that stands: tell of an end
        before the rollout leaves the state."""
        rollout = self._rollout_of(version)
        if rollout is not None:
            details = {"phase": rollout.phase, "step": rollout.step, "percent": percent_of(rollout)} | details
        if self.command is not None:
            details["command"] = self.command
        if by.verdict is not None:
            details["verdict"] = verdict_to_json(by.verdict)
        number = 0 if rollout is None else rollout.id
        self.entries.append(Entry(self.state.app, number, self.now, kind, by.who, by.why, version, details))

    def _rollout_of(self, version: int | None) -> Rollout | None:
        rollout = self.state.rollout
        return rollout if rollout is not None and rollout.version == version else None

    def tag(self, version: int, rollout: str, by: By) -> None:
        """What MLflow shall show on the version: how its rollout stands, why, on what evidence, which one, since when.

        The time is left out where the clock is beyond any date."""
        of = self._rollout_of(version)
        tags = {
            "palate.rollout": rollout[:MAX_TAG_CHARS],
            "palate.rollout.reason": f"{by.why} ({by.who})"[:MAX_TAG_CHARS],
            "palate.rollout.evidence": "" if by.verdict is None else evidence_tag(by.verdict),
            "palate.rollout.id": "" if of is None else str(of.id),
            "palate.rollout.at": _date(self.now),
        }
        self.state = outbox.with_tags(self.state, version, tags)


def evidence_tag(verdict: Verdict) -> str:
    """The numbers of a verdict as a short line of JSON."""
    guards: Mapping[str, Any] = {
        g.name: {"state": g.state, "canary": _short(g.canary), "control": _short(g.control), "e": _short(g.evidence)}
        for g in verdict.guards
    }
    plain = {
        "state": verdict.state,
        "canary_requests": verdict.canary_requests,
        "control_requests": verdict.control_requests,
        "guards": guards,
    }
    line = json.dumps(plain, ensure_ascii=False)
    if len(line) > MAX_EVIDENCE_CHARS:
        line = json.dumps({**plain, "guards": {name: guard["state"] for name, guard in guards.items()}})
    return line[:MAX_EVIDENCE_CHARS]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _date(now: float) -> str:
    try:
        return datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""
